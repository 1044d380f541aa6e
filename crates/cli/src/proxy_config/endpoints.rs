//! `proxy-config endpoints`.

use serde_json::Value;

use super::{items, number, text};
use crate::table::Table;

/// Which endpoints to show; what is not given matches all. Text is compared without case.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    /// `--address`.
    pub address: Option<String>,
    /// `--port`.
    pub port: Option<u64>,
    /// `--cluster`, the whole name.
    pub cluster: Option<String>,
    /// `--status`: HEALTHY, UNHEALTHY, …
    pub status: Option<String>,
}

impl Filter {
    fn matches(&self, cluster: &str, host: &Value) -> bool {
        let same = |wanted: &Option<String>, value: &str| {
            wanted.as_ref().is_none_or(|w| w.eq_ignore_ascii_case(value))
        };
        same(&self.cluster, cluster)
            && same(&self.address, text(host, "/address/socketAddress/address"))
            && same(&self.status, status(host))
            && self.port.is_none_or(|port| number(host, "/address/socketAddress/portValue") == Some(port))
    }

    /// The clusters that have an endpoint to show, whole, as `-o json` prints them.
    pub fn select<'a>(&self, clusters: &[&'a Value]) -> Vec<&'a Value> {
        let shown = |cluster: &Value| {
            items(cluster, "/hostStatuses").iter().any(|host| self.matches(text(cluster, "/name"), host))
        };
        clusters.iter().copied().filter(|cluster| shown(cluster)).collect()
    }
}

/// One row for each endpoint of each cluster (`ClusterStatus` of Envoy's admin service).
pub fn table(clusters: &[&Value], filter: &Filter) -> Table {
    let mut rows = Vec::new();
    for cluster in clusters {
        let name = text(cluster, "/name");
        for host in items(cluster, "/hostStatuses").iter().filter(|host| filter.matches(name, host)) {
            let (ip, port) = (
                text(host, "/address/socketAddress/address"),
                number(host, "/address/socketAddress/portValue"),
            );
            let endpoint = match (text(host, "/address/pipe/path"), port) {
                ("", Some(port)) => format!("{ip}:{port}"),
                ("", None) => ip.to_owned(),
                (path, _) => format!("unix://{path}"),
            };
            rows.push((ip, port, name, endpoint, status(host), outlier_check(host)));
        }
    }
    rows.sort();
    let mut table = Table::new(["ENDPOINT", "STATUS", "OUTLIER CHECK", "CLUSTER"]);
    for (_, _, cluster, endpoint, status, check) in rows {
        table.row([endpoint, status.to_owned(), check.to_owned(), cluster.to_owned()]);
    }
    table
}

fn status(host: &Value) -> &str {
    match text(host, "/healthStatus/edsHealthStatus") {
        "" => "UNKNOWN",
        status => status,
    }
}

fn outlier_check(host: &Value) -> &'static str {
    match host.pointer("/healthStatus/failedOutlierCheck").and_then(Value::as_bool) {
        Some(true) => "FAILED",
        _ => "OK",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proxy_config::dump::tests::saved_clusters;

    #[test]
    fn the_courses_endpoint_is_found_by_its_cluster() {
        let statuses = saved_clusters();
        let statuses: Vec<_> = statuses.iter().collect();
        let filter = Filter {
            cluster: Some("outbound|80|v1|customers.default.svc.cluster.local".into()),
            ..Filter::default()
        };
        insta::assert_snapshot!(table(&statuses, &filter).to_string());
        assert_eq!(filter.select(&statuses).len(), 1);
    }

    #[test]
    fn endpoints_are_sorted_and_selected() {
        let statuses = saved_clusters();
        let statuses: Vec<_> = statuses.iter().collect();
        let all = table(&statuses, &Filter::default()).to_string();
        insta::assert_snapshot!(all);
        let unhealthy = Filter { status: Some("unhealthy".into()), ..Filter::default() };
        assert!(table(&statuses, &unhealthy).is_empty());
    }
}
