//! Everything that can end a request before (or instead of) an answer from upstream, and the one place that maps a cause to
//! status, body, response flag, details and retry class. Texts are Envoy's, because clients, dashboards and people grep for them.

use std::borrow::Cow;

use http::{HeaderName, HeaderValue, StatusCode};

/// Envoy's response flags, as a set.
/// <https://www.envoyproxy.io/docs/envoy/v1.40.0/configuration/observability/access_log/usage#config-access-log-format-response-flags>
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Flags(u32);

macro_rules! flags {
    ($($name:ident = $bit:literal, $short:literal, $long:literal;)*) => {
        impl Flags {
            $(pub(crate) const $name: Flags = Flags(1 << $bit);)*
            const ALL: &[(Flags, &str, &str)] = &[$((Flags::$name, $short, $long)),*];
        }
    };
}

flags! {
    // Faults are injected before anything is sent.
    DELAY_INJECTED = 17, "DI", "DelayInjected";
    DNS_RESOLUTION_FAILED = 24, "DF", "DnsResolutionFailed";
    FAULT_INJECTED = 18, "FI", "FaultInjected";
    // Envoy prints flags in the order they were set, and this one is set before the last attempt's own.
    UPSTREAM_RETRY_LIMIT = 8, "URX", "UpstreamRetryLimitExceeded";
    UNAUTHORIZED_EXTERNAL = 20, "UAEX", "UnauthorizedExternalService";
    RETRY_OVERFLOW = 19, "UO", "UpstreamOverflow";
    NO_HEALTHY_UPSTREAM = 0, "UH", "NoHealthyUpstream";
    UPSTREAM_REQUEST_TIMEOUT = 1, "UT", "UpstreamRequestTimeout";
    LOCAL_RESET = 2, "LR", "LocalReset";
    UPSTREAM_REMOTE_RESET = 3, "UR", "UpstreamRemoteReset";
    UPSTREAM_CONNECTION_FAILURE = 4, "UF", "UpstreamConnectionFailure";
    UPSTREAM_CONNECTION_TERMINATION = 5, "UC", "UpstreamConnectionTermination";
    UPSTREAM_OVERFLOW = 6, "UO", "UpstreamOverflow";
    NO_ROUTE = 7, "NR", "NoRouteFound";
    DOWNSTREAM_TERMINATION = 9, "DC", "DownstreamConnectionTermination";
    STREAM_IDLE_TIMEOUT = 10, "SI", "StreamIdleTimeout";
    DOWNSTREAM_PROTOCOL_ERROR = 11, "DPE", "DownstreamProtocolError";
    UPSTREAM_PROTOCOL_ERROR = 12, "UPE", "UpstreamProtocolError";
    UPSTREAM_MAX_STREAM_DURATION = 13, "UMSDR", "UpstreamMaxStreamDurationReached";
    DURATION_TIMEOUT = 14, "DT", "DurationTimeout";
    NO_CLUSTER = 15, "NC", "NoClusterFound";
    DOWNSTREAM_REMOTE_RESET = 25, "DR", "DownstreamRemoteReset";
    // TCP's: set after the last attempt's own, and so printed after it.
    CONNECT_ATTEMPTS = 16, "URX", "UpstreamRetryLimitExceeded";
}

impl Flags {
    pub(crate) fn insert(&mut self, other: Flags) {
        self.0 |= other.0;
    }

    pub(crate) fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// True when nothing went wrong: a request that is merely delayed on purpose goes on.
    pub(crate) fn untroubled(self) -> bool {
        self.0 & !Self::DELAY_INJECTED.0 == 0
    }

    pub(crate) fn contains(self, other: Flags) -> bool {
        self.0 & other.0 == other.0
    }

    /// True when some flag has this short name.
    pub(crate) fn has(self, short: &str) -> bool {
        Self::ALL.iter().any(|(flag, name, _)| *name == short && self.contains(*flag))
    }

