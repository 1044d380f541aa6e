//! Which of many conditions can hold at all: exact texts by hash, prefixes and networks by hash for each length there is.
//! What is found is still checked as a whole, so an index only has to be complete.

use std::net::IpAddr;

use ahash::AHashMap;
use ipnet::IpNet;
use smallvec::SmallVec;

use crate::{AccessCondition, AccessView, HeaderKey, HeaderValueMatcher, StringMatcher, Text};

/// Shorter lists are looked through one by one.
pub(crate) const INDEXED_FROM: usize = 8;

/// Different things the conditions of a list may be found by; conditions on others are always checked.
const MOST_SUBJECTS: usize = 16;

/// Conditions of which one is enough.
#[derive(Clone, Debug)]
pub struct AnyOf {
    conditions: Vec<AccessCondition>,
    index: Option<Box<Index>>,
}

impl AnyOf {
    /// With an index where it helps.
    pub fn new(conditions: Vec<AccessCondition>) -> Self {
        Self::with_index(conditions, INDEXED_FROM)
    }

    pub(crate) fn with_index(conditions: Vec<AccessCondition>, from: usize) -> Self {
        let index = (conditions.len() >= from).then(|| Box::new(Index::new(&conditions)));
        Self { conditions, index }
    }

    pub(crate) fn conditions(&self) -> &[AccessCondition] {
        &self.conditions
    }

    /// Position of the first that holds.
    pub(crate) fn first(&self, view: &AccessView<'_>) -> Option<usize> {
        let holds = |position: u32| self.conditions[position as usize].holds(view);
        match &self.index {
            None => self.conditions.iter().position(|condition| condition.holds(view)),
            Some(index) => index.candidates(view, holds),
        }
    }
}

/// What a condition looks at.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Subject {
    Path,
    Header(HeaderKey),
    /// Names in the client's certificate.
    Principal,
    ServerName,
    Destination,
    Source,
    DirectSource,
    Client,
}

/// Something that is so whenever the condition holds.
enum Sign {
    Exact(Box<[u8]>),
    Prefix(Box<[u8]>),
    Within(IpNet),
}

type Signs = Vec<(Subject, Sign)>;

#[derive(Clone, Debug, Default)]
struct Index {
    subjects: Vec<(Subject, Keys)>,
    /// Positions that are always checked, ascending.
    others: Vec<u32>,
}

/// Positions by key.
#[derive(Clone, Debug, Default)]
struct Keys {
    exact: AHashMap<Box<[u8]>, Vec<u32>>,
    prefixes: AHashMap<Box<[u8]>, Vec<u32>>,
    /// Lengths of the prefixes, ascending.
    lengths: Vec<usize>,
    nets: AHashMap<IpNet, Vec<u32>>,
    /// Lengths of the networks' prefixes.
    v4: Vec<u8>,
    v6: Vec<u8>,
}

type Found = SmallVec<[u32; 16]>;

impl Index {
    fn new(conditions: &[AccessCondition]) -> Self {
        let mut index = Self::default();
        for (position, condition) in (0_u32..).zip(conditions) {
            let signs = signs(condition).filter(|signs| index.has_room(signs));
            let Some(signs) = signs else {
                index.others.push(position);
                continue;
            };
            for (subject, sign) in signs {
                index.keys(subject).add(sign, position);
            }
        }
        for (_, keys) in &mut index.subjects {
            keys.finish();
        }
        index
    }

    /// Whether what these signs are about can be looked for as well.
    fn has_room(&self, signs: &Signs) -> bool {
        let mut new: SmallVec<[&Subject; 4]> = SmallVec::new();
        for (subject, _) in signs {
            if !new.contains(&subject) && !self.subjects.iter().any(|(known, _)| known == subject) {
                new.push(subject);
            }
        }
        self.subjects.len() + new.len() <= MOST_SUBJECTS
    }

    fn keys(&mut self, subject: Subject) -> &mut Keys {
        let known = self.subjects.iter().position(|(one, _)| *one == subject);
        let position = known.unwrap_or_else(|| {
            self.subjects.push((subject, Keys::default()));
            self.subjects.len() - 1
        });
        &mut self.subjects[position].1
    }

    /// The first position that may match and does.
    fn candidates(&self, view: &AccessView<'_>, holds: impl Fn(u32) -> bool) -> Option<usize> {
        let mut found = Found::new();
        for (subject, keys) in &self.subjects {
            keys.find(subject, view, &mut found);
        }
        found.sort_unstable();
        found.dedup();
        let mut others = self.others.iter().copied().peekable();
        let mut found = found.into_iter().peekable();
        loop {
            let next = match (found.peek(), others.peek()) {
                (Some(a), Some(b)) if a < b => found.next(),
                (_, Some(_)) => others.next(),
                (_, None) => found.next(),
            }?;
            if holds(next) {
                return Some(next as usize);
            }
        }
    }
}

