//! Role-based access control; the decision is `ir::Rbac`'s.

use std::net::IpAddr;
use std::rc::Rc;
use std::sync::Arc;

use http::StatusCode;
use lateen_ir::{AccessView, Decision, FilterLevels, FilterRouteConfig, PeerView, RbacAction, RbacFilter};

use super::levels;
use crate::context::{ConnectionInfo, RequestContext};
use crate::failure::{Failure, Flags, Reply};
use crate::http_request::request_view;
use crate::snapshot::FilterSlot;
use crate::stats::arena::StatsArena;
use crate::stats::blocks::{RbacShadowStats, RbacStats};

/// Under which the filter notes things.
const NAMESPACE: &str = "envoy.filters.http.rbac";

/// Under which filters of all kinds note things.
pub(crate) const COMMON: &str = "envoy.common";

/// What rules that only log note: whether one of them matched.
pub(crate) fn access_log_hint(matched: bool) -> serde_json::Map<String, serde_json::Value> {
    [("access_log_hint".to_owned(), matched.into())].into_iter().collect()
}

/// One worker's numbers of a filter.
pub(crate) struct LocalRbac {
    enforced: Rc<RbacStats>,
    shadow: Rc<RbacShadowStats>,
}

impl LocalRbac {
    pub(super) fn new(filter: &RbacFilter, prefix: &Arc<str>, stats: &StatsArena) -> Self {
        let name = |own: &str| Arc::from(format!("{prefix}\n{own}"));
        Self {
            enforced: stats.rbac(&name(&filter.stat_prefix)),
            shadow: stats.rbac_shadow(&name(&filter.shadow_stat_prefix)),
        }
    }
}

/// What is known of a connection.
pub(crate) fn connection_view(info: &ConnectionInfo, client: Option<IpAddr>) -> AccessView<'_> {
    let peer = info.tls.as_ref().map(|tls| {
        tls.peer().map_or_else(PeerView::default, |peer| PeerView {
            uris: &peer.uris,
            dns: &peer.dns,
            subject: &peer.subject,
        })
    });
    AccessView {
        request: None,
        destination: info.local.socket(),
        source: info.peer.ip(),
        direct_source: info.direct_peer.ip(),
        client,
        server_name: info.server_name.as_deref().unwrap_or_default(),
        peer,
    }
}

/// What is known of a request.
fn view(context: &RequestContext) -> AccessView<'_> {
    let connection = connection_view(&context.connection.info, context.client.ip());
    AccessView { request: Some(request_view(context)), ..connection }
}

/// Counts, and fails for what is not allowed.
pub(super) fn decode(
    filter: &Arc<RbacFilter>,
    local: &LocalRbac,
    name: FilterSlot,
    context: &mut RequestContext,
) -> Result<(), Failure> {
    let of_route =
        levels(context, name).into_iter().flat_map(FilterLevels::configs).find_map(|config| match config {
            FilterRouteConfig::Rbac(filter) => Some(filter.clone()),
            _ => None,
        });
    let of = of_route.as_ref().unwrap_or(filter);
    if of.rules.is_none() && of.shadow_rules.is_none() {
        return Ok(());
    }
    let decision = |shadow, allowed, policy| Decision {
        filter: filter.clone(),
        rules: of.clone(),
        shadow,
        allowed,
        policy,
    };
    if let Some(shadow) = &of.shadow_rules {
        let verdict = shadow.judge(&view(context));
        let stats = &local.shadow;
        if verdict.allowed { &stats.shadow_allowed } else { &stats.shadow_denied }.add(1);
        let (allowed, policy) = (verdict.allowed, verdict.position);
        note(context, decision(true, allowed, policy));
    }
    let Some(rules) = &of.rules else { return Ok(()) };
    let verdict = rules.judge(&view(context));
    let (allowed, policy) = (verdict.allowed, verdict.position);
    if rules.action == RbacAction::Log {
        let notes = context.metadata.get_or_insert_default();
        notes.add(COMMON, access_log_hint(policy.is_some()));
    }
    let denial = (!allowed).then(|| verdict.denial());
    note(context, decision(false, allowed, policy));
    let Some(denial) = denial else {
        local.enforced.allowed.add(1);
        return Ok(());
    };
    local.enforced.denied.add(1);
    let reply = Reply::new(StatusCode::FORBIDDEN, "RBAC: access denied", Flags::default(), denial);
    Err(Failure::Answered(Box::new(reply)))
}

fn note(context: &mut RequestContext, decision: Decision) {
    context.metadata.get_or_insert_default().decide(NAMESPACE, decision);
}
