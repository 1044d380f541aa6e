//! Workloads' certificates from other authorities, by the Kubernetes CSR API: `samples/csr-signers` (S2, S3).
use std::time::Duration;

use crate::OnMesh;
use crate::authorizers::MeshConfig;
use crate::mutual_tls::mode;
use crate::pki::Pki;
use anyhow::{Context, Result, ensure};
use lateen_e2e::{Mesh, eventually};
use serde_json::json;

pub(crate) const TRIALS: &[OnMesh] = &[("other_authorities_sign", other_authorities_sign)];

const SOON: Duration = Duration::from_secs(40);
const HTTP: &str = "curl -s -m 5 -w %{http_code} http://httpbin:8000/headers";

/// A client whose certificate a signer of its choice makes.
fn client(name: &str, signer: &str) -> String {
    let metadata = format!("{{proxyMetadata: {{SECRET_TTL: 20s, ISTIO_META_CERT_SIGNER: {signer}}}}}");
    let pod = json!({"apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "labels": {"app": name}, "annotations": {"proxy.istio.io/config": metadata}},
        "spec": {"containers": [{"name": "client", "image": "curlimages/curl", "command": ["/bin/sh", "-c", "sleep infinity"]}]}});
    pod.to_string()
}

fn says(mesh: &Mesh, pod: &str, command: &str) -> Result<String> {
    let script = format!("{command} 2>&1; echo exit $?");
    mesh.kubectl(&["exec", pod, "-c", "client", "--", "sh", "-c", &script])
}

/// The roots a workload trusts, by its proxy's own dump.
fn trusts(mesh: &Mesh, pod: &str, pki: &Pki) -> Result<bool> {
    let script = format!(
        "istioctl proxy-config secret {pod} -o json | jq -r '.. | .trustedCa? // .trusted_ca? | select(. != null) | .inlineBytes // .inline_bytes' \
         | head -n1 | base64 -d | openssl x509 -noout -fingerprint -sha256; openssl x509 -noout -fingerprint -sha256 -in {}",
        pki.file("ca.crt")
    );
    let said = mesh.lab("", &script)?;
    let lines: Vec<_> = said.lines().collect();
    ensure!(lines.len() == 2, "{said}");
    Ok(lines[0] == lines[1])
}

fn log_says(mesh: &Mesh, pod: &str, wanted: &str) -> Result<()> {
    eventually(&format!("{pod} says {wanted}"), SOON, || {
        let log = mesh.kubectl(&["logs", pod, "-c", "istio-proxy", "--tail=50"])?;
        ensure!(log.contains(wanted), "{log}");
        Ok(())
    })
}

