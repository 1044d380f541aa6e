//! TLS at gateways and towards services.
mod support;

use lateen_translate::ResourceType::{Cluster, Endpoint, Listener, Route, Secret};
use serde_json::{Value, json};
use support::Mesh;

const PAIR: (&str, &str) =
    (include_str!("../../model/tests/server.crt"), include_str!("../../model/tests/server.key"));

fn mesh(server: &str) -> Mesh {
    let mut mesh = Mesh::course();
    mesh.config(&format!(
        "{{kind: Gateway, metadata: {{name: tls}}, spec: {{selector: {{istio: ingressgateway}}, servers: [{server}]}}}}"
    ));
    mesh
}

fn https(mode: &str) -> String {
    format!(
        "{{port: {{number: 443, name: https, protocol: HTTPS}}, hosts: [a.example, '*.b.example'], tls: {mode}}}"
    )
}

fn pair(mesh: &mut Mesh, namespace: &str, name: &str) {
    mesh.secret(namespace, name, json!({"tls.crt": PAIR.0, "tls.key": PAIR.1}));
}

fn context(chain: &Value) -> &Value {
    &chain["transport_socket"]["typed_config"]
}

#[test]
fn https_comes_with_its_certificate() {
    let mut mesh = mesh(&https("{mode: SIMPLE, credentialName: web, minProtocolVersion: TLSV1_3}"));
    mesh.config("{kind: VirtualService, metadata: {name: a}, spec: {hosts: [a.example], gateways: [tls], http: [{route: [{destination: {host: customers}}]}]}}");
    let before = mesh.gateway_resources();
    assert!(before.names(Secret).is_empty());
    pair(&mut mesh, "default", "web");
    let none = mesh.gateway_resources().names(Secret).len();
    assert_eq!(none, 0, "secrets of other namespaces are no business of it");
    let delta = mesh.secret("istio-system", "web", json!({"tls.crt": PAIR.0, "tls.key": PAIR.1}));
    assert_eq!(delta.credentials.len(), 1);
    let resources = mesh.gateway_resources();
    assert_eq!(resources.names(Secret), ["kubernetes://web"]);
    assert_eq!(resources.all(Listener), before.all(Listener), "nothing else changes with a Secret");
    let listener = resources.get(Listener, "0.0.0.0_8443");
    assert!(listener["listener_filters"][0]["name"].as_str().unwrap().contains("tls_inspector"));
    let chain = &listener["filter_chains"][0];
    assert_eq!(chain["filter_chain_match"]["server_names"], json!(["a.example", "*.b.example"]));
    let common = &context(chain)["common_tls_context"];
    assert_eq!(common["alpn_protocols"], json!(["h2", "http/1.1"]));
    assert_eq!(common["tls_params"]["tls_minimum_protocol_version"], "TLSv1_3");
    assert_eq!(common["tls_certificate_sds_secret_configs"][0]["name"], "kubernetes://web");
    assert_eq!(context(chain)["require_client_certificate"], false);
    let routes = resources.get(Route, "https.8443.https.tls.default");
    assert_eq!(routes["virtual_hosts"][0]["domains"], json!(["a.example"]));
    let sidecar = mesh.sidecar("default", "web-frontend-1");
    assert!(mesh.resources(&sidecar).names(Secret).is_empty(), "sidecars get no secrets");
}

#[test]
fn defaults_of_the_mesh_hold_where_a_server_says_nothing() {
    let params = |server: &str| {
        let mut mesh = mesh(&https(&format!("{{mode: SIMPLE, credentialName: web{server}}}")));
        mesh.mesh_config("tlsDefaults: {minProtocolVersion: TLSV1_3, cipherSuites: [ECDHE-RSA-AES128-GCM-SHA256], ecdhCurves: [P-384]}");
        let resources = mesh.gateway_resources();
        let chain = &resources.get(Listener, "0.0.0.0_8443")["filter_chains"][0];
        context(chain)["common_tls_context"]["tls_params"].clone()
    };
    assert_eq!(
        params(""),
        json!({"tls_minimum_protocol_version": "TLSv1_3", "cipher_suites": ["ECDHE-RSA-AES128-GCM-SHA256"], "ecdh_curves": ["P-384"]})
    );
    let own = params(", minProtocolVersion: TLSV1_2, cipherSuites: [ECDHE-RSA-AES256-GCM-SHA384]");
    assert_eq!(
        own,
        json!({"tls_minimum_protocol_version": "TLSv1_2", "cipher_suites": ["ECDHE-RSA-AES256-GCM-SHA384"], "ecdh_curves": ["P-384"]})
    );
}

