//! Envoy's substitution formats (`%REQ(X?Y):Z%` …), precompiled into a list of parts.
//!
//! Source of the behaviour: Envoy's "Access logging" page, section "Command operators".

use http::HeaderName;

/// A text format: literals and operators in order. An operator without a value renders as `-`
/// (or as nothing with `omit_empty_values`).
#[derive(Clone, Debug, PartialEq)]
pub struct TextFormat {
    /// The parts in order.
    pub parts: Vec<Part>,
    /// Absent values render as nothing instead of `-`.
    pub omit_empty_values: bool,
}

/// A piece of a text format.
#[derive(Clone, Debug, PartialEq)]
pub enum Part {
    /// Text as it is.
    Literal(Box<str>),
    /// A value of the request.
    Operator(Substitution),
}

/// An operator with its maximum length.
#[derive(Clone, Debug, PartialEq)]
pub struct Substitution {
    /// Which value.
    pub operator: Operator,
    /// Longest rendered value, in bytes, cut at a character boundary.
    pub max_length: Option<usize>,
}

/// A JSON format: objects keep the order of Envoy's output (keys sorted).
#[derive(Clone, Debug, PartialEq)]
pub enum JsonFormat {
    /// An object.
    Object(Vec<(Box<str>, JsonFormat)>),
    /// An array.
    Array(Vec<JsonFormat>),
    /// A string that is exactly one operator: keeps the operator's own type (number, string) in the output.
    Value(Substitution),
    /// A string with several parts: always a string.
    Text(TextFormat),
    /// A constant.
    Constant(serde_json::Value),
}

/// A header named in an operator; HTTP/2 pseudo headers keep their colon.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FormatHeader {
    /// `:method`
    Method,
    /// `:scheme`
    Scheme,
    /// `:authority` or `host`
    Authority,
    /// `:path`; for `REQ(:PATH)` with the query
    Path,
    /// `:status` (responses)
    Status,
    /// An ordinary header.
    Named(HeaderName),
}

/// How a time is written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TimeFormat {
    /// Envoy's default: `2026-11-24T03:39:44.123Z`.
    Iso8601Millis,
    /// A `strftime` format with Envoy's additions, as a list of pieces.
    Pieces(Vec<TimePiece>),
}

/// A piece of a time format.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TimePiece {
    /// A part for `strftime`, in UTC.
    Strftime(Box<str>),
    /// `%s`: whole seconds since the epoch.
    EpochSeconds,
    /// `%f` (nine) and `%1f` to `%9f`: that many digits of the fraction of the second.
    Fraction(u8),
    /// `%1s` to `%9s`: seconds since the epoch and that many fractional digits, without a point (`%3s`: milliseconds).
    EpochFraction(u8),
}

/// Which time `START_TIME`-like operators show.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum TimePoint {
    /// `START_TIME`: when the request began.
    Start,
    /// `EMIT_TIME`: when the log line is written.
    Emit,
}

/// Which end of an address an operator shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum AddressPart {
    /// Address and port.
    Full,
    /// `_WITHOUT_PORT`.
    WithoutPort,
    /// `_PORT`.
    Port,
}

/// Which address an operator shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum AddressOf {
    /// `DOWNSTREAM_REMOTE_ADDRESS`: the client, as worked out from `x-forwarded-for` and the connection.
    DownstreamRemote,
    /// `DOWNSTREAM_DIRECT_REMOTE_ADDRESS`: the peer of the connection.
    DownstreamDirectRemote,
    /// `DOWNSTREAM_LOCAL_ADDRESS`: this end (the original destination when restored).
    DownstreamLocal,
    /// `DOWNSTREAM_DIRECT_LOCAL_ADDRESS`: this end of the accepted socket.
    DownstreamDirectLocal,
    /// `UPSTREAM_LOCAL_ADDRESS`: this end of the upstream connection.
    UpstreamLocal,
    /// `UPSTREAM_REMOTE_ADDRESS`: the other end of the upstream connection, which is one of the endpoint's addresses.
    UpstreamRemote,
    /// `UPSTREAM_HOST`: the endpoint, by its first address.
    UpstreamHost,
}

