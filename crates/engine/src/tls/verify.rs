//! How a peer's certificate is verified: chain, hashes, names (Envoy's default validator), by the roots of its trust domain where
//! there are some (Envoy's SPIFFE validator).

use std::sync::Arc;
use std::time::Duration;

use aws_lc_rs::digest;
use lateen_ir as ir;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{
    WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature,
    verify_tls13_signature_with_raw_key,
};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, OtherError, SignatureScheme,
};
use rustls_pki_types::{CertificateDer, ServerName, SubjectPublicKeyInfoDer, TrustAnchor, UnixTime};
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate, X509Version};

use super::certificate::certificates;
use super::names::{has_host, has_name, matches};
use super::revocation::Lists;

/// Why a certificate that chains to a root is refused all the same.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Refusal {
    /// None of its names is one of those wanted; which they are.
    #[error("{0}")]
    Names(String),
    /// Its hash is none of those wanted.
    #[error("cert hash and spki")]
    Hash,
    /// Nobody vouches for its trust domain, or it has none.
    #[error("no trust bundle store")]
    Domain,
    /// A name is asked for, and nothing says whom to believe that it is told truly.
    #[error("")]
    Unfounded,
    /// An authority's certificate is no workload's.
    #[error("cert precheck")]
    Authority,
}

/// Authorities and revocation lists of a validation context.
#[derive(Default)]
pub(super) struct Anchors {
    authorities: Vec<CertificateDer<'static>>,
    anchors: Vec<TrustAnchor<'static>>,
    revoked: Lists,
}

impl Anchors {
    /// Reads a context's PEM, with these roots.
    pub(super) fn of(context: &ir::ValidationContext, roots: Option<&ir::Pem>) -> Result<Self, String> {
        let mut anchors = Self::default();
        if let Some(pem) = &context.crl {
            let bad = |reason: &dyn std::fmt::Display| {
                format!("crl: Failed to load CRL from {}: {reason}", pem.origin)
            };
            anchors.revoked = Lists::read(pem).map_err(|reason| bad(&reason))?;
            if anchors.revoked.is_empty() {
                return Err(bad(&"there is no list in it"));
            }
        }
        let Some(pem) = roots else { return Ok(anchors) };
        let bad = |reason: &dyn std::fmt::Display| {
            format!("trusted_ca: Failed to load trusted CA certificates from {}: {reason}", pem.origin)
        };
        // Lists may stand among the roots.
        anchors.revoked.add(Lists::read(pem).map_err(|reason| bad(&reason))?);
        anchors.authorities = certificates(pem).map_err(|reason| bad(&reason))?;
        if !only_leaf(context) {
            anchors.authorities.retain(|authority| !anchors.revoked.takes_itself_back(authority));
        }
        for authority in &anchors.authorities {
            let anchor = webpki::anchor_from_trusted_cert(authority).map_err(|error| bad(&error))?;
            anchors.anchors.push(anchor.to_owned());
        }
        Ok(anchors)
    }
}

/// Whether only a leaf is looked up in lists. Envoy's SPIFFE validator always looks at the whole chain.
fn only_leaf(context: &ir::ValidationContext) -> bool {
    context.only_leaf_crl && context.trust_domains.is_none()
}

/// Whether a context's authorities and lists can be read.
pub(super) fn check(context: &ir::ValidationContext) -> Result<(), String> {
    Anchors::of(context, context.trusted_ca.as_ref())?;
    let mut domains = context.trust_domains.iter().flat_map(|all| all.iter());
    domains.try_for_each(|domain| Anchors::of(context, Some(&domain.roots)).map(drop))
}

/// Which end is verified.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Peer {
    Server {
        /// The certificate must have the name of the request, whatever else is wanted of it.
        by_request: bool,
        /// It must have the name that is asked for, in the place of those of the context.
        by_sni: bool,
    },
    Client {
        /// There must be one.
        required: bool,
    },
}

/// Verifies the peers of one context.
pub(super) struct Verifier {
    context: Arc<ir::ValidationContext>,
    /// Of `trusted_ca`; `None`: the chain is not verified.
    anchors: Option<Anchors>,
    /// By trust domain, in the place of `anchors`.
    domains: Option<Vec<(Box<str>, Anchors)>>,
    hints: Vec<DistinguishedName>,
    peer: Peer,
    algorithms: WebPkiSupportedAlgorithms,
}

impl std::fmt::Debug for Verifier {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Verifier({:?}, {} authorities)", self.peer, self.hints.len())
    }
}

