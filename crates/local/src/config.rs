//! What a cluster is started with.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use lateen_podruntime::{ImageMap, Names, Network};

/// Who runs the pods.
#[derive(Debug, Clone)]
pub enum Pods {
    /// This process, in network namespaces of this machine. Needs root.
    Run {
        /// The program with the hidden subcommand `container-run`.
        executable: PathBuf,
        /// Which command runs for which image.
        images: ImageMap,
    },
    /// Somebody else (a test's fake), by watching pods with this node's name and writing their status.
    Elsewhere,
}

/// Everything that varies between two clusters.
#[derive(Debug, Clone)]
pub struct ClusterConfig {
    /// `pki/`, `store/`, `logs/`, `pods/` live here. Default `/var/lib/lateen`.
    pub state_dir: PathBuf,
    /// Keep objects and keys in [`Self::state_dir`], so that the next start finds them. Default true.
    pub durable: bool,
    /// Name of the only node. Default `lateen`.
    pub node_name: String,
    /// Names of interfaces, network namespaces and the nftables table. Default prefix `lateen`.
    pub names: Names,
    /// Addresses. Default: see ARCHITECTURE.md, "Embedded cluster"; of IPv6 where this machine carries it.
    pub network: Network,
    /// Where the API server listens on this machine. Default `127.0.0.1:6443`. With [`Pods::Run`] the node's address
    /// (same port) and the address of the Service `kubernetes` (port 443) come on top.
    pub api_listen: SocketAddr,
    /// Who runs the pods.
    pub pods: Pods,
}

impl ClusterConfig {
    /// The defaults, with pods run by `executable` and programs of built-in images taken from its folder.
    pub fn new(executable: PathBuf) -> Self {
        let binaries = executable.parent().map(PathBuf::from).unwrap_or_default();
        Self {
            state_dir: PathBuf::from("/var/lib/lateen"),
            durable: true,
            node_name: "lateen".to_owned(),
            names: Names::default(),
            network: Network::of_this_machine(),
            api_listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 6443)),
            pods: Pods::Run { executable, images: ImageMap::new(binaries) },
        }
    }

    /// A cluster in memory that needs no root: a free port, nothing on disk, and pods that only run if somebody writes
    /// their status. For tests of whatever talks to an API server.
    pub fn in_memory() -> Self {
        Self {
            state_dir: PathBuf::new(),
            durable: false,
            node_name: "lateen".to_owned(),
            names: Names::default(),
            network: Network::default(),
            api_listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
            pods: Pods::Elsewhere,
        }
    }
}
