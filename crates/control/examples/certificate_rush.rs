//! How long it takes until many workloads that start at once have their certificates, and what that costs the control plane.
//!
//! ```text
//! cargo run --release -p lateen-control --example certificate_rush -- [WORKLOADS] [ROUNDS]
//! ```
//! Defaults: 2000, 3. An API server runs in this process, the control plane in a child, the workloads in another: each with a key, a
//! request and a token of its own (made before), a connection of its own over TLS, and one call of CreateCertificate, which has the
//! API server review the token. Times run from the moment all may begin; CPU and resident memory are the control plane's.
#[path = "support/serving.rs"]
mod serving;
#[allow(dead_code, reason = "the tests' support, of which this uses a part")]
#[path = "../tests/support/mod.rs"]
mod support;

use std::process::Stdio;
use std::time::{Duration, Instant};

use lateen_pki::{KeyKind, SpiffeId, WorkloadCertificate, WorkloadKey};
use lateen_xds::certificate_service::{IstioCertificateRequest, create_certificate};
use serving::{Cost, Serving};
use support::Cluster;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::process::Command;
use tonic::transport::{Certificate, ClientTlsConfig, Endpoint};

/// As in `lateend`.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

type Error = Box<dyn std::error::Error + Send + Sync>;

/// Service accounts that the workloads share.
const ACCOUNTS: usize = 50;
/// How long a workload waits for a connection, and for an answer, before it asks again, as the agent does.
const CONNECT: Duration = Duration::from_secs(5);
const ANSWER: Duration = Duration::from_secs(10);

#[tokio::main]
async fn main() -> Result<(), Error> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.first().map(String::as_str) {
        Some(serving::FLAG) => serving::serve().await,
        Some("--workloads") => workloads(arguments[1].clone()).await,
        _ => {
            let number =
                |index: usize, default| arguments.get(index).map_or(Ok(default), |text| text.parse());
            measure(number(0, 2000)?, number(1, 3)?).await
        }
    }
}

async fn measure(count: usize, rounds: usize) -> Result<(), Error> {
    let cluster = Cluster::start().await;
    let myself = std::env::current_exe()?;
    let serving = Serving::start(&cluster).await?;

    let mut tokens = Vec::new();
    for index in 0..count {
        let account = format!("web-{}", index % ACCOUNTS);
        if index < ACCOUNTS {
            cluster.token(&account, "istio-ca").await;
        }
        let request = lateen_apiserver::TokenRequest {
            namespace: "default".into(),
            service_account: account,
            audiences: vec!["istio-ca".into()],
            // Each token is another one, which no cache knows.
            expiration: Duration::from_secs(3600 + index as u64),
            pod: None,
        };
        tokens.push(cluster.api.mint_token(&request)?);
    }
    let file = std::env::temp_dir().join(format!("lateen-rush-{}", std::process::id()));
    std::fs::write(&file, tokens.join("\n"))?;
    println!(
        "| workloads at once | s until all had one | p50 s | p99 s | asked again | control plane CPU s | MiB before | MiB at most |\n|---|---|---|---|---|---|---|---|"
    );
    for _ in 0..rounds {
        let mut child = Command::new(&myself)
            .args(["--workloads", &serving.xds])
            .env("ROOT", &serving.root)
            .env("TOKENS", &file)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()?;
        let mut lines = BufReader::new(child.stdout.take().ok_or("no output")?).lines();
        lines.next_line().await?.ok_or("the workloads ended")?;
        let before = Cost::of(serving.pid)?;
        child.stdin.take().ok_or("no input")?.write_all(b"go\n").await?;
        let figures = lines.next_line().await?.ok_or("the workloads ended")?;
        let after = Cost::of(serving.pid)?;
        println!(
            "| {count} | {figures} | {:.2} | {} | {} |",
            (after.cpu - before.cpu).as_secs_f64(),
            before.resident_kib / 1024,
            after.most_kib / 1024
        );
    }
    std::fs::remove_file(file)?;
    Ok(())
}

/// The child: says when all are ready to begin, begins when told, and tells what it saw.
async fn workloads(address: String) -> Result<(), Error> {
    let tokens: Vec<String> =
        std::fs::read_to_string(std::env::var("TOKENS")?)?.lines().map(str::to_owned).collect();
    let tls = ClientTlsConfig::new()
        .ca_certificate(Certificate::from_pem(std::env::var("ROOT")?))
        .domain_name("istiod.istio-system.svc");
    let endpoint = Endpoint::from_shared(format!("https://{address}"))?.tls_config(tls)?;
    let mut prepared = Vec::new();
    for (index, token) in tokens.into_iter().enumerate() {
        let key = WorkloadKey::generate(KeyKind::P256)?;
        let id = SpiffeId::new("cluster.local", "default", &format!("web-{}", index % ACCOUNTS))?;
        let csr = key.request_as(&id)?;
        prepared.push((key, csr, token));
    }
    println!("ready");
    BufReader::new(tokio::io::stdin()).lines().next_line().await?;
    let (begun, mut all) = (Instant::now(), tokio::task::JoinSet::new());
    for (key, csr, token) in prepared {
        let endpoint = endpoint.clone();
        all.spawn(async move {
            let mut again = 0_u32;
            loop {
                match ask(&endpoint, &csr, &token).await {
                    Ok(chain) => {
                        WorkloadCertificate::new(&key, chain)?;
                        return Ok::<_, Error>((begun.elapsed(), again));
                    }
                    Err(error) => eprintln!("{error}"),
                }
                again += 1;
                let pause = Duration::from_millis(100 << again.min(7)).min(Duration::from_secs(15));
                tokio::time::sleep(pause.mul_f64(0.5 + fastrand::f64() / 2.0)).await;
            }
        });
    }
    let (mut times, mut again) = (Vec::new(), 0);
    while let Some(ended) = all.join_next().await {
        let (time, more) = ended??;
        times.push(time.as_secs_f64());
        again += more;
    }
    times.sort_by(f64::total_cmp);
    let at = |share: f64| times[((times.len() - 1) as f64 * share) as usize];
    println!("{:.2} | {:.2} | {:.2} | {again}", at(1.0), at(0.5), at(0.99));
    Ok(())
}

async fn ask(endpoint: &Endpoint, csr: &str, token: &str) -> Result<Vec<String>, Error> {
    let message = IstioCertificateRequest { csr: csr.to_owned(), validity_duration: 3600, metadata: None };
    let mut request = tonic::Request::new(message);
    request.metadata_mut().insert("authorization", format!("Bearer {token}").parse()?);
    let channel = tokio::time::timeout(CONNECT, endpoint.connect()).await??;
    Ok(tokio::time::timeout(ANSWER, create_certificate(channel, request)).await??.cert_chain)
}
