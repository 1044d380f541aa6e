//! Values that many messages share: durations, addresses, socket options, percentages.
#![allow(deprecated)]

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use lateen_xds::pb::envoy::config::core::v3 as core;
use lateen_xds::pb::envoy::r#type::v3::FractionalPercent;
use lateen_xds::pb::google::protobuf as google;
use prost::{Message, Name};

use crate::error::At;
use crate::support::fields;
use crate::{
    Backoff, BindConfig, ConvertError, Fraction, HostAddress, SocketOption, SocketOptionValue, SocketState,
    TcpKeepalive,
};

/// Result of a conversion.
pub(super) type Converted<T> = Result<T, ConvertError>;

/// Text; where it is empty, without memory of its own.
pub(super) fn text(value: String) -> Arc<str> {
    if value.is_empty() { Arc::default() } else { value.into() }
}

/// A duration; absent stays absent.
pub(super) fn duration(
    at: &At<'_>,
    field: &str,
    value: Option<google::Duration>,
) -> Converted<Option<Duration>> {
    let Some(google::Duration { seconds, nanos }) = value else { return Ok(None) };
    let seconds = u64::try_from(seconds).ok();
    let nanos = u32::try_from(nanos).ok().filter(|nanos| *nanos < 1_000_000_000);
    match (seconds, nanos) {
        (Some(seconds), Some(nanos)) => Ok(Some(Duration::new(seconds, nanos))),
        _ => Err(at.error_in(field, "a duration must not be negative, and its nanoseconds below 1e9")),
    }
}

/// A time-out: absent means the default, zero means none.
pub(super) fn timeout(
    at: &At<'_>,
    field: &str,
    value: Option<google::Duration>,
    default: Option<Duration>,
) -> Converted<Option<Duration>> {
    Ok(match duration(at, field, value)? {
        None => default,
        Some(Duration::ZERO) => None,
        set => set,
    })
}

/// A duration that must be there or has a default, and must not be zero.
pub(super) fn positive(
    at: &At<'_>,
    field: &str,
    value: Option<google::Duration>,
    default: Duration,
) -> Converted<Duration> {
    match duration(at, field, value)? {
        None => Ok(default),
        Some(Duration::ZERO) => Err(at.error_in(field, "must be greater than 0s")),
        Some(duration) => Ok(duration),
    }
}

/// Base and maximum of a back-off; the maximum defaults to ten times the base.
pub(super) fn backoff(
    at: &At<'_>,
    base: Option<google::Duration>,
    max: Option<google::Duration>,
    default_base: Duration,
) -> Converted<Backoff> {
    let base = positive(at, "base_interval", base, default_base)?;
    let max = positive(at, "max_interval", max, base.saturating_mul(10))?;
    if max < base {
        return Err(at.error_in("max_interval", "must not be less than base_interval"));
    }
    Ok(Backoff { base, max })
}

pub(super) fn bool_or(value: Option<google::BoolValue>, default: bool) -> bool {
    value.map_or(default, |value| value.value)
}

pub(super) fn number(value: Option<google::UInt32Value>) -> Option<u32> {
    value.map(|value| value.value)
}

/// An enum's value; a number this version of the API doesn't have is an error.
pub(super) fn enumeration<E: TryFrom<i32>>(at: &At<'_>, field: &str, value: i32) -> Converted<E> {
    E::try_from(value).map_err(|_| at.error_in(field, format!("unknown value {value}")))
}

/// The message in a `typed_config`.
pub(super) fn typed<T: Message + Name + Default>(at: &At<'_>, any: &google::Any) -> Converted<T> {
    lateen_xds::any::unpack(any).map_err(|error| at.error_in("typed_config", error.to_string()))
}

/// A required message.
pub(super) fn required<T>(at: &At<'_>, field: &str, value: Option<T>) -> Converted<T> {
    value.ok_or_else(|| at.error_in(field, "is required"))
}

/// A required, non-empty text.
pub(super) fn nonempty(at: &At<'_>, field: &str, value: String) -> Converted<Arc<str>> {
    if value.is_empty() { Err(at.error_in(field, "must not be empty")) } else { Ok(value.into()) }
}

