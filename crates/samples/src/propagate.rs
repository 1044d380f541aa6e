//! What a service hands on from the request it got to the requests it makes for it.

use http::{HeaderMap, HeaderName};

/// Trace context (Zipkin's B3, W3C), the request id, and the two headers the course and Istio's samples route by.
pub const FORWARDED: [&str; 15] = [
    "x-request-id",
    "x-b3-traceid",
    "x-b3-spanid",
    "x-b3-parentspanid",
    "x-b3-sampled",
    "x-b3-flags",
    "b3",
    "x-ot-span-context",
    "traceparent",
    "tracestate",
    "baggage",
    "x-cloud-trace-context",
    "grpc-trace-bin",
    "user",
    "end-user",
];

/// Copies the [`FORWARDED`] headers.
pub fn copy_headers(from: &HeaderMap, to: &mut HeaderMap) {
    for name in FORWARDED.map(HeaderName::from_static) {
        for value in from.get_all(&name) {
            to.append(name.clone(), value.clone());
        }
    }
}
