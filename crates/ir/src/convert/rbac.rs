//! Role-based access control: the HTTP and the network filter, policies, permissions and principals.
#![allow(deprecated)]

use lateen_xds::pb::envoy::config::core::v3::TypedExtensionConfig;
use lateen_xds::pb::envoy::config::rbac::v3 as proto;
use lateen_xds::pb::envoy::extensions::filters::http::rbac::v3 as http_filter;
use lateen_xds::pb::envoy::extensions::filters::network::rbac::v3 as network_filter;
use lateen_xds::pb::envoy::extensions::path::r#match::uri_template::v3::UriTemplateMatchConfig;
use lateen_xds::pb::envoy::r#type::matcher::v3 as matcher;

use super::matchers::{header_matcher, string_matcher};
use super::metadata::metadata_matcher;
use super::values::{Converted, cidr, enumeration, nonempty, required, typed};
use crate::error::At;
use crate::support::fields;
use crate::{AccessCondition, AnyOf, PathTemplate, Rbac, RbacAction, RbacFilter, RbacNotes, RbacPolicy};

/// Envoy puts a dot behind a part of a stat's name that has none.
fn dotted(part: String) -> Box<str> {
    if part.is_empty() || part.ends_with('.') { part.into() } else { format!("{part}.").into() }
}

fn notes(prefix: &str, kind: &str) -> RbacNotes {
    RbacNotes {
        policy: format!("{prefix}{kind}_effective_policy_id").into(),
        result: format!("{prefix}{kind}_engine_result").into(),
        prefixed: !prefix.is_empty(),
    }
}

pub(super) fn http_rbac(at: &At<'_>, message: http_filter::Rbac) -> Converted<RbacFilter> {
    fields!(at, message => http_filter::Rbac {
        used { rules, rules_stat_prefix, shadow_rules, shadow_rules_stat_prefix }
        inert {}
        rejected {
            matcher = "match trees; use rules",
            shadow_matcher = "match trees; use shadow_rules",
            track_per_rule_stats = "stats for each policy",
        }
    });
    Ok(RbacFilter {
        rules: rules.map(|rules| rbac(&at.field("rules"), rules)).transpose()?,
        shadow_rules: shadow_rules.map(|rules| rbac(&at.field("shadow_rules"), rules)).transpose()?,
        notes: notes(&rules_stat_prefix, "enforced"),
        shadow_notes: notes(&shadow_rules_stat_prefix, "shadow"),
        shadow_stat_prefix: dotted(shadow_rules_stat_prefix),
        stat_prefix: dotted(rules_stat_prefix),
    })
}

/// A filter without rules lets everything pass.
pub(super) fn route_rbac(at: &At<'_>, message: http_filter::RbacPerRoute) -> Converted<RbacFilter> {
    fields!(at, message => http_filter::RbacPerRoute {
        used { rbac }
        inert {}
        rejected {}
    });
    let filter = rbac.map(|message| http_rbac(&at.field("rbac"), message)).transpose()?;
    Ok(filter.unwrap_or_default())
}

pub(super) fn network_rbac(at: &At<'_>, message: network_filter::Rbac) -> Converted<RbacFilter> {
    use network_filter::rbac::EnforcementType;
    fields!(at, message => network_filter::Rbac {
        used { rules, shadow_rules, stat_prefix, shadow_rules_stat_prefix, enforcement_type }
        inert {}
        rejected {
            matcher = "match trees; use rules",
            shadow_matcher = "match trees; use shadow_rules",
            delay_deny = "closing refused connections late",
        }
    });
    let enforcement: EnforcementType = enumeration(at, "enforcement_type", enforcement_type)?;
    if enforcement != EnforcementType::OneTimeOnFirstByte {
        return Err(at.error_in("enforcement_type", "not supported: only ONE_TIME_ON_FIRST_BYTE"));
    }
    let stat_prefix = nonempty(at, "stat_prefix", stat_prefix)?;
    let convert = |field: &'static str, rules: Option<proto::Rbac>| {
        let rules = rules.map(|rules| rbac(&at.field(field), rules)).transpose()?;
        if rules.as_ref().is_some_and(Rbac::looks_at_headers) {
            return Err(at.error_in(field, "a connection has no headers to look at"));
        }
        Ok(rules)
    };
    Ok(RbacFilter {
        rules: convert("rules", rules)?,
        shadow_rules: convert("shadow_rules", shadow_rules)?,
        stat_prefix: dotted(stat_prefix.to_string()),
        notes: RbacNotes::default(),
        shadow_notes: notes(&shadow_rules_stat_prefix, "shadow"),
        shadow_stat_prefix: dotted(shadow_rules_stat_prefix),
    })
}

