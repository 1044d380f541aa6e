//! A client's connection: each stream becomes a task that serves its request and sends the answer.

use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use h2::server::{Builder, Connection, Handshake, SendResponse};
use h2::{Reason, RecvStream};
use http::{Method, Request, Response, header};
use http_body::Body as _;
use lateen_ir::HttpConnectionManager;
use tokio::sync::oneshot;

use super::keepalive::KeepAlive;
use super::pipe::{Cut, Pipe};
use super::{Duplex, MOST_ERRORS, strip};
use crate::body::ResponseBody;
use crate::context::HttpConnection;
use crate::http_request::{self, Unanswered};
use crate::incoming::{Http2Body, Incoming};
use crate::interim::{self, Interim};
use crate::lifetime::Serving;
use crate::progress;
use crate::stream::Stream;

/// Envoy's limit on streams of a downstream connection.
const MOST_STREAMS: u32 = 1024;

/// Room for a request's body, and for those of a connection, where the configuration says nothing, in bytes.
const WINDOW: u32 = 1024 * 1024;

/// Bytes of an answer that wait for the socket.
const SEND_BUFFER: usize = 400 * 1024;

/// What a stream has that is not in its request.
#[derive(Default)]
pub(crate) struct Beside {
    /// Where the client is told something before its answer; `None`: over HTTP/1, or nobody will tell it anything.
    pub(crate) interim: Option<Interim>,
    /// Of a CONNECT that is agreed to.
    pub(crate) tunnel: Option<oneshot::Receiver<Duplex>>,
}

/// What the codec counts of each header on top of its name and value (RFC 9113, section 6.5.2). Envoy doesn't.
const PER_HEADER: u32 = 32;

/// Headers of a request that are none of its own: `:method` and the like.
const PSEUDO_HEADERS: u32 = 6;

/// By so many bytes a head may be too large and still be taken, so that it is refused as Envoy does it, counted and logged. The codec
/// answers a larger one by itself, with 431.
const FAR: u32 = 16 * 1024;

/// Serves a connection until it ends.
pub(crate) struct Server {
    state: State,
    connection: Rc<HttpConnection>,
    /// Asked for before hands were shaken.
    finishing: bool,
}

enum State {
    Shaking(Handshake<Stream, Bytes>),
    Serving(Connection<Stream, Bytes>, Option<KeepAlive>),
}

impl Server {
    /// `head_limit`: most bytes of a request's head.
    pub(crate) fn new(
        stream: Stream,
        hcm: &HttpConnectionManager,
        head_limit: u32,
        connection: Rc<HttpConnection>,
    ) -> Self {
        let options = &hcm.http2;
        let headers = hcm.common.max_headers_count.saturating_add(PSEUDO_HEADERS);
        let more = PER_HEADER.saturating_mul(headers).saturating_add(FAR);
        let mut builder = Builder::new();
        builder
            .max_concurrent_streams(options.max_concurrent_streams.unwrap_or(MOST_STREAMS))
            .max_header_list_size(head_limit.saturating_add(more))
            .max_local_error_reset_streams(Some(MOST_ERRORS))
            .max_send_buffer_size(SEND_BUFFER)
            .initial_window_size(options.initial_stream_window_size.unwrap_or(WINDOW))
            .initial_connection_window_size(options.initial_connection_window_size.unwrap_or(WINDOW));
        if let Some(size) = options.hpack_table_size {
            builder.header_table_size(size);
        }
        if options.allow_connect {
            builder.enable_connect_protocol();
        }
        Self { state: State::Shaking(builder.handshake(stream)), connection, finishing: false }
    }
}

impl Serving for Server {
    type Error = h2::Error;

    fn finish(mut self: Pin<&mut Self>) {
        match &mut self.state {
            State::Serving(frames, _) => frames.graceful_shutdown(),
            State::Shaking(_) => self.finishing = true,
        }
    }
}

impl Future for Server {
    type Output = Result<(), h2::Error>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = &mut *self;
        loop {
            match &mut this.state {
                State::Shaking(handshake) => {
                    let mut frames = ready!(Pin::new(handshake).poll(cx))?;
                    if this.finishing {
                        frames.graceful_shutdown();
                    }
                    let settings = this.connection.config.hcm.http2.keepalive;
                    let keepalive = KeepAlive::new(settings, || frames.ping_pong());
                    this.state = State::Serving(frames, keepalive);
                }
                State::Serving(frames, keepalive) => {
                    if keepalive.as_mut().is_some_and(|keepalive| keepalive.poll_dead(cx).is_ready()) {
                        return Poll::Ready(Err(Reason::NO_ERROR.into()));
                    }
                    match ready!(frames.poll_accept(cx)) {
                        Some(Ok((request, respond))) => begin(&this.connection, request, respond),
                        Some(Err(error)) => return Poll::Ready(Err(error)),
                        None => return Poll::Ready(Ok(())),
                    }
                }
            }
        }
    }
}

