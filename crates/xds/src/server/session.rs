//! One client's state and the decision what to send it next. No I/O: requests and snapshots go in, pushes come out.
//!
//! - One response per type is in flight at a time; what changes meanwhile is merged, since only the latest snapshot counts.
//! - Changes go out in the order clusters, endpoints, listeners, routes, each when the one before is acknowledged, and
//!   clusters and endpoints are removed only after the listeners and routes that could refer to them ("make before
//!   break", Envoy's "Eventual consistency considerations"). What a client asks for by name is answered at once.
//! - What of a rejected response is good must still arrive: a client may refuse a response whole for one resource in it. The
//!   response is sent again in parts until the bad one stands alone. That counts as delivered: its version is not sent again.
use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::Arc;
use std::time::Instant;

use super::interest::Interest;
use super::part::Part;
use super::resource::{Difference, Resource, ResourceSet, Snapshot};
use crate::type_urls;

/// Variant of the protocol a client speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Protocol {
    /// `DeltaAggregatedResources`.
    Delta,
    /// `StreamAggregatedResources`.
    Sotw,
}

/// More names than this in one subscription are refused.
const MAX_NAMES: usize = 200_000;
/// More types than this on one stream are refused.
const MAX_TYPES: usize = 64;
/// So many rejections of parts of one response are tried; a client that refuses more refuses everything.
const MAX_SPLITS: u32 = 64;

/// What a client says in one request, either variant.
#[derive(Debug, Default)]
pub(super) struct Request {
    pub(super) type_url: String,
    /// The response this answers; empty when it answers none.
    pub(super) nonce: String,
    /// Why that response was rejected.
    pub(super) error: Option<String>,
    pub(super) change: Change,
}

#[derive(Debug)]
pub(super) enum Change {
    Delta { subscribe: Vec<String>, unsubscribe: Vec<String>, initial: HashMap<String, String> },
    Sotw { names: Vec<String> },
}

impl Default for Change {
    fn default() -> Self {
        Self::Delta { subscribe: Vec::new(), unsubscribe: Vec::new(), initial: HashMap::new() }
    }
}

/// Why a request ends the stream.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum RequestError {
    #[error("the request names no type_url")]
    NoType,
    #[error("more than {MAX_TYPES} types on one stream")]
    TooManyTypes,
    #[error("more than {MAX_NAMES} names subscribed for {0}")]
    TooManyNames(String),
}

/// The answer to a push.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Answer {
    pub(super) type_url: Arc<str>,
    pub(super) nonce: String,
    pub(super) sent: Instant,
    /// When the change it carried arrived; none for what the client got because it asked.
    pub(super) changed: Option<Instant>,
    pub(super) error: Option<String>,
    /// The resources it is about, unless what was rejected is sent again in parts.
    pub(super) names: Vec<Arc<str>>,
}

/// One response to be sent.
#[derive(Debug)]
pub(super) struct Push {
    pub(super) protocol: Protocol,
    pub(super) type_url: Arc<str>,
    pub(super) nonce: String,
    /// Version of the snapshot it was made from.
    pub(super) version: u64,
    pub(super) resources: Vec<Arc<Resource>>,
    pub(super) removed: Vec<Arc<str>>,
}

#[derive(Debug)]
struct InFlight {
    nonce: String,
    sent: Instant,
    changed: Option<Instant>,
    content: Part,
}

/// How much of a type may be sent now.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Extent {
    /// Everything that differs.
    All,
    /// Only what the client asked for by name: an earlier type is not acknowledged yet.
    Asked,
}

#[derive(Debug)]
struct TypeState {
    url: Arc<str>,
    interest: Interest,
    /// The client has what this set holds, as far as it is subscribed, ...
    sent: Option<Arc<ResourceSet>>,
    /// ... but for these, which it got newer on request, ...
    ahead: BTreeMap<Arc<str>, Arc<Resource>>,
    /// ... and it still has these, which are gone and wait to be removed.
    stale: BTreeMap<Arc<str>, Arc<Resource>>,
    /// Names that must be answered whether or not the client has them.
    asked: BTreeSet<Arc<str>>,
    /// Whether a response is due even if there is nothing to say.
    answer_due: bool,
    in_flight: Option<InFlight>,
    /// Parts of a rejected response, to be sent one by one.
    parts: VecDeque<Part>,
    splits: u32,
}

/// Place in the order of sending; types without one are sent whenever they change.
fn rank(type_url: &str) -> Option<usize> {
    [type_urls::CLUSTER, type_urls::ENDPOINT, type_urls::LISTENER, type_urls::ROUTE]
        .iter()
        .position(|&url| url == type_url)
}

