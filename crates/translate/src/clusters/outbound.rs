//! Clusters of the mesh's services, as a proxy reaches them.
use std::sync::Arc;
use std::time::Duration;

use lateen_api::networking::destination_rule::{ClientTlsMode, ClientTlsSettings, OutlierDetection};
use lateen_api::networking::load_balancing::SimpleLb;
use lateen_model::{
    DestinationRule, Endpoint, ObjectName, PeerPolicies, Protocol, Resolution, Service, ServiceEndpoints,
    ServicePort, TargetPort,
};
use lateen_xds::pb::envoy::config::cluster::v3 as cluster;
use lateen_xds::pb::envoy::config::cluster::v3::cluster::common_lb_config::{
    LocalityConfigSpecifier, LocalityWeightedLbConfig,
};
use lateen_xds::pb::envoy::config::cluster::v3::cluster::{
    ClusterDiscoveryType, CustomClusterType, DiscoveryType, EdsClusterConfig, LbConfig, LbPolicy,
    OriginalDstLbConfig, TransportSocketMatch,
};
use lateen_xds::pb::envoy::extensions::clusters::common::dns::v3::DnsLookupFamily;
use lateen_xds::pb::envoy::extensions::clusters::dns::v3::DnsCluster;
use lateen_xds::pb::google::protobuf as wkt;

use super::{
    UpstreamProtocol, base, services, set_http_options, upgrades_to_http2, upstream_protocol, with_metadata,
};
use crate::client_tls;
use crate::dynamic_dns;
use crate::endpoints;
use crate::filters::TcpOptions;
use crate::locality::{self, Spread};
use crate::mutual_tls::{self, ISTIO, MutualTls, TLS_MODE};
use crate::names::{outbound_cluster, server_name};
use crate::networks::{self, Member, Reach};
use crate::ordered::Value;
use crate::proxy::ProxyKind;
use crate::resource::Resource;
use crate::scope::Scope;
use crate::secrets;
use crate::settings::ConnectionDefaults;
use crate::stat_names::{Filling, SUBSET};
use crate::tls_defaults::TlsDefaults;
use crate::traffic_policy::{self, EffectivePolicy};
use crate::wire;

/// Spread of look-ups of many proxies for one name (Istio's `PILOT_DNS_JITTER_DURATION`).
const DNS_JITTER: Duration = Duration::from_millis(100);

/// Everything an outbound cluster depends on.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct OutboundClusterInputs {
    connections: ConnectionDefaults,
    hostname: Arc<str>,
    service: ObjectName,
    port: u16,
    protocol: Protocol,
    source: EndpointSource,
    /// Whether the rule's credentials are for this proxy.
    secrets: bool,
    /// Whether it is for TLS that a gateway passes on by the cluster's name: to endpoints with TLS of the mesh, and without TLS of its own.
    passed_on: bool,
    /// The name in statistics but for the subset's in it; none: its own.
    stat_name: Option<Arc<str>>,
    /// Names the ServiceEntry gives its servers, where a rule has TLS spoken to them.
    subject_alt_names: Vec<String>,
    /// The rule for the host, with the index of the subset.
    rule: Option<Arc<DestinationRule>>,
    subset: Option<usize>,
    /// Whether the mesh's own locality setting would have localities share the load, without and with ejection.
    mesh_weighted: [bool; 2],
    /// Parameters of TLS that is not the mesh's.
    tls_defaults: TlsDefaults,
    /// Mutual TLS of the mesh.
    mutual_tls: MutualTls,
    /// Whether it is used wherever an endpoint takes it, unless a rule says otherwise.
    auto_mutual_tls: bool,
    /// Whether its callers choose the endpoint, and whichever they may choose takes it.
    chosen_take_it: bool,
    /// Who its endpoints may be.
    identities: Vec<String>,
}

/// Where the endpoints of a cluster come from.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum EndpointSource {
    /// Over EDS.
    Eds,
    /// Connections keep the address their caller chose, with another port if the ServiceEntry says so. (Gateways' callers
    /// choose none.)
    OriginalDst(Option<u16>),
    /// The proxy looks names up.
    Dns {
        /// One address at a time.
        logical: bool,
        /// Whether addresses of both families are of use.
        dual_stack: bool,
        refresh_rate: Duration,
        port_name: String,
        endpoints: Option<Arc<ServiceEndpoints>>,
        /// By where they are; none: all alike.
        spread: Option<Spread>,
        /// What its workloads accept.
        policies: Box<PeerPolicies>,
        /// Those that are not reached as they are.
        reach: Option<Box<Reach>>,
    },
    /// The hosts that requests name.
    Named { refresh_rate: Duration },
}

