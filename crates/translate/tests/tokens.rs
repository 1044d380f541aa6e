//! RequestAuthentications and what they become; claims in routes.
mod support;

use lateen_model::{Event, KeySet, KeySource};
use lateen_translate::{ResourceType, affected, check_request_authentication};
use serde_json::{Value, json};
use support::Mesh;

const KEYS: &str = r#"{"keys":[{"kty":"oct","k":"AA"}]}"#;

/// The HTTP filters of a chain.
fn filters(chain: &Value) -> Option<Vec<Value>> {
    chain["filters"][0]["typed_config"]["http_filters"].as_array().cloned()
}

fn named(filters: &[Value], name: &str) -> Option<Value> {
    filters.iter().find(|filter| filter["name"] == name).map(|filter| filter["typed_config"].clone())
}

/// The HTTP filters before a workload's port 3000.
fn inbound(mesh: &mut Mesh, pod: &str, port: u32) -> Vec<Value> {
    let resources = mesh.sidecar_resources("default", pod);
    let listener = resources.get(ResourceType::Listener, "virtualInbound");
    let chains = listener["filter_chains"].as_array().expect("chains");
    let mut of_port =
        chains.iter().filter(|chain| chain["filter_chain_match"]["destination_port"] == json!(port));
    of_port.find_map(filters).expect("an HTTP chain of the port")
}

fn tokens(mesh: &mut Mesh, pod: &str, port: u32) -> Option<Value> {
    named(&inbound(mesh, pod, port), "envoy.filters.http.jwt_authn")
}

#[test]
fn rules_become_providers_in_the_order_of_their_issuers() {
    let mut mesh = Mesh::course();
    assert!(tokens(&mut mesh, "customers-v1-1", 3000).is_none());
    mesh.config(&format!(
        "{{kind: RequestAuthentication, metadata: {{name: one}}, spec: {{selector: {{matchLabels: {{app: customers}}}},
          jwtRules: [{{issuer: b, audiences: [x], jwks: '{KEYS}', fromParams: [t], outputPayloadToHeader: x-p,
            outputClaimToHeaders: [{{header: x-c, claim: a.b}}], spaceDelimitedClaims: [roles, scope]}}]}}}}"
    ));
    let config = tokens(&mut mesh, "customers-v1-1", 3000).expect("the filter");
    assert_eq!(
        config["providers"]["origins-0"],
        json!({
            "issuer": "b", "audiences": ["x"], "local_jwks": { "inline_string": KEYS }, "from_params": ["t"],
            "forward_payload_header": "x-p", "payload_in_metadata": "payload",
            "normalize_payload_in_metadata": { "space_delimited_claims": ["permission", "roles", "scope"] },
            "claim_to_headers": [{ "header_name": "x-c", "claim_name": "a.b" }],
        })
    );
    assert_eq!(
        config["rules"],
        json!([{ "match": { "prefix": "/" }, "requires": { "requires_any": { "requirements": [
            { "provider_name": "origins-0" }, { "allow_missing": {} },
        ] } } }])
    );
    assert_eq!(config["bypass_cors_preflight"], true);
    assert!(tokens(&mut mesh, "web-frontend-1", 8080).is_none(), "it is for the customers alone");
    // The root namespace's is for all, and stands beside the workload's own.
    mesh.config(&format!(
        "{{kind: RequestAuthentication, metadata: {{name: all, namespace: istio-system}}, spec: {{jwtRules: [{{issuer: a, jwks: '{KEYS}', forwardOriginalToken: true}}]}}}}"
    ));
    let config = tokens(&mut mesh, "customers-v1-1", 3000).expect("the filter");
    assert_eq!(config["providers"]["origins-0"]["issuer"], "a");
    assert_eq!(config["providers"]["origins-0"]["forward"], true);
    assert_eq!(config["providers"]["origins-1"]["issuer"], "b");
    let either = |name: &str| json!({ "requires_any": { "requirements": [{ "provider_name": name }, { "allow_missing": {} }] } });
    assert_eq!(
        config["rules"][0]["requires"],
        json!({ "requires_any": { "requirements": [
            { "provider_name": "origins-0" }, { "provider_name": "origins-1" },
            { "requires_all": { "requirements": [either("origins-0"), either("origins-1")] } },
        ] } })
    );
    assert!(tokens(&mut mesh, "web-frontend-1", 8080).is_some());
}

