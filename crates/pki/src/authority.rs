//! The mesh's certificate authority: its own root, or an intermediate authority that somebody plugged in. It signs what the
//! control plane serves with and who workloads are.
use std::time::{Duration, SystemTime};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, SanType, SerialNumber,
};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::roots::is_signed_by;
use crate::{AuthorityFiles, Roots, RootsError, SigningRequest, SpiffeId};

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
    /// The system has no randomness.
    #[error("the system has no random numbers to give")]
    Random,
    /// A stored CA could not be used.
    #[error("the stored CA cannot be used: {0}; restore the Secret, or delete it to start with a new root")]
    Stored(String),
    /// A stored CA lacks a part.
    #[error("it has no key {0:?}; restore it, or delete the Secret to start with a new root")]
    Missing(&'static str),
}

impl CaError {
    fn sign(what: &'static str) -> impl Fn(rcgen::Error) -> Self {
        move |source| Self::Sign { what, source }
    }

    pub(crate) fn in_file(name: &str, error: RootsError) -> Self {
        Self::Stored(format!("{name}: {error}"))
    }
}

/// A certificate that signs, its key, and what leads from it to the root.
pub struct CertificateAuthority {
    certificate_pem: String,
    key_pem: String,
    issuer: Issuer<'static, KeyPair>,
    /// What a peer that knows the root only must be shown besides a leaf; empty when the root itself signs.
    intermediates: Vec<CertificateDer<'static>>,
    /// The root of `certificate_pem` first; others that workloads trust besides.
    roots: Roots,
    root_pem: String,
    not_after: SystemTime,
    root_not_after: SystemTime,
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
        let mut params = certificate_params(organization, Vec::new(), ROOT_LIFETIME)?;
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let certificate_pem = params.self_signed(&key).map_err(&failed)?.pem();
        let roots =
            Roots::from_pem(&certificate_pem).map_err(|error| CaError::in_file("ca-cert.pem", error))?;
        let key_pem = key.serialize_pem();
        let not_after = SystemTime::now() + ROOT_LIFETIME;
        Ok(Self {
            root_pem: roots.to_pem(),
            roots,
            certificate_pem,
            key_pem,
            issuer: Issuer::new(params, key),
            intermediates: Vec::new(),
            not_after,
            root_not_after: not_after,
        })
    }

    /// A root from its PEM texts, the values of `ca-cert.pem` and `ca-key.pem` in Secret `istio-ca-secret`.
    ///
    /// # Errors
    /// [`CaError::Stored`] when one does not parse, they do not belong together, or the certificate is no CA or not
    /// valid now.
    pub fn from_pem(certificate_pem: &str, key_pem: &str) -> Result<Self, CaError> {
        let stored = |reason: &str| CaError::Stored(reason.to_owned());
        let key = KeyPair::from_pem(key_pem).map_err(|_| stored("ca-key.pem is not a private key in PEM"))?;
        let der = certificate_of(certificate_pem, "ca-cert.pem")?;
        let roots = Roots::from_pem(&pem(&der)).map_err(|error| CaError::in_file("ca-cert.pem", error))?;
        let parsed = authority_of(&der, "ca-cert.pem")?;
        if parsed.public_key().subject_public_key.data.as_ref() != key.public_key_raw() {
            return Err(stored("ca-key.pem is not the key of ca-cert.pem"));
        }
        let not_after = end_of(&parsed);
        let issuer =
            Issuer::from_ca_cert_der(&der, key).map_err(|error| CaError::Stored(error.to_string()))?;
        Ok(Self {
            certificate_pem: certificate_pem.to_owned(),
            key_pem: key_pem.to_owned(),
            issuer,
            intermediates: Vec::new(),
            root_pem: roots.to_pem(),
            roots,
            not_after,
            root_not_after: not_after,
        })
    }

    /// An authority from what a Secret has of it.
    ///
    /// # Errors
    /// [`CaError::Stored`] as for [`Self::from_pem`], and when the chain does not lead from the certificate to one of the roots.
    pub fn from_files(files: &AuthorityFiles) -> Result<Self, CaError> {
        let mut authority = Self::from_pem(&files.certificate, &files.key)?;
        if files.roots.is_empty() {
            return Ok(authority);
        }
        let roots =
            Roots::from_pem(&files.roots).map_err(|error| CaError::in_file("root-cert.pem", error))?;
        let signing = certificate_of(&files.certificate, "ca-cert.pem")?;
        let mut chain = Vec::new();
        if !roots.iter().any(|root| *root == signing) {
            chain.push(signing.clone());
            for certificate in CertificateDer::pem_slice_iter(files.chain.as_bytes()) {
                let certificate = certificate.map_err(|_| {
                    CaError::Stored("cert-chain.pem is not a list of certificates in PEM".to_owned())
                })?;
                if certificate != signing && !roots.iter().any(|root| *root == certificate) {
                    chain.push(certificate);
                }
            }
        }
        let root = root_of(&signing, &chain, &roots)?;
        authority.root_not_after = end_of(&authority_of(root, "root-cert.pem")?);
        authority.roots = roots.led_by(root);
        authority.root_pem = authority.roots.to_pem();
        authority.intermediates = chain;
        Ok(authority)
    }

    /// What the mesh trusts, PEM: its root, and while it changes another one. Goes into ConfigMap `istio-ca-root-cert` and
    /// webhooks' `caBundle`.
    pub fn root_pem(&self) -> &str {
        &self.root_pem
    }

    /// What the mesh trusts, the root of this authority first.
    pub fn roots(&self) -> &Roots {
        &self.roots
    }

    /// The certificate that signs, PEM.
    pub fn certificate_pem(&self) -> &str {
        &self.certificate_pem
    }

    /// When the certificate that signs ends.
    pub fn not_after(&self) -> SystemTime {
        self.not_after
    }

    /// When the root ends.
    pub fn root_not_after(&self) -> SystemTime {
        self.root_not_after
    }

    /// The private key, PEM. For storing it, nothing else.
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
        let mut params = certificate_params("", dns_names.to_vec(), lifetime)?;
        params.not_after = self.limited(lifetime).into();
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.use_authority_key_identifier_extension = true;
        let certificate = params.signed_by(&key, &self.issuer).map_err(&failed)?;
        let key = PrivateKeyDer::Pkcs8(key.serialize_der().into());
        let mut chain = vec![certificate.der().clone()];
        chain.extend(self.intermediates.iter().cloned());
        Ok(ServerCertificate { chain, key, not_after: self.limited(lifetime) })
    }

    /// A certificate for a workload, as client and server: its URI SAN is `id` and nothing else of it is the workload's choice
    /// but the key. PEM: the leaf, what leads to the root, and the root, as Istio's CA answers.
    ///
    /// # Errors
    /// [`CaError::Sign`] when it cannot be signed.
    pub fn issue_workload(
        &self,
        request: &SigningRequest,
        id: &SpiffeId,
        lifetime: Duration,
    ) -> Result<Vec<String>, CaError> {
        let failed = CaError::sign("a workload's certificate");
        let mut params = certificate_params("", Vec::new(), lifetime)?;
        params.not_after = self.limited(lifetime).into();
        let name = id.to_string().try_into().map_err(&failed)?;
        params.subject_alt_names = vec![SanType::URI(name)];
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyEncipherment];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.is_ca = IsCa::ExplicitNoCa;
        params.use_authority_key_identifier_extension = true;
        let leaf = params.signed_by(&request.key, &self.issuer).map_err(&failed)?;
        let mut chain = vec![leaf.pem()];
        chain.extend(self.intermediates.iter().map(|certificate| pem(certificate)));
        chain.push(self.root_pem.clone());
        Ok(chain)
    }

    /// Signs the key of a request. PEM: the leaf and what leads to the root.
    pub(crate) fn sign_with_chain(
        &self,
        params: &CertificateParams,
        request: &SigningRequest,
    ) -> Result<String, CaError> {
        let leaf = params.signed_by(&request.key, &self.issuer).map_err(CaError::sign("a certificate"))?;
        Ok(std::iter::once(pem(leaf.der())).chain(self.intermediates.iter().map(|one| pem(one))).collect())
    }

    /// No certificate outlives the one that signed it.
    pub(crate) fn limited(&self, lifetime: Duration) -> SystemTime {
        (SystemTime::now() + lifetime).min(self.not_after)
    }
}

