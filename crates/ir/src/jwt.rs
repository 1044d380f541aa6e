//! JSON Web Tokens in the compact form (RFC 7519), taken apart as Envoy takes them apart: the same things are refused, with
//! the same words.

use base64::Engine;
use base64::alphabet::URL_SAFE;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use serde_json::{Map, Value};

use crate::strict_json::object;

/// Base64 for URLs, padded or not, as lenient as Envoy about the last bits.
const BASE64_URL: GeneralPurpose = GeneralPurpose::new(
    &URL_SAFE,
    GeneralPurposeConfig::new()
        .with_decode_padding_mode(DecodePaddingMode::Indifferent)
        .with_decode_allow_trailing_bits(true),
);

/// What a signature is made with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs, reason = "the names are those of RFC 7518 and RFC 8037")]
pub enum JwtAlgorithm {
    RS256,
    RS384,
    RS512,
    PS256,
    PS384,
    PS512,
    ES256,
    ES384,
    ES512,
    HS256,
    HS384,
    HS512,
    EdDSA,
}

impl JwtAlgorithm {
    /// All of them with their names.
    pub(crate) const ALL: [(&'static str, Self); 13] = [
        ("RS256", Self::RS256),
        ("RS384", Self::RS384),
        ("RS512", Self::RS512),
        ("PS256", Self::PS256),
        ("PS384", Self::PS384),
        ("PS512", Self::PS512),
        ("ES256", Self::ES256),
        ("ES384", Self::ES384),
        ("ES512", Self::ES512),
        ("HS256", Self::HS256),
        ("HS384", Self::HS384),
        ("HS512", Self::HS512),
        ("EdDSA", Self::EdDSA),
    ];

    fn named(name: &str) -> Option<Self> {
        Self::ALL.iter().find(|(known, _)| *known == name).map(|(_, algorithm)| *algorithm)
    }

    /// Its name, as `alg` has it.
    pub(crate) fn name(self) -> &'static str {
        Self::ALL.iter().find(|(_, one)| *one == self).map_or("", |(name, _)| name)
    }
}

