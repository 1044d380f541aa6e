//! That the world depends on the objects alone, that deltas are precise, and what the lookups answer.
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::endpoint::{Endpoint, Health};
use crate::hostname::Hostname;
use crate::network::NETWORK_LABEL;
use crate::service::{Registry, Resolution};
use crate::world::Workload;

fn service(name: &str, variant: u8) -> Object {
    let mut spec = json!({"clusterIP": format!("10.96.0.{variant}"), "selector": {"app": name},
        "ports": [{"name": "http", "port": 80, "targetPort": 8080}]});
    if variant == 1 {
        spec["ports"] = json!([{"port": 80, "targetPort": "web"}, {"name": "tcp-x", "port": 81}]);
    }
    if variant == 2 {
        spec["clusterIP"] = json!("None");
    }
    let mut object = json!({"metadata": {"namespace": "default", "name": name}, "spec": spec});
    if variant == 3 {
        // A gateway of a network.
        object["metadata"]["labels"] = json!({NETWORK_LABEL: name});
        object["spec"]["type"] = json!("LoadBalancer");
        object["status"] = json!({"loadBalancer": {"ingress": [{"ip": "7.7.7.7"}]}});
    }
    Object::Service(serde_json::from_value(object).expect("a Service"))
}

fn slice(service: &str, index: u8, pods: &[(&str, bool)]) -> Object {
    let endpoints: Vec<Value> = pods
        .iter()
        .map(|(pod, ready)| {
            json!({"addresses": [format!("10.244.0.{}", pod.len())], "conditions": {"ready": ready},
                "nodeName": "n", "targetRef": {"kind": "Pod", "name": pod}})
        })
        .collect();
    let object = json!({"addressType": "IPv4", "endpoints": endpoints, "ports": [{"name": "http", "port": 8080}],
        "metadata": {"namespace": "default", "name": format!("{service}-{index}"),
            "labels": {"kubernetes.io/service-name": service}}});
    Object::EndpointSlice(serde_json::from_value(object).expect("an EndpointSlice"))
}

fn pod(name: &str, app: &str, phase: &str) -> Object {
    let object = json!({
        "metadata": {"namespace": "default", "name": name, "labels": {"app": app, "pod-template-hash": "abc"},
            "ownerReferences": [{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "web-abc", "uid": "u", "controller": true}]},
        "spec": {"nodeName": "n", "containers": [{"name": "c", "ports": [{"name": "web", "containerPort": 8080}]}]},
        "status": {"podIP": format!("10.244.0.{}", name.len()), "phase": phase, "conditions": [{"type": "Ready", "status": "True"}]}});
    Object::Pod(serde_json::from_value(object).expect("a Pod"))
}

fn node(zone: &str) -> Object {
    let object = json!({"metadata": {"name": "n", "labels": {"topology.kubernetes.io/zone": zone}}});
    Object::Node(serde_json::from_value(object).expect("a Node"))
}

fn virtual_service(name: &str, host: &str, created: u8) -> Object {
    let object = json!({"metadata": {"namespace": "default", "name": name,
            "creationTimestamp": format!("2024-01-01T00:00:0{created}Z")},
        "spec": {"hosts": [host], "gateways": if created == 3 { json!(["gw", "mesh"]) } else { json!([]) },
            "http": [{"route": [{"destination": {"host": host}}]}]}});
    Object::VirtualService(serde_json::from_value(object).expect("a VirtualService"))
}

fn rule(namespace: &str, name: &str, host: &str, subset: &str) -> Object {
    let object = json!({"metadata": {"namespace": namespace, "name": name},
        "spec": {"host": host, "subsets": [{"name": subset, "labels": {"version": subset}}]}});
    Object::DestinationRule(serde_json::from_value(object).expect("a DestinationRule"))
}

fn entry(namespace: &str, name: &str, created: u8, spec: Value) -> Object {
    let object = json!({"metadata": {"namespace": namespace, "name": name,
        "creationTimestamp": format!("2024-01-01T00:00:0{created}Z")}, "spec": spec});
    Object::ServiceEntry(serde_json::from_value(object).expect("a ServiceEntry"))
}

