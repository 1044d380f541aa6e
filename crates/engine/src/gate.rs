//! Network filters that decide about a connection when its first byte comes. All they look at is known when the connection
//! begins, so policies are judged then; what waits for the byte is their effect, and asking external authorizers.

use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use lateen_ir::{Decision, DynamicMetadata, NetworkExtAuthz, NetworkFilter, RbacAction, RbacFilter};
use lateen_xds::pb::envoy::service::auth::v3::CheckResponse;
use smallvec::SmallVec;
use tokio::sync::oneshot;

use crate::call::{self, Call};
use crate::context::ConnectionInfo;
use crate::filters::ext_authz::{self, CHECK};
use crate::filters::{COMMON, access_log_hint, connection_view};
use crate::snapshot::ClusterSlot;
use crate::stats::blocks::{NetworkExtAuthzStats, RbacShadowStats, RbacStats};
use crate::stats::slots::ByteCounter;
use crate::worker::Worker;

/// Under which the filter of policies notes things.
const RBAC: &str = "envoy.filters.network.rbac";

/// One worker's side of a chain's filters.
pub(crate) struct LocalGate {
    filters: Vec<LocalFilter>,
}

enum LocalFilter {
    Rbac(Arc<RbacFilter>, Rc<RbacStats>, Rc<RbacShadowStats>),
    ExtAuthz(Arc<NetworkExtAuthz>, ClusterSlot, Rc<NetworkExtAuthzStats>),
}

/// What is decided about a connection when it begins, and takes effect with its first byte.
#[derive(Debug, Default)]
pub(crate) struct Judged {
    /// Why policies close it, if they do: Envoy's detail.
    pub(crate) denial: Option<Box<str>>,
    /// What filters noted of it, for logs.
    pub(crate) notes: Option<Box<ConnectionNotes>>,
}

/// What filters noted of a connection.
#[derive(Debug, Default)]
pub(crate) struct ConnectionNotes {
    pub(crate) all: DynamicMetadata,
    /// So far filters had come before somebody was asked who may have ended the connection.
    before_asking: Option<DynamicMetadata>,
}

impl ConnectionNotes {
    /// What there was to be noted of a connection that an external authorizer ended.
    pub(crate) fn of_refused(&self) -> &DynamicMetadata {
        self.before_asking.as_ref().unwrap_or(&self.all)
    }
}

impl LocalGate {
    /// `asked`: the clusters of the filters that ask others, in their order.
    pub(crate) fn new(filters: &[NetworkFilter], asked: &[ClusterSlot], worker: &Worker) -> Self {
        let stats = &worker.stats;
        let mut asked = asked.iter();
        let local = |filter: &NetworkFilter| match filter {
            NetworkFilter::Rbac(filter) => {
                let name = Arc::from(format!("{}\n", filter.stat_prefix));
                let shadow = Arc::from(format!("{}\n{}", filter.stat_prefix, filter.shadow_stat_prefix));
                Some(LocalFilter::Rbac(
                    filter.clone(),
                    stats.network_rbac(&name),
                    stats.network_rbac_shadow(&shadow),
                ))
            }
            NetworkFilter::ExtAuthz(filter) => {
                let stats = stats.network_ext_authz(&Arc::from(&*filter.stat_prefix));
                Some(LocalFilter::ExtAuthz(filter.clone(), *asked.next()?, stats))
            }
            _ => None,
        };
        Self { filters: filters.iter().filter_map(local).collect() }
    }

    /// The gate of a connection, and what is known of it already. `None`: there is none.
    pub(crate) fn of(&self, info: &ConnectionInfo, worker: &Rc<Worker>) -> Option<(Gate, Judged)> {
        if self.filters.is_empty() {
            return None;
        }
        let view = connection_view(info, info.peer.ip());
        let mut judged = Judged::default();
        let notes = &mut judged.notes;
        let mut stages = SmallVec::new();
        for filter in &self.filters {
            match filter {
                LocalFilter::Rbac(filter, stats, shadow_stats) => {
                    if let Some(shadow) = &filter.shadow_rules {
                        let verdict = shadow.judge(&view);
                        let (allowed, policy) = (verdict.allowed, verdict.position);
                        let (filter, rules) = (filter.clone(), filter.clone());
                        let decision = Decision { filter, rules, shadow: true, allowed, policy };
                        notes.get_or_insert_default().all.decide(RBAC, decision);
                        let counter =
                            if allowed { &shadow_stats.shadow_allowed } else { &shadow_stats.shadow_denied };
                        stages.push(Stage::Count(counter.clone()));
                    }
                    let Some(rules) = &filter.rules else { continue };
                    let verdict = rules.judge(&view);
                    if rules.action == RbacAction::Log {
                        let hint = access_log_hint(verdict.policy.is_some());
                        notes.get_or_insert_default().all.add(COMMON, hint);
                    }
                    let counter = if verdict.allowed { &stats.allowed } else { &stats.denied };
                    stages.push(Stage::Count(counter.clone()));
                    if !verdict.allowed {
                        stages.push(Stage::Close);
                        judged.denial = Some(verdict.denial().into());
                        return Some((Gate { stages, next: 0 }, judged));
                    }
                }
                LocalFilter::ExtAuthz(filter, cluster, stats) => {
                    let noted = notes.as_deref().map(|notes| &notes.all);
                    let enabled = filter.enabled_metadata.as_ref().is_none_or(|one| one.is_match(noted));
                    if enabled {
                        let question = question(filter, *cluster, info, noted, worker);
                        stages.push(Stage::Ask(Question::new(filter.clone(), question, stats.clone())));
                        if let Some(notes) = notes {
                            notes.before_asking.get_or_insert_with(|| notes.all.clone());
                        }
                    } else {
                        stats.disabled.inc();
                    }
                }
            }
        }
        Some((Gate { stages, next: 0 }, judged))
    }
}