#[test]
fn mutual_tls_verifies_clients() {
    for (mode, required) in [("MUTUAL", true), ("OPTIONAL_MUTUAL", false)] {
        let mut mesh =
            mesh(&https(&format!("{{mode: {mode}, credentialName: web, subjectAltNames: [c.example]}}")));
        pair(&mut mesh, "istio-system", "web");
        assert_eq!(mesh.gateway_resources().names(Secret), ["kubernetes://web"]);
        mesh.secret("istio-system", "web-cacert", json!({"cacert": PAIR.0}));
        let resources = mesh.gateway_resources();
        assert_eq!(resources.names(Secret), ["kubernetes://web", "kubernetes://web-cacert"]);
        let chain = &resources.get(Listener, "0.0.0.0_8443")["filter_chains"][0];
        assert_eq!(context(chain)["require_client_certificate"], required);
        let combined = &context(chain)["common_tls_context"]["combined_validation_context"];
        assert_eq!(combined["validation_context_sds_secret_config"]["name"], "kubernetes://web-cacert");
        let names = &combined["default_validation_context"]["match_typed_subject_alt_names"];
        assert_eq!(names[1]["matcher"]["exact"], "c.example");
    }
}

#[test]
fn bad_secrets_are_told_and_not_given() {
    let weak = (include_str!("../../pki/tests/rsa1024.crt"), include_str!("../../pki/tests/rsa1024.key"));
    let other = include_str!("../../model/tests/other.key");
    for (data, told) in [
        (None, "is not there"),
        (Some(json!({"tls.crt": "x", "tls.key": PAIR.1})), "certificate is not in PEM"),
        (Some(json!({"tls.crt": PAIR.0, "tls.key": other})), "not that of the certificate"),
        (Some(json!({"tls.crt": weak.0, "tls.key": weak.1})), "too weak"),
        (Some(json!({"tls.crt": PAIR.0})), "is not there, or has no certificate and key"),
        (Some(json!({"ca.crt": PAIR.0})), "has no certificate and key"),
        (Some(json!({"tls.crt": PAIR.0, "tls.key": PAIR.1, "ca.crt": "x"})), ""),
        (
            Some(json!({"tls.crt": include_str!("../../model/tests/expired.crt"), "tls.key": PAIR.1})),
            "has expired",
        ),
    ] {
        let mut mesh = mesh(&https("{mode: SIMPLE, credentialName: web}"));
        if let Some(data) = data {
            mesh.secret("istio-system", "web", data);
        }
        let resources = mesh.gateway_resources();
        // What has expired is served, as by Envoy: clients judge it.
        let of_use = told.is_empty() || told == "has expired";
        assert_eq!(resources.names(Secret).contains(&"kubernetes://web"), of_use, "{told}");
        assert_eq!(resources.names(Listener), ["0.0.0.0_8080", "0.0.0.0_8443"]);
        let world = mesh.world();
        let gateway = world.gateway(&lateen_model::ObjectName::new("default", "tls")).unwrap();
        let warnings = lateen_translate::check_gateway(gateway, &world);
        let messages: Vec<_> = warnings.iter().map(|warning| warning.message.as_str()).collect();
        match told {
            "" => assert!(messages.is_empty(), "authorities are not asked for: {messages:?}"),
            told => assert!(messages.len() == 1 && messages[0].contains(told), "{told}: {messages:?}"),
        }
    }
}

#[test]
fn secrets_of_other_namespaces_are_not_given() {
    let mut mesh = mesh(&https("{mode: SIMPLE, credentialName: 'kubernetes://default/web'}"));
    pair(&mut mesh, "default", "web");
    assert!(mesh.gateway_resources().names(Secret).is_empty());
    let world = mesh.world();
    let gateway = world.gateway(&lateen_model::ObjectName::new("default", "tls")).unwrap();
    let warnings = lateen_translate::check_gateway(gateway, &world);
    assert!(warnings[0].message.contains("put it into istio-system"), "{warnings:?}");
}

