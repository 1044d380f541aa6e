//! Which host a try goes to, and what is learned about it.

use std::net::SocketAddr;
use std::rc::Rc;

use http::{HeaderMap, StatusCode};
use lateen_ir::Discovery;

use super::Trial;
use crate::cluster::Need;
use crate::failure::{Failure, Reply};
use crate::forward::metadata_criteria;
use crate::host::Host;
use crate::local_reply;
use crate::outlier::{self, Outcome};
use crate::presence::Present;

impl Trial<'_> {
    pub(crate) fn pick_host(&mut self) -> Option<Rc<Host>> {
        let connection = self.context.connection.clone();
        let avoid = self.policy.filter(|policy| policy.avoid_previous_hosts && !self.tried.is_empty());
        let route = self.context.route.clone().filter(|_| self.cluster.config.ir.subsets.is_some());
        let entry = self.context.weighted;
        let need = Need {
            destination: self.destination(),
            name: self.cluster.config.dns_cache.as_ref().and_then(|_| self.context.authority.to_str().ok()),
            port: None,
            criteria: route.as_deref().and_then(|route| metadata_criteria(route, entry)),
            hash: self.hash,
            attempts: avoid.map_or(0, |policy| policy.host_selection_max_attempts),
            priorities: self.priorities.as_deref_mut(),
        };
        let tried = |host: &Host| self.tried.contains(&host.address);
        let host = self.cluster.pick(need, &mut || connection.worker.random(), &tried)?;
        if self.policy.is_some() {
            self.tried.push(host.address.clone());
        }
        Some(host)
    }

    /// A host that is not known before it is asked for, where no filter has looked it up.
    pub(crate) async fn look_up_host(&self) -> Result<Rc<Host>, Failure> {
        let name = self.context.authority.to_str().ok();
        self.cluster.look_up_host(name, None).await.map_err(|details| {
            if details.is_empty() {
                return Failure::NoHealthyUpstream;
            }
            self.cluster.stats.upstream_cx_none_healthy.inc();
            let reply = Reply { details: details.into(), ..Failure::NoHealthyUpstream.reply() };
            Failure::Answered(Box::new(reply))
        })
    }

    /// ORIGINAL_DST: where the client wanted to go.
    fn destination(&self) -> Option<SocketAddr> {
        let Discovery::OriginalDst { header, .. } = &self.cluster.config.ir.discovery else { return None };
        let info = &self.context.connection.info;
        let from_header = header.as_ref().and_then(|name| self.context.head.headers.get(name));
        match from_header {
            Some(value) => value.to_str().ok()?.parse().ok(),
            None => info.original_destination(),
        }
    }

    /// Tells outlier detection, where there is any, what the host answered.
    pub(crate) fn judge(&self, host: &Host, status: StatusCode, headers: &HeaderMap) {
        if host.monitor.is_some() {
            let status = outlier::status_of(status, headers, local_reply::is_grpc(&self.context.head));
            self.cluster.observe(host, Outcome::Answered(status), &self.context.connection.worker);
        }
    }

    /// Tells health checks, where there are any, that the host has said it leaves.
    pub(crate) fn heed_leaving(&self, host: &Host, headers: &HeaderMap) {
        if let Some(view) = &self.cluster.config.checked
            && self.context.answered.any(Present::ENVOY)
            && headers.contains_key("x-envoy-immediate-health-check-fail")
        {
            host.address.socket().into_iter().for_each(|address| view.leaves(address));
        }
    }
}
