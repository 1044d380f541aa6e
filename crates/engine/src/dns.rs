//! STRICT_DNS and LOGICAL_DNS clusters: one task looks a cluster's names up again and again.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use lateen_ir::{ClusterLoadAssignment, Dns, DnsFamily, Endpoint, EndpointAddress};

/// A cluster's names and how they are used.
#[derive(Clone, Debug)]
pub(crate) struct DnsCluster {
    pub(crate) assignment: ClusterLoadAssignment,
    pub(crate) dns: Dns,
    /// LOGICAL_DNS: one address is enough.
    pub(crate) logical: bool,
}

/// Looks the names up for ever; tells `found` every result that differs from the last. A name that does not resolve keeps
/// its last addresses.
pub(crate) async fn follow(cluster: DnsCluster, mut found: impl FnMut(ClusterLoadAssignment)) {
    let mut last: Option<ClusterLoadAssignment> = None;
    let mut failures: u32 = 0;
    loop {
        let (assignment, complete) = resolve(&cluster, last.as_ref()).await;
        failures = if complete { 0 } else { failures.saturating_add(1) };
        if last.as_ref() != Some(&assignment) {
            found(assignment.clone());
            last = Some(assignment);
        }
        tokio::time::sleep(pause(&cluster.dns, failures, fastrand::u64(..))).await;
    }
}

fn pause(dns: &Dns, failures: u32, random: u64) -> Duration {
    let jitter = Duration::from_nanos(random.checked_rem(dns.jitter.as_nanos() as u64).unwrap_or(0));
    match (failures, dns.failure_refresh) {
        (1.., Some(backoff)) => crate::retry::pause(backoff, failures, random).max(Duration::from_millis(10)),
        _ => dns.refresh_rate.max(Duration::from_millis(1)) + jitter,
    }
}

/// The assignment with addresses; false when some name did not resolve.
async fn resolve(
    cluster: &DnsCluster,
    last: Option<&ClusterLoadAssignment>,
) -> (ClusterLoadAssignment, bool) {
    let mut result = cluster.assignment.clone();
    let mut complete = true;
    for (priority, localities) in result.priorities.iter_mut().enumerate() {
        for (position, locality) in localities.iter_mut().enumerate() {
            let before =
                last.and_then(|last| last.priorities.get(priority)?.get(position)).map(|l| &l.endpoints);
            let mut endpoints = Vec::new();
            for endpoint in std::mem::take(&mut locality.endpoints) {
                match &endpoint.address {
                    EndpointAddress::Name(name, port) => match addresses(name, *port, cluster.dns.family)
                        .await
                    {
                        Ok(found) => {
                            let most = if cluster.logical { 1 } else { usize::MAX };
                            endpoints
                                .extend(found.into_iter().take(most).map(|a| resolved(&endpoint, name, a)));
                        }
                        Err(error) => {
                            tracing::debug!(%name, %error, "name does not resolve");
                            complete = false;
                            let same_name = |e: &&Arc<Endpoint>| e.hostname.as_deref() == Some(&**name);
                            endpoints.extend(before.into_iter().flatten().filter(same_name).cloned());
                        }
                    },
                    EndpointAddress::Socket(_) | EndpointAddress::Pipe(_) => endpoints.push(endpoint),
                }
            }
            locality.endpoints = endpoints;
        }
    }
    (result, complete)
}

fn resolved(endpoint: &Endpoint, name: &Arc<str>, address: SocketAddr) -> Arc<Endpoint> {
    let mut endpoint = endpoint.clone();
    endpoint.address = EndpointAddress::Socket(address);
    endpoint.hostname.get_or_insert_with(|| name.clone());
    Arc::new(endpoint)
}

/// A name's addresses, sorted so that the order of an answer changes nothing.
async fn addresses(name: &str, port: u16, family: DnsFamily) -> std::io::Result<Vec<SocketAddr>> {
    let mut found: Vec<SocketAddr> = tokio::net::lookup_host((name, port)).await?.collect();
    found.sort_unstable();
    found.dedup();
    Ok(by_family(found, family))
}

fn by_family(found: Vec<SocketAddr>, family: DnsFamily) -> Vec<SocketAddr> {
    let (v4, v6): (Vec<_>, Vec<_>) = found.iter().copied().partition(SocketAddr::is_ipv4);
    match family {
        DnsFamily::V4Only => v4,
        DnsFamily::V6Only => v6,
        DnsFamily::Auto => {
            if v6.is_empty() {
                v4
            } else {
                v6
            }
        }
        DnsFamily::V4Preferred => {
            if v4.is_empty() {
                v6
            } else {
                v4
            }
        }
        DnsFamily::All => found,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn families_are_chosen_as_configured() {
        let v4: SocketAddr = "10.0.0.1:80".parse().unwrap();
        let v6: SocketAddr = "[::2]:80".parse().unwrap();
        for (family, found, expected) in [
            (DnsFamily::Auto, vec![v4, v6], vec![v6]),
            (DnsFamily::Auto, vec![v4], vec![v4]),
            (DnsFamily::V4Preferred, vec![v4, v6], vec![v4]),
            (DnsFamily::V4Preferred, vec![v6], vec![v6]),
            (DnsFamily::V4Only, vec![v6], vec![]),
            (DnsFamily::All, vec![v4, v6], vec![v4, v6]),
        ] {
            assert_eq!(by_family(found, family), expected, "{family:?}");
        }
    }
}