/// The root that a chain of authorities, the signing one first, leads to; `signing` itself where the chain is empty.
fn root_of<'a>(
    signing: &CertificateDer<'static>,
    chain: &[CertificateDer<'static>],
    roots: &'a Roots,
) -> Result<&'a CertificateDer<'static>, CaError> {
    let broken = |number: usize, next: &str| {
        CaError::Stored(format!(
            "certificate {number} of the chain from ca-cert.pem is not signed by the next, of {next}"
        ))
    };
    for (index, pair) in chain.windows(2).enumerate() {
        authority_of(&pair[1], "cert-chain.pem")?;
        if !is_signed_by(&pair[0], &pair[1]) {
            return Err(broken(index + 1, "cert-chain.pem"));
        }
    }
    let found = match chain.last() {
        None => roots.iter().find(|root| *root == signing),
        Some(last) => roots.iter().find(|root| is_signed_by(last, root)),
    };
    found.ok_or_else(|| broken(chain.len(), "root-cert.pem"))
}

/// The first certificate of a PEM text.
fn certificate_of(pem: &str, name: &str) -> Result<CertificateDer<'static>, CaError> {
    CertificateDer::from_pem_slice(pem.as_bytes())
        .map_err(|_| CaError::Stored(format!("{name} is not a certificate in PEM")))
}

