//! The HTTP connection manager.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue};
use ipnet::IpNet;

use crate::access_log::{AccessLog, LogFilter};
use crate::endpoint::HostAddress;
use crate::format::{JsonFormat, TextFormat};
use crate::headers::HeaderToAdd;
use crate::http_filter::{HttpFilter, HttpFilterKind, Router};
use crate::route::RouteConfiguration;

const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");

/// Which HTTP version a listener speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum CodecType {
    /// By ALPN, or by the HTTP/2 preface in plaintext.
    Auto,
    /// HTTP/1 only.
    Http1,
    /// HTTP/2 only, with prior knowledge in plaintext.
    Http2,
}

/// Where routes come from.
#[derive(Clone, Debug)]
pub enum RouteSource {
    /// A route configuration by name over RDS.
    Rds {
        /// Its name.
        name: Arc<str>,
        /// How long a listener waits for its routes before it serves 404s. Default 15 s; `None`: for ever.
        initial_fetch_timeout: Option<Duration>,
    },
    /// Written in the listener.
    Inline(Arc<RouteConfiguration>),
}

/// `server_header_transformation`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ServerHeader {
    /// Always ours.
    Overwrite,
    /// Ours when upstream sent none.
    AppendIfAbsent,
    /// Upstream's or none.
    PassThrough,
}

/// `forward_client_cert_details`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ForwardClientCert {
    /// Removes `x-forwarded-client-cert`.
    Sanitize,
    /// Forwards it on mTLS connections, else removes it.
    ForwardOnly,
    /// Appends to it on mTLS connections.
    AppendForward,
    /// Replaces it on mTLS connections.
    SanitizeSet,
    /// Always forwards.
    AlwaysForwardOnly,
}

/// `set_current_client_cert_details`: what this hop adds to `x-forwarded-client-cert` besides the hash.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct ClientCertDetails {
    /// The client's subject.
    pub subject: bool,
    /// Its certificate.
    pub cert: bool,
    /// Its whole chain.
    pub chain: bool,
    /// Its DNS names.
    pub dns: bool,
    /// Its URIs.
    pub uri: bool,
}

/// `path_with_escaped_slashes_action`: what to do with `%2F` and `%5C` in a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum EscapedSlashes {
    /// Leaves them (Envoy's default).
    Keep,
    /// Answers 400.
    Reject,
    /// Answers 307 to the unescaped path.
    UnescapeAndRedirect,
    /// Unescapes and goes on.
    UnescapeAndForward,
}

/// How a port in `:authority` is treated before routing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum StripPort {
    /// Stays.
    No,
    /// Removed when it is the listener's.
    Matching,
    /// Removed.
    Any,
}

/// `headers_with_underscores_action`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Underscores {
    /// As any header.
    Allow,
    /// 400 (HTTP/1) or reset (HTTP/2).
    Reject,
    /// The header is dropped.
    Drop,
}

/// HTTP/1 codec options.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Http1Options {
    /// Accept HTTP/1.0 requests. Default false: 426.
    pub accept_http_10: bool,
    /// Host for HTTP/1.0 requests without one.
    pub default_host_for_http_10: Option<Box<str>>,
    /// Write header names in `Proper-Case`.
    pub proper_case_headers: bool,
    /// Take methods that no RFC knows. Default false: 400.
    pub allow_custom_methods: bool,
}

/// HTTP/2 codec options; `None` members keep the codec's defaults.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Http2Options {
    /// `SETTINGS_HEADER_TABLE_SIZE`, bytes. Envoy's default: 4096.
    pub hpack_table_size: Option<u32>,
    /// `SETTINGS_MAX_CONCURRENT_STREAMS`. Envoy's default: 1024.
    pub max_concurrent_streams: Option<u32>,
    /// `SETTINGS_INITIAL_WINDOW_SIZE`, bytes. Envoy's default: 16 MiB.
    pub initial_stream_window_size: Option<u32>,
    /// Connection window, bytes. Envoy's default: 24 MiB.
    pub initial_connection_window_size: Option<u32>,
    /// Extended CONNECT (RFC 8441).
    pub allow_connect: bool,
    /// When a client's frames are a flood.
    pub floods: Http2Floods,
    /// PING at an interval.
    pub keepalive: Option<Http2Keepalive>,
}

/// Beyond which a client's frames are a flood, and its connection is closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Http2Floods {
    /// DATA, HEADERS and CONTINUATION frames in a row that carry nothing and end nothing. Default 1.
    pub empty_frames: u32,
    /// PRIORITY frames for each stream, and as many for the connection. Default 100.
    pub priority_frames_per_stream: u32,
    /// WINDOW_UPDATE frames for each DATA frame sent (twice as many are taken). Default 10.
    pub window_updates_per_data_frame: u32,
}

