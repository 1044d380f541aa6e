//! Certificate signing requests (PKCS #10, RFC 2986) of workloads: only their key counts, which they prove to have.

use std::net::IpAddr;

use rcgen::{SanType, SubjectPublicKeyInfo};
use rustls_pki_types::CertificateSigningRequestDer;
use rustls_pki_types::pem::PemObject;
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::cri_attributes::ParsedCriAttribute;
use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::prelude::FromDer;
use x509_parser::public_key::PublicKey;

use crate::SpiffeId;

/// Largest request, in bytes. One with an RSA key of 8,192 bits has some 3,000.
const MAX_BYTES: usize = 16 << 10;
/// Fewest and most bits of an RSA key: less is weak, more is work for whoever verifies.
const RSA_BITS: std::ops::RangeInclusive<usize> = 2048..=8192;

const P256: &str = "1.2.840.10045.3.1.7";
const P384: &str = "1.3.132.0.34";
const ED25519: &str = "1.3.101.112";

/// Why a request is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CsrError {
    /// Longer than any honest one.
    #[error("the certificate signing request has {0} bytes; {MAX_BYTES} are the most")]
    TooLong(usize),
    /// Not a request.
    #[error("the certificate signing request is not a PKCS #10 request in PEM")]
    Malformed,
    /// Signed by another key than the one in it, or not at all.
    #[error("the certificate signing request is not signed by the key in it")]
    Signature,
    /// A key that is not accepted.
    #[error(
        "the key of the certificate signing request is {0}; use P-256, P-384, Ed25519, or RSA with at least 2048 bits"
    )]
    Key(String),
    /// It asks for something that its sender has not proved to be.
    #[error("the certificate signing request asks for {asked}; {id} may ask for itself only")]
    Foreign {
        /// What it asks for.
        asked: String,
        /// Who its sender is.
        id: String,
    },
}

/// A request whose sender has the key in it. What else it says counts where another authority signs it as it is
/// ([`Self::asks_for_no_more_than`]); ours gives a workload a certificate for what it proved to be, whatever it asks for.
pub struct SigningRequest {
    pub(crate) key: SubjectPublicKeyInfo,
    pub(crate) names: Vec<SanType>,
    /// The first thing it asks for besides names.
    besides: Option<String>,
}

impl SigningRequest {
    /// Reads and checks a request.
    ///
    /// # Errors
    /// When it is none, its signature does not fit, or its key is weak.
    pub fn from_pem(pem: &str) -> Result<Self, CsrError> {
        if pem.len() > MAX_BYTES {
            return Err(CsrError::TooLong(pem.len()));
        }
        let der =
            CertificateSigningRequestDer::from_pem_slice(pem.as_bytes()).map_err(|_| CsrError::Malformed)?;
        Self::from_der(&der)
    }

    fn from_der(der: &[u8]) -> Result<Self, CsrError> {
        let (rest, request) = X509CertificationRequest::from_der(der).map_err(|_| CsrError::Malformed)?;
        if !rest.is_empty() {
            return Err(CsrError::Malformed);
        }
        let info = &request.certification_request_info.subject_pki;
        let algorithm = info.algorithm.algorithm.to_id_string();
        let curve = info.algorithm.parameters.as_ref().and_then(|any| any.as_oid().ok());
        match info.parsed().map_err(|_| CsrError::Malformed)? {
            PublicKey::RSA(key) if RSA_BITS.contains(&key.key_size()) => {}
            PublicKey::RSA(key) => return Err(CsrError::Key(format!("RSA with {} bits", key.key_size()))),
            PublicKey::EC(_) => match curve.map(|oid| oid.to_id_string()).as_deref() {
                Some(P256 | P384) => {}
                other => return Err(CsrError::Key(format!("of curve {}", other.unwrap_or("unknown")))),
            },
            _ if algorithm == ED25519 => {}
            _ => return Err(CsrError::Key(format!("of algorithm {algorithm}"))),
        }
        request.verify_signature().map_err(|_| CsrError::Signature)?;
        let key = SubjectPublicKeyInfo::from_der(info.raw)
            .map_err(|_| CsrError::Key(format!("of algorithm {algorithm}")))?;
        let (names, besides) = asked(&request);
        Ok(Self { key, names, besides })
    }

    /// Checks that whoever signs the request as it is makes a certificate of `id` and of nothing else: it has no name, or this one,
    /// no subject and no extension, as Istio's registration authority has it.
    ///
    /// # Errors
    /// [`CsrError::Foreign`] with what it asks for besides.
    pub fn asks_for_no_more_than(&self, id: &SpiffeId) -> Result<(), CsrError> {
        let id = id.to_string();
        let foreign = self.names.iter().find(|name| !matches!(name, SanType::URI(uri) if uri.as_str() == id));
        let several = (self.names.len() > 1).then(|| "several names".to_owned());
        match foreign.map(told).or(several).or_else(|| self.besides.clone()) {
            None => Ok(()),
            Some(asked) => Err(CsrError::Foreign { asked, id }),
        }
    }
}

