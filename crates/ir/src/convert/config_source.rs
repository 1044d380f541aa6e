//! Where configuration comes from.
#![allow(deprecated)]

use std::sync::Arc;
use std::time::Duration;

use lateen_xds::pb::envoy::config::core::v3 as core;

use super::values::{Converted, timeout};
use crate::error::At;
use crate::support::fields;

/// A supported source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Source {
    /// The aggregated stream.
    Ads,
    /// A file.
    Path(Arc<str>),
    /// A stream of its own, to this cluster.
    Stream(String),
}

/// Why [`Source::Stream`] is refused where it is.
pub(super) const STREAM_NOT_SUPPORTED: &str =
    "api_config_source: not supported: a stream of its own; use ads";

/// The source and how long its first answer is waited for (default 15 s; `None`: for ever).
pub(super) fn config_source(
    at: &At<'_>,
    source: core::ConfigSource,
) -> Converted<(Source, Option<Duration>)> {
    use core::config_source::ConfigSourceSpecifier;
    fields!(at, source => core::ConfigSource {
        used { initial_fetch_timeout, resource_api_version, config_source_specifier }
        inert {}
        rejected { authorities = "xdstp authorities" }
        variants { api_config_source = "a stream of its own, but for secrets to the cluster sds-grpc, the agent; use ads" }
    });
    api_version(at, "resource_api_version", resource_api_version)?;
    let source = match config_source_specifier {
        Some(ConfigSourceSpecifier::Ads(core::AggregatedConfigSource {})) => Source::Ads,
        // The server a resource came from is the ADS server: there is no other.
        Some(ConfigSourceSpecifier::Self_(_)) => Source::Ads,
        Some(ConfigSourceSpecifier::Path(path)) => Source::Path(path.into()),
        Some(ConfigSourceSpecifier::PathConfigSource(path)) => {
            path_source(&at.field("path_config_source"), path)?
        }
        Some(ConfigSourceSpecifier::ApiConfigSource(source)) => {
            stream_source(&at.field("api_config_source"), source)?
        }
        None => return Err(at.error("one of ads and path_config_source is required")),
    };
    let wait = timeout(at, "initial_fetch_timeout", initial_fetch_timeout, Some(Duration::from_secs(15)))?;
    Ok((source, wait))
}

fn stream_source(at: &At<'_>, source: core::ApiConfigSource) -> Converted<Source> {
    use core::api_config_source::ApiType;
    use core::grpc_service::TargetSpecifier;
    // What the table of fields says of this message is for the bootstrap's stream.
    let core::ApiConfigSource {
        api_type,
        transport_api_version,
        cluster_names,
        grpc_services,
        refresh_delay,
        request_timeout,
        rate_limit_settings,
        set_node_on_first_message_only: _,
        config_validators,
    } = source;
    for (field, given) in [
        ("cluster_names", !cluster_names.is_empty()),
        ("refresh_delay", refresh_delay.is_some()),
        ("request_timeout", request_timeout.is_some()),
        ("rate_limit_settings", rate_limit_settings.is_some()),
        ("config_validators", !config_validators.is_empty()),
    ] {
        if given {
            return Err(at.error_in(field, "not supported for secrets of the agent"));
        }
    }
    api_version(at, "transport_api_version", transport_api_version)?;
    if !matches!(ApiType::try_from(api_type), Ok(ApiType::Grpc | ApiType::DeltaGrpc)) {
        return Err(at.error_in("api_type", "not supported: only GRPC and DELTA_GRPC are"));
    }
    let [service] = <[core::GrpcService; 1]>::try_from(grpc_services)
        .map_err(|_| at.error_in("grpc_services", "must have exactly one element"))?;
    match service.target_specifier {
        Some(TargetSpecifier::EnvoyGrpc(grpc)) => Ok(Source::Stream(grpc.cluster_name)),
        _ => Err(at.error_in("grpc_services[0]", "not supported: anything but envoy_grpc")),
    }
}

fn path_source(at: &At<'_>, source: core::PathConfigSource) -> Converted<Source> {
    fields!(at, source => core::PathConfigSource {
        used { path }
        inert {}
        rejected {
            watched_directory = "watching another directory",
            poll_interval = "polling; the file's directory is watched",
        }
    });
    if path.is_empty() {
        return Err(at.error_in("path", "must not be empty"));
    }
    Ok(Source::Path(path.into()))
}

/// Only v3 is there; `AUTO` is an old way of saying v2.
pub(super) fn api_version(at: &At<'_>, field: &str, version: i32) -> Converted<()> {
    match core::ApiVersion::try_from(version) {
        Ok(core::ApiVersion::V3 | core::ApiVersion::Auto) => Ok(()),
        _ => Err(at.error_in(field, "must be V3")),
    }
}
