//! Tokens: the filter `jwt_authn` in cases of its own, attacks among them.

mod async_fetch;
mod listeners;
mod remote;

use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};

use crate::cases::{Case, Compare, Step};
use crate::proxies::{Pair, manager, merged};
use crate::tokens::{Signer, encode};

const FILTER: &str = "type.googleapis.com/envoy.extensions.filters.http.jwt_authn.v3.JwtAuthentication";
const PER_ROUTE: &str = "type.googleapis.com/envoy.extensions.filters.http.jwt_authn.v3.PerRouteConfig";
const RBAC: &str = "type.googleapis.com/envoy.extensions.filters.http.rbac.v3.RBAC";
const ISSUER: &str = "https://issuer.example";

/// The keys of all tests.
struct Keys {
    rsa: Signer,
    others: Vec<(&'static str, Signer)>,
    stranger: Signer,
}

impl Keys {
    fn new() -> Self {
        let others = vec![
            ("ES256", Signer::elliptic("P-256")),
            ("ES384", Signer::elliptic("P-384")),
            ("ES512", Signer::elliptic("P-521")),
            ("EdDSA", Signer::edwards()),
            ("HS256", Signer::Shared(b"a secret of thirty-two characters".to_vec())),
        ];
        Self { rsa: Signer::rsa(), others, stranger: Signer::rsa() }
    }

    fn set(&self) -> String {
        let mut keys = vec![self.rsa.jwk(json!({ "kid": "rsa", "use": "sig" }))];
        keys.push(json!({ "kty": "RSA", "kid": "broken", "n": "!", "e": "AQAB" }));
        keys.extend(self.others.iter().map(|(name, key)| key.jwk(json!({ "kid": name, "alg": name }))));
        json!({ "keys": keys }).to_string()
    }