/// Text that may be empty, which means absent.
pub(super) fn optional(value: String) -> Option<Arc<str>> {
    (!value.is_empty()).then(|| value.into())
}

pub(super) fn port(at: &At<'_>, field: &str, value: u32) -> Converted<u16> {
    u16::try_from(value).map_err(|_| at.error_in(field, format!("{value} is not a port")))
}

pub(super) fn cidr(at: &At<'_>, range: core::CidrRange) -> Converted<IpNet> {
    let core::CidrRange { address_prefix, prefix_len } = range;
    let address: IpAddr = address_prefix
        .parse()
        .map_err(|_| at.error_in("address_prefix", format!("{address_prefix:?} is not an IP address")))?;
    let length = number(prefix_len).unwrap_or(0);
    u8::try_from(length)
        .ok()
        .and_then(|length| IpNet::new(address, length).ok())
        .map(|net| net.trunc())
        .ok_or_else(|| at.error_in("prefix_len", format!("{length} is too long for {address}")))
}

pub(super) fn cidrs(at: &At<'_>, field: &str, ranges: Vec<core::CidrRange>) -> Converted<Vec<IpNet>> {
    ranges.into_iter().enumerate().map(|(index, range)| cidr(&at.index(field, index), range)).collect()
}

/// Host and port of a socket address; the host may be a name.
pub(super) fn host_and_port(at: &At<'_>, address: core::SocketAddress) -> Converted<(String, u16)> {
    fields!(at, address => core::SocketAddress {
        used { protocol, address, port_specifier, ipv4_compat }
        inert {}
        rejected {
            resolver_name = "custom resolvers",
            network_namespace_filepath = "sockets in other network namespaces",
        }
        variants { named_port = "ports by name" }
    });
    // Where one listens (`listening_address`); elsewhere it has no meaning.
    let _ = ipv4_compat;
    if protocol != core::socket_address::Protocol::Tcp as i32 {
        return Err(at.error_in("protocol", "not supported: only TCP"));
    }
    let port = match port_specifier {
        None => 0,
        Some(core::socket_address::PortSpecifier::PortValue(value)) => port(at, "port_value", value)?,
        Some(core::socket_address::PortSpecifier::NamedPort(_)) => {
            return Err(at.error_in("named_port", "not supported: ports by name"));
        }
    };
    Ok((address, port))
}

/// An IP address and port.
pub(super) fn ip_and_port(at: &At<'_>, address: core::SocketAddress) -> Converted<SocketAddr> {
    let (host, port) = host_and_port(at, address)?;
    let ip: IpAddr =
        host.parse().map_err(|_| at.error_in("address", format!("{host:?} is not an IP address")))?;
    Ok(SocketAddr::new(ip, port))
}

/// An address that must be an IP address and port. `at` is the address itself.
pub(super) fn socket_address(at: &At<'_>, address: Option<core::Address>) -> Converted<SocketAddr> {
    match address.and_then(|address| address.address) {
        Some(core::address::Address::SocketAddress(address)) => {
            ip_and_port(&at.field("socket_address"), address)
        }
        Some(core::address::Address::Pipe(_)) => Err(at.error_in("pipe", "not supported: Unix sockets")),
        Some(core::address::Address::EnvoyInternalAddress(_)) => {
            Err(at.error_in("envoy_internal_address", "not supported: internal listeners"))
        }
        None => Err(at.error("is required")),
    }
}

/// The most bytes the kernel takes of a Unix socket's path, with the byte that ends it.
const PIPE_PATH: usize = 108;

/// A Unix socket's path and the permissions of its file. `at` is the pipe itself.
pub(super) fn pipe(at: &At<'_>, pipe: core::Pipe) -> Converted<(Arc<str>, u32)> {
    let core::Pipe { path, mode } = pipe;
    if path.is_empty() {
        return Err(at.error_in("path", "must not be empty"));
    }
    if path.len() >= PIPE_PATH {
        let reason = format!("{path:?} is longer than a Unix socket's path can be ({} bytes)", PIPE_PATH - 1);
        return Err(at.error_in("path", reason));
    }
    if path.trim_start_matches('@').is_empty() || path.contains('\0') {
        return Err(at.error_in("path", format!("{path:?} is not a path")));
    }
    if mode > 0o777 {
        return Err(at.error_in("mode", "must be at most 0777 (511)"));
    }
    Ok((path.into(), mode))
}

