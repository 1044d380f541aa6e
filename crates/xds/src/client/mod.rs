//! The ADS client: delta or state of the world, with per-resource answers and reconnection.
//!
//! [`AdsClient::start`] spawns one task. Batches come out of a channel; the consumer applies a batch and answers it with the list
//! of resources it refuses, and the client turns that into ACK or NACK. A refused resource keeps its previous version; the others in the
//! same response are applied. When the stream breaks, the consumer keeps what it has and the client comes back with the
//! versions it knows, so that only differences are sent.
//!
//! Source of the behaviour: Envoy's "xDS REST and gRPC protocol" page.

mod channel;
mod delta;
mod run;
mod sotw;
#[cfg(test)]
mod tests;
mod variant;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use tokio::sync::{mpsc, oneshot, watch};
use tonic::metadata::MetadataMap;
use tonic::transport::Channel;

pub use channel::channel_over;

use crate::Any;
use crate::pb::envoy::config::core::v3::Node;

/// A channel to the management server, and metadata for the stream (`authorization`).
pub struct Connection {
    /// Where to send. Set HTTP/2 keep-alive on it, so that a server that is silently gone is noticed.
    pub channel: Channel,
    /// Request metadata of the stream.
    pub metadata: MetadataMap,
}

/// Makes a connection; called anew for every attempt, so that addresses, roots and tokens are read afresh. The error is
/// shown to people.
pub type Connect = Arc<dyn Fn() -> BoxFuture<'static, Result<Connection, String>> + Send + Sync>;

/// Variant of the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Incremental xDS (`DeltaAggregatedResources`).
    Delta,
    /// State of the world (`StreamAggregatedResources`).
    Sotw,
}

/// How long to wait before the next attempt: doubles from `base` to `max`, and a random share of it is taken (full jitter).
#[derive(Clone, Copy, Debug)]
pub struct Reconnect {
    /// First upper limit. Default 200 ms.
    pub base: Duration,
    /// Last upper limit. Default 10 s.
    pub max: Duration,
}

impl Default for Reconnect {
    fn default() -> Self {
        Self { base: Duration::from_millis(200), max: Duration::from_secs(10) }
    }
}

/// How to run a client.
pub struct ClientConfig {
    /// Who we are; sent with the first request of each stream.
    pub node: Node,
    /// Variant.
    pub mode: Mode,
    /// Types of which everything is wanted, in the order they are asked for: usually clusters, then listeners.
    pub wildcards: Vec<&'static str>,
    /// How to connect.
    pub connect: Connect,
    /// Pauses between attempts.
    pub reconnect: Reconnect,
    /// Resources the consumer already has, for example from a cache on disk: (type URL, name, version). Delta only.
    pub known: Vec<(String, String, String)>,
}

/// A resource of a batch.
#[derive(Clone, Debug, PartialEq)]
pub struct Resource {
    /// Name.
    pub name: String,
    /// Version given by the server.
    pub version: String,
    /// The resource.
    pub body: Any,
}

/// A resource the consumer refuses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rejected {
    /// Its name.
    pub name: String,
    /// Why, with the path of the field. Goes to the server.
    pub reason: String,
}

/// One response of the server. Answer it with [`Update::answer`]; dropping it counts as accepting nothing and refusing everything.
#[derive(Debug)]
pub struct Update {
    /// Type of all its resources.
    pub type_url: String,
    /// Version of the response, for people.
    pub version: String,
    /// Resources to add or replace.
    pub added: Vec<Resource>,
    /// Names to remove, or that don't exist although they were asked for.
    pub removed: Vec<String>,
    reply: oneshot::Sender<Vec<Rejected>>,
}

impl Update {
    /// Says which of the added resources are refused; an empty list accepts all. The batch must have been applied before.
    pub fn answer(self, rejected: Vec<Rejected>) {
        // A closed channel means that the client was dropped meanwhile.
        let _ = self.reply.send(rejected);
    }
}

/// State of the connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Status {
    /// An attempt is being made.
    Connecting,
    /// The stream is open.
    Connected,
    /// The last attempt or stream failed; another follows.
    Disconnected {
        /// What happened.
        reason: String,
    },
}

/// What an agent says of its application ([`type_urls::HEALTH_INFORMATION`](crate::type_urls::HEALTH_INFORMATION)).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Health {
    /// It is well.
    Healthy,
    /// What is wrong.
    Unhealthy(String),
}

impl Health {
    /// The error by which it is told: Istio's agent has the code of an HTTP status there.
    pub(crate) fn error(&self) -> Option<crate::pb::google::rpc::Status> {
        match self {
            Self::Healthy => None,
            Self::Unhealthy(message) => Some(crate::pb::google::rpc::Status {
                code: 500,
                message: message.clone(),
                details: Vec::new(),
            }),
        }
    }
}

/// What a stream is to say by itself.
#[derive(Clone, Debug, Default)]
pub(crate) struct Wanted {
    /// Names wanted, by type URL.
    pub(crate) names: BTreeMap<String, BTreeSet<String>>,
    /// The last that is known of the application; told anew on each stream.
    pub(crate) health: Option<Health>,
}

/// Handle on a running client. The client stops when it is dropped.
pub struct AdsClient {
    wanted: watch::Sender<Wanted>,
    status: watch::Receiver<Status>,
    task: tokio::task::JoinHandle<()>,
}

impl AdsClient {
    /// Starts the client. At most a few batches wait in the channel; a slow consumer slows the server down through flow control.
    pub fn start(config: ClientConfig) -> (Self, mpsc::Receiver<Update>) {
        let (updates, receiver) = mpsc::channel(4);
        let (wanted, follows) = watch::channel(Wanted::default());
        let (status_sender, status) = watch::channel(Status::Connecting);
        let task = tokio::spawn(run::run(config, follows, updates, status_sender));
        (Self { wanted, status, task }, receiver)
    }

    /// Replaces the names wanted of a type (routes, endpoints). Takes effect at once on an open stream.
    pub fn subscribe(&self, type_url: &str, names: BTreeSet<String>) {
        self.wanted.send_if_modified(|Wanted { names: all, .. }| {
            if all.get(type_url) == Some(&names) || (names.is_empty() && !all.contains_key(type_url)) {
                return false;
            }
            all.insert(type_url.to_owned(), names);
            true
        });
    }

    /// Tells how the application is, now and on each stream to come. Of what follows quickly the last counts.
    pub fn report(&self, health: Health) {
        self.wanted.send_modify(|wanted| wanted.health = Some(health));
    }

    /// Follows the state of the connection.
    pub fn status(&self) -> watch::Receiver<Status> {
        self.status.clone()
    }
}

impl Drop for AdsClient {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// The NACK's words: every refused resource with its reason, within a limit so that a server's log stays readable.
pub(crate) fn nack_message(rejected: &[Rejected]) -> String {
    const SHOWN: usize = 20;
    let mut message = rejected
        .iter()
        .take(SHOWN)
        .map(|rejected| format!("{}: {}", rejected.name, rejected.reason))
        .collect::<Vec<_>>()
        .join("; ");
    if rejected.len() > SHOWN {
        message.push_str(&format!("; and {} more", rejected.len() - SHOWN));
    }
    message
}
