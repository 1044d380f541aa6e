//! What each workload's proxy holds and trusts, by its own word.

use anyhow::Result;
use aws_lc_rs::digest;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use futures::StreamExt as _;
use k8s_openapi::api::core::v1::Pod;
use kube::api::ListParams;
use kube::{Api, Client, ResourceExt as _};
use lateen_pki::Roots;
use rustls_pki_types::CertificateDer;
use serde_json::{Value, json};

use crate::cluster::api_failure;
use crate::pods::{self, PodName};
use crate::table::Table;

/// Proxies asked at a time.
const AT_ONCE: usize = 16;
/// The container with the proxy, and its port for such questions.
const CONTAINER: &str = "istio-proxy";
const ADMIN: u16 = 15000;

/// Only what is asked about: a whole dump may be many megabytes.
const SECRETS: &str = "/config_dump?resource=dynamic_active_secrets";

/// A workload that has a proxy.
#[derive(Clone, Debug)]
pub(super) struct Meshed {
    pod: PodName,
    /// Stays the pod's own when another takes its name.
    pub(super) uid: String,
}

/// What one workload's proxy says.
pub(super) struct Workload {
    /// `POD.NAMESPACE`.
    name: String,
    /// Its pod's.
    pub(super) uid: String,
    /// What its proxy has; why it is not known, else.
    held: Result<Held, String>,
}

struct Held {
    /// PEM, leaf first.
    chain: String,
    roots: Roots,
}

/// Every pod that has a proxy and has not ended.
pub(super) async fn meshed(client: &Client) -> Result<Vec<Meshed>> {
    let api: Api<Pod> = Api::all(client.clone());
    let pods = api.list(&ListParams::default()).await.map_err(|error| api_failure("list pods", &error))?;
    let meshed = pods.items.into_iter().filter(has_proxy).map(|pod| Meshed {
        uid: pod.uid().unwrap_or_default(),
        pod: PodName { name: pod.name_any(), namespace: pod.namespace().unwrap_or_default() },
    });
    Ok(meshed.collect())
}

/// Asks these proxies, and sorts what they say by name.
pub(super) async fn ask(client: &Client, meshed: Vec<Meshed>) -> Vec<Workload> {
    let asked = futures::stream::iter(meshed).map(|Meshed { pod, uid }| async move {
        let said = pods::get(client, &pod, ADMIN, SECRETS).await;
        let said = said.and_then(|bytes| Ok(serde_json::from_slice::<Value>(&bytes)?));
        // The first line is what happened; the rest is advice.
        let said = said.map_err(|error| error.to_string().lines().next().unwrap_or_default().to_owned());
        Workload {
            name: format!("{}.{}", pod.name, pod.namespace),
            uid,
            held: said.and_then(|said| read(&said)),
        }
    });
    let mut workloads: Vec<Workload> = asked.buffer_unordered(AT_ONCE).collect().await;
    workloads.sort_by(|a, b| a.name.cmp(&b.name));
    workloads
}

/// Whether a proxy runs in the pod, or is about to.
fn has_proxy(pod: &Pod) -> bool {
    let ended = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    let Some(spec) = &pod.spec else { return false };
    let containers = spec.containers.iter().chain(spec.init_containers.iter().flatten());
    !matches!(ended, Some("Succeeded" | "Failed"))
        && pod.metadata.deletion_timestamp.is_none()
        && containers.into_iter().any(|container| container.name == CONTAINER)
}

/// Reads what [`SECRETS`] gives.
fn read(said: &Value) -> Result<Held, String> {
    let secrets = said["configs"].as_array().map(Vec::as_slice).unwrap_or_default();
    let text = |name: &str, pointer: &str| {
        let entry = secrets.iter().find(|entry| entry["name"] == name);
        let entry = entry.ok_or_else(|| format!("its proxy has no secret {name} yet"))?;
        let encoded = entry.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
        let bytes = STANDARD.decode(encoded).map_err(|error| format!("secret {name}: {error}"))?;
        String::from_utf8(bytes).map_err(|error| format!("secret {name}: {error}"))
    };
    let chain = text("default", "/secret/tls_certificate/certificate_chain/inline_bytes")?;
    let roots = text("ROOTCA", "/secret/validation_context/trusted_ca/inline_bytes")?;
    let roots = Roots::from_pem(&roots).map_err(|error| format!("secret ROOTCA: {error}"))?;
    Ok(Held { chain, roots })
}

