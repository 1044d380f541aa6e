//! Copies of requests.

use std::sync::Arc;

use lateen_xds::pb::envoy::config::route::v3 as proto;

use super::matchers::{header_name, header_value};
use super::route::Shared;
use super::values::{Converted, fraction};
use crate::error::At;
use crate::support::fields;
use crate::{MirrorPolicy, MirrorTarget};

/// The mirrors of a level; none of its own are those of the level above.
pub(super) fn mirrors(
    at: &At<'_>,
    policies: Vec<proto::route_action::RequestMirrorPolicy>,
    shared: &mut Shared,
) -> Converted<Arc<[MirrorPolicy]>> {
    if policies.is_empty() {
        return Ok(shared.mirrors.clone());
    }
    let convert = |(index, policy)| mirror(&at.index("request_mirror_policies", index), policy, shared);
    policies.into_iter().enumerate().map(convert).collect::<Converted<Vec<_>>>().map(Into::into)
}

fn mirror(
    at: &At<'_>,
    message: proto::route_action::RequestMirrorPolicy,
    shared: &mut Shared,
) -> Converted<MirrorPolicy> {
    fields!(at, message => proto::route_action::RequestMirrorPolicy {
        used { cluster, cluster_header, runtime_fraction, disable_shadow_host_suffix_append, host_rewrite_literal }
        inert { trace_sampled = "there is no tracing" }
        rejected { request_headers_mutations = "header mutations of mirrored requests" }
    });
    let target = match (cluster.as_str(), cluster_header.as_str()) {
        (name, "") if !name.is_empty() => MirrorTarget::Cluster(shared.names.reference(name)),
        ("", name) if !name.is_empty() => MirrorTarget::Header(header_name(at, "cluster_header", name)?),
        _ => return Err(at.error_in("cluster", "either cluster or cluster_header is required")),
    };
    let percent = runtime_fraction.and_then(|runtime| runtime.default_value);
    Ok(MirrorPolicy {
        target,
        fraction: percent.map(|percent| fraction(&at.field("runtime_fraction"), percent)).transpose()?,
        suffix: !disable_shadow_host_suffix_append,
        host: (!host_rewrite_literal.is_empty())
            .then(|| header_value(at, "host_rewrite_literal", &host_rewrite_literal))
            .transpose()?,
    })
}
