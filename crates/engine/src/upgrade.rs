//! Upgrades (RFC 9110, section 7.8), for example WebSocket: after 101 the two connections are joined.

use http::header::{self, HeaderName};
use http::{Extensions, Request};
use hyper::body::Incoming;
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::TokioIo;
use lateen_ir::Forward;

use crate::answer::UpstreamStream;
use crate::context::RequestContext;
use crate::failure::{CLIENT_GONE, Flags};
use crate::ingress::contains_token;
use crate::mover::{Moved, Mover};

const HTTP2_SETTINGS: HeaderName = HeaderName::from_static("http2-settings");

/// The client's side of an upgrade that was asked for.
pub(crate) struct Upgrade(OnUpgrade);

impl Upgrade {
    /// Takes the client's wish, if any. A wish for `h2c` is dropped, as Envoy does: HTTP/2 is spoken with prior knowledge only.
    pub(crate) fn begin(request: &mut Request<Incoming>) -> Option<Self> {
        let wanted = request.headers().get(header::UPGRADE)?;
        if wanted.as_bytes().eq_ignore_ascii_case(b"h2c") {
            let headers = request.headers_mut();
            headers.remove(header::UPGRADE);
            headers.remove(header::CONNECTION);
            headers.remove(HTTP2_SETTINGS);
            return None;
        }
        let upgrade = request.extensions_mut().remove::<OnUpgrade>()?;
        let mut lists = request.headers().get_all(header::CONNECTION).iter();
        lists.any(|list| contains_token(list.as_bytes(), b"upgrade")).then_some(Self(upgrade))
    }
}

/// Whether the route or else the connection manager allows the upgrade.
pub(crate) fn allowed(context: &RequestContext, action: &Forward) -> bool {
    let Some(wanted) = context.head.headers.get(header::UPGRADE) else { return true };
    let find = |configs: &[lateen_ir::UpgradeConfig]| {
        configs
            .iter()
            .find(|config| config.upgrade_type.as_bytes().eq_ignore_ascii_case(wanted.as_bytes()))
            .map(|config| config.enabled)
    };
    find(&action.upgrades).or_else(|| find(&context.connection.config.hcm.upgrades)).unwrap_or(false)
}

/// Joins both connections once the 101 has been sent. The request ends with them.
pub(crate) fn join(
    client: Option<Upgrade>,
    mut answered: Extensions,
    mut context: Box<RequestContext>,
    mut stream: UpstreamStream,
) {
    let upstream = answered.remove::<OnUpgrade>();
    let counted = context.connection.worker.connection_began();
    tokio::task::spawn_local(async move {
        let _counted = counted;
        let stats = context.connection.stats.clone();
        if let (Some(Upgrade(client)), Some(upstream)) = (client, upstream) {
            stats.downstream_cx_upgrades_total.inc();
            stats.downstream_cx_upgrades_active.inc();
            if let (Ok(client), Ok(upstream)) = tokio::join!(client, upstream) {
                exchange(client, upstream, &mut context, &stream).await;
            }
            stats.downstream_cx_upgrades_active.dec();
        }
        stream.end(true);
        context.completed();
    });
}

/// Moves bytes until both sides have ended, nothing moved for the stream's idle time-out, the stream's time is over, or draining
/// took too long.
async fn exchange(
    client: Upgraded,
    upstream: Upgraded,
    context: &mut RequestContext,
    stream: &UpstreamStream,
) {
    let (mut client, mut upstream) = (TokioIo::new(client), TokioIo::new(upstream));
    let moved = Moved::default();
    let connection = context.connection.clone();
    let drained = async {
        connection.drain.fired().await;
        tokio::time::sleep(connection.worker.drain_time).await;
    };
    let over = async {
        match stream.stream_end {
            Some(at) => tokio::time::sleep_until(at.into()).await,
            None => std::future::pending().await,
        }
    };
    let ended = tokio::select! {
        biased;
        ended = Mover::new(&mut client, &mut upstream, stream.idle_timeout, &moved) => ended.err(),
        () = drained => None,
        () = over => {
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
