//! The HTTP connection manager.
#![allow(deprecated)]

use std::sync::Arc;
use std::time::Duration;

use lateen_xds::pb::envoy::extensions::filters::network::http_connection_manager::v3 as proto;
use proto::http_connection_manager as nested;

use super::access_log::{access_logs, body_format, log_filter};
use super::config_source::{Source, config_source};
use super::http_options::{common_options, http1_options, http2_options};
use super::matchers::{header_value, headers_to_add};
use super::route::route_configuration;
use super::values::{
    Converted, bool_or, cidrs, data_source, duration, enumeration, nonempty, number, required, timeout,
};
use crate::error::At;
use crate::support::fields;
use crate::{
    ClientCertDetails, CodecType, EscapedSlashes, ForwardClientCert, HttpConnectionManager, LocalReplyConfig,
    LocalReplyMapper, RouteSource, Scheme, ServerHeader, StripPort, UpgradeConfig,
};

#[allow(clippy::too_many_lines)] // One entry for each field of the message; there is nothing to split.
pub(super) fn http_connection_manager(
    at: &At<'_>,
    message: proto::HttpConnectionManager,
) -> Converted<HttpConnectionManager> {
    fields!(at, message => proto::HttpConnectionManager {
        used {
            codec_type, stat_prefix, http_filters, add_user_agent, common_http_protocol_options, http_protocol_options,
            http2_protocol_options, server_name, server_header_transformation, scheme_header_transformation,
            max_request_headers_kb, stream_idle_timeout, request_timeout, request_headers_timeout, access_log, access_log_flush_interval, flush_access_log_on_new_request,
            access_log_options, use_remote_address, xff_num_trusted_hops, internal_address_config, skip_xff_append,
            via, generate_request_id, preserve_external_request_id, always_set_request_id_in_response,
            forward_client_cert_details, set_current_client_cert_details, proxy_100_continue, upgrade_configs,
            normalize_path, merge_slashes, path_with_escaped_slashes_action, request_id_extension, local_reply_config,
            strip_matching_host_port, stream_error_on_invalid_http_message, strip_trailing_host_dot,
            append_x_forwarded_port, route_specifier, strip_port_mode,
        }
        inert {
            drain_timeout = "the last GOAWAY follows the first after a round trip",
            delayed_close_timeout = "what a client still sends is read for a second after its connection was closed",
            append_local_overload = "there is no overload manager",
            add_proxy_protocol_connection_state = "there is no PROXY protocol",
        }
        rejected {
            tracing = "tracing",
            http1_safe_max_connection_duration = "waiting for a response at the end of max_connection_duration",
            http3_protocol_options = "HTTP/3",
            stream_flush_timeout = "a time-out of its own for flushing; use stream_idle_timeout",
            drain_timeout_jitter = "jitter of the drain",
            original_ip_detection_extensions = "detection of the client by extension; use use_remote_address",
            early_header_mutation_extensions = "header mutations by extension",
            forward_client_cert_matcher = "matchers by extension",
            represent_ipv4_remote_address_as_ipv4_mapped_ipv6 = "IPv4 addresses as IPv6",
            path_normalization_options = "path transformations; use normalize_path and merge_slashes",
            proxy_status_config = "the proxy-status header",
            typed_header_validation_config = "header validation by extension",
            forward_proto_config = "x-forwarded-proto by port",
        }
        variants { scoped_routes = "scoped routes" }
    });
    if let Some(extension) = request_id_extension {
        uuid_request_ids(&at.field("request_id_extension"), &extension)?;
    }
    let (flush_interval, on_new_request) = match access_log_options {
        Some(options) => log_options(&at.field("access_log_options"), options)?,
        None => (
            duration(at, "access_log_flush_interval", access_log_flush_interval)?,
            flush_access_log_on_new_request,
        ),
    };
    if bool_or(stream_error_on_invalid_http_message, false) {
        let reason = "not supported: a malformed HTTP/1 message closes its connection";
        return Err(at.error_in("stream_error_on_invalid_http_message", reason));
    }
    let (internal_networks, internal_unix_sockets) =
        internal_address_config.map(|config| internal_addresses(at, config)).transpose()?.unwrap_or_default();
    let strip_port = match (strip_matching_host_port, strip_port_mode) {
        (true, None) => StripPort::Matching,
        (false, Some(nested::StripPortMode::StripAnyHostPort(true))) => StripPort::Any,
        (false, _) => StripPort::No,
        (true, Some(_)) => {
            let reason = "must not be set together with strip_any_host_port";
            return Err(at.error_in("strip_matching_host_port", reason));
        }
    };
    let server_name = if server_name.is_empty() { "envoy" } else { &server_name };
    let seconds = |seconds| Some(Duration::from_secs(seconds));
    Ok(HttpConnectionManager {
        codec_type: match enumeration(at, "codec_type", codec_type)? {
            nested::CodecType::Auto => CodecType::Auto,
            nested::CodecType::Http1 => CodecType::Http1,
            nested::CodecType::Http2 => CodecType::Http2,
            nested::CodecType::Http3 => return Err(at.error_in("codec_type", "not supported: HTTP3")),
        },
        stat_prefix: nonempty(at, "stat_prefix", stat_prefix)?,
        routes: route_source(at, required(at, "route_specifier", route_specifier)?)?,
        http_filters: super::http_filters::http_filters(at, http_filters)?,
        add_user_agent: bool_or(add_user_agent, false),
        server_name: header_value(at, "server_name", server_name)?,
        server_header: server_header(at, server_header_transformation)?,
        via: (!via.is_empty()).then(|| header_value(at, "via", &via)).transpose()?,
        scheme_to_overwrite: scheme_header_transformation
            .map(|transformation| scheme(&at.field("scheme_header_transformation"), transformation))
            .transpose()?
            .flatten(),
        max_request_headers_kb: match number(max_request_headers_kb) {
            Some(kb) if !(1..=8192).contains(&kb) => {
                return Err(at.error_in("max_request_headers_kb", "must be between 1 and 8192"));
            }
            kb => kb.unwrap_or(60),
        },
        stream_idle_timeout: timeout(at, "stream_idle_timeout", stream_idle_timeout, seconds(300))?,
        request_timeout: timeout(at, "request_timeout", request_timeout, None)?,
        request_headers_timeout: timeout(at, "request_headers_timeout", request_headers_timeout, None)?,
        access_log: access_logs(at, "access_log", access_log)?,
        access_log_flush_interval: flush_interval,
        flush_access_log_on_new_request: on_new_request,
        use_remote_address: bool_or(use_remote_address, false),
        xff_num_trusted_hops,
        skip_xff_append,
        internal_networks,
        internal_unix_sockets,
        generate_request_id: bool_or(generate_request_id, true),
        preserve_external_request_id,
        always_set_request_id_in_response,
        forward_client_cert: forward_client_cert(at, forward_client_cert_details)?,
        client_cert_details: client_cert_details(at, set_current_client_cert_details)?,
        proxy_100_continue,
        upgrades: upgrades(at, upgrade_configs)?,
        normalize_path: bool_or(normalize_path, false),
        merge_slashes,
        escaped_slashes: escaped_slashes(at, path_with_escaped_slashes_action)?,
        strip_port,
        strip_trailing_host_dot,
        append_x_forwarded_port,
        local_reply: local_reply_config
            .map(|config| local_reply(&at.field("local_reply_config"), config))
            .transpose()?
            .unwrap_or_default(),
        common: common_options(&at.field("common_http_protocol_options"), common_http_protocol_options)?,
        http1: http1_options(&at.field("http_protocol_options"), http_protocol_options)?,
        http2: http2_options(&at.field("http2_protocol_options"), http2_protocol_options)?,
    })
}

