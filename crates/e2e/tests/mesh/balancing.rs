//! Load balancing on real traffic (T11, T12): which of three places answers, by the caller's place, by hash, by weight.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crate::OnMesh;
use anyhow::{Context, Result, ensure};
use lateen_e2e::{
    Mesh, eventually,
    web::{Ask, Reply},
};

pub(crate) const TRIALS: &[OnMesh] = &[("places_and_hashes", places_and_hashes)];

const SOON: Duration = Duration::from_secs(30);
/// Different users at the gateway, and requests of each.
const USERS: usize = 24;
const EACH: usize = 3;
/// The warm-up of the service `warm`.
const WARM: Duration = Duration::from_secs(15);
/// Requests of the client pod to one service.
const MANY: usize = 300;
const PLACES: [&str; 3] = ["near", "next", "far"];

/// How many answers came from each place.
type Shares = BTreeMap<String, usize>;

/// All on one deployment, as deploying takes longer than the requests.
fn places_and_hashes(mesh: &Mesh) -> Result<()> {
    mesh.apply_fixture("balancing.yaml")?;
    mesh.kubectl(&["wait", "--for=condition=Available", "deploy", "--all", "--timeout=60s"])?;
    mesh.kubectl(&["wait", "--for=condition=Ready", "pod/client", "--timeout=60s"])?;
    for case in ["by-header", "by-header-maglev", "by-query", "by-cookie"] {
        eventually(&format!("{case} is routed"), SOON, || {
            ensure!(ask(mesh, case, "/")?.send()?.status == 200, "no answer");
            Ok(())
        })?;
    }
    let deployed = Instant::now();
    hashes(mesh).context("hashes")?;
    cookies(mesh).context("cookies")?;
    simple_balancers(mesh).context("simple balancers")?;
    localities(mesh).context("localities")?;
    retries_elsewhere(mesh).context("retries elsewhere")?;
    warm_up(mesh, deployed).context("warm-up")?;
    failover(mesh).context("failover")?;
    mesh.kubectl(&["delete", "pod", "client", "--grace-period=1"])?;
    mesh.kubectl(&[
        "delete",
        "deploy,svc,vs,dr,gw,authorizationpolicy",
        "--all",
        "-n",
        "default",
        "--wait=false",
    ])
    .map(drop)
}

fn ask(mesh: &Mesh, case: &str, path: &str) -> Result<Ask> {
    let url = format!("http://{}{path}", mesh.gateway()?);
    Ok(Ask::get(url).header("host", &format!("{case}.balancing.example.com")))
}

/// The place that answered.
fn place(reply: &Reply) -> Result<String> {
    ensure!(reply.status == 200, "{reply:?}");
    let body: serde_json::Value = serde_json::from_str(&reply.body)?;
    Ok(body["version"].as_str().context("no version in the answer")?.to_owned())
}

/// One user always meets the same host; all users together meet all of them.
fn hashes(mesh: &Mesh) -> Result<()> {
    for case in ["by-header", "by-header-maglev"] {
        sticks(case, |user| place(&ask(mesh, case, "/")?.header("x-user", user).send()?))?;
    }
    sticks("by-query", |user| place(&ask(mesh, "by-query", &format!("/?user={user}"))?.send()?))
}

fn sticks(case: &str, answer: impl Fn(&str) -> Result<String>) -> Result<()> {
    let mut shares = Shares::new();
    for n in 0..USERS {
        let user = format!("user-{n}");
        let first = answer(&user)?;
        for _ in 1..EACH {
            let again = answer(&user)?;
            ensure!(again == first, "{case}: {user} met {first}, then {again}");
        }
        *shares.entry(first).or_default() += 1;
    }
    // Of 24 users none at one of three places: (2/3)^24, one in 17,000, and hashes are the same in every run but for
    // the addresses of the pods.
    ensure!(shares.len() == PLACES.len(), "{case}: {shares:?}");
    Ok(())
}

/// A cookie is made for whoever has none, with the life asked for; it leads back to the host that answered.
fn cookies(mesh: &Mesh) -> Result<()> {
    for _ in 0..EACH {
        let first = ask(mesh, "by-cookie", "/")?.send()?;
        let cookie = first.headers.get("set-cookie").context("no cookie was made")?;
        let parts: Vec<&str> = cookie.split("; ").collect();
        let attributes = ["Max-Age=60", "Path=/", "HttpOnly"];
        ensure!(
            parts[0].starts_with("user=\"") && attributes.iter().all(|a| parts.contains(a)),
            "the cookie is {cookie}"
        );
        for _ in 0..EACH {
            let again = ask(mesh, "by-cookie", "/")?.header("cookie", parts[0]).send()?;
            ensure!(place(&again)? == place(&first)?, "{cookie} led elsewhere");
            ensure!(!again.headers.contains_key("set-cookie"), "a second cookie: {again:?}");
        }
    }
    Ok(())
}

/// The answers to [`MANY`] requests of the client pod, all of which must succeed.
fn shares(mesh: &Mesh, service: &str) -> Result<Shares> {
    // One curl for all of them: its URL globbing asks again and again on one connection.
    let command = format!("curl -s --fail -m 60 'http://{service}/?n=[1-{MANY}]'");
    let said = mesh.kubectl(&["exec", "client", "-c", "client", "--", "sh", "-c", &command])?;
    let mut shares = Shares::new();
    for part in said.split("\"version\":\"").skip(1) {
        let place = part.split('"').next().unwrap_or_default();
        *shares.entry(place.to_owned()).or_default() += 1;
    }
    ensure!(shares.values().sum::<usize>() == MANY, "{service}: {shares:?}");
    Ok(shares)
}

