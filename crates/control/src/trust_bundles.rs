//! Whom the mesh trusts besides itself: mesh config's `caCertificates`, written down or fetched from SPIFFE bundle endpoints. What came
//! once stays in force until something newer comes, also over a restart.
//! <https://github.com/spiffe/spiffe/blob/main/standards/SPIFFE_Trust_Domain_and_Bundle.md>
use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use futures::stream::{self, StreamExt as _};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::{Api, Client};
use lateen_api::MeshConfig;
use lateen_pki::{DomainRoots, Federation, Roots};
use serde::Deserialize;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::answered::{PAUSE, answered};
use crate::due::due;
use crate::fetch_keys::KeyFetcher;
use crate::push::Published;
use crate::root_cert;

/// How often a bundle is fetched that does not say (Istio's pause).
const REFRESH: Duration = Duration::from_secs(30 * 60);
/// Shortest pause that a bundle may ask for.
const SHORTEST: Duration = Duration::from_secs(5);
/// Istio's limit for an answer.
const TIME_LIMIT: Duration = Duration::from_secs(10);
/// Pause after the first failure; it doubles with each.
const FIRST_RETRY: Duration = Duration::from_secs(1);
/// Longest pause after failures.
const LAST_RETRY: Duration = Duration::from_secs(60);
/// Fetched at a time.
const AT_A_TIME: usize = 8;

/// A SPIFFE bundle, as far as it is about X.509.
#[derive(Debug, Deserialize)]
struct Bundle {
    keys: Vec<BundleKey>,
    /// Seconds.
    #[serde(default)]
    spiffe_refresh_hint: u64,
}

#[derive(Debug, Deserialize)]
struct BundleKey {
    #[serde(default)]
    r#use: String,
    #[serde(default)]
    x5c: Vec<String>,
}

/// Roots (PEM), and when to look again.
fn read_bundle(text: &str) -> Result<(String, Duration), String> {
    let bundle: Bundle =
        serde_json::from_str(text).map_err(|error| format!("it is no SPIFFE bundle: {error}"))?;
    let mut pem = String::new();
    for key in bundle.keys.iter().filter(|key| key.r#use == "x509-svid") {
        let [certificate] = &key.x5c[..] else {
            return Err(format!("expected 1 certificate in x5c, found {}", key.x5c.len()));
        };
        let der = STANDARD.decode(certificate).map_err(|error| format!("x5c: {error}"))?;
        pem += &format!("-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n", STANDARD.encode(der));
    }
    Roots::from_pem(&pem).map_err(|error| format!("its roots: {error}"))?;
    let hint = Some(bundle.spiffe_refresh_hint).filter(|hint| *hint > 0).map(Duration::from_secs);
    Ok((pem, hint.map_or(REFRESH, |hint| hint.clamp(SHORTEST, REFRESH))))
}

/// What is known of an endpoint.
#[derive(Clone, Default)]
struct Known {
    /// PEM.
    roots: Option<String>,
    failures: u32,
    next: Option<Instant>,
}

/// Who vouches for which trust domain. The mesh's own root does for its own domain and for those of its aliases that have no roots of
/// their own; what nobody vouches for is refused. `before`: of domains whose roots could not be fetched since the start.
fn federation(mesh: &MeshConfig, fetched: &BTreeMap<String, Known>, before: &Federation) -> Federation {
    let anchors: Vec<_> = mesh.trust_anchors().collect();
    if anchors.is_empty() {
        return Federation::default();
    }
    let named: BTreeSet<&String> = anchors.iter().flat_map(|anchor| &anchor.trust_domains).collect();
    let aliases = mesh.trust_domain_aliases.iter().filter(|alias| !named.contains(alias));
    let own = |domain: &String| (domain.clone(), DomainRoots { own: true, roots: String::new() });
    let mut all: BTreeMap<String, DomainRoots> =
        std::iter::once(&mesh.trust_domain).chain(aliases).map(own).collect();
    for domain in named {
        all.entry(domain.clone()).or_default();
    }
    for anchor in anchors {
        let roots = if anchor.pem.is_empty() {
            fetched.get(&anchor.spiffe_bundle_url).and_then(|known| known.roots.as_ref())
        } else {
            Some(&anchor.pem)
        };
        // What is no certificate was told when mesh config came.
        let Some(roots) = roots.filter(|roots| Roots::from_pem(roots).is_ok()) else { continue };
        let of_anchor =
            |domain: &String| anchor.trust_domains.is_empty() || anchor.trust_domains.contains(domain);
        for (_, of) in all.iter_mut().filter(|(domain, _)| of_anchor(domain)) {
            of.roots = format!("{}{}\n", of.roots, roots.trim_end());
        }
    }
    for (domain, of) in all.iter_mut().filter(|(_, of)| !of.own && of.roots.is_empty()) {
        if let Some(before) = before.0.get(domain).filter(|before| !before.own) {
            of.clone_from(before);
        }
    }
    all.retain(|_, of| of.own || !of.roots.is_empty());
    Federation(all)
}

