use serde_json::{Value, json};

use super::*;
use crate::{Event, Object as Any, Store, StoreOptions};

/// A store with this mesh config (YAML) and these Ingresses, oldest first.
fn store(mesh: &str, ingresses: &[Value]) -> Store {
    let mesh = MeshConfig::parse(mesh).expect("mesh config");
    let mut store = Store::new(StoreOptions { mesh, ..StoreOptions::default() });
    for (age, ingress) in ingresses.iter().enumerate() {
        let mut ingress = ingress.clone();
        ingress["metadata"]["creationTimestamp"] = json!(format!("2024-01-{:02}T00:00:00Z", age + 1));
        let object = serde_json::from_value(ingress).expect("an Ingress");
        store.apply(Event::Applied(Any::Ingress(Box::new(object))));
    }
    store
}

fn ingress(name: &str, spec: Value) -> Value {
    json!({"metadata": {"namespace": "shop", "name": name, "annotations": {"kubernetes.io/ingress.class": "istio"}}, "spec": spec})
}

fn backend(service: &str, port: Value) -> Value {
    json!({"service": {"name": service, "port": port}})
}

fn path(path: &str, kind: &str, service: &str) -> Value {
    json!({"path": path, "pathType": kind, "backend": backend(service, json!({"number": 80}))})
}

/// Conditions and destinations of the rules by host, and the gateways they are bound to.
fn rules(store: &mut Store) -> BTreeMap<String, (Vec<String>, Vec<String>)> {
    let (_, services) = convert(&store.world());
    let shown = |rule: &HttpRoute| {
        let uri = rule.r#match.first().and_then(|condition| condition.uri.clone()).unwrap_or_default();
        let uri = match (uri.exact, uri.prefix) {
            (Some(exact), _) => format!("={exact}"),
            (None, Some(prefix)) => format!("{prefix}*"),
            _ => "any".to_owned(),
        };
        let destination = &rule.route[0].destination;
        format!("{uri} {}:{}", destination.host, destination.port.as_ref().expect("a port").number)
    };
    services
        .iter()
        .map(|service| {
            let rules = service.spec.http.iter().map(shown).collect();
            (service.spec.hosts[0].clone(), (rules, service.spec.gateways.clone()))
        })
        .collect()
}

#[test]
fn classes_decide_which_are_served() {
    let spec = json!({"rules": []});
    let plain = json!({"metadata": {"namespace": "shop", "name": "plain"}, "spec": spec});
    let annotated = |class: &str| {
        let mut object = plain.clone();
        object["metadata"]["annotations"] = json!({"kubernetes.io/ingress.class": class});
        object
    };
    let classed = |class: &str| {
        let mut object = plain.clone();
        object["spec"]["ingressClassName"] = json!(class);
        object
    };
    for (mode, object, served) in [
        ("STRICT", plain.clone(), false),
        ("DEFAULT", plain.clone(), true),
        ("OFF", plain.clone(), false),
        ("STRICT", annotated("istio"), true),
        ("STRICT", annotated("nginx"), false),
        ("DEFAULT", annotated("nginx"), false),
        ("OFF", annotated("istio"), false),
        ("STRICT", classed("ours"), true),
        ("STRICT", classed("theirs"), false),
        ("DEFAULT", classed("theirs"), false),
        ("STRICT", classed("missing"), false),
    ] {
        let mut store = store(&format!("ingressControllerMode: {mode}"), std::slice::from_ref(&object));
        for (name, controller) in [("ours", CONTROLLER), ("theirs", "example.com/theirs")] {
            let class = json!({"metadata": {"name": name}, "spec": {"controller": controller}});
            let class = serde_json::from_value(class).expect("a class");
            store.apply(Event::Applied(Any::IngressClass(Box::new(class))));
        }
        let world = store.world();
        let ingress = world.ingresses().next().expect("an Ingress");
        assert_eq!(ingress.is_served(&world), served, "{mode} {object}");
        assert_eq!(convert(&world).0.len(), usize::from(served), "{mode} {object}");
    }
}

