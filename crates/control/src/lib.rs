//! `lateend`: watch, push, webhooks, status, certificates, debug.
//!
//! Life of a change: a Kubernetes object arrives at a [`watch`] task, goes through one channel to the [`push`] thread, which
//! puts it into the model's store, makes a new world and, for each class of connected proxies that the change touches, a
//! new snapshot. Each connection (`lateen_xds::server`) finds its latest snapshot and sends the difference.
//!
//! Threads: tokio's for all I/O; one for the push loop, so that generating configuration never holds up a connection.
mod answered;
mod authenticate;
mod ca_metrics;
mod ca_secret;
mod ca_service;
mod classes;
mod config;
mod control_plane;
mod csr_api;
mod debug;
pub mod descriptors;
mod due;
mod fetch_keys;
mod gateway_names;
mod ingress_status;
mod inject;
mod injection_webhook;
mod key_sets;
mod mesh_objects;
mod metrics;
mod node;
mod process_metrics;
mod push;
mod refused;
mod registration;
mod root_cert;
mod secret_access;
mod serve;
mod serving_cert;
mod source;
mod status_writer;
mod stored_keys;
mod syncz;
mod trust_bundles;
mod trust_service;
mod validation_webhook;
mod watch;
mod webhook_patch;

pub use config::{CertificateLife, Config, ExternalCa, KeyFetching, Listen, MachineOptions};
pub use control_plane::{Addresses, ControlPlane, StartError};
pub use lateen_model::KeysBy;
