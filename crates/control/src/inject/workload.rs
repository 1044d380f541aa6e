//! Which workload a pod belongs to, from the pod alone.
use serde::Serialize;
use serde_json::Value;

use super::pod::label;

/// The workload behind a pod, in the terms templates use.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Workload {
    /// Name, for example of the Deployment.
    pub(super) name: String,
    /// Kind.
    pub(super) kind: String,
    /// `kubernetes://apis/GROUP/VERSION/namespaces/NS/PLURAL/NAME`.
    pub(super) owner: String,
    /// Canonical name.
    pub(super) app: String,
    /// Canonical revision.
    pub(super) revision: String,
}

impl Workload {
    /// A ReplicaSet whose name ends in the pod's template hash is a Deployment's, a Job with a time stamp a CronJob's.
    pub(super) fn of(pod: &Value, namespace: &str) -> Self {
        let metadata = &pod["metadata"];
        let controller = metadata["ownerReferences"]
            .as_array()
            .into_iter()
            .flatten()
            .find(|owner| owner["controller"] == Value::Bool(true));
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let (version, kind, name) = match controller {
            Some(owner) => {
                let (version, kind, name) =
                    (text(&owner["apiVersion"]), text(&owner["kind"]), text(&owner["name"]));
                let hash = label(pod, "pod-template-hash").map(|hash| format!("-{hash}"));
                let deployment = hash.and_then(|hash| name.strip_suffix(&hash));
                match (kind.as_str(), deployment) {
                    ("ReplicaSet", Some(deployment)) => {
                        (version, "Deployment".to_owned(), deployment.to_owned())
                    }
                    ("Job", _) => match cron_job(&name) {
                        Some(cron_job) => (version, "CronJob".to_owned(), cron_job.to_owned()),
                        None => (version, kind, name),
                    },
                    _ => (version, kind, name),
                }
            }
            None => {
                let name = match text(&metadata["name"]) {
                    given if !given.is_empty() => given,
                    _ => text(&metadata["generateName"]).trim_end_matches('-').to_owned(),
                };
                ("v1".to_owned(), "Pod".to_owned(), name)
            }
        };
        let plural = format!("{}s", kind.to_lowercase());
        let first = |keys: &[&str], default: &str| {
            keys.iter()
                .find_map(|key| label(pod, key))
                .filter(|value| !value.is_empty())
                .unwrap_or(default)
                .to_owned()
        };
        Self {
            owner: format!("kubernetes://apis/{version}/namespaces/{namespace}/{plural}/{name}"),
            app: first(&["service.istio.io/canonical-name", "app.kubernetes.io/name", "app"], &name),
            revision: first(
                &["service.istio.io/canonical-revision", "app.kubernetes.io/version", "version"],
                "latest",
            ),
            name,
            kind,
        }
    }
}

/// The CronJob whose Job has this name: `NAME-` and eight to ten digits (minutes or seconds since 1970).
fn cron_job(job: &str) -> Option<&str> {
    let (name, time) = job.rsplit_once('-')?;
    ((8..=10).contains(&time.len()) && time.bytes().all(|c| c.is_ascii_digit())).then_some(name)
}