    /// Appends the names, separated by commas.
    pub(crate) fn write(self, long: bool, out: &mut String) {
        let mut first = true;
        for (flag, short, full) in Self::ALL.iter().filter(|(flag, _, _)| self.contains(*flag)) {
            debug_assert!(!flag.is_empty());
            if !first {
                out.push(',');
            }
            first = false;
            out.push_str(if long { full } else { short });
        }
    }
}

/// How an attempt towards an endpoint broke.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Reset {
    /// The connection could not be made; the text is the transport's reason.
    ConnectFailure(Cow<'static, str>),
    ConnectTimeout,
    /// The connection ended before an answer.
    Terminated,
    /// The endpoint reset the stream.
    Remote,
    /// The endpoint did not process the stream (HTTP/2 REFUSED_STREAM, or GOAWAY before it).
    Refused,
    /// The endpoint broke the protocol.
    Protocol,
    /// A circuit breaker is open.
    Overflow,
}

impl Reset {
    /// Envoy's name of the reset reason.
    fn reason(&self) -> &'static str {
        match self {
            Self::ConnectFailure(_) => "remote connection failure",
            Self::ConnectTimeout => "connection timeout",
            Self::Terminated => "connection termination",
            Self::Remote => "remote reset",
            Self::Refused => "remote refused stream reset",
            Self::Protocol => "protocol error",
            Self::Overflow => "overflow",
        }
    }

    fn flag(&self) -> Flags {
        match self {
            Self::ConnectFailure(_) | Self::ConnectTimeout => Flags::UPSTREAM_CONNECTION_FAILURE,
            Self::Terminated => Flags::UPSTREAM_CONNECTION_TERMINATION,
            Self::Remote | Self::Refused => Flags::UPSTREAM_REMOTE_RESET,
            Self::Protocol => Flags::UPSTREAM_PROTOCOL_ERROR,
            Self::Overflow => Flags::UPSTREAM_OVERFLOW,
        }
    }

    /// The transport's own words, if any.
    pub(crate) fn transport_reason(&self) -> Option<&str> {
        match self {
            Self::ConnectFailure(reason) if !reason.is_empty() => Some(reason),
            _ => None,
        }
    }
}

/// gRPC's status of a call that takes too long.
const DEADLINE_EXCEEDED: u32 = 4;

/// Detail of a request whose client went away.
pub(crate) const CLIENT_GONE: &str = "downstream_remote_disconnect";

