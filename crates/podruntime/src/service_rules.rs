//! Service addresses as nftables rules: one table, replaced in one transaction, so that established connections go on.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::{Display, Write as _},
    net::{IpAddr, Ipv4Addr, SocketAddr},
};

use crate::{
    Names, Network,
    cluster_index::{Address, ClusterIndex, Protocol, ServiceEntry},
};

/// One port of one service with the backends that take its connections, of one family.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Rule {
    /// Addresses clients use; never empty.
    pub(crate) addresses: Vec<IpAddr>,
    pub(crate) protocol: Protocol,
    pub(crate) port: u16,
    pub(crate) node_port: Option<u16>,
    /// Never empty.
    pub(crate) backends: Vec<SocketAddr>,
    pub(crate) client_affinity: bool,
}

/// The rules for all services that have backends. Addresses in `local` are served by the host itself.
pub(crate) fn rules(index: &ClusterIndex, local: &[Ipv4Addr]) -> Vec<Rule> {
    index.values().flat_map(|entry| entry_rules(entry, local)).collect()
}

fn entry_rules(entry: &ServiceEntry, local: &[Ipv4Addr]) -> Vec<Rule> {
    let Address::Virtual(cluster_ips) = &entry.address else { return Vec::new() };
    let mine = |address: &&IpAddr| !local.iter().any(|local| **address == IpAddr::V4(*local));
    let addresses: Vec<IpAddr> = cluster_ips.iter().chain(&entry.ingress).filter(mine).copied().collect();
    let of_family = |v6: bool| -> Vec<IpAddr> {
        addresses.iter().copied().filter(|address| address.is_ipv6() == v6).collect()
    };
    let families = [(false, of_family(false)), (true, of_family(true))];
    let families = families.into_iter().filter(|(_, addresses)| !addresses.is_empty());
    families.flat_map(|(v6, addresses)| family_rules(entry, v6, &addresses)).collect()
}

fn family_rules(entry: &ServiceEntry, v6: bool, addresses: &[IpAddr]) -> Vec<Rule> {
    let endpoints = || entry.endpoints.iter().filter(move |endpoint| endpoint.address.is_ipv6() == v6);
    // As kube-proxy: endpoints that shut down but still serve are better than none.
    let any_ready = endpoints().any(|endpoint| endpoint.ready);
    let usable = || endpoints().filter(move |e| if any_ready { e.ready } else { e.serving });
    let backends = |name: &str, protocol: Protocol| -> Vec<SocketAddr> {
        let key = (name.to_owned(), protocol);
        usable()
            .filter_map(|endpoint| Some(SocketAddr::new(endpoint.address, *endpoint.ports.get(&key)?)))
            .collect()
    };
    let rule = |port: &crate::cluster_index::Port| Rule {
        addresses: addresses.to_vec(),
        protocol: port.protocol,
        port: port.port,
        node_port: port.node_port,
        backends: backends(&port.name, port.protocol),
        client_affinity: entry.client_affinity,
    };
    entry.ports.iter().map(rule).filter(|rule| !rule.backends.is_empty()).collect()
}

/// What is spelled differently in the tables of the two families.
struct Family {
    table: &'static str,
    address: &'static str,
    loopback: &'static str,
    unreachable: &'static str,
    node: String,
    pods: String,
    /// Where services have their addresses.
    virtual_ranges: String,
}

impl Family {
    fn v4(network: &Network) -> Self {
        Self {
            table: "ip",
            address: "ipv4_addr",
            loopback: "127.0.0.0/8",
            unreachable: "icmp port-unreachable",
            node: network.node_ip.to_string(),
            pods: network.pod_cidr.to_string(),
            virtual_ranges: format!("{}, {}", network.service_cidr, network.load_balancer_cidr),
        }
    }

    fn v6(network: &Network) -> Option<Self> {
        let ranges = network.ipv6.as_ref()?;
        Some(Self {
            table: "ip6",
            address: "ipv6_addr",
            loopback: "::1",
            unreachable: "icmpv6 port-unreachable",
            node: network.ipv6_of(network.node_ip)?.to_string(),
            pods: ranges.pod_cidr.to_string(),
            virtual_ranges: ranges.service_cidr.to_string(),
        })
    }
}

/// The nft script with these rules: a table for each family.
///
/// Connections to a service without backends match nothing and are refused by the `refuse` chains, as in Kubernetes.
pub(crate) fn script(names: &Names, network: &Network, rules: &[Rule]) -> String {
    let (v6, v4): (Vec<&Rule>, Vec<&Rule>) = rules.iter().partition(|rule| rule.addresses[0].is_ipv6());
    let mut script = table(names, &Family::v4(network), &v4);
    if let Some(family) = Family::v6(network) {
        script.push_str(&table(names, &family, &v6));
    }
    script
}

