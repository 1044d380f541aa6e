//! SPIFFE ids, the certificate authority, server certificates, and what people bring of their own.
mod authority;
mod credential;
mod spiffe;

pub use authority::{CaError, CertificateAuthority, ServerCertificate};
pub use credential::{CredentialError, check_authorities, check_pair, check_revoked};
pub use spiffe::{SpiffeError, SpiffeId};
