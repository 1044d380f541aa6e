//! Who is served what, and when.
use super::*;
use lateen_model::{Object, StoreOptions};
use lateen_translate::ResourceType;
use serde_json::json;

fn proxy() -> Arc<Proxy> {
    let id = "sidecar~10.0.0.1~a.default~default.svc.cluster.local";
    Arc::new(Proxy::parse(id, &json!({})).unwrap())
}

#[test]
fn proxies_that_gave_up_waiting_are_forgotten() {
    let store = Store::new(StoreOptions::default());
    let mut push = PushLoop::new(store, ["Service"], Metrics::new("test"));
    for _ in 0..100 {
        let (reply, answer) = oneshot::channel();
        push.take([Input::Connect(proxy(), reply)].into_iter(), Instant::now());
        drop(answer);
    }
    let (reply, mut answer) = oneshot::channel();
    push.take([Input::Connect(proxy(), reply)].into_iter(), Instant::now());
    assert_eq!(push.waiting.len(), 1);
    assert!(answer.try_recv().is_err(), "nobody is served from half a configuration");
    push.take([Input::Listed("Service")].into_iter(), Instant::now());
    assert!(answer.try_recv().is_ok());
}

#[test]
fn proxies_that_wait_are_told_what_they_may_read() {
    let mut push = PushLoop::new(Store::new(StoreOptions::default()), ["Service"], Metrics::new("test"));
    let (reply, _answer) = oneshot::channel();
    let proxy = proxy();
    let account = Account::of(&proxy);
    let other = Account { name: "other".to_owned(), ..account.clone() };
    push.take([Input::Connect(proxy, reply), Input::SecretAccess(account, true)].into_iter(), Instant::now());
    assert!(push.waiting[0].0.reads_secrets);
    push.take([Input::SecretAccess(other, false)].into_iter(), Instant::now());
    assert!(push.waiting[0].0.reads_secrets);
    push.take([Input::Listed("Service")].into_iter(), Instant::now());
    assert!(push.connected[0].proxy.reads_secrets);
}

#[test]
fn a_change_makes_only_what_it_changes() {
    let mut push = PushLoop::new(Store::new(StoreOptions::default()), ["Service"], Metrics::new("test"));
    let apply = |object: Object| Input::Object(Event::Applied(object), Instant::now());
    let service = |name: String| {
        let service = json!({"metadata": {"namespace": "default", "name": name},
            "spec": {"clusterIP": "10.96.0.1", "ports": [{"name": "http", "port": 80}], "selector": {"app": "a"}}});
        apply(Object::Service(serde_json::from_value(service).unwrap()))
    };
    let slice = |address: &str| {
        let slice = json!({"addressType": "IPv4", "ports": [{"name": "http", "port": 80}],
            "metadata": {"namespace": "default", "name": "s7-a", "labels": {"kubernetes.io/service-name": "s7"}},
            "endpoints": [{"addresses": [address]}]});
        apply(Object::EndpointSlice(serde_json::from_value(slice).unwrap()))
    };
    let (reply, mut answer) = oneshot::channel();
    let services = (0..200).map(|index| service(format!("s{index}")));
    let rest = [slice("10.0.0.1"), Input::Listed("Service"), Input::Connect(proxy(), reply)];
    push.take(services.chain(rest), Instant::now());
    let snapshots = answer.try_recv().unwrap();
    let before = snapshots.borrow().clone();
    let made = push.classes.made();
    push.take([slice("10.0.0.2")].into_iter(), Instant::now());
    let after = snapshots.borrow().clone();
    assert_eq!(push.classes.made(), made + 1, "one resource is generated");
    for (type_url, set) in after.types() {
        let old = before.set(type_url);
        let changed = set.iter().zip(old.iter()).filter(|(new, old)| !Arc::ptr_eq(new, old)).count();
        let is_endpoints = type_url == ResourceType::Endpoint.type_url();
        assert_eq!(
            (changed, Arc::ptr_eq(set, old)),
            (usize::from(is_endpoints), !is_endpoints),
            "{type_url}"
        );
    }
}

