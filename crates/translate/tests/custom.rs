//! AuthorizationPolicies with the action CUSTOM: who is asked about what, and that nothing passes where nobody can be.
mod support;

use lateen_ir::{AuthzService, ExtAuthz, FilterChain, HttpFilterKind, NetworkFilter, TerminalFilter};
use lateen_model::World;
use lateen_translate::ResourceType::Listener;
use lateen_translate::{Extent, Scope, affected, check_authorization_policy, generate};
use serde_json::json;
use support::Mesh;

const PROVIDERS: &str = "
extensionProviders:
- name: grpc
  envoyExtAuthzGrpc: { service: foo/authz.foo.svc.cluster.local, port: 9000, timeout: 2s, failOpen: true, statusOnError: '503' }
- name: http
  envoyExtAuthzHttp:
    service: authz.foo.svc.cluster.local
    port: 8000
    pathPrefix: /check
    includeRequestHeadersInCheck: [X-Ext-Authz, 'x-b*', '*-c']
    includeAdditionalHeadersInCheck: { x-added: yes }
    includeRequestBodyInCheck: { maxRequestBytes: 100, allowPartialMessage: true }
    headersToUpstreamOnAllow: [x-up]
    headersToDownstreamOnDeny: [x-down]
    headersToDownstreamOnAllow: [x-allowed]
- name: nowhere
  envoyExtAuthzGrpc: { service: nowhere.foo.svc.cluster.local, port: 9000 }
- name: tracer
  zipkin: { service: a, port: 1 }
";

fn mesh() -> Mesh {
    let mut mesh = Mesh::course();
    mesh.mesh_config(PROVIDERS);
    mesh.service(
        "default",
        "db",
        "10.96.0.40",
        json!([{"name": "tcp", "port": 5432}]),
        json!({"app": "customers"}),
    );
    let ports = json!([{"name": "http", "port": 8000}, {"name": "grpc", "port": 9000}]);
    mesh.service("foo", "authz", "10.96.0.50", ports, json!({"app": "authz"}));
    mesh
}

fn apply(mesh: &mut Mesh, name: &str, provider: &str, more: &str) {
    let rule = "rules: [{to: [{operation: {paths: [/admin]}}]}]";
    mesh.config(&format!(
        "{{kind: AuthorizationPolicy, metadata: {{name: {name}{more}}}, spec: {{action: CUSTOM, provider: {{name: {provider}}}, {rule}}}}}"
    ));
}

/// The chains of customers v1 for HTTP and for TCP.
fn chains(mesh: &mut Mesh) -> [FilterChain; 2] {
    let scope = mesh.sidecar("default", "customers-v1-1");
    let resources = generate(&scope, &mesh.cache, Listener, &Extent::All);
    let found = resources.iter().find(|resource| *resource.name == *"virtualInbound").expect("the listener");
    let listener = lateen_ir::Listener::from_bytes(&found.body).expect("our engine takes it");
    [3000, 5432].map(|port| {
        let mut chains = listener.filter_chains.iter();
        let chain = chains.find(|chain| chain.matching.destination_port == Some(port));
        (**chain.expect("a chain for the port")).clone()
    })
}

fn http(chain: &FilterChain) -> Vec<HttpFilterKind> {
    let Some(TerminalFilter::Http(manager)) = &chain.terminal else { panic!("not HTTP") };
    let kinds = manager.http_filters.iter().map(|filter| filter.kind.clone());
    kinds.take_while(|kind| matches!(kind, HttpFilterKind::Rbac(_) | HttpFilterKind::ExtAuthz(_))).collect()
}

fn asked(chain: &FilterChain) -> ExtAuthz {
    match &http(chain)[..] {
        [HttpFilterKind::Rbac(noted), HttpFilterKind::ExtAuthz(asked)] => {
            assert!(noted.rules.is_none() && noted.shadow_rules.is_some(), "policies are only noted");
            assert_eq!(&*noted.shadow_notes.policy, "istio_ext_authz_shadow_effective_policy_id");
            assert!(asked.enabled_metadata.is_some(), "only what they match is asked about");
            (**asked).clone()
        }
        others => panic!("{others:?}"),
    }
}

