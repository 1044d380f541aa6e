//! The cluster's CA, the serving certificate, and the key service account tokens are signed with.

use std::{fs, net::IpAddr, path::Path, sync::Arc};

use aws_lc_rs::{
    rand::SystemRandom,
    signature::{
        ECDSA_P256_SHA256_FIXED, ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _,
        UnparsedPublicKey,
    },
};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD as BASE64URL};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, SanType,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};

use crate::server::StartError;

/// A certificate and its key.
pub(crate) struct CertifiedKey {
    pub(crate) certificate: CertificateDer<'static>,
    pub(crate) certificate_pem: String,
    pub(crate) key: PrivateKeyDer<'static>,
    pub(crate) key_pem: String,
}

/// All secrets of a cluster.
pub(crate) struct Pki {
    issuer: Issuer<'static, KeyPair>,
    pub(crate) ca_pem: String,
    pub(crate) ca_der: CertificateDer<'static>,
    pub(crate) admin_token: String,
    pub(crate) tokens: TokenKey,
}

fn pki_error(error: impl std::fmt::Display) -> StartError {
    StartError::Pki(error.to_string())
}

impl Pki {
    /// Loads the secrets kept in `directory`, making (and keeping) the missing ones.
    pub(crate) fn open(directory: Option<&Path>) -> Result<Self, StartError> {
        let key_pem = keep(directory, "ca.key", || {
            KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map(|key| key.serialize_pem()).map_err(pki_error)
        })?;
        let key = KeyPair::from_pem(&key_pem).map_err(pki_error)?;
        let ca_pem = keep(directory, "ca.crt", || {
            let mut params = named("kubernetes-ca", &[]);
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            params.key_usages = vec![
                KeyUsagePurpose::KeyCertSign,
                KeyUsagePurpose::DigitalSignature,
                KeyUsagePurpose::CrlSign,
            ];
            params.not_after = rcgen::date_time_ymd(2099, 1, 1);
            params.self_signed(&key).map(|certificate| certificate.pem()).map_err(pki_error)
        })?;
        let token_pem = keep(directory, "sa.key", || {
            KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map(|key| key.serialize_pem()).map_err(pki_error)
        })?;
        let admin_token = keep(directory, "admin.token", || Ok(random_token()))?;
        let issuer = Issuer::from_ca_cert_pem(&ca_pem, key).map_err(pki_error)?;
        let (_, parsed) = x509_parser::pem::parse_x509_pem(ca_pem.as_bytes()).map_err(pki_error)?;
        let tokens = TokenKey::from_pem(&token_pem)?;
        Ok(Self { issuer, ca_der: CertificateDer::from(parsed.contents), ca_pem, admin_token, tokens })
    }

    /// A certificate for TLS servers at these names and addresses.
    pub(crate) fn server_certificate(&self, names: &[String]) -> Result<CertifiedKey, StartError> {
        let mut params = named("kube-apiserver", &[]);
        for name in names {
            params.subject_alt_names.push(match name.parse::<IpAddr>() {
                Ok(address) => SanType::IpAddress(address),
                Err(_) => SanType::DnsName(name.as_str().try_into().map_err(pki_error)?),
            });
        }
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        self.sign(params)
    }

    /// A client certificate for `user` in `groups`.
    pub(crate) fn client_certificate(&self, user: &str, groups: &[&str]) -> Result<CertifiedKey, StartError> {
        let mut params = named(user, groups);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        self.sign(params)
    }

    fn sign(&self, mut params: CertificateParams) -> Result<CertifiedKey, StartError> {
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.use_authority_key_identifier_extension = true;
        params.not_after = rcgen::date_time_ymd(2098, 1, 1);
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(pki_error)?;
        let certificate = params.signed_by(&key, &self.issuer).map_err(pki_error)?;
        Ok(CertifiedKey {
            certificate: certificate.der().clone(),
            certificate_pem: certificate.pem(),
            key: PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der())),
            key_pem: key.serialize_pem(),
        })
    }
}

