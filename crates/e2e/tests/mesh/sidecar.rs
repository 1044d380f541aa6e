//! The Sidecar resource on traffic: what a proxy reaches and how a workload receives (T18).

use std::time::Duration;

use crate::OnMesh;
use anyhow::{Result, ensure};
use lateen_e2e::{Mesh, eventually};

pub(crate) const TRIALS: &[OnMesh] = &[("reach_and_reception", reach_and_reception)];

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
    mesh.kubectl(&["delete", "pod", "client", "--grace-period=1", "--wait=false"])?;
    mesh.kubectl(&["delete", "deploy,svc,dr", "--all", "-n", "default", "--wait=false"]).map(drop)
}
