//! JSON Web Key Sets (RFC 7517) and signatures of tokens. A key verifies exactly the algorithms that are meant for its kind
//! (and its curve), whatever a token says of itself; RSA keys have 2,048 to 8,192 bits (RFC 7518, 3.3).

use aws_lc_rs::hmac;
use aws_lc_rs::signature::{self, ParsedPublicKey, VerificationAlgorithm};
use serde_json::{Map, Value};

use crate::jwt::{Jwt, JwtAlgorithm, JwtError, decode};

/// An Ed25519 signature, in bytes.
const ED25519_SIGNATURE: usize = 64;

/// The keys of a provider.
#[derive(Clone, Debug, Default)]
pub struct Jwks(Vec<Jwk>);

#[derive(Clone)]
struct Jwk {
    /// Empty: any.
    id: Box<str>,
    /// `alg`; empty: any of the key's kind.
    algorithm: Box<str>,
    /// By algorithm; only a few.
    verifiers: Vec<(JwtAlgorithm, Verifier)>,
}

impl std::fmt::Debug for Jwk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Jwk")
            .field("id", &self.id)
            .field("algorithm", &self.algorithm)
            .finish_non_exhaustive()
    }
}

#[derive(Clone)]
enum Verifier {
    Public(ParsedPublicKey),
    Shared(Box<hmac::Key>),
}

impl Jwks {
    /// Reads a key set, or a map of names to RSA certificates in PEM (as some providers publish). Keys that can't be used are
    /// left out.
    ///
    /// # Errors
    /// No key is left; why.
    pub fn parse(text: &str) -> Result<Self, String> {
        let value: Value = serde_json::from_str(text).map_err(|error| format!("it is not JSON: {error}"))?;
        let Value::Object(object) = value else { return Err("it is not a JSON object".to_owned()) };
        let Some(keys) = object.get("keys") else { return certificates(&object) };
        let Value::Array(list) = keys else { return Err("keys is not a list".to_owned()) };
        let mut reason = "it has no keys".to_owned();
        let mut usable = Vec::new();
        for (index, key) in list.iter().enumerate() {
            match jwk(key) {
                Ok(key) => usable.push(key),
                Err(error) => reason = format!("keys[{index}]: {error}"),
            }
        }
        if usable.is_empty() { Err(reason) } else { Ok(Self(usable)) }
    }

    /// Whether one of the keys made the token's signature.
    pub(crate) fn verify(&self, jwt: &Jwt) -> Result<(), JwtError> {
        let mut fitting = false;
        for key in &self.0 {
            if !jwt.key_id.is_empty() && !key.id.is_empty() && key.id != jwt.key_id {
                continue;
            }
            if !key.algorithm.is_empty() && *key.algorithm != *jwt.algorithm.name() {
                continue;
            }
            fitting = true;
            let verifier = key.verifiers.iter().find(|(algorithm, _)| *algorithm == jwt.algorithm);
            let Some((algorithm, verifier)) = verifier else { continue };
            if *algorithm == JwtAlgorithm::EdDSA && jwt.signature.len() != ED25519_SIGNATURE {
                return Err(JwtError::Ed25519Length);
            }
            if verifier.verify(jwt) {
                return Ok(());
            }
        }
        Err(if fitting { JwtError::VerificationFails } else { JwtError::NoSuchKey })
    }
}

impl Verifier {
    fn verify(&self, jwt: &Jwt) -> bool {
        match self {
            Self::Public(key) => key.verify_sig(jwt.signed.as_bytes(), &jwt.signature).is_ok(),
            Self::Shared(key) => hmac::verify(key, jwt.signed.as_bytes(), &jwt.signature).is_ok(),
        }
    }
}

