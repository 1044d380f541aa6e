//! Mutual TLS with the mesh's own certificates, which proxies have of their agents.
//!
//! A stock Envoy lacks Istio's filter that offers `istio-http/1.1` and the like by request, so mesh traffic to ports of undeclared
//! protocol is known by its server name (`outbound_.PORT_.SUBSET_.HOST`) and offers what Envoy offers by itself: `http/1.1` or `h2`
//! for HTTP, nothing for bytes. Elsewhere Istio's protocol names are offered, and everywhere they are accepted.
use std::collections::BTreeSet;
use std::time::Duration;

use lateen_api::MeshConfig;
use lateen_api::networking::TlsProtocol;
use lateen_model::{Address, Protocol, Service};
use lateen_xds::pb::envoy::config::core::v3 as core;
use lateen_xds::pb::envoy::extensions::transport_sockets::tls::v3 as tls;
use lateen_xds::pb::envoy::r#type::matcher::v3::{StringMatcher, string_matcher::MatchPattern};
use tls::common_tls_context::{CombinedCertificateValidationContext, ValidationContextType};
use tls::subject_alt_name_matcher::SanType;
use tls::tls_parameters::TlsProtocol as Version;

use crate::client_tls;
use crate::endpoints::takes_mutual_tls;
use crate::scope::Scope;
use crate::tls_defaults;
use crate::wire;

/// Label and metadata by which an endpoint says that it takes mutual TLS.
pub(crate) const TLS_MODE: &str = "tlsMode";
pub(crate) const TLS_MODE_LABEL: &str = "security.istio.io/tlsMode";
pub(crate) const ISTIO: &str = "istio";

/// What HTTP clients of the mesh offer.
pub(crate) const HTTP_PROTOCOLS: [&str; 3] = ["istio-http/1.0", "istio-http/1.1", "istio-h2"];
/// What other clients of the mesh offer, and HTTP clients besides.
pub(crate) const TCP_PROTOCOLS: [&str; 2] = ["istio-peer-exchange", "istio"];
/// What servers choose from, and what HTTP clients offer by themselves.
pub(crate) const PLAIN_HTTP_PROTOCOLS: [&str; 2] = ["h2", "http/1.1"];

/// Istio's suites for servers; those without forward secrecy are left out.
const CIPHER_SUITES: [&str; 4] = [
    "ECDHE-ECDSA-AES256-GCM-SHA384",
    "ECDHE-RSA-AES256-GCM-SHA384",
    "ECDHE-ECDSA-AES128-GCM-SHA256",
    "ECDHE-RSA-AES128-GCM-SHA256",
];
/// Both ends are ours, so that the exchange can be one that a quantum computer does not break.
const CURVES: [&str; 3] = ["X25519MLKEM768", "X25519", "P-256"];

/// The cluster by which a proxy has its own certificate; see `lateen_agent::identity`.
const AGENT: &str = "sds-grpc";
const CERTIFICATE: &str = "default";
const ROOTS: &str = "ROOTCA";

/// What of mesh config it depends on.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct MutualTls {
    /// The mesh's own, then its aliases.
    trust_domains: Vec<String>,
    /// Not even TLS 1.2.
    only_tls13: bool,
    /// Of servers, as in Istio.
    cipher_suites: Vec<String>,
    curves: Vec<String>,
    /// Clients use it wherever an endpoint takes it.
    pub(crate) auto: bool,
}

impl MutualTls {
    pub(crate) fn new(mesh: &MeshConfig) -> Self {
        let mut trust_domains = vec![mesh.trust_domain.clone()];
        for alias in &mesh.trust_domain_aliases {
            if !trust_domains.contains(alias) {
                trust_domains.push(alias.clone());
            }
        }
        let given = mesh.mesh_mtls.as_ref();
        let curves = given.map(|given| given.ecdh_curves.clone()).unwrap_or_default();
        let suites = given.map(|given| tls_defaults::served(&given.cipher_suites)).unwrap_or_default();
        Self {
            cipher_suites: if suites.is_empty() { CIPHER_SUITES.map(str::to_owned).to_vec() } else { suites },
            trust_domains,
            only_tls13: given.is_some_and(|given| given.min_protocol_version == TlsProtocol::TLSV1_3),
            curves: if curves.is_empty() { CURVES.map(str::to_owned).to_vec() } else { curves },
            auto: mesh.enable_auto_mtls != Some(false),
        }
    }

    fn params(&self, cipher_suites: &[String]) -> tls::TlsParameters {
        tls::TlsParameters {
            tls_minimum_protocol_version: if self.only_tls13 { Version::TlSv13 } else { Version::TlSv12 }
                as i32,
            tls_maximum_protocol_version: Version::TlSv13 as i32,
            cipher_suites: cipher_suites.to_vec(),
            ecdh_curves: self.curves.clone(),
            ..Default::default()
        }
    }

    fn common(
        &self,
        alpn: &[&str],
        cipher_suites: &[String],
        names: Vec<tls::SubjectAltNameMatcher>,
    ) -> tls::CommonTlsContext {
        let context =
            tls::CertificateValidationContext { match_typed_subject_alt_names: names, ..Default::default() };
        tls::CommonTlsContext {
            tls_params: Some(self.params(cipher_suites)),
            alpn_protocols: alpn.iter().map(|&name| name.to_owned()).collect(),
            tls_certificate_sds_secret_configs: vec![of_agent(CERTIFICATE)],
            validation_context_type: Some(ValidationContextType::CombinedValidationContext(
                CombinedCertificateValidationContext {
                    default_validation_context: Some(context),
                    validation_context_sds_secret_config: Some(of_agent(ROOTS)),
                    ..Default::default()
                },
            )),
            ..Default::default()
        }
    }

