//! Resource types of Istio, mesh config, parsing, validation and CRD generation. No I/O.
