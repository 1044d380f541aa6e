//! A Kubernetes API server as a library: REST semantics, watch, patches, admission, CRDs.
//!
//! [`ApiServer::start`] gives a server that stock `kubectl`, client-go and kube-rs talk to over TLS. Everything is in
//! memory, optionally backed by a journal on disk.
//!
//! What differs from kube-apiserver, on purpose:
//! - RBAC objects are stored and never consulted: whoever is authenticated may do everything.
//! - CEL rules (`x-kubernetes-validations`, ValidatingAdmissionPolicy, `matchConditions`) are not evaluated.
//! - CRD conversion is `None` only; built-in kinds have one version each (events two).
//! - Only JSON and YAML are spoken; a request for protobuf alone is answered with 406.
//! - A list continued with `continue` is not a snapshot: later pages show the state at the time they are read.
//!
//! Life of a request: `http` (TLS, limits) → `authn` → `route` (path → resource) → `rest` (verbs) → `decode` →
//! `defaults` → `admission` → `validate` → `store`.

mod config;
mod server;

pub use config::{ApiServerConfig, ServiceResolver, ServiceTarget, StoreConfig};
pub use server::{ApiServer, StartError, TokenRequest};
