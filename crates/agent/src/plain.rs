//! Our engine run from a plain Envoy v3 bootstrap, as `envoy -c FILE` is, without a pod or an agent around it.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use lateen_engine::{ConfigUpdate, Engine, EngineConfig, EngineHandle, NodeInfo, Resource, ResourceKind};
use lateen_xds::client::{Connect, Connection, Mode, channel_over};
use lateen_xds::json::{JsonCodec, yaml_value};
use lateen_xds::pb::envoy::config::bootstrap::v3::Bootstrap;
use lateen_xds::pb::envoy::config::cluster::v3::Cluster;
use lateen_xds::pb::envoy::config::core::v3::socket_address::PortSpecifier;
use lateen_xds::pb::envoy::config::core::v3::socket_option::Value as OptionValue;
use lateen_xds::pb::envoy::config::core::v3::{address, node::UserAgentVersionType};
use lateen_xds::pb::envoy::config::endpoint::v3::lb_endpoint::HostIdentifier;
use prost::Message;
use prost_types::Any;
use serde_json::Value;
use tokio::task::JoinSet;
use tonic::metadata::MetadataMap;
use tracing::{error, info};

use crate::config::SetLogLevel;
use crate::dial;
use crate::error::AgentError;
use crate::feed::{self, Feed, Source};
use crate::files::{self, FileSource};
use crate::node::VERSION;

/// `SOL_SOCKET` and `SO_MARK`, as Envoy's socket options name them by number.
const SO_MARK: (i64, i64) = (1, 36);

/// What a plain proxy runs from.
#[derive(Clone, Debug, Default)]
pub struct PlainConfig {
    /// The bootstrap file.
    pub path: Option<PathBuf>,
    /// A bootstrap as text, merged over the file's: objects field by field, everything else replaced.
    pub yaml: Option<String>,
    /// Worker threads; 0 means one for each core.
    pub concurrency: usize,
    /// How long old connections may take to end.
    pub drain_time: Duration,
    /// In place of `node.id`.
    pub service_node: Option<String>,
    /// In place of `node.cluster`.
    pub service_cluster: Option<String>,
    /// Handler behind `/logging`.
    pub set_log_level: Option<SetLogLevel>,
    /// A program that prints [`decode`]'s result for `decode-bootstrap`, with `--config-path` and `--config-yaml` as here.
    /// The JSON mapping needs every descriptor of Envoy's API, tens of MiB that a proxy must not keep, so it is best done by a
    /// process that ends. `None`: this process.
    pub decoder: Option<PathBuf>,
}

/// A plain proxy that runs.
pub struct PlainRunning {
    engine: EngineHandle,
    tasks: JoinSet<()>,
}

impl PlainRunning {
    /// Where the admin service listens.
    pub fn admin_address(&self) -> Option<SocketAddr> {
        self.engine.admin_address()
    }

    /// The engine.
    pub fn engine(&self) -> &EngineHandle {
        &self.engine
    }

    /// Ends at once, as Envoy does at SIGTERM.
    pub async fn stop(mut self) {
        self.engine.shutdown().await;
        self.tasks.shutdown().await;
    }
}

/// Checks a bootstrap without using it: every field must be supported, and certificates and keys be what they should.
///
/// # Errors
/// With the path of the first field that isn't.
pub fn validate(config: &PlainConfig) -> Result<(), AgentError> {
    let bootstrap = load(config)?;
    let resources = static_resources(&bootstrap);
    lateen_ir::Bootstrap::from_proto(bootstrap).map_err(|error| refused(config, error.to_string()))?;
    lateen_engine::check(&resources).map_err(|reason| refused(config, reason))
}