fn rbac(at: &At<'_>, message: proto::Rbac) -> Converted<Rbac> {
    use proto::rbac::Action;
    fields!(at, message => proto::Rbac {
        used { action, policies }
        inert {}
        rejected { audit_logging_options = "audit loggers" }
    });
    let action = match enumeration(at, "action", action)? {
        Action::Allow => RbacAction::Allow,
        Action::Deny => RbacAction::Deny,
        Action::Log => RbacAction::Log,
    };
    let policies = policies
        .into_iter()
        .map(|(name, message)| policy(&at.key("policies", &name), &name, message))
        .collect::<Converted<_>>()?;
    Ok(Rbac::new(action, policies))
}

fn policy(at: &At<'_>, name: &str, message: proto::Policy) -> Converted<RbacPolicy> {
    fields!(at, message => proto::Policy {
        used { permissions, principals }
        inert {}
        rejected {
            condition = "conditions in CEL",
            checked_condition = "conditions in CEL",
            cel_config = "conditions in CEL",
        }
    });
    Ok(RbacPolicy {
        name: name.into(),
        permissions: list(at, "permissions", permissions, permission)?,
        principals: list(at, "principals", principals, principal)?,
    })
}

fn list<T>(
    at: &At<'_>,
    field: &'static str,
    messages: Vec<T>,
    convert: fn(&At<'_>, T) -> Converted<AccessCondition>,
) -> Converted<Vec<AccessCondition>> {
    if messages.is_empty() {
        return Err(at.error_in(field, "must not be empty"));
    }
    messages
        .into_iter()
        .enumerate()
        .map(|(index, message)| convert(&at.index(field, index), message))
        .collect()
}

fn permission(at: &At<'_>, message: proto::Permission) -> Converted<AccessCondition> {
    use proto::permission::Rule;
    fields!(at, message => proto::Permission {
        used { rule }
        inert {}
        rejected {}
        variants { matcher = "matchers by extension" }
    });
    let rules = |field: &'static str, set: proto::permission::Set| {
        list(&at.field(field), "rules", set.rules, permission)
    };
    Ok(match required(at, "rule", rule)? {
        Rule::AndRules(set) => AccessCondition::All(rules("and_rules", set)?),
        Rule::OrRules(set) => AccessCondition::Any(AnyOf::new(rules("or_rules", set)?)),
        Rule::Any(any) => always(at, any)?,
        Rule::Header(header) => AccessCondition::Header(header_matcher(&at.field("header"), header)?),
        Rule::UrlPath(path) => url_path(at, path)?,
        Rule::DestinationIp(range) => AccessCondition::Destination(cidr(&at.field("destination_ip"), range)?),
        Rule::DestinationPort(port) if port > 65_535 => {
            return Err(at.error_in("destination_port", format!("{port} is not a port")));
        }
        Rule::DestinationPort(port) => AccessCondition::DestinationPorts { start: port, end: port + 1 },
        Rule::DestinationPortRange(range) => {
            let bound = |value: i32| u32::try_from(value).ok().filter(|value| *value <= 65_536);
            match (bound(range.start), bound(range.end)) {
                (Some(start), Some(end)) if start < end => AccessCondition::DestinationPorts { start, end },
                _ => {
                    let reason = "start must be below end, and both at most 65536";
                    return Err(at.error_in("destination_port_range", reason));
                }
            }
        }
        Rule::Metadata(metadata) => {
            AccessCondition::Metadata(metadata_matcher(&at.field("metadata"), metadata)?)
        }
        Rule::SourcedMetadata(sourced) => sourced_metadata(&at.field("sourced_metadata"), sourced)?,
        Rule::NotRule(rule) => AccessCondition::Not(Box::new(permission(&at.field("not_rule"), *rule)?)),
        Rule::RequestedServerName(name) => {
            AccessCondition::ServerName(string_matcher(&at.field("requested_server_name"), name)?)
        }
        Rule::UriTemplate(extension) => template(&at.field("uri_template"), extension)?,
        Rule::Matcher(_) => return Err(at.error_in("matcher", "not supported: matchers by extension")),
    })
}

