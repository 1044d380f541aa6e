//! The program as a user runs it, against a small stand-in for a cluster: a few objects, and port-forwards into two "pods"
//! that answer like a proxy's admin service and like the control plane.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Command, Output};
use std::sync::Arc;

use axum::Router;
use axum::extract::{Path, Request, State};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use futures::stream::BoxStream;
use hyper::body::Bytes;
use lateen_podstreams::{
    BoxFuture, ContainerRef, Duplex, ExecRequest, ExecSession, LogOptions, PodBackend, PodError,
    serve_port_forward,
};
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};

const POD: &str = "web-frontend-6d8f-x7p2q";

/// What listens inside pods: pod and port → a real port here.
struct Pods(BTreeMap<(&'static str, u16), SocketAddr>);

impl PodBackend for Pods {
    fn exec(&self, _: ContainerRef, _: ExecRequest) -> BoxFuture<'_, Result<ExecSession, PodError>> {
        Box::pin(async { Err(PodError::BadRequest("no exec here".into())) })
    }

    fn logs(
        &self,
        _: ContainerRef,
        _: LogOptions,
    ) -> BoxFuture<'_, Result<BoxStream<'static, Result<Bytes, PodError>>, PodError>> {
        Box::pin(async { Err(PodError::BadRequest("no logs here".into())) })
    }

    fn dial(&self, _: &str, pod: &str, port: u16) -> BoxFuture<'_, Result<Box<dyn Duplex>, PodError>> {
        let found = self.0.iter().find(|((name, listening), _)| *name == pod && *listening == port);
        let address = found.map(|(_, address)| *address);
        Box::pin(async move {
            let address = address.ok_or_else(|| PodError::Internal("connection refused".into()))?;
            let stream =
                TcpStream::connect(address).await.map_err(|error| PodError::Internal(error.to_string()))?;
            Ok(Box::new(stream) as Box<dyn Duplex>)
        })
    }
}

async fn serve(app: Router) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move { axum::serve(listener, app).await.unwrap() });
    address
}

fn answer(body: &'static str) -> axum::routing::MethodRouter {
    get(move || async move { body })
}

fn pod(name: &str, labels: Value) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": { "name": name, "labels": labels },
        "spec": { "containers": [{ "name": "app" }] },
        "status": { "conditions": [{ "type": "Ready", "status": "True" }] },
    })
}

fn list(kind: &str, api_version: &str, items: Vec<Value>) -> axum::Json<Value> {
    axum::Json(
        json!({ "apiVersion": api_version, "kind": format!("{kind}List"), "metadata": {}, "items": items }),
    )
}

fn not_found(what: &str) -> Response {
    let status = json!({
        "apiVersion": "v1", "kind": "Status", "metadata": {}, "status": "Failure", "reason": "NotFound", "code": 404,
        "message": format!("{what} not found"),
    });
    (http::StatusCode::NOT_FOUND, axum::Json(status)).into_response()
}

fn web() -> Value {
    pod(POD, json!({ "app": "web-frontend" }))
}

/// What `status` reads.
fn mesh_objects() -> Router<Arc<Pods>> {
    let deployment = json!({
        "metadata": { "name": "istiod" },
        "spec": { "replicas": 1, "selector": {}, "template": {} },
        "status": { "readyReplicas": 1 },
    });
    let gateway = json!({
        "apiVersion": "v1", "kind": "Service", "metadata": { "name": "istio-ingressgateway" },
        "status": { "loadBalancer": { "ingress": [{ "ip": "10.97.0.1" }] } },
    });
    let values = json!({ "global": { "proxy": { "engine": "envoy" } } }).to_string();
    let injector = json!({
        "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": "istio-sidecar-injector" },
        "data": { "values": values },
    });
    let message = json!({ "type": { "code": "IST0101" }, "level": "ERROR", "message": "host x not found" });
    let virtual_service = json!({
        "apiVersion": "networking.istio.io/v1", "kind": "VirtualService",
        "metadata": { "name": "customers", "namespace": "default" },
        "status": { "validationMessages": [message] },
    });
    let system = "/api/v1/namespaces/istio-system";
    Router::new()
        .route(
            "/apis/apps/v1/namespaces/istio-system/deployments",
            get(async || list("Deployment", "apps/v1", vec![deployment])),
        )
        .route("/api/v1/pods", get(async || list("Pod", "v1", vec![web()])))
        .route(&format!("{system}/services/istio-ingressgateway"), get(async || axum::Json(gateway)))
        .route(&format!("{system}/configmaps/istio-sidecar-injector"), get(async || axum::Json(injector)))
        .route(
            "/apis/networking.istio.io/v1/virtualservices",
            get(async || list("VirtualService", "networking.istio.io/v1", vec![virtual_service])),
        )
}

