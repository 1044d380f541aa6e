//! Where routes lead, and what they make of a request.

use http::header::{HeaderName, HeaderValue};
use http::uri::PathAndQuery;

use super::{Asked, RouteSeen, Share, words};
use crate::{
    Action, AppendAction, ClusterSpecifier, FilterLevels, Forward, HeaderMutations, HostRewrite, HttpFilter,
    RouteConfiguration, TcpProxy, VirtualHost, WeightedCluster, WeightedTarget,
};

/// Stands for what only a request itself tells.
const LATER: &str = "(known when the request comes)";

/// The request as the cluster gets it.
pub(super) fn rewrite(
    routes: &RouteConfiguration,
    host: &VirtualHost,
    position: usize,
    forward: &Forward,
    asked: &mut Asked,
) {
    let route = &host.routes[position];
    let weighted = main_entry(forward);
    let mut levels = vec![&route.request_headers, &host.request_headers, &routes.request_headers];
    if routes.most_specific_header_mutations_wins {
        levels.reverse();
    }
    // The weighted cluster's come first in either order.
    levels.splice(0..0, weighted.map(|entry| &entry.request_headers));
    levels.into_iter().for_each(|level| mutate(level, asked));
    let literal = |value: &HeaderValue| value.to_str().ok().map(str::to_owned);
    let authority = match &forward.host_rewrite {
        HostRewrite::Literal(value) => literal(value),
        HostRewrite::Header(name) => asked.headers.get(&**name).and_then(literal),
        HostRewrite::PathRegex(rewrite) => Some(rewrite.apply(asked.path.path())),
        HostRewrite::Format(format) => Some(format.as_literal().unwrap_or(LATER).to_owned()),
        HostRewrite::None | HostRewrite::Auto => None,
    };
    let of_entry = weighted.and_then(|entry| entry.host_rewrite.as_ref()).and_then(literal);
    if let Some(authority) = authority.or(of_entry) {
        asked.authority = authority;
    }
    let render = |format: &crate::TextFormat| format.as_literal().unwrap_or("/").to_owned();
    let path = forward.path_rewrite.apply(&route.matching.path, asked.path.as_str(), render);
    if let Some(Ok(path)) = path.map(PathAndQuery::try_from) {
        asked.path = path;
    }
}

fn mutate(mutations: &HeaderMutations, asked: &mut Asked) {
    mutations.remove.iter().for_each(|name| drop(asked.headers.remove(name)));
    for addition in &mutations.add {
        let text = addition.value.as_literal().unwrap_or(LATER);
        let Ok(value) = HeaderValue::from_str(text) else { continue };
        if value.is_empty() && !addition.keep_empty_value {
            continue;
        }
        let there = asked.headers.contains_key(&addition.name);
        match addition.action {
            AppendAction::AppendIfExistsOrAdd => drop(asked.headers.append(&addition.name, value)),
            AppendAction::AddIfAbsent if there => {}
            AppendAction::OverwriteIfExists if !there => {}
            AppendAction::AddIfAbsent
            | AppendAction::OverwriteIfExistsOrAdd
            | AppendAction::OverwriteIfExists => {
                asked.headers.insert(&addition.name, value);
            }
        }
    }
}

pub(super) fn tcp_shares(tcp: &TcpProxy) -> Vec<Share> {
    let percent = |weight: u32| f64::from(weight) * 100.0 / tcp.total_weight.max(1) as f64;
    let share = |target: &crate::TcpTarget| Share {
        cluster: target.cluster.name.to_string(),
        percent: percent(target.weight),
    };
    largest_first(tcp.targets.iter().map(share).collect())
}

fn largest_first(mut shares: Vec<Share>) -> Vec<Share> {
    shares.sort_by(|a, b| b.percent.total_cmp(&a.percent));
    shares
}

pub(super) fn no_route(routes: &RouteConfiguration, host: &VirtualHost) -> RouteSeen {
    RouteSeen {
        configuration: routes.name.to_string(),
        virtual_host: host.name.to_string(),
        position: None,
        name: String::new(),
        matching: String::new(),
    }
}

pub(super) fn route_seen(routes: &RouteConfiguration, host: &VirtualHost, position: usize) -> RouteSeen {
    let route = &host.routes[position];
    RouteSeen {
        position: Some(position),
        name: route.name.to_string(),
        matching: words::route(&route.matching),
        ..no_route(routes, host)
    }
}

/// What a route's levels say about a filter.
pub(super) fn levels<'a>(
    filter: &HttpFilter,
    routes: &'a RouteConfiguration,
    host: &'a VirtualHost,
    position: usize,
) -> Option<FilterLevels<'a>> {
    let number = routes.filters.iter().position(|name| *name == filter.name)?;
    let route = &host.routes[position];
    let weighted = match &route.action {
        Action::Forward(forward) => main_entry(forward),
        Action::Redirect(_) | Action::DirectResponse(_) | Action::NonForwarding => None,
    };
    let of_entry = weighted.map(|entry| &entry.overrides[..]).unwrap_or_default();
    let levels = [of_entry, &route.overrides, &host.overrides, &routes.overrides];
    Some(FilterLevels { levels, filter: u32::try_from(number).ok()? })
}

/// The weighted cluster with the largest share, the first of several.
fn main_entry(forward: &Forward) -> Option<&WeightedCluster> {
    match &forward.cluster {
        ClusterSpecifier::Weighted(all) => all.clusters.iter().rev().max_by_key(|entry| entry.weight),
        ClusterSpecifier::Cluster(_) | ClusterSpecifier::Header(_) => None,
    }
}

/// The clusters a request may go to.
pub(super) fn shares(forward: &Forward, asked: &Asked) -> Vec<Share> {
    let named = |name: &HeaderName| {
        asked
            .headers
            .get(name)
            .and_then(|value| value.to_str().ok())
            .filter(|name| !name.is_empty())
            .map(str::to_owned)
    };
    let whole = |cluster: String| vec![Share { cluster, percent: 100.0 }];
    match &forward.cluster {
        ClusterSpecifier::Cluster(cluster) => whole(cluster.name.to_string()),
        ClusterSpecifier::Header(name) => named(name).map(whole).unwrap_or_default(),
        ClusterSpecifier::Weighted(all) => {
            let share = |entry: &WeightedCluster| {
                let cluster = match &entry.cluster {
                    WeightedTarget::Cluster(cluster) => cluster.name.to_string(),
                    WeightedTarget::Header(name) => named(name)?,
                };
                let percent = f64::from(entry.weight) * 100.0 / all.total_weight.max(1) as f64;
                (entry.weight > 0).then_some(Share { cluster, percent })
            };
            largest_first(all.clusters.iter().filter_map(share).collect())
        }
    }
}

pub(super) fn main_cluster(action: &Action, asked: &Asked) -> Option<String> {
    match action {
        Action::Forward(forward) => shares(forward, asked).into_iter().next().map(|share| share.cluster),
        Action::Redirect(_) | Action::DirectResponse(_) | Action::NonForwarding => None,
    }
}
