//! Long-lived streams: a number is sent, the same number must come back, again and again.

use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use bytes::{Buf, Bytes, BytesMut};
use futures::{SinkExt, StreamExt, stream};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::{Frame, Incoming};
use prost::Message as _;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{mpsc, watch};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::{Message, client::IntoClientRequest};

use super::report::Recorder;
use super::requests::{client, grpc_request, message};
use super::spec::{Flow, Kind};
use super::{ANSWER_LIMIT, REOPEN_PAUSE};
use crate::echo_streams::{INSTANCE, LAST, Numbered, SERVICE};

/// Bytes a greeting may have.
const MOST_GREETING: usize = 1024;

/// An open stream.
enum Numbers {
    Grpc { send: Option<mpsc::Sender<Bytes>>, receive: Incoming, rest: BytesMut, status: Option<String> },
    Websocket(Box<WebSocketStream<TcpStream>>),
    Tcp { read: OwnedReadHalf, write: OwnedWriteHalf, rest: BytesMut },
}

/// What came.
enum Came {
    Number(u64),
    /// The server ended the stream, saying so.
    End,
}

/// Keeps one stream open until told to stop, and opens another whenever it ends.
pub(super) async fn run(flow: &Flow, recorder: &Recorder, mut stop: watch::Receiver<bool>) {
    while !*stop.borrow() {
        let began = Instant::now();
        let opened = tokio::time::timeout(ANSWER_LIMIT, open(flow)).await;
        let (mut numbers, instance) = match opened.context("not open in 10 s").flatten() {
            Ok(opened) => opened,
            Err(error) => {
                recorder.failed(began, format!("cannot open: {error:#}"), None);
                tokio::time::sleep(REOPEN_PAUSE).await;
                continue;
            }
        };
        recorder.opened();
        match exchange(&mut numbers, flow, recorder, &mut stop).await {
            Ok(()) => {
                if !*stop.borrow() {
                    recorder.ended();
                }
            }
            Err(error) => recorder.failed(began, format!("{error:#}"), Some(instance)),
        }
        if !*stop.borrow() {
            tokio::time::sleep(REOPEN_PAUSE).await;
        }
    }
}

async fn exchange(
    numbers: &mut Numbers,
    flow: &Flow,
    recorder: &Recorder,
    stop: &mut watch::Receiver<bool>,
) -> anyhow::Result<()> {
    let mut tick = tokio::time::interval(Duration::from_secs_f64(1.0 / flow.rate));
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    for number in 0.. {
        // The server may say goodbye at any time, also between messages.
        let early = tokio::select! {
            _ = tick.tick() => None,
            _ = stop.changed() => {
                return tokio::time::timeout(ANSWER_LIMIT, numbers.finish()).await.context("not closed in 10 s")?;
            }
            came = numbers.next() => Some(came?),
        };
        match early {
            None => {}
            Some(Came::End) => return Ok(()),
            Some(Came::Number(other)) => bail!("{other} came before {number} was sent"),
        }
        let sent = Instant::now();
        // A server that has just said goodbye takes no more; what it said is then found by reading.
        let sending = numbers.send(number).await;
        let came = tokio::time::timeout(ANSWER_LIMIT, numbers.next()).await;
        match came.with_context(|| format!("no answer to {number} in 10 s"))?? {
            Came::End => return Ok(()),
            Came::Number(same) if same == number => recorder.answered(sent),
            Came::Number(other) => bail!("the answer to {number} is {other}"),
        }
        sending?;
    }
    Ok(())
}

async fn open(flow: &Flow) -> anyhow::Result<(Numbers, String)> {
    match flow.kind {
        Kind::GrpcStream => open_grpc(flow).await,
        Kind::Websocket => open_websocket(flow).await,
        _ => open_tcp(flow).await,
    }
}

fn named(headers: &http::HeaderMap) -> String {
    headers.get(INSTANCE).map(|v| String::from_utf8_lossy(v.as_bytes()).into_owned()).unwrap_or_default()
}

async fn open_grpc(flow: &Flow) -> anyhow::Result<(Numbers, String)> {
    let (send, mut messages) = mpsc::channel(4);
    let frames = stream::poll_fn(move |cx| messages.poll_recv(cx).map(|m| m.map(|m| Ok(Frame::data(m)))));
    let url = format!("http://{}/{SERVICE}/Stream", flow.authority());
    let request = grpc_request(&url, StreamBody::new(frames).boxed_unsync())?;
    // A connection for each stream, so that streams fare differently.
    let answer = client(&flow.to, true, true).request(request).await?;
    let instance = named(answer.headers());
    ensure!(answer.status() == 200, "{} {:?}", answer.status(), answer.headers());
    if let Some(status) = answer.headers().get("grpc-status").filter(|status| *status != "0") {
        bail!("grpc-status {status:?} {:?}", answer.headers());
    }
    let status = answer.headers().get("grpc-status").map(|status| format!("{status:?}"));
    let receive = answer.into_body();
    Ok((Numbers::Grpc { send: Some(send), receive, rest: BytesMut::new(), status }, instance))
}