fn api(pods: Arc<Pods>) -> Router {
    let forward =
        async |State(pods): State<Arc<Pods>>,
               Path((namespace, pod)): Path<(String, String)>,
               request: Request| { serve_port_forward(request, pods, &namespace, &pod).await };
    let get_pod =
        async |Path((namespace, name)): Path<(String, String)>| match (namespace.as_str(), name.as_str()) {
            ("default", POD) => axum::Json(web()).into_response(),
            _ => not_found(&format!("pods {name:?}")),
        };
    let list_pods = async |Path(namespace): Path<String>| match namespace.as_str() {
        "istio-system" => list("Pod", "v1", vec![pod("istiod-1", json!({ "app": "istiod" }))]),
        _ => list("Pod", "v1", vec![web()]),
    };
    let get_deployment = async |Path((_, name)): Path<(String, String)>| {
        let selector = json!({ "matchLabels": { "app": "web-frontend" } });
        axum::Json(json!({
            "apiVersion": "apps/v1", "kind": "Deployment", "metadata": { "name": name },
            "spec": { "selector": selector, "template": {} },
        }))
    };
    mesh_objects()
        .route("/api/v1/namespaces/{namespace}/pods", get(list_pods))
        .route("/api/v1/namespaces/{namespace}/pods/{name}", get(get_pod))
        .route("/api/v1/namespaces/{namespace}/pods/{name}/portforward", get(forward).post(forward))
        .route("/apis/apps/v1/namespaces/{namespace}/deployments/{name}", get(get_deployment))
        .fallback(async |request: Request| not_found(request.uri().path()))
        .with_state(pods)
}

struct Cluster {
    kubeconfig: PathBuf,
    folder: tempfile::TempDir,
}

