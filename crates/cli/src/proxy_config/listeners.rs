//! `proxy-config listeners`.

use serde_json::Value;

use super::{describe_match, items, number, strings, text};
use crate::table::Table;

const HTTP: &str = "envoy.filters.network.http_connection_manager";
const TCP: &str = "envoy.filters.network.tcp_proxy";

/// Which listeners to show; what is not given matches all.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    /// `--address`, compared without case.
    pub address: Option<String>,
    /// `--port`.
    pub port: Option<u64>,
    /// `--type`: HTTP, TCP, HTTP+TCP or UNKNOWN.
    pub kind: Option<String>,
}

impl Filter {
    /// True when `listener` (proto JSON) is to be shown.
    pub fn matches(&self, listener: &Value) -> bool {
        self.address
            .as_deref()
            .is_none_or(|wanted| addresses(listener).iter().any(|a| a.eq_ignore_ascii_case(wanted)))
            && self.port.is_none_or(|wanted| port(listener) == wanted)
            && self.kind.as_deref().is_none_or(|wanted| kind(listener).eq_ignore_ascii_case(wanted))
    }
}

/// One row for each filter chain: what it matches and where it leads.
pub fn table(listeners: &[&Value]) -> Table {
    let mut table = Table::new(["ADDRESSES", "PORT", "MATCH", "DESTINATION"]);
    for listener in sorted(listeners) {
        let (addresses, port) = (addresses(listener).join(","), port(listener).to_string());
        let mut rows: Vec<_> =
            chains(listener).map(|chain| (destination(chain), describe_chain(chain))).collect();
        rows.sort_by(|a, b| b.0.cmp(&a.0));
        for (destination, matched) in rows {
            table.row([addresses.clone(), port.clone(), matched, destination]);
        }
    }
    table
}

/// One row for each listener (`--verbose=false`).
pub fn short_table(listeners: &[&Value]) -> Table {
    let mut table = Table::new(["ADDRESSES", "PORT", "TYPE"]);
    for listener in sorted(listeners) {
        table.row([addresses(listener).join(","), port(listener).to_string(), kind(listener).to_owned()]);
    }
    table
}

fn sorted<'a>(listeners: &[&'a Value]) -> Vec<&'a Value> {
    let mut listeners = listeners.to_vec();
    listeners.sort_by_key(|listener| (port(listener), addresses(listener).join(","), kind(listener)));
    listeners
}

fn addresses(listener: &Value) -> Vec<&str> {
    let additional = items(listener, "/additionalAddresses").iter().map(|address| &address["address"]);
    std::iter::once(&listener["address"])
        .chain(additional)
        .map(|a| text(a, "/socketAddress/address"))
        .collect()
}

fn port(listener: &Value) -> u64 {
    number(listener, "/address/socketAddress/portValue").unwrap_or(0)
}

fn chains(listener: &Value) -> impl Iterator<Item = &Value> {
    items(listener, "/filterChains").iter().chain(listener.get("defaultFilterChain"))
}

fn kind(listener: &Value) -> &'static str {
    let (mut http, mut tcp) = (false, false);
    for filter in chains(listener).flat_map(|chain| items(chain, "/filters")) {
        match text(filter, "/name") {
            HTTP => http = true,
            TCP if !leads_to_black_hole(filter) => tcp = true,
            _ => {}
        }
    }
    match (http, tcp) {
        (true, true) => "HTTP+TCP",
        (true, false) => "HTTP",
        (false, true) => "TCP",
        (false, false) => "UNKNOWN",
    }
}

fn leads_to_black_hole(filter: &Value) -> bool {
    text(filter, "/typedConfig/cluster") == "BlackHoleCluster"
}

fn describe_chain(chain: &Value) -> String {
    let matched = &chain["filterChainMatch"];
    let mut parts = Vec::new();
    let names = strings(matched, "/serverNames");
    if !names.is_empty() {
        parts.push(format!("SNI: {}", names.join(",")));
    }
    let transport = text(matched, "/transportProtocol");
    if !transport.is_empty() {
        parts.push(format!("Trans: {transport}"));
    }
    let protocols = strings(matched, "/applicationProtocols");
    if !protocols.is_empty() {
        parts.push(describe_protocols(&protocols));
    }
    let port = number(matched, "/destinationPort").map(|port| format!(":{port}"));
    let ranges: Vec<_> = items(matched, "/prefixRanges")
        .iter()
        .map(|range| {
            format!("{}/{}", text(range, "/addressPrefix"), number(range, "/prefixLen").unwrap_or(0))
        })
        .collect();
    match (ranges.is_empty(), port) {
        (false, port) => parts.push(format!("Addr: {}{}", ranges.join(","), port.unwrap_or_default())),
        (true, Some(port)) => parts.push(format!("Addr: *{port}")),
        (true, None) => {}
    }
    if parts.is_empty() { "ALL".to_owned() } else { parts.join("; ") }
}