/// Some entries that overlap with each other and with the Services.
fn entry_variant(namespace: &str, name: &str, variant: u8) -> Object {
    let ports = json!([{"number": 80, "name": "http", "protocol": "HTTP", "targetPort": 8080}]);
    let spec = match variant {
        0 => {
            json!({"hosts": ["x.com", A], "ports": ports, "resolution": "STATIC", "endpoints": [{"address": "1.2.3.4"}]})
        }
        1 => json!({"hosts": ["x.com"], "ports": ports, "resolution": "DNS", "exportTo": ["."]}),
        2 => {
            json!({"hosts": ["x.com", "*.y.com"], "ports": [{"number": 81, "name": "b"}], "addresses": ["10.1.0.0/16"]})
        }
        _ => {
            json!({"hosts": ["x.com", "b.default.svc.cluster.local"], "ports": ports, "resolution": "STATIC",
            "workloadSelector": {"labels": {"app": "a"}}})
        }
    };
    entry(namespace, name, variant, spec)
}

fn workload_entry(name: &str, app: &str, address: &str) -> Object {
    let object = json!({"metadata": {"namespace": "default", "name": name, "labels": {"app": app}},
        "spec": {"address": address, "weight": 3, "serviceAccount": "vm", "locality": "r/z", "labels": {"app": "z", "v": "1"}}});
    Object::WorkloadEntry(serde_json::from_value(object).expect("a WorkloadEntry"))
}

/// The control plane's, whose label says which network workloads are in.
fn namespace(network: &str) -> Object {
    let object = json!({"metadata": {"name": "istio-system", "labels": {NETWORK_LABEL: network}}});
    Object::Namespace(serde_json::from_value(object).expect("a Namespace"))
}

fn gateway(selector: &str) -> Object {
    let object = json!({"metadata": {"namespace": "default", "name": "gw"}, "spec": {"selector": {"istio": selector}}});
    Object::Gateway(serde_json::from_value(object).expect("a Gateway"))
}

fn mesh(text: &str) -> Object {
    let object = json!({"metadata": {"namespace": "istio-system", "name": "istio"}, "data": {"mesh": text}});
    Object::ConfigMap(serde_json::from_value(object).expect("a ConfigMap"))
}

fn mesh_networks(text: &str) -> Object {
    let object =
        json!({"metadata": {"namespace": "istio-system", "name": "istio"}, "data": {"meshNetworks": text}});
    Object::ConfigMap(serde_json::from_value(object).expect("a ConfigMap"))
}

fn store_of(objects: impl IntoIterator<Item = Object>) -> Store {
    let mut store = Store::new(StoreOptions::default());
    for object in objects {
        store.apply(Event::Applied(object));
    }
    store
}

/// Kind and name, to tell what replaces what.
fn identity(object: &Object) -> (u8, String) {
    let (kind, metadata) = match object {
        Object::Service(object) => (0, &object.metadata),
        Object::EndpointSlice(object) => (1, &object.metadata),
        Object::Pod(object) => (2, &object.metadata),
        Object::Namespace(object) => (3, &object.metadata),
        Object::Node(object) => (4, &object.metadata),
        Object::ConfigMap(object) => (5, &object.metadata),
        Object::Gateway(object) => (6, &object.metadata),
        Object::VirtualService(object) => (7, &object.metadata),
        Object::DestinationRule(object) => (8, &object.metadata),
        Object::Sidecar(object) => (14, &object.metadata),
        Object::ServiceEntry(object) => (9, &object.metadata),
        Object::WorkloadEntry(object) => (10, &object.metadata),
        Object::WorkloadGroup(object) => (11, &object.metadata),
        Object::Ingress(object) => (12, &object.metadata),
        Object::IngressClass(object) => (13, &object.metadata),
        Object::Secret(object) => (15, &object.metadata),
        Object::PeerAuthentication(object) => (16, &object.metadata),
        Object::AuthorizationPolicy(object) => (17, &object.metadata),
        Object::RequestAuthentication(object) => (18, &object.metadata),
    };
    (kind, ObjectName::of(metadata).to_string())
}