/// The inputs of all clusters of one service, for each port: the whole, then the subsets of the rule in force.
pub(crate) fn outbound_inputs(scope: &Scope, service: &Service) -> Vec<OutboundClusterInputs> {
    let rule = scope.destination_rule(service);
    let mut inputs = Vec::new();
    for port in service.mesh_ports() {
        let Some(source) = source(scope, service, port) else { continue };
        let whole = outbound_input(scope, service, port, rule.clone(), source);
        let subsets = rule.as_ref().map_or(0, |rule| rule.spec.subsets.len());
        let all = (0..subsets).map(Some).chain([None]);
        inputs.extend(all.map(|subset| {
            let one = OutboundClusterInputs { subset, ..whole.clone() };
            let chosen_take_it =
                one.goes_to_original_dst() && mutual_tls::all_take_it(scope, service, &port.name);
            OutboundClusterInputs { chosen_take_it, ..one }
        }));
    }
    // As in Istio, names nobody gave make no cluster.
    inputs.retain(|inputs| !inputs.looks_nothing_up());
    for inputs in &mut inputs {
        let by_place = inputs.spread(scope);
        if let EndpointSource::Dns { spread, .. } = &mut inputs.source {
            *spread = by_place;
        }
    }
    inputs
}

/// The clusters of a service for TLS that a gateway passes on by their names (AUTO_PASSTHROUGH).
pub(crate) fn passed_on_inputs(scope: &Scope, service: &Service) -> Vec<OutboundClusterInputs> {
    if service.external || dynamic_dns::is_dynamic(service) {
        return Vec::new();
    }
    let inputs = outbound_inputs(scope, service).into_iter();
    inputs.map(|inputs| OutboundClusterInputs { passed_on: true, stat_name: None, ..inputs }).collect()
}

/// Where the endpoints behind a port come from; none when the port cannot be reached.
fn source(scope: &Scope, service: &Service, port: &ServicePort) -> Option<EndpointSource> {
    match &service.resolution {
        Resolution::Alias(_) => None,
        Resolution::DynamicDns => dynamic_dns::is_served(port)
            .then(|| EndpointSource::Named { refresh_rate: scope.settings.dns_refresh_rate }),
        Resolution::ClientSide => Some(EndpointSource::Eds),
        Resolution::Passthrough if scope.class.kind == ProxyKind::Router => Some(EndpointSource::Eds),
        Resolution::Passthrough => {
            let other = match port.target {
                TargetPort::Number(target) if !service.is_headless() && target != port.port => Some(target),
                _ => None,
            };
            Some(EndpointSource::OriginalDst(other))
        }
        resolution @ (Resolution::Dns | Resolution::DnsRoundRobin) => Some(EndpointSource::Dns {
            logical: *resolution == Resolution::DnsRoundRobin,
            dual_stack: scope.settings.dual_stack,
            refresh_rate: scope.settings.dns_refresh_rate,
            port_name: port.name.clone(),
            endpoints: scope.world.endpoints(service).cloned(),
            spread: None,
            policies: Box::new(scope.world.peer_policies(&service.name.namespace)),
            reach: networks::reach(scope, service).map(Box::new),
        }),
    }
}

fn outbound_input(
    scope: &Scope,
    service: &Service,
    port: &ServicePort,
    rule: Option<Arc<DestinationRule>>,
    source: EndpointSource,
) -> OutboundClusterInputs {
    OutboundClusterInputs {
        connections: scope.settings.connections,
        hostname: service.hostname.clone(),
        service: service.name.clone(),
        port: port.port,
        protocol: port.protocol,
        source,
        // Only where it matters, so that gateways share the other clusters with sidecars.
        passed_on: false,
        stat_name: scope
            .settings
            .stat_names
            .outbound
            .as_ref()
            .map(|pattern| Filling::outbound(service, port, SUBSET).fill(pattern).into()),
        subject_alt_names: if rule.is_some() { service.subject_alt_names.clone() } else { Vec::new() },
        secrets: rule.as_deref().is_some_and(|rule| secrets::are_wanted(scope.class.kind, rule)),
        rule,
        subset: None,
        mesh_weighted: mesh_weighted(scope),
        tls_defaults: scope.settings.tls_defaults.clone(),
        mutual_tls: scope.settings.mutual_tls.clone(),
        auto_mutual_tls: scope.settings.mutual_tls.auto && !service.external,
        chosen_take_it: false,
        identities: mutual_tls::identities(scope, service),
    }
}

