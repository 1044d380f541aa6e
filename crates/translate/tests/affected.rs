//! That what is said to be unaffected by a change is, and that unchanged resources keep their versions.
mod support;

use std::collections::BTreeMap;
use std::sync::Arc;

use lateen_model::Delta;
use lateen_translate::{
    Affected, Extent, Proxy, ResourceType, Scope, affected, generate, generate_all, generate_outward,
};
use serde_json::json;
use support::Mesh;

const WEB_FRONTEND: &str = "sidecar~10.0.0.1~web-frontend-1.default~default.svc.cluster.local";
const GATEWAY: &str = "router~10.244.0.9~istio-ingressgateway-1.istio-system~istio-system.svc.cluster.local";

type Versions = BTreeMap<(ResourceType, String), String>;

fn versions(mesh: &Mesh, scope: &Scope, affected: &Affected) -> Versions {
    let mut versions = BTreeMap::new();
    for kind in ResourceType::ALL {
        for resource in generate(scope, &mesh.cache, kind, affected.of(kind)) {
            versions.insert((kind, resource.name.to_string()), resource.version.to_string());
        }
    }
    versions
}

/// Applies a change and checks that what `affected` names, applied to the old state, gives the new state. Returns it.
fn check(change: impl FnOnce(&mut Mesh) -> Delta) -> (Affected, Affected) {
    let mut mesh = Mesh::course();
    let views: [fn(&mut Mesh) -> Scope; 2] =
        [|mesh| mesh.sidecar("default", "web-frontend-1"), Mesh::gateway];
    let proxies = [WEB_FRONTEND, GATEWAY].map(|node| Proxy::parse(node, &json!({})).expect("a node id"));
    let before = views.map(|view| {
        let scope = view(&mut mesh);
        (versions(&mesh, &scope, &Affected::all()), scope)
    });
    let delta = change(&mut mesh);
    let found = [0, 1].map(|index| {
        let scope = views[index](&mut mesh);
        let (old, earlier) = &before[index];
        let may_change = proxies[index].class_may_change(&delta, &scope.world);
        assert!(may_change || scope.class == earlier.class, "{delta:?}");
        let named =
            if scope.class == earlier.class { affected(&delta, earlier, &scope) } else { Affected::all() };
        let mut patched = old.clone();
        patched.retain(|(kind, name), _| !named.of(*kind).covers(name));
        patched.extend(versions(&mesh, &scope, &named));
        assert_eq!(patched, versions(&mesh, &scope, &Affected::all()), "{delta:?}");
        named
    });
    found.into()
}

fn only(host: &str) -> Extent {
    Extent::Services([host.into()].into())
}

#[test]
fn endpoints_touch_endpoints_of_their_service_only() {
    let (sidecar, _) = check(|mesh| {
        mesh.endpoints("default", "customers", "", 3000, &[("customers-v1-1", "10.244.0.31", true)])
    });
    assert_eq!(sidecar.endpoints, only("customers.default.svc.cluster.local"));
    assert!(sidecar.clusters.is_none() && sidecar.listeners.is_none() && sidecar.routes.is_none());
}

#[test]
fn endpoints_of_headless_services_touch_listeners() {
    let mut mesh = Mesh::course();
    mesh.service("default", "db", "None", json!([{"name": "tcp", "port": 5432}]), json!({"app": "db"}));
    let earlier = mesh.sidecar("default", "web-frontend-1");
    let before = versions(&mesh, &earlier, &Affected::all());
    let delta = mesh.endpoints("default", "db", "tcp", 5432, &[("db-0", "10.244.0.50", true)]);
    let scope = mesh.sidecar("default", "web-frontend-1");
    let named = affected(&delta, &earlier, &scope);
    assert_eq!(named.listeners, Extent::All);
    let mut patched = before;
    patched.retain(|(kind, name), _| !named.of(*kind).covers(name));
    patched.extend(versions(&mesh, &scope, &named));
    assert_eq!(patched, versions(&mesh, &scope, &Affected::all()));
    let gateway = mesh.gateway();
    assert!(affected(&delta, &gateway, &gateway).listeners.is_none(), "gateways do not listen for services");
}

