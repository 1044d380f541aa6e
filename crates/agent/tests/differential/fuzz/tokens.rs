//! Tokens by chance, and the filter that judges them. All are made with one shared key, so that a seed means the same each time.

use std::sync::LazyLock;

use serde_json::{Value, json};

use super::random::{Dice, string_match};
use crate::tokens::{Signer, encode};

const ISSUER: &str = "https://issuer.example";
const FILTER: &str = "type.googleapis.com/envoy.extensions.filters.http.jwt_authn.v3";

static KEYS: LazyLock<[Signer; 2]> = LazyLock::new(|| {
    [b"a secret of thirty-two characters", b"the one of somebody else, as long"]
        .map(|key| Signer::Shared(key.to_vec()))
});

/// A token, good or not.
pub(super) fn token(dice: &mut Dice) -> String {
    let mut claims =
        json!({ "iss": ISSUER, "sub": "alice", "exp": 4_102_444_800_u64, "aud": ["shop", "bank"] });
    let c = &mut claims;
    dice.sometimes(6, c, "iss", |_| json!("b"));
    dice.sometimes(6, c, "exp", |dice| json!(dice.one(&[json!(1), json!("x"), json!(4_102_444_800.5)])));
    dice.sometimes(8, c, "nbf", |dice| json!(dice.one(&[1_u64, 4_102_444_800])));
    dice.sometimes(4, c, "aud", |dice| {
        json!(dice.one(&[json!("shop"), json!("other"), json!([]), json!(7)]))
    });
    dice.sometimes(4, c, "sub", |dice| json!(dice.one(&["bob", "", "al"])));
    dice.sometimes(3, c, "group", |dice| {
        json!(dice.one(&[
            json!("on"),
            json!(["abc", "v1"]),
            json!(7),
            json!(true),
            json!({ "a": "b" }),
            json!(1.5)
        ]))
    });
    let key = &KEYS[usize::from(dice.once_in(10))];
    let header = json!({ "alg": dice.one(&["HS256", "HS256", "HS256", "none", "RS256"]), "kid": dice.one(&["one", "one", "two"]) });
    match dice.0.u8(..14) {
        0 => "rubbish".to_owned(),
        1 => format!("{}.{}.", encode(header.to_string()), encode(claims.to_string())),
        2 => key.token(&header, &claims) + "x",
        _ => key.token(&header, &claims),
    }
}

fn provider(dice: &mut Dice, issuer: &str) -> Value {
    let kid = json!({ "kid": "one", "alg": "HS256" });
    let keys = json!({ "keys": [KEYS[0].jwk(kid)] }).to_string();
    let mut provider = json!({ "issuer": issuer, "local_jwks": { "inline_string": keys } });
    let p = &mut provider;
    dice.sometimes(4, p, "audiences", |dice| json!([dice.one(&["shop", "https://shop/", "none"])]));
    dice.sometimes(6, p, "subjects", string_match);
    dice.sometimes(6, p, "require_expiration", |_| json!(true));
    dice.sometimes(6, p, "max_lifetime", |_| json!("3600s"));
    dice.sometimes(3, p, "forward", |_| json!(true));
    dice.sometimes(3, p, "from_headers", |dice| {
        json!([dice.one(&[json!({ "name": "x-token" }), json!({ "name": "x-token", "value_prefix": "v=" })])])
    });
    dice.sometimes(4, p, "from_params", |_| json!(["token"]));
    dice.sometimes(4, p, "from_cookies", |_| json!(["session"]));
    dice.sometimes(3, p, "forward_payload_header", |_| json!("x-payload"));
    dice.sometimes(3, p, "pad_forward_payload_header", |_| json!(true));
    dice.sometimes(2, p, "payload_in_metadata", |_| json!("payload"));
    dice.sometimes(4, p, "header_in_metadata", |_| json!("header"));
    dice.sometimes(3, p, "failed_status_in_metadata", |_| json!("failed"));
    dice.sometimes(3, p, "claim_to_headers", |dice| {
        let claim = dice.one(&["sub", "group", "aud", "group.a", "none"]);
        json!([{ "header_name": dice.one(&["x-a", "x-claim"]), "claim_name": claim }])
    });
    dice.sometimes(4, p, "clear_route_cache", |_| json!(true));
    dice.sometimes(8, p, "clock_skew_seconds", |dice| json!(dice.one(&[1, 4_000_000_000_u32])));
    dice.sometimes(6, p, "jwt_cache_config", |_| json!({ "jwt_cache_size": 10 }));
    dice.sometimes(
        6,
        p,
        "normalize_payload_in_metadata",
        |_| json!({ "space_delimited_claims": ["group", "sub"] }),
    );
    provider
}

fn requirement(dice: &mut Dice, depth: usize) -> Value {
    let list = |dice: &mut Dice| json!({ "requirements": [requirement(dice, depth - 1), requirement(dice, depth - 1)] });
    match dice.0.u8(..if depth == 0 { 5 } else { 8 }) {
        0 => json!({ "allow_missing": {} }),
        1 => json!({ "allow_missing_or_failed": {} }),
        2 => json!({ "provider_and_audiences": { "provider_name": "a", "audiences": ["bank"] } }),
        3 | 4 => json!({ "provider_name": dice.one(&["a", "b"]) }),
        5 | 6 => json!({ "requires_any": list(dice) }),
        _ => json!({ "requires_all": list(dice) }),
    }
}

/// The filter.
pub(super) fn filter(dice: &mut Dice) -> Value {
    let rules: Vec<Value> = (0..1 + dice.0.usize(..2))
        .map(|_| {
            let mut rule = json!({ "match": { "prefix": dice.one(&["/", "/", "/a", "/api"]) } });
            dice.sometimes(1, &mut rule, "requires", |dice| requirement(dice, 2));
            rule
        })
        .collect();
    let mut config = json!({
        "@type": format!("{FILTER}.JwtAuthentication"),
        "providers": { "a": provider(dice, ISSUER), "b": provider(dice, "b") },
        "rules": rules, "requirement_map": { "named": requirement(dice, 1) },
    });
    dice.sometimes(3, &mut config, "bypass_cors_preflight", |_| json!(true));
    dice.sometimes(4, &mut config, "strip_failure_response", |_| json!(true));
    json!({ "name": "envoy.filters.http.jwt_authn", "typed_config": config })
}

/// What a route says about it.
pub(super) fn per_route(dice: &mut Dice) -> Value {
    let mut config = match dice.0.u8(..4) {
        0 => json!({ "disabled": true }),
        1 => json!({ "requirement_name": "unknown" }),
        _ => json!({ "requirement_name": "named" }),
    };
    config["@type"] = json!(format!("{FILTER}.PerRouteConfig"));
    config
}