/// Why a request is answered by the proxy itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Failure {
    RouteNotFound,
    /// The route's cluster does not exist; answered with the route's status.
    ClusterNotFound(StatusCode),
    NoHealthyUpstream,
    /// An attempt broke before an answer; `retried` when it was not the first.
    Upstream {
        reset: Reset,
        retried: bool,
    },
    /// The route's time-out.
    ResponseTimeout,
    PerTryTimeout,
    PerTryIdleTimeout,
    MaxStreamDuration {
        request_complete: bool,
    },
    /// What the request or the cluster says of one try.
    UpstreamMaxStreamDuration {
        request_complete: bool,
    },
    StreamIdleTimeout {
        request_complete: bool,
    },
    /// The request did not arrive in time.
    RequestTimeout,
    /// The request is refused by a check; the text is the detail.
    BadRequest(&'static str),
    /// The request is not proper HTTP; status and detail.
    Malformed(StatusCode, &'static str),
    /// An HTTP/2 request that is refused by resetting its stream with this code; the text is the detail.
    Reset(h2::Reason, &'static str),
    /// The client's body broke off: it is gone or cannot be answered.
    ClientGone,
    /// A path that is not one (`*`), which no route can match.
    NotAPath,
    /// HTTP/1.0 where it is not accepted.
    Http10,
    /// An upgrade that is not configured.
    UpgradeFailed,
    /// Something, an HTTP filter for example, has an answer of its own.
    Answered(Box<Reply>),
}

/// The answer to a [`Failure`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Reply {
    pub(crate) status: StatusCode,
    pub(crate) body: Cow<'static, str>,
    pub(crate) flag: Flags,
    pub(crate) details: Cow<'static, str>,
    /// Adds `x-envoy-overloaded: true`.
    pub(crate) overloaded: bool,
    /// More headers of the answer.
    pub(crate) headers: Vec<(HeaderName, HeaderValue)>,
    /// The connection must not be used again (HTTP/1).
    pub(crate) close: bool,
    /// For gRPC clients; `None`: what the HTTP status means.
    pub(crate) grpc_status: Option<u32>,
}

impl Reply {
    pub(crate) fn new(
        status: StatusCode,
        body: impl Into<Cow<'static, str>>,
        flag: Flags,
        details: impl Into<Cow<'static, str>>,
    ) -> Self {
        Self {
            status,
            body: body.into(),
            flag,
            details: details.into(),
            overloaded: false,
            headers: Vec::new(),
            close: false,
            grpc_status: None,
        }
    }
}

impl Failure {
    /// Whether upstream took too long.
    pub(crate) fn is_timeout(&self) -> bool {
        matches!(self, Self::ResponseTimeout | Self::PerTryTimeout | Self::PerTryIdleTimeout)
    }

    /// Status, text, flag and details of the answer.
    pub(crate) fn reply(&self) -> Reply {
        use StatusCode as S;
        match self {
            Self::RouteNotFound => Reply::new(S::NOT_FOUND, "", Flags::NO_ROUTE, "route_not_found"),
            Self::ClusterNotFound(status) => Reply::new(*status, "", Flags::NO_CLUSTER, "cluster_not_found"),
            Self::NoHealthyUpstream => Reply::new(
                S::SERVICE_UNAVAILABLE,
                "no healthy upstream",
                Flags::NO_HEALTHY_UPSTREAM,
                "no_healthy_upstream",
            ),
            Self::Upstream { reset, retried } => upstream_reply(reset, *retried),
            Self::ResponseTimeout => timeout("response_timeout"),
            Self::PerTryTimeout => timeout("upstream_per_try_timeout"),
            Self::PerTryIdleTimeout => timeout("upstream_per_try_idle_timeout"),
            Self::MaxStreamDuration { request_complete } => {
                let (body, details) = ("downstream duration timeout", "max_duration_timeout");
                let status = if *request_complete { S::GATEWAY_TIMEOUT } else { S::REQUEST_TIMEOUT };
                let mut reply = Reply::new(status, body, Flags::default(), details);
                reply.grpc_status = Some(DEADLINE_EXCEEDED);
                reply
            }
            Self::UpstreamMaxStreamDuration { request_complete } => Reply::new(
                if *request_complete { S::GATEWAY_TIMEOUT } else { S::REQUEST_TIMEOUT },
                "upstream max stream duration reached",
                Flags::UPSTREAM_MAX_STREAM_DURATION,
                "upstream_max_stream_duration_reached",
            ),
            // 408 when it was the client that said nothing for too long.
            Self::StreamIdleTimeout { request_complete } => Reply::new(
                if *request_complete { S::GATEWAY_TIMEOUT } else { S::REQUEST_TIMEOUT },
                "stream timeout",
                Flags::STREAM_IDLE_TIMEOUT,
                "stream_idle_timeout",
            ),
            Self::RequestTimeout => closing(Reply::new(
                S::REQUEST_TIMEOUT,
                "request timeout",
                Flags::default(),
                "request_overall_timeout",
            )),
            Self::BadRequest(details) => closing(Reply::new(S::BAD_REQUEST, "", Flags::default(), *details)),
            Self::Malformed(status, details) => closing(Reply::new(
                *status,
                status.canonical_reason().unwrap_or_default(),
                Flags::DOWNSTREAM_PROTOCOL_ERROR,
                *details,
            )),
            // The stream is reset in place of this answer.
            Self::Reset(reason, details) => {
                closing(Reply::new(S::BAD_REQUEST, "", reset_flag(*reason), *details))
            }
            // Nobody reads it; the connection ends with it.
            Self::ClientGone => {
                closing(Reply::new(S::BAD_REQUEST, "", Flags::DOWNSTREAM_TERMINATION, CLIENT_GONE))
            }
            Self::NotAPath => Reply::new(S::NOT_FOUND, "", Flags::default(), "absolute_path_rejected"),
            Self::Http10 => closing(Reply::new(
                S::UPGRADE_REQUIRED,
                "Upgrade Required",
                Flags::DOWNSTREAM_PROTOCOL_ERROR,
                "low_version",
            )),
            Self::Answered(reply) => (**reply).clone(),
            Self::UpgradeFailed => closing(Reply::new(S::FORBIDDEN, "", Flags::default(), "upgrade_failed")),
        }
    }
}

/// The flag of a request whose stream is reset. What its codec could not take in, Envoy takes for reset by the client.
pub(crate) fn reset_flag(reason: h2::Reason) -> Flags {
    if reason == h2::Reason::INTERNAL_ERROR {
        Flags::DOWNSTREAM_REMOTE_RESET
    } else {
        Flags::DOWNSTREAM_PROTOCOL_ERROR
    }
}

fn closing(mut reply: Reply) -> Reply {
    reply.close = true;
    reply
}

fn timeout(details: &'static str) -> Reply {
    Reply::new(
        StatusCode::GATEWAY_TIMEOUT,
        "upstream request timeout",
        Flags::UPSTREAM_REQUEST_TIMEOUT,
        details,
    )
}

/// A text as it may stand in details and logs: without spaces.
pub(crate) fn underscored(text: &str) -> String {
    text.chars().map(|c| if c.is_whitespace() { '_' } else { c }).collect()
}

fn upstream_reply(reset: &Reset, retried: bool) -> Reply {
    let (reason, transport) = (reset.reason(), reset.transport_reason());
    let mut body = String::from("upstream connect error or disconnect/reset before headers. ");
    body.push_str(if retried { "retried and the latest reset reason: " } else { "reset reason: " });
    body.push_str(reason);
    let mut details = format!("upstream_reset_before_response_started{{{}", reason.replace(' ', "_"));
    if let Some(transport) = transport {
        // Clients are not told why; the log is.
        details.push('|');
        details.push_str(&underscored(transport));
    }
    details.push('}');
    let status = if matches!(reset, Reset::Protocol) {
        StatusCode::BAD_GATEWAY
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    };
    let mut reply = Reply::new(status, body, reset.flag(), details);
    reply.overloaded = matches!(reset, Reset::Overflow);
    reply
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_envoys() {
        let refused = Reset::ConnectFailure("delayed connect error: Connection refused".into());
        let reply = Failure::Upstream { reset: refused, retried: false }.reply();
        assert_eq!(reply.status, 503);
        assert_eq!(
            reply.body,
            "upstream connect error or disconnect/reset before headers. reset reason: remote connection failure"
        );
        assert_eq!(
            reply.details,
            "upstream_reset_before_response_started{remote_connection_failure|delayed_connect_error:_Connection_refused}"
        );
        let reply = Failure::Upstream { reset: Reset::Terminated, retried: true }.reply();
        assert_eq!(
            reply.body,
            "upstream connect error or disconnect/reset before headers. retried and the latest reset reason: connection termination"
        );
        assert_eq!(reply.details, "upstream_reset_before_response_started{connection_termination}");
    }

    #[test]
    fn only_an_open_circuit_breaker_says_overloaded() {
        assert!(Failure::Upstream { reset: Reset::Overflow, retried: false }.reply().overloaded);
        assert!(!Failure::NoHealthyUpstream.reply().overloaded);
    }

    #[test]
    fn flags_print_in_envoys_order_and_parse_back() {
        let mut flags = Flags::UPSTREAM_RETRY_LIMIT;
        flags.insert(Flags::UPSTREAM_CONNECTION_FAILURE);
        let mut text = String::new();
        flags.write(false, &mut text);
        assert_eq!(text, "URX,UF");
        assert!(Flags::UPSTREAM_CONNECTION_FAILURE.has("UF"));
        assert!(Flags::CONNECT_ATTEMPTS.has("URX") && Flags::UPSTREAM_RETRY_LIMIT.has("URX"));
        assert!(!Flags::UPSTREAM_CONNECTION_FAILURE.has("XX"));
    }
}
