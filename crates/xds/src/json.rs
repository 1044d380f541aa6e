//! JSON and YAML in Envoy's notation, to and from messages, with nested `Any` (`@type`).
//!
//! Input takes field names as the protos spell them and in lowerCamelCase, as protobuf's JSON mapping says; output uses the protos'
//! spelling, as Envoy's `/config_dump` does.

use std::io::Read;
use std::path::Path;

use prost::{Message, Name};
use prost_reflect::{DescriptorPool, DeserializeOptions, DynamicMessage, SerializeOptions};
use serde_json::Value;

use crate::Any;
use crate::any::message_name;

static DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.zlib"));

/// Why text is not a message, or a message not JSON.
#[derive(Debug, thiserror::Error)]
pub enum JsonError {
    /// A field has a wrong name or value.
    #[error("{path}: {reason}")]
    Field {
        /// Where, for example `static_resources.listeners[0].name`.
        path: String,
        /// What is wrong.
        reason: String,
    },
    /// Not even YAML (or JSON).
    #[error("not valid YAML or JSON: {0}")]
    Syntax(String),
    /// A type that Envoy's API doesn't have.
    #[error("unknown type {0:?}; its name must be one of Envoy's v3 messages")]
    UnknownType(String),
    /// The bytes of a message don't decode.
    #[error("{0} does not decode")]
    Malformed(String),
    /// A file can't be read.
    #[error("cannot read {path}: {source}")]
    File {
        /// Which.
        path: String,
        /// The operating system's answer.
        source: std::io::Error,
    },
    /// The embedded descriptors are unusable: a broken build.
    #[error("the embedded descriptors are unusable: {0}")]
    Descriptors(String),
}

/// The mapping. It holds every descriptor of Envoy's API (tens of MiB), so make one when it is needed and drop it afterwards.
pub struct JsonCodec {
    pool: DescriptorPool,
}

impl JsonCodec {
    /// Unpacks the embedded descriptors; takes some tens of milliseconds.
    ///
    /// # Errors
    /// Only when the program was built wrongly.
    pub fn new() -> Result<Self, JsonError> {
        let mut bytes = Vec::new();
        flate2::read::ZlibDecoder::new(DESCRIPTORS)
            .read_to_end(&mut bytes)
            .map_err(|error| JsonError::Descriptors(error.to_string()))?;
        let pool = DescriptorPool::decode(bytes.as_slice())
            .map_err(|error| JsonError::Descriptors(error.to_string()))?;
        Ok(Self { pool })
    }

    /// A message from JSON.
    ///
    /// # Errors
    /// With the path of an unknown field or wrong value.
    pub fn from_value<T: Message + Name + Default>(&self, value: &Value) -> Result<T, JsonError> {
        let message = self.dynamic(&T::full_name(), value)?;
        T::decode(message.encode_to_vec().as_slice()).map_err(|_| JsonError::Malformed(T::full_name()))
    }

    /// An `Any` from JSON with `@type`.
    ///
    /// # Errors
    /// As [`Self::from_value`], and when `@type` is missing or unknown.
    pub fn any_from_value(&self, value: &Value) -> Result<Any, JsonError> {
        self.from_value(value)
    }

    fn dynamic(&self, name: &str, value: &Value) -> Result<DynamicMessage, JsonError> {
        let descriptor =
            self.pool.get_message_by_name(name).ok_or_else(|| JsonError::UnknownType(name.to_owned()))?;
        let mut track = serde_path_to_error::Track::new();
        let deserializer = serde_path_to_error::Deserializer::new(value, &mut track);
        let options = DeserializeOptions::new().deny_unknown_fields(true);
        DynamicMessage::deserialize_with_options(descriptor, deserializer, &options)
            .map_err(|error| JsonError::Field { path: track.path().to_string(), reason: error.to_string() })
    }

    /// A message from YAML (JSON is YAML).
    ///
    /// # Errors
    /// As [`Self::from_value`], and when it is not YAML.
    pub fn from_yaml<T: Message + Name + Default>(&self, text: &str) -> Result<T, JsonError> {
        self.from_value(&yaml_value(text)?)
    }