fn other_authorities_sign(mesh: &Mesh) -> Result<()> {
    let (first, second) = (Pki::new()?, Pki::new()?);
    first.secret(mesh, "kube-system", "signer-foo", "ca")?;
    second.secret(mesh, "kube-system", "signer-bar", "ca")?;
    let mesh_config = MeshConfig::of(mesh)?;
    let domain = "clusterissuers.lateen.io";
    let root = |pki: &Pki, name: &str| {
        let pem = std::fs::read_to_string(pki.file("ca.crt"))?;
        Ok::<_, anyhow::Error>(json!({"pem": pem, "certSigners": [format!("{domain}/{name}")]}))
    };
    mesh_config
        .add(&format!("caCertificates: {}\n", json!([root(&first, "foo")?, root(&second, "bar")?])))?;
    mesh.lab("../csr-signers", "kubectl apply -f rbac.yaml")?;
    let set = |variables: &str| {
        mesh.lab("", &format!("kubectl set env -n istio-system deploy/istiod {variables}"))?;
        mesh.kubectl(&["rollout", "status", "-n", "istio-system", "deploy/istiod", "--timeout=60s"])
    };
    set(&format!(
        "EXTERNAL_CA=ISTIOD_RA_KUBERNETES_API CERT_SIGNER_DOMAIN={domain} K8S_SIGNER={domain}/foo"
    ))?;
    mesh.apply(&mode("default", "{mtls: {mode: STRICT}}"))?;
    mesh.apply_fixture("echo.yaml")?;
    for (name, signer) in [("renewing", "foo"), ("foreign", "bar"), ("nobodys", "nobody")] {
        mesh.apply(&client(name, signer))?;
    }
    mesh.kubectl(&["wait", "--for=condition=Available", "deploy", "--all", "--timeout=60s"])?;
    mesh.kubectl(&[
        "wait",
        "--for=condition=Ready",
        "pod/client",
        "pod/renewing",
        "pod/foreign",
        "--timeout=60s",
    ])?;

    // Of one authority: mutual TLS, with the identity as ever; the mesh's own root has no part in it.
    for pod in ["client", "renewing"] {
        let said = eventually("an answer", SOON, || {
            let said = says(mesh, pod, HTTP)?;
            ensure!(said.contains("200exit 0"), "{said}");
            Ok(said)
        })?;
        ensure!(said.contains("URI=spiffe://cluster.local/ns/default/sa/default"), "{said}");
        ensure!(trusts(mesh, pod, &first)? && !trusts(mesh, pod, &second)?, "{pod} trusts foo, and not bar");
    }
    // Of another: no mutual trust.
    ensure!(trusts(mesh, "foreign", &second)?, "foreign trusts bar");
    let said = says(mesh, "foreign", HTTP)?;
    ensure!(said.contains("503exit 0"), "{said}");
    // Of none: the caller hears it.
    log_says(
        mesh,
        "nobodys",
        "was not signed within 5 s: is there a signer clusterissuers.lateen.io/nobody",
    )?;

    // Renewed at half of 20 s, with nothing left behind at the API server.
    let serial = || -> Result<String> {
        let table = mesh.lab("", "istioctl proxy-config secret renewing")?;
        let row = table.lines().find(|line| line.starts_with("default ")).context("no certificate")?;
        row.split_whitespace().nth(5).map(str::to_owned).with_context(|| table.clone())
    };
    let first = serial()?;
    eventually("another certificate", SOON, || {
        ensure!(serial()? != first, "{first}");
        Ok(())
    })?;
    ensure!(says(mesh, "renewing", HTTP)?.contains("200exit 0"));
    mesh.kubectl(&["delete", "pod", "nobodys", "--grace-period=1"])?;
    eventually("no request is left", SOON, || {
        let left = mesh.kubectl(&["get", "csr", "-o", "name"])?;
        ensure!(left.is_empty(), "{left}");
        Ok(())
    })?;

    // A signer that fails, and a control plane without the right to approve.
    let broken = json!({"apiVersion": "v1", "kind": "Secret", "type": "kubernetes.io/tls",
        "metadata": {"name": "signer-bar", "namespace": "kube-system"}, "stringData": {"tls.crt": "no", "tls.key": "no"}});
    mesh.apply(&broken.to_string())?;
    mesh.apply(&client("failing", "bar"))?;
    log_says(mesh, "failing", "could not be signed: SignerValidationFailure: Secret kube-system/signer-bar")?;
    let no_approving = r#"[{"op": "remove", "path": "/rules/2"}]"#;
    mesh.kubectl(&["patch", "clusterrole", "istiod-csr", "--type=json", "-p", no_approving])?;
    log_says(mesh, "failing", "user not permitted to approve requests with signerName")?;

    mesh.kubectl(&["delete", "pod", "client", "renewing", "foreign", "failing", "--grace-period=1"])?;
    mesh.kubectl(&["delete", "deploy,svc,dr,peerauthentication", "--all", "-n", "default"])?;
    mesh.kubectl(&["delete", "clusterrole,clusterrolebinding", "istiod-csr"])?;
    mesh.kubectl(&["delete", "secret", "-n", "kube-system", "signer-foo", "signer-bar"])?;
    set("EXTERNAL_CA- CERT_SIGNER_DOMAIN- K8S_SIGNER-").map(drop)
}
