//! Bundles on a real socket, and who vouches for whom.
use std::sync::Arc;

use lateen_model::{Store, StoreOptions};
use lateen_pki::CertificateAuthority;
use serde_json::{Value, json};

use super::*;
use crate::key_sets::tests::Provider;

fn root(name: &str) -> String {
    CertificateAuthority::generate(name).unwrap().root_pem().to_owned()
}

/// The SPIFFE bundle of a root.
fn bundle(pem: &str) -> String {
    let der: String = pem.lines().filter(|line| !line.starts_with("-----")).collect();
    json!({ "spiffe_refresh_hint": 5, "keys": [
        { "use": "jwt-svid", "kty": "EC", "kid": "a" },
        { "use": "x509-svid", "kty": "EC", "x5c": [der] },
    ] })
    .to_string()
}

fn mesh(anchors: Value) -> MeshConfig {
    let value =
        json!({ "trustDomain": "own", "trustDomainAliases": ["moved", "other"], "caCertificates": anchors });
    serde_json::from_value(value).unwrap()
}

fn same(a: &str, b: &str) -> bool {
    Roots::from_pem(a).unwrap() == Roots::from_pem(b).unwrap()
}

#[test]
fn roots_vouch_for_their_domains() {
    let (other, third, all) = (root("other"), root("third"), root("all"));
    let of = |mesh: &MeshConfig| federation(mesh, &BTreeMap::new(), &Federation::default()).0;
    assert!(of(&mesh(json!([]))).is_empty());
    assert!(of(&mesh(json!([{ "pem": other, "certSigners": ["a/b"] }]))).is_empty(), "that is another thing");
    let found = of(&mesh(json!([
        { "pem": other, "trustDomains": ["other"] },
        { "pem": third, "trustDomains": ["other", "third"] },
        { "pem": "nonsense", "trustDomains": ["broken"] },
    ])));
    assert_eq!(found.keys().collect::<Vec<_>>(), ["moved", "other", "own", "third"]);
    let own = DomainRoots { own: true, roots: String::new() };
    assert_eq!((&found["own"], &found["moved"]), (&own, &own), "an alias without roots of its own is ours");
    assert!(!found["other"].own && same(&found["other"].roots, &format!("{other}{third}")));
    assert!(!found["third"].own && same(&found["third"].roots, &third));
    let found = of(&mesh(json!([{ "pem": all }, { "pem": other, "trustDomains": ["other"] }])));
    assert!(found["own"].own && same(&found["own"].roots, &all), "what names no domain is for all");
    assert!(!found["other"].own && same(&found["other"].roots, &format!("{all}{other}")));
    let found = of(&mesh(json!([{ "pem": other, "trustDomains": ["own"] }])));
    assert!(found["own"].own && same(&found["own"].roots, &other), "ours and another");
}

#[test]
fn bundles_are_read_or_refused() {
    let pem = root("a");
    let (roots, pause) = read_bundle(&bundle(&pem)).unwrap();
    assert!(same(&roots, &pem));
    assert_eq!(pause, Duration::from_secs(5));
    for wrong in [
        "<html>".to_owned(),
        "{}".to_owned(),
        json!({ "keys": [] }).to_string(),
        json!({ "keys": [{ "use": "jwt-svid" }] }).to_string(),
        json!({ "keys": [{ "use": "x509-svid" }] }).to_string(),
        json!({ "keys": [{ "use": "x509-svid", "x5c": ["AA=="] }] }).to_string(),
        json!({ "keys": [{ "use": "x509-svid", "x5c": ["!"] }] }).to_string(),
        bundle(&pem).replace("\"x5c\":[", "\"x5c\":[\"AA==\","),
    ] {
        assert!(read_bundle(&wrong).is_err(), "{wrong}");
    }
}

#[tokio::test]
async fn bundles_are_followed_and_outlive_their_endpoint() {
    let provider = Provider::start(true).await;
    let (first, second) = (root("first"), root("second"));
    provider.serve(bundle(&first));
    let url = format!("https://{}/keys", provider.address);
    let published = |url: &str| {
        let mesh = mesh(json!([{ "spiffeBundleUrl": url, "trustDomains": ["other"] }]));
        let world = Store::new(StoreOptions { mesh, ..StoreOptions::default() }).world();
        Published { world, config_version: 1, listed: true, complete: false }
    };
    let (sender, receiver) = watch::channel(published(&url));
    let (told, mut tells) = watch::channel(None);
    let fetcher = KeyFetcher::new(provider.certificate.as_bytes());
    let of_other = |told: &Option<Federation>| told.as_ref().and_then(|told| told.0.get("other")).cloned();
    let running = tokio::spawn({
        let before = Federation::default();
        async move { follow(&fetcher, before, receiver, &told).await }
    });
    let mut becomes = async |pem: &str| {
        let wanted = tells.wait_for(|told| of_other(told).is_some_and(|of| same(&of.roots, pem)));
        tokio::time::timeout(Duration::from_secs(20), wanted).await.expect("in seconds").unwrap().clone()
    };
    becomes(&first).await;
    provider.serve(bundle(&second));
    let now = becomes(&second).await.unwrap();
    provider.serve("<html>".to_owned());
    // Nobody answers there; what was known before the start is used.
    let silent = "https://127.0.0.1:1/bundle";
    sender.send_replace(published(silent));
    running.abort();
    let (told, mut tells) = watch::channel(None);
    let receiver = sender.subscribe();
    tokio::spawn(async move { follow(&KeyFetcher::new(&[]), now, receiver, &told).await });
    let wanted = tells.wait_for(|told| of_other(told).is_some_and(|of| same(&of.roots, &second)));
    tokio::time::timeout(Duration::from_secs(20), wanted).await.expect("in seconds").unwrap();
    let plain = KeyFetcher::new(&[]).bundle("http://127.0.0.1:1/", TIME_LIMIT).await;
    assert!(plain.unwrap_err().contains("https"), "roots are not fetched in plain text");
    drop(Arc::new(sender));
}
