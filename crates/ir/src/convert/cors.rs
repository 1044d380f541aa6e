//! Cross-origin resource sharing: the filter's policies, and the older fields of routes and virtual hosts.
#![allow(deprecated)]

use http::HeaderValue;
use lateen_xds::pb::envoy::config::core::v3::RuntimeFractionalPercent;
use lateen_xds::pb::envoy::config::route::v3 as route;
use lateen_xds::pb::envoy::extensions::filters::http::cors::v3 as proto;
use lateen_xds::pb::envoy::r#type::matcher::v3::StringMatcher;

use super::matchers::{header_value, string_matcher};
use super::values::{Converted, fraction, required};
use crate::error::At;
use crate::support::fields;
use crate::{CorsPolicy, Fraction};

/// The filter has no options of its own.
pub(super) fn cors(message: proto::Cors) {
    let proto::Cors {} = message;
}

pub(super) fn cors_policy(at: &At<'_>, message: proto::CorsPolicy) -> Converted<CorsPolicy> {
    fields!(at, message => proto::CorsPolicy {
        used {
            allow_origin_string_match, allow_methods, allow_headers, expose_headers, max_age, allow_credentials,
            filter_enabled, shadow_enabled, allow_private_network_access, forward_not_matching_preflights,
        }
        inert {}
        rejected {}
    });
    Ok(CorsPolicy {
        allow_origins: origins(at, allow_origin_string_match)?,
        allow_methods: text(at, "allow_methods", &allow_methods)?,
        allow_headers: text(at, "allow_headers", &allow_headers)?,
        expose_headers: text(at, "expose_headers", &expose_headers)?,
        max_age: text(at, "max_age", &max_age)?,
        allow_credentials: allow_credentials.map(|value| value.value),
        allow_private_network_access: allow_private_network_access.map(|value| value.value),
        forward_not_matching_preflights: forward_not_matching_preflights.map(|value| value.value),
        enabled: share(at, "filter_enabled", filter_enabled)?,
        shadow_enabled: share(at, "shadow_enabled", shadow_enabled)?,
    })
}

/// The deprecated `cors` of a virtual host or route.
pub(super) fn legacy_policy(at: &At<'_>, message: route::CorsPolicy) -> Converted<CorsPolicy> {
    fields!(at, message => route::CorsPolicy {
        used {
            allow_origin_string_match, allow_methods, allow_headers, expose_headers, max_age, allow_credentials,
            shadow_enabled, allow_private_network_access, forward_not_matching_preflights, enabled_specifier,
        }
        inert {}
        rejected {}
    });
    let filter_enabled = enabled_specifier.map(|specifier| {
        let route::cors_policy::EnabledSpecifier::FilterEnabled(enabled) = specifier;
        enabled
    });
    let message = proto::CorsPolicy {
        allow_origin_string_match,
        allow_methods,
        allow_headers,
        expose_headers,
        max_age,
        allow_credentials,
        filter_enabled,
        shadow_enabled,
        allow_private_network_access,
        forward_not_matching_preflights,
    };
    cors_policy(at, message)
}

fn origins(at: &At<'_>, origins: Vec<StringMatcher>) -> Converted<Vec<crate::StringMatcher>> {
    let convert = |(index, origin)| string_matcher(&at.index("allow_origin_string_match", index), origin);
    origins.into_iter().enumerate().map(convert).collect()
}

fn text(at: &At<'_>, field: &str, value: &str) -> Converted<Option<HeaderValue>> {
    (!value.is_empty()).then(|| header_value(at, field, value)).transpose()
}

/// A share of the requests. The runtime key could override the default; without a runtime the default counts.
fn share(at: &At<'_>, field: &str, percent: Option<RuntimeFractionalPercent>) -> Converted<Option<Fraction>> {
    let Some(RuntimeFractionalPercent { default_value, runtime_key: _ }) = percent else { return Ok(None) };
    let at = at.field(field);
    fraction(&at.field("default_value"), required(&at, "default_value", default_value)?).map(Some)
}
