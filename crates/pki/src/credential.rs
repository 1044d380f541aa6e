//! Whether certificates, keys and authorities that people bring are ones that proxies can use, told before a proxy has to refuse them.
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer};
use x509_parser::prelude::{FromDer, X509Certificate};
use x509_parser::public_key::PublicKey;

/// What Envoy asks of RSA keys, in bits.
const LEAST_RSA_BITS: usize = 2048;
/// Curves of keys that Envoy takes: P-256, P-384 and P-521.
const CURVES: [&str; 3] = ["1.2.840.10045.3.1.7", "1.3.132.0.34", "1.3.132.0.35"];

/// Why something cannot be used. Never contains key material.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CredentialError {
    /// No certificate in PEM.
    #[error("the certificate is not in PEM, or one of the chain does not parse")]
    Certificate,
    /// No key in PEM of a known kind.
    #[error("the private key is not in PEM, is encrypted, or is of an unknown kind")]
    Key,
    /// The key of another certificate.
    #[error("the private key is not that of the certificate")]
    Mismatch,
    /// A key that Envoy does not take.
    #[error(
        "the certificate's key is too weak: RSA keys need {LEAST_RSA_BITS} bits, ECDSA keys P-256, P-384 or P-521"
    )]
    Weak,
    /// No certificates of authorities in PEM.
    #[error("the authorities' certificates are not in PEM, or one does not parse")]
    Authorities,
    /// No revocation lists in PEM.
    #[error("the revocation list is not in PEM, or does not parse")]
    Revoked,
}

/// Checks a certificate chain and its key, both PEM; returns when the first certificate ends (Unix seconds).
///
/// # Errors
/// [`CredentialError`] when a proxy could not serve with them.
pub fn check_pair(chain: &[u8], key: &[u8]) -> Result<i64, CredentialError> {
    let chain = certificates(chain).ok_or(CredentialError::Certificate)?;
    let leaf = chain.first().ok_or(CredentialError::Certificate)?;
    let (_, parsed) = X509Certificate::from_der(leaf).map_err(|_| CredentialError::Certificate)?;
    let not_after = parsed.validity().not_after.timestamp();
    if is_weak(&parsed) {
        return Err(CredentialError::Weak);
    }
    let key = PrivateKeyDer::from_pem_slice(key).map_err(|_| CredentialError::Key)?;
    let key = rustls::crypto::aws_lc_rs::sign::any_supported_type(&key).map_err(|_| CredentialError::Key)?;
    let public = key.public_key().ok_or(CredentialError::Key)?;
    // Held against each other here, since rustls would parse the certificate and take none of version 1, which Envoy does.
    if public.as_ref() != parsed.public_key().raw {
        return Err(CredentialError::Mismatch);
    }
    Ok(not_after)
}

/// Checks certificates of authorities, PEM.
///
/// # Errors
/// [`CredentialError::Authorities`] when there are none or one does not parse.
pub fn check_authorities(pem: &[u8]) -> Result<(), CredentialError> {
    let found = certificates(pem).is_some_and(|found| !found.is_empty());
    found.then_some(()).ok_or(CredentialError::Authorities)
}

/// Checks revocation lists, PEM.
///
/// # Errors
/// [`CredentialError::Revoked`] when there are none or one does not parse.
pub fn check_revoked(pem: &[u8]) -> Result<(), CredentialError> {
    let lists: Result<Vec<_>, _> = CertificateRevocationListDer::pem_slice_iter(pem).collect();
    let parses = |list: &CertificateRevocationListDer<'_>| {
        x509_parser::revocation_list::CertificateRevocationList::from_der(list).is_ok()
    };
    let good = lists.is_ok_and(|lists| !lists.is_empty() && lists.iter().all(parses));
    good.then_some(()).ok_or(CredentialError::Revoked)
}

fn certificates(pem: &[u8]) -> Option<Vec<CertificateDer<'static>>> {
    let found: Vec<_> = CertificateDer::pem_slice_iter(pem).collect::<Result<_, _>>().ok()?;
    let parses = |one: &CertificateDer<'_>| X509Certificate::from_der(one).is_ok();
    found.iter().all(parses).then_some(found)
}

