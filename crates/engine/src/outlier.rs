//! Outlier detection of one cluster, shared by the workers: they count each host's failures in atomics, and whoever finds
//! a run long enough has it judged at once. `lateen_ir::OutlierJudge` decides.
//! <https://www.envoyproxy.io/docs/envoy/v1.40.0/intro/arch_overview/upstream/outlier>

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use http::{HeaderMap, StatusCode};
use lateen_ir::{
    ClusterLoadAssignment, Ejection, EjectionCounts, EndpointAddress, FailureOrigin, HostKey,
    OutlierDetection, OutlierJudge, RequestRate,
};

use crate::dns_cache::DnsCache;

/// How a request to a host ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// A connection for an HTTP request is there; what it leads to is told later.
    Connected,
    /// A connection for a TCP proxy is there, and that is all there is to tell.
    Served,
    Answered(StatusCode),
    /// Connect failure, reset or time-out.
    LocalFailure,
}

/// The status by which a response is judged: gRPC's, when it is in the head.
/// The mapping is Envoy's: <https://github.com/googleapis/googleapis/blob/master/google/rpc/code.proto>.
pub(crate) fn status_of(status: StatusCode, headers: &HeaderMap, is_grpc: bool) -> StatusCode {
    let told = headers.get("grpc-status").filter(|_| is_grpc).and_then(|value| value.to_str().ok());
    match told.and_then(|code| code.parse::<u32>().ok()) {
        None => status,
        Some(0) => StatusCode::OK,
        Some(1) => StatusCode::from_u16(499).unwrap_or(status),
        Some(3 | 9 | 11) => StatusCode::BAD_REQUEST,
        Some(4) => StatusCode::GATEWAY_TIMEOUT,
        Some(5) => StatusCode::NOT_FOUND,
        Some(6 | 10) => StatusCode::CONFLICT,
        Some(7) => StatusCode::FORBIDDEN,
        Some(8) => StatusCode::TOO_MANY_REQUESTS,
        Some(12) => StatusCode::NOT_IMPLEMENTED,
        Some(14) => StatusCode::SERVICE_UNAVAILABLE,
        Some(16) => StatusCode::UNAUTHORIZED,
        Some(_) => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

/// Requests of the interval under way.
#[derive(Debug, Default)]
struct RateCell {
    total: AtomicU64,
    good: AtomicU64,
}

impl RateCell {
    fn add(&self, good: bool) {
        self.total.fetch_add(1, Relaxed);
        if good {
            self.good.fetch_add(1, Relaxed);
        }
    }

    fn take(&self) -> RequestRate {
        RequestRate { total: self.total.swap(0, Relaxed), good: self.good.swap(0, Relaxed) }
    }
}

/// What the workers count about one host.
#[derive(Debug)]
pub(crate) struct Monitor {
    pub(crate) host: HostKey,
    ejected: AtomicBool,
    /// So far.
    ejections: AtomicU32,
    server_errors: AtomicU32,
    gateway_failures: AtomicU32,
    local_failures: AtomicU32,
    external: RateCell,
    local: RateCell,
}

impl Monitor {
    fn new(host: HostKey) -> Self {
        Self {
            host,
            ejected: AtomicBool::new(false),
            ejections: AtomicU32::new(0),
            server_errors: AtomicU32::new(0),
            gateway_failures: AtomicU32::new(0),
            local_failures: AtomicU32::new(0),
            external: RateCell::default(),
            local: RateCell::default(),
        }
    }

    /// Whether the host is out of the rotation now.
    pub(crate) fn is_ejected(&self) -> bool {
        self.ejected.load(Relaxed)
    }

    /// How often it went out of the rotation so far.
    pub(crate) fn ejections(&self) -> u32 {
        self.ejections.load(Relaxed)
    }

    fn eject(&self) {
        self.ejections.fetch_add(1, Relaxed);
        self.ejected.store(true, Relaxed);
    }

    fn run(&self, why: Ejection) -> Option<&AtomicU32> {
        match why {
            Ejection::Consecutive5xx => Some(&self.server_errors),
            Ejection::ConsecutiveGatewayFailure => Some(&self.gateway_failures),
            Ejection::ConsecutiveLocalOriginFailure => Some(&self.local_failures),
            _ => None,
        }
    }

    /// A run goes on. True when it has just reached its limit; none begins before it is judged.
    fn fails(&self, why: Ejection, limit: u32) -> bool {
        self.run(why).is_some_and(|run| run.fetch_add(1, Relaxed) + 1 == limit)
    }

    /// The host is in the rotation again. What is left of a run from before must not eject it soon.
    fn returns(&self) {
        Ejection::ALL.iter().for_each(|why| self.reset(*why));
        self.ejected.store(false, Relaxed);
    }

    fn reset(&self, why: Ejection) {
        if let Some(run) = self.run(why) {
            run.store(0, Relaxed);
        }
    }
}

/// What is to be shown about a cluster's outliers.
pub(crate) struct OutlierReading {
    pub(crate) counts: EjectionCounts,
    pub(crate) active: usize,
}

/// Where a cluster's hosts come from.
pub(crate) enum Hosts {
    /// They are its endpoints.
    Endpoints,
    /// From requests: those that a worker knows. Each bounds how many it does.
    OnDemand,
    /// A cache of names: those it has addresses of, whether or not anything was sent there.
    Names(Arc<DnsCache>),
}

/// See the module. It lives as long as the cluster's settings.
pub(crate) struct Detector {
    config: OutlierDetection,
    hosts: Hosts,
    /// Changes with every host that goes or returns: balancers made before are out of date.
    epoch: AtomicU32,
    state: Mutex<State>,
}

struct State {
    judge: OutlierJudge,
    monitors: BTreeMap<HostKey, Arc<Monitor>>,
    /// End of the interval.
    next: Instant,
}

impl State {
    /// These are the hosts from now on.
    fn keep(&mut self, hosts: impl Iterator<Item = HostKey>) {
        let mut before = std::mem::take(&mut self.monitors);
        let mut monitor = |host| before.remove(&host).unwrap_or_else(|| Arc::new(Monitor::new(host)));
        self.monitors = hosts.map(|host| (host, monitor(host))).collect();
        self.judge.keep(self.monitors.keys().copied());
    }
}

impl Detector {
    pub(crate) fn new(config: OutlierDetection, hosts: Hosts, now: Instant) -> Self {
        let state =
            State { judge: OutlierJudge::default(), monitors: BTreeMap::new(), next: now + config.interval };
        Self { config, hosts, epoch: AtomicU32::new(0), state: Mutex::new(state) }
    }

    /// What is under the lock is whole at every moment, so that a panic elsewhere does no harm.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The same with the hosts that there are now, where that is known elsewhere.
    fn current(&self) -> MutexGuard<'_, State> {
        let mut state = self.state();
        if let Hosts::Names(cache) = &self.hosts {
            state.keep(cache.serials().into_iter().map(HostKey::Named));
        }
        state
    }

    /// The cluster has these endpoints from now on.
    pub(crate) fn keep(&self, endpoints: &ClusterLoadAssignment) {
        if !matches!(self.hosts, Hosts::Endpoints) {
            return;
        }
        let endpoints = endpoints.priorities.iter().flatten().flat_map(|locality| &locality.endpoints);
        self.state().keep(endpoints.filter_map(|endpoint| match endpoint.address {
            EndpointAddress::Socket(address) => Some(HostKey::Address(address)),
            EndpointAddress::Pipe(_) | EndpointAddress::Name(..) => None,
        }));
    }

    /// The counters of a host; `None` where the cluster has none such.
    pub(crate) fn monitor(&self, host: HostKey) -> Option<Arc<Monitor>> {
        let mut state = self.current();
        if matches!(self.hosts, Hosts::OnDemand) && !state.monitors.contains_key(&host) {
            state.judge.add(host);
            state.monitors.insert(host, Arc::new(Monitor::new(host)));
        }
        state.monitors.get(&host).cloned()
    }

    /// Forgets hosts that came with requests and that no worker knows any more.
    pub(crate) fn forget_unknown(&self) {
        if !matches!(self.hosts, Hosts::OnDemand) {
            return;
        }
        let mut state = self.state();
        let State { judge, monitors, .. } = &mut *state;
        let before = monitors.len();
        // Who begins to know one does so under this lock.
        monitors.retain(|_, monitor| Arc::strong_count(monitor) > 1);
        if monitors.len() < before {
            judge.keep(monitors.keys().copied());
        }
    }

    pub(crate) fn epoch(&self) -> u32 {
        self.epoch.load(Relaxed)
    }

    /// Counts an outcome, and judges the host when a run of failures is long enough.
    pub(crate) fn observe(&self, monitor: &Monitor, outcome: Outcome, random: &dyn Fn() -> u64) {
        let split = self.config.split_external_local_origin_errors;
        match outcome {
            Outcome::Connected if !split => {}
            Outcome::Connected | Outcome::Served if split => self.connection(monitor, true, random),
            Outcome::LocalFailure if split => self.connection(monitor, false, random),
            Outcome::Connected | Outcome::Served => self.answer(monitor, StatusCode::OK, random),
            Outcome::Answered(status) => self.answer(monitor, status, random),
            // Without the split a local failure counts as a 503, as Envoy maps it.
            Outcome::LocalFailure => self.answer(monitor, StatusCode::SERVICE_UNAVAILABLE, random),
        }
    }

    fn connection(&self, monitor: &Monitor, good: bool, random: &dyn Fn() -> u64) {
        let why = Ejection::ConsecutiveLocalOriginFailure;
        monitor.local.add(good);
        if good {
            monitor.reset(why);
        } else if monitor.fails(why, self.config.consecutive_local_origin_failure) {
            self.detect(monitor, why, random);
        }
    }

    fn answer(&self, monitor: &Monitor, status: StatusCode, random: &dyn Fn() -> u64) {
        monitor.external.add(!status.is_server_error());
        if !status.is_server_error() {
            monitor.reset(Ejection::ConsecutiveGatewayFailure);
            monitor.reset(Ejection::Consecutive5xx);
            return;
        }
        let why = Ejection::ConsecutiveGatewayFailure;
        if !(502..=504).contains(&status.as_u16()) {
            monitor.reset(why);
        } else if monitor.fails(why, self.config.consecutive_gateway_failure) {
            self.detect(monitor, why, random);
        }
        let why = Ejection::Consecutive5xx;
        if monitor.fails(why, self.config.consecutive_5xx) {
            self.detect(monitor, why, random);
        }
    }

    fn detect(&self, monitor: &Monitor, why: Ejection, random: &dyn Fn() -> u64) {
        let now = Instant::now();
        let ejected = self.current().judge.detect(&self.config, monitor.host, why, random(), now);
        // The next run begins now, whatever was decided; one that was ejected has none.
        if !monitor.is_ejected() {
            monitor.reset(why);
        }
        if ejected {
            monitor.eject();
            self.epoch.fetch_add(1, Relaxed);
        }
    }

    /// When the interval ends.
    pub(crate) fn next(&self) -> Instant {
        self.state().next
    }

    /// Judges the interval when it is over. Any worker may call it; the first does the work.
    pub(crate) fn judge(&self, random: &mut dyn FnMut() -> u64, now: Instant) {
        if now < self.next() {
            return;
        }
        let mut state = self.current();
        if now < state.next {
            return; // another was first
        }
        state.next = now + self.config.interval;
        let State { judge, monitors, .. } = &mut *state;
        let rates: Vec<_> = monitors
            .iter()
            .map(|(host, monitor)| (*host, [monitor.external.take(), monitor.local.take()]))
            .collect();
        let (returned, ejected) = judge.interval(&self.config, &rates, random, now);
        for monitor in returned.iter().filter_map(|host| monitors.get(host)) {
            monitor.returns();
        }
        for monitor in ejected.iter().filter_map(|host| monitors.get(host)) {
            monitor.eject();
        }
        if !(returned.is_empty() && ejected.is_empty()) {
            self.epoch.fetch_add(1, Relaxed);
        }
    }

    /// A health check of the host has passed: an ejection ends, if that is how the cluster wants it.
    pub(crate) fn health_check_passed(&self, host: HostKey, now: Instant) {
        if !self.config.health_check_ends_ejection {
            return;
        }
        let mut state = self.state();
        if state.judge.uneject(host, now)
            && let Some(monitor) = state.monitors.get(&host)
        {
            monitor.returns();
            self.epoch.fetch_add(1, Relaxed);
        }
    }

    pub(crate) fn read(&self) -> OutlierReading {
        let state = self.current();
        OutlierReading { counts: state.judge.counts, active: state.judge.active() }
    }

    /// Success rates of a host in the last interval, percent, by answers and by connections.
    pub(crate) fn success_rates(&self, host: HostKey) -> [Option<f64>; 2] {
        let state = self.state();
        [FailureOrigin::External, FailureOrigin::Local].map(|origin| state.judge.success_rate(host, origin))
    }

    /// `/reset_counters`.
    pub(crate) fn reset_counts(&self) {
        self.state().judge.counts = EjectionCounts::default();
    }
}

/// Envoy's names of the counts, after `outlier_detection.`, with what they count.
pub(crate) fn named_counts(counts: &EjectionCounts) -> [(&'static str, u64); 19] {
    let [consecutive_5xx, gateway, local, success_rate, local_success_rate, percentage, local_percentage] =
        counts.detected;
    let enforced = counts.enforced;
    [
        ("outlier_detection.ejections_consecutive_5xx", consecutive_5xx),
        ("outlier_detection.ejections_detected_consecutive_5xx", consecutive_5xx),
        ("outlier_detection.ejections_detected_consecutive_gateway_failure", gateway),
        ("outlier_detection.ejections_detected_consecutive_local_origin_failure", local),
        ("outlier_detection.ejections_detected_failure_percentage", percentage),
        ("outlier_detection.ejections_detected_local_origin_failure_percentage", local_percentage),
        ("outlier_detection.ejections_detected_local_origin_success_rate", local_success_rate),
        ("outlier_detection.ejections_detected_success_rate", success_rate),
        ("outlier_detection.ejections_enforced_consecutive_5xx", enforced[0]),
        ("outlier_detection.ejections_enforced_consecutive_gateway_failure", enforced[1]),
        ("outlier_detection.ejections_enforced_consecutive_local_origin_failure", enforced[2]),
        ("outlier_detection.ejections_enforced_success_rate", enforced[3]),
        ("outlier_detection.ejections_enforced_local_origin_success_rate", enforced[4]),
        ("outlier_detection.ejections_enforced_failure_percentage", enforced[5]),
        ("outlier_detection.ejections_enforced_local_origin_failure_percentage", enforced[6]),
        ("outlier_detection.ejections_enforced_total", enforced.iter().sum()),
        ("outlier_detection.ejections_overflow", counts.overflow),
        ("outlier_detection.ejections_success_rate", success_rate + local_success_rate),
        ("outlier_detection.ejections_total", counts.total),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grpc_is_judged_by_its_own_status() {
        for (code, is_grpc, expected) in
            [("14", true, 503), ("14", false, 200), ("0", true, 200), ("13", true, 500), ("99", true, 500)]
        {
            let headers = HeaderMap::from_iter([(
                http::HeaderName::from_static("grpc-status"),
                http::HeaderValue::from_static(code),
            )]);
            assert_eq!(status_of(StatusCode::OK, &headers, is_grpc).as_u16(), expected, "{code}");
        }
        assert_eq!(status_of(StatusCode::BAD_GATEWAY, &HeaderMap::new(), true), StatusCode::BAD_GATEWAY);
    }
}