/// Starts the engine with what the bootstrap holds, and the stream it asks for.
///
/// # Errors
/// When the bootstrap is not one, has a field that is not supported, or a port can't be had.
pub async fn run(config: PlainConfig) -> Result<PlainRunning, AgentError> {
    let bootstrap = load(&config)?;
    let checked = lateen_ir::Bootstrap::from_proto(bootstrap.clone());
    let checked = checked.map_err(|error| refused(&config, error.to_string()))?;
    let engine = Engine::start(EngineConfig {
        concurrency: config.concurrency,
        admin: checked.admin,
        node: node_info(&bootstrap),
        bootstrap: Some(Any {
            type_url: crate::bootstrap::TYPE_URL.to_owned(),
            value: bootstrap.encode_to_vec(),
        }),
        mark: mark(&bootstrap),
        agent_secrets: false,
        drain_time: config.drain_time,
        set_log_level: config.set_log_level.clone().map(|set| set.0),
    })?;
    let mut running = PlainRunning { engine: engine.clone(), tasks: JoinSet::new() };
    running.tasks.spawn(files::follow_secrets(engine.clone()));
    let report =
        engine.apply(ConfigUpdate { set: static_resources(&bootstrap), removed: Vec::new() }).await?;
    if let Some(rejection) = report.rejected.first() {
        let reason = rejection.to_string();
        running.stop().await;
        return Err(refused(&config, reason));
    }
    let Some(dynamic) = checked.dynamic else {
        engine.initialized().await?;
        return Ok(running);
    };
    for source in [&dynamic.clusters, &dynamic.listeners].into_iter().flatten() {
        if let lateen_ir::ConfigSource::Path(path) = source {
            let mut file = FileSource::new(path);
            file.apply(&engine).await?;
            running.tasks.spawn(file.follow(engine.clone()));
        }
    }
    match dynamic.ads {
        None => engine.initialized().await?,
        Some(ads) => {
            let mode = if ads.delta { Mode::Delta } else { Mode::Sotw };
            let connect = connect(&bootstrap, &ads).map_err(|reason| refused(&config, reason))?;
            let client = feed::start_client(xds_node(&bootstrap), mode, connect, Vec::new(), false);
            // A plain proxy looks after no application.
            let (_, health) = tokio::sync::watch::channel(None);
            let mut source = Source::new(client, engine.subscriptions(), health);
            let mut feed = Feed::new(engine, None);
            running.tasks.spawn(async move {
                if let Err(error) = source.pump(&mut feed).await {
                    error!(%error, "no more configuration reaches the engine");
                }
            });
        }
    }
    Ok(running)
}

fn origin(config: &PlainConfig) -> String {
    config.path.as_ref().map_or_else(|| "--config-yaml".to_owned(), |path| path.display().to_string())
}

fn refused(config: &PlainConfig, reason: String) -> AgentError {
    AgentError::Bootstrap { origin: origin(config), reason }
}

fn load(config: &PlainConfig) -> Result<Bootstrap, AgentError> {
    if config.path.is_none() && config.yaml.is_none() {
        return Err(refused(config, "give one with -c FILE or --config-yaml TEXT".to_owned()));
    }
    let bytes = match &config.decoder {
        Some(program) => decode_elsewhere(program, config)?,
        None => decode(config)?,
    };
    let mut bootstrap =
        Bootstrap::decode(bytes.as_slice()).map_err(|error| refused(config, error.to_string()))?;
    let node = bootstrap.node.get_or_insert_default();
    if let Some(id) = &config.service_node {
        node.id.clone_from(id);
    }
    if let Some(cluster) = &config.service_cluster {
        node.cluster.clone_from(cluster);
    }
    Ok(bootstrap)
}

fn decode_elsewhere(program: &Path, config: &PlainConfig) -> Result<Vec<u8>, AgentError> {
    let mut command = Command::new(program);
    command.arg("decode-bootstrap");
    if let Some(path) = &config.path {
        command.arg("--config-path").arg(path);
    }
    if let Some(yaml) = &config.yaml {
        command.arg("--config-yaml").arg(yaml);
    }
    let output = command.output().map_err(|error| AgentError::file("run", program, error))?;
    if output.status.success() {
        return Ok(output.stdout);
    }
    // It says what this process would say, after its name.
    let said = String::from_utf8_lossy(&output.stderr);
    let prefix = format!("bootstrap {}: ", origin(config));
    let reason = said.split_once(&prefix).map_or(said.as_ref(), |(_, reason)| reason);
    Err(refused(config, reason.trim().to_owned()))
}

/// The encoded `Bootstrap` of a configuration's file and text.
///
/// # Errors
/// When it is not YAML or JSON, or has a field that Envoy's API doesn't have; with the field's path.
pub fn decode(config: &PlainConfig) -> Result<Vec<u8>, AgentError> {
    let bad = |error: &dyn std::fmt::Display| refused(config, error.to_string());
    let mut value = Value::Object(serde_json::Map::new());
    if let Some(path) = &config.path {
        let text = std::fs::read_to_string(path).map_err(|error| AgentError::file("read", path, error))?;
        merge(&mut value, yaml_value(&text).map_err(|error| bad(&error))?);
    }
    if let Some(text) = &config.yaml {
        merge(&mut value, yaml_value(text).map_err(|error| bad(&error))?);
    }
    let codec = JsonCodec::new().map_err(|error| bad(&error))?;
    let bootstrap: Bootstrap = codec.from_value(&value).map_err(|error| bad(&error))?;
    Ok(bootstrap.encode_to_vec())
}

