//! Pods on one machine: network namespaces, processes, probes, logs, cluster DNS and service addresses.
//!
//! Order of use: [`host_setup`] → [`Runtime::new`] → give [`Runtime::handle`] to the API server (it is the
//! [`PodBackend`](lateen_podstreams::PodBackend)) → [`Runtime::start`] with a client of that API server → [`RuntimeHandle::stop`] →
//! [`host_teardown`]. The program that is [`RuntimeConfig::executable`] must call [`container_run_main`] for its hidden
//! subcommand `container-run`.
#![cfg(target_os = "linux")]

mod cluster_index;
mod command;
mod config;
mod container_run;
mod dns;
mod error;
mod host;
pub mod images;
mod ipam;
mod mountinfo;
mod names;
mod netns;
mod runtime;
mod sandbox;
mod service_rules;

pub use config::{Network, RuntimeConfig};
pub use container_run::container_run_main;
pub use error::RuntimeError;
pub use host::{host_check, host_setup, host_teardown};
pub use images::{ImageMap, Invocation};
pub use names::Names;
pub use runtime::{Runtime, RuntimeHandle};
