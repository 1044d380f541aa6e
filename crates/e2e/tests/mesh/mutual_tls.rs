//! Mutual TLS between workloads: the course's lab, the modes of PeerAuthentication, certificates that are renewed under load
//! (S1, S3, S4, S5).

use std::time::{Duration, Instant};

use crate::pki::Pki;
use crate::{OnMesh, loss, mixed};
use anyhow::{Context, Result, ensure};
use lateen_e2e::web::{Ask, Reply};
use lateen_e2e::{Load, Mesh, eventually};
use serde_json::{Value, json};

pub(crate) const TRIALS: &[OnMesh] = &[
    ("mtls_lab", mtls_lab),
    ("identities_and_modes", identities_and_modes),
    ("certificates_change_under_load", certificates_change_under_load),
];

const SOON: Duration = Duration::from_secs(30);

fn page(mesh: &Mesh, host: Option<&str>) -> Result<(u16, String)> {
    let ask = Ask::get(format!("http://{}/", mesh.gateway()?));
    let reply = match host {
        Some(host) => ask.header("host", host).send()?,
        None => ask.send()?,
    };
    Ok((reply.status, reply.body))
}

/// The lab, sidecar mode, command by command.
fn mtls_lab(mesh: &Mesh) -> Result<()> {
    let lab = |script: &str| mesh.lab("mtls", script);
    lab("kubectl apply -f gateway.yaml")?;
    lab("kubectl label namespace default istio-injection-")?;
    lab("kubectl apply -f web-frontend.yaml")?;
    lab("kubectl rollout status deploy/web-frontend --timeout=60s")?;
    let pods = lab("kubectl get pods")?;
    ensure!(pods.lines().any(|line| line.starts_with("web-frontend") && line.contains("1/1")), "{pods}");
    lab("kubectl label namespace default istio-injection=enabled")?;
    lab("kubectl apply -f customers-v1.yaml")?;
    lab("kubectl rollout status deploy/customers-v1 --timeout=60s")?;
    let pods = lab("kubectl get pods")?;
    ensure!(pods.lines().any(|line| line.starts_with("customers") && line.contains("2/2")), "{pods}");

    // PERMISSIVE: the page, whose customers come in plain text, and customers from the gateway, which speaks mutual TLS.
    let works = |host: Option<&str>| {
        eventually("the page works", SOON, || {
            let (status, body) = page(mesh, host)?;
            ensure!(status == 200, "{status} {body}");
            Ok(body)
        })
    };
    let customers = Some("customers.default.svc.cluster.local");
    works(None)?;
    works(customers)?;

    lab("kubectl apply -f strict-mtls.yaml")?;
    eventually("web-frontend is refused", SOON, || {
        let (status, body) = page(mesh, None)?;
        ensure!(status != 200, "{body}");
        ensure!(body.contains("ECONNRESET"), "{status} {body}");
        Ok(())
    })?;
    let curl =
        "kubectl exec deploy/web-frontend -- sh -c 'curl -sS -m 5 http://customers/ 2>&1; echo exit $?'";
    let said = lab(curl)?;
    ensure!(said.contains("exit 56") && said.contains("Connection reset by peer"), "{said}");
    works(customers).context("whoever has a certificate is served")?;

    lab("kubectl delete peerauthentication default")?;
    works(None)?;
    lab("kubectl delete deploy,svc,vs,gateway --all")?;
    Ok(())
}

/// What a command prints in a pod, and its exit code.
fn run(mesh: &Mesh, pod: &str, command: &str) -> Result<String> {
    let script = format!("{command} 2>&1; echo exit $?");
    mesh.kubectl(&["exec", pod, "-c", "client", "--", "sh", "-c", &script])
}

fn becomes(mesh: &Mesh, pod: &str, command: &str, wanted: &str) -> Result<String> {
    eventually(&format!("{command} in {pod} says {wanted}"), SOON, || {
        let said = run(mesh, pod, command)?;
        ensure!(said.contains(wanted), "{said}");
        Ok(said)
    })
}

