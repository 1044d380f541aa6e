//! Traffic capture: nftables rules inside a pod's network namespace.
//!
//! [`CaptureConfig::from_args`] reads the flags of Istio's `istio-iptables`, [`rules`] turns them into one nft script, and
//! [`apply`] loads it into the network namespace the caller runs in. Applying again replaces the rules in one transaction.

mod apply;
mod args;
mod resolv_conf;
mod rules;

pub use apply::{ApplyError, apply};
pub use args::{ArgumentError, CaptureConfig, DnsCapture, InboundPorts, IpRanges};
pub use resolv_conf::ResolvConf;
pub use rules::rules;

/// Where the proxy's DNS server listens, on loopback, over UDP and TCP; Istio's port.
pub const DNS_PORT: u16 = 15053;

/// The socket mark of the proxy's own connections, which capture leaves alone.
pub const PROXY_MARK: u32 = 1337;
