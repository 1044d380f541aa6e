//! What the agent is told: everything it needs to run, with the container's environment as one way to fill it in.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use lateen_capture::ResolvConf;
use lateen_pki::{KeyKind, SpiffeId};
use serde::Deserialize;
use serde_json::Value;

use crate::dns::Dns;
use crate::error::AgentError;
use crate::identity::Identity;
use crate::identity::kept::ROOTS;
use crate::probes::Probers;
use crate::readiness::Readiness;

/// What the proxy stands for in the mesh; the first part of its node id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Beside an application.
    Sidecar,
    /// On its own: a gateway.
    Router,
}

impl Role {
    /// As in the node id: `sidecar` or `router`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Sidecar => "sidecar",
            Self::Router => "router",
        }
    }
}

/// What carries the traffic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EngineKind {
    /// Our engine, in this process.
    Lateen,
    /// An Envoy program as a child process.
    Envoy,
}

/// Who this proxy is in Kubernetes.
#[derive(Clone, Debug, Default)]
pub struct Pod {
    /// Name of the pod.
    pub name: String,
    /// Its namespace.
    pub namespace: String,
    /// Its first address.
    pub ip: String,
    /// All of its addresses, separated by commas; empty: only the first.
    pub ips: String,
    /// The service account it runs as.
    pub service_account: String,
    /// The node it runs on.
    pub node: String,
}

/// How to reach the control plane.
#[derive(Clone, Debug)]
pub struct Discovery {
    /// `HOST:PORT`, for example `istiod.istio-system.svc:15012`. The host is also the name its certificate must carry.
    pub address: String,
    /// PEM file with the roots that sign the control plane's certificate. `None`: plaintext, for tests.
    pub root_cert: Option<PathBuf>,
    /// File with the service-account token; read anew for each connection, as it rotates. `None`: no token is sent.
    pub token: Option<PathBuf>,
    /// Folder with a certificate that is shown besides, of machines (`PROV_CERT`; files `cert-chain.pem` and `key.pem`): their
    /// token ends. `None`: none is shown.
    pub certificate: Option<PathBuf>,
}

/// Where the agent listens. Port 0 picks a free one (see [`crate::Running`]).
#[derive(Clone, Copy, Debug)]
pub struct Addresses {
    /// The engine's admin service.
    pub admin: SocketAddr,
    /// `/healthz/ready`, for the kubelet's probes.
    pub health: SocketAddr,
    /// Merged metrics and `/quitquitquit`.
    pub status: SocketAddr,
    /// The proxy's own metrics.
    pub stats: SocketAddr,
}

impl Default for Addresses {
    /// Istio's ports: admin on loopback 15000, the others on all addresses: 15021, 15020, 15090.
    fn default() -> Self {
        let all = |port| SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), port);
        Self {
            admin: SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 15000),
            health: all(15021),
            status: all(15020),
            stats: all(15090),
        }
    }
}

/// Folders of the proxy container.
#[derive(Clone, Debug)]
pub struct Folders {
    /// The downward API's `labels` and `annotations`; default `/etc/istio/pod`.
    pub podinfo: PathBuf,
    /// Envoy's bootstrap and its xDS socket; default `/etc/istio/proxy`.
    pub proxy: PathBuf,
    /// The last good configuration; default `/var/lib/istio/data`.
    pub data: PathBuf,
}

impl Default for Folders {
    fn default() -> Self {
        Self {
            podinfo: "/etc/istio/pod".into(),
            proxy: "/etc/istio/proxy".into(),
            data: "/var/lib/istio/data".into(),
        }
    }
}

/// How the proxy ends after SIGTERM.
#[derive(Clone, Copy, Debug)]
pub struct Drain {
    /// The proxy goes on accepting at least this long, as callers hear of the pod's end only after the pod does; default 2 s
    /// (`MINIMUM_DRAIN_DURATION`).
    pub minimum: Duration,
    /// Connections still open after this long are cut; default 5 s (`terminationDrainDuration` of the mesh's proxy config).
    pub limit: Duration,
    /// Go on for as long as there are connections, whatever [`Self::limit`] says (`EXIT_ON_ZERO_ACTIVE_CONNECTIONS`).
    pub until_idle: bool,
    /// How long connections of a listener or filter chain that is no more may go on while the proxy runs; default 45 s
    /// (`drainDuration` of the mesh's proxy config, Envoy's `--drain-time-s`).
    pub of_listeners: Duration,
}

