//! SPIFFE ids, the certificate authority and server certificates.
mod authority;
mod spiffe;

pub use authority::{CaError, CertificateAuthority, ServerCertificate};
pub use spiffe::{SpiffeError, SpiffeId};
