//! That both engines accept what is generated: a stock Envoy, and ours. The project's scripts install Envoy; `LATEEN_ENVOY_PATH` may name another.
#[path = "../../xds/tests/support/envoy.rs"]
mod envoy;
mod support;

use lateen_ir::ConvertError;
use lateen_model::{KeysBy, StoreOptions};
use lateen_translate::{Extent, ResourceType, Scope, generate};
use serde_json::{Value, json};

use envoy::envoy;
use support::{Mesh, Resources};

/// A static bootstrap of everything a proxy gets, so that one validation run sees all of it: routes are written into their
/// listeners, endpoints into their clusters.
fn bootstrap(resources: &Resources) -> Value {
    let mut listeners = resources.all(ResourceType::Listener);
    for listener in &mut listeners {
        let chains = listener["filter_chains"].as_array_mut().expect("chains");
        for manager in chains.iter_mut().map(|chain| &mut chain["filters"][0]["typed_config"]) {
            if let Some(name) = manager["rds"]["route_config_name"].as_str().map(str::to_owned) {
                let mut route = resources.get(ResourceType::Route, &name).clone();
                strip_type(&mut route);
                let manager = manager.as_object_mut().expect("an object");
                manager.remove("rds");
                manager.insert("route_config".to_owned(), route);
            }
        }
        strip_type(listener);
    }
    let mut clusters = resources.all(ResourceType::Cluster);
    for cluster in &mut clusters {
        if cluster["type"] == "EDS" {
            let name = cluster["name"].as_str().expect("a name").to_owned();
            let mut assignment = resources.get(ResourceType::Endpoint, &name).clone();
            strip_type(&mut assignment);
            cluster["type"] = json!("STATIC");
            cluster["load_assignment"] = assignment;
            cluster.as_object_mut().expect("an object").remove("eds_cluster_config");
        }
        strip_type(cluster);
    }
    json!({"node": {"id": "test", "cluster": "test"}, "static_resources": {"listeners": listeners, "clusters": clusters}})
}

fn strip_type(message: &mut Value) {
    message.as_object_mut().expect("an object").remove("@type");
}

fn validate(name: &str, resources: &Resources) -> Result<(), String> {
    let file = std::env::temp_dir().join(format!("lateen-translate-{name}-{}.json", std::process::id()));
    std::fs::write(&file, bootstrap(resources).to_string()).expect("written");
    let output = std::process::Command::new(envoy())
        .args(["--mode", "validate", "-l", "warning", "-c"])
        .arg(&file)
        .output()
        .expect("Envoy runs");
    let said =
        String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout);
    if !output.status.success() || said.contains("eprecated") {
        return Err(format!("{name}: Envoy, for {}: {said}", file.display()));
    }
    std::fs::remove_file(&file).expect("removed");
    Ok(())
}

fn accept(name: &str, mesh: &mut Mesh, scope: impl Fn(&mut Mesh) -> Scope) {
    judge(name, mesh, scope).unwrap_or_else(|refusal| panic!("{refusal}"));
}

/// What an engine has against a proxy's configuration.
fn judge(name: &str, mesh: &mut Mesh, scope: impl Fn(&mut Mesh) -> Scope) -> Result<(), String> {
    let scope = scope(mesh);
    for kind in ResourceType::ALL {
        for resource in generate(&scope, &mesh.cache, kind, &Extent::All) {
            convert(kind, &resource.body)
                .map_err(|error| format!("{name}: our engine refuses {kind:?} {}: {error}", resource.name))?;
        }
    }
    validate(name, &mesh.resources(&scope))
}

fn convert(kind: ResourceType, body: &[u8]) -> Result<(), ConvertError> {
    match kind {
        ResourceType::Cluster => lateen_ir::Cluster::from_bytes(body).map(drop),
        ResourceType::Endpoint => lateen_ir::ClusterLoadAssignment::from_bytes(body).map(drop),
        ResourceType::Listener => lateen_ir::Listener::from_bytes(body).map(drop),
        ResourceType::Route => lateen_ir::RouteConfiguration::from_bytes(body, None).map(drop),
        ResourceType::Secret => lateen_ir::Secret::from_bytes(body).map(drop),
        // No engine reads it: the agent does.
        ResourceType::NameTable => Ok(()),
    }
}

