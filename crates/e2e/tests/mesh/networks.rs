//! Two networks in one mesh, and a gateway between them (T16, T17, A1). The objects follow Istio's task on several networks.

use std::time::Duration;

use anyhow::{Result, ensure};
use lateen_e2e::web::Ask;
use lateen_e2e::{Load, Mesh, eventually};

use crate::OnMesh;
use crate::pki::is_refused;

pub(crate) const TRIALS: &[OnMesh] = &[("two_networks", two_networks)];

const SOON: Duration = Duration::from_secs(30);
const HTTPBIN: &str = "outbound|8000||httpbin.far.svc.cluster.local";
const LABEL: &str = "topology.istio.io/network";

/// The address of a gateway's Service, and its port, as proxies are told of it.
fn address(mesh: &Mesh, service: &str) -> Result<String> {
    eventually("the gateway has an address", SOON, || {
        let path = "jsonpath={.status.loadBalancer.ingress[0].ip}";
        let ip = mesh.kubectl(&["get", "svc", "-n", "far", service, "-o", path])?;
        ensure!(!ip.is_empty(), "none yet");
        Ok(format!("{ip}:15443"))
    })
}

/// What a command prints in the client's pod, and its exit code.
fn run(mesh: &Mesh, command: &str) -> Result<String> {
    let script = format!("{command} 2>&1; echo \" exit $?\"");
    mesh.kubectl(&["exec", "client", "-c", "client", "--", "bash", "-c", &script])
}

fn becomes(mesh: &Mesh, what: &str, command: &str, wanted: &str) -> Result<String> {
    eventually(what, SOON, || {
        let said = run(mesh, command)?;
        ensure!(said.contains(wanted), "{said}");
        Ok(said)
    })
}

/// Until the endpoints of a cluster that a proxy has are these.
fn endpoints_are(mesh: &Mesh, pod: &str, cluster: &str, wanted: &[&str]) -> Result<()> {
    eventually(&format!("endpoints of {cluster} at {pod} are {wanted:?}"), SOON, || {
        let said = mesh.lateen(&["proxy-config", "endpoints", pod, "--cluster", cluster])?;
        let mut found: Vec<&str> =
            said.lines().skip(1).filter_map(|line| line.split_whitespace().next()).collect();
        found.sort_unstable();
        ensure!(found == wanted, "{said}");
        Ok(())
    })
}

fn get(host: &str) -> String {
    format!("curl -s -m 5 -w ' %{{http_code}}' http://{host}")
}

fn two_networks(mesh: &Mesh) -> Result<()> {
    mesh.apply_fixture("networks.yaml")?;
    mesh.kubectl(&["label", "namespace", "istio-system", "--overwrite", &format!("{LABEL}=network1")])?;
    mesh.kubectl(&["wait", "-n", "far", "--for=condition=Available", "deploy", "--all", "--timeout=90s"])?;
    mesh.kubectl(&["wait", "--for=condition=Ready", "pod/client", "--timeout=60s"])?;
    let outcome = across(mesh)
        .and_then(|()| why_tells(mesh))
        .and_then(|()| without_loss(mesh))
        .and_then(|()| by_mesh_networks(mesh))
        .and_then(|()| gateways_go(mesh));
    // Whatever was seen, the mesh has one network again.
    set_mesh_networks(mesh, "networks: {}")?;
    mesh.kubectl(&["label", "namespace", "istio-system", &format!("{LABEL}-")])?;
    outcome?;
    mesh.kubectl(&["delete", "gateways.networking.istio.io,virtualservices", "--all", "-n", "default"])?;
    mesh.kubectl(&["delete", "pod", "client", "--grace-period=1", "--wait=true"])?;
    mesh.kubectl(&["delete", "namespace", "far", "--wait=true", "--timeout=60s"]).map(drop)
}

