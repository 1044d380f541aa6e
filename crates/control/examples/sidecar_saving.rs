//! What a Sidecar that imports 10 services saves a proxy: bytes of configuration, and changes that concern it.
//!
//! ```text
//! cargo run --release -p lateen-control --example sidecar_saving
//! ```
//! Prints a table for `bench/RESULTS.md`. A proxy's memory with 10 and with all services is in the one of `bench/scale.py`.
use std::sync::Arc;

use lateen_model::{Delta, Event, Object, Store, StoreOptions};
use lateen_translate::{Cache, Proxy, ProxyClass, Scope, affected, generate_all};
use serde_json::{Value, json};

const NODE: &str = "sidecar~10.0.0.1~web-1.default~default.svc.cluster.local";
const IMPORTED: usize = 10;
const ENDPOINTS: usize = 10;

type Error = Box<dyn std::error::Error>;

fn main() -> Result<(), Error> {
    println!(
        "| services | Sidecar | configuration KiB | resources | share of endpoint changes received | share of VirtualService changes received |"
    );
    println!("|---|---|---|---|---|---|");
    for services in [50, 100, 500, 2000] {
        for imports in [false, true] {
            let (bytes, resources, endpoints, rules) = measure(services, imports)?;
            let sidecar = if imports { "10 imported" } else { "none" };
            println!(
                "| {services} | {sidecar} | {} | {resources} | {endpoints:.1} % | {rules:.1} % |",
                bytes / 1024
            );
        }
    }
    Ok(())
}

/// Bytes and number of resources; percentages of changes of endpoints and rules, one for each service, that reach the proxy.
fn measure(services: usize, imports: bool) -> Result<(usize, usize, f64, f64), Error> {
    let mut store = Store::new(StoreOptions::default());
    for index in 0..services {
        let ports = json!([{"name": "http", "port": 80, "targetPort": 8080}]);
        let service = json!({"metadata": {"namespace": "default", "name": format!("s{index}")},
            "spec": {"clusterIP": address(index, 0), "ports": ports, "selector": {"app": format!("s{index}")}}});
        store.apply(Event::Applied(Object::Service(serde_json::from_value(service)?)));
        apply_slice(&mut store, index, ENDPOINTS)?;
    }
    if imports {
        let hosts: Vec<String> =
            (0..IMPORTED).map(|index| format!("./s{index}.default.svc.cluster.local")).collect();
        let sidecar = json!({"metadata": {"namespace": "default", "name": "default"},
            "spec": {"egress": [{"hosts": hosts}]}});
        store.apply(Event::Applied(Object::Sidecar(serde_json::from_value(sidecar)?)));
    }
    let (cache, proxy) = (Cache::default(), Proxy::parse(NODE, &Value::Null)?);
    let world = store.world();
    let class = Arc::new(ProxyClass::of(&proxy, &world));
    let mut scope = Scope::new(world, class);
    let all = generate_all(&scope, &cache);
    let bytes = all.iter().map(|resource| resource.body.len()).sum();
    let (mut endpoints, mut rules) = (0, 0);
    for index in 0..services {
        let delta = apply_slice(&mut store, index, ENDPOINTS - 1)?;
        endpoints += usize::from(concerns(&mut store, &mut scope, &delta));
        let name = format!("s{index}");
        let rule = json!({"metadata": {"namespace": "default", "name": name},
            "spec": {"hosts": [name], "http": [{"timeout": "1s", "route": [{"destination": {"host": name}}]}]}});
        let delta = store.apply(Event::Applied(Object::VirtualService(serde_json::from_value(rule)?)));
        rules += usize::from(concerns(&mut store, &mut scope, &delta));
    }
    let share = |count: usize| count as f64 * 100.0 / services as f64;
    Ok((bytes, all.len(), share(endpoints), share(rules)))
}

fn concerns(store: &mut Store, scope: &mut Scope, delta: &Delta) -> bool {
    let next = scope.follow(store.world(), delta);
    let concerned = !affected(delta, scope, &next).is_none();
    *scope = next;
    concerned
}

fn apply_slice(store: &mut Store, index: usize, count: usize) -> Result<Delta, Error> {
    let endpoints: Vec<Value> =
        (1..=count).map(|number| json!({"addresses": [address(index, number)]})).collect();
    let name = format!("s{index}");
    let slice = json!({"addressType": "IPv4", "ports": [{"name": "http", "port": 8080}], "endpoints": endpoints,
        "metadata": {"namespace": "default", "name": name, "labels": {"kubernetes.io/service-name": name}}});
    Ok(store.apply(Event::Applied(Object::EndpointSlice(serde_json::from_value(slice)?))))
}

fn address(service: usize, number: usize) -> String {
    format!("10.{}.{}.{}", 1 + service / 250, service % 250, number + 1)
}
