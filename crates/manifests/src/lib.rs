//! The mesh's own components as Kubernetes objects: CRDs, control plane, webhooks, gateways, injection template.
//!
//! Everything here is a pure function of [`Options`]; [`render`] lists all objects in the order in which they must be
//! applied. What the objects promise to each other (ports, names, container arguments) is fixed in ARCHITECTURE.md.
mod control_plane;
mod gateway;
mod injection;
mod options;
mod rbac;
mod webhooks;

pub use control_plane::mesh_config;
pub use injection::{SIDECAR_INJECTOR_CONFIGMAP, injector_config, injector_values};
pub use options::{Engine, Options};
pub use webhooks::{INJECTOR_WEBHOOK_PREFIX, VALIDATOR_WEBHOOK_PREFIX};

use serde_json::Value;

/// All objects of the mesh in apply order: namespace, CRDs, accounts and RBAC, configuration, the control plane's
/// service and Deployment, webhooks, gateways. Every object is complete (`apiVersion`, `kind`, `metadata`), carries no
/// server-owned field, and can be sent by server-side apply as it is.
///
/// The webhooks' `caBundle` is left to the control plane, which writes it when it starts.
pub fn render(options: &Options) -> Vec<Value> {
    let mut objects = vec![control_plane::namespace(options)];
    objects.extend(crds());
    objects.extend(rbac::objects(options));
    objects.extend(control_plane::config_maps(options));
    objects.push(injection::config_map(options));
    objects.push(control_plane::service(options));
    objects.push(control_plane::deployment(options));
    objects.extend(webhooks::objects(options));
    if options.ingress_gateway {
        objects.extend(gateway::ingress(options));
    }
    if options.egress_gateway {
        objects.extend(gateway::egress(options));
    }
    objects
}

/// The CustomResourceDefinitions, generated from the types of `lateen-api`.
pub fn crds() -> Vec<Value> {
    lateen_api::crds().iter().filter_map(|crd| serde_json::to_value(crd).ok()).collect()
}

#[cfg(test)]
mod tests;
