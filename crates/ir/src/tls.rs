//! TLS contexts of listeners and clusters, and the secrets they use (`envoy.extensions.transport_sockets.tls.v3`).

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::matcher::StringMatcher;

/// A protocol version. TLS 1.0 and 1.1 do not exist here (RFC 8996).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum TlsVersion {
    /// TLS 1.2.
    V1_2,
    /// TLS 1.3.
    V1_3,
}

/// A cipher suite of TLS 1.2; those of TLS 1.3 are not configurable, as in Envoy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum CipherSuite {
    /// `ECDHE-ECDSA-AES128-GCM-SHA256`
    EcdsaAes128,
    /// `ECDHE-ECDSA-AES256-GCM-SHA384`
    EcdsaAes256,
    /// `ECDHE-ECDSA-CHACHA20-POLY1305`
    EcdsaChacha20,
    /// `ECDHE-RSA-AES128-GCM-SHA256`
    RsaAes128,
    /// `ECDHE-RSA-AES256-GCM-SHA384`
    RsaAes256,
    /// `ECDHE-RSA-CHACHA20-POLY1305`
    RsaChacha20,
}

impl CipherSuite {
    /// OpenSSL's names, which Envoy's configuration uses.
    pub const NAMES: [(&'static str, Self); 6] = [
        ("ECDHE-ECDSA-AES128-GCM-SHA256", Self::EcdsaAes128),
        ("ECDHE-ECDSA-AES256-GCM-SHA384", Self::EcdsaAes256),
        ("ECDHE-ECDSA-CHACHA20-POLY1305", Self::EcdsaChacha20),
        ("ECDHE-RSA-AES128-GCM-SHA256", Self::RsaAes128),
        ("ECDHE-RSA-AES256-GCM-SHA384", Self::RsaAes256),
        ("ECDHE-RSA-CHACHA20-POLY1305", Self::RsaChacha20),
    ];
}

/// A group for the key exchange.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Curve {
    /// `X25519`
    X25519,
    /// `P-256`
    P256,
    /// `P-384`
    P384,
    /// `X25519MLKEM768`, secure against quantum computers.
    X25519MlKem768,
}

/// `TlsParameters`. Empty lists mean the provider's choice.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct TlsParams {
    /// Least version. Default TLS 1.2.
    pub min: TlsVersion,
    /// Highest version. Default TLS 1.3.
    pub max: TlsVersion,
    /// In order of preference.
    pub cipher_suites: Vec<CipherSuite>,
    /// In order of preference.
    pub curves: Vec<Curve>,
}

impl Default for TlsParams {
    fn default() -> Self {
        Self { min: TlsVersion::V1_2, max: TlsVersion::V1_3, cipher_suites: Vec::new(), curves: Vec::new() }
    }
}

/// Where a file or inline text came from, for `/certs`.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Pem {
    /// The file's path; `<inline>` for bytes given in place, as Envoy writes it.
    pub origin: Arc<str>,
    /// The text.
    pub bytes: Arc<[u8]>,
}

/// Never prints the bytes: they may be a key.
impl fmt::Debug for Pem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Pem({}, {} bytes)", self.origin, self.bytes.len())
    }
}

/// `TlsCertificate`: a chain and its key.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct TlsCertificate {
    /// The leaf first.
    pub chain: Pem,
    /// Its key.
    pub key: Pem,
}

/// `SubjectAltNameMatcher.SanType`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SanType {
    /// `EMAIL`
    Email,
    /// `DNS`
    Dns,
    /// `URI`
    Uri,
    /// `IP_ADDRESS`
    IpAddress,
}

/// A name a certificate must have.
#[derive(Clone, Debug)]
pub struct SanMatcher {
    /// Which kind of name; `None` (`match_subject_alt_names`, deprecated): any.
    pub san_type: Option<SanType>,
    /// What it must be.
    pub matcher: StringMatcher,
}

/// `CertificateValidationContext`.
#[derive(Clone, Debug, Default)]
pub struct ValidationContext {
    /// Roots; `None`: the chain is not verified.
    pub trusted_ca: Option<Pem>,
    /// SHA-256 of the leaf's public key info; one must match.
    pub verify_spki: Vec<[u8; 32]>,
    /// SHA-256 of the leaf; one must match.
    pub verify_hash: Vec<[u8; 32]>,
    /// One name must match one of these.
    pub sans: Vec<SanMatcher>,
    /// Revoked certificates, besides the lists that stand among the roots.
    pub crl: Option<Pem>,
    /// Only the leaf is looked up in `crl`.
    pub only_leaf_crl: bool,
    /// Certificates may have expired.
    pub allow_expired: bool,
    /// A certificate that does not verify is accepted, and known not to (`ACCEPT_UNTRUSTED`).
    pub accept_untrusted: bool,
    /// Roots by trust domain, in the place of `trusted_ca` (the extension `envoy.tls.cert_validator.spiffe`).
    pub trust_domains: Option<Arc<[TrustDomain]>>,
}

