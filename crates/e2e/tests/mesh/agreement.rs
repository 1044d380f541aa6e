//! The same requests against the same configuration on both engines: the replies, what reached the application, and
//! the access log's verdict must be the same (T1–T7, T11, T22).

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use http::Method;
use lateen_e2e::{
    Engine, Mesh, eventually,
    web::{Ask, Reply},
};

/// Case → what was seen, as text.
type Recorded = BTreeMap<String, String>;

/// What each engine answered, for the comparison at the end.
#[derive(Clone, Default)]
pub(crate) struct Replies(Arc<Mutex<BTreeMap<Engine, Recorded>>>);

impl Replies {
    pub(crate) fn put(&self, engine: Engine, recorded: Recorded) -> Result<()> {
        self.0.lock().map_err(|_| anyhow::anyhow!("a trial panicked"))?.insert(engine, recorded);
        Ok(())
    }

    pub(crate) fn compare(&self) -> Result<()> {
        let all = self.0.lock().map_err(|_| anyhow::anyhow!("a trial panicked"))?;
        let (Some(envoy), Some(ours)) = (all.get(&Engine::Envoy), all.get(&Engine::Lateen)) else {
            bail!("both engines must have been recorded: run without a filter, or with `agreement`");
        };
        let mut differences = String::new();
        for (case, expected) in envoy {
            let got = ours.get(case).map_or("not recorded", String::as_str);
            if got != expected {
                differences += &format!("\n== {case}\n-- envoy\n{expected}\n-- lateen\n{got}\n");
            }
        }
        ensure!(differences.is_empty(), "the engines differ:{differences}");
        ensure!(envoy.len() >= 25, "only {} cases were recorded", envoy.len());
        Ok(())
    }
}

/// Headers whose values differ from run to run; that they are there is still compared.
const VOLATILE: [&str; 5] =
    ["date", "x-request-id", "x-envoy-upstream-service-time", "x-forwarded-for", "last-modified"];

