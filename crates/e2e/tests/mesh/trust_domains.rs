//! A mesh that moves to another trust domain under its workloads, and one that trusts another mesh (S10); and mutual TLS to addresses that callers choose (S5).
use std::process::Command;
use std::time::Duration;

use crate::authorizers::MeshConfig;
use crate::mutual_tls::{STRANGER, mode};
use crate::pki::Pki;
use crate::{OnMesh, echo};
use anyhow::{Result, ensure};
use lateen_e2e::{Mesh, eventually};

pub(crate) const TRIALS: &[OnMesh] = &[
    ("a_trust_domain_is_left", a_trust_domain_is_left),
    ("headless_services", headless_services),
    ("another_mesh_is_trusted", another_mesh_is_trusted),
];

const SOON: Duration = Duration::from_secs(30);
const HTTP: &str = "curl -s -m 5 -w %{http_code} http://httpbin:8000/headers";
const OLD: &str = "spiffe://cluster.local/ns/default/sa/default";
const NEW: &str = "spiffe://new.example/ns/default/sa/default";

fn becomes(mesh: &Mesh, pod: &str, command: &str, wanted: &[&str]) -> Result<String> {
    eventually(&format!("{command} in {pod} says {wanted:?}"), SOON, || {
        let script = format!("{command} 2>&1; echo exit $?");
        let said = mesh.kubectl(&["exec", pod, "-c", "client", "--", "bash", "-c", &script])?;
        ensure!(wanted.iter().all(|part| said.contains(part)), "{said}");
        Ok(said)
    })
}

fn client(name: &str) -> String {
    STRANGER.replace("stranger", name).replace(", sidecar.istio.io/inject: 'false'", "")
}

fn started(mesh: &Mesh, pod: &str) -> Result<()> {
    mesh.apply(&client(pod))?;
    mesh.kubectl(&["wait", "--for=condition=Ready", &format!("pod/{pod}"), "--timeout=60s"]).map(drop)
}

fn clean(mesh: &Mesh, pods: &[&str]) -> Result<()> {
    // The next trial makes pods of these names.
    let delete = [&["delete", "pod", "client", "--grace-period=1"], pods].concat();
    mesh.kubectl(&delete)?;
    mesh.kubectl(&[
        "delete",
        "deploy,svc,dr,peerauthentication,authorizationpolicy",
        "--all",
        "-n",
        "default",
        "--wait=false",
    ])
    .map(drop)
}

/// Workloads of the old domain and of the new one reach each other while the old one is an alias, whatever domain policies name.
fn a_trust_domain_is_left(mesh: &Mesh) -> Result<()> {
    mesh.apply_fixture("echo.yaml")?;
    started(mesh, "old")?;
    mesh.kubectl(&["wait", "--for=condition=Available", "deploy", "--all", "--timeout=60s"])?;
    mesh.apply(&mode("default", "{mtls: {mode: STRICT}}"))?;
    mesh.apply("apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: callers}\nspec: {selector: {matchLabels: {app: httpbin}}, rules: [{from: [{source: {principals: [cluster.local/ns/default/sa/default]}}]}]}\n")?;
    let both = |by: &str, uri: &str| [format!("By={by}"), format!("URI={uri}"), "200exit 0".to_owned()];
    let says = |pod: &str, by: &str, uri: &str| {
        let wanted = both(by, uri);
        becomes(mesh, pod, HTTP, &wanted.each_ref().map(String::as_str))
    };
    says("old", OLD, OLD)?;

    let mesh_config = MeshConfig::of(mesh)?;
    let moved = mesh_config.before().replace("trustDomain: cluster.local", "trustDomain: new.example");
    ensure!(moved != mesh_config.before(), "{moved}");
    mesh_config.set(&format!("{moved}\ntrustDomainAliases: [cluster.local]\n"))?;
    started(mesh, "new")?;
    says("new", OLD, NEW)?;
    says("old", OLD, OLD)?;
    mesh.restart("default", "deploy/httpbin")?;
    says("new", NEW, NEW)?;
    says("old", NEW, OLD)?;

    // Without the alias whoever is still of the old domain is nobody.
    mesh_config.set(&moved)?;
    mesh.kubectl(&["delete", "authorizationpolicy", "callers"])?;
    says("new", NEW, NEW)?;
    becomes(mesh, "old", HTTP, &["503exit 0"])?;
    drop(mesh_config);
    clean(mesh, &["old", "new"])
}