fn merge(base: &mut Value, over: Value) {
    match (base, over) {
        (Value::Object(base), Value::Object(over)) => {
            for (key, value) in over {
                merge(base.entry(key).or_insert(Value::Null), value);
            }
        }
        (base, over) => *base = over,
    }
}

fn node_info(bootstrap: &Bootstrap) -> NodeInfo {
    let node = bootstrap.node.clone().unwrap_or_default();
    NodeInfo {
        id: node.id,
        cluster: node.cluster,
        metadata: Value::Object(serde_json::Map::new()),
        version: format!("{VERSION}/lateen"),
    }
}

fn xds_node(bootstrap: &Bootstrap) -> lateen_xds::pb::envoy::config::core::v3::Node {
    let mut node = bootstrap.node.clone().unwrap_or_default();
    node.user_agent_name = "lateen".to_owned();
    node.user_agent_version_type = Some(UserAgentVersionType::UserAgentVersion(VERSION.to_owned()));
    node
}

/// `SO_MARK` in `cluster_manager.upstream_bind_config`.
fn mark(bootstrap: &Bootstrap) -> Option<u32> {
    let bind = bootstrap.cluster_manager.as_ref()?.upstream_bind_config.as_ref()?;
    let mut marks = bind.socket_options.iter().filter(|option| (option.level, option.name) == SO_MARK);
    match marks.next()?.value.as_ref()? {
        OptionValue::IntValue(mark) => u32::try_from(*mark).ok(),
        OptionValue::BufValue(_) => None,
    }
}

fn static_resources(bootstrap: &Bootstrap) -> Vec<Resource> {
    let Some(resources) = &bootstrap.static_resources else { return Vec::new() };
    let resource = |kind: ResourceKind, name: String, value: Vec<u8>| Resource {
        name,
        version: String::new(),
        body: Any { type_url: kind.type_url().to_owned(), value },
        is_static: true,
    };
    let clusters = resources.clusters.iter();
    let clusters = clusters
        .map(|cluster| resource(ResourceKind::Cluster, cluster.name.clone(), cluster.encode_to_vec()));
    let listeners = resources.listeners.iter().enumerate().map(|(index, listener)| {
        // Envoy gives a listener without a name one of its own.
        let name = if listener.name.is_empty() { format!("listener_{index}") } else { listener.name.clone() };
        let listener =
            lateen_xds::pb::envoy::config::listener::v3::Listener { name: name.clone(), ..listener.clone() };
        resource(ResourceKind::Listener, name, listener.encode_to_vec())
    });
    let secrets = resources.secrets.iter();
    let secrets =
        secrets.map(|secret| resource(ResourceKind::Secret, secret.name.clone(), secret.encode_to_vec()));
    secrets.chain(clusters).chain(listeners).collect()
}

/// How to reach the management server: the first endpoint of the static cluster the bootstrap names, in plaintext.
fn connect(bootstrap: &Bootstrap, ads: &lateen_ir::Ads) -> Result<Connect, String> {
    let clusters = bootstrap.static_resources.iter().flat_map(|resources| &resources.clusters);
    let cluster = clusters.into_iter().find(|cluster| cluster.name == *ads.cluster);
    let cluster = cluster.ok_or_else(|| {
        format!(
            "dynamic_resources.ads_config: cluster {:?} is not one of static_resources.clusters",
            ads.cluster
        )
    })?;
    if cluster.transport_socket.is_some() {
        return Err(format!("cluster {:?}: transport_socket is not supported for xDS", cluster.name));
    }
    let server = Arc::new(server(cluster)?);
    let authority: Arc<str> = ads.authority.clone().unwrap_or_else(|| ads.cluster.clone());
    let mut metadata = MetadataMap::new().into_headers();
    metadata.extend(ads.initial_metadata.iter().map(|(name, value)| (Some(name.clone()), value.clone())));
    let (metadata, mark) = (MetadataMap::from_headers(metadata), mark(bootstrap));
    info!(cluster = %cluster.name, "configuration comes over xDS");
    Ok(Arc::new(move || {
        let (server, authority, metadata) = (server.clone(), authority.clone(), metadata.clone());
        Box::pin(async move {
            let channel = match server.as_ref() {
                Server::Tcp(address) => {
                    let stream = dial::connect_host(address, mark).await?;
                    channel_over(stream, &authority).await?
                }
                Server::Unix(path) => {
                    let stream = tokio::net::UnixStream::connect(path).await;
                    let stream = stream.map_err(|error| format!("cannot connect to {path}: {error}"))?;
                    channel_over(stream, &authority).await?
                }
            };
            Ok(Connection { channel, metadata })
        })
    }))
}

