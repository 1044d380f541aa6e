//! `proxy-config clusters`.

use serde_json::Value;

use super::{origin, text};
use crate::table::Table;

/// Which clusters to show; what is not given matches all.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    /// `--fqdn`, a part of the cluster's name.
    pub fqdn: Option<String>,
    /// `--port`, as `|PORT|` in the name.
    pub port: Option<u64>,
    /// `--subset`, a part of the name.
    pub subset: Option<String>,
    /// `--direction`: inbound or outbound, a part of the name.
    pub direction: Option<String>,
}

impl Filter {
    /// True when `cluster` (proto JSON) is to be shown.
    pub fn matches(&self, cluster: &Value) -> bool {
        let name = text(cluster, "/name");
        [&self.fqdn, &self.subset, &self.direction]
            .into_iter()
            .flatten()
            .all(|part| name.contains(part.as_str()))
            && self.port.is_none_or(|port| name.contains(&format!("|{port}|")))
    }
}

/// The parts of `DIRECTION|PORT|SUBSET|FQDN`; any other name is all host.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Name<'a> {
    fqdn: &'a str,
    subset: &'a str,
    port: u16,
    direction: &'a str,
}

fn parse(name: &str) -> Name<'_> {
    match name.splitn(4, '|').collect::<Vec<_>>().as_slice() {
        [direction, port, subset, fqdn] => Name { fqdn, subset, port: port.parse().unwrap_or(0), direction },
        _ => Name { fqdn: name, subset: "", port: 0, direction: "" },
    }
}

/// In the order of host, subset, port and direction.
pub fn sort(clusters: &mut [&Value]) {
    clusters.sort_by(|a, b| parse(text(a, "/name")).cmp(&parse(text(b, "/name"))));
}

/// One row for each cluster.
pub fn table(clusters: &[&Value]) -> Table {
    let mut table = Table::new(["SERVICE FQDN", "PORT", "SUBSET", "DIRECTION", "TYPE", "DESTINATION RULE"]);
    let or_dash = |text: String| if text.is_empty() { "-".to_owned() } else { text };
    for cluster in clusters {
        let name = parse(text(cluster, "/name"));
        // STATIC is the enum's first value, which proto JSON may leave out.
        let kind = match (text(cluster, "/type"), text(cluster, "/clusterType/name")) {
            ("", "") => "STATIC",
            ("", custom) => custom,
            (kind, _) => kind,
        };
        let port = if name.port == 0 { String::new() } else { name.port.to_string() };
        table.row([
            name.fqdn.to_owned(),
            or_dash(port),
            or_dash(name.subset.to_owned()),
            or_dash(name.direction.to_owned()),
            kind.to_owned(),
            origin(cluster),
        ]);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proxy_config::dump::tests::saved;

    #[test]
    fn the_courses_service_has_its_subset_and_rule() {
        let dump = saved();
        let filter = Filter { fqdn: Some("customers.default.svc.cluster.local".into()), ..Filter::default() };
        let mut clusters: Vec<_> =
            dump.clusters().unwrap().into_iter().filter(|c| filter.matches(c)).collect();
        sort(&mut clusters);
        insta::assert_snapshot!(table(&clusters).to_string());
        let v1 = Filter {
            subset: Some("v1".into()),
            port: Some(80),
            direction: Some("outbound".into()),
            ..filter
        };
        assert_eq!(clusters.iter().filter(|cluster| v1.matches(cluster)).count(), 1);
    }

    #[test]
    fn names_without_parts_are_hosts() {
        assert_eq!(
            parse("PassthroughCluster"),
            Name { fqdn: "PassthroughCluster", subset: "", port: 0, direction: "" }
        );
        let inbound = Name { fqdn: "", subset: "", port: 3000, direction: "inbound" };
        assert_eq!(parse("inbound|3000||"), inbound);
    }
}
