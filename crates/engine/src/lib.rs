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

mod control;
mod engine;
mod update;

pub use engine::{Engine, EngineConfig, EngineError, EngineHandle, NodeInfo, SetLogLevel};
pub use update::{ApplyReport, ConfigUpdate, Rejection, Resource, ResourceKind, Subscriptions};
