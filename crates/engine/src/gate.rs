//! Network filters that decide about a connection when its first byte comes. All they look at is known when the connection
//! begins, so the decision is made then; what waits for the byte is its effect.

use std::io;
use std::sync::Arc;

use lateen_ir::{NetworkFilter, RbacFilter};
use smallvec::SmallVec;

use crate::context::ConnectionInfo;
use crate::filters::connection_view;
use crate::stats::arena::StatsArena;
use crate::stats::blocks::{RbacShadowStats, RbacStats};
use crate::stats::slots::ByteCounter;

/// One worker's side of a chain's filters.
pub(crate) struct LocalGate {
    filters: Vec<(Arc<RbacFilter>, std::rc::Rc<RbacStats>, std::rc::Rc<RbacShadowStats>)>,
}

impl LocalGate {
    pub(crate) fn new(filters: &[NetworkFilter], stats: &StatsArena) -> Self {
        let local = |filter: &NetworkFilter| match filter {
            NetworkFilter::Rbac(filter) => {
                let name = Arc::from(format!("{}\n", filter.stat_prefix));
                let shadow = Arc::from(format!("{}\n{}", filter.stat_prefix, filter.shadow_stat_prefix));
                Some((filter.clone(), stats.network_rbac(&name), stats.network_rbac_shadow(&shadow)))
            }
            _ => None,
        };
        Self { filters: filters.iter().filter_map(local).collect() }
    }

    /// The gate of a connection, and the detail of its denial if it is closed. `None`: there is none.
    pub(crate) fn of(&self, info: &ConnectionInfo) -> Option<(Gate, Option<Box<str>>)> {
        if self.filters.is_empty() {
            return None;
        }
        let view = connection_view(info, info.peer.ip());
        let mut gate = Gate { counters: SmallVec::new(), closed: false };
        for (filter, stats, shadow_stats) in &self.filters {
            if let Some(shadow) = &filter.shadow_rules {
                let allowed = shadow.judge(&view).allowed;
                let counter =
                    if allowed { &shadow_stats.shadow_allowed } else { &shadow_stats.shadow_denied };
                gate.counters.push(counter.clone());
            }
            let Some(rules) = &filter.rules else { continue };
            let verdict = rules.judge(&view);
            gate.counters.push(if verdict.allowed { &stats.allowed } else { &stats.denied }.clone());
            if !verdict.allowed {
                gate.closed = true;
                return Some((gate, Some(verdict.denial().into())));
            }
        }
        Some((gate, None))
    }
}

/// What happens with a connection's first byte.
#[derive(Debug)]
pub(crate) struct Gate {
    counters: SmallVec<[ByteCounter; 2]>,
    closed: bool,
}

/// The connection is not allowed.
#[derive(Debug, thiserror::Error)]
#[error("network filters do not allow the connection")]
pub(crate) struct Denied {
    /// What had come.
    pub(crate) bytes: usize,
}

impl Gate {
    /// The first bytes, or the end without any.
    ///
    /// # Errors
    /// [`Denied`]: the connection is to be closed.
    pub(crate) fn first(self, bytes: usize) -> io::Result<()> {
        self.counters.iter().for_each(|counter| counter.add(1));
        if self.closed {
            Err(io::Error::new(io::ErrorKind::PermissionDenied, Denied { bytes }))
        } else {
            Ok(())
        }
    }
}
