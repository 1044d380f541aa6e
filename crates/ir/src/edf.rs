//! Earliest-deadline-first scheduling, by which Envoy shares load by weight: an entry of weight `w` comes every `1/w`.

use std::cmp::Ordering;
use std::collections::BinaryHeap;

#[derive(Clone, Debug)]
struct Entry {
    deadline: f64,
    /// Order of insertion: ties go to whoever has waited longest.
    order: u64,
    item: usize,
}

impl PartialEq for Entry {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Entry {}

impl PartialOrd for Entry {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Entry {
    /// The heap gives the greatest first, so the earliest deadline is the greatest.
    fn cmp(&self, other: &Self) -> Ordering {
        other.deadline.total_cmp(&self.deadline).then(other.order.cmp(&self.order))
    }
}

/// A schedule over items that are numbers.
#[derive(Clone, Debug, Default)]
pub(crate) struct Edf {
    heap: BinaryHeap<Entry>,
    now: f64,
    order: u64,
}

impl Edf {
    pub(crate) fn add(&mut self, item: usize, weight: f64) {
        let deadline = self.now + 1.0 / weight.max(f64::MIN_POSITIVE);
        self.heap.push(Entry { deadline, order: self.order, item });
        self.order += 1;
    }

    /// The next item; it goes back in with the weight that `weight` gives.
    pub(crate) fn pick(&mut self, weight: impl FnOnce(usize) -> f64) -> Option<usize> {
        let entry = self.heap.pop()?;
        self.now = entry.deadline;
        self.add(entry.item, weight(entry.item));
        Some(entry.item)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_follow_weights_and_are_interleaved() {
        let weights = [3.0, 1.0, 2.0];
        let mut edf = Edf::default();
        for (item, weight) in weights.iter().enumerate() {
            edf.add(item, *weight);
        }
        let picks: Vec<usize> = (0..12).map(|_| edf.pick(|item| weights[item]).unwrap()).collect();
        let count = |item| picks.iter().filter(|pick| **pick == item).count();
        assert_eq!([count(0), count(1), count(2)], [6, 2, 4]);
        assert!(picks.windows(3).all(|three| three != [0, 0, 0]), "not in bursts: {picks:?}");
    }
}
