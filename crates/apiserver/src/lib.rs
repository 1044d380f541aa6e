//! A Kubernetes API server as a library: REST semantics, watch, patches, admission, CRDs.
