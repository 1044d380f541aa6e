//! The connection pools of one host. Mostly there is one; where TLS asks for the name in a request, or the PROXY protocol tells whose
//! connection it is, connections can't be shared by all requests, and each kind has a pool of its own.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::{Duration, Instant};

use ahash::AHashMap;

use crate::pool::Pool;

/// Pools kept beside the ordinary one. Beyond it a request gets a pool for itself.
const MOST: usize = 1024;

/// See the module.
#[derive(Default)]
pub(crate) struct Pools {
    ordinary: Rc<Pool>,
    keyed: RefCell<AHashMap<Box<str>, Rc<Pool>>>,
}

impl Pools {
    /// The pool for requests of this kind.
    pub(crate) fn of(&self, key: Option<&str>) -> Rc<Pool> {
        let Some(key) = key else { return self.ordinary.clone() };
        let mut keyed = self.keyed.borrow_mut();
        if let Some(pool) = keyed.get(key) {
            return pool.clone();
        }
        let pool = Rc::<Pool>::default();
        if self.ordinary.is_retired() || keyed.len() >= MOST {
            pool.retire();
        } else {
            keyed.insert(key.into(), pool.clone());
        }
        pool
    }

    /// [`Pool::sweep`] of all; pools that nothing uses any more go.
    pub(crate) fn sweep(&self, idle_timeout: Option<Duration>, now: Instant) -> usize {
        let mut closed = self.ordinary.sweep(idle_timeout, now);
        self.keyed.borrow_mut().retain(|_, pool| {
            closed += pool.sweep(idle_timeout, now);
            Rc::strong_count(pool) > 1 || !pool.is_empty()
        });
        closed
    }

    /// [`Pool::retire`] of all.
    pub(crate) fn retire(&self) {
        self.ordinary.retire();
        self.keyed.borrow_mut().drain().for_each(|(_, pool)| pool.retire());
    }

    /// [`Pool::drain`] of all.
    pub(crate) fn drain(&self) {
        self.ordinary.drain();
        self.keyed.borrow().values().for_each(|pool| pool.drain());
    }

    /// [`Pool::revive`].
    pub(crate) fn revive(&self) {
        self.ordinary.revive();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pools_are_kept_by_key_while_they_are_used() {
        let pools = Pools::default();
        let a = pools.of(Some("a"));
        assert!(Rc::ptr_eq(&a, &pools.of(Some("a"))));
        assert!(!Rc::ptr_eq(&a, &pools.of(Some("b"))));
        assert!(!Rc::ptr_eq(&a, &pools.of(None)));
        pools.sweep(None, Instant::now());
        assert!(Rc::ptr_eq(&a, &pools.of(Some("a"))), "it is in use");
        assert_eq!(pools.keyed.borrow().len(), 1, "b is not");
        pools.retire();
        assert!(pools.of(Some("c")).is_retired());
    }
}
