//! Headers that Envoy keeps as one line: several are joined, and what is added to one becomes part of its list (RFC 9110,
//! section 5.3). They are those its header map has a place by name for (`INLINE_REQ_STRING_HEADERS`,
//! `RegisterCustomInlineHeader`), as Envoy 1.40 with all its extensions shows them (agent `differential::repeated`).

use http::HeaderName;

/// Which message a header is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MessageKind {
    /// From the client on.
    Request,
    /// From the endpoint, or the proxy itself, on.
    Response,
}

/// In order, for requests.
const REQUEST: [&str; 48] = [
    "accept",
    "accept-encoding",
    "access-control-request-headers",
    "access-control-request-method",
    "access-control-request-private-network",
    "authentication",
    "authorization",
    "cache-control",
    "cdn-loop",
    "content-encoding",
    "content-type",
    "expect",
    "grpc-accept-encoding",
    "grpc-timeout",
    "if-match",
    "if-modified-since",
    "if-none-match",
    "if-range",
    "if-unmodified-since",
    "origin",
    "pragma",
    "proxy-status",
    "referer",
    "te",
    "user-agent",
    "via",
    "x-client-trace-id",
    "x-envoy-attempt-count",
    "x-envoy-decorator-operation",
    "x-envoy-downstream-service-cluster",
    "x-envoy-downstream-service-node",
    "x-envoy-expected-rq-timeout-ms",
    "x-envoy-external-address",
    "x-envoy-force-trace",
    "x-envoy-internal",
    "x-envoy-ip-tags",
    "x-envoy-is-timeout-retry",
    "x-envoy-original-host",
    "x-envoy-original-path",
    "x-envoy-original-url",
    "x-envoy-upstream-alt-stat-name",
    "x-envoy-upstream-rq-timeout-ms",
    "x-forwarded-client-cert",
    "x-forwarded-for",
    "x-forwarded-host",
    "x-forwarded-port",
    "x-forwarded-proto",
    "x-request-id",
];

/// In order, for responses.
const RESPONSE: [&str; 31] = [
    "access-control-allow-credentials",
    "access-control-allow-headers",
    "access-control-allow-methods",
    "access-control-allow-origin",
    "access-control-allow-private-network",
    "access-control-expose-headers",
    "access-control-max-age",
    "age",
    "cache-control",
    "content-encoding",
    "content-type",
    "date",
    "etag",
    "expires",
    "grpc-message",
    "grpc-status",
    "last-modified",
    "location",
    "proxy-status",
    "server",
    "vary",
    "via",
    "x-envoy-attempt-count",
    "x-envoy-decorator-operation",
    "x-envoy-degraded",
    "x-envoy-immediate-health-check-fail",
    "x-envoy-ratelimited",
    "x-envoy-upstream-canary",
    "x-envoy-upstream-healthchecked-cluster",
    "x-envoy-upstream-service-time",
    "x-request-id",
];

impl MessageKind {
    /// Whether a header is one line, whatever is added to it.
    pub fn keeps_one_line(self, name: &HeaderName) -> bool {
        let names: &[&str] = match self {
            Self::Request => &REQUEST,
            Self::Response => &RESPONSE,
        };
        names.binary_search(&name.as_str()).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_in_order() {
        assert!(REQUEST.is_sorted() && RESPONSE.is_sorted());
        let server = HeaderName::from_static("server");
        assert!(
            MessageKind::Response.keeps_one_line(&server) && !MessageKind::Request.keeps_one_line(&server)
        );
    }
}
