//! Fault injection: which requests are delayed, aborted or slowed down. Pure; random numbers are the caller's.
//! <https://www.envoyproxy.io/docs/envoy/v1.40.0/configuration/http/http_filters/fault_filter>

use std::time::Duration;

use http::HeaderMap;

use crate::common::Fraction;
use crate::matcher::HeaderMatcher;
use crate::route_table::RequestView;

const DELAY_MILLIS: &str = "x-envoy-fault-delay-request";
const DELAY_PERCENTAGE: &str = "x-envoy-fault-delay-request-percentage";
const ABORT_STATUS: &str = "x-envoy-fault-abort-request";
const ABORT_GRPC_STATUS: &str = "x-envoy-fault-abort-grpc-request";
const ABORT_PERCENTAGE: &str = "x-envoy-fault-abort-request-percentage";
const RATE: &str = "x-envoy-fault-throughput-response";
const RATE_PERCENTAGE: &str = "x-envoy-fault-throughput-response-percentage";
const DOWNSTREAM_NODE: &str = "x-envoy-downstream-service-node";

/// Envoy's `fault.v3.HTTPFault`.
#[derive(Clone, Debug, Default)]
pub struct Fault {
    /// Delays requests.
    pub delay: Option<FaultDelay>,
    /// Answers requests with an error.
    pub abort: Option<FaultAbort>,
    /// Only requests to this cluster.
    pub upstream_cluster: Option<Box<str>>,
    /// Only requests that match all of these.
    pub headers: Vec<HeaderMatcher>,
    /// Only requests of these nodes (`x-envoy-downstream-service-node`); empty: of any.
    pub downstream_nodes: Vec<Box<str>>,
    /// Most faults at a time; `None`: no limit.
    pub max_active_faults: Option<u32>,
    /// Slows answers down.
    pub response_rate_limit: Option<FaultRateLimit>,
    /// Counts by `x-envoy-downstream-service-cluster`, too. Default true.
    pub downstream_cluster_stats: bool,
}

/// Envoy's `FaultDelay`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct FaultDelay {
    /// How long.
    pub duration: DelayDuration,
    /// Share of the requests.
    pub percentage: Fraction,
}

/// How long a request is delayed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum DelayDuration {
    /// So long.
    Fixed(Duration),
    /// As the request asks for, in milliseconds.
    Header,
}

/// Envoy's `FaultAbort`.
#[derive(Clone, Debug, PartialEq)]
pub struct FaultAbort {
    /// With what.
    pub with: AbortWith,
    /// Share of the requests.
    pub percentage: Fraction,
    /// Body of the answer; `None`: `fault filter abort`.
    pub body: Option<Box<str>>,
}

/// What a request is aborted with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AbortWith {
    /// An HTTP status.
    Http(u16),
    /// A gRPC status.
    Grpc(u32),
    /// As the request asks for.
    Header,
}

/// The error a request is answered with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Abort {
    /// An HTTP status.
    Http(u16),
    /// A gRPC status; the HTTP status is 200.
    Grpc(u32),
}

/// Envoy's `FaultRateLimit`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct FaultRateLimit {
    /// KiB per second; `None`: as the request asks for.
    pub kib_per_second: Option<u64>,
    /// Share of the requests.
    pub percentage: Fraction,
}

impl Fault {
    /// Whether the fault is about this request at all. `cluster`: where its route leads.
    pub fn concerns(&self, request: &RequestView<'_>, cluster: Option<&str>) -> bool {
        self.upstream_cluster.as_deref().is_none_or(|wanted| cluster == Some(wanted))
            && self.knows_node(request.headers)
            && self.headers.iter().all(|header| header.is_match(request))
    }

    fn knows_node(&self, headers: &HeaderMap) -> bool {
        let node = || headers.get(DOWNSTREAM_NODE).map(|value| value.as_bytes());
        self.downstream_nodes.is_empty()
            || node().is_some_and(|node| self.downstream_nodes.iter().any(|known| known.as_bytes() == node))
    }

    /// How long to delay a request; `None`: not.
    pub fn delay_of(&self, headers: &HeaderMap, random: u64) -> Option<Duration> {
        let delay = self.delay.as_ref()?;
        let (duration, percentage) = match delay.duration {
            DelayDuration::Fixed(duration) => (Some(duration), delay.percentage),
            DelayDuration::Header => {
                let asked = number(headers, DELAY_MILLIS).map(Duration::from_millis);
                (asked, lowered(delay.percentage, headers, DELAY_PERCENTAGE))
            }
        };
        // Envoy counts in whole milliseconds.
        duration.filter(|duration| duration.as_millis() > 0 && percentage.includes(random))
    }

    /// What to abort a request with; `None`: it goes on.
    pub fn abort_of(&self, headers: &HeaderMap, random: u64) -> Option<Abort> {
        let abort = self.abort.as_ref()?;
        let (with, percentage) = match abort.with {
            AbortWith::Http(status) => (Some(Abort::Http(status)), abort.percentage),
            AbortWith::Grpc(status) => (Some(Abort::Grpc(status)), abort.percentage),
            AbortWith::Header => (asked_abort(headers), lowered(abort.percentage, headers, ABORT_PERCENTAGE)),
        };
        with.filter(|_| percentage.includes(random))
    }

