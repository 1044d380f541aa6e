//! The sidecar injector: decides whether a pod gets a proxy and renders the patch that adds it.
//!
//! Pure but for [`config`], which follows the ConfigMap. The decision and the order of containers are Istio's; the template
//! is Jinja instead of Go's template language, because that is what a maintained Rust crate offers.
mod config;
mod decide;
mod merge;
mod pod;
mod probes;
mod template;
mod workload;

pub(crate) use config::{InjectorConfig, follow};
pub(crate) use decide::{Decision, decide};
pub(crate) use template::{InjectContext, inject};

#[cfg(test)]
mod tests;
