//! What is known of a connection's TLS, for logs, headers and formats. Certificates are taken apart when somebody asks.

use std::cell::OnceCell;
use std::fmt::Write as _;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::rc::Rc;

use aws_lc_rs::digest;
use rustls::{CipherSuite, CommonState, HandshakeKind, ProtocolVersion};
use rustls_pki_types::CertificateDer;
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate, X509Name};

/// TLS of one connection.
#[derive(Debug)]
pub(crate) struct TlsFacts {
    /// `TLSv1.3`
    pub(crate) version: &'static str,
    /// OpenSSL's name of the suite.
    pub(crate) cipher: &'static str,
    /// The group of the key exchange, as BoringSSL names it.
    pub(crate) curve: Option<&'static str>,
    pub(crate) alpn: Option<Box<[u8]>>,
    /// A session was resumed.
    pub(crate) resumed: bool,
    /// Whom the client asked for (SNI). Of servers' connections only.
    pub(crate) server_name: Option<Box<str>>,
    peer: Vec<CertificateDer<'static>>,
    peer_facts: OnceCell<Option<Rc<CertificateFacts>>>,
    local: Option<CertificateDer<'static>>,
    local_facts: OnceCell<Option<Rc<CertificateFacts>>>,
}

/// What a certificate says, in Envoy's spelling.
#[derive(Debug)]
pub(crate) struct CertificateFacts {
    /// RFC 2253.
    pub(crate) subject: String,
    /// RFC 2253.
    pub(crate) issuer: String,
    pub(crate) uris: Vec<String>,
    pub(crate) dns: Vec<String>,
    pub(crate) addresses: Vec<String>,
    pub(crate) emails: Vec<String>,
    /// Lower-case hexadecimal.
    pub(crate) serial: String,
    /// SHA-256 of the certificate, lower-case hexadecimal.
    pub(crate) fingerprint: String,
    /// Seconds since 1970.
    pub(crate) not_before: i64,
    /// Seconds since 1970.
    pub(crate) not_after: i64,
}

impl TlsFacts {
    pub(super) fn new(state: &CommonState, local: Option<&CertificateDer<'static>>) -> Self {
        let peer: Vec<_> = state
            .peer_certificates()
            .unwrap_or_default()
            .iter()
            .map(|one| one.clone().into_owned())
            .collect();
        Self {
            version: match state.protocol_version() {
                Some(ProtocolVersion::TLSv1_3) => "TLSv1.3",
                _ => "TLSv1.2",
            },
            cipher: state.negotiated_cipher_suite().map_or("", |suite| cipher_name(suite.suite())),
            curve: state.negotiated_key_exchange_group().and_then(|group| match group.name() {
                rustls::NamedGroup::X25519 => Some("X25519"),
                rustls::NamedGroup::secp256r1 => Some("P-256"),
                rustls::NamedGroup::secp384r1 => Some("P-384"),
                rustls::NamedGroup::X25519MLKEM768 => Some("X25519MLKEM768"),
                _ => None,
            }),
            alpn: state.alpn_protocol().map(Into::into),
            resumed: state.handshake_kind() == Some(HandshakeKind::Resumed),
            server_name: None,
            peer,
            peer_facts: OnceCell::new(),
            local: local.cloned(),
            local_facts: OnceCell::new(),
        }
    }

    pub(crate) fn has_peer(&self) -> bool {
        !self.peer.is_empty()
    }

    /// The peer's certificate.
    pub(crate) fn peer(&self) -> Option<&Rc<CertificateFacts>> {
        let facts = || self.peer.first().and_then(CertificateFacts::of).map(Rc::new);
        self.peer_facts.get_or_init(facts).as_ref()
    }

    /// The certificate that was shown to the peer.
    pub(crate) fn local(&self) -> Option<&Rc<CertificateFacts>> {
        let facts = || self.local.as_ref().and_then(CertificateFacts::of).map(Rc::new);
        self.local_facts.get_or_init(facts).as_ref()
    }

    /// The peer's certificate as PEM, escaped as in a URL.
    pub(crate) fn peer_pem(&self) -> Option<String> {
        self.peer.first().map(|leaf| escaped_pem(std::slice::from_ref(leaf)))
    }

    /// The peer's chain as PEM, escaped as in a URL.
    pub(crate) fn peer_chain_pem(&self) -> Option<String> {
        self.has_peer().then(|| escaped_pem(&self.peer))
    }
}

fn cipher_name(suite: CipherSuite) -> &'static str {
    match suite {
        CipherSuite::TLS13_AES_128_GCM_SHA256 => "TLS_AES_128_GCM_SHA256",
        CipherSuite::TLS13_AES_256_GCM_SHA384 => "TLS_AES_256_GCM_SHA384",
        CipherSuite::TLS13_CHACHA20_POLY1305_SHA256 => "TLS_CHACHA20_POLY1305_SHA256",
        CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256 => "ECDHE-ECDSA-AES128-GCM-SHA256",
        CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384 => "ECDHE-ECDSA-AES256-GCM-SHA384",
        CipherSuite::TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256 => "ECDHE-ECDSA-CHACHA20-POLY1305",
        CipherSuite::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256 => "ECDHE-RSA-AES128-GCM-SHA256",
        CipherSuite::TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384 => "ECDHE-RSA-AES256-GCM-SHA384",
        CipherSuite::TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256 => "ECDHE-RSA-CHACHA20-POLY1305",
        _ => "",
    }
}