/// Envoy's default extension is the only one; its options are about tracing.
fn uuid_request_ids(at: &At<'_>, extension: &proto::RequestIdExtension) -> Converted<()> {
    let type_url = extension.typed_config.as_ref().map_or("", |any| any.type_url.as_str());
    if type_url.ends_with("envoy.extensions.request_id.uuid.v3.UuidRequestIdConfig") {
        return Ok(());
    }
    Err(at.error_in("typed_config", format!("{type_url:?} is not supported; UuidRequestIdConfig is")))
}

fn log_options(at: &At<'_>, options: nested::HcmAccessLogOptions) -> Converted<(Option<Duration>, bool)> {
    fields!(at, options => nested::HcmAccessLogOptions {
        used { access_log_flush_interval, flush_access_log_on_new_request }
        inert {}
        rejected { flush_log_on_tunnel_successfully_established = "a log line when a tunnel is open" }
    });
    Ok((
        duration(at, "access_log_flush_interval", access_log_flush_interval)?,
        flush_access_log_on_new_request,
    ))
}

/// The networks, and whether clients at Unix sockets are of them.
fn internal_addresses(
    at: &At<'_>,
    config: nested::InternalAddressConfig,
) -> Converted<(Vec<ipnet::IpNet>, bool)> {
    let at = at.field("internal_address_config");
    fields!(&at, config => nested::InternalAddressConfig {
        used { unix_sockets, cidr_ranges }
        inert {}
        rejected {}
    });
    Ok((cidrs(&at, "cidr_ranges", cidr_ranges)?, unix_sockets))
}

