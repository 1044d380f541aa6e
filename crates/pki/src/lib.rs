//! SPIFFE ids, the certificate authority, signing requests, certificates of servers and workloads, and what people bring of their own.
mod authority;
mod credential;
mod csr;
mod federation;
mod requested;
mod roots;
mod rotation;
mod spiffe;
mod workload;

pub use authority::{CaError, CertificateAuthority, ServerCertificate};
pub use credential::{CredentialError, check_authorities, check_pair, check_revoked};
pub use csr::{CsrError, SigningRequest};
pub use federation::{DomainRoots, Federation};
pub use requested::{RequestedError, check_issued};
pub use roots::{Roots, RootsError};
pub use rotation::{AuthorityFiles, Rotation};
pub use spiffe::{SpiffeError, SpiffeId};
pub use workload::{KeyKind, WorkloadCertificate, WorkloadError, WorkloadKey};
