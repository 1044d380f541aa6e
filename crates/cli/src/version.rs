//! `lateen version`, in istioctl's words.

use std::collections::BTreeMap;

use anyhow::Result;
use serde_json::{Value, json};

use crate::args::Output;
use crate::cluster::ClusterArgs;
use crate::control_plane::{ControlPlane, SyncStatus};

/// This program's version.
pub(crate) const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Prints versions.
///
/// # Errors
/// When the cluster is asked and does not answer.
pub(crate) async fn run(cluster: &ClusterArgs, remote: bool, short: bool, output: Output) -> Result<()> {
    if short && !remote {
        return crate::output::text(&format!("{VERSION}\n"));
    }
    let asked = if remote { ask(cluster).await } else { Ok(None) };
    let (versions, problem) = match asked {
        Ok(versions) => (versions, None),
        Err(error) => (None, Some(error)),
    };
    match output {
        Output::Short => crate::output::text(&text(versions.as_ref()))?,
        structured => crate::output::print(&document(versions.as_ref()), structured)?,
    }
    problem.map_or(Ok(()), Err)
}

struct Remote {
    control_plane: Vec<(String, String)>,
    proxies: Vec<SyncStatus>,
}

async fn ask(cluster: &ClusterArgs) -> Result<Option<Remote>> {
    let control_plane = ControlPlane::find(cluster).await?;
    Ok(Some(Remote {
        control_plane: control_plane.versions().await?,
        proxies: control_plane.sync_statuses().await?,
    }))
}

fn text(remote: Option<&Remote>) -> String {
    let Some(remote) = remote else { return format!("client version: {VERSION}\n") };
    let mut out = format!("client version: {VERSION}\n");
    let control: Vec<_> = remote.control_plane.iter().map(|(_, version)| version.as_str()).collect();
    out += &format!("control plane version: {}\n", unique(&control).join(", "));
    let mut counts = BTreeMap::new();
    for proxy in &remote.proxies {
        *counts.entry(proxy.version.as_str()).or_insert(0_usize) += 1;
    }
    let data: Vec<_> = counts
        .iter()
        .map(|(version, count)| {
            format!("{version} ({count} {})", if *count == 1 { "proxy" } else { "proxies" })
        })
        .collect();
    let data = if data.is_empty() { "none".to_owned() } else { data.join(", ") };
    out + &format!("data plane version: {data}\n")
}

fn unique<'a>(values: &[&'a str]) -> Vec<&'a str> {
    values.iter().copied().collect::<std::collections::BTreeSet<_>>().into_iter().collect()
}

/// istioctl's JSON.
fn document(remote: Option<&Remote>) -> Value {
    let mut document = json!({ "clientVersion": info(VERSION) });
    if let Some(remote) = remote {
        let mesh = remote
            .control_plane
            .iter()
            .map(|(_, version)| json!({ "Component": "pilot", "Info": info(version) }));
        let data =
            remote.proxies.iter().map(|proxy| json!({ "ID": proxy.name, "IstioVersion": proxy.version }));
        document["meshVersion"] = mesh.collect();
        document["dataPlaneVersion"] = data.collect();
    }
    document
}

fn info(version: &str) -> Value {
    json!({ "version": version, "revision": "", "golang_version": "", "status": "Clean", "tag": version })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn proxy(name: &str, version: &str) -> SyncStatus {
        SyncStatus { name: name.into(), version: version.into(), ..SyncStatus::default() }
    }

    #[test]
    fn versions_are_printed_as_istioctl_does() {
        assert_eq!(text(None), format!("client version: {VERSION}\n"));
        let remote = Remote {
            control_plane: vec![("istiod-1".into(), "1.0.0".into())],
            proxies: vec![proxy("a.d", "1.0.0"), proxy("b.d", "1.0.0"), proxy("c.d", "0.9.0")],
        };
        let lines = text(Some(&remote));
        assert!(lines.contains("control plane version: 1.0.0\n"), "{lines}");
        assert!(lines.ends_with("data plane version: 0.9.0 (1 proxy), 1.0.0 (2 proxies)\n"), "{lines}");
        let json = document(Some(&remote));
        assert_eq!(json["meshVersion"][0]["Info"]["version"], "1.0.0");
        assert_eq!(json["dataPlaneVersion"][2]["ID"], "c.d");
    }
}
