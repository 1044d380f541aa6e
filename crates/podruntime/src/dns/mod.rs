//! Cluster DNS, after the specification "Kubernetes DNS-Based Service Discovery" 1.1 (and CoreDNS where that is silent).

mod forward;
mod server;
mod zone;

pub(crate) use forward::Upstreams;
pub(crate) use server::{DnsServer, serve};
