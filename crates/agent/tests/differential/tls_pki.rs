//! Certificates of the TLS cases, made anew for each run.

use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, CertifiedIssuer, DnType,
    ExtendedKeyUsagePurpose, IsCa, KeyIdMethod, KeyPair, KeyUsagePurpose, RevokedCertParams, SanType,
    SerialNumber, SigningKey, date_time_ymd,
};

/// A chain and its key, in PEM.
#[derive(Clone)]
pub(crate) struct Pair {
    pub(crate) chain: String,
    pub(crate) key: String,
    /// SHA-256 of the leaf, in hexadecimal digits.
    pub(crate) hash: String,
    /// SHA-256 of its key, in Base64.
    pub(crate) key_hash: String,
    /// Of the leaf.
    serial: Vec<u8>,
}

/// An authority.
pub(crate) struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    pub(crate) fn new(name: &str) -> Self {
        Self(CertifiedIssuer::self_signed(Self::params(name), KeyPair::generate().unwrap()).unwrap())
    }

    /// One that this one vouches for.
    pub(crate) fn below(&self, name: &str) -> Self {
        let key = KeyPair::generate().unwrap();
        Self(CertifiedIssuer::signed_by(Self::params(name), key, &self.0).unwrap())
    }

    fn params(name: &str) -> CertificateParams {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params
    }

    /// An authority's certificate, whose key is for these usages, to be shown as a peer's.
    pub(crate) fn issue_authority(&self, name: &str, usages: &[KeyUsagePurpose]) -> Pair {
        let mut params = Self::params("c");
        params.subject_alt_names.push(SanType::URI(name.try_into().unwrap()));
        params.key_usages = usages.to_vec();
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.0).unwrap();
        Pair::new(certificate.der(), &key)
    }

    /// The list of those whose certificates it takes back, in PEM.
    pub(crate) fn takes_back(&self, serials: &[&[u8]], expired: bool) -> String {
        let revoked = |serial: &&[u8]| RevokedCertParams {
            serial_number: SerialNumber::from_slice(serial),
            revocation_time: date_time_ymd(2020, 1, 3),
            reason_code: None,
            invalidity_date: None,
        };
        let list = CertificateRevocationListParams {
            this_update: date_time_ymd(2020, 1, 3),
            next_update: if expired { date_time_ymd(2021, 1, 3) } else { date_time_ymd(2040, 1, 3) },
            crl_number: SerialNumber::from(1),
            issuing_distribution_point: None,
            revoked_certs: serials.iter().map(revoked).collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        list.signed_by(&self.0).unwrap().pem().unwrap()
    }

    pub(crate) fn serial(&self) -> Vec<u8> {
        serial(self.0.der())
    }

    /// Its own certificate, to be shown as a peer's.
    pub(crate) fn itself(&self) -> Pair {
        Pair::new(self.0.der(), self.0.key())
    }

    pub(crate) fn pem(&self) -> String {
        self.0.pem()
    }

    /// A certificate for these names; those with `://` are URIs, those with `@` addresses of mail.
    pub(crate) fn issue(&self, common_name: &str, names: &[&str], expired: bool) -> Pair {
        self.issue_for(common_name, names, expired, &[])
    }

    /// The same, whose key is for these usages.
    pub(crate) fn issue_for(
        &self,
        common_name: &str,
        names: &[&str],
        expired: bool,
        usages: &[KeyUsagePurpose],
    ) -> Pair {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::OrganizationName, "Tests, Inc.");
        params.distinguished_name.push(DnType::CommonName, common_name);
        for name in names {
            params.subject_alt_names.push(match name.parse() {
                Ok(address) => SanType::IpAddress(address),
                Err(_) if name.contains("://") => SanType::URI((*name).try_into().unwrap()),
                Err(_) if name.contains('@') => SanType::Rfc822Name((*name).try_into().unwrap()),
                Err(_) => SanType::DnsName((*name).try_into().unwrap()),
            });
        }
        params.key_usages = usages.to_vec();
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.not_before = date_time_ymd(2020, 1, 2);
        params.not_after = if expired { date_time_ymd(2021, 1, 2) } else { date_time_ymd(2040, 1, 2) };
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.0).unwrap();
        Pair::new(certificate.der(), &key)
    }

    /// A certificate of version 1, as `openssl x509 -req` makes it without extensions: another one without its version and extensions,
    /// signed again.
    pub(crate) fn issue_old(&self, common_name: &str) -> Pair {
        self.issue_old_within(common_name, 2020..2040)
    }

    /// The same, for these years.
    pub(crate) fn issue_old_within(&self, common_name: &str, years: std::ops::Range<i32>) -> Pair {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, common_name);
        params.not_before = date_time_ymd(years.start, 1, 2);
        params.not_after = date_time_ymd(years.end, 1, 2);
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.0).unwrap();
        let (_, whole) = children(certificate.der());
        let (_, signed) = children(whole[0]);
        let is_kept = |part: &&&[u8]| !matches!(part[0], 0xa0 | 0xa3);
        let signed = sequence(&signed.iter().filter(is_kept).copied().collect::<Vec<_>>().concat());
        let mut signature = vec![0];
        signature.extend(self.0.key().sign(&signed).unwrap());
        let mut bits = sequence(&signature);
        bits[0] = 0x03;
        Pair::new(&sequence(&[&signed, whole[1], &bits].concat()), &key)
    }
}

