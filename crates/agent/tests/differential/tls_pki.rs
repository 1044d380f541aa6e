//! Certificates of the TLS cases, made anew for each run.

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    SanType, date_time_ymd,
};

/// A chain and its key, in PEM.
#[derive(Clone)]
pub(crate) struct Pair {
    pub(crate) chain: String,
    pub(crate) key: String,
    /// SHA-256 of the leaf, in hexadecimal digits.
    pub(crate) hash: String,
}

/// An authority.
pub(crate) struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    pub(crate) fn new(name: &str) -> Self {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        Self(CertifiedIssuer::self_signed(params, key).unwrap())
    }

    pub(crate) fn pem(&self) -> String {
        self.0.pem()
    }

    /// A certificate for these names; those with `://` are URIs.
    pub(crate) fn issue(&self, common_name: &str, names: &[&str], expired: bool) -> Pair {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::OrganizationName, "Tests, Inc.");
        params.distinguished_name.push(DnType::CommonName, common_name);
        for name in names {
            params.subject_alt_names.push(if name.contains("://") {
                SanType::URI((*name).try_into().unwrap())
            } else {
                SanType::DnsName((*name).try_into().unwrap())
            });
        }
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.not_before = date_time_ymd(2020, 1, 2);
        params.not_after = if expired { date_time_ymd(2021, 1, 2) } else { date_time_ymd(2040, 1, 2) };
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.0).unwrap();
        let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, certificate.der());
        let hash = digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
        Pair { chain: certificate.pem(), key: key.serialize_pem(), hash }
    }
}

/// Everything the cases use.
pub(crate) struct Pki {
    pub(crate) authority: Authority,
    /// `a.example`
    pub(crate) server_a: Pair,
    /// `*.wild.example`
    pub(crate) server_wild: Pair,
    /// Signed by `other`, for `a.example`.
    pub(crate) server_other: Pair,
    pub(crate) server_expired: Pair,
    /// `spiffe://td/ns/a/sa/client`, `client.example`
    pub(crate) client: Pair,
    pub(crate) client_other: Pair,
    pub(crate) client_expired: Pair,
    /// Another name than `client`.
    pub(crate) client_stranger: Pair,
}

impl Pki {
    pub(crate) fn new() -> Self {
        let (authority, other) = (Authority::new("tests root"), Authority::new("other root"));
        Self {
            server_a: authority.issue("a", &["a.example", "spiffe://td/ns/a/sa/server"], false),
            server_wild: authority.issue("wild", &["*.wild.example"], false),
            server_other: other.issue("a", &["a.example"], false),
            server_expired: authority.issue("a", &["a.example"], true),
            client: authority.issue(
                "client \"one\"",
                &["spiffe://td/ns/a/sa/client", "client.example"],
                false,
            ),
            client_other: other.issue("client", &["spiffe://td/ns/a/sa/client"], false),
            client_expired: authority.issue("client", &["spiffe://td/ns/a/sa/client"], true),
            client_stranger: authority.issue("stranger", &["spiffe://td/ns/a/sa/stranger"], false),
            authority,
        }
    }
}
