//! VirtualService: routing rules for hosts.
//! <https://istio.io/latest/docs/reference/config/networking/virtual-service/>
use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{GROUP, Percent, PortSelector, StringMatch, VERSIONS};
use crate::object::Kind;

/// The reserved gateway name that stands for all sidecars.
pub const MESH_GATEWAY: &str = "mesh";

message! {
    /// The spec of a VirtualService.
    pub struct VirtualServiceSpec {
        /// Hosts the rules are about; short names relative to the namespace; a leading wildcard is allowed.
        hosts: Vec<String>,
        /// Gateways it is bound to, `name` or `namespace/name`; empty is `mesh`.
        gateways: Vec<String>,
        /// HTTP rules, first match wins.
        http: Vec<HttpRoute>,
        /// TLS rules by SNI.
        tls: Vec<TlsRoute>,
        /// TCP rules.
        tcp: Vec<TcpRoute>,
        /// Namespaces it is visible in (`.`, `*` or names). Empty: the mesh's default.
        export_to: Vec<String>,
    }
}

impl Kind for VirtualServiceSpec {
    const GROUP: &'static str = GROUP;
    const VERSIONS: &'static [&'static str] = VERSIONS;
    const KIND: &'static str = "VirtualService";
    const PLURAL: &'static str = "virtualservices";
    const SHORT_NAMES: &'static [&'static str] = &["vs"];
    const COLUMNS: &'static [(&'static str, &'static str, &'static str)] = &[
        ("Gateways", "The names of gateways and sidecars that should apply these routes", ".spec.gateways"),
        ("Hosts", "The destination hosts to which traffic is being sent", ".spec.hosts"),
    ];
}

message! {
    /// A destination service.
    pub struct Destination {
        /// Host; short names relative to the rule's namespace.
        host!: String,
        /// Subset of the host's DestinationRule.
        subset: String,
        /// Port of the service; may be left out when it has one.
        port: Option<PortSelector>,
    }
}

message! {
    /// One HTTP rule.
    pub struct HttpRoute {
        /// Name, used in logs.
        name: String,
        /// Conditions, any of which suffices; empty matches everything.
        r#match: Vec<HttpMatchRequest>,
        /// Weighted destinations.
        route: Vec<HttpRouteDestination>,
        /// Answer with a redirect.
        redirect: Option<HttpRedirect>,
        /// Answer directly.
        direct_response: Option<HttpDirectResponse>,
        /// Another VirtualService with the details.
        delegate: Option<Delegate>,
        /// Change path or authority before forwarding.
        rewrite: Option<HttpRewrite>,
        /// Timeout of the whole request, a duration. Default: none.
        timeout: Option<String>,
        /// Retries.
        retries: Option<HttpRetry>,
        /// Faults to inject.
        fault: Option<HttpFaultInjection>,
        /// Copy requests to this destination.
        mirror: Option<Destination>,
        /// Copy requests to several destinations.
        mirrors: Vec<HttpMirrorPolicy>,
        /// Deprecated: share in percent.
        mirror_percent: Option<u32>,
        /// Share of requests copied. Default 100.
        mirror_percentage: Option<Percent>,
        /// Cross-origin resource sharing.
        cors_policy: Option<CorsPolicy>,
        /// Header operations.
        headers: Option<Headers>,
    }
}

message! {
    /// Conditions on a request; all must hold.
    pub struct HttpMatchRequest {
        /// Name, appended to the rule's.
        name: String,
        /// Path.
        uri: Option<StringMatch>,
        /// Scheme.
        scheme: Option<StringMatch>,
        /// Method.
        method: Option<StringMatch>,
        /// Authority (Host).
        authority: Option<StringMatch>,
        /// Headers; an empty matcher asks for presence.
        headers: BTreeMap<String, Option<StringMatch>>,
        /// Port the request is addressed to.
        port: u32,
        /// Labels of the calling workload.
        source_labels: BTreeMap<String, String>,
        /// Gateways, overriding the top-level list.
        gateways: Vec<String>,
        /// Query parameters; an empty matcher asks for presence.
        query_params: BTreeMap<String, Option<StringMatch>>,
        /// Compare the path without regard to case (exact and prefix).
        ignore_uri_case: bool,
        /// Headers that must not match.
        without_headers: BTreeMap<String, Option<StringMatch>>,
        /// Namespace of the calling workload.
        source_namespace: String,
        /// Prefix of the statistics emitted for this route.
        stat_prefix: String,
    }
}

message! {
    /// A weighted destination of HTTP.
    pub struct HttpRouteDestination {
        /// Where to.
        destination!: Destination,
        /// Relative share; a single destination needs none.
        weight: i32,
        /// Header operations.
        headers: Option<Headers>,
    }
}

message! {
    /// Header operations on requests and responses.
    pub struct Headers {
        /// On the request, before forwarding.
        request: Option<HeaderOperations>,
        /// On the response, before returning.
        response: Option<HeaderOperations>,
    }
}

message! {
    /// Operations on headers.
    pub struct HeaderOperations {
        /// Overwrite.
        set: BTreeMap<String, String>,
        /// Append.
        add: BTreeMap<String, String>,
        /// Remove.
        remove: Vec<String>,
    }
}

message! {
    /// A redirect.
    pub struct HttpRedirect {
        /// New path (whole).
        uri: String,
        /// New authority.
        authority: String,
        /// New port.
        port: Option<u32>,
        /// Derive the port: `FROM_PROTOCOL_DEFAULT` or `FROM_REQUEST_PORT`.
        derive_port: Option<RedirectPort>,
        /// New scheme.
        scheme: String,
        /// Status code. Default 301.
        redirect_code: u32,
    }
}

