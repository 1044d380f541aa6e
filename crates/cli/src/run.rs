//! From the command line to the command.

use std::io::Read;
use std::path::Path;

use anyhow::Result;
use clap::CommandFactory;
use serde_json::Value;

use crate::args::{AuthzCommand, Cli, Command, Experimental, Output, ProxyConfigPart, Source};
use crate::cluster::ClusterArgs;
use crate::error::Failure;
use crate::pods;
use crate::proxy_config::dump::{Dump, cluster_statuses};
use crate::proxy_config::{clusters, endpoints, listeners, routes, secrets};
use crate::{authz, ca, lifecycle, logs, output, proxy_status, status, version, why, workload};

/// Runs the command.
///
/// # Errors
/// What to tell the user, as one sentence with what to try next.
pub async fn run(cli: Cli) -> Result<()> {
    let cluster = &cli.cluster;
    match cli.command {
        Command::Up(args) => lifecycle::up(&cluster.state, &args).await,
        Command::Down { keep } => lifecycle::down(&cluster.state, keep).await,
        Command::Status { output } => status::run(cluster, output).await,
        Command::Kubeconfig { raw } => lifecycle::kubeconfig(&cluster.state, raw),
        Command::Logs(args) => logs::run(cluster, &args).await,
        Command::Version { remote, short, output } => version::run(cluster, remote, short, output).await,
        Command::ProxyStatus { pod, verbosity, output } => {
            proxy_status::run(cluster, pod.as_deref(), verbosity, output).await
        }
        Command::ProxyConfig { part } => proxy_config(cluster, part).await,
        Command::Experimental { command: Experimental::Ca { command } } => ca::run(cluster, command).await,
        Command::Experimental { command: Experimental::Workload { command } } => {
            workload::run(cluster, command).await
        }
        Command::Why(args) => why::run(cluster, &args).await,
        Command::Experimental { command: Experimental::Authz { command } } => {
            let AuthzCommand::Check { source } = command;
            authz_check(cluster, &source).await
        }
        Command::Completion { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "lateen", &mut script);
            output::text(&String::from_utf8_lossy(&script))
        }
        Command::ClusterDaemon => Ok(lateen_local::run_daemon(&cluster.state).await?),
    }
}

async fn proxy_config(cluster: &ClusterArgs, part: ProxyConfigPart) -> Result<()> {
    match part {
        ProxyConfigPart::Listeners { source, address, port, kind, verbose } => {
            let filter = listeners::Filter { address, port, kind };
            let dump = config_dump(cluster, &source).await?;
            let found: Vec<_> =
                dump.listeners()?.into_iter().filter(|listener| filter.matches(listener)).collect();
            let table = if verbose { listeners::table } else { listeners::short_table };
            show(&source, &found, || table(&found).to_string())
        }
        ProxyConfigPart::Routes { source, name } => {
            let dump = config_dump(cluster, &source).await?;
            let mut found: Vec<_> =
                dump.routes()?.into_iter().filter(|route| routes::matches(route, name.as_deref())).collect();
            routes::sort(&mut found);
            show(&source, &found, || routes::table(&found).to_string())
        }
        ProxyConfigPart::Clusters { source, fqdn, port, subset, direction } => {
            let filter = clusters::Filter { fqdn, port, subset, direction };
            let dump = config_dump(cluster, &source).await?;
            let mut found: Vec<_> = dump.clusters()?.into_iter().filter(|c| filter.matches(c)).collect();
            clusters::sort(&mut found);
            show(&source, &found, || clusters::table(&found).to_string())
        }
        ProxyConfigPart::Endpoints { source, address, port, cluster: name, status } => {
            let filter = endpoints::Filter { address, port, cluster: name, status };
            let answer = fetch(cluster, &source, "/clusters?format=json").await?;
            let statuses = cluster_statuses(&answer).map_err(|error| {
                let message = format!("The endpoints of {} cannot be read: {error}.", origin(&source));
                Failure::new(message, "lateen pc endpoints POD; a FILE is what /clusters?format=json gives")
            })?;
            let found = filter.select(&statuses.iter().collect::<Vec<_>>());
            show(&source, &found, || endpoints::table(&found, &filter).to_string())
        }
        ProxyConfigPart::Secret { source } => {
            let dump = config_dump(cluster, &source).await?;
            let found = dump.secrets();
            let bare: Vec<&Value> = found.iter().map(|(_, secret)| *secret).collect();
            let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
            let now = now.map_or(0, |since| i64::try_from(since.as_secs()).unwrap_or(i64::MAX));
            show(&source, &bare, || secrets::table(&found, now).to_string())
        }
        ProxyConfigPart::Bootstrap { source } => {
            let bootstrap = config_dump(cluster, &source).await?.bootstrap()?;
            output::print(&bootstrap, source.output.unwrap_or(Output::Json))
        }
        ProxyConfigPart::All { source } => {
            let dump = config_dump(cluster, &source).await?;
            match source.output.unwrap_or(Output::Short) {
                Output::Short => output::text(&summary(&dump)?)?,
                structured => output::print(dump.value(), structured)?,
            }
            Ok(())
        }
    }
}

