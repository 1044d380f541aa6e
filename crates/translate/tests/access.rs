//! AuthorizationPolicies: who may do what to a workload, judged with the proxy's own evaluator on what is generated.
mod support;

use std::net::SocketAddr;

use http::{HeaderMap, HeaderName, HeaderValue};
use lateen_ir::{
    AccessView, FilterChain, HttpFilterKind, NetworkFilter, PeerView, RequestView, TerminalFilter,
};
use lateen_translate::ResourceType::Listener;
use lateen_translate::{Extent, Scope, generate};
use serde_json::json;
use support::Mesh;

/// A request or, without a path, a connection.
#[derive(Clone, Copy)]
struct Call {
    method: &'static str,
    path: Option<&'static str>,
    host: &'static str,
    headers: &'static [(&'static str, &'static str)],
    from: [u8; 4],
    client: [u8; 4],
    /// URI name in the caller's certificate; empty: plaintext.
    caller: &'static str,
    port: u16,
}

const CALL: Call = Call {
    method: "GET",
    path: Some("/"),
    host: "customers",
    headers: &[],
    from: [10, 0, 0, 1],
    client: [10, 0, 0, 1],
    caller: "",
    port: 3000,
};

fn get(path: &'static str) -> Call {
    Call { path: Some(path), ..CALL }
}

fn by(caller: &'static str) -> Call {
    Call { caller, ..CALL }
}

fn listener(mesh: &Mesh, scope: &Scope, name: &str) -> lateen_ir::Listener {
    let resources = generate(scope, &mesh.cache, Listener, &Extent::All);
    let found = resources.iter().find(|resource| *resource.name == *name).expect("the listener");
    lateen_ir::Listener::from_bytes(&found.body).expect("our engine takes it")
}

/// Whether all of a chain's filters let a call pass.
fn passes(chain: &FilterChain, call: &Call) -> bool {
    let mut headers = HeaderMap::new();
    for (name, value) in call.headers {
        headers.append(HeaderName::from_static(name), HeaderValue::from_static(value));
    }
    let request = call.path.map(|path| RequestView {
        method: call.method,
        scheme: "http",
        authority: call.host,
        path,
        headers: &headers,
        metadata: None,
    });
    let uris = [call.caller.to_owned()];
    let view = AccessView {
        request,
        destination: Some(SocketAddr::from(([10, 244, 0, 31], call.port))),
        source: Some(call.from.into()),
        direct_source: Some(call.from.into()),
        client: Some(call.client.into()),
        server_name: "",
        peer: (!call.caller.is_empty()).then_some(PeerView { uris: &uris, dns: &[], subject: "" }),
    };
    let of_chain = chain.filters.iter().filter_map(|filter| match filter {
        NetworkFilter::Rbac(filter) => Some(filter.clone()),
        _ => None,
    });
    let of_manager = match &chain.terminal {
        Some(TerminalFilter::Http(manager)) => &manager.http_filters[..],
        _ => &[],
    };
    let of_manager = of_manager.iter().filter_map(|filter| match &filter.kind {
        HttpFilterKind::Rbac(filter) => Some(filter.clone()),
        _ => None,
    });
    let filters: Vec<_> = of_chain.chain(of_manager).collect();
    filters.iter().all(|filter| filter.rules.as_ref().is_none_or(|rules| rules.judge(&view).allowed))
}

/// What becomes of a call to customers v1: HTTP on port 3000, TCP on 5432.
fn judge(mesh: &mut Mesh, call: &Call) -> bool {
    let scope = mesh.sidecar("default", "customers-v1-1");
    let listener = listener(mesh, &scope, "virtualInbound");
    let chain = listener.filter_chains.iter().chain(&listener.default_filter_chain).find(|chain| {
        let http = matches!(&chain.terminal, Some(TerminalFilter::Http(_)));
        http == call.path.is_some() && chain.matching.destination_port == Some(call.port)
    });
    passes(chain.expect("a chain for the port"), call)
}

fn mesh() -> Mesh {
    let mut mesh = Mesh::course();
    mesh.service(
        "default",
        "db",
        "10.96.0.40",
        json!([{"name": "tcp", "port": 5432}]),
        json!({"app": "customers"}),
    );
    mesh
}

fn apply(mesh: &mut Mesh, name: &str, spec: &str) {
    mesh.config(&format!("{{kind: AuthorizationPolicy, metadata: {{name: {name}}}, spec: {{{spec}}}}}"));
}

/// The calls that pass with one policy in force, of those that are expected to and those that are not.
fn check(spec: &str, pass: &[Call], fail: &[Call]) {
    let mut mesh = mesh();
    apply(&mut mesh, "it", spec);
    for (index, call) in pass.iter().enumerate() {
        assert!(judge(&mut mesh, call), "{spec}: call {index} is to pass");
    }
    for (index, call) in fail.iter().enumerate() {
        assert!(!judge(&mut mesh, call), "{spec}: call {index} is to be refused");
    }
}

