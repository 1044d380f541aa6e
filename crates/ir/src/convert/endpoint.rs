//! Load assignments.
#![allow(deprecated)]

use std::sync::Arc;

use lateen_xds::pb::envoy::config::core::v3 as core;
use lateen_xds::pb::envoy::config::endpoint::v3 as proto;
use proto::cluster_load_assignment::Policy;

use super::health_check::endpoint_health_check;
use super::values::{
    Converted, enumeration, host_and_port, number, optional, pipe, required, socket_address, text,
};
use crate::error::At;
use crate::support::fields;
use crate::{ClusterLoadAssignment, Endpoint, EndpointAddress, HealthStatus, Locality, LocalityEndpoints};

const MAX_PRIORITY: u32 = 128;
const OVERPROVISIONING: u32 = 140;

/// Whether an endpoint's address may be a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Names {
    /// DNS clusters.
    Allowed,
    /// Others.
    Refused,
}

pub(super) fn load_assignment(
    at: &At<'_>,
    message: proto::ClusterLoadAssignment,
    names: Names,
) -> Converted<ClusterLoadAssignment> {
    fields!(at, message => proto::ClusterLoadAssignment {
        used { cluster_name, endpoints, policy }
        inert {}
        rejected { named_endpoints = "endpoints by name" }
    });
    let mut priorities: Vec<Vec<LocalityEndpoints>> = Vec::new();
    for (index, locality) in endpoints.into_iter().enumerate() {
        let (priority, locality) = locality_endpoints(&at.index("endpoints", index), locality, names)?;
        if priorities.len() <= priority {
            priorities.resize_with(priority + 1, Vec::new);
        }
        priorities[priority].push(locality);
    }
    let (overprovisioning_factor, weighted_priority_health) = match policy {
        None => (OVERPROVISIONING, false),
        Some(policy) => self::policy(&at.field("policy"), policy)?,
    };
    Ok(ClusterLoadAssignment {
        cluster_name: cluster_name.into(),
        priorities,
        overprovisioning_factor,
        weighted_priority_health,
    })
}

fn policy(at: &At<'_>, message: Policy) -> Converted<(u32, bool)> {
    fields!(at, message => Policy {
        used { overprovisioning_factor, weighted_priority_health }
        inert {}
        rejected {
            drop_overloads = "dropping a share of the requests",
            endpoint_stale_after = "endpoints that grow stale",
        }
    });
    let factor = number(overprovisioning_factor).unwrap_or(OVERPROVISIONING);
    if factor == 0 {
        return Err(at.error_in("overprovisioning_factor", "must be greater than 0"));
    }
    Ok((factor, weighted_priority_health))
}

fn locality_endpoints(
    at: &At<'_>,
    message: proto::LocalityLbEndpoints,
    names: Names,
) -> Converted<(usize, LocalityEndpoints)> {
    fields!(at, message => proto::LocalityLbEndpoints {
        used { locality, lb_endpoints, load_balancing_weight, priority, lb_config }
        inert {
            metadata = "no supported extension reads it; it stays in config_dump",
            proximity = "Envoy ignores it too",
        }
        rejected {}
        variants { leds_cluster_locality_config = "endpoint discovery of its own" }
    });
    use proto::locality_lb_endpoints::LbConfig;
    let lb_endpoints = match lb_config {
        None => lb_endpoints,
        Some(LbConfig::LoadBalancerEndpoints(list)) => list.lb_endpoints,
        Some(LbConfig::LedsClusterLocalityConfig(_)) => {
            return Err(
                at.error_in("leds_cluster_locality_config", "not supported: endpoint discovery of its own")
            );
        }
    };
    if priority > MAX_PRIORITY {
        return Err(at.error_in("priority", format!("must be at most {MAX_PRIORITY}")));
    }
    let core::Locality { region, zone, sub_zone } = locality.unwrap_or_default();
    let locality = Locality { region: text(region), zone: text(zone), sub_zone: text(sub_zone) };
    let endpoints = lb_endpoints.into_iter().enumerate().map(|(index, endpoint)| {
        lb_endpoint(&at.index("lb_endpoints", index), endpoint, names).map(Arc::new)
    });
    let mut endpoints: Vec<_> = endpoints.collect::<Converted<_>>()?;
    // The list was made in the place of the messages, which are many times larger.
    endpoints.shrink_to_fit();
    Ok((
        priority as usize,
        LocalityEndpoints {
            locality: Arc::new(locality),
            weight: number(load_balancing_weight).filter(|weight| *weight > 0),
            endpoints,
        },
    ))
}

