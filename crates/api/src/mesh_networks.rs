//! The networks of a mesh: the key `meshNetworks` of ConfigMap `istio` in the root namespace.
//! <https://istio.io/latest/docs/reference/config/istio.mesh.v1alpha1/#MeshNetworks>
use std::collections::BTreeMap;
use std::net::IpAddr;

use serde::Deserialize;
use serde_json::Value;

use crate::validate::hosts::{check_name, is_dns_label, is_range};

/// Key of ConfigMap [`CONFIG_MAP`](crate::mesh::CONFIG_MAP) that holds them.
pub const NETWORKS_KEY: &str = "meshNetworks";

/// Why networks were refused.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum MeshNetworksError {
    /// Not YAML, or a field has the wrong type.
    #[error("mesh networks do not parse: {0}; fix key `meshNetworks` of ConfigMap istio-system/istio")]
    Parse(String),
    /// What Istio's validation says, network by network.
    #[error("{0}")]
    Invalid(String),
}

/// The networks by name.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct MeshNetworks {
    /// By name.
    pub networks: BTreeMap<String, Network>,
    /// Everything else that was given.
    #[serde(flatten)]
    pub rest: BTreeMap<String, Value>,
}

/// One network.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct Network {
    /// Which endpoints are in it.
    pub endpoints: Vec<NetworkEndpoints>,
    /// How it is reached from others.
    pub gateways: Vec<NetworkGateway>,
    /// Everything else that was given.
    #[serde(flatten)]
    pub rest: BTreeMap<String, Value>,
}

/// Endpoints by one of two properties.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct NetworkEndpoints {
    /// A range of addresses.
    #[serde(alias = "from_cidr")]
    pub from_cidr: Option<String>,
    /// A cluster, by its id.
    #[serde(alias = "from_registry")]
    pub from_registry: Option<String>,
    /// Everything else that was given.
    #[serde(flatten)]
    pub rest: BTreeMap<String, Value>,
}

/// A gateway, by its address or the addresses of a Kubernetes Service.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct NetworkGateway {
    /// Fully qualified host of a Service of the network's cluster.
    #[serde(alias = "registry_service_name")]
    pub registry_service_name: Option<String>,
    /// IP address or DNS name.
    pub address: Option<String>,
    /// Port at which it listens for TLS of the mesh.
    pub port: u32,
    /// Where it is. As in Istio, it has no effect.
    pub locality: String,
    /// Everything else that was given.
    #[serde(flatten)]
    pub rest: BTreeMap<String, Value>,
}

impl MeshNetworks {
    /// Parses the YAML (or JSON) text; empty text is no networks.
    ///
    /// # Errors
    /// When the text is not YAML, a field has the wrong type, or what it says is none of what Istio allows.
    pub fn parse(yaml: &str) -> Result<Self, MeshNetworksError> {
        if yaml.trim().is_empty() {
            return Ok(Self::default());
        }
        let parsed: Option<Self> =
            serde_saphyr::from_str(yaml).map_err(|error| MeshNetworksError::Parse(error.to_string()))?;
        let networks = parsed.unwrap_or_default();
        let mut problems = Vec::new();
        for (name, network) in &networks.networks {
            let found = network.problems().into_iter();
            problems.extend(found.map(|problem| format!("invalid network {name}: {problem}")));
        }
        if problems.is_empty() { Ok(networks) } else { Err(MeshNetworksError::Invalid(problems.join("; "))) }
    }

    /// Fields that were given and do nothing, as paths.
    pub fn without_effect(&self) -> Vec<String> {
        let mut paths: Vec<String> = self.rest.keys().cloned().collect();
        for (name, network) in &self.networks {
            let path = format!("networks.{name}");
            paths.extend(network.rest.keys().map(|key| format!("{path}.{key}")));
            for (index, endpoints) in network.endpoints.iter().enumerate() {
                paths.extend(endpoints.rest.keys().map(|key| format!("{path}.endpoints[{index}].{key}")));
            }
            for (index, gateway) in network.gateways.iter().enumerate() {
                let path = format!("{path}.gateways[{index}]");
                paths.extend((!gateway.locality.is_empty()).then(|| format!("{path}.locality")));
                paths.extend(gateway.rest.keys().map(|key| format!("{path}.{key}")));
            }
        }
        paths
    }
}

