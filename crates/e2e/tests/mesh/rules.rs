//! Rules of several objects together (T2, T3, T4, T5, T10): delegates, merged and wildcard hosts, conditions on callers, ports
//! and schemes, TCP by weight (in one deployment, as deploying takes longer than asking). Each engine must answer what is written here.

use std::time::Duration;

use crate::OnMesh;

use anyhow::{Context, Result, ensure};
use http::Method;
use lateen_e2e::{
    Mesh, eventually,
    web::{Ask, Reply},
};

pub(crate) const TRIALS: &[OnMesh] = &[("rules_together", rules_together)];

const SOON: Duration = Duration::from_secs(30);

fn rules_together(mesh: &Mesh) -> Result<()> {
    crate::echo::up(mesh)?;
    mesh.apply_fixture("rules.yaml")?;
    at_the_gateway(mesh)?;
    from_a_sidecar(mesh)?;
    tcp_by_weight(mesh)?;
    said_in_status(mesh)?;
    crate::echo::down(mesh, "vs,gw")
}

fn at_the_gateway(mesh: &Mesh) -> Result<()> {
    let gateway = mesh.gateway()?;
    let to = |host: &str, path: &str| Ask::get(format!("http://{gateway}{path}")).header("host", host);
    let ask = |path: &str| to("rules.example.com", path);
    for (path, status) in [("/", 299), ("/second", 220), ("/team/teapot", 418), ("/team/v2", 200)] {
        eventually("the rules are there", SOON, || {
            let reply = ask(path).send()?;
            ensure!(reply.status == status, "{path}: {reply:?}");
            Ok(())
        })?;
    }
    for (ask, status, case) in [
        (ask("/lost"), 299, "a delegate that is not there"),
        (ask("/elsewhere"), 299, "a delegate's rule outside its root's"),
        (ask("/scheme"), 211, "scheme"),
        (ask("/port"), 213, "the port of the gateway's server"),
        (ask("/case/x"), 214, "uri without regard to case"),
        (ask("/CASE"), 214, "uri without regard to case"),
        (ask("/without"), 215, "withoutHeaders"),
        (ask("/without").header("x-a", "1"), 216, "withoutHeaders, one present"),
        (ask("/without").header("x-a", "1").header("x-b", "yes"), 216, "withoutHeaders, other value"),
        (ask("/without").header("x-b", "nope"), 299, "withoutHeaders, both match"),
        (ask("/both?q=abc").header("x-a", "12").method(Method::POST, ""), 217, "all conditions"),
        (ask("/both?q=abc").header("x-a", "12"), 299, "all conditions but the method"),
        (ask("/both?q=b").header("x-a", "12").method(Method::POST, ""), 299, "all but the query"),
        (ask("/both?q=abc").header("x-a", "1x").method(Method::POST, ""), 299, "all but the header"),
        (ask("/authority"), 218, "authority"),
        (ask("/second/more"), 220, "another VirtualService for the host"),
        (to("b.wild.example.com", "/"), 221, "a wildcard host"),
        (to("a.wild.example.com", "/"), 222, "an exact host before the wildcard"),
        (to("wild.example.com", "/"), 404, "what the wildcard does not cover"),
    ] {
        let reply = ask.send()?;
        ensure!(reply.status == status, "{case}: expected {status}: {reply:?}");
    }
    let seen = |path: &str| -> Result<String> {
        let reply: Reply = ask(path).send()?;
        ensure!(reply.status == 200, "{path}: {reply:?}");
        Ok(reply.body)
    };
    let body = seen("/team/other")?;
    ensure!(body.contains(r#""version":"v1""#) && body.contains(r#""x-root":"yes""#), "{body}");
    let body = seen("/team/v2")?;
    ensure!(body.contains(r#""version":"v2""#), "{body}");
    let body = seen("/pattern/abc/42/rest?q=1")?;
    ensure!(body.contains("/items/42/abc/rest?q=1"), "{body}");
    let body = seen("/value")?;
    for part in [r#""x-protocol":"HTTP/1.1""#, r#""x-share":"100%""#, "named.example.com"] {
        ensure!(body.contains(part), "{part}: {body}");
    }
    counted_by_route(mesh)
}

/// What rules with a `statPrefix` count for themselves, be it that of a rule that delegates.
fn counted_by_route(mesh: &Mesh) -> Result<()> {
    let gateway = ["exec", "-n", "istio-system", "deploy/istio-ingressgateway", "-c", "istio-proxy"];
    let page = |path: &str| mesh.kubectl(&[&gateway[..], &["--", "curl", "-s", path]].concat());
    let stats = page("localhost:15000/stats?filter=^vhost")?;
    let count = |name: &str| {
        let name = format!("vhost.rules.example.com:80.route.{name}: ");
        stats.lines().find_map(|line| line.strip_prefix(&name)?.trim().parse::<u64>().ok())
    };
    for name in ["patterns.upstream_rq_200", "patterns.upstream_rq_total", "team.upstream_rq_2xx"] {
        ensure!(count(name).is_some_and(|n| n > 0), "{name}: {stats}");
    }
    ensure!(count("team.upstream_rq_418").is_none(), "what is answered here is no cluster's: {stats}");
    let metrics = page("localhost:15090/stats/prometheus")?;
    let name = "envoy_vhost_example_com_80_route_patterns_upstream_rq{envoy_response_code=\"200\",envoy_virtual_host=\"rules\"}";
    ensure!(metrics.contains(name), "{name} is not in {metrics}");
    Ok(())
}

fn from_a_sidecar(mesh: &Mesh) -> Result<()> {
    let status = |url: &str| -> Result<String> {
        let command = format!("curl -s -o /dev/null -w '%{{http_code}}' -m 5 {url}");
        mesh.kubectl(&["exec", "client", "-c", "client", "--", "sh", "-c", &command])
    };
    for (path, expected) in [
        ("echo/labels", "231"),
        ("echo/namespace", "233"),
        ("echo/port", "235"),
        ("echo:81/port", "234"),
        ("echo/gateways", "237"),
        ("echo.default.svc.cluster.local/labels", "231"),
        ("echo/other", "200"),
    ] {
        eventually("the sidecar has the rule", SOON, || {
            let got = status(&format!("http://{path}"))?;
            ensure!(got.trim() == expected, "{path}: {got}, expected {expected}");
            Ok(())
        })?;
    }
    Ok(())
}

fn tcp_by_weight(mesh: &Mesh) -> Result<()> {
    let n = 80;
    let command = format!(
        "for i in $(seq {n}); do curl -s -m 5 http://echo:9000/x | grep -o '\"version\":\"v[12]\"' || echo lost; done"
    );
    let said = mesh.kubectl(&["exec", "client", "-c", "client", "--", "sh", "-c", &command])?;
    let count = |version: &str| said.lines().filter(|line| line.contains(version)).count();
    let (v1, v2, lost) = (count("v1"), count("v2"), count("lost"));
    let expected = f64::from(n) * 0.25;
    let deviation = (f64::from(n) * 0.25 * 0.75).sqrt();
    let off = (f64::from(u32::try_from(v1)?) - expected).abs();
    ensure!(lost == 0 && v1 + v2 == n as usize, "v1 {v1}, v2 {v2}, lost {lost}: {said}");
    ensure!(off <= 4.0 * deviation, "{v1} of {n} connections went to v1, expected {expected}");
    Ok(())
}

fn said_in_status(mesh: &Mesh) -> Result<()> {
    eventually("the status says what is left out", SOON, || {
        let status = mesh.kubectl(&["get", "vs", "root", "-o", "jsonpath={.status}"])?;
        ensure!(status.contains("Referenced delegate not found"), "{status}");
        ensure!(status.contains("is not within the match of the rule that delegates to it"), "{status}");
        ensure!(
            status.contains(r#""type":"Reconciled""#) && status.contains("observedGeneration"),
            "{status}"
        );
        Ok(())
    })?;
    let table = mesh.kubectl(&["get", "vs"])?;
    let columns: Vec<&str> = table.lines().next().context("a header")?.split_whitespace().collect();
    ensure!(columns == ["NAME", "GATEWAYS", "HOSTS", "AGE"], "{table}");
    let refused = mesh.apply(
        "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: { name: bad }\nspec:\n  hosts: [a]\n  \
         http: [{ route: [{ destination: { host: a }, weight: -1 }, { destination: { host: b }, weight: 2 }] }]\n",
    );
    let words = refused.err().map(|error| format!("{error:#}")).unwrap_or_default();
    ensure!(words.contains("configuration is invalid: ") && words.contains("weight -1 < 0"), "{words}");
    Ok(())
}