impl Default for Drain {
    fn default() -> Self {
        Self {
            minimum: Duration::from_secs(2),
            limit: Duration::from_secs(5),
            until_idle: false,
            of_listeners: Duration::from_secs(45),
        }
    }
}

/// Everything [`crate::run`] needs.
#[derive(Clone, Debug)]
pub struct Config {
    /// Sidecar or gateway.
    pub role: Role,
    /// Our engine or Envoy.
    pub engine: EngineKind,
    /// The pod.
    pub pod: Pod,
    /// DNS suffix of the pod's namespace, for example `default.svc.cluster.local`.
    pub domain: String,
    /// `ISTIO_META_*` and, read as JSON, `ISTIO_METAJSON_*` of the environment, without the prefixes; `PROXY_CONFIG`.
    pub metadata: BTreeMap<String, Value>,
    /// Worker threads; 0 means one for each core.
    pub concurrency: usize,
    /// The control plane.
    pub discovery: Discovery,
    /// How the workload's certificate is had; `None`: it has none, and mutual TLS is not for it.
    pub identity: Option<Identity>,
    /// The application's probes, which the agent answers for the kubelet (`ISTIO_KUBE_APP_PROBERS`).
    pub probers: Probers,
    /// How the application's health is found out, which the control plane is told (`readinessProbe` of the proxy config); `None`:
    /// not at all.
    pub readiness: Option<Readiness>,
    /// How to answer the application's DNS queries; `None`: not at all (`ISTIO_META_DNS_CAPTURE`; gateways have no application).
    pub dns: Option<Dns>,
    /// Where to listen.
    pub addresses: Addresses,
    /// Where files are.
    pub folders: Folders,
    /// How to end.
    pub drain: Drain,
    /// `SO_MARK` of the proxy's own sockets, which capture exempts; needs `CAP_NET_ADMIN`. `None`, as in pods: unmarked, capture
    /// exempts the proxy's user.
    pub mark: Option<u32>,
    /// How long to wait for the control plane before the last good configuration is used; default 3 s.
    pub cache_after: Duration,
    /// The Envoy program; `None` looks it up (see [`crate::envoy`]).
    pub envoy: Option<PathBuf>,
    /// Envoy's log level.
    pub envoy_log_level: String,
    /// Handler behind the engine's `/logging`.
    pub set_log_level: Option<SetLogLevel>,
}

/// Changes the process's log level; says why it can't.
#[derive(Clone)]
pub struct SetLogLevel(pub lateen_engine::SetLogLevel);

impl std::fmt::Debug for SetLogLevel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SetLogLevel")
    }
}

/// The mark by which capture recognises the proxy's own sockets; the number is the user id Istio's proxy runs as.
pub const PROXY_MARK: u32 = 1337;

/// The fields of Istio's `ProxyConfig` (mesh config's `defaultConfig`) that the agent itself needs.
/// <https://istio.io/latest/docs/reference/config/istio.mesh.v1alpha1/#ProxyConfig>
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct ProxyConfig {
    discovery_address: Option<String>,
    termination_drain_duration: Option<String>,
    drain_duration: Option<String>,
    concurrency: Option<usize>,
    proxy_metadata: BTreeMap<String, String>,
    readiness_probe: Option<Readiness>,
}

