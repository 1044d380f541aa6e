//! Active health checks: what is asked how often, and what the answers mean for an endpoint.
//! <https://www.envoyproxy.io/docs/envoy/v1.40.0/intro/arch_overview/upstream/health_checking>

use std::net::IpAddr;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use crate::GrpcProbe;

/// Envoy's `core.v3.HealthCheck`.
#[derive(Clone, Debug)]
pub struct HealthCheck {
    /// An answer that takes longer is a failure. Envoy requires it, the interval and both thresholds.
    pub timeout: Duration,
    /// Between checks of a cluster in use.
    pub interval: Duration,
    /// Random time before the first check of an endpoint, up to this. Default 0.
    pub initial_jitter: Duration,
    /// Random time added to each pause, up to this. Default 0.
    pub interval_jitter: Duration,
    /// The same in percent of the pause. Default 0.
    pub interval_jitter_percent: u32,
    /// Failures in a row after which an endpoint is unhealthy.
    pub unhealthy_threshold: u32,
    /// Successes in a row after which it is healthy again; the very first check decides alone.
    pub healthy_threshold: u32,
    /// A connection serves several checks. Default true.
    pub reuse_connection: bool,
    /// Between checks while nothing has connected through the cluster. Default 60 s.
    pub no_traffic_interval: Duration,
    /// The same for endpoints that are healthy. Default `no_traffic_interval`.
    pub no_traffic_healthy_interval: Duration,
    /// After a failure. Default `interval`.
    pub unhealthy_interval: Duration,
    /// After a failure that has not made the endpoint unhealthy yet. Default `unhealthy_interval`.
    pub unhealthy_edge_interval: Duration,
    /// After a success that has not made the endpoint healthy yet. Default `interval`.
    pub healthy_edge_interval: Duration,
    /// Protocols that TLS offers instead of the context's (`tls_options.alpn_protocols`); empty: the context's.
    pub alpn: Vec<Box<str>>,
    /// Members by which one of the cluster's transports is chosen instead of by the endpoint's metadata, as JSON
    /// (`transport_socket_match_criteria`).
    pub transport_criteria: Option<Arc<serde_json::Value>>,
    /// What is asked.
    pub probe: HealthProbe,
}

/// What a health check asks.
#[derive(Clone, Debug)]
pub enum HealthProbe {
    /// A request.
    Http(HttpProbe),
    /// A connection, or an exchange of bytes over it.
    Tcp(TcpProbe),
    /// A call of gRPC's health service.
    Grpc(GrpcProbe),
}

/// Envoy's `HttpHealthCheck`.
#[derive(Clone, Debug)]
pub struct HttpProbe {
    /// Over HTTP/2 (`codec_client_type`). Default HTTP/1.1.
    pub http2: bool,
    /// `host`; `None`: the cluster's name.
    pub host: Option<Arc<str>>,
    /// Path and query.
    pub path: http::uri::PathAndQuery,
    /// Method. Default GET.
    pub method: http::Method,
    /// Statuses that are well. Default 200.
    pub expected: Vec<Range<u16>>,
    /// Other statuses that count towards the threshold; the rest makes unhealthy at once. Default: none.
    pub retriable: Vec<Range<u16>>,
}

impl HttpProbe {
    /// What an answer says. `degraded`: it has the header `x-envoy-degraded`; `leaving`: it has `x-envoy-immediate-health-check-fail`.
    pub fn judge(&self, status: u16, degraded: bool, leaving: bool) -> HealthVerdict {
        let within = |ranges: &[Range<u16>]| ranges.iter().any(|range| range.contains(&status));
        if within(&self.expected) {
            if degraded { HealthVerdict::Degraded } else { HealthVerdict::Passed }
        } else {
            HealthVerdict::Failed { retriable: within(&self.retriable), leaving }
        }
    }
}

/// Envoy's `TcpHealthCheck`.
#[derive(Clone, Debug, Default)]
pub struct TcpProbe {
    /// Sent first; only when something is to be received.
    pub send: Vec<u8>,
    /// Must come in this order, with anything between; empty: to connect is enough.
    pub receive: Vec<Vec<u8>>,
}

impl TcpProbe {
    /// Whether the bytes received so far are what is waited for.
    pub fn is_answered(&self, mut received: &[u8]) -> bool {
        self.receive.iter().all(|block| {
            let found = received.windows(block.len()).position(|window| window == block);
            if let Some(at) = found {
                received = &received[at + block.len()..];
            }
            found.is_some()
        })
    }
}