fn is_weak(certificate: &X509Certificate<'_>) -> bool {
    let info = certificate.public_key();
    match info.parsed() {
        Ok(PublicKey::RSA(rsa)) => rsa.key_size() < LEAST_RSA_BITS,
        Ok(PublicKey::EC(_)) => {
            let curve = info.algorithm.parameters.as_ref().and_then(|given| given.as_oid().ok());
            !curve.is_some_and(|curve| CURVES.contains(&curve.to_id_string().as_str()))
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use rcgen::{CertificateParams, KeyPair, PKCS_ECDSA_P256_SHA256, PKCS_ECDSA_P384_SHA384, PKCS_ED25519};

    fn pair(kind: &'static rcgen::SignatureAlgorithm) -> (String, String) {
        let key = KeyPair::generate_for(kind).unwrap();
        let params = CertificateParams::new(vec!["a.example".to_owned()]).unwrap();
        (params.self_signed(&key).unwrap().pem(), key.serialize_pem())
    }

    /// An empty list.
    fn revoked() -> String {
        let key = KeyPair::generate().unwrap();
        let mut authority = CertificateParams::new(Vec::new()).unwrap();
        authority.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let now = std::time::SystemTime::now();
        let list = rcgen::CertificateRevocationListParams {
            this_update: now.into(),
            next_update: (now + std::time::Duration::from_secs(60)).into(),
            crl_number: rcgen::SerialNumber::from(1),
            issuing_distribution_point: None,
            revoked_certs: Vec::new(),
            key_identifier_method: rcgen::KeyIdMethod::Sha256,
        };
        list.signed_by(&rcgen::Issuer::new(authority, key)).unwrap().pem().unwrap()
    }

    proptest! {
        #[test]
        fn any_bytes_are_refused(bytes in prop::collection::vec(any::<u8>(), 0..300), label in "[A-Z0-9 ]{0,12}", body in "[A-Za-z0-9+/=\n]{0,300}") {
            let pem = format!("-----BEGIN {label}-----\n{body}\n-----END {label}-----\n").into_bytes();
            for text in [&bytes, &pem] {
                prop_assert!(check_pair(text, &pem).is_err() && check_pair(&pem, text).is_err());
                prop_assert!(check_authorities(text).is_err());
                prop_assert!(text.is_empty() || check_revoked(text).is_err());
            }
        }
    }

    #[test]
    fn pairs_that_belong_together_pass() {
        for kind in [&PKCS_ECDSA_P256_SHA256, &PKCS_ECDSA_P384_SHA384, &PKCS_ED25519] {
            let (certificate, key) = pair(kind);
            assert!(check_pair(certificate.as_bytes(), key.as_bytes()).is_ok());
            let chain = format!("{certificate}{}", pair(kind).0);
            assert!(check_pair(chain.as_bytes(), key.as_bytes()).is_ok(), "a chain");
            assert_eq!(check_authorities(chain.as_bytes()), Ok(()));
        }
    }

    #[test]
    fn what_a_proxy_would_refuse_is_refused_here() {
        let ((one, key), (_, other)) = (pair(&PKCS_ECDSA_P256_SHA256), pair(&PKCS_ECDSA_P256_SHA256));
        let check = |certificate: &str, key: &str| check_pair(certificate.as_bytes(), key.as_bytes());
        assert_eq!(check(&one, &other), Err(CredentialError::Mismatch));
        assert_eq!(check("garbage", &key), Err(CredentialError::Certificate));
        assert_eq!(check(&one, "garbage"), Err(CredentialError::Key));
        assert_eq!(check(&one, &one), Err(CredentialError::Key));
        let cut = one.replace("MII", "AAA");
        assert_eq!(check(&cut, &key), Err(CredentialError::Certificate));
        assert_eq!(check(&format!("{one}{cut}"), &key), Err(CredentialError::Certificate), "in the chain");
        assert_eq!(check_authorities(b"x"), Err(CredentialError::Authorities));
        assert_eq!(check_authorities(cut.as_bytes()), Err(CredentialError::Authorities));
        assert_eq!(check_revoked(one.as_bytes()), Err(CredentialError::Revoked));
        let list = revoked();
        assert_eq!(check_revoked(list.as_bytes()), Ok(()));
        let cut = list.replace("MI", "AA");
        for lists in [cut.clone(), format!("{list}{cut}"), format!("{cut}{list}")] {
            assert_eq!(check_revoked(lists.as_bytes()), Err(CredentialError::Revoked), "{lists}");
        }
    }

    #[test]
    fn weak_keys_are_refused() {
        let pair = (include_bytes!("../tests/rsa1024.crt"), include_bytes!("../tests/rsa1024.key"));
        assert_eq!(check_pair(pair.0, pair.1), Err(CredentialError::Weak));
        let pair = (include_bytes!("../tests/p224.crt"), include_bytes!("../tests/p224.key"));
        assert_eq!(check_pair(pair.0, pair.1), Err(CredentialError::Weak));
        let least = (include_bytes!("../tests/rsa2048.crt"), include_bytes!("../tests/rsa2048.key"));
        assert!(check_pair(least.0, least.1).is_ok());
    }
}
