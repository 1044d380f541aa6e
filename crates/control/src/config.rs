//! What a control plane is started with.
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use lateen_model::KeysBy;

/// Addresses to listen on. Port 0 picks a free one; what was bound is in [`Addresses`](crate::Addresses).
#[derive(Clone, Debug)]
pub struct Listen {
    /// xDS over TLS. Default port 15012.
    pub xds: SocketAddr,
    /// xDS in plain text, without authentication. Default: off.
    pub plain_xds: Option<SocketAddr>,
    /// Metrics, and debug for callers on the loopback. Default port 15014.
    pub monitoring: SocketAddr,
    /// Webhooks over TLS. Default port 15017.
    pub webhooks: SocketAddr,
    /// Readiness. Default port 8080.
    pub ready: SocketAddr,
}

impl Default for Listen {
    fn default() -> Self {
        let any = |port| SocketAddr::from((Ipv4Addr::UNSPECIFIED, port));
        Self {
            xds: any(15012),
            plain_xds: None,
            monitoring: any(15014),
            webhooks: any(15017),
            ready: any(8080),
        }
    }
}

/// Everything that varies between two control planes; several can run in one process.
#[derive(Clone, Debug)]
pub struct Config {
    /// Root namespace: where the control plane's own objects are. Default `istio-system`.
    pub namespace: String,
    /// Revision. Default `default`.
    pub revision: String,
    /// Domain of service names. Default `cluster.local`.
    pub domain: String,
    /// Cluster id, shown in `proxy-status`. Default `Kubernetes`.
    pub cluster_id: String,
    /// Name shown as the control plane a proxy is connected to: the pod's. Default `istiod`.
    pub name: String,
    /// Where to listen.
    pub listen: Listen,
    /// How long certificates of workloads live.
    pub certificate_life: CertificateLife,
    /// Requests for certificates that are answered or wait at a time; more are told to come again (workloads do). Default 4096.
    pub certificate_queue: usize,
    /// Who signs workloads' certificates in the place of our own authority. Default: nobody.
    pub external_ca: Option<ExternalCa>,
    /// How tokens' keys are fetched.
    pub keys: KeyFetching,
    /// Whether proxies with addresses of both families are given configuration for both (`ISTIO_DUAL_STACK`). Default false.
    pub dual_stack: bool,
    /// Whether names of gateways between networks are looked up (`RESOLVE_HOSTNAME_GATEWAYS`). Default true.
    pub resolve_gateways: bool,
    /// What is done for machines that are no pods.
    pub machines: MachineOptions,
}

/// What is done for machines that are no pods.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MachineOptions {
    /// Whether they may register themselves. Default true (`PILOT_ENABLE_WORKLOAD_ENTRY_AUTOREGISTRATION`).
    pub register: bool,
    /// Whether what their agents say of their health is written down. Default true (`PILOT_ENABLE_WORKLOAD_ENTRY_HEALTHCHECKS`).
    pub health_checks: bool,
    /// How long one may be away before its WorkloadEntry goes. Default 10 s (`PILOT_WORKLOAD_ENTRY_GRACE_PERIOD`).
    pub grace: Duration,
}

impl Default for MachineOptions {
    fn default() -> Self {
        Self { register: true, health_checks: true, grace: Duration::from_secs(10) }
    }
}

/// Signers of workloads' certificates behind the Kubernetes CSR API (`EXTERNAL_CA=ISTIOD_RA_KUBERNETES_API`).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ExternalCa {
    /// Who signs for workloads that name none, as `domain/name` (`K8S_SIGNER`).
    pub signer: Option<String>,
    /// Domain of the signers that workloads name with `ISTIO_META_CERT_SIGNER` (`CERT_SIGNER_DOMAIN`).
    pub domain: Option<String>,
    /// Roots (PEM) of signers that `caCertificates` of the mesh config does not mention. Default: what comes with a certificate.
    pub roots: Option<String>,
}

