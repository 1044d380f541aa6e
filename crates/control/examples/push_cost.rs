//! What a change costs the control plane and how soon it is everywhere: endpoints, a VirtualService for all and one for a single
//! namespace, pushed to many simulated proxies; and what steady change costs it.
//!
//! ```text
//! cargo run --release -p lateen-control --example push_cost -- [SERVICES] [ENDPOINTS_PER_SERVICE] [PROXIES] [CHANGES] [SECONDS]
//! ```
//! Defaults: 1000, 10, 500, 50, 20. An API server runs in this process, the control plane in a child and the proxies (of 10 namespaces
//! and 20 apps, so 200 classes) in another. Latencies run from the start of the API request to the response's arrival at a proxy,
//! over all proxies and changes. `push` is the CPU time of the push thread (world, generation), `process` that of the whole control
//! plane; resident memory is the control plane's. Steady change is for SECONDS: endpoints of one service every second, a
//! VirtualService that all see every ten.
#[path = "support/serving.rs"]
mod serving;
#[allow(dead_code, reason = "the tests' support, of which this uses a part")]
#[path = "../tests/support/mod.rs"]
mod support;

use std::collections::HashMap;
use std::io::Write;
use std::process::Stdio;
use std::sync::Arc;
use std::time::{Duration, Instant};

use lateen_xds::pb::envoy::config::core::v3::Node;
use lateen_xds::pb::envoy::service::discovery::v3::DeltaDiscoveryRequest;
use lateen_xds::pb::envoy::service::discovery::v3::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient;
use lateen_xds::pb::google::protobuf::{Struct, Value as ProtoValue, value::Kind};
use lateen_xds::type_urls::{CLUSTER, ENDPOINT, LISTENER, ROUTE};
use serving::{Cost, Serving};
use support::{Cluster, service, slice, virtual_service};
use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::process::{Child, ChildStdout, Command};
use tokio::sync::{Semaphore, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Certificate, ClientTlsConfig, Endpoint};

/// As in `lateend`.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

type Error = Box<dyn std::error::Error + Send + Sync>;

/// Namespaces the proxies are of.
const NAMESPACES: usize = 10;
/// Apps in each.
const APPS: usize = 20;
/// Proxies that get their first configuration at a time.
const DOORS: usize = 50;
/// Flow-control windows of proxies, as ours have them.
const WINDOW: u32 = 4 << 20;

#[tokio::main]
async fn main() -> Result<(), Error> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let [flag, url, proxies] = &arguments[..]
        && flag == "--proxies"
    {
        let tokens = std::env::var("TOKENS")?.split(' ').map(str::to_owned).collect();
        return proxies_of(url, &std::env::var("ROOT")?, tokens, proxies.parse()?).await;
    }
    if arguments.first().is_some_and(|flag| flag == serving::FLAG) {
        return serving::serve().await;
    }
    let number = |index: usize, default| arguments.get(index).map_or(Ok(default), |text| text.parse());
    let seconds = number(4, 20)?;
    measure(number(0, 1000)?, number(1, 10)?, number(2, 500)?, number(3, 50)?, seconds).await
}

