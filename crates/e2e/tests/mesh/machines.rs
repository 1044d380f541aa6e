//! A machine that is no pod: a network namespace with files of `lateen x workload entry configure`, an application and
//! `lateen-proxy machine` (T17, A4). The steps are those of the course's lab.

use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lateen_e2e::mesh::bin_dir;
use lateen_e2e::{Mesh, eventually};

use crate::OnMesh;
use crate::authorizers::MeshConfig;
use crate::pki::Pki;
use crate::trust_domains::from_elsewhere;

pub(crate) const TRIALS: &[OnMesh] = &[
    ("a_machine_joins", a_machine_joins),
    ("a_machine_of_another_authority", a_machine_of_another_authority),
];

const SOON: Duration = Duration::from_secs(40);
/// The machine's network: neither pods' nor services'.
const ADDRESS: &str = "192.168.77.2";
const GATEWAY: &str = "192.168.77.1";
const LINK: &str = "machine-e2e";
const ENTRY: &str = "shop-192.168.77.2";

/// The machine. Dropping it removes everything.
struct Machine {
    root: tempfile::TempDir,
    /// What keeps its namespaces.
    computer: Child,
    envoy: bool,
    application: Option<Child>,
    proxy: Option<Child>,
}

fn sh(script: &str) -> Result<String> {
    let out = Command::new("bash").args(["-euo", "pipefail", "-c", script]).output()?;
    let said = String::from_utf8_lossy(&out.stdout).into_owned();
    ensure!(out.status.success(), "{script}: {said}{}", String::from_utf8_lossy(&out.stderr));
    Ok(said)
}

/// Ends a process as a service manager would.
fn end(process: &mut Option<Child>) -> Result<()> {
    if let Some(mut child) = process.take() {
        sh(&format!("kill {}", child.id()))?;
        child.wait()?;
    }
    Ok(())
}

impl Machine {
    /// Brings the machine up: its network, and the files where a machine has them.
    fn new(mesh: &Mesh, files: &Path) -> Result<Self> {
        // Its networks and mounts are its own. `ip netns` is left to the cluster: it mounts over what the cluster has in /run/netns.
        let idle = "mount --bind $0/hosts /etc/hosts; mount --bind $0/resolv.conf /etc/resolv.conf; echo up; exec sleep infinity";
        let root = tempfile::tempdir()?;
        let (folder, files) = (root.path().display().to_string(), files.display());
        sh(&format!(
            "cd {folder}; mkdir -p etc/certs etc/istio/config var/lib/istio/envoy var/run/secrets/tokens
             cp {files}/root-cert.pem etc/certs/
             cp {files}/istio-token var/run/secrets/tokens/
             cp {files}/cluster.env var/lib/istio/envoy/
             cp {files}/mesh.yaml etc/istio/config/mesh
             {{ echo 127.0.0.1 localhost; cat {files}/hosts; }} > hosts
             # Nobody answers there: names of the mesh come from the proxy.
             echo nameserver {GATEWAY} > resolv.conf"
        ))?;
        let mut computer = Command::new("unshare")
            .args(["--net", "--mount", "bash", "-euc", idle, &folder])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()?;
        let mut up = [0; 3];
        computer.stdout.take().context("no output")?.read_exact(&mut up)?;
        let machine = Self {
            root,
            computer,
            envoy: mesh.engine == lateen_e2e::Engine::Envoy,
            application: None,
            proxy: None,
        };
        let id = machine.computer.id();
        sh(&format!(
            "ip link del {LINK} 2>/dev/null || true
             ip link add {LINK} type veth peer name eth0 netns {id}
             ip addr add {GATEWAY}/24 dev {LINK}; ip link set {LINK} up
             nsenter -t {id} -n bash -euc 'ip link set lo up; ip addr add {ADDRESS}/24 dev eth0; ip link set eth0 up; ip route add default via {GATEWAY}'"
        ))?;
        Ok(machine)
    }

    fn file(&self, name: &str) -> PathBuf {
        self.root.path().join(name)
    }

    fn inside(&self) -> Command {
        let mut command = Command::new("nsenter");
        command.args(["-t", &self.computer.id().to_string(), "-n", "-m"]);
        command
    }

