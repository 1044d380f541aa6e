//! `lateen x ca`: the mesh's authority, who trusts what, and the way from one root to another.

mod proof;
mod secret;

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use clap::{Args, Subcommand};
use kube::Client;
use lateen_pki::{AuthorityFiles, CertificateAuthority, Rotation};
use serde_json::json;
use tokio::time::Instant;

use crate::args::Output;
use crate::cluster::ClusterArgs;
use crate::error::Failure;
use crate::output;
use crate::style::Style;
use proof::{Workload, fingerprint};
use secret::Stored;

/// Pause between two looks at the workloads.
const LOOK: Duration = Duration::from_secs(1);
/// Workloads that are named when they keep a step from being done.
const NAMED: usize = 10;
/// Organization of a new root, as Istio's.
const ORGANIZATION: &str = "cluster.local";

/// `x ca …`.
#[derive(Debug, Subcommand)]
pub enum CaCommand {
    /// The authority that signs, and what each workload holds and trusts
    #[command(after_help = "Examples:\n  lateen x ca status\n  lateen x ca status -o json")]
    Status {
        /// How to print it
        #[arg(short, long, value_enum, default_value_t = Output::Short)]
        output: Output,
    },
    /// Replace the mesh's root without a refused connection
    ///
    /// The new root is trusted by every workload before it signs, and the old one by all until no certificate is of it. Each
    /// step is done when every workload's proxy has been seen to have it. Interrupted, the command goes on where it was.
    #[command(
        after_help = "Examples:\n  lateen x ca rotate\n  lateen x ca rotate --ca-cert new/ca-cert.pem --ca-key new/ca-key.pem \
                            --cert-chain new/cert-chain.pem --root-cert new/root-cert.pem\n  lateen x ca rotate --abandon"
    )]
    Rotate(RotateArgs),
}

/// `x ca rotate`.
#[derive(Debug, Args)]
pub struct RotateArgs {
    /// The new authority's certificate; without it, a new root is made
    #[arg(long, value_name = "FILE", requires_all = ["ca_key", "root_cert"])]
    ca_cert: Option<PathBuf>,
    /// Its key
    #[arg(long, value_name = "FILE", requires = "ca_cert")]
    ca_key: Option<PathBuf>,
    /// From its certificate to the root
    #[arg(long, value_name = "FILE", requires = "ca_cert")]
    cert_chain: Option<PathBuf>,
    /// The root, or all that workloads are to trust in the end
    #[arg(long, value_name = "FILE", requires = "ca_cert")]
    root_cert: Option<PathBuf>,
    /// Give up a change whose new authority does not sign yet
    #[arg(long, conflicts_with = "ca_cert")]
    abandon: bool,
    /// How long to wait for the workloads in each step, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 600)]
    timeout: u64,
}

/// Runs a command.
///
/// # Errors
/// What went wrong, as a sentence with a remedy.
pub(crate) async fn run(cluster: &ClusterArgs, command: CaCommand) -> Result<()> {
    let client = cluster.client().await?;
    match command {
        CaCommand::Status { output } => status(&client, &cluster.istio_namespace, output).await,
        CaCommand::Rotate(args) => rotate(&client, &cluster.istio_namespace, &args).await,
    }
}

async fn status(client: &Client, namespace: &str, output: Output) -> Result<()> {
    let stored = Stored::load(client, namespace).await?;
    let authority = usable(stored.name, CertificateAuthority::from_files(stored.rotation.current()))?;
    let workloads = proof::ask(client, proof::meshed(client).await?).await;
    let step = match &stored.rotation {
        Rotation::Settled { .. } => "settled",
        Rotation::Announced { .. } => "announced",
        Rotation::Switched { .. } => "switched",
    };
    if output != Output::Short {
        let document = json!({
            "secret": format!("{namespace}/{}", stored.name),
            "rotation": step,
            "roots": authority.roots().iter().map(fingerprint).collect::<Vec<_>>(),
            "workloads": workloads.iter().map(Workload::document).collect::<Vec<_>>(),
        });
        return output::print(&document, output);
    }
    let signing = fingerprint(authority.roots().first());
    let mut text = format!("Secret {namespace}/{} signs under root {signing}.\n", stored.name);
    text += match &stored.rotation {
        Rotation::Settled { .. } => "\n",
        Rotation::Announced { .. } => "The next root is announced: lateen x ca rotate goes on.\n\n",
        Rotation::Switched { .. } => "The old root is still trusted: lateen x ca rotate goes on.\n\n",
    };
    output::text(&format!("{text}{}", proof::table(&workloads)))
}