/// Envoy's `Endpoint.HealthCheckConfig`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EndpointHealthCheck {
    /// Another port is asked.
    pub port: Option<u16>,
    /// Another address is asked.
    pub address: Option<IpAddr>,
    /// `host` of requests to this endpoint.
    pub hostname: Option<Arc<str>>,
    /// It is not checked, and healthy as far as checks go.
    pub disabled: bool,
}

/// What one check found out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HealthVerdict {
    /// Well.
    Passed,
    /// Well, but better not used.
    Degraded,
    /// An answer that is not well. Unless retriable, it makes unhealthy at once.
    Failed {
        /// It counts towards the threshold.
        retriable: bool,
        /// The endpoint itself says that it leaves (`x-envoy-immediate-health-check-fail`).
        leaving: bool,
    },
    /// No connection, or it broke.
    Unreachable,
    /// No answer in time.
    TimedOut,
}

/// What checks say of an endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CheckedHealth {
    /// Unhealthy.
    pub failed: bool,
    /// Takes traffic when there are no healthy ones.
    pub degraded: bool,
    /// Not checked yet.
    pub pending: bool,
    /// It failed for want of an answer.
    pub timed_out: bool,
    /// It said itself that it leaves: as far as shares and panic go it is not there.
    pub excluded: bool,
}

impl CheckedHealth {
    /// Before the first check: no traffic.
    pub const PENDING: Self =
        Self { failed: true, degraded: false, pending: true, timed_out: false, excluded: false };
    /// Well, or not checked at all.
    pub const HEALTHY: Self =
        Self { failed: false, degraded: false, pending: false, timed_out: false, excluded: false };
}

/// What a check changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HealthTransition {
    /// Nothing.
    Unchanged,
    /// Nothing yet: a threshold is not reached.
    Pending,
    /// The health.
    Changed,
}

/// The checks of one endpoint so far.
#[derive(Clone, Debug)]
pub struct HealthHistory {
    healthy_in_a_row: u32,
    unhealthy_in_a_row: u32,
    health: CheckedHealth,
}

impl Default for HealthHistory {
    fn default() -> Self {
        Self { healthy_in_a_row: 0, unhealthy_in_a_row: 0, health: CheckedHealth::PENDING }
    }
}

impl HealthHistory {
    /// What is known now.
    pub fn health(&self) -> CheckedHealth {
        self.health
    }

    /// Takes the result of a check in.
    pub fn note(&mut self, check: &HealthCheck, verdict: HealthVerdict) -> HealthTransition {
        let first = std::mem::take(&mut self.health.pending);
        let transition = match verdict {
            HealthVerdict::Passed => self.passed(check, first, false),
            HealthVerdict::Degraded => self.passed(check, first, true),
            HealthVerdict::Failed { retriable, leaving } => {
                self.health.excluded |= leaving;
                self.failed(check, !retriable)
            }
            HealthVerdict::Unreachable | HealthVerdict::TimedOut => self.failed(check, false),
        };
        if self.health.failed && verdict == HealthVerdict::TimedOut {
            self.health.timed_out = true;
        }
        // The first check always tells something new.
        if first { HealthTransition::Changed } else { transition }
    }

    fn passed(&mut self, check: &HealthCheck, first: bool, degraded: bool) -> HealthTransition {
        self.unhealthy_in_a_row = 0;
        let mut transition = HealthTransition::Unchanged;
        if self.health.failed {
            self.healthy_in_a_row += 1;
            if !first && self.healthy_in_a_row < check.healthy_threshold {
                transition = HealthTransition::Pending;
            } else {
                (self.health.failed, self.health.timed_out, self.health.excluded) = (false, false, false);
                transition = HealthTransition::Changed;
            }
        }
        if self.health.degraded != degraded {
            self.health.degraded = degraded;
            transition = HealthTransition::Changed;
        }
        transition
    }

    fn failed(&mut self, check: &HealthCheck, at_once: bool) -> HealthTransition {
        self.healthy_in_a_row = 0;
        if self.health.failed {
            return HealthTransition::Unchanged;
        }
        self.unhealthy_in_a_row += 1;
        if !at_once && self.unhealthy_in_a_row < check.unhealthy_threshold {
            return HealthTransition::Pending;
        }
        self.unhealthy_in_a_row = 0;
        self.health.failed = true;
        HealthTransition::Changed
    }
}

