//! Resources to World: an immutable snapshot of services, endpoints, policies and visibility.