#[test]
fn engines_accept_the_courses_sidecars_and_gateway() {
    let mut mesh = Mesh::course();
    mesh.mesh_config("accessLogFile: /dev/stdout");
    accept("web-frontend", &mut mesh, |mesh| mesh.sidecar("default", "web-frontend-1"));
    mesh.mesh_config("{accessLogFile: /dev/stdout, accessLogEncoding: JSON, outboundTrafficPolicy: {mode: REGISTRY_ONLY}, pathNormalization: {normalization: DECODE_AND_MERGE_SLASHES}}");
    accept("customers", &mut mesh, |mesh| mesh.sidecar("default", "customers-v1-1"));
    accept("gateway", &mut mesh, |mesh| mesh.gateway());
}

#[test]
fn engines_accept_authorization_policies() {
    let mut mesh = Mesh::course();
    mesh.service(
        "default",
        "db",
        "10.96.0.40",
        json!([{"name": "tcp", "port": 5432}]),
        json!({"app": "customers"}),
    );
    for action in ["ALLOW", "DENY", "AUDIT", "CUSTOM"] {
        for dry_run in [false, true] {
            mesh.config(&support::every_field(action, dry_run));
        }
    }
    for name in ["customers-v1-1", "web-frontend-1"] {
        accept(name, &mut mesh, |mesh| mesh.sidecar("default", name));
    }
    accept("gateway", &mut mesh, |mesh| mesh.gateway());
    // Who is asked, over gRPC and over HTTP.
    let ports = json!([{"name": "http", "port": 8000}, {"name": "grpc", "port": 9000}]);
    mesh.service("default", "authz", "10.96.0.50", ports, json!({"app": "customers"}));
    let body =
        "includeRequestBodyInCheck: {maxRequestBytes: 10, allowPartialMessage: true, packAsBytes: true}";
    let common = format!(
        "service: authz.default.svc.cluster.local, timeout: 1s, failOpen: true, clearRouteCache: true, statusOnError: '503', {body}"
    );
    let headers = "pathPrefix: /a, includeRequestHeadersInCheck: [a, b*], includeAdditionalHeadersInCheck: {c: d}, headersToUpstreamOnAllow: [e], headersToDownstreamOnDeny: ['*f'], headersToDownstreamOnAllow: [g]";
    for provider in [
        format!("envoyExtAuthzGrpc: {{{common}, port: 9000}}"),
        format!("envoyExtAuthzHttp: {{{common}, port: 8000, {headers}}}"),
    ] {
        mesh.mesh_config(&format!("{{extensionProviders: [{{name: provider, {provider}}}]}}"));
        accept("asking", &mut mesh, |mesh| mesh.sidecar("default", "customers-v1-1"));
        accept("asking-gateway", &mut mesh, |mesh| mesh.gateway());
    }
}

#[test]
fn engines_accept_request_authentications() {
    for keys_by in [KeysBy::ControlPlane, KeysBy::Both, KeysBy::Proxies] {
        request_authentications(Mesh::course_with(StoreOptions { keys_by, ..StoreOptions::default() }));
    }
}

fn request_authentications(mut mesh: Mesh) {
    mesh.config("{kind: RequestAuthentication, metadata: {name: fetched, namespace: istio-system}, spec: {jwtRules: [
        {issuer: a, jwksUri: 'https://a.example/keys'}, {issuer: mesh, jwksUri: 'http://customers.default.svc.cluster.local/keys'}, {issuer: b}, {jwks: '{\"keys\":[{\"kty\":\"RSA\",\"n\":\"AA\",\"e\":\"AQAB\"}]}'}]}}");
    mesh.config("{kind: RequestAuthentication, metadata: {name: all}, spec: {jwtRules: [{
        issuer: c, audiences: [d], jwks: '{\"keys\":[{\"kty\":\"oct\",\"k\":\"AA\"}]}', fromHeaders: [{name: x-a, prefix: 'T '}], fromParams: [p],
        fromCookies: [q], outputPayloadToHeader: x-p, outputClaimToHeaders: [{header: x-c, claim: a.b}],
        forwardOriginalToken: true, timeout: 3s, spaceDelimitedClaims: [roles]}]}}");
    mesh.config(&support::every_field("ALLOW", false));
    mesh.config("{kind: VirtualService, metadata: {name: by-claim}, spec: {hosts: [claims.example], gateways: [gateway], http: [
        {match: [{headers: {'@request.auth.claims.group': {exact: a}}, withoutHeaders: {'@request.auth.claims[a.b][c]': {prefix: d}}},
            {headers: {'@request.auth.claims.sub': {}}}],
         route: [{destination: {host: customers}}]}]}}");
    for name in ["customers-v1-1", "web-frontend-1"] {
        accept(name, &mut mesh, |mesh| mesh.sidecar("default", name));
    }
    accept("gateway", &mut mesh, |mesh| mesh.gateway());
}

