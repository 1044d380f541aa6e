//! Options of the HTTP codecs, for listeners and clusters.
#![allow(deprecated)]

use std::time::Duration;

use lateen_xds::pb::envoy::config::core::v3 as core;

use super::values::{Converted, bool_or, duration, enumeration, number, positive, timeout};
use crate::error::At;
use crate::support::fields;
use crate::{CommonHttpOptions, Http1Options, Http2Floods, Http2Keepalive, Http2Options, Underscores};

pub(super) fn common_options(
    at: &At<'_>,
    options: Option<core::HttpProtocolOptions>,
) -> Converted<CommonHttpOptions> {
    let Some(options) = options else { return Ok(CommonHttpOptions::default()) };
    fields!(at, options => core::HttpProtocolOptions {
        used {
            idle_timeout, max_connection_duration, max_headers_count, max_stream_duration,
            headers_with_underscores_action, max_requests_per_connection,
        }
        inert {}
        rejected {
            max_connection_duration_jitter = "jitter of the longest duration",
            max_response_headers_kb = "a limit on response headers",
        }
    });
    use core::http_protocol_options::HeadersWithUnderscoresAction as Action;
    let default = CommonHttpOptions::default();
    Ok(CommonHttpOptions {
        idle_timeout: timeout(at, "idle_timeout", idle_timeout, default.idle_timeout)?,
        max_connection_duration: timeout(at, "max_connection_duration", max_connection_duration, None)?,
        max_stream_duration: timeout(at, "max_stream_duration", max_stream_duration, None)?,
        max_headers_count: match number(max_headers_count) {
            Some(0) => return Err(at.error_in("max_headers_count", "must be at least 1")),
            count => count.unwrap_or(default.max_headers_count),
        },
        max_requests_per_connection: number(max_requests_per_connection).filter(|count| *count > 0),
        underscores: match enumeration(
            at,
            "headers_with_underscores_action",
            headers_with_underscores_action,
        )? {
            Action::Allow => Underscores::Allow,
            Action::RejectRequest => Underscores::Reject,
            Action::DropHeader => Underscores::Drop,
        },
    })
}

pub(super) fn http1_options(
    at: &At<'_>,
    options: Option<core::Http1ProtocolOptions>,
) -> Converted<Http1Options> {
    use core::http1_protocol_options::header_key_format::HeaderFormat;
    let Some(options) = options else { return Ok(Http1Options::default()) };
    fields!(at, options => core::Http1ProtocolOptions {
        used {
            allow_absolute_url, accept_http_10, default_host_for_http_10, header_key_format,
            override_stream_error_on_invalid_http_message, allow_custom_methods,
        }
        inert { use_balsa_parser = "there is one parser" }
        rejected {
            enable_trailers = "HTTP/1 trailers",
            allow_chunked_length = "messages with content-length and transfer-encoding",
            send_fully_qualified_url = "absolute URLs towards upstream",
            ignore_http_11_upgrade = "ignoring upgrades",
        }
    });
    if !bool_or(allow_absolute_url, true) {
        return Err(at.error_in("allow_absolute_url", "not supported: absolute URLs are always taken"));
    }
    if bool_or(override_stream_error_on_invalid_http_message, false) {
        let reason = "not supported: a malformed HTTP/1 message closes its connection";
        return Err(at.error_in("override_stream_error_on_invalid_http_message", reason));
    }
    let proper_case_headers = match header_key_format.and_then(|format| format.header_format) {
        None => false,
        Some(HeaderFormat::ProperCaseWords(_)) => true,
        Some(HeaderFormat::StatefulFormatter(_)) => {
            let at = at.field("header_key_format");
            return Err(at.error_in("stateful_formatter", "not supported: formatters by extension"));
        }
    };
    let host = default_host_for_http_10;
    Ok(Http1Options {
        accept_http_10,
        default_host_for_http_10: (!host.is_empty()).then(|| host.into()),
        proper_case_headers,
        allow_custom_methods,
    })
}

pub(super) fn http2_options(
    at: &At<'_>,
    options: Option<core::Http2ProtocolOptions>,
) -> Converted<Http2Options> {
    let Some(options) = options else { return Ok(Http2Options::default()) };
    fields!(at, options => core::Http2ProtocolOptions {
        used {
            hpack_table_size, max_concurrent_streams, initial_stream_window_size, initial_connection_window_size,
            allow_connect, connection_keepalive, max_consecutive_inbound_frames_with_empty_payload,
            max_inbound_priority_frames_per_stream, max_inbound_window_update_frames_per_data_frame_sent,
        }
        inert {
            max_outbound_frames = "nothing more is read before what is to be sent has gone out",
            max_outbound_control_frames = "nothing more is read before what is to be sent has gone out",
            use_oghttp2_codec = "there is one codec",
            stream_reset_burst = "the codec has its own protection against floods",
            stream_reset_rate = "the codec has its own protection against floods",
            stream_error_on_invalid_http_messaging = "a malformed message resets its stream",
            override_stream_error_on_invalid_http_message = "a malformed message resets its stream",
        }
        rejected {
            allow_metadata = "METADATA frames",
            custom_settings_parameters = "custom SETTINGS",
            max_metadata_size = "METADATA frames",
            enable_huffman_encoding = "switching Huffman encoding",
            max_header_field_size_kb = "a limit on one header",
            disallow_obs_text = "refusing obs-text",
        }
    });
    let window = |field: &str, value| match number(value) {
        Some(size) if !(65_535..=2_147_483_647).contains(&size) => {
            Err(at.error_in(field, "must be between 65535 and 2147483647"))
        }
        size => Ok(size),
    };
    Ok(Http2Options {
        hpack_table_size: number(hpack_table_size),
        max_concurrent_streams: match number(max_concurrent_streams) {
            Some(0) => return Err(at.error_in("max_concurrent_streams", "must be at least 1")),
            streams => streams,
        },
        initial_stream_window_size: window("initial_stream_window_size", initial_stream_window_size)?,
        initial_connection_window_size: window(
            "initial_connection_window_size",
            initial_connection_window_size,
        )?,
        allow_connect,
        floods: {
            let default = Http2Floods::default();
            let updates = number(max_inbound_window_update_frames_per_data_frame_sent);
            if updates == Some(0) {
                let field = "max_inbound_window_update_frames_per_data_frame_sent";
                return Err(at.error_in(field, "must be at least 1"));
            }
            Http2Floods {
                empty_frames: number(max_consecutive_inbound_frames_with_empty_payload)
                    .unwrap_or(default.empty_frames),
                priority_frames_per_stream: number(max_inbound_priority_frames_per_stream)
                    .unwrap_or(default.priority_frames_per_stream),
                window_updates_per_data_frame: updates.unwrap_or(default.window_updates_per_data_frame),
            }
        },
        keepalive: connection_keepalive
            .map(|keepalive| self::keepalive(&at.field("connection_keepalive"), keepalive))
            .transpose()?,
    })
}

fn keepalive(at: &At<'_>, keepalive: core::KeepaliveSettings) -> Converted<Http2Keepalive> {
    fields!(at, keepalive => core::KeepaliveSettings {
        used { interval, timeout }
        inert { interval_jitter = "the interval is kept exactly; without it Envoy adds up to 15 %" }
        rejected { connection_idle_interval = "PINGs before the next request" }
    });
    if timeout.is_none() {
        return Err(at.error_in("timeout", "is required"));
    }
    Ok(Http2Keepalive {
        interval: duration(at, "interval", interval)?.filter(|interval| *interval > Duration::ZERO),
        timeout: positive(at, "timeout", timeout, Duration::ZERO)?,
    })
}
