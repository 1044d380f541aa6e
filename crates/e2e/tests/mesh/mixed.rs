//! A steady mixed load (HTTP/1.1, HTTP/2, gRPC, gRPC and WebSocket streams through the gateway; these and TCP between sidecars) while
//! everything changes: no request is lost and no stream breaks, on both engines.
//!
//! Each trial takes ten to twenty seconds; `LATEEN_LOSS_SECONDS` makes the changes go on for longer.

use std::{
    collections::BTreeMap,
    io::{BufRead, BufReader},
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use http::Method;
use lateen_e2e::{
    Engine, Mesh, eventually,
    traffic::{Traffic, losses},
    web::Ask,
};
use lateen_samples::load::{Failure, Flow, Kind, Report, Spec};
use serde_json::{Value, json};

use crate::mutual_tls;

/// Changes something while the load runs; returns what to excuse.
type Change = fn(&Mesh) -> Result<Excuse>;

pub(crate) const CHANGES: &[(&str, Change)] = &[
    ("a_thousand_route_edits", a_thousand_route_edits),
    ("subsets_come_and_go", subsets_come_and_go),
    ("endpoints_come_and_go", endpoints_come_and_go),
    ("one_sidecar_ends", one_sidecar_ends),
    ("services_roll", services_roll),
    ("listeners_come_and_go", listeners_come_and_go),
    ("the_control_plane_restarts", the_control_plane_restarts),
    ("gateways_roll", gateways_roll),
    ("the_root_changes", mutual_tls::the_root_changes),
];

const SOON: Duration = Duration::from_secs(60);
/// Edits of routes at least.
const EDITS: usize = 1000;

/// Losses that are no fault of the mesh.
#[derive(Default)]
pub(crate) struct Excuse {
    /// Streams through the gateway that were opened before it was restarted: their own endpoint went away.
    gateway_streams: bool,
}

impl Excuse {
    fn covers(&self, failure: &Failure) -> bool {
        // An open failure has no instance: it is never excused.
        self.gateway_streams && failure.instance.is_some()
    }
}

/// What was seen of each change on each engine, for the table at the end.
#[derive(Clone, Default)]
pub(crate) struct Ledger(Arc<Mutex<BTreeMap<(String, Engine), String>>>);

impl Ledger {
    fn put(&self, change: &str, engine: Engine, row: String) {
        if let Ok(mut rows) = self.0.lock() {
            rows.insert((change.to_owned(), engine), row);
        }
    }

    /// Prints the engines side by side.
    pub(crate) fn print(&self) {
        let Ok(rows) = self.0.lock() else { return };
        if !rows.is_empty() {
            println!("\nlost under change (requests and messages answered / lost; streams opened / broken):");
        }
        for ((change, engine), row) in rows.iter() {
            println!("  {change:28} {engine:7} {row}");
        }
    }
}

/// Runs one change under load.
pub(crate) fn run(mesh: &Mesh, ledger: &Ledger, name: &str, change: Change) -> Result<()> {
    deploy(mesh)?;
    let gateway = Traffic::from_here(&through_the_gateway(mesh)?)?;
    let pod = mesh.pod("default", "app=client")?;
    let sidecar = Traffic::from_pod(mesh, &pod, "client", &between_sidecars())?;
    pause(Duration::from_secs(1));
    let excuse = change(mesh)?;
    pause(Duration::from_secs(1));
    let (gateway, sidecar) = (gateway.stop()?, sidecar.stop()?);
    let mut lost = losses(&gateway, |failure| excuse.covers(failure));
    lost.extend(losses(&sidecar, |_| false));
    let row = format!("gateway {}; sidecar {}", summary(&gateway), summary(&sidecar));
    ledger.put(name, mesh.engine, row.clone());
    ensure!(lost.is_empty(), "{} losses ({row}):\n{}", lost.len(), lost.join("\n"));
    clean(mesh)
}

fn summary(report: &Report) -> String {
    let sum = |of: fn(&lateen_samples::load::FlowReport) -> u64| report.flows.iter().map(of).sum::<u64>();
    let (requests, streams): (Vec<_>, Vec<_>) = report.flows.iter().partition(|flow| flow.opened == 0);
    let lost: u64 = requests.iter().map(|flow| flow.failed).sum();
    let broken: u64 = streams.iter().map(|flow| flow.failed).sum();
    let slowest = report.flows.iter().map(|flow| flow.slowest_ms).max().unwrap_or(0);
    format!("{}/{lost} {}/{broken} slowest {slowest} ms", sum(|flow| flow.answered), sum(|flow| flow.opened))
}

fn flow(kind: Kind, to: &str, host: Option<&str>, rate: f64, streams: usize) -> Flow {
    Flow { kind, to: to.to_owned(), host: host.map(str::to_owned), path: None, rate, streams }
}

fn through_the_gateway(mesh: &Mesh) -> Result<Spec> {
    let to = format!("{}:80", mesh.gateway()?);
    let flow = |kind, rate, streams| flow(kind, &to, Some("echo.test"), rate, streams);
    let flows = vec![
        flow(Kind::Http1, 20.0, 1),
        flow(Kind::Http1New, 5.0, 1),
        flow(Kind::Http2, 10.0, 1),
        flow(Kind::Grpc, 10.0, 1),
        flow(Kind::GrpcStream, 5.0, 3),
        flow(Kind::Websocket, 5.0, 3),
    ];
    Ok(Spec { seconds: None, flows })
}

fn between_sidecars() -> Spec {
    let flows = vec![
        flow(Kind::Http1, "echo:80", None, 20.0, 1),
        flow(Kind::Http1New, "echo:80", None, 5.0, 1),
        flow(Kind::Http2, "echo:81", None, 10.0, 1),
        flow(Kind::Grpc, "echo:81", None, 10.0, 1),
        flow(Kind::GrpcStream, "echo:81", None, 5.0, 3),
        flow(Kind::Websocket, "echo:80", None, 5.0, 3),
        flow(Kind::Numbers, "echo:9001", None, 5.0, 3),
    ];
    Spec { seconds: None, flows }
}

fn deploy(mesh: &Mesh) -> Result<()> {
    mesh.apply_fixture("mixed.yaml")?;
    mesh.kubectl(&["wait", "--for=condition=Available", "deploy", "--all", "--timeout=60s"])?;
    // All paths work before anything is counted.
    let spec = through_the_gateway(mesh)?;
    eventually("the gateway's routes are there", SOON, || probe(Traffic::from_here, &spec))?;
    let pod = mesh.pod("default", "app=client")?;
    let spec = between_sidecars();
    eventually("the sidecar's routes are there", SOON, || {
        probe(|spec| Traffic::from_pod(mesh, &pod, "client", spec), &spec)
    })
}

fn probe(start: impl Fn(&Spec) -> Result<Traffic>, spec: &Spec) -> Result<()> {
    let traffic = start(spec)?;
    pause(Duration::from_millis(700));
    let report = traffic.stop()?;
    let lost = losses(&report, |_| false);
    ensure!(lost.is_empty(), "{}", lost.join("\n"));
    Ok(())
}

fn clean(mesh: &Mesh) -> Result<()> {
    let path = lateen_e2e::mesh::fixture("mixed.yaml");
    mesh.kubectl(&["delete", "-f", &path.display().to_string(), "--ignore-not-found"])?;
    mesh.kubectl(&["delete", "dr", "echo", "--ignore-not-found"]).map(drop)
}

/// How long changes go on.
fn length(short: u64) -> Duration {
    let longer = std::env::var("LATEEN_LOSS_SECONDS").ok().and_then(|text| text.parse().ok());
    Duration::from_secs(longer.unwrap_or(short))
}

/// Lets the load run on; nothing is waited for.
fn pause(time: Duration) {
    let end = Instant::now() + time;
    while let Some(left) = end.checked_duration_since(Instant::now()) {
        std::thread::park_timeout(left);
    }
}

/// The API server by one long-lived client, so that a change costs no start of kubectl.
struct Api {
    proxy: Child,
    url: String,
    runtime: tokio::runtime::Runtime,
    client: hyper_util::client::legacy::Client<
        hyper_util::client::legacy::connect::HttpConnector,
        http_body_util::Full<bytes::Bytes>,
    >,
}

impl Api {
    fn new(mesh: &Mesh) -> Result<Self> {
        let mut proxy = Command::new("kubectl")
            .args(["proxy", "--port=0"])
            .env("KUBECONFIG", mesh.kubeconfig())
            .stdout(Stdio::piped())
            .spawn()?;
        let mut line = String::new();
        BufReader::new(proxy.stdout.take().context("no output")?).read_line(&mut line)?;
        let address = line.trim().rsplit(' ').next().unwrap_or_default();
        Ok(Self {
            proxy,
            url: format!("http://{address}"),
            runtime: tokio::runtime::Builder::new_current_thread().enable_all().build()?,
            client: lateen_e2e::web::client(false),
        })
    }

    fn send(&self, ask: Ask, what: &str) -> Result<()> {
        let reply = self.runtime.block_on(ask.send_with(&self.client)).with_context(|| what.to_owned())?;
        ensure!((200..300).contains(&reply.status), "{what}: {} {}", reply.status, reply.body);
        Ok(())
    }

    /// Merge-patches an object of `networking.istio.io/v1` in `default`.
    fn patch(&self, kind: &str, name: &str, patch: &Value) -> Result<()> {
        let url = format!("{}/apis/networking.istio.io/v1/namespaces/default/{kind}/{name}", self.url);
        let ask = Ask::get(url)
            .method(Method::PATCH, patch.to_string())
            .header("content-type", "application/merge-patch+json");
        self.send(ask, &format!("patch {kind}/{name}"))
    }
}

impl Drop for Api {
    fn drop(&mut self) {
        // It ends with the trial at the latest.
        let _ = self.proxy.kill();
        let _ = self.proxy.wait();
    }
}

fn to_echo(port: u16, subset: Option<&str>) -> Value {
    let mut destination = json!({ "host": "echo", "port": { "number": port } });
    if let Some(subset) = subset {
        destination["subset"] = subset.into();
    }
    json!({ "destination": destination })
}

/// Routes for gateway and sidecars: everything is sent to `echo`, whatever else there is.
fn routes(number: usize, subset: Option<&str>, grpc: Value) -> Value {
    let mut http = vec![
        json!({ "match": [{ "uri": { "exact": format!("/never/{number}") } }], "directResponse": { "status": 418 } }),
        json!({ "match": [grpc], "timeout": "0s", "route": [to_echo(81, subset)] }),
        json!({ "route": [to_echo(80, subset)], "headers": { "response": { "set": { "x-edit": number.to_string() } } } }),
    ];
    // More and fewer routes, in another order.
    if number.is_multiple_of(3) {
        http.remove(0);
    }
    json!({ "spec": { "http": http } })
}

fn edit(api: &Api, number: usize, subset: Option<&str>) -> Result<()> {
    let gateway = routes(number, subset, json!({ "uri": { "prefix": "/lateen.echo.Echo/" } }));
    api.patch("virtualservices", "mixed", &gateway)?;
    api.patch("virtualservices", "echo", &routes(number, subset, json!({ "port": 81 })))
}

/// A thousand edits of the routes that carry the load.
fn a_thousand_route_edits(mesh: &Mesh) -> Result<Excuse> {
    let api = Api::new(mesh)?;
    let begun = Instant::now();
    let mut number = 0;
    while number < EDITS || begun.elapsed() < length(0) {
        edit(&api, number, None)?;
        number += 2;
    }
    eprintln!("{number} edits in {:?}", begun.elapsed());
    // The last is what serves in the end.
    let ask = Ask::get(format!("http://{}/", mesh.gateway()?)).header("host", "echo.test");
    let last = (number - 2).to_string();
    eventually("the last edit is live", SOON, || {
        let reply = ask.send()?;
        ensure!(reply.headers.get("x-edit") == Some(&last), "{reply:?}");
        Ok(())
    })?;
    Ok(Excuse::default())
}

/// Subsets are made, routed to at once, and removed as soon as nothing routes to them: clusters must be there before routes that name
/// them, and go after.
fn subsets_come_and_go(mesh: &Mesh) -> Result<Excuse> {
    mesh.apply(
        "apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: { name: echo }\nspec: { host: echo, subsets: [] }\n",
    )?;
    let api = Api::new(mesh)?;
    let subset = |name: &str| json!({ "name": name, "labels": { "version": "v1" } });
    let begun = Instant::now();
    let mut before = None;
    let mut number = 0;
    while begun.elapsed() < length(8) {
        let name = format!("s{number}");
        let both: Vec<_> = before.iter().map(|old: &String| subset(old)).chain([subset(&name)]).collect();
        api.patch("destinationrules", "echo", &json!({ "spec": { "subsets": both } }))?;
        edit(&api, number, Some(&name))?;
        // Settings of connections change too: streams under way stay on the connections they have.
        let limits = json!({ "connectionPool": { "http": { "http2MaxRequests": 1000 + number } } });
        let last = json!({ "spec": { "subsets": [subset(&name)], "trafficPolicy": limits } });
        api.patch("destinationrules", "echo", &last)?;
        before = Some(name);
        number += 1;
    }
    eprintln!("{number} subsets");
    edit(&api, number, None)?;
    Ok(Excuse::default())
}

/// Sets the number of pods and waits until there are as many, all of them ready. (`kubectl rollout status` may go by the numbers of
/// before, as in any cluster.)
fn scale(mesh: &Mesh, replicas: u32) -> Result<()> {
    mesh.kubectl(&["scale", "deploy/echo", &format!("--replicas={replicas}")])?;
    settled(mesh, replicas)
}

fn settled(mesh: &Mesh, replicas: u32) -> Result<()> {
    eventually("as many pods as wanted are ready", SOON, || {
        let path = "jsonpath={.status.replicas} {.status.readyReplicas} {.status.updatedReplicas}";
        let numbers = mesh.kubectl(&["get", "deploy", "echo", "-o", path])?;
        ensure!(numbers == format!("{replicas} {replicas} {replicas}"), "{numbers}, not {replicas}");
        Ok(())
    })
}

/// Pods are added, taken away and deleted; they end as well-behaved servers do.
fn endpoints_come_and_go(mesh: &Mesh) -> Result<Excuse> {
    let begun = Instant::now();
    loop {
        scale(mesh, 4)?;
        scale(mesh, 1)?;
        scale(mesh, 3)?;
        let pod = mesh.pod("default", "app=echo")?;
        mesh.kubectl(&["delete", "pod", &pod, "--wait=false"])?;
        ending_pods_are_gone(mesh, "default")?;
        settled(mesh, 3)?;
        if begun.elapsed() >= length(0) {
            break;
        }
    }
    Ok(Excuse::default())
}

fn ending_pods_are_gone(mesh: &Mesh, namespace: &str) -> Result<()> {
    eventually("pods that end are gone", SOON, || {
        let pods = mesh.kubectl(&["get", "pods", "-n", namespace])?;
        ensure!(!pods.contains("Terminating"), "{pods}");
        Ok(())
    })
}

/// What a pod's sidecar relays to its application now: gRPC streams, WebSockets, TCP.
fn relayed(mesh: &Mesh, pod: &str) -> Result<[u64; 3]> {
    let ask = ["exec", pod, "-c", "istio-proxy", "--", "curl", "-s", "localhost:15000/stats?filter=_active"];
    let stats = mesh.kubectl(&ask)?;
    let sum = |cluster: &str, number: &str| -> u64 {
        let (begin, end) = (format!("cluster.inbound|{cluster}||"), format!(".{number}"));
        let numbers = stats.lines().filter_map(|line| line.split_once(": "));
        let wanted = numbers.filter(|(name, _)| name.starts_with(&begin) && name.ends_with(&end));
        wanted.filter_map(|(_, value)| value.trim().parse::<u64>().ok()).sum()
    };
    Ok([
        sum("8081", "upstream_rq_active"),
        sum("8080", "upstream_rq_active"),
        sum("9001", "upstream_cx_active"),
    ])
}

/// A pod whose sidecar relays streams of every kind is deleted, so that the sidecar gets its SIGTERM while they run: those of the
/// application that ends are ended by it, and the others do not notice. Three times, each time another one.
fn one_sidecar_ends(mesh: &Mesh) -> Result<Excuse> {
    let mut ended: Vec<String> = Vec::new();
    while ended.len() < 3 {
        let busy = eventually("a sidecar relays streams of every kind", SOON, || {
            let list =
                ["get", "pods", "-l", "app=echo", "--field-selector=status.phase=Running", "-o", "name"];
            let pods = mesh.kubectl(&list)?;
            let mut seen = Vec::new();
            for pod in pods.lines().filter_map(|line| line.strip_prefix("pod/")) {
                let now = relayed(mesh, pod)?;
                if now.iter().all(|count| *count > 0) {
                    return Ok(pod.to_owned());
                }
                seen.push((pod.to_owned(), now));
            }
            anyhow::bail!("{seen:?}")
        })?;
        ensure!(!ended.contains(&busy), "{busy} has ended before");
        mesh.kubectl(&["delete", "pod", &busy, "--wait=false"])?;
        ending_pods_are_gone(mesh, "default")?;
        settled(mesh, 2)?;
        ended.push(busy);
    }
    eprintln!("ended: {}", ended.join(", "));
    Ok(Excuse::default())
}

/// Every way of ending a sidecar: the default, a longer drain, exit as soon as no connection is left, a preStop hook.
fn services_roll(mesh: &Mesh) -> Result<Excuse> {
    let config = |text: &str| json!({ "spec": { "template": { "metadata": { "annotations": { "proxy.istio.io/config": text } } } } });
    let variants = [
        json!({ "spec": { "template": { "metadata": { "annotations": { "rolled": "1" } } } } }),
        config(r#"{"terminationDrainDuration": "8s"}"#),
        config(
            r#"{"proxyMetadata": {"EXIT_ON_ZERO_ACTIVE_CONNECTIONS": "true", "MINIMUM_DRAIN_DURATION": "1s"}}"#,
        ),
        json!({ "spec": { "template": { "spec": { "containers": [
            { "name": "echo", "lifecycle": { "preStop": { "exec": { "command": ["sleep", "1"] } } } }] } } } }),
    ];
    let begun = Instant::now();
    loop {
        for patch in &variants {
            mesh.kubectl(&["patch", "deploy/echo", "-p", &patch.to_string()])?;
            mesh.kubectl(&["rollout", "status", "deploy/echo", "--timeout=60s"])?;
        }
        if begun.elapsed() >= length(0) {
            break;
        }
    }
    ending_pods_are_gone(mesh, "default")?;
    Ok(Excuse::default())
}

/// Services and ports, and with them listeners, are made and removed; the gateway opens and closes a port.
fn listeners_come_and_go(mesh: &Mesh) -> Result<Excuse> {
    let api = Api::new(mesh)?;
    let begun = Instant::now();
    let server = |number: u16, hosts: &[&str]| json!({ "port": { "number": number, "name": format!("http-{number}"), "protocol": "HTTP" }, "hosts": hosts });
    let mut number = 0_u16;
    while begun.elapsed() < length(8) {
        let name = format!("extra-{number}");
        // A TCP port of its own address, an HTTP port shared by all, another port of the pods that serve the load.
        let service = json!({ "apiVersion": "v1", "kind": "Service", "metadata": { "name": name }, "spec": {
            "selector": { "app": "echo" }, "ports": [
                { "name": "tcp", "port": 9100 + number % 7, "targetPort": 9001 },
                { "name": "http", "port": 8000 + number % 5, "targetPort": 8080 },
                { "name": "tcp-other", "port": 7000, "targetPort": 7000 + i32::from(number) % 3 }] } });
        let url = format!("{}/api/v1/namespaces/default/services", api.url);
        let create = Ask::get(&url)
            .method(Method::POST, service.to_string())
            .header("content-type", "application/json");
        api.send(create, "create a service")?;
        let mut servers = vec![server(80, &["echo.test"])];
        if number.is_multiple_of(2) {
            servers.push(server(8081 + number % 3, &["other.test"]));
            servers.push(server(80, &["third.test"]));
            servers[2]["port"]["name"] = "http-third".into();
        }
        api.patch("gateways", "mixed", &json!({ "spec": { "servers": servers } }))?;
        pause(Duration::from_millis(100));
        api.send(Ask::get(format!("{url}/{name}")).method(Method::DELETE, ""), "delete a service")?;
        number += 1;
    }
    eprintln!("{number} services and gateway ports");
    api.patch("gateways", "mixed", &json!({ "spec": { "servers": [server(80, &["echo.test"])] } }))?;
    Ok(Excuse::default())
}

/// `lateend` is killed, and replaced by a rollout.
fn the_control_plane_restarts(mesh: &Mesh) -> Result<Excuse> {
    let restarts = || {
        let path = "jsonpath={.items[0].status.containerStatuses[0].restartCount}";
        mesh.kubectl(&["get", "pods", "-n", "istio-system", "-l", "app=istiod", "-o", path])
    };
    let before = restarts()?;
    let kill =
        "for p in /proc/[0-9]*; do case $(readlink $p/exe) in */lateend) kill -9 ${p#/proc/};; esac; done";
    ensure!(Command::new("bash").args(["-c", kill]).status()?.success(), "cannot kill lateend");
    eventually("istiod is restarted", SOON, || {
        let now = restarts()?;
        ensure!(now != before && !now.is_empty(), "restarts: {now}");
        Ok(())
    })?;
    for _ in 0..2 {
        mesh.restart("istio-system", "deploy/istiod")?;
        // Endpoints change while proxies come back to it.
        scale(mesh, 3)?;
        scale(mesh, 2)?;
    }
    ending_pods_are_gone(mesh, "default")?;
    Ok(Excuse::default())
}

/// The gateway itself is replaced. Streams through the old one end with it.
fn gateways_roll(mesh: &Mesh) -> Result<Excuse> {
    let begun = Instant::now();
    loop {
        mesh.restart("istio-system", "deploy/istio-ingressgateway")?;
        ending_pods_are_gone(mesh, "istio-system")?;
        if begun.elapsed() >= length(0) {
            break;
        }
    }
    Ok(Excuse { gateway_streams: true })
}