#[test]
fn rules_are_for_the_pods_of_gateways() {
    let mut mesh = Mesh::course();
    mesh.config(&format!(
        "{{kind: RequestAuthentication, metadata: {{name: one}}, spec: {{
          targetRefs: [{{group: gateway.networking.k8s.io, kind: Gateway, name: mine}}, {{kind: Service, name: customers}}],
          jwtRules: [{{issuer: a, jwks: '{KEYS}'}}]}}}}"
    ));
    assert!(tokens(&mut mesh, "customers-v1-1", 3000).is_none());
    let labels =
        json!({"app": "customers", "version": "v1", "gateway.networking.k8s.io/gateway-name": "mine"});
    mesh.pod("default", "customers-v1-1", "10.244.0.31", labels);
    assert!(tokens(&mut mesh, "customers-v1-1", 3000).is_some());
    assert!(tokens(&mut mesh, "customers-v2-1", 3000).is_none());
    let world = mesh.world();
    let policy = world.request_authentications().next().expect("the policy");
    let warnings = check_request_authentication(policy, &world);
    let paths: Vec<&str> = warnings.iter().map(|warning| &*warning.path).collect();
    assert_eq!(paths, ["spec.targetRefs[1]"], "{warnings:?}");
}

#[test]
fn keys_are_those_that_were_fetched() {
    let mut mesh = Mesh::course();
    let uri = "https://issuer.example/keys";
    mesh.config(&format!(
        "{{kind: RequestAuthentication, metadata: {{name: it}}, spec: {{jwtRules: [{{issuer: a, jwksUri: '{uri}'}}]}}}}"
    ));
    let keys = |mesh: &mut Mesh| {
        let config = tokens(mesh, "customers-v1-1", 3000).expect("the filter");
        config["providers"]["origins-0"]["local_jwks"]["inline_string"].as_str().expect("keys").to_owned()
    };
    assert!(keys(&mut mesh).contains("lateen-no-key-was-fetched"), "tokens are refused until then");
    let source = KeySource::Uri(uri.into());
    let set = |keys: Option<&str>, problem: Option<&str>| {
        Event::Keys(KeySet {
            source: source.clone(),
            keys: keys.map(Into::into),
            problem: problem.map(str::to_owned),
        })
    };
    let before = mesh.gateway();
    let delta = mesh.apply(set(Some(KEYS), None));
    assert!(!delta.is_empty());
    let after = mesh.gateway();
    assert!(affected(&delta, &before, &after).listeners != lateen_translate::Extent::default());
    assert_eq!(keys(&mut mesh), KEYS);
    mesh.apply(set(Some(KEYS), Some("it is away")));
    assert_eq!(keys(&mut mesh), KEYS, "what came once stays");
    mesh.apply(set(Some("{}"), None));
    assert!(keys(&mut mesh).contains("lateen-no-key-was-fetched"), "a proxy would refuse the whole listener");
}

#[test]
fn the_order_of_filters_is_istios() {
    let mut mesh = Mesh::course();
    mesh.config(&format!(
        "{{kind: RequestAuthentication, metadata: {{name: it}}, spec: {{jwtRules: [{{issuer: a, jwks: '{KEYS}'}}]}}}}"
    ));
    for action in ["ALLOW", "DENY", "CUSTOM"] {
        mesh.config(&support::every_field(action, false));
    }
    let names: Vec<String> = inbound(&mut mesh, "customers-v1-1", 3000)
        .iter()
        .map(|filter| filter["name"].as_str().unwrap_or_default().to_owned())
        .collect();
    let rbac = "envoy.filters.http.rbac";
    assert_eq!(
        names[..4],
        [rbac, "envoy.filters.http.jwt_authn", rbac, rbac],
        "providers, tokens, DENY, ALLOW"
    );
}