fn mesh_weighted(scope: &Scope) -> [bool; 2] {
    let outlier = OutlierDetection::default();
    let setting =
        locality::setting(EffectivePolicy::default(), scope.world.mesh().locality_lb_setting.as_ref());
    [None, Some(&outlier)].map(|outlier| {
        locality::is_weighted(EffectivePolicy { outlier, ..EffectivePolicy::default() }, setting)
    })
}

impl OutboundClusterInputs {
    /// How the load is spread over localities.
    pub(crate) fn spread(&self, scope: &Scope) -> Option<Spread> {
        let policy = self.policy();
        let setting = locality::setting(policy, scope.world.mesh().locality_lb_setting.as_ref())?;
        Spread::new(setting, &scope.class, policy.outlier.is_some())
    }

    /// Whether localities share the load by their weights.
    fn is_locality_weighted(&self) -> bool {
        let policy = self.policy();
        let own = policy.balancer.is_some_and(|balancer| balancer.locality_lb_setting.is_some());
        if own {
            locality::is_weighted(policy, locality::setting(policy, None))
        } else {
            self.mesh_weighted[usize::from(policy.outlier.is_some())]
        }
    }

    /// Name of the subset; empty for the whole.
    pub(crate) fn subset_name(&self) -> &str {
        self.subset_of_rule().map_or("", |subset| &subset.name)
    }

    /// Labels an endpoint needs.
    pub(crate) fn subset_of_rule(&self) -> Option<&lateen_api::networking::destination_rule::Subset> {
        self.rule.as_ref()?.spec.subsets.get(self.subset?)
    }

    /// Port of the service.
    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    pub(crate) fn name(&self) -> String {
        let name = if self.passed_on { server_name } else { outbound_cluster };
        name(&self.hostname, self.port, self.subset_name())
    }

    /// See [`passed_on_inputs`].
    pub(crate) fn is_passed_on(&self) -> bool {
        self.passed_on
    }

    /// Whether callers offer the mesh's protocols in their TLS: not those that speak as their own callers do.
    pub(crate) fn offers_mesh_protocols(&self) -> bool {
        let policy = self.policy();
        let upgrade = upgrades_to_http2(self.protocol, self.connections, policy);
        upstream_protocol(self.protocol, upgrade, policy) != UpstreamProtocol::AsDownstream
    }

    /// The name in statistics; empty: its own.
    fn alt_stat_name(&self) -> String {
        let delimited = |name: &Arc<str>| format!("{};", name.replace(SUBSET, self.subset_name()));
        self.stat_name.as_ref().map_or_else(String::new, delimited)
    }

