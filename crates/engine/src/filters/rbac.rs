//! Role-based access control; the decision is `ir::Rbac`'s.

use std::net::IpAddr;
use std::rc::Rc;
use std::sync::Arc;

use http::StatusCode;
use lateen_ir::{AccessView, FilterLevels, FilterRouteConfig, PeerView, RbacFilter};

use super::jwt::note;
use super::levels;
use crate::context::{ConnectionInfo, RequestContext};
use crate::failure::{Failure, Flags, Reply};
use crate::http_request::request_view;
use crate::snapshot::FilterSlot;
use crate::stats::arena::StatsArena;
use crate::stats::blocks::{RbacShadowStats, RbacStats};

/// Under which the filter notes things.
const NAMESPACE: &str = "envoy.filters.http.rbac";

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
    filter: &RbacFilter,
    local: &LocalRbac,
    name: FilterSlot,
    context: &mut RequestContext,
) -> Result<(), Failure> {
    let of_route =
        levels(context, name).into_iter().flat_map(FilterLevels::configs).find_map(|config| match config {
            FilterRouteConfig::Rbac(filter) => Some(filter.clone()),
            _ => None,
        });
    let filter = of_route.as_deref().unwrap_or(filter);
    if filter.rules.is_none() && filter.shadow_rules.is_none() {
        return Ok(());
    }
    if let Some(shadow) = &filter.shadow_rules {
        let verdict = shadow.judge(&view(context));
        let stats = &local.shadow;
        if verdict.allowed { &stats.shadow_allowed } else { &stats.shadow_denied }.add(1);
        let mut notes = serde_json::Map::new();
        let result = if verdict.allowed { "allowed" } else { "denied" };
        notes.insert(filter.shadow_result_note.to_string(), result.into());
        notes.extend(verdict.policy.map(|policy| (filter.shadow_policy_note.to_string(), policy.into())));
        note(context, NAMESPACE, notes);
    }
    let Some(rules) = &filter.rules else { return Ok(()) };
    let verdict = rules.judge(&view(context));
    if verdict.allowed {
        local.enforced.allowed.add(1);
        return Ok(());
    }
    local.enforced.denied.add(1);
    Err(Failure::Answered(Box::new(Reply::new(
        StatusCode::FORBIDDEN,
        "RBAC: access denied",
        Flags::default(),
        verdict.denial(),
    ))))
}