const TCP: Call = Call { path: None, port: 5432, ..CALL };
const WEB: &str = "spiffe://cluster.local/ns/default/sa/web-frontend";

#[test]
fn without_policies_everything_passes_and_an_empty_one_refuses_everything() {
    let mut mesh = mesh();
    assert!(judge(&mut mesh, &CALL) && judge(&mut mesh, &TCP));
    check("", &[], &[CALL, TCP]);
    check("rules: [{}]", &[CALL, TCP], &[]);
    check("action: DENY, rules: [{}]", &[], &[CALL, TCP]);
    check("action: AUDIT, rules: [{}]", &[CALL, TCP], &[]);
    check(
        "action: CUSTOM, provider: {name: a}, rules: [{to: [{operation: {paths: [/x]}}]}]",
        &[],
        &[CALL, TCP],
    );
}

#[test]
fn operations() {
    let to = |operation: &str| format!("rules: [{{to: [{{operation: {{{operation}}}}}]}}]");
    let post = Call { method: "POST", ..CALL };
    check(&to("methods: [GET]"), &[CALL], &[post]);
    check(&to("notMethods: [GET]"), &[post], &[CALL]);
    check(&to("methods: ['*']"), &[CALL, post], &[]);
    check(
        &to("paths: [/a, '/b*', '*/c']"),
        &[get("/a?b"), get("/bx"), get("/x/c?d")],
        &[get("/"), get("/ax"), get("/A"), get("/x?/c")],
    );
    check(&to("notPaths: ['/admin*']"), &[get("/x")], &[get("/admin"), get("/admin/x")]);
    check(
        &to("paths: ['/a/{*}/b', '/c/{**}']"),
        &[get("/a/x/b"), get("/c/x/y")],
        &[get("/a/x/y/b"), get("/a//b"), get("/c")],
    );
    let host = |host| Call { host, ..CALL };
    check(
        &to("hosts: [Customers, '*.example']"),
        &[host("customers"), host("a.EXAMPLE")],
        &[host("customers:80"), host("other")],
    );
    check(&to("notHosts: [customers]"), &[host("other")], &[host("CUSTOMERS")]);
    check(&to("ports: ['3000']"), &[CALL], &[TCP]);
    check(&to("notPorts: ['3000']"), &[TCP], &[CALL]);
    // Fields of one operation must all hold, of several operations one.
    check(
        &to("methods: [GET], paths: [/a]"),
        &[get("/a")],
        &[get("/b"), Call { method: "POST", ..get("/a") }],
    );
    check(
        "rules: [{to: [{operation: {methods: [POST]}}, {operation: {paths: [/a]}}]}]",
        &[post, get("/a")],
        &[CALL],
    );
}

#[test]
fn sources() {
    let from = |source: &str| format!("rules: [{{from: [{{source: {{{source}}}}}]}}]");
    let other = by("spiffe://cluster.local/ns/other/sa/web-frontend");
    let web = by(WEB);
    check(
        &from("principals: [cluster.local/ns/default/sa/web-frontend]"),
        &[web, Call { caller: WEB, ..TCP }],
        &[CALL, TCP, other],
    );
    check(&from("principals: ['*']"), &[web, other], &[CALL]);
    check(&from("principals: ['cluster.local/ns/default/*']"), &[web], &[other, CALL]);
    check(
        &from("principals: ['*/sa/web-frontend']"),
        &[web, other],
        &[CALL, by("spiffe://cluster.local/ns/default/sa/web")],
    );
    check(&from("notPrincipals: [cluster.local/ns/default/sa/web-frontend]"), &[other, CALL], &[web]);
    check(
        &from("namespaces: [default]"),
        &[web],
        &[other, CALL, by("spiffe://cluster.local/ns/default2/sa/a")],
    );
    check(&from("namespaces: ['def*']"), &[web], &[other, CALL]);
    check(&from("notNamespaces: [default]"), &[other, CALL], &[web]);
    check(&from("serviceAccounts: [web-frontend]"), &[web], &[other, CALL]);
    check(&from("serviceAccounts: [other/web-frontend]"), &[other], &[web, CALL]);
    // A dot is a dot (CVE-2026-39350).
    let dotted = by("spiffe://cluster.local/ns/default/sa/web.app");
    let near = by("spiffe://cluster.local/ns/default/sa/webXapp");
    check(&from("serviceAccounts: [web.app]"), &[dotted], &[near, web]);
    check(&from("notServiceAccounts: [web.app]"), &[near, web], &[dotted]);
    check(&from("principals: ['*/sa/web.app']"), &[dotted], &[near]);
    let outside = Call { from: [192, 168, 0, 1], ..CALL };
    let behind = Call { client: [203, 0, 113, 5], ..CALL };
    check(&from("ipBlocks: [10.0.0.0/8]"), &[CALL, behind, TCP], &[outside]);
    check(&from("notIpBlocks: [10.0.0.1]"), &[outside], &[CALL, TCP]);
    check(&from("remoteIpBlocks: [203.0.113.0/24]"), &[behind], &[CALL]);
    check(&from("notRemoteIpBlocks: [203.0.113.5]"), &[CALL], &[behind]);
    // Nobody has a verified token.
    check(&from("requestPrincipals: ['*']"), &[], &[CALL, web]);
    check(&from("notRequestPrincipals: ['*']"), &[CALL], &[]);
}

