//! End-to-end tests: labs, both engines, faults.
//!
//! This library is what the trials in `tests/mesh` are written with: a running mesh, commands as a user types them,
//! an HTTP client and a steady load.

pub mod load;
pub mod mesh;
pub mod traffic;
pub mod web;

pub use load::{Load, LoadReport};
pub use mesh::{Engine, Mesh};

use std::time::{Duration, Instant};

/// Calls `check` until it succeeds; after `limit` fails with its last error.
/// The pause between calls starts at 10 ms, so that the time of a change is seen, not the polling.
///
/// # Errors
/// The last error of `check`, with `what` in front of it.
pub fn eventually<T>(
    what: &str,
    limit: Duration,
    mut check: impl FnMut() -> anyhow::Result<T>,
) -> anyhow::Result<T> {
    let start = Instant::now();
    let mut pause = Duration::from_millis(10);
    loop {
        match check() {
            Ok(value) => return Ok(value),
            Err(e) if start.elapsed() >= limit => {
                return Err(e.context(format!("{what}: not within {limit:?}")));
            }
            Err(_) => std::thread::park_timeout(pause),
        }
        pause = (pause * 3 / 2).min(Duration::from_millis(250));
    }
}