/// The names a request asks for, and the first thing it asks for that is none of the names a certificate of ours may have.
fn asked(request: &X509CertificationRequest<'_>) -> (Vec<SanType>, Option<String>) {
    let info = &request.certification_request_info;
    let (mut names, mut besides) = (Vec::new(), None);
    // Go's own agents send an organization that is empty.
    let subject =
        info.subject.iter_attributes().any(|one| one.attr_value().data.iter().any(|byte| *byte != 0));
    if subject {
        besides = Some(format!("the subject {}", info.subject));
    }
    for attribute in info.iter_attributes() {
        let ParsedCriAttribute::ExtensionRequest(requested) = attribute.parsed_attribute() else {
            besides.get_or_insert_with(|| format!("the attribute {}", attribute.oid));
            continue;
        };
        for extension in &requested.extensions {
            let ParsedExtension::SubjectAlternativeName(given) = extension.parsed_extension() else {
                besides.get_or_insert_with(|| format!("the extension {}", extension.oid));
                continue;
            };
            for name in &given.general_names {
                match san(name) {
                    Some(name) => names.push(name),
                    None => drop(besides.get_or_insert_with(|| format!("the name {name}"))),
                }
            }
        }
    }
    (names, besides)
}

fn san(name: &GeneralName<'_>) -> Option<SanType> {
    match name {
        GeneralName::URI(uri) => (*uri).try_into().ok().map(SanType::URI),
        GeneralName::DNSName(name) => (*name).try_into().ok().map(SanType::DnsName),
        GeneralName::RFC822Name(name) => (*name).try_into().ok().map(SanType::Rfc822Name),
        GeneralName::IPAddress(bytes) => {
            let four = <[u8; 4]>::try_from(*bytes).ok().map(IpAddr::from);
            four.or_else(|| <[u8; 16]>::try_from(*bytes).ok().map(IpAddr::from)).map(SanType::IpAddress)
        }
        _ => None,
    }
}

