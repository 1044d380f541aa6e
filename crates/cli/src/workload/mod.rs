//! `lateen x workload`: what brings machines that are no pods into the mesh. Flags, files and their content are istioctl's.

mod configure;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;

use anyhow::Result;
use clap::{Args, Subcommand};
use serde_json::{Value, json};

use crate::cluster::ClusterArgs;
use crate::error::Failure;
use crate::output;

/// Labels of a service by which it is known to telemetry.
pub(crate) const CANONICAL_NAME: &str = "service.istio.io/canonical-name";
/// The same of its version.
pub(crate) const CANONICAL_REVISION: &str = "service.istio.io/canonical-revision";

/// `x workload …`.
#[derive(Debug, Subcommand)]
pub enum WorkloadCommand {
    /// WorkloadGroups
    #[command(
        after_help = "Example:\n  lateen x workload group create --name vm --namespace shop --labels app=vm | kubectl apply -f -"
    )]
    Group {
        /// What to do.
        #[command(subcommand)]
        command: GroupCommand,
    },
    /// Machines of a group
    #[command(
        after_help = "Example:\n  lateen x workload entry configure --name vm --namespace shop -o config --autoregister"
    )]
    Entry {
        /// What to do.
        #[command(subcommand)]
        command: EntryCommand,
    },
}

/// `x workload group …`.
#[derive(Debug, Subcommand)]
pub enum GroupCommand {
    /// Print a WorkloadGroup, for kubectl apply -f -
    #[command(
        after_help = "Example:\n  lateen x workload group create --name foo --namespace bar --labels app=foo,bar=baz \\\n    \
                            --ports grpc=3550,http=8080 --annotations annotation=foobar --serviceAccount sa | kubectl apply -f -"
    )]
    Create(CreateArgs),
}

/// `x workload entry …`.
#[derive(Debug, Subcommand)]
pub enum EntryCommand {
    /// Write the files that a machine's proxy starts with
    #[command(
        after_help = "Examples:\n  lateen x workload entry configure -f workloadgroup.yaml -o config --autoregister\n  \
                            lateen x workload entry configure --name foo --namespace bar -o config --ingressIP 192.0.2.7\n\n\
                            On the machine: root-cert.pem into /etc/certs, istio-token into /var/run/secrets/tokens, cluster.env into\n\
                            /var/lib/istio/envoy, mesh.yaml as /etc/istio/config/mesh, hosts appended to /etc/hosts; then lateen-proxy machine"
    )]
    Configure(ConfigureArgs),
}

/// `x workload group create`.
#[derive(Debug, Args)]
pub struct CreateArgs {
    /// Name of the group
    #[arg(long)]
    name: String,
    /// Labels of the machines
    #[arg(short, long, value_delimiter = ',', value_name = "KEY=VALUE")]
    labels: Vec<String>,
    /// Annotations of their WorkloadEntries
    #[arg(short, long, value_delimiter = ',', value_name = "KEY=VALUE")]
    annotations: Vec<String>,
    /// Ports of the machines by name
    #[arg(short, long, value_delimiter = ',', value_name = "NAME=PORT")]
    ports: Vec<String>,
    /// Service account the machines run as
    #[arg(short, long = "serviceAccount", default_value = "default")]
    service_account: String,
}

/// `x workload entry configure`.
#[derive(Debug, Args)]
pub struct ConfigureArgs {
    /// File with the WorkloadGroup; without it, the one in the cluster by --name
    #[arg(short, long, required_unless_present = "name")]
    file: Option<PathBuf>,
    /// Name of a WorkloadGroup in the cluster
    #[arg(long)]
    name: Option<String>,
    /// Folder for the files
    #[arg(short, long, value_name = "DIR")]
    output: PathBuf,
    /// Id of the cluster; default: that of the injection's values
    #[arg(long = "clusterID", value_name = "ID")]
    cluster_id: Option<String>,
    /// Life of the token in seconds
    #[arg(long = "tokenDuration", default_value_t = 3600, value_name = "SECONDS")]
    token_duration: i64,
    /// Gateway by which the control plane is reached, as SERVICE[.NAMESPACE]
    #[arg(long = "ingressService", default_value = "istio-eastwestgateway", value_name = "SERVICE")]
    ingress_service: String,
    /// Address by which the control plane is reached
    #[arg(long = "ingressIP", value_name = "IP")]
    ingress_ip: Option<IpAddr>,
    /// Have the machine register itself
    #[arg(long, default_value_t = false, action = clap::ArgAction::Set, num_args = 0..=1, default_missing_value = "true")]
    autoregister: bool,
    /// Answer the machine's DNS queries for names of the mesh
    #[arg(long = "capture-dns", default_value_t = true, action = clap::ArgAction::Set, num_args = 0..=1, default_missing_value = "true")]
    capture_dns: bool,
    /// Address by which pods reach the machine, in their network
    #[arg(long = "internalIP", value_name = "IP", conflicts_with = "external_ip")]
    internal_ip: Option<IpAddr>,
    /// The same from outside
    #[arg(long = "externalIP", value_name = "IP")]
    external_ip: Option<IpAddr>,
    /// Revision of the control plane
    #[arg(short, long, default_value = "")]
    revision: String,
}