    /// The transport of a chain for callers of the mesh: any workload of its trust domains.
    pub(crate) fn server(&self) -> core::TransportSocket {
        let of_domain = |domain: &String| name(MatchPattern::Prefix(format!("spiffe://{domain}/")));
        let names = self.trust_domains.iter().map(of_domain).collect();
        let context = tls::DownstreamTlsContext {
            common_tls_context: Some(self.common(&PLAIN_HTTP_PROTOCOLS, &self.cipher_suites, names)),
            require_client_certificate: wire::boolean(true),
            ..Default::default()
        };
        client_tls::socket(wire::any(&context))
    }

    /// The transport to endpoints that must be one of `identities`; without any, a workload of the mesh.
    pub(crate) fn client(&self, identities: &[String], sni: &str, alpn: &[&str]) -> core::TransportSocket {
        let names = identities.iter().map(|id| name(MatchPattern::Exact(id.clone()))).collect();
        let context = tls::UpstreamTlsContext {
            common_tls_context: Some(self.common(alpn, &[], names)),
            sni: sni.to_owned(),
            ..Default::default()
        };
        client_tls::socket(wire::any(&context))
    }
}

fn name(pattern: MatchPattern) -> tls::SubjectAltNameMatcher {
    tls::SubjectAltNameMatcher {
        san_type: SanType::Uri as i32,
        matcher: Some(StringMatcher { match_pattern: Some(pattern), ..Default::default() }),
        ..Default::default()
    }
}

/// A secret of the agent, waited for without a limit, as Istio has it.
fn of_agent(name: &str) -> tls::SdsSecretConfig {
    use core::api_config_source::ApiType;
    use core::grpc_service::{EnvoyGrpc, TargetSpecifier};
    let agent = core::GrpcService {
        target_specifier: Some(TargetSpecifier::EnvoyGrpc(EnvoyGrpc {
            cluster_name: AGENT.to_owned(),
            ..Default::default()
        })),
        ..Default::default()
    };
    let stream = core::ApiConfigSource {
        api_type: ApiType::Grpc as i32,
        transport_api_version: core::ApiVersion::V3 as i32,
        set_node_on_first_message_only: true,
        grpc_services: vec![agent],
        ..Default::default()
    };
    let source = core::ConfigSource {
        config_source_specifier: Some(core::config_source::ConfigSourceSpecifier::ApiConfigSource(stream)),
        initial_fetch_timeout: Some(wire::duration(Duration::ZERO)),
        resource_api_version: core::ApiVersion::V3 as i32,
        ..Default::default()
    };
    tls::SdsSecretConfig { name: name.to_owned(), sds_config: Some(source) }
}

/// What matches the names that clients of the mesh ask for when they mean one of these hosts. (An application's own TLS asks for the
/// host itself, which it does not match.)
pub(crate) fn server_name_patterns<'a>(hosts: impl Iterator<Item = &'a str>) -> Vec<String> {
    let patterns = hosts.map(|host| match host.strip_prefix("*.") {
        Some(_) => host.to_owned(),
        None => format!("*.{host}"),
    });
    patterns.collect::<BTreeSet<_>>().into_iter().collect()
}

/// What a cluster offers, by the protocol its port declares.
pub(crate) fn offered(protocol: Protocol, http2: bool, as_client: bool) -> &'static [&'static str] {
    if http2 {
        &["istio-h2", "istio", "h2"]
    } else if as_client {
        &[]
    } else if protocol.is_http() {
        &["istio-http/1.1", "istio", "http/1.1"]
    } else {
        &["istio"]
    }
}

/// Whether a port of a service has endpoints, and each of them takes mutual TLS: then it is spoken to addresses that callers choose
/// (headless services, DestinationRules with PASSTHROUGH), as in Istio.
pub(crate) fn all_take_it(scope: &Scope, service: &Service, port_name: &str) -> bool {
    let policies = scope.world.peer_policies(&service.name.namespace);
    let endpoints = scope.world.endpoints(service);
    let endpoints = endpoints.map(|endpoints| endpoints.of_port(port_name)).unwrap_or_default();
    !endpoints.is_empty() && endpoints.iter().all(|endpoint| takes_mutual_tls(endpoint, &policies))
}

/// The identities of a service's endpoints, in every trust domain of the mesh, and those its ServiceEntry names.
pub(crate) fn identities(scope: &Scope, service: &Service) -> Vec<String> {
    let Some(endpoints) = scope.world.endpoints(service) else {
        return service.subject_alt_names.clone();
    };
    let mut accounts: BTreeSet<(&str, &str)> = BTreeSet::new();
    for endpoint in endpoints.by_port.values().flatten() {
        if !endpoint.service_account.is_empty() && !matches!(endpoint.address, Address::Unix(_)) {
            let namespace = endpoint.namespace().unwrap_or(&service.name.namespace);
            accounts.insert((namespace, &endpoint.service_account));
        }
    }
    let mut identities: BTreeSet<String> = service.subject_alt_names.iter().cloned().collect();
    for domain in &scope.settings.mutual_tls.trust_domains {
        let of_domain = accounts
            .iter()
            .map(|(namespace, account)| format!("spiffe://{domain}/ns/{namespace}/sa/{account}"));
        identities.extend(of_domain);
    }
    identities.into_iter().collect()
}