#[test]
fn engines_accept_entries_of_all_kinds() {
    let mut mesh = Mesh::course();
    let ports = "[{number: 80, name: http, protocol: HTTP}, {number: 443, name: tls, protocol: TLS}, {number: 7000, name: any}]";
    let mut entry = |name: &str, spec: &str| {
        let spec = format!("hosts: [{name}.example.com], {spec}, ports: {ports}");
        mesh.config(&format!("{{kind: ServiceEntry, metadata: {{name: {name}}}, spec: {{{spec}}}}}"));
    };
    entry("dns", "resolution: DNS");
    entry("turn", "resolution: DNS_ROUND_ROBIN");
    entry("named", "resolution: DNS, endpoints: [{address: a.example.com}, {address: 1.2.3.4}]");
    entry("static", "resolution: STATIC, endpoints: [{address: 1.2.3.4, weight: 7, locality: r/z/s}]");
    entry("none", "resolution: NONE, addresses: [10.1.0.0/16, 10.2.0.1]");
    entry("ranged", "resolution: STATIC, addresses: [10.3.0.0/16], endpoints: [{address: 1.2.3.4}]");
    entry("wild", "resolution: NONE");
    mesh.config("{kind: ServiceEntry, metadata: {name: dynamic}, spec: {hosts: ['*.dynamic.example.com'], resolution: DYNAMIC_DNS, ports: [{number: 80, name: http, protocol: HTTP}, {number: 81, name: http2, protocol: HTTP2}, {number: 443, name: tls, protocol: TLS}]}}");
    mesh.config("{kind: DestinationRule, metadata: {name: dynamic}, spec: {host: '*.dynamic.example.com', trafficPolicy: {connectionPool: {http: {maxRequestsPerConnection: 3}}, outlierDetection: {consecutive5xxErrors: 2, minHealthPercent: 20}, portLevelSettings: [{port: {number: 80}, tls: {mode: SIMPLE}}]}}}");
    accept("entries", &mut mesh, |mesh| mesh.sidecar("default", "web-frontend-1"));
    let node = "sidecar~10.0.0.1~web-frontend-1.default~default.svc.cluster.local";
    accept("entries with DNS", &mut mesh, |mesh| mesh.scope_with(node, &json!({"DNS_CAPTURE": "true"})));
    accept("entries at a gateway", &mut mesh, |mesh| mesh.gateway());
}

#[test]
fn engines_accept_listeners_of_sidecars() {
    let mut mesh = Mesh::course();
    mesh.config("{kind: Sidecar, metadata: {name: default}, spec: {egress: [{port: {number: 9080, protocol: HTTP, name: http}, captureMode: NONE, hosts: ['./*']}, {port: {number: 9081, protocol: TCP, name: tcp}, bind: 127.0.0.9, captureMode: NONE, hosts: ['./*']}, {port: {number: 0, protocol: HTTP, name: socket}, bind: 'unix:///tmp/lateen-out.sock', hosts: ['*/*']}, {port: {number: 0, protocol: TCP, name: bytes}, bind: 'unix://@bytes', hosts: ['*/*']}, {bind: 10.1.1.1, hosts: ['*/*']}], ingress: [{port: {number: 9443, protocol: HTTP, name: http}, defaultEndpoint: '127.0.0.1:80'}, {port: {number: 7080, protocol: HTTP, name: own}, captureMode: NONE, bind: 127.0.0.7, defaultEndpoint: 'unix:///run/app.sock'}, {port: {number: 7081, protocol: TCP, name: tcp}, captureMode: NONE, defaultEndpoint: '127.0.0.1:81'}]}}");
    accept("listeners", &mut mesh, |mesh| mesh.sidecar("default", "web-frontend-1"));
}