/// A service, a rule with these subsets and a route to this one.
fn object(kind: &str, spec: serde_json::Value) -> Input {
    let object = json!({"metadata": {"namespace": "default", "name": "a"}, "spec": spec});
    let object = match kind {
        "Service" => Object::Service(serde_json::from_value(object).unwrap()),
        "DestinationRule" => Object::DestinationRule(serde_json::from_value(object).unwrap()),
        _ => Object::VirtualService(serde_json::from_value(object).unwrap()),
    };
    Input::Object(Event::Applied(object), Instant::now())
}

fn subsets(names: &[&str]) -> Input {
    let subsets: Vec<_> = names.iter().map(|name| json!({"name": name})).collect();
    object("DestinationRule", json!({"host": "a", "subsets": subsets}))
}

fn route(subset: &str) -> Input {
    let destination = json!({"destination": {"host": "a", "subset": subset}});
    object("VirtualService", json!({"hosts": ["a"], "http": [{"route": [destination]}]}))
}

/// What the proxy's routes lead to, and the subsets that have a cluster.
fn served(snapshots: &mut watch::Receiver<Arc<Snapshot>>) -> (bool, String, String) {
    let changed = snapshots.has_changed().unwrap();
    let snapshot = snapshots.borrow_and_update().clone();
    let routes = snapshot.set(ResourceType::Route.type_url()).get("80").unwrap().body.clone();
    let routes = String::from_utf8_lossy(&routes).into_owned();
    let subset = |text: &str| text.split('|').nth(2).filter(|name| !name.is_empty()).map(str::to_owned);
    let to = routes.split("outbound").filter_map(subset).collect::<BTreeSet<_>>();
    let clusters = snapshot.set(ResourceType::Cluster.type_url());
    let there = clusters.iter().filter_map(|cluster| subset(&cluster.name)).collect::<BTreeSet<_>>();
    let words = |set: BTreeSet<String>| set.into_iter().collect::<Vec<_>>().join(" ");
    (changed, words(to), words(there))
}

fn answer(changed: bool, to: &str, there: &str) -> (bool, String, String) {
    (changed, to.to_owned(), there.to_owned())
}

#[test]
fn halves_of_a_change_wait_for_each_other() {
    let mut push = PushLoop::new(Store::new(StoreOptions::default()), ["Service"], Metrics::new("test"));
    let service = object(
        "Service",
        json!({"clusterIP": "10.96.0.1", "ports": [{"name": "http", "port": 80}], "selector": {"app": "a"}}),
    );
    let (reply, mut connected) = oneshot::channel();
    let (listed, connect) = (Input::Listed("Service"), Input::Connect(proxy(), reply));
    let start = Instant::now();
    push.take([service, subsets(&["v1"]), route("v1"), listed, connect].into_iter(), start);
    let mut snapshots = connected.try_recv().unwrap();
    assert_eq!(served(&mut snapshots), answer(false, "v1", "v1"));

    // Written: both subsets, the route to the new one, the old one's removal. Arrived: the route last.
    push.take([subsets(&["v2"])].into_iter(), start);
    assert_eq!(served(&mut snapshots), answer(false, "v1", "v1"), "the route to v1 is still there");
    assert_eq!(push.held_until, Some(start + OTHER_HALF));
    push.take([route("v2")].into_iter(), start + OTHER_HALF / 2);
    assert_eq!((served(&mut snapshots), push.held_until), (answer(true, "v2", "v2"), None));
    // The route first.
    push.take([route("v3")].into_iter(), start);
    assert_eq!(served(&mut snapshots), answer(false, "v2", "v2"));
    push.take([subsets(&["v3"])].into_iter(), start);
    assert_eq!((served(&mut snapshots), push.held_until), (answer(true, "v3", "v3"), None));
    // What has no other half goes out when its time is up, and is not waited for again.
    push.take([route("absent")].into_iter(), start);
    push.take([].into_iter(), start + OTHER_HALF);
    assert_eq!((served(&mut snapshots), push.held_until), (answer(true, "absent", "v3"), None));
    push.take([subsets(&["v4"])].into_iter(), start);
    assert_eq!(served(&mut snapshots), answer(true, "absent", "v4"));
}

