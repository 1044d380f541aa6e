//! The Sidecar resource on traffic: what a proxy reaches and how a workload receives (T18).

use crate::OnMesh;
use crate::echo::{self, SOON, ask, becomes};
use anyhow::{Result, ensure};
use lateen_e2e::{Mesh, eventually};

pub(crate) const TRIALS: &[OnMesh] = &[
    ("reach_and_reception", reach_and_reception),
    ("listeners_of_their_own", listeners_of_their_own),
    ("applications_are_held", applications_are_held),
    ("unix_sockets", unix_sockets),
];

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

/// Listeners that the application connects to itself, and one at an address of the Sidecar's choice, whose traffic is captured.
const LISTENERS: &str = r#"
apiVersion: networking.istio.io/v1
kind: Sidecar
metadata: { name: client, namespace: default }
spec:
  workloadSelector: { labels: { app: client } }
  egress:
    - { port: { number: 8000, protocol: HTTP, name: http }, captureMode: NONE, hosts: [./httpbin.default.svc.cluster.local] }
    - { port: { number: 9000, protocol: TCP, name: tcp }, bind: 127.0.0.9, captureMode: NONE, hosts: [./echo.default.svc.cluster.local] }
    - { port: { number: 80, protocol: HTTP, name: http-captured }, bind: 198.18.5.5, hosts: [./echo.default.svc.cluster.local] }
  outboundTrafficPolicy: { mode: REGISTRY_ONLY }
"#;

/// TLS of callers outside the mesh ends at the proxy, on a port where that of the mesh is disabled.
const OUTSIDERS: &str = r#"
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: { name: outsiders, namespace: default }
spec: { selector: { matchLabels: { app: httpbin } }, mtls: { mode: STRICT }, portLevelMtls: { '9443': { mode: DISABLE } } }
---
apiVersion: networking.istio.io/v1
kind: Sidecar
metadata: { name: httpbin, namespace: default }
spec:
  workloadSelector: { labels: { app: httpbin } }
  ingress:
    - port: { number: 9443, protocol: HTTP, name: https }
      defaultEndpoint: 127.0.0.1:80
      tls: { mode: SIMPLE, serverCertificate: /etc/istio/proxy/outsiders.crt, privateKey: /etc/istio/proxy/outsiders.key }
"#;

/// An application at a Unix socket, which shares a folder with its proxy, and a caller that reaches the mesh by one.
const SOCKETS: &str = r#"
apiVersion: v1
kind: Pod
metadata:
  name: behind
  labels: { app: behind }
  annotations: { sidecar.istio.io/userVolumeMount: '[{"name":"sockets","mountPath":"/run/sockets"}]' }
spec:
  volumes: [{ name: sockets, emptyDir: {} }]
  containers:
    - name: behind
      image: lateen/echo
      args: [--socket, /run/sockets/echo.sock]
      volumeMounts: [{ name: sockets, mountPath: /run/sockets }]
---
apiVersion: v1
kind: Service
metadata: { name: behind }
spec: { selector: { app: behind }, ports: [{ name: http, port: 80, targetPort: 9090 }] }
---
apiVersion: networking.istio.io/v1
kind: Sidecar
metadata: { name: behind }
spec:
  workloadSelector: { labels: { app: behind } }
  ingress:
    - { port: { number: 9090, protocol: HTTP, name: http }, defaultEndpoint: "unix:///run/sockets/echo.sock" }
    - { port: { number: 9091, protocol: HTTP, name: http-own }, captureMode: NONE, defaultEndpoint: "unix:///run/sockets/echo.sock" }
    - { port: { number: 9092, protocol: HTTP, name: http-bound }, captureMode: NONE, bind: 127.0.0.7, defaultEndpoint: 127.0.0.1:8080 }
---
apiVersion: v1
kind: Pod
metadata:
  name: near
  labels: { app: near }
  annotations: { sidecar.istio.io/userVolumeMount: '[{"name":"sockets","mountPath":"/run/sockets"}]' }
spec:
  volumes: [{ name: sockets, emptyDir: {} }]
  containers:
    - name: near
      image: curlimages/curl
      command: [sh, -c, sleep infinity]
      volumeMounts: [{ name: sockets, mountPath: /run/sockets }]
