//! Short ways to write Envoy's messages.
use lateen_xds::Any;
use lateen_xds::pb::envoy::config::core::v3 as core;
use lateen_xds::pb::envoy::config::listener::v3 as listener;
use lateen_xds::pb::envoy::extensions::transport_sockets::raw_buffer::v3::RawBuffer;
use lateen_xds::pb::envoy::r#type::matcher::v3 as matcher;
use lateen_xds::pb::google::protobuf as wkt;
use prost::{Message, Name};
use std::time::Duration;

use crate::settings::Settings;

pub(crate) fn any<M: Message + Name>(message: &M) -> Any {
    Any { type_url: M::type_url(), value: message.encode_to_vec() }
}

pub(crate) fn duration(duration: Duration) -> wkt::Duration {
    // Durations come from parsed text, which is limited to what protobuf holds.
    wkt::Duration { seconds: duration.as_secs() as i64, nanos: duration.subsec_nanos() as i32 }
}

pub(crate) fn uint32(value: u32) -> Option<wkt::UInt32Value> {
    Some(wkt::UInt32Value { value })
}

pub(crate) fn boolean(value: bool) -> Option<wkt::BoolValue> {
    Some(wkt::BoolValue { value })
}

pub(crate) fn socket_address(address: &str, port: u16) -> core::SocketAddress {
    core::SocketAddress {
        address: address.to_owned(),
        port_specifier: Some(core::socket_address::PortSpecifier::PortValue(u32::from(port))),
        ..Default::default()
    }
}

pub(crate) fn address(address: &str, port: u16) -> core::Address {
    core::Address { address: Some(core::address::Address::SocketAddress(socket_address(address, port))) }
}

/// What begins the text of a Unix socket's address.
const UNIX: &str = "unix://";

/// Where a listener is by its `bind`: `unix://` and a path, or an IP address with the port.
pub(crate) fn listening_address(bind: &str, port: u16) -> core::Address {
    match bind.strip_prefix(UNIX) {
        Some(path) => pipe(path),
        None => address(bind, port),
    }
}

/// What listens at all addresses of IPv4 listens at those of IPv6 too, with dual stack.
pub(crate) fn also_at_ipv6(
    settings: &Settings,
    address: &str,
    port: u16,
) -> Vec<listener::AdditionalAddress> {
    match address {
        "0.0.0.0" if settings.dual_stack => vec![additional_address("::", port)],
        _ => Vec::new(),
    }
}

/// One more address of a listener.
pub(crate) fn additional_address(address: &str, port: u16) -> listener::AdditionalAddress {
    listener::AdditionalAddress { address: Some(self::address(address, port)), ..Default::default() }
}

/// A Unix socket.
pub(crate) fn pipe(path: &str) -> core::Address {
    let pipe = core::Pipe { path: path.to_owned(), ..Default::default() };
    core::Address { address: Some(core::address::Address::Pipe(pipe)) }
}

/// Over the same ADS stream, waiting for as long as it takes: a default would let listeners serve 404s meanwhile.
pub(crate) fn ads() -> core::ConfigSource {
    core::ConfigSource {
        config_source_specifier: Some(core::config_source::ConfigSourceSpecifier::Ads(
            core::AggregatedConfigSource::default(),
        )),
        initial_fetch_timeout: Some(wkt::Duration::default()),
        resource_api_version: core::ApiVersion::V3 as i32,
        ..Default::default()
    }
}

/// Binds upstream sockets to a source address. `others` are those of other families.
pub(crate) fn bind_from(source: &str, others: &[&str]) -> core::BindConfig {
    let other = |source: &&str| core::ExtraSourceAddress {
        address: Some(socket_address(source, 0)),
        ..Default::default()
    };
    core::BindConfig {
        source_address: Some(socket_address(source, 0)),
        extra_source_addresses: others.iter().map(other).collect(),
        ..Default::default()
    }
}

/// An address range, `address/length` or a single address; none when it is neither.
pub(crate) fn cidr(text: &str) -> Option<core::CidrRange> {
    let (address, length) = text.split_once('/').map_or((text, None), |(a, l)| (a, Some(l)));
    let parsed: std::net::IpAddr = address.parse().ok()?;
    let whole = if parsed.is_ipv4() { 32 } else { 128 };
    let length = length.map_or(Some(whole), |text| text.parse().ok().filter(|&length| length <= whole))?;
    Some(core::CidrRange { address_prefix: address.to_owned(), prefix_len: uint32(length) })
}

/// A range of addresses, or one address.
pub(crate) fn range(text: &str) -> Option<ipnet::IpNet> {
    text.parse().ok().or_else(|| text.parse::<std::net::IpAddr>().ok().map(ipnet::IpNet::from))
}

/// Server names to match; any, where `*` is among them (Envoy knows no wildcard of nothing).
pub(crate) fn server_names(names: &[String]) -> Vec<String> {
    if names.iter().any(|name| name == "*") { Vec::new() } else { names.to_vec() }
}

pub(crate) fn regex(expression: &str) -> matcher::RegexMatcher {
    matcher::RegexMatcher { regex: expression.to_owned(), ..Default::default() }
}

/// A text as a value of `google.protobuf.Struct`.
pub(crate) fn text(value: &str) -> wkt::Value {
    wkt::Value { kind: Some(wkt::value::Kind::StringValue(value.to_owned())) }
}

/// The transport socket of plain text.
pub(crate) fn raw_buffer() -> core::TransportSocket {
    core::TransportSocket {
        name: "envoy.transport_sockets.raw_buffer".to_owned(),
        config_type: Some(core::transport_socket::ConfigType::TypedConfig(any(&RawBuffer::default()))),
    }
}

/// Metadata with one string: `istio.config`, the path of the object a resource comes from.
pub(crate) fn istio_metadata(key: &str, value: &str) -> core::Metadata {
    let fields = wkt::Struct { fields: [(key.to_owned(), text(value))].into() };
    core::Metadata { filter_metadata: [("istio".to_owned(), fields)].into(), ..Default::default() }
}