fn route_source(at: &At<'_>, specifier: nested::RouteSpecifier) -> Converted<RouteSource> {
    let rds = match specifier {
        nested::RouteSpecifier::Rds(rds) => rds,
        nested::RouteSpecifier::RouteConfig(routes) => {
            return Ok(RouteSource::Inline(Arc::new(route_configuration(
                &at.field("route_config"),
                routes,
            )?)));
        }
        nested::RouteSpecifier::ScopedRoutes(_) => {
            return Err(at.error_in("scoped_routes", "not supported: scoped routes"));
        }
    };
    let at = at.field("rds");
    fields!(&at, rds => proto::Rds {
        used { config_source, route_config_name }
        inert {}
        rejected {}
    });
    let at_source = at.field("config_source");
    let (source, initial_fetch_timeout) =
        self::config_source(&at_source, required(&at, "config_source", config_source)?)?;
    if source != Source::Ads {
        return Err(at_source.error("not supported: routes from elsewhere than ADS"));
    }
    Ok(RouteSource::Rds {
        name: nonempty(&at, "route_config_name", route_config_name)?,
        initial_fetch_timeout,
    })
}

fn server_header(at: &At<'_>, value: i32) -> Converted<ServerHeader> {
    use nested::ServerHeaderTransformation;
    Ok(match enumeration(at, "server_header_transformation", value)? {
        ServerHeaderTransformation::Overwrite => ServerHeader::Overwrite,
        ServerHeaderTransformation::AppendIfAbsent => ServerHeader::AppendIfAbsent,
        ServerHeaderTransformation::PassThrough => ServerHeader::PassThrough,
    })
}

fn scheme(
    at: &At<'_>,
    message: lateen_xds::pb::envoy::config::core::v3::SchemeHeaderTransformation,
) -> Converted<Option<Scheme>> {
    use core::scheme_header_transformation::Transformation;
    use lateen_xds::pb::envoy::config::core::v3 as core;
    fields!(at, message => core::SchemeHeaderTransformation {
        used { transformation }
        inert {}
        rejected { match_upstream = "the scheme of the upstream transport" }
    });
    Ok(match transformation {
        None => None,
        Some(Transformation::SchemeToOverwrite(scheme)) => Some(match scheme.as_str() {
            "http" => Scheme::Http,
            "https" => Scheme::Https,
            _ => return Err(at.error_in("scheme_to_overwrite", "must be \"http\" or \"https\"")),
        }),
    })
}

fn forward_client_cert(at: &At<'_>, value: i32) -> Converted<ForwardClientCert> {
    use nested::ForwardClientCertDetails;
    Ok(match enumeration(at, "forward_client_cert_details", value)? {
        ForwardClientCertDetails::Sanitize => ForwardClientCert::Sanitize,
        ForwardClientCertDetails::ForwardOnly => ForwardClientCert::ForwardOnly,
        ForwardClientCertDetails::AppendForward => ForwardClientCert::AppendForward,
        ForwardClientCertDetails::SanitizeSet => ForwardClientCert::SanitizeSet,
        ForwardClientCertDetails::AlwaysForwardOnly => ForwardClientCert::AlwaysForwardOnly,
    })
}

