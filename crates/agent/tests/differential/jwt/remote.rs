//! Keys that proxies fetch: what requests wait for, what becomes of them when there are none, how often a provider is asked and how.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use super::*;
use crate::duo::get;
use crate::proxies::{Proxy, both, cluster, listener};

/// A provider of keys, one for each proxy, and what it was asked.
#[derive(Clone, Default)]
pub(super) struct KeyServer(Arc<Mutex<Served>>);

#[derive(Default)]
struct Served {
    keys: String,
    heads: Vec<String>,
    /// Of each head: its path and when it came.
    asked: Vec<(String, Instant)>,
}

impl KeyServer {
    async fn start(keys: &str) -> (Self, SocketAddr) {
        let server = Self::default();
        server.0.lock().unwrap().keys = keys.to_owned();
        let socket = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = socket.local_addr().unwrap();
        let serving = server.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = socket.accept().await {
                tokio::spawn(serving.clone().serve(stream));
            }
        });
        (server, address)
    }

    async fn serve(self, mut stream: TcpStream) -> std::io::Result<()> {
        loop {
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                head.push(stream.read_u8().await?);
            }
            // Where Envoy tries again, it sends a body of no bytes.
            if head == b"0\r\n\r\n" {
                continue;
            }
            let (status, body) = self.answer(&String::from_utf8_lossy(&head)).await;
            let text = format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\n\r\n{body}", body.len());
            stream.write_all(text.as_bytes()).await?;
        }
    }

    async fn answer(&self, head: &str) -> (&'static str, String) {
        let path = head.split(' ').nth(1).unwrap_or_default().to_owned();
        let (keys, asked) = {
            let mut served = self.0.lock().unwrap();
            let mut lines: Vec<&str> = head.trim_end().lines().collect();
            lines.retain(|line| *line != "transfer-encoding: chunked");
            lines[1..].sort_unstable();
            served.heads.push(lines.join("\n"));
            served.asked.push((path.clone(), Instant::now()));
            let asked = served.heads.iter().filter(|head| head.split(' ').nth(1) == Some(&path)).count();
            (served.keys.clone(), asked)
        };
        match path.as_str() {
            path if path.starts_with("/fail?") || path == "/fail" => ("503 Service Unavailable", keys),
            "/missing" => ("404 Not Found", keys),
            "/moved" => ("302 Found", keys),
            "/garbage" => ("200 OK", "<html>".to_owned()),
            "/none" => ("200 OK", r#"{"keys":[]}"#.to_owned()),
            "/empty" => ("200 OK", String::new()),
            "/again" if asked < 3 => ("503 Service Unavailable", String::new()),
            "/silent" => std::future::pending().await,
            "/silent-once" if asked < 2 => std::future::pending().await,
            "/fails-twice" if asked < 3 => ("503 Service Unavailable", String::new()),
            "/slow" => {
                tokio::time::sleep(Duration::from_millis(400)).await;
                ("200 OK", keys)
            }
            _ => ("200 OK", keys),
        }
    }
}

pub(super) fn remote(path: &str, more: Value) -> Value {
    let uri = format!("http://keys.example:8080{path}");
    crate::proxies::merged(json!({ "http_uri": { "uri": uri, "cluster": "keys", "timeout": "5s" } }), more)
}

/// A provider with fetched keys.
pub(super) fn fetching(issuer: &str, remote: Value, more: Value) -> Value {
    let base = json!({ "issuer": issuer, "remote_jwks": remote, "failed_status_in_metadata": "failed" });
    crate::proxies::merged(base, more)
}

fn listeners() -> Vec<(&'static str, Value)> {
    let routes = || json!([{ "match": { "prefix": "/" }, "direct_response": { "status": 200 } }]);
    let with = |filter: Value| manager(vec![filter], routes(), json!({}));
    let one = |path: &str, more: Value| with(required(fetching(ISSUER, remote(path, more), json!({}))));
    let name = |name: &str| json!({ "provider_name": name });
    let any = |list: Value| json!({ "requires_any": { "requirements": list } });
    let optional = json!({ "allow_missing": {} });
    // Of several requirements Envoy looks at the next ones while keys are fetched, and may ask twice for one request. Here nobody
    // counts that.
    let two = |cluster: &str| {
        json!({
            "a": fetching(ISSUER, remote("/fail?twice", json!({ "http_uri": { "cluster": cluster } })), json!({})),
            "b": fetching("b", remote("/keys?of=b", json!({})), json!({})),
        })
    };
    let istio = any(json!([
        name("a"),
        name("b"),
        { "requires_all": { "requirements": [any(json!([name("a"), optional])), any(json!([name("b"), optional]))] } },
    ]));
    let cached = json!({ "jwt_cache_config": {} });
    vec![
        ("keys", one("/keys", json!({}))),
        ("no-path", one("", json!({}))),
        ("short", one("/short", json!({ "cache_duration": "1s" }))),
        (
            "short-cached",
            with(required(fetching(ISSUER, remote("/cached", json!({ "cache_duration": "1s" })), cached))),
        ),
        ("never-kept", one("/never-kept", json!({ "cache_duration": "0.5s" }))),
        ("fail", one("/fail", json!({}))),
        ("missing", one("/missing", json!({}))),
        ("moved", one("/moved", json!({}))),
        ("garbage", one("/garbage", json!({}))),
        ("none", one("/none", json!({}))),
        ("empty", one("/empty", json!({}))),
        ("silent", one("/silent", json!({ "http_uri": { "timeout": "0.3s" } }))),
        ("slow", one("/slow", json!({}))),
        ("dead", one("/keys", json!({ "http_uri": { "cluster": "dead" } }))),
        ("nobody", one("/keys", json!({ "http_uri": { "cluster": "nobody" } }))),
        (
            "again",
            one(
                "/again",
                json!({ "retry_policy": { "num_retries": 3, "retry_back_off": { "base_interval": "0.01s" } } }),
            ),
        ),
        (
            "once-more",
            one("/fail", json!({ "retry_policy": { "retry_back_off": { "base_interval": "0.01s" } } })),
        ),
        ("istio", with(requires(two("keys-twice"), istio))),
        ("optional", with(requires(two("keys"), optional))),
        ("failed", with(requires(two("keys"), json!({ "allow_missing_or_failed": {} })))),
    ]
}