impl Config {
    /// Reads the proxy container's environment (see ARCHITECTURE.md, "The proxy container").
    ///
    /// # Errors
    /// When a variable has a value that makes no sense; its name is in the error.
    pub fn from_env(role: Role, vars: &BTreeMap<String, String>) -> Result<Self, AgentError> {
        let mut vars = vars.clone();
        let proxy = match vars.get("PROXY_CONFIG").map(String::as_str).filter(|text| !text.trim().is_empty())
        {
            None => ProxyConfig::default(),
            Some(text) => serde_json::from_str(text)
                .map_err(|error| AgentError::variable("PROXY_CONFIG", text, &error.to_string()))?,
        };
        vars.extend(proxy.proxy_metadata);
        let var = |name: &str| vars.get(name).filter(|value| !value.is_empty()).cloned();
        let namespace = var("POD_NAMESPACE").unwrap_or_else(|| "default".to_owned());
        let engine = match var("LATEEN_ENGINE").as_deref() {
            None | Some("lateen") => EngineKind::Lateen,
            Some("envoy") => EngineKind::Envoy,
            Some(other) => {
                return Err(AgentError::variable("LATEEN_ENGINE", other, "must be lateen or envoy"));
            }
        };
        let limit = proxy.termination_drain_duration.map(|text| ("terminationDrainDuration", text));
        let limit =
            limit.or_else(|| Some(("TERMINATION_DRAIN_DURATION", var("TERMINATION_DRAIN_DURATION")?)));
        let minimum = var("MINIMUM_DRAIN_DURATION").map(|text| ("MINIMUM_DRAIN_DURATION", text));
        let of_listeners = proxy.drain_duration.map(|text| ("drainDuration", text));
        let default = Drain::default();
        let drain = Drain {
            limit: limit.map_or(Ok(default.limit), |(name, text)| duration(name, &text))?,
            minimum: minimum.map_or(Ok(default.minimum), |(name, text)| duration(name, &text))?,
            until_idle: match var("EXIT_ON_ZERO_ACTIVE_CONNECTIONS").as_deref() {
                None | Some("false") => false,
                Some("true") => true,
                Some(other) => {
                    let why = "must be true or false";
                    return Err(AgentError::variable("EXIT_ON_ZERO_ACTIVE_CONNECTIONS", other, why));
                }
            },
            of_listeners: of_listeners
                .map_or(Ok(default.of_listeners), |(name, text)| duration(name, &text))?,
        };
        let address = proxy.discovery_address.or_else(|| var("CA_ADDR"));
        let captured = var("ISTIO_META_DNS_CAPTURE").is_some_and(|value| value.eq_ignore_ascii_case("true"));
        let dns = (captured && role == Role::Sidecar)
            .then(|| Dns::of_pod(&ResolvConf::read(Path::new("/etc/resolv.conf"))));
        let metadata = metadata(&vars)?;
        let certificates = var("PROV_CERT").map(PathBuf::from);
        let roots = match (var("XDS_ROOT_CA"), &certificates) {
            (Some(given), _) => PathBuf::from(given),
            (None, Some(folder)) => folder.join(ROOTS),
            (None, None) => PathBuf::from("/var/run/secrets/istio/root-cert.pem"),
        };
        Ok(Self {
            role,
            engine,
            pod: Pod {
                name: var("POD_NAME").unwrap_or_default(),
                namespace: namespace.clone(),
                ip: var("INSTANCE_IP").unwrap_or_else(|| "127.0.0.1".to_owned()),
                ips: var("INSTANCE_IPS").unwrap_or_default(),
                service_account: var("SERVICE_ACCOUNT").unwrap_or_else(|| "default".to_owned()),
                node: var("NODE_NAME").or_else(|| var("ISTIO_META_NODE_NAME")).unwrap_or_default(),
            },
            domain: format!("{namespace}.svc.cluster.local"),
            metadata,
            concurrency: proxy.concurrency.unwrap_or(1),
            discovery: Discovery {
                address: address.unwrap_or_else(|| "istiod.istio-system.svc:15012".to_owned()),
                root_cert: Some(roots),
                token: Some("/var/run/secrets/tokens/istio-token".into()),
                certificate: certificates,
            },
            identity: Some(identity(&vars, &namespace)?),
            probers: match var("ISTIO_KUBE_APP_PROBERS") {
                None => Probers::new(),
                Some(text) => serde_json::from_str(&text).map_err(|error| {
                    AgentError::variable("ISTIO_KUBE_APP_PROBERS", &text, &error.to_string())
                })?,
            },
            readiness: proxy.readiness_probe,
            dns,
            addresses: Addresses::default(),
            folders: Folders::default(),
            drain,
            mark: None,
            cache_after: Duration::from_secs(3),
            envoy: var("LATEEN_ENVOY_PATH").map(PathBuf::from),
            envoy_log_level: "warning".to_owned(),
            set_log_level: None,
        })
    }
}