/// What stands for "no name" where rustls wants one; an address is never sent as SNI.
pub(super) fn no_name() -> ServerName<'static> {
    ServerName::IpAddress(std::net::IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED).into())
}

impl Verifier {
    pub(super) fn new(
        context: Arc<ir::ValidationContext>,
        peer: Peer,
        algorithms: WebPkiSupportedAlgorithms,
    ) -> Result<Self, String> {
        let read = |roots: &ir::Pem| Anchors::of(&context, Some(roots));
        let of_domain = |domain: &ir::TrustDomain| Ok((domain.name.clone(), read(&domain.roots)?));
        let domains = context.trust_domains.as_deref();
        let domains = domains.map(|all| all.iter().map(of_domain).collect::<Result<Vec<_>, String>>());
        let domains = domains.transpose()?;
        let anchors = match &context.trusted_ca {
            // What would not be used is checked all the same.
            None => Anchors::of(&context, None).map(|_| None)?,
            Some(roots) => Some(read(roots)?),
        };
        let of_domains = domains.iter().flatten().map(|(_, anchors)| anchors);
        let used = of_domains.chain(anchors.iter().filter(|_| domains.is_none()));
        let subject = |anchor: &TrustAnchor<'_>| DistinguishedName::in_sequence(&anchor.subject);
        let hints = used.flat_map(|anchors| anchors.anchors.iter().map(subject)).collect();
        Ok(Self { context, anchors, domains, hints, peer, algorithms })
    }

    fn verify(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: Option<&ServerName<'_>>,
        now: UnixTime,
    ) -> Result<(), Error> {
        if self.context.accept_untrusted && self.domains.is_none() {
            return Ok(());
        }
        let anchors = match &self.domains {
            Some(domains) => Some(anchors_of(domains, leaf)?),
            None => self.anchors.as_ref(),
        };
        if let Some(anchors) = anchors {
            self.chain(anchors, leaf, intermediates, now)?;
        }
        self.names_fit(leaf, name.filter(|name| **name != no_name()))?;
        if !self.hash_fits(leaf)? {
            return Err(refusal(Refusal::Hash));
        }
        Ok(())
    }

    /// Whether the certificate has the names that are wanted. `asked`: for which name it was asked.
    fn names_fit(&self, leaf: &CertificateDer<'_>, asked: Option<&ServerName<'_>>) -> Result<(), Error> {
        let (of_request, of_sni) = match self.peer {
            Peer::Server { by_request, by_sni } => (asked.filter(|_| by_request), asked.filter(|_| by_sni)),
            Peer::Client { .. } => (None, None),
        };
        if of_request.is_some() && !self.context.verifies() {
            return Err(refusal(Refusal::Unfounded));
        }
        if of_request.is_none() && of_sni.is_none() && self.context.sans.is_empty() {
            return Ok(());
        }
        let (_, parsed) = X509Certificate::from_der(leaf).map_err(|_| CertificateError::BadEncoding)?;
        let shown = || {
            let names = super::facts::alternative_names(&parsed).into_iter().map(|(_, name)| name);
            names.collect::<Vec<_>>().join(", ")
        };
        if let Some(name) = of_request.map(ServerName::to_str)
            && !has_name(&parsed, &name)
        {
            let why = format!("verify SAN list, expected SANs: [{name}], certificate SANs: [{}]", shown());
            return Err(refusal(Refusal::Names(why)));
        }
        let sans = &self.context.sans;
        let fits = match of_sni {
            Some(name) => has_host(&parsed, &name.to_str()),
            None => sans.is_empty() || sans.iter().any(|wanted| matches(&parsed, wanted)),
        };
        if fits {
            return Ok(());
        }
        Err(refusal(Refusal::Names(format!("SAN matcher, certificate SANs are [{}]", shown()))))
    }