#[test]
fn rules_are_told_of_credentials_that_are_missing() {
    let mut mesh = mesh(&https("{mode: PASSTHROUGH}"));
    let rule = |selector: &str| {
        format!(
            "{{kind: DestinationRule, metadata: {{name: customers}}, spec: {{host: customers, {selector}trafficPolicy: {{tls: {{mode: SIMPLE, credentialName: authorities}}}}}}}}"
        )
    };
    let told = |mesh: &mut Mesh| {
        let world = mesh.world();
        let rule = world.destination_rules().find(|rule| &*rule.name.name == "customers").unwrap();
        let warnings = lateen_translate::check_destination_rule(rule, &world);
        warnings.into_iter().filter(|warning| warning.code == Some("IST0101")).count()
    };
    mesh.config(&rule(""));
    assert_eq!(told(&mut mesh), 1);
    mesh.secret("istio-system", "authorities", json!({"ca.crt": PAIR.0}));
    assert_eq!(told(&mut mesh), 0, "it is where the gateway is");
    mesh.config(&rule("workloadSelector: {matchLabels: {app: web-frontend}}, "));
    assert_eq!(told(&mut mesh), 1, "but not where the selected workloads are");
    mesh.secret("default", "authorities-cacert", json!({"cacert": PAIR.0}));
    assert_eq!(told(&mut mesh), 0);
}

#[test]
fn secrets_go_only_to_proxies_that_may_read_them() {
    let mut mesh = mesh(&https("{mode: SIMPLE, credentialName: web}"));
    pair(&mut mesh, "istio-system", "web");
    assert_eq!(mesh.gateway_resources().names(Secret), ["kubernetes://web"]);
    let id = "router~10.244.0.9~istio-ingressgateway-1.istio-system~istio-system.svc.cluster.local";
    let scope = mesh.scope_reading(id, false);
    assert!(mesh.resources(&scope).names(Secret).is_empty(), "its account may not");
    let labels = json!({"LABELS": {"istio": "ingressgateway"}});
    let unknown =
        mesh.scope_with("router~10.0.0.1~no-pod.istio-system~istio-system.svc.cluster.local", &labels);
    assert!(mesh.resources(&unknown).names(Secret).is_empty(), "labels that only the proxy itself gives");
    mesh.pod("default", "gateway-2", "10.244.0.10", json!({"istio": "ingressgateway"}));
    let other = mesh.scope("router~10.244.0.10~gateway-2.default~default.svc.cluster.local");
    assert!(mesh.resources(&other).names(Secret).is_empty(), "a gateway of another namespace");
}

#[test]
fn sidecars_get_credentials_of_rules_that_select_them() {
    let rule = |selector: &str| {
        format!(
            "{{kind: DestinationRule, metadata: {{name: customers}}, spec: {{host: customers, {selector}trafficPolicy: {{tls: {{mode: MUTUAL, credentialName: client}}}}}}}}"
        )
    };
    let mut mesh = Mesh::course();
    pair(&mut mesh, "default", "client");
    mesh.config(&rule("workloadSelector: {matchLabels: {app: web-frontend}}, "));
    let of = |mesh: &mut Mesh, pod: &str| {
        let scope =
            mesh.scope_reading(&format!("sidecar~10.0.0.1~{pod}.default~default.svc.cluster.local"), true);
        mesh.resources(&scope)
    };
    let name = "outbound|80||customers.default.svc.cluster.local";
    let resources = of(&mut mesh, "web-frontend-1");
    assert_eq!(resources.names(Secret), ["kubernetes://client"]);
    let common = &context(resources.get(Cluster, name))["common_tls_context"];
    assert_eq!(common["tls_certificate_sds_secret_configs"][0]["name"], "kubernetes://client");
    assert_eq!(
        common["combined_validation_context"]["validation_context_sds_secret_config"]["name"],
        "kubernetes://client-cacert"
    );
    let other = of(&mut mesh, "customers-v1-1");
    assert!(other.names(Secret).is_empty());
    mesh.config(&rule(""));
    let resources = of(&mut mesh, "web-frontend-1");
    assert!(resources.names(Secret).is_empty());
    let common = &context(resources.get(Cluster, name))["common_tls_context"];
    assert!(
        common.get("tls_certificate_sds_secret_configs").is_none()
            && common.get("tls_certificates").is_none()
    );
}

