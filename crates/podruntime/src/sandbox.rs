//! A pod's network: a namespace, a veth pair and a routed address (/32), with IPv6 a second one (/128).
//!
//! The pod's default route leads to a link-local next hop on the host's end. Neighbour entries are fixed on both sides, so
//! nothing depends on ARP (nor on the host having a default route, as proxy ARP would).

use std::net::{Ipv4Addr, Ipv6Addr};

use crate::{Names, Network, RuntimeError, command, names::ShortId, netns};

/// The pod's next hop, on no interface of the host.
const NEXT_HOP: Ipv4Addr = Ipv4Addr::new(169, 254, 1, 1);
const NEXT_HOP6: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);
/// The hardware address of every host end: locally administered, the same for all pods.
const HOST_MAC: &str = "ee:ee:ee:ee:ee:ee";

/// A pod's network on this host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Sandbox {
    /// Name of the network namespace.
    pub(crate) netns: String,
    /// The host's end of the veth pair.
    pub(crate) veth: String,
    /// The pod's address.
    pub(crate) address: Ipv4Addr,
    /// Its address of IPv6, where the cluster has that.
    pub(crate) address6: Option<Ipv6Addr>,
}

impl Sandbox {
    /// Makes everything; whatever a former attempt left under the same names is replaced.
    pub(crate) async fn create(
        names: &Names,
        network: &Network,
        uid: &str,
        address: Ipv4Addr,
    ) -> Result<Self, RuntimeError> {
        let id = ShortId::of_uid(uid);
        let sandbox = Self {
            netns: names.netns(id),
            veth: names.veth(id),
            address,
            address6: network.ipv6_of(address),
        };
        remove_link(&sandbox.veth).await?;
        netns::create(&sandbox.netns).await?;
        match sandbox.connect(network).await {
            Ok(()) => Ok(sandbox),
            Err(error) => {
                // The first error is the one worth reporting.
                let _ = sandbox.destroy().await;
                Err(error)
            }
        }
    }

    async fn connect(&self, network: &Network) -> Result<(), RuntimeError> {
        let Self { netns, veth, address, address6 } = self;
        let [a, b, c, d] = address.octets();
        let pod_mac = format!("02:00:{a:02x}:{b:02x}:{c:02x}:{d:02x}");
        command::ip(&[
            format!(
                "link add {veth} address {HOST_MAC} type veth peer name eth0 address {pod_mac} netns {netns}"
            ),
            format!("link set {veth} up"),
            format!("route replace {address}/32 dev {veth} scope link src {}", network.node_ip),
            format!("neigh replace {address} lladdr {pod_mac} dev {veth} nud permanent"),
        ])
        .await?;
        let inside = [
            "link set lo up".to_owned(),
            format!("addr add {address}/32 dev eth0"),
            "link set eth0 up".to_owned(),
            format!("route add {NEXT_HOP}/32 dev eth0 scope link"),
            format!("neigh replace {NEXT_HOP} lladdr {HOST_MAC} dev eth0 nud permanent"),
            format!("route add default via {NEXT_HOP} dev eth0"),
        ];
        command::ip_in(netns, &inside).await?;
        match (address6, network.ipv6_of(network.node_ip)) {
            (Some(address), Some(node)) => self.connect_ipv6(*address, node, &pod_mac).await,
            _ => Ok(()),
        }
    }

    async fn connect_ipv6(
        &self,
        address: Ipv6Addr,
        node: Ipv6Addr,
        pod_mac: &str,
    ) -> Result<(), RuntimeError> {
        let Self { netns, veth, .. } = self;
        command::ip(&[
            format!("route replace {address}/128 dev {veth} src {node}"),
            format!("neigh replace {address} lladdr {pod_mac} dev {veth} nud permanent"),
        ])
        .await?;
        // Nobody else can have the address, so nobody has to be asked.
        let inside = [
            format!("addr add {address}/128 dev eth0 nodad"),
            format!("neigh replace {NEXT_HOP6} lladdr {HOST_MAC} dev eth0 nud permanent"),
            format!("route add default via {NEXT_HOP6} dev eth0"),
        ];
        command::ip_in(netns, &inside).await
    }

    /// Removes everything; what is missing is fine.
    pub(crate) async fn destroy(&self) -> Result<(), RuntimeError> {
        // The link first: a namespace lives as long as a process in it, and the address must be free at once.
        let link = remove_link(&self.veth).await;
        netns::delete(&self.netns)?;
        link
    }
}

/// Removes an interface of the host, if it is there.
pub(crate) async fn remove_link(name: &str) -> Result<(), RuntimeError> {
    if !std::path::Path::new("/sys/class/net").join(name).exists() {
        return Ok(());
    }
    match command::ip(&[format!("link del {name}")]).await {
        // Its other end may have gone in between, and took it along.
        Err(RuntimeError::Command { output, .. }) if output.contains("Cannot find device") => Ok(()),
        result => result,
    }
}