    fn chain(
        &self,
        anchors: &Anchors,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<(), Error> {
        let now = if self.context.allow_expired {
            within_validity(leaf, intermediates).unwrap_or(now)
        } else {
            now
        };
        // An authority may be its own leaf, which webpki does not take as one.
        if anchors.authorities.iter().any(|authority| authority == leaf) {
            let (_, leaf) = X509Certificate::from_der(leaf).map_err(|_| CertificateError::BadEncoding)?;
            is_valid(&leaf, now)?;
            return anchors.revoked.check(&leaf, &leaf, now);
        }
        if let Some(leaf) = of_version_1(leaf) {
            return issued_directly(anchors, &leaf, now);
        }
        let parsed = webpki::EndEntityCert::try_from(leaf).map_err(of_webpki)?;
        let usage = match self.peer {
            Peer::Server { .. } => webpki::KeyUsage::server_auth(),
            Peer::Client { .. } => webpki::KeyUsage::client_auth(),
        };
        let lists = anchors.revoked.parsed();
        let revocation = webpki::RevocationOptionsBuilder::new(&lists).ok().map(|options| {
            let depth = if only_leaf(&self.context) {
                webpki::RevocationCheckDepth::EndEntity
            } else {
                webpki::RevocationCheckDepth::Chain
            };
            options.with_depth(depth).with_expiration_policy(webpki::ExpirationPolicy::Enforce).build()
        });
        let verify_at = |moment| {
            let (all, anchors) = (self.algorithms.all, &anchors.anchors);
            parsed.verify_for_usage(all, anchors, intermediates, moment, usage, revocation, None).map(drop)
        };
        let verified = verify_at(now);
        // Who has issued it is asked first, so that a stranger's is nobody's whether it has expired or not.
        let untimely = matches!(
            verified,
            Err(webpki::Error::CertExpired { .. } | webpki::Error::CertNotValidYet { .. })
        );
        if untimely
            && let Some(then) = within_validity(leaf, intermediates)
            && let Err(webpki::Error::UnknownIssuer) = verify_at(then)
        {
            return Err(CertificateError::UnknownIssuer.into());
        }
        verified.map_err(of_webpki)
    }

    /// Where hashes are wanted, one must fit.
    fn hash_fits(&self, leaf: &CertificateDer<'_>) -> Result<bool, Error> {
        let context = &self.context;
        if context.verify_hash.is_empty() && context.verify_spki.is_empty() {
            return Ok(true);
        }
        let sha256 = |bytes: &[u8]| digest::digest(&digest::SHA256, bytes);
        let whole = sha256(leaf);
        if context.verify_hash.iter().any(|wanted| wanted == whole.as_ref()) {
            return Ok(true);
        }
        let (_, parsed) = X509Certificate::from_der(leaf).map_err(|_| CertificateError::BadEncoding)?;
        let key = sha256(parsed.public_key().raw);
        Ok(context.verify_spki.iter().any(|wanted| wanted == key.as_ref()))
    }
}

/// Certificates of version 1, which `openssl x509 -req` makes when it is given no extensions, are unknown to webpki: one of the
/// authorities must have signed it.
fn issued_directly(anchors: &Anchors, leaf: &X509Certificate<'_>, now: UnixTime) -> Result<(), Error> {
    let parsed = anchors.authorities.iter().filter_map(|authority| X509Certificate::from_der(authority).ok());
    let signed = |authority: &X509Certificate<'_>| {
        authority.subject().as_raw() == leaf.issuer().as_raw()
            && leaf.verify_signature(Some(authority.public_key())).is_ok()
    };
    let issuer = parsed.map(|(_, authority)| authority).find(signed);
    let issuer = issuer.ok_or(CertificateError::UnknownIssuer)?;
    is_valid(leaf, now)?;
    anchors.revoked.check(leaf, &issuer, now)
}

/// The roots of a workload's trust domain: that of its first URI. An authority's certificate is none of a workload.
fn anchors_of<'a>(
    domains: &'a [(Box<str>, Anchors)],
    leaf: &CertificateDer<'_>,
) -> Result<&'a Anchors, Error> {
    let (_, parsed) = X509Certificate::from_der(leaf).map_err(|_| CertificateError::BadEncoding)?;
    // It must say what its key is for (X.509-SVID, 4.3), as Envoy has it.
    let signs = parsed
        .key_usage()
        .ok()
        .flatten()
        .is_none_or(|usage| usage.value.key_cert_sign() || usage.value.crl_sign());
    if parsed.is_ca() || signs {
        return Err(refusal(Refusal::Authority));
    }
    let names = parsed.subject_alternative_name().ok().flatten();
    let uri = names.iter().flat_map(|names| &names.value.general_names).find_map(|name| match name {
        GeneralName::URI(uri) => Some(*uri),
        _ => None,
    });
    let domain = uri.and_then(|uri| Some(uri.strip_prefix("spiffe://")?.split_once('/')?.0));
    let of_domain = domain.and_then(|domain| domains.iter().find(|(name, _)| **name == *domain));
    of_domain.map(|(_, anchors)| anchors).ok_or_else(|| refusal(Refusal::Domain))
}

