//! Everything the runtime has to be told.

use std::{net::Ipv4Addr, path::PathBuf};

use ipnet::Ipv4Net;

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
    /// The zone of the cluster DNS. Default `cluster.local`.
    pub cluster_domain: String,
}

impl Default for Network {
    fn default() -> Self {
        Self {
            node_ip: Ipv4Addr::new(10, 244, 0, 1),
            pod_cidr: Ipv4Net::new_assert(Ipv4Addr::new(10, 244, 0, 0), 16),
            service_cidr: Ipv4Net::new_assert(Ipv4Addr::new(10, 96, 0, 0), 16),
            load_balancer_cidr: Ipv4Net::new_assert(Ipv4Addr::new(10, 97, 0, 0), 24),
            cluster_domain: "cluster.local".to_owned(),
        }
    }
}

impl Network {
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
    }

    #[test]
    fn bad_ranges() {
        let overlapping = Network { service_cidr: "10.244.128.0/20".parse().unwrap(), ..Network::default() };
        let outside = Network { node_ip: Ipv4Addr::new(10, 1, 0, 1), ..Network::default() };
        let small = Network { pod_cidr: "10.244.0.0/30".parse().unwrap(), ..Network::default() };
        for bad in [overlapping, outside, small] {
            assert!(matches!(bad.validate(), Err(RuntimeError::Config(_))), "{bad:?}");
        }
    }
}
