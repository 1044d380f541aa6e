//! Active health checks.
#![allow(deprecated)]

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use core::health_check as nested;
use http::Method;
use http::uri::PathAndQuery;
use lateen_xds::pb::envoy::config::core::v3 as core;
use lateen_xds::pb::envoy::config::endpoint::v3::endpoint::HealthCheckConfig;
use lateen_xds::pb::envoy::r#type::v3::{CodecClientType, Int64Range};

use super::values::{
    Converted, bool_or, duration, enumeration, number, optional, port, positive, required, socket_address,
};
use crate::error::At;
use crate::support::fields;
use crate::{EndpointHealthCheck, GrpcProbe, HealthCheck, HealthProbe, HttpProbe, TcpProbe};

/// The one check a cluster may have.
pub(super) fn health_checks(
    at: &At<'_>,
    mut checks: Vec<core::HealthCheck>,
) -> Converted<Option<HealthCheck>> {
    if checks.len() > 1 {
        return Err(at.error_in("health_checks", "multiple health checks are not supported, by Envoy either"));
    }
    checks.pop().map(|check| health_check(&at.index("health_checks", 0), check)).transpose()
}

fn health_check(at: &At<'_>, message: core::HealthCheck) -> Converted<HealthCheck> {
    fields!(at, message => core::HealthCheck {
        used {
            timeout, interval, initial_jitter, interval_jitter, interval_jitter_percent, unhealthy_threshold,
            healthy_threshold, reuse_connection, no_traffic_interval, no_traffic_healthy_interval, unhealthy_interval,
            unhealthy_edge_interval, healthy_edge_interval, health_checker, tls_options, transport_socket_match_criteria,
        }
        inert {
            alt_port = "Envoy does not implement it",
            event_service = "Envoy does not implement it",
            always_log_health_check_failures = "there is no log of events, as in Envoy without event_logger",
            always_log_health_check_success = "there is no log of events, as in Envoy without event_logger",
        }
        rejected {
            event_log_path = "a log of health check events",
            event_logger = "a log of health check events",
        }
        variants {
            custom_health_check = "health checks by extension",
        }
    });
    let threshold = |field: &str, value| match number(value) {
        None => Err(at.error_in(field, "is required")),
        Some(value) => Ok(value.max(1)),
    };
    let needed = |field: &str, value: Option<_>| {
        let value = required(at, field, value)?;
        positive(at, field, Some(value), Duration::ZERO)
    };
    let interval = needed("interval", interval)?;
    let no_traffic = positive(at, "no_traffic_interval", no_traffic_interval, Duration::from_secs(60))?;
    let unhealthy = positive(at, "unhealthy_interval", unhealthy_interval, interval)?;
    Ok(HealthCheck {
        timeout: needed("timeout", timeout)?,
        interval,
        initial_jitter: duration(at, "initial_jitter", initial_jitter)?.unwrap_or_default(),
        interval_jitter: duration(at, "interval_jitter", interval_jitter)?.unwrap_or_default(),
        interval_jitter_percent,
        unhealthy_threshold: threshold("unhealthy_threshold", unhealthy_threshold)?,
        healthy_threshold: threshold("healthy_threshold", healthy_threshold)?,
        reuse_connection: bool_or(reuse_connection, true),
        no_traffic_interval: no_traffic,
        no_traffic_healthy_interval: positive(
            at,
            "no_traffic_healthy_interval",
            no_traffic_healthy_interval,
            no_traffic,
        )?,
        unhealthy_interval: unhealthy,
        unhealthy_edge_interval: positive(at, "unhealthy_edge_interval", unhealthy_edge_interval, unhealthy)?,
        healthy_edge_interval: positive(at, "healthy_edge_interval", healthy_edge_interval, interval)?,
        alpn: tls_options
            .map(|options| options.alpn_protocols)
            .unwrap_or_default()
            .into_iter()
            .map(Into::into)
            .collect(),
        transport_criteria: transport_socket_match_criteria
            .map(|criteria| Arc::new(super::values::struct_value(criteria))),
        probe: match required(at, "health_checker", health_checker)? {
            nested::HealthChecker::HttpHealthCheck(probe) => {
                HealthProbe::Http(http_probe(&at.field("http_health_check"), probe)?)
            }
            nested::HealthChecker::TcpHealthCheck(probe) => {
                HealthProbe::Tcp(tcp_probe(&at.field("tcp_health_check"), probe)?)
            }
            nested::HealthChecker::GrpcHealthCheck(probe) => {
                HealthProbe::Grpc(grpc_probe(&at.field("grpc_health_check"), probe)?)
            }
            nested::HealthChecker::CustomHealthCheck(_) => {
                return Err(at.error_in("custom_health_check", "not supported: health checks by extension"));
            }
        },
    })
}

