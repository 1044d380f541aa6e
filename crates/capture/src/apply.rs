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
    /// The program `ip` is missing.
    #[error("traffic can't be captured: the program `ip` is not installed; install the package `iproute2`")]
    NoIp,
    /// The pod has no IPv6, although dual stack is asked for.
    #[error(
        "traffic of IPv6 can't be captured: `ip` could not add ::6 to lo: {0}; without IPv6 leave ISTIO_DUAL_STACK out"
    )]
    NoIpv6(String),
    /// `nft` or `ip` could not be run.
    #[error("traffic can't be captured: `nft` or `ip` could not be run: {0}")]
    Run(#[source] std::io::Error),
    /// Not root in this network namespace.
    #[error("traffic can't be captured: changing nftables rules needs the capability NET_ADMIN; run as root")]
    NotPermitted,
    /// The kernel or `nft` refused the rules.
    #[error("traffic can't be captured: `nft` refused the rules: {0}")]
    Refused(String),
}

/// Gives the loopback interface the address from which the proxy calls the application over IPv6.
async fn add_inbound_source() -> Result<(), ApplyError> {
    let output = Command::new("ip")
        .args(["-6", "addr", "replace", "::6/128", "dev", "lo"])
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output()
        .await
        .map_err(|error| match error.kind() {
            ErrorKind::NotFound => ApplyError::NoIp,
            _ => ApplyError::Run(error),
        })?;
    let message = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    match output.status.success() {
        true => Ok(()),
        false if message.contains("Operation not permitted") => Err(ApplyError::NotPermitted),
        false => Err(ApplyError::NoIpv6(message)),
    }
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
    if config.dual_stack {
        add_inbound_source().await?;
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
