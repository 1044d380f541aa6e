//! Connections that become something else: upgrades (RFC 9110, section 7.8), for example WebSocket, CONNECT (section 9.3.6), and both
//! over HTTP/2 (RFC 8441; RFC 9113, section 8.5). Once the answer says so, the client's stream and the endpoint's are joined.
//!
//! Inside the proxy an upgrade always has HTTP/1's form, a GET with `upgrade` and an answer 101, whatever either side speaks.

use h2::ext::Protocol;
use http::header::{self, HeaderName, HeaderValue};
use http::{Extensions, HeaderMap, Method, Request, StatusCode, Version, request};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use lateen_ir::UpgradeConfig;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::oneshot;

use crate::answer::UpstreamStream;
use crate::context::RequestContext;
use crate::failure::{CLIENT_GONE, Flags};
use crate::hop_by_hop::contains_token;
use crate::http2::Duplex;
use crate::incoming::Incoming;
use crate::mover::{Moved, Mover};
use crate::stream::Stream;
use crate::timer;
use crate::upstream_connection::Opened;

/// Bytes in both directions, whatever carries them. Tunnels are rare and long, so that a call through a pointer is nothing.
trait Bytes: AsyncRead + AsyncWrite + Unpin {}

impl<T: AsyncRead + AsyncWrite + Unpin> Bytes for T {}

const HTTP2_SETTINGS: HeaderName = HeaderName::from_static("http2-settings");

/// The client's side of what was asked for.
pub(crate) enum Upgrade {
    Http1(OnUpgrade),
    /// A CONNECT's stream.
    Http2(oneshot::Receiver<Duplex>),
}

impl Upgrade {
    /// Takes the client's wish, if any. A wish for `h2c` is dropped, as Envoy does: HTTP/2 is spoken with prior knowledge only.
    /// `stream`: that of a CONNECT over HTTP/2.
    pub(crate) fn begin(
        head: &mut request::Parts,
        stream: Option<oneshot::Receiver<Duplex>>,
    ) -> Option<Self> {
        if let Some(stream) = stream {
            if let Some(protocol) = head.extensions.remove::<Protocol>() {
                let value = HeaderValue::from_str(protocol.as_str()).ok()?;
                head.method = Method::GET;
                say_upgrade(&mut head.headers, value);
            }
            return Some(Self::Http2(stream));
        }
        if head.method == Method::CONNECT {
            return head.extensions.remove::<OnUpgrade>().map(Self::Http1);
        }
        let wanted = head.headers.get(header::UPGRADE)?;
        if wanted.as_bytes().eq_ignore_ascii_case(b"h2c") {
            head.headers.remove(header::UPGRADE);
            head.headers.remove(header::CONNECTION);
            head.headers.remove(HTTP2_SETTINGS);
            return None;
        }
        let upgrade = head.extensions.remove::<OnUpgrade>()?;
        let mut lists = head.headers.get_all(header::CONNECTION).iter();
        lists.any(|list| contains_token(list.as_bytes(), b"upgrade")).then_some(Self::Http1(upgrade))
    }

    /// The client's stream, once it has been answered.
    async fn stream(self) -> Option<Box<dyn Bytes>> {
        Some(match self {
            Self::Http1(upgrade) => Box::new(TokioIo::new(upgrade.await.ok()?)),
            Self::Http2(stream) => Box::new(stream.await.ok()?),
        })
    }
}

fn say_upgrade(headers: &mut HeaderMap, protocol: HeaderValue) {
    headers.insert(header::UPGRADE, protocol);
    headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
}

/// What the route or else the connection manager says about what the client wishes; `None`: it is not allowed.
pub(crate) fn allowed<'a>(
    context: &'a RequestContext,
    of_route: &'a [UpgradeConfig],
) -> Option<&'a UpgradeConfig> {
    let wanted = if context.head.method == Method::CONNECT {
        b"connect"
    } else {
        context.head.headers.get(header::UPGRADE)?.as_bytes()
    };
    let find = |configs: &'a [UpgradeConfig]| {
        configs.iter().find(|config| config.upgrade_type.as_bytes().eq_ignore_ascii_case(wanted))
    };
    let of_manager = || find(&context.connection.config.hcm.upgrades);
    find(of_route).or_else(of_manager).filter(|config| config.enabled)
}

/// Gives a request that is sent over HTTP/2 the form a wish has there. `true`: it is an extended CONNECT.
pub(crate) fn to_http2(request: &mut Request<crate::body::RequestBody>) -> bool {
    let Some(protocol) = request.headers_mut().remove(header::UPGRADE) else { return false };
    request.headers_mut().remove(header::CONNECTION);
    let Ok(protocol) = protocol.to_str() else { return false };
    request.extensions_mut().insert(Protocol::from(protocol));
    true
}