fn told(name: &SanType) -> String {
    match name {
        SanType::URI(name) | SanType::DnsName(name) | SanType::Rfc822Name(name) => {
            format!("the name {:?}", name.as_str())
        }
        SanType::IpAddress(address) => format!("the address {address}"),
        _ => "a name of another kind".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use rcgen::{CertificateParams, KeyPair};

    type Change<'a> = &'a dyn Fn(&mut CertificateParams);

    proptest! {
        #[test]
        fn any_text_is_refused(text in "\\PC{0,300}", body in "[A-Za-z0-9+/=\n]{0,400}") {
            prop_assert!(SigningRequest::from_pem(&text).is_err());
            let pem = format!("-----BEGIN CERTIFICATE REQUEST-----\n{body}\n-----END CERTIFICATE REQUEST-----\n");
            prop_assert!(SigningRequest::from_pem(&pem).is_err());
        }

        /// What was changed on the way asks for nothing else than what was signed.
        #[test]
        fn a_changed_request_asks_for_the_same_or_is_refused(at in any::<prop::sample::Index>(), byte in any::<u8>()) {
            let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
            let original = CertificateSigningRequestDer::from_pem_slice(request(&key).as_bytes()).unwrap();
            let mut changed = original.to_vec();
            let at = at.index(changed.len());
            changed[at] = byte;
            let names = |der: &[u8]| SigningRequest::from_der(der).ok().map(|one| (one.names, one.besides));
            let found = names(&changed);
            prop_assert!(found.is_none() || found == names(&original));
        }
    }

    fn request(key: &KeyPair) -> String {
        CertificateParams::new(vec!["evil.example".into()])
            .unwrap()
            .serialize_request(key)
            .unwrap()
            .pem()
            .unwrap()
    }

    fn refused(pem: &str) -> String {
        SigningRequest::from_pem(pem).err().expect("refused").to_string()
    }

    #[test]
    fn keys_that_are_strong_are_taken() {
        for algorithm in
            [&rcgen::PKCS_ECDSA_P256_SHA256, &rcgen::PKCS_ECDSA_P384_SHA384, &rcgen::PKCS_ED25519]
        {
            let key = KeyPair::generate_for(algorithm).unwrap();
            SigningRequest::from_pem(&request(&key)).unwrap();
        }
        let rsa = KeyPair::generate_rsa_for(&rcgen::PKCS_RSA_SHA256, rcgen::RsaKeySize::_2048).unwrap();
        SigningRequest::from_pem(&request(&rsa)).unwrap();
    }

    #[test]
    fn weak_keys_are_refused() {
        // `openssl req -new -newkey rsa:1024 -nodes -subj /`
        let weak = include_str!("../tests/rsa1024.csr");
        assert!(refused(weak).contains("RSA with 1024 bits"), "{}", refused(weak));
        let p521 = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P521_SHA512).unwrap();
        assert!(refused(&request(&p521)).contains("of curve"));
    }

    #[test]
    fn garbage_is_refused() {
        let key = KeyPair::generate().unwrap();
        let good = request(&key);
        for text in
            ["", "garbage", &good[..good.len() / 2], &good.replace("CERTIFICATE REQUEST", "CERTIFICATE")]
        {
            assert_eq!(SigningRequest::from_pem(text).err(), Some(CsrError::Malformed), "{text}");
        }
        assert_eq!(SigningRequest::from_pem(&"x".repeat(MAX_BYTES)).err(), Some(CsrError::Malformed));
        assert_eq!(
            SigningRequest::from_pem(&"x".repeat(MAX_BYTES + 1)).err(),
            Some(CsrError::TooLong(MAX_BYTES + 1))
        );
        let mut longer = CertificateSigningRequestDer::from_pem_slice(good.as_bytes()).unwrap().to_vec();
        longer.push(0);
        assert_eq!(
            SigningRequest::from_pem(&pem_of(&longer)).err(),
            Some(CsrError::Malformed),
            "a byte more"
        );
        // A bit of the signature, which is at the end.
        let mut der = CertificateSigningRequestDer::from_pem_slice(good.as_bytes()).unwrap().to_vec();
        *der.last_mut().unwrap() ^= 1;
        let pem = pem_of(&der);
        assert_eq!(SigningRequest::from_pem(&pem).err(), Some(CsrError::Signature));
    }

    #[test]
    fn a_request_for_more_than_oneself_is_told() {
        let id: SpiffeId = "spiffe://cluster.local/ns/shop/sa/web".parse().unwrap();
        let asks = |change: &dyn Fn(&mut CertificateParams)| {
            let mut params = CertificateParams::default();
            params.distinguished_name = rcgen::DistinguishedName::new();
            change(&mut params);
            let pem = params.serialize_request(&KeyPair::generate().unwrap()).unwrap().pem().unwrap();
            SigningRequest::from_pem(&pem)
                .unwrap()
                .asks_for_no_more_than(&id)
                .map_err(|error| error.to_string())
        };
        let uri = |text: &str| SanType::URI(text.try_into().unwrap());
        let own = uri("spiffe://cluster.local/ns/shop/sa/web");
        assert_eq!(asks(&|_| {}), Ok(()));
        assert_eq!(asks(&|params| params.subject_alt_names.push(own.clone())), Ok(()));
        assert_eq!(
            asks(&|params| params.distinguished_name.push(rcgen::DnType::OrganizationName, "")),
            Ok(())
        );
        let cases: [(Change<'_>, &str); 7] = [
            (&|params| params.subject_alt_names = vec![own.clone(), own.clone()], "several names"),
            (
                &|params| params.subject_alt_names = vec![own.clone(), uri("spiffe://a/ns/b/sa/c")],
                "spiffe://a/ns/b/sa/c",
            ),
            (
                &|params| params.subject_alt_names.push(uri("spiffe://cluster.local/ns/shop/sa/admin")),
                "sa/admin",
            ),
            (
                &|params| params.subject_alt_names.push(SanType::DnsName("evil.example".try_into().unwrap())),
                "evil.example",
            ),
            (&|params| params.subject_alt_names.push(SanType::IpAddress([10, 0, 0, 1].into())), "10.0.0.1"),
            (
                &|params| params.distinguished_name.push(rcgen::DnType::CommonName, "admin"),
                "the subject CN=admin",
            ),
            (
                &|params| params.key_usages = vec![rcgen::KeyUsagePurpose::KeyCertSign],
                "the extension 2.5.29.15",
            ),
        ];
        for (change, told) in cases {
            let error = asks(change).expect_err(told);
            assert!(error.contains(told) && error.contains("may ask for itself only"), "{error}");
        }
        // An attribute that is no request for extensions: a password (PKCS #9, 5.4.1), "abc".
        let password = rcgen::Attribute {
            oid: &[1, 2, 840, 113_549, 1, 9, 7],
            values: vec![0x31, 5, 0x0c, 3, b'a', b'b', b'c'],
        };
        let mut params = CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        let key = KeyPair::generate().unwrap();
        let request = params.serialize_request_with_attributes(&key, vec![password]).unwrap();
        let request = SigningRequest::from_pem(&request.pem().unwrap()).unwrap();
        let error = request.asks_for_no_more_than(&id).unwrap_err().to_string();
        assert!(error.contains("the attribute 1.2.840.113549.1.9.7"), "{error}");
    }

    fn pem_of(der: &[u8]) -> String {
        use base64::Engine as _;
        let text = base64::engine::general_purpose::STANDARD.encode(der);
        format!("-----BEGIN CERTIFICATE REQUEST-----\n{text}\n-----END CERTIFICATE REQUEST-----\n")
    }
}