fn table(names: &Names, family: &Family, rules: &[&Rule]) -> String {
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
        chains.push_str(&service_chain(family.table, number, rule));
    }
    let name = names.nft_table();
    let interface = names.node_interface();
    let Family { table, address, loopback, unreachable, node, pods, virtual_ranges } = family;
    let services = map("services", &format!("{address} . inet_proto . inet_service"), &virtual_addresses);
    let node_ports = map("node-ports", "inet_proto . inet_service", &node_ports);
    let hairpins = elements(hairpins);
    format!(
        "table {table} {name}
delete table {table} {name}
table {table} {name} {{
{services}{node_ports}  set hairpin {{
    type {address} . {address};{hairpins}
  }}
{chains}  chain dispatch {{
    {table} daddr . meta l4proto . th dport vmap @services
    fib daddr type local {table} daddr != {loopback} meta l4proto . th dport vmap @node-ports
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
    ct status dnat {table} saddr . {table} daddr @hairpin snat to {node}
    {table} saddr {pods} {table} daddr != {{ {pods}, {virtual_ranges} }} masquerade
  }}
  chain refuse {{
    meta l4proto tcp reject with tcp reset
    reject with {unreachable}
  }}
  chain refuse-forward {{
    type filter hook forward priority filter; policy accept;
    {table} daddr {{ {virtual_ranges} }} goto refuse
  }}
  chain refuse-output {{
    type filter hook output priority filter; policy accept;
    oifname \"{interface}\" {table} daddr {{ {virtual_ranges} }} goto refuse
  }}
}}
"
    )
}

fn service_chain(table: &str, number: usize, rule: &Rule) -> String {
    let by_random = |how: &dyn Display, backends: &[SocketAddr]| {
        format!("{how} mod {} map {}", backends.len(), backend_map(backends))
    };
    let (keyword, choice) = match (rule.backends.as_slice(), rule.client_affinity) {
        ([only], _) => ("dnat to".to_owned(), only.to_string()),
        // Affinity by a hash of the client's address: it holds while the set of backends stays the same.
        (backends, true) => {
            (format!("dnat {table} to"), by_random(&format_args!("jhash {table} saddr"), backends))
        }
        (backends, false) => (format!("dnat {table} to"), by_random(&"numgen random", backends)),
    };
    format!(
        "  chain service-{number} {{\n    meta l4proto {} {keyword} {choice}\n  }}\n",
        rule.protocol.as_str()
    )
}

fn backend_map(backends: &[SocketAddr]) -> String {
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
        assert_eq!(rules[0].addresses, ["10.96.0.7", "10.97.0.1"].map(|ip| ip.parse::<IpAddr>().unwrap()));
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

    #[test]
    fn each_family_has_a_table() {
        let mut web = service("web", "10.96.0.7", json!([{ "port": 80 }]));
        web["spec"]["clusterIPs"] = json!(["10.96.0.7", "fd00:10:96::7"]);
        let ports = json!([{ "port": 8080 }]);
        let mut six = slice(
            "web",
            json!([{ "addresses": ["fd00:10:244::4"] }, { "addresses": ["fd00:10:244::5"] }]),
            ports.clone(),
        );
        six["addressType"] = json!("IPv6");
        let mut only = service("only", "fd00:10:96::8", json!([{ "port": 81 }]));
        only["spec"]["sessionAffinity"] = json!("ClientIP");
        let mut only_slice = slice("only", json!([{ "addresses": ["fd00:10:244::9"] }]), ports.clone());
        only_slice["addressType"] = json!("IPv6");
        let slices = [slice("web", json!([{ "addresses": ["10.244.0.4"] }]), ports), six, only_slice];
        let rules = rules(&index(&[web, only], &slices), &[]);
        let dual = Network { ipv6: Some(crate::Ipv6Network::default()), ..Network::default() };
        let script = script(&Names::default(), &dual, &rules);
        let (v4, v6) = script.split_once("table ip6 lateen\n").unwrap();
        for (table, expected) in [
            (v4, "elements = { 10.96.0.7 . tcp . 80 : goto service-0 }"),
            (v4, "meta l4proto tcp dnat to 10.244.0.4:8080"),
            (
                v6,
                "elements = { fd00:10:96::7 . tcp . 80 : goto service-1, fd00:10:96::8 . tcp . 81 : goto service-0 }",
            ),
            (
                v6,
                "dnat ip6 to numgen random mod 2 map { 0 : fd00:10:244::4 . 8080, 1 : fd00:10:244::5 . 8080 }",
            ),
            (v6, "meta l4proto tcp dnat to [fd00:10:244::9]:8080"),
            (v6, "snat to fd00:10:244::1"),
        ] {
            assert!(table.contains(expected), "{expected}\n{script}");
        }
        assert!(!v4.contains("fd00"), "{script}");
        assert!(!super::script(&Names::default(), &Network::default(), &rules).contains("ip6"));
    }
}