/// Whether upstream agrees. The answer gets the form it has over HTTP/1.
pub(crate) fn agreed(context: &RequestContext, head: &mut http::response::Parts) -> bool {
    if context.head.method == Method::CONNECT {
        return head.status.is_success();
    }
    if context.upstream_version != Some(Version::HTTP_2) {
        return head.status == StatusCode::SWITCHING_PROTOCOLS;
    }
    let Some(protocol) = context.head.headers.get(header::UPGRADE).filter(|_| head.status == StatusCode::OK)
    else {
        return false;
    };
    head.status = StatusCode::SWITCHING_PROTOCOLS;
    say_upgrade(&mut head.headers, protocol.clone());
    true
}

/// Gives an agreeing answer the form it has over HTTP/2.
pub(crate) fn answer_http2(status: &mut StatusCode, headers: &mut HeaderMap) {
    *status = StatusCode::OK;
    headers.remove(header::UPGRADE);
    headers.remove(header::CONNECTION);
    headers.remove(header::CONTENT_LENGTH);
}

/// Where the other end of a tunnel comes from.
pub(crate) enum Far {
    /// An answer over HTTP/1 that agreed.
    Answered(Box<Extensions>),
    /// One over HTTP/2.
    Agreed(Box<Duplex>),
    /// A connection of its own.
    Connected(Box<Stream>, Opened),
}

impl Far {
    /// The endpoint's side of an answer that agreed.
    pub(crate) fn answered(extensions: Extensions, body: Incoming) -> Self {
        match body.into_duplex() {
            Some(stream) => Self::Agreed(stream),
            None => Self::Answered(Box::new(extensions)),
        }
    }

    /// The endpoint's stream, and what counts its connection where the pool doesn't.
    async fn stream(self) -> Option<(Box<dyn Bytes>, Option<Opened>)> {
        Some(match self {
            Self::Answered(mut extensions) => {
                (Box::new(TokioIo::new(extensions.remove::<OnUpgrade>()?.await.ok()?)), None)
            }
            Self::Agreed(stream) => (stream, None),
            Self::Connected(stream, opened) => (stream, Some(opened)),
        })
    }
}

/// Joins both connections once the answer has been sent. The request ends with them.
pub(crate) fn join(
    client: Option<Upgrade>,
    far: Far,
    mut context: Box<RequestContext>,
    mut stream: UpstreamStream,
) {
    let counted = context.connection.worker.connection_began();
    tokio::task::spawn_local(async move {
        let _counted = counted;
        let stats = context.connection.stats.clone();
        stats.downstream_cx_upgrades_total.inc();
        stats.downstream_cx_upgrades_active.inc();
        if let Some(client) = client
            && let (Some(client), Some((upstream, _opened))) = tokio::join!(client.stream(), far.stream())
        {
            exchange(client, upstream, &mut context, &stream).await;
        }
        stats.downstream_cx_upgrades_active.dec();
        stream.end(true);
        context.completed();
    });
}

/// Moves bytes until both sides have ended, nothing moved for the stream's idle time-out, the stream's time is over, or draining
/// took too long.
async fn exchange(
    mut client: Box<dyn Bytes>,
    mut upstream: Box<dyn Bytes>,
    context: &mut RequestContext,
    stream: &UpstreamStream,
) {
    let moved = Moved::default();
    let connection = context.connection.clone();
    let drained = async {
        connection.drain.fired().await;
        tokio::time::sleep(connection.worker.drain_time).await;
    };
    let ended = tokio::select! {
        biased;
        ended = Mover::new(&mut client, &mut upstream, stream.idle_timeout, &moved) => ended.err(),
        () = drained => None,
        () = timer::until(stream.stream_end) => {
            context.flags.insert(Flags::UPSTREAM_MAX_STREAM_DURATION);
            None
        }
    };
    if ended.is_some_and(|error| error.kind() == std::io::ErrorKind::TimedOut) {
        context.flags.insert(Flags::STREAM_IDLE_TIMEOUT);
        context.details = "stream_idle_timeout".into();
    } else if moved.client_first.get() {
        context.flags.insert(Flags::DOWNSTREAM_TERMINATION);
        context.details = CLIENT_GONE.into();
    }
    context.bytes_sent = moved.sent.get();
    if let Some(body) = &context.body {
        body.count(moved.received.get());
    }
}
