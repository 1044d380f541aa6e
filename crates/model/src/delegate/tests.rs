use lateen_api::Object;
use serde_json::{Value, json};

use super::*;
use crate::{Event, Object as Any, Store, StoreOptions};

fn store(services: &[(&str, Value)]) -> Store {
    let mut store = Store::new(StoreOptions::default());
    for (name, spec) in services {
        let (namespace, name) = name.split_once('/').expect("namespace/name");
        let spec = serde_json::from_value(spec.clone()).expect("a spec");
        let object = Object::new(namespace, name, spec);
        store.apply(Event::Applied(Any::VirtualService(Box::new(object))));
    }
    store
}

/// The rules of `shop/root` after delegation, as JSON, and what was left out.
fn expanded(root: Value, others: &[(&str, Value)]) -> (Vec<Value>, Vec<DelegateReason>) {
    let root = ("shop/root", json!({"hosts": ["shop.example.com"], "gateways": ["edge"], "http": root}));
    let services: Vec<_> = std::iter::once(root).chain(others.iter().cloned()).collect();
    let world = store(&services).world();
    let root = world.virtual_services.get(&ObjectName::new("shop", "root")).expect("the root");
    let (merged, problems) = expand(root, &world).expect("it delegates");
    let rules = merged.spec.http.iter().map(|rule| serde_json::to_value(rule).expect("JSON"));
    (rules.collect(), problems.into_iter().map(|problem| problem.reason).collect())
}

fn delegate_to(name: &str, namespace: &str) -> Value {
    json!({"name": name, "namespace": namespace})
}

#[test]
fn details_come_from_the_delegate_and_the_rest_from_the_root() {
    let root = json!([
        {"name": "r", "match": [{"name": "p", "uri": {"prefix": "/reviews"}, "headers": {"x-a": {"exact": "1"}}}],
         "delegate": delegate_to("reviews", "team"), "timeout": "3s", "retries": {"attempts": 7},
         "headers": {"request": {"set": {"x-root": "1"}}}},
        {"route": [{"destination": {"host": "rest"}}]}]);
    let details = json!({"http": [
        {"name": "d", "match": [{"uri": {"prefix": "/reviews/v2"}, "headers": {"x-b": {"prefix": "2"}}}, {"name": "q", "port": 80}],
         "route": [{"destination": {"host": "reviews", "subset": "v2"}}], "retries": {"attempts": 1}},
        {"route": [{"destination": {"host": "reviews.other"}}], "mirror": {"host": "copy"}}]});
    let (rules, problems) = expanded(root, &[("team/reviews", details)]);
    assert_eq!(problems, []);
    assert_eq!(rules.len(), 3);
    let first = &rules[0];
    assert_eq!(
        first["match"],
        json!([
            {"name": "p", "uri": {"prefix": "/reviews/v2"}, "headers": {"x-a": {"exact": "1"}, "x-b": {"prefix": "2"}}},
            {"name": "p-q", "uri": {"prefix": "/reviews"}, "headers": {"x-a": {"exact": "1"}}, "port": 80}])
    );
    assert_eq!((&first["name"], &first["timeout"]), (&json!("r-d"), &json!("3s")));
    assert_eq!(first["retries"]["attempts"], 1, "the delegate's own");
    assert_eq!(first["headers"]["request"]["set"]["x-root"], "1");
    let host = |rule: &Value| rule["route"][0]["destination"]["host"].clone();
    assert_eq!(host(first), "reviews.team.svc.cluster.local", "short names are of the delegate's namespace");
    assert_eq!(rules[1]["mirror"]["host"], "copy.team.svc.cluster.local");
    assert_eq!(rules[1]["match"][0]["uri"], json!({"prefix": "/reviews"}));
    assert_eq!(host(&rules[2]), "rest", "what does not delegate stays");
    assert!(rules.iter().all(|rule| rule.get("delegate").is_none()));
}

