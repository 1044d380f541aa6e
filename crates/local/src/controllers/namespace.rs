//! Every namespace gets its default ServiceAccount and the ConfigMap with the cluster's CA.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{ConfigMap, Namespace, ServiceAccount};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::cache::Kind;
use super::meta::{is_deleting, name};
use super::write::Write;

/// The ConfigMap pods find the cluster's CA in (Kubernetes' RootCAConfigMap).
pub(crate) const ROOT_CA: &str = "kube-root-ca.crt";
const DEFAULT: &str = "default";

/// `account` and `config_map` are the namespace's objects of those names, if it has them.
pub(crate) fn decide(
    namespace: &Namespace,
    account: Option<&ServiceAccount>,
    config_map: Option<&ConfigMap>,
    root_ca_pem: &str,
) -> Vec<Write> {
    let ending =
        namespace.status.as_ref().is_some_and(|status| status.phase.as_deref() == Some("Terminating"));
    if ending || is_deleting(&namespace.metadata) {
        return Vec::new();
    }
    let meta = |object: &str| ObjectMeta {
        name: Some(object.to_owned()),
        namespace: Some(name(&namespace.metadata).to_owned()),
        ..ObjectMeta::default()
    };
    let mut writes = Vec::new();
    if account.is_none() {
        let account = ServiceAccount { metadata: meta(DEFAULT), ..ServiceAccount::default() };
        writes.push(Write::create(Kind::ServiceAccount, &account.metadata, &account));
    }
    let data = BTreeMap::from([("ca.crt".to_owned(), root_ca_pem.to_owned())]);
    match config_map {
        None => {
            let config_map = ConfigMap { metadata: meta(ROOT_CA), data: Some(data), ..ConfigMap::default() };
            writes.push(Write::create(Kind::ConfigMap, &config_map.metadata, &config_map));
        }
        Some(old) => {
            let new = ConfigMap { data: Some(data), ..old.clone() };
            writes.extend(Write::update(Kind::ConfigMap, &old.metadata, old, &new));
        }
    }
    writes
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_is_missing_or_wrong_is_written() {
        let active: Namespace = serde_json::from_value(json!({"metadata": {"name": "shop"}})).unwrap();
        let ending: Namespace =
            serde_json::from_value(json!({"metadata": {"name": "shop"}, "status": {"phase": "Terminating"}}))
                .unwrap();
        let account = ServiceAccount::default();
        let config_map = |ca: &str| -> ConfigMap {
            serde_json::from_value(json!({"metadata": {"name": ROOT_CA}, "data": {"ca.crt": ca}})).unwrap()
        };
        let count = |namespace, account, config_map: Option<ConfigMap>| {
            decide(namespace, account, config_map.as_ref(), "new").len()
        };
        assert_eq!(count(&active, None, None), 2);
        assert_eq!(count(&active, Some(&account), Some(config_map("new"))), 0);
        assert_eq!(count(&active, Some(&account), Some(config_map("old"))), 1);
        assert_eq!(count(&ending, None, None), 0);
    }
}
