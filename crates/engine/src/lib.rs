//! The L7 data plane.
//!
//! ```no_run
//! # async fn example(listener: lateen_engine::Resource) -> Result<(), lateen_engine::EngineError> {
//! let engine = lateen_engine::Engine::start(lateen_engine::EngineConfig::default())?;
//! let report = engine.apply(lateen_engine::ConfigUpdate { set: vec![listener], removed: vec![] }).await?;
//! for rejection in &report.rejected {
//!     eprintln!("{rejection}");
//! }
//! engine.drain().await?;
//! engine.shutdown().await;
//! # Ok(()) }
//! ```
//!
//! The path of a request, one file a step: `listen` (accept), `original_dst` and `inspect` (destination and peek), `chain`
//! (filter-chain match), `http_connection` / `tcp_proxy`, `ingress` (connection manager), `http_request` (route), `forward`
//! (cluster), `trial` (endpoint, attempts), `pool`, `upstream`, `finish` (stats, log).

mod access_log;
mod admin;
mod answer;
mod asked;
mod body;
mod breakers;
mod call;
mod chain;
mod check;
mod client_cert;
mod cluster;
mod compile;
mod connect;
mod context;
mod control;
mod date;
mod dial;
mod dns;
mod dns_cache;
mod engine;
mod failure;
mod filters;
mod finish;
mod floods;
mod format_values;
mod forward;
mod gate;
mod guard;
mod happy_eyeballs;
mod header_mutations;
mod health_check;
mod health_probe;
mod hedge;
mod hop_by_hop;
mod host;
mod http2;
mod http_connection;
mod http_request;
mod incoming;
mod ingress;
mod inspect;
mod inspection;
mod interim;
mod internal_redirect;
mod joined;
mod lifetime;
mod limits;
mod listen;
mod local_reply;
mod log_filter;
mod message;
mod mirror;
mod mover;
mod named_hosts;
mod original_dst;
mod outlier;
mod pool;
mod pools;
mod presence;
mod progress;
mod proxy_protocol;
mod redirect;
mod render;
mod resolver;
mod response_stream;
mod retry;
mod rewrite;
mod route_stats;
mod signal;
mod smuggling;
mod snapshot;
mod special;
mod stats;
mod store;
mod stream;
mod subsets;
mod syntax;
mod tcp_proxy;
mod timer;
mod tls;
mod trial;
mod update;
mod upgrade;
mod upstream;
mod upstream_connection;
mod well_formed;
mod worker;

pub use check::check;
pub use engine::{Engine, EngineConfig, EngineError, EngineHandle, NodeInfo, SetLogLevel};
pub use update::{ApplyReport, ConfigUpdate, Rejection, Resource, ResourceKind, Subscriptions};
