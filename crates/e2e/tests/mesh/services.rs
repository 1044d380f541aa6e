//! Kinds of Services and Kubernetes Ingress on real traffic (T21, T23).

use std::time::Duration;

use crate::OnMesh;
use anyhow::{Context, Result, ensure};
use lateen_e2e::{Mesh, eventually, web::Ask};

pub(crate) const TRIALS: &[OnMesh] = &[("kinds_and_ingress", kinds_and_ingress)];

const SOON: Duration = Duration::from_secs(30);
/// Requests after which both of two hosts have been met: all met the same once in 2^31 runs.
const ENOUGH: usize = 32;

fn kinds_and_ingress(mesh: &Mesh) -> Result<()> {
    mesh.apply_fixture("services.yaml")?;
    mesh.kubectl(&["wait", "--for=condition=Available", "deploy", "--all", "--timeout=60s"])?;
    mesh.kubectl(&["rollout", "status", "statefulset/member", "--timeout=60s"])?;
    mesh.kubectl(&["wait", "--for=condition=Ready", "pod/client", "--timeout=60s"])?;
    kinds(mesh).context("kinds of services")?;
    ingress(mesh).context("Ingress")?;
    mesh.kubectl(&["delete", "pod", "client", "--grace-period=1"])?;
    mesh.kubectl(&["delete", "ingressclass", "mesh"])?;
    mesh.kubectl(&["delete", "deploy,statefulset,svc,ingress", "--all", "-n", "default", "--wait=false"])
        .map(drop)
}

/// What the client pod gets.
fn curl(mesh: &Mesh, url: &str) -> Result<String> {
    let command = format!("curl -s --fail -m 30 '{url}'");
    mesh.kubectl(&["exec", "client", "-c", "client", "--", "sh", "-c", &command])
}

fn says(mesh: &Mesh, url: &str, version: &str) -> Result<()> {
    eventually(url, SOON, || {
        let said = curl(mesh, url)?;
        ensure!(said.contains(&format!("\"version\":\"{version}\"")), "not from {version}: {said}");
        Ok(())
    })
}

fn kinds(mesh: &Mesh) -> Result<()> {
    // Ports by name have the number that each pod gives them.
    let both = curl(mesh, &format!("http://named/anything?n=[1-{ENOUGH}]"))?;
    ensure!(both.contains("\"version\":\"one\"") && both.contains("\"url\""), "{both}");
    for url in ["http://one", "http://one:8081"] {
        says(mesh, url, "one")?;
    }
    for url in ["http://alias", "http://alias.default", "http://alias.default.svc.cluster.local"] {
        says(mesh, url, "one")?;
    }
    // Pods of a headless service: all of them by its name, each by its own.
    let members = curl(mesh, "http://members:8080")?;
    ensure!(members.contains("\"version\":\"member-"), "{members}");
    for member in ["member-0", "member-1"] {
        for domain in ["members", "members.default", "members.default.svc.cluster.local"] {
            says(mesh, &format!("http://{member}.{domain}:8080"), member)?;
        }
    }
    // They are known to the mesh: nothing went to addresses without a service.
    let last = "member-1.members.default.svc.cluster.local:8080";
    let log = eventually("the last request is in the log", SOON, || {
        let log = mesh.kubectl(&["logs", "client", "-c", "istio-proxy", "--tail=500"])?;
        ensure!(log.contains(last), "no {last} in {log}");
        Ok(log)
    })?;
    ensure!(log.contains("|members.default") && !log.contains("PassthroughCluster"), "{log}");
    Ok(())
}

fn ingress(mesh: &Mesh) -> Result<()> {
    let ask = |host: &str, path: &str| -> Result<Ask> {
        Ok(Ask::get(format!("http://{}{path}", mesh.gateway()?)).header("host", host))
    };
    // httpbin answers what it is asked; echo answers everything, with its version.
    let one = "\"version\":\"one\"";
    let two = "\"url\"";
    for (host, path, status, body, case) in [
        ("paths.example.com", "/get", 200, two, "exact"),
        ("paths.example.com", "/get/more", 200, one, "exact is not a prefix"),
        ("paths.example.com", "/anything", 200, two, "prefix"),
        ("paths.example.com", "/anything/else", 200, two, "below the prefix"),
        ("paths.example.com", "/anything-else", 200, one, "prefixes end at slashes"),
        ("paths.example.com", "/anything/one/more", 200, one, "the longer prefix"),
        ("paths.example.com", "/status/418", 418, "", "by the controller's own syntax"),
        ("paths.example.com", "/", 200, one, "the default backend, for a host with rules"),
        ("elsewhere.example.com", "/get", 200, one, "the default backend, for any host"),
        ("foreign.example.com", "/get", 200, one, "another controller's host is not served by its rules"),
    ] {
        eventually(case, SOON, || {
            let reply = ask(host, path)?.send()?;
            ensure!(reply.status == status && reply.body.contains(body), "{host}{path}: {reply:?}");
            Ok(())
        })?;
    }
    let gateway = mesh.gateway()?;
    let address = gateway.split(':').next().unwrap_or_default();
    eventually("the address is in the status", SOON, || {
        let table = mesh.kubectl(&["get", "ingress", "paths"])?;
        ensure!(table.contains(address), "{table}");
        Ok(())
    })?;
    let foreign = mesh.kubectl(&["get", "ingress", "foreign", "-o", "jsonpath={.status.loadBalancer}"])?;
    ensure!(!foreign.contains(address), "{foreign}");
    Ok(())
}