/// Gives a stream its task.
fn begin(connection: &Rc<HttpConnection>, request: Request<RecvStream>, respond: SendResponse<Bytes>) {
    let work = serve(connection.clone(), request, respond);
    tokio::task::spawn_local(progress::watch(connection.clone(), work));
}

async fn serve(
    connection: Rc<HttpConnection>,
    request: Request<RecvStream>,
    mut respond: SendResponse<Bytes>,
) {
    let (head, stream) = request.into_parts();
    let mut beside = Beside::default();
    // Nearly nobody is told anything before the answer.
    if connection.config.hcm.proxy_100_continue || interim::expects_continue(&head.headers) {
        beside.interim = Some(Interim::default());
    }
    let interim = beside.interim.clone();
    let (body, tunnel) = if head.method == Method::CONNECT {
        let (open, opened) = oneshot::channel();
        beside.tunnel = Some(opened);
        (Incoming::Empty, Some((open, stream)))
    } else {
        (Incoming::Http2(Http2Body::new(stream, &head.headers)), None)
    };
    let response = {
        let serving = pin!(http_request::serve(connection.clone(), head, body, beside));
        answer(&connection, serving, &mut respond, interim).await
    };
    connection.reset.set(None);
    match response {
        None => {}
        Some(Err(unanswered)) => respond.send_reset(unanswered.reason()),
        Some(Ok(response)) => send(&connection, response, respond, tunnel).await,
    }
}

/// The answer; `None`: the client doesn't want it any more. Interim answers go out as they come.
async fn answer<F>(
    connection: &HttpConnection,
    mut serving: Pin<&mut F>,
    respond: &mut SendResponse<Bytes>,
    interim: Option<Interim>,
) -> Option<F::Output>
where
    F: Future,
{
    poll_fn(|cx| {
        interim.iter().for_each(|interim| interim.wake_with(cx.waker()));
        loop {
            if let Poll::Ready(answer) = serving.as_mut().poll(cx) {
                return Poll::Ready(Some(answer));
            }
            let said = interim.as_ref().map(Interim::take_answers).unwrap_or_default();
            if said.is_empty() {
                return respond.poll_reset(cx).map(|reset| {
                    // The request, which ends with this, is to know. An error says that the connection is gone.
                    connection.reset.set(reset.ok().map(details));
                    None
                });
            }
            // One that can't be sent leaves the stream as it is: its reset is seen next.
            for mut answer in said {
                strip(answer.headers_mut());
                drop(respond.send_informational(answer));
            }
        }
    })
    .await
}

/// Sends an answer, and with it the end of the stream, unless it becomes a tunnel.
async fn send(
    connection: &HttpConnection,
    response: Response<ResponseBody>,
    mut respond: SendResponse<Bytes>,
    tunnel: Option<(oneshot::Sender<Duplex>, RecvStream)>,
) {
    let (mut head, body) = response.into_parts();
    strip(&mut head.headers);
    if !head.headers.contains_key(header::DATE) {
        head.headers.insert(header::DATE, connection.worker.date.now());
    }
    let tunnel = tunnel.filter(|_| head.status.is_success());
    let ended = tunnel.is_none() && body.is_end_stream();
    if tunnel.is_some() {
        head.headers.remove(header::CONTENT_LENGTH);
    } else if !ended
        && let Some(length) = body.size_hint().exact()
        && !head.headers.contains_key(header::CONTENT_LENGTH)
    {
        head.headers.insert(header::CONTENT_LENGTH, length.into());
    }
    let Ok(stream) = respond.send_response(Response::from_parts(head, ()), ended) else {
        respond.send_reset(Reason::INTERNAL_ERROR);
        return;
    };
    match tunnel {
        // Whoever asked for it may be gone; then so is the stream.
        Some((open, receive)) => drop(open.send(Duplex::new(stream, receive))),
        None if ended => {}
        None => {
            let mut pipe = Pipe::new(stream, body);
            let cut = (&mut pipe).await.err();
            connection.reset.set(cut.and_then(|Cut(reason)| reason).map(details));
            drop(pipe);
            connection.reset.set(None);
        }
    }
}

/// Envoy's words for a client's reset.
fn details(reason: Reason) -> &'static str {
    if reason == Reason::REFUSED_STREAM { "http2.remote_refuse" } else { "http2.remote_reset" }
}

impl Unanswered {
    /// What the client's stream is reset with.
    fn reason(&self) -> Reason {
        match self {
            Self::Gone => Reason::INTERNAL_ERROR,
            Self::Refused(reason) => *reason,
        }
    }
}