/// What was in force before the start.
async fn stored(client: &Client, namespace: &str) -> Federation {
    let api: Api<ConfigMap> = Api::namespaced(client.clone(), namespace);
    let text = match answered(PAUSE, || api.get_opt(root_cert::NAME)).await {
        Ok(map) => map.and_then(|map| map.data?.remove(Federation::FILE)),
        Err(error) => {
            tracing::warn!(
                "cannot read ConfigMap {}: {error}; fetching all trust bundles anew",
                root_cert::NAME
            );
            None
        }
    };
    text.and_then(|text| Federation::from_json(&text).ok()).unwrap_or_default()
}

/// Works until told to stop, and tells who vouches for whom; `None` until that is known.
pub(crate) async fn run(
    fetcher: KeyFetcher,
    client: Client,
    namespace: String,
    published: watch::Receiver<Published>,
    told: watch::Sender<Option<Federation>>,
    stop: CancellationToken,
) {
    let working = async {
        let before = stored(&client, &namespace).await;
        follow(&fetcher, before, published, &told).await;
    };
    stop.run_until_cancelled(working).await;
}

async fn follow(
    fetcher: &KeyFetcher,
    before: Federation,
    mut published: watch::Receiver<Published>,
    told: &watch::Sender<Option<Federation>>,
) {
    let mut known: BTreeMap<String, Known> = BTreeMap::new();
    loop {
        let now = published.borrow_and_update().clone();
        if now.listed {
            let mesh = now.world.mesh();
            keep_named(mesh, &mut known);
            round(fetcher, &mut known).await;
            let all = federation(mesh, &known, &before);
            told.send_if_modified(|told| {
                let before = told.replace(all);
                before != *told
            });
        }
        let next = known.values().filter_map(|known| known.next).min();
        if due(next, &mut published).await.is_none() {
            return;
        }
    }
}

/// Knows of the endpoints that the mesh names, and of no others. Of an anchor that is written down nothing is fetched.
fn keep_named(mesh: &MeshConfig, known: &mut BTreeMap<String, Known>) {
    let urls = mesh.trust_anchors().filter(|anchor| anchor.pem.is_empty());
    let urls: BTreeSet<&String> = urls.map(|anchor| &anchor.spiffe_bundle_url).collect();
    known.retain(|url, _| urls.contains(url));
    for url in urls {
        known.entry(url.clone()).or_default();
    }
}

/// Fetches what is due.
async fn round(fetcher: &KeyFetcher, known: &mut BTreeMap<String, Known>) {
    let now = Instant::now();
    let due = known.iter().filter(|(_, known)| known.next.is_none_or(|next| next <= now));
    let due: Vec<String> = due.map(|(url, _)| url.clone()).collect();
    let fetched = stream::iter(due).map(|url| async move {
        let result = fetcher.bundle(&url, TIME_LIMIT).await.and_then(|text| read_bundle(&text));
        (url, result)
    });
    let fetched: Vec<_> = fetched.buffer_unordered(AT_A_TIME).collect().await;
    for (url, result) in fetched {
        let of = known.entry(url.clone()).or_default();
        match result {
            Ok((roots, pause)) => {
                *of = Known { roots: Some(roots), failures: 0, next: Some(Instant::now() + pause) };
            }
            Err(problem) => {
                tracing::warn!(
                    "cannot fetch the trust bundle {url}: {problem}; the last one stays, trying again"
                );
                let pause = FIRST_RETRY.saturating_mul(2_u32.saturating_pow(of.failures)).min(LAST_RETRY);
                of.failures = of.failures.saturating_add(1);
                of.next = Some(Instant::now() + pause);
            }
        }
    }
}

#[cfg(test)]
#[path = "trust_bundles_tests.rs"]
mod tests;
