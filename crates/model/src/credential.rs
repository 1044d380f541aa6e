//! Credentials in Secrets: certificates and authorities for gateways.
use std::fmt;
use std::sync::Arc;

use k8s_openapi::api::core::v1 as core;
use lateen_pki::CredentialError;

use crate::ObjectName;

/// What a Secret holds of use to a proxy, as far as proxies can use it. Never prints its key.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Credential {
    /// The Secret.
    pub name: ObjectName,
    /// Chain and key.
    pub pair: Option<Pair>,
    /// Authorities in PEM (`ca.crt`, or `cacert`).
    pub authorities: Option<Arc<[u8]>>,
    /// Revocation lists in PEM (`ca.crl`, or `crl`).
    pub revoked: Option<Arc<[u8]>>,
    /// What of it cannot be used, in words.
    pub problem: Option<String>,
}

/// A certificate with its key, which are known to belong together.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Pair {
    /// Chain in PEM (`tls.crt`, or `cert`).
    pub certificate: Arc<[u8]>,
    /// Key in PEM (`tls.key`, or `key`).
    pub key: Arc<[u8]>,
    /// When the first certificate ends, in Unix seconds.
    pub not_after: i64,
}

impl fmt::Debug for Credential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Credential({})", self.name)
    }
}

impl Credential {
    /// Reads a Secret; none when it holds nothing of use. Keys of Secrets for gateways:
    /// <https://istio.io/latest/docs/tasks/traffic-management/ingress/secure-ingress/#key-formats>
    pub fn new(secret: &core::Secret) -> Option<Self> {
        let value = |keys: [&str; 2]| -> Option<Arc<[u8]>> {
            let data = secret.data.as_ref()?;
            let found = keys.iter().find_map(|key| data.get(*key)).filter(|value| !value.0.is_empty())?;
            Some(Arc::from(found.0.as_slice()))
        };
        let mut problem = None;
        let (certificate, key) = (value(["tls.crt", "cert"]), value(["tls.key", "key"]));
        let pair = match (certificate, key) {
            (Some(certificate), Some(key)) => noting(
                &mut problem,
                lateen_pki::check_pair(&certificate, &key).map(|not_after| Pair {
                    certificate,
                    key,
                    not_after,
                }),
            ),
            _ => None,
        };
        let authorities = value(["ca.crt", "cacert"])
            .and_then(|pem| noting(&mut problem, lateen_pki::check_authorities(&pem).map(|()| pem)));
        let revoked = value(["ca.crl", "crl"])
            .and_then(|pem| noting(&mut problem, lateen_pki::check_revoked(&pem).map(|()| pem)));
        let name = ObjectName::of(&secret.metadata);
        let found = Self { name, pair, authorities, revoked, problem };
        (found.pair.is_some() || found.authorities.is_some() || found.problem.is_some()).then_some(found)
    }
}

/// What there is, else why not.
fn noting<T>(problem: &mut Option<String>, checked: Result<T, CredentialError>) -> Option<T> {
    checked.map_err(|error| problem.get_or_insert(error.to_string())).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secret(data: &[(&str, &[u8])]) -> core::Secret {
        let metadata = serde_json::json!({"metadata": {"namespace": "a", "name": "b"}});
        let mut secret: core::Secret = serde_json::from_value(metadata).unwrap();
        let value = |value: &[u8]| k8s_openapi::ByteString(value.to_vec());
        secret.data = Some(data.iter().map(|(key, bytes)| ((*key).to_owned(), value(bytes))).collect());
        secret
    }

    #[test]
    fn both_spellings_are_read_and_keys_are_not_printed() {
        let (certificate, key): (&[u8], &[u8]) =
            (include_bytes!("../tests/server.crt"), include_bytes!("../tests/server.key"));
        for names in [["tls.crt", "tls.key", "ca.crt"], ["cert", "key", "cacert"]] {
            let given = [(names[0], certificate), (names[1], key), (names[2], certificate)];
            let read = Credential::new(&secret(&given)).unwrap();
            let pair = read.pair.as_ref().unwrap();
            assert_eq!((&*pair.certificate, &*pair.key), (certificate, key));
            assert_eq!(read.authorities.as_deref(), Some(certificate));
            assert_eq!(format!("{read:?}"), "Credential(a/b)");
        }
        assert_eq!(Credential::new(&secret(&[("password", b"a")])), None);
        assert_eq!(Credential::new(&secret(&[("tls.key", key)])), None);
    }

    #[test]
    fn what_cannot_be_used_is_told() {
        let certificate: &[u8] = include_bytes!("../tests/server.crt");
        let bad =
            Credential::new(&secret(&[("tls.crt", certificate), ("tls.key", b"x"), ("ca.crt", certificate)]));
        let bad = bad.unwrap();
        assert!(bad.pair.is_none() && bad.authorities.is_some(), "what can be used is");
        assert!(bad.problem.unwrap().contains("private key"));
    }
}