impl Default for Http2Floods {
    fn default() -> Self {
        Self { empty_frames: 1, priority_frames_per_stream: 100, window_updates_per_data_frame: 10 }
    }
}

/// PINGs on an HTTP/2 connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Http2Keepalive {
    /// Between PINGs; `None`: no PINGs.
    pub interval: Option<Duration>,
    /// How long to wait for the answer; the connection is closed then. Envoy requires it.
    pub timeout: Duration,
}

/// `core.v3.HttpProtocolOptions`.
#[derive(Clone, Debug, PartialEq)]
pub struct CommonHttpOptions {
    /// Closes a connection without requests. Default 1 h; `None`: never.
    pub idle_timeout: Option<Duration>,
    /// Closes (downstream: drains) a connection after so long. Default `None`: never.
    pub max_connection_duration: Option<Duration>,
    /// Resets a stream after so long. Default `None`: never.
    pub max_stream_duration: Option<Duration>,
    /// Most headers of a message. Default 100.
    pub max_headers_count: u32,
    /// Closes a connection after so many requests; `None`: no limit.
    pub max_requests_per_connection: Option<u32>,
    /// Header names with `_`.
    pub underscores: Underscores,
}

impl Default for CommonHttpOptions {
    fn default() -> Self {
        Self {
            idle_timeout: Some(Duration::from_secs(3600)),
            max_connection_duration: None,
            max_stream_duration: None,
            max_headers_count: 100,
            max_requests_per_connection: None,
            underscores: Underscores::Allow,
        }
    }
}

/// A protocol that may be upgraded to (`websocket`, `CONNECT`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UpgradeConfig {
    /// The `upgrade` header's value, lower case; `connect` for the method.
    pub upgrade_type: Box<str>,
    /// Whether it is allowed where a route does not say otherwise.
    pub enabled: bool,
    /// CONNECT ends here: what the tunnel carries goes to the endpoint as it is (`connect_config`). Routes only.
    pub terminates: bool,
}

/// Changes to replies this proxy makes itself (`local_reply_config`).
#[derive(Clone, Debug, Default)]
pub struct LocalReplyConfig {
    /// The first whose filter matches applies.
    pub mappers: Vec<LocalReplyMapper>,
    /// Format of bodies; `None`: the plain text.
    pub body_format: Option<BodyFormat>,
}

/// One rule of [`LocalReplyConfig`].
#[derive(Clone, Debug)]
pub struct LocalReplyMapper {
    /// When.
    pub filter: LogFilter,
    /// Another status. Default `None`: it stays.
    pub status: Option<u16>,
    /// Another body (then formatted).
    pub body: Option<Arc<str>>,
    /// Another format.
    pub body_format: Option<BodyFormat>,
    /// Headers to add.
    pub headers_to_add: Vec<HeaderToAdd>,
}

/// Format of a local reply's body, with its content type.
#[derive(Clone, Debug)]
pub struct BodyFormat {
    /// Value of `content-type`.
    pub content_type: HeaderValue,
    /// The body.
    pub body: BodyText,
}

/// See [`BodyFormat`].
#[derive(Clone, Debug)]
pub enum BodyText {
    /// Text.
    Text(TextFormat),
    /// JSON.
    Json(JsonFormat),
}

