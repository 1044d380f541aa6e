//! The choice of virtual host and route for a request.

use std::sync::Arc;

use crate::common::ClusterRef;
use crate::route::{Route, VirtualHost, WeightedCluster};

/// What routing needs to know of a request.
#[derive(Clone, Copy, Debug)]
pub struct RequestView<'a> {
    /// `:method`
    pub method: &'a str,
    /// `:scheme`: `http` or `https`.
    pub scheme: &'a str,
    /// `:authority` or `host`, after the connection manager's normalisation.
    pub authority: &'a str,
    /// `:path` with the query, after the connection manager's normalisation.
    pub path: &'a str,
    /// All other headers.
    pub headers: &'a http::HeaderMap,
}

/// Virtual hosts with Envoy's domain search order, in indexes.
#[derive(Clone, Debug, Default)]
pub struct RouteTable {
    pub(crate) virtual_hosts: Vec<Arc<VirtualHost>>,
    pub(crate) clusters: Vec<Arc<str>>,
}

/// The route for a request.
#[derive(Clone, Copy, Debug)]
pub struct RouteMatch<'a> {
    /// Its virtual host.
    pub virtual_host: &'a Arc<VirtualHost>,
    /// The route.
    pub route: &'a Arc<Route>,
}

/// Why there is no route.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoRoute {
    /// No virtual host has the domain.
    NoVirtualHost,
    /// The virtual host has no route for the request.
    NoRoute,
}

/// The cluster chosen for a request.
#[derive(Clone, Copy, Debug)]
pub struct ClusterPick<'a> {
    /// Which cluster.
    pub cluster: PickedCluster<'a>,
    /// The weighted entry, for its header mutations.
    pub weighted: Option<&'a WeightedCluster>,
}

/// A cluster by reference or by the name in a header.
#[derive(Clone, Copy, Debug)]
pub enum PickedCluster<'a> {
    /// Configured.
    Ref(&'a ClusterRef),
    /// Named by the request.
    Named(&'a str),
    /// The header that should name the cluster is missing.
    HeaderMissing,
}

impl RouteTable {
    /// Distinct names of the clusters that routes refer to, by [`ClusterRef::index`].
    pub fn clusters(&self) -> &[Arc<str>] {
        &self.clusters
    }

    /// All virtual hosts in the order of the configuration.
    pub fn virtual_hosts(&self) -> &[Arc<VirtualHost>] {
        &self.virtual_hosts
    }

    /// The route for a request. `random` is uniformly distributed and decides runtime fractions. Does not allocate.
    pub fn route(&self, request: &RequestView<'_>, random: u64) -> Result<RouteMatch<'_>, NoRoute> {
        let _ = (request, random);
        Err(NoRoute::NoVirtualHost)
    }
}
