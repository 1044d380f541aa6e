//! `lateen`; as `istioctl` (a link to it) it is the same.

use std::{io::IsTerminal, process::ExitCode};

use clap::Parser;
use lateen_cli::args::{Cli, Command};
use tracing_subscriber::EnvFilter;

/// istioctl's exit status for a command line it does not understand (`EX_USAGE` of sysexits.h).
const USAGE: u8 = 64;

fn main() -> ExitCode {
    // The embedded cluster starts containers through this program; that must happen before there are other threads.
    let mut args = std::env::args_os().skip(1);
    if args.next().is_some_and(|command| command == "container-run") {
        let status = lateen_podruntime::container_run_main(args);
        return ExitCode::from(u8::try_from(status).unwrap_or(1));
    }
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(answer) => {
            // A closed terminal is all that can be wrong with printing.
            let _ = answer.print();
            return if answer.use_stderr() { ExitCode::from(USAGE) } else { ExitCode::SUCCESS };
        }
    };
    // What the Kubernetes client says there is in the commands' own errors.
    let default =
        if matches!(cli.command, Command::ClusterDaemon) { "info" } else { "error,kube_client=off" };
    let filter = EnvFilter::try_from_env("LATEEN_LOG").unwrap_or_else(|_| EnvFilter::new(default));
    // The daemon's standard error is its log file.
    let colours = std::io::stderr().is_terminal();
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(colours).init();
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("Error: cannot start threads: {error}");
            return ExitCode::FAILURE;
        }
    };
    match runtime.block_on(lateen_cli::run(cli)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("Error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