impl ExternalCa {
    /// The whole name of the signer that a workload is to have.
    pub(crate) fn signer(&self, asked: Option<&str>) -> Result<String, String> {
        match (asked.filter(|asked| !asked.is_empty()), &self.domain, &self.signer) {
            (Some(asked), Some(domain), _) => Ok(format!("{domain}/{asked}")),
            (Some(asked), None, _) => Err(format!(
                "the signer {asked:?} is asked for, but the control plane has no CERT_SIGNER_DOMAIN"
            )),
            (None, _, Some(signer)) => Ok(signer.clone()),
            (None, _, None) => {
                Err("no signer is asked for (ISTIO_META_CERT_SIGNER), and the control plane has no \
                 K8S_SIGNER"
                    .to_owned())
            }
        }
    }
}

/// How the keys of token issuers are fetched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyFetching {
    /// How old they may become. Default 20 min (`PILOT_JWT_PUB_KEY_REFRESH_INTERVAL`).
    pub refresh: Duration,
    /// Authorities (PEM) that are trusted besides the system's. Default: those in `/cacerts/extra.pem`, as Istio has it.
    pub authorities: Vec<u8>,
    /// Who fetches them. Default: the control plane (`PILOT_JWT_ENABLE_REMOTE_JWKS`).
    pub by: KeysBy,
    /// Networks that keys are not fetched from, besides those of a node's own (`BLOCKED_CIDRS_IN_JWKS_URIS`). Default: none.
    pub blocked: Vec<ipnet::IpNet>,
}

impl Default for KeyFetching {
    fn default() -> Self {
        Self {
            refresh: Duration::from_secs(20 * 60),
            authorities: std::fs::read("/cacerts/extra.pem").unwrap_or_default(),
            by: KeysBy::default(),
            blocked: Vec::new(),
        }
    }
}

/// How long certificates of workloads live, as Istio's CA has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CertificateLife {
    /// When nothing is asked for. Default 24 h (`DEFAULT_WORKLOAD_CERT_TTL`).
    pub default: Duration,
    /// What may be asked for at most. Default 90 days (`MAX_WORKLOAD_CERT_TTL`).
    pub most: Duration,
}

impl Default for CertificateLife {
    fn default() -> Self {
        let hours = |hours: u64| Duration::from_secs(hours * 3600);
        Self { default: hours(24), most: hours(90 * 24) }
    }
}

impl CertificateLife {
    /// What is granted to who asks for so many seconds; nothing or less asks for the default.
    pub(crate) fn granted(self, seconds: i64) -> Result<Duration, String> {
        let asked = match u64::try_from(seconds) {
            Ok(0) | Err(_) => self.default,
            Ok(seconds) => Duration::from_secs(seconds),
        };
        if asked > self.most {
            return Err(format!(
                "requested TTL {asked:?} is greater than the max allowed TTL {:?}",
                self.most
            ));
        }
        Ok(asked)
    }
}

impl Default for Config {
    fn default() -> Self {
        Self {
            namespace: "istio-system".into(),
            revision: "default".into(),
            domain: "cluster.local".into(),
            cluster_id: "Kubernetes".into(),
            name: "istiod".into(),
            listen: Listen::default(),
            certificate_life: CertificateLife::default(),
            certificate_queue: 4096,
            external_ca: None,
            keys: KeyFetching::default(),
            dual_stack: false,
            resolve_gateways: true,
            machines: MachineOptions::default(),
        }
    }
}

impl Config {
    /// What the names of this revision's objects end in.
    pub(crate) fn suffix(&self) -> String {
        match self.revision.as_str() {
            "" | "default" => String::new(),
            revision => format!("-{revision}"),
        }
    }

    /// Names the serving certificate is good for: the Service's, and those older proxies and webhooks use.
    pub(crate) fn server_names(&self) -> Vec<String> {
        let namespace = &self.namespace;
        let mut services = vec![format!("istiod{}", self.suffix())];
        for other in ["istiod", "istiod-remote", "istio-pilot", "istio-sidecar-injector"] {
            if !services.iter().any(|known| known == other) {
                services.push(other.to_owned());
            }
        }
        let mut names = Vec::new();
        for service in services {
            names.push(format!("{service}.{namespace}.svc"));
            names.push(format!("{service}.{namespace}.svc.{}", self.domain));
        }
        names
    }
}