async fn open_websocket(flow: &Flow) -> anyhow::Result<(Numbers, String)> {
    let stream = TcpStream::connect(&flow.to).await?;
    stream.set_nodelay(true)?;
    let path = flow.path.as_deref().unwrap_or("/");
    let request = format!("ws://{}{path}", flow.authority()).into_client_request()?;
    let (websocket, answer) = tokio_tungstenite::client_async(request, stream).await?;
    Ok((Numbers::Websocket(Box::new(websocket)), named(answer.headers())))
}

async fn open_tcp(flow: &Flow) -> anyhow::Result<(Numbers, String)> {
    let stream = TcpStream::connect(&flow.to).await?;
    stream.set_nodelay(true)?;
    let (mut read, write) = stream.into_split();
    let mut rest = BytesMut::new();
    let end = loop {
        if let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
            break end;
        }
        let more = rest.len() < MOST_GREETING && read.read_buf(&mut rest).await? > 0;
        ensure!(more, "greeted with {rest:?}");
    };
    let instance = String::from_utf8_lossy(&rest.split_to(end)).into_owned();
    rest.advance(1);
    Ok((Numbers::Tcp { read, write, rest }, instance))
}

impl Numbers {
    async fn send(&mut self, number: u64) -> anyhow::Result<()> {
        match self {
            Self::Grpc { send, .. } => {
                let send = send.as_ref().context("already finished")?;
                send.send(message(number)).await.context("the request's stream is closed")
            }
            Self::Websocket(socket) => Ok(socket.send(Message::text(number.to_string())).await?),
            Self::Tcp { write, .. } => Ok(write.write_all(&number.to_be_bytes()).await?),
        }
    }

    /// Must not lose anything when it is dropped unfinished.
    async fn next(&mut self) -> anyhow::Result<Came> {
        match self {
            Self::Grpc { receive, rest, status, .. } => loop {
                if let Some(number) = first_message(rest)? {
                    return Ok(Came::Number(number));
                }
                match receive.frame().await.transpose()? {
                    Some(frame) => match frame.into_data() {
                        Ok(data) => rest.extend_from_slice(&data),
                        Err(frame) => {
                            let trailers = frame.into_trailers().unwrap_or_default();
                            *status = Some(format!("{trailers:?}"));
                            let grpc_status = trailers.get("grpc-status");
                            ensure!(grpc_status.is_some_and(|s| s == "0"), "ended with {trailers:?}");
                        }
                    },
                    None => {
                        ensure!(status.is_some(), "ended without trailers");
                        return Ok(Came::End);
                    }
                }
            },
            Self::Websocket(socket) => loop {
                match socket.next().await.transpose()? {
                    Some(Message::Text(text)) => return Ok(Came::Number(text.parse()?)),
                    Some(Message::Close(_)) => return Ok(Came::End),
                    Some(_) => {}
                    None => bail!("ended without a close"),
                }
            },
            Self::Tcp { read, rest, .. } => {
                while rest.len() < 8 {
                    ensure!(read.read_buf(rest).await? > 0, "closed without a goodbye");
                }
                match rest.get_u64() {
                    LAST => Ok(Came::End),
                    number => Ok(Came::Number(number)),
                }
            }
        }
    }

    /// Ends the stream from this side and waits for the other's agreement.
    async fn finish(&mut self) -> anyhow::Result<()> {
        match self {
            Self::Grpc { send, .. } => drop(send.take()),
            Self::Websocket(socket) => futures::SinkExt::close(socket.as_mut()).await?,
            Self::Tcp { write, read, rest } => {
                write.shutdown().await?;
                while read.read_buf(rest).await? > 0 {}
                ensure!(rest.is_empty() || **rest == LAST.to_be_bytes(), "{rest:?} came after the end");
                return Ok(());
            }
        }
        loop {
            match self.next().await {
                Ok(Came::End) => return Ok(()),
                Ok(Came::Number(_)) => {}
                Err(error) => return Err(error.context("closing")),
            }
        }
    }
}

/// Takes the first whole gRPC message off `bytes`.
fn first_message(bytes: &mut BytesMut) -> anyhow::Result<Option<u64>> {
    let Some(header) = bytes.get(1..5) else { return Ok(None) };
    let length = u32::from_be_bytes(header.try_into()?) as usize;
    if bytes.len() < 5 + length {
        return Ok(None);
    }
    bytes.advance(5);
    Ok(Some(Numbered::decode(bytes.split_to(length))?.number))
}
