//! Everything the runtime has to be told.

use std::{
    net::{Ipv4Addr, Ipv6Addr},
    path::PathBuf,
};

use ipnet::{Ipv4Net, Ipv6Net};

use crate::{ImageMap, Names, RuntimeError};

/// The cluster's addresses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Network {
    /// The node's own address, from which probes and host connections reach pods. Default 10.244.0.1.
    pub node_ip: Ipv4Addr,
    /// Pods' addresses. Default 10.244.0.0/16.
    pub pod_cidr: Ipv4Net,
    /// Cluster IPs; the first is the API server's, the tenth the cluster DNS's. Default 10.96.0.0/16.
    pub service_cidr: Ipv4Net,
    /// Addresses of services of type LoadBalancer. Default 10.97.0.0/24.
    pub load_balancer_cidr: Ipv4Net,
    /// The second family. Default: none; [`Self::of_this_machine`] has one where the machine can carry it.
    pub ipv6: Option<Ipv6Network>,
    /// The zone of the cluster DNS. Default `cluster.local`.
    pub cluster_domain: String,
}

/// The cluster's addresses of IPv6. Every pod has one, which ends as its IPv4 address does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ipv6Network {
    /// Pods' addresses and the node's. Default fd00:10:244::/64.
    pub pod_cidr: Ipv6Net,
    /// Cluster IPs. Default fd00:10:96::/112.
    pub service_cidr: Ipv6Net,
}

impl Default for Ipv6Network {
    fn default() -> Self {
        let net = |third: u16, length| {
            Ipv6Net::new_assert(Ipv6Addr::new(0xfd00, 0x10, third, 0, 0, 0, 0, 0), length)
        };
        Self { pod_cidr: net(0x244, 64), service_cidr: net(0x96, 112) }
    }
}

impl Default for Network {
    fn default() -> Self {
        Self {
            node_ip: Ipv4Addr::new(10, 244, 0, 1),
            pod_cidr: Ipv4Net::new_assert(Ipv4Addr::new(10, 244, 0, 0), 16),
            service_cidr: Ipv4Net::new_assert(Ipv4Addr::new(10, 96, 0, 0), 16),
            load_balancer_cidr: Ipv4Net::new_assert(Ipv4Addr::new(10, 97, 0, 0), 24),
            ipv6: None,
            cluster_domain: "cluster.local".to_owned(),
        }
    }
}

impl Network {
    /// The defaults, with IPv6 where this machine has it on and nftables can translate it.
    pub fn of_this_machine() -> Self {
        Self { ipv6: crate::host::has_ipv6().then(Ipv6Network::default), ..Self::default() }
    }

    /// The address of IPv6 of whoever has this one in the pods' range: a pod or the node.
    pub fn ipv6_of(&self, address: Ipv4Addr) -> Option<Ipv6Addr> {
        let offset = u32::from(address).checked_sub(u32::from(self.pod_cidr.network()))?;
        let range = self.ipv6.as_ref()?.pod_cidr;
        Some(Ipv6Addr::from(u128::from(range.network()) + u128::from(offset)))
    }

    /// The cluster IP of `kubernetes.default`, served on the host itself (port 443).
    pub fn api_ip(&self) -> Ipv4Addr {
        self.service_address(1)
    }

    /// The cluster IP of the cluster DNS, served on the host itself (port 53).
    pub fn dns_ip(&self) -> Ipv4Addr {
        self.service_address(10)
    }

    fn service_address(&self, number: u32) -> Ipv4Addr {
        Ipv4Addr::from(u32::from(self.service_cidr.network()) + number)
    }