type Public = (JwtAlgorithm, &'static dyn VerificationAlgorithm);

const RSA: [Public; 6] = [
    (JwtAlgorithm::RS256, &signature::RSA_PKCS1_2048_8192_SHA256),
    (JwtAlgorithm::RS384, &signature::RSA_PKCS1_2048_8192_SHA384),
    (JwtAlgorithm::RS512, &signature::RSA_PKCS1_2048_8192_SHA512),
    (JwtAlgorithm::PS256, &signature::RSA_PSS_2048_8192_SHA256),
    (JwtAlgorithm::PS384, &signature::RSA_PSS_2048_8192_SHA384),
    (JwtAlgorithm::PS512, &signature::RSA_PSS_2048_8192_SHA512),
];

/// Curve, length of a coordinate, algorithm.
const CURVES: [(&str, usize, Public); 3] = [
    ("P-256", 32, (JwtAlgorithm::ES256, &signature::ECDSA_P256_SHA256_FIXED)),
    ("P-384", 48, (JwtAlgorithm::ES384, &signature::ECDSA_P384_SHA384_FIXED)),
    ("P-521", 66, (JwtAlgorithm::ES512, &signature::ECDSA_P521_SHA512_FIXED)),
];

fn public((algorithm, how): Public, bytes: &[u8]) -> Result<(JwtAlgorithm, Verifier), String> {
    let key = ParsedPublicKey::new(how, bytes).map_err(|error| format!("the key is bad: {error}"))?;
    Ok((algorithm, Verifier::Public(key)))
}

fn jwk(value: &Value) -> Result<Jwk, String> {
    let Value::Object(object) = value else { return Err("it is not an object".to_owned()) };
    let kind = member(object, "kty")?;
    let optional = |name: &str| object.get(name).and_then(Value::as_str).unwrap_or_default();
    let algorithm = optional("alg");
    let verifiers = match kind {
        "RSA" => rsa(object, algorithm)?,
        "EC" => vec![elliptic(object, algorithm)?],
        "oct" => shared(object, algorithm)?,
        "OKP" => vec![edwards(object, algorithm)?],
        other => return Err(format!("kty {other:?} is not supported")),
    };
    Ok(Jwk { id: optional("kid").into(), algorithm: algorithm.into(), verifiers })
}

fn member<'a>(object: &'a Map<String, Value>, name: &str) -> Result<&'a str, String> {
    object.get(name).and_then(Value::as_str).ok_or_else(|| format!("{name} must be a text"))
}

fn bytes(object: &Map<String, Value>, name: &str) -> Result<Vec<u8>, String> {
    decode(member(object, name)?).ok_or_else(|| format!("{name} is not Base64 for URLs"))
}

fn wrong_algorithm(algorithm: &str, kind: &str) -> String {
    format!("alg {algorithm:?} does not go with kty {kind}")
}

fn rsa(object: &Map<String, Value>, algorithm: &str) -> Result<Vec<(JwtAlgorithm, Verifier)>, String> {
    if !(algorithm.is_empty() || algorithm.starts_with("RS") || algorithm.starts_with("PS")) {
        return Err(wrong_algorithm(algorithm, "RSA"));
    }
    let (modulus, exponent) = (bytes(object, "n")?, bytes(object, "e")?);
    let exponent = unsigned(&exponent);
    if !(256..=1024).contains(&unsigned(&modulus).len()) {
        return Err("n must have 2048 to 8192 bits".to_owned());
    }
    if ![&[3][..], &[1, 0, 1]].contains(&exponent) {
        return Err("e must be 3 or 65537".to_owned());
    }
    let numbers = [der(2, &positive(unsigned(&modulus))), der(2, &positive(exponent))].concat();
    every_rsa(&der(0x30, &numbers))
}

/// `key`: PKCS #1.
fn every_rsa(key: &[u8]) -> Result<Vec<(JwtAlgorithm, Verifier)>, String> {
    RSA.iter().map(|one| public(*one, key)).collect()
}

/// Without zeros in front.
fn unsigned(number: &[u8]) -> &[u8] {
    &number[number.iter().position(|byte| *byte != 0).unwrap_or(number.len())..]
}

/// DER's numbers have a sign.
fn positive(number: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(number.len() + 1);
    if number.first().is_none_or(|byte| *byte >= 0x80) {
        out.push(0);
    }
    out.extend_from_slice(number);
    out
}