impl Workload {
    /// Whether its proxy trusts all of `roots`.
    pub(super) fn trusts(&self, roots: &Roots) -> bool {
        self.held.as_ref().is_ok_and(|held| held.roots.contains(roots))
    }

    /// Whether its certificate is of this root.
    pub(super) fn is_of(&self, root: &CertificateDer<'static>) -> bool {
        self.held.as_ref().is_ok_and(|held| held.roots.issuer_of(&held.chain) == Some(root))
    }

    /// Whether its proxy trusts none of `roots`.
    pub(super) fn trusts_none_of(&self, roots: &Roots) -> bool {
        self.held.as_ref().is_ok_and(|held| !held.roots.intersects(roots))
    }

    /// Its name, and why nothing is known of it.
    pub(super) fn described(&self) -> String {
        match &self.held {
            Ok(_) => self.name.clone(),
            Err(why) => format!("{} ({why})", self.name),
        }
    }

    fn issuer(&self) -> String {
        let issuer = self.held.as_ref().ok().and_then(|held| held.roots.issuer_of(&held.chain));
        issuer.map_or_else(|| "-".to_owned(), fingerprint)
    }

    fn trusted(&self) -> Vec<String> {
        self.held.iter().flat_map(|held| held.roots.iter()).map(fingerprint).collect()
    }

    /// For machines.
    pub(super) fn document(&self) -> Value {
        json!({
            "name": self.name,
            "certificateOf": self.issuer(),
            "trusts": self.trusted(),
            "error": self.held.as_ref().err(),
        })
    }
}

/// For people.
pub(super) fn table(workloads: &[Workload]) -> Table {
    let mut table = Table::new(["NAME", "CERTIFICATE OF", "TRUSTS"]);
    for workload in workloads {
        let trusts = match &workload.held {
            Ok(_) => workload.trusted().join(","),
            Err(why) => why.clone(),
        };
        table.row([workload.name.clone(), workload.issuer(), trusts]);
    }
    table
}

/// The first eight bytes of a certificate's SHA-256: enough to tell roots apart.
pub(super) fn fingerprint(certificate: &CertificateDer<'static>) -> String {
    let digest = digest::digest(&digest::SHA256, certificate);
    digest.as_ref().iter().take(8).map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use lateen_pki::CertificateAuthority;

    use super::*;

    /// What a proxy says that holds a certificate of one authority and trusts `roots`.
    fn said(signer: &CertificateAuthority, roots: &Roots) -> Value {
        let key = lateen_pki::WorkloadKey::generate(lateen_pki::KeyKind::P256).unwrap();
        let request = lateen_pki::SigningRequest::from_pem(&key.request().unwrap()).unwrap();
        let id = lateen_pki::SpiffeId::new("cluster.local", "shop", "web").unwrap();
        let life = std::time::Duration::from_secs(60);
        let chain = signer.issue_workload(&request, &id, life).unwrap();
        json!({ "configs": [
            { "name": "default", "secret": {
                "tls_certificate": { "certificate_chain": { "inline_bytes": STANDARD.encode(&chain[0]) } },
            } },
            { "name": "ROOTCA", "secret": {
                "validation_context": { "trusted_ca": { "inline_bytes": STANDARD.encode(roots.to_pem()) } },
            } },
        ] })
    }

    #[test]
    fn a_workload_is_judged_by_what_its_proxy_has() {
        let [old, new] = [(), ()].map(|()| CertificateAuthority::generate("cluster.local").unwrap());
        let workload =
            |said: &Value| Workload { name: "web.shop".to_owned(), uid: "1".to_owned(), held: read(said) };
        let one = workload(&said(&old, old.roots()));
        assert!(one.trusts(old.roots()) && !one.trusts(new.roots()) && one.is_of(old.roots().first()));
        let both = workload(&said(&new, &old.roots().with(new.roots())));
        assert!(
            both.trusts(new.roots()) && both.is_of(new.roots().first()) && !both.trusts_none_of(old.roots())
        );
        let after = workload(&said(&new, new.roots()));
        assert!(after.trusts_none_of(old.roots()));
        // As a proxy says it that has no secret.
        let none = workload(&json!({}));
        assert!(
            !none.trusts(new.roots())
                && !none.is_of(new.roots().first())
                && !none.trusts_none_of(new.roots())
        );
        assert_eq!(none.described(), "web.shop (its proxy has no secret default yet)");
        let text = table(&[after, none]).to_string();
        assert!(text.lines().nth(1).unwrap().contains(&fingerprint(new.roots().first())), "{text}");
        assert!(text.contains("no secret default yet"), "{text}");
    }
}