/// `lateen why` leads through the gateway to who stands behind it.
fn why_tells(mesh: &Mesh) -> Result<()> {
    let gateway = address(mesh, "eastwest")?;
    let to = ["why", "--from", "client", "--to", "http://httpbin.far:8000/headers"];
    let said = mesh.lateen(&to)?;
    let behind = "the gateway of network network2; behind it: httpbin-";
    for part in [gateway.as_str(), behind, "(a gateway)", "(the server's sidecar)", "Answer: it passes"] {
        ensure!(said.contains(part), "{part}: {said}");
    }
    let caller = "the caller is spiffe://cluster.local/ns/default/sa/default";
    ensure!(said.contains(caller), "{said}");
    let told: serde_json::Value = serde_json::from_str(&mesh.lateen(&[&to[..], &["-o", "json"]].concat())?)?;
    ensure!(told["hops"][0]["networks"][&gateway]["network"] == "network2", "{told:#}");
    ensure!(told["hops"].as_array().is_some_and(|hops| hops.len() == 3), "{told:#}");
    Ok(())
}

/// Requests and bytes arrive with the caller's identity, and nothing goes there but by the gateway.
fn across(mesh: &Mesh) -> Result<()> {
    let gateway = address(mesh, "eastwest")?;
    endpoints_are(mesh, "client.default", HTTPBIN, &[&gateway])?;
    let caller = "URI=spiffe://cluster.local/ns/default/sa/default";
    for (what, port) in [("HTTP", 8000), ("an undeclared protocol", 8001)] {
        let command = get(&format!("httpbin.far:{port}/headers"));
        let said = becomes(mesh, &format!("{what} to the other network"), &command, " 200")?;
        ensure!(said.contains(caller) && said.contains("By=spiffe://cluster.local/ns/far/"), "{said}");
    }
    let bytes = "exec 3<>/dev/tcp/echo.far/9000; echo hello >&3; timeout 3 head -n1 <&3";
    becomes(mesh, "bytes to the other network", bytes, "hello")?;
    // Connections of HTTP are kept, so that the log does not have them yet.
    let passed_on = mesh.kubectl(&[
        "exec",
        "-n",
        "far",
        "deploy/eastwest",
        "-c",
        "istio-proxy",
        "--",
        "curl",
        "-s",
        "localhost:15000/clusters",
    ])?;
    for name in ["outbound_.8000_._.httpbin", "outbound_.8001_._.httpbin", "outbound_.9000_._.echo"] {
        let mut lines = passed_on.lines().filter(|line| line.starts_with(name));
        let counted = lines.any(|line| line.contains("::cx_total::") && !line.ends_with("::0"));
        ensure!(counted, "{name}: {passed_on}");
    }
    // Gateways pass on nothing but mutual TLS.
    endpoints_are(mesh, "client.default", "outbound|80||plain.far.svc.cluster.local", &[])?;
    let said = run(mesh, &get("plain.far/"))?;
    ensure!(said.contains("no healthy upstream 503"), "{said}");
    // Nobody else is let through.
    let stranger = format!(
        "printf 'GET /get HTTP/1.1\r\nHost: httpbin.far\r\n\r\n' | timeout 10 openssl s_client -quiet -connect {gateway} -servername outbound_.8000_._.httpbin.far.svc.cluster.local -alpn istio 2>&1"
    );
    let said = mesh.lab("", &format!("{stranger} || true"))?;
    ensure!(is_refused(&said), "a caller without a certificate: {said}");
    Ok(())
}

