//! `google.protobuf.Struct` with its entries in order.
//!
//! The generated `Struct` holds a hash map, whose entries are encoded in random order; resources are versioned by their
//! bytes, so structs of more than one entry are written with these messages, which are the same on the wire.
use std::collections::BTreeMap;

use lateen_xds::pb::envoy::config::core::v3 as core;
use lateen_xds::pb::envoy::config::endpoint::v3::Endpoint;
use lateen_xds::pb::google::protobuf::UInt32Value;
use prost::{Message, Name};

/// `google.protobuf.Struct`.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct Struct {
    #[prost(btree_map = "string, message", tag = "1")]
    pub(crate) fields: BTreeMap<String, Value>,
}

/// `google.protobuf.Value`.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct Value {
    #[prost(oneof = "Kind", tags = "2, 3, 5, 6")]
    pub(crate) kind: Option<Kind>,
}

/// The kinds of values in use.
#[derive(Clone, PartialEq, prost::Oneof)]
pub(crate) enum Kind {
    #[prost(double, tag = "2")]
    Number(f64),
    #[prost(string, tag = "3")]
    Text(String),
    #[prost(message, tag = "5")]
    Struct(Struct),
    #[prost(message, tag = "6")]
    List(List),
}

/// `google.protobuf.ListValue`.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct List {
    #[prost(message, repeated, tag = "1")]
    pub(crate) values: Vec<Value>,
}

impl Value {
    pub(crate) fn text(text: impl Into<String>) -> Self {
        Self { kind: Some(Kind::Text(text.into())) }
    }

    pub(crate) fn number(number: impl Into<f64>) -> Self {
        Self { kind: Some(Kind::Number(number.into())) }
    }

    pub(crate) fn list(values: Vec<Self>) -> Self {
        Self { kind: Some(Kind::List(List { values })) }
    }

    pub(crate) fn object<const N: usize>(entries: [(&str, Self); N]) -> Self {
        Self { kind: Some(Kind::Struct(Struct::new(entries))) }
    }
}

impl Struct {
    pub(crate) fn new<const N: usize>(entries: [(&str, Value); N]) -> Self {
        Self { fields: entries.into_iter().map(|(key, value)| (key.to_owned(), value)).collect() }
    }
}

/// `envoy.config.core.v3.Metadata`.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct Metadata {
    #[prost(btree_map = "string, message", tag = "1")]
    pub(crate) filter_metadata: BTreeMap<String, Struct>,
}

/// The `metadata` field of `envoy.config.cluster.v3.Cluster`, to be appended to an encoded cluster: fields of a protobuf
/// message may come in any order.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct ClusterMetadata {
    #[prost(message, optional, tag = "25")]
    pub(crate) metadata: Option<Metadata>,
}

/// `envoy.config.endpoint.v3.ClusterLoadAssignment`, whose endpoints may have metadata of several entries.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct ClusterLoadAssignment {
    #[prost(string, tag = "1")]
    pub(crate) cluster_name: String,
    #[prost(message, repeated, tag = "2")]
    pub(crate) endpoints: Vec<LocalityLbEndpoints>,
}

impl Name for ClusterLoadAssignment {
    const NAME: &'static str = "ClusterLoadAssignment";
    const PACKAGE: &'static str = "envoy.config.endpoint.v3";
}

/// `envoy.config.endpoint.v3.LocalityLbEndpoints`.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct LocalityLbEndpoints {
    #[prost(message, optional, tag = "1")]
    pub(crate) locality: Option<core::Locality>,
    #[prost(message, repeated, tag = "2")]
    pub(crate) lb_endpoints: Vec<LbEndpoint>,
    #[prost(message, optional, tag = "3")]
    pub(crate) load_balancing_weight: Option<UInt32Value>,
    #[prost(uint32, tag = "5")]
    pub(crate) priority: u32,
}

/// `envoy.config.endpoint.v3.LbEndpoint`.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct LbEndpoint {
    #[prost(message, optional, tag = "1")]
    pub(crate) endpoint: Option<Endpoint>,
    #[prost(int32, tag = "2")]
    pub(crate) health_status: i32,
    #[prost(message, optional, tag = "3")]
    pub(crate) metadata: Option<Metadata>,
    #[prost(message, optional, tag = "4")]
    pub(crate) load_balancing_weight: Option<UInt32Value>,
}

/// The `load_assignment` field of `envoy.config.cluster.v3.Cluster`, to be appended as [`ClusterMetadata`] is.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct ClusterEndpoints {
    #[prost(message, optional, tag = "33")]
    pub(crate) load_assignment: Option<ClusterLoadAssignment>,
}

/// `envoy.extensions.access_loggers.file.v3.FileAccessLog` with a JSON format.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct JsonFileAccessLog {
    #[prost(string, tag = "1")]
    pub(crate) path: String,
    #[prost(message, optional, tag = "5")]
    pub(crate) log_format: Option<JsonFormatString>,
}

/// `envoy.config.core.v3.SubstitutionFormatString` with a JSON format.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct JsonFormatString {
    #[prost(message, optional, tag = "2")]
    pub(crate) json_format: Option<Struct>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use lateen_xds::pb::envoy::config::cluster::v3::Cluster;
    use lateen_xds::pb::envoy::extensions::access_loggers::file::v3::{FileAccessLog, file_access_log};

    #[test]
    fn ordered_messages_read_as_the_generated_ones() {
        let metadata = Struct::new([
            ("subset", Value::text("v1")),
            ("services", Value::list(vec![Value::object([("port", Value::number(80))])])),
        ]);
        let bytes = ClusterMetadata {
            metadata: Some(Metadata { filter_metadata: [("istio".to_owned(), metadata)].into() }),
        }
        .encode_to_vec();
        let cluster = Cluster::decode(bytes.as_slice()).expect("decodes");
        let istio = &cluster.metadata.expect("metadata").filter_metadata["istio"];
        assert_eq!(istio.fields.len(), 2);

        let log = JsonFileAccessLog {
            path: "/dev/stdout".to_owned(),
            log_format: Some(JsonFormatString {
                json_format: Some(Struct::new([("a", Value::text("%A%"))])),
            }),
        };
        let log = FileAccessLog::decode(log.encode_to_vec().as_slice()).expect("decodes");
        assert!(matches!(log.access_log_format, Some(file_access_log::AccessLogFormat::LogFormat(_))));
    }
}
