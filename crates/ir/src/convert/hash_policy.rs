//! Hash policies of routes.

use lateen_xds::pb::envoy::config::route::v3::route_action::HashPolicy as Message;
use lateen_xds::pb::envoy::config::route::v3::route_action::hash_policy as proto;
use proto::PolicySpecifier;

use super::matchers::{header_key, regex_rewrite};
use super::values::{Converted, duration, required};
use crate::error::At;
use crate::support::fields;
use crate::{HashCookie, HashMethod, HashPolicy};

pub(super) fn hash_policies(at: &At<'_>, messages: Vec<Message>) -> Converted<Vec<HashPolicy>> {
    let mut policies = Vec::new();
    for (index, message) in messages.into_iter().enumerate() {
        let at = at.index("hash_policy", index);
        fields!(&at, message => Message {
            used { terminal, policy_specifier }
            inert {}
            rejected {}
            variants { filter_state = "hashes of filter state" }
        });
        let method = match required(&at, "policy_specifier", policy_specifier)? {
            PolicySpecifier::Header(header) => {
                let at = at.field("header");
                fields!(&at, header => proto::Header {
                    used { header_name, regex_rewrite }
                    inert {}
                    rejected {}
                });
                HashMethod::Header {
                    key: header_key(&at, "header_name", &header_name)?,
                    rewrite: regex_rewrite
                        .map(|rewrite| self::regex_rewrite(&at.field("regex_rewrite"), rewrite))
                        .transpose()?,
                }
            }
            PolicySpecifier::Cookie(cookie) => HashMethod::Cookie(self::cookie(&at.field("cookie"), cookie)?),
            PolicySpecifier::ConnectionProperties(properties) => {
                if !properties.source_ip {
                    continue;
                }
                HashMethod::SourceIp
            }
            PolicySpecifier::QueryParameter(parameter) => {
                if parameter.name.is_empty() {
                    return Err(at.field("query_parameter").error_in("name", "must not be empty"));
                }
                HashMethod::QueryParameter(parameter.name.into())
            }
            PolicySpecifier::FilterState(_) => {
                return Err(
                    at.error_in("filter_state", "not supported: no filter sets a state that could be hashed")
                );
            }
        };
        policies.push(HashPolicy { method, terminal });
    }
    Ok(policies)
}

fn cookie(at: &At<'_>, message: proto::Cookie) -> Converted<HashCookie> {
    fields!(at, message => proto::Cookie {
        used { name, ttl, path, attributes }
        inert {}
        rejected {}
    });
    if name.is_empty() {
        return Err(at.error_in("name", "must not be empty"));
    }
    Ok(HashCookie {
        name: name.into(),
        ttl: duration(at, "ttl", ttl)?.map(|ttl| ttl.as_secs()),
        path: path.into(),
        attributes: attributes
            .into_iter()
            .map(|attribute| (attribute.name.into(), attribute.value.into()))
            .collect(),
    })
}
