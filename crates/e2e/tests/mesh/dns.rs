//! The sidecar answers its application's DNS queries (T24, T16).

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lateen_e2e::{Mesh, eventually};

use crate::OnMesh;

pub(crate) const TRIALS: &[OnMesh] = &[("names_of_the_mesh", names_of_the_mesh)];

const SOON: Duration = Duration::from_secs(30);
/// Nobody has it (RFC 2544's range).
const DEAD_RESOLVER: &str = "198.18.0.53";

/// Two ServiceEntries without an address that have bytes on one port.
fn entries(far: &str, near: &str) -> String {
    let entry = |name: &str, address: &str| {
        format!(
            "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {{ name: {name} }}\nspec:\n  hosts: [{name}.example.com]\n  \
             resolution: STATIC\n  endpoints: [{{ address: {address} }}]\n  ports: [{{ number: 9100, name: tcp, protocol: TCP, targetPort: 8080 }}]\n---\n"
        )
    };
    [entry("one", far), entry("two", near)].concat()
}

/// A client with DNS capture whose only resolver is dead; the control plane's address it has from `/etc/hosts`.
fn lonely(istiod: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata:\n  name: lonely\n  annotations:\n    \
         proxy.istio.io/config: '{{\"proxyMetadata\": {{\"ISTIO_META_DNS_CAPTURE\": \"true\"}}}}'\nspec:\n  dnsPolicy: None\n  \
         dnsConfig: {{ nameservers: [{DEAD_RESOLVER}], searches: [default.svc.cluster.local, svc.cluster.local], options: [{{ name: ndots, value: \"5\" }}, {{ name: timeout, value: \"1\" }}, {{ name: attempts, value: \"1\" }}] }}\n  \
         hostAliases: [{{ ip: {istiod}, hostnames: [istiod.istio-system.svc] }}]\n  containers:\n    - name: client\n      image: curlimages/curl\n      \
         command: [\"/bin/sh\", \"-c\", \"sleep infinity\"]\n"
    )
}

/// What a command in a client's container says, then its exit code.
fn run(mesh: &Mesh, pod: &str, command: &str) -> Result<String> {
    let command = format!("{command}; echo \"exit $?\"");
    let out = mesh.kubectl_output(&["exec", pod, "-c", "client", "--", "sh", "-c", &command])?;
    Ok(String::from_utf8_lossy(&out.stdout).trim().to_owned())
}

fn address_of(mesh: &Mesh, pod: &str, name: &str) -> Result<String> {
    let said = run(mesh, pod, &format!("getent ahostsv4 {name}"))?;
    ensure!(said.ends_with("exit 0"), "{pod}: {name}: {said}");
    Ok(said.split_whitespace().next().unwrap_or_default().to_owned())
}

fn names_of_the_mesh(mesh: &Mesh) -> Result<()> {
    mesh.apply_fixture("dns.yaml")?;
    mesh.kubectl(&[
        "wait",
        "-n",
        "outside",
        "--for=condition=Ready",
        "pod/far",
        "pod/near",
        "--timeout=60s",
    ])?;
    let field = |kind: &str, namespace: &str, name: &str, path: &str| {
        mesh.kubectl(&["get", kind, "-n", namespace, name, "-o", &format!("jsonpath={path}")])
    };
    let far = field("pod", "outside", "far", "{.status.podIP}")?;
    let near = field("pod", "outside", "near", "{.status.podIP}")?;
    let istiod = field("svc", "istio-system", "istiod", "{.spec.clusterIP}")?;
    mesh.apply(&entries(&far, &near))?;
    mesh.apply(&lonely(&istiod))?;
    mesh.kubectl(&["wait", "--for=condition=Ready", "pod/caller", "pod/lonely", "--timeout=60s"])?;
    for pod in ["caller", "lonely"] {
        entries_by_name(mesh, pod).with_context(|| format!("entries in {pod}"))?;
        // Trials before this one may have deleted it with all others: the cluster brings it back.
        let kubernetes = eventually("the Service kubernetes", SOON, || {
            field("svc", "default", "kubernetes", "{.spec.clusterIP}")
        })?;
        for name in [
            "kubernetes",
            "kubernetes.default",
            "kubernetes.default.svc",
            "kubernetes.default.svc.cluster.local",
        ] {
            ensure!(address_of(mesh, pod, name)? == kubernetes, "{pod}: {name}");
        }
        let members = address_of(mesh, pod, "far-pods.outside")?;
        ensure!(members == far, "a headless service stands for its pods: {members}");
    }
    let status = mesh.lateen(&["proxy-status"])?;
    ensure!(
        status.matches("caller.default").count() == 1,
        "each proxy is listed once, also beside Envoy: {status}"
    );
    // What the mesh does not have is asked of the pod's resolvers: what they know, and that they know it does not exist.
    ensure!(address_of(mesh, "caller", "hidden.outside.svc.cluster.local")?.starts_with("10.96."), "hidden");
    let missing = run(mesh, "caller", "getent ahostsv4 missing.default.svc.cluster.local")?;
    ensure!(missing == "exit 2", "{missing}");
    let unheard = run(mesh, "lonely", "getent ahostsv4 hidden.outside.svc.cluster.local.")?;
    ensure!(unheard == "exit 2", "{unheard}");
    mesh.kubectl(&["delete", "se", "--all", "-n", "default", "--wait=false"])?;
    eventually("names go with their entries", SOON, || {
        let said = run(mesh, "lonely", "getent ahostsv4 one.example.com.")?;
        ensure!(said == "exit 2", "{said}");
        Ok(())
    })?;
    mesh.kubectl(&["delete", "pod", "caller", "lonely", "--grace-period=1", "--wait=true"])?;
    mesh.kubectl(&["delete", "namespace", "outside", "--wait=true", "--timeout=60s"]).map(drop)
}

/// Two TCP entries on one port are told apart by the addresses their names stand for, which are those in their status.
fn entries_by_name(mesh: &Mesh, pod: &str) -> Result<()> {
    for (name, version) in [("one", "far"), ("two", "near")] {
        let url = format!("http://{name}.example.com:9100/");
        eventually(&url, SOON, || {
            let said = run(mesh, pod, &format!("curl -s -m 5 {url}"))?;
            ensure!(said.contains(&format!("\"version\":\"{version}\"")), "not from {version}: {said}");
            Ok(())
        })?;
        let status = mesh.kubectl(&["get", "se", name, "-o", "jsonpath={.status.addresses[0].value}"])?;
        let address = address_of(mesh, pod, &format!("{name}.example.com"))?;
        ensure!(address == status && address.starts_with("240.240."), "{address}, in the status {status}");
    }
    Ok(())
}
