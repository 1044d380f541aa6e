//! Keys and tokens by themselves. What the filter makes of them is compared with Envoy's in `agent`'s `differential`.

use std::sync::Arc;

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{self, EcdsaKeyPair, EcdsaSigningAlgorithm, KeyPair};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use proptest::prelude::*;
use serde_json::json;

use crate::jwt_cache::JwtCache;
use crate::{Jwks, Jwt, JwtAuthn, JwtError};

proptest! {
    #[test]
    fn any_text_is_a_token_or_refused(text in "\\PC{0,100}", parts in prop::collection::vec("[A-Za-z0-9_-]{0,60}", 0..5)) {
        drop(Jwt::parse(&text));
        drop(Jwt::parse(&parts.join(".")));
        drop(Jwks::parse(&text));
    }

    /// What claims say is what is read, or the token is refused.
    #[test]
    fn claims_are_read_as_they_are(issuer in "\\PC{0,20}", expires in prop_oneof![-1000..0_i64, 0..5_000_000_000_i64], audience in prop::collection::vec("\\PC{0,10}", 0..3), other in "\\PC{0,10}") {
        let claims = json!({ "iss": issuer, "exp": expires, "aud": audience, "other": other });
        let token = format!("{}.{}.{}", encode(r#"{"alg":"ES256"}"#), encode(claims.to_string()), encode("signature"));
        match Jwt::parse(&token) {
            Ok(jwt) => {
                prop_assert!(expires >= 0, "{}", expires);
                prop_assert_eq!((&*jwt.issuer, jwt.expires), (issuer.as_str(), expires as u64));
                prop_assert!(jwt.audiences.iter().map(|one| &**one).eq(audience.iter().map(String::as_str)));
            }
            Err(_) => prop_assert!(expires < 0, "{}", claims),
        }
    }
}

fn encode(bytes: impl AsRef<[u8]>) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

fn token(key: &EcdsaKeyPair, header: &str, claims: &str) -> String {
    let signed = format!("{}.{}", encode(header), encode(claims));
    let signature = key.sign(&SystemRandom::new(), signed.as_bytes()).unwrap();
    format!("{signed}.{}", encode(signature))
}

fn pair(how: &'static EcdsaSigningAlgorithm) -> (EcdsaKeyPair, String, String) {
    let pair = EcdsaKeyPair::generate(how).unwrap();
    let point = pair.public_key().as_ref()[1..].to_vec();
    let (x, y) = point.split_at(point.len() / 2);
    let (x, y) = (encode(x), encode(y));
    (pair, x, y)
}

fn verify(keys: &serde_json::Value, token: &str) -> Result<(), JwtError> {
    Jwks::parse(&keys.to_string()).unwrap().verify(&Jwt::parse(token).unwrap())
}

#[test]
fn a_key_verifies_the_algorithm_of_its_kind_alone() {
    let (key, x, y) = pair(&signature::ECDSA_P256_SHA256_FIXED_SIGNING);
    // Nothing says which algorithm the key is for.
    let keys = json!({ "keys": [{ "kty": "EC", "crv": "P-256", "x": x, "y": y }] });
    let token = |algorithm: &str| token(&key, &format!(r#"{{"alg":"{algorithm}"}}"#), "{}");
    assert_eq!(verify(&keys, &token("ES256")), Ok(()));
    for algorithm in ["ES384", "ES512", "HS256", "RS256", "PS256", "EdDSA"] {
        assert_eq!(verify(&keys, &token(algorithm)), Err(JwtError::VerificationFails), "{algorithm}");
    }
    let keys = json!({ "keys": [{ "kty": "EC", "alg": "ES256", "kid": "a", "x": x, "y": y }] });
    assert_eq!(verify(&keys, &token("ES256")), Ok(()), "the algorithm tells the curve");
    assert_eq!(verify(&keys, &token("ES384")), Err(JwtError::NoSuchKey));
}

fn parse(claims: &str) -> Result<Jwt, JwtError> {
    Jwt::parse(&format!("{}.{}.{}", encode(r#"{"alg":"ES256"}"#), encode(claims), encode("signature")))
}

#[test]
fn keys_are_told_apart_by_their_names() {
    let (key, x, y) = pair(&signature::ECDSA_P256_SHA256_FIXED_SIGNING);
    let (_, other_x, other_y) = pair(&signature::ECDSA_P256_SHA256_FIXED_SIGNING);
    let named = |name: &str| json!({ "keys": [{ "kty": "EC", "kid": name, "x": x, "y": y }] });
    let of = |header: &str| token(&key, header, "{}");
    let (a, none) = (of(r#"{"alg":"ES256","kid":"a"}"#), of(r#"{"alg":"ES256"}"#));
    assert_eq!(verify(&named("a"), &a), Ok(()));
    assert_eq!(verify(&named("b"), &a), Err(JwtError::NoSuchKey));
    assert_eq!(verify(&named(""), &a), Ok(()), "a key without a name is for all");
    assert_eq!(verify(&named("a"), &none), Ok(()), "a token without a name may be of any");
    // The name alone proves nothing.
    let another = json!({ "keys": [{ "kty": "EC", "kid": "a", "x": other_x, "y": other_y }] });
    assert_eq!(verify(&another, &a), Err(JwtError::VerificationFails));
    let mut both = named("a");
    both["keys"].as_array_mut().unwrap().insert(0, another["keys"][0].clone());
    assert_eq!(verify(&both, &a), Ok(()), "of two keys of one name either may fit");
}

#[test]
fn times_are_judged_to_the_second() {
    let (expires, begins) = (parse(r#"{"exp":100}"#).unwrap(), parse(r#"{"nbf":100}"#).unwrap());
    for (now, skew, expected) in [
        (100, 0, Ok(())),
        (101, 0, Err(JwtError::Expired)),
        (160, 60, Ok(())),
        (161, 60, Err(JwtError::Expired)),
    ] {
        assert_eq!(expires.check_time(now, skew), expected, "{now} {skew}");
    }
    for (now, skew, expected) in [
        (100, 0, Ok(())),
        (99, 0, Err(JwtError::NotYetValid)),
        (40, 60, Ok(())),
        (39, 60, Err(JwtError::NotYetValid)),
    ] {
        assert_eq!(begins.check_time(now, skew), expected, "{now} {skew}");
    }
    assert_eq!(parse("{}").unwrap().check_time(u64::MAX, 0), Ok(()), "without an end there is none");
    for (claims, error) in [
        (r#"{"iat":"x"}"#, JwtError::IssuedAt),
        (r#"{"jti":5}"#, JwtError::Id),
        (r#"{"exp":"x"}"#, JwtError::Expiration),
        (r#"{"nbf":-1}"#, JwtError::NotBeforeRange),
    ] {
        assert_eq!(parse(claims).map(|_| ()), Err(error), "{claims}");
    }
}

#[test]
fn a_public_key_is_no_secret() {
    let (_, x, y) = pair(&signature::ECDSA_P256_SHA256_FIXED_SIGNING);
    let keys = json!({ "keys": [{ "kty": "EC", "x": x, "y": y }] });
    let signed = format!("{}.{}", encode(r#"{"alg":"HS256"}"#), encode("{}"));
    for secret in [keys.to_string(), x.clone()] {
        let secret = aws_lc_rs::hmac::Key::new(aws_lc_rs::hmac::HMAC_SHA256, secret.as_bytes());
        let forged = format!("{signed}.{}", encode(aws_lc_rs::hmac::sign(&secret, signed.as_bytes())));
        assert_eq!(verify(&keys, &forged), Err(JwtError::VerificationFails));
    }
}

#[test]
fn keys_that_can_not_be_used_are_left_out() {
    let (_, x, y) = pair(&signature::ECDSA_P256_SHA256_FIXED_SIGNING);
    let refused = |key: serde_json::Value, reason: &str| {
        let error = Jwks::parse(&json!({ "keys": [key] }).to_string()).unwrap_err();
        assert!(error.contains(reason), "{error}");
    };
    let long = encode([1; 40]);
    refused(json!({}), "kty");
    refused(json!({ "kty": "EC", "x": x }), "y must be");
    refused(json!({ "kty": "EC", "x": x, "y": x }), "the key is bad");
    refused(json!({ "kty": "EC", "x": x, "y": long }), "y is too long");
    refused(json!({ "kty": "EC", "crv": "secp256k1", "x": x, "y": y }), "not supported");
    refused(json!({ "kty": "EC", "crv": "P-384", "alg": "ES256", "x": x, "y": y }), "not supported");
    refused(json!({ "kty": "EC", "alg": "RS256", "x": x, "y": y }), "does not go with");
    refused(json!({ "kty": "RSA", "n": encode([0xff; 128]), "e": "AQAB" }), "n must have");
    refused(json!({ "kty": "RSA", "n": encode([0xff; 256]), "e": "AQ" }), "e must be");
    refused(json!({ "kty": "oct", "k": "" }), "k is empty");
    refused(
        json!({ "kty": "RSA", "alg": "ES256", "n": encode([0xff; 256]), "e": "AQAB" }),
        "does not go with",
    );
    refused(
        json!({ "kty": "RSA", "alg": "HS256", "n": encode([0xff; 256]), "e": "AQAB" }),
        "does not go with",
    );
    refused(json!({ "kty": "RSA", "n": encode([0xff; 1025]), "e": "AQAB" }), "n must have");
    refused(json!({ "kty": "OKP", "alg": "ES256", "crv": "Ed25519", "x": x }), "does not go with");
    Jwks::parse(&json!({ "keys": [{ "kty": "oct", "alg": "HS384", "k": "AA" }] }).to_string()).unwrap();
    refused(json!({ "kty": "oct", "k": "AA", "alg": "RS256" }), "does not go with");
    refused(json!({ "kty": "OKP", "crv": "X25519", "x": x }), "not supported");
    let one_good =
        json!({ "keys": [{ "kty": "new" }, { "kty": "EC", "crv": "P-256", "x": x, "y": y, "use": "sig" }] });
    Jwks::parse(&one_good.to_string()).unwrap();
    for text in
        ["", "[]", "{}", r#"{"keys":{}}"#, r#"{"keys":[]}"#, r#"{"a":"-----BEGIN CERTIFICATE-----\n"}"#]
    {
        Jwks::parse(text).unwrap_err();
    }
}

/// Keys as providers publish them: with the algorithm they are for.
#[test]
fn rsa_keys_verify_the_algorithm_they_name() {
    let key = signature::RsaKeyPair::generate(aws_lc_rs::rsa::KeySize::Rsa2048).unwrap();
    let public = key.public_key();
    let (n, e) = (public.modulus().big_endian_without_leading_zero(), public.exponent());
    let (n, e) = (encode(n), encode(e.big_endian_without_leading_zero()));
    let kinds: [(&str, &'static dyn signature::RsaEncoding); 6] = [
        ("RS256", &signature::RSA_PKCS1_SHA256),
        ("RS384", &signature::RSA_PKCS1_SHA384),
        ("RS512", &signature::RSA_PKCS1_SHA512),
        ("PS256", &signature::RSA_PSS_SHA256),
        ("PS384", &signature::RSA_PSS_SHA384),
        ("PS512", &signature::RSA_PSS_SHA512),
    ];
    let token = |algorithm: &str, how| {
        let signed = format!("{}.{}", encode(format!(r#"{{"alg":"{algorithm}"}}"#)), encode("{}"));
        let mut signature = vec![0; key.public_modulus_len()];
        key.sign(how, &SystemRandom::new(), signed.as_bytes(), &mut signature).unwrap();
        format!("{signed}.{}", encode(signature))
    };
    let named = |algorithm: &str| json!({ "keys": [{ "kty": "RSA", "alg": algorithm, "n": n, "e": e }] });
    for (name, how) in kinds {
        for (of_key, _) in kinds {
            let expected = if of_key == name { Ok(()) } else { Err(JwtError::NoSuchKey) };
            assert_eq!(verify(&named(of_key), &token(name, how)), expected, "{name} by a key for {of_key}");
        }
        assert_eq!(verify(&named(""), &token(name, how)), Ok(()), "{name}");
        // What is said is not what was done.
        let (_, other) = kinds[usize::from(name == "RS256")];
        assert_eq!(verify(&named(name), &token(name, other)), Err(JwtError::VerificationFails), "{name}");
    }
    // Zeros in front of a number say nothing.
    let longer = |number: &[u8]| encode([&[0, 0], number].concat());
    let modulus = public.modulus();
    let padded = longer(modulus.big_endian_without_leading_zero());
    let keys = json!({ "keys": [{ "kty": "RSA", "n": padded, "e": longer(&[1, 0, 1]) }] });
    assert_eq!(verify(&keys, &token("RS256", kinds[0].1)), Ok(()));
}

#[test]
fn coordinates_may_come_without_the_zeros_in_front() {
    let decode = |text: &str| URL_SAFE_NO_PAD.decode(text).unwrap();
    let (key, x, y) = std::iter::repeat_with(|| pair(&signature::ECDSA_P256_SHA256_FIXED_SIGNING))
        .find(|(_, x, y)| decode(x)[0] == 0 || decode(y)[0] == 0)
        .unwrap();
    let short =
        |text: &str| encode(decode(text).into_iter().skip_while(|byte| *byte == 0).collect::<Vec<_>>());
    let token = token(&key, r#"{"alg":"ES256"}"#, "{}");
    for (x, y) in [(short(&x), short(&y)), (x, y)] {
        let keys = json!({ "keys": [{ "kty": "EC", "crv": "P-256", "alg": "ES256", "x": x, "y": y }] });
        assert_eq!(verify(&keys, &token), Ok(()));
    }
}

#[test]
fn certificates_may_stand_for_keys() {
    // openssl req -x509 -newkey rsa:2048 -nodes -subj /CN=issuer -days 36500
    let pem = include_str!("jwt_certificate.pem");
    Jwks::parse(&json!({ "one": pem, "two": pem }).to_string()).unwrap();
    let broken = pem.replacen("MII", "AAA", 1);
    assert!(Jwks::parse(&json!({ "one": broken }).to_string()).unwrap_err().contains("one"));
    for wrong in [
        json!({ "": pem }),
        json!({ "one": pem.trim_end() }),
        json!({ "one": format!(" {pem}") }),
        json!({ "one": pem, "two": 2 }),
        json!({}),
    ] {
        assert!(Jwks::parse(&wrong.to_string()).unwrap_err().contains("no keys"), "{wrong}");
    }
}

#[test]
fn the_token_used_longest_ago_is_forgotten_first() {
    let filter = JwtAuthn::default();
    assert!(JwtCache::new(&filter).get(0, "a").is_none(), "no provider");
    let jwt = Arc::new(Jwt::parse(&format!("{}.{}.AA", encode(r#"{"alg":"ES256"}"#), encode("{}"))).unwrap());
    let mut cache = JwtCache::of_sizes(&[None, Some((2, 3))]);
    cache.put(0, "a", jwt.clone());
    assert!(cache.get(0, "a").is_none(), "this provider wants none");
    for token in ["a", "b", "long"] {
        cache.put(1, token, jwt.clone());
    }
    assert!(cache.get(1, "long").is_none());
    assert!(cache.get(1, "a").is_some());
    cache.put(1, "c", jwt);
    assert!(cache.get(1, "b").is_none() && cache.get(1, "a").is_some() && cache.get(1, "c").is_some());
}
