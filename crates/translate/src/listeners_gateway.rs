//! Listeners of gateways.
use std::sync::Arc;

use lateen_xds::pb::envoy::config::core::v3 as core;
use lateen_xds::pb::envoy::config::listener::v3 as listener;

use crate::access_log;
use crate::filters::{self, HttpRole, Routes};
use crate::gateways::HttpServer;
use crate::resource::{Resource, encode};
use crate::settings::Settings;
use crate::wire;

/// Everything a gateway's HTTP listener depends on.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct GatewayListenerInputs {
    settings: Arc<Settings>,
    bind: String,
    port: u16,
    name: String,
    route_name: String,
}

pub(crate) fn inputs(settings: &Arc<Settings>, server: &HttpServer) -> GatewayListenerInputs {
    GatewayListenerInputs {
        settings: settings.clone(),
        bind: server.bind.clone(),
        port: server.port,
        name: server.listener_name(),
        route_name: server.route_name(),
    }
}

/// A plain HTTP listener.
pub(crate) fn http_listener(inputs: &GatewayListenerInputs) -> Resource {
    let GatewayListenerInputs { settings, bind, port, name, route_name } = inputs;
    let manager = filters::http(
        settings,
        HttpRole::Gateway,
        &format!("outbound_{name};"),
        Routes::Rds(route_name.clone()),
    );
    let message = listener::Listener {
        name: name.clone(),
        address: Some(wire::address(bind, *port)),
        filter_chains: vec![listener::FilterChain { filters: vec![manager], ..Default::default() }],
        traffic_direction: core::TrafficDirection::Outbound as i32,
        access_log: access_log::listener_log(settings),
        ..Default::default()
    };
    encode(name.clone(), &message)
}