    fn start(&self, program: &str, arguments: &[&str]) -> Result<Child> {
        let log = File::options().append(true).create(true).open(self.file(&format!("{program}.log")))?;
        let mut command = self.inside();
        command.arg(bin_dir()?.join(program)).args(arguments);
        command.env("LATEEN_ENGINE", if self.envoy { "envoy" } else { "lateen" });
        command.stdin(Stdio::null()).stderr(log.try_clone()?).stdout(log);
        Ok(command.spawn()?)
    }

    fn start_application(&mut self) -> Result<()> {
        self.application = Some(self.start("lateen-samples", &["httpbin", "--port", "8080"])?);
        Ok(())
    }

    fn start_proxy(&mut self) -> Result<()> {
        let root = self.root.path().display().to_string();
        self.proxy = Some(self.start("lateen-proxy", &["machine", "--root", &root])?);
        Ok(())
    }

    fn run(&self, command: &str) -> Result<String> {
        let out = self.inside().args(["sh", "-c", command]).output()?;
        Ok(String::from_utf8_lossy(&out.stdout).into_owned())
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.file("lateen-proxy.log")).unwrap_or_default()
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        for process in [&mut self.proxy, &mut self.application] {
            if let Err(error) = end(process) {
                eprintln!("the machine: {error:#}");
            }
        }
        // Its end of the network goes with it.
        let ended = self.computer.kill().and_then(|()| self.computer.wait());
        if let Err(error) = ended {
            eprintln!("the machine: {error}");
        }
    }
}

/// What the client's pod gets from the machine's service: body and status.
fn ask(mesh: &Mesh, path: &str) -> Result<String> {
    let command = format!("curl -s -m 5 -w ' %{{http_code}}' http://shop.vms{path}");
    mesh.kubectl(&["exec", "client", "-c", "client", "--", "sh", "-c", &format!("{command} || true")])
}

fn becomes(mesh: &Mesh, what: &str, path: &str, wanted: &[&str]) -> Result<String> {
    eventually(what, SOON, || {
        let said = ask(mesh, path)?;
        ensure!(wanted.iter().all(|part| said.contains(part)), "{said}");
        Ok(said)
    })
}

fn entry(mesh: &Mesh, path: &str) -> Result<String> {
    mesh.kubectl(&["get", "we", "-n", "vms", ENTRY, "--ignore-not-found", "-o", &format!("jsonpath={path}")])
}

/// What a machine is to have, its group and the service before it, and pods to call each other.
fn prepared(mesh: &Mesh) -> Result<tempfile::TempDir> {
    mesh.apply_fixture("echo.yaml")?;
    mesh.kubectl(&["wait", "--for=condition=Available", "deploy/httpbin", "--timeout=60s"])?;
    mesh.kubectl(&["wait", "--for=condition=Ready", "pod/client", "--timeout=60s"])?;
    let files = tempfile::tempdir()?;
    let work = files.path().display();
    mesh.lab("", "kubectl create ns vms; kubectl create sa vm -n vms; kubectl create sa other -n vms")?;
    mesh.lab(
        "",
        &format!(
            "istioctl x workload group create --name shop --namespace vms --labels app=shop --ports http=8080 --serviceAccount vm > {work}/group.yaml
             sed -i 's/^spec:/spec:\\n  probe:\\n    periodSeconds: 1\\n    failureThreshold: 2\\n    httpGet:\\n      path: \\/status\\/200\\n      port: 8080/' {work}/group.yaml
             kubectl apply -f {work}/group.yaml"
        ),
    )?;
    mesh.apply(
        "apiVersion: v1\nkind: Service\nmetadata: { name: shop, namespace: vms }\nspec: { selector: { app: shop }, ports: [{ name: http, port: 80, targetPort: 8080 }] }\n---\n\
         apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: { name: strict, namespace: vms }\nspec: { mtls: { mode: STRICT } }\n",
    )?;
    // What reaches the control plane from the machine's network, in the place of an east-west gateway.
    let istiod =
        mesh.kubectl(&["get", "svc", "-n", "istio-system", "istiod", "-o", "jsonpath={.spec.clusterIP}"])?;
    let said = mesh.lab(
        "",
        &format!("istioctl x workload entry configure -f {work}/group.yaml -o {work} --autoregister --clusterID Kubernetes --ingressIP {istiod} --internalIP {ADDRESS}"),
    )?;
    ensure!(said.contains("was successful"), "{said}");
    Ok(files)
}

