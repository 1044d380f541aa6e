//! Why a request fares as it does: its way through a proxy, out of the proxy's configuration. What is decided is decided by
//! the functions that serve requests; here the reasons are written down. Pure.

mod passage;
mod policies;
mod reach;
mod routing;
#[cfg(test)]
mod tests;
mod words;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

use http::HeaderMap;
use http::uri::PathAndQuery;
use serde::Serialize;
use serde_json::{Map, Value};

pub use policies::PolicySeen;
pub use reach::{EndpointSeen, Reach};

use crate::{Cluster, ClusterLoadAssignment, Listener, RouteConfiguration};

/// A proxy's configuration.
#[derive(Clone, Debug, Default)]
pub struct ProxyView {
    /// All listeners.
    pub listeners: Vec<Listener>,
    /// Route configurations by name.
    pub routes: BTreeMap<Arc<str>, RouteConfiguration>,
    /// Clusters by name.
    pub clusters: BTreeMap<Arc<str>, Cluster>,
    /// Load assignments by name.
    pub endpoints: BTreeMap<Arc<str>, ClusterLoadAssignment>,
}

/// A connection, with a request or not.
#[derive(Clone, Debug)]
pub struct Question {
    /// Where the client connects to.
    pub destination: SocketAddr,
    /// The client.
    pub source: SocketAddr,
    /// `None`: plain text.
    pub tls: Option<Hello>,
    /// `None`: bytes that are not HTTP.
    pub request: Option<Asked>,
}

/// What a TLS client says.
#[derive(Clone, Debug, Default)]
pub struct Hello {
    /// The name it asks for, in lower case.
    pub server_name: String,
    /// Protocols it offers.
    pub protocols: Vec<String>,
    /// URI names in its certificate; `None`: it has none.
    pub certificate: Option<Vec<String>>,
}

/// A request.
#[derive(Clone, Debug)]
pub struct Asked {
    /// Method.
    pub method: String,
    /// Host, with a port or not.
    pub authority: String,
    /// Path with query.
    pub path: PathAndQuery,
    /// Headers.
    pub headers: HeaderMap,
    /// Claims of a token that is taken for good, wherever it is.
    pub claims: Option<Map<String, Value>>,
}

/// A request's way through one proxy.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Passage {
    /// The listener that takes the connection.
    pub listener: Option<String>,
    /// Its filter chain: its name, or what it matches.
    pub chain: Option<String>,
    /// How the connection is protected: `plain text`, `TLS` or `mutual TLS`.
    pub transport: &'static str,
    /// The route.
    pub route: Option<RouteSeen>,
    /// What filters say, in their order.
    pub checks: Vec<Check>,
    /// How it ends here.
    pub outcome: Outcome,
    /// The request as it leaves.
    #[serde(skip)]
    pub request: Option<Asked>,
}

/// The route of a request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct RouteSeen {
    /// Name of the route configuration.
    pub configuration: String,
    /// Name of the virtual host.
    pub virtual_host: String,
    /// Position of the route there. `None`: none of its routes matches.
    pub position: Option<usize>,
    /// Name of the route; may be empty.
    pub name: String,
    /// What it matches.
    pub matching: String,
}

/// What one filter says of a request or connection.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Check {
    /// What looks: `DENY`, `ALLOW` or `AUDIT` policies, `CUSTOM` ones, `tokens`, `authorizer`, `fault`.
    pub by: String,
    /// What it says.
    pub result: CheckResult,
    /// The policy and rule, or whatever else decided.
    pub decided_by: Option<String>,
    /// In words.
    pub reason: String,
    /// Each rule it had, in the order of their names.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub rules: Vec<PolicySeen>,
}

/// See [`Check::result`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum CheckResult {
    /// It passes.
    Passes,
    /// It does not.
    Refused,
    /// It is noted, and passes.
    Noted,
    /// Configuration does not tell.
    Depends,
}

/// How a request leaves a proxy.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase", tag = "kind")]
pub enum Outcome {
    /// To one of these clusters.
    Forwarded {
        /// The clusters and their shares in percent, the one with the most first.
        clusters: Vec<Share>,
    },
    /// The proxy answers.
    Answered {
        /// Status.
        status: u16,
        /// Response flags, as in access logs.
        flags: &'static str,
        /// Response code details, as in access logs.
        details: String,
        /// In words.
        reason: String,
    },
    /// The connection is closed.
    Closed {
        /// Connection termination details, as in access logs; may be empty.
        details: String,
        /// In words.
        reason: String,
    },
}

/// A cluster's share.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Share {
    /// The cluster.
    pub cluster: String,
    /// In percent.
    pub percent: f64,
}

impl Passage {
    fn closed(reason: impl Into<String>) -> Self {
        Self {
            listener: None,
            chain: None,
            transport: "plain text",
            route: None,
            checks: Vec::new(),
            outcome: Outcome::Closed { details: String::new(), reason: reason.into() },
            request: None,
        }
    }
}