/// A share of [`MANY`] that is not off by more than four standard deviations.
fn near(shares: &Shares, place: &str, share: f64) -> Result<()> {
    let n = f64::from(u32::try_from(MANY)?);
    let got = f64::from(u32::try_from(shares.get(place).copied().unwrap_or_default())?);
    let deviation = (n * share * (1.0 - share)).sqrt();
    ensure!((got - n * share).abs() <= 4.0 * deviation, "{place} should have {share} of {n}: {shares:?}");
    Ok(())
}

fn simple_balancers(mesh: &Mesh) -> Result<()> {
    for service in ["random", "round-robin", "least-request"] {
        let shares = shares(mesh, service)?;
        for place in PLACES {
            near(&shares, place, 1.0 / 3.0).context(service)?;
        }
    }
    // The client has one address, hence one host.
    let one = shares(mesh, "by-address")?;
    ensure!(one.len() == 1, "by-address: {one:?}");
    // The caller's own choice is kept: the service's address, which the node translates.
    shares(mesh, "passthrough")?;
    let vip = mesh.kubectl(&["get", "svc", "passthrough", "-o", "jsonpath={.spec.clusterIP}"])?;
    let wanted = format!("\"{}:80\" outbound|80||passthrough.default.svc.cluster.local", vip.trim());
    eventually("the client's log names the service's address", SOON, || {
        let log = mesh.kubectl(&["logs", "client", "-c", "istio-proxy", "--tail=500"])?;
        ensure!(log.contains(&wanted), "no {wanted} in {log}");
        Ok(())
    })
}

/// T12: the client is in `east/one`.
fn localities(mesh: &Mesh) -> Result<()> {
    let own = shares(mesh, "failover")?;
    ensure!(own.get("near") == Some(&MANY), "all should stay in the client's zone: {own:?}");
    let labelled = shares(mesh, "failover-to")?;
    ensure!(labelled.get("far") == Some(&MANY), "all should go where the label is: {labelled:?}");
    let weighted = shares(mesh, "distribute")?;
    ensure!(!weighted.contains_key("next"), "nothing was to go to east/two: {weighted:?}");
    near(&weighted, "near", 0.7)?;
    near(&weighted, "far", 0.3)
}

/// T7, T12: with `retryRemoteLocalities` a request that the nearest place refuses is answered by the next; without it the same
/// place is asked again.
fn retries_elsewhere(mesh: &Mesh) -> Result<()> {
    let ask = |service: &str, path: &str| {
        let command = format!("curl -s -m 10 -w ' %{{http_code}}' 'http://{service}{path}'");
        mesh.kubectl(&["exec", "client", "-c", "client", "--", "sh", "-c", &command])
    };
    for service in ["tries-elsewhere", "tries-here"] {
        let own = shares(mesh, service)?;
        ensure!(own.get("near") == Some(&MANY), "{service}: what is not refused stays near: {own:?}");
        for _ in 0..EACH {
            let said = ask(service, "/not-near")?;
            if service == "tries-here" {
                ensure!(said.ends_with(" 403"), "near should have been asked again: {said}");
            } else {
                ensure!(
                    said.ends_with(" 200") && said.contains("\"version\":\"next\""),
                    "the next place should have answered: {said}"
                );
            }
        }
    }
    Ok(())
}

/// T12: a host that has just come gets much less than its share, others are warm whether they were used or not.
#[expect(clippy::disallowed_methods, reason = "warming up is a matter of time")]
fn warm_up(mesh: &Mesh, deployed: Instant) -> Result<()> {
    let cold = WARM.saturating_sub(deployed.elapsed());
    std::thread::sleep(cold);
    mesh.kubectl(&["scale", "deploy", "far", "--replicas=0"])?;
    eventually("far is gone", SOON, || {
        let left = shares(mesh, "warm")?;
        ensure!(!left.contains_key("far"), "{left:?}");
        Ok(())
    })?;
    mesh.kubectl(&["scale", "deploy", "far", "--replicas=1"])?;
    let cold = eventually("far is back", SOON, || {
        let shares = shares(mesh, "warm")?;
        ensure!(shares.contains_key("far"), "{shares:?}");
        Ok(shares)
    })?;
    // At first its weight is a tenth of the others', which is 14 of 300; a full share is 100.
    ensure!(cold["far"] < MANY / 6, "{cold:?}");
    Ok(())
}

/// T12: when the own zone has nobody left, the region's other zone answers, then another region.
fn failover(mesh: &Mesh) -> Result<()> {
    for (gone, answers) in [("near", "next"), ("next", "far")] {
        mesh.kubectl(&["scale", "deploy", gone, "--replicas=0"])?;
        eventually(&format!("{answers} answers for {gone}"), SOON, || {
            let shares = shares(mesh, "failover")?;
            ensure!(shares.get(answers) == Some(&MANY), "{shares:?}");
            Ok(())
        })?;
    }
    Ok(())
}
