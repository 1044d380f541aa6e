//! The runtime form of Envoy configuration and the pure decisions over it.
//!
//! Every conversion takes a message apart field by field: a field is used, refused with its path when it is set, or listed as inert
//! with the reason, so nothing is accepted that does nothing. The table of supported fields comes from the same lists.

mod access_log;
mod balancer;
#[cfg(test)]
mod balancer_tests;
mod bootstrap;
mod cluster;
mod common;
mod convert;
mod cors;
mod domain_index;
mod dynamic_forward_proxy;
mod edf;
mod endpoint;
mod error;
mod ext_authz;
mod ext_authz_check;
mod ext_authz_verdict;
mod fault;
mod filter_chain;
mod format;
mod format_parse;
#[cfg(test)]
mod format_tests;
mod grpc_probe;
mod hash_policy;
mod hash_table;
mod hcm;
mod header_mutation_rules;
mod headers;
mod health_check;
mod http_filter;
mod jwks;
mod jwt;
mod jwt_authn;
mod jwt_cache;
mod jwt_locations;
#[cfg(test)]
mod jwt_tests;
mod lb_policy;
mod listener;
mod matcher;
mod metadata;
mod outlier;
mod path;
mod path_template;
mod rbac;
mod rbac_index;
#[cfg(test)]
mod rbac_tests;
mod retry_priority;
mod rewrite;
mod route;
mod route_table;
mod strict_json;
mod subset;
mod subset_balancer;
mod support;
mod tls;

pub use access_log::*;
pub use balancer::*;
pub use bootstrap::*;
pub use cluster::*;
pub use common::*;
pub use cors::*;
pub use dynamic_forward_proxy::*;
pub use endpoint::*;
pub use error::ConvertError;
pub use ext_authz::*;
pub use ext_authz_check::*;
pub use ext_authz_verdict::*;
pub use fault::*;
pub use filter_chain::*;
pub use format::*;
pub use format_parse::{DEFAULT_TEXT_FORMAT, FormatError};
pub use grpc_probe::*;
pub use hash_policy::*;
pub use hcm::*;
pub use header_mutation_rules::*;
pub use headers::*;
pub use health_check::*;
pub use http_filter::*;
pub use jwks::Jwks;
pub use jwt::{Jwt, JwtAlgorithm, JwtError};
pub use jwt_authn::*;
pub use jwt_cache::JwtCache;
pub use jwt_locations::{JwtLocations, JwtRequest};
pub use lb_policy::*;
pub use listener::*;
pub use matcher::*;
pub use metadata::*;
pub use outlier::*;
pub use path::*;
pub use path_template::*;
pub use rbac::*;
pub use rbac_index::AnyOf;
pub use retry_priority::*;
pub use route::*;
pub use route_table::*;
pub use subset::*;
pub use subset_balancer::*;
pub use support::{FieldSupport, Support, support_markdown, support_table};
pub use tls::*;
