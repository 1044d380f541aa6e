//! Upgrades (RFC 9110, section 7.8), for example WebSocket: after 101 the two connections are joined.

use http::header::{self, HeaderName};
use http::{Extensions, Request};
use hyper::body::Incoming;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use lateen_ir::Forward;
use tokio::io::copy_bidirectional_with_sizes;

use crate::context::RequestContext;
use crate::forward::UpstreamStream;

const HTTP2_SETTINGS: HeaderName = HeaderName::from_static("http2-settings");

/// Bytes in flight each way on an upgraded connection.
const BUFFER: usize = 16 * 1024;

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
        let asked = request.headers().get(header::CONNECTION)?;
        let asked =
            asked.as_bytes().split(|&b| b == b',').any(|t| t.trim_ascii().eq_ignore_ascii_case(b"upgrade"));
        asked.then_some(Self(upgrade))
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
    tokio::task::spawn_local(async move {
        let stats = context.connection.stats.clone();
        if let (Some(Upgrade(client)), Some(upstream)) = (client, upstream) {
            stats.downstream_cx_upgrades_total.inc();
            stats.downstream_cx_upgrades_active.inc();
            if let (Ok(client), Ok(upstream)) = tokio::join!(client, upstream) {
                let (mut client, mut upstream) = (TokioIo::new(client), TokioIo::new(upstream));
                // Either side may break off; the other is closed and the counts below still hold.
                let copied = copy_bidirectional_with_sizes(&mut client, &mut upstream, BUFFER, BUFFER).await;
                context.bytes_sent = copied.map_or(0, |(_, to_client)| to_client);
            }
            stats.downstream_cx_upgrades_active.dec();
        }
        stream.end(true);
        context.completed();
    });
}