/// The contents of a DER structure, and its parts as they are.
fn children(der: &[u8]) -> (&[u8], Vec<&[u8]>) {
    let header = |der: &[u8]| match der[1] {
        short @ 0..0x80 => (2, usize::from(short)),
        long => {
            let count = usize::from(long & 0x7f);
            let length = der[2..2 + count].iter().fold(0, |length, byte| length << 8 | usize::from(*byte));
            (2 + count, length)
        }
    };
    let (start, length) = header(der);
    let contents = &der[start..start + length];
    let (mut rest, mut parts) = (contents, Vec::new());
    while !rest.is_empty() {
        let (start, length) = header(rest);
        let (part, after) = rest.split_at(start + length);
        parts.push(part);
        rest = after;
    }
    (contents, parts)
}

fn sequence(contents: &[u8]) -> Vec<u8> {
    let length = contents.len();
    let mut der = match length {
        0..0x80 => vec![0x30, length as u8],
        0x80..0x100 => vec![0x30, 0x81, length as u8],
        _ => vec![0x30, 0x82, (length >> 8) as u8, (length & 0xff) as u8],
    };
    der.extend(contents);
    der
}

/// The serial number of a certificate.
fn serial(der: &[u8]) -> Vec<u8> {
    const INTEGER: u8 = 2;
    let (_, whole) = children(der);
    let (_, signed) = children(whole[0]);
    let number = signed.iter().find(|part| part[0] == INTEGER).unwrap();
    // Less than 128 bytes: the length is one.
    number[2..].to_vec()
}

impl Pair {
    pub(crate) fn serial(&self) -> &[u8] {
        &self.serial
    }

    /// The certificate with another's key, which does not fit.
    pub(crate) fn with_key_of(mut self, other: &Self) -> Self {
        self.key.clone_from(&other.key);
        self
    }

    /// With this authority's certificate behind its own.
    pub(crate) fn behind(mut self, authority: &Authority) -> Self {
        self.chain += &authority.pem();
        self
    }

    fn new(der: &[u8], key: &KeyPair) -> Self {
        use base64::Engine as _;
        use base64::engine::general_purpose::STANDARD;
        use rcgen::PublicKeyData as _;
        let digest = |bytes: &[u8]| aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, bytes);
        let hash = digest(der).as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
        let key_hash = STANDARD.encode(digest(&key.subject_public_key_info()));
        let text = STANDARD.encode(der);
        let lines: Vec<&str> =
            text.as_bytes().chunks(64).map(|line| std::str::from_utf8(line).unwrap()).collect();
        let chain = format!("-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n", lines.join("\n"));
        Self { chain, key: key.serialize_pem(), hash, key_hash, serial: serial(der) }
    }
}

/// Everything the cases use.
pub(crate) struct Pki {
    pub(crate) authority: Authority,
    /// Who has issued nothing.
    pub(crate) nobody: Authority,
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
    /// Of version 1.
    pub(crate) server_old: Pair,
    pub(crate) client_old: Pair,
    /// Of version 1, signed by `other`.
    pub(crate) client_old_other: Pair,
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
            server_old: authority.issue_old("a.example"),
            client_old: authority.issue_old("client"),
            client_old_other: other.issue_old("client"),
            nobody: Authority::new("nobody's root"),
            client_stranger: authority.issue("stranger", &["spiffe://td/ns/a/sa/stranger"], false),
            authority,
        }
    }
}