/// Where all pods of a headless service have proxies, mutual TLS is spoken to whichever the caller chose; as soon as one has none, to none.
fn headless_services(mesh: &Mesh) -> Result<()> {
    mesh.apply_fixture("echo.yaml")?;
    mesh.apply("apiVersion: v1\nkind: Service\nmetadata: {name: members}\nspec: {clusterIP: None, selector: {member: yes-it-is}, ports: [{name: http, port: 80}, {name: tcp, port: 9000}]}\n")?;
    let label = |deployment: &str| {
        let patch = r#"{"spec":{"template":{"metadata":{"labels":{"member":"yes-it-is"}}}}}"#;
        mesh.kubectl(&["patch", "deploy", deployment, "-p", patch])?;
        mesh.kubectl(&["rollout", "status", "deploy", deployment, "--timeout=60s"])
    };
    label("httpbin")?;
    mesh.kubectl(&["wait", "--for=condition=Ready", "pod/client", "--timeout=60s"])?;
    mesh.apply(&mode("default", "{mtls: {mode: STRICT}}"))?;
    let ask = "curl -s -m 5 -w %{http_code} http://members/headers";
    becomes(mesh, "client", ask, &[&format!("URI={OLD}"), &format!("By={OLD}"), "200exit 0"])?;
    // And back to plain text, where one of them has no proxy.
    mesh.apply(&mode("default", "{mtls: {mode: PERMISSIVE}}"))?;
    mesh.apply(&STRANGER.replace("app: stranger", "app: stranger, member: yes-it-is"))?;
    mesh.kubectl(&["wait", "--for=condition=Ready", "pod/stranger", "--timeout=60s"])?;
    let ip = mesh.pod_address("default", "app=httpbin")?;
    let ask = format!("curl -s -m 5 -w %{{http_code}} --resolve members:80:{ip} http://members/headers");
    eventually("plain text", SOON, || {
        let said = mesh.kubectl(&["exec", "client", "-c", "client", "--", "bash", "-c", &ask])?;
        ensure!(said.ends_with("200") && !said.contains("URI="), "{said}");
        Ok(())
    })?;
    clean(mesh, &["stranger"])
}

/// Status of a request that a workload of another mesh sends to `ADDRESS:PORT`, from the node; 000 where there is no answer.
pub(crate) fn from_elsewhere(pki: &Pki, name: &str, address: &str) -> Result<String> {
    let out = Command::new("curl")
        .args(["-s", "-k", "-m", "5", "-o", "/dev/null", "-w", "%{http_code}", "--http1.1"])
        .args(["--cert", &pki.file(&format!("{name}.crt")), "--key", &pki.file(&format!("{name}.key"))])
        .arg(format!("https://{address}/headers"))
        .output()?;
    Ok(String::from_utf8_lossy(&out.stdout).into_owned())
}

/// Workloads of another mesh, which has a root of its own, call ours and are called. Its root vouches for its own domain alone.
fn another_mesh_is_trusted(mesh: &Mesh) -> Result<()> {
    let other = Pki::new()?;
    other.workload("far", "spiffe://other.example/ns/far/sa/far")?;
    other.workload("pretends", "spiffe://cluster.local/ns/default/sa/default")?;
    let (far, pretends) = (other.serve("far")?, other.serve("pretends")?);
    echo::up(mesh)?;
    mesh.apply(&mode("default", "{mtls: {mode: STRICT}}"))?;
    for (name, port, identity) in [
        ("far", far.port, "spiffe://other.example/ns/far/sa/far"),
        ("pretends", pretends.port, "spiffe://cluster.local/ns/default/sa/default"),
    ] {
        mesh.apply(&format!(
            r#"
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {{ name: {name}, namespace: default }}
spec:
  hosts: [{name}.example]
  resolution: STATIC
  ports: [{{ number: 80, name: http, protocol: HTTP }}]
  endpoints: [{{ address: 10.244.0.1, ports: {{ http: {port} }} }}]
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {{ name: {name}, namespace: default }}
spec:
  host: {name}.example
  trafficPolicy: {{ tls: {{ mode: ISTIO_MUTUAL, subjectAltNames: ["{identity}"] }} }}
"#
        ))?;
    }
    let address = format!("{}:80", mesh.pod_address("default", "app=httpbin")?);
    let called = |name: &str, wanted: &str| {
        eventually(&format!("{name} from elsewhere is answered {wanted}"), SOON, || {
            let status = from_elsewhere(&other, name, &address)?;
            ensure!(status == wanted, "{status}");
            Ok(())
        })
    };
    let calls = |name: &str, wanted: &str| {
        echo::becomes(
            mesh,
            &format!("-o /dev/null --resolve {name}.example:80:240.0.0.9 http://{name}.example/"),
            wanted,
        )
    };
    let ours = || echo::becomes(mesh, "http://httpbin:8000/headers", " 200");
    ours()?;
    called("far", "000")?;
    called("pretends", "000")?;
    calls("far", " 503")?;
    calls("pretends", " 503")?;

    let mesh_config = MeshConfig::of(mesh)?;
    let pem = std::fs::read_to_string(other.file("ca.crt"))?;
    let anchors = serde_json::json!([{ "pem": pem, "trustDomains": ["other.example"] }]);
    let trusting = format!("trustDomainAliases: [other.example]\ncaCertificates: {anchors}\n");
    mesh_config.add(&trusting)?;
    called("far", "200")?;
    calls("far", " 200")?;
    called("pretends", "000")?;
    calls("pretends", " 503")?;
    ours()?;
    // Roots without the alias: nobody of that domain may call. It may be called where a rule names it.
    mesh_config.add(&format!("caCertificates: {anchors}\n"))?;
    called("far", "000")?;
    ours()?;
    mesh_config.set(mesh_config.before())?;
    calls("far", " 503")?;
    ours()?;
    mesh.kubectl(&["delete", "serviceentry,peerauthentication", "--all", "-n", "default"])?;
    echo::down(mesh, "")
}