/// Sees to a machine, and clears up after it.
fn with_machine(mesh: &Mesh, trial: impl FnOnce(&Mesh, &mut Machine) -> Result<()>) -> Result<()> {
    let files = prepared(mesh)?;
    let mut machine = Machine::new(mesh, files.path())?;
    let outcome = trial(mesh, &mut machine);
    if outcome.is_err() {
        eprintln!("--- the machine's proxy\n{}", machine.log());
        eprintln!("{}", mesh.kubectl(&["get", "we", "-n", "vms", "-o", "yaml"]).unwrap_or_default());
    }
    drop(machine);
    outcome?;
    mesh.kubectl(&["delete", "pod", "client", "--grace-period=1"])?;
    mesh.kubectl(&["delete", "ns", "vms", "--wait=true", "--timeout=60s"])?;
    mesh.kubectl(&["delete", "deploy,svc,dr", "--all", "-n", "default", "--wait=false"]).map(drop)
}

fn a_machine_joins(mesh: &Mesh) -> Result<()> {
    with_machine(mesh, on_the_machine)
}

/// Another authority signs for all workloads, and another mesh is trusted: the machine has a certificate of the one, comes back with it, and
/// lets the other in; and none of it when that is over.
fn a_machine_of_another_authority(mesh: &Mesh) -> Result<()> {
    let (signer, other) = (Pki::new()?, Pki::new()?);
    other.workload("far", "spiffe://other.example/ns/far/sa/far")?;
    other.workload("pretends", "spiffe://cluster.local/ns/default/sa/default")?;
    signer.secret(mesh, "kube-system", "signer-foo", "ca")?;
    let domain = "clusterissuers.lateen.io";
    let roots = |pki: &Pki| std::fs::read_to_string(pki.file("ca.crt"));
    let signers = serde_json::json!({"pem": roots(&signer)?, "certSigners": [format!("{domain}/foo")]});
    let anchor = serde_json::json!({"pem": roots(&other)?, "trustDomains": ["other.example"]});
    let mesh_config = MeshConfig::of(mesh)?;
    let alone = format!("caCertificates: [{signers}]\n");
    mesh_config
        .add(&format!("trustDomainAliases: [other.example]\ncaCertificates: [{signers}, {anchor}]\n"))?;
    mesh.lab("../csr-signers", "kubectl apply -f rbac.yaml")?;
    let set = |variables: &str| {
        mesh.lab("", &format!("kubectl set env -n istio-system deploy/istiod {variables}"))?;
        mesh.kubectl(&["rollout", "status", "-n", "istio-system", "deploy/istiod", "--timeout=60s"])
    };
    set(&format!(
        "EXTERNAL_CA=ISTIOD_RA_KUBERNETES_API K8S_SIGNER={domain}/foo CERT_SIGNER_DOMAIN={domain}"
    ))?;
    let outcome = with_machine(mesh, |mesh, machine| {
        machine.start_application()?;
        machine.start_proxy()?;
        let said = becomes(mesh, "the machine answers pods", "/headers", &[" 200"])?;
        ensure!(said.contains("By=spiffe://cluster.local/ns/vms/sa/vm"), "{said}");
        let chain = machine.file("etc/certs/cert-chain.pem").display().to_string();
        sh(&format!("openssl verify -CAfile {} {chain}", signer.file("ca.crt")))?;
        called(&other, "far", "200")?;
        called(&other, "pretends", "000")?;

        // Back without a token: the control plane takes what its signer signed, and is known as before.
        std::fs::remove_file(machine.file("var/run/secrets/tokens/istio-token"))?;
        end(&mut machine.proxy)?;
        becomes(mesh, "nobody is there", "/get", &[" 503"])?;
        machine.start_proxy()?;
        becomes(mesh, "it is back", "/get", &[" 200"])?;
        called(&other, "far", "200")?;

        mesh_config.add(&alone)?;
        called(&other, "far", "000")?;
        ensure!(!machine.file("etc/certs/trust-domains.json").exists(), "it trusts others still");
        becomes(mesh, "its own mesh reaches it", "/get", &[" 200"]).map(drop)
    });
    drop(mesh_config);
    mesh.kubectl(&["delete", "clusterrole,clusterrolebinding", "istiod-csr"])?;
    mesh.kubectl(&["delete", "secret", "-n", "kube-system", "signer-foo"])?;
    set("EXTERNAL_CA- CERT_SIGNER_DOMAIN- K8S_SIGNER-")?;
    outcome
}

