//! A connection to an endpoint, and one exchange on it.

use std::future::poll_fn;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use h2::client::{Builder, Connection, ResponseFuture, SendRequest};
use h2::{RecvStream, SendStream};
use http::{HeaderMap, Method, Request, Response, StatusCode};
use http_body::Body as _;
use lateen_ir::Http2Options;
use tokio::task::AbortHandle;

use super::keepalive::KeepAlive;
use super::pipe::Pipe;
use super::{Duplex, MOST_ERRORS, strip};
use crate::body::RequestBody;
use crate::incoming::{Http2Body, Incoming};
use crate::stream::Stream;

/// Room for an answer's body, where the configuration says nothing, in bytes.
const STREAM_WINDOW: u32 = 2 * 1024 * 1024;

/// Room for the bodies of a connection's answers, where the configuration says nothing, in bytes.
const CONNECTION_WINDOW: u32 = 5 * 1024 * 1024;

/// Envoy's limit for an answer's head, in bytes.
const HEAD_LIMIT: u32 = 60 * 1024;

/// Bytes of a request that wait for the socket.
const SEND_BUFFER: usize = 1024 * 1024;

/// The head of an answer; or how the exchange failed, and whether something of the request was sent.
pub(crate) type Exchanged = Result<Response<Incoming>, (h2::Error, bool)>;

/// Sends requests over a connection. A clone sends one.
#[derive(Clone)]
pub(crate) struct Sender(SendRequest<Bytes>);

/// Makes a connection of a stream. It does nothing unless the future, which ends with it, is polled.
///
/// # Errors
/// When the connection ends before that.
pub(crate) async fn connect(
    stream: Stream,
    options: &Http2Options,
) -> Result<(Sender, impl Future<Output = Result<(), h2::Error>> + use<>), h2::Error> {
    let mut builder = Builder::new();
    builder
        .enable_push(false)
        .max_header_list_size(HEAD_LIMIT)
        .max_local_error_reset_streams(Some(MOST_ERRORS))
        .max_send_buffer_size(SEND_BUFFER)
        .initial_window_size(options.initial_stream_window_size.unwrap_or(STREAM_WINDOW))
        .initial_connection_window_size(options.initial_connection_window_size.unwrap_or(CONNECTION_WINDOW));
    if let Some(size) = options.hpack_table_size {
        builder.header_table_size(size);
    }
    let (sender, mut frames) = builder.handshake(stream).await?;
    let keepalive = KeepAlive::new(options.keepalive, || frames.ping_pong());
    Ok((Sender(sender), drive(frames, keepalive)))
}

async fn drive(
    mut frames: Connection<Stream, Bytes>,
    mut keepalive: Option<KeepAlive>,
) -> Result<(), h2::Error> {
    poll_fn(|cx| {
        if keepalive.as_mut().is_some_and(|keepalive| keepalive.poll_dead(cx).is_ready()) {
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut frames).poll(cx)
    })
    .await
}

impl Sender {
    /// Whether the endpoint takes more requests on the connection.
    pub(crate) fn is_open(&mut self) -> bool {
        // A clone that has sent nothing has nothing to wait for.
        !matches!(self.0.poll_ready(&mut Context::from_waker(Waker::noop())), Poll::Ready(Err(_)))
    }

    /// Streams the endpoint allows at once.
    pub(crate) fn most_streams(&self) -> usize {
        self.0.current_max_send_streams()
    }

    /// Sends a request and waits for the head of the answer. `hear` is told what the endpoint says before it. When this is dropped
    /// before its end the stream is reset.
    pub(crate) fn exchange(
        mut self,
        request: Request<RequestBody>,
        hear: impl Fn(StatusCode, &HeaderMap),
    ) -> Pin<Box<impl Future<Output = Exchanged>>> {
        // Boxed: what awaits it serves HTTP/1 too, and is moved about.
        Box::pin(async move {
            let (mut head, body) = request.into_parts();
            strip(&mut head.headers);
            let connect = head.method == Method::CONNECT;
            let ended = !connect && body.is_end_stream();
            let sent = self.0.send_request(Request::from_parts(head, ()), ended);
            let (mut response, stream) = sent.map_err(|error| (error, false))?;
            let (stream, sending) = match (connect, ended) {
                (true, _) => (Some(stream), None),
                (false, true) => (None, None),
                (false, false) => (None, send(stream, body).await),
            };
            let answered = poll_fn(|cx| {
                heed(&mut response, &hear, cx);
                Pin::new(&mut response).poll(cx)
            });
            let (head, receive) = answered.await.map_err(|error| (error, true))?.into_parts();
            // From here on the answer decides how long the request is sent.
            sending.into_iter().for_each(Sending::detach);
            let body = incoming(&head, receive, stream);
            Ok(Response::from_parts(head, body))
        })
    }
}

fn incoming(
    head: &http::response::Parts,
    receive: RecvStream,
    stream: Option<SendStream<Bytes>>,
) -> Incoming {
    match stream.filter(|_| head.status.is_success()) {
        Some(stream) => Incoming::Agreed(Box::new(Duplex::new(stream, receive))),
        None => Incoming::Http2(Http2Body::new(receive, &head.headers)),
    }
}

/// Tells what the endpoint has said before its answer.
fn heed(response: &mut ResponseFuture, hear: &impl Fn(StatusCode, &HeaderMap), cx: &mut Context<'_>) {
    while let Poll::Ready(Some(Ok(said))) = response.poll_informational(cx) {
        hear(said.status(), said.headers());
    }
}

/// Sends a body: as much as can be at once, the rest in a task of its own, since the answer may come first.
async fn send(stream: SendStream<Bytes>, body: RequestBody) -> Option<Sending> {
    let mut pipe = Pipe::new(stream, body);
    let sent = poll_fn(|cx| Poll::Ready(Pin::new(&mut pipe).poll(cx).is_ready())).await;
    let rest = async move {
        // Who resets it is heard by who waits for the answer.
        let _ = pipe.await;
    };
    (!sent).then(|| Sending(Some(tokio::task::spawn_local(rest).abort_handle())))
}

/// A body on its way, given up with this.
struct Sending(Option<AbortHandle>);

impl Sending {
    fn detach(mut self) {
        self.0 = None;
    }
}

impl Drop for Sending {
    fn drop(&mut self) {
        self.0.iter().for_each(AbortHandle::abort);
    }
}
