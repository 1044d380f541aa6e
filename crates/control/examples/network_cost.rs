//! What a second network costs: bytes of endpoints, and the work of a change, beside the same mesh in one network.
//!
//! ```text
//! cargo run --release -p lateen-control --example network_cost -- [SERVICES] [ENDPOINTS_PER_SERVICE] [CHANGES]
//! ```
//! Defaults: 1000, 10, 200. Half of each service's endpoints are in the proxy's network, the others in a second one behind two gateways;
//! beside it the same endpoints where nobody speaks of networks. A change is one endpoint more or less; `work` is from the object to the
//! resources of one view (world, scope, generation), `a gateway moves` the same for the one change that touches all services. Prints rows
//! for `bench/RESULTS.md`.
use std::sync::Arc;
use std::time::Instant;

use lateen_model::{Delta, Event, Object, Store, StoreOptions};
use lateen_translate::{Cache, Extent, Proxy, ProxyClass, Resource, ResourceType, Scope, affected, generate};
use serde_json::{Value, json};

type Error = Box<dyn std::error::Error>;

const NODE: &str = "sidecar~10.200.0.1~web-1.default~default.svc.cluster.local";
const LABEL: &str = "topology.istio.io/network";

fn main() -> Result<(), Error> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let number = |index: usize, default| arguments.get(index).map_or(Ok(default), |text| text.parse());
    let (services, endpoints, changes) = (number(0, 1000)?, number(1, 10)?, number(2, 200)?);
    println!("{services} services with {endpoints} endpoints each");
    println!(
        "| networks | endpoints KiB | first generation ms | work of a change µs, median (p99) | a gateway moves ms |"
    );
    println!("|---|---|---|---|---|");
    for networks in [1, 2] {
        let mut mesh = Mesh::new(networks, services, endpoints)?;
        let (bytes, first) = mesh.first();
        let mut times = Vec::new();
        for round in 0..changes {
            let count = endpoints - (round / services + 1) % 2;
            times.push(mesh.change(|mesh| mesh.slice(round % services, count))?);
        }
        times.sort_by(f64::total_cmp);
        let at = |share: f64| times[((times.len() - 1) as f64 * share) as usize] * 1000.0;
        let moved = match networks {
            1 => "-".to_owned(),
            _ => format!("{:.1}", mesh.change(|mesh| mesh.gateway(9))?),
        };
        println!(
            "| {networks} | {} | {first:.1} | {:.0} ({:.0}) | {moved} |",
            bytes / 1024,
            at(0.5),
            at(0.99)
        );
    }
    Ok(())
}

struct Mesh {
    store: Store,
    cache: Cache,
    scope: Scope,
    networks: usize,
}

impl Mesh {
    fn new(networks: usize, services: usize, endpoints: usize) -> Result<Self, Error> {
        let mut store = Store::new(StoreOptions::default());
        let empty = store.world();
        let metadata = if networks > 1 { json!({ "NETWORK": "n1" }) } else { Value::Null };
        let proxy = Proxy::parse(NODE, &metadata)?;
        let mut mesh = Self {
            scope: Scope::new(empty.clone(), Arc::new(ProxyClass::of(&proxy, &empty))),
            store,
            cache: Cache::default(),
            networks,
        };
        for index in 0..services {
            let ports = json!([{"name": "http", "port": 80, "targetPort": 8080}]);
            let service = json!({"metadata": {"namespace": "default", "name": format!("s{index}")},
                "spec": {"clusterIP": address(index, 0), "ports": ports, "selector": {"app": format!("s{index}")}}});
            mesh.store.apply(Event::Applied(Object::Service(serde_json::from_value(service)?)));
            for number in 1..=endpoints {
                mesh.pod(index, number)?;
            }
            mesh.slice(index, endpoints)?;
        }
        if networks > 1 {
            mesh.gateway(1)?;
        }
        let world = mesh.store.world();
        let class = Arc::new(ProxyClass::of(&proxy, &world));
        mesh.scope = Scope::new(world, class);
        Ok(mesh)
    }

    /// The two gateways of the second network; the last one's address ends so.
    fn gateway(&mut self, last: usize) -> Result<Delta, Error> {
        let gateway = json!({"metadata": {"namespace": "istio-system", "name": "eastwest", "labels": {LABEL: "n2"}},
            "spec": {"type": "LoadBalancer", "clusterIP": "10.96.9.9", "ports": [{"name": "tls", "port": 15443}]},
            "status": {"loadBalancer": {"ingress": [{"ip": "172.16.0.250"}, {"ip": format!("172.16.0.{last}")}]}}});
        Ok(self.store.apply(Event::Applied(Object::Service(serde_json::from_value(gateway)?))))
    }

    /// Every second one is in the second network; each has a proxy.
    fn pod(&mut self, service: usize, number: usize) -> Result<(), Error> {
        let mut labels = json!({"app": format!("s{service}"), "security.istio.io/tlsMode": "istio"});
        if self.networks > 1 {
            labels[LABEL] = if number.is_multiple_of(2) { "n2" } else { "n1" }.into();
        }
        let pod = json!({"metadata": {"namespace": "default", "name": name(service, number), "labels": labels},
            "spec": {"containers": []}, "status": {"phase": "Running", "podIP": address(service, number)}});
        self.store.apply(Event::Applied(Object::Pod(serde_json::from_value(pod)?)));
        Ok(())
    }

    fn slice(&mut self, service: usize, count: usize) -> Result<Delta, Error> {
        let target = |number| json!({"kind": "Pod", "namespace": "default", "name": name(service, number)});
        let endpoint = |number| json!({"addresses": [address(service, number)], "targetRef": target(number)});
        let endpoints: Vec<Value> = (1..=count).map(endpoint).collect();
        let of = format!("s{service}");
        let slice = json!({"addressType": "IPv4", "ports": [{"name": "http", "port": 8080}], "endpoints": endpoints,
            "metadata": {"namespace": "default", "name": of, "labels": {"kubernetes.io/service-name": of}}});
        Ok(self.store.apply(Event::Applied(Object::EndpointSlice(serde_json::from_value(slice)?))))
    }

    /// Bytes of all endpoints, and the milliseconds that they took.
    fn first(&self) -> (usize, f64) {
        let begun = Instant::now();
        let all = self.generate(ResourceType::Endpoint, &Extent::All);
        let bytes = all.iter().map(|resource| resource.body.len()).sum();
        (bytes, begun.elapsed().as_secs_f64() * 1000.0)
    }

    fn generate(&self, kind: ResourceType, extent: &Extent) -> Vec<Arc<Resource>> {
        generate(&self.scope, &self.cache, kind, extent)
    }

    /// Milliseconds from the object to the resources that are others by it.
    fn change(&mut self, apply: impl FnOnce(&mut Self) -> Result<Delta, Error>) -> Result<f64, Error> {
        let begun = Instant::now();
        let delta = apply(self)?;
        let next = self.scope.follow(self.store.world(), &delta);
        let affected = affected(&delta, &self.scope, &next);
        self.scope = next;
        let made: usize =
            ResourceType::ALL.into_iter().map(|kind| self.generate(kind, affected.of(kind)).len()).sum();
        if made == 0 {
            return Err("a change that concerns nobody".into());
        }
        Ok(begun.elapsed().as_secs_f64() * 1000.0)
    }
}

fn name(service: usize, number: usize) -> String {
    format!("s{service}-{number}")
}

fn address(service: usize, number: usize) -> String {
    format!("10.{}.{}.{}", 1 + service / 250, service % 250, number + 1)
}