impl Network {
    /// What is wrong with it, in Istio's words.
    fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        for endpoints in &self.endpoints {
            match (&endpoints.from_cidr, &endpoints.from_registry) {
                (Some(_), Some(_)) => {
                    problems.push("only one of fromCidr and fromRegistry may be set".to_owned());
                }
                (Some(range), None) => problems.extend(problem_of_range(range)),
                (None, Some(registry)) if !is_dns_label(registry) => {
                    problems.push(format!("invalid registry name: {registry}"));
                }
                (None, _) => {}
            }
        }
        for gateway in &self.gateways {
            match (&gateway.registry_service_name, &gateway.address) {
                (Some(_), Some(_)) => {
                    problems.push("only one of registryServiceName and address may be set".to_owned());
                }
                (Some(service), None) => problems.extend(check_name(service)),
                (None, Some(address)) if address.parse::<IpAddr>().is_err() => {
                    let wrong = check_name(address).is_some();
                    problems
                        .extend(wrong.then(|| format!("{address} is not a valid IP address or DNS name")));
                }
                (None, _) => {}
            }
            if !(1..=65_535).contains(&gateway.port) {
                problems.push(format!("port number {} must be in the range 1..65535", gateway.port));
            }
        }
        problems
    }
}

fn problem_of_range(range: &str) -> Option<String> {
    if range.matches('/').count() == 1 {
        return (!is_range(range)).then(|| format!("{range} is not a valid CIDR block"));
    }
    range.parse::<IpAddr>().is_err().then(|| format!("{range} is not a valid IP"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks_are_read_as_istio_writes_them() {
        let networks = MeshNetworks::parse(
            "networks:
  network1:
    endpoints: [{fromRegistry: Kubernetes}, {from_cidr: 192.168.0.1/24}, {fromCidr: 10.1.2.3}]
    gateways:
    - {registryServiceName: istio-ingressgateway.istio-system.svc.cluster.local, port: 443}
    - {address: 1.1.1.1, port: 15443, locality: us-east-1a}
    - {address: gw.example.com, port: 15443}",
        )
        .expect("parses");
        let network = &networks.networks["network1"];
        assert_eq!(network.endpoints[1].from_cidr.as_deref(), Some("192.168.0.1/24"));
        assert_eq!(network.gateways[1].port, 15443);
        assert_eq!(networks.without_effect(), ["networks.network1.gateways[1].locality"]);
        for nothing in ["", "networks: {}\n", "{}", "# none\n"] {
            assert_eq!(MeshNetworks::parse(nothing), Ok(MeshNetworks::default()), "{nothing:?}");
        }
    }

    #[test]
    fn wrong_networks_are_refused_in_istios_words() {
        let cases = [
            ("endpoints: [{fromCidr: 300.0.0.0/8}]", "300.0.0.0/8 is not a valid CIDR block"),
            ("endpoints: [{fromCidr: 10.0.0.0/33}]", "10.0.0.0/33 is not a valid CIDR block"),
            ("endpoints: [{fromCidr: here}]", "here is not a valid IP"),
            ("endpoints: [{fromRegistry: a_b}]", "invalid registry name: a_b"),
            (
                "endpoints: [{fromRegistry: a, fromCidr: 10.0.0.0/8}]",
                "only one of fromCidr and fromRegistry may be set",
            ),
            (
                "gateways: [{registryServiceName: a_b.c, port: 1}]",
                "domain name \"a_b.c\" invalid (label \"a_b\" invalid)",
            ),
            ("gateways: [{address: 'a b', port: 1}]", "a b is not a valid IP address or DNS name"),
            ("gateways: [{address: 1.1.1.1}]", "port number 0 must be in the range 1..65535"),
            (
                "gateways: [{address: 1.1.1.1, port: 70000}]",
                "port number 70000 must be in the range 1..65535",
            ),
            (
                "gateways: [{address: 1.1.1.1, registryServiceName: a.b, port: 1}]",
                "only one of registryServiceName and address may be set",
            ),
        ];
        for (yaml, problem) in cases {
            let error = MeshNetworks::parse(&format!("networks: {{n1: {{{yaml}}}}}")).expect_err(yaml);
            assert_eq!(error.to_string(), format!("invalid network n1: {problem}"), "{yaml}");
        }
        for yaml in ["networks: [a]", "networks: {a: {gateways: [{port: x}]}}", "x"] {
            assert!(matches!(MeshNetworks::parse(yaml), Err(MeshNetworksError::Parse(_))), "{yaml}");
        }
    }
}
