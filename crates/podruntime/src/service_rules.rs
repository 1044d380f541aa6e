//! Service addresses as nftables rules: one table, replaced in one transaction, so that established connections go on.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    net::{Ipv4Addr, SocketAddrV4},
};

use crate::{
    Names, Network,
    cluster_index::{Address, ClusterIndex, Protocol, ServiceEntry},
};

/// One port of one service with the backends that take its connections.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Rule {
    /// Addresses clients use.
    pub(crate) addresses: Vec<Ipv4Addr>,
    pub(crate) protocol: Protocol,
    pub(crate) port: u16,
    pub(crate) node_port: Option<u16>,
    /// Never empty.
    pub(crate) backends: Vec<SocketAddrV4>,
    pub(crate) client_affinity: bool,
}

/// The rules for all services that have backends. Addresses in `local` are served by the host itself.
pub(crate) fn rules(index: &ClusterIndex, local: &[Ipv4Addr]) -> Vec<Rule> {
    index.values().flat_map(|entry| entry_rules(entry, local)).collect()
}

fn entry_rules(entry: &ServiceEntry, local: &[Ipv4Addr]) -> Vec<Rule> {
    let Address::Virtual(cluster_ip) = entry.address else { return Vec::new() };
    let addresses: Vec<Ipv4Addr> = std::iter::once(cluster_ip)
        .chain(entry.ingress.iter().copied())
        .filter(|address| !local.contains(address))
        .collect();
    if addresses.is_empty() {
        return Vec::new();
    }
    // As kube-proxy: endpoints that shut down but still serve are better than none.
    let any_ready = entry.endpoints.iter().any(|endpoint| endpoint.ready);
    let usable = entry.endpoints.iter().filter(|e| if any_ready { e.ready } else { e.serving });
    let backends = |name: &str, protocol: Protocol| -> Vec<SocketAddrV4> {
        let key = (name.to_owned(), protocol);
        usable
            .clone()
            .filter_map(|endpoint| Some(SocketAddrV4::new(endpoint.address, *endpoint.ports.get(&key)?)))
            .collect()
    };
    let rule = |port: &crate::cluster_index::Port| Rule {
        addresses: addresses.clone(),
        protocol: port.protocol,
        port: port.port,
        node_port: port.node_port,
        backends: backends(&port.name, port.protocol),
        client_affinity: entry.client_affinity,
    };
    entry.ports.iter().map(rule).filter(|rule| !rule.backends.is_empty()).collect()
}

/// The nft script with these rules.
///
/// Connections to a service without backends match nothing and are refused by the `refuse` chains, as in Kubernetes.
pub(crate) fn script(names: &Names, network: &Network, rules: &[Rule]) -> String {
    let mut virtual_addresses = BTreeMap::new();
    let mut node_ports = BTreeMap::new();
    let mut hairpins = BTreeSet::new();
    let mut chains = String::new();
    for (number, rule) in rules.iter().enumerate() {
        let protocol = rule.protocol.as_str();
        for address in &rule.addresses {
            // Two services may (wrongly) claim one external address; the first keeps it.
            virtual_addresses.entry(format!("{address} . {protocol} . {}", rule.port)).or_insert(number);
        }
        if let Some(port) = rule.node_port {
            node_ports.entry(format!("{protocol} . {port}")).or_insert(number);
        }
        hairpins.extend(rule.backends.iter().map(|backend| format!("{0} . {0}", backend.ip())));
        chains.push_str(&service_chain(number, rule));
    }
    let table = names.nft_table();
    let interface = names.node_interface();
    let Network { node_ip, pod_cidr, service_cidr, load_balancer_cidr, .. } = network;
    let services = map("services", "ipv4_addr . inet_proto . inet_service", &virtual_addresses);
    let node_ports = map("node-ports", "inet_proto . inet_service", &node_ports);
    let hairpins = elements(hairpins);
    format!(
        "table ip {table}
delete table ip {table}
table ip {table} {{
{services}{node_ports}  set hairpin {{
    type ipv4_addr . ipv4_addr;{hairpins}
  }}
{chains}  chain dispatch {{
    ip daddr . meta l4proto . th dport vmap @services
    fib daddr type local ip daddr != 127.0.0.0/8 meta l4proto . th dport vmap @node-ports
  }}
  chain prerouting {{
    type nat hook prerouting priority dstnat; policy accept;
    jump dispatch
  }}
  chain output {{
    type nat hook output priority -100; policy accept;
    jump dispatch
  }}
  chain postrouting {{
    type nat hook postrouting priority srcnat; policy accept;
    ct status dnat ip saddr . ip daddr @hairpin snat to {node_ip}
    ip saddr {pod_cidr} ip daddr != {{ {pod_cidr}, {service_cidr}, {load_balancer_cidr} }} masquerade
  }}
  chain refuse {{
    meta l4proto tcp reject with tcp reset
    reject with icmp port-unreachable
  }}
  chain refuse-forward {{
    type filter hook forward priority filter; policy accept;
    ip daddr {{ {service_cidr}, {load_balancer_cidr} }} goto refuse
  }}
  chain refuse-output {{
    type filter hook output priority filter; policy accept;
    oifname \"{interface}\" ip daddr {{ {service_cidr}, {load_balancer_cidr} }} goto refuse
  }}
}}
"
    )
}