    /// KiB per second the answer is slowed down to; `None`: it is not.
    pub fn rate_of(&self, headers: &HeaderMap, random: u64) -> Option<u64> {
        let limit = self.response_rate_limit.as_ref()?;
        let (rate, percentage) = match limit.kib_per_second {
            Some(rate) => (Some(rate), limit.percentage),
            None => (number(headers, RATE), lowered(limit.percentage, headers, RATE_PERCENTAGE)),
        };
        rate.filter(|rate| *rate > 0 && percentage.includes(random))
    }
}

fn asked_abort(headers: &HeaderMap) -> Option<Abort> {
    let http = number(headers, ABORT_STATUS).filter(|status| (200..600).contains(status));
    match http.and_then(|status| u16::try_from(status).ok()) {
        Some(status) => Some(Abort::Http(status)),
        None => number(headers, ABORT_GRPC_STATUS)
            .map(|status| Abort::Grpc(u32::try_from(status).unwrap_or(u32::MAX))),
    }
}

/// A request may ask for less than the configured share.
fn lowered(percentage: Fraction, headers: &HeaderMap, name: &str) -> Fraction {
    let asked = number(headers, name).and_then(|asked| u32::try_from(asked).ok());
    Fraction { numerator: asked.map_or(percentage.numerator, |n| n.min(percentage.numerator)), ..percentage }
}

/// The first value of a header that clients set, as a number.
fn number(headers: &HeaderMap, name: &str) -> Option<u64> {
    headers.get(name)?.to_str().ok()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: Fraction = Fraction { numerator: 100, denominator: 100 };

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        pairs.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap())).collect()
    }

    #[test]
    fn percentages_decide_with_every_denominator() {
        for (numerator, denominator, random, delayed) in [
            (0, 100, 0, false),
            (50, 100, 49, true),
            (50, 100, 150, false),
            (1, 10_000, 0, true),
            (1, 10_000, 1, false),
            (500_000, 1_000_000, 499_999, true),
            (500_000, 1_000_000, 500_000, false),
        ] {
            let percentage = Fraction { numerator, denominator };
            let delay = FaultDelay { duration: DelayDuration::Fixed(Duration::from_millis(1)), percentage };
            let fault = Fault { delay: Some(delay), ..Fault::default() };
            let found = fault.delay_of(&HeaderMap::new(), random).is_some();
            assert_eq!(found, delayed, "{numerator}/{denominator} {random}");
        }
    }

    #[test]
    fn requests_may_ask_for_faults_up_to_the_configured_share() {
        let half = Fraction { numerator: 50, denominator: 100 };
        let fault = Fault {
            delay: Some(FaultDelay { duration: DelayDuration::Header, percentage: half }),
            abort: Some(FaultAbort { with: AbortWith::Header, percentage: ALL, body: None }),
            response_rate_limit: Some(FaultRateLimit { kib_per_second: None, percentage: ALL }),
            ..Fault::default()
        };
        let none = HeaderMap::new();
        assert_eq!(
            (fault.delay_of(&none, 0), fault.abort_of(&none, 0), fault.rate_of(&none, 0)),
            (None, None, None)
        );
        let asked = headers(&[(DELAY_MILLIS, "20"), (ABORT_STATUS, "429"), (RATE, "7")]);
        assert_eq!(fault.delay_of(&asked, 49), Some(Duration::from_millis(20)));
        assert_eq!(fault.delay_of(&asked, 50), None);
        assert_eq!(fault.abort_of(&asked, 99), Some(Abort::Http(429)));
        assert_eq!(fault.rate_of(&asked, 0), Some(7));
        let less = headers(&[(DELAY_MILLIS, "20"), (DELAY_PERCENTAGE, "10"), (ABORT_GRPC_STATUS, "5")]);
        assert_eq!(fault.delay_of(&less, 10), None);
        assert_eq!(fault.abort_of(&less, 0), Some(Abort::Grpc(5)));
        let more = headers(&[(DELAY_MILLIS, "20"), (DELAY_PERCENTAGE, "100"), (ABORT_STATUS, "600")]);
        assert_eq!(fault.delay_of(&more, 50), None);
        assert_eq!(fault.abort_of(&more, 0), None);
    }

    #[test]
    fn conditions_are_joined_by_and() {
        let fault = Fault {
            upstream_cluster: Some("c".into()),
            downstream_nodes: vec!["n".into()],
            ..Fault::default()
        };
        let from_node = headers(&[(DOWNSTREAM_NODE, "n")]);
        let concerns = |headers: &HeaderMap, cluster| {
            fault.concerns(
                &RequestView {
                    method: "GET",
                    scheme: "http",
                    authority: "a",
                    path: "/",
                    headers,
                    metadata: None,
                },
                cluster,
            )
        };
        assert!(concerns(&from_node, Some("c")));
        assert!(!concerns(&from_node, Some("d")));
        assert!(!concerns(&from_node, None));
        assert!(!concerns(&HeaderMap::new(), Some("c")));
    }
}
