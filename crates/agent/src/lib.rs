//! What surrounds an engine in a pod: identity, configuration from the control plane, health, metrics, and an end that loses nothing.
//!
//! [`run`] starts an agent from a [`Config`]; everything it touches is in there, so that several run in one process.
//! With [`EngineKind::Lateen`] the engine is in this process and the agent speaks xDS for it; with [`EngineKind::Envoy`] a
//! stock Envoy is its child and speaks xDS through the agent's Unix socket. [`plain`] runs our engine from an Envoy bootstrap
//! file, with nothing around it.

mod agent;
mod bootstrap;
mod cache;
mod config;
pub mod descriptors;
mod dial;
mod dns;
pub mod envoy;
mod error;
mod feed;
mod fetch;
mod files;
mod forward;
mod health;
mod identity;
pub mod logging;
pub mod machine;
mod node;
pub mod plain;
mod podinfo;
mod probes;
mod proxy;
mod readiness;
mod wait;

pub use agent::{Running, run};
pub use config::{
    Addresses, Config, Discovery, Drain, EngineKind, Folders, PROXY_MARK, Pod, Role, SetLogLevel,
};
pub use dns::Dns;
pub use error::AgentError;
pub use identity::Identity;
pub use node::VERSION;
pub use probes::{Prober, Probers};
pub use readiness::Readiness;
pub use wait::until_ready;
