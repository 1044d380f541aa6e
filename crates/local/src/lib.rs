//! The embedded cluster: API server, controllers and runtime put together.
//!
//! - [`Cluster`] is a whole cluster inside this process; several with different [`ClusterConfig`]s can run side by side.
//! - [`Controllers`] are only the controllers, against any API server.
//! - [`up`], [`down`], [`status`], [`kubeconfig`] and [`logs`] are what the `lateen` commands of the same names do; the
//!   hidden `lateen cluster-daemon --state DIR` calls [`run_daemon`], the hidden `lateen container-run` calls
//!   `lateen_podruntime::container_run_main`.

mod cluster;
mod config;
mod controllers;
mod lifecycle;
mod node;

pub use cluster::{Cluster, ClusterError};
pub use config::{ClusterConfig, Pods};
pub use controllers::{ControllerConfig, Controllers};
/// Types that appear in [`ClusterConfig`] and [`UpOptions`].
pub use lateen_manifests::Engine;
pub use lateen_podruntime::{ImageMap, Names, Network};
pub use lifecycle::{
    DownOptions, DownSummary, LifecycleError, Mesh, Progress, Status, UpOptions, UpSummary, down, kubeconfig,
    logs, preflight, run_daemon, status, up,
};
