//! The control plane, asked through its debug port.

use anyhow::Result;
use kube::{Client, ResourceExt};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::cluster::ClusterArgs;
use crate::error::Failure;
use crate::pods::{self, PodName};

/// The control plane's port for metrics and debug.
const DEBUG_PORT: u16 = 15014;

/// The control plane's pods.
pub struct ControlPlane {
    client: Client,
    pods: Vec<PodName>,
}

/// One proxy as `/debug/syncz` describes it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SyncStatus {
    /// `POD.NAMESPACE`.
    pub name: String,
    /// The cluster it is in.
    pub cluster: String,
    /// The control plane's pod that serves it.
    pub istiod: String,
    /// The proxy's version.
    pub version: String,
    /// Each type it is subscribed to.
    pub types: Vec<TypeStatus>,
}

/// One type of configuration of one proxy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct TypeStatus {
    /// `CDS`, `LDS`, `EDS`, `RDS`, …
    pub kind: String,
    /// Where it stands.
    pub state: SyncState,
    /// The proxy's words, when it has rejected something.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// When the proxy last acknowledged, as RFC 3339; not every control plane tells.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub acknowledged: Option<String>,
}

/// Where one type of configuration stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum SyncState {
    /// Sent and acknowledged.
    Synced,
    /// Sent, not acknowledged yet.
    Stale,
    /// Sent and rejected.
    Error,
    /// Nothing to send.
    NotSent,
    /// Not subscribed to.
    Ignored,
}

impl SyncState {
    /// As istioctl prints it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Synced => "SYNCED",
            Self::Stale => "STALE",
            Self::Error => "ERROR",
            Self::NotSent => "NOT SENT",
            Self::Ignored => "IGNORED",
        }
    }
}

impl ControlPlane {
    /// Finds the control plane's pods.
    ///
    /// # Errors
    /// When there are none, or none is ready.
    pub async fn find(cluster: &ClusterArgs) -> Result<Self> {
        let client = cluster.client().await?;
        let namespace = &cluster.istio_namespace;
        let pods = pods::list(&client, namespace, "app=istiod").await?;
        let pods: Vec<_> = pods
            .iter()
            .filter(|pod| pods::is_ready(pod))
            .map(|pod| PodName { name: pod.name_any(), namespace: namespace.clone() })
            .collect();
        if pods.is_empty() {
            let next = format!("kubectl get pods -n {namespace}, and lateen logs istiod");
            return Err(
                Failure::new(format!("No control plane is ready in namespace {namespace}."), next).into()
            );
        }
        Ok(Self { client, pods })
    }

    /// Each control plane pod and its version.
    ///
    /// # Errors
    /// When one does not answer.
    pub async fn versions(&self) -> Result<Vec<(String, String)>> {
        let mut versions = Vec::new();
        for pod in &self.pods {
            let body = pods::get(&self.client, pod, DEBUG_PORT, "/version").await?;
            versions.push((pod.name.clone(), parse_version(&String::from_utf8_lossy(&body))));
        }
        Ok(versions)
    }

    /// Every proxy connected to any control plane pod, by name.
    ///
    /// # Errors
    /// When one does not answer, or not with what we understand.
    pub async fn sync_statuses(&self) -> Result<Vec<SyncStatus>> {
        let mut all = Vec::new();
        for pod in &self.pods {
            let body = pods::get(&self.client, pod, DEBUG_PORT, "/debug/syncz").await?;
            let entries: Vec<SyncEntry> =
                serde_json::from_slice(&body).map_err(|error| unknown_answer(&pod.name, &error))?;
            all.extend(entries.into_iter().map(|entry| entry.status(&pod.name)));
        }
        all.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(all)
    }
}

/// What is said of a control plane that this program does not understand.
fn unknown_answer(pod: &str, error: &serde_json::Error) -> Failure {
    let message = format!("The control plane's pod {pod} does not say what its proxies have: {error}.");
    Failure::new(message, "lateen version, for whether this program is of the control plane's version")
}

