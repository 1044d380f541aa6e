//! Mutual TLS between workloads: what is accepted by PeerAuthentication, what clients speak by endpoint and rule.
mod support;

use lateen_translate::{ResourceType, affected};
use serde_json::{Value, json};
use support::Mesh;

use ResourceType::{Cluster, Endpoint, Listener};

const TLS_MODE: &str = "security.istio.io/tlsMode";

fn peer(namespace: &str, name: &str, spec: &str) -> String {
    format!("{{kind: PeerAuthentication, metadata: {{name: {name}, namespace: {namespace}}}, spec: {spec}}}")
}

/// `api` with a port for HTTP, one for bytes and one to be detected; two pods, one of which has no proxy.
fn mesh() -> Mesh {
    let mut mesh = Mesh::empty();
    let ports = json!([{"name": "http", "port": 80, "targetPort": 8080},
        {"name": "tcp-db", "port": 3306, "targetPort": 3306}, {"name": "other", "port": 81, "targetPort": 8081}]);
    mesh.service("default", "api", "10.96.0.5", ports, json!({"app": "api"}));
    mesh.pod("default", "api-1", "10.244.0.5", json!({"app": "api", TLS_MODE: "istio"}));
    mesh.pod("default", "api-2", "10.244.0.6", json!({"app": "api"}));
    let both = [("api-1", "10.244.0.5", true), ("api-2", "10.244.0.6", true)];
    mesh.endpoints("default", "api", "http", 8080, &both);
    mesh
}

/// The chains of a port of `api-1`: what is matched, and what becomes of it.
fn chains(mesh: &mut Mesh, port: u16) -> Vec<String> {
    let resources = mesh.sidecar_resources("default", "api-1");
    let inbound = resources.get(Listener, "virtualInbound");
    let of_port =
        |chain: &&Value| chain["filter_chain_match"]["destination_port"].as_u64() == Some(port.into());
    let catch_all = |chain: &&Value| {
        chain["name"] == "virtualInbound" && chain["filter_chain_match"]["destination_port"].is_null()
    };
    let all = inbound["filter_chains"].as_array().unwrap();
    let ours = all.iter().filter(|chain| if port == 0 { catch_all(chain) } else { of_port(chain) });
    ours.map(|chain| {
        let condition = &chain["filter_chain_match"];
        let mutual = chain["transport_socket"].is_object();
        let http = chain["filters"][0]["name"].as_str().unwrap().contains("http");
        format!(
            "{}{}{}: {}{}",
            condition["transport_protocol"].as_str().unwrap_or("any"),
            if condition["server_names"].is_null() { "" } else { " named" },
            condition["application_protocols"]
                .as_array()
                .map_or(String::new(), |list| format!(" {}", list.len())),
            if mutual { "mutual " } else { "plain " },
            if http { "HTTP" } else { "TCP" },
        )
    })
    .collect()
}

#[test]
fn permissive_is_the_default_and_takes_both() {
    let mut mesh = mesh();
    assert_eq!(
        chains(&mut mesh, 8080),
        ["tls named: mutual HTTP", "tls 5: mutual HTTP", "raw_buffer: plain HTTP"]
    );
    assert_eq!(
        chains(&mut mesh, 3306),
        ["tls named: mutual TCP", "tls 2: mutual TCP", "raw_buffer: plain TCP", "tls: plain TCP"]
    );
    assert_eq!(
        chains(&mut mesh, 8081),
        [
            "tls named 5: mutual HTTP",
            "tls named: mutual TCP",
            "tls 3: mutual HTTP",
            "tls 2: mutual TCP",
            "raw_buffer 2: plain HTTP",
            "raw_buffer: plain TCP",
            "tls: plain TCP",
        ]
    );
    assert_eq!(chains(&mut mesh, 0), ["tls 2: mutual TCP", "raw_buffer: plain TCP", "tls: plain TCP"]);
}

