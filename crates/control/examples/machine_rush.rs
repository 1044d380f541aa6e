//! How soon many machines that come at once are registered, and what that costs the control plane.
//!
//! ```text
//! cargo run --release -p lateen-control --example machine_rush -- [MACHINES] [ROUNDS]
//! ```
//! Defaults: 500, 3. An API server runs in this process, the control plane in a child, the machines in another: each with an address and a
//! connection of its own over TLS, by one token, as a member of one WorkloadGroup. `registered` is from the moment all may begin until the
//! last WorkloadEntry is there, `gone` from the end of all streams until the last has gone (the grace period is 10 s); CPU and resident
//! memory are the control plane's. Prints rows for `bench/RESULTS.md`.
#[path = "support/serving.rs"]
mod serving;
#[allow(dead_code, reason = "the tests' support, of which this uses a part")]
#[path = "../tests/support/mod.rs"]
mod support;

use std::collections::HashMap;
use std::process::Stdio;
use std::time::{Duration, Instant};

use kube::Api;
use kube::api::ListParams;
use kube::core::DynamicObject;
use lateen_xds::pb::envoy::config::core::v3::Node;
use lateen_xds::pb::envoy::service::discovery::v3::DeltaDiscoveryRequest;
use lateen_xds::pb::envoy::service::discovery::v3::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient;
use lateen_xds::pb::google::protobuf::{Struct, Value as ProtoValue, value::Kind};
use lateen_xds::type_urls::CLUSTER;
use serde_json::json;
use serving::{Cost, Serving};
use support::Cluster;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::process::Command;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Certificate, ClientTlsConfig, Endpoint};

/// As in `lateend`.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

type Error = Box<dyn std::error::Error + Send + Sync>;

/// Longest that a round may take.
const PATIENCE: Duration = Duration::from_secs(120);

#[tokio::main]
async fn main() -> Result<(), Error> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.first().map(String::as_str) {
        Some(serving::FLAG) => serving::serve().await,
        Some("--machines") => machines(&arguments[1], arguments[2].parse()?).await,
        _ => {
            let number =
                |index: usize, default| arguments.get(index).map_or(Ok(default), |text| text.parse());
            measure(number(0, 500)?, number(1, 3)?).await
        }
    }
}

async fn measure(count: usize, rounds: usize) -> Result<(), Error> {
    let cluster = Cluster::start().await;
    let serving = Serving::start(&cluster).await?;
    let token = cluster.token("web", "istio-ca").await;
    cluster
        .apply(json!({ "apiVersion": "networking.istio.io/v1", "kind": "WorkloadGroup",
            "metadata": { "name": "shop", "namespace": "default" },
            "spec": { "metadata": { "labels": { "app": "shop" } },
                "template": { "serviceAccount": "web", "ports": { "http": 8080 } } } }))
        .await;
    let kind = json!({ "apiVersion": "networking.istio.io/v1", "kind": "WorkloadEntry", "metadata": { "namespace": "default" } });
    let entries = cluster.api_of(&kind).await;
    println!(
        "| machines at once | s until all were registered | machines/s | control plane CPU s | CPU ms a machine | s until all were gone | CPU s of that | MiB before | MiB at most |"
    );
    println!("|---|---|---|---|---|---|---|---|---|");
    for _ in 0..rounds {
        let mut child = Command::new(std::env::current_exe()?)
            .args(["--machines", &serving.xds, &count.to_string()])
            .env("ROOT", &serving.root)
            .env("TOKEN", &token)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()?;
        let mut lines = BufReader::new(child.stdout.take().ok_or("no output")?).lines();
        lines.next_line().await?.ok_or("the machines ended")?;
        let (before, begun) = (Cost::of(serving.pid)?, Instant::now());
        child.stdin.take().ok_or("no input")?.write_all(b"go\n").await?;
        are(&entries, count).await?;
        let (registered, there) = (begun.elapsed().as_secs_f64(), Cost::of(serving.pid)?);
        let leaving = Instant::now();
        child.kill().await?;
        are(&entries, 0).await?;
        let (gone, after) = (leaving.elapsed().as_secs_f64(), Cost::of(serving.pid)?);
        let cpu = (there.cpu - before.cpu).as_secs_f64();
        println!(
            "| {count} | {registered:.2} | {:.0} | {cpu:.2} | {:.1} | {gone:.1} | {:.2} | {} | {} |",
            count as f64 / registered,
            cpu * 1000.0 / count as f64,
            (after.cpu - there.cpu).as_secs_f64(),
            before.resident_kib / 1024,
            after.most_kib / 1024
        );
    }
    Ok(())
}

/// Waits until there are so many entries. Looking costs the API server, not the control plane.
async fn are(entries: &Api<DynamicObject>, count: usize) -> Result<(), Error> {
    let waiting = async {
        loop {
            if entries.list_metadata(&ListParams::default()).await?.items.len() == count {
                return Ok(());
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(PATIENCE, waiting).await?
}

/// The child: says when all are connected, and lets them ask for configuration when told. They stay until it is killed.
async fn machines(address: &str, count: usize) -> Result<(), Error> {
    let tls = ClientTlsConfig::new()
        .ca_certificate(Certificate::from_pem(std::env::var("ROOT")?))
        .domain_name("istiod.istio-system.svc");
    let endpoint = Endpoint::from_shared(format!("https://{address}"))?.tls_config(tls)?;
    let token = format!("Bearer {}", std::env::var("TOKEN")?);
    let mut channels = Vec::new();
    for _ in 0..count {
        channels.push(endpoint.connect().await?);
    }
    println!("ready");
    BufReader::new(tokio::io::stdin()).lines().next_line().await?;
    let mut all = tokio::task::JoinSet::new();
    for (index, channel) in channels.into_iter().enumerate() {
        let token = token.clone();
        all.spawn(async move {
            let (requests, receiver) = mpsc::channel(16);
            let mut call = tonic::Request::new(ReceiverStream::new(receiver));
            call.metadata_mut().insert("authorization", token.parse()?);
            let first = DeltaDiscoveryRequest {
                node: Some(node(index)),
                type_url: CLUSTER.to_owned(),
                ..Default::default()
            };
            requests.send(first).await?;
            let mut client = AggregatedDiscoveryServiceClient::new(channel);
            let mut responses = client.delta_aggregated_resources(call).await?.into_inner();
            while let Some(response) = responses.message().await? {
                let acknowledgement = DeltaDiscoveryRequest {
                    type_url: response.type_url,
                    response_nonce: response.nonce,
                    ..Default::default()
                };
                requests.send(acknowledgement).await?;
            }
            Ok::<_, Error>(())
        });
    }
    while let Some(ended) = all.join_next().await {
        ended??;
    }
    Err("a machine's stream has ended".into())
}

fn node(index: usize) -> Node {
    let text = |text: &str| ProtoValue { kind: Some(Kind::StringValue(text.to_owned())) };
    let fields = HashMap::from([
        ("NAMESPACE".to_owned(), text("default")),
        ("SERVICE_ACCOUNT".to_owned(), text("web")),
        ("AUTO_REGISTER_GROUP".to_owned(), text("shop")),
    ]);
    let address = format!("10.9.{}.{}", index / 250, index % 250 + 1);
    Node {
        id: format!("sidecar~{address}~vm-{index}.default~default.svc.cluster.local"),
        metadata: Some(Struct { fields }),
        ..Node::default()
    }
}
