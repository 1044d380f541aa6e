//! The `lateen` command.
//!
//! Commands that istioctl has too keep its names, flags, columns and JSON, so that scripts and habits carry over. What a
//! command prints is made by pure functions; [`pods`] and [`control_plane`] fetch.

pub mod args;
pub mod authz;
pub mod ca;
pub mod cluster;
pub mod control_plane;
pub mod error;
mod lifecycle;
mod logs;
pub mod output;
pub mod pods;
pub mod proxy_config;
mod proxy_status;
mod run;
mod status;
mod style;
pub mod table;
mod version;
pub mod why;
pub mod workload;

pub use run::run;