async fn authz_check(cluster: &ClusterArgs, source: &Source) -> Result<()> {
    let dump = config_dump(cluster, source).await?;
    let listeners = dump.listeners()?;
    match source.output.unwrap_or(Output::Short) {
        Output::Short => output::text(&authz::table(&listeners).to_string()),
        structured => output::print(&authz::policies(&listeners), structured),
    }
}

fn show(source: &Source, found: &[&Value], table: impl Fn() -> String) -> Result<()> {
    match source.output.unwrap_or(Output::Short) {
        Output::Short => output::text(&table())?,
        structured => output::print(
            &found.iter().map(|resource| without_type(resource)).collect::<Vec<_>>(),
            structured,
        )?,
    }
    Ok(())
}

/// A dump says what type each resource is; istioctl's lists, being of one type, don't.
fn without_type(resource: &Value) -> Value {
    let mut resource = resource.clone();
    if let Some(fields) = resource.as_object_mut() {
        fields.shift_remove("@type");
    }
    resource
}

/// Clusters, listeners and routes, one table under the other.
fn summary(dump: &Dump) -> Result<String> {
    let (mut found_clusters, mut found_routes) = (dump.clusters()?, dump.routes()?);
    clusters::sort(&mut found_clusters);
    routes::sort(&mut found_routes);
    let listeners = listeners::table(&dump.listeners()?);
    Ok(format!("{}\n{listeners}\n{}", clusters::table(&found_clusters), routes::table(&found_routes)))
}

async fn config_dump(cluster: &ClusterArgs, source: &Source) -> Result<Dump> {
    let bytes = fetch(cluster, source, "/config_dump?include_eds").await?;
    let advise = |error| {
        let message = format!("The configuration of {} cannot be read: {error}.", origin(source));
        Failure::new(message, "lateen pc all POD -o json > FILE, and this command with -f FILE").into()
    };
    Dump::parse(&bytes).map_err(advise)
}

/// The file or the pod that was named.
fn origin(source: &Source) -> String {
    let file = source.file.as_ref().map(|file| file.display().to_string());
    file.or_else(|| source.pod.clone()).unwrap_or_default()
}

/// A saved answer, or the proxy's own.
async fn fetch(cluster: &ClusterArgs, source: &Source, path: &str) -> Result<Vec<u8>> {
    if let Some(file) = &source.file {
        let advise = |error| {
            let message = format!("{} cannot be read: {error}.", file.display());
            Failure::new(message, "lateen pc all POD -o json > FILE, and this command with -f FILE").into()
        };
        return read(file).map_err(advise);
    }
    let client = cluster.client().await?;
    let pod = pods::find(&client, source.pod.as_deref().unwrap_or_default(), cluster.namespace()).await?;
    pods::get(&client, &pod, source.proxy_admin_port, path).await
}

fn read(file: &Path) -> std::io::Result<Vec<u8>> {
    if file != Path::new("-") {
        return std::fs::read(file);
    }
    let mut bytes = Vec::new();
    std::io::stdin().read_to_end(&mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proxy_config::dump::tests::saved;

    #[test]
    fn a_listed_resource_is_without_its_type_and_in_order() {
        let dump = saved();
        let listener = without_type(dump.listeners().unwrap()[0]);
        assert_eq!(listener.as_object().unwrap().keys().next().unwrap(), "name");
        assert!(listener.to_string().contains("HttpConnectionManager"), "types inside stay");
    }

    #[test]
    fn all_shows_every_part() {
        let text = summary(&saved()).unwrap();
        for heading in ["SERVICE FQDN", "ADDRESSES", "VHOST NAME"] {
            assert!(text.contains(heading), "{text}");
        }
    }
}
