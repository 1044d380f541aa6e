//! The HTTP filters of a connection manager, and what routes change about them.

use std::sync::Arc;

use crate::access_log::AccessLog;
use crate::cors::CorsPolicy;
use crate::dynamic_forward_proxy::{DnsCacheConfig, DynamicHostRewrite};
use crate::ext_authz::{ExtAuthz, ExtAuthzRoute};
use crate::fault::Fault;
use crate::jwt_authn::{JwtAuthn, JwtRouteConfig};
use crate::rbac::RbacFilter;

/// An HTTP filter in order of execution; the last is always [`HttpFilterKind::Router`].
#[derive(Clone, Debug)]
pub struct HttpFilter {
    /// Name, by which `typed_per_filter_config` refers to it.
    pub name: Arc<str>,
    /// What it does.
    pub kind: HttpFilterKind,
    /// Off unless a route turns it on.
    pub disabled: bool,
}

/// The HTTP filters that exist. More will come: match with a wildcard.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum HttpFilterKind {
    /// Delays and aborts requests; where a route says nothing, so.
    Fault(Arc<Fault>),
    /// Answers preflights and marks what other origins may read. Routes hold the policies.
    Cors,
    /// Asks others whether requests may pass.
    ExtAuthz(Arc<ExtAuthz>),
    /// Verifies tokens.
    Jwt(Arc<JwtAuthn>),
    /// Refuses what policies do not allow.
    Rbac(Arc<RbacFilter>),
    /// Looks up the host that a request names, where its cluster wants that.
    DynamicForwardProxy(Arc<DnsCacheConfig>),
    /// Sends the request to the route's cluster.
    Router(Router),
}

/// Envoy's `router.v3.Router`.
#[derive(Clone, Debug, Default)]
pub struct Router {
    /// Logs written for each upstream request.
    pub upstream_log: Vec<AccessLog>,
    /// Does not add `x-envoy-*` headers to requests and responses.
    pub suppress_envoy_headers: bool,
    /// Take `x-envoy-expected-rq-timeout-ms` from the request.
    pub respect_expected_rq_timeout: bool,
}

/// What a level (route configuration, virtual host, route, weighted cluster) says about one filter: an entry of its
/// `typed_per_filter_config`.
#[derive(Clone, Debug)]
pub struct FilterOverride {
    /// Which filter: position in [`RouteConfiguration::filters`](crate::RouteConfiguration::filters).
    pub filter: u32,
    /// What about it.
    pub setting: FilterSetting,
}

/// See [`FilterOverride`].
#[derive(Clone, Debug)]
pub enum FilterSetting {
    /// It does not run.
    Disabled,
    /// It runs, with whatever an outer level or the connection manager says.
    Enabled,
    /// It runs with this.
    Config(FilterRouteConfig),
}

/// The configuration of a filter for a route, by kind of filter.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum FilterRouteConfig {
    /// For [`HttpFilterKind::Fault`].
    Fault(Arc<Fault>),
    /// For [`HttpFilterKind::Cors`].
    Cors(Arc<CorsPolicy>),
    /// For [`HttpFilterKind::ExtAuthz`].
    ExtAuthz(Arc<ExtAuthzRoute>),
    /// For [`HttpFilterKind::Jwt`].
    Jwt(Arc<JwtRouteConfig>),
    /// For [`HttpFilterKind::Rbac`], in place of all it says.
    Rbac(Arc<RbacFilter>),
    /// For [`HttpFilterKind::DynamicForwardProxy`].
    DynamicForwardProxy(DynamicHostRewrite),
}

/// The entries of one level.
pub type FilterOverrides = Box<[FilterOverride]>;

/// What the levels of a matched route say about one filter, from the most specific (weighted cluster) to the least (route
/// configuration).
#[derive(Clone, Copy, Debug)]
pub struct FilterLevels<'a> {
    /// The levels' entries.
    pub levels: [&'a [FilterOverride]; 4],
    /// Position of the filter's name in the route configuration.
    pub filter: u32,
}

impl<'a> FilterLevels<'a> {
    fn settings(self) -> impl Iterator<Item = &'a FilterSetting> {
        let of_filter = move |level: &&'a FilterOverride| level.filter == self.filter;
        self.levels
            .into_iter()
            .filter_map(move |level| level.iter().find(of_filter))
            .map(|found| &found.setting)
    }

    /// Whether the filter runs; `None`: no level says.
    pub fn enabled(self) -> Option<bool> {
        self.settings().next().map(|setting| !matches!(setting, FilterSetting::Disabled))
    }

    /// Its configurations, the most specific first.
    pub fn configs(self) -> impl Iterator<Item = &'a FilterRouteConfig> {
        self.settings().filter_map(|setting| match setting {
            FilterSetting::Config(config) => Some(config),
            FilterSetting::Disabled | FilterSetting::Enabled => None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_most_specific_level_decides() {
        let fault = |node: &str| {
            let fault = Fault { downstream_nodes: vec![node.into()], ..Fault::default() };
            FilterSetting::Config(FilterRouteConfig::Fault(Arc::new(fault)))
        };
        let entry = |filter, setting| vec![FilterOverride { filter, setting }];
        let (host, route) = (entry(1, fault("host")), entry(1, FilterSetting::Enabled));
        let other = entry(0, FilterSetting::Disabled);
        let levels = |levels| FilterLevels { levels, filter: 1 };
        let found = levels([&other, &route, &host, &[]]);
        assert_eq!(found.enabled(), Some(true));
        let nodes: Vec<_> = found
            .configs()
            .filter_map(|config| match config {
                FilterRouteConfig::Fault(fault) => Some(fault.downstream_nodes[0].to_string()),
                _ => None,
            })
            .collect();
        assert_eq!(nodes, ["host"], "what only enables has no configuration");
        let off = entry(1, FilterSetting::Disabled);
        assert_eq!(levels([&[], &off, &host, &[]]).enabled(), Some(false));
        assert_eq!(levels([&other, &[], &[], &[]]).enabled(), None);
    }
}
