//! An exchange with an endpoint whose answer has begun.

use std::rc::Rc;
use std::time::{Duration, Instant};

use http::response;
use http_body::Body as _;
use lateen_ir::HeaderMutations;

use crate::body::RequestSource;
use crate::breakers::{self, Admission, Limited};
use crate::cluster::LocalCluster;
use crate::forward::{WeightedEntry, weighted_entry};
use crate::host::Host;
use crate::incoming::Incoming;
use crate::route_stats;
use crate::stats::blocks::RouteStats;
use crate::upstream::Lease;

/// Upstream's answer: the head came, the body follows.
pub(crate) struct Answer {
    pub(crate) head: response::Parts,
    pub(crate) body: Incoming,
    pub(crate) stream: UpstreamStream,
}

/// An exchange whose answer has begun. Keeps the connection and the counts until the end.
pub(crate) struct UpstreamStream {
    pub(crate) lease: Option<Lease>,
    pub(crate) active: ActiveRequest,
    /// `None`: the request had no part in this one.
    pub(crate) source: Option<Rc<RequestSource>>,
    pub(crate) weighted: Option<WeightedEntry>,
    pub(crate) request_sent: Instant,
    pub(crate) service_time: Duration,
    pub(crate) status: http::StatusCode,
    /// End of the route's time-out.
    pub(crate) deadline: Option<Instant>,
    /// When the stream must be over.
    pub(crate) stream_end: Option<Instant>,
    pub(crate) idle_timeout: Option<Duration>,
    /// The retry policy's: nothing from upstream for so long.
    pub(crate) per_try_idle: Option<Duration>,
}

impl UpstreamStream {
    /// The answer to a copy of a request, whose body has been sent on its own.
    pub(crate) fn of_mirror(
        lease: Lease,
        active: ActiveRequest,
        began: Instant,
        status: http::StatusCode,
    ) -> Self {
        Self {
            lease: Some(lease),
            active,
            source: None,
            weighted: None,
            request_sent: began,
            service_time: began.elapsed(),
            status,
            deadline: None,
            stream_end: None,
            idle_timeout: None,
            per_try_idle: None,
        }
    }

    /// The answer is not wanted. The connection can carry another request when there is nothing more of it.
    pub(crate) fn release(&mut self, body: &Incoming) {
        let lease = self.lease.take().filter(|_| body.is_end_stream());
        lease.into_iter().for_each(|lease| lease.finished(&self.active.cluster));
    }

    /// True when the client had sent its whole request.
    pub(crate) fn request_ended(&self) -> bool {
        self.source.as_ref().is_none_or(|source| source.end_has_come())
    }

    /// From the end of the request to the head of the answer.
    pub(crate) fn service_time(&self) -> Duration {
        self.service_time
    }

    /// Response header changes of the weighted cluster that was chosen.
    pub(crate) fn weighted(&self) -> Option<&HeaderMutations> {
        let (route, index) = self.weighted.as_ref()?;
        weighted_entry(route, *index).map(|entry| &entry.response_headers)
    }

    /// The route's time-out passed while the answer was coming.
    pub(crate) fn timed_out(&self) {
        self.active.cluster.stats.upstream_rq_timeout.inc();
        self.active.route.iter().for_each(|route| route.upstream_rq_timeout.inc());
        self.active.host.stats.rq_timeout.inc();
    }

    /// Nothing came from upstream for too long.
    pub(crate) fn idled(&self) {
        self.active.cluster.stats.upstream_rq_per_try_idle_timeout.inc();
        self.active.host.stats.rq_timeout.inc();
    }

    /// Counts the answer, whose head is taken.
    pub(crate) fn charge(&self) {
        route_stats::charge(&self.active.cluster, self.active.route.as_deref(), self.status);
    }

    /// The answer ended; a clean end gives the connection back.
    pub(crate) fn end(&mut self, clean: bool) {
        let cluster = &self.active.cluster;
        let lease = self.lease.take();
        if !clean {
            return;
        }
        let took = self.request_sent.elapsed().as_millis() as u64;
        cluster.stats.upstream_rq_time.record(took);
        self.active.route.iter().for_each(|route| route.upstream_rq_time.record(took));
        lease.iter().for_each(Lease::answered);
        // A connection on which the request is still being sent cannot carry another, and nobody wants the rest.
        match &self.source {
            Some(source) if !source.ended() => source.abandon(),
            _ => lease.into_iter().for_each(|lease| lease.finished(cluster)),
        }
    }
}

/// Counts an exchange until dropped.
pub(crate) struct ActiveRequest {
    cluster: Rc<LocalCluster>,
    host: Rc<Host>,
    route: Option<Rc<RouteStats>>,
    _place: Admission,
}

impl ActiveRequest {
    pub(crate) fn new(cluster: &Rc<LocalCluster>, host: &Rc<Host>, place: Admission) -> Self {
        cluster.stats.upstream_rq_total.inc();
        cluster.stats.upstream_rq_active.inc();
        host.stats.rq_total.inc();
        host.stats.rq_active.inc();
        Self { cluster: cluster.clone(), host: host.clone(), route: None, _place: place }
    }

    /// For a request that has its connection, where the cluster takes one more.
    pub(crate) fn admit(cluster: &Rc<LocalCluster>, host: &Rc<Host>, high_priority: bool) -> Option<Self> {
        let Some(place) = breakers::admit(&cluster.config, Limited::Request, high_priority) else {
            cluster.stats.upstream_rq_active_overflow.inc();
            return None;
        };
        Some(Self::new(cluster, host, place))
    }

    /// It counts for its route as well.
    pub(crate) fn of_route(mut self, route: &Option<Rc<RouteStats>>) -> Self {
        if let Some(route) = route {
            route.upstream_rq_total.inc();
            self.route = Some(route.clone());
        }
        self
    }
}

impl Drop for ActiveRequest {
    fn drop(&mut self) {
        self.cluster.stats.upstream_rq_active.dec();
        self.host.stats.rq_active.dec();
    }
}
