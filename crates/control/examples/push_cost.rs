//! What a change costs the control plane: CPU time and memory of pushing one endpoint and one VirtualService to many proxies.
//!
//! ```text
//! cargo run --release -p lateen-control --example push_cost -- [SERVICES] [ENDPOINTS_PER_SERVICE] [PROXIES]
//! ```
//! Defaults: 1000, 10, 200. An API server and the control plane run in this process, the proxies in a child. `push` is the CPU
//! time of the push thread (world, generation), `process` that of the whole process (the API server, TLS and gRPC too).
#[allow(dead_code, reason = "the tests' support, of which this uses a part")]
#[path = "../tests/support/mod.rs"]
mod support;

use std::collections::{BTreeMap, HashMap};
use std::io::Write;
use std::process::Stdio;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use lateen_xds::pb::envoy::config::core::v3::Node;
use lateen_xds::pb::envoy::service::discovery::v3::DeltaDiscoveryRequest;
use lateen_xds::pb::envoy::service::discovery::v3::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient;
use lateen_xds::pb::google::protobuf::{Struct, Value as ProtoValue, value::Kind};
use lateen_xds::type_urls::{CLUSTER, ENDPOINT, LISTENER, ROUTE};
use support::{Cluster, service, slice, virtual_service};
use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::process::{Child, ChildStdout, Command};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Certificate, ClientTlsConfig, Endpoint};

type Error = Box<dyn std::error::Error + Send + Sync>;

#[tokio::main]
async fn main() -> Result<(), Error> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let [flag, url, proxies] = &arguments[..]
        && flag == "--proxies"
    {
        return proxies_of(url, &std::env::var("ROOT")?, &std::env::var("TOKEN")?, proxies.parse()?).await;
    }
    let number = |index: usize, default| arguments.get(index).map_or(Ok(default), |text| text.parse());
    let (services, endpoints, proxies) = (number(0, 1000)?, number(1, 10)?, number(2, 200)?);
    measure(services, endpoints, proxies).await
}

async fn measure(services: usize, endpoints: usize, proxies: usize) -> Result<(), Error> {
    let cluster = Cluster::start().await;
    let control_plane = cluster.control_plane().await;
    let addresses = |service: usize, count: usize| -> Vec<String> {
        (0..count).map(|index| format!("10.{}.{}.{}", 1 + service / 250, service % 250, index + 1)).collect()
    };
    for index in 0..services {
        let name = format!("s{index}");
        cluster.apply(service(&name, 80)).await;
        let addresses = addresses(index, endpoints);
        cluster.apply(slice(&name, &addresses.iter().map(String::as_str).collect::<Vec<_>>())).await;
    }
    println!("{services} services with {endpoints} endpoints each; {proxies} proxies of 20 classes");
    let empty = Sample::now()?;
    let token = cluster.token("web", "istio-ca").await;
    let url = format!("https://{}", control_plane.addresses().xds);
    let mut child = Command::new(std::env::current_exe()?)
        .args(["--proxies", &url, &proxies.to_string()])
        .env("ROOT", control_plane.root_certificate())
        .env("TOKEN", &token)
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()?;
    let mut lines = BufReader::new(child.stdout.take().ok_or("no output")?).lines();
    until(&mut lines, &mut child, "all").await?;
    report("first configuration of all proxies", &empty, 1)?;
    const ROUNDS: usize = 10;
    let before = Sample::now()?;
    for round in 0..ROUNDS {
        let addresses = addresses(0, endpoints - 1 + round % 2);
        cluster.apply(slice("s0", &addresses.iter().map(String::as_str).collect::<Vec<_>>())).await;
        until(&mut lines, &mut child, ENDPOINT).await?;
    }
    report("one endpoint", &before, ROUNDS)?;
    let before = Sample::now()?;
    for round in 0..ROUNDS {
        cluster.apply(virtual_service("s1", &format!("s{}", 2 + round % 2))).await;
        until(&mut lines, &mut child, ROUTE).await?;
    }
    report("one VirtualService", &before, ROUNDS)?;
    child.kill().await?;
    control_plane.shutdown().await;
    Ok(())
}

/// Waits for the child's word that every proxy has had a response.
async fn until(
    lines: &mut Lines<BufReader<ChildStdout>>,
    child: &mut Child,
    what: &str,
) -> Result<(), Error> {
    let found = async {
        while let Some(line) = lines.next_line().await? {
            if line == what {
                return Ok(());
            }
        }
        Err(Error::from(format!("the proxies ended: {:?}", child.wait().await)))
    };
    tokio::time::timeout(Duration::from_secs(300), found).await?
}

struct Sample {
    push: Duration,
    process: Duration,
    resident_kib: u64,
    time: Instant,
}

