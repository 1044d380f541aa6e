//! Requests at a fixed rate, each in its own task, whether or not the ones before are answered.

use std::convert::Infallible;
use std::io;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use bytes::{BufMut, Bytes, BytesMut};
use http::{Request, Uri, header};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full};
use hyper_util::client::legacy::Client;
use hyper_util::rt::{TokioExecutor, TokioIo};
use prost::Message;
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tower::util::BoxCloneSyncService;

use super::ANSWER_LIMIT;
use super::report::Recorder;
use super::spec::{Flow, Kind};
use crate::echo_streams::{Numbered, SERVICE};

pub(super) type Body = UnsyncBoxBody<Bytes, Infallible>;
type Connector = BoxCloneSyncService<Uri, TokioIo<TcpStream>, io::Error>;
pub(super) type HttpClient = Client<Connector, Body>;

/// A client that connects to `to` whatever the authority of its requests. Like every careful client it sends a request
/// again when the kept connection it chose turns out to be closed before anything of it was sent.
pub(super) fn client(to: &str, h2: bool, keep: bool) -> HttpClient {
    let to = to.to_owned();
    let connect = tower::service_fn(move |_: Uri| {
        let to = to.clone();
        async move {
            let stream = TcpStream::connect(to).await?;
            stream.set_nodelay(true)?;
            Ok::<_, io::Error>(TokioIo::new(stream))
        }
    });
    Client::builder(TokioExecutor::new())
        .http2_only(h2)
        .pool_max_idle_per_host(if keep { usize::MAX } else { 0 })
        .build(BoxCloneSyncService::new(connect))
}

pub(super) async fn run(flow: &Flow, recorder: &Recorder, stop: watch::Receiver<bool>) {
    let client = client(&flow.to, matches!(flow.kind, Kind::Http2 | Kind::Grpc), flow.kind != Kind::Http1New);
    let mut tick = tokio::time::interval(Duration::from_secs_f64(1.0 / flow.rate));
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut due = JoinSet::new();
    let mut number = 0;
    while !*stop.borrow() {
        tick.tick().await;
        while due.try_join_next().is_some() {}
        number += 1;
        let (flow, recorder, client) = (flow.clone(), recorder.clone(), client.clone());
        due.spawn(async move {
            let began = Instant::now();
            let outcome = tokio::time::timeout(ANSWER_LIMIT, once(&flow, &client, number)).await;
            match outcome.context("no answer in 10 s").flatten() {
                Ok(()) => recorder.answered(began),
                Err(error) => recorder.failed(began, format!("{error:#}"), None),
            }
        });
    }
    while due.join_next().await.is_some() {}
}

async fn once(flow: &Flow, client: &HttpClient, number: u64) -> anyhow::Result<()> {
    let answer = client.request(request(flow, number)?).await?;
    let status = answer.status();
    let (parts, body) = answer.into_parts();
    let body = body.collect().await.with_context(|| format!("the body after {status}"))?;
    if status != 200 {
        let text = String::from_utf8_lossy(&body.to_bytes()).into_owned();
        bail!("{status} {:?} {text}", parts.headers);
    }
    if flow.kind == Kind::Grpc {
        let trailers = body.trailers().cloned().unwrap_or_default();
        let grpc_status = trailers.get("grpc-status").or(parts.headers.get("grpc-status"));
        ensure!(grpc_status.is_some_and(|s| s == "0"), "grpc-status {grpc_status:?} {:?}", parts.headers);
        let bytes = body.to_bytes();
        let answer = Numbered::decode(bytes.get(5..).context("no message")?)?;
        ensure!(answer.number == number, "the answer to {number} is to {}", answer.number);
    }
    Ok(())
}

fn request(flow: &Flow, number: u64) -> anyhow::Result<Request<Body>> {
    let authority = flow.authority();
    if flow.kind == Kind::Grpc {
        let body = Full::new(message(number)).boxed_unsync();
        return grpc_request(&format!("http://{authority}/{SERVICE}/Once"), body);
    }
    let path = flow.path.as_deref().unwrap_or("/");
    let mut request = Request::get(format!("http://{authority}{path}"));
    if flow.kind == Kind::Http1New {
        request = request.header(header::CONNECTION, "close");
    }
    Ok(request.body(Full::default().boxed_unsync())?)
}

pub(super) fn grpc_request(url: &str, body: Body) -> anyhow::Result<Request<Body>> {
    let request =
        Request::post(url).header(header::CONTENT_TYPE, "application/grpc").header(header::TE, "trailers");
    Ok(request.body(body)?)
}

/// A gRPC message: not compressed, its length, a [`Numbered`].
pub(super) fn message(number: u64) -> Bytes {
    let inner = Numbered { number, instance: String::new() }.encode_to_vec();
    let mut out = BytesMut::with_capacity(5 + inner.len());
    out.put_u8(0);
    out.put_u32(u32::try_from(inner.len()).unwrap_or(0));
    out.put_slice(&inner);
    out.freeze()
}
