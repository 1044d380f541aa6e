//! PING frames that find out whether the other side is still there.
//! <https://www.envoyproxy.io/docs/envoy/v1.40.0/api-v3/config/core/v3/protocol.proto#config-core-v3-keepalivesettings>

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use h2::{Ping, PingPong};
use lateen_ir::Http2Keepalive;
use tokio::time::{Instant, Sleep};

/// See the module.
pub(super) struct KeepAlive {
    pings: PingPong,
    interval: Duration,
    timeout: Duration,
    /// The next ping's, or the end of the wait for an answer.
    timer: Pin<Box<Sleep>>,
    /// A ping is not yet answered.
    asked: bool,
}

impl KeepAlive {
    /// `None`: it is not to be found out. `pings`: the connection's, which can be taken once.
    pub(super) fn new(
        settings: Option<Http2Keepalive>,
        pings: impl FnOnce() -> Option<PingPong>,
    ) -> Option<Self> {
        let Http2Keepalive { interval, timeout } = settings?;
        let interval = interval?;
        let timer = Box::pin(tokio::time::sleep(interval));
        Some(Self { pings: pings()?, interval, timeout, timer, asked: false })
    }

    /// Asks when it is time to. Ready when the other side has not answered in time.
    pub(super) fn poll_dead(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            if self.asked && self.pings.poll_pong(cx).is_ready() {
                // If it is an error the connection says so itself.
                self.asked = false;
                self.timer.as_mut().reset(Instant::now() + self.interval);
            }
            if self.timer.as_mut().poll(cx).is_pending() {
                return Poll::Pending;
            }
            if self.asked {
                return Poll::Ready(());
            }
            if self.pings.send_ping(Ping::opaque()).is_ok() {
                self.asked = true;
            }
            self.timer.as_mut().reset(Instant::now() + self.timeout);
        }
    }
}
