//! The command line.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::ca::CaCommand;
use crate::cluster::ClusterArgs;
use crate::why::WhyArgs;
use crate::workload::WorkloadCommand;

/// `lateen`.
#[derive(Debug, Parser)]
#[command(
    name = "lateen",
    version,
    disable_version_flag = true,
    about = "An Istio-compatible service mesh, with a cluster of its own where there is none",
    after_help = "Examples:\n  lateen up                   start a cluster, the mesh and the sample application\n  \
                  eval $(lateen kubeconfig)   let kubectl use that cluster\n  \
                  lateen status               what runs, and what is wrong\n  \
                  lateen down                 remove everything"
)]
pub struct Cli {
    /// Which cluster.
    #[command(flatten)]
    pub cluster: ClusterArgs,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// How structured output is printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// A table.
    #[value(alias = "table")]
    Short,
    /// JSON.
    Json,
    /// YAML.
    Yaml,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Start the embedded cluster with the mesh in it
    #[command(after_help = "Examples:\n  lateen up\n  lateen up --engine envoy --no-sample\n  \
                            lateen up --image example.com/app:1='/usr/bin/python3 -m http.server 8080'")]
    Up(UpArgs),
    /// Remove the embedded cluster: processes, namespaces, interfaces, rules
    #[command(
        after_help = "Examples:\n  lateen down\n  lateen down --keep    keep the objects for the next lateen up"
    )]
    Down {
        /// Keep the cluster's objects for the next `lateen up`
        #[arg(long)]
        keep: bool,
    },
    /// Components, gateway address, proxies, and warnings about configuration
    #[command(after_help = "Examples:\n  lateen status\n  lateen status -o json")]
    Status {
        /// How to print it
        #[arg(short, long, value_enum, default_value_t = Output::Short)]
        output: Output,
    },
    /// Print the line that lets kubectl use the embedded cluster
    #[command(
        after_help = "Examples:\n  eval $(lateen kubeconfig)\n  lateen kubeconfig --raw > my.kubeconfig"
    )]
    Kubeconfig {
        /// Print the file itself
        #[arg(long)]
        raw: bool,
    },
    /// Logs of a component or a pod
    #[command(
        after_help = "Examples:\n  lateen logs                    the cluster itself\n  lateen logs istiod -f\n  \
                            lateen logs ingressgateway\n  lateen logs web-frontend-6d8f.default -c istio-proxy"
    )]
    Logs(LogsArgs),
    /// Versions of this program, the control plane and the proxies
    #[command(
        after_help = "Examples:\n  lateen version\n  lateen version --remote=false\n  lateen version -o json"
    )]
    Version {
        /// Ask the cluster too
        #[arg(long, default_value_t = true, action = clap::ArgAction::Set, num_args = 0..=1, default_missing_value = "true")]
        remote: bool,
        /// With --remote=false, print only the number
        #[arg(short, long)]
        short: bool,
        /// json or yaml
        #[arg(short, long, value_enum, default_value_t = Output::Short)]
        output: Output,
    },
    /// Whether each proxy has the configuration the control plane sent
    #[command(
        visible_alias = "ps",
        after_help = "Examples:\n  lateen proxy-status\n  lateen proxy-status web-frontend-6d8f.default"
    )]
    ProxyStatus {
        /// Show one proxy: POD[.NAMESPACE]
        pod: Option<String>,
        /// 1 shows each type of configuration in a column of its own
        #[arg(short, long, default_value_t = 0)]
        verbosity: u8,
        /// How to print it
        #[arg(short, long, value_enum, default_value_t = Output::Short)]
        output: Output,
    },
    /// What a proxy is configured to do
    #[command(
        visible_alias = "pc",
        after_help = "Examples:\n  lateen proxy-config listeners web-frontend-6d8f --port 80 -o json\n  \
                      lateen pc routes deploy/web-frontend --name 80\n  \
                      lateen pc clusters web-frontend-6d8f.default --fqdn customers.default.svc.cluster.local\n  \
                      lateen pc endpoints deploy/web-frontend --cluster 'outbound|80||customers.default.svc.cluster.local'"
    )]
    ProxyConfig {
        /// Which part of the configuration.
        #[command(subcommand)]
        part: ProxyConfigPart,
    },
    /// Would a request pass, on which way, and what decides? Out of the proxies' configuration; nothing is sent
    #[command(after_help = "Examples:\n  lateen why --from deploy/web-frontend --to http://customers/\n  \
                      lateen why --from curl.default --to customers.default:80 -X POST -H 'x-user: alice'\n  \
                      lateen why --from ingress --to http://shop.example.com/cart --client-ip 198.51.100.7\n  \
                      lateen why --from curl --to http://httpbin:8000/headers --jwt-claim iss=https://auth.example.com --jwt-claim 'groups=[\"admins\"]'\n  \
                      lateen why --from curl --to tcp://db:5432 -o json\n\n\
                      A real token may be given instead of claims: -H 'authorization: Bearer TOKEN'")]
    Why(WhyArgs),
    /// Commands that may still change
    #[command(
        visible_alias = "x",
        alias = "exp",
        after_help = "Examples:\n  lateen x authz check deploy/customers-v1\n  lateen x ca status\n  lateen x workload --help"
    )]
    Experimental {
        /// Which one.
        #[command(subcommand)]
        command: Experimental,
    },
    /// Print the completion script for a shell
    #[command(
        after_help = "Examples:\n  source <(lateen completion bash)\n  lateen completion zsh > \"${fpath[1]}/_lateen\""
    )]
    Completion {
        /// The shell
        #[arg(value_enum)]
        shell: clap_complete::Shell,
    },
    /// The embedded cluster's process
    #[command(hide = true)]
    ClusterDaemon,
}

