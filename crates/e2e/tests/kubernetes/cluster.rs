//! etcd, kube-apiserver and kube-controller-manager as they are, in a network and file system of their own; and what a kubelet
//! would do, as far as it matters here: pods' addresses, environment, tokens.

use std::fs::{File, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lateen_e2e::eventually;
use serde_json::{Value, json};

/// This machine's address in the test's network: of the API server, the control plane and all pods.
pub(crate) const ADDRESS: &str = "10.99.0.1";
const NODE: &str = "here";
/// How long anything here may take.
pub(crate) const SOON: Duration = Duration::from_secs(60);

/// Certificates of the cluster and who has them: the API server, its administrator and the controllers.
const CERTIFICATES: &str = r#"
    openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj /CN=kubernetes -days 1 -keyout ca.key -out ca.crt
    sign() {
      openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj "$2" -keyout $1.key -out $1.csr
      openssl x509 -req -in $1.csr -CA ca.crt -CAkey ca.key -days 1 -out $1.crt -extfile <(printf "extendedKeyUsage=serverAuth,clientAuth\nsubjectAltName=IP:10.99.0.1,DNS:kubernetes.default.svc")
    }
    sign server /CN=kube-apiserver
    sign admin /O=system:masters/CN=admin
    sign controllers /CN=system:kube-controller-manager
    openssl genrsa -out accounts.key 2048
    openssl rsa -in accounts.key -pubout -out accounts.pub
"#;

/// What must be this test's own: a network with one address, and folders that proxies have at fixed places.
const SURROUNDINGS: &str = r#"
    ip link set lo up
    ip addr add 10.99.0.1/32 dev lo
    mount --make-rprivate /
    mount -t tmpfs tmpfs /run
    mkdir overlays
    mount -t tmpfs tmpfs overlays
    for place in etc var/lib; do
      mkdir -p overlays/$place/upper overlays/$place/work
      mount -t overlay overlay -o lowerdir=/$place,upperdir=$PWD/overlays/$place/upper,workdir=$PWD/overlays/$place/work /$place
    done
    mkdir -p /run/secrets/tokens /run/secrets/istio /etc/istio/pod /etc/istio/proxy /var/lib/istio/data
    chown 1337 /etc/istio/proxy /var/lib/istio/data
    echo "10.99.0.1 istiod.istio-system.svc" >>/etc/hosts
"#;

/// A program that is ended with the test.
pub(crate) struct Program {
    name: String,
    child: Child,
    log: PathBuf,
    /// How long it may take to end by itself.
    patience: Duration,
}

impl Program {
    /// What it has said.
    pub(crate) fn log(&self) -> Result<String> {
        Ok(std::fs::read_to_string(&self.log)?)
    }

    /// Its last words, for errors.
    pub(crate) fn last_words(&self) -> String {
        let log = self.log().unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        format!("{} said last:\n{}", self.name, lines[lines.len().saturating_sub(15)..].join("\n"))
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // As a kubelet ends it: an agent takes its Envoy along.
        let _ = Command::new("kill").arg(self.child.id().to_string()).status();
        let ended = eventually("an end", self.patience, || self.child.try_wait()?.context("not yet"));
        if ended.is_err() {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

/// The cluster.
pub(crate) struct Kubernetes {
    pub(crate) folder: tempfile::TempDir,
    programs: Vec<Program>,
}

impl Kubernetes {
    pub(crate) fn start() -> Result<Self> {
        let tools = tools()?;
        let folder = tempfile::tempdir()?;
        // For the programs that run as another user.
        script(folder.path(), "chmod 755 .")?;
        script(folder.path(), SURROUNDINGS)?;
        script(folder.path(), CERTIFICATES)?;
        let mut cluster = Self { folder, programs: Vec::new() };
        for user in ["admin", "controllers"] {
            let file = |kind| std::fs::read_to_string(cluster.path(&format!("{user}.{kind}")));
            let user_is = json!({ "client-certificate-data": base64(&file("crt")?), "client-key-data": base64(&file("key")?) });
            cluster.kubeconfig(user, &user_is)?;
        }
        let path = |name: &str| cluster.path(name).display().to_string();
        let apiserver = vec![
            "--etcd-servers=http://127.0.0.1:2379".to_owned(),
            format!("--advertise-address={ADDRESS}"),
            format!("--bind-address={ADDRESS}"),
            "--service-cluster-ip-range=10.96.0.0/16".to_owned(),
            format!("--tls-cert-file={}", path("server.crt")),
            format!("--tls-private-key-file={}", path("server.key")),
            format!("--client-ca-file={}", path("ca.crt")),
            "--service-account-issuer=https://kubernetes.default.svc".to_owned(),
            format!("--service-account-key-file={}", path("accounts.pub")),
            format!("--service-account-signing-key-file={}", path("accounts.key")),
            "--authorization-mode=Node,RBAC".to_owned(),
            // There is no kube-proxy: webhooks are asked at the endpoints of their Service.
            "--enable-aggregator-routing=true".to_owned(),
            format!("--cert-dir={}", path("apiserver")),
        ];
        let controllers = vec![
            format!("--kubeconfig={}", path("controllers.kubeconfig")),
            format!("--service-account-private-key-file={}", path("accounts.key")),
            format!("--root-ca-file={}", path("ca.crt")),
            format!("--cluster-signing-cert-file={}", path("ca.crt")),
            format!("--cluster-signing-key-file={}", path("ca.key")),
            // Each controller as its own account, which has its role.
            "--use-service-account-credentials".to_owned(),
            // Nobody says that the node is well.
            "--controllers=*,-node-lifecycle-controller,-taint-eviction-controller".to_owned(),
            "--leader-elect=false".to_owned(),
            "--secure-port=0".to_owned(),
        ];
        let etcd = vec![format!("--data-dir={}", path("etcd")), "--unsafe-no-fsync".to_owned()];
        for (name, arguments) in
            [("etcd", etcd), ("kube-apiserver", apiserver), ("kube-controller-manager", controllers)]
        {
            let mut program = cluster.run(name, Command::new(tools.join(name)).args(arguments))?;
            // They have nothing to lose.
            program.patience = Duration::ZERO;
            cluster.programs.push(program);
            if name == "kube-apiserver" {
                eventually("the API server is ready", SOON, || cluster.kubectl(&["get", "--raw", "/readyz"]))
                    .with_context(|| cluster.programs[1].last_words())?;
            }
        }
        // Pods are made only where this is there, and the controllers make it.
        eventually("accounts are made", SOON, || {
            cluster.kubectl(&["get", "serviceaccount", "default", "-n", "default"])
        })
        .with_context(|| cluster.programs[2].last_words())?;
        cluster.apply(&[json!({ "apiVersion": "v1", "kind": "Node", "metadata": { "name": NODE } })])?;
        Ok(cluster)
    }

    /// What happened, and the last words of all, for errors.
    pub(crate) fn last_words(&self) -> String {
        let events = self.kubectl(&["get", "events", "-A"]).unwrap_or_else(|error| format!("{error:#}"));
        let programs: Vec<String> = self.programs.iter().map(Program::last_words).collect();
        format!("{events}\n{}", programs.join("\n"))
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Starts a program with a log of its own.
    pub(crate) fn run(&self, name: &str, command: &mut Command) -> Result<Program> {
        let log = self.path(&format!("{name}.log"));
        let file = File::create(&log)?;
        // Proxies open it again, as `/dev/stdout` and as another user.
        file.set_permissions(Permissions::from_mode(0o666))?;
        let child = command
            .stdout(file.try_clone()?)
            .stderr(file)
            .spawn()
            .with_context(|| format!("cannot run {name}"))?;
        Ok(Program { name: name.to_owned(), child, log, patience: Duration::from_secs(20) })
    }

    /// Writes `NAME.kubeconfig` for who `user` says.
    pub(crate) fn kubeconfig(&self, name: &str, user: &Value) -> Result<PathBuf> {
        let authority = base64(&std::fs::read_to_string(self.path("ca.crt"))?);
        let config = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "it",
            "clusters": [{ "name": "it", "cluster": { "server": format!("https://{ADDRESS}:6443"), "certificate-authority-data": authority } }],
            "users": [{ "name": "it", "user": user }],
            "contexts": [{ "name": "it", "context": { "cluster": "it", "user": "it" } }],
        });
        let path = self.path(&format!("{name}.kubeconfig"));
        std::fs::write(&path, config.to_string())?;
        Ok(path)
    }

    /// kubectl as the administrator.
    pub(crate) fn kubectl(&self, arguments: &[&str]) -> Result<String> {
        let mut command = Command::new("kubectl");
        said(command.args(arguments).env("KUBECONFIG", self.path("admin.kubeconfig")))
    }

    /// An object, as it is.
    pub(crate) fn get(&self, arguments: &[&str]) -> Result<Value> {
        let text = self.kubectl(&[&["get"], arguments, &["-o", "json"]].concat())?;
        Ok(serde_json::from_str(&text)?)
    }

    /// Applies objects by the server, as `lateen up` does.
    pub(crate) fn apply(&self, objects: &[Value]) -> Result<String> {
        let file = self.path("objects.json");
        std::fs::write(&file, json!({ "apiVersion": "v1", "kind": "List", "items": objects }).to_string())?;
        self.kubectl(&["apply", "--server-side", "--force-conflicts", "-f", &file.display().to_string()])
    }

    /// What a scheduler and a kubelet say of a pod that runs, here at this machine's address.
    pub(crate) fn runs(&self, namespace: &str, pod: &str) -> Result<()> {
        let binding = json!({ "apiVersion": "v1", "kind": "Binding", "metadata": { "name": pod, "namespace": namespace },
            "target": { "apiVersion": "v1", "kind": "Node", "name": NODE } });
        let file = self.path("binding.json");
        std::fs::write(&file, binding.to_string())?;
        let bound = self.get(&["pod", pod, "-n", namespace])?["spec"]["nodeName"].is_string();
        if !bound {
            let path = format!("/api/v1/namespaces/{namespace}/pods/{pod}/binding");
            self.kubectl(&["create", "--raw", &path, "-f", &file.display().to_string()])?;
        }
        let conditions = ["PodScheduled", "Initialized", "ContainersReady", "Ready"]
            .map(|kind| json!({ "type": kind, "status": "True" }));
        let status = json!({ "status": { "phase": "Running", "podIP": ADDRESS, "podIPs": [{ "ip": ADDRESS }], "conditions": conditions } });
        self.kubectl(&[
            "patch",
            "pod",
            pod,
            "-n",
            namespace,
            "--subresource=status",
            "--type=merge",
            "-p",
            &status.to_string(),
        ])
        .map(drop)
    }

    /// The pod with a label, once it is there.
    pub(crate) fn pod_of(&self, namespace: &str, label: &str) -> Result<String> {
        eventually(&format!("a pod with {label}"), SOON, || {
            let pods = self.get(&["pods", "-n", namespace, "-l", label])?;
            pods["items"][0]["metadata"]["name"].as_str().map(str::to_owned).context("none yet")
        })
    }

    /// A token that is bound to a pod, as a kubelet asks for it.
    pub(crate) fn token(&self, namespace: &str, pod: &str, audience: Option<&str>) -> Result<String> {
        let object = self.get(&["pod", pod, "-n", namespace])?;
        let text =
            |pointer: &str| object.pointer(pointer).and_then(Value::as_str).unwrap_or_default().to_owned();
        let (account, uid) = (text("/spec/serviceAccountName"), text("/metadata/uid"));
        let mut arguments = vec!["create", "token", &account, "-n", namespace];
        arguments.extend([
            "--bound-object-kind",
            "Pod",
            "--bound-object-name",
            pod,
            "--bound-object-uid",
            &uid,
        ]);
        arguments.extend(audience.iter().flat_map(|audience| ["--audience", *audience]));
        Ok(self.kubectl(&arguments)?.trim().to_owned())
    }

    /// Starts a pod's proxy with the arguments, the environment and the files that the pod's own specification has for it.
    pub(crate) fn proxy(&self, namespace: &str, pod: &str, engine: &str) -> Result<Program> {
        let object = self.get(&["pod", pod, "-n", namespace])?;
        let containers = object["spec"]["containers"].as_array().context("no containers")?;
        let container = containers
            .iter()
            .find(|container| container["name"] == "istio-proxy")
            .context("the pod has no proxy")?;
        let field = |path: &str| match path {
            "status.hostIP" => ADDRESS.to_owned(),
            "status.podIPs" => ADDRESS.to_owned(),
            _ => object
                .pointer(&format!("/{}", path.replace('.', "/")))
                .and_then(Value::as_str)
                .unwrap_or_default()
                .to_owned(),
        };
        let mut environment: Vec<(String, String)> = Vec::new();
        for variable in container["env"].as_array().context("no environment")? {
            let value = match variable.pointer("/valueFrom/fieldRef/fieldPath").and_then(Value::as_str) {
                Some(path) => field(path),
                None => variable["value"].as_str().unwrap_or_default().to_owned(),
            };
            environment.push((variable["name"].as_str().unwrap_or_default().to_owned(), value));
        }
        environment.push(("LATEEN_ENGINE".to_owned(), engine.to_owned()));
        let arguments = container["args"].as_array().context("no arguments")?;
        let arguments: Vec<String> = arguments
            .iter()
            .filter_map(Value::as_str)
            .map(|argument| argument.replace("$(POD_NAMESPACE)", namespace))
            .collect();
        let root = self.get(&["configmap", "istio-ca-root-cert", "-n", namespace])?;
        let root = root["data"]["root-cert.pem"].as_str().context("no root certificate")?;
        std::fs::write("/run/secrets/istio/root-cert.pem", root)?;
        std::fs::write("/run/secrets/tokens/istio-token", self.token(namespace, pod, Some("istio-ca"))?)?;
        for key in ["labels", "annotations"] {
            let lines: Vec<String> = object["metadata"][key]
                .as_object()
                .into_iter()
                .flatten()
                .map(|(name, value)| format!("{name}={value}"))
                .collect();
            std::fs::write(format!("/etc/istio/pod/{key}"), lines.join("\n"))?;
        }
        script(Path::new("/"), "rm -rf /etc/istio/proxy/* /var/lib/istio/data/*")?;
        let mut command = as_proxy_user(&lateen_e2e::mesh::bin_dir()?.join("lateen-proxy"));
        command.args(arguments).env_clear().envs(environment).env("PATH", "/usr/bin:/bin").current_dir("/");
        command.env(
            "LATEEN_ENVOY_PATH",
            std::env::var("LATEEN_ENVOY_PATH").context("LATEEN_ENVOY_PATH: run `make kubernetes`")?,
        );
        self.run(&format!("{pod}-{engine}"), &mut command)
    }
}

/// A program as the mesh's containers run: as user 1337, without any capability or way to one.
pub(crate) fn as_proxy_user(program: &Path) -> Command {
    let mut command = Command::new("setpriv");
    command.args([
        "--reuid=1337",
        "--regid=1337",
        "--clear-groups",
        "--no-new-privs",
        "--bounding-set=-all",
        "--inh-caps=-all",
        "--",
    ]);
    command.arg(program);
    command
}

fn tools() -> Result<PathBuf> {
    let tools =
        PathBuf::from(std::env::var("LATEEN_TOOLS").unwrap_or_else(|_| "/var/cache/lateen/tools".to_owned()));
    let found = std::fs::read_dir(&tools)?
        .flatten()
        .map(|entry| entry.path())
        .find(|path| path.join("kube-apiserver").exists());
    found.with_context(|| format!("no Kubernetes in {}: run `make kubernetes`", tools.display()))
}

/// Runs a script in a folder.
pub(crate) fn script(folder: &Path, text: &str) -> Result<String> {
    said(Command::new("bash").args(["-euc", text]).current_dir(folder))
}

fn said(command: &mut Command) -> Result<String> {
    let Output { status, stdout, stderr } = command.output()?;
    ensure!(
        status.success(),
        "{command:?} ended with {status}:\n{}{}",
        String::from_utf8_lossy(&stdout),
        String::from_utf8_lossy(&stderr)
    );
    Ok(String::from_utf8_lossy(&stdout).into_owned())
}

pub(crate) fn base64(text: &str) -> String {
    use base64::Engine as _;
    base64::engine::general_purpose::STANDARD.encode(text)
}