#[test]
fn strict_leaves_no_way_without_a_certificate() {
    let mut mesh = mesh();
    mesh.config(&peer("istio-system", "default", "{mtls: {mode: STRICT}}"));
    assert_eq!(chains(&mut mesh, 8080), ["tls: mutual HTTP"]);
    assert_eq!(chains(&mut mesh, 3306), ["tls: mutual TCP"]);
    assert_eq!(chains(&mut mesh, 8081), ["tls 5: mutual HTTP", "tls: mutual TCP"]);
    assert_eq!(chains(&mut mesh, 0), ["tls: mutual TCP"]);
    let resources = mesh.sidecar_resources("default", "api-1");
    let inbound = resources.get(Listener, "virtualInbound");
    let chain =
        inbound["filter_chains"].as_array().unwrap().iter().find(|chain| chain["name"] == "0.0.0.0_8080");
    let tls = &chain.unwrap()["transport_socket"]["typed_config"];
    assert_eq!(tls["require_client_certificate"], true);
    let common = &tls["common_tls_context"];
    assert_eq!(common["alpn_protocols"], json!(["h2", "http/1.1"]));
    let validation = &common["combined_validation_context"];
    assert_eq!(
        validation["default_validation_context"]["match_typed_subject_alt_names"],
        json!([{ "san_type": "URI", "matcher": { "prefix": "spiffe://cluster.local/" } }])
    );
    assert_eq!(validation["validation_context_sds_secret_config"]["name"], "ROOTCA");
    assert_eq!(common["tls_certificate_sds_secret_configs"][0]["name"], "default");
}

#[test]
fn workload_goes_before_namespace_before_mesh_and_the_oldest_counts() {
    let mut mesh = mesh();
    let first = |mesh: &mut Mesh| chains(mesh, 8080)[0].clone();
    let (strict, plain) = ("tls: mutual HTTP", "any: plain HTTP");
    mesh.config(&peer("istio-system", "default", "{mtls: {mode: STRICT}}"));
    assert_eq!(first(&mut mesh), strict);
    mesh.config(&peer("default", "b", "{mtls: {mode: DISABLE}}"));
    assert_eq!(first(&mut mesh), plain);
    // Of another namespace; of other workloads; unset, which says nothing.
    mesh.config(&peer("shop", "default", "{mtls: {mode: STRICT}}"));
    mesh.config(&peer("default", "c", "{selector: {matchLabels: {app: web}}, mtls: {mode: STRICT}}"));
    mesh.config(&peer("default", "d", "{selector: {matchLabels: {app: api}}, mtls: {mode: UNSET}}"));
    assert_eq!(first(&mut mesh), plain);
    mesh.config(&peer(
        "default",
        "d",
        "{selector: {matchLabels: {app: api}}, mtls: {mode: STRICT}, portLevelMtls: {'3306': {mode: DISABLE}, '9999': {mode: PERMISSIVE}}}",
    ));
    assert_eq!(first(&mut mesh), strict);
    assert_eq!(chains(&mut mesh, 3306), ["any: plain TCP"]);
    assert_eq!(chains(&mut mesh, 9999).len(), 3, "a port that no service declares");
    assert_eq!(chains(&mut mesh, 0), ["tls: mutual TCP"]);
    let resources = mesh.sidecar_resources("default", "api-1");
    let inspector = &resources.get(Listener, "virtualInbound")["listener_filters"][1];
    assert_eq!(inspector["filter_disabled"]["destination_port_range"]["start"], 3306, "{inspector}");
    // Younger, or (of the same age) later in the alphabet: not in force.
    mesh.config(&peer("default", "e", "{selector: {matchLabels: {app: api}}, mtls: {mode: DISABLE}}"));
    mesh.config(&peer("istio-system", "z", "{mtls: {mode: DISABLE}}"));
    assert_eq!(first(&mut mesh), strict);
    let world = mesh.world();
    let of = |name: &str| {
        let policy = world.peer_authentications().find(|one| &*one.name.name == name).unwrap();
        lateen_translate::check_peer_authentication(policy, &world)
    };
    assert!(of("z")[0].message.contains("istio-system/default is older"), "{:?}", of("z"));
    assert_eq!(of("d"), []);
}