#[test]
fn engines_accept_every_kind_of_rule_and_policy() {
    let mut mesh = Mesh::course();
    mesh.service("default", "grpc", "10.96.0.40", json!([{"name": "grpc", "port": 80}, {"name": "tcp-db", "port": 9000}, {"name": "any", "port": 9001}]), json!({"app": "web-frontend"}));
    mesh.service(
        "default",
        "headless",
        "None",
        json!([{"name": "http", "port": 80}, {"name": "tcp", "port": 81}]),
        json!({"app": "web-frontend"}),
    );
    mesh.config(
        "{kind: VirtualService, metadata: {name: customers}, spec: {hosts: [customers, shop.example.com, '*.example.org'], gateways: [mesh, gateway], http: [
          {name: all, match: [{name: one, uri: {prefix: /a}, method: {exact: GET}, scheme: {regex: 'https?'}, authority: {prefix: cust},
            headers: {x-a: {regex: 'a+'}, x-b: {}, x-e: {prefix: ''}}, withoutHeaders: {x-c: {exact: 'no'}, x-d: {}}, queryParams: {q: {exact: '1'}, r: {}, s: {regex: '[0-9]+'}}, ignoreUriCase: true, statPrefix: a}],
           rewrite: {uri: /new, authority: other.example}, timeout: 2s, retries: {attempts: 3, retryOn: '5xx,418', perTryTimeout: 500ms, backoff: 10ms},
           headers: {request: {set: {x-a: '1', host: b.example}, add: {x-b: '2'}, remove: [x-c]}, response: {set: {x-d: '3'}, remove: [x-e]}},
           route: [{destination: {host: customers, subset: v1}, weight: 1, headers: {request: {set: {x-e: '4', ':authority': c.example}}}}, {destination: {host: customers, subset: v2}, weight: 3}]},
          {match: [{uri: {regex: '/c/.*'}}], rewrite: {uriRegexRewrite: {match: '/c/(.*)', rewrite: '/\\\\1'}}, route: [{destination: {host: grpc, port: {number: 80}}}]},
          {match: [{uri: {exact: /gone}}], redirect: {uri: /there, authority: b.example, redirectCode: 302, port: 8443}},
          {match: [{uri: {prefix: /moved}}], redirect: {uri: '%PREFIX()%/there', scheme: https}},
          {match: [{uri: {prefix: /faulty}}], fault: {delay: {fixedDelay: 5s, percentage: {value: 0.1}}, abort: {grpcStatus: UNAVAILABLE, percentage: {value: 50}}},
           corsPolicy: {allowOrigins: [{exact: 'https://a'}, {regex: 'https://c.*'}], allowMethods: [GET], allowHeaders: [x-a], exposeHeaders: [x-c], maxAge: 24h, allowCredentials: true, unmatchedPreflights: IGNORE},
           route: [{destination: {host: customers}}]},
          {match: [{uri: {prefix: /mirrored}}], mirrors: [{destination: {host: customers, subset: v2}, percentage: {value: 0.1}}, {destination: {host: nobody}}], route: [{destination: {host: customers}}]},
          {match: [{uri: {prefix: /teapot}}], directResponse: {status: 418, body: {string: short}}},
          {route: [{destination: {host: nobody, subset: none}}]}]}}",
    );
    mesh.config(
        "{kind: DestinationRule, metadata: {name: customers}, spec: {host: customers,
          trafficPolicy: {loadBalancer: {simple: ROUND_ROBIN}, connectionPool: {tcp: {maxConnections: 7, connectTimeout: 3s, tcpKeepalive: {time: 60s, interval: 5s, probes: 3}}, http: {http1MaxPendingRequests: 5, maxRequestsPerConnection: 1, idleTimeout: 3s, h2UpgradePolicy: UPGRADE}},
            outlierDetection: {consecutive5xxErrors: 3, consecutiveGatewayErrors: 2, consecutiveLocalOriginFailures: 4, interval: 1s, baseEjectionTime: 2m, maxEjectionPercent: 50, minHealthPercent: 20}},
          subsets: [{name: v1, labels: {version: v1}, trafficPolicy: {loadBalancer: {simple: RANDOM}}}, {name: v2, labels: {version: v2}, trafficPolicy: {loadBalancer: {simple: PASSTHROUGH}}}]}}",
    );
    mesh.config("{kind: DestinationRule, metadata: {name: grpc}, spec: {host: grpc, trafficPolicy: {connectionPool: {http: {useClientProtocol: true, maxConcurrentStreams: 50}}}}}");
    mesh.config(
        "{kind: VirtualService, metadata: {name: bytes}, spec: {hosts: [grpc, headless], tcp: [
          {match: [{destinationSubnets: [10.96.0.0/24, 10.96.0.40], port: 9000}, {destinationSubnets: ['fd00::/8'], port: 9001}], route: [{destination: {host: customers}}]},
          {match: [{sourceLabels: {app: web-frontend}}], route: [{destination: {host: grpc, subset: v1, port: {number: 9000}}, weight: 1}, {destination: {host: nobody, port: {number: 1}}, weight: 2}]}]}}",
    );
    accept("rules-sidecar", &mut mesh, |mesh| mesh.sidecar("default", "web-frontend-1"));
    accept("rules-gateway", &mut mesh, |mesh| mesh.gateway());
}

