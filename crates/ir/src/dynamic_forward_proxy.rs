//! Hosts that are not known before somebody asks for them: the cache of their addresses, shared by the filters that look names
//! up and by the clusters that send there.
//! <https://www.envoyproxy.io/docs/envoy/v1.40.0/intro/arch_overview/http/http_proxy>

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderName, HeaderValue};
use ipnet::IpNet;

use crate::cluster::Dns;

/// Envoy's `DnsCacheConfig`. Whoever names the same cache must give the same settings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DnsCacheConfig {
    /// Name, for stats too.
    pub name: Arc<str>,
    /// How names are looked up. Here the pause defaults to 60 s where an answer says nothing, and to 5 s at least.
    pub dns: Dns,
    /// Names that nobody asked for so long are forgotten, when they are looked up the next time. Default 5 min.
    pub host_ttl: Duration,
    /// Most names. Default 1024.
    pub max_hosts: u32,
    /// Most requests that wait for an address. Default 1024.
    pub max_pending_requests: u32,
    /// For one look-up. Default 5 s; `None`: the resolver's.
    pub query_timeout: Option<Duration>,
    /// Names that do not resolve are looked up again and again; else they are forgotten, and asked for with the next request.
    pub refreshes_failures: bool,
    /// Names to look up at once, with their ports.
    pub known: Vec<(Arc<str>, u16)>,
    /// Addresses that are left out of answers (`resolved_address_filter`).
    pub refused: Option<AddressFilter>,
}

/// Envoy's `AddressMatcher`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AddressFilter {
    /// Ranges of addresses.
    pub ranges: Vec<IpNet>,
    /// Meant are the addresses outside them.
    pub inverted: bool,
}

impl AddressFilter {
    /// Whether an address is meant.
    pub fn holds(&self, address: IpAddr) -> bool {
        self.ranges.iter().any(|range| range.contains(&address)) != self.inverted
    }
}

/// What a route changes about the name that is looked up (`PerRouteConfig`): the request's authority becomes this.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DynamicHostRewrite {
    /// A fixed one.
    Literal(HeaderValue),
    /// The first value of a header, when the request has it.
    Header(HeaderName),
    /// It stays as it is.
    None,
}

/// Envoy's network filter `sni_dynamic_forward_proxy`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SniDynamicForwardProxy {
    /// Where the name that TLS asks for is looked up.
    pub cache: Arc<DnsCacheConfig>,
    /// Port of the host that is connected to. Envoy's 0: none is given.
    pub port: u16,
}

/// The key of a name in a cache: with its port, which is `default_port` where it has none. Appends to `key`.
pub fn dynamic_host_key(authority: &str, default_port: u16, key: &mut String) {
    key.push_str(authority);
    if !has_port(authority) {
        key.push(':');
        let mut digit = 10_000;
        while digit > 1 && default_port / digit == 0 {
            digit /= 10;
        }
        while digit > 0 {
            key.push(char::from(b'0' + (default_port / digit % 10) as u8));
            digit /= 10;
        }
    }
}

/// Whether an authority ends with a port. The colons of an IPv6 address are none.
fn has_port(authority: &str) -> bool {
    let Some((host, port)) = authority.rsplit_once(':') else { return false };
    let numeric = !port.is_empty() && port.bytes().all(|digit| digit.is_ascii_digit());
    numeric && (!host.contains(':') || host.ends_with(']'))
}

/// The host, without brackets, and the port of a key.
pub fn dynamic_host_parts(key: &str) -> Option<(&str, u16)> {
    let (host, port) = key.rsplit_once(':')?;
    let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    Some((host, port.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_have_ports() {
        for (authority, port, expected, parts) in [
            ("a.example", 80, "a.example:80", Some(("a.example", 80))),
            ("a.example:8080", 80, "a.example:8080", Some(("a.example", 8080))),
            ("1.2.3.4", 443, "1.2.3.4:443", Some(("1.2.3.4", 443))),
            ("[fd00::1]:81", 80, "[fd00::1]:81", Some(("fd00::1", 81))),
            ("[fd00::1]", 80, "[fd00::1]:80", Some(("fd00::1", 80))),
            ("a.example:", 80, "a.example::80", Some(("a.example:", 80))),
            ("a.example:99999", 80, "a.example:99999", None),
            ("a", 65535, "a:65535", Some(("a", 65535))),
            ("a", 7, "a:7", Some(("a", 7))),
        ] {
            let mut key = String::new();
            dynamic_host_key(authority, port, &mut key);
            assert_eq!(key, expected);
            assert_eq!(dynamic_host_parts(&key), parts, "{key}");
        }
    }
}
