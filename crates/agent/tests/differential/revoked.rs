//! Certificates that are taken back: lists beside the authorities, among them, and among a trust domain's; of whom a list is wanted.
//! Chains with an authority between the root and the client, too.

use rcgen::KeyUsagePurpose;
use serde_json::{Value, json};

use crate::peers::{SPIFFE, over_tls, said, served};
use crate::proxies::{both, listener, manager, merged};
use crate::tls::Client;
use crate::tls_config::downstream_tls;
use crate::tls_pki::{Authority, Pair, Pki};

struct World {
    pki: Pki,
    /// Below the root.
    middle: Authority,
    /// Below the root, which takes it back.
    fallen: Authority,
    clients: Vec<(&'static str, Pair)>,
}

impl World {
    fn new() -> Self {
        let pki = Pki::new();
        let (middle, fallen) = (pki.authority.below("middle"), pki.authority.below("fallen"));
        let issue = |by: &Authority| {
            by.issue_for("c", &["spiffe://td/ns/a/sa/client"], false, &[KeyUsagePurpose::DigitalSignature])
        };
        let taken_back = pki.authority.issue_old("client");
        let clients = vec![
            ("good", issue(&pki.authority)),
            ("taken back", issue(&pki.authority)),
            ("good of the middle", issue(&middle).behind(&middle)),
            ("taken back by the middle", issue(&middle).behind(&middle)),
            ("of the middle, alone", issue(&middle)),
            ("of the fallen", issue(&fallen).behind(&fallen)),
            ("another's", pki.client_other.clone()),
            ("the root", pki.authority.itself()),
            ("of version 1", pki.client_old.clone()),
            ("of version 1, taken back", taken_back),
        ];
        Self { pki, middle, fallen, clients }
    }

    fn client(&self, name: &str) -> &Pair {
        &self.clients.iter().find(|(known, _)| *known == name).unwrap().1
    }

    /// Of the root, of the middle, of the fallen.
    fn lists(&self, expired: bool) -> [String; 3] {
        let root = [
            self.client("taken back").serial().to_vec(),
            self.client("of version 1, taken back").serial().to_vec(),
            self.fallen.serial(),
        ];
        let root: Vec<&[u8]> = root.iter().map(Vec::as_slice).collect();
        let middle = self.client("taken back by the middle").serial();
        [
            self.pki.authority.takes_back(&root, expired),
            self.middle.takes_back(&[middle], expired),
            self.fallen.takes_back(&[], expired),
        ]
    }

