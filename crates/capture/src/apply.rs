//! Loading the rules into the kernel.

use std::{io::ErrorKind, process::Stdio};

use tokio::{io::AsyncWriteExt, process::Command};

use crate::{CaptureConfig, rules};

/// Why the rules could not be loaded. Nothing was changed in that case.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    /// The program `nft` is missing.
    #[error("traffic can't be captured: the program `nft` is not installed; install the package `nftables`")]
    NoNft,
    /// `nft` could not be run.
    #[error("traffic can't be captured: `nft` could not be run: {0}")]
    Run(#[source] std::io::Error),
    /// Not root in this network namespace.
    #[error("traffic can't be captured: changing nftables rules needs the capability NET_ADMIN; run as root")]
    NotPermitted,
    /// The kernel or `nft` refused the rules.
    #[error("traffic can't be captured: `nft` refused the rules: {0}")]
    Refused(String),
}

/// Loads the rules for `config` into the current network namespace in one transaction, replacing earlier ones.
///
/// With `dry_run` the rules are printed instead; with `skip_apply` nothing happens.
///
/// # Errors
/// [`ApplyError`]; the rules are then as they were before.
pub async fn apply(config: &CaptureConfig) -> Result<(), ApplyError> {
    let script = rules(config);
    if config.dry_run {
        println!("{script}");
        return Ok(());
    }
    if config.skip_apply {
        return Ok(());
    }
    let mut nft = Command::new("nft")
        .args(["-f", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(|error| match error.kind() {
            ErrorKind::NotFound => ApplyError::NoNft,
            _ => ApplyError::Run(error),
        })?;
    if let Some(mut stdin) = nft.stdin.take() {
        // If nft ends early its own message, read below, is the better one.
        let _ = stdin.write_all(script.as_bytes()).await;
    }
    let output = nft.wait_with_output().await.map_err(ApplyError::Run)?;
    if output.status.success() {
        tracing::debug!(%script, "capture rules loaded");
        return Ok(());
    }
    let message = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    if message.contains("Operation not permitted") {
        return Err(ApplyError::NotPermitted);
    }
    Err(ApplyError::Refused(message))
}