/// Envoy's `HttpConnectionManager`. Time-outs that are `None` are disabled.
#[derive(Clone, Debug)]
pub struct HttpConnectionManager {
    /// Which versions.
    pub codec_type: CodecType,
    /// Prefix of stats.
    pub stat_prefix: Arc<str>,
    /// Routes.
    pub routes: RouteSource,
    /// Filters; the last is the router.
    pub http_filters: Vec<HttpFilter>,
    /// Adds `user-agent` and `x-envoy-downstream-service-cluster` with the node's cluster name, and `x-envoy-downstream-service-node`
    /// with its id.
    pub add_user_agent: bool,
    /// Value of `server`. Default `envoy`.
    pub server_name: HeaderValue,
    /// When to write `server`.
    pub server_header: ServerHeader,
    /// Value to append to `via`, in both directions.
    pub via: Option<HeaderValue>,
    /// Overwrites `x-forwarded-proto`/`:scheme`: `http` or `https` (`scheme_header_transformation`).
    pub scheme_to_overwrite: Option<Scheme>,
    /// Largest request head in KiB. Default 60.
    pub max_request_headers_kb: u32,
    /// No byte either way on a stream. Default 5 min.
    pub stream_idle_timeout: Option<Duration>,
    /// By when the whole request must have arrived. Default: no limit.
    pub request_timeout: Option<Duration>,
    /// By when the request's head must have arrived. Default: no limit.
    pub request_headers_timeout: Option<Duration>,
    /// Logs.
    pub access_log: Vec<AccessLog>,
    /// Extra log line at this interval during a request. Default: none.
    pub access_log_flush_interval: Option<Duration>,
    /// Extra log line when a request begins.
    pub flush_access_log_on_new_request: bool,
    /// The client's address is the connection's peer, and `x-forwarded-for` is appended to (edge proxies).
    pub use_remote_address: bool,
    /// Trusted proxies in front, whose entries of `x-forwarded-for` count. Default 0.
    pub xff_num_trusted_hops: u32,
    /// Leaves `x-forwarded-for` as it is.
    pub skip_xff_append: bool,
    /// Networks that count as internal; empty: none (Envoy's default since 1.33).
    pub internal_networks: Vec<IpNet>,
    /// Whether clients at Unix sockets count as internal. Default false.
    pub internal_unix_sockets: bool,
    /// Adds `x-request-id` when there is none. Default true.
    pub generate_request_id: bool,
    /// Keeps the id that an external client sent.
    pub preserve_external_request_id: bool,
    /// Adds the id to responses.
    pub always_set_request_id_in_response: bool,
    /// `x-forwarded-client-cert`.
    pub forward_client_cert: ForwardClientCert,
    /// What is added to it.
    pub client_cert_details: ClientCertDetails,
    /// Forwards `expect: 100-continue` instead of answering it.
    pub proxy_100_continue: bool,
    /// Upgrades.
    pub upgrades: Vec<UpgradeConfig>,
    /// RFC 3986 dot segments and case of escapes.
    pub normalize_path: bool,
    /// `//` becomes `/`.
    pub merge_slashes: bool,
    /// `%2F`.
    pub escaped_slashes: EscapedSlashes,
    /// Port in the authority.
    pub strip_port: StripPort,
    /// `example.com.` becomes `example.com`.
    pub strip_trailing_host_dot: bool,
    /// Adds `x-forwarded-port`.
    pub append_x_forwarded_port: bool,
    /// Local replies.
    pub local_reply: LocalReplyConfig,
    /// For all versions.
    pub common: CommonHttpOptions,
    /// HTTP/1.
    pub http1: Http1Options,
    /// HTTP/2.
    pub http2: Http2Options,
}

/// A URL scheme.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Scheme {
    /// `http`
    Http,
    /// `https`
    Https,
}

impl HttpConnectionManager {
    /// Whether a client at this address is within one's own network.
    pub fn is_internal(&self, client: &HostAddress) -> bool {
        match client {
            HostAddress::Socket(address) => {
                self.internal_networks.iter().any(|net| net.contains(&address.ip()))
            }
            HostAddress::Pipe(_) => self.internal_unix_sockets,
        }
    }

    /// Options of the terminal router filter.
    pub fn router(&self) -> Option<&Router> {
        self.http_filters.last().and_then(|filter| match &filter.kind {
            HttpFilterKind::Router(router) => Some(router),
            _ => None,
        })
    }

    /// The authority as it is routed, for a connection to `port`; `None`: it stays as it came.
    pub fn stripped_authority(&self, authority: &str, port: u16) -> Option<String> {
        if self.strip_port == StripPort::No && !self.strip_trailing_host_dot {
            return None;
        }
        let (mut host, mut given) = match authority.rsplit_once(':') {
            Some((host, port)) if !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit()) => {
                (host, Some(port))
            }
            _ => (authority, None),
        };
        match self.strip_port {
            StripPort::Any => given = None,
            StripPort::Matching if given.and_then(|given| given.parse().ok()) == Some(port) => given = None,
            StripPort::Matching | StripPort::No => {}
        }
        if self.strip_trailing_host_dot {
            host = host.strip_suffix('.').unwrap_or(host);
        }
        Some(given.map_or_else(|| host.to_owned(), |given| format!("{host}:{given}")))
    }

    /// The client as the configuration trusts it: the peer, or an entry of `x-forwarded-for` counted from the right.
    pub fn client_address(&self, headers: &HeaderMap, peer: &HostAddress) -> HostAddress {
        let skip = match (self.use_remote_address, self.xff_num_trusted_hops) {
            (true, 0) => return peer.clone(),
            (true, hops) => hops as usize - 1,
            (false, hops) => hops as usize,
        };
        let entry = headers
            .get(X_FORWARDED_FOR)
            .and_then(|list| list.to_str().ok())
            .and_then(|list| list.rsplit(',').nth(skip))
            .and_then(|entry| entry.trim().parse::<IpAddr>().ok());
        entry.map_or_else(|| peer.clone(), |ip| SocketAddr::new(ip, 0).into())
    }
}
