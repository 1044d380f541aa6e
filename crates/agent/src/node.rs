//! Who this proxy says it is: the xDS node, with Istio's metadata keys, which the control plane selects configuration by.

use std::collections::BTreeMap;

use lateen_xds::pb::envoy::config::core::v3::Node as XdsNode;
use lateen_xds::pb::envoy::config::core::v3::node::UserAgentVersionType;
use lateen_xds::pb::google::protobuf::value::Kind;
use lateen_xds::pb::google::protobuf::{self, ListValue, Struct};
use serde_json::{Map, Value, json};

use crate::config::{Config, Pod, Role};
use crate::podinfo::PodInfo;

/// Version of this proxy, shown by `lateen version` and `lateen proxy-status`.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// The identity sent with the first request of a stream (`envoy.config.core.v3.Node`).
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Node {
    /// `sidecar~IP~POD.NAMESPACE~DOMAIN`, Istio's form.
    pub id: String,
    /// `APP.NAMESPACE`, Envoy's service cluster.
    pub cluster: String,
    /// Istio's metadata keys.
    pub metadata: Value,
}

/// Annotations that can be long and say nothing to the control plane.
const UNSENT_ANNOTATIONS: [&str; 2] =
    ["kubectl.kubernetes.io/last-applied-configuration", "sidecar.istio.io/status"];

impl Node {
    /// Puts the identity together.
    pub(crate) fn new(config: &Config, info: &PodInfo) -> Self {
        let pod = &config.pod;
        let labels = labels(config, info);
        Self {
            id: node_id(config.role, pod, &config.domain),
            cluster: service_cluster(pod, &config.metadata, &labels),
            metadata: Value::Object(metadata(config, info, &labels)),
        }
    }

    /// The form that goes over xDS.
    pub(crate) fn to_proto(&self) -> XdsNode {
        XdsNode {
            id: self.id.clone(),
            cluster: self.cluster.clone(),
            metadata: self.metadata.as_object().map(to_struct),
            user_agent_name: "lateen".to_owned(),
            user_agent_version_type: Some(UserAgentVersionType::UserAgentVersion(VERSION.to_owned())),
            ..XdsNode::default()
        }
    }

    /// The form Envoy's bootstrap has it in.
    pub(crate) fn to_json(&self) -> Value {
        json!({ "id": self.id, "cluster": self.cluster, "locality": {}, "metadata": self.metadata })
    }
}

/// JSON as `google.protobuf.Struct`, which is what it is on the wire.
fn to_struct(map: &Map<String, Value>) -> Struct {
    Struct { fields: map.iter().map(|(key, value)| (key.clone(), to_value(value))).collect() }
}

fn to_value(value: &Value) -> protobuf::Value {
    let kind = match value {
        Value::Null => Kind::NullValue(0),
        Value::Bool(value) => Kind::BoolValue(*value),
        Value::Number(value) => Kind::NumberValue(value.as_f64().unwrap_or_default()),
        Value::String(value) => Kind::StringValue(value.clone()),
        Value::Array(values) => Kind::ListValue(ListValue { values: values.iter().map(to_value).collect() }),
        Value::Object(map) => Kind::StructValue(to_struct(map)),
    };
    protobuf::Value { kind: Some(kind) }
}

fn node_id(role: Role, pod: &Pod, domain: &str) -> String {
    format!("{}~{}~{}.{}~{domain}", role.as_str(), pod.ip, pod.name, pod.namespace)
}

/// Labels as the downward API has them, over those in the environment, which are all that a machine has.
fn labels(config: &Config, info: &PodInfo) -> BTreeMap<String, String> {
    let given = config.metadata.get("LABELS").and_then(Value::as_object).into_iter().flatten();
    let given = given.filter_map(|(key, value)| Some((key.clone(), value.as_str()?.to_owned())));
    given.chain(info.labels.clone()).collect()
}

fn service_cluster(pod: &Pod, meta: &BTreeMap<String, Value>, labels: &BTreeMap<String, String>) -> String {
    let app = ["app.kubernetes.io/name", "app"].iter().find_map(|key| labels.get(*key));
    let workload = || meta.get("WORKLOAD_NAME").and_then(Value::as_str);
    let app = app.map(String::as_str).or_else(workload).unwrap_or("istio-proxy");
    format!("{app}.{}", pod.namespace)
}

fn metadata(config: &Config, info: &PodInfo, labels: &BTreeMap<String, String>) -> Map<String, Value> {
    let pod = &config.pod;
    let mut out = Map::new();
    for (key, value) in &config.metadata {
        out.insert(key.clone(), value.clone());
    }
    let annotations: BTreeMap<_, _> =
        info.annotations.iter().filter(|(key, _)| !UNSENT_ANNOTATIONS.contains(&key.as_str())).collect();
    let own = [
        ("NAME", json!(pod.name)),
        ("NAMESPACE", json!(pod.namespace)),
        ("SERVICE_ACCOUNT", json!(pod.service_account)),
        ("NODE_NAME", json!(pod.node)),
        ("INSTANCE_IPS", json!(if pod.ips.is_empty() { &pod.ip } else { &pod.ips })),
        ("LABELS", json!(labels)),
        ("ANNOTATIONS", json!(annotations)),
        ("ISTIO_VERSION", json!(VERSION)),
        ("ENVOY_STATUS_PORT", json!(config.addresses.health.port())),
        ("ENVOY_PROMETHEUS_PORT", json!(config.addresses.stats.port())),
    ];
    for (key, value) in own {
        out.insert(key.to_owned(), value);
    }
    out.entry("CLUSTER_ID").or_insert_with(|| json!("Kubernetes"));
    out.entry("INTERCEPTION_MODE").or_insert_with(|| match config.role {
        Role::Sidecar => json!("REDIRECT"),
        Role::Router => json!("NONE"),
    });
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_node_is_named_and_described_as_istio_does() {
        let vars = [
            ("POD_NAME", "web-1"),
            ("POD_NAMESPACE", "shop"),
            ("INSTANCE_IP", "10.244.0.7"),
            ("ISTIO_META_WORKLOAD_NAME", "web"),
            ("ISTIO_META_CLUSTER_ID", "c1"),
        ];
        let vars = vars.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        let config = Config::from_env(Role::Sidecar, &vars).unwrap();
        let info = PodInfo {
            labels: BTreeMap::from([("app".into(), "web".into())]),
            annotations: BTreeMap::from([
                ("sidecar.istio.io/inject".into(), "true".into()),
                ("kubectl.kubernetes.io/last-applied-configuration".into(), "{}".into()),
            ]),
        };
        let node = Node::new(&config, &info);
        assert_eq!(node.id, "sidecar~10.244.0.7~web-1.shop~shop.svc.cluster.local");
        assert_eq!(node.cluster, "web.shop");
        assert_eq!(node.metadata["LABELS"], json!({ "app": "web" }));
        assert_eq!(node.metadata["ANNOTATIONS"], json!({ "sidecar.istio.io/inject": "true" }));
        assert_eq!(node.metadata["CLUSTER_ID"], "c1");
        assert_eq!(node.metadata["WORKLOAD_NAME"], "web");
        assert_eq!(node.metadata["NAMESPACE"], "shop");
        assert_eq!(node.metadata["INTERCEPTION_MODE"], "REDIRECT");
        let labels = &node.to_proto().metadata.unwrap().fields["LABELS"];
        let Some(Kind::StructValue(labels)) = &labels.kind else { panic!("{labels:?}") };
        assert_eq!(labels.fields["app"].kind, Some(Kind::StringValue("web".into())));
    }
}
