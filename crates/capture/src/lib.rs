//! Traffic capture: nftables rules inside a pod's network namespace.