/// What the node says of itself besides what the agent knows.
fn metadata(vars: &BTreeMap<String, String>) -> Result<BTreeMap<String, Value>, AgentError> {
    let mut metadata = BTreeMap::new();
    let json = |name: &str, text: &str| {
        serde_json::from_str::<Value>(text)
            .map_err(|error| AgentError::variable(name, text, &error.to_string()))
    };
    for (name, value) in vars.iter().filter(|(_, value)| !value.trim().is_empty()) {
        if let Some(key) = name.strip_prefix("ISTIO_META_") {
            metadata.insert(key.to_owned(), Value::String(value.clone()));
        } else if let Some(key) = name.strip_prefix("ISTIO_METAJSON_") {
            metadata.insert(key.to_owned(), json(name, value)?);
        } else if name == "PROXY_CONFIG" {
            metadata.insert(name.clone(), json(name, value)?);
        }
    }
    Ok(metadata)
}

/// By the variables of Istio's agent.
fn identity(vars: &BTreeMap<String, String>, namespace: &str) -> Result<Identity, AgentError> {
    let default = Identity::default();
    let var = |name: &str| vars.get(name).filter(|value| !value.is_empty());
    let part = |name: &str, default: f64| match var(name) {
        None => Ok(default),
        Some(text) => text
            .parse()
            .ok()
            .filter(|part| (0.0..=1.0).contains(part))
            .ok_or_else(|| AgentError::variable(name, text, "must be a number from 0 to 1")),
    };
    let key = match (var("WORKLOAD_RSA_KEY_SIZE").map(String::as_str), var("ECC_CURVE").map(String::as_str)) {
        (None, None | Some("P256")) => KeyKind::P256,
        (None, Some("P384")) => KeyKind::P384,
        (None, Some(other)) => return Err(AgentError::variable("ECC_CURVE", other, "must be P256 or P384")),
        (Some("2048"), _) => KeyKind::Rsa2048,
        (Some("3072"), _) => KeyKind::Rsa3072,
        (Some("4096"), _) => KeyKind::Rsa4096,
        (Some(other), _) => {
            return Err(AgentError::variable("WORKLOAD_RSA_KEY_SIZE", other, "must be 2048, 3072 or 4096"));
        }
    };
    let account = var("SERVICE_ACCOUNT").map_or("default", String::as_str);
    let id = var("TRUST_DOMAIN").map(|domain| {
        let why =
            |error: lateen_pki::SpiffeError| AgentError::variable("TRUST_DOMAIN", domain, &error.to_string());
        SpiffeId::new(domain, namespace, account).map_err(why)
    });
    Ok(Identity {
        id: id.transpose()?,
        signer: var("ISTIO_META_CERT_SIGNER").cloned(),
        life: var("SECRET_TTL").map_or(Ok(default.life), |text| duration("SECRET_TTL", text))?,
        grace: part("SECRET_GRACE_PERIOD_RATIO", default.grace)?,
        jitter: part("SECRET_GRACE_PERIOD_RATIO_JITTER", default.jitter)?,
        key,
        output: var("OUTPUT_CERTS").map(PathBuf::from),
    })
}