/// `x …`.
#[derive(Debug, Subcommand)]
pub enum Experimental {
    /// AuthorizationPolicies
    #[command(after_help = "Example:\n  lateen x authz check deploy/customers-v1")]
    Authz {
        /// What to do.
        #[command(subcommand)]
        command: AuthzCommand,
    },
    /// The mesh's certificate authority
    #[command(after_help = "Examples:\n  lateen x ca status\n  lateen x ca rotate")]
    Ca {
        /// What to do.
        #[command(subcommand)]
        command: CaCommand,
    },
    /// Machines that are no pods
    #[command(
        after_help = "Examples:\n  lateen x workload group create --name vm --namespace shop --labels app=vm | kubectl apply -f -\n  \
                      lateen x workload entry configure --name vm --namespace shop -o config --autoregister"
    )]
    Workload {
        /// What to do.
        #[command(subcommand)]
        command: WorkloadCommand,
    },
}

/// `x authz …`.
#[derive(Debug, Subcommand)]
pub enum AuthzCommand {
    /// Which AuthorizationPolicies a proxy enforces, by its own configuration
    #[command(after_help = "Examples:\n  lateen x authz check customers-v1-7b5d.default\n  \
                      lateen x authz check deploy/customers-v1\n  lateen x authz check -f config_dump.json\n\n\
                      json and yaml also show policies that are counted only (dry run) and those of external authorizers.\n\
                      Whether one request passes, and which rule decides: lateen why --help")]
    Check {
        /// Whose.
        #[command(flatten)]
        source: Source,
    },
}

/// `up`.
#[derive(Debug, Args)]
pub struct UpArgs {
    /// The proxies' engine
    #[arg(long, value_enum, default_value_t = EngineArg::Lateen)]
    pub engine: EngineArg,
    /// Leave out the sample application
    #[arg(long)]
    pub no_sample: bool,
    /// Add the egress gateway
    #[arg(long)]
    pub egress_gateway: bool,
    /// Run COMMAND for containers of image REF; may be given again
    #[arg(long = "image", value_name = "REF=COMMAND")]
    pub images: Vec<String>,
}

/// `--engine`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum EngineArg {
    /// Our own proxy.
    Lateen,
    /// A stock Envoy.
    Envoy,
}

/// `logs`.
#[derive(Debug, Args)]
pub struct LogsArgs {
    /// cluster, istiod, ingressgateway, or POD[.NAMESPACE] or KIND/NAME[.NAMESPACE]
    #[arg(default_value = "cluster")]
    pub target: String,
    /// Container; default: the pod's first
    #[arg(short, long)]
    pub container: Option<String>,
    /// Go on printing what is added
    #[arg(short, long)]
    pub follow: bool,
    /// Only the last lines
    #[arg(long, value_name = "LINES")]
    pub tail: Option<i64>,
}

/// What every `proxy-config` command takes.
#[derive(Debug, Args)]
pub struct Source {
    /// POD[.NAMESPACE] or KIND/NAME[.NAMESPACE]
    #[arg(required_unless_present = "file")]
    pub pod: Option<String>,
    /// Read a saved dump instead of asking a proxy; - is standard input
    #[arg(short, long, value_name = "DUMP")]
    pub file: Option<PathBuf>,
    /// The proxy's admin port
    #[arg(long, default_value_t = 15000, value_name = "PORT")]
    pub proxy_admin_port: u16,
    /// How to print it
    #[arg(short, long, value_enum)]
    pub output: Option<Output>,
}

