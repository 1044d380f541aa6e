//! Listeners by what they require.

use super::*;

pub(super) fn simple_listeners(keys: &Keys) -> Vec<(&'static str, Value)> {
    let set = keys.set();
    let noted = json!({
        "payload_in_metadata": "payload", "header_in_metadata": "header", "failed_status_in_metadata": "failed",
        "normalize_payload_in_metadata": { "space_delimited_claims": ["scope"] },
    });
    let one = |more: Value| manager(vec![required(provider(&set, more))], service(), json!({}));
    let claims = json!([
        { "header_name": "x-c-sub", "claim_name": "sub" }, { "header_name": "x-c-n", "claim_name": "n" },
        { "header_name": "x-c-nested", "claim_name": "a.b.c" }, { "header_name": "x-c-list", "claim_name": "list" },
        { "header_name": "x-c-object", "claim_name": "a.b" }, { "header_name": "x-c-yes", "claim_name": "yes" },
        { "header_name": "x-c-none", "claim_name": "none" }, { "header_name": "x-c-half", "claim_name": "half" },
        { "header_name": "x-c-dotted", "claim_path": [{ "key": "https://x.example/roles" }, { "key": "of" }] },
    ]);
    vec![
        ("plain-jwt", one(noted)),
        (
            "kept",
            one(json!({
                "forward": true, "forward_payload_header": "x-payload", "pad_forward_payload_header": true,
                "claim_to_headers": claims,
            })),
        ),
        ("payload", one(json!({ "forward_payload_header": "x-payload" }))),
        ("audience", one(json!({ "audiences": ["https://shop/", "other"], "clock_skew_seconds": 5 }))),
        (
            "subject",
            one(
                json!({ "subjects": { "prefix": "ali" }, "require_expiration": true, "audiences": ["shop"] }),
            ),
        ),
        ("lifetime", one(json!({ "max_lifetime": "3600s" }))),
        ("anyone", one(json!({ "issuer": "" }))),
        ("no-keys", one(json!({ "local_jwks": { "inline_string": "" } }))),
        ("cached", one(json!({ "jwt_cache_config": { "jwt_cache_size": 2 } }))),
        (
            "places",
            one(json!({
                "from_headers": [{ "name": "x-token" }, { "name": "x-auth", "value_prefix": "token=" }, { "name": "authorization", "value_prefix": "Bearer " }],
                "from_params": ["t", "u"], "from_cookies": ["session", "other"],
            })),
        ),
    ]
}

pub(super) fn grouped_listeners(keys: &Keys) -> Vec<(&'static str, Value)> {
    let set = keys.set();
    let two = || {
        json!({
            "a": provider(&set, json!({ "payload_in_metadata": "payload", "failed_status_in_metadata": "failed" })),
            "b": provider(&set, json!({ "issuer": "b", "forward": true, "from_headers": [{ "name": "x-b" }] })),
        })
    };
    let name = |name: &str| json!({ "provider_name": name });
    let optional = json!({ "allow_missing": {} });
    let any = |list: Value| json!({ "requires_any": { "requirements": list } });
    let all = |list: Value| json!({ "requires_all": { "requirements": list } });
    let with = |requirement| manager(vec![requires(two(), requirement)], service(), json!({}));
    let istio = any(json!([
        name("a"),
        name("b"),
        all(json!([any(json!([name("a"), optional])), any(json!([name("b"), optional]))]))
    ]));
    let rules = filter(json!({
        "providers": two(), "strip_failure_response": true, "bypass_cors_preflight": true, "stat_prefix": "own.",
        "requirement_map": { "both": all(json!([name("a"), name("b")])), "none": {} },
        "rules": [
            { "match": { "prefix": "/open" } },
            { "match": { "path": "/both" }, "requirement_name": "both" },
            { "match": { "safe_regex": { "regex": "/b/.*" } }, "requires": name("b") },
            { "match": { "prefix": "/header", "headers": [{ "name": "x-want", "string_match": { "exact": "1" } }] }, "requires": name("a") },
            { "match": { "prefix": "/audience" }, "requires": { "provider_and_audiences": { "provider_name": "a", "audiences": ["bank"] } } },
            { "match": { "prefix": "/bank" }, "requires": { "provider_and_audiences": { "provider_name": "a", "audiences": ["only"] } } },
            { "match": { "prefix": "/" }, "requires": optional },
        ],
    }));
    let per_route = |prefix: &str, mut config: Value| {
        config["@type"] = json!(PER_ROUTE);
        json!({ "match": { "prefix": prefix }, "route": { "cluster": "service" }, "typed_per_filter_config": { "jwt": config } })
    };
    let routes = json!([
        per_route("/route/off", json!({ "disabled": true })),
        per_route("/route/both", json!({ "requirement_name": "both" })),
        per_route("/route/wrong", json!({ "requirement_name": "nowhere" })),
        service()[0],
    ]);
    vec![
        ("any", with(any(json!([name("a"), name("b")])))),
        ("all", with(all(json!([name("a"), name("b")])))),
        ("any-optional", with(any(json!([name("a"), optional])))),
        ("any-failed", with(any(json!([name("a"), { "allow_missing_or_failed": {} }])))),
        ("optional", with(optional.clone())),
        ("failed", with(json!({ "allow_missing_or_failed": {} }))),
        ("istio", with(istio)),
        ("rules", manager(vec![rules.clone()], routes.clone(), json!({}))),
        ("rules-told", {
            let mut told = rules;
            told["typed_config"]["strip_failure_response"] = json!(false);
            manager(vec![told], routes, json!({}))
        }),
    ]
}

