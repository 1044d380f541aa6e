//! Transport sockets: plaintext, TLS, the PROXY protocol around either.
#![allow(deprecated)]

use std::sync::Arc;

use lateen_xds::pb::envoy::config::core::v3 as core;
use lateen_xds::pb::envoy::extensions::transport_sockets::proxy_protocol::v3 as proxy_protocol;
use lateen_xds::pb::google::protobuf::Any;

use super::tls::{downstream_tls, upstream_tls};
use super::values::{Converted, enumeration, required, typed};
use crate::error::At;
use crate::support::fields;
use crate::{DownstreamTransport, ProxyProtocolVersion, UpstreamTransport};

const RAW_BUFFER: &str = "envoy.extensions.transport_sockets.raw_buffer.v3.RawBuffer";

/// The `Any` of a transport socket; `None`: plaintext.
fn socket_config(at: &At<'_>, socket: core::TransportSocket) -> Converted<Option<Any>> {
    use core::transport_socket::ConfigType;
    match socket.config_type {
        Some(ConfigType::TypedConfig(any)) if lateen_xds::any::message_name(&any.type_url) == RAW_BUFFER => {
            Ok(None)
        }
        Some(ConfigType::TypedConfig(any)) => Ok(Some(any)),
        None if socket.name == "envoy.transport_sockets.raw_buffer" => Ok(None),
        None => Err(at.error_in("typed_config", "is required")),
    }
}

/// The transport of a filter chain.
pub(super) fn downstream(at: &At<'_>, socket: core::TransportSocket) -> Converted<DownstreamTransport> {
    let Some(any) = socket_config(at, socket)? else { return Ok(DownstreamTransport::Plaintext) };
    match lateen_xds::any::message_name(&any.type_url) {
        "envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext" => {
            let context = downstream_tls(&at.field("typed_config"), typed(at, &any)?)?;
            Ok(DownstreamTransport::Tls(Arc::new(context)))
        }
        other => {
            Err(at.error_in("typed_config", format!("{other:?} is not supported; raw_buffer and tls are")))
        }
    }
}

/// The transport of a cluster.
pub(super) fn upstream(at: &At<'_>, socket: core::TransportSocket) -> Converted<UpstreamTransport> {
    let Some(any) = socket_config(at, socket)? else { return Ok(UpstreamTransport::Plaintext) };
    match lateen_xds::any::message_name(&any.type_url) {
        "envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext" => {
            let context = upstream_tls(&at.field("typed_config"), typed(at, &any)?)?;
            Ok(UpstreamTransport::Tls(Arc::new(context)))
        }
        "envoy.extensions.transport_sockets.proxy_protocol.v3.ProxyProtocolUpstreamTransport" => {
            proxy_protocol_transport(&at.field("typed_config"), typed(at, &any)?)
        }
        other => Err(at.error_in(
            "typed_config",
            format!("{other:?} is not supported; raw_buffer, tls and proxy_protocol are"),
        )),
    }
}

fn proxy_protocol_transport(
    at: &At<'_>,
    message: proxy_protocol::ProxyProtocolUpstreamTransport,
) -> Converted<UpstreamTransport> {
    fields!(at, message => proxy_protocol::ProxyProtocolUpstreamTransport {
        used { config, transport_socket }
        inert {}
        rejected {
            allow_unspecified_address = "headers without an address",
            tlv_as_pool_key = "TLVs",
        }
    });
    let config = config.unwrap_or_default();
    let at_config = at.field("config");
    fields!(&at_config, config => core::ProxyProtocolConfig {
        used { version }
        inert {}
        rejected { pass_through_tlvs = "TLVs", added_tlvs = "TLVs" }
    });
    let version = match enumeration(&at_config, "version", version)? {
        core::proxy_protocol_config::Version::V1 => ProxyProtocolVersion::V1,
        core::proxy_protocol_config::Version::V2 => ProxyProtocolVersion::V2,
    };
    let at_inner = at.field("transport_socket");
    let inner = match upstream(&at_inner, required(at, "transport_socket", transport_socket)?)? {
        UpstreamTransport::ProxyProtocol { .. } => {
            return Err(at_inner.error("is a PROXY protocol inside another"));
        }
        inner => inner,
    };
    Ok(UpstreamTransport::ProxyProtocol { version, inner: Box::new(inner) })
}