/// Plain text, or JSON with `version`.
fn parse_version(body: &str) -> String {
    let json: Option<Value> = serde_json::from_str(body).ok();
    let named = json.as_ref().and_then(|json| json.get("version")).and_then(Value::as_str);
    named.unwrap_or(body).trim().to_owned()
}

/// An element of `/debug/syncz`, with Istio's names.
#[derive(Debug, Deserialize)]
struct SyncEntry {
    proxy: String,
    #[serde(default)]
    cluster_id: String,
    #[serde(default)]
    istio_version: String,
    #[serde(flatten)]
    rest: serde_json::Map<String, Value>,
}

/// The types in the order columns have, with Istio's prefixes in `/debug/syncz`.
const TYPES: [(&str, &str); 5] = [
    ("CDS", "cluster"),
    ("LDS", "listener"),
    ("EDS", "endpoint"),
    ("RDS", "route"),
    ("ECDS", "extensionconfig"),
];

impl SyncEntry {
    fn status(self, istiod: &str) -> SyncStatus {
        let types = TYPES.iter().map(|(kind, prefix)| self.type_status(kind, prefix)).collect();
        SyncStatus {
            name: self.proxy,
            cluster: self.cluster_id,
            istiod: istiod.to_owned(),
            version: self.istio_version,
            types,
        }
    }

    fn type_status(&self, kind: &str, prefix: &str) -> TypeStatus {
        let field = |suffix: &str| {
            let value = self.rest.get(&format!("{prefix}_{suffix}")).and_then(Value::as_str);
            value.filter(|value| !value.is_empty())
        };
        // What Lateen's control plane tells besides istiod's fields.
        let more = |pointer: &str| {
            let value = self.rest.get("types").and_then(|types| types.pointer(&format!("/{kind}/{pointer}")));
            value.and_then(Value::as_str).map(str::to_owned)
        };
        let error = more("error");
        let state = match (field("sent"), field("acked")) {
            _ if error.is_some() => SyncState::Error,
            (None, _) => SyncState::NotSent,
            (Some(sent), Some(acked)) if sent == acked => SyncState::Synced,
            (Some(_), _) => SyncState::Stale,
        };
        TypeStatus { kind: kind.to_owned(), state, error, acknowledged: more("acked/time") }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn syncz_is_read_as_istiod_writes_it() {
        let entry: SyncEntry = serde_json::from_str(
            r#"{"proxy":"web-1.default","cluster_id":"Kubernetes","istio_version":"1.24.0","proxy_type":"sidecar",
                "cluster_sent":"a","cluster_acked":"a","listener_sent":"c","listener_acked":"b","route_sent":"",
                "endpoint_sent":"e","endpoint_acked":"d",
                "types":{"CDS":{"acked":{"time":"2026-01-01T00:00:00Z"}},"EDS":{"error":"no such field"}}}"#,
        )
        .unwrap();
        let status = entry.status("istiod-1");
        let states: Vec<_> = status.types.iter().map(|t| (t.kind.as_str(), t.state)).collect();
        assert_eq!(
            states,
            [
                ("CDS", SyncState::Synced),
                ("LDS", SyncState::Stale),
                ("EDS", SyncState::Error),
                ("RDS", SyncState::NotSent),
                ("ECDS", SyncState::NotSent),
            ]
        );
        assert_eq!(status.types[0].acknowledged.as_deref(), Some("2026-01-01T00:00:00Z"));
        assert_eq!(status.types[2].error.as_deref(), Some("no such field"));
        assert_eq!((status.name.as_str(), status.version.as_str()), ("web-1.default", "1.24.0"));
    }

    #[test]
    fn a_version_is_text_or_json() {
        assert_eq!(parse_version("1.2.3\n"), "1.2.3");
        assert_eq!(parse_version(r#"{"version":"1.2.3"}"#), "1.2.3");
    }
}
