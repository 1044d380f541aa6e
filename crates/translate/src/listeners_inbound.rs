//! The inbound listener of sidecars.
use std::sync::Arc;

use lateen_model::{Hostname, Protocol};
use lateen_xds::pb::envoy::config::core::v3 as core;
use lateen_xds::pb::envoy::config::listener::v3 as listener;
use lateen_xds::pb::envoy::config::route::v3 as route;
use lateen_xds::pb::envoy::r#type::v3::Int32Range;
use lateen_xds::pb::google::protobuf::Duration;

use crate::access_log;
use crate::filters::{self, HTTP_PROTOCOLS, HttpRole, Routes};
use crate::names::{BLACK_HOLE, INBOUND_PASSTHROUGH, inbound_cluster};
use crate::proxy::InboundPort;
use crate::resource::{Resource, encode};
use crate::settings::Settings;
use crate::sidecar::Inbound;
use crate::wire;

/// The port captured inbound connections arrive at.
pub(crate) const INBOUND_PORT: u16 = 15006;

/// Everything `virtualInbound` depends on.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct InboundInputs {
    settings: Arc<Settings>,
    ports: Vec<InboundPort>,
}

pub(crate) fn inputs(settings: &Arc<Settings>, ports: &[Inbound]) -> InboundInputs {
    InboundInputs {
        settings: settings.clone(),
        ports: ports.iter().map(|inbound| inbound.port.clone()).collect(),
    }
}

/// `virtualInbound`: where connections to the pod arrive; a filter chain per declared port, the rest passes through.
///
/// Differs from Istio for ports no service declares: Istio looks for HTTP on them too, which makes protocols whose server
/// speaks first hang; here they are bytes.
pub(crate) fn virtual_inbound(inputs: &InboundInputs) -> Resource {
    let InboundInputs { settings, ports } = inputs;
    let mut chains = vec![listener::FilterChain {
        name: "virtualInbound-blackhole".to_owned(),
        filter_chain_match: Some(port_match(INBOUND_PORT)),
        filters: vec![filters::tcp(settings, BLACK_HOLE)],
        ..Default::default()
    }];
    chains.extend(ports.iter().flat_map(|port| port_chains(settings, port)));
    chains.push(listener::FilterChain {
        name: "virtualInbound".to_owned(),
        filters: vec![filters::tcp(settings, INBOUND_PASSTHROUGH)],
        ..Default::default()
    });
    let mut listener_filters = vec![filters::original_dst()];
    let detected: Vec<u16> =
        ports.iter().filter(|port| port.protocol.is_sniffed()).map(|port| port.port).collect();
    if !detected.is_empty() {
        listener_filters.push(listener::ListenerFilter {
            filter_disabled: Some(all_ports_but(&detected)),
            ..filters::http_inspector()
        });
    }
    let message = listener::Listener {
        name: "virtualInbound".to_owned(),
        address: Some(wire::address("0.0.0.0", INBOUND_PORT)),
        filter_chains: chains,
        listener_filters,
        listener_filters_timeout: Some(wire::duration(settings.detection_timeout)),
        continue_on_listener_filters_timeout: true,
        traffic_direction: core::TrafficDirection::Inbound as i32,
        access_log: access_log::listener_log(settings),
        ..Default::default()
    };
    encode("virtualInbound", &message)
}

fn port_chains(settings: &Settings, port: &InboundPort) -> Vec<listener::FilterChain> {
    let cluster = inbound_cluster(port.port);
    let name = format!("0.0.0.0_{}", port.port);
    let http_match = listener::FilterChainMatch {
        application_protocols: match port.protocol {
            Protocol::Unsupported => HTTP_PROTOCOLS.map(str::to_owned).to_vec(),
            _ => Vec::new(),
        },
        ..port_match(port.port)
    };
    let http = || listener::FilterChain {
        name: name.clone(),
        filter_chain_match: Some(http_match),
        filters: vec![filters::http(
            settings,
            HttpRole::Inbound,
            &format!("inbound_{name};"),
            Routes::Inline(Box::new(route_config(&cluster, &port.hostname, port.service_port))),
        )],
        ..Default::default()
    };
    let tcp = || listener::FilterChain {
        name: name.clone(),
        filter_chain_match: Some(port_match(port.port)),
        filters: vec![filters::tcp(settings, &cluster)],
        ..Default::default()
    };
    if port.protocol.is_http() {
        vec![http()]
    } else if port.protocol.is_sniffed() {
        vec![http(), tcp()]
    } else {
        vec![tcp()]
    }
}

/// All requests to the application. No timeout and no retries: those are the caller's.
fn route_config(cluster: &str, hostname: &Hostname, service_port: u16) -> route::RouteConfiguration {
    let action = route::RouteAction {
        cluster_specifier: Some(route::route_action::ClusterSpecifier::Cluster(cluster.to_owned())),
        timeout: Some(Duration::default()),
        max_stream_duration: Some(crate::route_rules::no_grpc_timeout()),
        ..Default::default()
    };
    let everything = route::Route {
        name: "default".to_owned(),
        r#match: Some(crate::route_rules::match_everything()),
        decorator: Some(route::Decorator {
            operation: format!("{hostname}:{service_port}/*"),
            ..Default::default()
        }),
        action: Some(route::route::Action::Route(action)),
        ..Default::default()
    };
    route::RouteConfiguration {
        name: cluster.to_owned(),
        virtual_hosts: vec![route::VirtualHost {
            name: format!("inbound|http|{service_port}"),
            domains: vec!["*".to_owned()],
            routes: vec![everything],
            ..Default::default()
        }],
        validate_clusters: wire::boolean(false),
        ..Default::default()
    }
}

fn port_match(port: u16) -> listener::FilterChainMatch {
    listener::FilterChainMatch { destination_port: wire::uint32(u32::from(port)), ..Default::default() }
}

/// A predicate that holds for connections to any port but these.
fn all_ports_but(ports: &[u16]) -> listener::ListenerFilterChainMatchPredicate {
    use listener::listener_filter_chain_match_predicate::{MatchSet, Rule};
    let predicate = |rule| listener::ListenerFilterChainMatchPredicate { rule: Some(rule) };
    let mut ranges: Vec<_> = ports
        .iter()
        .map(|&port| {
            let start = i32::from(port);
            predicate(Rule::DestinationPortRange(Int32Range { start, end: start + 1 }))
        })
        .collect();
    // Envoy wants at least two members in an `or`.
    let any = match ranges.pop() {
        Some(only) if ranges.is_empty() => only,
        Some(last) => {
            ranges.push(last);
            predicate(Rule::OrMatch(MatchSet { rules: ranges }))
        }
        None => return predicate(Rule::AnyMatch(true)),
    };
    predicate(Rule::NotMatch(Box::new(any)))
}