/// Roots that vouch for the workloads of one trust domain and no others.
#[derive(Clone, Debug)]
pub struct TrustDomain {
    /// As identities have it: `NAME` of `spiffe://NAME/…`.
    pub name: Box<str>,
    /// Its roots.
    pub roots: Pem,
}

impl ValidationContext {
    /// The result of `combined_validation_context`: what `dynamic` sets goes before, lists are joined, as protobuf merges.
    pub fn merged(&self, dynamic: &Self) -> Self {
        let join = |a: &[[u8; 32]], b: &[[u8; 32]]| [a, b].concat();
        Self {
            trusted_ca: dynamic.trusted_ca.clone().or_else(|| self.trusted_ca.clone()),
            verify_spki: join(&self.verify_spki, &dynamic.verify_spki),
            verify_hash: join(&self.verify_hash, &dynamic.verify_hash),
            sans: self.sans.iter().chain(&dynamic.sans).cloned().collect(),
            crl: dynamic.crl.clone().or_else(|| self.crl.clone()),
            only_leaf_crl: self.only_leaf_crl || dynamic.only_leaf_crl,
            allow_expired: self.allow_expired || dynamic.allow_expired,
            accept_untrusted: self.accept_untrusted || dynamic.accept_untrusted,
            trust_domains: dynamic.trust_domains.clone().or_else(|| self.trust_domains.clone()),
        }
    }

    /// Whether a peer's certificate is looked at at all.
    pub fn verifies(&self) -> bool {
        self.trusted_ca.is_some()
            || !self.verify_spki.is_empty()
            || !self.verify_hash.is_empty()
            || !self.sans.is_empty()
            || self.trust_domains.is_some()
            || self.accept_untrusted
    }

    /// Whether it says whom to believe wherever it matters.
    ///
    /// # Errors
    /// Names or times are looked at of certificates that anybody may have issued; Envoy's words.
    pub fn check_founded(&self) -> Result<(), &'static str> {
        if self.trusted_ca.is_some() || self.trust_domains.is_some() {
            return Ok(());
        }
        if !self.sans.is_empty() {
            return Err(
                "SAN-based verification of peer certificates without trusted CA is insecure and not allowed",
            );
        }
        if self.allow_expired {
            return Err("Certificate validity period is always ignored without trusted CA");
        }
        Ok(())
    }

    /// Whether a client must have a certificate even where none is required: in Envoy names and hashes that nobody has are none of those
    /// wanted.
    pub fn wants_certificate(&self) -> bool {
        let narrows = !self.sans.is_empty() || !self.verify_hash.is_empty() || !self.verify_spki.is_empty();
        narrows && !self.accept_untrusted
    }
}

/// A secret by name (`SdsSecretConfig`).
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct SecretName {
    /// Its name.
    pub name: Arc<str>,
    /// Where it comes from.
    pub source: SecretSource,
}

/// Where a named secret comes from.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum SecretSource {
    /// `static_resources.secrets`.
    Static,
    /// The aggregated stream.
    Ads {
        /// How long its listener or cluster waits for it. Default 15 s; `None`: for ever.
        initial_fetch_timeout: Option<Duration>,
    },
    /// The agent around this proxy, which has the workload's own certificate (`default`) and the mesh's roots (`ROOTCA`). In
    /// configuration it is a stream of its own to the cluster `sds-grpc`, as Istio writes it.
    Agent {
        /// As for the stream.
        initial_fetch_timeout: Option<Duration>,
    },
    /// A file with a `DiscoveryResponse`.
    Path {
        /// The file.
        path: Arc<str>,
        /// As for the stream.
        initial_fetch_timeout: Option<Duration>,
    },
}

/// A certificate in place or by name.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum CertificateRef {
    /// In place.
    Inline(Arc<TlsCertificate>),
    /// A secret.
    Secret(SecretName),
}

