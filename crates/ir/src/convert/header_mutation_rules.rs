//! Rules about which headers may change.

use lateen_xds::pb::envoy::config::common::mutation_rules::v3 as proto;

use super::matchers::full_regex;
use super::values::{Converted, bool_or};
use crate::HeaderMutationRules;
use crate::error::At;
use crate::support::fields;

pub(super) fn header_mutation_rules(
    at: &At<'_>,
    message: proto::HeaderMutationRules,
) -> Converted<HeaderMutationRules> {
    fields!(at, message => proto::HeaderMutationRules {
        used {
            allow_all_routing, allow_envoy, disallow_system, disallow_all, allow_expression, disallow_expression,
            disallow_is_error,
        }
        inert {}
        rejected {}
    });
    let allow = allow_expression.map(|regex| full_regex(&at.field("allow_expression"), regex));
    let disallow = disallow_expression.map(|regex| full_regex(&at.field("disallow_expression"), regex));
    Ok(HeaderMutationRules {
        allow_all_routing: bool_or(allow_all_routing, false),
        allow_envoy: bool_or(allow_envoy, false),
        disallow_system: bool_or(disallow_system, false),
        disallow_all: bool_or(disallow_all, false),
        allow: allow.transpose()?,
        disallow: disallow.transpose()?,
        disallow_is_error: bool_or(disallow_is_error, false),
    })
}
