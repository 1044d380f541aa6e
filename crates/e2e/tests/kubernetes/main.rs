//! The control plane and both proxies against a stock kube-apiserver, with etcd and kube-controller-manager (S2, M12): what the
//! embedded API server is held to, and what only a real one does. Needs root; `make kubernetes` builds the programs.
//!
//! Everything is in a network, file system and process namespace of its own. There is no kubelet and no kube-proxy: the test says
//! for pods that they run, and starts the programs that their specifications name with what these ask for.

mod cluster;

use std::process::{Command, ExitCode};

use anyhow::{Context, Result, ensure};
use cluster::{ADDRESS, Kubernetes, Program, SOON, as_proxy_user, base64, script};
use lateen_e2e::{eventually, web};
use lateen_pki::{CertificateAuthority, SigningRequest};
use serde_json::{Value, json};

const INSIDE: &str = "LATEEN_KUBERNETES_INSIDE";

fn main() -> ExitCode {
    if std::env::var_os(INSIDE).is_none() {
        return match outside() {
            Ok(true) => ExitCode::SUCCESS,
            Ok(false) => ExitCode::FAILURE,
            Err(error) => {
                eprintln!("{error:#}");
                ExitCode::FAILURE
            }
        };
    }
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error:?}");
            ExitCode::FAILURE
        }
    }
}

/// Runs this program again where it has everything to itself, and ends with it.
fn outside() -> Result<bool> {
    let mut command = Command::new("unshare");
    command.args(["--mount", "--net", "--pid", "--fork", "--kill-child", "--mount-proc"]);
    let status = command
        .arg(std::env::current_exe()?)
        .env(INSIDE, "1")
        .status()
        .context("cannot run unshare (package util-linux)")?;
    Ok(status.success())
}

fn run() -> Result<()> {
    let cluster = Kubernetes::start()?;
    checks(&cluster).map_err(|error| error.context(cluster.last_words()))
}