/// Runs the command.
///
/// # Errors
/// What to tell the user.
pub async fn run(cluster: &ClusterArgs, command: WorkloadCommand) -> Result<()> {
    match command {
        WorkloadCommand::Group { command: GroupCommand::Create(args) } => {
            let Some(namespace) = &cluster.namespace else {
                return Err(
                    Failure::new("No namespace is given.", "--namespace, that of the machines").into()
                );
            };
            output::print(&group(&args, namespace)?, crate::args::Output::Yaml)
        }
        WorkloadCommand::Entry { command: EntryCommand::Configure(args) } => {
            configure::run(cluster, &args).await
        }
    }
}

/// The WorkloadGroup that the flags describe.
fn group(args: &CreateArgs, namespace: &str) -> Result<Value> {
    let mut ports = BTreeMap::new();
    for (name, port) in pairs(&args.ports) {
        let number: u16 = port.parse().ok().filter(|number| *number > 0).ok_or_else(|| {
            Failure::new(
                format!("{port:?} of --ports {name}={port} is no port."),
                "NAME=PORT with 1 to 65535",
            )
        })?;
        ports.insert(name, number);
    }
    let mut metadata = json!({});
    for (key, given) in [("annotations", &args.annotations), ("labels", &args.labels)] {
        if !given.is_empty() {
            metadata[key] = json!(pairs(given));
        }
    }
    let mut template = json!({});
    if !ports.is_empty() {
        template["ports"] = json!(ports);
    }
    template["serviceAccount"] = json!(args.service_account);
    Ok(json!({
        "apiVersion": "networking.istio.io/v1",
        "kind": "WorkloadGroup",
        "metadata": { "name": args.name, "namespace": namespace },
        "spec": { "metadata": metadata, "template": template },
    }))
}

/// `KEY=VALUE`s; without a sign the value is empty, as with istioctl.
fn pairs(given: &[String]) -> BTreeMap<String, String> {
    let split = |pair: &String| {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        (key.to_owned(), value.to_owned())
    };
    given.iter().map(split).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::{Cli, Command, Experimental};
    use clap::Parser as _;

    fn create(line: &str) -> Result<Value> {
        let cli = Cli::try_parse_from(line.split(' ')).unwrap();
        let Command::Experimental { command: Experimental::Workload { command } } = cli.command else {
            panic!()
        };
        let WorkloadCommand::Group { command: GroupCommand::Create(args) } = command else { panic!() };
        group(&args, &cli.cluster.namespace.unwrap())
    }

    #[test]
    fn groups_are_printed_as_istioctl_does() {
        let group = create(
            "istioctl x workload group create --name foo --namespace bar --labels app=foo,bar=baz --ports grpc=3550,http=8080 --annotations annotation=foobar --serviceAccount sa",
        );
        let text = serde_saphyr::to_string(&group.unwrap()).unwrap();
        let expected = "apiVersion: networking.istio.io/v1\nkind: WorkloadGroup\nmetadata:\n  name: foo\n  namespace: bar\nspec:\n  metadata:\n    annotations:\n      annotation: foobar\n    labels:\n      app: foo\n      bar: baz\n  template:\n    ports:\n      grpc: 3550\n      http: 8080\n    serviceAccount: sa\n";
        assert_eq!(text, expected);
        let bare = create("istioctl x workload group create --name hello-vm -n vm-namespace").unwrap();
        assert_eq!(bare["spec"], json!({ "metadata": {}, "template": { "serviceAccount": "default" } }));
        let error = create("lateen x workload group create --name a -n b --ports http=x").unwrap_err();
        assert!(error.to_string().contains("no port"), "{error}");
    }
}
