//! SPIFFE ids, the certificate authority, trust bundles and server certificates.