/// Name and body.
type Check = (&'static str, fn(&Kubernetes) -> Result<()>);

fn checks(cluster: &Kubernetes) -> Result<()> {
    let said = |what: &str| println!("test {what} ... ok");
    let objects = lateen_manifests::render(&lateen_manifests::Options::default());
    install(cluster, &objects)?;
    said("manifests_are_accepted");
    let istiod = control_plane(cluster, &[])?;
    let checks: [Check; 6] = [
        ("roots_are_in_every_namespace", roots),
        ("webhooks_have_their_authority_and_refuse", webhooks),
        ("pods_are_injected", injection),
        ("status_is_written", status),
        ("sidecars_are_configured_by_both_engines", sidecars),
        ("gateways_have_secrets_and_serve", gateways),
    ];
    for (name, check) in checks {
        check(cluster).with_context(|| format!("{name}\n{}", istiod.last_words()))?;
        said(name);
    }
    nothing_is_forbidden(&istiod)?;
    drop(istiod);
    said("roles_are_enough");
    signers(cluster)?;
    said("the_real_signer_is_heard_and_another_signs");
    Ok(())
}

/// The manifests as `lateen up` applies them; the API server must find nothing to warn about.
fn install(cluster: &Kubernetes, objects: &[Value]) -> Result<()> {
    let crds: Vec<Value> =
        objects.iter().filter(|object| object["kind"] == "CustomResourceDefinition").cloned().collect();
    cluster.apply(&objects[..1])?;
    cluster.apply(&crds)?;
    cluster.kubectl(&["wait", "--for=condition=Established", "crd", "--all", "--timeout=60s"])?;
    let stored = cluster.get(&["crd"])?;
    let stored = stored["items"].as_array().context("no CRDs")?;
    ensure!(stored.len() == crds.len(), "{} of {}", stored.len(), crds.len());
    for crd in stored {
        let conditions = crd["status"]["conditions"].as_array().context("no conditions")?;
        ensure!(
            conditions.iter().all(|condition| condition["type"] != "NonStructuralSchema"
                && (condition["type"] != "NamesAccepted" || condition["status"] == "True")),
            "{conditions:?}"
        );
    }
    cluster.apply(objects)?;
    Ok(())
}

/// The control plane as its Deployment has it: its account's token bound to its pod, its user, no rights; its Service leads to it.
fn control_plane(cluster: &Kubernetes, environment: &[(&str, &str)]) -> Result<Program> {
    let pod = cluster.pod_of("istio-system", "app=istiod")?;
    cluster.runs("istio-system", &pod)?;
    let token = cluster.token("istio-system", &pod, None)?;
    let kubeconfig = cluster.kubeconfig("istiod", &json!({ "token": token }))?;
    let mut command = as_proxy_user(&lateen_e2e::mesh::bin_dir()?.join("lateend"));
    command.args(["discovery", "--log-level", "info"]).current_dir("/");
    command.env("KUBECONFIG", kubeconfig).env("POD_NAMESPACE", "istio-system").env("POD_NAME", pod);
    command.envs(environment.iter().copied());
    let program = cluster.run("istiod", &mut command)?;
    eventually("the control plane is ready", SOON, || {
        let reply = web::Ask::get(format!("http://{ADDRESS}:8080/ready")).send()?;
        ensure!(reply.status == 200, "{reply:?}");
        Ok(())
    })
    .with_context(|| program.last_words())?;
    Ok(program)
}

fn roots(cluster: &Kubernetes) -> Result<()> {
    cluster.kubectl(&["create", "namespace", "late"])?;
    eventually("every namespace has the root certificate", SOON, || {
        let namespaces = cluster.get(&["namespaces"])?;
        for namespace in namespaces["items"].as_array().into_iter().flatten() {
            let name = namespace["metadata"]["name"].as_str().unwrap_or_default();
            // As with Istio: not in those of the cluster's own.
            if !name.starts_with("kube-") {
                cluster.get(&["configmap", "istio-ca-root-cert", "-n", name])?;
            }
        }
        Ok(())
    })
}

fn virtual_service(name: &str, destination: &str, weight: i64) -> Value {
    json!({ "apiVersion": "networking.istio.io/v1", "kind": "VirtualService", "metadata": { "name": name, "namespace": "default" },
        "spec": { "hosts": ["web"], "http": [{ "route": [{ "destination": { "host": destination, "subset": "v1" }, "weight": weight }] }] } })
}

fn webhooks(cluster: &Kubernetes) -> Result<()> {
    for kind in ["mutatingwebhookconfigurations", "validatingwebhookconfigurations"] {
        eventually("webhooks have their authority", SOON, || {
            let found = cluster.get(&[kind])?;
            for webhook in found["items"]
                .as_array()
                .into_iter()
                .flatten()
                .flat_map(|item| item["webhooks"].as_array())
                .flatten()
            {
                ensure!(webhook["clientConfig"]["caBundle"].is_string(), "{webhook}");
            }
            Ok(())
        })?;
    }
    // By the API server, the webhook's Service and its certificate.
    eventually("what makes no sense is refused", SOON, || {
        let Err(error) = cluster.apply(&[virtual_service("wrong", "web", -5)]) else {
            anyhow::bail!("accepted")
        };
        let text = format!("{error:#}");
        ensure!(text.contains("denied the request") && text.contains("weight"), "{text}");
        Ok(())
    })
}

fn injection(cluster: &Kubernetes) -> Result<()> {
    cluster.kubectl(&["label", "namespace", "default", "istio-injection=enabled"])?;
    let pod = json!({ "apiVersion": "v1", "kind": "Pod", "metadata": { "name": "web", "namespace": "default", "labels": { "app": "web" } },
        "spec": { "containers": [{ "name": "web", "image": "example/web", "ports": [{ "containerPort": 9080 }] }] } });
    let service = json!({ "apiVersion": "v1", "kind": "Service", "metadata": { "name": "web", "namespace": "default" },
        "spec": { "selector": { "app": "web" }, "ports": [{ "name": "http", "port": 80, "targetPort": 9080 }] } });
    cluster.apply(&[service])?;
    eventually("a pod with a proxy", SOON, || {
        cluster.apply(std::slice::from_ref(&pod))?;
        let made = cluster.get(&["pod", "web"])?;
        let names: Vec<&str> = made["spec"]["containers"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|container| container["name"].as_str())
            .collect();
        let injected =
            names.contains(&"istio-proxy") && made["spec"]["initContainers"][0]["name"] == "istio-init";
        if !injected {
            cluster.kubectl(&["delete", "pod", "web", "--force", "--grace-period=0"])?;
        }
        ensure!(injected, "{names:?}");
        Ok(())
    })?;
    cluster.runs("default", "web")?;
    // What is injected is accepted where nothing that is not hardened is, but for the init container's capability.
    let strict = "pod-security.kubernetes.io/enforce=restricted";
    cluster.kubectl(&["label", "namespace", "default", strict])?;
    let security = json!({ "allowPrivilegeEscalation": false, "capabilities": { "drop": ["ALL"] }, "runAsNonRoot": true,
        "seccompProfile": { "type": "RuntimeDefault" } });
    let mut hardened = pod;
    hardened["metadata"]["name"] = json!("hardened");
    hardened["metadata"]["labels"]["app"] = json!("hardened");
    hardened["spec"]["containers"][0]["securityContext"] = security;
    let error = cluster.apply(&[hardened]).err().context("NET_ADMIN is not restricted")?;
    let text = format!("{error:#}");
    ensure!(text.contains("istio-init") && !text.contains("istio-proxy"), "{text}");
    cluster.kubectl(&["label", "namespace", "default", "pod-security.kubernetes.io/enforce-"]).map(drop)
}

fn status(cluster: &Kubernetes) -> Result<()> {
    cluster.apply(&[virtual_service("lost", "web", 100)])?;
    eventually("the status says which subset is missing", SOON, || {
        let found = cluster.get(&["virtualservice.networking.istio.io", "lost"])?;
        ensure!(found["status"].to_string().contains("v1"), "{}", found["status"]);
        Ok(())
    })?;
    cluster.kubectl(&["delete", "virtualservice.networking.istio.io", "lost"]).map(drop)
}

/// Waits until a proxy is ready.
fn ready(proxy: &Program) -> Result<()> {
    eventually("the proxy is ready", SOON, || {
        let reply = web::Ask::get("http://127.0.0.1:15021/healthz/ready").send()?;
        ensure!(reply.status == 200, "{reply:?}");
        Ok(())
    })
    .with_context(|| proxy.last_words())
}

fn admin(path: &str) -> Result<String> {
    script(std::path::Path::new("/"), &format!("curl -sS -m 10 'http://127.0.0.1:15000{path}'"))
}

fn sidecars(cluster: &Kubernetes) -> Result<()> {
    for engine in ["lateen", "envoy"] {
        let proxy = cluster.proxy("default", "web", engine)?;
        ready(&proxy)?;
        // The certificate is of what the API server says that the token proves; the endpoint is of its own EndpointSlice.
        eventually(&format!("{engine} has its certificate and its configuration"), SOON, || {
            let certificates = admin("/certs")?;
            ensure!(certificates.contains("spiffe://cluster.local/ns/default/sa/default"), "{certificates}");
            let clusters = admin("/clusters")?;
            let line = format!("outbound|80||web.default.svc.cluster.local::{ADDRESS}:9080::");
            ensure!(clusters.contains(&line), "{clusters}");
            Ok(())
        })
        .with_context(|| proxy.last_words())?;
    }
    Ok(())
}

fn gateways(cluster: &Kubernetes) -> Result<()> {
    let (namespace, label) = ("istio-system", "istio=ingressgateway");
    script(
        cluster.folder.path(),
        "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj /CN=web.example -addext subjectAltName=DNS:web.example -days 1 -keyout web.key -out web.crt",
    )?;
    let file = |name: &str| std::fs::read_to_string(cluster.path(name));
    let credential = json!({ "apiVersion": "v1", "kind": "Secret", "type": "kubernetes.io/tls", "metadata": { "name": "web", "namespace": namespace },
        "data": { "tls.crt": base64(&file("web.crt")?), "tls.key": base64(&file("web.key")?) } });
    let gateway = json!({ "apiVersion": "networking.istio.io/v1", "kind": "Gateway", "metadata": { "name": "web", "namespace": "default" },
        "spec": { "selector": { "istio": "ingressgateway" }, "servers": [{ "hosts": ["web.example"],
            "port": { "number": 443, "name": "https", "protocol": "HTTPS" }, "tls": { "mode": "SIMPLE", "credentialName": "web" } }] } });
    let route = json!({ "apiVersion": "networking.istio.io/v1", "kind": "VirtualService", "metadata": { "name": "web", "namespace": "default" },
        "spec": { "hosts": ["web.example"], "gateways": ["web"], "http": [{ "directResponse": { "status": 207 } }] } });
    cluster.apply(&[credential, gateway, route])?;
    let pod = cluster.pod_of(namespace, label)?;
    cluster.runs(namespace, &pod)?;
    for engine in ["lateen", "envoy"] {
        let proxy = cluster.proxy(namespace, &pod, engine)?;
        ready(&proxy)?;
        // The Secret, which its account may read as the API server says (SubjectAccessReview), and the route.
        let ask = format!(
            "curl -sS -m 5 --cacert web.crt --resolve web.example:8443:{ADDRESS} -o /dev/null -w %{{http_code}} https://web.example:8443/"
        );
        eventually(&format!("{engine} serves"), SOON, || {
            let code = script(cluster.folder.path(), &ask)?;
            ensure!(code == "207", "{code}");
            Ok(())
        })
        .with_context(|| proxy.last_words())?;
    }
    Ok(())
}

/// The roles of the manifests are enough for all of the above.
fn nothing_is_forbidden(istiod: &Program) -> Result<()> {
    let log = istiod.log()?;
    let lines: Vec<&str> = log
        .lines()
        .filter(|line| line.to_lowercase().contains("forbidden") || line.contains(" 403"))
        .collect();
    ensure!(lines.is_empty(), "{}", lines.join("\n"));
    Ok(())
}

/// Kubernetes' own signer refuses what workloads' certificates are for, and they hear why; one of somebody else's signs.
fn signers(cluster: &Kubernetes) -> Result<()> {
    let domain = "clusterissuers.lateen.io";
    let rules =
        std::fs::read_to_string(lateen_e2e::mesh::repository().join("samples/csr-signers/rbac.yaml"))?;
    // As its comment says: the signers' names.
    let rules = rules
        .replace(&format!("\"{domain}/*\""), &format!("\"{domain}/*\", kubernetes.io/kube-apiserver-client"));
    std::fs::write(cluster.path("rbac.yaml"), rules)?;
    cluster.kubectl(&["apply", "-f", &cluster.path("rbac.yaml").display().to_string()])?;

    let real = "kubernetes.io/kube-apiserver-client";
    let istiod =
        control_plane(cluster, &[("EXTERNAL_CA", "ISTIOD_RA_KUBERNETES_API"), ("K8S_SIGNER", real)])?;
    let proxy = cluster.proxy("default", "web", "lateen")?;
    eventually("the workload hears why it has no certificate", SOON, || {
        let log = proxy.log()?;
        ensure!(log.contains("SignerValidationFailure"), "{log}");
        Ok(())
    })
    .with_context(|| istiod.last_words())?;
    drop((proxy, istiod));

    let authority = CertificateAuthority::generate("elsewhere")?;
    let signer = format!("{domain}/ours");
    let mesh = json!({ "caCertificates": [{ "pem": authority.root_pem(), "certSigners": [signer] }] });
    let config = json!({ "data": { "mesh": mesh.to_string() } });
    cluster.kubectl(&[
        "patch",
        "configmap",
        "istio",
        "-n",
        "istio-system",
        "--type=merge",
        "-p",
        &config.to_string(),
    ])?;
    let istiod =
        control_plane(cluster, &[("EXTERNAL_CA", "ISTIOD_RA_KUBERNETES_API"), ("K8S_SIGNER", &signer)])?;
    for engine in ["lateen", "envoy"] {
        let proxy = cluster.proxy("default", "web", engine)?;
        eventually(&format!("{engine} has a certificate of the other authority"), SOON, || {
            sign(cluster, &authority, &signer)?;
            let certificates = admin("/certs")?;
            ensure!(certificates.contains("spiffe://cluster.local/ns/default/sa/default"), "{certificates}");
            Ok(())
        })
        .with_context(|| format!("{}\n{}", proxy.last_words(), istiod.last_words()))?;
        ready(&proxy)?;
    }
    nothing_is_forbidden(&istiod)
}

/// What a signer does: signs what is approved.
fn sign(cluster: &Kubernetes, authority: &CertificateAuthority, signer: &str) -> Result<()> {
    let requests = cluster.get(&["csr"])?;
    for request in requests["items"].as_array().into_iter().flatten() {
        let approved = request["status"]["conditions"]
            .as_array()
            .into_iter()
            .flatten()
            .any(|condition| condition["type"] == "Approved");
        if request["spec"]["signerName"] != signer
            || !approved
            || request["status"]["certificate"].is_string()
        {
            continue;
        }
        let text = |pointer: &str| request.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
        let asked = SigningRequest::from_pem(&decoded(text("/spec/request"))?)?;
        let usages: Vec<String> = serde_json::from_value(request["spec"]["usages"].clone())?;
        let certificate = authority.issue_requested(&asked, &usages, std::time::Duration::from_secs(3600))?;
        let patch = json!({ "status": { "certificate": base64(&certificate) } }).to_string();
        cluster.kubectl(&[
            "patch",
            "csr",
            text("/metadata/name"),
            "--subresource=status",
            "--type=merge",
            "-p",
            &patch,
        ])?;
    }
    Ok(())
}

fn decoded(text: &str) -> Result<String> {
    use ::base64::Engine as _;
    Ok(String::from_utf8(::base64::engine::general_purpose::STANDARD.decode(text)?)?)
}