pub(crate) fn mode(namespace: &str, spec: &str) -> String {
    format!(
        "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {{name: trial, namespace: {namespace}}}\nspec: {spec}\n"
    )
}

pub(crate) const STRANGER: &str = "
apiVersion: v1
kind: Pod
metadata: { name: stranger, labels: { app: stranger, sidecar.istio.io/inject: 'false' } }
spec:
  containers: [{ name: client, image: curlimages/curl, command: [/bin/sh, -c, sleep infinity] }]
";

const HTTP: &str = "curl -s -m 5 http://httpbin:8000/headers";
const TCP: &str = "bash -c 'exec 3<>/dev/tcp/echo/9000; echo hello >&3; timeout 3 head -n1 <&3'";

#[expect(clippy::disallowed_methods, reason = "there is nothing to wait for but that nothing happens")]
fn identities_and_modes(mesh: &Mesh) -> Result<()> {
    mesh.apply_fixture("echo.yaml")?;
    mesh.apply(STRANGER)?;
    mesh.kubectl(&["wait", "--for=condition=Available", "deploy", "--all", "--timeout=60s"])?;
    mesh.kubectl(&["wait", "--for=condition=Ready", "pod/client", "pod/stranger", "--timeout=60s"])?;

    // Who calls is proven: the server's proxy says so to its application.
    let id = "spiffe://cluster.local/ns/default/sa/default";
    let said = becomes(mesh, "client", HTTP, "exit 0")?;
    ensure!(said.contains(&format!("URI={id}")) && said.contains(&format!("By={id}")), "{said}");
    let said = becomes(mesh, "stranger", HTTP, "exit 0")?;
    ensure!(!said.to_lowercase().contains("forwarded-client-cert"), "{said}");
    becomes(mesh, "client", TCP, "hello")?;
    becomes(mesh, "stranger", TCP, "hello")?;

    // Whoever has no certificate is reset, at declared ports and at others; pods stay ready.
    mesh.apply(&mode("istio-system", "{mtls: {mode: STRICT}}"))?;
    let said = becomes(mesh, "stranger", "curl -sS -m 5 http://httpbin:8000/headers", "exit 56")?;
    ensure!(said.contains("Connection reset by peer"), "{said}");
    let ip = mesh.pod_address("default", "app=echo,version=v1")?;
    let said = run(mesh, "stranger", &format!("curl -sS -m 5 http://{}:8123/", ip.trim()))?;
    ensure!(said.contains("exit 56"), "{said}");
    let said = run(mesh, "client", HTTP)?;
    ensure!(said.contains(&format!("URI={id}")), "{said}");
    ensure!(run(mesh, "client", TCP)?.contains("hello"));

    // Three failed probes, a second apart, would be enough.
    std::thread::sleep(Duration::from_secs(5));
    let pods = mesh.kubectl(&["get", "pods", "-l", "app in (echo, httpbin)"])?;
    ensure!(pods.matches(" 2/2 ").count() == 3, "the kubelet's probes pass: {pods}");

    // A port of a workload, before the namespace and the mesh.
    mesh.apply(&mode(
        "default",
        "{selector: {matchLabels: {app: httpbin}}, mtls: {mode: STRICT}, portLevelMtls: {'80': {mode: DISABLE}}}",
    ))?;
    becomes(mesh, "stranger", HTTP, "exit 0")?;
    let said = becomes(mesh, "client", HTTP, "exit 0")?;
    ensure!(!said.to_lowercase().contains("forwarded-client-cert"), "plain text: {said}");
    becomes(mesh, "stranger", TCP, "exit").and_then(|said| {
        ensure!(!said.contains("hello"), "{said}");
        Ok(())
    })?;

    // A client that insists where nothing is accepted.
    mesh.apply("apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {name: insist}\nspec: {host: httpbin, trafficPolicy: {tls: {mode: ISTIO_MUTUAL}}}\n")?;
    becomes(mesh, "client", "curl -s -m 5 -o /dev/null -w %{http_code} http://httpbin:8000/headers", "503")?;
    mesh.kubectl(&["delete", "peerauthentication", "-A", "--all"])?;
    becomes(mesh, "client", HTTP, "exit 0")?;
    mesh.kubectl(&["delete", "dr", "insist"])?;

    let keys = mesh.lab("", "kubectl exec client -c istio-proxy -- curl -s localhost:15000/config_dump")?;
    ensure!(keys.contains("ROOTCA") && !keys.contains("PRIVATE"), "a key is shown");
    mesh.kubectl(&["delete", "pod", "client", "stranger", "--grace-period=1"])?;
    mesh.kubectl(&["delete", "deploy,svc,dr", "--all", "-n", "default", "--wait=false"]).map(drop)
}

