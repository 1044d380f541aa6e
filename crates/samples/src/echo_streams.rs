//! The streams of `echo`, each of which says whose it is and says so when it ends, so that a caller can tell an end from
//! a loss: gRPC both ways, WebSocket, and TCP with numbered messages.

use std::time::Duration;

use axum::Router;
use axum::extract::Request;
use axum::response::{IntoResponse, Response};
use futures::{SinkExt, Stream, StreamExt, stream};
use http::{HeaderValue, StatusCode, header};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::Role;
use tonic::{Status, Streaming};

use crate::grpc::{bidirectional, service, unary};
use crate::serve::Ending;

/// Full name of the gRPC service.
pub const SERVICE: &str = "lateen.echo.Echo";
/// Header that names the instance which serves a stream.
pub const INSTANCE: &str = "x-instance";
/// Last number of a TCP stream that its server ends.
pub const LAST: u64 = u64::MAX;
/// How long the end of a stream may take to be acknowledged.
const GOODBYE: Duration = Duration::from_secs(5);

/// What is sent and comes back.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Numbered {
    /// Position in the stream.
    #[prost(uint64, tag = "1")]
    pub number: u64,
    /// Who answers; empty in questions.
    #[prost(string, tag = "2")]
    pub instance: String,
}

/// `Echo/Once` and `Echo/Stream`; streams end with status OK when `ending` does.
pub fn grpc(instance: String, ending: Ending) -> Router {
    let once = instance.clone();
    let methods = Router::new()
        .route(
            &format!("/{SERVICE}/Once"),
            unary(move |request: tonic::Request<Numbered>| {
                let number = request.into_inner().number;
                let instance = once.clone();
                async move { Ok(tonic::Response::new(Numbered { number, instance })) }
            }),
        )
        .route(
            &format!("/{SERVICE}/Stream"),
            bidirectional(move |request: tonic::Request<Streaming<Numbered>>| {
                let (instance, ending) = (instance.clone(), ending.clone());
                async move { Ok(answers(request.into_inner(), &instance, ending)) }
            }),
        );
    service(methods)
}

fn answers(
    questions: Streaming<Numbered>,
    instance: &str,
    ending: Ending,
) -> tonic::Response<impl Stream<Item = Result<Numbered, Status>> + use<>> {
    let name = instance.to_owned();
    let answers = stream::unfold((questions, ending), move |(mut questions, mut ending)| {
        let instance = name.clone();
        async move {
            let next = tokio::select! {
                next = questions.message() => next.transpose()?,
                () = ending.begun() => return None,
            };
            let answer = next.map(|question| Numbered { number: question.number, instance });
            Some((answer, (questions, ending)))
        }
    });
    let mut response = tonic::Response::new(answers);
    if let Ok(value) = instance.parse() {
        response.metadata_mut().insert(INSTANCE, value);
    }
    response
}

/// True for a request that asks to speak WebSocket.
pub fn wants_websocket(request: &Request) -> bool {
    let upgrade = request.headers().get(header::UPGRADE).and_then(|value| value.to_str().ok());
    upgrade.is_some_and(|protocol| protocol.eq_ignore_ascii_case("websocket"))
}

/// Sends every message of a WebSocket back, until its peer closes or `ending` does.
pub fn websocket(mut request: Request, instance: &str, mut ending: Ending) -> Response {
    let Some(key) = request.headers().get(header::SEC_WEBSOCKET_KEY) else {
        return (StatusCode::BAD_REQUEST, "sec-websocket-key is missing\n").into_response();
    };
    let accept = derive_accept_key(key.as_bytes());
    let upgraded = hyper::upgrade::on(&mut request);
    tokio::spawn(async move {
        let io = match upgraded.await {
            Ok(io) => TokioIo::new(io),
            Err(error) => return eprintln!("WebSocket: cannot upgrade: {error}"),
        };
        let (mut send, mut receive) = WebSocketStream::from_raw_socket(io, Role::Server, None).await.split();
        loop {
            let message = tokio::select! {
                message = receive.next() => message,
                () = ending.begun() => break,
            };
            match message {
                Some(Ok(message)) if message.is_text() || message.is_binary() => {
                    if let Err(error) = send.send(message).await {
                        return eprintln!("WebSocket: {error}");
                    }
                }
                Some(Ok(_)) => {}
                // An end that was agreed upon, or a peer that is gone.
                None | Some(Err(_)) => return,
            }
        }
        let goodbye = async {
            send.close().await?;
            while receive.next().await.transpose()?.is_some() {}
            Ok::<_, tokio_tungstenite::tungstenite::Error>(())
        };
        if !matches!(tokio::time::timeout(GOODBYE, goodbye).await, Ok(Ok(()))) {
            eprintln!("WebSocket: the peer did not close");
        }
    });
    let mut response = (
        StatusCode::SWITCHING_PROTOCOLS,
        [(header::UPGRADE, "websocket"), (header::CONNECTION, "upgrade")],
        [(header::SEC_WEBSOCKET_ACCEPT, accept)],
    )
        .into_response();
    if let Ok(value) = HeaderValue::from_str(instance) {
        response.headers_mut().insert(INSTANCE, value);
    }
    response
}

/// Greets each connection with the instance's name and a line feed, then sends 64-bit numbers back; [`LAST`] says that
/// the server ends the stream.
pub async fn serve_numbers(listener: TcpListener, instance: String, ending: Ending) {
    loop {
        match listener.accept().await {
            Ok((stream, peer)) => {
                let (instance, ending) = (instance.clone(), ending.clone());
                tokio::spawn(async move {
                    if let Err(error) = numbers(stream, &instance, ending).await {
                        eprintln!("TCP connection from {peer} ended: {error}");
                    }
                });
            }
            Err(error) => eprintln!("cannot accept a TCP connection: {error}"),
        }
    }
}

async fn numbers(mut stream: TcpStream, instance: &str, mut ending: Ending) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let (mut read, mut write) = stream.split();
    write.write_all(format!("{instance}\n").as_bytes()).await?;
    let mut number = [0; 8];
    let mut have = 0;
    // Not `read_exact`, which would lose what it has read when the other branch is taken.
    loop {
        tokio::select! {
            count = read.read(&mut number[have..]) => match count? {
                0 => return Ok(()),
                count => have += count,
            },
            () = ending.begun() => break,
        }
        if have == number.len() {
            write.write_all(&number).await?;
            have = 0;
        }
    }
    write.write_all(&LAST.to_be_bytes()).await?;
    write.shutdown().await?;
    // Closing with unread bytes would reset the connection and lose the goodbye.
    let rest = async {
        while read.read(&mut [0; 1024]).await? > 0 {}
        Ok(())
    };
    tokio::time::timeout(GOODBYE, rest).await.unwrap_or(Ok(()))
}