/// The lists of ALPN values that Istio's control plane writes, by the short names istioctl gives them.
fn describe_protocols(protocols: &[&str]) -> String {
    match protocols {
        ["http/1.0", "http/1.1", "h2c"] => "App: HTTP".to_owned(),
        ["http/1.0", "http/1.1", "h2c", "istio-http/1.0", "istio-http/1.1", "istio-h2"] => {
            "App: HTTP TLS".to_owned()
        }
        ["istio", "istio-http/1.0", "istio-http/1.1", "istio-h2"] => "App: Istio HTTP Plain".to_owned(),
        ["istio-peer-exchange", "istio"] => "App: TCP TLS".to_owned(),
        other => format!("App: {}", other.join(",")),
    }
}

fn destination(chain: &Value) -> String {
    for filter in items(chain, "/filters") {
        let config = &filter["typedConfig"];
        match text(filter, "/name") {
            HTTP if config.get("routeConfig").is_some() => return describe_routes(&config["routeConfig"]),
            HTTP => match text(config, "/rds/routeConfigName") {
                "" => return "HTTP".to_owned(),
                name => return format!("Route: {name}"),
            },
            TCP if !leads_to_black_hole(filter) => return describe_tcp(config),
            _ => {}
        }
    }
    "Non-HTTP/Non-TCP".to_owned()
}

fn describe_tcp(config: &Value) -> String {
    let weighted = items(config, "/weightedClusters/clusters");
    if weighted.is_empty() {
        return describe_cluster(text(config, "/cluster"));
    }
    weighted.iter().map(|cluster| describe_cluster(text(cluster, "/name"))).collect::<Vec<_>>().join(", ")
}

/// `PassthroughCluster` and its like speak for themselves.
fn describe_cluster(name: &str) -> String {
    if name.contains("Cluster") { name.to_owned() } else { format!("Cluster: {name}") }
}

fn describe_routes(config: &Value) -> String {
    let hosts = items(config, "/virtualHosts");
    if let [host] = hosts
        && strings(host, "/domains") == ["*"]
        && let [route] = items(host, "/routes")
        && text(route, "/match/prefix") == "/"
        && !text(route, "/route/cluster").is_empty()
    {
        return describe_cluster(text(route, "/route/cluster"));
    }
    let described: Vec<_> = hosts
        .iter()
        .map(|host| {
            let routes: Vec<_> =
                items(host, "/routes").iter().map(|route| describe_match(&route["match"])).collect();
            match strings(host, "/domains").as_slice() {
                ["*"] => routes.join(", "),
                domains => format!("{} {}", domains.join("/"), routes.join(", ")),
            }
        })
        .collect();
    format!("Inline Route: {}", described.join("; "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proxy_config::dump::tests::saved;

    #[test]
    fn the_courses_listener_is_found_and_described() {
        let dump = saved();
        let listeners = dump.listeners().unwrap();
        let filter = Filter { address: Some("0.0.0.0".into()), port: Some(80), kind: None };
        let found: Vec<_> = listeners.into_iter().filter(|listener| filter.matches(listener)).collect();
        assert_eq!(found.len(), 1);
        let lines = table(&found).to_string();
        assert!(
            lines.contains("Trans: raw_buffer; App: http/1.1,h2c") && lines.contains("Route: 80"),
            "{lines}"
        );
        assert!(lines.contains("PassthroughCluster"), "{lines}");
        let json = serde_json::to_string(&found).unwrap();
        assert!(json.contains(r#""routeConfigName":"80""#), "{json}");
    }

    #[test]
    fn every_listener_has_its_type_and_place() {
        let dump = saved();
        let listeners = dump.listeners().unwrap();
        insta::assert_snapshot!(table(&listeners).to_string());
        insta::assert_snapshot!(short_table(&listeners).to_string());
        let tcp = Filter { kind: Some("tcp".into()), ..Filter::default() };
        assert!(
            listeners.iter().filter(|listener| tcp.matches(listener)).all(|listener| kind(listener) == "TCP")
        );
    }
}