/// Whether removals wait until everything that could refer to the type is updated.
fn is_removed_last(type_url: &str) -> bool {
    type_url == type_urls::CLUSTER || type_url == type_urls::ENDPOINT
}

impl TypeState {
    fn new(url: &str) -> Self {
        Self {
            url: url.into(),
            interest: Interest::default(),
            sent: None,
            ahead: BTreeMap::new(),
            stale: BTreeMap::new(),
            asked: BTreeSet::new(),
            answer_due: false,
            in_flight: None,
            parts: VecDeque::new(),
            splits: 0,
        }
    }

    /// What the client has under this name.
    fn held(&self, name: &str) -> Option<&Arc<Resource>> {
        self.ahead.get(name).or_else(|| self.stale.get(name)).or_else(|| self.sent.as_ref()?.get(name))
    }

    /// The resources of a set that the client is subscribed to.
    fn wanted<'a>(&'a self, set: &'a ResourceSet) -> Box<dyn Iterator<Item = &'a Arc<Resource>> + 'a> {
        if self.interest.is_wildcard() {
            Box::new(set.iter())
        } else {
            Box::new(self.interest.names().iter().filter_map(|name| set.get(name)))
        }
    }

    /// Takes what must be sent now out of this state, which then stands as if the client had it.
    fn take(&mut self, set: &Arc<ResourceSet>, extent: Extent) -> (Vec<Arc<Resource>>, Vec<Arc<str>>) {
        let unchanged = self.sent.as_ref().is_some_and(|sent| Arc::ptr_eq(sent, set));
        if self.asked.is_empty() && (extent == Extent::Asked || (unchanged && self.ahead.is_empty())) {
            return (Vec::new(), Vec::new());
        }
        let mut asked = std::mem::take(&mut self.asked);
        asked.retain(|name| self.interest.covers(name));
        let mut removed: Vec<Arc<str>> = Vec::new();
        for name in asked.iter().filter(|name| set.get(name).is_none()) {
            self.stale.remove(name);
            self.ahead.remove(name);
            removed.push(name.clone());
        }
        if extent == Extent::Asked {
            let added: Vec<_> = asked.iter().filter_map(|name| set.get(name)).cloned().collect();
            for resource in &added {
                self.stale.remove(&resource.name);
                self.ahead.insert(resource.name.clone(), resource.clone());
            }
            return (added, removed);
        }
        let mut added: BTreeMap<Arc<str>, Arc<Resource>> = BTreeMap::new();
        let mut gone: Vec<Arc<Resource>> = self.ahead.values().cloned().collect();
        match &self.sent {
            None => added.extend(self.wanted(set).map(|resource| (resource.name.clone(), resource.clone()))),
            Some(sent) => {
                for difference in set.differences(sent) {
                    match difference {
                        Difference::Set(new) if self.interest.covers(&new.name) => {
                            added.insert(new.name.clone(), new.clone());
                        }
                        Difference::Gone(old) if self.interest.covers(&old.name) => gone.push(old.clone()),
                        Difference::Set(_) | Difference::Gone(_) => {}
                    }
                }
                // Where the client has something else than `sent` says.
                let other = self.ahead.keys().chain(self.stale.keys()).chain(&asked);
                let other = other.filter(|name| self.interest.covers(name)).filter_map(|name| set.get(name));
                added.extend(other.map(|resource| (resource.name.clone(), resource.clone())));
            }
        }
        added.retain(|name, resource| {
            asked.contains(name) || self.held(name).is_none_or(|held| held.version != resource.version)
        });
        gone.retain(|held| set.get(&held.name).is_none() && !asked.contains(&held.name));
        self.stale.extend(gone.into_iter().map(|resource| (resource.name.clone(), resource)));
        self.stale.retain(|name, _| set.get(name).is_none());
        self.ahead.clear();
        self.sent = Some(set.clone());
        (added.into_values().collect(), removed)
    }

    /// Takes the answer to the response in flight, if it is one.
    fn answer(&mut self, nonce: &str, error: Option<String>, divisible: bool) -> Option<Answer> {
        let flight = self.in_flight.take_if(|flight| flight.nonce == nonce)?;
        let mut names = Vec::new();
        let parts = error.as_ref().filter(|_| divisible && self.splits < MAX_SPLITS);
        match parts.and_then(|message| flight.content.divide(message)) {
            Some(parts) => {
                self.splits += 1;
                // The parts of a part go before the other parts, so that there are never many.
                parts.into_iter().rev().for_each(|part| self.parts.push_front(part));
            }
            None => names = flight.content.names(),
        }
        Some(Answer {
            type_url: self.url.clone(),
            nonce: flight.nonce,
            sent: flight.sent,
            changed: flight.changed,
            error,
            names,
        })
    }

    /// The next part of a rejected response; what changed meanwhile is not part of it any more.
    fn take_part(&mut self, set: &ResourceSet) -> Option<Part> {
        while let Some(mut part) = self.parts.pop_front() {
            let interest = &self.interest;
            part.resources.retain(|resource| {
                interest.covers(&resource.name)
                    && set.get(&resource.name).is_some_and(|now| now.version == resource.version)
            });
            part.removed.retain(|name| interest.covers(name) && set.get(name).is_none());
            if !part.resources.is_empty() || !part.removed.is_empty() {
                return Some(part);
            }
        }
        self.splits = 0;
        None
    }

    /// Takes the names whose removal was put off.
    fn take_stale(&mut self) -> Vec<Arc<str>> {
        let interest = &self.interest;
        std::mem::take(&mut self.stale).into_keys().filter(|name| interest.covers(name)).collect()
    }
}

