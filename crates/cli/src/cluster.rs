//! The cluster commands speak to: the one the user's kubeconfig names, else the embedded one.

use std::path::{Path, PathBuf};

use anyhow::Result;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};

use crate::error::Failure;

/// Which cluster, from the flags every command has.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct ClusterArgs {
    /// Kubeconfig file; default: $KUBECONFIG, else the embedded cluster's
    #[arg(long, global = true, value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,
    /// Context in the kubeconfig
    #[arg(long, global = true)]
    pub context: Option<String>,
    /// Namespace of what is named
    #[arg(short, long, global = true)]
    pub namespace: Option<String>,
    /// Namespace of the control plane
    #[arg(
        short = 'i',
        long = "istioNamespace",
        global = true,
        default_value = "istio-system",
        value_name = "NAMESPACE"
    )]
    pub istio_namespace: String,
    /// State directory of the embedded cluster
    #[arg(long, global = true, env = "LATEEN_HOME", default_value = "/var/lib/lateen", value_name = "DIR")]
    pub state: PathBuf,
}

impl ClusterArgs {
    /// Namespace to use where none is named.
    pub fn namespace(&self) -> &str {
        self.namespace.as_deref().unwrap_or("default")
    }

    /// The embedded cluster's kubeconfig.
    pub fn embedded_kubeconfig(&self) -> PathBuf {
        self.state.join("kubeconfig")
    }

    /// The kubeconfig that is used: `--kubeconfig`, `$KUBECONFIG`, the embedded cluster's, `~/.kube/config`.
    fn file(&self) -> Option<PathBuf> {
        let env = std::env::var_os("KUBECONFIG").filter(|value| !value.is_empty());
        let home = std::env::var_os("HOME").map(|home| Path::new(&home).join(".kube/config"));
        let existing = [Some(self.embedded_kubeconfig()), home];
        let named = self.kubeconfig.clone().or_else(|| env.map(PathBuf::from));
        named.or_else(|| existing.into_iter().flatten().find(|file| file.exists()))
    }

    /// Connects.
    ///
    /// # Errors
    /// When there is no cluster, or its kubeconfig can't be read.
    pub async fn client(&self) -> Result<Client> {
        let Some(file) = self.file() else {
            return Err(Failure::new("No cluster is running and no kubeconfig is set.", "lateen up").into());
        };
        let broken = |error: &dyn std::fmt::Display| {
            Failure::new(
                format!("The kubeconfig {} cannot be used: {error}.", file.display()),
                "lateen kubeconfig",
            )
        };
        let kubeconfig = read(&file).map_err(|error| broken(&error))?;
        let options = KubeConfigOptions { context: self.context.clone(), ..KubeConfigOptions::default() };
        let config =
            Config::from_custom_kubeconfig(kubeconfig, &options).await.map_err(|error| broken(&error))?;
        Ok(Client::try_from(config).map_err(|error| broken(&error))?)
    }
}

/// Reads a kubeconfig. `$KUBECONFIG` may be a list of files, of which kubectl merges those that exist.
fn read(file: &Path) -> Result<Kubeconfig, kube::config::KubeconfigError> {
    let files: Vec<PathBuf> = std::env::split_paths(file).filter(|file| file.exists()).collect();
    let Some((first, others)) = files.split_first().filter(|_| !file.exists()) else {
        return Kubeconfig::read_from(file);
    };
    others
        .iter()
        .try_fold(Kubeconfig::read_from(first)?, |merged, file| merged.merge(Kubeconfig::read_from(file)?))
}

/// An error of the Kubernetes API, with advice.
pub fn api_failure(doing: &str, error: &kube::Error) -> Failure {
    match error {
        kube::Error::Api(status) => {
            Failure::new(format!("Cannot {doing}: {}.", status.message), "lateen status")
        }
        other => {
            // The layers between say the same in other words.
            let mut cause: &dyn std::error::Error = other;
            while let Some(deeper) = cause.source() {
                cause = deeper;
            }
            Failure::new(
                format!("Cannot {doing}: the cluster does not answer ({cause})."),
                "lateen up, if it is not running",
            )
        }
    }
}