#[test]
fn conditions() {
    let when = |condition: &str| format!("rules: [{{when: [{{{condition}}}]}}]");
    let with = |headers| Call { headers, ..CALL };
    let v1 = with(&[("x-version", "v1")]);
    let both = with(&[("x-version", "v2"), ("x-version", "v1")]);
    check(
        &when("key: 'request.headers[x-version]', values: [v1]"),
        &[v1, both],
        &[CALL, with(&[("x-version", "v12")])],
    );
    check(&when("key: 'request.headers[X-Version]', values: ['*']"), &[v1], &[CALL]);
    check(
        &when("key: 'request.headers[x-version]', notValues: [v1]"),
        &[CALL, with(&[("x-version", "v2")])],
        &[v1, both],
    );
    check(&when("key: source.ip, values: [10.0.0.0/8]"), &[CALL], &[Call { from: [1, 2, 3, 4], ..CALL }]);
    check(&when("key: destination.port, values: ['3000']"), &[CALL], &[TCP]);
    check(&when("key: destination.ip, notValues: [10.244.0.31]"), &[], &[CALL, TCP]);
    check(&when("key: source.principal, values: ['*']"), &[by(WEB)], &[CALL]);
    check(&when("key: source.namespace, values: [default]"), &[by(WEB)], &[CALL]);
    check(&when("key: 'request.auth.claims[a][b]', values: [c]"), &[], &[CALL]);
    check(&when("key: connection.sni, values: ['*']"), &[], &[CALL]);
    check(
        "rules: [{when: [{key: source.ip, values: [10.0.0.1]}, {key: 'request.headers[x-version]', values: [v1]}]}]",
        &[v1],
        &[CALL],
    );
}

#[test]
fn what_is_about_requests_fails_closed_for_connections() {
    let tcp = [TCP];
    // An ALLOW rule that can't be said allows nothing.
    check("rules: [{to: [{operation: {methods: [GET]}}]}]", &[], &tcp);
    check("rules: [{to: [{operation: {paths: ['*'], ports: ['5432']}}]}]", &[], &tcp);
    check("rules: [{from: [{source: {notRequestPrincipals: [a/b]}}]}]", &[], &tcp);
    // Of a DENY rule what can be said stays, so that it refuses more.
    check("action: DENY, rules: [{to: [{operation: {methods: [PUT]}}]}]", &[CALL], &tcp);
    check("action: DENY, rules: [{to: [{operation: {methods: [PUT], ports: ['5432']}}]}]", &[CALL], &tcp);
    check("action: DENY, rules: [{to: [{operation: {methods: [GET], ports: ['1']}}]}]", &[CALL, TCP], &[]);
    check("action: DENY, rules: [{when: [{key: 'request.headers[a]', values: [b]}]}]", &[CALL], &tcp);
}

#[test]
fn denial_goes_before_permission_and_dry_runs_decide_nothing() {
    let mut mesh = mesh();
    apply(&mut mesh, "allow", "rules: [{to: [{operation: {paths: ['/a*']}}]}]");
    apply(&mut mesh, "more", "rules: [{to: [{operation: {paths: ['/b']}}]}]");
    apply(&mut mesh, "deny", "action: DENY, rules: [{to: [{operation: {paths: [/ab]}}]}]");
    let judged = ["/a", "/b", "/ab", "/c"].map(|path| judge(&mut mesh, &get(path)));
    assert_eq!(judged, [true, true, false, false]);
    mesh.config("{kind: AuthorizationPolicy, metadata: {name: deny, annotations: {istio.io/dry-run: 'true'}}, spec: {action: DENY, rules: [{}]}}");
    assert!(judge(&mut mesh, &get("/ab")), "annotated, it is only counted");
    let resources = mesh.sidecar_resources("default", "customers-v1-1");
    let inbound = resources.get(Listener, "virtualInbound").to_string();
    assert!(
        inbound.contains("istio_dry_run_deny_") && inbound.contains("ns[default]-policy[allow]-rule[0]"),
        "{inbound}"
    );
}

