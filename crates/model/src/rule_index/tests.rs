use lateen_api::Object;
use serde_json::{Value, json};

use super::*;
use crate::{Event, Object as Any, Store, StoreOptions, World};

const HOST: &str = "reviews.shop.svc.cluster.local";

/// A world of these rules, `namespace/name`, in the order of their age.
fn world(rules: &[(&str, Value)]) -> Arc<World> {
    let mut store = Store::new(StoreOptions::default());
    for (age, (name, spec)) in rules.iter().enumerate() {
        let (namespace, name) = name.split_once('/').expect("namespace/name");
        let mut object = Object::new(namespace, name, serde_json::from_value(spec.clone()).expect("a spec"));
        let created = json!(format!("2024-01-{:02}T00:00:00Z", age + 1));
        object.metadata.creation_timestamp = Some(serde_json::from_value(created).expect("a time"));
        store.apply(Event::Applied(Any::DestinationRule(Box::new(object))));
    }
    store.world()
}

/// Name and subsets of the rule that a client uses for `reviews` of namespace `shop`.
fn used(world: &World, namespace: &str, labels: Value) -> Option<(String, Vec<String>)> {
    let labels = serde_json::from_value(labels).expect("labels");
    let rule = world.destination_rule(HOST, Client { namespace, labels: Some(&labels) }, "shop")?;
    let subsets = rule.spec.subsets.iter().map(|subset| subset.name.clone()).collect();
    Some((rule.name.to_string(), subsets))
}

fn name(world: &World, namespace: &str) -> String {
    used(world, namespace, json!({})).map_or_else(|| "none".to_owned(), |(name, _)| name)
}

fn rule(host: &str) -> Value {
    json!({ "host": host })
}

#[test]
fn the_clients_namespace_goes_before_the_services_and_the_roots() {
    let all = [
        ("istio-system/root", rule("*.svc.cluster.local")),
        ("shop/service", rule("reviews")),
        ("client/client", rule("*.shop.svc.cluster.local")),
    ];
    assert_eq!(name(&world(&all), "client"), "client/client", "even by a wildcard");
    assert_eq!(name(&world(&all), "other"), "shop/service");
    assert_eq!(name(&world(&all), "istio-system"), "shop/service", "root rules are defaults, there too");
    assert_eq!(name(&world(&all[..1]), "client"), "istio-system/root");
    assert_eq!(name(&world(&[]), "client"), "none");
    let private = ("istio-system/own", json!({"host": HOST, "exportTo": ["."]}));
    let world = world(&[all[1].clone(), private]);
    assert_eq!(name(&world, "istio-system"), "istio-system/own", "unless nobody else sees them");
    assert_eq!(name(&world, "client"), "shop/service");
}

#[test]
fn exact_hosts_go_before_wildcards_and_long_ones_before_short_ones() {
    let all = [
        ("shop/all", rule("*")),
        ("shop/long", rule("*.shop.svc.cluster.local")),
        ("shop/short", rule("*.cluster.local")),
        ("shop/exact", rule(HOST)),
    ];
    assert_eq!(name(&world(&all), "client"), "shop/exact");
    assert_eq!(name(&world(&all[..3]), "client"), "shop/long");
    assert_eq!(name(&world(&all[..1]), "client"), "shop/all");
}

#[test]
fn rules_are_seen_where_they_are_exported_to() {
    let exported = |to: Value| world(&[("shop/a", json!({"host": HOST, "exportTo": to}))]);
    for (to, seen) in [
        (json!([]), ["shop/a", "shop/a"]),
        (json!(["*"]), ["shop/a", "shop/a"]),
        (json!(["."]), ["shop/a", "none"]),
        (json!(["client"]), ["none", "shop/a"]),
        (json!(["shop", "client"]), ["shop/a", "shop/a"]),
    ] {
        let world = exported(to.clone());
        assert_eq!([name(&world, "shop"), name(&world, "client")], seen, "{to}");
    }
}

#[test]
fn rules_of_one_host_are_merged_and_the_oldest_policy_is_in_force() {
    let subset = |name: &str, version: &str| json!({"name": name, "labels": {"version": version}});
    let balancer = |simple: &str| json!({"loadBalancer": {"simple": simple}});
    let world = world(&[
        ("shop/z-old", json!({"host": "reviews", "subsets": [subset("v1", "old")]})),
        ("shop/hidden", json!({"host": HOST, "exportTo": ["elsewhere"], "subsets": [subset("v0", "x")]})),
        (
            "shop/new",
            json!({"host": HOST, "subsets": [subset("v1", "new"), subset("v2", "2")], "trafficPolicy": balancer("RANDOM")}),
        ),
        ("shop/newest", json!({"host": HOST, "trafficPolicy": balancer("ROUND_ROBIN")})),
    ]);
    let client = Client { namespace: "client", labels: None };
    let found = world.destination_rule(HOST, client, "shop").expect("a rule");
    assert_eq!(&*found.name.name, "z-old");
    let versions: Vec<_> =
        found.spec.subsets.iter().map(|subset| subset.labels["version"].as_str()).collect();
    assert_eq!(versions, ["old", "2"], "the first definition of a subset counts; nobody sees what is hidden");
    let policy = serde_json::to_value(&found.spec.traffic_policy).expect("JSON");
    assert_eq!(policy["loadBalancer"]["simple"], "RANDOM", "the first that there is");
    let newest = world.destination_rules().find(|rule| &*rule.name.name == "newest").expect("exists");
    let older: Vec<_> = world.merged_before(newest).iter().map(|rule| rule.name.name.to_string()).collect();
    assert_eq!(older, ["z-old", "hidden", "new"], "somebody sees both");
}

#[test]
fn rules_with_a_selector_are_for_selected_clients_of_their_namespace() {
    let subset = |name: &str| json!([{"name": name, "labels": {"v": name}}]);
    let selecting = |app: &str, name: &str| json!({"host": HOST, "subsets": subset(name), "workloadSelector": {"matchLabels": {"app": app}}});
    let world = world(&[
        ("client/general", json!({"host": HOST, "subsets": subset("general")})),
        ("client/web", selecting("web", "web")),
        ("client/web-too", selecting("web", "too")),
        ("shop/theirs", selecting("web", "theirs")),
        ("shop/service", json!({"host": HOST, "subsets": subset("service")})),
    ]);
    let found = |namespace: &str, app: &str| used(&world, namespace, json!({"app": app, "x": "y"}));
    let rule = |name: &str, subsets: &[&str]| {
        Some((name.to_owned(), subsets.iter().map(|&subset| subset.to_owned()).collect()))
    };
    assert_eq!(found("client", "web"), rule("client/web", &["web", "too", "general"]));
    assert_eq!(found("client", "api"), rule("client/general", &["general"]));
    assert_eq!(found("other", "web"), rule("shop/service", &["service"]), "not across namespaces");
    assert_eq!(found("shop", "web"), rule("shop/theirs", &["theirs", "service"]));
    assert!(world.has_subset(&service(), "client", "too") && !world.has_subset(&service(), "other", "too"));
}

fn service() -> crate::Service {
    let object =
        json!({"metadata": {"namespace": "shop", "name": "reviews"}, "spec": {"clusterIP": "10.0.0.1"}});
    crate::Service::new(&serde_json::from_value(object).expect("a Service"), "cluster.local", &[])
}