impl Sample {
    fn now() -> Result<Self, Error> {
        let mut push = Duration::ZERO;
        for task in std::fs::read_dir("/proc/self/task")? {
            let folder = task?.path();
            if std::fs::read_to_string(folder.join("comm"))?.trim() == "push" {
                // The first field: nanoseconds on a CPU.
                let spent = std::fs::read_to_string(folder.join("schedstat"))?;
                push += Duration::from_nanos(spent.split(' ').next().ok_or("schedstat")?.parse()?);
            }
        }
        let stat = std::fs::read_to_string("/proc/self/stat")?;
        let fields: Vec<&str> = stat.rsplit(')').next().ok_or("stat")?.split_whitespace().collect();
        let ticks: u64 = fields[11].parse::<u64>()? + fields[12].parse::<u64>()?;
        let status = std::fs::read_to_string("/proc/self/status")?;
        let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).ok_or("VmRSS")?;
        let resident_kib = resident.trim().trim_end_matches(" kB").parse()?;
        Ok(Self { push, process: Duration::from_millis(ticks * 10), resident_kib, time: Instant::now() })
    }
}

fn report(what: &str, before: &Sample, rounds: usize) -> Result<(), Error> {
    let now = Sample::now()?;
    let each = |duration: Duration| duration.as_secs_f64() * 1000.0 / rounds as f64;
    println!(
        "{what}: push {:.2} ms, process {:.1} ms, until all proxies have it {:.1} ms; resident {} MiB",
        each(now.push - before.push),
        each(now.process - before.process),
        each(before.time.elapsed()),
        now.resident_kib / 1024
    );
    Ok(())
}

/// The child: says a type URL whenever every proxy had one more response of that type.
async fn proxies_of(url: &str, root: &str, token: &str, count: usize) -> Result<(), Error> {
    let tls = ClientTlsConfig::new()
        .ca_certificate(Certificate::from_pem(root))
        .domain_name("istiod.istio-system.svc");
    let endpoint = Endpoint::from_shared(url.to_owned())?.tls_config(tls)?;
    let seen: Arc<Mutex<BTreeMap<String, usize>>> = Arc::default();
    let mut proxies = tokio::task::JoinSet::new();
    for index in 0..count {
        proxies.spawn(proxy(endpoint.clone(), token.to_owned(), index, count, seen.clone()));
    }
    while let Some(ended) = proxies.join_next().await {
        ended??;
    }
    Ok(())
}

async fn proxy(
    endpoint: Endpoint,
    token: String,
    index: usize,
    count: usize,
    seen: Arc<Mutex<BTreeMap<String, usize>>>,
) -> Result<(), Error> {
    let (requests, receiver) = mpsc::channel(64);
    let mut call = tonic::Request::new(ReceiverStream::new(receiver));
    call.metadata_mut().insert("authorization", format!("Bearer {token}").parse()?);
    let ask = |type_url: &str, names: Vec<String>, node: Option<Node>| DeltaDiscoveryRequest {
        node,
        type_url: type_url.to_owned(),
        resource_names_subscribe: names,
        ..Default::default()
    };
    requests.send(ask(CLUSTER, vec![], Some(node(index)))).await?;
    requests.send(ask(LISTENER, vec![], None)).await?;
    let mut client =
        AggregatedDiscoveryServiceClient::new(endpoint.connect().await?).max_decoding_message_size(64 << 20);
    let mut responses = client.delta_aggregated_resources(call).await?.into_inner();
    let mut had: Vec<String> = Vec::new();
    while let Some(response) = responses.message().await? {
        let type_url = response.type_url.clone();
        let first = !had.contains(&type_url);
        if first && type_url == CLUSTER {
            let outbound = response.resources.iter().map(|cluster| cluster.name.clone());
            let names = outbound.filter(|name| name.starts_with("outbound|")).collect();
            requests.send(ask(ENDPOINT, names, None)).await?;
            requests.send(ask(ROUTE, vec!["80".to_owned()], None)).await?;
        }
        let acknowledgement = DeltaDiscoveryRequest {
            type_url: type_url.clone(),
            response_nonce: response.nonce,
            ..Default::default()
        };
        requests.send(acknowledgement).await?;
        let word = if first {
            had.push(type_url);
            (had.len() == 4).then(|| "all".to_owned())
        } else {
            Some(type_url)
        };
        if let Some(word) = word {
            let mut seen = seen.lock().map_err(|_| "a proxy has failed")?;
            let times = seen.entry(word.clone()).or_default();
            *times += 1;
            if *times % count == 0 {
                println!("{word}");
                std::io::stdout().flush()?;
            }
        }
    }
    Ok(())
}

fn node(index: usize) -> Node {
    let text = |text: &str| ProtoValue { kind: Some(Kind::StringValue(text.to_owned())) };
    let label = HashMap::from([("app".to_owned(), text(&format!("app-{}", index % 20)))]);
    let labels = ProtoValue { kind: Some(Kind::StructValue(Struct { fields: label })) };
    let fields = HashMap::from([
        ("NAMESPACE".to_owned(), text("default")),
        ("SERVICE_ACCOUNT".to_owned(), text("web")),
        ("LABELS".to_owned(), labels),
    ]);
    Node {
        id: format!(
            "sidecar~10.9.{}.{}~p{index}.default~default.svc.cluster.local",
            index / 250,
            index % 250
        ),
        metadata: Some(Struct { fields }),
        ..Node::default()
    }
}