/// The state of one stream.
#[derive(Debug)]
pub(super) struct Session {
    protocol: Protocol,
    snapshot: Arc<Snapshot>,
    types: Vec<TypeState>,
    nonces: u64,
    /// Clusters sent before the client spoke of endpoints.
    early_clusters: BTreeSet<Arc<str>>,
}

impl Session {
    pub(super) fn new(protocol: Protocol, snapshot: Arc<Snapshot>) -> Self {
        Self { protocol, snapshot, types: Vec::new(), nonces: 0, early_clusters: BTreeSet::new() }
    }

    /// Takes over a newer snapshot; what was not sent of the one before is forgotten.
    pub(super) fn set_snapshot(&mut self, snapshot: Arc<Snapshot>) {
        self.snapshot = snapshot;
    }

    /// Takes over a request; returns the answer to a push, when it is one.
    pub(super) fn request(&mut self, request: Request) -> Result<Option<Answer>, RequestError> {
        if request.type_url.is_empty() {
            return Err(RequestError::NoType);
        }
        let (index, first) = self.type_index(&request.type_url)?;
        let known = self.snapshot.set(&request.type_url);
        let state = &mut self.types[index];
        // Where responses are the whole state there are no parts.
        let divisible = self.protocol == Protocol::Delta || !is_whole(&request.type_url);
        let answer = state.answer(&request.nonce, request.error, divisible);
        let was_wildcard = state.interest.is_wildcard();
        match request.change {
            Change::Delta { subscribe, unsubscribe, initial } => {
                state.change(subscribe, unsubscribe, initial, first, known);
            }
            // A request that answers an older response was sent before the client saw the newer one, whose answer will
            // carry the names again (xDS protocol, "Resource updates").
            Change::Sotw { .. }
                if !first && answer.is_none() && !request.nonce.is_empty() && state.in_flight.is_some() => {}
            Change::Sotw { names } => {
                let asked = state.interest.replace(&request.type_url, names, known);
                state.answer_due |= first || !asked.is_empty();
                state.asked.extend(asked);
            }
        }
        if !first && !was_wildcard && state.interest.is_wildcard() {
            state.widen();
        }
        if first && request.type_url == type_urls::ENDPOINT {
            let early = std::mem::take(&mut self.early_clusters);
            state.asked.extend(early.into_iter().filter(|name| state.interest.names().contains(name)));
        }
        if state.interest.names().len() > MAX_NAMES {
            return Err(RequestError::TooManyNames(request.type_url));
        }
        Ok(answer)
    }

    fn type_index(&mut self, type_url: &str) -> Result<(usize, bool), RequestError> {
        if let Some(index) = self.types.iter().position(|state| *state.url == *type_url) {
            return Ok((index, false));
        }
        if self.types.len() >= MAX_TYPES {
            return Err(RequestError::TooManyTypes);
        }
        let key = rank(type_url).unwrap_or(usize::MAX);
        let index = self.types.partition_point(|state| rank(&state.url).unwrap_or(usize::MAX) <= key);
        self.types.insert(index, TypeState::new(type_url));
        Ok((index, true))
    }