/// A value in DER (X.690, 8.1) with its tag and length.
fn der(tag: u8, value: &[u8]) -> Vec<u8> {
    let mut out = vec![tag];
    if value.len() < 0x80 {
        out.push(value.len() as u8);
    } else {
        let length = value.len().to_be_bytes();
        let length = unsigned(&length);
        out.push(0x80 | length.len() as u8);
        out.extend_from_slice(length);
    }
    out.extend_from_slice(value);
    out
}

fn elliptic(object: &Map<String, Value>, algorithm: &str) -> Result<(JwtAlgorithm, Verifier), String> {
    if !(algorithm.is_empty() || algorithm.starts_with("ES")) {
        return Err(wrong_algorithm(algorithm, "EC"));
    }
    let curve = match object.get("crv") {
        None => "",
        Some(curve) => curve.as_str().ok_or("crv must be a text")?,
    };
    let fits = |(name, _, (of, _)): &&(&str, usize, Public)| {
        (curve.is_empty() || curve == *name) && (algorithm.is_empty() || algorithm == of.name())
    };
    // Without curve and algorithm it is P-256.
    let (_, length, how) = CURVES
        .iter()
        .find(fits)
        .ok_or_else(|| format!("crv {curve:?} with alg {algorithm:?} is not supported"))?;
    let mut point = vec![4];
    for name in ["x", "y"] {
        let number = bytes(object, name)?;
        let number = unsigned(&number);
        let zeros = length.checked_sub(number.len()).ok_or_else(|| format!("{name} is too long"))?;
        point.extend(std::iter::repeat_n(0, zeros));
        point.extend_from_slice(number);
    }
    public(*how, &point)
}

fn edwards(object: &Map<String, Value>, algorithm: &str) -> Result<(JwtAlgorithm, Verifier), String> {
    if !(algorithm.is_empty() || algorithm == "EdDSA") {
        return Err(wrong_algorithm(algorithm, "OKP"));
    }
    let curve = member(object, "crv")?;
    if curve != "Ed25519" {
        return Err(format!("crv {curve:?} is not supported"));
    }
    public((JwtAlgorithm::EdDSA, &signature::ED25519), &bytes(object, "x")?)
}

fn shared(object: &Map<String, Value>, algorithm: &str) -> Result<Vec<(JwtAlgorithm, Verifier)>, String> {
    let all = [
        (JwtAlgorithm::HS256, hmac::HMAC_SHA256),
        (JwtAlgorithm::HS384, hmac::HMAC_SHA384),
        (JwtAlgorithm::HS512, hmac::HMAC_SHA512),
    ];
    if !(algorithm.is_empty() || all.iter().any(|(one, _)| one.name() == algorithm)) {
        return Err(wrong_algorithm(algorithm, "oct"));
    }
    let secret = bytes(object, "k")?;
    if secret.is_empty() {
        return Err("k is empty".to_owned());
    }
    Ok(all.map(|(name, how)| (name, Verifier::Shared(Box::new(hmac::Key::new(how, &secret))))).into())
}

/// Names and the PEM of certificates with RSA keys.
fn certificates(object: &Map<String, Value>) -> Result<Jwks, String> {
    let pem = |text: &str| {
        text.starts_with("-----BEGIN CERTIFICATE-----\n") && text.ends_with("\n-----END CERTIFICATE-----\n")
    };
    let all = !object.is_empty()
        && object.iter().all(|(name, value)| !name.is_empty() && value.as_str().is_some_and(pem));
    if !all {
        return Err("it has no keys".to_owned());
    }
    let key = |(name, value): (&String, &Value)| {
        let text = value.as_str().unwrap_or_default();
        let bad = |error: &dyn std::fmt::Display| format!("the certificate {name:?} is bad: {error}");
        let (_, pem) = x509_parser::pem::parse_x509_pem(text.as_bytes()).map_err(|error| bad(&error))?;
        let certificate = pem.parse_x509().map_err(|error| bad(&error))?;
        let key = &certificate.public_key().subject_public_key.data;
        Ok(Jwk { id: name.as_str().into(), algorithm: Box::default(), verifiers: every_rsa(key)? })
    };
    Ok(Jwks(object.iter().map(key).collect::<Result<_, String>>()?))
}
