//! Keys that are fetched before a request needs them: what a listener waits for, when they are fetched again, and what becomes of
//! requests where there are none yet.

use std::time::{Duration, Instant};

use super::remote::{Fetches, fetching, remote};
use super::*;
use crate::proxies::{LIMIT, merged};

/// So that nothing is fetched again by itself.
const NEVER: &str = "3600s";

fn listeners() -> Vec<(&'static str, Value)> {
    let routes = || json!([{ "match": { "prefix": "/" }, "direct_response": { "status": 200 } }]);
    let one = |path: &str, fetch: Value, more: Value| {
        let remote = remote(path, merged(json!({ "async_fetch": fetch }), more));
        manager(vec![required(fetching(ISSUER, remote, json!({})))], routes(), json!({}))
    };
    let once = || json!({ "failed_refetch_duration": NEVER });
    let to = |cluster: &str| json!({ "http_uri": { "cluster": cluster } });
    let lasts = |time: &str| json!({ "cache_duration": time });
    let fast = || json!({ "fast_listener": true, "failed_refetch_duration": NEVER });
    vec![
        ("keys", one("/keys", json!({}), json!({}))),
        ("slow", one("/slow", json!({}), json!({}))),
        ("missing", one("/missing", once(), json!({}))),
        ("garbage", one("/garbage", once(), json!({}))),
        ("none", one("/none", once(), json!({}))),
        ("empty", one("/empty", once(), json!({}))),
        ("silent", one("/silent", once(), json!({ "http_uri": { "timeout": "0.3s" } }))),
        ("dead", one("/keys", once(), to("dead"))),
        ("nobody", one("/keys", once(), to("nobody"))),
        ("on-demand", one("/fails-twice", once(), json!({}))),
        (
            "tries",
            one(
                "/again",
                once(),
                json!({ "retry_policy": { "num_retries": 3, "retry_back_off": { "base_interval": "0.01s" } } }),
            ),
        ),
        ("fast", one("/silent-once", fast(), json!({ "http_uri": { "timeout": "60s" } }))),
        ("fast-nobody", one("/keys", fast(), to("nobody"))),
        ("again-default", one("/fail?again=default", json!({}), json!({}))),
        ("again-soon", one("/fail?again=soon", json!({ "failed_refetch_duration": "0.2s" }), json!({}))),
        ("again-good", one("/again=good", json!({}), lasts("1s"))),
        ("again-early", one("/again=early", json!({}), lasts("7s"))),
        ("always", one("/again=always", json!({}), lasts("0.9s"))),
    ]
}

/// Waits for what holds of both in the end.
async fn both_in_the_end(what: &str, holds: impl AsyncFn(usize) -> bool) {
    for kind in [0, 1] {
        let began = Instant::now();
        while !holds(kind).await {
            assert!(began.elapsed() < LIMIT, "{what}: {kind}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_are_fetched_before_somebody_asks() {
    let (old, new) = (Signer::elliptic("P-256"), Signer::elliptic("P-256"));
    let set = |kid: &str, key: &Signer| json!({ "keys": [key.jwk(json!({ "kid": kid }))] }).to_string();
    let token =
        |kid: &str, key: &Signer| key.token(&json!({ "alg": "ES256", "kid": kid }), &claims(json!({})));
    let (by_old, by_new) = (token("old", &old), token("new", &new));
    let mut pair = Fetches::start(&set("old", &old), listeners()).await;

    for (listener, path) in [("slow", "/slow"), ("keys", "/keys")] {
        let good = pair.bear(listener, &by_old).await;
        assert!(good.starts_with("200"), "{listener}: {good}");
        // It serves when the first fetch is over, so that no request has to ask.
        assert_eq!([0, 1].map(|kind| pair.times(kind, path)), [1, 1], "{listener}");
    }
    let good = pair.bear("tries", &by_old).await;
    assert!(good.starts_with("200"), "{good}");
    let unknown = pair.bear("keys", &by_new).await;
    assert!(unknown.contains("kid"), "{unknown}");
    // Where there are none, a request asks on its own.
    for listener in ["missing", "garbage", "none", "empty", "silent", "dead", "nobody", "fast-nobody"] {
        let refused = pair.bear(listener, &by_old).await;
        assert!(refused.contains("Jwks remote fetch is failed"), "{listener}: {refused}");
    }
    let refused = pair.bear("on-demand", &by_old).await;
    assert!(refused.starts_with("401"), "{refused}");
    for listener in ["on-demand", "on-demand", "fast", "fast"] {
        let good = pair.bear(listener, &by_old).await;
        assert!(good.starts_with("200"), "{listener}: {good}");
    }
    // What changes with time has been seen often enough when it was fetched so often.
    let often = async |path: &'static str, times: usize| {
        both_in_the_end(path, async |kind| pair.times(kind, path) >= times).await;
    };
    often("/fail?again=default", 3).await;
    often("/fail?again=soon", 6).await;
    often("/again=early", 3).await;
    often("/again=always", 20).await;
    for kind in [0, 1] {
        for (path, times, least) in
            [("/fail?again=default", 3, 1000), ("/fail?again=soon", 6, 200), ("/again=early", 3, 2000)]
        {
            let pause = pair.pause(kind, path, times);
            let wanted = Duration::from_millis(least - least / 20)..Duration::from_millis(least + 900);
            assert!(wanted.contains(&pause), "{kind} {path}: {pause:?}");
        }
    }
    // New keys take the place of the old ones, which never get old.
    pair.serve(&set("new", &new));
    both_in_the_end("new keys", async |kind| pair.bears(kind, "again-good", &by_new).await).await;
    let gone = pair.bear("again-good", &by_old).await;
    assert!(gone.starts_with("401"), "{gone}");
    pair.serve("");
    let asked = [0, 1].map(|kind| pair.times(kind, "/again=good"));
    both_in_the_end("failures", async |kind| pair.times(kind, "/again=good") >= asked[kind] + 3).await;
    let kept = pair.bear("again-good", &by_new).await;
    assert!(kept.starts_with("200"), "{kept}");

    let steady = |text: String| -> String {
        let lines = text
            .lines()
            .filter(|line| !["again-", "always", "cluster."].iter().any(|word| line.contains(word)));
        lines.map(|line| format!("{line}\n")).collect()
    };
    let stats = [steady(pair.stats(0).await), steady(pair.stats(1).await)];
    pair.same("stats", &stats[0], &stats[1]);
    let heads = [pair.head(0, "/keys"), pair.head(1, "/keys")];
    pair.same("asked", &heads[0], &heads[1]);
    assert!(pair.complaints.is_empty(), "\n{}", pair.complaints);
}