/// Where to listen: an IP address and port, or a Unix socket with the permissions of its file. `at` is the address itself.
pub(super) fn listening_address(at: &At<'_>, address: Option<core::Address>) -> Converted<ListeningAddress> {
    match address {
        Some(core::Address { address: Some(core::address::Address::Pipe(message)) }) => {
            let (path, pipe_mode) = pipe(&at.field("pipe"), message)?;
            Ok(ListeningAddress { address: HostAddress::Pipe(path), pipe_mode, ipv4_compat: false })
        }
        address => {
            use core::address::Address::SocketAddress;
            let compat = |address: &core::Address| matches!(&address.address, Some(SocketAddress(socket)) if socket.ipv4_compat);
            let ipv4_compat = address.as_ref().is_some_and(compat);
            let address = socket_address(at, address)?;
            let takes_both = match address.ip() {
                IpAddr::V4(_) => false,
                IpAddr::V6(ip) => ip.is_unspecified() || ip.to_ipv4_mapped().is_some(),
            };
            if ipv4_compat && !takes_both {
                let reason = format!(
                    "only the IPv6 address \"::\" or a valid IPv4-mapped IPv6 address can have it, not {address}"
                );
                return Err(at.error_in("socket_address.ipv4_compat", reason));
            }
            Ok(ListeningAddress { address: address.into(), pipe_mode: 0, ipv4_compat })
        }
    }
}

/// Where a listener listens.
pub(super) struct ListeningAddress {
    pub(super) address: HostAddress,
    /// Permissions of a Unix socket's file.
    pub(super) pipe_mode: u32,
    /// Whether an address of IPv6 takes IPv4 too.
    pub(super) ipv4_compat: bool,
}

pub(super) fn socket_options(
    at: &At<'_>,
    field: &str,
    options: Vec<core::SocketOption>,
) -> Converted<Vec<SocketOption>> {
    let convert = |(index, option)| socket_option(&at.index(field, index), option);
    options.into_iter().enumerate().map(convert).collect()
}

fn socket_option(at: &At<'_>, option: core::SocketOption) -> Converted<SocketOption> {
    fields!(at, option => core::SocketOption {
        used { level, name, state, value }
        inert { description = "for people" }
        rejected {
            r#type = "options for one kind of socket",
            ip_version = "options for one IP version",
        }
    });
    let int = |field: &str, value: i64| {
        i32::try_from(value).map_err(|_| at.error_in(field, format!("{value} is not a C int")))
    };
    let state = match enumeration(at, "state", state)? {
        core::socket_option::SocketState::StatePrebind => SocketState::Prebind,
        core::socket_option::SocketState::StateBound => SocketState::Bound,
        core::socket_option::SocketState::StateListening => SocketState::Listening,
    };
    let value = match required(at, "value", value)? {
        core::socket_option::Value::IntValue(value) => SocketOptionValue::Int(int("int_value", value)?),
        core::socket_option::Value::BufValue(bytes) => SocketOptionValue::Bytes(bytes.into()),
    };
    Ok(SocketOption { level: int("level", level)?, name: int("name", name)?, value, state })
}

pub(super) fn tcp_keepalive(keepalive: core::TcpKeepalive) -> TcpKeepalive {
    fields!(At::ROOT, keepalive => core::TcpKeepalive {
        used { keepalive_probes, keepalive_time, keepalive_interval }
        inert {}
        rejected {}
    });
    let seconds = |value| number(value).map(|seconds| Duration::from_secs(seconds.into()));
    TcpKeepalive {
        probes: number(keepalive_probes),
        time: seconds(keepalive_time),
        interval: seconds(keepalive_interval),
    }
}

