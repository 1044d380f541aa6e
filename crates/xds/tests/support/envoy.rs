//! The stock Envoy that our programs are compared with. Other crates' tests take this file by its path.
use std::path::PathBuf;

/// Its program: what `LATEEN_ENVOY_PATH` names, else what the project's scripts have installed.
pub(crate) fn envoy() -> PathBuf {
    let path = std::env::var_os("LATEEN_ENVOY_PATH")
        .map_or_else(|| PathBuf::from("/var/cache/lateen/tools/envoy-1.40.0/envoy"), PathBuf::from);
    assert!(path.exists(), "this test needs Envoy at {}: run scripts/install-tools.sh test", path.display());
    path
}