#[test]
fn what_cannot_be_delegated_to_is_left_out_and_said() {
    let route = json!([{"route": [{"destination": {"host": "a"}}]}]);
    let others = [
        ("shop/hosts", json!({"hosts": ["x"], "http": route})),
        ("team/private", json!({"exportTo": ["."], "http": route})),
        ("team/shown", json!({"exportTo": ["shop"], "http": route})),
        (
            "shop/circle",
            json!({"http": [{"delegate": {"name": "circle"}}, {"route": [{"destination": {"host": "b"}}]}]}),
        ),
    ];
    let rule = |name: &str, namespace: &str| json!({"delegate": delegate_to(name, namespace)});
    let root = json!([
        rule("missing", ""), rule("hosts", ""), rule("private", "team"), rule("shown", "team"), rule("circle", ""),
        {"redirect": {"uri": "/last"}}]);
    let (rules, problems) = expanded(root, &others);
    assert_eq!(
        problems,
        [
            DelegateReason::NotFound,
            DelegateReason::HasHosts,
            DelegateReason::NotExported,
            DelegateReason::Delegates(0)
        ]
    );
    let hosts: Vec<_> = rules.iter().map(|rule| rule["route"][0]["destination"]["host"].clone()).collect();
    assert_eq!(hosts, [json!("a.team.svc.cluster.local"), json!("b.shop.svc.cluster.local"), Value::Null]);
}

/// Root's condition, delegate's condition, whether the delegate's rule is left out.
#[test]
fn conditions_conflict_as_istiod_says() {
    let cases = [
        (json!({"uri": {"prefix": "/a"}}), json!({"uri": {"prefix": "/a/b"}}), false),
        (json!({"uri": {"prefix": "/a/b"}}), json!({"uri": {"prefix": "/a"}}), true),
        (json!({"uri": {"prefix": "/a"}}), json!({"uri": {"exact": "/a/b"}}), false),
        (json!({"uri": {"exact": "/a"}}), json!({"uri": {"prefix": "/a"}}), true),
        (json!({"uri": {"exact": "/a"}}), json!({"uri": {"exact": "/a"}}), false),
        (json!({"uri": {"exact": "/a"}}), json!({"uri": {"exact": "/b"}}), true),
        (json!({"uri": {"regex": "/a"}}), json!({"uri": {"exact": "/a"}}), true),
        (json!({"uri": {"prefix": "/a"}}), json!({"uri": {"regex": "/a"}}), true),
        (json!({"uri": {"regex": "/a"}}), json!({"method": {"exact": "GET"}}), false),
        (json!({"headers": {"x": {"exact": "1"}}}), json!({"headers": {"x": {"exact": "2"}}}), true),
        (json!({"headers": {"x": {"exact": "1"}}}), json!({"headers": {"y": {"exact": "2"}}}), false),
        (
            json!({"withoutHeaders": {"x": {"exact": "1"}}}),
            json!({"withoutHeaders": {"x": {"exact": "2"}}}),
            true,
        ),
        (json!({"queryParams": {"x": {"exact": "1"}}}), json!({"queryParams": {"x": {"exact": "1"}}}), false),
        (json!({"ignoreUriCase": true}), json!({"uri": {"exact": "/a"}}), true),
        (json!({"port": 80}), json!({"port": 81}), true),
        (json!({"port": 80}), json!({"uri": {"exact": "/a"}}), false),
        (json!({"sourceNamespace": "a"}), json!({"uri": {"exact": "/a"}}), true),
        (json!({"uri": {"exact": "/a"}}), json!({"sourceNamespace": "a"}), false),
        (json!({"sourceLabels": {"app": "a"}}), json!({"sourceLabels": {"app": "b"}}), true),
        (json!({"sourceLabels": {"app": "a"}}), json!({"sourceLabels": {"x": "b"}}), false),
        (json!({"gateways": ["edge", "mesh"]}), json!({"gateways": ["shop/edge"]}), false),
        (json!({"gateways": ["mesh"]}), json!({"gateways": ["shop/edge"]}), true),
    ];
    for (root, leaf, conflict) in cases {
        let rule = json!([{"match": [root], "delegate": {"name": "d"}}]);
        let details = json!({"http": [{"match": [leaf], "route": [{"destination": {"host": "a"}}]}]});
        let (rules, problems) = expanded(rule, &[("shop/d", details)]);
        assert_eq!(problems.len(), usize::from(conflict), "{root} {leaf}");
        assert_eq!(rules.len(), usize::from(!conflict), "{root} {leaf}");
    }
}
