//! A VirtualService's match block as Envoy's route match.
use std::collections::BTreeMap;

use lateen_api::networking::StringMatch;
use lateen_api::networking::virtual_service::HttpMatchRequest;
use lateen_model::Origin;
use lateen_xds::pb::envoy::config::route::v3 as route;
use lateen_xds::pb::envoy::r#type::matcher::v3 as matcher;

use crate::tokens;
use crate::wire;

/// The conditions on the request.
pub(crate) fn route_match(condition: &HttpMatchRequest, origin: Origin) -> route::RouteMatch {
    let pseudo = [
        (":scheme", &condition.scheme),
        (":method", &condition.method),
        (":authority", &condition.authority),
    ];
    let mut headers = Vec::new();
    let mut dynamic_metadata = Vec::new();
    for (name, matcher) in &condition.headers {
        match tokens::routing_claim(name) {
            Some(path) => dynamic_metadata.push(claim(&path, matcher.as_ref())),
            None => headers.push(header(name, matcher.as_ref())),
        }
    }
    for (name, matcher) in &condition.without_headers {
        match tokens::routing_claim(name) {
            Some(path) => dynamic_metadata
                .push(matcher::MetadataMatcher { invert: true, ..claim(&path, matcher.as_ref()) }),
            None => headers.push(without_header(name, matcher.as_ref())),
        }
    }
    headers
        .extend(pseudo.into_iter().filter_map(|(name, matcher)| Some(header(name, Some(matcher.as_ref()?)))));
    route::RouteMatch {
        path_specifier: Some(path(condition.uri.as_ref(), origin)),
        case_sensitive: condition.ignore_uri_case.then_some(false).and_then(wire::boolean),
        headers,
        query_parameters: query_parameters(&condition.query_params),
        dynamic_metadata,
        ..Default::default()
    }
}

fn claim(path: &[&str], condition: Option<&StringMatch>) -> matcher::MetadataMatcher {
    match condition.and_then(string_matcher) {
        Some(matcher) => tokens::claim(path, matcher),
        None => tokens::any_claim(path),
    }
}

fn path(uri: Option<&StringMatch>, origin: Origin) -> route::route_match::PathSpecifier {
    use route::route_match::PathSpecifier;
    match uri {
        // `/a` of an Ingress is for `/a` and `/a/b`, not for `/ab`.
        Some(StringMatch { prefix: Some(prefix), .. })
            if origin == Origin::Ingress && !prefix.trim_end_matches('/').is_empty() =>
        {
            PathSpecifier::PathSeparatedPrefix(prefix.trim_end_matches('/').to_owned())
        }
        Some(StringMatch { exact: Some(path), .. }) => PathSpecifier::Path(path.clone()),
        Some(StringMatch { prefix: Some(prefix), .. }) => PathSpecifier::Prefix(prefix.clone()),
        Some(StringMatch { regex: Some(expression), .. }) => {
            PathSpecifier::SafeRegex(wire::regex(expression))
        }
        _ => PathSpecifier::Prefix("/".to_owned()),
    }
}

fn header(name: &str, condition: Option<&StringMatch>) -> route::HeaderMatcher {
    use route::header_matcher::HeaderMatchSpecifier;
    let specifier = match condition.and_then(string_matcher) {
        Some(matcher) => HeaderMatchSpecifier::StringMatch(matcher),
        None => HeaderMatchSpecifier::PresentMatch(true),
    };
    route::HeaderMatcher {
        name: name.to_owned(),
        header_match_specifier: Some(specifier),
        ..Default::default()
    }
}

fn without_header(name: &str, condition: Option<&StringMatch>) -> route::HeaderMatcher {
    let matcher = header(name, condition);
    let about_value = matches!(
        matcher.header_match_specifier,
        Some(route::header_matcher::HeaderMatchSpecifier::StringMatch(_))
    );
    // Otherwise a request without the header would match neither the condition nor its inverse.
    route::HeaderMatcher { invert_match: true, treat_missing_header_as_empty: about_value, ..matcher }
}

fn query_parameters(params: &BTreeMap<String, Option<StringMatch>>) -> Vec<route::QueryParameterMatcher> {
    use route::query_parameter_matcher::QueryParameterMatchSpecifier;
    let specifier = |condition: &Option<StringMatch>| match condition.as_ref().and_then(string_matcher) {
        Some(matcher) => QueryParameterMatchSpecifier::StringMatch(matcher),
        None => QueryParameterMatchSpecifier::PresentMatch(true),
    };
    params
        .iter()
        .map(|(name, condition)| route::QueryParameterMatcher {
            name: name.clone(),
            query_parameter_match_specifier: Some(specifier(condition)),
        })
        .collect()
}

/// None when there is nothing to compare with, which asks for presence.
pub(crate) fn string_matcher(condition: &StringMatch) -> Option<matcher::StringMatcher> {
    use matcher::string_matcher::MatchPattern;
    let pattern = match condition {
        StringMatch { exact: Some(text), .. } => MatchPattern::Exact(text.clone()),
        // Envoy refuses an empty prefix; every value has it.
        StringMatch { prefix: Some(text), .. } if !text.is_empty() => MatchPattern::Prefix(text.clone()),
        StringMatch { regex: Some(expression), .. } => MatchPattern::SafeRegex(wire::regex(expression)),
        _ => return None,
    };
    Some(matcher::StringMatcher { match_pattern: Some(pattern), ..Default::default() })
}

/// A path's pattern as it appears in the name of an operation.
pub(crate) fn path_pattern(condition: Option<&HttpMatchRequest>) -> String {
    match condition.and_then(|condition| condition.uri.as_ref()) {
        Some(StringMatch { exact: Some(path), .. }) => path.clone(),
        Some(StringMatch { prefix: Some(prefix), .. }) => format!("{prefix}*"),
        Some(StringMatch { regex: Some(expression), .. }) => expression.clone(),
        _ => "/*".to_owned(),
    }
}