/// The parts of a proxy's configuration.
#[derive(Debug, Subcommand)]
pub enum ProxyConfigPart {
    /// Where it listens
    #[command(visible_aliases = ["listener", "l"], after_help = "Example:\n  lateen pc listeners deploy/web-frontend --address 0.0.0.0 --port 80 -o json")]
    Listeners {
        /// Whose.
        #[command(flatten)]
        source: Source,
        /// Only listeners on this address
        #[arg(long)]
        address: Option<String>,
        /// Only listeners on this port
        #[arg(long)]
        port: Option<u64>,
        /// Only listeners of this type: HTTP, TCP or HTTP+TCP
        #[arg(long = "type", value_name = "TYPE")]
        kind: Option<String>,
        /// With matches and destinations
        #[arg(long, default_value_t = true, action = clap::ArgAction::Set, num_args = 0..=1, default_missing_value = "true")]
        verbose: bool,
    },
    /// How it routes HTTP
    #[command(visible_aliases = ["route", "r"], after_help = "Example:\n  lateen pc routes deploy/web-frontend --name 80 -o json")]
    Routes {
        /// Whose.
        #[command(flatten)]
        source: Source,
        /// Only this route configuration
        #[arg(long)]
        name: Option<String>,
    },
    /// Which services it can reach
    #[command(visible_aliases = ["cluster", "c"], after_help = "Example:\n  lateen pc clusters deploy/web-frontend --fqdn customers.default.svc.cluster.local")]
    Clusters {
        /// Whose.
        #[command(flatten)]
        source: Source,
        /// Only clusters with this in their name
        #[arg(long)]
        fqdn: Option<String>,
        /// Only clusters for this service port
        #[arg(long)]
        port: Option<u64>,
        /// Only clusters of this subset
        #[arg(long)]
        subset: Option<String>,
        /// inbound or outbound
        #[arg(long)]
        direction: Option<String>,
    },
    /// Where the services' instances are
    #[command(visible_aliases = ["endpoint", "ep"], after_help = "Example:\n  lateen pc endpoints deploy/web-frontend --cluster 'outbound|80|v1|customers.default.svc.cluster.local'")]
    Endpoints {
        /// Whose.
        #[command(flatten)]
        source: Source,
        /// Only endpoints at this address
        #[arg(long)]
        address: Option<String>,
        /// Only endpoints on this port
        #[arg(long)]
        port: Option<u64>,
        /// Only endpoints of this cluster
        #[arg(long)]
        cluster: Option<String>,
        /// Only endpoints in this state: healthy, unhealthy, …
        #[arg(long)]
        status: Option<String>,
    },
    /// Which certificates it holds; keys are not shown
    #[command(visible_aliases = ["secrets", "s"], after_help = "Example:\n  lateen pc secret deploy/web-frontend")]
    Secret {
        /// Whose.
        #[command(flatten)]
        source: Source,
    },
    /// What it was started with
    #[command(
        visible_alias = "b",
        after_help = "Example:\n  lateen pc bootstrap deploy/web-frontend -o yaml"
    )]
    Bootstrap {
        /// Whose.
        #[command(flatten)]
        source: Source,
    },
    /// All of it
    #[command(
        visible_alias = "a",
        after_help = "Example:\n  lateen pc all deploy/web-frontend -o json > dump.json    which -f dump.json reads"
    )]
    All {
        /// Whose.
        #[command(flatten)]
        source: Source,
    },
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_definition_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_commands_help_has_an_example() {
        fn check(command: &clap::Command) {
            let name = command.get_name();
            let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
            assert!(help.starts_with("Example") && help.contains("lateen "), "{name}: {help}");
            command.get_subcommands().filter(|one| !one.is_hide_set()).for_each(check);
        }
        check(&Cli::command());
    }

    #[test]
    fn the_courses_commands_are_understood() {
        for line in [
            "istioctl proxy-config listeners web-frontend-1",
            "istioctl proxy-config listeners web-frontend-1 --address 0.0.0.0 --port 80 -o json",
            "istioctl proxy-config routes web-frontend-1 --name 80 -o json",
            "istioctl proxy-config clusters web-frontend-1 --fqdn customers.default.svc.cluster.local",
            "istioctl proxy-config endpoints web-frontend-1 --cluster outbound|80|v1|customers.default.svc.cluster.local",
            "istioctl proxy-config cluster web-frontend-1 -n default",
            "istioctl pc route -f dump.json",
            "istioctl proxy-status",
            "istioctl ps web-1.default -v 1",
            "istioctl version --remote=false",
            "istioctl version -o json",
            "lateen up --engine envoy --no-sample --egress-gateway --image a=b --image c=d",
            "lateen down --keep",
            "lateen logs istiod -f",
            "lateen why --from deploy/web-frontend --to http://customers/ -X POST -H x-user:alice",
            "istioctl x authz check deployment/productpage-v1",
            "istioctl experimental authz check -f dump.json",
            "istioctl x workload group create --name hello-vm --namespace vm-namespace --labels app=hello-vm --serviceAccount vm-sa",
            "istioctl x workload entry configure -f workloadgroup.yaml -o work --autoregister --clusterID Kubernetes",
            "lateen x ca status -o json",
            "lateen experimental ca rotate --timeout 60",
        ] {
            Cli::try_parse_from(line.split(' ')).unwrap_or_else(|error| panic!("{line}: {error}"));
        }
        assert!(Cli::try_parse_from(["lateen", "pc", "routes"]).is_err());
    }
}