/// A proxy refuses all routes of a port, or a whole cluster, for one field it cannot read: what validation lets through, both
/// engines must take.
#[test]
fn what_an_engine_would_refuse_is_refused_when_applied() {
    let customers = || json!([{"destination": {"host": "customers"}}]);
    let matching = |condition: Value| json!({"match": [condition], "route": customers()});
    let with = |field: &str, value: Value| json!({field: value, "route": customers()});
    let header = |value: &str| with("headers", json!({"request": {"set": {"x-a": value}}}));
    let rules = [
        matching(json!({"uri": {"regex": ""}})),
        matching(json!({"uri": {"regex": "a{1001}"}})),
        matching(json!({"uri": {"regex": "(a{100}){100}"}})),
        matching(json!({"headers": {"x": {"regex": "[a&&b]\\u0041"}}})),
        matching(json!({"uri": {"prefix": ""}})),
        matching(json!({"uri": {"exact": ""}})),
        matching(json!({"uri": {"exact": "a?b#c\n"}})),
        matching(json!({"uri": {}})),
        matching(json!({"headers": {"x": {"exact": "a\nb\u{0}"}}})),
        matching(json!({"headers": {":path": {"exact": "/"}}})),
        matching(json!({"headers": {"X-Upper": {"prefix": "A"}}})),
        matching(json!({"queryParams": {"q".repeat(1025): {"exact": "a"}}})),
        matching(json!({"authority": {"regex": "(?i)a.*"}})),
        with("rewrite", json!({"uri": "/a\r\nb"})),
        with("rewrite", json!({"authority": "a\r\nb"})),
        with("rewrite", json!({"uriRegexRewrite": {"match": "a(b)", "rewrite": "\\2"}})),
        with("rewrite", json!({"uriRegexRewrite": {"match": "a(b)", "rewrite": "\\x"}})),
        with("rewrite", json!({"uriRegexRewrite": {"match": "a(b)", "rewrite": "\\0\\1\\\\"}})),
        with("rewrite", json!({"uriRegexRewrite": {"match": "a(b)", "rewrite": ""}})),
        json!({"redirect": {"uri": "/a\nb"}}),
        json!({"redirect": {"authority": "a\nb"}}),
        json!({"redirect": {}}),
        json!({"redirect": {"uri": "%PREFIX()%"}}),
        json!({"directResponse": {"status": 200, "body": {"string": "x".repeat(1 << 20)}}}),
        json!({"directResponse": {"status": 200, "body": {"bytes": "not base64"}}}),
        header("%FOO%"),
        header("%REQ%"),
        header("%REQ()%"),
        header("100%"),
        header("%START_TIME(%s.%3f)% %DOWNSTREAM_PEER_URI_SAN% %REQ(x-a?y-b):5%"),
        header(&"x".repeat(16_385)),
        header(""),
        with(
            "headers",
            json!({"request": {"remove": [":path", "host", "x"]}, "response": {"set": {":status": "1"}}}),
        ),
        with("fault", json!({"delay": {"fixedDelay": "80000000h", "percent": 100}})),
        with("fault", json!({"delay": {"fixedDelay": "0s", "percent": 100}})),
        with("fault", json!({"delay": {"fixedDelay": "1s", "percent": 1000}})),
        with("fault", json!({"delay": {"fixedDelay": "1s", "percentage": {"value": 100}}})),
        with("fault", json!({"abort": {"httpStatus": 99}})),
        with("fault", json!({"abort": {"grpcStatus": "SO_SO"}})),
        with(
            "fault",
            json!({"abort": {"httpStatus": 200, "grpcStatus": "OK", "percentage": {"value": 100.0}}}),
        ),
        with("corsPolicy", json!({"allowOrigins": [{}], "maxAge": "0s"})),
        with("corsPolicy", json!({"allowOrigins": [{"prefix": ""}, {"regex": ""}]})),
        with("corsPolicy", json!({"allowOrigin": [""], "allowHeaders": ["a b"]})),
        with(
            "corsPolicy",
            json!({"allowOrigin": ["*"], "allowMethods": ["*"], "allowHeaders": ["*"], "exposeHeaders": ["*"]}),
        ),
        with("mirror", json!({"host": "customers", "subset": "v9"})),
        with("mirrors", json!([{"destination": {"host": "nobody"}, "percentage": {"value": 0.00001}}])),
        with("timeout", json!("80000000h")),
        with("timeout", json!("0.5ms")),
        with(
            "retries",
            json!({"attempts": 2147483647, "perTryTimeout": "80000000h", "backoff": "80000000h"}),
        ),
        with("retries", json!({"attempts": 1, "retryOn": "5xx,,999"})),
        json!({"route": [{"destination": {"host": "customers"}, "weight": 2147483647}, {"destination": {"host": "customers", "subset": "v1"}, "weight": 2147483647}]}),
        json!({"route": [{"destination": {"host": "10.0.0.1", "subset": "a|b"}}]}),
    ];
    let mut refused = Vec::new();
    let mut tried = 0;
    for (index, rule) in rules.into_iter().enumerate() {
        let spec = json!({"hosts": ["customers"], "http": [rule]});
        let parsed: lateen_api::VirtualServiceSpec = serde_json::from_value(spec.clone()).expect("parses");
        if !lateen_api::validate::validate_virtual_service(&parsed).is_valid() {
            continue;
        }
        tried += 1;
        let mut mesh = Mesh::course();
        mesh.config(
            &json!({"kind": "VirtualService", "metadata": {"name": "customers"}, "spec": spec}).to_string(),
        );
        let found =
            judge(&format!("rule-{index}"), &mut mesh, |mesh| mesh.sidecar("default", "web-frontend-1"));
        refused.extend(found.err().map(|refusal| format!("{refusal}\n  in {spec:.300}")));
    }
    assert!(tried >= 12, "validation must not be so strict: {tried}");
    assert!(refused.is_empty(), "{}", refused.join("\n"));
}