    fn policy(&self) -> EffectivePolicy<'_> {
        let general = self.rule.as_ref().and_then(|rule| rule.spec.traffic_policy.as_ref());
        let special = self.subset_of_rule().and_then(|subset| subset.traffic_policy.as_ref());
        EffectivePolicy::new(general, special, self.port)
    }

    /// What the rule asks of TCP proxies to the cluster.
    pub(crate) fn tcp_options(&self) -> TcpOptions {
        TcpOptions::new(self.policy())
    }

    /// The secret that TLS to the cluster needs.
    pub(crate) fn credential(&self) -> Option<&str> {
        if !self.secrets {
            return None;
        }
        let tls = self.policy().tls.filter(|tls| client_tls::is_spoken(tls))?;
        Some(tls.credential_name.as_str()).filter(|name| !name.is_empty())
    }

    /// Whether connections go where their caller meant them to, so that there are no endpoints to know.
    fn goes_to_original_dst(&self) -> bool {
        let policy = self.policy();
        let hashes = policy.balancer.is_some_and(|balancer| balancer.consistent_hash.is_some());
        matches!(self.source, EndpointSource::OriginalDst(_))
            || (!hashes && policy.algorithm() == SimpleLb::Passthrough)
    }

    /// Whether its endpoints come over EDS.
    pub(crate) fn uses_eds(&self) -> bool {
        self.source == EndpointSource::Eds && !self.goes_to_original_dst()
    }

    /// Whether the host is the one that the request names.
    fn is_named(&self) -> bool {
        matches!(self.source, EndpointSource::Named { .. })
    }

    fn looks_nothing_up(&self) -> bool {
        matches!(self.source, EndpointSource::Dns { .. })
            && !self.goes_to_original_dst()
            && self.names_to_look_up().is_empty()
    }

    /// The endpoints of the subset, of a service whose endpoints are looked up.
    fn names_to_look_up(&self) -> Vec<&Endpoint> {
        let EndpointSource::Dns { port_name, endpoints, .. } = &self.source else {
            return Vec::new();
        };
        let of_port = endpoints.as_ref().map(|endpoints| endpoints.of_port(port_name)).unwrap_or_default();
        let labels = self.subset_of_rule().map(|subset| &subset.labels);
        let selected = |endpoint: &&Endpoint| labels.is_none_or(|labels| endpoint.has_labels(labels));
        of_port.iter().filter(selected).collect()
    }

    /// What the proxy looks up: those names, or gateways before them.
    fn looked_up(&self) -> Vec<Member<'_>> {
        let EndpointSource::Dns { logical, policies, reach, .. } = &self.source else { return Vec::new() };
        let takes = |endpoint: &Endpoint| endpoints::takes_mutual_tls(endpoint, policies);
        let spoken = |endpoint: &Endpoint| self.mutual_tls_by_rule().unwrap_or_else(|| takes(endpoint));
        let mut members = networks::members(reach.as_deref(), self.names_to_look_up(), takes, spoken);
        members.truncate(if *logical { 1 } else { usize::MAX });
        members
    }

    /// Whether a rule has the mesh's TLS spoken to all endpoints, or other TLS or none to all of them.
    pub(crate) fn mutual_tls_by_rule(&self) -> Option<bool> {
        self.policy().tls.map(|tls| tls.mode == ClientTlsMode::IstioMutual)
    }
}

/// A cluster of a service.
pub(crate) fn outbound(inputs: &OutboundClusterInputs) -> Resource {
    let name = inputs.name();
    let policy = inputs.policy();
    let mut message = cluster::Cluster {
        circuit_breakers: Some(traffic_policy::circuit_breakers(policy)),
        alt_stat_name: inputs.alt_stat_name(),
        ..base(&name, inputs.connections, policy)
    };
    let mut looked_up = None;
    if inputs.goes_to_original_dst() {
        message.cluster_discovery_type = Some(ClusterDiscoveryType::Type(DiscoveryType::OriginalDst as i32));
        message.lb_policy = LbPolicy::ClusterProvided as i32;
        if let EndpointSource::OriginalDst(Some(port)) = inputs.source {
            message.lb_config = Some(LbConfig::OriginalDstLbConfig(OriginalDstLbConfig {
                upstream_port_override: wire::uint32(u32::from(port)),
                ..Default::default()
            }));
        }
    } else {
        match &inputs.source {
            EndpointSource::Dns { logical, dual_stack, refresh_rate, spread, .. } => {
                let family = if *dual_stack { DnsLookupFamily::All } else { DnsLookupFamily::V4Only };
                let dns = DnsCluster {
                    dns_refresh_rate: Some(wire::duration(*refresh_rate)),
                    dns_jitter: Some(wire::duration(DNS_JITTER)),
                    respect_dns_ttl: true,
                    dns_lookup_family: family as i32,
                    all_addresses_in_single_endpoint: *logical,
                    ..Default::default()
                };
                message.cluster_discovery_type = Some(ClusterDiscoveryType::ClusterType(CustomClusterType {
                    name: if *logical { "LOGICAL_DNS" } else { "STRICT_DNS" }.to_owned(),
                    typed_config: Some(wire::any(&dns)),
                }));
                let members = inputs.looked_up();
                looked_up = Some(endpoints::assignment(&name, spread.as_ref(), *dual_stack, &members));
            }
            EndpointSource::Named { .. } => message.lb_policy = LbPolicy::ClusterProvided as i32,
            EndpointSource::Eds | EndpointSource::OriginalDst(_) => {
                message.cluster_discovery_type = Some(ClusterDiscoveryType::Type(DiscoveryType::Eds as i32));
                message.eds_cluster_config =
                    Some(EdsClusterConfig { eds_config: Some(wire::ads()), service_name: name.clone() });
            }
        }
        if !inputs.is_named() {
            traffic_policy::set_balancer(&mut message, policy);
        }
    }
    if let Some(outlier) = policy.outlier {
        message.outlier_detection = Some(traffic_policy::outlier_detection(outlier));
        message.common_lb_config = Some(traffic_policy::panic_threshold(outlier));
    }
    if !inputs.goes_to_original_dst() && !inputs.is_named() && inputs.is_locality_weighted() {
        let weighted = LocalityConfigSpecifier::LocalityWeightedLbConfig(LocalityWeightedLbConfig {});
        message.common_lb_config.get_or_insert_default().locality_config_specifier = Some(weighted);
    }
    let upgrade = upgrades_to_http2(inputs.protocol, inputs.connections, policy);
    let protocol = upstream_protocol(inputs.protocol, upgrade, policy);
    let spoken = |tls: &&ClientTlsSettings| !inputs.passed_on && client_tls::is_spoken(tls);
    let tls = policy.tls.filter(spoken).map(|tls| {
        // The rule's names override those of the ServiceEntry.
        let mut tls = tls.clone();
        if tls.subject_alt_names.is_empty() {
            tls.subject_alt_names.clone_from(&inputs.subject_alt_names);
        }
        tls
    });
    set_http_options(&mut message, protocol, EffectivePolicy { tls: tls.as_ref(), ..policy });
    set_transport(&mut message, inputs, protocol, tls.as_ref());
    if let (EndpointSource::Named { refresh_rate }, false) = (&inputs.source, inputs.goes_to_original_dst()) {
        let names = tls.as_ref().and_then(client_tls::names);
        let verified = names.is_some_and(|names| names.auto_sni && names.auto_san_validation);
        let kind = dynamic_dns::cluster_type(*refresh_rate, !verified);
        message.cluster_discovery_type = Some(ClusterDiscoveryType::ClusterType(kind));
    }
    let mut metadata = vec![
        ("default_original_port", Value::number(inputs.port)),
        ("services", services(&inputs.hostname, &inputs.service)),
    ];
    if let Some(rule) = &inputs.rule {
        metadata.push(("config", Value::text(rule.config_path())));
    }
    if inputs.subset.is_some() {
        metadata.push(("subset", Value::text(inputs.subset_name())));
    }
    with_metadata(name, &message, metadata, looked_up)
}

