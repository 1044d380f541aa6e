//! Listeners of gateways.
use std::sync::Arc;

use lateen_api::networking::TlsProtocol;
use lateen_api::networking::gateway::{ServerTlsMode, ServerTlsSettings};
use lateen_xds::pb::envoy::config::core::v3 as core;
use lateen_xds::pb::envoy::config::listener::v3 as listener;
use lateen_xds::pb::envoy::extensions::transport_sockets::tls::v3 as tls;
use tls::common_tls_context::{CombinedCertificateValidationContext, ValidationContextType};
use tls::tls_parameters::TlsProtocol as Version;

use crate::access::Access;
use crate::access_log;
use crate::client_tls;
use crate::filters::{self, HttpRole, Routes};
use crate::gateways::HttpServer;
use crate::gateways_tls::{ChainEnd, ServedChain, ServedPort, ServerRef};
use crate::resource::{Resource, encode};
use crate::secrets;
use crate::settings::Settings;
use crate::tls_defaults;
use crate::wire;

/// Everything a gateway's HTTP listener depends on.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct GatewayListenerInputs {
    settings: Arc<Settings>,
    bind: String,
    port: u16,
    name: String,
    route_name: String,
    access: Arc<Access>,
    looks_up: bool,
}

pub(crate) fn inputs(
    settings: &Arc<Settings>,
    server: &HttpServer,
    access: &Arc<Access>,
    looks_up: bool,
) -> GatewayListenerInputs {
    GatewayListenerInputs {
        settings: settings.clone(),
        bind: server.bind.clone(),
        port: server.port,
        name: server.listener_name(),
        route_name: server.route_name(),
        access: access.clone(),
        looks_up,
    }
}

/// A plain HTTP listener.
pub(crate) fn http_listener(inputs: &GatewayListenerInputs) -> Resource {
    let GatewayListenerInputs { settings, bind, port, name, route_name, access, looks_up } = inputs;
    let manager = filters::http(
        settings,
        HttpRole::Gateway { looks_up: *looks_up },
        &format!("outbound_{name};"),
        Routes::Rds(route_name.clone()),
        access,
    );
    let message = listener::Listener {
        name: name.clone(),
        address: Some(wire::listening_address(bind, *port)),
        additional_addresses: wire::also_at_ipv6(settings, bind, *port),
        filter_chains: vec![listener::FilterChain { filters: vec![manager], ..Default::default() }],
        traffic_direction: core::TrafficDirection::Outbound as i32,
        access_log: access_log::listener_log(settings),
        ..Default::default()
    };
    encode(name.clone(), &message)
}

/// Everything a gateway's listener for more than plain HTTP depends on.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct ServedPortInputs {
    settings: Arc<Settings>,
    port: ServedPort,
    access: Arc<Access>,
    looks_up: bool,
}

pub(crate) fn port_inputs(
    settings: &Arc<Settings>,
    port: ServedPort,
    access: &Arc<Access>,
    looks_up: bool,
) -> ServedPortInputs {
    ServedPortInputs { settings: settings.clone(), port, access: access.clone(), looks_up }
}

/// A listener for more than plain HTTP: with TLS a chain for the names of each server.
pub(crate) fn port_listener(inputs: &ServedPortInputs) -> Resource {
    let ServedPortInputs { settings, port: ServedPort { bind, port, tls, chains }, access, looks_up } =
        inputs;
    let role = HttpRole::Gateway { looks_up: *looks_up };
    let name = format!("{bind}_{port}");
    let message = listener::Listener {
        name: name.clone(),
        address: Some(wire::listening_address(bind, *port)),
        additional_addresses: wire::also_at_ipv6(settings, bind, *port),
        listener_filters: if *tls { vec![filters::tls_inspector()] } else { Vec::new() },
        filter_chains: chains
            .iter()
            .map(|chain| served_chain(settings, &name, chain, access, role))
            .collect(),
        traffic_direction: core::TrafficDirection::Outbound as i32,
        access_log: access_log::listener_log(settings),
        ..Default::default()
    };
    encode(name, &message)
}