async fn measure(
    services: usize,
    endpoints: usize,
    proxies: usize,
    changes: usize,
    seconds: usize,
) -> Result<(), Error> {
    let cluster = Cluster::start().await;
    let serving = Serving::start(&cluster).await?;
    let sample = || Sample::of(serving.pid);
    let addresses = |service: usize, count: usize| -> Vec<String> {
        (0..count).map(|index| format!("10.{}.{}.{}", 1 + service / 250, service % 250, index + 1)).collect()
    };
    let slice_of = |index: usize, count: usize| {
        let addresses = addresses(index, count);
        slice(&format!("s{index}"), &addresses.iter().map(String::as_str).collect::<Vec<_>>())
    };
    for index in 0..services {
        cluster.apply(service(&format!("s{index}"), 80)).await;
        cluster.apply(slice_of(index, endpoints)).await;
    }
    println!(
        "{services} services with {endpoints} endpoints each; {proxies} proxies of {NAMESPACES} namespaces"
    );
    let empty = sample()?;
    let mut tokens = Vec::new();
    for index in 0..NAMESPACES {
        tokens.push(cluster.token_in(&namespace(index), "web", "istio-ca").await);
    }
    let url = format!("https://{}", serving.xds);
    let mut child = Command::new(std::env::current_exe()?)
        .args(["--proxies", &url, &proxies.to_string()])
        .env("ROOT", &serving.root)
        .env("TOKENS", tokens.join(" "))
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()?;
    let lines = BufReader::new(child.stdout.take().ok_or("no output")?).lines();
    let mut seen = Seen { lines, child, others: 0 };
    seen.until("all", proxies).await?;
    report("first configuration of all proxies", &empty, &sample()?, 1, &[]);

    let before = sample()?;
    let mut arrivals = Vec::new();
    for round in 0..changes {
        let start = micros();
        cluster.apply(slice_of(round % services, endpoints - 1 + (round / services) % 2)).await;
        arrivals.extend(seen.since(start, ENDPOINT, proxies).await?);
    }
    report("one endpoint, seen by all", &before, &sample()?, changes, &arrivals);

    let rounds = (changes / 5).max(1);
    // Over both kinds, as each rule must be another one than that before it.
    let mut written = 0;
    for (what, export_to, expected) in [
        ("one VirtualService, seen by all", "*", proxies),
        ("one VirtualService, seen in one namespace", ".", proxies.div_ceil(NAMESPACES)),
    ] {
        let before = sample()?;
        let (mut arrivals, unasked) = (Vec::new(), seen.others);
        for round in 0..rounds {
            let start = micros();
            let mut rule = virtual_service("s1.default.svc.cluster.local", "s1");
            rule["metadata"]["namespace"] = namespace(0).into();
            rule["spec"]["exportTo"] = serde_json::json!([export_to]);
            rule["spec"]["http"][0]["route"][0]["destination"]["host"] =
                format!("s{}.default.svc.cluster.local", 2 + written % 2).into();
            written += 1;
            cluster.apply(rule).await;
            // The first one of the second kind is also seen by those who lose the other.
            let expected = if round == 0 { proxies } else { expected };
            arrivals.extend(seen.since(start, ROUTE, expected).await?);
        }
        // A change that everybody sees: whatever the ones before sent to others is here before it.
        cluster.apply(slice_of(0, endpoints + 1 + usize::from(export_to == "*"))).await;
        seen.until(ENDPOINT, proxies).await?;
        report(what, &before, &sample()?, rounds, &arrivals);
        println!("    responses beyond these: {}", seen.others - unasked);
    }
    let next = |second: usize| slice_of((10 + second) % services, endpoints + 3 + second / services % 2);
    steady(&cluster, &serving, &mut seen, proxies, seconds, &next).await?;
    seen.child.kill().await?;
    Ok(())
}

/// Change at a steady pace.
async fn steady(
    cluster: &Cluster,
    serving: &Serving,
    seen: &mut Seen,
    proxies: usize,
    seconds: usize,
    next: &impl Fn(usize) -> serde_json::Value,
) -> Result<(), Error> {
    let before = Sample::of(serving.pid)?;
    let mut clock = tokio::time::interval(Duration::from_secs(1));
    for second in 0..seconds {
        clock.tick().await;
        cluster.apply(next(second)).await;
        seen.until(ENDPOINT, proxies).await?;
        if second % 10 == 5 {
            let mut rule = virtual_service("s3.default.svc.cluster.local", "s3");
            rule["spec"]["http"][0]["timeout"] = format!("{}s", 100 + second).into();
            cluster.apply(rule).await;
            seen.until(ROUTE, proxies).await?;
        }
    }
    clock.tick().await;
    let now = Sample::of(serving.pid)?;
    println!(
        "steady change for {seconds} s: {:.3} CPUs (push thread {:.3}); resident {} MiB, at most {} MiB",
        (now.process - before.process).as_secs_f64() / (now.time - before.time).as_secs_f64(),
        (now.push - before.push).as_secs_f64() / (now.time - before.time).as_secs_f64(),
        now.resident_kib / 1024,
        now.most_kib / 1024,
    );
    Ok(())
}

fn namespace(index: usize) -> String {
    if index == 0 { "default".to_owned() } else { format!("n{index}") }
}

/// Microseconds since 1970: a clock that this process and its child share.
fn micros() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_micros()).unwrap_or(u64::MAX)
}

/// What the child tells of its proxies' responses: `TYPE MICROS BYTES`.
struct Seen {
    lines: Lines<BufReader<ChildStdout>>,
    child: Child,
    /// Responses of other types than the one waited for.
    others: usize,
}

/// A response: microseconds from the start of the change, and its size.
struct Arrival {
    after: u64,
    bytes: u64,
}

impl Seen {
    async fn until(&mut self, what: &str, count: usize) -> Result<(), Error> {
        self.since(0, what, count).await.map(drop)
    }

    /// Waits for so many responses of a type.
    async fn since(&mut self, start: u64, what: &str, count: usize) -> Result<Vec<Arrival>, Error> {
        let mut arrivals = Vec::new();
        let found = async {
            while arrivals.len() < count {
                let Some(line) = self.lines.next_line().await? else {
                    return Err(Error::from(format!("the proxies ended: {:?}", self.child.wait().await)));
                };
                let mut words = line.split(' ');
                if words.next() != Some(what) {
                    self.others += 1;
                    continue;
                }
                let mut number = || words.next().unwrap_or_default().parse::<u64>();
                let (at, bytes) = (number()?, number()?);
                arrivals.push(Arrival { after: at.saturating_sub(start), bytes });
            }
            Ok(())
        };
        tokio::time::timeout(Duration::from_secs(300), found).await??;
        Ok(arrivals)
    }
}