#[test]
fn policies_an_engine_would_refuse_are_refused_when_applied() {
    let pool = |http: Value| json!({"connectionPool": {"http": http}});
    let tcp = |tcp: Value| json!({"connectionPool": {"tcp": tcp}});
    let policies = [
        tcp(json!({"connectTimeout": "80000000h"})),
        tcp(
            json!({"maxConnections": 2147483647, "tcpKeepalive": {"probes": 4294967295u32, "time": "80000000h"}}),
        ),
        pool(json!({"idleTimeout": "80000000h"})),
        pool(
            json!({"maxConcurrentStreams": 2147483647, "h2UpgradePolicy": "UPGRADE", "maxRequestsPerConnection": 2147483647}),
        ),
        json!({"outlierDetection": {"interval": "80000000h", "baseEjectionTime": "80000000h", "consecutive5xxErrors": 4294967295u32}}),
        json!({"outlierDetection": {"baseEjectionTime": "1000h", "maxEjectionPercent": 100, "minHealthPercent": 100}}),
        json!({"outlierDetection": {"baseEjectionTime": "1ms", "interval": "1ms"}}),
        json!({"loadBalancer": {"simple": "PASSTHROUGH"}, "outlierDetection": {}}),
    ];
    let mut refused = Vec::new();
    for (index, policy) in policies.into_iter().enumerate() {
        let spec = json!({"host": "customers", "trafficPolicy": policy});
        let parsed: lateen_api::DestinationRuleSpec = serde_json::from_value(spec.clone()).expect("parses");
        if !lateen_api::validate::validate_destination_rule(&parsed).is_valid() {
            continue;
        }
        let mut mesh = Mesh::course();
        mesh.config(
            &json!({"kind": "DestinationRule", "metadata": {"name": "customers"}, "spec": spec}).to_string(),
        );
        let found =
            judge(&format!("policy-{index}"), &mut mesh, |mesh| mesh.sidecar("default", "web-frontend-1"));
        refused.extend(found.err().map(|refusal| format!("{refusal}\n  in {spec}")));
    }
    assert!(refused.is_empty(), "{}", refused.join("\n"));
}

