//! The choice of virtual host and route for a request.

use std::sync::Arc;

use crate::common::ClusterRef;
use crate::domain_index::DomainIndex;
use crate::route::{
    Action, ClusterSpecifier, Forward, MirrorTarget, PathMatcher, Route, RouteMatcher, VirtualHost,
    WeightedCluster, WeightedClusters, WeightedTarget,
};

/// What routing needs to know of a request.
#[derive(Clone, Copy, Debug)]
pub struct RequestView<'a> {
    /// `:method`
    pub method: &'a str,
    /// `:scheme`: `http` or `https`.
    pub scheme: &'a str,
    /// `:authority` or `host`, after the connection manager's normalisation.
    pub authority: &'a str,
    /// `:path` with the query, after the connection manager's normalisation. Empty: there is none, as with CONNECT.
    pub path: &'a str,
    /// All other headers.
    pub headers: &'a http::HeaderMap,
    /// What filters noted of it; `None`: nothing.
    pub metadata: Option<&'a crate::DynamicMetadata>,
}

/// Virtual hosts with an index of their domains.
#[derive(Clone, Debug, Default)]
pub struct RouteTable {
    virtual_hosts: Box<[Arc<VirtualHost>]>,
    clusters: Arc<[Arc<str>]>,
    ignore_port: bool,
    index: Arc<DomainIndex>,
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
    /// A table over virtual hosts. `clusters` are the names by [`ClusterRef::index`]. With `ignore_port`, the port of a request's authority
    /// does not count. The index of `before` is taken over where the domains are the same.
    ///
    /// # Errors
    /// A domain that occurs twice.
    pub(crate) fn new(
        virtual_hosts: Vec<Arc<VirtualHost>>,
        clusters: Arc<[Arc<str>]>,
        ignore_port: bool,
        before: Option<&Self>,
    ) -> Result<Self, String> {
        let same = |before: &&Self| {
            before.virtual_hosts.len() == virtual_hosts.len()
                && before
                    .virtual_hosts
                    .iter()
                    .zip(&virtual_hosts)
                    .all(|(before, now)| Arc::ptr_eq(before, now) || before.domains == now.domains)
        };
        let index = match before.filter(same) {
            Some(before) => before.index.clone(),
            None => Arc::new(DomainIndex::new(&virtual_hosts)?),
        };
        Ok(Self { virtual_hosts: virtual_hosts.into(), clusters, ignore_port, index })
    }

    /// Distinct names of the clusters that routes refer to, by [`ClusterRef::index`], and some that routes of earlier versions did:
    /// [`Self::references`] are those of this one.
    pub fn clusters(&self) -> &Arc<[Arc<str>]> {
        &self.clusters
    }

    /// Every reference to a cluster in routes.
    pub fn references(&self) -> impl Iterator<Item = &ClusterRef> {
        let routes = self.virtual_hosts.iter().flat_map(|host| &host.routes);
        routes.flat_map(|route| {
            match &route.action {
                Action::Forward(forward) => Some(forward.references()),
                Action::Redirect(_) | Action::DirectResponse(_) | Action::NonForwarding => None,
            }
            .into_iter()
            .flatten()
        })
    }

    /// All virtual hosts in the order of the configuration.
    pub fn virtual_hosts(&self) -> &[Arc<VirtualHost>] {
        &self.virtual_hosts
    }

    /// The virtual host for an authority. Does not allocate (but for names no DNS name can have).
    pub fn virtual_host(&self, authority: &str) -> Option<&Arc<VirtualHost>> {
        let host = if self.ignore_port { without_port(authority) } else { authority };
        self.virtual_hosts.get(self.index.position(host, &self.virtual_hosts)?)
    }

    /// The route for a request. `random` is uniformly distributed and decides runtime fractions. Does not allocate.
    ///
    /// # Errors
    /// Nothing matches: which step found nothing.
    pub fn route(&self, request: &RequestView<'_>, random: u64) -> Result<RouteMatch<'_>, NoRoute> {
        let virtual_host = self.virtual_host(request.authority).ok_or(NoRoute::NoVirtualHost)?;
        virtual_host
            .route(request, random)
            .map(|route| RouteMatch { virtual_host, route })
            .ok_or(NoRoute::NoRoute)
    }
}

impl VirtualHost {
    /// The first route that matches a request. `random` as in [`RouteTable::route`].
    pub fn route(&self, request: &RequestView<'_>, random: u64) -> Option<&Arc<Route>> {
        self.routes.iter().find(|route| route.matching.is_match(request, random))
    }
}

/// An authority without its port; IPv6 addresses stay in brackets.
fn without_port(authority: &str) -> &str {
    match authority.rsplit_once(':') {
        Some((host, port))
            if !port.contains(']') && !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit()) =>
        {
            host
        }
        _ => authority,
    }
}

/// A path without query and fragment, which is what Envoy matches.
pub(crate) fn path_only(path: &str) -> &str {
    path.find(['?', '#']).map_or(path, |end| &path[..end])
}

impl RouteMatcher {
    /// Whether a request matches.
    pub fn is_match(&self, request: &RequestView<'_>, random: u64) -> bool {
        self.path.fits(request)
            && self.headers.iter().all(|header| header.is_match(request))
            && (self.query_parameters.is_empty() || self.query_matches(request.path))
            && (!self.grpc || is_grpc(request.headers))
            && self.metadata.iter().all(|matcher| matcher.is_match(request.metadata))
            && self.runtime_fraction.is_none_or(|fraction| fraction.includes(random))
    }

