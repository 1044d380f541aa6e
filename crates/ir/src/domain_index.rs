//! Which virtual host has a domain, in Envoy's search order: the exact domain, then the longest `*.suffix`, then the longest
//! `prefix.*`, then `*`. Case is ignored.
//!
//! The index holds positions; the texts stay in the virtual hosts, once. So it costs a few bytes a domain, and serves every
//! version of a route configuration in which the domains are the same.

use std::sync::Arc;

use ahash::RandomState;
use hashbrown::HashTable;
use smallvec::SmallVec;

use crate::route::VirtualHost;

/// Longest authority whose lower-case form is made without allocating; DNS names have at most 253 bytes.
const INLINE_HOST: usize = 280;

/// See the module. It goes with one list of virtual hosts (or another with the same domains), which every method takes.
#[derive(Clone, Debug, Default)]
pub(crate) struct DomainIndex {
    hasher: RandomState,
    /// Domains without a wildcard.
    exact: HashTable<Place>,
    /// What follows the `*` of `*.example.com`.
    suffixes: Wildcards,
    /// What precedes the `*` of `example.*`.
    prefixes: Wildcards,
    /// `*`
    any: Option<usize>,
}

/// Where a domain stands.
#[derive(Clone, Copy, Debug)]
struct Place {
    host: u32,
    domain: u32,
}

/// Wildcard domains by their fixed part, with the lengths that occur, longest first.
#[derive(Clone, Debug, Default)]
struct Wildcards {
    lengths: Vec<usize>,
    domains: HashTable<Place>,
}

/// A domain's kind, and the part that an authority must have.
enum Domain<'a> {
    Any,
    Suffix(&'a str),
    Prefix(&'a str),
    Exact(&'a str),
}

impl<'a> Domain<'a> {
    fn of(domain: &'a str) -> Self {
        match (domain.strip_prefix('*'), domain.strip_suffix('*')) {
            (Some(""), _) => Self::Any,
            (Some(suffix), _) => Self::Suffix(suffix),
            (None, Some(prefix)) => Self::Prefix(prefix),
            (None, None) => Self::Exact(domain),
        }
    }

    fn fixed(&self) -> &'a str {
        match self {
            Self::Any => "",
            Self::Suffix(part) | Self::Prefix(part) | Self::Exact(part) => part,
        }
    }
}

impl Place {
    /// The fixed part of the domain that stands here.
    fn fixed(self, hosts: &[Arc<VirtualHost>]) -> &str {
        Domain::of(&hosts[self.host as usize].domains[self.domain as usize]).fixed()
    }
}

fn lower(text: &str) -> SmallVec<[u8; INLINE_HOST]> {
    let mut lower = SmallVec::from_slice(text.as_bytes());
    lower.make_ascii_lowercase();
    lower
}

impl DomainIndex {
    /// The index of these virtual hosts.
    ///
    /// # Errors
    /// A domain that occurs twice.
    pub(crate) fn new(hosts: &[Arc<VirtualHost>]) -> Result<Self, String> {
        let mut index = Self::default();
        index.exact.reserve(hosts.iter().map(|host| host.domains.len()).sum(), |_| 0);
        for (position, host) in hosts.iter().enumerate() {
            for (number, domain) in host.domains.iter().enumerate() {
                // A resource with 2^32 of anything would not fit into memory.
                let place = Place { host: position as u32, domain: number as u32 };
                if !index.add(&Domain::of(domain), place, hosts) {
                    return Err(format!("domain {domain:?} occurs more than once"));
                }
            }
        }
        index.suffixes.finish(hosts);
        index.prefixes.finish(hosts);
        Ok(index)
    }

    /// False when the domain is there already.
    fn add(&mut self, domain: &Domain<'_>, place: Place, hosts: &[Arc<VirtualHost>]) -> bool {
        let (domains, part) = match domain {
            Domain::Any => return self.any.replace(place.host as usize).is_none(),
            Domain::Suffix(part) => (&mut self.suffixes.domains, *part),
            Domain::Prefix(part) => (&mut self.prefixes.domains, *part),
            Domain::Exact(part) => (&mut self.exact, *part),
        };
        let hasher = &self.hasher;
        let hash = hasher.hash_one(&*lower(part));
        let same = |known: &Place| known.fixed(hosts).eq_ignore_ascii_case(part);
        let again = |known: &Place| hasher.hash_one(&*lower(known.fixed(hosts)));
        match domains.entry(hash, same, again) {
            hashbrown::hash_table::Entry::Occupied(_) => false,
            hashbrown::hash_table::Entry::Vacant(free) => {
                free.insert(place);
                true
            }
        }
    }

    /// Position of the virtual host for an authority without its port. Does not allocate (but for names no DNS name can have).
    pub(crate) fn position(&self, host: &str, hosts: &[Arc<VirtualHost>]) -> Option<usize> {
        if host.bytes().any(|byte| byte.is_ascii_uppercase()) {
            return self.of_lower(std::str::from_utf8(&lower(host)).ok()?, hosts);
        }
        self.of_lower(host, hosts)
    }

    fn of_lower(&self, host: &str, hosts: &[Arc<VirtualHost>]) -> Option<usize> {
        let find = |domains: &HashTable<Place>, part: &str| {
            let hash = self.hasher.hash_one(part.as_bytes());
            let found = domains.find(hash, |known| known.fixed(hosts).eq_ignore_ascii_case(part));
            found.map(|place| place.host as usize)
        };
        // At least one character must stand for the `*`.
        let suffix = || {
            let fitting = self.suffixes.lengths.iter().filter(|length| **length < host.len());
            let mut parts = fitting.filter_map(|length| host.get(host.len() - length..));
            parts.find_map(|part| find(&self.suffixes.domains, part))
        };
        let prefix = || {
            let fitting = self.prefixes.lengths.iter().filter(|length| **length < host.len());
            let mut parts = fitting.filter_map(|length| host.get(..*length));
            parts.find_map(|part| find(&self.prefixes.domains, part))
        };
        find(&self.exact, host).or_else(suffix).or_else(prefix).or(self.any)
    }
}

impl Wildcards {
    fn finish(&mut self, hosts: &[Arc<VirtualHost>]) {
        self.lengths = self.domains.iter().map(|place| place.fixed(hosts).len()).collect();
        self.lengths.sort_unstable_by(|a, b| b.cmp(a));
        self.lengths.dedup();
        self.lengths.shrink_to_fit();
    }
}