---
apiVersion: networking.istio.io/v1
kind: Sidecar
metadata: { name: near }
spec:
  workloadSelector: { labels: { app: near } }
  egress:
    - { port: { number: 0, protocol: HTTP, name: http }, bind: "unix:///run/sockets/mesh.sock", hosts: [./behind.default.svc.cluster.local, ./httpbin.default.svc.cluster.local] }
    - { port: { number: 0, protocol: TCP, name: tcp }, bind: "unix:///run/sockets/bytes.sock", captureMode: NONE, hosts: [./behind.default.svc.cluster.local] }
    - { hosts: [./behind.default.svc.cluster.local] }
  outboundTrafficPolicy: { mode: REGISTRY_ONLY }
---
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: { name: socket }
spec:
  selector: { istio: ingressgateway }
  servers: [{ port: { number: 0, name: http, protocol: HTTP }, bind: "unix:///var/lib/istio/data/gateway.sock", hosts: [behind.example] }]
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: { name: socket }
spec:
  hosts: [behind.example]
  gateways: [socket]
  http: [{ route: [{ destination: { host: behind, port: { number: 80 } } }] }]
"#;

/// Address of its pod.
fn httpbin(mesh: &Mesh) -> Result<String> {
    mesh.pod_address("default", "app=httpbin").map(|said| said.trim().to_owned())
}

fn reach_and_reception(mesh: &Mesh) -> Result<()> {
    echo::up(mesh)?;
    becomes(mesh, "http://echo/", " 200")?;
    becomes(mesh, "http://httpbin:8000/get", " 200")?;

    mesh.apply(RECEPTION)?;
    let pod = httpbin(mesh)?;
    for port in [8099, 8098] {
        becomes(mesh, &format!("http://{pod}:{port}/get"), " 200")?;
    }

    // Nothing that is left speaks HTTP on that port: connections are closed.
    mesh.apply(REACH)?;
    becomes(mesh, "http://httpbin:8000/get", " 000")?;
    ensure!(ask(mesh, "http://echo/")?.ends_with(" 200"), "what is imported stays");
    let clusters = mesh.lateen(&["proxy-config", "clusters", "client.default"])?;
    ensure!(clusters.contains("echo.default") && !clusters.contains("httpbin.default"), "{clusters}");

    mesh.kubectl(&["delete", "sidecars", "--all"])?;
    becomes(mesh, "http://httpbin:8000/get", " 200")?;
    echo::down(mesh, "")
}

fn listeners_of_their_own(mesh: &Mesh) -> Result<()> {
    echo::up(mesh)?;
    let run = |command: &str| echo::run(mesh, command);
    mesh.apply(LISTENERS)?;
    becomes(mesh, "-H 'host: httpbin' http://127.0.0.1:8000/get", " 200")?;
    becomes(mesh, "-H 'host: echo' http://198.18.5.5/", " 200")?;
    ensure!(
        ask(mesh, "-H 'host: echo' http://127.0.0.1:8000/")?.ends_with(" 502"),
        "not reached through this one"
    );
    let echo = "bash -c 'exec 3<>/dev/tcp/127.0.0.9/9000; echo hello >&3; timeout 3 head -n1 <&3'";
    let said = run(echo)?;
    ensure!(said.contains("hello"), "{said}");
    ensure!(ask(mesh, "http://httpbin:8000/get")?.ends_with(" 000"), "what is captured is unknown now");

    // One of the trial before that still drains would want the files, too.
    eventually("there is one pod of httpbin", SOON, || {
        let pods = mesh.kubectl(&["get", "pods", "-l", "app=httpbin", "-o", "name"])?;
        ensure!(pods.lines().count() == 1, "{pods}");
        Ok(())
    })?;
    let made = "openssl req -x509 -newkey rsa:2048 -nodes -subj /CN=outsiders -days 2 -keyout /etc/istio/proxy/outsiders.key -out /etc/istio/proxy/outsiders.crt 2>&1";
    mesh.kubectl(&["exec", "deploy/httpbin", "-c", "istio-proxy", "--", "sh", "-c", made])?;
    mesh.apply(OUTSIDERS)?;
    mesh.kubectl(&["delete", "sidecar", "client"])?;
    let pod = httpbin(mesh)?;
    becomes(mesh, &format!("-k https://{pod}:9443/get"), " 200")?;
    let said = run(&format!(
        "openssl s_client -connect {pod}:9443 </dev/null 2>/dev/null | openssl x509 -noout -subject"
    ))?;
    ensure!(said.contains("outsiders"), "{said}");

    echo::down(mesh, "sidecars,peerauthentications")
}