/// Which certificate fact an operator shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum TlsFact {
    /// `…_TLS_VERSION`
    Version,
    /// `…_TLS_CIPHER`
    Cipher,
    /// `…_TLS_SESSION_ID`
    SessionId,
    /// `…_PEER_SUBJECT`
    PeerSubject,
    /// `…_PEER_ISSUER`
    PeerIssuer,
    /// `…_PEER_URI_SAN`
    PeerUriSan,
    /// `…_PEER_DNS_SAN`
    PeerDnsSan,
    /// `…_PEER_IP_SAN`
    PeerIpSan,
    /// `…_PEER_EMAIL_SAN`
    PeerEmailSan,
    /// `…_LOCAL_SUBJECT`
    LocalSubject,
    /// `…_LOCAL_URI_SAN`
    LocalUriSan,
    /// `…_LOCAL_DNS_SAN`
    LocalDnsSan,
    /// `…_LOCAL_IP_SAN`
    LocalIpSan,
    /// `…_LOCAL_EMAIL_SAN`
    LocalEmailSan,
    /// `…_TLS_GROUP`: of the key exchange.
    Group,
    /// `…_PEER_FINGERPRINT_256`
    PeerFingerprint256,
    /// `…_PEER_SERIAL`
    PeerSerial,
    /// `…_PEER_CERT`
    PeerCert,
    /// `…_PEER_CERT_V_START`
    PeerCertStart,
    /// `…_PEER_CERT_V_END`
    PeerCertEnd,
}

/// Which byte counter an operator shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Bytes {
    /// `BYTES_RECEIVED`: body bytes from the client.
    Received,
    /// `BYTES_SENT`: body bytes to the client.
    Sent,
    /// `REQUEST_HEADERS_BYTES`
    RequestHeaders,
    /// `RESPONSE_HEADERS_BYTES`
    ResponseHeaders,
    /// `RESPONSE_TRAILERS_BYTES`
    ResponseTrailers,
    /// `UPSTREAM_WIRE_BYTES_SENT`
    UpstreamWireSent,
    /// `UPSTREAM_WIRE_BYTES_RECEIVED`
    UpstreamWireReceived,
    /// `UPSTREAM_HEADER_BYTES_SENT`
    UpstreamHeaderSent,
    /// `UPSTREAM_HEADER_BYTES_RECEIVED`
    UpstreamHeaderReceived,
    /// `DOWNSTREAM_WIRE_BYTES_SENT`
    DownstreamWireSent,
    /// `DOWNSTREAM_WIRE_BYTES_RECEIVED`
    DownstreamWireReceived,
    /// `DOWNSTREAM_HEADER_BYTES_SENT`
    DownstreamHeaderSent,
    /// `DOWNSTREAM_HEADER_BYTES_RECEIVED`
    DownstreamHeaderReceived,
}

