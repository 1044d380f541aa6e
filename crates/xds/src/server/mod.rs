//! The ADS server: delta and state of the world, for any client, from snapshots.
//!
//! A [`Source`] admits clients and gives each a watch on the [`Snapshot`] it should have; [`AdsServer`] brings each client
//! there by the protocol it speaks. Nothing here knows what the resources mean, but for the order in which Envoy wants its
//! four main types. Connections are independent: each holds the latest snapshot and one unacknowledged response per type.
//!
//! Source of the behaviour: Envoy's "xDS REST and gRPC protocol" page.
mod interest;
mod part;
mod resource;
mod service;
mod session;
mod status;
mod wire;

pub use resource::{Resource, ResourceSet, Snapshot};
pub use service::{AdsServer, Event, Hello, Opened, PeerAddress, Source};
pub use session::Protocol;
pub use status::{ConnectionStatus, Connections, Nack, Stamp, SyncState, TypeStatus};

#[cfg(test)]
mod tests;