/// `holdApplicationUntilProxyStarts`: what an application sends first finds its proxy ready.
fn applications_are_held(mesh: &Mesh) -> Result<()> {
    echo::up(mesh)?;
    mesh.apply(EARLY)?;
    eventually("the application has asked", SOON, || {
        let said = mesh.kubectl(&["logs", "early", "-c", "early"])?;
        ensure!(said.contains("first:"), "{said:?}");
        ensure!(said.contains("first:200"), "the proxy was not there: {said}");
        Ok(())
    })?;
    mesh.kubectl(&["delete", "pod", "early", "--grace-period=1", "--wait=false"])?;
    echo::down(mesh, "")
}

/// Applications at Unix sockets, callers by Unix sockets, and listeners for what is not captured.
fn unix_sockets(mesh: &Mesh) -> Result<()> {
    mesh.apply_fixture("echo.yaml")?;
    mesh.apply(SOCKETS)?;
    mesh.kubectl(&["wait", "--for=condition=Available", "deploy/httpbin", "--timeout=60s"])?;
    mesh.kubectl(&[
        "wait",
        "--for=condition=Ready",
        "pod/behind",
        "pod/near",
        "pod/client",
        "--timeout=60s",
    ])?;
    let ask = |pod: &str, url: &str| {
        let curl = format!("curl -s -m 5 -w '\\n%{{http_code}} %header{{server}}' {url} || true");
        mesh.kubectl(&["exec", pod, "-c", pod, "--", "sh", "-c", &curl])
    };
    let answers = |pod: &str, url: &str, wanted: &str| {
        eventually(&format!("{url} answers {wanted}"), SOON, || {
            let said = ask(pod, url)?;
            ensure!(said.contains(wanted), "{said}");
            Ok(said)
        })
    };
    answers("client", "http://behind/", "200 envoy")?;
    // By the socket: names without a port mean port 80 or the only one there is.
    let socket = "--unix-socket /run/sockets/mesh.sock";
    for (url, wanted) in [
        ("http://behind/", "200 envoy"),
        ("http://behind.default:80/", "200 envoy"),
        ("http://httpbin:8000/get", "200 envoy"),
        ("http://httpbin/get", "200 envoy"),
        ("http://behind:8000/", "502"),
        ("http://echo/", "502"),
    ] {
        answers("near", &format!("{socket} {url}"), wanted)?;
    }
    answers("near", "--unix-socket /run/sockets/bytes.sock http://behind/", "200 istio-envoy")?;
    answers("near", "http://behind/", "200 envoy")?;
    let log = mesh.kubectl(&["logs", "near", "-c", "istio-proxy", "--tail=50"])?;
    ensure!(log.contains("/run/sockets/mesh.sock"), "the log tells where callers came: {log}");
    // What is received at an address of its own, by callers anywhere and within the pod.
    let ip = mesh.kubectl(&["get", "pod", "behind", "-o", "jsonpath={.status.podIP}"])?;
    answers("client", &format!("http://{}:9091/", ip.trim()), "200")?;
    answers("behind", "http://127.0.0.1:9091/", "200 istio-envoy")?;
    answers("behind", "http://127.0.0.7:9092/", "200 istio-envoy")?;
    // A gateway's.
    eventually("the gateway's socket answers", SOON, || {
        let curl = "curl -s -m 5 -w '\\n%{http_code}' --unix-socket /var/lib/istio/data/gateway.sock http://behind.example/ || true";
        let gateway = ["exec", "-n", "istio-system", "deploy/istio-ingressgateway", "-c", "istio-proxy"];
        let said = mesh.kubectl(&[&gateway[..], &["--", "sh", "-c", curl]].concat())?;
        ensure!(said.trim().ends_with("200"), "{said}");
        Ok(())
    })?;
    let status = mesh.kubectl(&["get", "sidecars,gateways", "-o", "jsonpath={.items[*].status}"])?;
    ensure!(!status.contains("no effect"), "{status}");

    mesh.kubectl(&["delete", "pod", "near", "behind", "--grace-period=1"])?;
    echo::down(mesh, "sidecars,gateways,vs")
}