/// The gateway moves to another address while requests go through it.
fn without_loss(mesh: &Mesh) -> Result<()> {
    let ask = Ask::get(format!("http://{}/get", mesh.gateway()?)).header("host", "far.test");
    eventually("the ingress gateway leads to the other network", SOON, || {
        let reply = ask.send()?;
        ensure!(reply.status == 200, "{reply:?}");
        Ok(())
    })?;
    let ingress = format!("{}.istio-system", mesh.pod("istio-system", "istio=ingressgateway")?);
    let old = address(mesh, "eastwest")?;
    let load = Load::start(ask, 50, |reply| reply.status.to_string());
    mesh.apply(&format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{ name: moved, namespace: far, labels: {{ {LABEL}: network2 }} }}\nspec: {{ type: LoadBalancer, selector: {{ istio: eastwestgateway }}, ports: [{{ name: tls, port: 15443 }}] }}\n"
    ))?;
    let new = address(mesh, "moved")?;
    let mut both = [old.as_str(), new.as_str()];
    both.sort_unstable();
    endpoints_are(mesh, &ingress, HTTPBIN, &both)?;
    mesh.kubectl(&["label", "svc", "-n", "far", "eastwest", &format!("{LABEL}-")])?;
    endpoints_are(mesh, &ingress, HTTPBIN, &[&new])?;
    mesh.kubectl(&["delete", "svc", "-n", "far", "eastwest"])?;
    let command = get("httpbin.far:8000/headers");
    becomes(mesh, "requests by the new address", &command, " 200")?;
    // On a quick machine all of this is over in a moment.
    eventually("the load meets the new address", SOON, || {
        ensure!(load.sent() > 50, "{} requests", load.sent());
        Ok(())
    })?;
    load.stop()?.lossless()
}

fn set_mesh_networks(mesh: &Mesh, text: &str) -> Result<()> {
    let patch = serde_json::json!({ "data": { "meshNetworks": text } }).to_string();
    mesh.kubectl(&["patch", "cm", "-n", "istio-system", "istio", "-p", &patch]).map(drop)
}

/// The gateway as `meshNetworks` has it, by a name that the control plane looks up; what is wrong changes nothing.
fn by_mesh_networks(mesh: &Mesh) -> Result<()> {
    let old = address(mesh, "moved")?;
    set_mesh_networks(mesh, "networks: {network2: {endpoints: [{fromCidr: 10.0.0.0/40}]}}")?;
    eventually("the control plane says what is wrong", SOON, || {
        let log = mesh.kubectl(&["logs", "-n", "istio-system", "deploy/istiod", "--tail=50"])?;
        let said =
            "invalid network network2: 10.0.0.0/40 is not a valid CIDR block; the previous mesh networks";
        ensure!(log.contains(said), "{log}");
        Ok(())
    })?;
    endpoints_are(mesh, "client.default", HTTPBIN, &[&old])?;
    set_mesh_networks(
        mesh,
        "networks: {network2: {gateways: [{address: moved.far.svc.cluster.local, port: 15443}]}}",
    )?;
    mesh.kubectl(&["label", "svc", "-n", "far", "moved", &format!("{LABEL}-")])?;
    let ip = mesh.kubectl(&["get", "svc", "-n", "far", "moved", "-o", "jsonpath={.spec.clusterIP}"])?;
    endpoints_are(mesh, "client.default", HTTPBIN, &[&format!("{ip}:15443")])?;
    becomes(mesh, "by the gateway's name", &get("httpbin.far:8000/headers"), " 200").map(drop)
}

/// Without its gateway nobody reaches the network; without a gateway at all it is reached directly.
fn gateways_go(mesh: &Mesh) -> Result<()> {
    let command = get("httpbin.far:8000/headers");
    mesh.kubectl(&["scale", "-n", "far", "deploy/eastwest", "--replicas=0"])?;
    becomes(mesh, "a gateway that is gone", &command, " 503")?;
    mesh.kubectl(&["scale", "-n", "far", "deploy/eastwest", "--replicas=1"])?;
    becomes(mesh, "a gateway that is back", &command, " 200")?;
    set_mesh_networks(mesh, "networks: {}")?;
    let pod = mesh.pod_address("far", "app=httpbin")?;
    endpoints_are(mesh, "client.default", HTTPBIN, &[&format!("{pod}:80")])?;
    becomes(mesh, "a network without gateways", &command, " 200")?;
    becomes(mesh, "plain text there", &get("plain.far/"), " 200").map(drop)
}
