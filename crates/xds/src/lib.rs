//! Envoy's protos, the Any registry and JSON mapping, the delta and SotW protocols as client and server.