#[test]
fn tls_is_passed_through_by_name() {
    let mut mesh = mesh(
        "{port: {number: 443, name: tls, protocol: TLS}, hosts: ['*.example'], tls: {mode: PASSTHROUGH}}",
    );
    mesh.config("{kind: VirtualService, metadata: {name: a}, spec: {hosts: ['*.example'], gateways: [tls], tls: [
      {match: [{sniHosts: [a.example], port: 443}], route: [{destination: {host: customers, subset: v1}, weight: 30}, {destination: {host: customers, subset: v2}, weight: 70}]},
      {match: [{sniHosts: [b.example], port: 444}], route: [{destination: {host: customers}}]},
      {match: [{sniHosts: [c.example, a.example, d.other]}], route: [{destination: {host: web-frontend}}]}]}}");
    let resources = mesh.gateway_resources();
    let chains = resources.get(Listener, "0.0.0.0_8443")["filter_chains"].as_array().unwrap();
    let names: Vec<_> =
        chains.iter().map(|chain| chain["filter_chain_match"]["server_names"].clone()).collect();
    assert_eq!(names, [json!(["a.example"]), json!(["c.example"])]);
    assert!(chains.iter().all(|chain| chain.get("transport_socket").is_none()));
    assert_eq!(chains[0]["filters"][0]["typed_config"]["weighted_clusters"]["clusters"][1]["weight"], 70);
}

fn only_cluster(chain: &Value) -> &Value {
    &support::filter(chain)["cluster"]
}

#[test]
fn bytes_enter_at_gateways() {
    let mut mesh = mesh(
        "{port: {number: 31400, name: tcp, protocol: TCP}, hosts: ['*']}, {port: {number: 3306, name: db, protocol: MYSQL}, hosts: [db.example]},
         {port: {number: 443, name: tls, protocol: TLS}, hosts: [a.example], tls: {mode: SIMPLE, credentialName: web}}",
    );
    mesh.config("{kind: VirtualService, metadata: {name: a}, spec: {hosts: [a.example], gateways: [tls], tcp: [
      {match: [{port: 1}, {gateways: [other]}], route: [{destination: {host: never}}]},
      {match: [{port: 31400}], route: [{destination: {host: customers, subset: v1}, weight: 20}, {destination: {host: customers, subset: v2}, weight: 80}]},
      {match: [{port: 443, destinationSubnets: [10.0.0.0/8], sourceLabels: {no: body}}], route: [{destination: {host: web-frontend}}]}]}}");
    let resources = mesh.gateway_resources();
    let plain = resources.get(Listener, "0.0.0.0_31400");
    assert!(plain.get("listener_filters").is_none());
    let proxy = support::filter(&plain["filter_chains"][0]);
    assert_eq!(
        proxy["weighted_clusters"]["clusters"],
        json!([
            {"name": "outbound|80|v1|customers.default.svc.cluster.local", "weight": 20},
            {"name": "outbound|80|v2|customers.default.svc.cluster.local", "weight": 80}])
    );
    assert!(!resources.names(Listener).contains(&"0.0.0.0_3306"), "no VirtualService has its host");
    let ended = &resources.get(Listener, "0.0.0.0_8443")["filter_chains"][0];
    assert_eq!(ended["filter_chain_match"]["server_names"], json!(["a.example"]));
    assert_eq!(*only_cluster(ended), "outbound|80||web-frontend.default.svc.cluster.local");
    let certificates = &context(ended)["common_tls_context"]["tls_certificate_sds_secret_configs"];
    assert_eq!(certificates[0]["name"], "kubernetes://web");
    mesh.config("{kind: VirtualService, metadata: {name: b}, spec: {hosts: [db.example], gateways: [tls], tcp: [{route: [{destination: {host: customers}}]}]}}");
    let resources = mesh.gateway_resources();
    let chain = &resources.get(Listener, "0.0.0.0_3306")["filter_chains"][0];
    assert_eq!(*only_cluster(chain), "outbound|80||customers.default.svc.cluster.local");
}