/// Applies the fixtures, sends the cases through the gateway and from a sidecar, returns what was seen.
pub(crate) fn record(mesh: &Mesh) -> Result<Recorded> {
    crate::echo::up(mesh)?;
    mesh.apply_fixture("routes.yaml")?;
    let gateway = mesh.gateway()?;
    let ask = |path: &str| Ask::get(format!("http://{gateway}{path}")).header("host", "echo.example.com");
    for path in ["/v1", "/exact", "/h2", "/status/200"] {
        eventually("the routes are there", Duration::from_secs(30), || {
            let reply = ask(path).send()?;
            ensure!(reply.status == 200, "{reply:?}");
            Ok(())
        })?;
    }

    let mut seen = Recorded::new();
    for (case, ask) in cases(&gateway) {
        let reply = ask.send().with_context(|| case.to_owned())?;
        seen.insert(case.to_owned(), shown(&reply));
    }
    for (case, command) in FROM_A_SIDECAR {
        let out = mesh.kubectl_output(&["exec", "client", "-c", "client", "--", "sh", "-c", command])?;
        let text = format!("exit {:?}\n{}", out.status.code(), String::from_utf8_lossy(&out.stdout));
        // No rule chooses a version here, so either may answer.
        let text = normalised_text(&text).replace(r#""version": "v2""#, r#""version": "v1""#);
        seen.insert(format!("sidecar: {case}"), text);
    }
    for (case, flags) in log_verdicts(mesh)? {
        seen.insert(format!("log: {case}"), flags);
    }
    clean(mesh)?;
    Ok(seen)
}

fn clean(mesh: &Mesh) -> Result<()> {
    crate::echo::down(mesh, "vs,gw")
}

fn cases(gateway: &str) -> Vec<(&'static str, Ask)> {
    let ask = |path: &str| Ask::get(format!("http://{gateway}{path}")).header("host", "echo.example.com");
    vec![
        ("plain", ask("/v1")),
        ("exact", ask("/exact")),
        ("exact does not match longer paths", ask("/exact/more")),
        ("exact ignores the query", ask("/exact?a=b")),
        ("regex", ask("/re/42")),
        ("regex matches the whole path", ask("/re/42/x")),
        ("header prefix", ask("/any").header("x-group", "beta-7")),
        ("header prefix and method", ask("/any").header("x-group", "beta").method(Method::POST, "x")),
        ("without header", ask("/without")),
        ("without header, present", ask("/without").header("x-skip", "1")),
        ("query parameter", ask("/any?version=2")),
        ("rewrite", ask("/old/place?q=1")),
        ("redirect", ask("/redirect/here")),
        ("direct response", ask("/direct")),
        ("request headers", ask("/headers").header("x-secret", "s").header("x-kept", "k")),
        ("reply headers", ask("/response-headers?x-version=1&x-other=2")),
        ("timeout", ask("/delay/2")),
        ("upstream 503 passes", ask("/status/418")),
        ("no endpoints", ask("/nobody")),
        ("connection refused", ask("/refused")),
        ("missing host", ask("/missing-host")),
        ("missing subset", ask("/missing-subset")),
        ("no route", ask("/none")),
        ("unknown virtual host", Ask::get(format!("http://{gateway}/")).header("host", "nobody.example.com")),
        ("HTTP/2 upstream", ask("/h2/x").method(Method::POST, "a body")),
        (
            "HTTP/2 downstream",
            Ask::get(format!("http://{gateway}/v1")).header("host", "echo.example.com").h2(),
        ),
        ("HEAD", ask("/v1").method(Method::HEAD, "")),
        ("large body", ask("/v1").method(Method::PUT, vec![b'x'; 300_000])),
        (
            "client headers",
            ask("/v1")
                .header("x-request-id", "mine")
                .header("x-envoy-max-retries", "9")
                .header("x-forwarded-proto", "https"),
        ),
        ("path normalisation", ask("/v1/a/../b//c/./d")),
        ("host with port", Ask::get(format!("http://{gateway}/v1")).header("host", "echo.example.com:80")),
        ("host in capitals", Ask::get(format!("http://{gateway}/v1")).header("host", "ECHO.example.COM")),
    ]
}

/// Commands run in the client pod, so that its sidecar carries them.
const FROM_A_SIDECAR: &[(&str, &str)] = &[
    ("http service", "curl -s -i -m 5 http://echo/x"),
    ("by full name", "curl -s -i -m 5 http://echo.default.svc.cluster.local/x"),
    ("http2 port with HTTP/1.1", "curl -s -i -m 5 http://echo:81/x"),
    ("http2 port with HTTP/2", "curl -s -i -m 5 --http2-prior-knowledge http://echo:81/x"),
    ("no endpoints", "curl -s -i -m 5 http://nobody/"),
    ("connection refused", "curl -s -i -m 5 http://refused/"),
    (
        "tcp",
        "exec 3<>/dev/tcp/echo/9000 2>/dev/null || exec bash -c 'exec 3<>/dev/tcp/echo/9000; echo hello >&3; head -n1 <&3'; echo hello >&3; head -n1 <&3",
    ),
    (
        "by address of the service",
        "curl -s -i -m 5 -H 'host: echo' http://$(getent hosts echo | cut -d' ' -f1)/x",
    ),
    (
        "own pod through loopback",
        "curl -s -o /dev/null -w '%{http_code}' -m 5 http://127.0.0.1:15021/healthz/ready",
    ),
];

fn shown(reply: &Reply) -> String {
    let mut text = format!("{}\n", reply.status);
    for (name, value) in &reply.headers {
        let value = if VOLATILE.contains(&name.as_str()) { "*" } else { value };
        text += &format!("{name}: {value}\n");
    }
    text += "\n";
    text += &reply.body;
    normalised_text(&text)
}

/// Pod names, addresses, ids and times that differ from mesh to mesh; the order of header fields, which means nothing.
fn normalised_text(text: &str) -> String {
    let mut out = String::new();
    for line in with_sorted_head(text) {
        let key = line
            .trim_start_matches([' ', '"'])
            .split([':', '"'])
            .next()
            .unwrap_or_default()
            .to_ascii_lowercase();
        if VOLATILE.contains(&key.as_str()) || key == "instance" {
            out += &format!("{key}: *\n");
        } else if line.starts_with('{') {
            out += &json_shown(line);
        } else {
            out += &without_addresses(line);
            out.push('\n');
        }
    }
    out
}

/// The lines, those of the header fields (from the status line of `curl -i` to the first empty line) sorted.
fn with_sorted_head(text: &str) -> Vec<&str> {
    let mut lines: Vec<&str> = text.lines().collect();
    if let Some(status) = lines.iter().position(|line| line.starts_with("HTTP/")) {
        let fields = &mut lines[status + 1..];
        let end = fields.iter().position(|line| line.is_empty()).unwrap_or(fields.len());
        fields[..end].sort_unstable();
    }
    lines
}

/// The echo's description of what reached it, sorted and without what is volatile.
fn json_shown(line: &str) -> String {
    let Ok(mut value) = serde_json::from_str::<serde_json::Value>(line) else {
        return without_addresses(line) + "\n";
    };
    if let Some(object) = value.as_object_mut() {
        object.insert("instance".into(), "*".into());
        if let Some(headers) = object.get_mut("headers").and_then(serde_json::Value::as_object_mut) {
            let mut sorted: BTreeMap<String, serde_json::Value> =
                std::mem::take(headers).into_iter().collect();
            for name in VOLATILE {
                if let Some(v) = sorted.get_mut(name) {
                    *v = "*".into();
                }
            }
            headers.extend(sorted);
        }
    }
    without_addresses(&format!("{value:#}")) + "\n"
}

/// The fingerprint of a caller's certificate (`Hash=…` of `x-forwarded-client-cert`) becomes `*`: there are others in every mesh.
fn without_fingerprints(line: &str) -> String {
    let mut parts = line.split("Hash=");
    let mut out = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        out += "Hash=*";
        out += part.trim_start_matches(|c: char| c.is_ascii_hexdigit());
    }
    out
}