/// Where the port of a redirect comes from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum RedirectPort {
    /// 80 for http, 443 for https.
    #[default]
    FromProtocolDefault,
    /// The request's port.
    FromRequestPort,
}

message! {
    /// A fixed answer.
    pub struct HttpDirectResponse {
        /// Status code.
        status!: u32,
        /// Body.
        body: Option<HttpBody>,
    }
}

message! {
    /// A body of text or bytes.
    pub struct HttpBody {
        /// As text.
        string: Option<String>,
        /// As base64.
        bytes: Option<String>,
    }
}

message! {
    /// Names a VirtualService that holds the details.
    pub struct Delegate {
        /// Name.
        name: String,
        /// Namespace; empty is that of the root.
        namespace: String,
    }
}

message! {
    /// Change of path or authority.
    pub struct HttpRewrite {
        /// New path; a matched prefix only is replaced when the match is by prefix.
        uri: String,
        /// New authority.
        authority: String,
        /// By regular expression.
        uri_regex_rewrite: Option<RegexRewrite>,
    }
}

message! {
    /// A rewrite by regular expression.
    pub struct RegexRewrite {
        /// RE2 expression.
        r#match: String,
        /// Replacement with `\1` style references.
        rewrite: String,
    }
}

message! {
    /// Retries.
    pub struct HttpRetry {
        /// How many; 0 turns retries off.
        attempts: i32,
        /// Timeout of each try, a duration.
        per_try_timeout: Option<String>,
        /// Conditions, separated by commas; status codes too.
        retry_on: String,
        /// Whether other localities may be tried.
        retry_remote_localities: Option<bool>,
        /// Whether hosts tried before are left out. Default true.
        retry_ignore_previous_hosts: Option<bool>,
        /// Base of the exponential back-off, a duration. Default 25ms.
        backoff: Option<String>,
    }
}

message! {
    /// Faults to inject.
    pub struct HttpFaultInjection {
        /// Delay before forwarding.
        delay: Option<FaultDelay>,
        /// Abort with an error.
        abort: Option<FaultAbort>,
    }
}

message! {
    /// A delay.
    pub struct FaultDelay {
        /// Deprecated: share in percent.
        percent: i32,
        /// How long, a duration of at least 1ms.
        fixed_delay: Option<String>,
        /// Not implemented by Istio either.
        exponential_delay: Option<String>,
        /// Share of requests. Default: `percent`.
        percentage: Option<Percent>,
    }
}

message! {
    /// An abort.
    pub struct FaultAbort {
        /// HTTP status.
        http_status: Option<i32>,
        /// gRPC status by name, for example `UNAVAILABLE`.
        grpc_status: Option<String>,
        /// Not implemented by Istio either.
        http2_error: Option<String>,
        /// Share of requests. Without it no request is aborted.
        percentage: Option<Percent>,
    }
}

message! {
    /// Copies requests to a destination.
    pub struct HttpMirrorPolicy {
        /// Where to.
        destination!: Destination,
        /// Share of requests. Default 100.
        percentage: Option<Percent>,
    }
}

message! {
    /// Cross-origin resource sharing.
    pub struct CorsPolicy {
        /// Deprecated: exact origins.
        allow_origin: Vec<String>,
        /// Origins.
        allow_origins: Vec<StringMatch>,
        /// Methods.
        allow_methods: Vec<String>,
        /// Request headers.
        allow_headers: Vec<String>,
        /// Response headers.
        expose_headers: Vec<String>,
        /// How long a preflight is cached, a duration.
        max_age: Option<String>,
        /// Whether credentials are allowed.
        allow_credentials: Option<bool>,
        /// What becomes of preflights that match no origin: `FORWARD` or `IGNORE`.
        unmatched_preflights: String,
    }
}

message! {
    /// One TLS rule.
    pub struct TlsRoute {
        /// Conditions, any of which suffices.
        r#match!: Vec<TlsMatchAttributes>,
        /// Weighted destinations.
        route: Vec<RouteDestination>,
    }
}

message! {
    /// Conditions on a TLS connection; all must hold.
    pub struct TlsMatchAttributes {
        /// Server names, possibly with a leading wildcard.
        sni_hosts!: Vec<String>,
        /// Destination subnets.
        destination_subnets: Vec<String>,
        /// Destination port.
        port: u32,
        /// Labels of the calling workload.
        source_labels: BTreeMap<String, String>,
        /// Gateways, overriding the top-level list.
        gateways: Vec<String>,
        /// Namespace of the calling workload.
        source_namespace: String,
    }
}

message! {
    /// One TCP rule.
    pub struct TcpRoute {
        /// Conditions, any of which suffices; empty matches everything.
        r#match: Vec<L4MatchAttributes>,
        /// Weighted destinations.
        route: Vec<RouteDestination>,
    }
}

message! {
    /// Conditions on a TCP connection; all must hold.
    pub struct L4MatchAttributes {
        /// Destination subnets.
        destination_subnets: Vec<String>,
        /// Destination port.
        port: u32,
        /// Source subnet.
        source_subnet: String,
        /// Labels of the calling workload.
        source_labels: BTreeMap<String, String>,
        /// Gateways, overriding the top-level list.
        gateways: Vec<String>,
        /// Namespace of the calling workload.
        source_namespace: String,
    }
}

message! {
    /// A weighted destination of TCP or TLS.
    pub struct RouteDestination {
        /// Where to.
        destination!: Destination,
        /// Relative share.
        weight: i32,
    }
}