#[test]
fn age_decides_before_the_alphabet() {
    let mut mesh = mesh();
    let of_api = "selector: {matchLabels: {app: api}}, ";
    for (level, namespace, selector) in
        [("mesh", "istio-system", ""), ("namespace", "default", ""), ("workload", "default", of_api)]
    {
        for (name, year, mode, expected) in [
            ("a", 2020, "DISABLE", "any: plain HTTP"),
            ("b", 2010, "STRICT", "tls: mutual HTTP"),
            ("c", 2000, "DISABLE", "any: plain HTTP"),
        ] {
            let metadata = format!(
                "{{name: {level}-{name}, namespace: {namespace}, creationTimestamp: '{year}-01-01T00:00:00Z'}}"
            );
            mesh.config(&format!(
                "{{kind: PeerAuthentication, metadata: {metadata}, spec: {{{selector}mtls: {{mode: {mode}}}}}}}"
            ));
            assert_eq!(chains(&mut mesh, 8080)[0], expected, "{level}-{name}");
        }
    }
}

#[test]
fn clients_speak_mutual_tls_to_the_endpoints_that_take_it() {
    let mut mesh = mesh();
    mesh.pod("default", "client", "10.244.0.9", json!({"app": "client"}));
    mesh.config("{kind: DestinationRule, metadata: {name: api}, spec: {host: api, subsets: [{name: v1, labels: {app: api}}]}}");
    let resources = mesh.sidecar_resources("default", "client");
    let cluster = resources.get(Cluster, "outbound|80|v1|api.default.svc.cluster.local");
    let [mutual, plain] = &cluster["transport_socket_matches"].as_array().unwrap()[..] else {
        panic!("{cluster}")
    };
    assert_eq!(
        (&mutual["name"], &mutual["match"]),
        (&json!("tlsMode-istio"), &json!({ "tlsMode": "istio" }))
    );
    assert_eq!(plain["name"], "tlsMode-disabled");
    let tls = &mutual["transport_socket"]["typed_config"];
    assert_eq!(tls["sni"], "outbound_.80_.v1_.api.default.svc.cluster.local");
    let common = &tls["common_tls_context"];
    assert_eq!(common["alpn_protocols"], json!(["istio-http/1.1", "istio", "http/1.1"]));
    assert_eq!(common["tls_params"]["tls_maximum_protocol_version"], "TLSv1_3");
    assert_eq!(common["tls_params"]["ecdh_curves"][0], "X25519MLKEM768");
    assert_eq!(
        common["combined_validation_context"]["default_validation_context"]["match_typed_subject_alt_names"],
        json!([{ "san_type": "URI", "matcher": { "exact": "spiffe://cluster.local/ns/default/sa/default" } }])
    );
    let other = resources.get(Cluster, "outbound|81||api.default.svc.cluster.local");
    let offered =
        &other["transport_socket_matches"][0]["transport_socket"]["typed_config"]["common_tls_context"];
    assert!(offered.get("alpn_protocols").is_none(), "what Envoy offers by itself tells HTTP from bytes");

    let modes = |mesh: &mut Mesh| -> Vec<bool> {
        let resources = mesh.sidecar_resources("default", "client");
        let endpoints = resources.get(Endpoint, "outbound|80||api.default.svc.cluster.local");
        let list = endpoints["endpoints"][0]["lb_endpoints"].as_array().unwrap().iter();
        let mode = |one: &Value| {
            &one["metadata"]["filter_metadata"]["envoy.transport_socket_match"]["tlsMode"] == "istio"
        };
        list.map(mode).collect()
    };
    assert_eq!(modes(&mut mesh), [true, false]);
    mesh.config(&peer(
        "default",
        "a",
        "{selector: {matchLabels: {app: api}}, portLevelMtls: {'8080': {mode: DISABLE}}}",
    ));
    assert_eq!(modes(&mut mesh), [false, false], "the port takes plain text only");
}

/// A server has the name that callers of the mesh ask for, and an application's own TLS another.
#[test]
fn callers_of_the_mesh_are_known_by_the_name_they_ask_for() {
    let resources = mesh().sidecar_resources("default", "api-1");
    let inbound = resources.get(Listener, "virtualInbound");
    let chains = inbound["filter_chains"].as_array().unwrap().iter();
    let named: Vec<&Value> = chains
        .map(|chain| &chain["filter_chain_match"])
        .filter(|condition| condition["destination_port"] == 8080 && !condition["server_names"].is_null())
        .map(|condition| &condition["server_names"])
        .collect();
    assert_eq!(named, [&json!(["*.api.default.svc.cluster.local"])]);
}

