//! Which changes leave a route without its destination.
mod support;

use lateen_model::{Delta, Event, Object};
use lateen_translate::newly_missing;
use serde_json::json;
use support::Mesh;

/// What the changes, together, leave without destination: `host subset`.
fn missing(mesh: &mut Mesh, changes: impl FnOnce(&mut Mesh) -> Vec<Delta>) -> Vec<String> {
    let before = mesh.world();
    let mut delta = Delta::default();
    changes(mesh).into_iter().for_each(|change| delta.merge(change));
    let missing = newly_missing(&before, &mesh.world(), &delta);
    missing.into_iter().map(|one| format!("{}: {} {}", one.rule, one.host, one.subset)).collect()
}

fn subsets(names: &[&str]) -> String {
    let subsets: Vec<_> = names.iter().map(|name| json!({"name": name})).collect();
    format!(
        "kind: DestinationRule\nmetadata: {{ name: r }}\nspec: {{ host: customers, subsets: {} }}",
        json!(subsets)
    )
}

fn route(kind: &str, host: &str, subset: &str) -> String {
    format!(
        "kind: VirtualService\nmetadata: {{ name: v }}\nspec: {{ hosts: [customers], {kind}: [{{ route: [{{ destination: {{ host: {host}, subset: {subset:?} }} }}] }}] }}"
    )
}

fn mesh() -> Mesh {
    let mut mesh = Mesh::empty();
    let ports = json!([{"name": "http", "port": 80}]);
    mesh.service("default", "customers", "10.96.0.30", ports, json!({}));
    mesh.config(&subsets(&["v1"]));
    mesh.config(&route("http", "customers", "v1"));
    mesh
}

#[test]
fn subsets_and_the_routes_to_them_belong_together() {
    for kind in ["http", "tcp"] {
        let mut mesh = mesh();
        mesh.config(&route(kind, "customers", "v1"));
        let new_route = route(kind, "customers", "v2");
        assert_eq!(
            missing(&mut mesh, |mesh| vec![mesh.config(&new_route)]),
            ["default/v: customers v2"],
            "{kind}"
        );
        // It was missing before: nothing new to wait for.
        assert!(missing(&mut mesh, |mesh| vec![mesh.config(&subsets(&["v3"]))]).is_empty());
        assert!(missing(&mut mesh, |mesh| vec![mesh.config(&new_route)]).is_empty());
        let both = |mesh: &mut Mesh| {
            vec![mesh.config(&subsets(&["v4"])), mesh.config(&route(kind, "customers", "v4"))]
        };
        assert!(missing(&mut mesh, both).is_empty());
        assert_eq!(
            missing(&mut mesh, |mesh| vec![mesh.config(&subsets(&["v3"]))]),
            ["default/v: customers v4"],
            "{kind}"
        );
    }
}

#[test]
fn a_service_that_is_routed_to_is_missed() {
    let mut mesh = mesh();
    mesh.config(&route("http", "customers.default.svc.cluster.local", ""));
    let gone = |mesh: &mut Mesh| {
        let service = json!({"metadata": {"namespace": "default", "name": "customers"}});
        let service = Object::Service(serde_json::from_value(service).expect("a Service"));
        vec![mesh.apply(Event::Deleted(service))]
    };
    assert_eq!(missing(&mut mesh, gone), ["default/v: customers.default.svc.cluster.local "]);
}

#[test]
fn other_changes_of_the_same_objects_wait_for_nothing() {
    let mut mesh = mesh();
    assert!(missing(&mut mesh, |mesh| vec![mesh.config(&subsets(&["v1", "v2"]))]).is_empty());
    assert!(
        missing(&mut mesh, |mesh| vec![mesh.config(&subsets(&["v1"]))]).is_empty(),
        "nobody is sent to v2"
    );
    let endpoints = |mesh: &mut Mesh| {
        vec![mesh.endpoints("default", "customers", "http", 80, &[("a", "10.0.0.1", true)])]
    };
    assert!(missing(&mut mesh, endpoints).is_empty());
    // A rule that is exported to nobody here is not there for the route.
    let hidden = subsets(&["v1"]).replace("host:", "exportTo: [other], host:");
    assert_eq!(missing(&mut mesh, |mesh| vec![mesh.config(&hidden)]), ["default/v: customers v1"]);
}
