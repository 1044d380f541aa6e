//! A [`World`](lateen_model::World) and a proxy's class to xDS resources. Pure.
//!
//! What a proxy gets depends on its [`ProxyClass`] alone; proxies of one class share a [`Scope`] and every encoded byte.
//! Each resource is made by a function of a small input struct, and the digest of that struct is its key in the
//! [`Cache`]: a generator cannot read what is not in its key.
//!
//! ```text
//! Proxy::parse(node)  →  ProxyClass::of(proxy, world)  →  Scope::new(world, class)  →  generate(scope, cache, …)
//! Delta  →  affected(delta, scope)  →  which of the four types, and of which services, to generate again
//! ```
mod affected;
mod cache;
mod proxy;
mod resource;
mod scope;

pub use affected::{Affected, Extent, affected};
pub use cache::Cache;
pub use proxy::{InboundPort, NodeError, Proxy, ProxyClass, ProxyKind};
pub use resource::{Resource, ResourceType};
pub use scope::Scope;