#[test]
fn rules_of_one_host_are_put_together_longest_path_first() {
    let rule = |host: &str, paths: Value| json!({"host": host, "http": {"paths": paths}});
    let mut store = store(
        "",
        &[
            ingress(
                "first",
                json!({"rules": [
            rule("a.com", json!([path("/", "Prefix", "root"), path("/long/path", "Prefix", "long"), path("/b", "Exact", "exact")])),
            rule("*.b.com", json!([path("/x.*", "ImplementationSpecific", "dots"), path("/y/*", "ImplementationSpecific", "star"), path("/z", "ImplementationSpecific", "plain"), path("", "ImplementationSpecific", "all")]))]}),
            ),
            ingress(
                "second",
                json!({"defaultBackend": backend("rest", json!({"number": 81})),
            "rules": [rule("a.com", json!([path("/b", "Prefix", "prefix")]))]}),
            ),
        ],
    );
    let found = rules(&mut store);
    let to = |host: &str, rules: &[&str]| {
        assert_eq!(
            found[host].0.iter().map(|rule| rule.replace(".shop.svc.cluster.local", "")).collect::<Vec<_>>(),
            rules,
            "{host}"
        );
    };
    to("a.com", &["/long/path* long:80", "=/b exact:80", "/b* prefix:80", "/* root:80", "any rest:81"]);
    to("*.b.com", &["=/z plain:80", "/x* dots:80", "/y* star:80", "any all:80"]);
    to("*", &["any rest:81"]);
    assert_eq!(
        found["a.com"].1,
        [
            "istio-system/first-istio-autogenerated-k8s-ingress-shop",
            "istio-system/second-istio-autogenerated-k8s-ingress-shop"
        ]
    );
}

#[test]
fn named_ports_are_those_of_the_service() {
    let named = json!({"rules": [{"http": {"paths": [
        {"path": "/", "pathType": "Prefix", "backend": backend("web", json!({"name": "http"}))}]}}]});
    let mut store = store("", &[ingress("web", named)]);
    assert!(rules(&mut store).is_empty(), "no service yet");
    let service = |port: u16| {
        let object = json!({"metadata": {"namespace": "shop", "name": "web"},
            "spec": {"clusterIP": "10.0.0.1", "ports": [{"name": "http", "port": port}]}});
        Event::Applied(Any::Service(Box::new(serde_json::from_value(object).expect("a Service"))))
    };
    for port in [80, 8080] {
        let delta = store.apply(service(port));
        assert_eq!(delta.gateways.len(), 1, "gateways follow");
        assert_eq!(rules(&mut store)["*"].0, [format!("/* web.shop.svc.cluster.local:{port}")]);
    }
}

#[test]
fn secrets_become_servers_of_the_selected_gateway() {
    let spec =
        json!({"tls": [{"hosts": ["a.com"], "secretName": "a"}, {"hosts": ["b.com"]}, {"secretName": "c"}]});
    let mut store = store("ingressService: edge", &[ingress("web", spec)]);
    let (gateways, _) = convert(&store.world());
    let gateway = serde_json::to_value(&gateways[0].spec).expect("JSON");
    assert_eq!(gateway["selector"], json!({"istio": "edge"}));
    let servers = gateway["servers"].as_array().expect("servers");
    let shown = |server: &Value| {
        (server["port"]["name"].clone(), server["hosts"].clone(), server["tls"]["credentialName"].clone())
    };
    assert_eq!(
        servers.iter().map(shown).collect::<Vec<_>>(),
        [
            (json!("https-443-ingress-web-shop-0"), json!(["a.com"]), json!("a")),
            (json!("https-443-ingress-web-shop-2"), json!(["*"]), json!("c")),
            (json!("http-80-ingress-web-shop"), json!(["*"]), Value::Null)
        ]
    );
}
