//! What load to make.

use serde::{Deserialize, Serialize};

/// A mixed load.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Spec {
    /// How long; without it until told to stop.
    #[serde(default)]
    pub seconds: Option<f64>,
    /// What runs at the same time.
    pub flows: Vec<Flow>,
}

/// Requests or streams of one kind to one destination.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Flow {
    /// What is sent.
    pub kind: Kind,
    /// Where to connect, as `host:port`.
    pub to: String,
    /// Authority of the requests; `to` when absent.
    #[serde(default)]
    pub host: Option<String>,
    /// Path of the requests, where the protocol leaves it open; `/` when absent.
    #[serde(default)]
    pub path: Option<String>,
    /// Requests, or messages of each stream, in a second.
    pub rate: f64,
    /// How many streams; 1 when absent.
    #[serde(default = "one")]
    pub streams: usize,
}

fn one() -> usize {
    1
}

/// Kinds of traffic.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Kind {
    /// GET over kept HTTP/1.1 connections.
    Http1,
    /// GET over a new HTTP/1.1 connection each.
    Http1New,
    /// GET over HTTP/2.
    Http2,
    /// `Echo/Once` over HTTP/2.
    Grpc,
    /// `Echo/Stream`: numbers both ways for as long as the load lasts.
    GrpcStream,
    /// A WebSocket, likewise.
    Websocket,
    /// A TCP connection, likewise.
    Numbers,
}

impl Kind {
    /// Long-lived streams, as opposed to requests.
    pub fn is_stream(self) -> bool {
        matches!(self, Self::GrpcStream | Self::Websocket | Self::Numbers)
    }
}

impl Flow {
    /// Kind and destination.
    pub fn name(&self) -> String {
        let to = self.host.as_ref().unwrap_or(&self.to);
        format!("{:?} {to}{}", self.kind, self.path.as_deref().unwrap_or_default())
    }

    pub(super) fn authority(&self) -> &str {
        self.host.as_deref().unwrap_or(&self.to)
    }
}