    /// A message from a YAML or JSON file, for example a bootstrap.
    ///
    /// # Errors
    /// As [`Self::from_yaml`], and when the file can't be read.
    pub fn from_file<T: Message + Name + Default>(&self, path: &Path) -> Result<T, JsonError> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| JsonError::File { path: path.display().to_string(), source })?;
        self.from_yaml(&text)
    }

    /// JSON of a message, with default values left out.
    ///
    /// # Errors
    /// When a nested `Any` holds an unknown type or broken bytes.
    pub fn to_value<T: Message + Name>(&self, message: &T) -> Result<Value, JsonError> {
        self.bytes_to_value(&T::full_name(), &message.encode_to_vec())
    }

    /// JSON of a packed message, with `@type` first.
    ///
    /// # Errors
    /// As [`Self::to_value`].
    pub fn any_to_value(&self, type_url: &str, value: &[u8]) -> Result<Value, JsonError> {
        let any = Any { type_url: type_url.to_owned(), value: value.to_vec() };
        self.to_value(&any)
    }

    /// The JSON of a message (in either spelling) with field names in lowerCamelCase, protobuf's own JSON spelling, which
    /// istioctl prints. Keys of maps and of `Struct`s stay as they are.
    ///
    /// # Errors
    /// As [`Self::from_value`]; `message` is the full name, for example `envoy.admin.v3.ConfigDump`.
    pub fn camel_case(&self, message: &str, value: &Value) -> Result<Value, JsonError> {
        let message = self.dynamic(message, value)?;
        let options = SerializeOptions::new().use_proto_field_name(false).skip_default_fields(true);
        message
            .serialize_with_options(serde_json::value::Serializer, &options)
            .map_err(|error| JsonError::Field { path: String::new(), reason: error.to_string() })
    }

    fn bytes_to_value(&self, name: &str, bytes: &[u8]) -> Result<Value, JsonError> {
        let descriptor =
            self.pool.get_message_by_name(name).ok_or_else(|| JsonError::UnknownType(name.to_owned()))?;
        let message =
            DynamicMessage::decode(descriptor, bytes).map_err(|_| JsonError::Malformed(name.to_owned()))?;
        let options = SerializeOptions::new().use_proto_field_name(true).skip_default_fields(true);
        message
            .serialize_with_options(serde_json::value::Serializer, &options)
            .map_err(|error| JsonError::Field { path: name.to_owned(), reason: error.to_string() })
    }

    /// True when Envoy's API has this type.
    pub fn knows(&self, type_url: &str) -> bool {
        self.pool.get_message_by_name(message_name(type_url)).is_some()
    }
}

/// YAML (or JSON) as a JSON value; empty text is an empty object.
///
/// # Errors
/// When it is neither.
pub fn yaml_value(text: &str) -> Result<Value, JsonError> {
    if text.trim().is_empty() {
        return Ok(Value::Object(serde_json::Map::new()));
    }
    serde_saphyr::from_str(text).map_err(|error| JsonError::Syntax(error.to_string()))
}

#[cfg(test)]
#[path = "json_tests.rs"]
mod properties;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pb::envoy::config::bootstrap::v3::Bootstrap;
    use crate::pb::envoy::extensions::filters::network::http_connection_manager::v3::HttpConnectionManager;

    /// The shape of Envoy's own demo bootstrap (front proxy with a static listener and a DNS cluster).
    const BOOTSTRAP: &str = r#"
admin:
  address: {socket_address: {address: 127.0.0.1, port_value: 9901}}
