//! HTTP options of clusters, new style and deprecated.
#![allow(deprecated)]

use lateen_xds::pb::envoy::config::core::v3 as core;
use lateen_xds::pb::envoy::extensions::upstreams::http::v3 as proto;
use lateen_xds::pb::google::protobuf::Any;
use proto::http_protocol_options::UpstreamProtocolOptions;
use proto::http_protocol_options::explicit_http_config::ProtocolConfig;

use super::http_options::{common_options, http1_options, http2_options};
use super::values::{Converted, required};
use crate::error::At;
use crate::support::fields;
use crate::{UpstreamHttp, UpstreamNames, UpstreamProtocol};

const KEY: &str = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions";

/// What older configurations write directly into the cluster.
pub(super) struct Deprecated {
    pub(super) common: Option<core::HttpProtocolOptions>,
    pub(super) http1: Option<core::Http1ProtocolOptions>,
    pub(super) http2: Option<core::Http2ProtocolOptions>,
    pub(super) downstream: bool,
    pub(super) max_requests_per_connection: Option<u32>,
    pub(super) names: Option<core::UpstreamHttpProtocolOptions>,
}

pub(super) fn upstream_http(at: &At<'_>, options: Option<Any>, old: Deprecated) -> Converted<UpstreamHttp> {
    let Some(any) = options else { return deprecated(at, old) };
    if old.common.is_some()
        || old.http1.is_some()
        || old.http2.is_some()
        || old.downstream
        || old.names.is_some()
    {
        let reason = "must not be set together with deprecated HTTP options of the cluster";
        return Err(at.key("typed_extension_protocol_options", KEY).error(reason));
    }
    let at = at.key("typed_extension_protocol_options", KEY);
    let message: proto::HttpProtocolOptions =
        lateen_xds::any::unpack(&any).map_err(|error| at.error(error.to_string()))?;
    fields!(&at, message => proto::HttpProtocolOptions {
        used { common_http_protocol_options, upstream_protocol_options, upstream_http_protocol_options }
        inert {}
        rejected {
            http_filters = "HTTP filters towards upstream",
            header_validation_config = "header validation by extension",
            outlier_detection = "what counts as an error",
            request_mirror_policies = "mirroring",
            hash_policy = "consistent hashing",
            retry_policy = "retries by cluster",
        }
        variants { auto_config = "choosing the version by ALPN" }
    });
    let mut http = UpstreamHttp {
        common: common_options(&at.field("common_http_protocol_options"), common_http_protocol_options)?,
        names: names(&at.field("upstream_http_protocol_options"), upstream_http_protocol_options)?,
        ..UpstreamHttp::default()
    };
    match required(&at, "upstream_protocol_options", upstream_protocol_options)? {
        UpstreamProtocolOptions::ExplicitHttpConfig(config) => {
            let at = at.field("explicit_http_config");
            match required(&at, "protocol_config", config.protocol_config)? {
                ProtocolConfig::HttpProtocolOptions(options) => {
                    http.http1 = http1_options(&at.field("http_protocol_options"), Some(options))?;
                }
                ProtocolConfig::Http2ProtocolOptions(options) => {
                    http.protocol = UpstreamProtocol::Http2;
                    http.http2 = http2_options(&at.field("http2_protocol_options"), Some(options))?;
                }
                ProtocolConfig::Http3ProtocolOptions(_) => {
                    return Err(at.error_in("http3_protocol_options", "not supported: HTTP/3"));
                }
            }
        }
        UpstreamProtocolOptions::UseDownstreamProtocolConfig(config) => {
            let at = at.field("use_downstream_protocol_config");
            at.refuse("http3_protocol_options", &config.http3_protocol_options, "HTTP/3")?;
            http.protocol = UpstreamProtocol::Downstream;
            http.http1 = http1_options(&at.field("http_protocol_options"), config.http_protocol_options)?;
            http.http2 = http2_options(&at.field("http2_protocol_options"), config.http2_protocol_options)?;
        }
        UpstreamProtocolOptions::AutoConfig(_) => {
            return Err(at.error_in("auto_config", "not supported: choosing the version by ALPN"));
        }
    }
    if let Some(limit) = old.max_requests_per_connection {
        http.common.max_requests_per_connection.get_or_insert(limit);
    }
    Ok(http)
}

fn names(at: &At<'_>, options: Option<core::UpstreamHttpProtocolOptions>) -> Converted<UpstreamNames> {
    let Some(message) = options else { return Ok(UpstreamNames::default()) };
    fields!(at, message => core::UpstreamHttpProtocolOptions {
        used { auto_sni, auto_san_validation, override_auto_sni_header }
        inert {}
        rejected {}
    });
    let header = (!override_auto_sni_header.is_empty())
        .then(|| super::matchers::header_name(at, "override_auto_sni_header", &override_auto_sni_header))
        .transpose()?;
    Ok(UpstreamNames { auto_sni, auto_san_validation, header })
}

fn deprecated(at: &At<'_>, old: Deprecated) -> Converted<UpstreamHttp> {
    let protocol = match (old.downstream, &old.http2) {
        (true, _) => UpstreamProtocol::Downstream,
        (false, Some(_)) => UpstreamProtocol::Http2,
        (false, None) => UpstreamProtocol::Http1,
    };
    let mut common = common_options(&at.field("common_http_protocol_options"), old.common)?;
    common.max_requests_per_connection =
        common.max_requests_per_connection.or(old.max_requests_per_connection);
    Ok(UpstreamHttp {
        protocol,
        common,
        http1: http1_options(&at.field("http_protocol_options"), old.http1)?,
        http2: http2_options(&at.field("http2_protocol_options"), old.http2)?,
        names: names(&at.field("upstream_http_protocol_options"), old.names)?,
    })
}
