//! Names in statistics by the patterns of mesh config (`inboundClusterStatName`, `outboundClusterStatName`).
//! <https://istio.io/latest/docs/reference/config/istio.mesh.v1alpha1/#MeshConfig>

use std::sync::Arc;

use lateen_api::MeshConfig;
use lateen_model::{Registry, Service, ServicePort};

/// What ends a name of a cluster in statistics, so that the parts behind it can be told apart (Istio's).
const DELIMITER: char = ';';

/// The patterns; none: the cluster's own name.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct StatNames {
    /// Of clusters to the workload itself.
    pub(crate) inbound: Option<Arc<str>>,
    /// Of clusters to services.
    pub(crate) outbound: Option<Arc<str>>,
}

impl StatNames {
    pub(crate) fn new(mesh: &MeshConfig) -> Self {
        let pattern = |text: &String| (!text.is_empty()).then(|| text.as_str().into());
        Self {
            inbound: pattern(&mesh.inbound_cluster_stat_name),
            outbound: pattern(&mesh.outbound_cluster_stat_name),
        }
    }
}

/// Where the subset's name goes.
pub(crate) const SUBSET: &str = "%SUBSET_NAME%";

/// What a pattern is filled with.
pub(crate) struct Filling<'a> {
    /// `%SERVICE_FQDN%`
    pub(crate) host: &'a str,
    /// `%SERVICE%`: a Kubernetes Service is called by its name and namespace, others by their host.
    pub(crate) service: String,
    /// `%SUBSET_NAME%`
    pub(crate) subset: &'a str,
    /// `%SERVICE_PORT%`
    pub(crate) port: u16,
    /// `%SERVICE_PORT_NAME%`
    pub(crate) port_name: &'a str,
    /// `%TARGET_PORT%`; 0 of what is outbound, as in Istio: endpoints may differ in it.
    pub(crate) target_port: u16,
}

impl<'a> Filling<'a> {
    /// Of connections to a service.
    pub(crate) fn outbound(service: &'a Service, port: &'a ServicePort, subset: &'a str) -> Self {
        Self {
            host: &service.hostname,
            service: short_name(service),
            subset,
            port: port.port,
            port_name: &port.name,
            target_port: 0,
        }
    }

    /// The name.
    pub(crate) fn fill(&self, pattern: &str) -> String {
        pattern
            .replace("%SERVICE%", &self.service)
            .replace("%SERVICE_FQDN%", self.host)
            .replace(SUBSET, self.subset)
            .replace("%TARGET_PORT%", &self.target_port.to_string())
            .replace("%SERVICE_PORT%", &self.port.to_string())
            .replace("%SERVICE_PORT_NAME%", self.port_name)
    }

    /// The name of a cluster.
    pub(crate) fn of_cluster(&self, pattern: Option<&Arc<str>>) -> String {
        pattern.map_or_else(String::new, |pattern| {
            let mut name = self.fill(pattern);
            name.push(DELIMITER);
            name
        })
    }
}

/// `NAME.NAMESPACE` of a Kubernetes Service, the host of others.
pub(crate) fn short_name(service: &Service) -> String {
    match service.registry {
        Registry::Kubernetes => format!("{}.{}", service.name.name, service.name.namespace),
        Registry::ServiceEntry => service.hostname.to_string(),
    }
}
