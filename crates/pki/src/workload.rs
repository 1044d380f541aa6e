//! A workload's own side of its identity: the key, the request, and what the authority answers. All of it stays in memory.
use std::collections::BTreeMap;
use std::fmt;
use std::time::{Duration, SystemTime};

use rcgen::{
    CertificateParams, DistinguishedName, KeyPair, PKCS_ECDSA_P256_SHA256, PKCS_ECDSA_P384_SHA384,
    PKCS_RSA_SHA256, PublicKeyData as _, RsaKeySize, SanType,
};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::SpiffeId;

/// What kind of key a workload has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum KeyKind {
    /// ECDSA on P-256.
    #[default]
    P256,
    /// ECDSA on P-384.
    P384,
    /// RSA with 2,048 bits.
    Rsa2048,
    /// RSA with 3,072 bits.
    Rsa3072,
    /// RSA with 4,096 bits.
    Rsa4096,
}

/// Why a workload has no certificate. Never contains key material.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WorkloadError {
    /// No key or request could be made.
    #[error("cannot make a {what}: {reason}")]
    Make {
        /// `key`, `request`.
        what: &'static str,
        /// The library's reason.
        reason: String,
    },
    /// The authority's answer is of no use.
    #[error("the authority's answer cannot be used: {0}")]
    Answer(&'static str),
}

/// A key that was made for one certificate.
pub struct WorkloadKey(KeyPair);

/// The key stays out of logs.
impl fmt::Debug for WorkloadKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("WorkloadKey")
    }
}

impl WorkloadKey {
    /// A new key.
    ///
    /// # Errors
    /// When the system has no randomness.
    pub fn generate(kind: KeyKind) -> Result<Self, WorkloadError> {
        let made = match kind {
            KeyKind::P256 => KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256),
            KeyKind::P384 => KeyPair::generate_for(&PKCS_ECDSA_P384_SHA384),
            KeyKind::Rsa2048 => KeyPair::generate_rsa_for(&PKCS_RSA_SHA256, RsaKeySize::_2048),
            KeyKind::Rsa3072 => KeyPair::generate_rsa_for(&PKCS_RSA_SHA256, RsaKeySize::_3072),
            KeyKind::Rsa4096 => KeyPair::generate_rsa_for(&PKCS_RSA_SHA256, RsaKeySize::_4096),
        };
        made.map(Self).map_err(|error| WorkloadError::Make { what: "key", reason: error.to_string() })
    }

    /// A request (PKCS #10, PEM) for a certificate of this key. It names nobody: the mesh's own authority knows who asks.
    ///
    /// # Errors
    /// When it cannot be signed.
    pub fn request(&self) -> Result<String, WorkloadError> {
        self.request_named(None)
    }

    /// The same for a workload by its name, which authorities need that sign what a request has.
    ///
    /// # Errors
    /// When it cannot be signed.
    pub fn request_as(&self, id: &SpiffeId) -> Result<String, WorkloadError> {
        self.request_named(Some(id))
    }

    fn request_named(&self, id: Option<&SpiffeId>) -> Result<String, WorkloadError> {
        let failed = |error: rcgen::Error| WorkloadError::Make { what: "request", reason: error.to_string() };
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        if let Some(id) = id {
            params.subject_alt_names.push(SanType::URI(id.to_string().try_into().map_err(failed)?));
        }
        params.serialize_request(&self.0).and_then(|request| request.pem()).map_err(failed)
    }
}

/// A certificate with its key and the roots it came with.
#[derive(Clone)]
pub struct WorkloadCertificate {
    /// PEM: the leaf and what leads to the root, without the root.
    pub chain: String,
    /// PEM.
    pub key: String,
    /// PEM: what peers' certificates must be of.
    pub roots: String,
    /// PEM by trust domain, in the place of `roots`: whose certificates they vouch for. Empty: `roots` vouch for all.
    pub domains: BTreeMap<String, String>,
    /// When it was received.
    pub received: SystemTime,
    /// When the leaf ends.
    pub not_after: SystemTime,
}

/// The key stays out of logs.
impl fmt::Debug for WorkloadCertificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut out = f.debug_struct("WorkloadCertificate");
        out.field("chain", &self.chain).field("not_after", &self.not_after).finish_non_exhaustive()
    }
}