fn parse<'a>(der: &'a CertificateDer<'_>, name: &str) -> Result<X509Certificate<'a>, CaError> {
    let parsed = X509Certificate::from_der(der);
    parsed.map(|(_, parsed)| parsed).map_err(|_| CaError::Stored(format!("{name} does not parse")))
}

/// A certificate that may sign others now.
fn authority_of<'a>(der: &'a CertificateDer<'_>, name: &str) -> Result<X509Certificate<'a>, CaError> {
    let parsed = parse(der, name)?;
    if !parsed.is_ca() {
        return Err(CaError::Stored(format!("{name} is not a CA certificate")));
    }
    if !parsed.validity().is_valid() {
        return Err(CaError::Stored(format!("{name} is valid {:?} only", parsed.validity())));
    }
    Ok(parsed)
}

fn end_of(certificate: &X509Certificate<'_>) -> SystemTime {
    let seconds = certificate.validity().not_after.timestamp();
    SystemTime::UNIX_EPOCH + Duration::from_secs(u64::try_from(seconds).unwrap_or(0))
}

/// PEM with lines of 64 characters.
pub(crate) fn pem(certificate: &CertificateDer<'_>) -> String {
    let text = STANDARD.encode(certificate);
    let mut out = String::from("-----BEGIN CERTIFICATE-----\n");
    let mut rest = text.as_str();
    while !rest.is_empty() {
        let (line, after) = rest.split_at(rest.len().min(64));
        out.push_str(line);
        out.push('\n');
        rest = after;
    }
    out.push_str("-----END CERTIFICATE-----\n");
    out
}

