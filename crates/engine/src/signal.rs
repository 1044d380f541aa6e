//! A one-shot signal within one thread: many connections watch it, firing it wakes them. Watching costs nothing per poll.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::task::Waker;

use ahash::AHashMap;

/// See the module.
#[derive(Clone, Default)]
pub(crate) struct Signal(Rc<Inner>);

#[derive(Default)]
struct Inner {
    fired: Cell<bool>,
    next: Cell<u64>,
    wakers: RefCell<AHashMap<u64, Waker>>,
}

/// Registration of one watcher; ends when dropped.
pub(crate) struct Watch {
    signal: Signal,
    key: u64,
}

impl Signal {
    pub(crate) fn fire(&self) {
        if !self.0.fired.replace(true) {
            let wakers = self.0.wakers.take();
            wakers.into_values().for_each(Waker::wake);
        }
    }

    pub(crate) fn is_fired(&self) -> bool {
        self.0.fired.get()
    }

    /// Wakes `waker` when fired. The task must keep the same waker, as spawned tasks do.
    pub(crate) fn watch(&self, waker: &Waker) -> Watch {
        let key = self.0.next.get();
        self.0.next.set(key + 1);
        if self.is_fired() {
            waker.wake_by_ref();
        } else {
            self.0.wakers.borrow_mut().insert(key, waker.clone());
        }
        Watch { signal: self.clone(), key }
    }

    /// Waits until fired.
    pub(crate) async fn fired(&self) {
        let mut watch = None;
        std::future::poll_fn(|cx| {
            if self.is_fired() {
                return std::task::Poll::Ready(());
            }
            watch = Some(self.watch(cx.waker()));
            std::task::Poll::Pending
        })
        .await
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.signal.0.wakers.borrow_mut().remove(&self.key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn firing_wakes_every_watcher_and_dropped_ones_leave_nothing() {
        let signal = Signal::default();
        drop(signal.watch(Waker::noop()));
        assert!(signal.0.wakers.borrow().is_empty());
        let (one, two) = (signal.clone(), signal.clone());
        let wait = async { tokio::join!(one.fired(), two.fired()) };
        let fire = async {
            tokio::task::yield_now().await;
            signal.fire();
        };
        tokio::join!(wait, fire);
        signal.fired().await;
    }
}