    /// The next response that may be sent, if any. Call again until there is none.
    pub(super) fn next(&mut self) -> Option<Push> {
        let snapshot = self.snapshot.clone();
        let mut earlier_settled = true;
        for index in 0..self.types.len() {
            let state = &mut self.types[index];
            let ordered = rank(&state.url).is_some();
            if state.in_flight.is_some() {
                earlier_settled &= !ordered;
                continue;
            }
            if let Some(part) = state.take_part(snapshot.set(&state.url)) {
                return Some(self.push(index, part, None));
            }
            let is_first = state.sent.is_none();
            let extent = if earlier_settled || !ordered || is_first { Extent::All } else { Extent::Asked };
            let (added, mut removed) = state.take(snapshot.set(&state.url), extent);
            if !is_removed_last(&state.url) {
                removed.extend(state.take_stale());
            }
            let due = (extent == Extent::All || self.protocol == Protocol::Sotw)
                && std::mem::take(&mut state.answer_due);
            // Without removals in the protocol, state of the world has nothing to say about them but for whole sets.
            let silent = self.protocol == Protocol::Sotw && !is_whole(&state.url);
            if due || !added.is_empty() || (!removed.is_empty() && !silent) {
                let changed = (!is_first).then_some(snapshot.changed);
                return Some(self.push(index, Part { resources: added, removed }, changed));
            }
        }
        if !earlier_settled {
            return None;
        }
        for index in 0..self.types.len() {
            let state = &mut self.types[index];
            if state.in_flight.is_some() || state.stale.is_empty() {
                continue;
            }
            let removed = state.take_stale();
            if !removed.is_empty() && (self.protocol == Protocol::Delta || is_whole(&state.url)) {
                let part = Part { resources: Vec::new(), removed };
                return Some(self.push(index, part, Some(snapshot.changed)));
            }
        }
        None
    }

    fn push(&mut self, index: usize, mut content: Part, changed: Option<Instant>) -> Push {
        self.nonces += 1;
        let state = &self.types[index];
        if self.protocol == Protocol::Sotw && is_whole(&state.url) {
            // The whole state: what is new, what is unchanged, and what may not be removed yet.
            let set = self.snapshot.set(&state.url);
            content.resources = state.wanted(set).chain(state.stale.values()).cloned().collect();
        }
        let url = state.url.clone();
        if *url == *type_urls::CLUSTER {
            self.rewarm(&content.resources);
        }
        let nonce = self.nonces.to_string();
        let Part { resources, removed } = content.clone();
        self.types[index].in_flight =
            Some(InFlight { nonce: nonce.clone(), sent: Instant::now(), changed, content });
        Push {
            protocol: self.protocol,
            type_url: url,
            nonce,
            version: self.snapshot.version,
            resources,
            removed,
        }
    }

    /// A cluster that is sent again is warmed again by Envoy, which waits for endpoints it is already subscribed to and
    /// therefore does not ask for. Endpoints go by the cluster's name.
    fn rewarm(&mut self, clusters: &[Arc<Resource>]) {
        let Some(endpoints) = self.types.iter_mut().find(|state| *state.url == *type_urls::ENDPOINT) else {
            // A returning client may claim to have their endpoints.
            self.early_clusters.extend(clusters.iter().map(|cluster| cluster.name.clone()));
            return;
        };
        for cluster in clusters {
            if endpoints.interest.names().contains(&cluster.name) {
                endpoints.asked.insert(cluster.name.clone());
            }
        }
    }

    /// How many resources of a type the client is subscribed to and would have if all was sent.
    pub(super) fn subscribed(&self, type_url: &str) -> usize {
        let Some(state) = self.types.iter().find(|state| *state.url == *type_url) else { return 0 };
        let set = self.snapshot.set(type_url);
        if state.interest.is_wildcard() { set.len() } else { state.interest.names().len() }
    }
}

/// In state of the world, a response of these types is the whole state: what is not in it is gone.
fn is_whole(type_url: &str) -> bool {
    type_url == type_urls::CLUSTER || type_url == type_urls::LISTENER
}

impl TypeState {
    /// The client, which had named some resources, wants all of them now: it has only those it had named.
    fn widen(&mut self) {
        self.answer_due = true;
        if let Some(sent) = &self.sent {
            let had = self.interest.names().iter().filter_map(|name| sent.get(name)).cloned();
            self.sent = Some(Arc::new(had.collect()));
        }
    }

    fn change(
        &mut self,
        subscribe: Vec<String>,
        unsubscribe: Vec<String>,
        initial: HashMap<String, String>,
        first: bool,
        known: &ResourceSet,
    ) {
        for name in &unsubscribe {
            self.asked.remove(name.as_str());
            self.stale.remove(name.as_str());
            self.ahead.remove(name.as_str());
        }
        let asked = self.interest.change(&self.url, subscribe, unsubscribe, first, known);
        if first && !initial.is_empty() {
            // A returning client has these versions. Only what differs is sent.
            let claimed = initial.into_iter().map(|(name, version)| {
                Arc::new(Resource { name: name.into(), version: version.into(), body: bytes::Bytes::new() })
            });
            self.sent = Some(Arc::new(claimed.collect()));
        }
        let claimed = self.sent.as_ref().filter(|_| first);
        self.asked.extend(asked.into_iter().filter(|name| claimed.is_none_or(|set| set.get(name).is_none())));
        self.answer_due |= first && self.interest.is_wildcard();
    }
}

#[cfg(test)]
#[path = "session_tests.rs"]
mod tests;
