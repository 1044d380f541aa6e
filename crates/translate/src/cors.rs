//! Cross-origin resource sharing.
//! <https://istio.io/latest/docs/reference/config/networking/virtual-service/#CorsPolicy>
use lateen_api::duration;
use lateen_api::networking::virtual_service::CorsPolicy;
use lateen_xds::pb::envoy::config::core::v3::RuntimeFractionalPercent;
use lateen_xds::pb::envoy::extensions::filters::http::cors::v3 as cors;
use lateen_xds::pb::envoy::r#type::matcher::v3 as matcher;

use crate::faults::whole_percent;
use crate::route_match::string_matcher;
use crate::wire;

/// The CORS filter's configuration for a route.
pub(crate) fn cors_policy(given: &CorsPolicy) -> cors::CorsPolicy {
    let exact = |origin: &String| matcher::StringMatcher {
        match_pattern: Some(matcher::string_matcher::MatchPattern::Exact(origin.clone())),
        ..Default::default()
    };
    let origins = if given.allow_origins.is_empty() {
        given.allow_origin.iter().map(exact).collect()
    } else {
        given.allow_origins.iter().filter_map(string_matcher).collect()
    };
    let age = given.max_age.as_ref().and_then(|age| duration::parse(age).ok());
    cors::CorsPolicy {
        allow_origin_string_match: origins,
        allow_methods: given.allow_methods.join(","),
        allow_headers: given.allow_headers.join(","),
        expose_headers: given.expose_headers.join(","),
        max_age: age.map(|age| age.as_secs().to_string()).unwrap_or_default(),
        allow_credentials: given.allow_credentials.and_then(wire::boolean),
        filter_enabled: Some(RuntimeFractionalPercent {
            default_value: Some(whole_percent(100)),
            ..Default::default()
        }),
        forward_not_matching_preflights: wire::boolean(given.unmatched_preflights != "IGNORE"),
        ..Default::default()
    }
}
