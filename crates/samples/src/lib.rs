//! Small versions of the demo applications the course uses: same ports, paths and visible output.
//!
//! Each application is a plain [`axum::Router`], so tests call it in process; [`serve`] adds the socket and the
//! graceful end.

pub mod boutique;
pub mod customers;
pub mod echo;
pub mod echo_streams;
pub mod ext_authz;
pub mod grpc;
pub mod hello;
pub mod httpbin;
pub mod load;
pub mod propagate;
pub mod serve;
pub mod web_frontend;
