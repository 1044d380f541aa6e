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
fn nobody_vouches_for_whose_roots_have_not_come() {
    let url = "https://there/bundle";
    let config = mesh(json!([{ "spiffeBundleUrl": url, "trustDomains": ["other"] }]));
    let (fetched, before) = (root("fetched"), root("before"));
    let unfetched = BTreeMap::from([(url.to_owned(), Known::default())]);
    let known = |own: bool| {
        let of = DomainRoots { own, roots: before.clone() };
        Federation(BTreeMap::from([("other".to_owned(), of.clone()), ("gone".to_owned(), of)]))
    };
    let of = |known: &BTreeMap<String, Known>, before: &Federation| federation(&config, known, before).0;
    let found = of(&unfetched, &Federation::default());
    assert_eq!(
        found.keys().collect::<Vec<_>>(),
        ["moved", "own"],
        "an alias that others are to vouch for is not ours"
    );
    let found = of(&unfetched, &known(false));
    assert_eq!(
        found.keys().collect::<Vec<_>>(),
        ["moved", "other", "own"],
        "what was known, where it is wanted still"
    );
    assert!(same(&found["other"].roots, &before));
    // It was ours before the configuration named others: our roots do not vouch for it any longer.
    assert!(!of(&unfetched, &known(true)).contains_key("other"));
    // And the other way round: what others vouched for is the mesh's own now.
    let theirs = DomainRoots { own: false, roots: before.clone() };
    let of_others = Federation(BTreeMap::from([("own".to_owned(), theirs)]));
    assert_eq!(of(&unfetched, &of_others)["own"], DomainRoots { own: true, roots: String::new() });
    let come = Known { roots: Some(fetched.clone()), ..Known::default() };
    let found = of(&BTreeMap::from([(url.to_owned(), come)]), &known(false));
    assert!(same(&found["other"].roots, &fetched), "what comes takes the place of what was known");
    let another = Known { roots: Some(fetched), ..Known::default() };
    let found = of(&BTreeMap::from([("https://elsewhere".to_owned(), another)]), &Federation::default());
    assert!(!found.contains_key("other"), "another's bundle");
}

#[test]
fn bundles_are_read_or_refused() {
    let pem = root("a");
    let (roots, pause) = read_bundle(&bundle(&pem)).unwrap();
    assert!(same(&roots, &pem));
    assert_eq!(pause, Duration::from_secs(5));
    for (hint, pause) in [("0", 1800), ("1", 5), ("6", 6), ("1800", 1800), ("1801", 1800)] {
        let text = bundle(&pem).replace("hint\":5", &format!("hint\":{hint}"));
        assert_eq!(read_bundle(&text).unwrap().1, Duration::from_secs(pause), "{hint}");
    }
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

#[test]
fn only_endpoints_that_are_named_are_fetched() {
    let roots = |text: &str| Known { roots: Some(text.to_owned()), ..Known::default() };
    let mut known = BTreeMap::from([
        ("https://named".to_owned(), roots("kept")),
        ("https://gone".to_owned(), roots("forgotten")),
    ]);
    let config = mesh(json!([
        { "pem": root("written"), "trustDomains": ["third"] },
        { "spiffeBundleUrl": "https://named", "trustDomains": ["other"] },
        { "spiffeBundleUrl": "https://new" },
    ]));
    keep_named(&config, &mut known);
    assert_eq!(known.keys().collect::<Vec<_>>(), ["https://named", "https://new"]);
    assert_eq!(known["https://named"].roots.as_deref(), Some("kept"));
    assert!(known["https://new"].roots.is_none());
}

#[tokio::test]
async fn a_round_fetches_what_is_due_and_waits_longer_after_each_failure() {
    let provider = Provider::start(true).await;
    let (old, new) = (root("old"), root("new"));
    provider.serve(bundle(&new));
    let url = |path: &str| format!("https://{}{path}", provider.address);
    let now = Instant::now();
    let later = now + Duration::from_secs(60);
    let of = |failures, next| Known { roots: Some(old.clone()), failures, next };
    let mut known = BTreeMap::from([
        (url("/keys"), of(3, Some(now))),
        (url("/keys?later"), of(0, Some(later))),
        (url("/gone?first"), of(0, None)),
        (url("/gone?third"), of(2, Some(now))),
        (url("/gone?last"), of(u32::MAX, Some(now))),
    ]);
    round(&KeyFetcher::new(provider.certificate.as_bytes()), &mut known).await;
    let took = now.elapsed();
    for (path, roots, failures, pause) in [
        ("/keys", &new, 0, Duration::from_secs(5)),
        ("/gone?first", &old, 1, FIRST_RETRY),
        ("/gone?third", &old, 3, FIRST_RETRY * 4),
        ("/gone?last", &old, u32::MAX, LAST_RETRY),
    ] {
        let found = &known[&url(path)];
        assert!(same(found.roots.as_ref().unwrap(), roots), "{path}");
        let next = found.next.unwrap();
        assert!(found.failures == failures && next >= now + pause && next <= now + took + pause, "{path}");
    }
    let untouched = &known[&url("/keys?later")];
    assert_eq!((untouched.roots.as_ref(), untouched.next), (Some(&old), Some(later)));
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