    /// What validates clients, by listener.
    fn contexts(&self) -> Vec<(&'static str, Value)> {
        let inline = |pem: &str| json!({ "inline_string": pem });
        let authority = self.pki.authority.pem();
        let [root, middle, fallen] = self.lists(false);
        let all = format!("{root}{middle}{fallen}");
        let of = |roots: &str, more: Value| merged(json!({ "trusted_ca": inline(roots) }), more);
        let leaf = json!({ "only_verify_leaf_cert_crl": true });
        let by_domain = |roots: &str, more: Value| {
            let base = json!({ "custom_validator_config": { "name": "envoy.tls.cert_validator.spiffe", "typed_config": {
                "@type": SPIFFE, "trust_domains": [{ "name": "td", "trust_bundle": inline(roots) }],
            } } });
            merged(base, more)
        };
        vec![
            ("none", of(&authority, json!({}))),
            ("root-list", of(&authority, json!({ "crl": inline(&root) }))),
            ("all-lists", of(&authority, json!({ "crl": inline(&all) }))),
            ("expired-lists", of(&authority, json!({ "crl": inline(&self.lists(true).concat()) }))),
            ("expired-list-and-expired-too", {
                let lists = self.lists(true).concat();
                of(&authority, json!({ "crl": inline(&lists), "allow_expired_certificate": true }))
            }),
            ("root-taken-back", {
                let list = self.pki.authority.takes_back(&[&self.pki.authority.serial()], false);
                of(&authority, json!({ "crl": inline(&list) }))
            }),
            (
                "anothers-list",
                of(
                    &authority,
                    json!({ "crl": inline(&Authority::new("tests root").takes_back(&[], false)) }),
                ),
            ),
            ("lists-below-the-root", of(&authority, json!({ "crl": inline(&format!("{middle}{fallen}")) }))),
            ("leaf", of(&authority, merged(json!({ "crl": inline(&all) }), leaf.clone()))),
            (
                "leaf-below-the-root",
                of(&authority, merged(json!({ "crl": inline(&format!("{middle}{fallen}")) }), leaf.clone())),
            ),
            ("among-roots", of(&format!("{authority}{all}"), json!({}))),
            ("among-roots-leaf", of(&format!("{authority}{all}"), leaf)),
            ("among-roots-before", of(&format!("{root}{authority}"), json!({}))),
            (
                "half-among-roots",
                of(&format!("{authority}{root}"), json!({ "crl": inline(&format!("{middle}{fallen}")) })),
            ),
            ("untrusted-too", {
                of(&authority, json!({ "crl": inline(&all), "trust_chain_verification": "ACCEPT_UNTRUSTED" }))
            }),
            ("domain", by_domain(&authority, json!({}))),
            ("domain-among-roots", by_domain(&format!("{authority}{all}"), json!({}))),
            (
                "domain-among-roots-leaf",
                by_domain(&format!("{authority}{all}"), json!({ "only_verify_leaf_cert_crl": true })),
            ),
            (
                "domain-untrusted-too",
                by_domain(&authority, json!({ "trust_chain_verification": "ACCEPT_UNTRUSTED" })),
            ),
            // Envoy's validator by trust domains does not look at it.
            ("domain-list", by_domain(&authority, json!({ "crl": inline(&all) }))),
        ]
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_taken_back_is_refused() {
    let world = World::new();
    let contexts = world.contexts();
    let names: Vec<&'static str> = contexts.iter().map(|(name, _)| *name).collect();
    let folder = tempfile::tempdir().unwrap();
    let proxies = both(folder.path(), &names, |ports, log| {
        let listeners = contexts.iter().map(|(name, context)| {
            let tls = downstream_tls(
                &world.pki,
                json!({ "require_client_certificate": true, "common_tls_context": { "validation_context": context } }),
            );
            over_tls(listener(name, ports[*name], manager(vec![], served(), json!({})), log), &tls)
        });
        [listeners.collect(), vec![]]
    })
    .await;
    let mut table = [String::new(), String::new()];
    for (who, pair) in &world.clients {
        let client = Client { sni: Some("a.example"), certificate: Some(pair.clone()), ..Client::default() };
        for name in &names {
            for (proxy, table) in proxies.iter().zip(&mut table) {
                *table += &format!("{name}, {who}: {}\n", said(proxy.ports[*name], &client).await);
            }
        }
    }
    let (apart, together): (Vec<_>, Vec<_>) =
        table.iter().flat_map(|table| table.lines()).partition(|line| line.starts_with("domain-list,"));
    let (envoy, lateen) = together.split_at(together.len() / 2);
    assert_eq!(envoy, lateen);
    for line in [
        "root-list, good: HTTP/1.1 200",
        "root-list, taken back: nothing",
        "root-list, good of the middle: nothing",
        "all-lists, good of the middle: HTTP/1.1 200",
        "all-lists, taken back by the middle: nothing",
        "all-lists, of the fallen: nothing",
        "leaf, of the fallen: HTTP/1.1 200",
        "among-roots, taken back: nothing",
        "domain-among-roots, taken back: nothing",
    ] {
        assert!(lateen.contains(&line), "{line}\n{lateen:#?}");
    }
    let ours = &apart[apart.len() / 2..];
    assert!(ours.contains(&"domain-list, good: HTTP/1.1 200"), "{apart:#?}");
    assert!(ours.contains(&"domain-list, taken back: nothing"), "{apart:#?}");
}