async fn rotate(client: &Client, namespace: &str, args: &RotateArgs) -> Result<()> {
    let mut stored = Stored::load(client, namespace).await?;
    let style = Style::stdout();
    if args.abandon {
        let Rotation::Announced { current, next } = &stored.rotation else {
            let why = match stored.rotation {
                Rotation::Settled { .. } => "Nothing is being changed.",
                _ => "The new authority signs already; there is no way back.",
            };
            return Err(Failure::new(why, "lateen x ca status").into());
        };
        let back = usable(stored.name, Rotation::abandon(current, next))?;
        stored.write(client, back).await?;
        return output::text("The change is given up; the root is the one it was.\n");
    }
    let limit = Duration::from_secs(args.timeout);
    if let Rotation::Settled { current } = &stored.rotation {
        let next = next_authority(&stored, args)?;
        let announced = usable("files given", Rotation::announce(current, next))?;
        stored.write(client, announced).await?;
    } else {
        if args.ca_cert.is_some() {
            let next = "lateen x ca rotate (without files), or --abandon";
            return Err(Failure::new("Another change of the root is under way.", next).into());
        }
        output::text("Going on with the change that was begun.\n")?;
    }
    if let Rotation::Announced { next, .. } = &stored.rotation {
        let coming = usable(stored.name, CertificateAuthority::from_files(next))?.roots().clone();
        step(client, style, "1/3", "trust the new root", limit, |workload| workload.trusts(&coming)).await?;
        let switched = usable(stored.name, stored.rotation.clone().advance())?;
        stored.write(client, switched).await?;
    }
    let authority = usable(stored.name, CertificateAuthority::from_files(stored.rotation.current()))?;
    let signing = authority.roots();
    step(client, style, "2/3", "have a certificate of the new authority", limit, |workload| {
        workload.is_of(signing.first())
    })
    .await?;
    if let Rotation::Switched { old, .. } = &stored.rotation {
        let old = old.clone();
        let settled = usable(stored.name, stored.rotation.clone().advance())?;
        stored.write(client, settled).await?;
        step(client, style, "3/3", "no longer trust the old root", limit, |workload| {
            workload.trusts_none_of(&old)
        })
        .await?;
    }
    let end = style.good(&format!("The mesh's root is now {}.", fingerprint(signing.first())));
    output::text(&format!("{end}\n"))
}

/// The authority that the files make, or a new root.
fn next_authority(stored: &Stored, args: &RotateArgs) -> Result<AuthorityFiles> {
    let read = |file: &Option<PathBuf>| match file {
        Some(file) => read(file),
        None => Ok(String::new()),
    };
    if args.ca_cert.is_some() {
        return Ok(AuthorityFiles {
            certificate: read(&args.ca_cert)?,
            key: read(&args.ca_key)?,
            chain: read(&args.cert_chain)?,
            roots: read(&args.root_cert)?,
        });
    }
    if stored.name == secret::PLUGGED_IN {
        let why =
            "The mesh's authority was plugged in (Secret cacerts); only its owner can make the next one.";
        let next = "lateen x ca rotate --ca-cert FILE --ca-key FILE --cert-chain FILE --root-cert FILE";
        return Err(Failure::new(why, next).into());
    }
    let authority = CertificateAuthority::generate(ORGANIZATION).context("a new root")?;
    Ok(AuthorityFiles::of_own_root(&authority))
}

fn read(file: &Path) -> Result<String> {
    std::fs::read_to_string(file).map_err(|error| {
        let why = format!("{} cannot be read: {error}.", file.display());
        Failure::new(why, "lateen x ca rotate --help").into()
    })
}

fn usable<T>(what: &str, result: Result<T, lateen_pki::CaError>) -> Result<T> {
    result.map_err(|error| {
        Failure::new(format!("The authority in {what} cannot be used: {error}."), "lateen x ca status").into()
    })
}

/// Looks at all workloads until each has what a step is for, and says how far it is.
async fn step(
    client: &Client,
    style: Style,
    number: &str,
    what: &str,
    limit: Duration,
    done: impl Fn(&Workload) -> bool,
) -> Result<()> {
    let begun = Instant::now();
    let mut shown = None;
    // What a step is for does not go away again, so that nobody is asked twice who has it.
    let mut have = HashSet::new();
    loop {
        let mut left = proof::meshed(client).await?;
        let all = left.len();
        left.retain(|meshed| !have.contains(&meshed.uid));
        let (reached, missing): (Vec<Workload>, Vec<Workload>) =
            proof::ask(client, left).await.into_iter().partition(|workload| done(workload));
        have.extend(reached.into_iter().map(|workload| workload.uid));
        let count = all - missing.len();
        if shown != Some((count, all)) {
            shown = Some((count, all));
            let line = format!("[{number}] {count} of {all} workloads {what}");
            output::text(&format!("{}\n", if missing.is_empty() { style.good(&line) } else { line }))?;
        }
        if missing.is_empty() {
            return Ok(());
        }
        if begun.elapsed() > limit {
            let mut names: Vec<String> =
                missing.iter().take(NAMED).map(|workload| workload.described()).collect();
            if missing.len() > NAMED {
                names.push(format!("{} more", missing.len() - NAMED));
            }
            return Err(Failure::new(
                format!("After {} s not all workloads {what}: {}.", limit.as_secs(), names.join(", ")),
                "lateen logs on one of them; then lateen x ca rotate, which goes on, or --abandon",
            )
            .into());
        }
        tokio::time::sleep(LOOK).await;
    }
}