static_resources:
  listeners:
  - name: listener_0
    address: {socket_address: {address: 0.0.0.0, port_value: 10000}}
    filter_chains:
    - filters:
      - name: envoy.filters.network.http_connection_manager
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: ingress_http
          access_log:
          - name: envoy.access_loggers.stdout
            typed_config:
              "@type": type.googleapis.com/envoy.extensions.access_loggers.stream.v3.StdoutAccessLog
          http_filters:
          - name: envoy.filters.http.router
            typed_config:
              "@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router
          route_config:
            name: local_route
            virtual_hosts:
            - name: local_service
              domains: ["*"]
              routes:
              - match: {prefix: "/"}
                route: {host_rewrite_literal: www.envoyproxy.io, cluster: service_envoyproxy_io, timeout: 0.25s}
  clusters:
  - name: service_envoyproxy_io
    type: LOGICAL_DNS
    connect_timeout: 5s
    dns_lookup_family: V4_ONLY
    load_assignment:
      cluster_name: service_envoyproxy_io
      endpoints:
      - lb_endpoints:
        - endpoint: {address: {socket_address: {address: www.envoyproxy.io, port_value: 443}}}
"#;

    #[test]
    fn a_real_bootstrap_survives_the_round_trip() {
        let codec = JsonCodec::new().unwrap();
        let bootstrap: Bootstrap = codec.from_yaml(BOOTSTRAP).unwrap();
        let value = codec.to_value(&bootstrap).unwrap();
        let again: Bootstrap = codec.from_value(&value).unwrap();
        assert_eq!(bootstrap, again);
        let filter =
            &value["static_resources"]["listeners"][0]["filter_chains"][0]["filters"][0]["typed_config"];
        assert_eq!(filter["stat_prefix"], "ingress_http");
        assert_eq!(
            filter["@type"],
            "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager"
        );
        assert_eq!(
            filter["route_config"]["virtual_hosts"][0]["routes"][0]["route"]["timeout"], "0.250s",
            "durations as protobuf writes them"
        );
        assert_eq!(value["static_resources"]["clusters"][0]["type"], "LOGICAL_DNS");
    }

    #[test]
    fn both_spellings_of_a_field_are_taken() {
        let codec = JsonCodec::new().unwrap();
        let snake: HttpConnectionManager =
            codec.from_yaml("{stat_prefix: a, use_remote_address: true}").unwrap();
        let camel: HttpConnectionManager =
            codec.from_yaml("{statPrefix: a, useRemoteAddress: true}").unwrap();
        assert_eq!(snake, camel);
    }

    #[test]
    fn camel_case_reaches_into_any_and_leaves_map_keys() {
        let codec = JsonCodec::new().unwrap();
        let text = r#"{"name": "f", "typed_config": {"@type":
            "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
            "rds": {"route_config_name": "80"}}}"#;
        let value: Value = serde_json::from_str(text).unwrap();
        let camel = codec.camel_case("envoy.config.listener.v3.Filter", &value).unwrap();
        assert_eq!(camel["typedConfig"]["rds"]["routeConfigName"], "80");
        let metadata = serde_json::json!({"filter_metadata": {"a_b": {"c_d": 1.0}}});
        let camel = codec.camel_case("envoy.config.core.v3.Metadata", &metadata).unwrap();
        assert_eq!(camel["filterMetadata"]["a_b"]["c_d"], 1.0);
    }

    #[test]
    fn an_unknown_field_is_named_with_its_path() {
        let codec = JsonCodec::new().unwrap();
        let text = "static_resources: {clusters: [{name: a}, {name: b, conect_timeout: 1s}]}";
        let error = codec.from_yaml::<Bootstrap>(text).unwrap_err().to_string();
        assert!(error.starts_with("static_resources.clusters[1]"), "{error}");
        assert!(error.contains("conect_timeout"), "{error}");
    }

    #[test]
    fn an_unknown_type_inside_an_any_is_an_error() {
        let codec = JsonCodec::new().unwrap();
        let text = r#"{"@type": "type.googleapis.com/no.such.Type"}"#;
        let value: Value = serde_json::from_str(text).unwrap();
        let error = codec.any_from_value(&value).unwrap_err().to_string();
        assert!(error.contains("no.such.Type"), "{error}");
    }

    #[test]
    fn text_that_is_not_yaml_is_an_error() {
        let codec = JsonCodec::new().unwrap();
        assert!(matches!(codec.from_yaml::<Bootstrap>("a: [1"), Err(JsonError::Syntax(_))));
    }
}