fn client_cert_details(
    at: &At<'_>,
    details: Option<nested::SetCurrentClientCertDetails>,
) -> Converted<ClientCertDetails> {
    let at = at.field("set_current_client_cert_details");
    let Some(details) = details else { return Ok(ClientCertDetails::default()) };
    fields!(&at, details => nested::SetCurrentClientCertDetails {
        used { subject, cert, chain, dns, uri }
        inert {}
        rejected { issuer = "the issuer", format = "another form of the header" }
    });
    Ok(ClientCertDetails { subject: bool_or(subject, false), cert, chain, dns, uri })
}

fn upgrades(at: &At<'_>, configs: Vec<nested::UpgradeConfig>) -> Converted<Vec<UpgradeConfig>> {
    let convert = |(index, config): (usize, nested::UpgradeConfig)| {
        let at = at.index("upgrade_configs", index);
        fields!(&at, config => nested::UpgradeConfig {
            used { upgrade_type, enabled }
            inert {}
            rejected { filters = "another filter chain for upgraded requests" }
        });
        Ok(UpgradeConfig {
            upgrade_type: upgrade(&at, &upgrade_type)?,
            enabled: bool_or(enabled, true),
            terminates: false,
        })
    };
    configs.into_iter().enumerate().map(convert).collect()
}

/// The upgrade's name in lower case.
pub(super) fn upgrade(at: &At<'_>, name: &str) -> Converted<Box<str>> {
    match name.to_ascii_lowercase().as_str() {
        "" => Err(at.error_in("upgrade_type", "must not be empty")),
        "connect-udp" => Err(at.error_in("upgrade_type", format!("not supported: {name}"))),
        lower => Ok(lower.into()),
    }
}

fn escaped_slashes(at: &At<'_>, value: i32) -> Converted<EscapedSlashes> {
    use nested::PathWithEscapedSlashesAction as Action;
    Ok(match enumeration(at, "path_with_escaped_slashes_action", value)? {
        Action::ImplementationSpecificDefault | Action::KeepUnchanged => EscapedSlashes::Keep,
        Action::RejectRequest => EscapedSlashes::Reject,
        Action::UnescapeAndRedirect => EscapedSlashes::UnescapeAndRedirect,
        Action::UnescapeAndForward => EscapedSlashes::UnescapeAndForward,
    })
}

fn local_reply(at: &At<'_>, config: proto::LocalReplyConfig) -> Converted<LocalReplyConfig> {
    fields!(at, config => proto::LocalReplyConfig {
        used { mappers, body_format }
        inert {}
        rejected {}
    });
    let mappers = mappers.into_iter().enumerate();
    Ok(LocalReplyConfig {
        mappers: mappers
            .map(|(index, mapper)| local_reply_mapper(&at.index("mappers", index), mapper))
            .collect::<Converted<_>>()?,
        body_format: body_format
            .map(|format| self::body_format(&at.field("body_format"), format))
            .transpose()?,
    })
}

fn local_reply_mapper(at: &At<'_>, mapper: proto::ResponseMapper) -> Converted<LocalReplyMapper> {
    fields!(at, mapper => proto::ResponseMapper {
        used { filter, status_code, body, body_format_override, headers_to_add }
        inert {}
        rejected {}
    });
    let body = body.map(|source| data_source(&at.field("body"), source)).transpose()?;
    let body = body
        .map(|bytes| String::from_utf8(bytes).map_err(|_| at.error_in("body", "is not valid UTF-8")))
        .transpose()?;
    let status =
        number(status_code).map(|status| u16::try_from(status).ok().filter(|s| (200..600).contains(s)));
    let status = match status {
        Some(None) => return Err(at.error_in("status_code", "must be between 200 and 599")),
        status => status.flatten(),
    };
    Ok(LocalReplyMapper {
        filter: log_filter(&at.field("filter"), required(at, "filter", filter)?)?,
        status,
        body: body.map(Into::into),
        body_format: body_format_override
            .map(|format| body_format(&at.field("body_format_override"), format))
            .transpose()?,
        headers_to_add: self::headers_to_add(at, "headers_to_add", headers_to_add)?,
    })
}
