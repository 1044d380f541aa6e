//! Envoy's protos, the Any registry and JSON mapping, the delta and SotW protocols as client and server.

pub mod any;
pub mod certificate_service;
pub mod client;
pub mod json;
pub mod name_table;
pub mod one_method;
pub mod server;
pub mod split;
pub mod trust_service;
pub mod type_urls;

/// Envoy's and Google's messages, as `prost` types.
pub use envoy_types::pb;
/// `google.protobuf.Any` as the Envoy messages use it (not `prost_types::Any`).
pub use envoy_types::pb::google::protobuf::Any;

// Tests share files with those of other crates, which know this one by its name.
#[cfg(test)]
extern crate self as lateen_xds;
