//! Extension providers of mesh config: who is asked where an AuthorizationPolicy with the action CUSTOM applies.
//! <https://istio.io/latest/docs/reference/config/istio.mesh.v1alpha1/#MeshConfig-ExtensionProvider>
use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::duration;

/// A provider by its name. Kinds that this type lacks are kept in `rest`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ExtensionProvider {
    /// By which policies name it.
    pub name: String,
    /// An external authorizer over HTTP.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub envoy_ext_authz_http: Option<ExtAuthzHttp>,
    /// An external authorizer over gRPC.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub envoy_ext_authz_grpc: Option<ExtAuthzGrpc>,
    /// Everything else that was given.
    #[serde(flatten)]
    pub rest: BTreeMap<String, Value>,
}

/// `EnvoyExternalAuthorizationHttpProvider`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct ExtAuthzHttp {
    /// `[NAMESPACE/]HOST` of the service.
    pub service: String,
    /// Its port.
    pub port: u32,
    /// For a call, a duration. Default 600s.
    pub timeout: Option<String>,
    /// Stands before the path of the request that is asked about.
    pub path_prefix: String,
    /// When nobody answers, requests pass.
    pub fail_open: bool,
    /// A request that an answer has changed is routed anew.
    pub clear_route_cache: bool,
    /// Status when nobody answers. Default 403.
    pub status_on_error: String,
    /// Headers sent along besides host, method, path and authorization; `*` at an end stands for anything.
    pub include_request_headers_in_check: Vec<String>,
    /// The same by its old name.
    pub include_headers_in_check: Vec<String>,
    /// More headers of calls, in place of those of the request.
    pub include_additional_headers_in_check: BTreeMap<String, String>,
    /// How much of the body is sent along.
    pub include_request_body_in_check: Option<ExtAuthzBody>,
    /// Headers of an answer that allows which the request gets.
    pub headers_to_upstream_on_allow: Vec<String>,
    /// Headers of a refusal which the client gets. Default: all.
    pub headers_to_downstream_on_deny: Vec<String>,
    /// Headers of an answer that allows which the client gets.
    pub headers_to_downstream_on_allow: Vec<String>,
}

/// `EnvoyExternalAuthorizationGrpcProvider`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct ExtAuthzGrpc {
    /// `[NAMESPACE/]HOST` of the service.
    pub service: String,
    /// Its port.
    pub port: u32,
    /// For a call, a duration. Default 600s.
    pub timeout: Option<String>,
    /// When nobody answers, requests and connections pass.
    pub fail_open: bool,
    /// A request that an answer has changed is routed anew.
    pub clear_route_cache: bool,
    /// Status when nobody answers. Default 403.
    pub status_on_error: String,
    /// How much of the body is sent along.
    pub include_request_body_in_check: Option<ExtAuthzBody>,
}

/// `EnvoyExternalAuthorizationRequestBody`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct ExtAuthzBody {
    /// At most so many bytes.
    pub max_request_bytes: u32,
    /// A longer body is sent along in part; else its request is refused.
    pub allow_partial_message: bool,
    /// As bytes, not as text (gRPC).
    pub pack_as_bytes: bool,
}

/// Statuses that Envoy has a name for, but for 0.
const STATUSES: [u16; 56] = [
    100, 200, 201, 202, 203, 204, 205, 206, 207, 208, 226, 300, 301, 302, 303, 304, 305, 307, 308, 400, 401,
    402, 403, 404, 405, 406, 407, 408, 409, 410, 411, 412, 413, 414, 415, 416, 417, 421, 422, 423, 424, 426,
    428, 429, 431, 500, 501, 502, 503, 504, 505, 506, 507, 508, 510, 511,
];

fn check_common(service: &str, port: u32, timeout: Option<&str>, status: &str) -> Result<(), String> {
    if !(1..=65_535).contains(&port) {
        return Err(format!("port number {port} must be in the range 1..65535"));
    }
    if service.is_empty() {
        return Err("service must not be empty".to_owned());
    }
    if service.split('/').count() > 2 || service.split('/').any(str::is_empty) {
        return Err(format!("invalid service fmt {service}: must be [<Namespace>/]<Hostname>"));
    }
    if service.contains('*') {
        return Err(format!("invalid service fmt {service}: wildcards are not supported"));
    }
    if let Some(timeout) = timeout {
        duration::parse(timeout).map_err(|error| format!("timeout: {error}"))?;
    }
    if status.is_empty() {
        return Ok(());
    }
    let code: i32 =
        status.parse().map_err(|error| format!("invalid statusOnError value {status}: {error}"))?;
    match u16::try_from(code) {
        Ok(code) if STATUSES.contains(&code) => Ok(()),
        _ => Err(format!("unsupported statusOnError value {status}, supported values: {:?}", STATUSES)),
    }
}