/// What listens at a Unix socket has nobody's certificate.
#[test]
fn identities_are_those_of_endpoints_with_an_address() {
    let mut mesh = mesh();
    mesh.pod("default", "client", "10.244.0.9", json!({"app": "client"}));
    let endpoint = |address: &str, account: &str| {
        format!("{{address: '{address}', serviceAccount: {account}, labels: {{{TLS_MODE}: istio}}}}")
    };
    mesh.config(&format!(
        "{{kind: ServiceEntry, metadata: {{name: both}}, spec: {{hosts: [both.example], location: MESH_INTERNAL, \
         resolution: STATIC, ports: [{{number: 80, name: http, protocol: HTTP}}], endpoints: [{}, {}]}}}}",
        endpoint("10.0.0.7", "near"),
        endpoint("unix:///run/app.sock", "socket"),
    ));
    let resources = mesh.sidecar_resources("default", "client");
    let cluster = resources.get(Cluster, "outbound|80||both.example").to_string();
    assert!(cluster.contains("/sa/near\"") && !cluster.contains("/sa/socket\""), "{cluster}");
}

#[test]
fn rules_and_mesh_config_say_otherwise() {
    let mut mesh = mesh();
    mesh.pod("default", "client", "10.244.0.9", json!({"app": "client"}));
    let socket = |mesh: &mut Mesh, tls: &str| {
        mesh.config(&format!("{{kind: DestinationRule, metadata: {{name: api}}, spec: {{host: api, trafficPolicy: {{tls: {tls}}}}}}}"));
        let resources = mesh.sidecar_resources("default", "client");
        let cluster = resources.get(Cluster, "outbound|80||api.default.svc.cluster.local");
        (cluster["transport_socket_matches"].is_array(), cluster["transport_socket"]["typed_config"].clone())
    };
    assert_eq!(socket(&mut mesh, "{mode: DISABLE}"), (false, Value::Null));
    let (by_endpoint, tls) = socket(&mut mesh, "{mode: ISTIO_MUTUAL}");
    assert!(!by_endpoint, "to every endpoint");
    assert_eq!(tls["sni"], "outbound_.80_._.api.default.svc.cluster.local");
    let (_, tls) = socket(
        &mut mesh,
        "{mode: ISTIO_MUTUAL, sni: api.example, subjectAltNames: ['spiffe://other/ns/a/sa/b']}",
    );
    assert_eq!(tls["sni"], "api.example");
    assert!(tls.to_string().contains("spiffe://other/ns/a/sa/b") && !tls.to_string().contains("sa/default"));
    assert_eq!(
        socket(&mut mesh, "{mode: SIMPLE}").1["common_tls_context"].get("tls_certificate_sds_secret_configs"),
        None
    );

    mesh.config("{kind: DestinationRule, metadata: {name: api}, spec: {host: api}}");
    mesh.mesh_config("trustDomain: a.example\ntrustDomainAliases: [b.example]\nmeshMTLS: {minProtocolVersion: TLSV1_3, ecdhCurves: [P-256]}");
    let resources = mesh.sidecar_resources("default", "client");
    let cluster = resources.get(Cluster, "outbound|80||api.default.svc.cluster.local").to_string();
    for part in [
        "spiffe://a.example/ns/default/sa/default",
        "spiffe://b.example/ns/default/sa/default",
        "[\"P-256\"]",
    ] {
        assert!(cluster.contains(part), "{part} not in {cluster}");
    }
    assert!(cluster.contains("\"tls_minimum_protocol_version\":\"TLSv1_3\""), "{cluster}");
    let inbound = mesh.sidecar_resources("default", "api-1");
    let inbound = inbound.get(Listener, "virtualInbound").to_string();
    assert!(inbound.contains("spiffe://a.example/") && inbound.contains("spiffe://b.example/"), "{inbound}");
    mesh.mesh_config("enableAutoMtls: false");
    let resources = mesh.sidecar_resources("default", "client");
    let cluster = resources.get(Cluster, "outbound|80||api.default.svc.cluster.local");
    assert!(cluster.get("transport_socket_matches").is_none());
}