    fn query_matches(&self, path: &str) -> bool {
        let query = path.split_once('?').map_or("", |(_, query)| query);
        let query = query.split_once('#').map_or(query, |(query, _)| query);
        self.query_parameters.iter().all(|parameter| parameter.is_match(query))
    }
}

/// `application/grpc`, alone or with a suffix. With parameters it is something else, as for Envoy.
fn is_grpc(headers: &http::HeaderMap) -> bool {
    let content_type = headers.get(http::header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    content_type
        .and_then(|value| value.strip_prefix("application/grpc"))
        .is_some_and(|rest| rest.is_empty() || rest.starts_with('+'))
}

impl PathMatcher {
    /// Whether a request's path matches. CONNECT has none, so that no other matcher takes it.
    fn fits(&self, request: &RequestView<'_>) -> bool {
        let connect = request.method == "CONNECT";
        match self {
            Self::Connect => connect,
            _ => !connect && self.is_match(path_only(request.path)),
        }
    }

    /// Whether a path (without the query) matches.
    pub fn is_match(&self, path: &str) -> bool {
        let starts = |value: &str, case_sensitive: bool| {
            path.as_bytes().get(..value.len()).is_some_and(|start| same(start, value, case_sensitive))
        };
        match self {
            Self::Prefix { value, case_sensitive } => starts(value, *case_sensitive),
            Self::Exact { value, case_sensitive } => same(path.as_bytes(), value, *case_sensitive),
            Self::SeparatedPrefix { value, case_sensitive } => {
                starts(value, *case_sensitive)
                    && matches!(path.as_bytes().get(value.len()), None | Some(b'/'))
            }
            Self::Regex(regex) => regex.is_match(path.as_bytes()),
            Self::Connect => false,
        }
    }

    /// How much of a matching path (without the query) the match covers: what a prefix rewrite replaces. Exact and regex matches cover all of it.
    pub fn matched_length(&self, path: &str) -> usize {
        match self {
            Self::Prefix { value, .. } | Self::SeparatedPrefix { value, .. } => value.len().min(path.len()),
            Self::Exact { .. } | Self::Regex(_) => path.len(),
            Self::Connect => 0,
        }
    }
}

fn same(text: &[u8], value: &str, case_sensitive: bool) -> bool {
    if case_sensitive { text == value.as_bytes() } else { text.eq_ignore_ascii_case(value.as_bytes()) }
}

impl Forward {
    fn references(&self) -> impl Iterator<Item = &ClusterRef> {
        let (one, weighted) = match &self.cluster {
            ClusterSpecifier::Cluster(cluster) => (Some(cluster), None),
            ClusterSpecifier::Weighted(weighted) => (None, Some(weighted)),
            ClusterSpecifier::Header(_) => (None, None),
        };
        let weighted = weighted.into_iter().flat_map(|weighted| &weighted.clusters);
        let weighted = weighted.filter_map(|entry| match &entry.cluster {
            WeightedTarget::Cluster(cluster) => Some(cluster),
            WeightedTarget::Header(_) => None,
        });
        let mirrors = self.mirrors.iter().filter_map(|mirror| match &mirror.target {
            MirrorTarget::Cluster(cluster) => Some(cluster),
            MirrorTarget::Header(_) => None,
        });
        one.into_iter().chain(weighted).chain(mirrors)
    }
}

impl ClusterSpecifier {
    /// The cluster for a request. `random` is uniformly distributed and decides among weights.
    pub fn pick<'a>(&'a self, request: &RequestView<'a>, random: u64) -> ClusterPick<'a> {
        match self {
            Self::Cluster(cluster) => ClusterPick { cluster: PickedCluster::Ref(cluster), weighted: None },
            Self::Header(name) => ClusterPick { cluster: named_by(request, name), weighted: None },
            Self::Weighted(clusters) => {
                let entry = clusters.pick(request, random);
                let cluster = match &entry.cluster {
                    WeightedTarget::Cluster(cluster) => PickedCluster::Ref(cluster),
                    WeightedTarget::Header(name) => named_by(request, name),
                };
                ClusterPick { cluster, weighted: Some(entry) }
            }
        }
    }
}

fn named_by<'a>(request: &RequestView<'a>, name: &http::HeaderName) -> PickedCluster<'a> {
    let value = request.headers.get(name).and_then(|value| value.to_str().ok());
    value.filter(|value| !value.is_empty()).map_or(PickedCluster::HeaderMissing, PickedCluster::Named)
}

impl WeightedClusters {
    fn pick(&self, request: &RequestView<'_>, random: u64) -> &WeightedCluster {
        let header = self.random_header.as_ref().and_then(|name| request.headers.get(name));
        let given = header.and_then(|value| value.to_str().ok()).and_then(|value| value.parse::<u64>().ok());
        let mut left = given.unwrap_or(random) % self.total_weight.max(1);
        for entry in &self.clusters {
            let weight = u64::from(entry.weight);
            if left < weight {
                return entry;
            }
            left -= weight;
        }
        // The weights add up to the total, so the loop has returned.
        &self.clusters[self.clusters.len() - 1]
    }
}

#[cfg(test)]
#[path = "route_table_tests.rs"]
mod tests;