/// `validation_context_type`.
#[derive(Clone, Debug, Default)]
pub enum ValidationRef {
    /// None: any certificate is accepted.
    #[default]
    None,
    /// In place.
    Inline(Arc<ValidationContext>),
    /// A secret, merged into what stands in place.
    Secret {
        /// What stands in place (empty for `validation_context_sds_secret_config`).
        base: Arc<ValidationContext>,
        /// The secret.
        secret: SecretName,
    },
}

/// `CommonTlsContext`.
#[derive(Clone, Debug, Default)]
pub struct CommonTls {
    /// Versions, suites and groups.
    pub params: TlsParams,
    /// Own certificates; at most one for a client.
    pub certificates: Vec<CertificateRef>,
    /// How the peer's is verified.
    pub validation: ValidationRef,
    /// Protocols offered.
    pub alpn: Vec<Box<str>>,
}

impl CommonTls {
    /// Secrets it needs.
    pub fn secrets(&self) -> impl Iterator<Item = &SecretName> {
        let certificates = self.certificates.iter().filter_map(|certificate| match certificate {
            CertificateRef::Secret(secret) => Some(secret),
            CertificateRef::Inline(_) => None,
        });
        let validation = match &self.validation {
            ValidationRef::Secret { secret, .. } => Some(secret),
            ValidationRef::None | ValidationRef::Inline(_) => None,
        };
        certificates.chain(validation)
    }
}

/// `DownstreamTlsContext`.
#[derive(Clone, Debug)]
pub struct DownstreamTls {
    /// Shared with clients.
    pub common: CommonTls,
    /// A client without a certificate is refused.
    pub require_client_certificate: bool,
    /// Tickets (TLS 1.3, and RFC 5077).
    pub stateless_resumption: bool,
    /// Sessions kept here (TLS 1.2).
    pub stateful_resumption: bool,
    /// How long a session may be resumed. Default 2 h.
    pub session_timeout: Duration,
    /// The server's order of cipher suites counts unless set.
    pub prefer_client_ciphers: bool,
    /// Where no certificate has the name asked for, all are searched for one of a kind the client can use. Otherwise it is the first.
    pub full_scan_certs: bool,
}

/// `UpstreamTlsContext`.
#[derive(Clone, Debug)]
pub struct UpstreamTls {
    /// Shared with servers.
    pub common: CommonTls,
    /// Name to ask for; `None`: none is sent.
    pub sni: Option<Arc<str>>,
    /// Ask for the endpoint's `hostname`.
    pub auto_host_sni: bool,
    /// The certificate must have the name that was asked for.
    pub auto_sni_san_validation: bool,
    /// Sessions kept for resumption. Default 1.
    pub max_session_keys: u32,
}

/// A secret (SDS).
#[derive(Clone, Debug)]
pub struct Secret {
    /// Name; xDS identity.
    pub name: Arc<str>,
    /// What it holds.
    pub kind: SecretKind,
}

/// What a secret holds.
#[derive(Clone, Debug)]
pub enum SecretKind {
    /// A chain and its key.
    Certificate(Arc<TlsCertificate>),
    /// How peers are verified.
    Validation(Arc<ValidationContext>),
}

/// Version of the PROXY protocol header sent upstream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ProxyProtocolVersion {
    /// Text.
    V1,
    /// Binary.
    V2,
}

/// `envoy.filters.listener.proxy_protocol`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ProxyProtocolFilter {
    /// A connection that begins with something else is taken as it is.
    pub optional: bool,
    /// Version 1 is taken.
    pub v1: bool,
    /// Version 2 is taken.
    pub v2: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pem(text: &str) -> Pem {
        Pem { origin: "<inline>".into(), bytes: text.as_bytes().into() }
    }

    #[test]
    fn a_key_does_not_get_into_a_log() {
        let certificate = TlsCertificate { chain: pem("public"), key: pem("secret") };
        assert!(!format!("{certificate:?}").contains("secret"));
    }

    #[test]
    fn a_dynamic_context_goes_before_the_one_in_place() {
        let base = ValidationContext {
            trusted_ca: Some(pem("a")),
            verify_hash: vec![[1; 32]],
            ..Default::default()
        };
        let dynamic = ValidationContext {
            trusted_ca: Some(pem("b")),
            verify_hash: vec![[2; 32]],
            ..Default::default()
        };
        let merged = base.merged(&dynamic);
        assert_eq!(merged.trusted_ca, Some(pem("b")));
        assert_eq!(merged.verify_hash, [[1; 32], [2; 32]]);
        assert_eq!(base.merged(&ValidationContext::default()).trusted_ca, Some(pem("a")));
    }
}