    /// A token by the RSA key.
    fn token(&self, claims: &Value) -> String {
        self.rsa.token(&json!({ "alg": "RS256", "kid": "rsa", "typ": "JWT" }), claims)
    }
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

/// Good claims, and more.
fn claims(more: Value) -> Value {
    merged(json!({ "iss": ISSUER, "sub": "alice", "aud": ["shop", "bank"], "exp": 4_102_444_800_u64 }), more)
}

fn provider(keys: &str, more: Value) -> Value {
    merged(json!({ "issuer": ISSUER, "local_jwks": { "inline_string": keys } }), more)
}

fn filter(mut config: Value) -> Value {
    config["@type"] = json!(FILTER);
    json!({ "name": "jwt", "typed_config": config })
}

/// One provider, required everywhere.
fn required(provider: Value) -> Value {
    filter(json!({
        "providers": { "p": provider },
        "rules": [{ "match": { "prefix": "/" }, "requires": { "provider_name": "p" } }],
    }))
}

fn requires(providers: Value, requirement: Value) -> Value {
    filter(json!({
        "providers": providers, "rules": [{ "match": { "prefix": "/" }, "requires": requirement }],
    }))
}

/// What was noted goes to the service in a header.
fn service() -> Value {
    json!([{
        "match": { "prefix": "/" }, "route": { "cluster": "service" },
        "request_headers_to_add": [
            { "header": { "key": "x-sub", "value": "%DYNAMIC_METADATA(envoy.filters.http.jwt_authn:payload:sub)%" } },
            { "header": { "key": "x-scope", "value": "%DYNAMIC_METADATA(envoy.filters.http.jwt_authn:payload:scope)%" } },
            { "header": { "key": "x-alg", "value": "%DYNAMIC_METADATA(envoy.filters.http.jwt_authn:header:alg)%" } },
            { "header": { "key": "x-why", "value": "%DYNAMIC_METADATA(envoy.filters.http.jwt_authn:failed:message)%" } },
            { "header": { "key": "x-code", "value": "%DYNAMIC_METADATA(envoy.filters.http.jwt_authn:failed:code)%" } },
        ],
    }])
}

fn ask(name: &'static str, listener: &'static str, target: &str, more: &str) -> Case {
    Case {
        name,
        listener,
        steps: vec![
            Step::Send(format!("GET {target} HTTP/1.1\r\nhost: a.example\r\n{more}\r\n").into_bytes()),
            Step::Answers(vec!["GET"]),
        ],
        compare: Compare::Everything,
    }
}

fn bearer(name: &'static str, listener: &'static str, token: &str) -> Case {
    ask(name, listener, "/", &format!("authorization: Bearer {token}\r\n"))
}

/// Tokens as such.
#[allow(clippy::too_many_lines)] // A table of cases.
fn token_cases(keys: &Keys) -> Vec<Case> {
    let at = "plain-jwt";
    let good = keys.token(&claims(json!({})));
    let with = |more: Value| keys.token(&claims(more));
    let header = |header: Value| keys.rsa.token(&header, &claims(json!({})));
    let raw = |header: &str, claims: &str| keys.rsa.token_of("RS256", header, claims);
    let plain = r#"{"alg":"RS256"}"#;
    let mut cases = vec![
        bearer("jwt: good", at, &good),
        ask("jwt: missing", at, "/x?y=z", ""),
        ask("jwt: missing at a long path", at, &format!("/{}", "x".repeat(300)), ""),
        bearer("jwt: expired", at, &with(json!({ "exp": 1_000 }))),
        bearer("jwt: just expired", at, &with(json!({ "exp": now() - 30 }))),
        bearer("jwt: just expired, less leeway", "audience", &with(json!({ "exp": now() - 30 }))),
        bearer("jwt: without an end", at, &keys.token(&json!({ "iss": ISSUER }))),
        bearer("jwt: an end of zero", at, &with(json!({ "exp": 0 }))),
        bearer("jwt: not yet valid", at, &with(json!({ "nbf": now() + 1_000 }))),
        bearer("jwt: valid soon", at, &with(json!({ "nbf": now() + 30 }))),
        bearer("jwt: another issuer", at, &with(json!({ "iss": "https://evil.example" }))),
        bearer("jwt: no issuer", at, &keys.token(&json!({ "sub": "x" }))),
        bearer("jwt: no issuer where any will do", "anyone", &keys.token(&json!({ "sub": "x" }))),
        bearer("jwt: no keys", "no-keys", &good),
        bearer("jwt: an audience", "audience", &good),
        bearer("jwt: one audience", "audience", &with(json!({ "aud": "http://shop" }))),
        bearer("jwt: another audience", "audience", &with(json!({ "aud": "evil" }))),
        bearer("jwt: no audience", "audience", &keys.token(&json!({ "iss": ISSUER }))),
        bearer("jwt: audience in capitals", "audience", &with(json!({ "aud": "Shop" }))),
        bearer("jwt: a subject", "subject", &good),
        bearer("jwt: another subject", "subject", &with(json!({ "sub": "mallory" }))),
        bearer(
            "jwt: a subject without an end",
            "subject",
            &keys.token(&json!({ "iss": ISSUER, "sub": "alice", "aud": "shop" })),
        ),
        bearer("jwt: too long a life", "lifetime", &good),
        bearer("jwt: a short life", "lifetime", &with(json!({ "exp": now() + 600 }))),
        bearer("jwt: a life without an end", "lifetime", &keys.token(&json!({ "iss": ISSUER }))),
        bearer("jwt: audience, subject and time", "subject", &with(json!({ "sub": "mallory", "exp": 1 }))),
        bearer("jwt: subject and audience", "subject", &with(json!({ "sub": "mallory", "aud": "evil" }))),
        bearer(
            "jwt: no end and another audience",
            "subject",
            &keys.token(&json!({ "iss": ISSUER, "sub": "alice", "aud": "evil" })),
        ),
        bearer(
            "jwt: claims twice within",
            at,
            &raw(plain, &format!("{{\"iss\":\"{ISSUER}\",\"a\":{{\"b\":1,\"b\":2}}}}")),
        ),
        bearer("jwt: expired for another audience", "audience", &with(json!({ "aud": "evil", "exp": 1 }))),
        bearer("jwt: scopes", at, &with(json!({ "scope": "read  write" }))),
        bearer("jwt: no scopes", at, &with(json!({ "scope": "" }))),
        bearer("jwt: a list of scopes", at, &with(json!({ "scope": ["read write"] }))),
        // Attacks.
        bearer(
            "jwt: alg none",
            at,
            &format!("{}.{}.", encode(r#"{"alg":"none"}"#), encode(claims(json!({})).to_string())),
        ),
        bearer("jwt: alg none with a signature", at, &header(json!({ "alg": "none" }))),
        bearer("jwt: alg in other letters", at, &header(json!({ "alg": "rs256" }))),
        bearer("jwt: no alg", at, &header(json!({}))),
        bearer("jwt: alg a number", at, &header(json!({ "alg": 1 }))),
        bearer(
            "jwt: key confusion",
            at,
            &Signer::Shared(keys.rsa.jwk(json!({}))["n"].as_str().unwrap().into())
                .token(&json!({ "alg": "HS256", "kid": "rsa" }), &claims(json!({}))),
        ),
        bearer(
            "jwt: HS512 by the key for HS256",
            at,
            &keys.others[4].1.token(&json!({ "alg": "HS512", "kid": "HS256" }), &claims(json!({}))),
        ),
        bearer("jwt: kid of another key", at, &header(json!({ "alg": "RS256", "kid": "ES256" }))),
        bearer("jwt: kid of nobody", at, &header(json!({ "alg": "RS256", "kid": "../../etc/passwd" }))),
        bearer("jwt: kid a number", at, &header(json!({ "alg": "RS256", "kid": 1 }))),
        bearer("jwt: kid empty", at, &header(json!({ "alg": "RS256", "kid": "" }))),
        bearer("jwt: no kid", at, &header(json!({ "alg": "RS256" }))),
        bearer(
            "jwt: a key in the token",
            at,
            &keys.stranger.token(
                &json!({ "alg": "RS256", "jwk": keys.stranger.jwk(json!({})), "jku": "http://evil.example" }),
                &claims(json!({})),
            ),
        ),
        bearer("jwt: crit", at, &header(json!({ "alg": "RS256", "crit": ["exp"], "b64": false }))),
        bearer(
            "jwt: a stranger's",
            at,
            &keys.stranger.token(&json!({ "alg": "RS256", "kid": "rsa" }), &claims(json!({}))),
        ),
        bearer("jwt: changed", at, &good.replacen('.', ".e", 1)),
        bearer(
            "jwt: signature of another",
            at,
            &format!(
                "{}.{}",
                good.rsplit_once('.').unwrap().0,
                with(json!({ "sub": "b" })).rsplit_once('.').unwrap().1
            ),
        ),
        bearer("jwt: a shorter signature", at, &good[..good.len() - 4]),
        bearer("jwt: no signature", at, good.rsplit_once('.').unwrap().0),
        bearer("jwt: two parts", at, "a.b"),
        bearer("jwt: four parts", at, &format!("{good}.x")),
        bearer("jwt: dots around", at, &format!(".{good}.")),
        bearer("jwt: nothing", at, ""),
        bearer("jwt: garbage", at, "garbage"),
        bearer("jwt: only dots", at, "..."),
        bearer("jwt: bad header", at, "e*.e30.AA"),
        bearer("jwt: bad payload", at, &format!("{}.*.AA", encode(plain))),
        bearer("jwt: bad signature", at, &format!("{}.{}.*", encode(plain), encode("{}"))),
        bearer("jwt: padded", at, &format!("{good}==")),
        bearer("jwt: a padded header", at, &good.replacen('.', "=.", 1)),
        bearer("jwt: more behind", at, &format!("{good} more")),
        bearer("jwt: standard Base64", at, &format!("{}.{}.a+/b", encode(plain), encode("{}"))),
        bearer("jwt: header no object", at, &raw("[]", "{}")),
        bearer("jwt: header no JSON", at, &raw("{", "{}")),
        bearer("jwt: payload no object", at, &raw(plain, "[]")),
        bearer("jwt: payload no JSON", at, &raw(plain, "{\"iss\":")),
        bearer(
            "jwt: payload not UTF-8",
            at,
            &format!("{}.{}.AA", encode(plain), encode(b"{\"iss\":\"\xff\"}")),
        ),
        bearer("jwt: claims twice", at, &raw(plain, &format!("{{\"iss\":\"evil\",\"iss\":\"{ISSUER}\"}}"))),
        bearer("jwt: iss a number", at, &with(json!({ "iss": 1 }))),
        bearer("jwt: iss null", at, &with(json!({ "iss": null }))),
        bearer("jwt: sub a list", at, &with(json!({ "sub": [] }))),
        bearer("jwt: jti a number", at, &with(json!({ "jti": 1 }))),
        bearer("jwt: iat a text", at, &with(json!({ "iat": "1" }))),
        bearer("jwt: iat negative", at, &with(json!({ "iat": -1 }))),
        bearer("jwt: nbf a text", at, &with(json!({ "nbf": "1" }))),
        bearer("jwt: nbf negative", at, &with(json!({ "nbf": -1 }))),
        bearer("jwt: exp a text", at, &with(json!({ "exp": "4102444800" }))),
        bearer("jwt: exp negative", at, &with(json!({ "exp": -1 }))),
        bearer("jwt: exp huge", at, &with(json!({ "exp": 1e30 }))),
        bearer("jwt: exp with a fraction", at, &with(json!({ "exp": 4_102_444_800.5 }))),
        bearer("jwt: aud a number", at, &with(json!({ "aud": 1 }))),
        bearer("jwt: aud a list of numbers", at, &with(json!({ "aud": ["a", 1] }))),
        bearer("jwt: deep", at, &raw(plain, &format!("{{\"a\":{}1{}}}", "[".repeat(300), "]".repeat(300)))),
        bearer("jwt: large", at, &with(json!({ "x": "x".repeat(20_000) }))),
        bearer("jwt: a large forgery", at, &"x".repeat(50_000)),
    ];
    for algorithm in ["RS256", "RS384", "RS512", "PS256", "PS384", "PS512"] {
        cases.push(bearer("jwt: RSA", at, &header(json!({ "alg": algorithm, "kid": "rsa" }))));
    }
    for (algorithm, key) in &keys.others {
        let header = json!({ "alg": algorithm, "kid": algorithm });
        let token = key.token(&header, &claims(json!({})));
        cases.push(bearer("jwt: an algorithm", at, &token));
        cases.push(bearer("jwt: an algorithm, forged", at, &token.replacen(".ey", ".eyI", 1)));
        cases.push(bearer("jwt: an algorithm, cut", at, &token[..token.len() - 8]));
    }
    cases
}

/// Where tokens are, and what becomes of them.
fn place_cases(keys: &Keys) -> Vec<Case> {
    let good = keys.token(&claims(json!({})));
    let bad = keys.token(&claims(json!({ "exp": 1 })));
    let rich = keys.token(&claims(json!({
        "n": 12, "half": 1.5, "yes": true, "none": null, "list": ["x", 1], "a": { "b": { "c": "deep" } },
        "https://x.example/roles": { "of": "url" }, "negative": -3,
    })));
    let at = "places";
    vec![
        ask("jwt: by a parameter", "plain-jwt", &format!("/x?a=1&access_token={good}&b=/"), ""),
        ask("jwt: by a parameter alone", "plain-jwt", &format!("/x?access_token={good}"), ""),
        ask("jwt: by an empty parameter", "plain-jwt", "/x?access_token=", ""),
        ask("jwt: by a parameter twice", at, &format!("/x?z=1&t={good}&t={bad}&a=2&a=1&flag&e=+"), ""),
        ask("jwt: by a parameter, encoded", at, &format!("/x?t={}", good.replace('.', "%2E")), ""),
        ask(
            "jwt: the scheme in small letters",
            "plain-jwt",
            "/",
            &format!("authorization: bearer {good}\r\n"),
        ),
        ask("jwt: another scheme", "plain-jwt", "/", "authorization: Basic YTpi\r\n"),
        ask("jwt: two spaces", "plain-jwt", "/", &format!("authorization: Bearer   {good}\r\n")),
        ask("jwt: a scheme before", "plain-jwt", "/", &format!("authorization: Basic x, Bearer {good}\r\n")),
        ask("jwt: a header", at, "/", &format!("x-token: {good}\r\n")),
        ask(
            "jwt: two authorizations",
            "plain-jwt",
            "/",
            &format!("authorization: Bearer {good}\r\nauthorization: Bearer {good}\r\n"),
        ),
        ask(
            "jwt: two authorizations, the second good",
            "plain-jwt",
            "/",
            &format!("authorization: Bearer {bad}\r\nauthorization: Bearer {good}\r\n"),
        ),
        ask(
            "jwt: two authorizations, the second empty",
            "plain-jwt",
            "/",
            &format!("authorization: Bearer {good}\r\nauthorization:\r\n"),
        ),
        ask(
            "jwt: two authorizations, the first basic",
            "plain-jwt",
            "/",
            &format!("authorization: Basic x\r\nauthorization: Bearer {good}\r\n"),
        ),
        ask("jwt: a header twice", at, "/", &format!("x-token: {good}\r\nx-token: {good}\r\n")),
        ask("jwt: a good one and a bad one", at, "/", &format!("x-token: {good}\r\nx-token: {bad}\r\n")),
        ask("jwt: a bad one and a good one", at, "/", &format!("x-token: {bad}\r\nx-token: {good}\r\n")),
        ask("jwt: a prefix", at, "/", &format!("x-auth: token={good}\r\n")),
        ask("jwt: a prefix in the middle", at, "/", &format!("x-auth: a token=  \"{good}\r\n")),
        ask("jwt: without the prefix", at, "/", &format!("x-auth: {good}\r\n")),
        ask("jwt: a prefix and nothing", at, "/", "x-auth: token=\r\n"),
        ask("jwt: a cookie", at, "/", &format!("cookie: a=b; session={good}; c=d\r\n")),
        ask("jwt: a quoted cookie", at, "/", &format!("cookie: session=\"{good}\"\r\n")),
        ask("jwt: a cookie twice", at, "/", &format!("cookie: session={good}\r\ncookie: session={bad}\r\n")),
        ask("jwt: a bad cookie", at, "/", &format!("cookie: other={bad}\r\n")),
        ask(
            "jwt: a good header and a bad cookie",
            at,
            "/",
            &format!("x-token: {good}\r\ncookie: session={bad}\r\n"),
        ),
        ask(
            "jwt: a bad header and a good cookie",
            at,
            "/",
            &format!("x-token: {bad}\r\ncookie: session={good}\r\n"),
        ),
        ask(
            "jwt: everywhere",
            at,
            &format!("/?u={good}"),
            &format!("x-token: {good}\r\nx-auth: token={good}\r\ncookie: session={good}\r\n"),
        ),
        ask(
            "jwt: claims in headers",
            "kept",
            "/",
            &format!("authorization: Bearer {rich}\r\nx-c-sub: root\r\nx-payload: x\r\nx-c-none: evil\r\n"),
        ),
        ask(
            "jwt: headers of a refused one",
            "kept",
            "/",
            &format!("authorization: Bearer {bad}\r\nx-c-sub: root\r\n"),
        ),
        ask(
            "jwt: the payload",
            "payload",
            "/",
            &format!("authorization: Bearer {rich}\r\nx-payload: evil\r\n"),
        ),
        bearer("jwt: cached", "cached", &good),
    ]
}

fn grouped_cases(keys: &Keys) -> Vec<Case> {
    let a = keys.token(&claims(json!({})));
    let b = keys.token(&claims(json!({ "iss": "b" })));
    let c = keys.token(&claims(json!({ "iss": "c" })));
    let bad = keys.token(&claims(json!({ "exp": 1 })));
    let given = [
        String::new(),
        format!("authorization: Bearer {a}\r\n"),
        format!("x-b: {b}\r\n"),
        format!("authorization: Bearer {a}\r\nx-b: {b}\r\n"),
        format!("authorization: Bearer {bad}\r\n"),
        format!("authorization: Bearer {bad}\r\nx-b: {b}\r\n"),
        format!("authorization: Bearer {c}\r\n"),
        format!("authorization: Bearer {a}\r\nx-b: {a}\r\n"),
        format!("authorization: Bearer {b}\r\nx-b: {a}\r\n"),
        "authorization: Bearer x\r\nx-b: x.y.z\r\n".to_owned(),
    ];
    let mut cases = Vec::new();
    for listener in ["any", "all", "any-optional", "any-failed", "optional", "failed", "istio"] {
        cases.extend(given.iter().map(|more| ask("jwt: of several", listener, "/x", more)));
    }
    let targets = [
        "/open/x",
        "/both",
        "/both/x",
        "/b/x",
        "/header",
        "/audience",
        "/bank",
        "/route/off",
        "/route/both",
        "/route/wrong",
        "/x",
    ];
    for listener in ["rules", "rules-told"] {
        for more in &given {
            cases.extend(targets.iter().map(|target| ask("jwt: by rules", listener, target, more)));
        }
        let headers = "x-want: 1\r\n";
        cases.push(ask("jwt: by a header", listener, "/header", headers));
        for origin in ["origin: http://b\r\n", ""] {
            let mut preflight = ask("jwt: preflight", listener, "/both", "");
            let text = format!(
                "OPTIONS /both HTTP/1.1\r\nhost: a\r\n{origin}access-control-request-method: GET\r\n\r\n"
            );
            preflight.steps[0] = Step::Send(text.into_bytes());
            cases.push(preflight);
        }
    }
    cases
}

fn metadata_cases(keys: &Keys) -> Vec<Case> {
    let with = |more: Value| keys.token(&claims(more));
    let mut cases = Vec::new();
    let groups = [
        json!("admin"),
        json!("user"),
        json!(["user", "admin"]),
        json!(["user"]),
        json!(7),
        json!({ "admin": 1 }),
    ];
    for listener in ["routed", "not-routed"] {
        for group in &groups {
            let header = format!("authorization: Bearer {}\r\n", with(json!({ "group": group })));
            cases.push(ask("jwt: routed by a claim", listener, "/x", &header));
            cases.push(ask("jwt: routed by a claim or nowhere", listener, "/only-users", &header));
        }
        let header = format!("authorization: Bearer {}\r\n", with(json!({})));
        cases.push(ask("jwt: no claim to route by", listener, "/only-users", &header));
    }
    for claims in [
        json!({}),
        json!({ "groups": ["admin"] }),
        json!({ "groups": "admin" }),
        json!({ "groups": ["a", "admin"] }),
        json!({ "a": { "b": "xy" } }),
        json!({ "a": "x" }),
        json!({ "scope": "read write" }),
        json!({ "scope": "rewrite" }),
        json!({ "scope": ["write"] }),
    ] {
        cases.push(bearer("jwt: a policy", "policies", &with(claims)));
    }
    cases
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tokens_fare_the_same() {
    let keys = Keys::new();
    let mut listeners = listeners::simple_listeners(&keys);
    listeners.extend(listeners::grouped_listeners(&keys));
    listeners.extend(listeners::metadata_listeners(&keys));
    let pair = Pair::start_with(listeners).await;
    let mut cases = token_cases(&keys);
    cases.extend(place_cases(&keys));
    cases.extend(grouped_cases(&keys));
    cases.extend(metadata_cases(&keys));
    let complaints = crate::compare(&pair, cases, &[r"\.jwt_authn\.", r"routed\.no_route$"]).await;
    assert!(complaints.is_empty(), "\n{complaints}");
}
