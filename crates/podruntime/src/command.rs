//! Running the host's tools `ip` and `nft`.

use std::{
    io::{ErrorKind, Write as _},
    process::Stdio,
};

use tokio::{io::AsyncWriteExt, process::Command};

use crate::RuntimeError;

/// Runs `ip` over a batch of commands; the first error ends it.
pub(crate) async fn ip(commands: &[String]) -> Result<(), RuntimeError> {
    run("ip", &["-batch", "-"], &(commands.join("\n") + "\n"), "iproute2").await
}

/// The same inside a named network namespace.
pub(crate) async fn ip_in(netns: &str, commands: &[String]) -> Result<(), RuntimeError> {
    run("ip", &["-n", netns, "-batch", "-"], &(commands.join("\n") + "\n"), "iproute2").await
}

/// Loads an nft script in one transaction.
pub(crate) async fn nft(script: &str) -> Result<(), RuntimeError> {
    run("nft", &["-f", "-"], script, "nftables").await
}

/// Whether the kernel would take an nft script; nothing is loaded.
pub(crate) fn nft_would_load(script: &str) -> bool {
    let mut nft = std::process::Command::new("nft");
    nft.args(["--check", "-f", "-"]).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
    let Ok(mut child) = nft.spawn() else { return false };
    let written = child.stdin.take().is_some_and(|mut stdin| stdin.write_all(script.as_bytes()).is_ok());
    child.wait().is_ok_and(|status| status.success()) && written
}

async fn run(program: &str, args: &[&str], input: &str, package: &str) -> Result<(), RuntimeError> {
    let command = || format!("{program} {}", args.join(" "));
    let spawned = Command::new(program)
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn();
    let mut child = match spawned {
        Ok(child) => child,
        Err(error) if error.kind() == ErrorKind::NotFound => {
            return Err(RuntimeError::Host(format!(
                "the program `{program}` is not installed; install the package `{package}`"
            )));
        }
        Err(error) => return Err(RuntimeError::system(command())(error)),
    };
    if let Some(mut stdin) = child.stdin.take() {
        // When the tool ends early its own message, read below, is the better one.
        let _ = stdin.write_all(input.as_bytes()).await;
    }
    let output = child.wait_with_output().await.map_err(RuntimeError::system(command()))?;
    if output.status.success() {
        return Ok(());
    }
    let message = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Err(RuntimeError::Command { command: command(), output: message })
}
