//! What surrounds an engine in a pod: bootstrap, identity, xDS, health; ours in process, or Envoy as a child.