#[test]
fn endpoints_that_callers_choose_touch_clusters_by_what_they_take() {
    let mut mesh = Mesh::course();
    mesh.service("default", "db", "None", json!([{"name": "tcp", "port": 5432}]), json!({"app": "db"}));
    let cluster = "outbound|5432||db.default.svc.cluster.local";
    let takes = |mesh: &mut Mesh, change: &dyn Fn(&mut Mesh) -> lateen_model::Delta| {
        let earlier = mesh.sidecar("default", "web-frontend-1");
        let before = versions(mesh, &earlier, &Affected::all());
        let delta = change(mesh);
        let scope = mesh.sidecar("default", "web-frontend-1");
        let named = affected(&delta, &earlier, &scope);
        let mut patched = before;
        patched.retain(|(kind, name), _| !named.of(*kind).covers(name));
        patched.extend(versions(mesh, &scope, &named));
        // What the workload's own ports accept comes with its class.
        let mut whole = versions(mesh, &scope, &Affected::all());
        for versions in [&mut patched, &mut whole] {
            versions.retain(|(kind, _), _| *kind == ResourceType::Cluster);
        }
        assert_eq!(patched, whole);
        let resources = mesh.resources(&scope);
        resources.get(ResourceType::Cluster, cluster)["transport_socket"].is_object()
    };
    let pod = |mesh: &mut Mesh, name: &str, ip: &str, mode: &str| {
        mesh.pod("default", name, ip, json!({"app": "db", "security.istio.io/tlsMode": mode}))
    };
    let both = [("db-0", "10.244.0.50", true), ("db-1", "10.244.0.51", true)];
    pod(&mut mesh, "db-0", "10.244.0.50", "istio");
    assert!(!takes(&mut mesh, &|mesh| mesh.endpoints("default", "db", "tcp", 5432, &[])), "there are none");
    assert!(takes(&mut mesh, &|mesh| mesh.endpoints("default", "db", "tcp", 5432, &both[..1])));
    pod(&mut mesh, "db-1", "10.244.0.51", "disabled");
    assert!(
        !takes(&mut mesh, &|mesh| mesh.endpoints("default", "db", "tcp", 5432, &both)),
        "one without a proxy"
    );
    assert!(takes(&mut mesh, &|mesh| mesh.endpoints("default", "db", "tcp", 5432, &both[..1])));
    assert!(!takes(&mut mesh, &|mesh| {
        mesh.config("{kind: PeerAuthentication, metadata: {name: default, namespace: default}, spec: {mtls: {mode: DISABLE}}}")
    }));
    assert!(takes(&mut mesh, &|mesh| {
        mesh.config("{kind: PeerAuthentication, metadata: {name: default, namespace: default}, spec: {mtls: {mode: STRICT}}}")
    }));
    assert!(!takes(&mut mesh, &|mesh| {
        mesh.config("{kind: DestinationRule, metadata: {name: db}, spec: {host: db, trafficPolicy: {tls: {mode: DISABLE}}}}")
    }));
}

#[test]
fn virtual_services_touch_routes_and_listeners() {
    let (sidecar, gateway) = check(|mesh| mesh.course_file("lab5/customers-50-50.yaml"));
    assert!(sidecar.clusters.is_none() && sidecar.endpoints.is_none());
    assert_eq!(sidecar.routes, Extent::All);
    assert!(gateway.is_none(), "it is bound to the sidecars only");
}