fn refusal(why: Refusal) -> Error {
    CertificateError::Other(OtherError(Arc::new(why))).into()
}

fn of_webpki(error: webpki::Error) -> Error {
    use webpki::Error as E;
    match error {
        E::BadDer | E::BadDerTime | E::TrailingData(_) => CertificateError::BadEncoding,
        E::CertNotValidYet { time, not_before } => CertificateError::NotValidYetContext { time, not_before },
        E::CertExpired { time, not_after } => CertificateError::ExpiredContext { time, not_after },
        E::InvalidCertValidity => CertificateError::Expired,
        E::CertRevoked => CertificateError::Revoked,
        E::UnknownRevocationStatus => CertificateError::UnknownRevocationStatus,
        E::InvalidSignatureForPublicKey => CertificateError::BadSignature,
        E::RequiredEkuNotFoundContext(_) => CertificateError::InvalidPurpose,
        E::UnknownIssuer => CertificateError::UnknownIssuer,
        other => CertificateError::Other(OtherError(Arc::new(other))),
    }
    .into()
}

/// The certificate, when it is of version 1.
fn of_version_1<'a>(certificate: &'a CertificateDer<'_>) -> Option<X509Certificate<'a>> {
    let (_, parsed) = X509Certificate::from_der(certificate).ok()?;
    (parsed.version() == X509Version::V1).then_some(parsed)
}

/// A handshake's signature, by the certificate's key.
fn check_signature(
    message: &[u8],
    certificate: &CertificateDer<'_>,
    signature: &DigitallySignedStruct,
    algorithms: &WebPkiSupportedAlgorithms,
    tls13: bool,
) -> Result<HandshakeSignatureValid, Error> {
    let Some(old) = of_version_1(certificate) else {
        return match tls13 {
            true => verify_tls13_signature(message, certificate, signature, algorithms),
            false => verify_tls12_signature(message, certificate, signature, algorithms),
        };
    };
    let key = SubjectPublicKeyInfoDer::from(old.public_key().raw);
    if tls13 {
        return verify_tls13_signature_with_raw_key(message, &key, signature, algorithms);
    }
    let entity = webpki::RawPublicKeyEntity::try_from(&key).map_err(of_webpki)?;
    let of_scheme = algorithms.mapping.iter().filter(|(scheme, _)| *scheme == signature.scheme);
    let mut usable = of_scheme.flat_map(|(_, usable)| usable.iter());
    let verified =
        usable.any(|algorithm| entity.verify_signature(*algorithm, message, signature.signature()).is_ok());
    match verified {
        true => Ok(HandshakeSignatureValid::assertion()),
        false => Err(CertificateError::BadSignature.into()),
    }
}

fn is_valid(parsed: &X509Certificate<'_>, now: UnixTime) -> Result<(), Error> {
    let now = i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
    if now > parsed.validity().not_after.timestamp() {
        return Err(CertificateError::Expired.into());
    }
    if now < parsed.validity().not_before.timestamp() {
        return Err(CertificateError::NotValidYet.into());
    }
    Ok(())
}

/// A moment at which all of these were valid, if there was one: the latest of their beginnings.
fn within_validity(leaf: &CertificateDer<'_>, intermediates: &[CertificateDer<'_>]) -> Option<UnixTime> {
    let begin = |certificate: &CertificateDer<'_>| {
        let (_, parsed) = X509Certificate::from_der(certificate).ok()?;
        u64::try_from(parsed.validity().not_before.timestamp()).ok()
    };
    let latest = std::iter::once(leaf).chain(intermediates).filter_map(begin).max()?;
    Some(UnixTime::since_unix_epoch(Duration::from_secs(latest)))
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        _ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.verify(leaf, intermediates, Some(server_name), now)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        check_signature(message, certificate, signature, &self.algorithms, false)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        check_signature(message, certificate, signature, &self.algorithms, true)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

impl ClientCertVerifier for Verifier {
    fn client_auth_mandatory(&self) -> bool {
        match self.peer {
            // The SPIFFE validator wants one, whatever the context says. Without an authority a certificate proves nothing, and Envoy
            // does not require one.
            Peer::Client { required } => {
                let required = required && self.anchors.is_some();
                required || self.domains.is_some() || self.context.wants_certificate()
            }
            Peer::Server { .. } => false,
        }
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &self.hints
    }

    fn verify_client_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        self.verify(leaf, intermediates, None, now)?;
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        check_signature(message, certificate, signature, &self.algorithms, false)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        check_signature(message, certificate, signature, &self.algorithms, true)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}
