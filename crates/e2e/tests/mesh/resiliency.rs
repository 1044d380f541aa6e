//! The resiliency table of the course on real traffic through the gateway, with short clocks: what the client gets and
//! when, the verdict of the gateway's access log, and what reached the application, which its sidecar's log counts
//! (T5–T9, T13).

use std::{
    ops::Range,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use crate::OnMesh;
use anyhow::{Context, Result, ensure};
use http::Method;
use lateen_e2e::{
    Mesh, eventually,
    web::{Ask, Reply},
};

pub(crate) const TRIALS: &[OnMesh] = &[("the_table", the_table)];

const SOON: Duration = Duration::from_secs(30);
/// In which access logs are written: proxies have a second for it.
const LOGGED: Duration = Duration::from_secs(5);
/// How much early a timer may be: Envoy's count whole milliseconds from when its loop last looked at the clock.
const EARLY: Duration = Duration::from_millis(5);
/// A path that answers after every time-out, one that fails, and one that takes long enough for a crowd.
const SLOW: &str = "/delay/3";
const FAILS: &str = "/status/503";
const CROWDED: &str = "/delay/0.6";
/// Requests: to a service of which one host fails, at once to a full one, and to one with a shadow.
const HELPED: usize = 20;
const CROWD: usize = 8;
const COPIES: usize = 5;
const TIMED_OUT: &str = "upstream request timeout";

/// The routes of the fixture.
const CASES: [&str; 15] = [
    "timeout",
    "inside",
    "tries",
    "helped",
    "exhausted",
    "unasked",
    "delay",
    "few",
    "narrow",
    "cors",
    "mirror",
    "rewrite",
    "shadow",
    "plain",
    "abort",
];

/// All of it on one deployment and with one look at each log, as these take longer than the requests.
fn the_table(mesh: &Mesh) -> Result<()> {
    deploy(mesh)?;
    time_outs(mesh).context("time-outs")?;
    let again = retries(mesh).context("retries")?;
    faults(mesh).context("faults")?;
    let refused = overflow(mesh).context("overflow")?;
    cross_origin(mesh).context("CORS")?;
    rewrite_and_mirror(mesh).context("rewrite and mirror")?;

    let failing = Logs::read(mesh, "failing", "unasked")?;
    time_outs_logged(&failing)?;
    retries_logged(&failing, again)?;
    overflow_logged(&failing, refused)?;
    failing.agree(("/get", "delay"), "200 DI via_upstream", 1)?;
    failing.agree((SLOW, "delay"), "504 DI,UT response_timeout", 1)?;

    let answering = Logs::read(mesh, "answering", "plain")?;
    answering.agree(("/once", "abort"), "503 FI fault_filter_abort", 0)?;
    ensure!(answering.reached("/goods", "cors").is_empty(), "the preflight reached the application");
    ensure!(answering.reached("/actual", "cors").len() == 2, "{}", answering.application);
    ensure!(answering.reached("/copied", "mirror").len() == COPIES, "{}", answering.application);
    copies_logged(mesh)?;
    mesh.kubectl(&["delete", "deploy,svc,vs,dr,gw", "--all", "-n", "default", "--wait=false"]).map(drop)
}

/// Applies the fixture and waits until its routes are there.
fn deploy(mesh: &Mesh) -> Result<()> {
    mesh.apply_fixture("resiliency.yaml")?;
    mesh.kubectl(&["wait", "--for=condition=Available", "deploy", "--all", "--timeout=60s"])?;
    for case in CASES {
        let wanted = if case == "abort" { 503 } else { 200 };
        eventually(&format!("the route {case} is there"), SOON, || {
            let reply = ask(mesh, "/anything", case)?.send()?;
            ensure!(reply.status == wanted, "{reply:?}");
            Ok(())
        })?;
    }
    Ok(())
}

fn ask(mesh: &Mesh, path: &str, case: &str) -> Result<Ask> {
    let url = format!("http://{}{}", mesh.gateway()?, target(path, case));
    Ok(Ask::get(url).header("host", "resiliency.example.com"))
}

/// The path as the access logs have it.
fn target(path: &str, case: &str) -> String {
    format!("{path}?case={case}")
}

/// Sends a request that must be answered so, within these seconds.
fn answers(
    mesh: &Mesh,
    (path, case): (&str, &str),
    (status, body): (u16, &str),
    seconds: Range<f64>,
) -> Result<Reply> {
    let ask = ask(mesh, path, case)?;
    let begun = Instant::now();
    let reply = ask.send()?;
    let took = begun.elapsed();
    ensure!(reply.status == status && reply.body.contains(body), "{case}: {reply:?}");
    ensure!(
        seconds.contains(&(took + EARLY).as_secs_f64()),
        "{case}: it took {took:?}, not {seconds:?} seconds"
    );
    Ok(reply)
}

/// The same request so many times at once.
fn at_once(ask: &Ask, n: usize) -> Result<Vec<Reply>> {
    std::thread::scope(|scope| {
        let asked: Vec<_> = (0..n).map(|_| scope.spawn(|| ask.send())).collect();
        asked
            .into_iter()
            .map(|thread| thread.join().map_err(|_| anyhow::anyhow!("a client panicked"))?)
            .collect()
    })
}

/// The access logs once everything sent so far is in them.
struct Logs {
    gateway: String,
    application: String,
}

impl Logs {
    /// Of the gateway and of the one pod of `app`, which the route `marker` leads to.
    ///
    /// Logs are written in order: when the marker is there, so is all that ended before it.
    fn read(mesh: &Mesh, app: &str, marker: &str) -> Result<Self> {
        // The gateway's log has the markers of earlier reads as well.
        let path = format!("/anything/{}", SystemTime::now().duration_since(UNIX_EPOCH)?.as_nanos());
        ensure!(ask(mesh, &path, marker)?.send()?.status == 200, "no answer from {app}");
        let end = format!("\"GET {} HTTP/1.1\"", target(&path, marker));
        let read = |place: &[&str]| {
            eventually("the log is written", LOGGED, || {
                let log = mesh.kubectl(&[&["logs", "--tail=2000"], place].concat())?;
                ensure!(log.contains(&end), "no {end} in {log}");
                Ok(log)
            })
        };
        let pod = mesh.pod("default", &format!("app={app}"))?;
        Ok(Self {
            gateway: read(&["-n", "istio-system", "deploy/istio-ingressgateway"])?,
            application: read(&[&pod, "-c", "istio-proxy"])?,
        })
    }

    /// Code, flags and details of the gateway's only line about these requests, or of each of them.
    fn verdicts(&self, path: &str, case: &str) -> Vec<String> {
        let request = format!("{} HTTP/1.1\" ", target(path, case));
        let verdict =
            |rest: &str| rest.split_whitespace().take(3).map(str::to_owned).collect::<Vec<_>>().join(" ");
        self.gateway.lines().filter_map(|line| line.split_once(&request)).map(|(_, r)| verdict(r)).collect()
    }

    /// The application's lines about these requests: one for each try that reached it.
    fn reached(&self, path: &str, case: &str) -> Vec<&str> {
        let request = format!(" {} HTTP/1.1\" ", target(path, case));
        self.application.lines().filter(|line| line.contains(&request)).collect()
    }

    /// One request of the client became one line with this verdict at the gateway, and so many tries.
    fn agree(&self, (path, case): (&str, &str), verdict: &str, tries: usize) -> Result<()> {
        let verdicts = self.verdicts(path, case);
        ensure!(verdicts == [verdict], "{case}: {verdicts:?}, not {verdict:?}");
        let reached = self.reached(path, case);
        ensure!(reached.len() == tries, "{case}: {tries} tries should have arrived: {reached:#?}");
        Ok(())
    }
}

/// T6, T7: the route's time-out is above all tries; a try's own ends the try.
fn time_outs(mesh: &Mesh) -> Result<()> {
    answers(mesh, (SLOW, "timeout"), (504, TIMED_OUT), 0.4..1.0)?;
    // Four tries of 300 ms would take 1.2 s.
    answers(mesh, (SLOW, "inside"), (504, TIMED_OUT), 0.7..1.15)?;
    // Two tries of 200 ms, long before the time-out of 5 s.
    answers(mesh, (SLOW, "tries"), (504, TIMED_OUT), 0.4..1.5).map(drop)
}

fn time_outs_logged(logs: &Logs) -> Result<()> {
    logs.agree((SLOW, "timeout"), "504 UT response_timeout", 1)?;
    logs.agree((SLOW, "inside"), "504 UT response_timeout", 3)?;
    logs.agree((SLOW, "tries"), "504 URX,UT upstream_per_try_timeout", 2)
}

/// T7: 503s are tried again where that is asked for, on another host, and as often as allowed. Returns how many
/// retries the host that answered has been told of.
fn retries(mesh: &Mesh) -> Result<usize> {
    let mut again = 0;
    for _ in 0..HELPED {
        let reply = answers(mesh, (FAILS, "helped"), (200, "x-envoy-attempt-count"), 0.0..2.0)?;
        let seen: serde_json::Value = serde_json::from_str(&reply.body)?;
        let count = seen["headers"]["x-envoy-attempt-count"].as_str().context("no count")?;
        again += count.parse::<usize>()?.checked_sub(1).context("tries are counted from one")?;
    }
    answers(mesh, (FAILS, "exhausted"), (503, ""), 0.0..2.0)?;
    answers(mesh, (FAILS, "unasked"), (503, ""), 0.0..2.0)?;
    Ok(again)
}

fn retries_logged(logs: &Logs, again: usize) -> Result<()> {
    // Every retry that one host was told of is a failure that the other has seen.
    let failures = logs.reached(FAILS, "helped").len();
    ensure!(failures == again && failures > 0, "{failures} failures, {again} retries");
    let verdicts = logs.verdicts(FAILS, "helped");
    let fine = verdicts.iter().all(|verdict| verdict == "200 - via_upstream");
    ensure!(verdicts.len() == HELPED && fine, "{verdicts:?}");
    logs.agree((FAILS, "exhausted"), "503 URX via_upstream", 3)?;
    logs.agree((FAILS, "unasked"), "503 - via_upstream", 1)
}

/// T8: faults happen before the router: aborts are not retried, delays are not under the route's time-out.
fn faults(mesh: &Mesh) -> Result<()> {
    let aborted = answers(mesh, ("/once", "abort"), (503, "fault filter abort"), 0.0..1.0)?;
    ensure!(aborted.body == "fault filter abort", "{aborted:?}");
    // 500 ms of delay with a time-out of 300 ms: the time-out begins when the delay has ended.
    answers(mesh, ("/get", "delay"), (200, ""), 0.5..1.2)?;
    answers(mesh, (SLOW, "delay"), (504, TIMED_OUT), 0.8..1.6).map(drop)
}

/// T13: what has no room is refused and says so. Returns how many of [`CROWD`] were refused by case.
fn overflow(mesh: &Mesh) -> Result<[(&'static str, usize); 2]> {
    let mut refused = [("few", 0), ("narrow", 0)];
    for (case, count) in &mut refused {
        let replies = at_once(&ask(mesh, CROWDED, case)?, CROWD)?;
        let (full, served): (Vec<_>, Vec<_>) = replies.iter().partition(|reply| reply.status == 503);
        ensure!(served.iter().all(|reply| reply.status == 200), "{case}: {replies:?}");
        for reply in &full {
            let overloaded = reply.headers.get("x-envoy-overloaded").map(String::as_str);
            let words = "upstream connect error or disconnect/reset before headers. reset reason: overflow";
            ensure!(overloaded == Some("true") && reply.body == words, "{case}: {reply:?}");
        }
        *count = full.len();
    }
    let [(_, few), (_, narrow)] = refused;
    ensure!(few == CROWD - 2, "two of {CROWD} requests have room, {few} were refused");
    // A connection for each of the gateway's workers, as Envoy allows, and one that waits.
    let workers = std::thread::available_parallelism()?.get();
    let bounds = CROWD.saturating_sub(workers + 1)..CROWD;
    ensure!(bounds.contains(&narrow), "{narrow} of {CROWD} were refused, not {bounds:?}");
    Ok(refused)
}

/// Refused requests are flagged and not tried again; none of them reached the application.
fn overflow_logged(logs: &Logs, refused: [(&str, usize); 2]) -> Result<()> {
    for (case, refused) in refused {
        let verdicts = logs.verdicts(CROWDED, case);
        let flagged = "503 UO upstream_reset_before_response_started{overflow}";
        let found = verdicts.iter().filter(|verdict| *verdict == flagged).count();
        ensure!(found == refused && verdicts.len() == CROWD, "{case}: {verdicts:#?}");
        let reached = logs.reached(CROWDED, case);
        ensure!(reached.len() == CROWD - refused, "{case}: {reached:#?}");
    }
    Ok(())
}

/// T5: preflights are answered by the proxy; actual requests get what their origin may have.
fn cross_origin(mesh: &Mesh) -> Result<()> {
    let header = |reply: &Reply, name: &str| reply.headers.get(name).cloned().unwrap_or_default();
    let preflight = ask(mesh, "/goods", "cors")?
        .method(Method::OPTIONS, "")
        .header("origin", "https://shop.example")
        .header("access-control-request-method", "PUT")
        .send()?;
    let allowed = [
        ("access-control-allow-origin", "https://shop.example"),
        ("access-control-allow-credentials", "true"),
        ("access-control-allow-methods", "GET,PUT"),
        ("access-control-allow-headers", "x-token"),
        ("access-control-max-age", "86400"),
    ];
    ensure!(preflight.status == 200 && preflight.body.is_empty(), "{preflight:?}");
    for (name, value) in allowed {
        ensure!(header(&preflight, name) == value, "{name} should be {value}: {preflight:?}");
    }
    let actual = |origin: &str| ask(mesh, "/actual", "cors")?.header("origin", origin).send();
    let shop = actual("https://shop.example")?;
    ensure!(shop.status == 200 && shop.body.contains("/actual?case=cors"), "{shop:?}");
    ensure!(header(&shop, "access-control-allow-origin") == "https://shop.example", "{shop:?}");
    ensure!(header(&shop, "access-control-expose-headers") == "x-shown", "{shop:?}");
    let other = actual("https://other.example")?;
    let said = other.headers.keys().any(|name| name.starts_with("access-control-"));
    ensure!(other.status == 200 && !said, "{other:?}");
    Ok(())
}

/// T5, T9: a path rewritten by a regex; requests that are copied, which their clients do not see.
fn rewrite_and_mirror(mesh: &Mesh) -> Result<()> {
    let rewritten = answers(mesh, ("/book/42/chapter", "rewrite"), (200, ""), 0.0..2.0)?;
    let seen: serde_json::Value = serde_json::from_str(&rewritten.body)?;
    ensure!(seen["path"] == "/v2/chapter/42?case=rewrite", "{seen}");
    for _ in 0..COPIES {
        answers(mesh, ("/copied", "mirror"), (200, "\"host\":\"resiliency.example.com\""), 0.0..2.0)?;
    }
    Ok(())
}

/// Each request arrived at the shadow once, under the name Envoy gives copies.
fn copies_logged(mesh: &Mesh) -> Result<()> {
    // Nobody waits for copies: they may arrive after the answers.
    eventually("the copies arrive", SOON, || {
        let logs = Logs::read(mesh, "shadow", "shadow")?;
        let copies = logs.reached("/copied", "mirror");
        let named = copies.iter().filter(|line| line.contains("\"resiliency.example.com-shadow\"")).count();
        ensure!(copies.len() == COPIES && named == COPIES, "{copies:#?}");
        Ok(())
    })
}
