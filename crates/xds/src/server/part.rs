//! What a response carries, and how it is divided when a client rejects it.
use std::sync::Arc;

use super::resource::Resource;

/// What a response carries.
#[derive(Clone, Debug, Default)]
pub(super) struct Part {
    pub(super) resources: Vec<Arc<Resource>>,
    pub(super) removed: Vec<Arc<str>>,
}

impl Part {
    pub(super) fn names(self) -> Vec<Arc<str>> {
        self.resources.iter().map(|resource| resource.name.clone()).chain(self.removed).collect()
    }

    /// Divides what was rejected with these words: what they mention from the rest, else in halves. None when there is
    /// nothing to divide.
    pub(super) fn divide(&self, message: &str) -> Option<[Self; 2]> {
        if self.resources.len() + usize::from(!self.removed.is_empty()) < 2 {
            return None;
        }
        let (mentioned, rest): (Vec<_>, Vec<_>) =
            self.resources.iter().cloned().partition(|resource| message.contains(&*resource.name));
        let removed = self.removed.clone();
        if !mentioned.is_empty() && (!rest.is_empty() || !removed.is_empty()) {
            return Some([
                Self { resources: rest, removed },
                Self { resources: mentioned, removed: Vec::new() },
            ]);
        }
        let (first, second) = self.resources.split_at(self.resources.len() / 2);
        Some([
            Self { resources: first.to_vec(), removed },
            Self { resources: second.to_vec(), removed: Vec::new() },
        ])
    }
}
