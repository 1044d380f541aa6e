//! The cells a worker counts in.

use std::cell::{Cell, OnceCell};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// A number that only grows.
#[derive(Debug, Default)]
pub(crate) struct Counter(Cell<u64>);

impl Counter {
    #[inline]
    pub(crate) fn inc(&self) {
        self.add(1);
    }

    #[inline]
    pub(crate) fn add(&self, n: u64) {
        self.0.set(self.0.get().wrapping_add(n));
    }

    #[inline]
    pub(crate) fn get(&self) -> u64 {
        self.0.get()
    }

    pub(crate) fn reset(&self) {
        self.0.set(0);
    }
}

/// A count of bytes moved by a socket. Sockets must be `Send` for hyper's upgrades, so this one cell is atomic; only one thread
/// writes it, with plain loads and stores.
#[derive(Clone, Debug, Default)]
pub(crate) struct ByteCounter(Arc<AtomicU64>);

impl ByteCounter {
    #[inline]
    pub(crate) fn add(&self, n: u64) {
        self.0.store(self.get().wrapping_add(n), Relaxed);
    }

    #[inline]
    pub(crate) fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }

    pub(crate) fn reset(&self) {
        self.0.store(0, Relaxed);
    }
}

/// A number that goes up and down.
#[derive(Debug, Default)]
pub(crate) struct Gauge(Cell<u64>);

impl Gauge {
    #[inline]
    pub(crate) fn inc(&self) {
        self.0.set(self.0.get() + 1);
    }

    #[inline]
    pub(crate) fn dec(&self) {
        self.0.set(self.0.get().saturating_sub(1));
    }

    #[inline]
    pub(crate) fn get(&self) -> u64 {
        self.0.get()
    }
}

/// Upper bounds of histogram buckets: Envoy's defaults for Prometheus (milliseconds, or bytes).
/// <https://www.envoyproxy.io/docs/envoy/v1.40.0/api-v3/config/metrics/v3/stats.proto#config-metrics-v3-histogrambucketsettings>
pub(crate) const BUCKETS: [f64; 19] = [
    0.5, 1.0, 5.0, 10.0, 25.0, 50.0, 100.0, 250.0, 500.0, 1000.0, 2500.0, 5000.0, 10000.0, 30000.0, 60000.0,
    300000.0, 600000.0, 1800000.0, 3600000.0,
];

/// The numbers of one histogram; the last bucket is everything above the last bound.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct HistogramReading {
    pub(crate) buckets: [u64; BUCKETS.len() + 1],
    pub(crate) sum: u64,
}

impl HistogramReading {
    pub(crate) fn count(&self) -> u64 {
        self.buckets.iter().sum()
    }

    pub(crate) fn merge(&mut self, other: &Self) {
        for (mine, theirs) in self.buckets.iter_mut().zip(other.buckets) {
            *mine += theirs;
        }
        self.sum += other.sum;
    }

    /// Value below which the given share (0 to 1) of samples lies, interpolated inside its bucket.
    pub(crate) fn quantile(&self, share: f64) -> f64 {
        let count = self.count();
        if count == 0 {
            return f64::NAN;
        }
        let wanted = share * count as f64;
        let mut seen = 0.0;
        for (i, &n) in self.buckets.iter().enumerate() {
            let low = if i == 0 { 0.0 } else { BUCKETS[i - 1] };
            let high = BUCKETS.get(i).copied().unwrap_or(low);
            if n > 0 && seen + n as f64 >= wanted {
                return low + (high - low) * ((wanted - seen) / n as f64).clamp(0.0, 1.0);
            }
            seen += n as f64;
        }
        BUCKETS[BUCKETS.len() - 1]
    }
}

/// A distribution of integers. Memory is taken with the first sample, because most clusters of a mesh are never called.
#[derive(Debug, Default)]
pub(crate) struct Histogram(OnceCell<Box<HistogramCells>>);

#[derive(Debug, Default)]
struct HistogramCells {
    buckets: [Cell<u64>; BUCKETS.len() + 1],
    sum: Cell<u64>,
}

impl Histogram {
    #[inline]
    pub(crate) fn record(&self, value: u64) {
        let cells = self.0.get_or_init(Box::default);
        // Most values are small, so a scan from below beats a binary search.
        let index = BUCKETS.iter().position(|bound| value as f64 <= *bound).unwrap_or(BUCKETS.len());
        cells.buckets[index].set(cells.buckets[index].get() + 1);
        cells.sum.set(cells.sum.get() + value);
    }

    pub(crate) fn read(&self) -> Option<Box<HistogramReading>> {
        let cells = self.0.get()?;
        let mut reading = Box::<HistogramReading>::default();
        for (to, from) in reading.buckets.iter_mut().zip(&cells.buckets) {
            *to = from.get();
        }
        reading.sum = cells.sum.get();
        Some(reading)
    }
}

const FIRST_STATUS: usize = 100;
const STATUSES: usize = 500;

/// One counter for each status code from 100 to 599, taken with the first response.
#[derive(Debug, Default)]
pub(crate) struct StatusCounters(OnceCell<Box<[Counter]>>);

impl StatusCounters {
    #[inline]
    pub(crate) fn inc(&self, status: u16) {
        let cells = self.0.get_or_init(|| (0..STATUSES).map(|_| Counter::default()).collect());
        if let Some(counter) = usize::from(status).checked_sub(FIRST_STATUS).and_then(|i| cells.get(i)) {
            counter.inc();
        }
    }

    /// The codes that occurred, with their counts.
    pub(crate) fn read(&self) -> Vec<(u16, u64)> {
        let cells = self.0.get().map(|cells| &cells[..]).unwrap_or_default();
        cells
            .iter()
            .enumerate()
            .filter(|(_, counter)| counter.get() > 0)
            .map(|(i, counter)| ((i + FIRST_STATUS) as u16, counter.get()))
            .collect()
    }

    pub(crate) fn reset(&self) {
        self.0.get().into_iter().flatten().for_each(Counter::reset);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_fall_into_the_bucket_whose_bound_they_do_not_exceed() {
        let histogram = Histogram::default();
        assert!(histogram.read().is_none());
        for value in [0, 1, 2, 5, 10_000_000] {
            histogram.record(value);
        }
        let reading = histogram.read().unwrap();
        assert_eq!(&reading.buckets[..4], &[1, 1, 2, 0]);
        assert_eq!(reading.buckets[BUCKETS.len()], 1);
        assert_eq!(reading.count(), 5);
        assert_eq!(reading.sum, 10_000_008);
    }

    #[test]
    fn quantiles_interpolate() {
        let mut reading = HistogramReading::default();
        assert!(reading.quantile(0.5).is_nan());
        reading.buckets[3] = 100; // 5 to 10 ms
        assert_eq!(reading.quantile(0.5), 7.5);
        assert_eq!(reading.quantile(1.0), 10.0);
    }

    #[test]
    fn statuses_out_of_range_are_not_counted() {
        let codes = StatusCounters::default();
        codes.inc(200);
        codes.inc(200);
        codes.inc(999);
        codes.inc(42);
        assert_eq!(codes.read(), [(200, 2)]);
    }
}
