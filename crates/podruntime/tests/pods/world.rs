//! A cluster for the tests, and the programs inside its pods.

use std::{
    io::{Read, Write},
    net::{TcpListener, TcpStream, ToSocketAddrs},
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use k8s_openapi::{
    NamespaceResourceScope,
    api::core::v1::{Pod, ServiceAccount},
};
use kube::{
    Api, Client, Config, Resource,
    config::{KubeConfigOptions, Kubeconfig},
};
use lateen_apiserver::{ApiServer, ApiServerConfig};
use lateen_podruntime::{
    ImageMap, Names, Network, PROGRAMS, Runtime, RuntimeConfig, RuntimeHandle, host_setup, host_teardown,
};
use lateen_podstreams::{ContainerRef, ExecRequest, Output, PodBackend};
use serde_json::{Value, json};

const PREFIX: &str = "lt-test";
const PATIENCE: Duration = Duration::from_secs(30);

pub(crate) struct World {
    pub(crate) handle: RuntimeHandle,
    client: Client,
    api: ApiServer,
    state: PathBuf,
}

/// A container that serves its pod's name.
pub(crate) fn web_pod(port: u16) -> Value {
    json!({
        "name": "web", "image": "test/inside", "args": ["serve", port.to_string()],
        "readinessProbe": { "httpGet": { "path": "/", "port": port } }
    })
}

pub(crate) fn is_ready(pod: &Pod) -> bool {
    let conditions = pod.status.as_ref().and_then(|status| status.conditions.as_ref());
    conditions.into_iter().flatten().any(|condition| condition.type_ == "Ready" && condition.status == "True")
}

pub(crate) fn restarts(pod: &Pod) -> i32 {
    let statuses = pod.status.as_ref().and_then(|status| status.container_statuses.as_ref());
    statuses.into_iter().flatten().map(|status| status.restart_count).sum()
}

pub(crate) fn container_waiting(pod: &Pod) -> Option<&str> {
    let status = pod.status.as_ref()?.container_statuses.as_ref()?.first()?;
    status.state.as_ref()?.waiting.as_ref()?.reason.as_deref()
}

impl World {
    /// A cluster with its state in this directory.
    pub(crate) async fn start(state: PathBuf) -> Self {
        let names = Names::new(PREFIX).unwrap();
        let network = Network {
            node_ip: [10, 200, 0, 1].into(),
            pod_cidr: "10.200.0.0/17".parse().unwrap(),
            service_cidr: "10.200.128.0/17".parse().unwrap(),
            load_balancer_cidr: "10.201.0.0/24".parse().unwrap(),
            ipv6: None,
            cluster_domain: "cluster.local".to_owned(),
        };
        // Whatever a former run has left.
        host_teardown(&names, &state).await.unwrap();
        host_setup(&names, &network, &state).await.unwrap();
        let executable = std::env::current_exe().unwrap();
        let mut images = ImageMap::new(executable.parent().unwrap().to_path_buf());
        images.add(&format!("test/inside={} inside", executable.display())).unwrap();
        let config = RuntimeConfig {
            node_name: "node-1".to_owned(),
            names,
            network: network.clone(),
            state_dir: state.clone(),
            executable,
            images,
        };
        let runtime = Runtime::new(config).unwrap();
        let api = ApiServer::start(ApiServerConfig {
            service_cidr: network.service_cidr,
            ..ApiServerConfig::default()
        })
        .await
        .unwrap();
        let kubeconfig = Kubeconfig::from_yaml(&api.kubeconfig(&api.url()).unwrap()).unwrap();
        let config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await.unwrap();
        let client = Client::try_from(config).unwrap();
        let handle = runtime.start(client.clone()).await.unwrap();
        let world = Self { handle, client, api, state };
        let account = json!({ "metadata": { "name": "default" } });
        let accounts: Api<ServiceAccount> = world.api();
        // There is no controller here that makes it; some API servers do so themselves.
        let _ = accounts.create(&Default::default(), &serde_json::from_value(account).unwrap()).await;
        world
    }

    pub(crate) fn api<K>(&self) -> Api<K>
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>,
    {
        Api::namespaced(self.client.clone(), "default")
    }

    pub(crate) async fn create(&self, mut pod: Value) {
        pod["spec"]["nodeName"] = json!("node-1");
        pod["spec"]["serviceAccountName"] = json!("default");
        pod["spec"]["automountServiceAccountToken"] = json!(false);
        let pods: Api<Pod> = self.api();
        pods.create(&Default::default(), &serde_json::from_value(pod).unwrap()).await.unwrap();
    }

    pub(crate) async fn create_ready(&self, pod: Value) -> Pod {
        let name = pod["metadata"]["name"].as_str().unwrap().to_owned();
        self.create(pod).await;
        self.wait_pod(&name, is_ready).await
    }

    /// A ready pod that serves its name (container `web`), with a container `shell` beside. Each test has pods of its own, so that it can
    /// run alone.
    pub(crate) async fn create_with_shell(&self, name: &str) {
        let shell = json!({ "name": "shell", "image": "busybox", "command": ["sleep", "infinity"] });
        let containers = json!([web_pod(8080), shell]);
        self.create_ready(json!({ "metadata": { "name": name }, "spec": { "containers": containers } }))
            .await;
    }

    pub(crate) async fn wait_pod(&self, name: &str, wanted: impl Fn(&Pod) -> bool) -> Pod {
        let pods: Api<Pod> = self.api();
        let begun = tokio::time::Instant::now();
        loop {
            let pod = pods.get(name).await.unwrap();
            if wanted(&pod) {
                return pod;
            }
            assert!(begun.elapsed() < PATIENCE, "pod {name} is not as wanted: {:#?}", pod.status);
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    pub(crate) async fn until(&self, what: &str, mut holds: impl AsyncFnMut() -> bool) {
        let begun = tokio::time::Instant::now();
        while !holds().await {
            assert!(begun.elapsed() < PATIENCE, "waited in vain: {what}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Exit code and all output.
    pub(crate) async fn exec(&self, pod: &str, container: &str, command: &[&str]) -> (i32, String) {
        let target =
            ContainerRef { namespace: "default".into(), pod: pod.into(), container: container.into() };
        let command = command.iter().map(|word| (*word).to_owned()).collect();
        let mut session =
            self.handle.exec(target, ExecRequest { command, ..Default::default() }).await.unwrap();
        let mut text = String::new();
        while let Some(output) = session.output.recv().await {
            let (Output::Stdout(bytes) | Output::Stderr(bytes)) = output;
            text.push_str(&String::from_utf8_lossy(&bytes));
        }
        (session.exit.await.unwrap(), text)
    }

    /// A service of port 80 over these pods' port 8080, with a load balancer's address and a node port if it is `web`.
    pub(crate) async fn service(&self, name: &str, pods: &[&str]) {
        let public = name == "web";
        let service = json!({
            "apiVersion": "v1", "kind": "Service", "metadata": { "name": name },
            "spec": {
                "type": if public { "LoadBalancer" } else { "ClusterIP" },
                "ports": [{ "name": "http", "port": 80, "targetPort": 8080, "nodePort": if public { json!(30080) } else { Value::Null } }]
            }
        });
        let services: Api<k8s_openapi::api::core::v1::Service> = self.api();
        services.create(&Default::default(), &serde_json::from_value(service).unwrap()).await.unwrap();
        if public {
            let status = json!({ "status": { "loadBalancer": { "ingress": [{ "ip": "10.201.0.5" }] } } });
            services.patch_status(name, &Default::default(), &kube::api::Patch::Merge(status)).await.unwrap();
        }
        let mut endpoints = Vec::new();
        for pod in pods {
            let pod = self.wait_pod(pod, is_ready).await;
            endpoints.push(json!({ "addresses": [pod.status.unwrap().pod_ip.unwrap()], "conditions": { "ready": true } }));
        }
        let slice = json!({
            "metadata": { "name": name, "labels": { "kubernetes.io/service-name": name } },
            "addressType": "IPv4", "endpoints": endpoints, "ports": [{ "name": "http", "port": 8080, "protocol": "TCP" }]
        });
        let slices: Api<k8s_openapi::api::discovery::v1::EndpointSlice> = self.api();
        slices.create(&Default::default(), &serde_json::from_value(slice).unwrap()).await.unwrap();
    }

    /// How many folders with logs there are of pods of this name.
    pub(crate) fn logs_of(&self, pod: &str) -> usize {
        let entries = std::fs::read_dir(self.state.join("logs")).unwrap().flatten();
        let of_pod = format!("default_{pod}_");
        entries.filter(|entry| entry.file_name().to_string_lossy().starts_with(&of_pod)).count()
    }

    pub(crate) fn only_root_can_read(&self, directories: &[&str]) {
        use std::os::unix::fs::PermissionsExt;
        for directory in directories {
            let mode = std::fs::metadata(self.state.join(directory)).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o700, "{directory}");
        }
    }

    /// This program's path inside pods.
    pub(crate) fn me(&self) -> String {
        let executable = std::env::current_exe().unwrap();
        format!("{PROGRAMS}/{}", executable.file_name().unwrap().display())
    }

    pub(crate) async fn stop(self) {
        self.handle.stop().await;
        self.api.shutdown().await;
        clean_up(&self.state).await;
    }
}

/// What `lateen down` does, and a look whether it did.
pub(crate) async fn clean_up(state: &Path) {
    host_teardown(&Names::new(PREFIX).unwrap(), state).await.unwrap();
    let output = |program: &str, args: &[&str]| {
        String::from_utf8(Command::new(program).args(args).output().unwrap().stdout).unwrap()
    };
    assert!(!output("ip", &["link"]).contains(PREFIX));
    assert!(!output("ip", &["route"]).contains("10.200."));
    assert!(!output("nft", &["list", "tables"]).contains(PREFIX));
    let namespaces = std::fs::read_dir("/run/netns").into_iter().flatten().flatten();
    assert!(!namespaces.into_iter().any(|entry| entry.file_name().to_string_lossy().starts_with(PREFIX)));
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(!mounts.contains(state.to_str().unwrap()) && !mounts.contains(&format!("netns/{PREFIX}")));
    assert!(!state.join("pods").exists());
    let me = std::env::current_exe().unwrap().display().to_string();
    let marks = ["container-run", "98765", "inside serve"];
    let left: Vec<String> = std::fs::read_dir("/proc")
        .unwrap()
        .flatten()
        .filter_map(|entry| std::fs::read(entry.path().join("cmdline")).ok())
        .map(|line| String::from_utf8_lossy(&line).replace('\0', " "))
        .filter(|line| line.contains(&me) && marks.iter().any(|mark| line.contains(mark)))
        .collect();
    assert!(left.is_empty(), "{left:?}");
}

/// The programs inside pods.
pub(crate) fn inside(args: Vec<String>) {
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    match args.as_slice() {
        ["serve", port] => serve(port),
        ["get", url] => print!("{}", get(url)),
        ["rights"] => rights(),
        other => panic!("unknown program {other:?}"),
    }
}

/// What this process may do, by trying.
fn rights() {
    let tried = |what: &str, outcome: Result<(), std::io::Error>| match outcome {
        Ok(()) => println!("{what} yes"),
        Err(error) => println!("{what} {:?}", error.kind()),
    };
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    tried("mark", socket.set_mark(1337));
    let new_uts = nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWUTS);
    tried("unshare", new_uts.map_err(Into::into));
    tried("own-root", nix::unistd::chroot("/tmp").map_err(Into::into));
    // A thread, for which libraries try `clone3` first, and a socket like any other.
    tried("thread", std::thread::spawn(|| TcpListener::bind("127.0.0.1:0").map(drop)).join().unwrap());
}

fn serve(port: &str) {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap();
    let listener = TcpListener::bind(format!("0.0.0.0:{port}")).unwrap();
    println!("listening on {port}");
    for stream in listener.incoming() {
        let Ok(mut stream) = stream else { continue };
        if let Ok(peer) = stream.peer_addr() {
            println!("request from {}", peer.ip());
        }
        // All of it: what is left unread when the connection closes resets it, and the answer is lost.
        let (mut request, mut piece) = (Vec::new(), [0; 4096]);
        while !request.ends_with(b"\r\n\r\n") {
            match stream.read(&mut piece) {
                Ok(length) if length > 0 => request.extend_from_slice(&piece[..length]),
                _ => break,
            }
        }
        let body = format!("I am {name}");
        let _ = write!(
            stream,
            "HTTP/1.1 200 OK\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
            body.len()
        );
    }
}

/// The body of an answer, or the error as text.
pub(crate) fn get(url: &str) -> String {
    let rest = url.strip_prefix("http://").unwrap();
    let host = rest.split('/').next().unwrap();
    let address = if host.contains(':') { host.to_owned() } else { format!("{host}:80") };
    let attempt = || -> std::io::Result<String> {
        let address = address.to_socket_addrs()?.next().ok_or(std::io::ErrorKind::NotFound)?;
        let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(5))?;
        write!(stream, "GET / HTTP/1.1\r\nhost: {host}\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer.rsplit("\r\n").next().unwrap_or("").to_owned())
    };
    attempt().unwrap_or_else(|error| format!("error: {error}"))
}
