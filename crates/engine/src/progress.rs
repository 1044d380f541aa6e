//! Streams of a client's HTTP/2 connection, each a task, and what ends one whose client takes nothing.

use std::cell::Cell;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Instant;

use tokio::time::Sleep;

use crate::context::HttpConnection;

/// When the client must have taken more of a stream's answer. An answer is asked for more only when there is room for it, so
/// that it can't notice itself.
#[derive(Debug, Default)]
pub(crate) struct Progress {
    by: Cell<Option<Instant>>,
}

impl Progress {
    pub(crate) fn expect(&self, by: Option<Instant>) {
        self.by.set(by);
    }

    /// Ready when the time has passed.
    fn poll_late(&self, timer: &mut Option<Pin<Box<Sleep>>>, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            let Some(by) = self.by.get() else { return Poll::Pending };
            let sleep = timer.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(by.into())));
            if sleep.as_mut().poll(cx).is_pending() {
                return Poll::Pending;
            }
            if by <= Instant::now() {
                return Poll::Ready(());
            }
            sleep.as_mut().reset(by.into());
        }
    }
}

/// Runs a stream of a connection to its end, or until its client is late.
pub(crate) async fn watch(connection: Rc<HttpConnection>, stream: impl Future) {
    let late = run(stream, &connection).await;
    if late == Some(Late::Flushing) {
        connection.worker.stats.http2_codec().tx_flush_timeout.inc();
    } else if late == Some(Late::Answering) {
        connection.stats.downstream_rq_idle_timeout.inc();
    }
    connection.end_if_left();
}

/// What a stream was at when its client took nothing for too long.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Late {
    Answering,
    /// All of the answer was there and the request was over.
    Flushing,
}

/// Runs a stream to its end, or until its client is late. Then the stream is gone, and its request with it.
async fn run(future: impl Future, connection: &Rc<HttpConnection>) -> Option<Late> {
    let before;
    {
        let mut future = pin!(future);
        let progress = Rc::new(Progress::default());
        let mut timer = None;
        let late = std::future::poll_fn(|cx| {
            let outer = connection.turn.replace(Some(progress.clone()));
            let polled = future.as_mut().poll(cx);
            connection.turn.replace(outer);
            if polled.is_ready() {
                Poll::Ready(false)
            } else {
                progress.poll_late(&mut timer, cx).map(|()| true)
            }
        })
        .await;
        if !late {
            return None;
        }
        before = connection.active.get();
        connection.stalled.set(true);
        connection.left_behind.set(true);
    }
    connection.stalled.set(false);
    Some(if connection.active.get() < before { Late::Answering } else { Late::Flushing })
}