/// Every operator the engine must be able to give a value for.
#[derive(Clone, Debug, PartialEq)]
pub enum Operator {
    /// `START_TIME(…)`, `EMIT_TIME(…)`.
    Time(TimePoint, TimeFormat),
    /// `REQ(X?Y)`: a request header, else the other one.
    Request(FormatHeader, Option<FormatHeader>),
    /// `RESP(X?Y)`: a response header.
    Response(FormatHeader, Option<FormatHeader>),
    /// `TRAILER(X?Y)`: a response trailer.
    Trailer(FormatHeader, Option<FormatHeader>),
    /// `PROTOCOL`: `HTTP/1.1`, `HTTP/2`; nothing for TCP.
    Protocol,
    /// `UPSTREAM_PROTOCOL`.
    UpstreamProtocol,
    /// `RESPONSE_CODE`: 0 when none was sent.
    ResponseCode,
    /// `RESPONSE_CODE_DETAILS`.
    ResponseCodeDetails,
    /// `CONNECTION_TERMINATION_DETAILS`.
    ConnectionTerminationDetails,
    /// `RESPONSE_FLAGS` (short, `UH,UT`); nothing set renders as `-`.
    ResponseFlags,
    /// `RESPONSE_FLAGS_LONG`.
    ResponseFlagsLong,
    /// `BYTES_…` and `…_BYTES…`.
    Bytes(Bytes),
    /// `DURATION`: request start to last byte out, milliseconds.
    Duration,
    /// `REQUEST_DURATION`: request start to last byte of the request, milliseconds.
    RequestDuration,
    /// `REQUEST_TX_DURATION`: request start to last byte sent upstream, milliseconds.
    RequestTxDuration,
    /// `RESPONSE_DURATION`: request start to first byte from upstream, milliseconds.
    ResponseDuration,
    /// `RESPONSE_TX_DURATION`: first upstream byte to last byte out, milliseconds.
    ResponseTxDuration,
    /// `UPSTREAM_CLUSTER`: the cluster's alternative stat name, or its name.
    UpstreamCluster,
    /// `UPSTREAM_CLUSTER_RAW`: the cluster's name.
    UpstreamClusterRaw,
    /// `UPSTREAM_HOST_NAME`: the endpoint's hostname or, without one, its address and port.
    UpstreamHostName,
    /// `UPSTREAM_HOST_NAME_WITHOUT_PORT`: the same without the port it may end with.
    UpstreamHostNameWithoutPort,
    /// `PATH(WQ|NQ:ORIG|PATH|ORIG_OR_PATH)`.
    Path {
        /// With the query. Default true.
        query: bool,
        /// Which path.
        of: PathOf,
    },
    /// `QUERY_PARAM(X)`: the first value, as it stands in the path.
    QueryParameter(Box<str>),
    /// `UPSTREAM_TRANSPORT_FAILURE_REASON`.
    UpstreamTransportFailureReason,
    /// `DOWNSTREAM_TRANSPORT_FAILURE_REASON`.
    DownstreamTransportFailureReason,
    /// `UPSTREAM_REQUEST_ATTEMPT_COUNT`.
    UpstreamRequestAttemptCount,
    /// `UPSTREAM_CONNECTION_ID`.
    UpstreamConnectionId,
    /// An address.
    Address(AddressOf, AddressPart),
    /// A fact about the downstream TLS connection.
    DownstreamTls(TlsFact),
    /// A fact about the upstream TLS connection.
    UpstreamTls(TlsFact),
    /// `REQUESTED_SERVER_NAME`: SNI.
    RequestedServerName,
    /// `ROUTE_NAME`.
    RouteName,
    /// `VIRTUAL_CLUSTER_NAME`: always absent, virtual clusters are not supported.
    VirtualClusterName,
    /// `FILTER_CHAIN_NAME`.
    FilterChainName,
    /// `HOSTNAME` of this machine.
    Hostname,
    /// `ENVIRONMENT(X)`: read once, when the format is compiled. `None`: not set.
    Environment(Option<Box<str>>),
    /// `CONNECTION_ID`.
    ConnectionId,
    /// `STREAM_ID`: the request id.
    StreamId,
    /// `UNIQUE_ID`: a new UUID for each line.
    UniqueId,
    /// `LOCAL_REPLY_BODY`.
    LocalReplyBody,
    /// `GRPC_STATUS(CAMEL_STRING|SNAKE_STRING|NUMBER)`.
    GrpcStatus(GrpcStatusStyle),
    /// `GRPC_STATUS_NUMBER`.
    GrpcStatusNumber,
    /// `ACCESS_LOG_TYPE`.
    AccessLogType,
    /// `DYNAMIC_METADATA`, `FILTER_STATE`, `CLUSTER_METADATA`, `UPSTREAM_METADATA`, `UPSTREAM_FILTER_STATE`: kept so that Istio's usual formats are accepted; the namespace
    /// and keys are the engine's to look up, absent when it has none.
    Metadata {
        /// Which store.
        of: MetadataOf,
        /// Namespace (or filter state key), then the path of keys.
        path: Vec<Box<str>>,
    },
}

/// Which path `PATH` shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PathOf {
    /// `ORIG`: the one in `x-envoy-original-path`, which is there where the route rewrote it.
    Original,
    /// `PATH`: the request's.
    Request,
    /// `ORIG_OR_PATH`, the default: the first, or else the other.
    OriginalOrRequest,
}

/// Which store a metadata operator reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum MetadataOf {
    /// `DYNAMIC_METADATA`: what filters noted for this request.
    Request,
    /// `CLUSTER_METADATA`.
    Cluster,
    /// `UPSTREAM_METADATA`: the endpoint's.
    Endpoint,
    /// `ROUTE_METADATA` (`METADATA(ROUTE:…)`).
    Route,
    /// `VIRTUAL_HOST_METADATA` (`METADATA(VIRTUAL_HOST:…)`).
    VirtualHost,
    /// `FILTER_STATE`.
    FilterState,
}

/// How `GRPC_STATUS` is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum GrpcStatusStyle {
    /// `InvalidArgument`
    Camel,
    /// `INVALID_ARGUMENT`
    Snake,
    /// `3`
    Number,
}

/// Gives values for operators. The engine implements it over its request context.
pub trait FormatValues {
    /// Appends the operator's value to `out` and returns true, or returns false when there is no value.
    /// A number is written in decimal.
    fn value(&self, operator: &Operator, out: &mut String) -> bool;
}