/// Both proxies, and a provider of keys for each.
pub(super) struct Fetches {
    pub(super) proxies: [Proxy; 2],
    servers: [KeyServer; 2],
    _folder: tempfile::TempDir,
    pub(super) complaints: String,
}

impl Fetches {
    pub(super) async fn start(keys: &str, listeners: Vec<(&'static str, Value)>) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let names: Vec<&'static str> = listeners.iter().map(|(name, _)| *name).collect();
        let (first, second) = (KeyServer::start(keys).await, KeyServer::start(keys).await);
        let mut addresses = [first.1, second.1].into_iter();
        let proxies = both(folder.path(), &names, |ports, log| {
            let made = listeners.iter().map(|(name, more)| listener(name, ports[name], more.clone(), log));
            let dead = SocketAddr::from(([127, 0, 0, 1], 1));
            let of_keys = addresses.next().unwrap();
            [
                made.collect(),
                vec![cluster("keys", json!({}), &[of_keys]), cluster("dead", json!({}), &[dead])],
            ]
        })
        .await;
        Self { proxies, servers: [first.0, second.0], _folder: folder, complaints: String::new() }
    }

    async fn ask_of(&self, kind: usize, listener: &str, headers: &[(&str, &str)]) -> String {
        let address = SocketAddr::from(([127, 0, 0, 1], self.proxies[kind].ports[listener]));
        let reply = get(address, "/x", headers).await;
        format!("{} {:?} {:?}", reply.status, reply.header("www-authenticate"), reply.body)
    }

    /// The same to both.
    pub(super) async fn ask(&mut self, listener: &str, headers: &[(&str, &str)]) -> String {
        let [envoy, lateen] =
            tokio::join!(self.ask_of(0, listener, headers), self.ask_of(1, listener, headers)).into();
        self.same(listener, &envoy, &lateen);
        lateen
    }

    pub(super) async fn bear(&mut self, listener: &str, token: &str) -> String {
        self.ask(listener, &[("authorization", &format!("Bearer {token}"))]).await
    }

    pub(super) fn same(&mut self, what: &str, envoy: &str, lateen: &str) {
        if envoy != lateen {
            self.complaints += &format!("=== {what}\n--- Envoy\n{envoy}\n--- Lateen\n{lateen}\n");
        }
    }

    pub(super) fn serve(&self, keys: &str) {
        for server in &self.servers {
            keys.clone_into(&mut server.0.lock().unwrap().keys);
        }
    }

    pub(super) async fn stats(&self, kind: usize) -> String {
        let page = self.proxies[kind].admin("/stats").await.expect("the admin page");
        let wanted = |line: &&str| {
            (line.contains(".jwt_authn.") && !line.starts_with("http.istio."))
                || ["upstream_rq_total", "upstream_rq_retry", "upstream_rq_timeout", "external.upstream_rq"]
                    .iter()
                    .any(|name| line.starts_with("cluster.keys.") && line.contains(name))
        };
        let lines: BTreeMap<&str, &str> =
            page.lines().filter(wanted).filter_map(|line| line.split_once(": ")).collect();
        format!("{lines:#?}")
    }

    /// Whether a token is taken.
    pub(super) async fn bears(&self, kind: usize, listener: &str, token: &str) -> bool {
        let bearer = format!("Bearer {token}");
        self.ask_of(kind, listener, &[("authorization", &bearer)]).await.starts_with("200")
    }

    /// When a proxy asked for a path.
    fn moments(&self, kind: usize, path: &str) -> Vec<Instant> {
        let served = self.servers[kind].0.lock().unwrap();
        served.asked.iter().filter(|(asked, _)| asked == path).map(|(_, at)| *at).collect()
    }

    /// How often a proxy asked for a path.
    pub(super) fn times(&self, kind: usize, path: &str) -> usize {
        self.moments(kind, path).len()
    }

    /// Between the first `times` questions for a path, in the middle.
    pub(super) fn pause(&self, kind: usize, path: &str, times: usize) -> Duration {
        let moments = self.moments(kind, path);
        (moments[times - 1] - moments[0]) / (u32::try_from(times).unwrap() - 1)
    }

    /// The first question for a path.
    pub(super) fn head(&self, kind: usize, path: &str) -> String {
        let served = self.servers[kind].0.lock().unwrap();
        let of_path = |head: &&String| head.split(' ').nth(1) == Some(path);
        served.heads.iter().find(of_path).cloned().unwrap_or_default()
    }

    /// What was noted of each request.
    async fn noted(&self, kind: usize) -> String {
        let log = self.proxies[kind].log().await;
        let noted = |line: &str| {
            let details = line.split_once("flags=")?.1.split(" received=").next()?;
            let noted = line.split_once(" jwt=")?.1.split(" authz=").next()?;
            Some(format!("{details} {noted}"))
        };
        let mut lines: Vec<String> = log.lines().filter_map(noted).collect();
        lines.sort();
        lines.join("\n")
    }

    pub(super) fn asked(&self, kind: usize) -> String {
        let mut heads = self.servers[kind].0.lock().unwrap().heads.clone();
        heads.retain(|head| !head.contains("twice"));
        heads.sort();
        heads.join("\n\n")
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn proxies_fetch_keys() {
    let (old, new) = (Signer::elliptic("P-256"), Signer::elliptic("P-256"));
    let set = |kid: &str, key: &Signer| json!({ "keys": [key.jwk(json!({ "kid": kid }))] }).to_string();
    let token = |kid: &str, key: &Signer, more: Value| {
        key.token(&json!({ "alg": "ES256", "kid": kid }), &claims(more))
    };
    let (by_old, by_new) = (token("old", &old, json!({})), token("new", &new, json!({})));
    let mut pair = Fetches::start(&set("old", &old), listeners()).await;

    let missing = pair.ask("keys", &[]).await;
    assert!(missing.starts_with("401"), "{missing}");
    let expired = pair.bear("keys", &token("old", &old, json!({ "exp": 1 }))).await;
    assert!(expired.contains("expired"), "nobody is asked about it: {expired}");
    let good = pair.bear("keys", &by_old).await;
    assert!(good.starts_with("200"), "{good}");
    pair.bear("keys", &by_old).await;
    pair.bear("no-path", &by_old).await;
    // A key that nobody knows yet is no reason to ask before the keys are old.
    let unknown = pair.bear("keys", &by_new).await;
    assert!(unknown.contains("kid"), "{unknown}");
    for listener in ["short", "short-cached", "never-kept"] {
        pair.bear(listener, &by_old).await;
        pair.bear(listener, &by_old).await;
    }
    pair.serve(&set("new", &new));
    tokio::time::sleep(Duration::from_millis(1_300)).await;
    let removed = pair.bear("short-cached", &by_old).await;
    assert!(removed.starts_with("200"), "what was found good once stays so in the cache: {removed}");
    let rotated = pair.bear("short", &by_new).await;
    assert!(rotated.starts_with("200"), "{rotated}");
    let removed = pair.bear("short", &by_old).await;
    assert!(removed.starts_with("401"), "{removed}");
    pair.serve(&set("old", &old));

    for listener in
        ["fail", "missing", "moved", "garbage", "none", "empty", "silent", "dead", "nobody", "once-more"]
    {
        let refused = pair.bear(listener, &by_old).await;
        assert!(refused.contains("Jwks remote fetch is failed"), "{listener}: {refused}");
    }
    pair.bear("fail", &by_old).await;
    let again = pair.bear("again", &by_old).await;
    assert!(again.starts_with("200"), "{again}");
    let of_b = token("old", &old, json!({ "iss": "b" }));
    let other = token("old", &old, json!({ "iss": "c" }));
    for listener in ["istio", "optional", "failed"] {
        pair.ask(listener, &[]).await;
        for one in [&by_old, &of_b, &other] {
            pair.bear(listener, one).await;
        }
        // Two tokens.
        let target =
            [("authorization", format!("Bearer {of_b}")), ("authorization", format!("Bearer {by_old}"))];
        let target: Vec<(&str, &str)> = target.iter().map(|(name, value)| (*name, value.as_str())).collect();
        pair.ask(listener, &target).await;
    }
    // Whoever comes while keys are fetched asks as well.
    let bearer = format!("Bearer {by_old}");
    let headers = [("authorization", bearer.as_str())];
    for kind in [0, 1] {
        let both = tokio::join!(pair.ask_of(kind, "slow", &headers), pair.ask_of(kind, "slow", &headers));
        assert!(both.0.starts_with("200") && both.1.starts_with("200"), "{both:?}");
    }

    for (what, envoy, lateen) in [
        ("stats", pair.stats(0).await, pair.stats(1).await),
        ("noted", pair.noted(0).await, pair.noted(1).await),
        ("asked", pair.asked(0), pair.asked(1)),
    ] {
        pair.same(what, &envoy, &lateen);
    }
    assert!(pair.complaints.is_empty(), "\n{}", pair.complaints);
}
