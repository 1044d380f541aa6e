//! HTTP filters, and `typed_per_filter_config`.
#![allow(deprecated)]

use std::collections::HashMap;
use std::sync::Arc;

use lateen_xds::pb::envoy::config::route::v3 as route;
use lateen_xds::pb::envoy::extensions::filters::http::router::v3 as router;
use lateen_xds::pb::envoy::extensions::filters::network::http_connection_manager::v3 as proto;
use lateen_xds::pb::google::protobuf::Any;

use super::access_log::access_logs;
use super::cluster_names::ClusterNames;
use super::cors::{cors, cors_policy};
use super::dynamic_forward_proxy::{http_dynamic, route_dynamic};
use super::ext_authz::{ext_authz, route_ext_authz};
use super::fault::fault;
use super::jwt_authn::{jwt_authn, jwt_route};
use super::rbac::{http_rbac, route_rbac};
use super::values::{Converted, required, typed};
use crate::error::At;
use crate::support::fields;
use crate::{
    FilterOverride, FilterOverrides, FilterRouteConfig, FilterSetting, HttpFilter, HttpFilterKind, Router,
};

pub(super) fn http_filters(at: &At<'_>, filters: Vec<proto::HttpFilter>) -> Converted<Vec<HttpFilter>> {
    if filters.is_empty() {
        return Err(at.error_in("http_filters", "must not be empty: the last filter must be the router"));
    }
    let last = filters.len() - 1;
    let mut converted: Vec<HttpFilter> = Vec::with_capacity(filters.len());
    for (index, filter) in filters.into_iter().enumerate() {
        let at = at.index("http_filters", index);
        let filter = http_filter(&at, filter)?;
        let is_router = matches!(filter.kind, HttpFilterKind::Router(_));
        if is_router && index != last {
            return Err(at.error("the router must be the last filter"));
        }
        if !is_router && index == last {
            return Err(at.error("the last filter must be the router"));
        }
        converted.push(filter);
    }
    Ok(converted)
}

fn http_filter(at: &At<'_>, filter: proto::HttpFilter) -> Converted<HttpFilter> {
    use proto::http_filter::ConfigType;
    fields!(at, filter => proto::HttpFilter {
        used { name, disabled, config_type }
        inert { is_optional = "a filter that is not supported is refused, so that nothing is left out silently" }
        rejected {}
        variants { config_discovery = "discovery of filter configurations" }
    });
    let any = match required(at, "typed_config", config_type)? {
        ConfigType::TypedConfig(any) => any,
        ConfigType::ConfigDiscovery(_) => {
            return Err(at.error_in("config_discovery", "not supported: discovery of filter configurations"));
        }
    };
    let at_config = at.field("typed_config");
    let kind = match lateen_xds::any::message_name(&any.type_url) {
        "envoy.extensions.filters.http.router.v3.Router" => {
            if disabled {
                return Err(at.error_in("disabled", "the router can't be disabled"));
            }
            HttpFilterKind::Router(router_filter(&at_config, typed(at, &any)?)?)
        }
        "envoy.extensions.filters.http.fault.v3.HTTPFault" => {
            HttpFilterKind::Fault(Arc::new(fault(&at_config, typed(at, &any)?)?))
        }
        "envoy.extensions.filters.http.cors.v3.Cors" => {
            cors(typed(at, &any)?);
            HttpFilterKind::Cors
        }
        "envoy.extensions.filters.http.jwt_authn.v3.JwtAuthentication" => {
            HttpFilterKind::Jwt(Arc::new(jwt_authn(&at_config, typed(at, &any)?)?))
        }
        "envoy.extensions.filters.http.ext_authz.v3.ExtAuthz" => {
            HttpFilterKind::ExtAuthz(Arc::new(ext_authz(&at_config, typed(at, &any)?)?))
        }
        "envoy.extensions.filters.http.rbac.v3.RBAC" => {
            HttpFilterKind::Rbac(Arc::new(http_rbac(&at_config, typed(at, &any)?)?))
        }
        "envoy.extensions.filters.http.dynamic_forward_proxy.v3.FilterConfig" => {
            HttpFilterKind::DynamicForwardProxy(http_dynamic(&at_config, typed(at, &any)?)?)
        }
        other => return Err(at_config.error(format!("HTTP filter {other:?} is not supported"))),
    };
    Ok(HttpFilter { name: name.into(), kind, disabled })
}

fn router_filter(at: &At<'_>, message: router::Router) -> Converted<Router> {
    fields!(at, message => router::Router {
        used { upstream_log, suppress_envoy_headers, respect_expected_rq_timeout }
        inert {
            dynamic_stats = "per-cluster stats are always kept",
            start_child_span = "there is no tracing",
            suppress_grpc_request_failure_code_stats = "there are no such stats",
            reject_connect_request_early_data = "what comes with CONNECT is kept until the tunnel is open",
        }
        rejected {
            upstream_log_options = "extra upstream log lines",
            strict_check_headers = "validation of x-envoy headers",
            upstream_http_filters = "HTTP filters towards upstream",
        }
    });
    Ok(Router {
        upstream_log: access_logs(at, "upstream_log", upstream_log)?,
        suppress_envoy_headers,
        respect_expected_rq_timeout,
    })
}