    /// Checks sizes and overlaps.
    ///
    /// # Errors
    /// [`RuntimeError::Config`] when the ranges overlap, the node's address is outside the pods' range, or there is no room.
    pub fn validate(&self) -> Result<(), RuntimeError> {
        let overlap = |a: &Ipv4Net, b: &Ipv4Net| a.contains(b) || b.contains(a);
        if overlap(&self.pod_cidr, &self.service_cidr)
            || overlap(&self.pod_cidr, &self.load_balancer_cidr)
            || overlap(&self.service_cidr, &self.load_balancer_cidr)
        {
            return Err(RuntimeError::Config(format!(
                "the address ranges of pods ({}), services ({}) and load balancers ({}) must not overlap",
                self.pod_cidr, self.service_cidr, self.load_balancer_cidr
            )));
        }
        if !self.pod_cidr.contains(&self.node_ip) {
            return Err(RuntimeError::Config(format!(
                "the node's address {} must lie in the pods' range {}",
                self.node_ip, self.pod_cidr
            )));
        }
        if self.pod_cidr.prefix_len() > 28 || self.service_cidr.prefix_len() > 27 {
            return Err(RuntimeError::Config(format!(
                "the pods' range {} needs at least 16 addresses, the services' range {} at least 32",
                self.pod_cidr, self.service_cidr
            )));
        }
        if let Some(Ipv6Network { pod_cidr, service_cidr }) = &self.ipv6 {
            if pod_cidr.contains(service_cidr) || service_cidr.contains(pod_cidr) {
                return Err(RuntimeError::Config(format!(
                    "the address ranges of pods ({pod_cidr}) and services ({service_cidr}) must not overlap"
                )));
            }
            if pod_cidr.prefix_len() > 96 || service_cidr.prefix_len() > 123 {
                return Err(RuntimeError::Config(format!(
                    "the pods' range {pod_cidr} may have a prefix of at most 96 bits, the services' range {service_cidr} of 123"
                )));
            }
        }
        Ok(())
    }
}

/// Everything the runtime has to be told.
#[derive(Debug, Clone)]
pub struct RuntimeConfig {
    /// Pods with this `spec.nodeName` are run. Default `lateen`.
    pub node_name: String,
    /// Names on the host.
    pub names: Names,
    /// Addresses.
    pub network: Network,
    /// Where `pods/` and `logs/` are kept; private to root. Default `/var/lib/lateen`.
    pub state_dir: PathBuf,
    /// The program with the hidden subcommand `container-run`, run once per container. Default: the running program.
    pub executable: PathBuf,
    /// Which command runs for which image. Its folder of programs is visible at the same path inside containers.
    pub images: ImageMap,
}

impl RuntimeConfig {
    /// The defaults, with programs taken from the running program's own folder.
    ///
    /// # Errors
    /// [`RuntimeError::Host`] when the running program can't be found.
    pub fn new() -> Result<Self, RuntimeError> {
        let executable = std::env::current_exe().map_err(|error| {
            RuntimeError::Host(format!("the running program's path can't be read: {error}"))
        })?;
        let binaries = executable.parent().map(PathBuf::from).unwrap_or_default();
        Ok(Self {
            node_name: "lateen".to_owned(),
            names: Names::default(),
            network: Network::default(),
            state_dir: PathBuf::from("/var/lib/lateen"),
            executable,
            images: ImageMap::new(binaries),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn well_known_addresses() {
        let network = Network::default();
        assert_eq!(network.api_ip(), Ipv4Addr::new(10, 96, 0, 1));
        assert_eq!(network.dns_ip(), Ipv4Addr::new(10, 96, 0, 10));
        network.validate().unwrap();
        assert_eq!(network.ipv6_of(network.node_ip), None);
        let dual = Network { ipv6: Some(Ipv6Network::default()), ..network };
        dual.validate().unwrap();
        assert_eq!(dual.ipv6_of(Ipv4Addr::new(10, 244, 1, 5)), Some("fd00:10:244::105".parse().unwrap()));
    }

    #[test]
    fn bad_ranges() {
        let overlapping = Network { service_cidr: "10.244.128.0/20".parse().unwrap(), ..Network::default() };
        let outside = Network { node_ip: Ipv4Addr::new(10, 1, 0, 1), ..Network::default() };
        let small = Network { pod_cidr: "10.244.0.0/30".parse().unwrap(), ..Network::default() };
        let six = |pods: &str, services: &str| Network {
            ipv6: Some(Ipv6Network {
                pod_cidr: pods.parse().unwrap(),
                service_cidr: services.parse().unwrap(),
            }),
            ..Network::default()
        };
        let (overlapping6, small6) = (six("fd00::/64", "fd00::/112"), six("fd00::/112", "fd01::/112"));
        for bad in [overlapping, outside, small, overlapping6, small6] {
            assert!(matches!(bad.validate(), Err(RuntimeError::Config(_))), "{bad:?}");
        }
    }
}
