//! Security: `security.istio.io`.
pub mod authorization_policy;
pub mod peer_authentication;
pub mod request_authentication;
pub mod target_reference;

/// The API group of all these kinds.
pub const GROUP: &str = "security.istio.io";
/// The versions Istio serves, stored version first.
pub const VERSIONS: &[&str] = &["v1", "v1beta1"];
