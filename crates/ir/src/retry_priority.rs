//! Other priorities for retries: those tried so far are left out until none is left.
//! <https://www.envoyproxy.io/docs/envoy/v1.40.0/api-v3/extensions/retry/priority/previous_priorities/v3/previous_priorities_config.proto>

use std::num::NonZeroU32;

use smallvec::SmallVec;

/// Envoy's `previous_priorities`: which priorities one request has tried, and how that shifts the load of its further tries.
#[derive(Clone, Debug)]
pub struct PreviousPriorities {
    update_frequency: NonZeroU32,
    attempted: SmallVec<[u32; 4]>,
    /// By priority.
    excluded: Vec<bool>,
    /// Percent by priority, as last shifted; empty: not shifted yet.
    shares: Vec<u32>,
}

impl PreviousPriorities {
    /// Nothing tried yet. The load is shifted whenever another `update_frequency` tries were made.
    pub fn new(update_frequency: NonZeroU32) -> Self {
        Self { update_frequency, attempted: SmallVec::new(), excluded: Vec::new(), shares: Vec::new() }
    }

    /// A host of this priority was tried.
    pub fn tried(&mut self, priority: u32) {
        self.attempted.push(priority);
    }

    /// Share of each priority for the next try, in percent; `None`: the balancer's own. `available` is how available each priority is,
    /// in percent, over-provisioned.
    pub(crate) fn shares(&mut self, available: &[u32]) -> Option<&[u32]> {
        let (tries, frequency) = (self.attempted.len(), self.update_frequency.get() as usize);
        if tries < frequency {
            return None;
        }
        // Priorities may have come or gone with new endpoints.
        if tries.is_multiple_of(frequency) || self.shares.len() != available.len() {
            self.shift(available)?;
        }
        Some(&self.shares)
    }

    fn shift(&mut self, available: &[u32]) -> Option<()> {
        self.excluded.resize(available.len(), false);
        for priority in &self.attempted {
            if let Some(excluded) = self.excluded.get_mut(*priority as usize) {
                *excluded = true;
            }
        }
        let mut total = self.left(available);
        if total == 0 {
            // Everything was tried: begin again.
            self.excluded.fill(false);
            self.attempted.clear();
            total = self.left(available);
        }
        if total == 0 {
            return None;
        }
        self.shares = vec![0; available.len()];
        let mut load = 100;
        // What rounding leaves goes round again, the first priority first.
        while load > 0 {
            for ((share, available), excluded) in self.shares.iter_mut().zip(available).zip(&self.excluded) {
                let part = if *excluded { 0 } else { available * 100 / total };
                let part = part.min(load);
                *share += part;
                load -= part;
            }
        }
        Some(())
    }

    /// How available the priorities are that were not tried, at most 100.
    fn left(&self, available: &[u32]) -> u32 {
        let left = available.iter().zip(&self.excluded).filter(|(_, excluded)| !**excluded);
        left.map(|(available, _)| available).sum::<u32>().min(100)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn memory(update_frequency: u32) -> PreviousPriorities {
        PreviousPriorities::new(NonZeroU32::new(update_frequency).unwrap())
    }

    #[test]
    fn priorities_that_were_tried_are_left_out_until_none_is_left() {
        let available = [100, 0, 50];
        let mut memory = memory(1);
        assert_eq!(memory.shares(&available), None);
        memory.tried(0);
        assert_eq!(memory.shares(&available), Some(&[0, 0, 100][..]), "the only other one, half as it is");
        memory.tried(2);
        assert_eq!(memory.shares(&available), Some(&[100, 0, 0][..]), "begins again");
        memory.tried(0);
        assert_eq!(memory.shares(&available), Some(&[0, 0, 100][..]));
    }

    #[test]
    fn the_load_shifts_every_so_many_tries() {
        let available = [100, 50, 60];
        let mut memory = memory(2);
        memory.tried(0);
        assert_eq!(memory.shares(&available), None);
        memory.tried(0);
        assert_eq!(memory.shares(&available), Some(&[0, 50, 50][..]));
        memory.tried(1);
        assert_eq!(memory.shares(&available), Some(&[0, 50, 50][..]), "as before");
        memory.tried(2);
        assert_eq!(memory.shares(&available), Some(&[100, 0, 0][..]));
    }

    proptest::proptest! {
        /// However priorities come and go: shares are whole, and nothing goes where nothing is available.
        #[test]
        fn shares_are_whole(
            frequency in 1_u32..4,
            tries in proptest::collection::vec((0_u32..5, proptest::collection::vec(0_u32..=100, 0..5)), 0..12),
        ) {
            let mut memory = memory(frequency);
            for (priority, available) in tries {
                memory.tried(priority);
                let fresh = memory.attempted.len().is_multiple_of(frequency as usize);
                if let Some(shares) = memory.shares(&available) {
                    proptest::prop_assert_eq!(shares.iter().sum::<u32>(), 100);
                    proptest::prop_assert_eq!(shares.len(), available.len());
                    let idle = shares.iter().zip(&available).filter(|(_, available)| **available == 0);
                    proptest::prop_assert!(!fresh || idle.map(|(share, _)| share).sum::<u32>() == 0);
                }
            }
        }
    }

    #[test]
    fn nothing_shifts_while_nothing_is_available() {
        let mut memory = memory(1);
        memory.tried(0);
        assert_eq!(memory.shares(&[0, 0]), None);
        assert_eq!(memory.shares(&[0, 30]), None, "what was tried is forgotten");
        memory.tried(7);
        assert_eq!(memory.shares(&[10]), Some(&[100][..]), "fewer priorities than before");
    }
}