/// Routes and policies by what tokens say.
pub(super) fn metadata_listeners(keys: &Keys) -> Vec<(&'static str, Value)> {
    let routed = |clear: bool| {
        let jwt = required(provider(
            &keys.set(),
            json!({ "payload_in_metadata": "payload", "clear_route_cache": clear }),
        ));
        let claim = |value: Value| json!([{ "filter": "envoy.filters.http.jwt_authn", "path": [{ "key": "payload" }, { "key": "group" }], "value": value }]);
        let direct = |status: u16, matcher: Value| json!({ "match": { "prefix": "/", "dynamic_metadata": matcher }, "direct_response": { "status": status } });
        manager(
            vec![jwt],
            json!([
                direct(221, claim(json!({ "string_match": { "exact": "admin" } }))),
                direct(222, claim(json!({ "list_match": { "one_of": { "string_match": { "exact": "admin" } } } }))),
                direct(223, claim(json!({ "double_match": { "exact": 7 } }))),
                { "match": { "prefix": "/only-users", "dynamic_metadata": claim(json!({ "present_match": true })) }, "direct_response": { "status": 224 } },
                { "match": { "prefix": "/x" }, "direct_response": { "status": 228 } },
            ]),
            json!({}),
        )
    };
    let by = |path: Value, value: Value| json!({ "metadata": { "filter": "envoy.filters.http.jwt_authn", "path": path, "value": value } });
    let key = |key: &str| json!({ "key": key });
    let listed = |text: &str| json!({ "list_match": { "one_of": { "string_match": { "exact": text } } } });
    let policy = |principal: Value| json!({ "permissions": [{ "any": true }], "principals": [principal] });
    let rbac = json!({ "name": "rbac", "typed_config": { "@type": RBAC, "rules": { "action": "ALLOW", "policies": {
        "group": policy(by(json!([key("payload"), key("groups")]), listed("admin"))),
        "nested": policy(by(json!([key("payload"), key("a"), key("b")]), json!({ "string_match": { "prefix": "x" } }))),
        "scope": policy(json!({ "sourced_metadata": { "metadata_matcher": by(json!([key("payload"), key("scope")]), listed("write"))["metadata"] } })),
    } } } });
    let noted = json!({
        "payload_in_metadata": "payload", "normalize_payload_in_metadata": { "space_delimited_claims": ["scope"] },
    });
    vec![
        ("routed", routed(true)),
        ("not-routed", routed(false)),
        ("policies", manager(vec![required(provider(&keys.set(), noted)), rbac], service(), json!({}))),
    ]
}
