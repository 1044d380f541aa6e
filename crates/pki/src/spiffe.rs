//! Workload identities in the form Istio gives them.
use std::{fmt, str::FromStr};

use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

/// `spiffe://TRUST_DOMAIN/ns/NAMESPACE/sa/SERVICE_ACCOUNT` (SPIFFE-ID specification; the path is Istio's).
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SpiffeId {
    trust_domain: String,
    namespace: String,
    service_account: String,
}

/// Why a text is not a workload's SPIFFE id.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SpiffeError {
    /// Not of the form.
    #[error("{0:?} is not of the form spiffe://TRUST_DOMAIN/ns/NAMESPACE/sa/SERVICE_ACCOUNT")]
    Form(String),
    /// A certificate is to have one.
    #[error("the certificate has {0} URI names; a workload's has one")]
    Certificate(usize),
    /// A part is empty or has characters it may not have.
    #[error(
        "{part} {value:?} of a SPIFFE id must be lower-case letters, digits, '-', '.' or '_', and not empty"
    )]
    Part {
        /// Which part.
        part: &'static str,
        /// What it is.
        value: String,
    },
}

impl SpiffeId {
    /// An id from its parts.
    ///
    /// # Errors
    /// When a part is empty or has a character that a trust domain or a Kubernetes name cannot have.
    pub fn new(trust_domain: &str, namespace: &str, service_account: &str) -> Result<Self, SpiffeError> {
        for (part, value) in
            [("trust domain", trust_domain), ("namespace", namespace), ("service account", service_account)]
        {
            let allowed =
                |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, b'-' | b'.' | b'_');
            if value.is_empty() || !value.bytes().all(allowed) {
                return Err(SpiffeError::Part { part, value: value.to_owned() });
            }
        }
        Ok(Self {
            trust_domain: trust_domain.to_owned(),
            namespace: namespace.to_owned(),
            service_account: service_account.to_owned(),
        })
    }

    /// The workload a certificate (DER) is of: its only URI SAN.
    ///
    /// # Errors
    /// When it has none, more than one, or one of another form.
    pub fn of_certificate(der: &[u8]) -> Result<Self, SpiffeError> {
        let count = |number: usize| SpiffeError::Certificate(number);
        let (_, parsed) = X509Certificate::from_der(der).map_err(|_| count(0))?;
        let names = parsed.subject_alternative_name().ok().flatten();
        let uris = names.iter().flat_map(|names| &names.value.general_names).filter_map(|name| match name {
            GeneralName::URI(uri) => Some(*uri),
            _ => None,
        });
        match uris.collect::<Vec<_>>()[..] {
            [uri] => uri.parse(),
            ref others => Err(count(others.len())),
        }
    }

    /// The trust domain.
    pub fn trust_domain(&self) -> &str {
        &self.trust_domain
    }

    /// The namespace.
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// The service account.
    pub fn service_account(&self) -> &str {
        &self.service_account
    }
}

impl fmt::Display for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "spiffe://{}/ns/{}/sa/{}", self.trust_domain, self.namespace, self.service_account)
    }
}

impl FromStr for SpiffeId {
    type Err = SpiffeError;

    fn from_str(text: &str) -> Result<Self, SpiffeError> {
        let form = || SpiffeError::Form(text.to_owned());
        let parts: Vec<&str> = text.strip_prefix("spiffe://").ok_or_else(form)?.split('/').collect();
        match parts[..] {
            [trust_domain, "ns", namespace, "sa", service_account] => {
                Self::new(trust_domain, namespace, service_account)
            }
            _ => Err(form()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_read_as_they_are_written() {
        let text = "spiffe://cluster.local/ns/default/sa/web-frontend";
        let id: SpiffeId = text.parse().unwrap();
        assert_eq!(
            (id.trust_domain(), id.namespace(), id.service_account()),
            ("cluster.local", "default", "web-frontend")
        );
        assert_eq!(id.to_string(), text);
        let numbered = "spiffe://td1.example/ns/ns-2/sa/a_3";
        assert_eq!(numbered.parse::<SpiffeId>().unwrap().to_string(), numbered);
    }

    #[test]
    fn a_certificate_is_of_one_workload() {
        let certificate = |names: &[&str]| {
            let mut params = rcgen::CertificateParams::new(vec!["a.example".into()]).unwrap();
            let uris = names.iter().map(|&name| rcgen::SanType::URI(name.to_owned().try_into().unwrap()));
            params.subject_alt_names.extend(uris);
            params.self_signed(&rcgen::KeyPair::generate().unwrap()).unwrap().der().to_vec()
        };
        let web = "spiffe://cluster.local/ns/a/sa/web";
        assert_eq!(SpiffeId::of_certificate(&certificate(&[web])).unwrap().to_string(), web);
        let refused = |names: &[&str]| SpiffeId::of_certificate(&certificate(names)).unwrap_err();
        assert_eq!(refused(&[]), SpiffeError::Certificate(0));
        assert_eq!(refused(&[web, "spiffe://cluster.local/ns/a/sa/b"]), SpiffeError::Certificate(2));
        assert_eq!(refused(&["https://a.example"]), SpiffeError::Form("https://a.example".into()));
        assert!(SpiffeId::of_certificate(b"junk").is_err());
    }

    #[test]
    fn anything_else_is_refused() {
        for text in [
            "",
            "spiffe://cluster.local",
            "https://cluster.local/ns/a/sa/b",
            "spiffe://cluster.local/ns/a/sa/b/c",
            "spiffe://cluster.local/sa/a/ns/b",
            "spiffe:///ns/a/sa/b",
            "spiffe://cluster.local/ns//sa/b",
            "spiffe://cluster.local/ns/a/sa/B",
            "spiffe://cluster.local/ns/a/sa/b?x",
            "spiffe://user@cluster.local/ns/a/sa/b",
        ] {
            assert!(text.parse::<SpiffeId>().is_err(), "{text}");
        }
    }
}
