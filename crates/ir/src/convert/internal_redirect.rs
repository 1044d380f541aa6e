//! Internal redirects.

use http::StatusCode;
use lateen_xds::pb::envoy::config::core::v3::TypedExtensionConfig;
use lateen_xds::pb::envoy::config::route::v3 as proto;
use lateen_xds::pb::envoy::extensions::internal_redirect::allow_listed_routes::v3::AllowListedRoutesConfig;

use super::matchers::header_names;
use super::values::{Converted, number, required, typed};
use crate::error::At;
use crate::support::fields;
use crate::{InternalRedirectPolicy, RedirectPredicate};

pub(super) fn internal_redirect(
    at: &At<'_>,
    message: proto::InternalRedirectPolicy,
) -> Converted<InternalRedirectPolicy> {
    fields!(at, message => proto::InternalRedirectPolicy {
        used {
            max_internal_redirects, redirect_response_codes, predicates, allow_cross_scheme_redirect,
            response_headers_to_copy,
        }
        inert {}
        rejected {}
    });
    if redirect_response_codes.len() > 5 {
        return Err(at.error_in("redirect_response_codes", "must not have more than 5 codes"));
    }
    // As in Envoy, codes that are no redirects are passed over.
    let mut codes: Vec<StatusCode> = redirect_response_codes
        .iter()
        .filter(|code| [301, 302, 303, 307, 308].contains(*code))
        .filter_map(|code| StatusCode::from_u16(u16::try_from(*code).ok()?).ok())
        .collect();
    if redirect_response_codes.is_empty() {
        codes.push(StatusCode::FOUND);
    }
    let predicates = predicates.into_iter().enumerate();
    Ok(InternalRedirectPolicy {
        max: number(max_internal_redirects).unwrap_or(1),
        codes,
        predicates: predicates
            .map(|(index, config)| predicate(&at.index("predicates", index), config))
            .collect::<Converted<_>>()?,
        cross_scheme: allow_cross_scheme_redirect,
        copy: header_names(at, "response_headers_to_copy", response_headers_to_copy)?,
    })
}

fn predicate(at: &At<'_>, config: TypedExtensionConfig) -> Converted<RedirectPredicate> {
    let TypedExtensionConfig { name: _, typed_config } = config;
    let any = required(at, "typed_config", typed_config)?;
    let name = lateen_xds::any::message_name(&any.type_url);
    Ok(match name.rsplit_once(".v3.").unwrap_or_default() {
        ("envoy.extensions.internal_redirect.previous_routes", "PreviousRoutesConfig") => {
            RedirectPredicate::PreviousRoutes
        }
        ("envoy.extensions.internal_redirect.allow_listed_routes", "AllowListedRoutesConfig") => {
            let config: AllowListedRoutesConfig = typed(at, &any)?;
            let names = config.allowed_route_names.into_iter().map(Into::into);
            RedirectPredicate::AllowListedRoutes(names.collect())
        }
        ("envoy.extensions.internal_redirect.safe_cross_scheme", "SafeCrossSchemeConfig") => {
            RedirectPredicate::SafeCrossScheme
        }
        _ => return Err(at.error_in("typed_config", format!("{name:?} is not supported as a predicate"))),
    })
}
