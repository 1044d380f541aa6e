//! What was found with HTTP filters.

use serde_json::{Value, json};

use super::{Asked, Found, asked, manager, only, to};
use crate::proxies::merged;
use crate::tokens::Signer;

fn connect() -> Asked {
    let target = "a.example:443".to_owned();
    Asked { target: target.clone(), host: target, ..asked("CONNECT", &[]) }
}

/// What a CONNECT lacks: it has no path.
pub(super) fn of_connects() -> Vec<Found> {
    let pathless = |filter: Value| {
        let mapper = json!({ "filter": filter, "status_code": 599, "body": { "inline_string": "mapped" } });
        merged(
            only(json!({ "match": { "path": "/x" }, "redirect": {} })),
            json!({ "local_reply_config": { "mappers": [mapper] } }),
        )
    };
    let other = json!({ "name": ":path", "string_match": { "contains": "abc" }, "invert_match": true });
    let any = json!({ "permissions": [{ "any": true }], "principals": [{ "not_id": { "url_path": { "path": { "prefix": "/" } } } }] });
    let denies = json!({ "http_filters": [
        { "name": "envoy.filters.http.rbac", "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.filters.http.rbac.v3.RBAC",
            "rules": { "action": "DENY", "policies": { "pathless": any } },
        } },
        crate::proxies::router(),
    ] });
    let tunnel = || {
        only(
            json!({ "match": { "connect_matcher": {} }, "route": { "cluster": "dead", "upgrade_configs": [{ "upgrade_type": "CONNECT", "connect_config": {} }] } }),
        )
    };
    vec![
        ("no path is not another path", pathless(json!({ "header_filter": { "header": other } })), connect()),
        ("access without a path", merged(tunnel(), denies), connect()),
        (
            "a refused token without a URL",
            merged(
                tunnel(),
                tokens(json!([{ "match": { "connect_matcher": {} }, "requires": { "provider_name": "a" } }])),
            ),
            connect(),
        ),
    ]
}

/// The filter of tokens with these rules; a claim becomes `x-a`, all of them `x-b`.
fn tokens(rules: Value) -> Value {
    let provider = json!({
        "issuer": "a", "local_jwks": { "inline_string": r#"{"keys":[{"kty":"oct","k":"YSBzZWNyZXQgb2YgdGhpcnR5LXR3byBjaGFyYWN0ZXJz"}]}"# }, "forward_payload_header": "x-b",
        "claim_to_headers": [{ "header_name": "x-a", "claim_name": "sub" }],
    });
    let filter = json!({ "name": "envoy.filters.http.jwt_authn", "typed_config": {
        "@type": "type.googleapis.com/envoy.extensions.filters.http.jwt_authn.v3.JwtAuthentication",
        "providers": { "a": provider }, "rules": rules, "bypass_cors_preflight": true,
    } });
    json!({ "http_filters": [filter, crate::proxies::router()] })
}

/// Headers that are made of tokens come from nobody else.
pub(super) fn of_tokens() -> Vec<Found> {
    let nothing = || {
        let header = json!({ "name": "x-a", "present_match": true });
        tokens(
            json!([{ "match": { "prefix": "/", "headers": [header] }, "requires": { "provider_name": "a" } }]),
        )
    };
    let disabled = json!({ "envoy.filters.http.jwt_authn": {
        "@type": "type.googleapis.com/envoy.extensions.filters.http.jwt_authn.v3.PerRouteConfig", "disabled": true,
    } });
    let lines = ["x-a: mine", "x-b: mine", "x-c: mine"];
    let preflight = [lines[0], lines[1], "origin: http://b", "access-control-request-method: GET"];
    let service = || only(to("service", json!({})));
    let off = manager(
        json!({ "routes": [to("service", json!({}))], "typed_per_filter_config": disabled }),
        json!({}),
    );
    vec![
        ("where no rule asks for any", merged(service(), nothing()), asked("GET", &lines)),
        ("on a route without", merged(off, nothing()), asked("GET", &lines)),
        ("with a preflight", merged(service(), nothing()), asked("OPTIONS", &preflight)),
    ]
}

/// Failures are noted as those of the provider of the token before, where a token names none.
pub(super) fn of_failures() -> Vec<Found> {
    let keys = r#"{"keys":[{"kty":"oct","k":"YSBzZWNyZXQgb2YgdGhpcnR5LXR3byBjaGFyYWN0ZXJz"}]}"#;
    let provider = |more: Value| {
        merged(
            json!({ "local_jwks": { "inline_string": keys }, "failed_status_in_metadata": "failed", "forward": true }),
            more,
        )
    };
    let with = |requires: Value| {
        let filter = json!({ "name": "envoy.filters.http.jwt_authn", "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.filters.http.jwt_authn.v3.JwtAuthentication",
            "providers": {
                "a": provider(json!({ "issuer": "a", "from_headers": [{ "name": "x-token", "value_prefix": "v=" }] })),
                "b": provider(json!({ "issuer": "b", "from_headers": [{ "name": "x-token" }], "from_params": ["token"] })),
            },
            "rules": [{ "match": { "prefix": "/" }, "requires": requires }],
        } });
        let filters = json!({ "http_filters": [filter, crate::proxies::router()] });
        merged(only(to("service", json!({}))), filters)
    };
    let signer = Signer::Shared(b"a secret of thirty-two characters".to_vec());
    let token = |issuer: &str| signer.token(&json!({ "alg": "HS256" }), &json!({ "iss": issuer }));
    let marked = format!("x-token: v={}", token("a"));
    let strange = format!("/?token={}", token("c"));
    let failed = || json!({ "allow_missing_or_failed": {} });
    vec![
        ("the other place's failure", with(failed()), asked("GET", &[&marked])),
        (
            "a token of nobody's after a good one",
            with(failed()),
            Asked { target: strange.clone(), ..asked("GET", &[&marked]) },
        ),
        ("a token of nobody's alone", with(failed()), Asked { target: strange, ..asked("GET", &[]) }),
        ("the same where one is required", with(json!({ "provider_name": "b" })), asked("GET", &[&marked])),
    ]
}
