//! Which records the cluster's own names have. Pure.

use std::collections::HashSet;
use std::net::IpAddr;

use hickory_proto::rr::{Name, RData, Record, RecordType, rdata};

use crate::{
    Network,
    cluster_index::{Address, ClusterIndex, Endpoint, Port, Protocol, ServiceEntry},
};

/// Seconds clients may remember an answer, CoreDNS's default for the cluster zone.
const TTL: u32 = 5;

/// What is known about a name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Answer {
    /// The name exists; records of the type asked for, perhaps none, and further ones that save a query.
    Found { answers: Vec<Record>, additionals: Vec<Record> },
    /// Another name stands for it; `alias` is the record that says so.
    Alias { alias: Box<Record>, target: Name },
    /// The name is in our zone and doesn't exist.
    Missing,
    /// Somebody else's name.
    NotOurs,
}

/// The cluster's zone over one state of the index.
pub(super) struct Zone<'a> {
    pub(super) network: &'a Network,
    pub(super) index: &'a ClusterIndex,
}

/// The port and protocol of an SRV name; `None` asks for all.
type PortFilter<'a> = Option<(&'a str, Protocol)>;

impl Zone<'_> {
    /// Looks a name up, whatever its case.
    pub(super) fn lookup(&self, name: &Name, kind: RecordType) -> Answer {
        let text = name.to_lowercase().to_ascii();
        let text = text.trim_end_matches('.');
        if let Some(address) = reversed(text) {
            return address.map_or(Answer::NotOurs, |address| self.reverse(name, address, kind));
        }
        let domain = self.network.cluster_domain.trim_end_matches('.').to_lowercase();
        let Some(rest) = text.strip_suffix(&domain) else { return Answer::NotOurs };
        let rest = match rest.strip_suffix('.') {
            Some(rest) => rest,
            None if rest.is_empty() => return self.apex(name, kind),
            // `…mycluster.local` is not below `cluster.local`.
            None => return Answer::NotOurs,
        };
        let labels: Vec<&str> = rest.split('.').collect();
        match labels.as_slice() {
            ["svc" | "pod"] => found(Vec::new()),
            [namespace, "svc"] if self.has_namespace(namespace) => found(Vec::new()),
            [service, namespace, "svc"] => self.service(name, kind, namespace, service, None),
            [first, service, namespace, "svc"] => self.below_service(name, kind, namespace, service, first),
            [port, protocol, service, namespace, "svc"] => {
                match (port.strip_prefix('_'), parse_protocol(protocol)) {
                    (Some(port), Some(protocol)) => {
                        self.service(name, kind, namespace, service, Some((port, protocol)))
                    }
                    _ => Answer::Missing,
                }
            }
            [address, namespace, "pod"] => match dashed_address(address) {
                Some(address) if self.has_namespace(namespace) || self.is_a_pods(address) => {
                    found(addresses(name, kind, [address]))
                }
                _ => Answer::Missing,
            },
            _ => Answer::Missing,
        }
    }

    /// The record that accompanies negative answers (RFC 2308).
    pub(super) fn start_of_authority(&self) -> Option<Record> {
        let zone = self.name("").ok()?;
        let soa = rdata::SOA::new(
            self.name("ns.dns.").ok()?,
            self.name("hostmaster.").ok()?,
            1,
            7200,
            1800,
            86400,
            TTL,
        );
        Some(Record::from_rdata(zone, TTL, RData::SOA(soa)))
    }

    fn apex(&self, name: &Name, kind: RecordType) -> Answer {
        let records = match kind {
            RecordType::SOA => self.start_of_authority().into_iter().collect(),
            RecordType::NS => self
                .name("ns.dns.")
                .map(|target| Record::from_rdata(name.clone(), TTL, RData::NS(rdata::NS(target))))
                .into_iter()
                .collect(),
            _ => Vec::new(),
        };
        found(records)
    }

    fn is_a_pods(&self, address: IpAddr) -> bool {
        match address {
            IpAddr::V4(address) => self.network.pod_cidr.contains(&address),
            IpAddr::V6(address) => {
                self.network.ipv6.as_ref().is_some_and(|ranges| ranges.pod_cidr.contains(&address))
            }
        }
    }

    fn is_a_services(&self, address: IpAddr) -> bool {
        match address {
            IpAddr::V4(address) => self.network.service_cidr.contains(&address),
            IpAddr::V6(address) => {
                self.network.ipv6.as_ref().is_some_and(|ranges| ranges.service_cidr.contains(&address))
            }
        }
    }

    fn has_namespace(&self, namespace: &str) -> bool {
        self.index.keys().any(|(own, _)| own == namespace)
    }

    fn service(
        &self,
        name: &Name,
        kind: RecordType,
        namespace: &str,
        service: &str,
        filter: PortFilter<'_>,
    ) -> Answer {
        let Some(entry) = self.index.get(&(namespace.to_owned(), service.to_owned())) else {
            return Answer::Missing;
        };
        let published: Vec<&Endpoint> = published(entry).collect();
        match &entry.address {
            Address::External(target) => {
                match Name::from_utf8(format!("{}.", target.trim_end_matches('.'))) {
                    Ok(target) => {
                        let alias =
                            Record::from_rdata(name.clone(), TTL, RData::CNAME(rdata::CNAME(target.clone())));
                        if kind == RecordType::CNAME {
                            found(vec![alias])
                        } else {
                            Answer::Alias { alias: Box::new(alias), target }
                        }
                    }
                    Err(_) => Answer::Missing,
                }
            }
            // A headless service without endpoints has no name (the specification, 2.4.1).
            Address::Headless if published.is_empty() => Answer::Missing,
            _ if filter.is_some_and(|filter| !entry.ports.iter().any(|port| matches(port, filter))) => {
                Answer::Missing
            }
            _ if kind == RecordType::SRV => self.service_ports(name, namespace, service, entry, filter),
            // An SRV name has no addresses.
            _ if filter.is_some() => found(Vec::new()),
            Address::Virtual(all) => found(addresses(name, kind, all.iter().copied())),
            Address::Headless => {
                found(addresses(name, kind, published.iter().map(|endpoint| endpoint.address)))
            }
        }
    }

    fn service_ports(
        &self,
        name: &Name,
        namespace: &str,
        service: &str,
        entry: &ServiceEntry,
        filter: PortFilter<'_>,
    ) -> Answer {
        let suffix = format!("{service}.{namespace}.svc.");
        let mut targets: Vec<(String, &[IpAddr], Option<&Endpoint>)> = Vec::new();
        match &entry.address {
            Address::Virtual(all) => targets.push((suffix, all, None)),
            _ => targets.extend(published(entry).map(|endpoint| {
                let target = format!("{}.{suffix}", endpoint_name(endpoint));
                (target, std::slice::from_ref(&endpoint.address), Some(endpoint))
            })),
        }
        let (mut answers, mut additionals) = (Vec::new(), Vec::new());
        let mut named = HashSet::new();
        for (target, all, endpoint) in targets {
            let Ok(target) = self.name(&target) else { continue };
            additionals.extend(addresses(&target, RecordType::ANY, all.iter().copied()));
            // An endpoint with a name of its own may have two addresses.
            if !named.insert(target.clone()) {
                continue;
            }
            for port in entry.ports.iter().filter(|port| filter.is_none_or(|filter| matches(port, filter))) {
                // A headless service's ports are those of its endpoints.
                let number = match endpoint {
                    Some(endpoint) => endpoint.ports.get(&(port.name.clone(), port.protocol)).copied(),
                    None => Some(port.port),
                };
                let Some(number) = number else { continue };
                // Equal weights; the sum of 100 is CoreDNS's habit.
                let record = RData::SRV(rdata::SRV::new(0, 100, number, target.clone()));
                answers.push(Record::from_rdata(name.clone(), TTL, record));
            }
        }
        Answer::Found { answers, additionals }
    }

    /// `_tcp.SERVICE…` (exists, no records) or `HOST.SERVICE…` (one endpoint).
    fn below_service(
        &self,
        name: &Name,
        kind: RecordType,
        namespace: &str,
        service: &str,
        first: &str,
    ) -> Answer {
        let Some(entry) = self.index.get(&(namespace.to_owned(), service.to_owned())) else {
            return Answer::Missing;
        };
        if let Some(protocol) = parse_protocol(first) {
            let used = entry.ports.iter().any(|port| port.protocol == protocol && !port.name.is_empty());
            return if used { found(Vec::new()) } else { Answer::Missing };
        }
        let matching: Vec<IpAddr> = published(entry)
            .filter(|endpoint| endpoint_name(endpoint).eq_ignore_ascii_case(first))
            .map(|endpoint| endpoint.address)
            .collect();
        if matching.is_empty() { Answer::Missing } else { found(addresses(name, kind, matching)) }
    }

    fn reverse(&self, name: &Name, address: IpAddr, kind: RecordType) -> Answer {
        if !self.is_a_pods(address) && !self.is_a_services(address) {
            return Answer::NotOurs;
        }
        let mut names: Vec<String> = Vec::new();
        for ((namespace, service), entry) in self.index {
            let suffix = format!("{service}.{namespace}.svc.");
            if matches!(&entry.address, Address::Virtual(all) if all.contains(&address)) {
                names = vec![suffix];
                break;
            }
            let endpoints = published(entry).filter(|endpoint| endpoint.address == address);
            names.extend(endpoints.map(|endpoint| format!("{}.{suffix}", endpoint_name(endpoint))));
        }
        if names.is_empty() {
            return Answer::Missing;
        }
        if kind != RecordType::PTR {
            return found(Vec::new());
        }
        let pointer = |target: Name| Record::from_rdata(name.clone(), TTL, RData::PTR(rdata::PTR(target)));
        found(names.iter().filter_map(|target| self.name(target).ok()).map(pointer).collect())
    }

    /// A name in our zone from its labels, which end with a dot (or are empty).
    fn name(&self, labels: &str) -> Result<Name, hickory_proto::ProtoError> {
        Name::from_utf8(format!("{labels}{}.", self.network.cluster_domain.trim_end_matches('.')))
    }
}