impl HealthVerdict {
    /// Well, or well enough.
    pub fn passed(self) -> bool {
        matches!(self, Self::Passed | Self::Degraded)
    }
}

impl HealthCheck {
    /// The pause after a check. `used`: something has connected through the cluster.
    pub fn pause(
        &self,
        passed: bool,
        transition: HealthTransition,
        used: bool,
        random: &mut dyn FnMut() -> u64,
    ) -> Duration {
        let edge = transition == HealthTransition::Pending;
        let base = match (used, passed) {
            (true, false) if edge => self.unhealthy_edge_interval,
            (true, false) => self.unhealthy_interval,
            (true, true) if edge => self.healthy_edge_interval,
            (true, true) => self.interval,
            (false, true) if transition != HealthTransition::Changed => self.no_traffic_healthy_interval,
            (false, _) => self.no_traffic_interval,
        };
        let mut up_to = |most: Duration| {
            let most = u64::try_from(most.as_millis()).unwrap_or(u64::MAX);
            Duration::from_millis(random().checked_rem(most).unwrap_or(0))
        };
        base + up_to(base * self.interval_jitter_percent / 100) + up_to(self.interval_jitter)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check() -> HealthCheck {
        let seconds = Duration::from_secs;
        HealthCheck {
            timeout: seconds(1),
            interval: seconds(10),
            initial_jitter: Duration::ZERO,
            interval_jitter: Duration::ZERO,
            interval_jitter_percent: 0,
            unhealthy_threshold: 3,
            healthy_threshold: 2,
            reuse_connection: true,
            no_traffic_interval: seconds(60),
            no_traffic_healthy_interval: seconds(70),
            unhealthy_interval: seconds(20),
            unhealthy_edge_interval: seconds(21),
            healthy_edge_interval: seconds(11),
            alpn: Vec::new(),
            transport_criteria: None,
            probe: HealthProbe::Tcp(TcpProbe::default()),
        }
    }

    fn notes(history: &mut HealthHistory, verdicts: &[HealthVerdict]) -> Vec<(HealthTransition, bool)> {
        let check = check();
        verdicts.iter().map(|verdict| (history.note(&check, *verdict), history.health().failed)).collect()
    }

    use HealthTransition::{Changed, Pending, Unchanged};
    use HealthVerdict::{Degraded, Failed, Passed, TimedOut, Unreachable};

    #[test]
    fn the_first_check_decides_alone_and_thresholds_later() {
        let mut history = HealthHistory::default();
        assert!(history.health().failed && history.health().pending);
        assert_eq!(notes(&mut history, &[Passed, Passed]), [(Changed, false), (Unchanged, false)]);
        let failing = [Unreachable, TimedOut, Passed, Unreachable, TimedOut, Unreachable, Unreachable];
        let expected = [
            (Pending, false),
            (Pending, false),
            (Unchanged, false),
            (Pending, false),
            (Pending, false),
            (Changed, true),
            (Unchanged, true),
        ];
        assert_eq!(notes(&mut history, &failing), expected);
        assert_eq!(
            notes(&mut history, &[Passed, Unreachable, Passed, Passed]),
            [(Pending, true), (Unchanged, true), (Pending, true), (Changed, false)]
        );
    }

    #[test]
    fn a_wrong_answer_makes_unhealthy_at_once_unless_it_is_retriable() {
        let mut history = HealthHistory::default();
        assert_eq!(notes(&mut history, &[Failed { retriable: false, leaving: false }]), [(Changed, true)]);
        assert_eq!(notes(&mut history, &[Passed, Passed]), [(Pending, true), (Changed, false)]);
        assert_eq!(notes(&mut history, &[Failed { retriable: true, leaving: false }]), [(Pending, false)]);
        assert_eq!(notes(&mut history, &[Failed { retriable: false, leaving: false }]), [(Changed, true)]);
    }

    #[test]
    fn who_leaves_is_left_out_until_checks_pass_again() {
        let mut history = HealthHistory::default();
        assert_eq!(notes(&mut history, &[Passed]), [(Changed, false)]);
        assert_eq!(notes(&mut history, &[Failed { retriable: false, leaving: true }]), [(Changed, true)]);
        notes(&mut history, &[Passed, Unreachable, Passed]);
        assert!(history.health().excluded);
        notes(&mut history, &[Passed]);
        assert_eq!(history.health(), CheckedHealth::HEALTHY);
    }

    #[test]
    fn degraded_endpoints_say_so() {
        let mut history = HealthHistory::default();
        notes(&mut history, &[Degraded]);
        assert_eq!(history.health(), CheckedHealth { degraded: true, ..CheckedHealth::HEALTHY });
        assert_eq!(notes(&mut history, &[Passed]), [(Changed, false)]);
        assert_eq!(history.health(), CheckedHealth::HEALTHY);
    }

    #[test]
    fn pauses_depend_on_the_result_and_on_traffic() {
        let check = check();
        let pause = |passed, transition, used| check.pause(passed, transition, used, &mut || 7).as_secs();
        assert_eq!([pause(true, Unchanged, true), pause(true, Pending, true)], [10, 11]);
        assert_eq!([pause(false, Unchanged, true), pause(false, Pending, true)], [20, 21]);
        assert_eq!([pause(true, Unchanged, false), pause(true, Changed, false)], [70, 60]);
        assert_eq!(pause(false, Unchanged, false), 60);
        let jittered =
            HealthCheck { interval_jitter_percent: 10, interval_jitter: Duration::from_secs(2), ..check };
        let most = jittered.pause(true, Unchanged, true, &mut || 999);
        assert_eq!(most, Duration::from_millis(10_000 + 999 + 999));
    }

    #[test]
    fn blocks_are_found_in_order() {
        let probe = |blocks: &[&str]| TcpProbe {
            send: Vec::new(),
            receive: blocks.iter().map(|block| block.as_bytes().to_vec()).collect(),
        };
        assert!(probe(&["ab", "cd"]).is_answered(b"xxabyycdzz"));
        assert!(!probe(&["ab", "cd"]).is_answered(b"cdab"));
        assert!(!probe(&["aba", "ab"]).is_answered(b"abab"), "blocks do not overlap");
        assert!(probe(&[]).is_answered(b""));
    }

    proptest::proptest! {
        /// Blocks with anything around them are found; an answer that is cut short is not one.
        #[test]
        fn answers_are_found(blocks in proptest::collection::vec("[ab]{1,3}", 1..4), filling in "[abc]{0,3}") {
            let whole: String = blocks.iter().flat_map(|block| [filling.as_str(), block.as_str()]).collect();
            let blocks: Vec<Vec<u8>> = blocks.into_iter().map(String::into_bytes).collect();
            let needed: usize = blocks.iter().map(Vec::len).sum();
            let probe = TcpProbe { send: Vec::new(), receive: blocks };
            proptest::prop_assert!(probe.is_answered(whole.as_bytes()));
            proptest::prop_assert!(!probe.is_answered(&whole.as_bytes()[..needed - 1]));
        }

        /// An endpoint is healthy after enough successes and unhealthy after enough failures, whatever was before.
        #[test]
        fn thresholds_hold(before in proptest::collection::vec(0_u8..5, 0..20)) {
            let check = check();
            let mut history = HealthHistory::default();
            let verdicts = [Passed, Degraded, Failed { retriable: true, leaving: false }, Unreachable, TimedOut];
            for verdict in before {
                history.note(&check, verdicts[usize::from(verdict)]);
            }
            let mut healthy = history.clone();
            for _ in 0..2 {
                healthy.note(&check, Passed);
            }
            proptest::prop_assert_eq!(healthy.health(), CheckedHealth::HEALTHY);
            for _ in 0..3 {
                history.note(&check, Unreachable);
            }
            proptest::prop_assert!(history.health().failed);
        }
    }

    #[test]
    fn statuses_are_judged_by_their_ranges() {
        let probe = HttpProbe {
            http2: false,
            host: None,
            path: http::uri::PathAndQuery::from_static("/"),
            method: http::Method::GET,
            expected: vec![200..201, 204..206],
            retriable: std::iter::once(200..600).collect(),
        };
        assert_eq!(probe.judge(205, false, false), Passed);
        assert_eq!(probe.judge(200, true, false), Degraded);
        assert_eq!(probe.judge(206, true, false), Failed { retriable: true, leaving: false });
        let strict = HttpProbe { retriable: vec![], ..probe };
        assert_eq!(strict.judge(503, false, false), Failed { retriable: false, leaving: false });
    }
}