fn served_chain(
    settings: &Settings,
    listener: &str,
    chain: &ServedChain,
    access: &Access,
    role: HttpRole,
) -> listener::FilterChain {
    let matching = listener::FilterChainMatch {
        server_names: chain.names.clone(),
        application_protocols: chain.protocols.iter().map(|&protocol| protocol.to_owned()).collect(),
        ..Default::default()
    };
    let matching = (matching != Default::default()).then_some(matching);
    let base = listener::FilterChain { filter_chain_match: matching, ..Default::default() };
    let ended = |server: &ServerRef| {
        server.tls().map(|terms| match terms.mode {
            ServerTlsMode::IstioMutual => settings.mutual_tls.server(),
            _ => client_tls::socket(wire::any(&downstream(settings, terms))),
        })
    };
    match &chain.end {
        ChainEnd::Bytes(destinations) => {
            listener::FilterChain { filters: filters::bytes(settings, access, destinations), ..base }
        }
        ChainEnd::Https { routes, server } => {
            let prefix = format!("outbound_{listener};");
            let manager = filters::http(settings, role, &prefix, Routes::Rds(routes.clone()), access);
            listener::FilterChain { filters: vec![manager], transport_socket: ended(server), ..base }
        }
        ChainEnd::Terminated { destinations, server } => listener::FilterChain {
            filters: filters::bytes(settings, access, destinations),
            transport_socket: ended(server),
            ..base
        },
    }
}

/// <https://istio.io/latest/docs/reference/config/networking/gateway/#ServerTLSSettings>
pub(crate) fn downstream(settings: &Settings, terms: &ServerTlsSettings) -> tls::DownstreamTlsContext {
    let version = |given: TlsProtocol| match given {
        TlsProtocol::TLS_AUTO => Version::TlsAuto as i32,
        // Older versions are served by none of the proxies (RFC 8996): what asks for them at least gets more.
        TlsProtocol::TLSV1_0 | TlsProtocol::TLSV1_1 | TlsProtocol::TLSV1_2 => Version::TlSv12 as i32,
        TlsProtocol::TLSV1_3 => Version::TlSv13 as i32,
    };
    let mut params = settings.tls_defaults.server();
    if terms.min_protocol_version != TlsProtocol::TLS_AUTO {
        params.tls_minimum_protocol_version = version(terms.min_protocol_version);
    }
    params.tls_maximum_protocol_version = version(terms.max_protocol_version);
    if !terms.cipher_suites.is_empty() {
        params.cipher_suites = tls_defaults::served(&terms.cipher_suites);
    }
    let mut common = tls::CommonTlsContext {
        alpn_protocols: vec!["h2".to_owned(), "http/1.1".to_owned()],
        tls_params: Some(params),
        ..Default::default()
    };
    let credentials = secrets::credentials(terms);
    if credentials.is_empty() {
        let files = terms
            .tls_certificates
            .iter()
            .map(|one| client_tls::pair(&one.server_certificate, &one.private_key));
        common.tls_certificates = files.collect();
        if common.tls_certificates.is_empty() {
            common.tls_certificates = vec![client_tls::pair(&terms.server_certificate, &terms.private_key)];
        }
    } else {
        let configs = credentials.iter().map(|name| secrets::config(secrets::certificate_name(name)));
        common.tls_certificate_sds_secret_configs = configs.collect();
    }
    let mutual = matches!(terms.mode, ServerTlsMode::Mutual | ServerTlsMode::OptionalMutual);
    if mutual {
        common.validation_context_type = Some(clients(terms));
    }
    tls::DownstreamTlsContext {
        common_tls_context: Some(common),
        require_client_certificate: wire::boolean(terms.mode == ServerTlsMode::Mutual),
        ..Default::default()
    }
}

/// How clients are verified.
fn clients(terms: &ServerTlsSettings) -> ValidationContextType {
    let mut context = tls::CertificateValidationContext {
        match_typed_subject_alt_names: client_tls::alternative_names(&terms.subject_alt_names),
        verify_certificate_spki: terms.verify_certificate_spki.clone(),
        verify_certificate_hash: terms.verify_certificate_hash.clone(),
        crl: (!terms.ca_crl.is_empty()).then(|| client_tls::file(&terms.ca_crl)),
        ..Default::default()
    };
    match secrets::authorities_credential(terms) {
        Some(name) => {
            ValidationContextType::CombinedValidationContext(CombinedCertificateValidationContext {
                default_validation_context: Some(context),
                validation_context_sds_secret_config: Some(secrets::config(secrets::authorities_name(name))),
                ..Default::default()
            })
        }
        None => {
            context.trusted_ca = Some(client_tls::file(&terms.ca_certificates));
            ValidationContextType::ValidationContext(context)
        }
    }
}
