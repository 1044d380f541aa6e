//! Credentials in Secrets: certificates and authorities for gateways.
use std::fmt;
use std::sync::Arc;

use k8s_openapi::api::core::v1 as core;

use crate::ObjectName;

/// What a Secret holds of use to a proxy. Never prints its key.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Credential {
    /// The Secret.
    pub name: ObjectName,
    /// Chain in PEM (`tls.crt`, or `cert`).
    pub certificate: Option<Arc<[u8]>>,
    /// Key in PEM (`tls.key`, or `key`).
    pub key: Option<Arc<[u8]>>,
    /// Authorities in PEM (`ca.crt`, or `cacert`).
    pub authorities: Option<Arc<[u8]>>,
    /// Revocation lists in PEM (`ca.crl`, or `crl`).
    pub revoked: Option<Arc<[u8]>>,
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
        let value = |keys: [&str; 2]| {
            let data = secret.data.as_ref()?;
            let found = keys.iter().find_map(|key| data.get(*key)).filter(|value| !value.0.is_empty())?;
            Some(Arc::from(found.0.as_slice()))
        };
        let credential = Self {
            name: ObjectName::of(&secret.metadata),
            certificate: value(["tls.crt", "cert"]),
            key: value(["tls.key", "key"]),
            authorities: value(["ca.crt", "cacert"]),
            revoked: value(["ca.crl", "crl"]),
        };
        let pair = credential.certificate.is_some() && credential.key.is_some();
        (pair || credential.authorities.is_some()).then_some(credential)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_spellings_are_read_and_keys_are_not_printed() {
        let secret = |data: serde_json::Value| -> core::Secret {
            serde_json::from_value(
                serde_json::json!({"metadata": {"namespace": "a", "name": "b"}, "data": data}),
            )
            .unwrap()
        };
        let tls =
            Credential::new(&secret(serde_json::json!({"tls.crt": "YQ==", "tls.key": "Yg=="}))).unwrap();
        assert_eq!((tls.certificate.as_deref(), tls.key.as_deref()), (Some(&b"a"[..]), Some(&b"b"[..])));
        let generic = Credential::new(&secret(serde_json::json!({"cacert": "Yw=="}))).unwrap();
        assert_eq!(generic.authorities.as_deref(), Some(&b"c"[..]));
        assert_eq!(format!("{tls:?}"), "Credential(a/b)");
        assert_eq!(Credential::new(&secret(serde_json::json!({"password": "YQ=="}))), None);
        assert_eq!(Credential::new(&secret(serde_json::json!({"tls.key": "YQ=="}))), None);
    }
}
