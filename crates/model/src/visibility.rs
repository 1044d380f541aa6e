//! Who may see a service or rule (`exportTo`).
use std::collections::BTreeSet;
use std::sync::Arc;

/// The namespaces something is visible in.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Visibility {
    /// All of them.
    Public,
    /// These; empty is none.
    Namespaces(BTreeSet<Arc<str>>),
}

impl Visibility {
    /// From an `exportTo` list: `*` is all, `.` is `own`, `~` is none; an empty list takes the mesh's default.
    pub fn parse<'a>(export_to: &'a [String], default: &'a [String], own: &str) -> Self {
        let list = if export_to.is_empty() { default } else { export_to };
        if list.is_empty() || list.iter().any(|entry| entry == "*") {
            return Self::Public;
        }
        Self::Namespaces(
            list.iter()
                .filter(|entry| *entry != "~")
                .map(|entry| if entry == "." { own.into() } else { entry.as_str().into() })
                .collect(),
        )
    }

    /// Whether there may be a namespace both are visible in.
    pub fn overlaps(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Public, Self::Public) => true,
            (Self::Namespaces(some), Self::Public) | (Self::Public, Self::Namespaces(some)) => {
                !some.is_empty()
            }
            (Self::Namespaces(some), Self::Namespaces(others)) => !some.is_disjoint(others),
        }
    }

    /// Whether it is visible in this namespace.
    pub fn allows(&self, namespace: &str) -> bool {
        match self {
            Self::Public => true,
            Self::Namespaces(namespaces) => namespaces.contains(namespace),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn export_to_is_read_as_istio_does() {
        let list = |entries: &[&str]| entries.iter().map(|&entry| entry.to_owned()).collect::<Vec<_>>();
        let public = list(&["*"]);
        assert!(Visibility::parse(&[], &public, "a").allows("b"));
        let own = list(&["."]);
        assert!(Visibility::parse(&own, &public, "a").allows("a"));
        assert!(!Visibility::parse(&own, &public, "a").allows("b"));
        assert!(!Visibility::parse(&list(&["~"]), &public, "a").allows("a"));
        assert!(!Visibility::parse(&[], &own, "a").allows("b"));
        assert!(Visibility::parse(&list(&["b", "c"]), &public, "a").allows("c"));
    }
}