fn named(common_name: &str, organizations: &[&str]) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, common_name);
    for organization in organizations {
        params.distinguished_name.push(DnType::OrganizationName, *organization);
    }
    params.not_before = rcgen::date_time_ymd(2020, 1, 1);
    params
}

fn random_token() -> String {
    // Two version-4 UUIDs: 244 random bits.
    format!("{}{}", uuid::Uuid::new_v4().simple(), uuid::Uuid::new_v4().simple())
}

/// Reads a file, or makes its content and writes it readable by its owner only.
fn keep(
    directory: Option<&Path>,
    name: &str,
    make: impl FnOnce() -> Result<String, StartError>,
) -> Result<String, StartError> {
    use std::{io::Write as _, os::unix::fs::OpenOptionsExt as _};
    let Some(directory) = directory else { return make() };
    let path = directory.join(name);
    let failed = |source| StartError::File { path: path.clone(), source };
    fs::create_dir_all(directory).map_err(failed)?;
    match fs::read_to_string(&path) {
        Ok(text) => return Ok(text),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => return Err(failed(error)),
    }
    let text = make()?;
    let temporary = directory.join(format!("{name}.new"));
    let mut file = fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&temporary)
        .map_err(failed)?;
    file.write_all(text.as_bytes()).and_then(|()| file.sync_all()).map_err(failed)?;
    fs::rename(&temporary, &path).map_err(failed)?;
    Ok(text)
}

/// Signs and verifies service account tokens (ES256).
pub(crate) struct TokenKey {
    pair: EcdsaKeyPair,
    random: SystemRandom,
}

impl TokenKey {
    fn from_pem(pem: &str) -> Result<Self, StartError> {
        let key = KeyPair::from_pem(pem).map_err(pki_error)?;
        let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &key.serialize_der())
            .map_err(pki_error)?;
        Ok(Self { pair, random: SystemRandom::new() })
    }

    fn public(&self) -> &[u8] {
        self.pair.public_key().as_ref()
    }

    /// Identifies the key in token headers and in the JWKS.
    pub(crate) fn id(&self) -> String {
        let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, self.public());
        BASE64URL.encode(&digest.as_ref()[..16])
    }

    pub(crate) fn sign(&self, message: &[u8]) -> Result<Vec<u8>, String> {
        let signature = self.pair.sign(&self.random, message).map_err(|_| "signing failed".to_owned())?;
        Ok(signature.as_ref().to_vec())
    }

    pub(crate) fn verify(&self, message: &[u8], signature: &[u8]) -> bool {
        UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, self.public()).verify(message, signature).is_ok()
    }

    /// The public key as a JSON Web Key.
    pub(crate) fn jwk(&self) -> serde_json::Value {
        // Uncompressed point: 0x04, x, y.
        let point = &self.public()[1..];
        let (x, y) = point.split_at(point.len() / 2);
        serde_json::json!({
            "use": "sig", "kty": "EC", "kid": self.id(), "crv": "P-256", "alg": "ES256",
            "x": BASE64URL.encode(x), "y": BASE64URL.encode(y),
        })
    }
}

/// What the TLS listeners serve with: our certificate, client certificates of our CA optional.
pub(crate) fn server_tls(pki: &Pki, names: &[String]) -> Result<rustls::ServerConfig, StartError> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut roots = rustls::RootCertStore::empty();
    roots.add(pki.ca_der.clone()).map_err(pki_error)?;
    let verifier =
        rustls::server::WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider))
            .allow_unauthenticated()
            .build()
            .map_err(pki_error)?;
    let serving = pki.server_certificate(names)?;
    let mut config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(pki_error)?
        .with_client_cert_verifier(verifier)
        .with_single_cert(vec![serving.certificate, pki.ca_der.clone()], serving.key)
        .map_err(pki_error)?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(config)
}