/// Until a workload of another mesh gets this from the machine.
fn called(other: &Pki, name: &str, wanted: &str) -> Result<()> {
    eventually(&format!("{name} is answered {wanted}"), SOON, || {
        let status = from_elsewhere(other, name, &format!("{ADDRESS}:8080"))?;
        ensure!(status == wanted, "{status}");
        Ok(())
    })
}

fn on_the_machine(mesh: &Mesh, machine: &mut Machine) -> Result<()> {
    // Another account's token: the machine is not let in.
    let token_file = machine.file("var/run/secrets/tokens/istio-token");
    let token = std::fs::read_to_string(&token_file)?;
    let other = mesh.kubectl(&["create", "token", "-n", "vms", "other", "--audience=istio-ca"])?;
    std::fs::write(&token_file, other)?;
    machine.start_application()?;
    machine.start_proxy()?;
    eventually("the machine with another's token is refused", SOON, || {
        let log = mesh.kubectl(&["logs", "-n", "istio-system", "deploy/istiod", "--tail=50"])?;
        ensure!(log.contains("the token is of service account vms/other"), "{log}");
        Ok(())
    })?;
    ensure!(entry(mesh, "{.metadata.name}")?.is_empty(), "it has an entry");
    end(&mut machine.proxy)?;
    std::fs::remove_dir_all(machine.file("etc/certs")).context("certificates of the other account")?;
    std::fs::create_dir(machine.file("etc/certs"))?;
    let roots = mesh.kubectl(&[
        "get",
        "cm",
        "-n",
        "vms",
        "istio-ca-root-cert",
        "-o",
        "jsonpath={.data.root-cert\\.pem}",
    ])?;
    std::fs::write(machine.file("etc/certs/root-cert.pem"), roots)?;
    std::fs::write(&token_file, token)?;

    // With its own it registers, and pods reach it with its identity and theirs.
    machine.start_proxy()?;
    let said = becomes(mesh, "the machine answers pods", "/headers", &[" 200"])?;
    for part in ["By=spiffe://cluster.local/ns/vms/sa/vm", "URI=spiffe://cluster.local/ns/default/sa/"] {
        ensure!(said.contains(part), "{part}: {said}");
    }
    ensure!(entry(mesh, "{.spec.address}")? == ADDRESS);
    ensure!(entry(mesh, "{.status.conditions[?(@.type==\"Healthy\")].status}")? == "True");
    let plain = sh(&format!("curl -s -m 5 http://{ADDRESS}:8080/get || echo exit $?"))?;
    ensure!(plain.contains("exit 56") || plain.contains("exit 52"), "plain text is not accepted: {plain}");
    let status = mesh.lateen(&["proxy-status"])?;
    ensure!(status.contains(".vms"), "{status}");

    // It calls services of the mesh by their names.
    eventually("the machine calls a service by name", SOON, || {
        let said = machine
            .run("curl -s -m 5 -w ' %{http_code}' http://httpbin.default.svc.cluster.local:8000/headers")?;
        ensure!(said.contains("URI=spiffe://cluster.local/ns/vms/sa/vm") && said.ends_with(" 200"), "{said}");
        Ok(())
    })?;

    // Its application stops, and starts again.
    end(&mut machine.application)?;
    becomes(mesh, "an unhealthy machine gets nothing", "/get", &["no healthy upstream", " 503"])?;
    let problem = entry(mesh, "{.status.conditions[?(@.type==\"Healthy\")].message}")?;
    ensure!(problem.contains("refused"), "{problem}");
    machine.start_application()?;
    becomes(mesh, "a healthy one does", "/get", &[" 200"])?;

    // The machine goes away, and comes back without a token: it has a certificate.
    std::fs::remove_file(&token_file)?;
    end(&mut machine.proxy)?;
    eventually("its entry goes", SOON, || {
        ensure!(entry(mesh, "{.metadata.name}")?.is_empty(), "still there");
        Ok(())
    })?;
    becomes(mesh, "nobody is there", "/get", &[" 503"])?;
    machine.start_proxy()?;
    becomes(mesh, "it is back", "/get", &[" 200"])?;
    Ok(())
}