#[test]
fn sidecars_send_tls_by_its_name() {
    let mut mesh = Mesh::course();
    let ports = json!([{"name": "tls", "port": 443}, {"name": "tcp", "port": 444}]);
    mesh.service("default", "secure", "10.96.0.50", ports, json!({"app": "secure"}));
    let entry = "{hosts: [a.example.com, b.example.com, c.example.com], resolution: DNS, ports: [{number: 443, name: tls, protocol: TLS}]}";
    mesh.config(&format!("{{kind: ServiceEntry, metadata: {{name: outside}}, spec: {entry}}}"));
    mesh.config("{kind: VirtualService, metadata: {name: secure}, spec: {hosts: [secure, a.example.com, b.example.com], gateways: [mesh, other], tls: [
      {match: [{sniHosts: [never.example.com], sourceLabels: {app: nobody}}, {sniHosts: [never.example.com], gateways: [other]}, {sniHosts: [never.example.com], port: 1}], route: [{destination: {host: never}}]},
      {match: [{sniHosts: [a.example.com, B.example.com], port: 443, sourceNamespace: default}], route: [{destination: {host: customers, subset: v1}, weight: 25}, {destination: {host: customers, subset: v2}, weight: 75}]},
      {match: [{sniHosts: [a.example.com], destinationSubnets: [10.1.0.0/16]}, {sniHosts: [a.example.com]}], route: [{destination: {host: web-frontend}}]}],
      tcp: [{route: [{destination: {host: web-frontend}}]}]}}");
    let resources = mesh.sidecar_resources("default", "web-frontend-1");
    let found = |listener: &Value| -> Vec<String> {
        let chains = listener["filter_chains"].as_array().unwrap().iter();
        let text = |chain: &Value| {
            let condition = &chain["filter_chain_match"];
            let to = match support::filter(chain).get("cluster") {
                Some(cluster) => cluster.to_string(),
                None => "weighted".to_owned(),
            };
            format!("{} {} {to}", condition["server_names"], condition["prefix_ranges"][0]["address_prefix"])
        };
        chains.map(text).collect()
    };
    let own = resources.get(Listener, "10.96.0.50_443");
    let frontend = "\"outbound|80||web-frontend.default.svc.cluster.local\"";
    assert_eq!(
        found(own),
        [
            "[\"a.example.com\",\"b.example.com\"] null weighted".to_owned(),
            format!("[\"a.example.com\"] \"10.1.0.0\" {frontend}"),
        ]
    );
    assert!(own["listener_filters"][0]["name"].as_str().unwrap().contains("tls_inspector"));
    assert_eq!(*only_cluster(&own["default_filter_chain"]), "PassthroughCluster", "names nobody knows");
    let bytes = resources.get(Listener, "10.96.0.50_444");
    assert_eq!(
        *only_cluster(&bytes["filter_chains"][0]),
        "outbound|80||web-frontend.default.svc.cluster.local"
    );
    let outside = found(resources.get(Listener, "0.0.0.0_443"));
    assert_eq!(
        outside,
        [
            "[\"a.example.com\"] null weighted".to_owned(),
            "[\"b.example.com\"] null weighted".to_owned(),
            "[\"c.example.com\"] null \"outbound|443||c.example.com\"".to_owned(),
            format!("[\"a.example.com\"] \"10.1.0.0\" {frontend}"),
        ]
    );
}

#[test]
fn the_oldest_gateway_has_the_port_and_the_name() {
    let mut mesh = mesh(&https("{mode: SIMPLE, credentialName: web}"));
    pair(&mut mesh, "istio-system", "web");
    mesh.config("{kind: Gateway, metadata: {name: later, creationTimestamp: '2030-01-01T00:00:00Z'}, spec: {selector: {istio: ingressgateway}, servers: [
      {port: {number: 443, name: http, protocol: HTTP}, hosts: ['*']},
      {port: {number: 443, name: again, protocol: HTTPS}, hosts: [a.example, n.example], tls: {mode: SIMPLE, credentialName: web}}]}}");
    let resources = mesh.gateway_resources();
    let chains = resources.get(Listener, "0.0.0.0_8443")["filter_chains"].as_array().unwrap();
    let names: Vec<_> =
        chains.iter().map(|chain| chain["filter_chain_match"]["server_names"].clone()).collect();
    assert_eq!(names, [json!(["a.example", "*.b.example"]), json!(["n.example"])]);
    assert!(!resources.names(Route).contains(&"http.8443"));
}