#[test]
fn engines_accept_tls_of_gateways_and_services() {
    let mut mesh = Mesh::course();
    mesh.config("{kind: Gateway, metadata: {name: tls}, spec: {selector: {istio: ingressgateway}, servers: [
      {port: {number: 443, name: https, protocol: HTTPS}, hosts: [a.example], tls: {mode: SIMPLE, credentialName: web, minProtocolVersion: TLSV1_1, cipherSuites: [ECDHE-ECDSA-AES128-GCM-SHA256, AES128-SHA]}},
      {port: {number: 443, name: mutual, protocol: HTTPS}, hosts: ['*.b.example'], tls: {mode: MUTUAL, credentialName: web, subjectAltNames: [c.example]}},
      {port: {number: 443, name: passed, protocol: TLS}, hosts: ['*.example'], tls: {mode: PASSTHROUGH}},
      {port: {number: 443, name: ended, protocol: TLS}, hosts: [e.example], tls: {mode: OPTIONAL_MUTUAL, credentialName: web, caCertCredentialName: web}},
      {port: {number: 0, name: socket, protocol: HTTP}, bind: 'unix:///tmp/lateen-web.sock', hosts: [u.example]},
      {port: {number: 0, name: sockets, protocol: HTTPS}, bind: 'unix:///tmp/lateen-tls.sock', hosts: [u.example], tls: {mode: SIMPLE, credentialName: web}},
      {port: {number: 9000, name: bytes, protocol: MONGO}, hosts: ['*']}]}}");
    let (certificate, key) =
        (include_str!("../../model/tests/server.crt"), include_str!("../../model/tests/server.key"));
    mesh.secret(
        "istio-system",
        "web",
        json!({"tls.crt": certificate, "tls.key": key, "ca.crt": certificate}),
    );
    mesh.service(
        "default",
        "secure",
        "10.96.0.50",
        json!([{"name": "tls", "port": 443}]),
        json!({"app": "secure"}),
    );
    mesh.config("{kind: ServiceEntry, metadata: {name: outside}, spec: {hosts: [a.example.com, '*.b.example.com'], resolution: NONE, ports: [{number: 443, name: tls, protocol: TLS}]}}");
    mesh.config("{kind: VirtualService, metadata: {name: bytes}, spec: {hosts: [e.example, f.example], gateways: [tls], tcp: [{route: [{destination: {host: customers, subset: v1}, weight: 30}, {destination: {host: customers, subset: v2}, weight: 70}]}]}}");
    mesh.config("{kind: VirtualService, metadata: {name: names}, spec: {hosts: [secure, a.example.com, '*.b.example.com'], tls: [
      {match: [{sniHosts: [a.example.com, '*.b.example.com'], destinationSubnets: [10.0.0.0/8, 'fd00::/8']}], route: [{destination: {host: customers}}]},
      {match: [{sniHosts: ['*']}], route: [{destination: {host: secure}}]}]}}");
    mesh.config("{kind: VirtualService, metadata: {name: passed}, spec: {hosts: ['*.example'], gateways: [tls], tls: [
      {match: [{sniHosts: [p.example]}], route: [{destination: {host: customers, subset: v1}, weight: 30}, {destination: {host: customers, subset: v2}, weight: 70}]}]}}");
    mesh.config("{kind: DestinationRule, metadata: {name: web-frontend}, spec: {host: web-frontend, trafficPolicy: {tls: {mode: SIMPLE, sni: s.example, subjectAltNames: [s.example]}}}}");
    accept("tls-gateway", &mut mesh, |mesh| mesh.gateway());
    accept("tls-sidecar", &mut mesh, |mesh| mesh.sidecar("default", "customers-v1-1"));
    let suites = "cipherSuites: [ECDHE-ECDSA-CHACHA20-POLY1305, ECDHE-RSA-AES128-GCM-SHA256, AES128-SHA]";
    mesh.mesh_config(&format!(
        "tlsDefaults: {{{suites}, ecdhCurves: [P-384, X25519], minProtocolVersion: TLSV1_3}}\nmeshMTLS: {{{suites}, ecdhCurves: [X25519MLKEM768, P-384]}}"
    ));
    accept("tls-gateway-defaults", &mut mesh, |mesh| mesh.gateway());
    accept("tls-sidecar-defaults", &mut mesh, |mesh| mesh.sidecar("default", "customers-v1-1"));
}
