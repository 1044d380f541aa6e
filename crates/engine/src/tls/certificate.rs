//! Own certificates: PEM read, the key held against the chain, the names it is chosen by.

use std::sync::Arc;

use lateen_ir as ir;
use rustls::server::ClientHello;
use rustls::sign::CertifiedKey;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, SubjectPublicKeyInfoDer};
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

/// One own certificate.
pub(super) struct Own {
    pub(super) key: Arc<CertifiedKey>,
    /// DNS names, or the common name where there is none; in lower case.
    names: Vec<Box<str>>,
}

/// Reads a chain and its key.
pub(super) fn load(own: &ir::TlsCertificate) -> Result<Own, String> {
    let chain = certificates(&own.chain).map_err(|reason| {
        format!("certificate_chain: Failed to load certificate chain from {}: {reason}", own.chain.origin)
    })?;
    let bad_key = |reason: &dyn std::fmt::Display| {
        format!("private_key: Failed to load private key from {}: {reason}", own.key.origin)
    };
    let key = PrivateKeyDer::from_pem_slice(&own.key.bytes).map_err(|error| bad_key(&error))?;
    let key = rustls::crypto::aws_lc_rs::sign::any_supported_type(&key).map_err(|error| bad_key(&error))?;
    let names = names(&chain[0])?;
    // Held against each other here, since rustls would parse the certificate and take none of version 1.
    let fits = |public: &SubjectPublicKeyInfoDer<'_>| {
        X509Certificate::from_der(&chain[0]).is_ok_and(|(_, leaf)| leaf.public_key().raw == public.as_ref())
    };
    if !key.public_key().is_some_and(|public| fits(&public)) {
        return Err(bad_key(&"KEY_VALUES_MISMATCH"));
    }
    Ok(Own { key: Arc::new(CertifiedKey::new(chain, key)), names })
}

/// The certificates of a PEM text; at least one.
pub(super) fn certificates(pem: &ir::Pem) -> Result<Vec<CertificateDer<'static>>, String> {
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem.bytes).collect();
    match found {
        Ok(found) if found.is_empty() => Err("there is no certificate in it".to_owned()),
        Ok(found) => Ok(found),
        Err(error) => Err(error.to_string()),
    }
}

fn names(leaf: &CertificateDer<'_>) -> Result<Vec<Box<str>>, String> {
    let (_, leaf) = X509Certificate::from_der(leaf)
        .map_err(|error| format!("certificate_chain: not a certificate: {error}"))?;
    let mut names: Vec<Box<str>> = Vec::new();
    if let Ok(Some(alternative)) = leaf.subject_alternative_name() {
        for name in &alternative.value.general_names {
            if let GeneralName::DNSName(name) = name {
                names.push(name.to_ascii_lowercase().into());
            }
        }
    }
    if names.is_empty() {
        let common = leaf.subject().iter_common_name().filter_map(|name| name.as_str().ok());
        names.extend(common.map(|name| Box::from(name.to_ascii_lowercase())));
    }
    Ok(names)
}

impl Own {
    /// 0: it has this very name; 1: a wildcard takes it; `None`: neither.
    fn rank(&self, server_name: &str) -> Option<u8> {
        if self.names.iter().any(|name| **name == *server_name) {
            return Some(0);
        }
        let (_, parent) = server_name.split_once('.')?;
        let takes = |name: &str| name.strip_prefix("*.").is_some_and(|rest| rest == parent);
        self.names.iter().any(|name| takes(name)).then_some(1)
    }
}

/// Position of the certificate for a client: by name, then one of a kind of key that the client can verify. Without a match it is the
/// first, or, with `full_scan`, the first of a kind the client can verify.
pub(super) fn choose(all: &[Own], hello: &ClientHello<'_>, full_scan: bool) -> usize {
    let usable = |own: &Own| own.key.key.choose_scheme(hello.signature_schemes()).is_some();
    let Some(name) = hello.server_name() else {
        return all.iter().position(usable).unwrap_or(0);
    };
    for rank in [0, 1] {
        let named = |own: &&Own| own.rank(name) == Some(rank);
        if all.iter().any(|own| named(&own)) {
            let best = all.iter().position(|own| named(&own) && usable(own));
            if let Some(best) = best.or_else(|| all.iter().position(|own| named(&own))) {
                return best;
            }
        }
    }
    if full_scan { all.iter().position(usable).unwrap_or(0) } else { 0 }
}

/// What `/certs` shows of a certificate.
pub(crate) struct CertificateDetails {
    pub(crate) path: Arc<str>,
    pub(crate) serial: String,
    /// Kind (`dns`, `uri`, `ip_address`, `email`) and name.
    pub(crate) names: Vec<(&'static str, String)>,
    /// Seconds since 1970.
    pub(crate) valid_from: i64,
    pub(crate) expires: i64,
}

/// The first certificate of a PEM text.
pub(crate) fn details(pem: &ir::Pem) -> Option<CertificateDetails> {
    let all = certificates(pem).ok()?;
    let (_, parsed) = X509Certificate::from_der(&all[0]).ok()?;
    Some(CertificateDetails {
        path: pem.origin.clone(),
        serial: super::facts::serial(&parsed),
        names: super::facts::alternative_names(&parsed),
        valid_from: parsed.validity().not_before.timestamp(),
        expires: parsed.validity().not_after.timestamp(),
    })
}
