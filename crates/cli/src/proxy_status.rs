//! `lateen proxy-status`.

use anyhow::Result;
use jiff::Timestamp;
use serde_json::{Value, json};

use crate::args::Output;
use crate::cluster::ClusterArgs;
use crate::control_plane::{ControlPlane, SyncState, SyncStatus, TypeStatus};
use crate::error::Failure;
use crate::table::Table;

/// Prints the state of all proxies, or of one.
///
/// # Errors
/// When the control plane does not answer, or the named proxy is not connected.
pub(crate) async fn run(
    cluster: &ClusterArgs,
    pod: Option<&str>,
    verbosity: u8,
    output: Output,
) -> Result<()> {
    let mut statuses = ControlPlane::find(cluster).await?.sync_statuses().await?;
    if let Some(pod) = pod {
        let wanted = full_name(pod, cluster.namespace());
        statuses.retain(|status| status.name == wanted);
        if statuses.is_empty() {
            let next = format!("lateen proxy-status, and lateen logs {wanted} -c istio-proxy");
            return Err(Failure::new(
                format!("The proxy of {wanted} is not connected to the control plane."),
                next,
            )
            .into());
        }
    }
    match output {
        Output::Short if pod.is_some() || verbosity > 0 => {
            crate::output::text(&format!("{}{}", wide_table(&statuses, Timestamp::now()), errors(&statuses)))?
        }
        Output::Short => crate::output::text(&format!("{}{}", table(&statuses), errors(&statuses)))?,
        structured => crate::output::print(&document(&statuses), structured)?,
    }
    Ok(())
}

fn full_name(pod: &str, namespace: &str) -> String {
    let pod = pod.rsplit_once('/').map_or(pod, |(_, name)| name);
    if pod.contains('.') { pod.to_owned() } else { format!("{pod}.{namespace}") }
}

fn table(statuses: &[SyncStatus]) -> Table {
    let mut table = Table::new(["NAME", "CLUSTER", "ISTIOD", "VERSION", "SUBSCRIBED TYPES"]);
    for status in statuses {
        let subscribed: Vec<_> = status
            .types
            .iter()
            .filter(|t| !matches!(t.state, SyncState::Ignored | SyncState::NotSent))
            .map(|t| t.kind.as_str())
            .collect();
        table.row([
            status.name.clone(),
            status.cluster.clone(),
            status.istiod.clone(),
            status.version.clone(),
            format!("{} ({})", subscribed.len(), subscribed.join(",")),
        ]);
    }
    table
}

fn wide_table(statuses: &[SyncStatus], now: Timestamp) -> Table {
    let mut table = Table::new(["NAME", "CLUSTER", "CDS", "LDS", "EDS", "RDS", "ECDS", "ISTIOD", "VERSION"]);
    for status in statuses {
        let cell = |kind: &str| {
            let found = status.types.iter().find(|t| t.kind == kind);
            found.map_or_else(|| SyncState::Ignored.as_str().to_owned(), |t| describe(t, now))
        };
        table.row([
            status.name.clone(),
            status.cluster.clone(),
            cell("CDS"),
            cell("LDS"),
            cell("EDS"),
            cell("RDS"),
            cell("ECDS"),
            status.istiod.clone(),
            status.version.clone(),
        ]);
    }
    table
}

/// `SYNCED (5m)`, as far as the age is known.
fn describe(status: &TypeStatus, now: Timestamp) -> String {
    let state = status.state.as_str();
    let since = status.acknowledged.as_ref().and_then(|time| time.parse::<Timestamp>().ok());
    match since {
        Some(since) if status.state == SyncState::Synced => {
            format!("{state} ({})", age(now.duration_since(since).as_secs()))
        }
        _ => state.to_owned(),
    }
}

fn age(seconds: i64) -> String {
    match seconds.max(0) {
        s @ 0..60 => format!("{s}s"),
        s @ 60..3600 => format!("{}m", s / 60),
        s @ 3600..86400 => format!("{}h", s / 3600),
        s => format!("{}d", s / 86400),
    }
}

/// What proxies said when they rejected something.
fn errors(statuses: &[SyncStatus]) -> String {
    let mut out = String::new();
    for status in statuses {
        for t in &status.types {
            if let Some(error) = &t.error {
                out += &format!("\n{} rejected {}: {error}\n", status.name, t.kind);
            }
        }
    }
    out
}

fn document(statuses: &[SyncStatus]) -> Value {
    statuses
        .iter()
        .map(|status| {
            json!({
                "name": status.name,
                "cluster": status.cluster,
                "istiod": status.istiod,
                "version": status.version,
                "types": status.types,
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    fn status() -> SyncStatus {
        let t = |kind: &str, state| TypeStatus { kind: kind.into(), state, error: None, acknowledged: None };
        SyncStatus {
            name: "web-1.default".into(),
            cluster: "Kubernetes".into(),
            istiod: "istiod-1".into(),
            version: "0.1.0".into(),
            types: vec![
                t("CDS", SyncState::Synced),
                t("LDS", SyncState::Stale),
                t("EDS", SyncState::Synced),
                t("RDS", SyncState::NotSent),
            ],
        }
    }

    #[test]
    fn columns_are_istioctls() {
        assert_eq!(
            table(&[status()]).to_string(),
            "NAME              CLUSTER        ISTIOD       VERSION     SUBSCRIBED TYPES\n\
             web-1.default     Kubernetes     istiod-1     0.1.0       3 (CDS,LDS,EDS)\n"
        );
        let mut wide = status();
        wide.types[0].acknowledged = Some("2026-01-01T00:00:00Z".into());
        let now = "2026-01-01T00:05:10Z".parse().unwrap();
        assert_eq!(
            wide_table(&[wide], now).to_string(),
            "NAME              CLUSTER        CDS             LDS       EDS        RDS          ECDS        ISTIOD       VERSION\n\
             web-1.default     Kubernetes     SYNCED (5m)     STALE     SYNCED     NOT SENT     IGNORED     istiod-1     0.1.0\n"
        );
    }

    #[test]
    fn rejections_are_quoted_under_the_table() {
        let mut rejected = status();
        rejected.types[1].error = Some("filter_chains[0]: no".into());
        assert_eq!(errors(&[rejected]), "\nweb-1.default rejected LDS: filter_chains[0]: no\n");
        assert_eq!(errors(&[status()]), "");
    }

    #[test]
    fn a_proxy_is_named_with_its_namespace() {
        assert_eq!(full_name("web-1", "shop"), "web-1.shop");
        assert_eq!(full_name("pod/web-1.x", "shop"), "web-1.x");
    }
}