macro_rules! errors {
    ($($(#[$doc:meta])* $name:ident = $code:literal, $text:literal;)*) => {
        /// Why there is no valid token. The numbers are those of Envoy's statuses.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum JwtError {
            $($(#[$doc])* $name = $code,)*
        }

        impl JwtError {
            /// Envoy's words: the body of the answer.
            pub fn text(self) -> &'static str {
                match self {
                    $(Self::$name => $text,)*
                }
            }
        }
    };
}

errors! {
    /// There is no token.
    Missing = 1, "Jwt is missing";
    /// `nbf` is in the future.
    NotYetValid = 2, "Jwt not yet valid";
    /// `exp` is in the past.
    Expired = 3, "Jwt is expired";
    /// It has not three parts.
    BadFormat = 4, "Jwt is not in the form of Header.Payload.Signature with two dots and 3 sections";
    /// The header is no Base64.
    HeaderBase64 = 5, "Jwt header is an invalid Base64url encoded";
    /// The header is no JSON object.
    HeaderJson = 6, "Jwt header is an invalid JSON";
    /// There is no `alg`, or it is no text.
    Algorithm = 7, "Jwt header [alg] field is required and must be a string";
    /// `none`, or something else that is not supported.
    UnknownAlgorithm = 8, "Jwt header [alg] is not supported";
    /// `kid` is no text.
    KeyId = 9, "Jwt header [kid] field is not a string";
    /// The payload is no Base64.
    PayloadBase64 = 10, "Jwt payload is an invalid Base64url encoded";
    /// The payload is no JSON object.
    PayloadJson = 11, "Jwt payload is an invalid JSON";
    /// `iss` is no text.
    Issuer = 12, "Jwt payload [iss] field is not a string";
    /// `sub` is no text.
    Subject = 13, "Jwt payload [sub] field is not a string";
    /// `iat` is no number.
    IssuedAt = 14, "Jwt payload [iat] field is not an integer";
    /// `iat` is negative or too large.
    IssuedAtRange = 15, "Jwt payload [iat] field is not a positive 64 bit integer";
    /// `nbf` is no number.
    NotBefore = 16, "Jwt payload [nbf] field is not an integer";
    /// `nbf` is negative or too large.
    NotBeforeRange = 17, "Jwt payload [nbf] field is not a positive 64 bit integer";
    /// `exp` is no number.
    Expiration = 18, "Jwt payload [exp] field is not an integer";
    /// `exp` is negative or too large.
    ExpirationRange = 19, "Jwt payload [exp] field is not a positive 64 bit integer";
    /// `jti` is no text.
    Id = 20, "Jwt payload [jti] field is not a string";
    /// `aud` is neither a text nor a list of texts.
    Audience = 21, "Jwt payload [aud] field is not a string or string list";
    /// The signature is no Base64.
    SignatureBase64 = 22, "Jwt signature is an invalid Base64url encoded";
    /// An Ed25519 signature has 64 bytes.
    Ed25519Length = 23, "Jwt ED25519 signature is wrong length";
    /// No provider has this issuer.
    UnknownIssuer = 24, "Jwt issuer is not configured";
    /// None of the token's audiences is wanted.
    AudienceNotAllowed = 25, "Audiences in Jwt are not allowed";
    /// No key made the signature, or something else about the token is not as the provider wants it.
    VerificationFails = 26, "Jwt verification fails";
    /// The provider has no key that could be used.
    NoKeys = 31, "Jwks doesn't have any valid public key";
    /// No key has the token's `kid` and `alg`.
    NoSuchKey = 32, "Jwks doesn't have key to match kid or alg from Jwt";
    /// The provider's keys are not there and could not be fetched.
    FetchFailed = 40, "Jwks remote fetch is failed";
}

/// A token whose signature nobody has looked at yet.
#[derive(Clone, Debug)]
pub struct Jwt {
    /// The header.
    pub header: Map<String, Value>,
    /// The claims.
    pub claims: Map<String, Value>,
    /// The claims as they came, in Base64.
    pub payload: Box<str>,
    /// Of the header.
    pub algorithm: JwtAlgorithm,
    /// `kid`; empty without one.
    pub key_id: Box<str>,
    /// `iss`; empty without one.
    pub issuer: Box<str>,
    /// `sub`; empty without one.
    pub subject: Box<str>,
    /// `aud`
    pub audiences: Vec<Box<str>>,
    /// `nbf`, in seconds since the epoch; 0 without one.
    pub not_before: u64,
    /// `exp`, in seconds since the epoch. Without one (or with 0) it never expires.
    pub expires: u64,
    /// Whether there is an `exp`.
    pub has_expiration: bool,
    /// What is signed.
    pub(crate) signed: Box<str>,
    pub(crate) signature: Vec<u8>,
}

impl Jwt {
    /// Takes a token apart.
    ///
    /// # Errors
    /// The first thing that is wrong with it.
    pub fn parse(token: &str) -> Result<Self, JwtError> {
        let mut parts = token.split('.').filter(|part| !part.is_empty());
        let (Some(head), Some(payload), Some(signature), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(JwtError::BadFormat);
        };
        let header = object(&decode(head).ok_or(JwtError::HeaderBase64)?).ok_or(JwtError::HeaderJson)?;
        let name = header.get("alg").and_then(Value::as_str).ok_or(JwtError::Algorithm)?;
        let algorithm = JwtAlgorithm::named(name).ok_or(JwtError::UnknownAlgorithm)?;
        let key_id = text(&header, "kid", JwtError::KeyId)?;
        let bytes = decode(payload).ok_or(JwtError::PayloadBase64)?;
        let claims = object(&bytes).ok_or(JwtError::PayloadJson)?;
        let issuer = text(&claims, "iss", JwtError::Issuer)?;
        let subject = text(&claims, "sub", JwtError::Subject)?;
        seconds(&claims, "iat", JwtError::IssuedAt, JwtError::IssuedAtRange)?;
        let not_before = seconds(&claims, "nbf", JwtError::NotBefore, JwtError::NotBeforeRange)?;
        let expires = seconds(&claims, "exp", JwtError::Expiration, JwtError::ExpirationRange)?;
        text(&claims, "jti", JwtError::Id)?;
        let audiences = audiences(&claims)?;
        let decoded = decode(signature).ok_or(JwtError::SignatureBase64)?;
        Ok(Self {
            has_expiration: claims.contains_key("exp"),
            signed: format!("{head}.{payload}").into(),
            payload: payload.into(),
            signature: decoded,
            header,
            claims,
            algorithm,
            key_id,
            issuer,
            subject,
            audiences,
            not_before,
            expires,
        })
    }

    /// Whether it is valid now, give or take `skew` seconds.
    pub(crate) fn check_time(&self, now: u64, skew: u64) -> Result<(), JwtError> {
        if now.saturating_add(skew) < self.not_before {
            return Err(JwtError::NotYetValid);
        }
        if self.expires != 0 && now > self.expires.saturating_add(skew) {
            return Err(JwtError::Expired);
        }
        Ok(())
    }
}

/// White space does not count.
pub(crate) fn decode(text: &str) -> Option<Vec<u8>> {
    if text.contains(|c: char| c.is_ascii_whitespace()) {
        let dense: String = text.split_ascii_whitespace().collect();
        return BASE64_URL.decode(dense).ok();
    }
    BASE64_URL.decode(text).ok()
}

fn text(object: &Map<String, Value>, name: &str, error: JwtError) -> Result<Box<str>, JwtError> {
    match object.get(name) {
        None => Ok(Box::default()),
        Some(Value::String(text)) => Ok(text.as_str().into()),
        Some(_) => Err(error),
    }
}

fn seconds(
    object: &Map<String, Value>,
    name: &str,
    wrong: JwtError,
    range: JwtError,
) -> Result<u64, JwtError> {
    let Some(value) = object.get(name) else { return Ok(0) };
    let number = value.as_f64().ok_or(wrong)?;
    // 2^64
    if (0.0..18_446_744_073_709_551_616.0).contains(&number) { Ok(number as u64) } else { Err(range) }
}

fn audiences(claims: &Map<String, Value>) -> Result<Vec<Box<str>>, JwtError> {
    match claims.get("aud") {
        None => Ok(Vec::new()),
        Some(Value::String(one)) => Ok(vec![one.as_str().into()]),
        Some(Value::Array(list)) => {
            list.iter().map(|one| one.as_str().map(Into::into).ok_or(JwtError::Audience)).collect()
        }
        Some(_) => Err(JwtError::Audience),
    }
}
