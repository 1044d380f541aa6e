//! Pods on one machine: network namespaces, processes, probes, logs, cluster DNS and service addresses.
//!
//! Order of use: [`host_setup`] → [`Runtime::new`] → give [`Runtime::handle`] to the API server (it is the
//! [`PodBackend`](lateen_podstreams::PodBackend)) → [`Runtime::start`] with a client of that API server → [`RuntimeHandle::stop`] →
//! [`host_teardown`]. The program that is [`RuntimeConfig::executable`] must call [`container_run_main`] for its hidden
//! subcommand `container-run`.
#![cfg(target_os = "linux")]

mod atomic_dir;
mod backend;
mod cluster_index;
mod command;
mod config;
mod console;
mod container;
mod container_log;
mod container_run;
mod dns;
mod environment;
mod error;
mod events;
mod exec_session;
mod fields;
mod grpc_health;
mod host;
pub mod images;
mod ipam;
mod mountinfo;
mod names;
mod netns;
mod pod;
mod probe;
mod probing;
mod quantity;
mod records;
mod runtime;
mod sandbox;
mod service_rules;
mod sources;
mod status;
mod volumes;
mod watch;

pub use config::{Ipv6Network, Network, RuntimeConfig};
pub use container_run::container_run_main;
pub use error::RuntimeError;
pub use host::{host_check, host_setup, host_teardown};
pub use images::{ImageMap, Invocation, PROGRAMS};
pub use names::Names;
pub use runtime::{Runtime, RuntimeHandle};
