//! Streams of a client's HTTP/2 connection, each a task, and what ends one whose client takes nothing.

use std::cell::Cell;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Instant;

use tokio::time::Sleep;

use crate::context::HttpConnection;

/// When the client must have taken more of a stream's answer. hyper asks for more of an answer only when there is room for it, so
/// that the answer itself can't notice.
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

/// Runs the streams of one connection on the worker's own thread.
#[derive(Clone)]
pub(crate) struct StreamExecutor(pub(crate) Rc<HttpConnection>);

impl<F: Future + 'static> hyper::rt::Executor<F> for StreamExecutor {
    fn execute(&self, future: F) {
        let connection = self.0.clone();
        tokio::task::spawn_local(async move {
            let late = run(future, &connection).await;
            if late == Some(Late::Flushing) {
                connection.worker.stats.http2_codec().tx_flush_timeout.inc();
            } else if late == Some(Late::Answering) {
                connection.stats.downstream_rq_idle_timeout.inc();
            }
            connection.end_if_left();
        });
    }
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
