//! Step 4 for TCP: joins a connection to one of a cluster's endpoints.

use std::io;
use std::rc::Rc;
use std::sync::Arc;

use lateen_ir::{Discovery, HostAddress};

use crate::breakers::{self, Limited};
use crate::cluster::{LocalCluster, Need};
use crate::context::ConnectionInfo;
use crate::dns_cache::{DnsCache, Loaded};
use crate::failure::{Flags, Reset, underscored};
use crate::format_values::TcpFacts;
use crate::gate::Denied;
use crate::host::Host;
use crate::mover::{Moved, Mover};
use crate::outlier::Outcome;
use crate::signal::Signal;
use crate::snapshot::TcpConfig;
use crate::special::Special;
use crate::stats::blocks::TcpStats;
use crate::stream::Stream;
use crate::tls::TlsFacts;
use crate::upstream::{self, Target};
use crate::upstream_connection::{self, Opened};
use crate::worker::Worker;
use crate::{log_filter, render, retry, timer};

/// What is logged at the end.
#[derive(Default)]
struct Outcomes {
    flags: Flags,
    /// Network filters ended it.
    denied: bool,
    /// An external authorizer ended it.
    refused: bool,
    cluster: Option<Rc<LocalCluster>>,
    host: Option<Rc<Host>>,
    /// Attempts to connect.
    attempts: u32,
    upstream_local: Option<std::net::SocketAddr>,
    upstream_remote: Option<HostAddress>,
    upstream_tls: Option<Rc<TlsFacts>>,
    failure: Option<Box<str>>,
    moved: Moved,
}

/// Serves one connection until both directions are closed, nothing moved for the idle time-out, or draining took too long.
pub(crate) async fn serve(
    mut client: Stream,
    info: ConnectionInfo,
    config: &TcpConfig,
    stats: &TcpStats,
    drain: &Signal,
    worker: &Rc<Worker>,
) {
    client.count_into(&stats.downstream_cx_rx_bytes_total, &stats.downstream_cx_tx_bytes_total);
    stats.downstream_cx_total.inc();
    let mut outcomes = Outcomes::default();
    if let Some((cache, port)) = &config.sni
        && !Box::pin(look_up(info.server_name.as_deref(), cache, *port)).await
    {
        return log(&info, config, worker, &outcomes);
    }
    if let Some((mut server, _opened)) = connect(&info, config, stats, worker, &mut outcomes).await {
        let limit = config.ir.max_downstream_connection_duration;
        let end = async {
            drain.fired().await;
            tokio::time::sleep(worker.drain_time).await;
        };
        let moved = Mover::new(&mut client, &mut server, config.ir.idle_timeout, &outcomes.moved);
        tokio::select! {
            biased;
            ended = moved => if let Err(error) = ended {
                if error.kind() == io::ErrorKind::TimedOut {
                    stats.idle_timeout.inc();
                }
                if let Some(Denied { bytes, external }) = error.get_ref().and_then(|error| error.downcast_ref()) {
                    (outcomes.denied, outcomes.refused) = (!external, *external);
                    if *external {
                        outcomes.flags.insert(Flags::UNAUTHORIZED_EXTERNAL);
                    }
                    outcomes.moved.received.set(*bytes as u64);
                }
            },
            () = end => {}
            () = timer::after(limit) => stats.max_downstream_connection_duration.inc(),
        }
    }
    log(&info, config, worker, &outcomes);
}

/// Waits until the name that TLS asks for is looked up; false when there are too many of them.
async fn look_up(name: Option<&str>, cache: &Arc<DnsCache>, port: Option<u16>) -> bool {
    let Some(name) = name.filter(|name| !name.is_empty()) else { return true };
    let Some(_pending) = cache.admit() else { return false };
    let mut key = String::new();
    lateen_ir::dynamic_host_key(name, port.unwrap_or_default(), &mut key);
    match cache.load(&key) {
        Loaded::Known(_) => true,
        Loaded::Loading(host) => {
            host.resolved().await;
            true
        }
        Loaded::Overflow => false,
    }
}

/// Counts and logs a connection whose handshake failed.
pub(crate) fn not_shaken(info: &ConnectionInfo, config: &TcpConfig, stats: &TcpStats, worker: &Rc<Worker>) {
    stats.downstream_cx_total.inc();
    log(info, config, worker, &Outcomes::default());
}

