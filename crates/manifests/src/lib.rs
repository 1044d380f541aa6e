//! The mesh's components as Kubernetes objects: CRDs, control plane, webhooks, gateways, injection template.