pub(super) fn bind_config(at: &At<'_>, bind: core::BindConfig) -> Converted<BindConfig> {
    fields!(at, bind => core::BindConfig {
        used { source_address, freebind, socket_options, extra_source_addresses, additional_source_addresses }
        inert {}
        rejected {
            local_address_selector = "custom choice of the source address",
            validate_network_namespaces = "sockets in other network namespaces",
        }
    });
    let mut sources = Vec::new();
    for (index, extra) in extra_source_addresses.into_iter().enumerate() {
        let at = at.index("extra_source_addresses", index);
        if extra.socket_options.is_some() {
            return Err(at.error_in("socket_options", "not supported: options for one source address"));
        }
        sources.push(ip_and_port(&at.field("address"), required(&at, "address", extra.address)?)?);
    }
    for (index, address) in additional_source_addresses.into_iter().enumerate() {
        sources.push(ip_and_port(&at.index("additional_source_addresses", index), address)?);
    }
    Ok(BindConfig {
        source: source_address.map(|source| ip_and_port(&at.field("source_address"), source)).transpose()?,
        extra_sources: sources,
        freebind: bool_or(freebind, false),
        socket_options: self::socket_options(at, "socket_options", socket_options)?,
    })
}

pub(super) fn fraction(at: &At<'_>, percent: FractionalPercent) -> Converted<Fraction> {
    use lateen_xds::pb::envoy::r#type::v3::fractional_percent::DenominatorType;
    let FractionalPercent { numerator, denominator } = percent;
    let denominator = match enumeration(at, "denominator", denominator)? {
        DenominatorType::Hundred => 100,
        DenominatorType::TenThousand => 10_000,
        DenominatorType::Million => 1_000_000,
    };
    Ok(Fraction { numerator, denominator })
}

/// `filter_metadata` as JSON; typed metadata has no reader here.
pub(super) fn metadata(metadata: Option<core::Metadata>) -> Option<Arc<serde_json::Value>> {
    let filters = metadata?.filter_metadata;
    if filters.is_empty() {
        return None;
    }
    let mut members: Vec<_> = filters.into_iter().map(|(name, value)| (name, struct_value(value))).collect();
    members.sort_by(|(a, _), (b, _)| a.cmp(b));
    Some(Arc::new(serde_json::Value::Object(members.into_iter().collect())))
}

/// A protobuf `Struct` as JSON, keys sorted.
pub(crate) fn struct_value(value: google::Struct) -> serde_json::Value {
    let mut members: Vec<_> = value.fields.into_iter().map(|(key, value)| (key, json_value(value))).collect();
    members.sort_by(|(a, _), (b, _)| a.cmp(b));
    serde_json::Value::Object(members.into_iter().collect())
}

fn json_value(value: google::Value) -> serde_json::Value {
    use google::value::Kind;
    match value.kind {
        None | Some(Kind::NullValue(_)) => serde_json::Value::Null,
        // Whole numbers are written without a point, as protobuf's JSON mapping does.
        #[allow(clippy::cast_possible_truncation)]
        Some(Kind::NumberValue(number)) if number.fract() == 0.0 && number.abs() < 9e15 => {
            (number as i64).into()
        }
        Some(Kind::NumberValue(number)) => number.into(),
        Some(Kind::StringValue(text)) => text.into(),
        Some(Kind::BoolValue(value)) => value.into(),
        Some(Kind::StructValue(value)) => struct_value(value),
        Some(Kind::ListValue(list)) => list.values.into_iter().map(json_value).collect::<Vec<_>>().into(),
    }
}

/// Text or bytes given in place; files and environment variables are read now, as Envoy does.
pub(super) fn data_source(at: &At<'_>, source: core::DataSource) -> Converted<Vec<u8>> {
    use core::data_source::Specifier;
    let core::DataSource { watched_directory, specifier } = source;
    at.refuse("watched_directory", &watched_directory, "files that are watched")?;
    match required(at, "specifier", specifier)? {
        Specifier::InlineBytes(bytes) => Ok(bytes),
        Specifier::InlineString(text) => Ok(text.into_bytes()),
        Specifier::Filename(path) => {
            let bytes = std::fs::read(&path);
            bytes.map_err(|error| at.error_in("filename", format!("cannot read {path}: {error}")))
        }
        Specifier::EnvironmentVariable(name) => std::env::var(&name)
            .map(String::into_bytes)
            .map_err(|_| at.error_in("environment_variable", format!("{name} is not set"))),
    }
}