pub(crate) fn certificate_params(
    organization: &str,
    names: Vec<String>,
    lifetime: Duration,
) -> Result<CertificateParams, CaError> {
    let mut params =
        CertificateParams::new(names).map_err(CaError::sign("a certificate with these names"))?;
    params.distinguished_name = DistinguishedName::new();
    if !organization.is_empty() {
        params.distinguished_name.push(DnType::OrganizationName, organization);
    }
    let now = SystemTime::now();
    params.not_before = (now - CLOCK_SKEW).into();
    params.not_after = (now + lifetime).into();
    // Random, since renewed certificates may be of the same key.
    let mut serial = [0; 16];
    aws_lc_rs::rand::fill(&mut serial).map_err(|_| CaError::Random)?;
    serial[0] &= 0x7f;
    params.serial_number = Some(SerialNumber::from_slice(&serial));
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

    fn request() -> SigningRequest {
        let key = KeyPair::generate().unwrap();
        let asked = CertificateParams::new(vec!["istiod.istio-system.svc".into()]).unwrap();
        SigningRequest::from_pem(&asked.serialize_request(&key).unwrap().pem().unwrap()).unwrap()
    }

    /// A chain of authorities below a root: certificates and keys in PEM, the root first.
    fn hierarchy(length: usize) -> Vec<(String, String)> {
        let root = CertificateAuthority::generate("org").unwrap();
        let mut made = vec![(root.certificate_pem.clone(), root.key_pem.clone())];
        let mut issuer = root.issuer;
        for number in 1..length {
            let key = KeyPair::generate().unwrap();
            let mut params =
                certificate_params(&format!("level {number}"), Vec::new(), Duration::from_secs(3600))
                    .unwrap();
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
            let certificate = params.signed_by(&key, &issuer).unwrap();
            made.push((certificate.pem(), key.serialize_pem()));
            issuer = Issuer::new(params, key);
        }
        made
    }

    #[test]
    fn a_workload_gets_its_own_name_and_no_other() {
        let authority = CertificateAuthority::generate("cluster.local").unwrap();
        let id = SpiffeId::new("cluster.local", "shop", "web").unwrap();
        let request = request();
        let issue = || authority.issue_workload(&request, &id, Duration::from_secs(3600)).unwrap();
        let chain = issue();
        assert_eq!(chain[1..], [authority.root_pem().to_owned()]);
        let der = certificate_of(&chain[0], "leaf").unwrap();
        let leaf = parse(&der, "leaf").unwrap();
        let names = leaf.subject_alternative_name().unwrap().unwrap().value.general_names.clone();
        let expected = x509_parser::extensions::GeneralName::URI("spiffe://cluster.local/ns/shop/sa/web");
        assert_eq!(names, [expected], "names in the request do not count");
        assert!(!leaf.is_ca());
        let usage = leaf.extended_key_usage().unwrap().unwrap().value;
        assert!(usage.client_auth && usage.server_auth);
        let other = certificate_of(&issue()[0], "leaf").unwrap();
        let other = parse(&other, "leaf").unwrap();
        assert_eq!(leaf.public_key().raw, other.public_key().raw);
        assert_ne!(leaf.raw_serial(), other.raw_serial(), "two of one key are two certificates");
        let life = leaf.validity().not_after.timestamp() - leaf.validity().not_before.timestamp();
        assert_eq!(life, 3600 + 120);
    }

    #[test]
    fn a_plugged_in_authority_shows_the_way_to_its_root() {
        let made = hierarchy(3);
        let [(root, _), (middle, _), (signing, key)] = &made[..] else { panic!("three") };
        let full = format!("{signing}{middle}{root}");
        let files = |chain: &str, roots: &str| AuthorityFiles {
            certificate: signing.clone(),
            key: key.clone(),
            chain: chain.to_owned(),
            roots: roots.to_owned(),
        };
        let authority = CertificateAuthority::from_files(&files(&full, root)).unwrap();
        let normal = |text: &str| text.replace("\r\n", "\n").trim().to_owned();
        assert_eq!(normal(authority.root_pem()), normal(root));
        let id = SpiffeId::new("cluster.local", "shop", "web").unwrap();
        let chain = authority.issue_workload(&request(), &id, Duration::from_secs(7 * 24 * 3600)).unwrap();
        let shown: Vec<String> = chain[1..].iter().map(|text| normal(text)).collect();
        assert_eq!(shown, [normal(signing), normal(middle), normal(root)]);
        let der = certificate_of(&chain[0], "leaf").unwrap();
        assert!(end_of(&parse(&der, "leaf").unwrap()) <= authority.not_after(), "outlives its issuer");
        let server =
            authority.issue_server(&["istiod.istio-system.svc".into()], Duration::from_secs(60)).unwrap();
        assert!(accepts(root, &server, "istiod.istio-system.svc"));
        // The middle may be all there is of the chain; without it there is no way.
        let made = |chain: &str, roots: &str| CertificateAuthority::from_files(&files(chain, roots));
        assert!(made(middle, root).is_ok());
        assert!(made("", root).is_err());
        let other = &hierarchy(1)[0].0;
        assert!(made(&full, other).unwrap_err().to_string().contains("not signed by the next"));
        // Of several roots it is of the one that signed it.
        let both = made(&full, &format!("{other}{root}")).unwrap();
        assert_eq!(both.roots().first(), Roots::from_pem(root).unwrap().first());
        assert!(both.roots().contains(&Roots::from_pem(other).unwrap()));
    }

    #[test]
    fn debug_output_has_no_key() {
        let authority = CertificateAuthority::generate("a").unwrap();
        assert!(!format!("{authority:?}").contains("PRIVATE"));
    }

    /// What a certificate in PEM says of its use: key usages, whether it says that it is no authority, the key it is signed by.
    fn told(pem: &str) -> (Vec<&'static str>, Option<bool>, bool) {
        let der = certificate_of(pem, "x").unwrap();
        let parsed = parse(&der, "x").unwrap();
        let usage = parsed.key_usage().unwrap().map(|usage| *usage.value);
        let usages = usage.map_or(Vec::new(), |usage| {
            let all = [
                ("sign", usage.digital_signature()),
                ("encipher", usage.key_encipherment()),
                ("certify", usage.key_cert_sign()),
                ("revoke", usage.crl_sign()),
            ];
            all.into_iter().filter(|(_, given)| *given).map(|(name, _)| name).collect()
        });
        let constraints = parsed.basic_constraints().unwrap().map(|found| found.value.ca);
        let issuer_key = x509_parser::oid_registry::OID_X509_EXT_AUTHORITY_KEY_IDENTIFIER;
        (usages, constraints, parsed.get_extension_unique(&issuer_key).unwrap().is_some())
    }

    #[test]
    fn certificates_say_what_they_are_for() {
        let authority = CertificateAuthority::generate("cluster.local").unwrap();
        assert_eq!(told(authority.root_pem()), (vec!["certify", "revoke"], Some(true), false));
        let root = certificate_of(authority.root_pem(), "root").unwrap();
        assert_eq!(parse(&root, "root").unwrap().subject().to_string(), "O=cluster.local");
        let id = SpiffeId::new("cluster.local", "shop", "web").unwrap();
        let chain = authority.issue_workload(&request(), &id, Duration::from_secs(60)).unwrap();
        assert_eq!(told(&chain[0]), (vec!["sign", "encipher"], Some(false), true));
        let server = authority.issue_server(&["a.example".into()], Duration::from_secs(60)).unwrap();
        let server_pem = pem(&server.chain[0]);
        assert_eq!(told(&server_pem), (vec!["sign"], None, true));
        let leaf = parse(&server.chain[0], "server").unwrap();
        let usage = leaf.extended_key_usage().unwrap().unwrap().value;
        assert!(usage.server_auth && !usage.client_auth, "it must not pass for a client");
        let life = leaf.validity().not_after.timestamp() - leaf.validity().not_before.timestamp();
        assert_eq!(life, 60 + 120);
        let der = certificate_of(&chain[0], "leaf").unwrap();
        for certificate in [&leaf, &parse(&der, "leaf").unwrap()] {
            assert_eq!(certificate.subject().to_string(), "", "a workload has no subject");
        }
        let again = authority.issue_server(&["a.example".into()], Duration::from_secs(60)).unwrap();
        assert_ne!(leaf.raw_serial(), parse(&again.chain[0], "server").unwrap().raw_serial());
        // A server outlives its authority as little as a workload does.
        let long = authority.issue_server(&["a.example".into()], ROOT_LIFETIME * 2).unwrap();
        assert!(end_of(&parse(&long.chain[0], "server").unwrap()) <= authority.not_after());
    }

    #[test]
    fn what_may_not_sign_now_is_no_authority() {
        let made = |is_ca: bool, end: i64| {
            let key = KeyPair::generate().unwrap();
            let mut params = certificate_params("org", Vec::new(), Duration::from_secs(3600)).unwrap();
            if is_ca {
                params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            }
            let now = SystemTime::now();
            params.not_before = (now - Duration::from_secs(7200)).into();
            let ends = Duration::from_secs(end.unsigned_abs());
            params.not_after = if end < 0 { now - ends } else { now + ends }.into();
            (params.self_signed(&key).unwrap().pem(), key.serialize_pem())
        };
        let why = |(certificate, key): (String, String)| {
            CertificateAuthority::from_pem(&certificate, &key).map(|_| ()).map_err(|error| error.to_string())
        };
        assert_eq!(why(made(true, 60)), Ok(()));
        assert!(why(made(false, 60)).unwrap_err().contains("ca-cert.pem is not a CA certificate"));
        assert!(why(made(true, -60)).unwrap_err().contains("ca-cert.pem is valid"));
    }

    #[test]
    fn every_step_of_a_chain_is_checked() {
        let made = hierarchy(4);
        let stranger = hierarchy(3);
        let files = |chain: &[&str]| AuthorityFiles {
            certificate: made[3].0.clone(),
            key: made[3].1.clone(),
            chain: chain.concat(),
            roots: made[0].0.clone(),
        };
        let (upper, lower) = (made[1].0.as_str(), made[2].0.as_str());
        let authority = CertificateAuthority::from_files(&files(&[lower, upper])).unwrap();
        assert!(authority.root_not_after() > authority.not_after() + Duration::from_secs(86_400));
        let why = |chain: &[&str]| CertificateAuthority::from_files(&files(chain)).unwrap_err().to_string();
        // The last is of the root, but what is between is another's.
        assert!(why(&[&stranger[2].0, upper]).contains("certificate 1 of the chain"));
        assert!(why(&[upper, lower]).contains("certificate 1 of the chain"));
        let key = KeyPair::generate().unwrap();
        let leaf = certificate_params("level 2", Vec::new(), Duration::from_secs(60)).unwrap();
        let leaf = leaf.self_signed(&key).unwrap().pem();
        assert!(why(&[&leaf, upper]).contains("cert-chain.pem is not a CA certificate"));
        // A root that signs by itself has no chain, whatever is written there.
        let own = AuthorityFiles {
            certificate: made[0].0.clone(),
            key: made[0].1.clone(),
            chain: made[0].0.clone(),
            roots: format!("{}{}", stranger[0].0, made[0].0),
        };
        let authority = CertificateAuthority::from_files(&own).unwrap();
        let id = SpiffeId::new("cluster.local", "shop", "web").unwrap();
        let chain = authority.issue_workload(&request(), &id, Duration::from_secs(60)).unwrap();
        assert_eq!(chain.len(), 2);
        assert_eq!(authority.roots().first(), Roots::from_pem(&made[0].0).unwrap().first());
    }
}
