//! Whether an access log (or local reply rule) applies to a request.

use http::StatusCode;
use lateen_ir::{Comparison, LogFilter};

use crate::context::RequestContext;
use crate::failure::Flags;

/// Whether the filter lets the request through.
pub(crate) fn passes(filter: &LogFilter, context: &RequestContext) -> bool {
    match filter {
        LogFilter::StatusCode(comparison, wanted) => {
            let status = context.status.map_or(0, |status| u64::from(status.as_u16()));
            compare(*comparison, status, u64::from(*wanted))
        }
        LogFilter::DurationMillis(comparison, wanted) => {
            compare(*comparison, context.started.elapsed().as_millis() as u64, *wanted)
        }
        LogFilter::NotHealthCheck => true,
        LogFilter::Sampled(fraction) => fraction.includes(context.connection.worker.random()),
        LogFilter::All(filters) => filters.iter().all(|filter| passes(filter, context)),
        LogFilter::Any(filters) => filters.iter().any(|filter| passes(filter, context)),
        // What is no request has no headers, nor what HTTP/2 makes headers of.
        LogFilter::Header(matcher) if context.unread => matcher.is_match_in(&context.head.headers),
        LogFilter::Header(matcher) => matcher.is_match(&crate::http_request::request_view(context)),
        LogFilter::ResponseFlags(names) => has_flag(names, context.flags),
        LogFilter::GrpcStatus { statuses, exclude } => {
            let status = grpc_status(context);
            status.is_some_and(|status| statuses.contains(&status)) != *exclude
        }
    }
}

/// The same for a TCP connection, which has flags and a duration only.
pub(crate) fn passes_tcp(filter: &LogFilter, flags: Flags, millis: u64, random: u64) -> bool {
    passes_without_request(filter, flags, 0, millis, random)
}

/// The same where there is no request to look at.
pub(crate) fn passes_without_request(
    filter: &LogFilter,
    flags: Flags,
    status: u16,
    millis: u64,
    random: u64,
) -> bool {
    match filter {
        LogFilter::DurationMillis(comparison, wanted) => compare(*comparison, millis, *wanted),
        LogFilter::StatusCode(comparison, wanted) => {
            compare(*comparison, u64::from(status), u64::from(*wanted))
        }
        LogFilter::NotHealthCheck => true,
        LogFilter::Sampled(fraction) => fraction.includes(random),
        LogFilter::All(filters) => {
            filters.iter().all(|filter| passes_without_request(filter, flags, status, millis, random))
        }
        LogFilter::Any(filters) => {
            filters.iter().any(|filter| passes_without_request(filter, flags, status, millis, random))
        }
        LogFilter::ResponseFlags(names) => has_flag(names, flags),
        LogFilter::Header(_) => false,
        LogFilter::GrpcStatus { exclude, .. } => *exclude,
    }
}

fn has_flag(names: &[Box<str>], flags: Flags) -> bool {
    if names.is_empty() {
        return !flags.is_empty();
    }
    names.iter().any(|name| flags.has(name))
}

fn compare(comparison: Comparison, value: u64, wanted: u64) -> bool {
    match comparison {
        Comparison::Equal => value == wanted,
        Comparison::AtLeast => value >= wanted,
        Comparison::AtMost => value <= wanted,
        Comparison::NotEqual => value != wanted,
    }
}

/// `grpc-status` of the trailers or headers; without one, derived from the HTTP status.
fn grpc_status(context: &RequestContext) -> Option<u8> {
    let maps = [context.response_trailers.as_deref(), context.response_headers.as_ref()];
    let told = maps.into_iter().flatten().find_map(|map| map.get("grpc-status"));
    if let Some(value) = told {
        return value.to_str().ok()?.parse().ok();
    }
    match context.status? {
        StatusCode::OK => Some(0),
        StatusCode::BAD_REQUEST => Some(13),
        StatusCode::UNAUTHORIZED => Some(16),
        StatusCode::FORBIDDEN => Some(7),
        StatusCode::NOT_FOUND => Some(12),
        StatusCode::TOO_MANY_REQUESTS
        | StatusCode::BAD_GATEWAY
        | StatusCode::SERVICE_UNAVAILABLE
        | StatusCode::GATEWAY_TIMEOUT => Some(14),
        _ => Some(2),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_and_durations_decide_for_tcp() {
        let filter = LogFilter::All(vec![
            LogFilter::ResponseFlags(vec!["UF".into(), "UH".into()]),
            LogFilter::DurationMillis(Comparison::AtMost, 10),
        ]);
        assert!(passes_tcp(&filter, Flags::UPSTREAM_CONNECTION_FAILURE, 10, 0));
        assert!(!passes_tcp(&filter, Flags::UPSTREAM_CONNECTION_FAILURE, 11, 0));
        assert!(!passes_tcp(&filter, Flags::default(), 1, 0));
        assert!(passes_tcp(&LogFilter::ResponseFlags(vec![]), Flags::NO_ROUTE, 0, 0));
    }
}