/// `10.244.0.17:41234` becomes `IP`: addresses differ between the two meshes.
fn without_addresses(line: &str) -> String {
    let line = without_fingerprints(line);
    let line = line.as_str();
    let mut out = String::new();
    let mut rest = line;
    while let Some(at) = rest.find("10.") {
        let end = rest[at..]
            .find(|c: char| !c.is_ascii_digit() && c != '.' && c != ':')
            .map_or(rest.len(), |e| at + e);
        let starts_a_number =
            rest[..at].chars().next_back().is_some_and(|c| c.is_ascii_alphanumeric() || c == '.');
        if starts_a_number || rest[at..end].matches('.').count() != 3 {
            out += &rest[..at + 3];
            rest = &rest[at + 3..];
        } else {
            out += &rest[..at];
            out += "IP";
            rest = &rest[end..];
        }
    }
    out + rest
}

/// Path → response code, flags and details as the gateway's access log has them.
fn log_verdicts(mesh: &Mesh) -> Result<Vec<(String, String)>> {
    let wanted = [
        "/v1",
        "/direct",
        "/delay/2",
        "/nobody",
        "/refused",
        "/missing-host",
        "/missing-subset",
        "/none",
        "/redirect/here",
    ];
    let log = eventually("the log is written", Duration::from_secs(15), || {
        let log =
            mesh.kubectl(&["logs", "-n", "istio-system", "deploy/istio-ingressgateway", "--tail=500"])?;
        for path in wanted {
            ensure!(log.contains(&format!(" {path} HTTP/")), "no line for {path}");
        }
        Ok(log)
    })?;
    let mut verdicts = Vec::new();
    for path in wanted {
        let line = log.lines().rfind(|l| l.contains(&format!("\"GET {path} HTTP/1.1\""))).context(path)?;
        // [time] "GET /path HTTP/1.1" CODE FLAGS DETAILS TERMINATION "FAILURE REASON" ...
        let after = line.split_once("HTTP/1.1\" ").map_or("", |(_, rest)| rest);
        let verdict: Vec<_> = after.split_whitespace().take(4).collect();
        verdicts.push((path.to_owned(), without_addresses(&verdict.join(" "))));
    }
    Ok(verdicts)
}