#[test]
fn a_grpc_provider_is_asked_about_requests_and_connections() {
    let mut mesh = mesh();
    apply(&mut mesh, "it", "grpc", "");
    let [of_http, of_tcp] = chains(&mut mesh);
    let asked = asked(&of_http);
    let AuthzService::Grpc(service) = &asked.service else { panic!("{:?}", asked.service) };
    assert_eq!(&*service.cluster, "outbound|9000||authz.foo.svc.cluster.local");
    assert_eq!(service.authority, "outbound_.9000_._.authz.foo.svc.cluster.local");
    assert_eq!(service.timeout, Some(std::time::Duration::from_secs(2)));
    assert!(asked.failure_mode_allow && asked.status_on_error == 503 && asked.body.is_none());
    let [NetworkFilter::Rbac(noted), NetworkFilter::ExtAuthz(asked)] = &of_tcp.filters[..] else {
        panic!("{:?}", of_tcp.filters)
    };
    assert!(noted.rules.is_none() && noted.shadow_rules.is_some() && asked.enabled_metadata.is_some());
    assert_eq!(&*asked.stat_prefix, "tcp.");
}

#[test]
fn an_http_provider_is_asked_about_requests_only() {
    let mut mesh = mesh();
    apply(&mut mesh, "it", "http", "");
    let [of_http, of_tcp] = chains(&mut mesh);
    assert!(of_tcp.filters.is_empty(), "{:?}", of_tcp.filters);
    let asked = asked(&of_http);
    let AuthzService::Http(service) = &asked.service else { panic!("{:?}", asked.service) };
    assert_eq!(&*service.path_prefix, "/check");
    let allowed = asked.allowed_headers.as_ref().expect("a list");
    for (name, sent) in
        [("x-ext-authz", true), ("x-bc", true), ("a-c", true), ("authorization", true), ("x-a", false)]
    {
        assert_eq!(allowed.matches(name), sent, "{name}");
    }
    assert!(
        service.upstream_headers.matches("x-up") && service.client_headers_on_success.matches("x-allowed")
    );
    assert!(service.client_headers.as_ref().is_some_and(|list| list.matches("x-down")));
    assert_eq!(service.headers_to_add[0].0, "x-added");
    assert!(asked.body.is_some_and(|body| body.most == 100 && body.partial));
    assert!(!asked.failure_mode_allow && asked.status_on_error == 403);
}

#[test]
fn without_a_provider_everything_is_refused() {
    for (providers, reason) in [
        (&["none"][..], "available providers are [grpc http nowhere tracer] but found \"none\""),
        (&["nowhere"], "could not find service nowhere.foo.svc.cluster.local in Istio service registry"),
        (&["tracer"], "unsupported extension provider: tracer"),
        (&["grpc", "http"], ""),
    ] {
        let mut mesh = mesh();
        for provider in providers {
            apply(&mut mesh, provider, provider, "");
        }
        let [of_http, of_tcp] = chains(&mut mesh);
        let [HttpFilterKind::Rbac(refusing)] = &http(&of_http)[..] else { panic!("{:?}", http(&of_http)) };
        assert!(refusing.rules.is_some(), "{providers:?}");
        assert!(matches!(&of_tcp.filters[..], [NetworkFilter::Rbac(refusing)] if refusing.rules.is_some()));
        let world: std::sync::Arc<World> = mesh.sidecar("default", "customers-v1-1").world.clone();
        let warnings: Vec<String> = world
            .authorization_policies()
            .flat_map(|policy| check_authorization_policy(policy, &world))
            .map(|warning| warning.message)
            .collect();
        assert_eq!(warnings.is_empty(), reason.is_empty(), "{warnings:?}");
        assert!(
            warnings.iter().all(|warning| warning.contains(reason) && warning.contains("refuse everything"))
        );
    }
}

#[test]
fn what_is_only_tried_asks_nobody() {
    let mut mesh = mesh();
    apply(&mut mesh, "it", "none", ", annotations: {istio.io/dry-run: 'true'}");
    let [of_http, of_tcp] = chains(&mut mesh);
    assert!(http(&of_http).is_empty() && of_tcp.filters.is_empty());
}

#[test]
fn gateways_follow_when_a_providers_service_comes() {
    let mut mesh = mesh();
    mesh.config(
        "{kind: AuthorizationPolicy, metadata: {name: it, namespace: istio-system}, spec: {action: CUSTOM, provider: {name: nowhere}, rules: [{}]}}",
    );
    let before: Scope = mesh.gateway();
    let delta =
        mesh.service("foo", "nowhere", "10.96.0.51", json!([{"name": "grpc", "port": 9000}]), json!({}));
    let after = mesh.gateway();
    assert_eq!(affected(&delta, &before, &after).listeners, Extent::All);
    let resources = generate(&after, &mesh.cache, Listener, &Extent::All);
    let listener = lateen_ir::Listener::from_bytes(&resources[0].body).expect("our engine takes it");
    asked(&listener.filter_chains[0]);
}
