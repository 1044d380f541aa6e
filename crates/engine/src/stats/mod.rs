//! Numbers about what the engine does, under Envoy's names.
//!
//! A worker counts in its own plain cells ([`blocks`]) and copies them out when asked ([`arena`]); the control thread adds the
//! copies of all workers together ([`merge`]) and renders them ([`render`], [`prometheus`]). Nothing is shared, locked or
//! formatted while a request is served.

pub(crate) mod arena;
pub(crate) mod blocks;
pub(crate) mod merge;
pub(crate) mod prometheus;
pub(crate) mod render;
pub(crate) mod slots;
pub(crate) mod tls;