#[test]
fn a_change_touches_only_the_proxies_that_see_it() {
    let named = |kind: &str, namespace: &str, spec: serde_json::Value| {
        let object = json!({"metadata": {"namespace": namespace, "name": "a"}, "spec": spec});
        let object = match kind {
            "Service" => Object::Service(serde_json::from_value(object).unwrap()),
            "Sidecar" => Object::Sidecar(serde_json::from_value(object).unwrap()),
            "DestinationRule" => Object::DestinationRule(serde_json::from_value(object).unwrap()),
            _ => Object::VirtualService(serde_json::from_value(object).unwrap()),
        };
        Input::Object(Event::Applied(object), Instant::now())
    };
    let service = |namespace: &str, address: &str| {
        let ports = json!([{"name": "http", "port": 80}]);
        named("Service", namespace, json!({"clusterIP": address, "ports": ports, "selector": {"app": "a"}}))
    };
    let imports =
        |namespace: &str, hosts: &str| named("Sidecar", namespace, json!({"egress": [{"hosts": [hosts]}]}));
    let mut push = PushLoop::new(Store::new(StoreOptions::default()), ["Service"], Metrics::new("test"));
    let objects = [
        service("default", "10.96.0.1"),
        service("own", "10.96.0.2"),
        imports("own", "./*"),
        imports("importing", "default/*"),
        Input::Listed("Service"),
    ];
    push.take(objects.into_iter(), Instant::now());
    let namespaces = ["default", "other", "own", "importing"];
    let mut snapshots = namespaces.map(|namespace| {
        let id = format!("sidecar~10.0.0.1~p.{namespace}~{namespace}.svc.cluster.local");
        let (reply, mut answer) = oneshot::channel();
        let proxy = Arc::new(Proxy::parse(&id, &json!({})).unwrap());
        push.take([Input::Connect(proxy, reply)].into_iter(), Instant::now());
        answer.try_recv().unwrap()
    });
    let mut touched = |input: Input| -> Vec<&str> {
        push.take([input].into_iter(), Instant::now());
        let changed = namespaces.into_iter().zip(&mut snapshots).filter_map(|(namespace, snapshot)| {
            let changed = snapshot.has_changed().unwrap();
            snapshot.mark_unchanged();
            changed.then_some(namespace)
        });
        changed.collect()
    };
    let mut edits = 0..;
    let mut rule = |export_to: &str| {
        let edit = format!("/{}", edits.next().unwrap());
        let route = json!({"match": [{"uri": {"prefix": edit}}], "route": [{"destination": {"host": "a"}}]});
        named("VirtualService", "default", json!({"hosts": ["a"], "exportTo": [export_to], "http": [route]}))
    };
    assert_eq!(touched(rule("*")), ["default", "other", "importing"]);
    assert_eq!(touched(rule("*")), ["default", "other", "importing"]);
    assert_eq!(touched(rule(".")), ["default", "other", "importing"], "those who lose it too");
    assert_eq!(touched(rule(".")), ["default"]);
    assert_eq!(touched(rule("importing")), ["default", "importing"]);
    assert_eq!(touched(rule("importing")), ["importing"]);
    let mut policy = |export_to: &str| {
        let time = format!("{}s", edits.next().unwrap());
        let policy = json!({"connectionPool": {"tcp": {"connectTimeout": time}}});
        named(
            "DestinationRule",
            "default",
            json!({"host": "a", "exportTo": [export_to], "trafficPolicy": policy}),
        )
    };
    assert_eq!(touched(policy("*")), ["default", "other", "importing"]);
    assert_eq!(touched(policy(".")), ["default", "other", "importing"]);
    assert_eq!(touched(policy(".")), ["default"]);
    let slice = json!({"addressType": "IPv4", "ports": [{"name": "http", "port": 80}],
        "metadata": {"namespace": "default", "name": "a-x", "labels": {"kubernetes.io/service-name": "a"}},
        "endpoints": [{"addresses": ["10.0.0.7"]}]});
    let slice = Object::EndpointSlice(serde_json::from_value(slice).unwrap());
    let endpoints = Input::Object(Event::Applied(slice), Instant::now());
    assert_eq!(touched(endpoints), ["default", "other", "importing"]);
    assert_eq!(touched(service("own", "10.96.0.9")), ["default", "other", "own"]);
}
