//! A Kubernetes API server as a library: REST semantics, watch, patches, admission, CRDs.
//!
//! [`ApiServer::start`] gives a server that stock `kubectl`, client-go and kube-rs talk to over TLS. Everything is in
//! memory, optionally backed by a journal on disk.
//!
//! What differs from kube-apiserver, on purpose:
//! - CEL rules are not evaluated: `x-kubernetes-validations` are accepted with a warning, webhooks' `matchConditions` are
//!   refused, ValidatingAdmissionPolicy is not served.
//! - Kinds that nothing acts on (`inert`) are stored, and writing one is answered with a warning.
//! - Ephemeral containers are refused.
//! - CRD conversion is `None` only; built-in kinds have one version each (events two).
//! - Answers are JSON or YAML; protobuf is understood in request bodies only (client-go accepts JSON in return).
//! - A list continued with `continue` is not a snapshot: later pages show the state at the time they are read.
//!
//! Life of a request: `http` (TLS, limits) → `authn` → `impersonation` → `rbac` → `route` (path → resource) → `rest` (verbs) → `decode` →
//! `defaults` → `admission` → `validate` → `store`.

mod addresses;
mod admission;
mod apply;
mod authn;
mod bootstrap;
mod builtin;
mod call;
mod certificates;
mod config;
mod convert;
mod crd;
mod decode;
mod defaults;
mod delete;
mod dial;
mod discovery;
mod escalation;
mod fieldset;
mod gc;
mod handle;
mod impersonation;
mod inert;
mod ip_families;
mod journal;
mod jsonpath;
mod merge_keys;
mod names;
mod openapi;
mod patch;
mod pki;
mod protobuf;
mod proxy;
mod rbac;
mod read;
mod resources;
mod response;
mod reviews;
mod route;
mod rules;
mod scale;
mod schema;
mod selector;
mod server;
mod service_account;
mod state;
mod status;
mod store;
mod strategy;
mod structural;
mod subresources;
mod table;
mod webhook;
mod write;

pub use config::{ApiServerConfig, ServiceResolver, ServiceTarget, StoreConfig};
pub use server::{ApiServer, StartError, TokenRequest};