/// A duration as Istio and Go write them, in one unit: `500ms`, `5s`, `1m`, `1.5s`. `name` is for the error.
fn duration(name: &str, text: &str) -> Result<Duration, AgentError> {
    // Go writes zero parts too: 24h0m0s.
    let text = text.strip_suffix("0s").filter(|rest| rest.ends_with('m')).unwrap_or(text);
    let text = text.strip_suffix("0m").filter(|rest| rest.ends_with('h')).unwrap_or(text);
    let number_end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(number_end);
    let unit = match unit {
        "ms" => Some(0.001),
        "s" => Some(1.0),
        "m" => Some(60.0),
        "h" => Some(3600.0),
        _ => None,
    };
    let seconds = unit.and_then(|unit| Some(number.parse::<f64>().ok()? * unit));
    seconds
        .and_then(|seconds| Duration::try_from_secs_f64(seconds).ok())
        .ok_or_else(|| AgentError::variable(name, text, "must be a duration such as 5s or 500ms"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vars(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn the_containers_environment_is_read() {
        let config = Config::from_env(
            Role::Router,
            &vars(&[
                ("POD_NAME", "gateway-1"),
                ("POD_NAMESPACE", "istio-system"),
                ("INSTANCE_IP", "10.244.0.9"),
                ("LATEEN_ENGINE", "envoy"),
                ("ISTIO_META_CLUSTER_ID", "Kubernetes"),
                (
                    "PROXY_CONFIG",
                    r#"{"discoveryAddress":"pilot:1","terminationDrainDuration":"1.5s","drainDuration":"30s","proxyMetadata":{"MINIMUM_DRAIN_DURATION":"250ms","EXIT_ON_ZERO_ACTIVE_CONNECTIONS":"true"},"tracing":{}}"#,
                ),
            ]),
        )
        .unwrap();
        assert_eq!((config.pod.name.as_str(), config.pod.ip.as_str()), ("gateway-1", "10.244.0.9"));
        assert_eq!(config.engine, EngineKind::Envoy);
        assert_eq!(config.discovery.address, "pilot:1");
        assert_eq!(config.drain.limit, Duration::from_millis(1500));
        assert_eq!(config.drain.minimum, Duration::from_millis(250));
        assert!(config.drain.until_idle);
        assert_eq!(config.drain.of_listeners, Duration::from_secs(30));
        assert_eq!(config.metadata["CLUSTER_ID"], "Kubernetes");
        assert_eq!(config.metadata["PROXY_CONFIG"]["drainDuration"], "30s");
    }

    #[test]
    fn a_machines_environment_is_read() {
        let config = Config::from_env(
            Role::Sidecar,
            &vars(&[
                ("PROV_CERT", "/etc/certs"),
                ("OUTPUT_CERTS", "/etc/certs"),
                (
                    "PROXY_CONFIG",
                    r#"{"proxyMetadata":{"ISTIO_META_AUTO_REGISTER_GROUP":"shop","ISTIO_METAJSON_LABELS":"{\"app\":\"shop\"}","ISTIO_META_NETWORK":""},"readinessProbe":{"tcpSocket":{"port":80},"periodSeconds":2}}"#,
                ),
            ]),
        )
        .unwrap();
        assert_eq!(config.metadata["AUTO_REGISTER_GROUP"], "shop");
        assert_eq!(config.metadata["LABELS"], serde_json::json!({"app": "shop"}));
        assert!(!config.metadata.contains_key("NETWORK"), "nothing is said of what is empty");
        assert_eq!(config.discovery.root_cert, Some("/etc/certs/root-cert.pem".into()));
        assert_eq!(config.discovery.certificate, Some("/etc/certs".into()));
        assert_eq!(config.identity.unwrap().output, Some("/etc/certs".into()));
        assert!(config.readiness.is_some());
        let bad = Config::from_env(Role::Sidecar, &vars(&[("ISTIO_METAJSON_LABELS", "{")]));
        assert!(bad.unwrap_err().to_string().contains("ISTIO_METAJSON_LABELS"));
    }

    #[test]
    fn certificates_are_had_as_istios_variables_say() {
        let of = |pairs: &[(&str, &str)]| {
            Config::from_env(Role::Sidecar, &vars(pairs)).map(|config| config.identity.unwrap())
        };
        assert_eq!(of(&[]).unwrap(), Identity::default());
        let given =
            of(&[("SECRET_TTL", "12h0m0s"), ("SECRET_GRACE_PERIOD_RATIO", "0.2"), ("ECC_CURVE", "P384")]);
        let expected = Identity {
            life: Duration::from_secs(12 * 3600),
            grace: 0.2,
            key: KeyKind::P384,
            ..Identity::default()
        };
        assert_eq!(given.unwrap(), expected);
        assert_eq!(of(&[("WORKLOAD_RSA_KEY_SIZE", "2048")]).unwrap().key, KeyKind::Rsa2048);
        for (name, value) in [
            ("SECRET_TTL", "long"),
            ("SECRET_GRACE_PERIOD_RATIO", "2"),
            ("ECC_CURVE", "P521"),
            ("WORKLOAD_RSA_KEY_SIZE", "1024"),
        ] {
            assert!(of(&[(name, value)]).unwrap_err().to_string().contains(name), "{name}");
        }
    }

    #[test]
    fn a_bad_value_is_refused_with_the_variables_name() {
        for (name, value) in
            [("LATEEN_ENGINE", "nginx"), ("PROXY_CONFIG", "{"), ("MINIMUM_DRAIN_DURATION", "soon")]
        {
            let error = Config::from_env(Role::Sidecar, &vars(&[(name, value)])).unwrap_err().to_string();
            assert!(error.contains(name), "{error}");
        }
    }
}