/// What is asked about a connection; `None`: there is nobody to ask.
fn question(
    filter: &NetworkExtAuthz,
    cluster: ClusterSlot,
    info: &ConnectionInfo,
    noted: Option<&DynamicMetadata>,
    worker: &Rc<Worker>,
) -> Option<Call> {
    let service = &filter.service;
    let connection = ext_authz::connection_view(info, filter.include_peer_certificate);
    let request = connection.check(filter.include_tls_session, noted, &filter.metadata_namespaces);
    let mut message = call::grpc_message(service.authority.clone(), CHECK, service.timeout);
    for (name, format) in &service.initial_metadata {
        // Of a connection there is nothing yet that a format could tell.
        let value = format.as_literal().and_then(|text| http::HeaderValue::from_str(text).ok());
        message.headers.extend(value.map(|value| (name.clone(), value)));
    }
    if !service.skip_envoy_headers {
        call::add_internal(&mut message.headers);
        call::add_own_address(&mut message.headers, worker);
    }
    Some(Call {
        worker: worker.clone(),
        cluster: worker.view().cluster(cluster, worker)?,
        message,
        body: call::grpc_frame(&request),
        timeout: service.timeout,
        most_received: service.most_received,
        retry_policy: service.retry_policy.clone(),
    })
}

/// What happens with a connection's first byte, step by step.
#[derive(Debug)]
pub(crate) struct Gate {
    stages: SmallVec<[Stage; 2]>,
    next: usize,
}

#[derive(Debug)]
enum Stage {
    Count(ByteCounter),
    Close,
    Ask(Question),
}

/// An external authorizer to be asked, by a task of the connection's worker. (Streams must be `Send` for hyper; what asks is not.)
#[derive(Debug)]
struct Question {
    begin: Option<oneshot::Sender<()>>,
    passes: oneshot::Receiver<bool>,
}

impl Question {
    fn new(filter: Arc<NetworkExtAuthz>, call: Option<Call>, stats: Rc<NetworkExtAuthzStats>) -> Self {
        let (begin, begins) = oneshot::channel();
        let (mut answer, passes) = oneshot::channel();
        tokio::task::spawn_local(async move {
            // A connection may end without a byte.
            if begins.await.is_err() {
                return;
            }
            stats.total.inc();
            stats.active.inc();
            let passed = tokio::select! {
                biased;
                () = answer.closed() => false,
                passed = ask(&filter, call, &stats) => passed,
            };
            stats.active.dec();
            // Whoever asked may be gone.
            let _ = answer.send(passed);
        });
        Self { begin: Some(begin), passes }
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<bool> {
        if let Some(begin) = self.begin.take() {
            // Who is not there to hear it has no answer either.
            let _ = begin.send(());
        }
        Poll::Ready(ready!(Pin::new(&mut self.passes).poll(cx)).unwrap_or(false))
    }
}

/// Whether the connection passes.
async fn ask(filter: &NetworkExtAuthz, call: Option<Call>, stats: &NetworkExtAuthzStats) -> bool {
    let answer = match call {
        Some(call) => call.send().await.and_then(call::Called::grpc_message::<CheckResponse>),
        None => Err(call::Unanswered),
    };
    use lateen_xds::pb::envoy::service::auth::v3::check_response::HttpResponse;
    let passes = match answer {
        Ok(answer) if answer.status.as_ref().is_none_or(|status| status.code == 0) => {
            stats.ok.inc();
            true
        }
        Ok(answer) if !matches!(answer.http_response, Some(HttpResponse::ErrorResponse(_))) => {
            stats.denied.inc();
            false
        }
        Ok(_) | Err(_) => {
            stats.error.inc();
            if filter.failure_mode_allow {
                stats.failure_mode_allowed.inc();
            }
            filter.failure_mode_allow
        }
    };
    if filter.shadow {
        return true;
    }
    if !passes {
        stats.cx_closed.inc();
    }
    passes
}

/// The connection is not allowed.
#[derive(Debug, thiserror::Error)]
#[error("network filters do not allow the connection")]
pub(crate) struct Denied {
    /// What had come.
    pub(crate) bytes: usize,
    /// By an external authorizer.
    pub(crate) external: bool,
}

impl Gate {
    /// The first bytes, or the end without any.
    ///
    /// # Errors
    /// [`Denied`]: the connection is to be closed.
    pub(crate) fn poll_first(&mut self, bytes: usize, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while let Some(stage) = self.stages.get_mut(self.next) {
            let external = match stage {
                Stage::Count(counter) => {
                    counter.add(1);
                    None
                }
                Stage::Close => Some(false),
                Stage::Ask(question) => (!ready!(question.poll(cx))).then_some(true),
            };
            if let Some(external) = external {
                let denied = Denied { bytes, external };
                return Poll::Ready(Err(io::Error::new(io::ErrorKind::PermissionDenied, denied)));
            }
            self.next += 1;
        }
        Poll::Ready(Ok(()))
    }
}