fn found(answers: Vec<Record>) -> Answer {
    Answer::Found { answers, additionals: Vec::new() }
}

/// The address that `….in-addr.arpa` or `….ip6.arpa` asks about, if it is one.
fn reversed(name: &str) -> Option<Option<IpAddr>> {
    if let Some(octets) = name.strip_suffix(".in-addr.arpa") {
        let octets: Vec<&str> = octets.split('.').rev().collect();
        return Some(octets.join(".").parse().ok());
    }
    let nibbles: Vec<&str> = name.strip_suffix(".ip6.arpa")?.split('.').rev().collect();
    if nibbles.len() != 32 || nibbles.iter().any(|nibble| nibble.len() != 1) {
        return Some(None);
    }
    Some(u128::from_str_radix(&nibbles.concat(), 16).ok().map(|bits| IpAddr::V6(bits.into())))
}

/// Records of the addresses that are of the kind's family.
fn addresses(name: &Name, kind: RecordType, addresses: impl IntoIterator<Item = IpAddr>) -> Vec<Record> {
    let wanted = |address: &IpAddr| match address {
        IpAddr::V4(_) => matches!(kind, RecordType::A | RecordType::ANY),
        IpAddr::V6(_) => matches!(kind, RecordType::AAAA | RecordType::ANY),
    };
    let record = |address| match address {
        IpAddr::V4(address) => RData::A(rdata::A(address)),
        IpAddr::V6(address) => RData::AAAA(rdata::AAAA(address)),
    };
    let record = |address| Record::from_rdata(name.clone(), TTL, record(address));
    addresses.into_iter().filter(wanted).map(record).collect()
}

