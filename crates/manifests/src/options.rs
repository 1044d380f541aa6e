//! What can be chosen about an installation.

/// The L7 data plane that runs inside the proxy container.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Engine {
    /// Our own engine, in the proxy's process.
    #[default]
    Lateen,
    /// A stock Envoy as a child of the proxy's process.
    Envoy,
}

impl Engine {
    /// The value of `LATEEN_ENGINE` and of the pod annotation `proxy.lateen.io/engine`.
    pub fn as_str(self) -> &'static str {
        match self {
            Engine::Lateen => "lateen",
            Engine::Envoy => "envoy",
        }
    }
}

/// Choices for [`render`](crate::render). The defaults are those of `lateen up`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// Root namespace of the mesh. Default `istio-system`.
    pub namespace: String,
    /// Revision of the control plane, the value of the label `istio.io/rev`. Default `default`, which also makes the
    /// webhooks answer to `istio-injection=enabled`; any other revision is only reached by its own label.
    pub revision: String,
    /// Engine of proxies whose pod does not choose one, and of the gateways. Default [`Engine::Lateen`].
    pub engine: Engine,
    /// Image of the control plane. Default `lateen/pilot:VERSION`.
    pub pilot_image: String,
    /// Image of proxies and of `istio-init`. Default `lateen/proxyv2:VERSION`.
    pub proxy_image: String,
    /// Cluster id, seen by proxies as `ISTIO_META_CLUSTER_ID`. Default `Kubernetes`, as Istio's.
    pub cluster_id: String,
    /// DNS suffix of the cluster. Default `cluster.local`.
    pub cluster_domain: String,
    /// Trust domain of SPIFFE ids. Default `cluster.local`.
    pub trust_domain: String,
    /// Whether the ingress gateway is part of the installation. Default true.
    pub ingress_gateway: bool,
    /// Whether the egress gateway is part of the installation. Default false, as in Istio's default profile.
    pub egress_gateway: bool,
    /// Replicas of the ingress gateway. Default 1.
    pub gateway_replicas: u32,
    /// Log filter of the control plane and default level of proxies (`error`, `warn`, `info`, `debug`). Default `info`
    /// for the control plane; proxies stay at `warning`, as Istio's.
    pub log_level: String,
}

impl Default for Options {
    fn default() -> Self {
        let version = env!("CARGO_PKG_VERSION");
        Options {
            namespace: "istio-system".into(),
            revision: "default".into(),
            engine: Engine::default(),
            pilot_image: format!("lateen/pilot:{version}"),
            proxy_image: format!("lateen/proxyv2:{version}"),
            cluster_id: "Kubernetes".into(),
            cluster_domain: "cluster.local".into(),
            trust_domain: "cluster.local".into(),
            ingress_gateway: true,
            egress_gateway: false,
            gateway_replicas: 1,
            log_level: "info".into(),
        }
    }
}

impl Options {
    /// The suffix that keeps cluster-wide names of different revisions and root namespaces apart:
    /// empty for the default revision, `-REVISION` otherwise.
    pub(crate) fn suffix(&self) -> String {
        match self.revision.as_str() {
            "" | "default" => String::new(),
            revision => format!("-{revision}"),
        }
    }

    /// Name of the control plane's Service, Deployment and ServiceAccount: `istiod` or `istiod-REVISION`.
    pub fn istiod(&self) -> String {
        format!("istiod{}", self.suffix())
    }

    /// Value of the label `istio.io/rev`.
    pub(crate) fn revision_label(&self) -> &str {
        if self.revision.is_empty() { "default" } else { &self.revision }
    }
}