fn service_chain(number: usize, rule: &Rule) -> String {
    let choice = match (rule.backends.as_slice(), rule.client_affinity) {
        ([only], _) => only.to_string(),
        // Affinity by a hash of the client's address: it holds while the set of backends stays the same.
        (backends, true) => format!("jhash ip saddr mod {} map {}", backends.len(), backend_map(backends)),
        (backends, false) => format!("numgen random mod {} map {}", backends.len(), backend_map(backends)),
    };
    let keyword = if rule.backends.len() == 1 { "dnat to" } else { "dnat ip to" };
    format!(
        "  chain service-{number} {{\n    meta l4proto {} {keyword} {choice}\n  }}\n",
        rule.protocol.as_str()
    )
}

fn backend_map(backends: &[SocketAddrV4]) -> String {
    let items: Vec<String> = backends
        .iter()
        .enumerate()
        .map(|(number, backend)| format!("{number} : {} . {}", backend.ip(), backend.port()))
        .collect();
    format!("{{ {} }}", items.join(", "))
}

fn map(name: &str, key: &str, entries: &BTreeMap<String, usize>) -> String {
    let items = elements(entries.iter().map(|(key, number)| format!("{key} : goto service-{number}")));
    format!("  map {name} {{\n    type {key} : verdict;{items}\n  }}\n")
}

/// An `elements` clause, or nothing: nft has no empty one.
fn elements(items: impl IntoIterator<Item = String>) -> String {
    let items: Vec<String> = items.into_iter().collect();
    let mut clause = String::new();
    if !items.is_empty() {
        // Writing to a string can't fail.
        let _ = write!(clause, "\n    elements = {{ {} }}", items.join(", "));
    }
    clause
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster_index::tests::{index, service, slice};
    use serde_json::json;

    #[test]
    fn a_rule_for_each_port_with_backends() {
        let ports = json!([{ "name": "http", "port": 80, "nodePort": 30080 }, { "name": "dns", "port": 53, "protocol": "UDP" }]);
        let mut web = service("web", "10.96.0.7", ports);
        web["status"] = json!({ "loadBalancer": { "ingress": [{ "ip": "10.97.0.1" }] } });
        let slices = [slice(
            "web",
            json!([
                { "addresses": ["10.244.0.5"] },
                { "addresses": ["10.244.0.4"] },
                { "addresses": ["10.244.0.9"], "conditions": { "ready": false, "serving": true, "terminating": true } }
            ]),
            json!([{ "name": "http", "port": 8080 }]),
        )];
        let empty = service("empty", "10.96.0.8", json!([{ "port": 80 }]));
        let own = service("kubernetes", "10.96.0.1", json!([{ "name": "http", "port": 443 }]));
        let rules = rules(&index(&[web, empty, own], &slices), &[Ipv4Addr::new(10, 96, 0, 1)]);
        assert_eq!(rules.len(), 1);
        assert_eq!(rules[0].addresses, [Ipv4Addr::new(10, 96, 0, 7), Ipv4Addr::new(10, 97, 0, 1)]);
        assert_eq!(
            rules[0].backends,
            ["10.244.0.4:8080".parse().unwrap(), "10.244.0.5:8080".parse().unwrap()]
        );

        let script = script(&Names::default(), &Network::default(), &rules);
        for expected in [
            "elements = { 10.96.0.7 . tcp . 80 : goto service-0, 10.97.0.1 . tcp . 80 : goto service-0 }",
            "elements = { tcp . 30080 : goto service-0 }",
            "meta l4proto tcp dnat ip to numgen random mod 2 map { 0 : 10.244.0.4 . 8080, 1 : 10.244.0.5 . 8080 }",
            "elements = { 10.244.0.4 . 10.244.0.4, 10.244.0.5 . 10.244.0.5 }",
        ] {
            assert!(script.contains(expected), "{expected}\n{script}");
        }
    }

    #[test]
    fn endpoints_shutting_down_serve_when_there_are_no_others() {
        let endpoints = json!([
            { "addresses": ["10.244.0.4"], "conditions": { "ready": false, "serving": true, "terminating": true } },
            { "addresses": ["10.244.0.5"], "conditions": { "ready": false } }
        ]);
        let mut web = service("web", "10.96.0.7", json!([{ "port": 80 }]));
        web["spec"]["sessionAffinity"] = json!("ClientIP");
        let rules = rules(&index(&[web], &[slice("web", endpoints, json!([{ "port": 8080 }]))]), &[]);
        assert_eq!(rules[0].backends, ["10.244.0.4:8080".parse().unwrap()]);
        let script = script(&Names::default(), &Network::default(), &rules);
        assert!(script.contains("meta l4proto tcp dnat to 10.244.0.4:8080"), "{script}");
    }
}
