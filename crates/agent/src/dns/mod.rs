//! The DNS server beside the application: names of the mesh from the control plane's table, all others by the pod's resolvers.
//!
//! Capture leads the application's queries here, on loopback port 15053, over UDP and TCP. The rules are those of Istio's agent.

mod names;
mod server;
mod table;
mod upstream;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use lateen_capture::{DNS_PORT, ResolvConf};
use tokio::net::{TcpListener, UdpSocket};
use tokio::task::JoinSet;

pub(crate) use names::Names;
use server::Server;
use table::Domain;
use upstream::Upstreams;

use crate::error::AgentError;

/// How the DNS server is set up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dns {
    /// Where it listens, on UDP and TCP. Port 0 picks a free one.
    pub listen: Vec<SocketAddr>,
    /// Whom to ask about names the mesh does not have, in this order.
    pub resolvers: Vec<SocketAddr>,
    /// The pod's search domains.
    pub search: Vec<String>,
}

impl Dns {
    /// As a pod's `/etc/resolv.conf` has it: on loopback, in the families of the resolvers.
    pub fn of_pod(conf: &ResolvConf) -> Self {
        let mut listen = vec![SocketAddr::from((Ipv4Addr::LOCALHOST, DNS_PORT))];
        if conf.servers.iter().any(IpAddr::is_ipv6) {
            listen.push(SocketAddr::from((Ipv6Addr::LOCALHOST, DNS_PORT)));
        }
        let resolvers = conf.servers.iter().map(|server| SocketAddr::new(*server, 53)).collect();
        Self { listen, resolvers, search: conf.search.clone() }
    }
}

/// Binds the server's sockets and serves them in tasks of `tasks`. The names it answers come in through what is returned.
///
/// # Errors
/// When an address is taken or not ours.
pub(crate) async fn start(
    config: &Dns,
    namespace: &str,
    domain: &str,
    mark: Option<u32>,
    tasks: &mut JoinSet<()>,
) -> Result<Names, AgentError> {
    let names = Names::new(Domain::new(namespace, domain, &config.search));
    let upstreams = Upstreams::new(config.resolvers.clone(), mark);
    let server = Arc::new(Server::new(names.current(), upstreams));
    for &address in &config.listen {
        let failed = |source| AgentError::Listen { address, purpose: "DNS", source };
        let udp = UdpSocket::bind(address).await.map_err(failed)?;
        // The same port, where one was picked.
        let tcp = TcpListener::bind(udp.local_addr().map_err(failed)?).await.map_err(failed)?;
        tasks.spawn(server::serve_udp(Arc::clone(&server), udp));
        tasks.spawn(server::serve_tcp(Arc::clone(&server), tcp));
    }
    Ok(names)
}