/// Serial number of a workload's certificate, by the table of `proxy-config secret`.
fn serial(mesh: &Mesh, workload: &str) -> Result<String> {
    let table = mesh.lab("", &format!("istioctl proxy-config secret {workload}"))?;
    let header = "RESOURCE NAME     TYPE           STATUS     VALID CERT     SERIAL NUMBER";
    let words = |line: &str| line.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
    ensure!(words(&table).starts_with(&words(header)), "{table}");
    let row = table.lines().find(|line| line.starts_with("default ")).with_context(|| table.clone())?;
    ensure!(table.contains("ROOTCA") && row.contains("true"), "{table}");
    words(row).get(5).cloned().with_context(|| table.clone())
}

/// How long certificates change under load: until a few have come, or for so many seconds (`make soak`).
const SOAK: &str = "LATEEN_SOAK_SECONDS";

/// Certificates of ten seconds, renewed at half of that, on both ends of a steady load, with many new connections.
fn certificates_change_under_load(mesh: &Mesh) -> Result<()> {
    let soak = std::env::var(SOAK).ok().map(|text| text.parse().context(SOAK)).transpose()?;
    let ask = loss::demo(mesh)?;
    let patch = r#"{"spec":{"template":{"metadata":{"annotations":{"proxy.istio.io/config":"{proxyMetadata: {SECRET_TTL: 10s}}"}}}}}"#;
    let workloads = ["deploy/web-frontend", "deploy/customers-v1"];
    for name in workloads {
        mesh.kubectl(&["patch", name, "-p", patch])?;
        mesh.kubectl(&["rollout", "status", name, "--timeout=60s"])?;
    }
    mesh.apply(&mode("default", "{mtls: {mode: STRICT}}"))?;
    let short = r#"{"spec":{"trafficPolicy":{"connectionPool":{"http":{"maxRequestsPerConnection":5}}}}}"#;
    mesh.kubectl(&["patch", "dr", "customers", "--type=merge", "-p", short])?;
    mesh.apply("apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {name: short}\nspec: {host: web-frontend, trafficPolicy: {connectionPool: {http: {maxRequestsPerConnection: 5}}}}\n")?;
    eventually("the page works", SOON, || {
        let reply = ask.send()?;
        ensure!(reply.status == 200, "{reply:?}");
        Ok(())
    })?;
    let mut seen = workloads.map(|_| Vec::new());
    let mut look = || -> Result<usize> {
        for (name, seen) in workloads.iter().zip(&mut seen) {
            let now = serial(mesh, name)?;
            if seen.last() != Some(&now) {
                seen.push(now);
            }
        }
        Ok(seen.iter().map(Vec::len).min().unwrap_or_default())
    };
    let (load, began) = (Load::start(ask, 50, |_: &Reply| String::new()), Instant::now());
    match soak.map(Duration::from_secs) {
        None => eventually("three more certificates", Duration::from_secs(40), || {
            let count = look()?;
            ensure!(count >= 4, "{count}");
            Ok(())
        })?,
        Some(soak) => {
            let mut count = 0;
            while began.elapsed() < soak {
                count = look()?;
                std::thread::park_timeout(Duration::from_secs(1));
            }
            // One each five seconds or so.
            ensure!(count as u64 >= soak.as_secs() / 8, "{count} certificates in {soak:?}");
        }
    }
    let report = load.stop()?;
    let seconds = began.elapsed().as_secs();
    println!("{seconds} s: {} requests, {} failed, {} certificates", report.sent, report.failed, look()?);
    report.lossless()?;
    mesh.kubectl(&["delete", "peerauthentication/trial", "dr/short"])?;
    loss::clean(mesh)
}

