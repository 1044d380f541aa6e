//! Envoy's `jwt_authn` message with its providers in order, as `ordered` has structs: the generated one holds a hash map.
use std::collections::BTreeMap;

use lateen_xds::pb::envoy::extensions::filters::http::jwt_authn::v3 as jwt;
use prost::{Message, Name};

/// `envoy.extensions.filters.http.jwt_authn.v3.JwtAuthentication`.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct JwtAuthentication {
    #[prost(btree_map = "string, message", tag = "1")]
    pub(crate) providers: BTreeMap<String, jwt::JwtProvider>,
    #[prost(message, repeated, tag = "2")]
    pub(crate) rules: Vec<jwt::RequirementRule>,
    #[prost(bool, tag = "4")]
    pub(crate) bypass_cors_preflight: bool,
}

impl Name for JwtAuthentication {
    const NAME: &'static str = "JwtAuthentication";
    const PACKAGE: &'static str = "envoy.extensions.filters.http.jwt_authn.v3";

    fn type_url() -> String {
        format!("type.googleapis.com/{}", Self::full_name())
    }
}