/// How connections are secured: as the rule says, else with mutual TLS to the endpoints that take it.
fn set_transport(
    message: &mut cluster::Cluster,
    inputs: &OutboundClusterInputs,
    protocol: UpstreamProtocol,
    spoken: Option<&ClientTlsSettings>,
) {
    let http2 = protocol == UpstreamProtocol::Http2;
    if let Some(tls) = spoken {
        message.transport_socket =
            Some(client_tls::transport_socket(tls, inputs.tls_defaults.client(), http2, inputs.secrets));
        return;
    }
    // What is passed on is TLS already.
    if inputs.passed_on {
        return;
    }
    let settings = inputs.policy().tls;
    let given = settings.filter(|tls| tls.mode == ClientTlsMode::IstioMutual);
    if given.is_none()
        && (settings.is_some()
            || !inputs.auto_mutual_tls
            || (inputs.goes_to_original_dst() && !inputs.chosen_take_it)
            || inputs.is_named())
    {
        return;
    }
    let identities = match given {
        Some(given) if !given.subject_alt_names.is_empty() => &given.subject_alt_names,
        _ => &inputs.identities,
    };
    let name = match given {
        Some(given) if !given.sni.is_empty() => given.sni.clone(),
        _ => server_name(&inputs.hostname, inputs.port, inputs.subset_name()),
    };
    let offered = mutual_tls::offered(inputs.protocol, http2, protocol == UpstreamProtocol::AsDownstream);
    let mutual = inputs.mutual_tls.client(identities, &name, offered);
    // Connections to an address that the caller chose have no endpoint that could say what it takes: all of them do, or none counts.
    if given.is_some() || inputs.goes_to_original_dst() {
        message.transport_socket = Some(mutual);
        return;
    }
    let of_mode = wkt::Struct { fields: [(TLS_MODE.to_owned(), wire::text(ISTIO))].into() };
    let choice = |name: &str, r#match, socket| TransportSocketMatch {
        name: name.to_owned(),
        r#match: Some(r#match),
        transport_socket: Some(socket),
    };
    message.transport_socket_matches = vec![
        choice("tlsMode-istio", of_mode, mutual),
        choice("tlsMode-disabled", wkt::Struct::default(), wire::raw_buffer()),
    ];
}