fn principal(at: &At<'_>, message: proto::Principal) -> Converted<AccessCondition> {
    use proto::principal::Identifier;
    fields!(at, message => proto::Principal {
        used { identifier }
        inert {}
        rejected {}
        variants { filter_state = "filter state", custom = "principals by extension" }
    });
    let ids =
        |field: &'static str, set: proto::principal::Set| list(&at.field(field), "ids", set.ids, principal);
    Ok(match required(at, "identifier", identifier)? {
        Identifier::AndIds(set) => AccessCondition::All(ids("and_ids", set)?),
        Identifier::OrIds(set) => AccessCondition::Any(AnyOf::new(ids("or_ids", set)?)),
        Identifier::Any(any) => always(at, any)?,
        Identifier::Authenticated(authenticated) => {
            let at = at.field("authenticated");
            let name = authenticated.principal_name;
            AccessCondition::Authenticated(
                name.map(|name| string_matcher(&at.field("principal_name"), name)).transpose()?,
            )
        }
        Identifier::SourceIp(range) => AccessCondition::Source(cidr(&at.field("source_ip"), range)?),
        Identifier::DirectRemoteIp(range) => {
            AccessCondition::DirectSource(cidr(&at.field("direct_remote_ip"), range)?)
        }
        Identifier::RemoteIp(range) => AccessCondition::Client(cidr(&at.field("remote_ip"), range)?),
        Identifier::Header(header) => AccessCondition::Header(header_matcher(&at.field("header"), header)?),
        Identifier::UrlPath(path) => url_path(at, path)?,
        Identifier::Metadata(metadata) => {
            AccessCondition::Metadata(metadata_matcher(&at.field("metadata"), metadata)?)
        }
        Identifier::SourcedMetadata(sourced) => sourced_metadata(&at.field("sourced_metadata"), sourced)?,
        Identifier::NotId(id) => AccessCondition::Not(Box::new(principal(&at.field("not_id"), *id)?)),
        Identifier::FilterState(_) => {
            return Err(at.error_in("filter_state", "not supported: filter state"));
        }
        Identifier::Custom(_) => return Err(at.error_in("custom", "not supported: principals by extension")),
    })
}

fn always(at: &At<'_>, any: bool) -> Converted<AccessCondition> {
    if any { Ok(AccessCondition::Always) } else { Err(at.error_in("any", "must be true")) }
}

fn url_path(at: &At<'_>, message: matcher::PathMatcher) -> Converted<AccessCondition> {
    let at = at.field("url_path");
    let matcher::path_matcher::Rule::Path(path) = required(&at, "rule", message.rule)?;
    Ok(AccessCondition::Path(string_matcher(&at.field("path"), path)?))
}

fn template(at: &At<'_>, extension: TypedExtensionConfig) -> Converted<AccessCondition> {
    let any = required(at, "typed_config", extension.typed_config)?;
    let UriTemplateMatchConfig { path_template } = typed(at, &any)?;
    let at = at.field("typed_config");
    PathTemplate::parse(&path_template)
        .map(AccessCondition::Template)
        .map_err(|reason| at.error_in("path_template", reason))
}

fn sourced_metadata(at: &At<'_>, message: proto::SourcedMetadata) -> Converted<AccessCondition> {
    fields!(at, message => proto::SourcedMetadata {
        used { metadata_matcher, metadata_source }
        inert {}
        rejected {}
    });
    let source: proto::MetadataSource = enumeration(at, "metadata_source", metadata_source)?;
    if source != proto::MetadataSource::Dynamic {
        return Err(at.error_in("metadata_source", "not supported: only DYNAMIC"));
    }
    let matcher = required(at, "metadata_matcher", metadata_matcher)?;
    super::metadata::metadata_matcher(&at.field("metadata_matcher"), matcher).map(AccessCondition::Metadata)
}