/// Everything in a world but its version.
fn content(world: &World) -> String {
    format!("{:#?}", World { version: 0, ..world.clone() })
}

fn objects() -> impl Strategy<Value = Object> {
    let name = prop_oneof![Just("a"), Just("b")];
    // Lengths differ: the tests' addresses come from them. Two of the same length share an address.
    let pod_name = prop_oneof![Just("p"), Just("pp"), Just("qq")];
    prop_oneof![
        (name.clone(), 0..4u8).prop_map(|(name, variant)| service(name, variant)),
        prop_oneof![Just(""), Just("n1")].prop_map(namespace),
        (name.clone(), 0..2u8, proptest::collection::vec((pod_name.clone(), any::<bool>()), 0..3))
            .prop_map(|(name, index, pods)| slice(name, index, &pods)),
        (pod_name, name.clone(), prop_oneof![Just("Running"), Just("Succeeded")])
            .prop_map(|(pod_name, app, phase)| pod(pod_name, app, phase)),
        prop_oneof![Just("z1"), Just("z2")].prop_map(node),
        (prop_oneof![Just("v"), Just("w")], name.clone(), 0..4u8)
            .prop_map(|(vs, host, created)| virtual_service(vs, host, created)),
        (prop_oneof![Just("default"), Just("istio-system")], prop_oneof![Just("r"), Just("s")], name)
            .prop_map(|(namespace, rule_name, subset)| rule(
                namespace,
                rule_name,
                "a.default.svc.cluster.local",
                subset
            )),
        prop_oneof![Just("x"), Just("y")].prop_map(gateway),
        (prop_oneof![Just("default"), Just("shop")], prop_oneof![Just("e"), Just("f")], 0..4u8)
            .prop_map(|(namespace, name, variant)| entry_variant(namespace, name, variant)),
        (prop_oneof![Just("w1"), Just("w2")], prop_oneof![Just("a"), Just("b")])
            .prop_map(|(name, app)| workload_entry(name, app, if app == "a" { "10.9.9.9" } else { "" })),
        prop_oneof![Just(""), Just("accessLogFile: /dev/stdout"), Just("defaultServiceExportTo: ['.']")]
            .prop_map(mesh),
        prop_oneof![
            Just("networks: {n2: {endpoints: [{fromCidr: 10.244.0.0/31}], gateways: [{address: 8.8.8.8, port: 1}]}}"),
            Just("networks: {n2: {endpoints: [{fromRegistry: Kubernetes}], gateways: [{registryServiceName: a.default.svc.cluster.local, port: 2}]}}"),
        ]
        .prop_map(mesh_networks),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    /// Whatever came and went, the world is the one a fresh store makes of the objects that are left, in another order.
    #[test]
    fn the_world_depends_on_the_objects_alone(events in proptest::collection::vec((objects(), proptest::bool::weighted(0.7)), 0..60)) {
        let mut store = Store::new(StoreOptions::default());
        let mut left: BTreeMap<(u8, String), Object> = BTreeMap::new();
        for (object, applied) in events {
            let before = store.world();
            let event = if applied {
                left.insert(identity(&object), object.clone());
                Event::Applied(object)
            } else {
                left.remove(&identity(&object));
                Event::Deleted(object)
            };
            let delta = store.apply(event);
            let after = store.world();
            prop_assert_eq!(before.version() != after.version(), !delta.is_empty());
            if delta.is_empty() {
                prop_assert_eq!(content(&before), content(&after));
            }
            let changed_services: BTreeSet<Hostname> = before.services_by_key.diff(&after.services_by_key).map(|item| host_of(&item)).collect();
            prop_assert_eq!(&changed_services, &delta.services);
            let changed_endpoints: BTreeSet<Hostname> = before.endpoints.diff(&after.endpoints).map(|item| host_of(&item)).collect();
            prop_assert_eq!(&changed_endpoints, &delta.endpoints);
        }
        let mut fresh = store_of(left.into_values().rev());
        prop_assert_eq!(content(&store.world()), content(&fresh.world()));
    }

    /// VirtualServices come oldest first, then by name, whatever the order in which they were seen.
    #[test]
    fn virtual_services_are_sorted(order in Just((0..6u8).collect::<Vec<_>>()).prop_shuffle()) {
        let names = ["f", "e", "d", "c", "b", "a"];
        let mut store = store_of(order.iter().map(|&index| virtual_service(names[usize::from(index)], "a", index / 3)));
        let sorted = store.world().mesh_virtual_services("default");
        let sorted: Vec<_> = sorted.iter().map(|service| service.name.name.to_string()).collect();
        prop_assert_eq!(sorted, ["d", "e", "f", "a", "b", "c"]);
    }
}

fn host_of<V>(item: &imbl::ordmap::DiffItem<'_, '_, ObjectName, V>) -> Hostname {
    use imbl::ordmap::DiffItem;
    match item {
        DiffItem::Add(key, _) | DiffItem::Remove(key, _) => key.name.clone(),
        DiffItem::Update { new: (key, _), .. } => key.name.clone(),
    }
}

const A: &str = "a.default.svc.cluster.local";

fn endpoints_of(world: &World, host: &str) -> Vec<Endpoint> {
    let service = world.service(host).expect("the service");
    world.endpoints(service).map(|endpoints| endpoints.of_port("http").to_vec()).unwrap_or_default()
}

#[test]
fn endpoints_know_their_pod_whichever_comes_first() {
    let parts = || {
        [service("a", 0), slice("a", 0, &[("p", true), ("pp", false)]), pod("p", "a", "Running"), node("z1")]
    };
    let mut forward = store_of(parts());
    let mut backward = store_of(parts().into_iter().rev());
    assert_eq!(content(&forward.world()), content(&backward.world()));
    let world = forward.world();
    let endpoints = endpoints_of(&world, A);
    assert_eq!(endpoints.len(), 2);
    assert_eq!((endpoints[0].health, endpoints[1].health), (Health::Healthy, Health::Unhealthy));
    assert_eq!(endpoints[0].labels["app"], "a");
    assert_eq!(endpoints[0].workload, "web");
    assert_eq!(endpoints[0].locality.zone, "z1");
    assert!(endpoints[1].labels.is_empty(), "its pod is not known");
}

#[test]
fn a_pods_label_change_touches_its_services_endpoints_only() {
    let mut store =
        store_of([service("a", 0), service("b", 0), slice("a", 0, &[("p", true)]), pod("p", "a", "Running")]);
    let before = store.world();
    let delta = store.apply(Event::Applied(pod("p", "c", "Running")));
    let expected = Delta {
        endpoints: [A.into()].into(),
        pods: [ObjectName::new("default", "p")].into(),
        ..Delta::default()
    };
    assert_eq!(delta, expected);
    let after = store.world();
    assert!(Arc::ptr_eq(before.service(A).expect("exists"), after.service(A).expect("exists")));
    assert!(Arc::ptr_eq(&before.index, &after.index));
}

#[test]
fn services_are_read_as_kubernetes_means_them() {
    let mut store = store_of([service("a", 1), service("b", 2)]);
    let world = store.world();
    let a = world.service(A).expect("exists");
    assert_eq!(a.resolution, Resolution::ClientSide);
    assert_eq!((a.ports[0].name.as_str(), a.ports[0].port), ("", 80));
    assert!(a.ports[0].protocol.is_sniffed());
    assert_eq!(a.ports[1].target, crate::service::TargetPort::Number(81), "the target defaults to the port");
    assert!(world.service("b.default.svc.cluster.local").is_some_and(|b| b.is_headless()));
    assert_eq!(world.resolve_service("a", "default").map(|found| &found.hostname), Some(&a.hostname));
    assert!(world.resolve_service("a", "shop").is_none());
    let alias = json!({"metadata": {"namespace": "default", "name": "x"}, "spec": {"type": "ExternalName", "externalName": "e.com"}});
    let alias = Object::Service(serde_json::from_value(alias).expect("a Service"));
    let mut store = store_of([alias]);
    let world = store.world();
    let found = world.service("x.default.svc.cluster.local").expect("exists");
    assert_eq!(found.resolution, Resolution::Alias("e.com".to_owned()));
}

#[test]
fn a_workloads_services_are_those_that_select_it() {
    let mut store = store_of([service("a", 1), service("b", 0), pod("p", "a", "Running")]);
    let workload = Workload {
        namespace: "default".into(),
        pod: Some("p".to_owned()),
        addresses: vec![],
        labels: Arc::new([("app".to_owned(), "a".to_owned())].into()),
    };
    let world = store.world();
    let targets = world.targets_of(&workload);
    let ports: Vec<_> = targets
        .iter()
        .map(|target| (&*target.service.name.name, target.port.port, target.target_port))
        .collect();
    assert_eq!(ports, [("a", 80, 8080), ("a", 81, 81)], "a named target port is looked up in the pod");
    let elsewhere = Workload { namespace: "shop".into(), ..workload };
    assert!(world.targets_of(&elsewhere).is_empty());
}

#[test]
fn destination_rules_are_looked_up_client_then_service_then_root() {
    let first = |rules: Vec<Object>| {
        let mut store = store_of(rules);
        let world = store.world();
        world
            .destination_rule(A, crate::Client { namespace: "shop", labels: None }, "default")
            .map(|rule| rule.spec.subsets[0].name.clone())
    };
    let (shop, own, root) = (
        rule("shop", "x", A, "shop"),
        rule("default", "x", "a", "own"),
        rule("istio-system", "x", "*.local", "root"),
    );
    assert_eq!(first(vec![root.clone(), own.clone(), shop]).as_deref(), Some("shop"));
    assert_eq!(first(vec![root.clone(), own]).as_deref(), Some("own"));
    assert_eq!(first(vec![root]).as_deref(), Some("root"));
    assert_eq!(first(vec![rule("elsewhere", "x", A, "no")]), None);
    let narrow = vec![
        rule("default", "x", "*.cluster.local", "wide"),
        rule("default", "y", "*.default.svc.cluster.local", "narrow"),
    ];
    assert_eq!(first(narrow).as_deref(), Some("narrow"));
}

#[test]
fn rules_for_one_host_are_merged() {
    let mut store = store_of([rule("default", "x", A, "v1"), rule("default", "y", "a", "v2")]);
    let world = store.world();
    let merged = world
        .destination_rule(A, crate::Client { namespace: "default", labels: None }, "default")
        .expect("exists");
    let subsets: Vec<_> = merged.spec.subsets.iter().map(|subset| subset.name.as_str()).collect();
    assert_eq!(subsets, ["v1", "v2"]);
    assert_eq!(&*merged.name.name, "x");
}

#[test]
fn bad_mesh_config_is_reported_and_the_last_good_one_stays() {
    let mut store = store_of([mesh("accessLogFile: /dev/stdout")]);
    let delta = store.apply(Event::Applied(mesh("connectTimeout: soon")));
    assert!(delta.is_empty());
    assert!(delta.problems[0].message.contains("connectTimeout"), "{:?}", delta.problems);
    assert_eq!(store.world().mesh().access_log_file, "/dev/stdout");
    let delta = store.apply(Event::Deleted(mesh("")));
    assert!(delta.mesh && store.world().mesh().access_log_file.is_empty());
}

#[test]
fn addresses_lead_to_live_pods() {
    let mut store = store_of([pod("pp", "a", "Running")]);
    let address = "10.244.0.2".parse().expect("an address");
    assert_eq!(store.world().pod_at(&address).map(|pod| pod.name.to_string()).as_deref(), Some("default/pp"));
    store.apply(Event::Applied(pod("pp", "a", "Succeeded")));
    assert!(store.world().pod_at(&address).is_none());
    store.apply(Event::Applied(pod("qq", "a", "Running")));
    assert_eq!(store.world().pod_at(&address).map(|pod| pod.name.to_string()).as_deref(), Some("default/qq"));
}

#[test]
fn entries_make_a_service_of_each_host() {
    let mut store = store_of([entry_variant("shop", "e", 0), entry_variant("shop", "f", 2)]);
    let world = store.world();
    let x = world.service("x.com").expect("exists");
    assert_eq!(
        (x.registry, x.resolution.clone(), x.external),
        (Registry::ServiceEntry, Resolution::ClientSide, true)
    );
    assert_eq!(x.ports.len(), 1, "an entry of another resolution adds nothing");
    assert_eq!(endpoints_of(&world, "x.com")[0].address.to_string(), "1.2.3.4");
    assert_eq!(endpoints_of(&world, "x.com")[0].port, 8080);
    let wild = world.service("*.y.com").expect("exists");
    assert!(wild.is_wildcard() && wild.keeps_destination() && !wild.is_headless());
    assert_eq!(wild.ranges[0].to_string(), "10.1.0.0/16");
    assert_eq!(wild.auto_address, None);
    assert!(x.auto_address.is_some_and(|address| address.to_string().starts_with("240.240.")));
    let delta = store.apply(Event::Deleted(entry_variant("shop", "e", 0)));
    assert_eq!(delta.services, ["x.com".into(), A.into()].into());
    assert_eq!(
        store.world().service("x.com").map(|x| x.ports[0].port),
        Some(81),
        "the younger one has it now"
    );
}

#[test]
fn a_kubernetes_service_goes_before_entries_and_takes_their_endpoints() {
    let mut store = store_of([entry_variant("default", "e", 0), entry_variant("shop", "e", 0)]);
    assert_eq!(store.world().service(A).map(|a| a.registry), Some(Registry::ServiceEntry));
    for object in [service("a", 0), slice("a", 0, &[("p", true)])] {
        store.apply(Event::Applied(object));
    }
    let world = store.world();
    let a = world.service(A).expect("exists");
    assert_eq!((a.registry, a.auto_address), (Registry::Kubernetes, None));
    let addresses: Vec<_> = endpoints_of(&world, A).iter().map(|one| one.address.to_string()).collect();
    assert_eq!(addresses, ["1.2.3.4", "10.244.0.1"], "of its own namespace's entry, not of the other's");
    assert!(Arc::ptr_eq(world.service_for(A, "shop").expect("visible"), a));
}

#[test]
fn clients_use_their_own_namespaces_entry_then_the_oldest_that_they_see() {
    let mut store =
        store_of([entry_variant("shop", "e", 1), entry_variant("b", "e", 3), entry_variant("a", "e", 3)]);
    let world = store.world();
    let namespace =
        |client: &str| world.service_for("x.com", client).map(|found| found.name.namespace.to_string());
    assert_eq!(namespace("shop").as_deref(), Some("shop"));
    assert_eq!(namespace("b").as_deref(), Some("b"));
    assert_eq!(namespace("elsewhere").as_deref(), Some("a"), "the older one is for its own namespace only");
    assert_eq!(world.visible_services("elsewhere").filter(|one| &*one.hostname == "x.com").count(), 1);
}

#[test]
fn workload_entries_are_endpoints_of_services_and_of_entries() {
    let mut store = store_of([
        service("a", 0),
        pod("p", "a", "Running"),
        entry_variant("default", "e", 3),
        workload_entry("w1", "a", "10.9.9.9"),
        workload_entry("w2", "b", "10.9.9.8"),
    ]);
    let world = store.world();
    let of_service = endpoints_of(&world, A);
    assert_eq!(of_service.len(), 1, "its pods come by slices");
    let one = &of_service[0];
    assert_eq!((one.address.to_string().as_str(), one.port, one.weight), ("10.9.9.9", 8080, 3));
    assert_eq!((one.workload.as_str(), one.service_account.as_str()), ("w1", "vm"));
    assert_eq!((one.locality.region.as_str(), one.locality.zone.as_str()), ("r", "z"));
    assert_eq!(
        (one.labels["app"].as_str(), one.labels["v"].as_str()),
        ("a", "1"),
        "the object's labels go first"
    );
    let of_entry: Vec<_> = endpoints_of(&world, "x.com").iter().map(|one| one.address.to_string()).collect();
    assert_eq!(of_entry, ["10.9.9.9", "10.244.0.1"]);
    let delta = store.apply(Event::Applied(workload_entry("w2", "a", "10.9.9.8")));
    assert_eq!(delta.services, BTreeSet::new());
    assert_eq!(delta.endpoints, [A.into(), "x.com".into(), "b.default.svc.cluster.local".into()].into());
    let delta = store.apply(Event::Applied(pod("p", "c", "Running")));
    assert_eq!(delta.endpoints, ["x.com".into(), "b.default.svc.cluster.local".into()].into());
}

#[test]
fn entries_whose_health_is_looked_after_are_endpoints_while_it_is_good() {
    let entry = |checked: &str, healthy: &str| {
        let conditions = json!([{"type": "Healthy", "status": healthy}]);
        let object = json!({"metadata": {"namespace": "default", "name": "w", "labels": {"app": "a"},
            "annotations": {"proxy.istio.io/health-checks-enabled": checked}},
            "spec": {"address": "10.9.9.9"}, "status": {"conditions": conditions}});
        Object::WorkloadEntry(serde_json::from_value(object).expect("a WorkloadEntry"))
    };
    let mut store = store_of([service("a", 0), entry("true", "Unknown")]);
    assert!(endpoints_of(&store.world(), A).is_empty(), "not before it is known to be");
    let mut count = |object: Object| {
        let delta = store.apply(Event::Applied(object));
        assert_eq!(delta.endpoints, BTreeSet::from([A.into()]));
        endpoints_of(&store.world(), A).len()
    };
    assert_eq!(count(entry("true", "True")), 1);
    assert_eq!(count(entry("true", "False")), 0);
    assert_eq!(count(entry("false", "False")), 1, "it does not count");
}

#[test]
fn workloads_that_are_no_pods_are_known_by_their_address() {
    let mut store = store_of([service("a", 0), workload_entry("w1", "a", "10.9.9.9")]);
    let world = store.world();
    let workload = |address: &str| Workload {
        namespace: "default".into(),
        pod: Some("host".to_owned()),
        addresses: vec![address.parse().unwrap()],
        labels: Arc::default(),
    };
    let entry = world.workload_entry_of(&workload("10.9.9.9")).expect("its entry");
    assert_eq!((entry.workload_labels()["app"].as_str(), entry.locality().zone.as_str()), ("a", "z"));
    assert!(world.workload_entry_of(&workload("10.9.9.8")).is_none());
    let named = endpoints_of(&world, A)[0].labels["security.istio.io/tlsMode"].clone();
    assert_eq!(named, "istio", "it has a service account");
}

#[test]
fn names_without_endpoints_are_looked_up_themselves() {
    let mut store = store_of([entry_variant("default", "e", 1)]);
    let world = store.world();
    let found = endpoints_of(&world, "x.com");
    assert_eq!(
        (found[0].address.clone(), found[0].port),
        (crate::endpoint::Address::Dns("x.com".into()), 8080)
    );
}

#[test]
fn a_label_keeps_an_entry_without_an_automatic_address() {
    let mut object = entry_variant("default", "e", 1);
    if let Object::ServiceEntry(entry) = &mut object {
        let label = ("networking.istio.io/enable-autoallocate-ip".to_owned(), "false".to_owned());
        entry.metadata.labels = Some([label].into());
    }
    let mut store = store_of([object]);
    assert_eq!(store.world().service("x.com").map(|x| x.auto_address), Some(None));
    let delta = store.apply(Event::Applied(entry_variant("default", "e", 1)));
    assert_eq!(delta.services, ["x.com".into()].into());
    assert!(store.world().service("x.com").is_some_and(|x| x.auto_address.is_some()));
}