fn published(entry: &ServiceEntry) -> impl Iterator<Item = &Endpoint> {
    entry.endpoints.iter().filter(|endpoint| endpoint.ready || entry.publish_not_ready)
}

fn endpoint_name(endpoint: &Endpoint) -> String {
    endpoint.hostname.clone().unwrap_or_else(|| endpoint.address.to_string().replace(['.', ':'], "-"))
}

fn dashed_address(label: &str) -> Option<IpAddr> {
    let v4 = label.replace('-', ".").parse().map(IpAddr::V4);
    v4.or_else(|_| label.replace('-', ":").parse().map(IpAddr::V6)).ok()
}

fn parse_protocol(label: &str) -> Option<Protocol> {
    match label {
        "_tcp" => Some(Protocol::Tcp),
        "_udp" => Some(Protocol::Udp),
        _ => None,
    }
}

fn matches(port: &Port, (name, protocol): (&str, Protocol)) -> bool {
    port.protocol == protocol && port.name.eq_ignore_ascii_case(name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster_index::tests::{index, service, slice};
    use serde_json::json;

    fn cluster() -> ClusterIndex {
        let ports = json!([{ "name": "http", "port": 80 }, { "name": "dns", "port": 53, "protocol": "UDP" }]);
        let mut dual = service("dual", "10.96.0.8", json!([{ "name": "http", "port": 80 }]));
        dual["spec"]["clusterIPs"] = json!(["10.96.0.8", "fd00:10:96::7"]);
        let endpoints = json!([{ "addresses": ["fd00:10:244::4"], "hostname": "db-0" }, { "addresses": ["fd00:10:244::5"] }]);
        let mut six = slice("db", endpoints, json!([{ "name": "pg", "port": 15432 }]));
        six["addressType"] = json!("IPv6");
        let mut outside = service("outside", "", json!([]));
        outside["spec"] = json!({ "type": "ExternalName", "externalName": "example.com" });
        index(
            &[
                service("web", "10.96.0.7", ports),
                service("db", "None", json!([{ "name": "pg", "port": 5432 }])),
                service("idle", "None", json!([])),
                outside,
                dual,
                service("six", "fd00:10:96::8", json!([])),
            ],
            &[
                six,
                slice(
                    "db",
                    json!([
                        { "addresses": ["10.244.0.4"], "hostname": "db-0" },
                        { "addresses": ["10.244.0.5"] },
                        { "addresses": ["10.244.0.6"], "conditions": { "ready": false } }
                    ]),
                    json!([{ "name": "pg", "port": 15432 }]),
                ),
            ],
        )
    }

    /// The answer as text: records' data joined by spaces, or the kind of failure.
    fn ask(name: &str, kind: RecordType) -> String {
        let network = Network { ipv6: Some(crate::Ipv6Network::default()), ..Network::default() };
        let index = cluster();
        let zone = Zone { network: &network, index: &index };
        match zone.lookup(&Name::from_ascii(name).unwrap(), kind) {
            Answer::Found { answers, .. } => {
                let data: Vec<String> = answers.iter().map(|record| record.data.to_string()).collect();
                data.join(" | ")
            }
            Answer::Alias { target, .. } => format!("alias {target}"),
            Answer::Missing => "NXDOMAIN".to_owned(),
            Answer::NotOurs => "forward".to_owned(),
        }
    }

    #[test]
    fn names_and_their_records() {
        use RecordType::{A, AAAA, PTR, SRV};
        let cases = [
            ("web.default.svc.cluster.local.", A, "10.96.0.7"),
            ("WEB.Default.svc.Cluster.Local.", A, "10.96.0.7"),
            ("web.default.svc.cluster.local.", AAAA, ""),
            ("none.default.svc.cluster.local.", A, "NXDOMAIN"),
            ("web.other.svc.cluster.local.", A, "NXDOMAIN"),
            ("default.svc.cluster.local.", A, ""),
            ("other.svc.cluster.local.", A, "NXDOMAIN"),
            ("svc.cluster.local.", A, ""),
            ("example.com.default.svc.cluster.local.", A, "NXDOMAIN"),
            ("db.default.svc.cluster.local.", A, "10.244.0.4 | 10.244.0.5"),
            ("idle.default.svc.cluster.local.", A, "NXDOMAIN"),
            ("db-0.db.default.svc.cluster.local.", A, "10.244.0.4"),
            ("10-244-0-5.db.default.svc.cluster.local.", A, "10.244.0.5"),
            ("10-244-0-6.db.default.svc.cluster.local.", A, "NXDOMAIN"),
            ("_http._tcp.web.default.svc.cluster.local.", SRV, "0 100 80 web.default.svc.cluster.local."),
            ("_http._tcp.web.default.svc.cluster.local.", A, ""),
            ("_http._udp.web.default.svc.cluster.local.", SRV, "NXDOMAIN"),
            ("_tcp.web.default.svc.cluster.local.", SRV, ""),
            (
                "_pg._tcp.db.default.svc.cluster.local.",
                SRV,
                "0 100 15432 db-0.db.default.svc.cluster.local. | 0 100 15432 10-244-0-5.db.default.svc.cluster.local. | 0 100 15432 fd00-10-244--5.db.default.svc.cluster.local.",
            ),
            ("outside.default.svc.cluster.local.", A, "alias example.com."),
            ("10-244-0-9.default.pod.cluster.local.", A, "10.244.0.9"),
            ("dual.default.svc.cluster.local.", A, "10.96.0.8"),
            ("dual.default.svc.cluster.local.", AAAA, "fd00:10:96::7"),
            ("six.default.svc.cluster.local.", A, ""),
            ("six.default.svc.cluster.local.", AAAA, "fd00:10:96::8"),
            ("db.default.svc.cluster.local.", AAAA, "fd00:10:244::4 | fd00:10:244::5"),
            ("db-0.db.default.svc.cluster.local.", AAAA, "fd00:10:244::4"),
            ("fd00-10-244--5.db.default.svc.cluster.local.", AAAA, "fd00:10:244::5"),
            ("fd00-10-244--9.default.pod.cluster.local.", AAAA, "fd00:10:244::9"),
            (
                "7.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.6.9.0.0.0.1.0.0.0.0.d.f.ip6.arpa.",
                PTR,
                "dual.default.svc.cluster.local.",
            ),
            ("1.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.8.b.d.0.1.0.0.2.ip6.arpa.", PTR, "forward"),
            ("7.0.96.10.in-addr.arpa.", PTR, "web.default.svc.cluster.local."),
            ("4.0.244.10.in-addr.arpa.", PTR, "db-0.db.default.svc.cluster.local."),
            ("99.0.244.10.in-addr.arpa.", PTR, "NXDOMAIN"),
            ("8.8.8.8.in-addr.arpa.", PTR, "forward"),
            ("example.com.", A, "forward"),
            ("mycluster.local.", A, "forward"),
        ];
        for (name, kind, expected) in cases {
            assert_eq!(ask(name, kind), expected, "{name} {kind}");
        }
    }
}