struct Sample {
    push: Duration,
    process: Duration,
    resident_kib: u64,
    most_kib: u64,
    time: Instant,
}

impl Sample {
    /// Of a process.
    fn of(pid: u32) -> Result<Self, Error> {
        let mut push = Duration::ZERO;
        for task in std::fs::read_dir(format!("/proc/{pid}/task"))? {
            let folder = task?.path();
            if std::fs::read_to_string(folder.join("comm"))?.trim() == "push" {
                // The first field: nanoseconds on a CPU.
                let spent = std::fs::read_to_string(folder.join("schedstat"))?;
                push += Duration::from_nanos(spent.split(' ').next().ok_or("schedstat")?.parse()?);
            }
        }
        let cost = Cost::of(pid)?;
        Ok(Self {
            push,
            process: cost.cpu,
            resident_kib: cost.resident_kib,
            most_kib: cost.most_kib,
            time: Instant::now(),
        })
    }
}

fn report(what: &str, before: &Sample, now: &Sample, rounds: usize, arrivals: &[Arrival]) {
    let each = |duration: Duration| duration.as_secs_f64() * 1000.0 / rounds as f64;
    println!(
        "{what}: push {:.2} ms, process {:.1} ms, {:.1} ms in all; resident {} MiB",
        each(now.push - before.push),
        each(now.process - before.process),
        each(now.time - before.time),
        now.resident_kib / 1024
    );
    let mut after: Vec<u64> = arrivals.iter().map(|arrival| arrival.after).collect();
    after.sort_unstable();
    let at =
        |share: f64| after.get((after.len() as f64 * share) as usize).map_or(0.0, |&us| us as f64 / 1000.0);
    if let Some(last) = after.last() {
        let bytes = arrivals.iter().map(|arrival| arrival.bytes).sum::<u64>() as f64 / 1024.0 / rounds as f64;
        println!(
            "    at a proxy after p50 {:.1} ms, p99 {:.1} ms, at most {:.1} ms; {} responses, {bytes:.0} KiB a change",
            at(0.5),
            at(0.99),
            *last as f64 / 1000.0,
            after.len() / rounds
        );
    }
}

/// The child: says when a proxy had a response, and `all` when it had one of each type.
async fn proxies_of(url: &str, root: &str, tokens: Vec<String>, count: usize) -> Result<(), Error> {
    let tls = ClientTlsConfig::new()
        .ca_certificate(Certificate::from_pem(root))
        .domain_name("istiod.istio-system.svc");
    let endpoint = Endpoint::from_shared(url.to_owned())?
        .tls_config(tls)?
        .initial_stream_window_size(WINDOW)
        .initial_connection_window_size(WINDOW);
    let mut proxies = tokio::task::JoinSet::new();
    let doors = Arc::new(Semaphore::new(DOORS));
    for index in 0..count {
        let token = tokens.get(index % NAMESPACES).cloned().unwrap_or_default();
        proxies.spawn(proxy(endpoint.clone(), token, index, doors.clone()));
    }
    while let Some(ended) = proxies.join_next().await {
        ended??;
    }
    Ok(())
}

async fn proxy(endpoint: Endpoint, token: String, index: usize, doors: Arc<Semaphore>) -> Result<(), Error> {
    let mut door = Some(doors.acquire_owned().await?);
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
        let now = micros();
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
            if had.len() == 4 {
                door = None;
            }
            door.is_none().then(|| "all".to_owned())
        } else {
            Some(type_url)
        };
        if let Some(word) = word {
            let bodies = response.resources.iter().filter_map(|resource| resource.resource.as_ref());
            let bytes: usize = bodies.map(|body| body.value.len()).sum();
            let mut out = std::io::stdout().lock();
            writeln!(out, "{word} {now} {bytes}")?;
            out.flush()?;
        }
    }
    Ok(())
}

fn node(index: usize) -> Node {
    let namespace = namespace(index % NAMESPACES);
    let text = |text: &str| ProtoValue { kind: Some(Kind::StringValue(text.to_owned())) };
    let label = HashMap::from([("app".to_owned(), text(&format!("app-{}", index / NAMESPACES % APPS)))]);
    let labels = ProtoValue { kind: Some(Kind::StructValue(Struct { fields: label })) };
    let fields = HashMap::from([
        ("NAMESPACE".to_owned(), text(&namespace)),
        ("SERVICE_ACCOUNT".to_owned(), text("web")),
        ("LABELS".to_owned(), labels),
    ]);
    Node {
        id: format!(
            "sidecar~10.9.{}.{}~p{index}.{namespace}~{namespace}.svc.cluster.local",
            index / 250,
            index % 250
        ),
        metadata: Some(Struct { fields }),
        ..Node::default()
    }
}