fn http_probe(at: &At<'_>, message: nested::HttpHealthCheck) -> Converted<HttpProbe> {
    fields!(at, message => nested::HttpHealthCheck {
        used { host, path, expected_statuses, retriable_statuses, codec_client_type, method }
        inert { response_buffer_size = "for receive, which is refused" }
        rejected {
            send = "health checks with a body",
            receive = "bodies of answers to health checks",
            request_headers_to_add = "headers of health checks",
            request_headers_to_remove = "headers of health checks",
            service_name_matcher = "names of services in answers to health checks",
        }
    });
    let http2 = match enumeration::<CodecClientType>(at, "codec_client_type", codec_client_type)? {
        CodecClientType::Http1 => false,
        CodecClientType::Http2 => true,
        CodecClientType::Http3 => return Err(at.error_in("codec_client_type", "not supported: HTTP3")),
    };
    if path.is_empty() {
        return Err(at.error_in("path", "must not be empty"));
    }
    let method = match enumeration::<core::RequestMethod>(at, "method", method)? {
        core::RequestMethod::MethodUnspecified | core::RequestMethod::Get => Method::GET,
        core::RequestMethod::Head => Method::HEAD,
        core::RequestMethod::Post => Method::POST,
        core::RequestMethod::Put => Method::PUT,
        core::RequestMethod::Delete => Method::DELETE,
        core::RequestMethod::Options => Method::OPTIONS,
        core::RequestMethod::Trace => Method::TRACE,
        core::RequestMethod::Patch => Method::PATCH,
        core::RequestMethod::Connect => return Err(at.error_in("method", "must not be CONNECT")),
    };
    let expected = statuses(at, "expected_statuses", expected_statuses)?;
    Ok(HttpProbe {
        http2,
        host: optional(host),
        path: PathAndQuery::try_from(path).map_err(|error| at.error_in("path", error.to_string()))?,
        method,
        expected: if expected.is_empty() { std::iter::once(200..201).collect() } else { expected },
        retriable: statuses(at, "retriable_statuses", retriable_statuses)?,
    })
}

/// Half-open ranges of statuses.
fn statuses(at: &At<'_>, field: &str, ranges: Vec<Int64Range>) -> Converted<Vec<Range<u16>>> {
    let convert = |(index, Int64Range { start, end }): (usize, Int64Range)| {
        let allowed = 100..=600;
        match (u16::try_from(start), u16::try_from(end)) {
            (Ok(from), Ok(to)) if from < to && allowed.contains(&from) && allowed.contains(&to) => {
                Ok(from..to)
            }
            _ => Err(at.index(field, index).error("must be a range within [100, 600)")),
        }
    };
    ranges.into_iter().enumerate().map(convert).collect()
}

fn tcp_probe(at: &At<'_>, message: nested::TcpHealthCheck) -> Converted<TcpProbe> {
    fields!(at, message => nested::TcpHealthCheck {
        used { send, receive }
        inert {}
        rejected { proxy_protocol_config = "the PROXY protocol before health checks" }
    });
    let receive = receive.into_iter().enumerate();
    Ok(TcpProbe {
        send: send.map(|send| payload(&at.field("send"), send)).transpose()?.unwrap_or_default(),
        receive: receive
            .map(|(index, block)| payload(&at.index("receive", index), block))
            .collect::<Converted<_>>()?,
    })
}

fn grpc_probe(at: &At<'_>, message: nested::GrpcHealthCheck) -> Converted<GrpcProbe> {
    fields!(at, message => nested::GrpcHealthCheck {
        used { service_name, authority }
        inert {}
        rejected { initial_metadata = "headers of health checks" }
    });
    Ok(GrpcProbe { service: service_name.into(), authority: optional(authority) })
}

fn payload(at: &At<'_>, payload: nested::Payload) -> Converted<Vec<u8>> {
    match required(at, "payload", payload.payload)? {
        nested::payload::Payload::Binary(bytes) if !bytes.is_empty() => Ok(bytes),
        nested::payload::Payload::Binary(_) => Err(at.error_in("binary", "must not be empty")),
        nested::payload::Payload::Text(text) => {
            let digit = |byte: &u8| char::from(*byte).to_digit(16);
            let pairs = text.as_bytes().chunks(2).map(|pair| match pair {
                [high, low] => u8::try_from(digit(high)? * 16 + digit(low)?).ok(),
                _ => None,
            });
            let bytes = pairs.collect::<Option<Vec<u8>>>().filter(|bytes| !bytes.is_empty());
            bytes.ok_or_else(|| at.error_in("text", format!("{text:?} is not hexadecimal")))
        }
    }
}

pub(super) fn endpoint_health_check(
    at: &At<'_>,
    message: HealthCheckConfig,
) -> Converted<EndpointHealthCheck> {
    fields!(at, message => HealthCheckConfig {
        used { port_value, hostname, address, disable_active_health_check }
        inert {}
        rejected {}
    });
    let other = address
        .map(|address| socket_address(&at.field("address"), Some(address)))
        .transpose()?
        .map(|address| address.ip());
    Ok(EndpointHealthCheck {
        port: match port_value {
            0 => None,
            value => Some(port(at, "port_value", value)?),
        },
        address: other,
        hostname: optional(hostname),
        disabled: disable_active_health_check,
    })
}