impl CertificateFacts {
    fn of(der: &CertificateDer<'static>) -> Option<Self> {
        let (_, parsed) = X509Certificate::from_der(der).ok()?;
        let names = alternative_names(&parsed);
        let of_kind = |wanted: &str| {
            names.iter().filter(|(kind, _)| *kind == wanted).map(|(_, name)| name.clone()).collect()
        };
        Some(Self {
            subject: distinguished_name(parsed.subject()),
            issuer: distinguished_name(parsed.issuer()),
            uris: of_kind("uri"),
            dns: of_kind("dns"),
            addresses: of_kind("ip_address"),
            emails: of_kind("email"),
            serial: serial(&parsed),
            fingerprint: hex(digest::digest(&digest::SHA256, der).as_ref()),
            not_before: parsed.validity().not_before.timestamp(),
            not_after: parsed.validity().not_after.timestamp(),
        })
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut out, byte| {
        // Writing to a String cannot fail.
        let _ = write!(out, "{byte:02x}");
        out
    })
}

/// The serial number in lower-case hexadecimal.
pub(super) fn serial(certificate: &X509Certificate<'_>) -> String {
    let raw = certificate.raw_serial();
    // DER puts a zero before a number whose first bit is set.
    hex(raw.strip_prefix(&[0]).filter(|rest| !rest.is_empty()).unwrap_or(raw))
}

/// An address in a certificate as text.
pub(super) fn address(bytes: &[u8]) -> Option<String> {
    if let Ok(v4) = <[u8; 4]>::try_from(bytes) {
        return Some(Ipv4Addr::from(v4).to_string());
    }
    <[u8; 16]>::try_from(bytes).ok().map(|v6| Ipv6Addr::from(v6).to_string())
}

/// Names with their kind.
pub(super) fn alternative_names(certificate: &X509Certificate<'_>) -> Vec<(&'static str, String)> {
    let Ok(Some(names)) = certificate.subject_alternative_name() else { return Vec::new() };
    let name = |name: &GeneralName<'_>| match name {
        GeneralName::DNSName(name) => Some(("dns", (*name).to_owned())),
        GeneralName::URI(uri) => Some(("uri", (*uri).to_owned())),
        GeneralName::IPAddress(bytes) => address(bytes).map(|text| ("ip_address", text)),
        GeneralName::RFC822Name(address) => Some(("email", (*address).to_owned())),
        _ => None,
    };
    names.value.general_names.iter().filter_map(name).collect()
}

/// Short names of RFC 2253 and of OpenSSL beyond it.
const ATTRIBUTES: [(&str, &str); 12] = [
    ("2.5.4.3", "CN"),
    ("2.5.4.4", "SN"),
    ("2.5.4.5", "serialNumber"),
    ("2.5.4.6", "C"),
    ("2.5.4.7", "L"),
    ("2.5.4.8", "ST"),
    ("2.5.4.9", "street"),
    ("2.5.4.10", "O"),
    ("2.5.4.11", "OU"),
    ("1.2.840.113549.1.9.1", "emailAddress"),
    ("0.9.2342.19200300.100.1.1", "UID"),
    ("0.9.2342.19200300.100.1.25", "DC"),
];

/// A name as RFC 2253 writes it: last part first.
fn distinguished_name(name: &X509Name<'_>) -> String {
    let mut out = String::new();
    let parts: Vec<_> = name.iter().collect();
    for part in parts.into_iter().rev() {
        if !out.is_empty() {
            out.push(',');
        }
        for (index, attribute) in part.iter().enumerate() {
            if index > 0 {
                out.push('+');
            }
            let oid = attribute.attr_type().to_id_string();
            let short = ATTRIBUTES.iter().find(|(known, _)| *known == oid).map(|(_, short)| *short);
            out.push_str(short.unwrap_or(&oid));
            out.push('=');
            match attribute.as_str() {
                Ok(value) => escape_name(value, &mut out),
                Err(_) => {
                    out.push('#');
                    out.push_str(&hex(attribute.as_slice()));
                }
            }
        }
    }
    out
}

fn escape_name(value: &str, out: &mut String) {
    let last = value.chars().count().saturating_sub(1);
    for (index, c) in value.chars().enumerate() {
        let at_edge = (index == 0 && matches!(c, ' ' | '#')) || (index == last && c == ' ');
        if at_edge || matches!(c, ',' | '+' | '"' | '\\' | '<' | '>' | ';') {
            out.push('\\');
        }
        out.push(c);
    }
}

/// PEM with what a URL would not take escaped, as Envoy does it.
fn escaped_pem(chain: &[CertificateDer<'_>]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut out = String::new();
    for der in chain {
        out.push_str("-----BEGIN%20CERTIFICATE-----%0A");
        let mut column = 0;
        for group in der.chunks(3) {
            let bits = group.iter().fold(0u32, |bits, byte| (bits << 8) | u32::from(*byte))
                << (8 * (3 - group.len()));
            for position in 0..4 {
                if position > group.len() {
                    out.push_str("%3D");
                } else {
                    match ALPHABET[(bits >> (18 - 6 * position)) as usize & 63] {
                        b'+' => out.push_str("%2B"),
                        b'/' => out.push_str("%2F"),
                        plain => out.push(plain.into()),
                    }
                }
            }
            column += 4;
            if column == 64 {
                out.push_str("%0A");
                column = 0;
            }
        }
        if column > 0 {
            out.push_str("%0A");
        }
        out.push_str("-----END%20CERTIFICATE-----%0A");
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pem_is_escaped_and_padded() {
        let text = escaped_pem(&[CertificateDer::from(vec![0xfb, 0xff, 0xbf, 1])]);
        assert_eq!(
            text,
            "-----BEGIN%20CERTIFICATE-----%0A%2B%2F%2B%2FAQ%3D%3D%0A-----END%20CERTIFICATE-----%0A"
        );
    }

    #[test]
    fn names_are_escaped() {
        let mut out = String::new();
        escape_name(" a,b+c ", &mut out);
        assert_eq!(out, "\\ a\\,b\\+c\\ ");
    }
}