/// The names of filters that one route configuration speaks of, in the order of their first use.
#[derive(Default)]
pub(super) struct FilterNames(Vec<Arc<str>>);

impl FilterNames {
    /// Names that have their numbers already.
    pub(super) fn after(list: &[Arc<str>]) -> Self {
        Self(list.to_vec())
    }

    fn position(&mut self, name: &str) -> u32 {
        let known = self.0.iter().position(|known| &**known == name);
        let position = known.unwrap_or_else(|| {
            self.0.push(name.into());
            self.0.len() - 1
        });
        // A resource with 2^32 names would not fit into memory.
        u32::try_from(position).unwrap_or(u32::MAX)
    }

    pub(super) fn into_list(self) -> Vec<Arc<str>> {
        self.0
    }
}

/// A level's `typed_per_filter_config`.
pub(super) fn overrides(
    at: &At<'_>,
    configs: HashMap<String, Any>,
    filters: &mut FilterNames,
    clusters: &mut ClusterNames,
) -> Converted<FilterOverrides> {
    let mut list = Vec::with_capacity(configs.len());
    for (name, any) in &configs {
        let at = at.key("typed_per_filter_config", name);
        let setting = match lateen_xds::any::message_name(&any.type_url) {
            "envoy.config.route.v3.FilterConfig" => filter_config(&at, typed(&at, any)?, clusters)?,
            _ => Some(FilterSetting::Config(route_config(&at, any, clusters)?)),
        };
        if let Some(setting) = setting {
            list.push(FilterOverride { filter: filters.position(name), setting });
        }
    }
    list.sort_by_key(|entry| entry.filter);
    Ok(list.into())
}

/// `None`: optional and not supported, so as if it were not there.
fn filter_config(
    at: &At<'_>,
    message: route::FilterConfig,
    clusters: &mut ClusterNames,
) -> Converted<Option<FilterSetting>> {
    fields!(at, message => route::FilterConfig {
        used { config, is_optional, disabled }
        inert {}
        rejected {}
    });
    if disabled {
        return Ok(Some(FilterSetting::Disabled));
    }
    let config = required(at, "config", config)?;
    if config.type_url.is_empty() {
        return Ok(Some(FilterSetting::Enabled));
    }
    let at = at.field("config");
    if is_optional && !SUPPORTED.contains(&lateen_xds::any::message_name(&config.type_url)) {
        return Ok(None);
    }
    route_config(&at, &config, clusters).map(|config| Some(FilterSetting::Config(config)))
}

/// Types of per-route configuration.
const SUPPORTED: [&str; 6] = [
    "envoy.extensions.filters.http.fault.v3.HTTPFault",
    "envoy.extensions.filters.http.cors.v3.CorsPolicy",
    "envoy.extensions.filters.http.jwt_authn.v3.PerRouteConfig",
    "envoy.extensions.filters.http.rbac.v3.RBACPerRoute",
    "envoy.extensions.filters.http.dynamic_forward_proxy.v3.PerRouteConfig",
    "envoy.extensions.filters.http.ext_authz.v3.ExtAuthzPerRoute",
];

fn route_config(at: &At<'_>, any: &Any, clusters: &mut ClusterNames) -> Converted<FilterRouteConfig> {
    let name = lateen_xds::any::message_name(&any.type_url);
    match name {
        "envoy.extensions.filters.http.fault.v3.HTTPFault" => {
            Ok(FilterRouteConfig::Fault(Arc::new(fault(at, typed(at, any)?)?)))
        }
        "envoy.extensions.filters.http.cors.v3.CorsPolicy" => {
            Ok(FilterRouteConfig::Cors(Arc::new(cors_policy(at, typed(at, any)?)?)))
        }
        "envoy.extensions.filters.http.jwt_authn.v3.PerRouteConfig" => {
            Ok(FilterRouteConfig::Jwt(jwt_route(at, typed(at, any)?)?))
        }
        "envoy.extensions.filters.http.ext_authz.v3.ExtAuthzPerRoute" => {
            Ok(FilterRouteConfig::ExtAuthz(Arc::new(route_ext_authz(at, typed(at, any)?, clusters)?)))
        }
        "envoy.extensions.filters.http.rbac.v3.RBACPerRoute" => {
            Ok(FilterRouteConfig::Rbac(Arc::new(route_rbac(at, typed(at, any)?)?)))
        }
        "envoy.extensions.filters.http.dynamic_forward_proxy.v3.PerRouteConfig" => {
            Ok(FilterRouteConfig::DynamicForwardProxy(route_dynamic(at, typed(at, any)?)?))
        }
        _ => Err(at.error(format!("{name:?} is not supported as a filter's configuration for routes"))),
    }
}