/// Where a management server is.
#[derive(Debug, PartialEq, Eq)]
enum Server {
    /// `HOST:PORT`.
    Tcp(String),
    Unix(String),
}

fn server(cluster: &Cluster) -> Result<Server, String> {
    let endpoints = cluster.load_assignment.iter().flat_map(|assignment| &assignment.endpoints);
    let mut hosts =
        endpoints.flat_map(|locality| &locality.lb_endpoints).filter_map(|e| e.host_identifier.as_ref());
    let none = || format!("cluster {:?} has no endpoint with an address", cluster.name);
    let Some(HostIdentifier::Endpoint(endpoint)) = hosts.next() else { return Err(none()) };
    match endpoint.address.as_ref().and_then(|address| address.address.as_ref()).ok_or_else(none)? {
        address::Address::Pipe(pipe) => Ok(Server::Unix(pipe.path.clone())),
        address::Address::SocketAddress(socket) => match socket.port_specifier {
            Some(PortSpecifier::PortValue(port)) => Ok(Server::Tcp(format!("{}:{port}", socket.address))),
            _ => Err(none()),
        },
        address::Address::EnvoyInternalAddress(_) => Err(none()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOOTSTRAP: &str = r#"
node: {id: a, cluster: b}
admin: {address: {socket_address: {address: 127.0.0.1, port_value: 0}}}
static_resources:
  clusters:
  - name: xds
    type: STATIC
    connect_timeout: 1s
    load_assignment:
      cluster_name: xds
      endpoints: [{lb_endpoints: [{endpoint: {address: {socket_address: {address: 127.0.0.1, port_value: 7}}}}]}]
cluster_manager: {upstream_bind_config: {socket_options: [{level: 1, name: 36, int_value: 1337, state: STATE_PREBIND}]}}
"#;

    fn config(yaml: &str) -> PlainConfig {
        PlainConfig { yaml: Some(yaml.to_owned()), ..PlainConfig::default() }
    }

    #[test]
    fn a_bootstrap_is_read_with_the_command_line_over_it() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), BOOTSTRAP).unwrap();
        let merged = PlainConfig {
            path: Some(file.path().to_owned()),
            yaml: Some("{node: {cluster: c}}".into()),
            service_node: Some("z".into()),
            ..PlainConfig::default()
        };
        let bootstrap = load(&merged).unwrap();
        let node = bootstrap.node.clone().unwrap();
        assert_eq!((node.id.as_str(), node.cluster.as_str()), ("z", "c"));
        assert_eq!(mark(&bootstrap), Some(1337));
        let resources = static_resources(&bootstrap);
        assert_eq!(
            resources.iter().map(|r| (r.name.as_str(), r.is_static)).collect::<Vec<_>>(),
            [("xds", true)]
        );
        let clusters = bootstrap.static_resources.unwrap().clusters;
        assert_eq!(server(&clusters[0]).unwrap(), Server::Tcp("127.0.0.1:7".into()));
    }

    #[test]
    fn a_supported_bootstrap_is_valid_and_another_is_not() {
        validate(&config(BOOTSTRAP)).unwrap();
        let error =
            validate(&config("{static_resources: {clusters: [{name: a, track_timeout_budgets: true}]}}"));
        let error = error.unwrap_err().to_string();
        assert!(error.contains("static_resources.clusters[0].track_timeout_budgets"), "{error}");
    }

    #[test]
    fn what_is_wrong_is_said_with_its_path() {
        let error = load(&config("{admin: {adress: {}}}")).unwrap_err().to_string();
        assert!(error.contains("--config-yaml") && error.contains("adress"), "{error}");
        let error = load(&PlainConfig::default()).unwrap_err().to_string();
        assert!(error.contains("-c FILE"), "{error}");
    }
}