impl Keys {
    fn add(&mut self, sign: Sign, position: u32) {
        let list = match sign {
            Sign::Exact(text) => self.exact.entry(text).or_default(),
            Sign::Prefix(text) => {
                self.lengths.push(text.len());
                self.prefixes.entry(text).or_default()
            }
            Sign::Within(net) => {
                if net.addr().is_ipv4() { &mut self.v4 } else { &mut self.v6 }.push(net.prefix_len());
                self.nets.entry(net.trunc()).or_default()
            }
        };
        list.push(position);
    }

    fn finish(&mut self) {
        self.lengths.sort_unstable();
        self.lengths.dedup();
        for lengths in [&mut self.v4, &mut self.v6] {
            lengths.sort_unstable();
            lengths.dedup();
        }
    }

    fn find(&self, subject: &Subject, view: &AccessView<'_>, found: &mut Found) {
        match subject {
            Subject::Path => view.path().into_iter().for_each(|path| self.text(path.as_bytes(), found)),
            Subject::Header(key) => {
                let Some(request) = &view.request else { return };
                key.each(request, |value| self.text(value, found));
            }
            Subject::Principal => {
                for name in view.peer.into_iter().flat_map(crate::PeerView::names) {
                    self.text(name.as_bytes(), found);
                }
            }
            Subject::ServerName => self.text(view.server_name.as_bytes(), found),
            Subject::Destination => self.address(view.destination.map(|end| end.ip()), found),
            Subject::Source => self.address(view.source, found),
            Subject::DirectSource => self.address(view.direct_source, found),
            Subject::Client => self.address(view.client, found),
        }
    }

    fn text(&self, value: &[u8], found: &mut Found) {
        found.extend(self.exact.get(value).into_iter().flatten().copied());
        for length in self.lengths.iter().take_while(|length| **length <= value.len()) {
            found.extend(self.prefixes.get(&value[..*length]).into_iter().flatten().copied());
        }
    }

    fn address(&self, address: Option<IpAddr>, found: &mut Found) {
        let Some(address) = address else { return };
        for length in if address.is_ipv4() { &self.v4 } else { &self.v6 } {
            let net = IpNet::new(address, *length).ok().map(|net| net.trunc());
            found.extend(net.and_then(|net| self.nets.get(&net)).into_iter().flatten().copied());
        }
    }
}

/// Signs of which one is there whenever the condition holds; `None`: there are none to look for.
fn signs(condition: &AccessCondition) -> Option<Signs> {
    let text = |subject: Subject, matcher: &StringMatcher| {
        let bytes = |text: &Text| (!text.ignore_case).then(|| text.value.as_bytes().into());
        let sign = match matcher {
            StringMatcher::Exact(text) => Sign::Exact(bytes(text)?),
            StringMatcher::Prefix(text) if !text.value.is_empty() => Sign::Prefix(bytes(text)?),
            _ => return None,
        };
        Some(vec![(subject, sign)])
    };
    let net = |subject, net: &IpNet| Some(vec![(subject, Sign::Within(*net))]);
    match condition {
        AccessCondition::All(list) => list.iter().filter_map(signs).min_by_key(cost),
        AccessCondition::Any(list) => {
            let parts: Option<Vec<Signs>> = list.conditions.iter().map(signs).collect();
            Some(parts?.into_iter().flatten().collect())
        }
        AccessCondition::Header(header) if !header.invert && !header.treat_missing_as_empty => {
            match &header.value {
                HeaderValueMatcher::String(matcher) => text(Subject::Header(header.key.clone()), matcher),
                HeaderValueMatcher::Present(_) | HeaderValueMatcher::Range { .. } => None,
            }
        }
        AccessCondition::Path(matcher) => text(Subject::Path, matcher),
        AccessCondition::ServerName(matcher) => text(Subject::ServerName, matcher),
        AccessCondition::Authenticated(Some(matcher)) => text(Subject::Principal, matcher),
        AccessCondition::Destination(range) => net(Subject::Destination, range),
        AccessCondition::Source(range) => net(Subject::Source, range),
        AccessCondition::DirectSource(range) => net(Subject::DirectSource, range),
        AccessCondition::Client(range) => net(Subject::Client, range),
        _ => None,
    }
}

/// How much is left to check when these signs are looked for: many requests have the same method, few the same path.
fn cost(signs: &Signs) -> (u8, usize) {
    let of = |(subject, sign): &(Subject, Sign)| match (subject, sign) {
        (Subject::Header(HeaderKey::Method | HeaderKey::Scheme), _) => 2,
        (_, Sign::Exact(_)) => 0,
        _ => 1,
    };
    (signs.iter().map(of).max().unwrap_or(0), signs.len())
}
