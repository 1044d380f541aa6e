//! STRICT_DNS and LOGICAL_DNS clusters: each name is looked up again and again, on its own clock.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use lateen_ir::{ClusterLoadAssignment, Dns, Endpoint, EndpointAddress};
use tokio::sync::mpsc;

use crate::resolver::{Answer, Resolver};

/// A cluster's names and how they are used.
#[derive(Clone)]
pub(crate) struct DnsCluster {
    pub(crate) assignment: Arc<ClusterLoadAssignment>,
    pub(crate) dns: Box<Dns>,
    /// LOGICAL_DNS: one host with all addresses.
    pub(crate) logical: bool,
    pub(crate) stats: Arc<DnsStats>,
}

/// Counters of a cluster's look-ups, by their names in Envoy.
#[derive(Debug, Default)]
pub(crate) struct DnsStats {
    update_attempt: AtomicU64,
    update_success: AtomicU64,
    update_failure: AtomicU64,
    update_no_rebuild: AtomicU64,
}

impl DnsStats {
    /// Names and values.
    pub(crate) fn read(&self) -> [(&'static str, u64); 4] {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        [
            ("update_attempt", get(&self.update_attempt)),
            ("update_success", get(&self.update_success)),
            ("update_failure", get(&self.update_failure)),
            ("update_no_rebuild", get(&self.update_no_rebuild)),
        ]
    }
}

fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

/// What a look-up found out about a name.
struct News {
    name: usize,
    /// None: it failed, what was known stays.
    addresses: Option<Vec<IpAddr>>,
}

/// Looks the names up for ever; tells `found` every result that differs from the last, the first when every name was asked
/// for once. A failed look-up leaves the name's last addresses; a name that does not exist has none.
pub(crate) async fn follow(
    cluster: DnsCluster,
    resolver: Resolver,
    found: impl FnMut(ClusterLoadAssignment),
) {
    let names = names(&cluster.assignment);
    let (news, arriving) = mpsc::channel(names.len().clamp(1, 64));
    let follow_all = names.iter().enumerate().map(|(index, name)| {
        let (news, cluster, resolver) = (news.clone(), &cluster, &resolver);
        async move { follow_name(index, name, cluster, resolver, news).await }
    });
    let follow_all = futures::future::join_all(follow_all);
    tokio::join!(follow_all, assemble(&cluster, &names, arriving, found));
}

fn names(assignment: &ClusterLoadAssignment) -> Vec<Arc<str>> {
    let mut names: Vec<Arc<str>> = Vec::new();
    for endpoint in assignment.priorities.iter().flatten().flat_map(|locality| &locality.endpoints) {
        if let EndpointAddress::Name(name, _) = &endpoint.address
            && !names.contains(name)
        {
            names.push(name.clone());
        }
    }
    names
}

async fn follow_name(
    index: usize,
    name: &str,
    cluster: &DnsCluster,
    resolver: &Resolver,
    news: mpsc::Sender<News>,
) {
    let (dns, stats) = (&cluster.dns, &cluster.stats);
    let mut failures: u32 = 0;
    loop {
        count(&stats.update_attempt);
        let answer = resolver.look_up(name, dns.family).await;
        let (addresses, ttl) = match answer {
            // A logical host without an address keeps the one it has: Envoy counts that as a failure.
            Ok(Answer { addresses, .. }) if addresses.is_empty() && cluster.logical => {
                failures = failures.saturating_add(1);
                count(&stats.update_failure);
                (None, None)
            }
            Ok(Answer { addresses, ttl, .. }) => {
                failures = 0;
                count(&stats.update_success);
                let ttl = (!addresses.is_empty()).then_some(ttl);
                (Some(addresses), ttl)
            }
            Err(error) => {
                tracing::debug!(%name, %error, "name does not resolve");
                failures = failures.saturating_add(1);
                count(&stats.update_failure);
                (None, None)
            }
        };
        if news.send(News { name: index, addresses }).await.is_err() {
            return;
        }
        tokio::time::sleep(pause(dns, failures, ttl, fastrand::u64(..))).await;
    }
}

