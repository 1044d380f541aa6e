//! Adds the workers' copies together into one list of stats.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::arena::{ArenaReading, Scope};
use super::blocks::BlockReading;
use super::slots::HistogramReading;

/// The last part of a stat's name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Leaf {
    /// A fixed name.
    Name(&'static str),
    /// `upstream_rq_2xx`: responses by class.
    Class(u16),
    /// `upstream_rq_200`: responses by code.
    Status(u16),
}

/// What is measured.
#[derive(Clone, Debug)]
pub(crate) enum Value {
    Counter(u64),
    Gauge(u64),
    /// `None` until the first sample.
    Histogram(Option<Box<HistogramReading>>),
}

/// One stat of the whole engine.
#[derive(Clone, Debug)]
pub(crate) struct Stat {
    /// The block it belongs to; `None` for the server's own numbers, whose leaf is the full name.
    pub(crate) scope: Option<(Scope, Arc<str>)>,
    pub(crate) leaf: Leaf,
    pub(crate) value: Value,
}

impl Stat {
    /// A number of the server itself; `name` is the full dotted name.
    pub(crate) fn server(name: &'static str, value: Value) -> Self {
        Self { scope: None, leaf: Leaf::Name(name), value }
    }

    /// A gauge of a scope that no worker counts (cluster membership).
    pub(crate) fn scoped(scope: Scope, name: Arc<str>, leaf: &'static str, value: Value) -> Self {
        Self { scope: Some((scope, name)), leaf: Leaf::Name(leaf), value }
    }

    /// Whether it was ever written (`usedonly`).
    pub(crate) fn used(&self) -> bool {
        match &self.value {
            Value::Counter(n) | Value::Gauge(n) => *n > 0,
            Value::Histogram(reading) => reading.is_some(),
        }
    }
}

type Totals = BTreeMap<(Scope, Arc<str>), BlockReading>;

fn add(total: &mut BlockReading, part: BlockReading) {
    if total.counters.is_empty() && total.gauges.is_empty() {
        *total = part;
        return;
    }
    total.counters.iter_mut().zip(part.counters).for_each(|(a, b)| *a += b);
    total.gauges.iter_mut().zip(part.gauges).for_each(|(a, b)| *a += b);
    for (a, b) in total.histograms.iter_mut().zip(part.histograms) {
        match (a.as_mut(), b) {
            (Some(a), Some(b)) => a.merge(&b),
            (None, Some(b)) => *a = Some(b),
            (_, None) => {}
        }
    }
    for (status, n) in part.statuses {
        match total.statuses.binary_search_by_key(&status, |(s, _)| *s) {
            Ok(i) => total.statuses[i].1 += n,
            Err(i) => total.statuses.insert(i, (status, n)),
        }
    }
}

/// Sums the readings of all workers; `known` scopes appear with zeros when no worker has used them yet.
pub(crate) fn merge(
    readings: Vec<ArenaReading>,
    known: impl Iterator<Item = (Scope, Arc<str>)>,
) -> Vec<Stat> {
    let mut totals = Totals::new();
    for (scope, name) in known {
        totals.entry((scope, name)).or_insert_with(|| zeros(scope));
    }
    for (scope, name, part) in readings.into_iter().flatten() {
        add(totals.entry((scope, name)).or_default(), part);
    }
    let mut stats = Vec::new();
    for (key, total) in totals {
        flatten(key, total, &mut stats);
    }
    stats
}

fn zeros(scope: Scope) -> BlockReading {
    let names = scope.names();
    BlockReading {
        counters: vec![0; names.counters.len()],
        gauges: vec![0; names.gauges.len()],
        histograms: vec![None; names.histograms.len()],
        statuses: Vec::new(),
    }
}

fn flatten(key: (Scope, Arc<str>), total: BlockReading, stats: &mut Vec<Stat>) {
    let names = key.0.names();
    let mut push = |leaf, value| stats.push(Stat { scope: Some(key.clone()), leaf, value });
    for (name, n) in names.counters.iter().zip(total.counters) {
        if n == 0 && key.0.appears_when_used(name) {
            continue;
        }
        push(Leaf::Name(name), Value::Counter(n));
    }
    for (name, n) in names.gauges.iter().zip(total.gauges) {
        push(Leaf::Name(name), Value::Gauge(n));
    }
    let mut classes = BTreeMap::<u16, u64>::new();
    for (status, n) in total.statuses {
        *classes.entry(status / 100).or_default() += n;
        push(Leaf::Status(status), Value::Counter(n));
    }
    for (class, n) in classes {
        push(Leaf::Class(class), Value::Counter(n));
    }
    for (name, reading) in names.histograms.iter().zip(total.histograms) {
        if reading.is_none() && key.0.appears_when_used(name) {
            continue;
        }
        push(Leaf::Name(name), Value::Histogram(reading));
    }
}
