//! What routes count for themselves (`stat_prefix`), beside what their clusters count.

use std::rc::Rc;

use http::StatusCode;

use crate::cluster::LocalCluster;
use crate::context::RequestContext;
use crate::stats::blocks::RouteStats;

/// The numbers of the request's route; `None`: it has none of its own.
pub(crate) fn of_route(context: &RequestContext) -> Option<Rc<RouteStats>> {
    let number = context.route.as_ref()?.stat? as usize;
    let routes = context.routes.as_ref()?;
    let (slot, name) = ((*routes.stats.get(number)?)?, routes.ir.stats.get(number)?);
    context.view.route_stats(slot, name, &context.connection.worker)
}

/// Counts a status that came from a cluster, or stands for what did not come.
pub(crate) fn charge(cluster: &LocalCluster, route: Option<&RouteStats>, status: StatusCode) {
    cluster.stats.upstream_rq_completed.inc();
    cluster.stats.statuses.inc(status.as_u16());
    if let Some(route) = route {
        route.upstream_rq_completed.inc();
        route.statuses.inc(status.as_u16());
    }
}