/// What `x ca status` tells of the mesh.
fn authority(mesh: &Mesh) -> Result<Value> {
    Ok(serde_json::from_str(&mesh.lab("", "istioctl x ca status -o json")?)?)
}

/// The mesh's root changes, first for another of its own, then for one that was made elsewhere, with an authority below it.
/// Connections between sidecars are mutual TLS by themselves, and many are new.
pub(crate) fn the_root_changes(mesh: &Mesh) -> Result<mixed::Excuse> {
    mesh.apply("apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {name: short}\nspec: {host: echo, trafficPolicy: {connectionPool: {http: {maxRequestsPerConnection: 5}}}}\n")?;
    let before = authority(mesh)?;
    let root = |status: &Value| status["roots"][0].as_str().map(str::to_owned).context("no root");
    let all_of = |status: &Value| {
        let root = root(status)?;
        ensure!(
            status["rotation"] == "settled"
                && status["roots"].as_array().is_some_and(|roots| roots.len() == 1),
            "{status}"
        );
        let workloads = status["workloads"].as_array().context("no workloads")?;
        ensure!(workloads.len() >= 3, "{status}");
        for workload in workloads {
            ensure!(workload["certificateOf"] == root && workload["trusts"] == json!([root]), "{workload}");
        }
        Ok(root)
    };
    let first = all_of(&before)?;
    let said = mesh.lab("", "istioctl x ca rotate --timeout 120")?;
    for step in ["[1/3]", "[2/3]", "[3/3]", "The mesh's root is now"] {
        ensure!(said.contains(step), "{said}");
    }
    let second = all_of(&authority(mesh)?)?;
    ensure!(first != second, "{said}");
    ensure!(mesh.lab("", "istioctl x ca rotate --abandon").is_err(), "there is nothing to abandon");

    let pki = Pki::new()?;
    pki.authority("mesh")?;
    let [root_cert, cert, key] = ["ca.crt", "mesh.crt", "mesh.key"].map(|name| pki.file(name));
    // A key of another certificate is refused before anything changes.
    let files =
        |key: &str| format!("--ca-cert {cert} --ca-key {key} --cert-chain {cert} --root-cert {root_cert}");
    let mixed_up = mesh.lab("", &format!("istioctl x ca rotate {}", files(&pki.file("ca.key"))));
    let mixed_up = format!("{:#}", mixed_up.err().context("a key of another certificate")?);
    ensure!(mixed_up.contains("not the key"), "{mixed_up}");
    mesh.lab("", &format!("istioctl x ca rotate --timeout 120 {}", files(&key)))?;
    let third = all_of(&authority(mesh)?)?;
    ensure!(second != third && third != first);
    let table = mesh.lab("", "istioctl x ca status")?;
    ensure!(table.contains(&third) && !table.contains(&first), "{table}");

    // Pods that come later have it from the beginning.
    mesh.kubectl(&["scale", "deploy/echo", "--replicas=3"])?;
    mesh.kubectl(&["rollout", "status", "deploy/echo", "--timeout=60s"])?;
    let later = authority(mesh)?;
    ensure!(all_of(&later)? == third, "{later}");
    mesh.kubectl(&["delete", "dr", "short"])?;
    Ok(mixed::Excuse::default())
}
