//! The mesh's certificate authority: a P-256 root that signs what the mesh serves with.
use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256,
};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

/// Lifetime of a self-signed root: ten years, as Istio's.
const ROOT_LIFETIME: Duration = Duration::from_secs(10 * 365 * 24 * 3600);
/// How far certificates are dated back, so that peers whose clocks are slow accept them.
const CLOCK_SKEW: Duration = Duration::from_secs(120);

/// Why certificates could not be made or read. Messages never contain key material.
#[derive(Debug, thiserror::Error)]
pub enum CaError {
    /// Keys could not be generated or something could not be signed.
    #[error("cannot make {what}: {source}")]
    Sign {
        /// What was being made.
        what: &'static str,
        /// The library's reason.
        source: rcgen::Error,
    },
    /// A stored CA could not be used.
    #[error("the stored CA cannot be used: {0}; restore the Secret, or delete it to start with a new root")]
    Stored(String),
}

impl CaError {
    fn sign(what: &'static str) -> impl Fn(rcgen::Error) -> Self {
        move |source| Self::Sign { what, source }
    }
}

/// A root certificate and its key.
pub struct CertificateAuthority {
    certificate_pem: String,
    key_pem: String,
    issuer: Issuer<'static, KeyPair>,
}

/// The key stays out of logs.
impl std::fmt::Debug for CertificateAuthority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CertificateAuthority")
            .field("certificate", &self.certificate_pem)
            .finish_non_exhaustive()
    }
}

/// A certificate for a server, with its key.
pub struct ServerCertificate {
    /// The leaf, followed by what leads to the root (nothing, when the root signed it).
    pub chain: Vec<CertificateDer<'static>>,
    /// The private key, PKCS #8.
    pub key: PrivateKeyDer<'static>,
    /// When it ends.
    pub not_after: SystemTime,
}

/// The key stays out of logs.
impl std::fmt::Debug for ServerCertificate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ServerCertificate").field("not_after", &self.not_after).finish_non_exhaustive()
    }
}

impl CertificateAuthority {
    /// A new self-signed root for an organization (Istio uses the trust domain), good for ten years.
    ///
    /// # Errors
    /// [`CaError::Sign`] when the system has no randomness.
    pub fn generate(organization: &str) -> Result<Self, CaError> {
        let failed = CaError::sign("the mesh's root certificate");
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(&failed)?;
        let mut params = params(organization, Vec::new(), ROOT_LIFETIME)?;
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let certificate_pem = params.self_signed(&key).map_err(&failed)?.pem();
        let key_pem = key.serialize_pem();
        Ok(Self { certificate_pem, key_pem, issuer: Issuer::new(params, key) })
    }

    /// A root from its PEM texts, the values of `ca-cert.pem` and `ca-key.pem` in Secret `istio-ca-secret`.
    ///
    /// # Errors
    /// [`CaError::Stored`] when one does not parse, they do not belong together, or the certificate is no CA or not
    /// valid now.
    pub fn from_pem(certificate_pem: &str, key_pem: &str) -> Result<Self, CaError> {
        let stored = |reason: &str| CaError::Stored(reason.to_owned());
        let key = KeyPair::from_pem(key_pem).map_err(|_| stored("ca-key.pem is not a private key in PEM"))?;
        let der = CertificateDer::from_pem_slice(certificate_pem.as_bytes())
            .map_err(|_| stored("ca-cert.pem is not a certificate in PEM"))?;
        let (_, parsed) =
            x509_parser::parse_x509_certificate(&der).map_err(|_| stored("ca-cert.pem does not parse"))?;
        if !parsed.is_ca() {
            return Err(stored("ca-cert.pem is not a CA certificate"));
        }
        if !parsed.validity().is_valid() {
            return Err(CaError::Stored(format!("ca-cert.pem is valid {:?} only", parsed.validity())));
        }
        if parsed.public_key().subject_public_key.data.as_ref() != key.public_key_raw() {
            return Err(stored("ca-key.pem is not the key of ca-cert.pem"));
        }
        let issuer =
            Issuer::from_ca_cert_der(&der, key).map_err(|error| CaError::Stored(error.to_string()))?;
        Ok(Self { certificate_pem: certificate_pem.to_owned(), key_pem: key_pem.to_owned(), issuer })
    }