fn lb_endpoint(at: &At<'_>, message: proto::LbEndpoint, names: Names) -> Converted<Endpoint> {
    use proto::lb_endpoint::HostIdentifier;
    fields!(at, message => proto::LbEndpoint {
        used { health_status, metadata, load_balancing_weight, host_identifier }
        inert {}
        rejected {}
        variants { endpoint_name = "endpoints by name" }
    });
    let endpoint = match required(at, "endpoint", host_identifier)? {
        HostIdentifier::Endpoint(endpoint) => endpoint,
        HostIdentifier::EndpointName(_) => {
            return Err(at.error_in("endpoint_name", "not supported: endpoints by name"));
        }
    };
    let weight = match number(load_balancing_weight) {
        Some(0) => return Err(at.error_in("load_balancing_weight", "must be at least 1")),
        weight => weight.unwrap_or(1),
    };
    let health = match enumeration(at, "health_status", health_status)? {
        core::HealthStatus::Unknown | core::HealthStatus::Healthy => HealthStatus::Healthy,
        core::HealthStatus::Degraded => HealthStatus::Degraded,
        core::HealthStatus::Unhealthy | core::HealthStatus::Timeout => HealthStatus::Unhealthy,
        core::HealthStatus::Draining => HealthStatus::Draining,
    };
    let at = at.field("endpoint");
    fields!(&at, endpoint => proto::Endpoint {
        used { address, hostname, additional_addresses, health_check_config }
        inert {}
        rejected { observability_name = "another name in stats" }
    });
    let mut additional_addresses = additional_addresses
        .into_iter()
        .enumerate()
        .map(|(index, additional)| {
            socket_address(&at.index("additional_addresses", index).field("address"), additional.address)
        })
        .collect::<Converted<Vec<_>>>()?;
    // Where names stand for endpoints, Envoy does without them.
    if matches!(names, Names::Allowed) {
        additional_addresses.clear();
    }
    let address = endpoint_address(&at.field("address"), address, names)?;
    // Where names stand for endpoints, an address is its own.
    let own_name = || match (&address, names) {
        (EndpointAddress::Socket(address), Names::Allowed) => Some(address.ip().to_string().into()),
        _ => None,
    };
    Ok(Endpoint {
        hostname: optional(hostname).or_else(own_name),
        address,
        additional_addresses,
        weight,
        health_check: health_check_config
            .map(|config| endpoint_health_check(&at.field("health_check_config"), config).map(Arc::new))
            .transpose()?,
        health,
        metadata: super::values::metadata(metadata),
    })
}

fn endpoint_address(at: &At<'_>, address: Option<core::Address>, names: Names) -> Converted<EndpointAddress> {
    match address.and_then(|address| address.address) {
        Some(core::address::Address::SocketAddress(address)) => {
            let at = at.field("socket_address");
            let (host, port) = host_and_port(&at, address)?;
            match (host.parse::<std::net::IpAddr>(), names) {
                (Ok(ip), _) => Ok(EndpointAddress::Socket((ip, port).into())),
                (Err(_), Names::Allowed) if !host.is_empty() => Ok(EndpointAddress::Name(host.into(), port)),
                (Err(_), _) => {
                    let reason = format!("{host:?} is not an IP address; names need a DNS cluster");
                    Err(at.error_in("address", reason))
                }
            }
        }
        // The file is there already: its permissions are not ours to change, as with Envoy.
        Some(core::address::Address::Pipe(message)) => {
            pipe(&at.field("pipe"), message).map(|(path, _)| EndpointAddress::Pipe(path))
        }
        Some(core::address::Address::EnvoyInternalAddress(_)) => {
            Err(at.error_in("envoy_internal_address", "not supported: internal listeners"))
        }
        None => Err(at.error("is required")),
    }
}