#[test]
fn policies_are_for_who_they_select() {
    let deny_all = |mesh: &mut Mesh, namespace: &str, selector: &str| {
        let name = format!("p-{namespace}");
        mesh.config(&format!("{{kind: AuthorizationPolicy, metadata: {{name: {name}, namespace: {namespace}}}, spec: {{{selector}}}}}"));
    };
    let cases = [
        ("default", "", true),
        ("default", "selector: {matchLabels: {app: customers}}", true),
        ("default", "selector: {matchLabels: {app: web-frontend}}", false),
        ("other", "", false),
        ("istio-system", "", true),
        ("istio-system", "selector: {matchLabels: {app: customers}}", true),
        ("istio-system", "selector: {matchLabels: {istio: ingressgateway}}", false),
        ("default", "targetRefs: [{group: gateway.networking.k8s.io, kind: Gateway, name: a}]", false),
    ];
    for (namespace, selector, refused) in cases {
        let mut mesh = mesh();
        deny_all(&mut mesh, namespace, selector);
        assert_eq!(judge(&mut mesh, &CALL), !refused, "{namespace} {selector}");
    }
    let mut mesh = mesh();
    let gateway = |mesh: &mut Mesh| {
        let scope = mesh.gateway();
        let listener = listener(mesh, &scope, "0.0.0.0_8080");
        passes(&listener.filter_chains[0], &CALL)
    };
    assert!(gateway(&mut mesh));
    deny_all(&mut mesh, "istio-system", "selector: {matchLabels: {istio: ingressgateway}}");
    assert!(!gateway(&mut mesh));
}

#[test]
fn policies_are_for_the_pods_of_gateways() {
    let gateway = |name: &str| format!("{{group: gateway.networking.k8s.io, kind: Gateway, name: {name}}}");
    let one = |name: &str| format!("targetRefs: [{}]", gateway(name));
    let cases = [
        ("default", one("mine"), true),
        ("default", format!("targetRef: {}", gateway("mine")), true),
        ("default", format!("targetRefs: [{{kind: Service, name: mine}}, {}]", gateway("mine")), true),
        ("default", one("other"), false),
        ("other", one("mine"), false),
        // Root or not, Gateways are those of the policy's namespace.
        ("istio-system", one("mine"), false),
        ("default", "targetRefs: [{kind: Service, name: mine}]".to_owned(), false),
        (
            "default",
            "targetRefs: [{group: networking.istio.io, kind: Gateway, name: mine}]".to_owned(),
            false,
        ),
        // By its labels it is a workload as any other.
        ("default", "selector: {matchLabels: {app: customers}}".to_owned(), true),
        ("default", String::new(), true),
    ];
    for (namespace, spec, refused) in cases {
        let mut mesh = mesh();
        mesh.config(&format!(
            "{{kind: AuthorizationPolicy, metadata: {{name: p, namespace: {namespace}}}, spec: {{{spec}}}}}"
        ));
        let labels = json!({"app": "customers", "gateway.networking.k8s.io/gateway-name": "mine"});
        mesh.pod("default", "customers-v1-1", "10.244.0.31", labels);
        assert_eq!(judge(&mut mesh, &CALL), !refused, "{namespace} {spec}");
    }
}

#[test]
fn principals_are_of_every_trust_domain_of_the_mesh() {
    let mut mesh = mesh();
    mesh.mesh_config("{trustDomain: new.example, trustDomainAliases: [old.example]}");
    apply(
        &mut mesh,
        "it",
        "rules: [{from: [{source: {principals: [cluster.local/ns/a/sa/b, foreign/ns/c/sa/d]}}]}]",
    );
    for (caller, expected) in [
        ("spiffe://new.example/ns/a/sa/b", true),
        ("spiffe://old.example/ns/a/sa/b", true),
        ("spiffe://foreign/ns/a/sa/b", false),
        ("spiffe://foreign/ns/c/sa/d", true),
        ("spiffe://new.example/ns/c/sa/d", false),
    ] {
        assert_eq!(judge(&mut mesh, &by(caller)), expected, "{caller}");
    }
}

#[test]
fn equal_policies_are_encoded_alike() {
    let bytes = || {
        let mut mesh = mesh();
        for index in 0..20 {
            apply(&mut mesh, &format!("p{index}"), "rules: [{to: [{operation: {paths: [/a]}}]}]");
        }
        let scope = mesh.sidecar("default", "customers-v1-1");
        let resources = generate(&scope, &mesh.cache, Listener, &Extent::All);
        resources.iter().find(|one| &*one.name == "virtualInbound").map(|one| one.body.clone())
    };
    assert_eq!(bytes(), bytes());
}