    /// The root certificate, PEM: what goes into ConfigMap `istio-ca-root-cert` and webhooks' `caBundle`.
    pub fn certificate_pem(&self) -> &str {
        &self.certificate_pem
    }

    /// The root's private key, PEM. For storing it, nothing else.
    pub fn key_pem(&self) -> &str {
        &self.key_pem
    }

    /// A server certificate with a new P-256 key for these DNS names.
    ///
    /// # Errors
    /// [`CaError::Sign`] when a name is not a DNS name.
    pub fn issue_server(
        &self,
        dns_names: &[String],
        lifetime: Duration,
    ) -> Result<ServerCertificate, CaError> {
        let failed = CaError::sign("a server certificate");
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(&failed)?;
        let mut params = params("", dns_names.to_vec(), lifetime)?;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.use_authority_key_identifier_extension = true;
        let certificate = params.signed_by(&key, &self.issuer).map_err(&failed)?;
        let key = PrivateKeyDer::Pkcs8(key.serialize_der().into());
        Ok(ServerCertificate {
            chain: vec![certificate.der().clone()],
            key,
            not_after: SystemTime::now() + lifetime,
        })
    }
}

fn params(organization: &str, names: Vec<String>, lifetime: Duration) -> Result<CertificateParams, CaError> {
    let mut params =
        CertificateParams::new(names).map_err(CaError::sign("a certificate with these names"))?;
    params.distinguished_name = DistinguishedName::new();
    if !organization.is_empty() {
        params.distinguished_name.push(DnType::OrganizationName, organization);
    }
    let now = SystemTime::now();
    params.not_before = (now - CLOCK_SKEW).into();
    params.not_after = (now + lifetime).into();
    Ok(params)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustls::client::danger::ServerCertVerifier as _;
    use rustls_pki_types::{ServerName, UnixTime};
    use std::sync::Arc;

    /// Whether a client that trusts `root` accepts `leaf` as `name`.
    fn accepts(root: &str, leaf: &ServerCertificate, name: &str) -> bool {
        let mut roots = rustls::RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(root.as_bytes()).unwrap()).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let verifier = rustls::client::WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider)
            .build()
            .unwrap();
        let name = ServerName::try_from(name.to_owned()).unwrap();
        verifier.verify_server_cert(&leaf.chain[0], &leaf.chain[1..], &name, &[], UnixTime::now()).is_ok()
    }

    #[test]
    fn a_reloaded_authority_signs_what_the_old_root_vouches_for() {
        let first = CertificateAuthority::generate("cluster.local").unwrap();
        let again = CertificateAuthority::from_pem(first.certificate_pem(), first.key_pem()).unwrap();
        let leaf =
            again.issue_server(&["istiod.istio-system.svc".into()], Duration::from_secs(3600)).unwrap();
        assert!(accepts(first.certificate_pem(), &leaf, "istiod.istio-system.svc"));
        assert!(!accepts(first.certificate_pem(), &leaf, "istiod.other.svc"));
        let stranger = CertificateAuthority::generate("cluster.local").unwrap();
        assert!(!accepts(stranger.certificate_pem(), &leaf, "istiod.istio-system.svc"));
    }

    #[test]
    fn stored_pairs_that_do_not_fit_are_refused() {
        let one = CertificateAuthority::generate("a").unwrap();
        let two = CertificateAuthority::generate("a").unwrap();
        let why = |cert: &str, key: &str| CertificateAuthority::from_pem(cert, key).unwrap_err().to_string();
        assert!(why(one.certificate_pem(), two.key_pem()).contains("not the key"));
        assert!(why("nonsense", one.key_pem()).contains("ca-cert.pem"));
        assert!(why(one.certificate_pem(), "nonsense").contains("ca-key.pem"));
    }

    #[test]
    fn debug_output_has_no_key() {
        let authority = CertificateAuthority::generate("a").unwrap();
        assert!(!format!("{authority:?}").contains("PRIVATE"));
    }
}