impl Cluster {
    async fn start() -> Self {
        let admin = Router::new()
            .route("/config_dump", answer(include_str!("dumps/config_dump.json")))
            .route("/clusters", answer(include_str!("dumps/clusters.json")));
        let syncz = r#"[{"proxy":"web-frontend-6d8f-x7p2q.default","cluster_id":"Kubernetes","istio_version":"0.1.0",
            "cluster_sent":"1","cluster_acked":"1","listener_sent":"2","listener_acked":"1"}]"#;
        let debug = Router::new().route("/debug/syncz", answer(syncz)).route("/version", answer("0.1.0"));
        let pods =
            BTreeMap::from([((POD, 15000), serve(admin).await), (("istiod-1", 15014), serve(debug).await)]);
        let server = serve(api(Arc::new(Pods(pods)))).await;
        let folder = tempfile::tempdir().unwrap();
        let kubeconfig = folder.path().join("config");
        let text = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "c",
            "clusters": [{ "name": "c", "cluster": { "server": format!("http://{server}") } }],
            "users": [{ "name": "u", "user": {} }],
            "contexts": [{ "name": "c", "context": { "cluster": "c", "user": "u" } }],
        });
        std::fs::write(&kubeconfig, text.to_string()).unwrap();
        Self { kubeconfig, folder }
    }

    /// Runs `PROGRAM ARGS`; `istioctl` is a link to the same program.
    async fn run(&self, line: &str) -> Output {
        let mut words = line.split(' ').map(str::to_owned);
        let mut program = PathBuf::from(env!("CARGO_BIN_EXE_lateen"));
        if words.next().as_deref() == Some("istioctl") {
            let link = self.folder.path().join("istioctl");
            if !link.exists() {
                std::os::unix::fs::symlink(&program, &link).unwrap();
            }
            program = link;
        }
        let mut command = Command::new(program);
        command
            .args(words)
            .env("KUBECONFIG", &self.kubeconfig)
            .env("LATEEN_HOME", self.folder.path().join("none"));
        tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap()
    }

    async fn says(&self, line: &str) -> String {
        let output = self.run(line).await;
        let said = String::from_utf8(output.stdout).unwrap();
        assert!(output.status.success(), "{line}: {said}{}", String::from_utf8_lossy(&output.stderr));
        said
    }

    async fn fails(&self, line: &str) -> String {
        let output = self.run(line).await;
        assert!(!output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stdout));
        String::from_utf8(output.stderr).unwrap()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_courses_hands_on_can_be_followed() {
    let cluster = Cluster::start().await;
    let listeners = cluster.says(&format!("istioctl proxy-config listeners {POD}")).await;
    assert!(listeners.starts_with("ADDRESSES") && listeners.contains("Route: 80"), "{listeners}");
    let line = format!("istioctl proxy-config listeners {POD} --address 0.0.0.0 --port 80 -o json");
    let listener: Value = serde_json::from_str(&cluster.says(&line).await).unwrap();
    let manager = &listener[0]["filterChains"][0]["filters"][0]["typedConfig"];
    assert_eq!(manager["rds"]["routeConfigName"], "80");
    let routes = cluster.says(&format!("istioctl proxy-config routes {POD}.default --name 80 -o json")).await;
    let routes: Value = serde_json::from_str(&routes).unwrap();
    let leads_to = routes.pointer("/0/virtualHosts/0/routes/1/route/cluster").unwrap();
    assert_eq!(leads_to, "outbound|80|v1|customers.default.svc.cluster.local");
    let fqdn = "customers.default.svc.cluster.local";
    let clusters =
        cluster.says(&format!("istioctl proxy-config clusters deploy/web-frontend --fqdn {fqdn}")).await;
    let row: Vec<_> = clusters.lines().nth(2).unwrap().split_whitespace().collect();
    assert_eq!(row, [fqdn, "80", "v1", "outbound", "EDS", "customers.default"]);
    let line = format!("lateen pc ep pod/{POD} --cluster outbound|80|v1|{fqdn}");
    assert!(cluster.says(&line).await.contains("10.244.1.122:3000     HEALTHY     OK"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_control_plane_is_asked_for_versions_and_states() {
    let cluster = Cluster::start().await;
    let version = cluster.says("lateen version").await;
    assert!(
        version.contains("control plane version: 0.1.0\ndata plane version: 0.1.0 (1 proxy)\n"),
        "{version}"
    );
    let version: Value = serde_json::from_str(&cluster.says("istioctl version -o json").await).unwrap();
    assert_eq!(version["meshVersion"][0]["Info"]["version"], "0.1.0");
    let status = cluster.says("lateen ps").await;
    assert!(
        status.contains(&format!("{POD}.default     Kubernetes     istiod-1     0.1.0       2 (CDS,LDS)")),
        "{status}"
    );
    let status = cluster.says(&format!("lateen proxy-status {POD}")).await;
    assert!(status.contains("SYNCED") && status.contains("STALE"), "{status}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn status_shows_what_runs_and_what_is_wrong() {
    let cluster = Cluster::start().await;
    let status = cluster.says("lateen status").await;
    for part in [
        "istiod        1/1",
        "Pods:     1 of 1 ready",
        "Gateway:  http://10.97.0.1/",
        "Engine:   envoy",
        "Proxies:  0 of 1 in sync",
        "VirtualService default/customers: [IST0101] host x not found",
    ] {
        assert!(status.contains(part), "no {part:?} in {status}");
    }
    assert!(!status.contains('\x1b'), "no colours in a pipe");
    let status: Value = serde_json::from_str(&cluster.says("lateen status -o json").await).unwrap();
    assert_eq!(status["gateway"], "http://10.97.0.1/");
    assert_eq!(status["warnings"][0]["object"], "VirtualService default/customers");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn errors_are_a_sentence_and_a_command_to_try() {
    let cluster = Cluster::start().await;
    let said = cluster.fails("lateen pc routes nobody.shop").await;
    assert!(
        said.contains("There is no pod nobody in namespace shop.") && said.contains("try: kubectl get pods"),
        "{said}"
    );
    let said = cluster.fails("lateen ps nobody.shop").await;
    assert!(said.contains("nobody.shop is not connected") && said.contains("try: "), "{said}");
    let said = cluster.fails(&format!("lateen pc routes {POD} --proxy-admin-port 1")).await;
    assert!(said.contains("does not answer on port 1") && said.contains("try: "), "{said}");
    let said = cluster.fails("lateen pc routes x --kubeconfig /nonexistent").await;
    assert!(said.contains("/nonexistent") && said.contains("try: "), "{said}");
    let misunderstood = cluster.run("lateen pc routs").await;
    assert_eq!(misunderstood.status.code(), Some(64), "as istioctl");
    assert_eq!(cluster.run("lateen --help").await.status.code(), Some(0));
    let said = cluster.fails("lateen kubeconfig").await;
    assert!(said.contains("No cluster is running") && said.contains("try: lateen up"), "{said}");
}

/// Somebody's kubeconfig in the environment: a list with a file that isn't there, and a cluster that has gone.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_foreign_kubeconfig() {
    let cluster = Cluster::start().await;
    let real = cluster.kubeconfig.display();
    let run = |kubeconfig: String, line: &'static str| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_lateen"));
        command.args(line.split(' ')).env("KUBECONFIG", kubeconfig).env("LATEEN_HOME", "/nonexistent");
        tokio::task::spawn_blocking(move || command.output().unwrap())
    };
    let output = run(format!("/nonexistent/config:{real}"), "ps").await.unwrap();
    assert!(String::from_utf8_lossy(&output.stdout).contains(POD), "{output:?}");

    let gone = cluster.folder.path().join("gone");
    let text = std::fs::read_to_string(&cluster.kubeconfig).unwrap();
    let text: Value = serde_json::from_str(&text).unwrap();
    let mut text = text.clone();
    text["clusters"][0]["cluster"]["server"] = json!("http://127.0.0.1:1");
    std::fs::write(&gone, text.to_string()).unwrap();
    for line in ["status", "ps", "pc routes deploy/web", "logs istiod"] {
        let output = run(gone.display().to_string(), line).await.unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!((output.status.code(), said.lines().count()), (Some(1), 2), "{line}: {said}");
        assert!(
            said.contains("the cluster does not answer (Connection refused")
                && said.contains("try: lateen up"),
            "{line}: {said}"
        );
    }
}