#[test]
fn destination_rules_touch_clusters_and_endpoints_of_their_host() {
    let (sidecar, _) = check(|mesh| {
        mesh.config("{kind: DestinationRule, metadata: {name: customers}, spec: {host: customers, subsets: [{name: v3, labels: {version: v3}}]}}")
    });
    let host = only("customers.default.svc.cluster.local");
    assert_eq!((sidecar.clusters, sidecar.endpoints), (host.clone(), host));
    assert_eq!(
        (sidecar.routes, sidecar.listeners),
        (Extent::All, Extent::All),
        "hashes and time-outs are there"
    );
    let (wildcard, _) = check(|mesh| {
        mesh.config("{kind: DestinationRule, metadata: {name: all}, spec: {host: '*.default.svc.cluster.local', trafficPolicy: {loadBalancer: {simple: RANDOM}}}}")
    });
    assert!(matches!(wildcard.clusters, Extent::Services(hosts) if hosts.len() == 3));
}

#[test]
fn services_gateways_pods_and_mesh_config_are_covered() {
    check(|mesh| {
        mesh.service(
            "default",
            "new",
            "10.96.0.50",
            json!([{"name": "http", "port": 81}]),
            json!({"app": "customers"}),
        )
    });
    check(|mesh| {
        mesh.service(
            "default",
            "customers",
            "10.96.0.30",
            json!([{"name": "http", "port": 8000, "targetPort": 3000}]),
            json!({"app": "customers"}),
        )
    });
    let (sidecar, _) = check(|mesh| mesh.course_file("lab3/istio-gateway.yaml"));
    assert!(sidecar.is_none(), "Gateways are no business of sidecars");
    check(|mesh| mesh.pod("default", "web-frontend-1", "10.244.0.20", json!({"app": "other"})));
    check(|mesh| {
        mesh.pod("default", "customers-v1-1", "10.244.0.31", json!({"app": "customers", "version": "v2"}))
    });
    let byhand = json!([{"name": "http", "port": 82}]);
    check(|mesh| {
        let mut delta = mesh.service("default", "by-hand", "10.96.0.60", byhand, json!({}));
        delta.merge(mesh.endpoints(
            "default",
            "by-hand",
            "http",
            7070,
            &[("web-frontend-1", "10.0.0.1", true)],
        ));
        delta
    });
    check(|mesh| {
        mesh.service_of(json!({"metadata": {"namespace": "default", "name": "clients"},
            "spec": {"type": "ExternalName", "externalName": "customers.default.svc.cluster.local"}}))
    });
    check(|mesh| mesh.mesh_config("{accessLogFile: /dev/stdout, connectTimeout: 1s}"));
}

#[test]
fn an_object_that_does_not_matter_changes_nothing() {
    let mut mesh = Mesh::course();
    let delta = mesh.course_file("lab5/customers-vs.yaml");
    assert!(delta.is_empty(), "{delta:?}");
    let scope = mesh.sidecar("default", "web-frontend-1");
    let first = versions(&mesh, &scope, &Affected::all());
    let fresh = Mesh::course();
    assert_eq!(versions(&fresh, &scope, &Affected::all()), first, "another process gives the same versions");
}

#[test]
fn proxies_of_one_class_share_what_is_generated() {
    let mut mesh = Mesh::course();
    mesh.pod("default", "web-frontend-2", "10.244.0.21", json!({"app": "web-frontend", "version": "v1"}));
    let first = mesh.sidecar("default", "web-frontend-1");
    let second = mesh.sidecar("default", "web-frontend-2");
    assert_eq!(first.class, second.class);
    let held = generate_all(&first, &mesh.cache);
    let generated = mesh.cache.made();
    versions(&mesh, &second, &Affected::all());
    assert_eq!(mesh.cache.made(), generated);
    let gateway = mesh.gateway();
    let clusters = generate(&gateway, &mesh.cache, ResourceType::Cluster, &Extent::All);
    assert!(
        clusters.iter().filter(|cluster| held.iter().any(|known| Arc::ptr_eq(known, cluster))).count() > 3,
        "gateways share the services' clusters with sidecars"
    );
}

