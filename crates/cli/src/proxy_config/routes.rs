//! `proxy-config routes`.

use serde_json::Value;

use super::{describe_match, items, origin, strings, text};
use crate::table::Table;

/// Domains shown before the rest is only counted.
const SHOWN_DOMAINS: usize = 2;

/// True when `--name` is not given or is the route configuration's name.
pub fn matches(route_config: &Value, name: Option<&str>) -> bool {
    name.is_none_or(|name| text(route_config, "/name") == name)
}

/// In the order of their names, numbers (ports) first.
pub fn sort(route_configs: &mut [&Value]) {
    route_configs.sort_by_key(|config| {
        let name = text(config, "/name");
        (name.parse::<u32>().unwrap_or(u32::MAX), name.to_owned())
    });
}

/// One row for each route.
pub fn table(route_configs: &[&Value]) -> Table {
    let mut table = Table::new(["NAME", "VHOST NAME", "DOMAINS", "MATCH", "VIRTUAL SERVICE"]);
    for config in route_configs {
        let name = text(config, "/name");
        let hosts = items(config, "/virtualHosts");
        for host in hosts {
            let domains = describe_domains(&strings(host, "/domains"));
            for route in items(host, "/routes").iter().filter(|route| !is_passthrough(route)) {
                let host = text(host, "/name").to_owned();
                table.row([
                    name.to_owned(),
                    host,
                    domains.clone(),
                    describe_match(&route["match"]),
                    origin(route),
                ]);
            }
        }
        if hosts.is_empty() {
            table.row([name.to_owned(), String::new(), "*".to_owned(), "/*".to_owned(), "404".to_owned()]);
        }
    }
    table
}

fn is_passthrough(route: &Value) -> bool {
    text(route, "/route/cluster") == "PassthroughCluster"
}

/// The first names without a port; a single domain as it is.
fn describe_domains(domains: &[&str]) -> String {
    if let [domain] = domains {
        return (*domain).to_owned();
    }
    let named: Vec<_> = domains.iter().copied().filter(|domain| !domain.contains(':')).collect();
    match named.split_at_checked(SHOWN_DOMAINS) {
        Some((shown, rest)) if !rest.is_empty() => format!("{} + {} more...", shown.join(", "), rest.len()),
        _ => named.join(", "),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proxy_config::dump::tests::saved;

    #[test]
    fn the_courses_route_leads_to_its_subset() {
        let dump = saved();
        let mut routes: Vec<_> =
            dump.routes().unwrap().into_iter().filter(|route| matches(route, Some("80"))).collect();
        sort(&mut routes);
        assert_eq!(routes.len(), 1);
        let lines = table(&routes).to_string();
        assert!(lines.contains("customers.default"), "{lines}");
        let json = serde_json::to_string(&routes).unwrap();
        for part in [
            r#""virtualHosts""#,
            r#""prefix":"/""#,
            r#""cluster":"outbound|80|v1|customers.default.svc.cluster.local""#,
        ] {
            assert!(json.contains(part), "{json}");
        }
    }

    #[test]
    fn all_routes_ports_first() {
        let dump = saved();
        let mut routes = dump.routes().unwrap();
        sort(&mut routes);
        insta::assert_snapshot!(table(&routes).to_string());
    }

    #[test]
    fn domains_are_shortened() {
        assert_eq!(describe_domains(&["*"]), "*");
        assert_eq!(describe_domains(&["a.b", "a.b:80"]), "a.b");
        assert_eq!(
            describe_domains(&["a.b.c", "a.b.c:80", "a.b", "a", "10.0.0.1"]),
            "a.b.c, a.b + 2 more..."
        );
    }
}
