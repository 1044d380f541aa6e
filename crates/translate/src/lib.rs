//! A [`World`](lateen_model::World) and a proxy's class to xDS resources. Pure.
//!
//! What a proxy gets depends on its [`ProxyClass`] alone; proxies of one class share every encoded byte. How they reach the
//! mesh depends on the part of it that [`ProxyClass::outward`] keeps, and classes that agree in that share a [`Scope`].
//! Each resource is made by a function of a small input struct, and the digest of that struct is its key in the
//! [`Cache`]: a generator cannot read what is not in its key.
//!
//! ```text
//! Proxy::parse(node)  →  ProxyClass::of(proxy, world)  →  Scope::new(world, class)  →  generate(scope, cache, …)
//! Delta  →  affected(delta, before, scope)  →  which of the four types, and of which services, to generate again
//! ```
mod access;
mod access_log;
mod access_rules;
mod affected;
mod any_address;
mod cache;
mod client_tls;
mod clusters;
mod conflicts;
mod cors;
mod dynamic_dns;
mod endpoints;
mod faults;
mod filters;
mod gateways;
mod gateways_tls;
mod generate;
mod hash_policy;
mod headers;
mod listeners_gateway;
mod listeners_inbound;
mod listeners_outbound;
mod locality;
mod mirrors;
mod mutual_tls;
mod name_table;
mod names;
mod networks;
mod ordered;
mod ordered_jwt;
mod ordered_rbac;
mod parts;
mod providers;
mod proxy;
mod references;
mod resource;
mod retries;
mod route_match;
mod route_rules;
mod routes_gateway;
mod routes_sidecar;
mod rules;
mod scope;
mod secrets;
mod settings;
mod sidecar;
mod stat_names;
mod tcp_routes;
mod tls_defaults;
mod tokens;
mod traffic_policy;
mod warnings;
mod wire;

pub use affected::{Affected, Extent, affected};
pub use cache::Cache;
pub use generate::{generate, generate_all, generate_outward, generate_own};
pub use names::{BLACK_HOLE, INBOUND_PASSTHROUGH, PASSTHROUGH, inbound_cluster, outbound_cluster};
pub use proxy::{InboundPort, NodeError, Proxy, ProxyClass, ProxyKind};
pub use references::{MissingDestination, newly_missing};
pub use resource::{Resource, ResourceType};
pub use scope::Scope;
pub use secrets::namespaces_wanting_secrets;
pub use tokens::{check_keys, proxies_fetch};
pub use warnings::{
    Warning, check_authorization_policy, check_destination_rule, check_gateway, check_peer_authentication,
    check_request_authentication, check_service_entry, check_sidecar, check_virtual_service,
    check_workload_entry,
};