/// The time until a name is looked up again.
pub(crate) fn pause(dns: &Dns, failures: u32, ttl: Option<Duration>, random: u64) -> Duration {
    if failures > 0 {
        return match dns.failure_refresh {
            Some(backoff) => crate::retry::pause(backoff, failures, random).max(Duration::from_millis(10)),
            None => dns.refresh_rate.max(Duration::from_millis(1)),
        };
    }
    let jitter = Duration::from_nanos(random.checked_rem(dns.jitter.as_nanos() as u64).unwrap_or(0));
    // A TTL of 0 says nothing about when to ask again.
    let ttl = ttl.filter(|ttl| dns.respect_ttl && !ttl.is_zero() && *ttl != Duration::MAX);
    ttl.map_or(dns.refresh_rate, |ttl| ttl.max(dns.least_ttl)).max(Duration::from_millis(1)) + jitter
}

/// Puts what is known of all names together, whenever something changes.
async fn assemble(
    cluster: &DnsCluster,
    names: &[Arc<str>],
    mut arriving: mpsc::Receiver<News>,
    mut found: impl FnMut(ClusterLoadAssignment),
) {
    let mut known: Vec<Option<Vec<IpAddr>>> = vec![None; names.len()];
    let mut asked = vec![false; names.len()];
    let mut last: Option<ClusterLoadAssignment> = None;
    let mut answered = false;
    loop {
        if asked.iter().all(|asked| *asked) {
            let assignment = resolved(cluster, names, &known);
            if last.as_ref() == Some(&assignment) {
                if answered {
                    count(&cluster.stats.update_no_rebuild);
                }
            } else {
                found(assignment.clone());
                last = Some(assignment);
            }
        }
        let Some(News { name, addresses }) = arriving.recv().await else { return };
        asked[name] = true;
        answered = addresses.is_some();
        if addresses.is_some() {
            known[name] = addresses;
        }
    }
}

/// The assignment with addresses for names.
fn resolved(
    cluster: &DnsCluster,
    names: &[Arc<str>],
    known: &[Option<Vec<IpAddr>>],
) -> ClusterLoadAssignment {
    let mut result = (*cluster.assignment).clone();
    for locality in result.priorities.iter_mut().flatten() {
        let mut endpoints = Vec::new();
        for endpoint in std::mem::take(&mut locality.endpoints) {
            let EndpointAddress::Name(name, port) = &endpoint.address else {
                endpoints.push(endpoint);
                continue;
            };
            let index = names.iter().position(|known| known == name);
            let addresses = index.and_then(|index| known[index].as_deref()).unwrap_or_default();
            let mut addresses: Vec<SocketAddr> =
                addresses.iter().map(|address| SocketAddr::new(*address, *port)).collect();
            if cluster.logical {
                // One host, whichever of its addresses answers.
                let first = addresses.split_first();
                endpoints.extend(first.map(|(first, others)| at(&endpoint, name, *first, others)));
            } else {
                // The order of an answer changes nothing.
                addresses.sort_unstable();
                addresses.dedup();
                endpoints.extend(addresses.into_iter().map(|address| at(&endpoint, name, address, &[])));
            }
        }
        locality.endpoints = endpoints;
    }
    result
}

fn at(endpoint: &Endpoint, name: &Arc<str>, address: SocketAddr, others: &[SocketAddr]) -> Arc<Endpoint> {
    let mut endpoint = endpoint.clone();
    endpoint.address = EndpointAddress::Socket(address);
    endpoint.additional_addresses = others.to_vec();
    endpoint.hostname.get_or_insert_with(|| name.clone());
    Arc::new(endpoint)
}

#[cfg(test)]
mod tests {
    use super::*;
    use lateen_ir::DnsFamily;

    #[test]
    fn names_are_asked_for_again_when_they_may_have_changed() {
        let seconds = Duration::from_secs;
        let dns = Dns {
            refresh_rate: seconds(60),
            jitter: Duration::ZERO,
            failure_refresh: None,
            family: DnsFamily::V4Only,
            respect_ttl: true,
            least_ttl: Duration::ZERO,
            resolver: None,
        };
        assert_eq!(pause(&dns, 0, Some(seconds(5)), 7), seconds(5));
        assert_eq!(pause(&dns, 0, Some(seconds(0)), 7), seconds(60), "a TTL of 0 says nothing");
        assert_eq!(pause(&dns, 0, None, 7), seconds(60));
        assert_eq!(pause(&dns, 1, Some(seconds(5)), 7), seconds(60));
        let fixed = Dns { respect_ttl: false, jitter: seconds(2), ..dns };
        let paused = pause(&fixed, 0, Some(seconds(5)), u64::MAX);
        assert!(paused >= seconds(60) && paused < seconds(62), "{paused:?}");
    }
}
