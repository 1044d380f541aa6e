//! A body that may pass only so fast.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body::{Body, Frame};
use tokio::time::Sleep;

/// How often more may pass: Envoy's `StreamRateLimiter`.
const SLICE: Duration = Duration::from_millis(50);
const SLICES_PER_SECOND: u64 = 20;

/// See the module. What is not used is saved up for a second at most.
pub(crate) struct Throttle {
    bytes_per_slice: u64,
    credit: u64,
    filled: Instant,
    pending: Bytes,
    timer: Option<Pin<Box<Sleep>>>,
}

impl Throttle {
    pub(crate) fn new(kib_per_second: u64) -> Self {
        let bytes_per_slice = (kib_per_second.saturating_mul(1024) / SLICES_PER_SECOND).max(1);
        Self {
            bytes_per_slice,
            credit: bytes_per_slice,
            filled: Instant::now(),
            pending: Bytes::new(),
            timer: None,
        }
    }

    /// True when nothing is kept back.
    pub(crate) fn is_empty(&self) -> bool {
        self.pending.is_empty()
    }

    /// Bytes kept back.
    pub(crate) fn held(&self) -> u64 {
        self.pending.len() as u64
    }

    fn refill(&mut self) {
        let slices = u64::try_from(self.filled.elapsed().as_millis() / SLICE.as_millis()).unwrap_or(u64::MAX);
        if slices > 0 {
            let most = self.bytes_per_slice.saturating_mul(SLICES_PER_SECOND);
            self.credit = self.credit.saturating_add(slices.saturating_mul(self.bytes_per_slice)).min(most);
            self.filled += SLICE * u32::try_from(slices).unwrap_or(u32::MAX);
        }
    }

    /// The next frame of a body, as soon as it may pass.
    pub(crate) fn poll_frame<B: Body<Data = Bytes> + Unpin>(
        &mut self,
        body: &mut B,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        if self.pending.is_empty() {
            let Poll::Ready(frame) = Pin::new(body).poll_frame(cx) else { return Poll::Pending };
            match frame.map(|frame| frame.map(Frame::into_data)) {
                Some(Ok(Ok(data))) if !data.is_empty() => self.pending = data,
                Some(Ok(Ok(data))) => return Poll::Ready(Some(Ok(Frame::data(data)))),
                Some(Ok(Err(other))) => return Poll::Ready(Some(Ok(other))),
                Some(Err(error)) => return Poll::Ready(Some(Err(error))),
                None => return Poll::Ready(None),
            }
        }
        loop {
            self.refill();
            if self.credit > 0 {
                let n = self.pending.len().min(usize::try_from(self.credit).unwrap_or(usize::MAX));
                self.credit -= n as u64;
                return Poll::Ready(Some(Ok(Frame::data(self.pending.split_to(n)))));
            }
            let next = tokio::time::Instant::from_std(self.filled + SLICE);
            let timer = self.timer.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(next)));
            if timer.deadline() != next {
                timer.as_mut().reset(next);
            }
            if timer.as_mut().poll(cx).is_pending() {
                return Poll::Pending;
            }
        }
    }
}
