//! The runtime form of Envoy configuration and the pure decisions over it.