async fn connect(
    info: &ConnectionInfo,
    config: &TcpConfig,
    stats: &TcpStats,
    worker: &Rc<Worker>,
    outcomes: &mut Outcomes,
) -> Option<(Stream, Opened)> {
    let picked = config.ir.pick(worker.random());
    let slot = config.slots.get(picked.cluster.index as usize)?;
    let Some(cluster) = worker.view().cluster(*slot, worker) else {
        stats.downstream_cx_no_route.inc();
        outcomes.flags.insert(Flags::NO_CLUSTER);
        return None;
    };
    outcomes.cluster = Some(cluster.clone());
    let destination = match &cluster.config.ir.discovery {
        Discovery::OriginalDst { .. } => info.original_destination(),
        _ => None,
    };
    let hash = info.peer.ip().filter(|_| config.ir.hash_source_ip).map(lateen_ir::address_hash);
    let name = info.server_name.as_deref();
    let port = config.sni.as_ref().and_then(|(_, port)| *port);
    let criteria = picked.metadata_match.as_ref();
    let need = || Need { destination, name, port, hash, criteria, ..Need::default() };
    for attempt in 1..=config.ir.max_connect_attempts.max(1) {
        if attempt > 1
            && let Some(backoff) = config.ir.backoff
        {
            tokio::time::sleep(retry::pause(backoff, attempt - 1, worker.random())).await;
        }
        let mut found = cluster.pick(need(), &mut || worker.random(), &|_| false);
        if found.is_none() {
            found = Box::pin(cluster.look_up_host(name, port)).await.ok();
        }
        let Some(host) = found else {
            cluster.stats.upstream_cx_none_healthy.inc();
            outcomes.flags.insert(Flags::NO_HEALTHY_UPSTREAM);
            return None;
        };
        outcomes.host = Some(host.clone());
        outcomes.attempts = attempt;
        let Some(place) = breakers::admit(&cluster.config, Limited::Connection, false) else {
            cluster.stats.upstream_cx_overflow.inc();
            outcomes.flags.insert(Flags::UPSTREAM_OVERFLOW);
            return None;
        };
        let target = Target {
            worker,
            cluster: &cluster,
            host: &host,
            special: Special::of(None, info.ends(), &cluster.config.ir, &host, false),
        };
        let Ok(pending) = upstream::pending(&target) else {
            outcomes.flags.insert(Flags::UPSTREAM_OVERFLOW);
            return None;
        };
        let opening = upstream_connection::open(&target, Some(place), &[]).await;
        pending.over();
        match opening {
            Ok((stream, opened)) => {
                opened.facts.active.set(1);
                cluster.stats.upstream_rq_total.inc();
                host.stats.rq_total.inc();
                cluster.observe(&host, Outcome::Served, worker);
                outcomes.flags = Flags::default();
                outcomes.failure = None;
                outcomes.upstream_local = opened.facts.local.get();
                outcomes.upstream_remote = opened.facts.remote.get().cloned();
                outcomes.upstream_tls = opened.facts.tls.get().cloned();
                return Some((stream, opened));
            }
            Err(reset) => note_failure(&cluster, &host, &reset, worker, outcomes),
        }
    }
    cluster.stats.upstream_cx_connect_attempts_exceeded.inc();
    outcomes.flags.insert(Flags::CONNECT_ATTEMPTS);
    None
}

fn note_failure(
    cluster: &LocalCluster,
    host: &Host,
    reset: &Reset,
    worker: &Worker,
    outcomes: &mut Outcomes,
) {
    cluster.observe(host, Outcome::LocalFailure, worker);
    outcomes.flags.insert(Flags::UPSTREAM_CONNECTION_FAILURE);
    outcomes.failure = reset.transport_reason().map(|reason| underscored(reason).into());
}

fn log(info: &ConnectionInfo, config: &TcpConfig, worker: &Rc<Worker>, outcomes: &Outcomes) {
    if config.ir.access_log.is_empty() {
        return;
    }
    let cluster = outcomes.cluster.as_ref().map(|cluster| cluster.config.ir.clone());
    let notes = info.judged.notes.as_deref();
    let host_name = outcomes.host.as_ref().map(|host| host.name());
    let facts = TcpFacts {
        info,
        hostname: &worker.identity.hostname,
        flags: outcomes.flags,
        details: info.judged.denial.as_deref().filter(|_| outcomes.denied).unwrap_or_default(),
        noted: notes.map(|notes| if outcomes.refused { notes.of_refused() } else { &notes.all }),
        received: outcomes.moved.received.get(),
        sent: outcomes.moved.sent.get(),
        cluster: cluster.as_ref().map(|cluster: &Arc<lateen_ir::Cluster>| &*cluster.name),
        host: outcomes.host.as_ref().map(|host| &host.address),
        host_name: host_name.as_deref(),
        attempts: outcomes.attempts,
        upstream_local: outcomes.upstream_local,
        upstream_remote: outcomes.upstream_remote.as_ref(),
        upstream_tls: outcomes.upstream_tls.as_deref(),
        failure: outcomes.failure.as_deref(),
    };
    let millis = info.started.elapsed().as_millis() as u64;
    for log in &config.ir.access_log {
        let passes = |filter| log_filter::passes_tcp(filter, outcomes.flags, millis, worker.random());
        if log.filter.as_ref().is_none_or(passes) {
            worker.log_line(&log.sink, |line| render::line(&log.format, &facts, line));
        }
    }
}