impl ExtensionProvider {
    fn check(&self) -> Result<(), String> {
        if let Some(http) = &self.envoy_ext_authz_http {
            check_common(&http.service, http.port, http.timeout.as_deref(), &http.status_on_error)?;
            if !http.path_prefix.is_empty() && !http.path_prefix.starts_with('/') {
                return Err(format!("pathPrefix should begin with `/` but found {:?}", http.path_prefix));
            }
        }
        if let Some(grpc) = &self.envoy_ext_authz_grpc {
            check_common(&grpc.service, grpc.port, grpc.timeout.as_deref(), &grpc.status_on_error)?;
        }
        let bodies = [
            self.envoy_ext_authz_http.as_ref().and_then(|http| http.include_request_body_in_check),
            self.envoy_ext_authz_grpc.as_ref().and_then(|grpc| grpc.include_request_body_in_check),
        ];
        if bodies.into_iter().flatten().any(|body| body.max_request_bytes == 0) {
            return Err("includeRequestBodyInCheck.maxRequestBytes must be greater than 0".to_owned());
        }
        Ok(())
    }
}

/// What is wrong with providers, in Istio's words; the first finding.
///
/// # Errors
/// It.
pub fn check_providers(providers: &[ExtensionProvider]) -> Result<(), String> {
    let mut names = BTreeSet::new();
    for provider in providers {
        if provider.name.is_empty() {
            return Err("empty extension provider name".to_owned());
        }
        if !names.insert(&provider.name) {
            return Err(format!("duplicate extension provider name {}", provider.name));
        }
        provider
            .check()
            .map_err(|reason| format!("invalid extension provider {}: {reason}", provider.name))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use crate::MeshConfig;

    fn said(provider: &str) -> String {
        let text = format!("extensionProviders:\n- name: p\n  {provider}\n");
        MeshConfig::parse(&text).map_or_else(|error| error.to_string(), |_| String::new())
    }

    #[test]
    fn providers_are_validated_in_istios_words() {
        let good =
            "envoyExtAuthzGrpc: { service: foo/ext.foo.svc, port: 9000, timeout: 1s, statusOnError: '503' }";
        assert_eq!(said(good), "");
        for (provider, part) in [
            ("envoyExtAuthzGrpc: { service: a }", "port number 0 must be in the range 1..65535"),
            ("envoyExtAuthzGrpc: { port: 1 }", "service must not be empty"),
            ("envoyExtAuthzGrpc: { service: a/b/c, port: 1 }", "invalid service fmt"),
            ("envoyExtAuthzHttp: { service: '*.a', port: 1 }", "wildcards"),
            ("envoyExtAuthzHttp: { service: a, port: 1, statusOnError: x }", "invalid statusOnError value x"),
            (
                "envoyExtAuthzHttp: { service: a, port: 1, statusOnError: '999' }",
                "unsupported statusOnError value 999",
            ),
            (
                "envoyExtAuthzHttp: { service: a, port: 1, pathPrefix: b }",
                "pathPrefix should begin with `/` but found \"b\"",
            ),
            ("envoyExtAuthzHttp: { service: a, port: 1, timeout: soon }", "timeout"),
            ("envoyExtAuthzHttp: { service: a, port: 1, includeRequestBodyInCheck: {} }", "maxRequestBytes"),
            ("envoyExtAuthzHttp: { service: a, port: 1, failOpened: true }", "failOpened"),
            ("envoyExtAuthzGrpc: { service: a, port: 1 }\n- name: p", "duplicate extension provider name p"),
            ("envoyExtAuthzGrpc: { service: a, port: 1 }\n- name: ''", "empty extension provider name"),
        ] {
            assert!(said(provider).contains(part), "{provider}: {}", said(provider));
        }
    }
}