#[test]
fn gateways_route_by_claims() {
    let mut mesh = Mesh::course();
    mesh.config("{kind: VirtualService, metadata: {name: by-claim}, spec: {hosts: ['*'], gateways: [gateway], http: [
        {match: [{headers: {'@request.auth.claims.a.group': {exact: x}, plain: {exact: v}}, withoutHeaders: {'@request.auth.claims[b.c]': {exact: z}}}],
         route: [{destination: {host: customers}}]}]}}");
    mesh.config(&format!(
        "{{kind: RequestAuthentication, metadata: {{name: it, namespace: istio-system}}, spec: {{jwtRules: [{{issuer: a, jwks: '{KEYS}'}}]}}}}"
    ));
    let resources = mesh.gateway_resources();
    let routes = resources.all(ResourceType::Route);
    let found = routes
        .iter()
        .flat_map(|routes| routes["virtual_hosts"].as_array().expect("hosts").clone())
        .flat_map(|host| host["routes"].as_array().expect("routes").clone())
        .find(|route| route["match"]["dynamic_metadata"].is_array())
        .expect("a route by claims");
    let exact = |text: &str| json!({ "string_match": { "exact": text } });
    let either = |text: &str| json!({ "or_match": { "value_matchers": [exact(text), { "list_match": { "one_of": exact(text) } }] } });
    assert_eq!(
        found["match"]["dynamic_metadata"],
        json!([
            { "filter": "envoy.filters.http.jwt_authn", "path": [{ "key": "payload" }, { "key": "a" }, { "key": "group" }], "value": either("x") },
            { "filter": "envoy.filters.http.jwt_authn", "path": [{ "key": "payload" }, { "key": "b.c" }], "value": either("z"), "invert": true },
        ])
    );
    assert_eq!(found["match"]["headers"].as_array().map(Vec::len), Some(1));
    let listener = resources.get(ResourceType::Listener, "0.0.0.0_8080");
    let chain = listener["filter_chains"].get(0).or(listener.get("default_filter_chain")).expect("a chain");
    let config =
        named(&filters(chain).expect("filters"), "envoy.filters.http.jwt_authn").expect("the filter");
    assert_eq!(config["providers"]["origins-0"]["clear_route_cache"], true, "claims have a say in routing");
}

#[test]
fn proxies_fetch_keys_where_they_are_told_to() {
    use lateen_model::{KeysBy, StoreOptions};
    let provider = |by: KeysBy, known: bool| {
        let mut mesh = Mesh::course_with(StoreOptions { keys_by: by, ..StoreOptions::default() });
        mesh.config(
            "{kind: RequestAuthentication, metadata: {name: it}, spec: {jwtRules: [{issuer: a, timeout: 2s, jwksUri: 'https://keys.default.svc.cluster.local/jwks?x'}]}}",
        );
        let before = mesh.gateway();
        if known {
            // The gateway does not see it, so that nothing else changes there.
            let delta = mesh.service_of(json!({
                "metadata": { "name": "keys", "namespace": "default", "annotations": { "networking.istio.io/exportTo": "." } },
                "spec": { "clusterIP": "10.96.7.7", "ports": [{ "name": "https", "port": 443 }] },
            }));
            let after = mesh.gateway();
            let listeners = affected(&delta, &before, &after).listeners;
            assert_eq!(listeners == lateen_translate::Extent::All, by != KeysBy::ControlPlane);
        }
        let world = mesh.world();
        let policy = world.request_authentications().next().expect("the policy");
        assert_eq!(
            lateen_translate::proxies_fetch(&world, &policy.spec.jwt_rules[0]),
            by == KeysBy::Proxies || (by == KeysBy::Both && known),
        );
        let warnings = check_request_authentication(policy, &world);
        let told = warnings.iter().any(|warning| warning.message.contains("create a ServiceEntry"));
        assert_eq!(told, by == KeysBy::Proxies && !known, "{warnings:?}");
        tokens(&mut mesh, "customers-v1-1", 3000).expect("the filter")["providers"]["origins-0"].clone()
    };
    let remote = json!({
        "http_uri": { "uri": "https://keys.default.svc.cluster.local/jwks?x", "cluster": "outbound|443||keys.default.svc.cluster.local", "timeout": "2s" },
        "cache_duration": "300s",
    });
    for (by, known, fetches) in [
        (KeysBy::ControlPlane, true, false),
        (KeysBy::Both, false, false),
        (KeysBy::Both, true, true),
        (KeysBy::Proxies, false, true),
        (KeysBy::Proxies, true, true),
    ] {
        let provider = provider(by, known);
        assert_eq!(provider.get("remote_jwks"), fetches.then_some(&remote), "{by:?} {known}");
        assert_eq!(provider.get("local_jwks").is_some(), !fetches, "{by:?} {known}");
    }
    // A URI beside a key set is of no use; discovery at the issuer is the control plane's.
    let mut mesh = Mesh::course_with(StoreOptions { keys_by: KeysBy::Proxies, ..StoreOptions::default() });
    mesh.config(&format!("{{kind: RequestAuthentication, metadata: {{name: it}}, spec: {{jwtRules: [{{issuer: 'https://a', jwks: '{KEYS}'}}, {{issuer: 'https://b'}}]}}}}"));
    let world = mesh.world();
    let rules = world.request_authentications().next().expect("the policy").spec.jwt_rules.clone();
    assert!(!rules.iter().any(|rule| lateen_translate::proxies_fetch(&world, rule)));
}
