//! Pods on one machine: network namespaces, processes, probes, logs, cluster DNS and service addresses.