#[test]
fn a_virtual_service_concerns_only_those_who_see_it() {
    let (sidecar, gateway) = check(|mesh| {
        mesh.config("{kind: VirtualService, metadata: {name: own, namespace: shop}, spec: {hosts: [own], exportTo: ['.'], http: [{route: [{destination: {host: own}}]}]}}")
    });
    assert!(sidecar.is_none() && gateway.is_none());
    // One that was seen and is not any more concerns those who saw it.
    let yaml = |export: &str| {
        format!(
            "{{kind: VirtualService, metadata: {{name: own, namespace: shop}}, spec: {{hosts: [customers.default.svc.cluster.local], exportTo: ['{export}'], http: [{{route: [{{destination: {{host: customers.default.svc.cluster.local}}}}], timeout: 7s}}]}}}}"
        )
    };
    let mut mesh = Mesh::course();
    mesh.config(&yaml("*"));
    let earlier = mesh.sidecar("default", "web-frontend-1");
    let delta = mesh.config(&yaml("."));
    let scope = mesh.sidecar("default", "web-frontend-1");
    assert_eq!(affected(&delta, &earlier, &scope).routes, Extent::All);
}

#[test]
fn a_change_of_one_host_makes_one_virtual_host() {
    let mut mesh = Mesh::course();
    for index in 0..50 {
        let (name, ip) = (format!("s{index}"), format!("10.96.1.{index}"));
        mesh.service("shop", &name, &ip, json!([{"name": "http", "port": 80}]), json!({}));
    }
    let routes = |mesh: &mut Mesh, namespace: &str| {
        let scope = mesh.sidecar(namespace, "a");
        generate(&scope, &mesh.cache, ResourceType::Route, &Extent::All)
    };
    let _held = (routes(&mut mesh, "default"), routes(&mut mesh, "other"), routes(&mut mesh, "another"));
    let before = mesh.cache.made();
    mesh.config("{kind: VirtualService, metadata: {name: s7, namespace: shop}, spec: {hosts: [s7], http: [{route: [{destination: {host: s8}}]}]}}");
    let [_default, other, another] = ["default", "other", "another"].map(|name| routes(&mut mesh, name));
    // The virtual host, once for all namespaces but its own, and the route configurations around it.
    assert_eq!(mesh.cache.made() - before, 1 + 2);
    assert!(Arc::ptr_eq(&other[0], &another[0]), "what is equal is shared between namespaces");
}

#[test]
fn sidecars_that_no_rule_tells_apart_reach_the_mesh_alike() {
    let mut mesh = Mesh::course();
    mesh.pod("default", "a", "10.244.0.61", json!({"app": "a", "tier": "one"}));
    mesh.pod("default", "b", "10.244.0.62", json!({"app": "b", "tier": "one"}));
    let outward = |mesh: &mut Mesh, pod: &str| {
        let scope = mesh.sidecar("default", pod);
        scope.class.outward(&scope.world)
    };
    assert_eq!(outward(&mut mesh, "a"), outward(&mut mesh, "b"));
    mesh.config("{kind: VirtualService, metadata: {name: x}, spec: {hosts: [customers], http: [{match: [{sourceLabels: {app: a}}], route: [{destination: {host: customers}}]}]}}");
    let (a, b) = (outward(&mut mesh, "a"), outward(&mut mesh, "b"));
    assert_ne!(a, b);
    assert_eq!(a.labels.len(), 1, "only what rules ask for");
    // And what is generated from it is what the class itself gets.
    let scope = mesh.sidecar("default", "a");
    let alike = Scope::new(scope.world.clone(), a);
    for kind in ResourceType::ALL {
        assert_eq!(
            generate_outward(&scope, &mesh.cache, kind, &Extent::All),
            generate_outward(&alike, &mesh.cache, kind, &Extent::All)
        );
    }
}
