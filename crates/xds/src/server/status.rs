//! What every connected client was sent and what it said about it.
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use super::session::{Answer, Protocol, Push};
use crate::pb::envoy::config::core::v3::Node;

/// A response that was sent or answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stamp {
    /// Nonce of the response; unique on its stream.
    pub nonce: String,
    /// Version of the snapshot it was made from.
    pub version: u64,
    /// When.
    pub time: SystemTime,
}

/// A rejected response.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Nack {
    /// The response.
    pub stamp: Stamp,
    /// The client's words.
    pub message: String,
}

/// One type on one connection.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TypeStatus {
    /// The last response.
    pub sent: Option<Stamp>,
    /// The last response that was accepted.
    pub acked: Option<Stamp>,
    /// The last rejection, as long as something is rejected.
    pub nacked: Option<Nack>,
    /// The resources whose current version the client rejected.
    pub rejected: BTreeSet<Arc<str>>,
    /// Resources the client is subscribed to.
    pub subscribed: usize,
}

/// Where a client stands with one type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SyncState {
    /// The client accepted everything it was sent.
    Synced,
    /// The last response is not acknowledged, or something was rejected.
    Stale,
    /// Nothing was sent.
    NotSent,
}

impl TypeStatus {
    /// Where the client stands.
    pub fn state(&self) -> SyncState {
        match (&self.sent, &self.acked) {
            (None, _) => SyncState::NotSent,
            (Some(sent), Some(acked)) if sent.nonce == acked.nonce && self.rejected.is_empty() => {
                SyncState::Synced
            }
            _ => SyncState::Stale,
        }
    }
}

/// One connection.
#[derive(Clone, Debug)]
pub struct ConnectionStatus {
    /// Number of the connection, unique in its server.
    pub id: u64,
    /// Who it is, as the client said in its first request.
    pub node: Arc<Node>,
    /// Where it came from.
    pub peer: Option<SocketAddr>,
    /// Variant of the protocol.
    pub protocol: Protocol,
    /// Since when.
    pub connected: SystemTime,
    /// By type URL.
    pub types: BTreeMap<Arc<str>, TypeStatus>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A status that a panicking task left behind is still the best there is to show.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// All connections of a server. Cloning gives another handle.
#[derive(Clone, Debug, Default)]
pub struct Connections {
    open: Arc<Mutex<BTreeMap<u64, Arc<Mutex<ConnectionStatus>>>>>,
    next: Arc<AtomicU64>,
}

impl Connections {
    /// A copy of every connection's status, oldest connection first.
    pub fn list(&self) -> Vec<ConnectionStatus> {
        let open: Vec<_> = lock(&self.open).values().cloned().collect();
        open.iter().map(|status| lock(status).clone()).collect()
    }

    /// How many are open.
    pub fn len(&self) -> usize {
        lock(&self.open).len()
    }

    /// Whether none is open.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// A number for a new connection.
    pub(super) fn number(&self) -> u64 {
        self.next.fetch_add(1, Ordering::Relaxed) + 1
    }

    pub(super) fn insert(&self, status: ConnectionStatus) -> Entry {
        let id = status.id;
        let status = Arc::new(Mutex::new(status));
        lock(&self.open).insert(id, status.clone());
        Entry { id, status, connections: self.clone() }
    }
}

/// A connection's place in the list, given up when dropped.
pub(super) struct Entry {
    id: u64,
    status: Arc<Mutex<ConnectionStatus>>,
    connections: Connections,
}

impl Drop for Entry {
    fn drop(&mut self) {
        lock(&self.connections.open).remove(&self.id);
    }
}

impl Entry {
    pub(super) fn pushed(&self, push: &Push, subscribed: usize) {
        let mut status = lock(&self.status);
        let of_type = status.types.entry(push.type_url.clone()).or_default();
        of_type.sent =
            Some(Stamp { nonce: push.nonce.clone(), version: push.version, time: SystemTime::now() });
        of_type.subscribed = subscribed;
    }

    pub(super) fn answered(&self, answer: &Answer) {
        let mut status = lock(&self.status);
        let of_type = status.types.entry(answer.type_url.clone()).or_default();
        let version = of_type.sent.as_ref().map_or(0, |sent| sent.version);
        let stamp = Stamp { nonce: answer.nonce.clone(), version, time: SystemTime::now() };
        match &answer.error {
            None => {
                of_type.acked = Some(stamp);
                for name in &answer.names {
                    of_type.rejected.remove(name);
                }
                if of_type.rejected.is_empty() {
                    of_type.nacked = None;
                }
            }
            Some(message) => {
                of_type.nacked = Some(Nack { stamp, message: message.clone() });
                of_type.rejected.extend(answer.names.iter().cloned());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::type_urls::ROUTE;
    use std::time::Instant;

    fn answer(nonce: &str, error: Option<&str>, names: &[&str]) -> Answer {
        Answer {
            type_url: ROUTE.into(),
            nonce: nonce.to_owned(),
            sent: Instant::now(),
            changed: None,
            error: error.map(str::to_owned),
            names: names.iter().map(|&name| name.into()).collect(),
        }
    }

    fn push(nonce: &str) -> Push {
        Push {
            protocol: Protocol::Delta,
            type_url: ROUTE.into(),
            nonce: nonce.to_owned(),
            version: 1,
            resources: Vec::new(),
            removed: Vec::new(),
        }
    }

    #[test]
    fn a_rejection_is_told_until_the_rejected_resource_is_accepted_or_gone() {
        let connections = Connections::default();
        let entry = connections.insert(ConnectionStatus {
            id: 1,
            node: Arc::default(),
            peer: None,
            protocol: Protocol::Delta,
            connected: SystemTime::now(),
            types: BTreeMap::new(),
        });
        let now = || connections.list()[0].types[ROUTE].clone();
        entry.pushed(&push("1"), 2);
        entry.answered(&answer("1", Some("bad bad"), &["bad"]));
        assert_eq!(now().state(), SyncState::Stale);
        entry.pushed(&push("2"), 2);
        entry.answered(&answer("2", None, &["good"]));
        assert_eq!(now().nacked.as_ref().map(|nack| nack.message.as_str()), Some("bad bad"));
        assert_eq!(now().state(), SyncState::Stale, "the other resource is still rejected");
        entry.pushed(&push("3"), 2);
        entry.answered(&answer("3", None, &["bad"]));
        assert_eq!((now().state(), now().nacked), (SyncState::Synced, None));
    }
}