#[test]
fn a_policy_concerns_the_endpoints_of_its_namespace() {
    let mut mesh = mesh();
    mesh.pod("default", "client", "10.244.0.9", json!({"app": "client"}));
    mesh.service("shop", "cart", "10.96.0.7", json!([{"name": "http", "port": 80}]), json!({"app": "cart"}));
    let before = mesh.sidecar("default", "client");
    let delta = mesh.config(&peer("shop", "a", "{mtls: {mode: DISABLE}}"));
    let after = mesh.sidecar("default", "client");
    let changed = affected(&delta, &before, &after);
    assert!(changed.endpoints.covers("outbound|80||cart.shop.svc.cluster.local"));
    assert!(!changed.endpoints.covers("outbound|80||api.default.svc.cluster.local"));
    assert!(changed.clusters.is_none() && changed.listeners.is_none() && changed.routes.is_none());
    let delta = mesh.config(&peer("istio-system", "a", "{mtls: {mode: DISABLE}}"));
    let changed = affected(&delta, &after, &mesh.sidecar("default", "client"));
    assert!(changed.endpoints.covers("outbound|80||api.default.svc.cluster.local"));
    // A pod of another account: who the endpoints may be is part of the cluster.
    let before = mesh.sidecar("default", "client");
    mesh.pod_of_account("default", "api-3", "10.244.0.7", json!({"app": "api"}), "robot");
    let delta = mesh.endpoints("default", "api", "http", 8080, &[("api-3", "10.244.0.7", true)]);
    let changed = affected(&delta, &before, &mesh.sidecar("default", "client"));
    assert!(changed.clusters.covers("outbound|80||api.default.svc.cluster.local"));
}

#[test]
fn parameters_of_mesh_config_are_for_its_own_tls_or_for_other() {
    let mut mesh = mesh();
    mesh.pod("default", "client", "10.244.0.9", json!({"app": "client"}));
    mesh.service(
        "default",
        "plain",
        "10.96.0.6",
        json!([{"name": "http", "port": 80}]),
        json!({"app": "plain"}),
    );
    mesh.config("{kind: DestinationRule, metadata: {name: plain}, spec: {host: plain, trafficPolicy: {tls: {mode: SIMPLE}}}}");
    let params = |mesh: &mut Mesh, host: &str| {
        let resources = mesh.sidecar_resources("default", "client");
        let cluster = resources.get(Cluster, &format!("outbound|80||{host}.default.svc.cluster.local"));
        let own = &cluster["transport_socket"]["typed_config"]["common_tls_context"]["tls_params"];
        let of_mesh =
            &cluster["transport_socket_matches"][0]["transport_socket"]["typed_config"]["common_tls_context"];
        if own.is_null() { of_mesh["tls_params"].clone() } else { own.clone() }
    };
    assert_eq!(params(&mut mesh, "plain"), Value::Null, "as the proxy has it");
    let ours = params(&mut mesh, "api");
    let suites = "cipherSuites: [ECDHE-ECDSA-AES128-GCM-SHA256, AES128-SHA]";
    mesh.mesh_config(&format!("tlsDefaults: {{minProtocolVersion: TLSV1_3, {suites}, ecdhCurves: [P-384]}}"));
    assert_eq!(
        params(&mut mesh, "plain"),
        json!({"cipher_suites": ["ECDHE-ECDSA-AES128-GCM-SHA256"], "ecdh_curves": ["P-384"]}),
        "a client has its own least version, as in Istio"
    );
    assert_eq!(params(&mut mesh, "api"), ours, "the mesh's own TLS is another matter");
    mesh.mesh_config(&format!("meshMTLS: {{minProtocolVersion: TLSV1_3, {suites}}}"));
    assert_eq!(params(&mut mesh, "plain"), Value::Null);
    assert_eq!(params(&mut mesh, "api")["tls_minimum_protocol_version"], "TLSv1_3");
    let inbound = mesh.sidecar_resources("default", "api-1");
    let inbound = inbound.get(Listener, "virtualInbound").to_string();
    assert!(inbound.contains("\"cipher_suites\":[\"ECDHE-ECDSA-AES128-GCM-SHA256\"]"), "{inbound}");
}