#[test]
fn services_are_called_over_tls() {
    let mut mesh = Mesh::course();
    let rule = |tls: &str| {
        format!(
            "{{kind: DestinationRule, metadata: {{name: customers}}, spec: {{host: customers, trafficPolicy: {{tls: {tls}}}}}}}"
        )
    };
    mesh.config(&rule("{mode: SIMPLE}"));
    let name = "outbound|80||customers.default.svc.cluster.local";
    let resources = mesh.gateway_resources();
    let cluster = resources.get(Cluster, name);
    let common = &context(cluster)["common_tls_context"];
    assert_eq!(common["validation_context"]["trusted_ca"]["filename"], "/etc/ssl/certs/ca-certificates.crt");
    let options = &cluster["typed_extension_protocol_options"]["envoy.extensions.upstreams.http.v3.HttpProtocolOptions"];
    assert_eq!(
        options["upstream_http_protocol_options"],
        json!({"auto_sni": true, "auto_san_validation": true})
    );
    mesh.config(&rule("{mode: MUTUAL, clientCertificate: /c, privateKey: /k, caCertificates: /ca, sni: s.example, subjectAltNames: [s.example]}"));
    let resources = mesh.gateway_resources();
    let cluster = resources.get(Cluster, name);
    assert_eq!(context(cluster)["sni"], "s.example");
    let common = &context(cluster)["common_tls_context"];
    assert_eq!(common["tls_certificates"][0]["private_key"]["filename"], "/k");
    assert_eq!(common["validation_context"]["trusted_ca"]["filename"], "/ca");
    mesh.config(&rule("{mode: MUTUAL, credentialName: client}"));
    mesh.secret("istio-system", "client", json!({"tls.crt": PAIR.0, "tls.key": PAIR.1, "ca.crt": PAIR.0}));
    let resources = mesh.gateway_resources();
    assert_eq!(resources.names(Secret), ["kubernetes://client", "kubernetes://client-cacert"]);
    let common = &context(resources.get(Cluster, name))["common_tls_context"];
    assert_eq!(common["tls_certificate_sds_secret_configs"][0]["name"], "kubernetes://client");
    mesh.config(&rule("{mode: SIMPLE, insecureSkipVerify: true}"));
    let resources = mesh.gateway_resources();
    assert!(context(resources.get(Cluster, name))["common_tls_context"].get("validation_context").is_none());
}

#[test]
fn entries_name_their_servers() {
    let mut mesh = Mesh::course();
    mesh.config("{kind: ServiceEntry, metadata: {name: api}, spec: {hosts: [api.example], resolution: DNS, subjectAltNames: [real.example], ports: [{number: 80, name: http, protocol: HTTP, targetPort: 443}]}}");
    let rule = |names: &str| {
        format!(
            "{{kind: DestinationRule, metadata: {{name: api}}, spec: {{host: api.example, trafficPolicy: {{tls: {{mode: SIMPLE{names}}}}}}}}}"
        )
    };
    let name = |mesh: &mut Mesh| {
        let resources = mesh.sidecar_resources("default", "web-frontend-1");
        let cluster = resources.get(Cluster, "outbound|80||api.example");
        let options = &cluster["typed_extension_protocol_options"]["envoy.extensions.upstreams.http.v3.HttpProtocolOptions"];
        assert_eq!(
            options["upstream_http_protocol_options"],
            json!({"auto_sni": true}),
            "names that are told are verified"
        );
        let context = &context(cluster)["common_tls_context"]["validation_context"];
        context["match_typed_subject_alt_names"][1]["matcher"]["exact"].clone()
    };
    mesh.config(&rule(""));
    assert_eq!(name(&mut mesh), "real.example");
    mesh.config(&rule(", subjectAltNames: [other.example]"));
    assert_eq!(name(&mut mesh), "other.example", "the rule's are in force");
}

