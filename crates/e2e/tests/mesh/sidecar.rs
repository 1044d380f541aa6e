//! The Sidecar resource on traffic: what a proxy reaches and how a workload receives (T18).

use std::time::Duration;

use crate::OnMesh;
use anyhow::{Result, ensure};
use lateen_e2e::{Mesh, eventually};

pub(crate) const TRIALS: &[OnMesh] =
    &[("reach_and_reception", reach_and_reception), ("applications_are_held", applications_are_held)];

const SOON: Duration = Duration::from_secs(30);

const REACH: &str = r#"
apiVersion: networking.istio.io/v1
kind: Sidecar
metadata: { name: client, namespace: default }
spec:
  workloadSelector: { labels: { app: client } }
  egress: [{ hosts: [./echo.default.svc.cluster.local] }]
  outboundTrafficPolicy: { mode: REGISTRY_ONLY }
"#;

/// Its application asks once, as soon as it starts.
const EARLY: &str = r#"
apiVersion: v1
kind: Pod
metadata:
  name: early
  namespace: default
  annotations: { proxy.istio.io/config: '{"holdApplicationUntilProxyStarts": true}' }
spec:
  containers:
    - name: early
      image: curlimages/curl
      command: [sh, -c, "curl -s -o /dev/null -m 5 -w 'first:%{http_code}' http://echo/; sleep 3600"]
"#;

const RECEPTION: &str = r#"
apiVersion: networking.istio.io/v1
kind: Sidecar
metadata: { name: httpbin, namespace: default }
spec:
  workloadSelector: { labels: { app: httpbin } }
  ingress:
    - { port: { number: 8099, protocol: HTTP, name: http-loopback }, defaultEndpoint: 127.0.0.1:80 }
    - { port: { number: 8098, protocol: HTTP, name: http-own }, defaultEndpoint: 0.0.0.0:80 }
"#;

/// Status of a request from the client pod.
fn status(mesh: &Mesh, url: &str) -> Result<String> {
    let curl = format!("curl -s -o /dev/null -m 5 -w %{{http_code}} {url} || true");
    let said = mesh.kubectl(&["exec", "client", "-c", "client", "--", "sh", "-c", &curl])?;
    Ok(said.trim().to_owned())
}

fn becomes(mesh: &Mesh, url: &str, wanted: &str) -> Result<()> {
    eventually(&format!("{url} answers {wanted}"), SOON, || {
        let found = status(mesh, url)?;
        ensure!(found == wanted, "{found}");
        Ok(())
    })
}

fn reach_and_reception(mesh: &Mesh) -> Result<()> {
    mesh.apply_fixture("echo.yaml")?;
    mesh.kubectl(&["wait", "--for=condition=Available", "deploy", "--all", "--timeout=60s"])?;
    mesh.kubectl(&["wait", "--for=condition=Ready", "pod/client", "--timeout=60s"])?;
    becomes(mesh, "http://echo/", "200")?;
    becomes(mesh, "http://httpbin:8000/get", "200")?;

    mesh.apply(RECEPTION)?;
    let pod =
        mesh.kubectl(&["get", "pod", "-l", "app=httpbin", "-o", "jsonpath={.items[0].status.podIP}"])?;
    for port in [8099, 8098] {
        becomes(mesh, &format!("http://{}:{port}/get", pod.trim()), "200")?;
    }

    // Nothing that is left speaks HTTP on that port: connections are closed.
    mesh.apply(REACH)?;
    becomes(mesh, "http://httpbin:8000/get", "000")?;
    ensure!(status(mesh, "http://echo/")? == "200", "what is imported stays");
    let clusters = mesh.lateen(&["proxy-config", "clusters", "client.default"])?;
    ensure!(clusters.contains("echo.default") && !clusters.contains("httpbin.default"), "{clusters}");

    mesh.kubectl(&["delete", "sidecars", "--all"])?;
    becomes(mesh, "http://httpbin:8000/get", "200")?;
    mesh.kubectl(&["delete", "pod", "client", "--grace-period=1"])?;
    mesh.kubectl(&["delete", "deploy,svc,dr", "--all", "-n", "default", "--wait=false"]).map(drop)
}

/// `holdApplicationUntilProxyStarts`: what an application sends first finds its proxy ready.
fn applications_are_held(mesh: &Mesh) -> Result<()> {
    mesh.apply_fixture("echo.yaml")?;
    mesh.kubectl(&["wait", "--for=condition=Available", "deploy", "--all", "--timeout=60s"])?;
    mesh.apply(EARLY)?;
    eventually("the application has asked", SOON, || {
        let said = mesh.kubectl(&["logs", "early", "-c", "early"])?;
        ensure!(said.contains("first:"), "{said:?}");
        ensure!(said.contains("first:200"), "the proxy was not there: {said}");
        Ok(())
    })?;
    mesh.kubectl(&["delete", "pod", "early", "--grace-period=1", "--wait=false"])?;
    mesh.kubectl(&["delete", "pod", "client", "--grace-period=1", "--wait=false", "--ignore-not-found"])?;
    mesh.kubectl(&["delete", "deploy,svc,dr", "--all", "-n", "default", "--wait=false"]).map(drop)
}
