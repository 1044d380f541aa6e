//! Which resources of one type a client is subscribed to (xDS protocol, "How the client specifies what resources to return").
use std::collections::BTreeSet;
use std::sync::Arc;

use super::resource::ResourceSet;
use crate::type_urls;

/// The name that stands for all resources of a type.
const WILDCARD: &str = "*";

/// A client's subscription to one type.
#[derive(Debug, Default)]
pub(super) struct Interest {
    wildcard: bool,
    /// Whether the client ever named something: from then on, naming nothing means nothing, not everything.
    explicit: bool,
    names: BTreeSet<Arc<str>>,
}

/// Whether naming nothing in the first request means everything. That is so for clusters and listeners, and for names, of
/// which there is one resource only.
fn empty_means_all(type_url: &str) -> bool {
    [type_urls::CLUSTER, type_urls::LISTENER, type_urls::NAME_TABLE].contains(&type_url)
}

/// The name as the resources have it: thousands of clients subscribe to the same thousands of names.
fn shared(name: String, known: &ResourceSet) -> Arc<str> {
    known.get(&name).map_or_else(|| name.into(), |resource| resource.name.clone())
}

impl Interest {
    pub(super) fn is_wildcard(&self) -> bool {
        self.wildcard
    }

    /// The names subscribed to one by one.
    pub(super) fn names(&self) -> &BTreeSet<Arc<str>> {
        &self.names
    }

    pub(super) fn covers(&self, name: &str) -> bool {
        self.wildcard || self.names.contains(name)
    }

    /// Takes over a delta request. Returns the names that must be answered: the newly subscribed ones, and those
    /// unsubscribed that the wildcard still covers, since the client has to learn that they stay.
    pub(super) fn change(
        &mut self,
        type_url: &str,
        subscribe: Vec<String>,
        unsubscribe: Vec<String>,
        first: bool,
        known: &ResourceSet,
    ) -> Vec<Arc<str>> {
        let mut asked = Vec::new();
        if first && subscribe.is_empty() && empty_means_all(type_url) {
            self.wildcard = true;
        }
        for name in subscribe {
            if name == WILDCARD {
                self.wildcard = true;
            } else {
                let name = shared(name, known);
                self.names.insert(name.clone());
                asked.push(name);
            }
        }
        for name in unsubscribe {
            if name == WILDCARD {
                self.wildcard = false;
            } else if self.names.remove(name.as_str()) && self.wildcard {
                asked.push(name.into());
            }
        }
        asked
    }

    /// Takes over the names of a state-of-the-world request. Returns the newly subscribed ones.
    pub(super) fn replace(
        &mut self,
        type_url: &str,
        names: Vec<String>,
        known: &ResourceSet,
    ) -> Vec<Arc<str>> {
        if names.is_empty() {
            self.wildcard = !self.explicit && empty_means_all(type_url);
            self.names.clear();
            return Vec::new();
        }
        self.explicit = true;
        self.wildcard = names.iter().any(|name| name == WILDCARD);
        let names: BTreeSet<Arc<str>> =
            names.into_iter().filter(|name| name != WILDCARD).map(|name| shared(name, known)).collect();
        let asked = names.difference(&self.names).cloned().collect();
        self.names = names;
        asked
    }
}

#[cfg(test)]
mod tests {
    use super::super::resource::Resource;
    use super::*;

    fn names(list: &[&str]) -> Vec<String> {
        list.iter().map(|&name| name.to_owned()).collect()
    }

    fn asked(list: Vec<Arc<str>>) -> Vec<String> {
        list.iter().map(|name| name.to_string()).collect()
    }

    #[test]
    fn naming_nothing_first_means_all_clusters_but_no_routes() {
        let mut interest = Interest::default();
        interest.change(type_urls::CLUSTER, vec![], vec![], true, &ResourceSet::default());
        assert!(interest.is_wildcard());
        let mut interest = Interest::default();
        interest.change(type_urls::ROUTE, vec![], vec![], true, &ResourceSet::default());
        assert!(!interest.is_wildcard());
        // Later empty requests are acknowledgements and change nothing.
        let mut interest = Interest::default();
        interest.change(type_urls::CLUSTER, names(&["a"]), vec![], true, &ResourceSet::default());
        interest.change(type_urls::CLUSTER, vec![], vec![], false, &ResourceSet::default());
        assert!(!interest.is_wildcard() && interest.covers("a") && !interest.covers("b"));
    }

    #[test]
    fn the_star_can_be_taken_and_given_back() {
        let mut interest = Interest::default();
        assert_eq!(
            asked(interest.change(
                type_urls::ROUTE,
                names(&["*", "a"]),
                vec![],
                true,
                &ResourceSet::default()
            )),
            ["a"]
        );
        assert!(interest.covers("b"));
        // Still covered by the wildcard: the client must be told.
        assert_eq!(
            asked(interest.change(type_urls::ROUTE, vec![], names(&["a"]), false, &ResourceSet::default())),
            ["a"]
        );
        interest.change(type_urls::ROUTE, names(&["c"]), names(&["*"]), false, &ResourceSet::default());
        assert!(interest.covers("c") && !interest.covers("a") && !interest.covers("b"));
    }

    #[test]
    fn state_of_the_world_requests_replace() {
        let mut interest = Interest::default();
        assert!(interest.replace(type_urls::LISTENER, vec![], &ResourceSet::default()).is_empty());
        assert!(interest.is_wildcard());
        assert_eq!(
            asked(interest.replace(type_urls::LISTENER, names(&["a", "b"]), &ResourceSet::default())),
            ["a", "b"]
        );
        assert_eq!(
            asked(interest.replace(type_urls::LISTENER, names(&["b", "c"]), &ResourceSet::default())),
            ["c"]
        );
        assert!(!interest.covers("a") && !interest.is_wildcard());
        interest.replace(type_urls::LISTENER, vec![], &ResourceSet::default());
        assert!(!interest.is_wildcard(), "after naming something, nothing means nothing");
    }

    #[test]
    fn names_of_resources_are_shared() {
        let resource = |name: &str| {
            Arc::new(Resource { name: name.into(), version: "1".into(), body: bytes::Bytes::new() })
        };
        let known: ResourceSet = [resource("a"), resource("b")].into_iter().collect();
        let mut interest = Interest::default();
        interest.change(type_urls::ENDPOINT, names(&["a", "absent"]), vec![], true, &known);
        interest.replace(type_urls::ENDPOINT, names(&["a", "b", "absent"]), &known);
        for name in ["a", "b"] {
            let held = interest.names().get(name).expect("subscribed");
            assert!(Arc::ptr_eq(held, &known.get(name).expect("there").name), "{name}");
        }
        assert!(interest.covers("absent"));
    }
}