#[test]
fn redirects_of_https_servers_imply_https() {
    let mut mesh = mesh(&https("{mode: SIMPLE, credentialName: web}"));
    mesh.config(
        "{kind: VirtualService, metadata: {name: a}, spec: {hosts: [a.example], gateways: [tls], http: [
          {match: [{uri: {prefix: /own}}], redirect: {derivePort: FROM_REQUEST_PORT}},
          {redirect: {port: 80}}]}}",
    );
    let resources = mesh.gateway_resources();
    let routes = &resources.get(Route, "https.8443.https.tls.default")["virtual_hosts"][0]["routes"];
    assert_eq!(routes[0]["redirect"]["port_redirect"], Value::Null);
    assert_eq!(routes[1]["redirect"]["port_redirect"], 80);
}

#[test]
fn tls_of_the_mesh_is_passed_on_by_the_names_of_clusters() {
    let mut mesh = mesh(
        "{port: {number: 15443, name: tls, protocol: TLS}, hosts: ['*.default.svc.cluster.local', '*.example'], tls: {mode: AUTO_PASSTHROUGH}}",
    );
    let labels = json!({"app": "customers", "version": "v2", "security.istio.io/tlsMode": "istio"});
    mesh.pod("default", "customers-v2-1", "10.244.0.32", labels);
    mesh.config("{kind: ServiceEntry, metadata: {name: api}, spec: {hosts: [api.example], location: MESH_EXTERNAL, resolution: DNS, ports: [{number: 443, name: tls, protocol: TLS}]}}");
    mesh.config("{kind: DestinationRule, metadata: {name: web-frontend}, spec: {host: web-frontend, trafficPolicy: {tls: {mode: SIMPLE}}}}");
    let resources = mesh.gateway_resources();
    let chains = resources.get(Listener, "0.0.0.0_15443")["filter_chains"].as_array().unwrap().clone();
    let name = |chain: &Value| chain["filter_chain_match"]["server_names"][0].as_str().unwrap().to_owned();
    let customers = "_.customers.default.svc.cluster.local";
    let names: Vec<String> = chains.iter().map(name).filter(|name| !name.contains("kubernetes")).collect();
    let expected = [
        format!("outbound_.80_.v1{customers}"),
        format!("outbound_.80_.v2{customers}"),
        format!("outbound_.80_.{customers}"),
        "outbound_.80_._.web-frontend.default.svc.cluster.local".to_owned(),
    ];
    assert_eq!(names, expected, "those in the mesh, which the server's hosts name");
    assert!(
        chains
            .iter()
            .all(|chain| chain.get("transport_socket").is_none() && *only_cluster(chain) == name(chain))
    );
    // Callers of undeclared ports offer no protocol of the mesh.
    let offered = |chain: &Value| chain["filter_chain_match"]["application_protocols"][0].clone();
    let declared = chains.iter().filter(|chain| name(chain).contains("kubernetes"));
    assert_eq!(declared.map(offered).collect::<Vec<_>>(), ["istio"]);
    let undeclared = chains.iter().filter(|chain| !name(chain).contains("kubernetes"));
    assert!(undeclared.map(offered).all(|offered| offered.is_null()));
    let own = resources.get(Cluster, "outbound_.80_._.web-frontend.default.svc.cluster.local");
    assert!(own.get("transport_socket").is_none(), "the caller's TLS is all there is");
    let endpoints = |name: &str| {
        let all = resources.get(Endpoint, name)["endpoints"].as_array().cloned().unwrap_or_default();
        all.iter().map(|locality| locality["lb_endpoints"].as_array().map_or(0, Vec::len)).sum::<usize>()
    };
    assert_eq!(endpoints(&format!("outbound_.80_.{customers}")), 1, "only those with TLS of the mesh");
    assert_eq!(endpoints("outbound|80||customers.default.svc.cluster.local"), 2);
    let before = mesh.gateway();
    let delta = mesh.config("{kind: Gateway, metadata: {name: tls}, spec: {selector: {istio: ingressgateway}, servers: [{port: {number: 80, name: http, protocol: HTTP}, hosts: ['*']}]}}");
    let after = mesh.gateway();
    assert_eq!(lateen_translate::affected(&delta, &before, &after).clusters, lateen_translate::Extent::All);
    let hosts = ["customers.default.svc.cluster.local".into()].into();
    assert!(lateen_translate::Extent::Services(hosts).covers(&format!("outbound_.80_.v1{customers}")));
}