impl WorkloadCertificate {
    /// Takes the authority's answer to a request of `key`: the leaf first, the root last, all PEM.
    ///
    /// # Errors
    /// When it is not of that form, of another key, or over.
    pub fn new(key: &WorkloadKey, mut answer: Vec<String>) -> Result<Self, WorkloadError> {
        let roots = answer.pop().ok_or(WorkloadError::Answer("it is empty"))?;
        let is_certificate = |pem: &str| CertificateDer::from_pem_slice(pem.as_bytes()).is_ok();
        if !is_certificate(&roots) {
            return Err(WorkloadError::Answer("its last part, the root, is not a certificate in PEM"));
        }
        let leaf = answer.first().ok_or(WorkloadError::Answer("it has no certificate besides the root"))?;
        let leaf = CertificateDer::from_pem_slice(leaf.as_bytes())
            .map_err(|_| WorkloadError::Answer("its first part is not a certificate in PEM"))?;
        let (_, leaf) = X509Certificate::from_der(&leaf)
            .map_err(|_| WorkloadError::Answer("its first certificate does not parse"))?;
        if leaf.public_key().subject_public_key.data.as_ref() != key.0.der_bytes() {
            return Err(WorkloadError::Answer("its certificate is of another key"));
        }
        let seconds = u64::try_from(leaf.validity().not_after.timestamp()).unwrap_or(0);
        let not_after = SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
        let received = SystemTime::now();
        if not_after <= received {
            return Err(WorkloadError::Answer("its certificate is over already; compare the clocks"));
        }
        let mut chain = String::new();
        for certificate in &answer {
            chain.push_str(certificate);
            if !certificate.ends_with('\n') {
                chain.push('\n');
            }
        }
        let key = key.0.serialize_pem();
        Ok(Self { chain, key, roots, domains: BTreeMap::new(), received, not_after })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{CertificateAuthority, SigningRequest};

    fn answer(key: &WorkloadKey) -> Vec<String> {
        answer_for(key, Duration::from_secs(3600))
    }

    fn answer_for(key: &WorkloadKey, life: Duration) -> Vec<String> {
        let authority = CertificateAuthority::generate("cluster.local").unwrap();
        let id = SpiffeId::new("cluster.local", "shop", "web").unwrap();
        let request = SigningRequest::from_pem(&key.request().unwrap()).unwrap();
        authority.issue_workload(&request, &id, life).unwrap()
    }

    #[test]
    fn what_the_authority_answers_is_taken() {
        for kind in [KeyKind::P256, KeyKind::P384, KeyKind::Rsa2048] {
            let key = WorkloadKey::generate(kind).unwrap();
            let answer = answer(&key);
            let taken = WorkloadCertificate::new(&key, answer.clone()).unwrap();
            assert_eq!((taken.chain.trim(), &taken.roots), (answer[0].trim(), &answer[1]));
            let life = taken.not_after.duration_since(taken.received).unwrap().as_secs();
            assert!((3500..=3600).contains(&life), "{life}");
            // Parts that end without a new line are joined all the same.
            let cut: Vec<String> = answer.iter().map(|part| part.trim_end().to_owned()).collect();
            let cut = WorkloadCertificate::new(
                &key,
                [answer[0].trim_end().to_owned()].into_iter().chain(cut).collect(),
            );
            let chain = cut.unwrap().chain;
            assert_eq!(CertificateDer::pem_slice_iter(chain.as_bytes()).filter_map(Result::ok).count(), 2);
        }
    }

    #[test]
    fn answers_to_others_are_refused() {
        let (key, other) =
            (WorkloadKey::generate(KeyKind::P256).unwrap(), WorkloadKey::generate(KeyKind::P256).unwrap());
        let why = |answer: Vec<String>| WorkloadCertificate::new(&key, answer).unwrap_err().to_string();
        assert!(why(answer(&other)).contains("another key"));
        assert!(why(answer_for(&key, Duration::ZERO)).contains("over already"));
        assert!(why(Vec::new()).contains("empty"));
        assert!(why(answer(&key)[1..].to_vec()).contains("besides the root"));
        assert!(why(vec!["junk".into(), answer(&key)[1].clone()]).contains("first part"));
        assert!(why(vec![answer(&key)[0].clone(), "junk".into()]).contains("root"));
    }

    #[test]
    fn debug_output_has_no_key() {
        let key = WorkloadKey::generate(KeyKind::P256).unwrap();
        let taken = WorkloadCertificate::new(&key, answer(&key)).unwrap();
        assert!(!format!("{key:?} {taken:?}").contains("PRIVATE"));
        assert!(taken.key.contains("PRIVATE"));
    }
}
