//! A small mesh made of Kubernetes objects, and what its proxies get.
#![allow(dead_code, reason = "each test file uses a part")]
use std::collections::BTreeMap;
use std::sync::{Arc, LazyLock};

use lateen_model::{Delta, Event, Object, Store, StoreOptions, World};
use lateen_translate::{Cache, Proxy, ProxyClass, ResourceType, Scope, generate_all};
use lateen_xds::json::JsonCodec;
use serde_json::{Value, json};

/// The mesh.
pub(crate) struct Mesh {
    store: Store,
    pub(crate) cache: Cache,
}

static CODEC: LazyLock<JsonCodec> = LazyLock::new(|| JsonCodec::new().expect("descriptors"));

/// What a proxy gets: JSON by type and name.
pub(crate) struct Resources(BTreeMap<(ResourceType, String), Value>);

impl Resources {
    pub(crate) fn get(&self, kind: ResourceType, name: &str) -> &Value {
        let names: Vec<_> = self.names(kind);
        self.0.get(&(kind, name.to_owned())).unwrap_or_else(|| panic!("no {kind:?} {name:?} among {names:?}"))
    }

    pub(crate) fn names(&self, kind: ResourceType) -> Vec<&str> {
        self.0.keys().filter(|(of, _)| *of == kind).map(|(_, name)| name.as_str()).collect()
    }

    pub(crate) fn all(&self, kind: ResourceType) -> Vec<Value> {
        self.0.iter().filter(|((of, _), _)| *of == kind).map(|(_, value)| value.clone()).collect()
    }
}

impl Mesh {
    pub(crate) fn empty() -> Self {
        Self { store: Store::new(StoreOptions::default()), cache: Cache::default() }
    }

    /// The course's demo as of lab 5 (its own Istio manifests), with an ingress gateway and the API server.
    pub(crate) fn course() -> Self {
        Self::course_with(StoreOptions::default())
    }

    /// The same, of a control plane with these options.
    pub(crate) fn course_with(options: StoreOptions) -> Self {
        let mut mesh = Self { store: Store::new(options), cache: Cache::default() };
        mesh.service(
            "default",
            "kubernetes",
            "10.96.0.1",
            json!([{"name": "https", "port": 443, "targetPort": 6443}]),
            json!({}),
        );
        let ports = json!([
            {"name": "status-port", "port": 15021, "targetPort": 15021},
            {"name": "http2", "port": 80, "targetPort": 8080},
            {"name": "https", "port": 443, "targetPort": 8443}]);
        mesh.service(
            "istio-system",
            "istio-ingressgateway",
            "10.96.0.9",
            ports,
            json!({"istio": "ingressgateway"}),
        );
        mesh.pod("istio-system", "istio-ingressgateway-1", "10.244.0.9", json!({"istio": "ingressgateway"}));
        mesh.service(
            "default",
            "web-frontend",
            "10.96.0.20",
            json!([{"port": 80, "targetPort": 8080}]),
            json!({"app": "web-frontend"}),
        );
        mesh.pod("default", "web-frontend-1", "10.244.0.20", json!({"app": "web-frontend", "version": "v1"}));
        mesh.endpoints("default", "web-frontend", "", 8080, &[("web-frontend-1", "10.244.0.20", true)]);
        mesh.service(
            "default",
            "customers",
            "10.96.0.30",
            json!([{"port": 80, "targetPort": 3000}]),
            json!({"app": "customers"}),
        );
        mesh.pod("default", "customers-v1-1", "10.244.0.31", json!({"app": "customers", "version": "v1"}));
        mesh.pod("default", "customers-v2-1", "10.244.0.32", json!({"app": "customers", "version": "v2"}));
        let both = [("customers-v1-1", "10.244.0.31", true), ("customers-v2-1", "10.244.0.32", true)];
        mesh.endpoints("default", "customers", "", 3000, &both);
        for file in ["gateway", "web-frontend-vs", "customers-dr", "customers-vs"] {
            mesh.course_file(&format!("lab5/{file}.yaml"));
        }
        mesh
    }

    pub(crate) fn course_file(&mut self, file: &str) -> Delta {
        let path = format!("{}/../../samples/course/{file}", env!("CARGO_MANIFEST_DIR"));
        let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}"));
        self.config(&text)
    }

    /// Applies one of Istio's objects, in namespace `default` unless it says otherwise.
    pub(crate) fn config(&mut self, yaml: &str) -> Delta {
        let mut value: Value = serde_saphyr::from_str(yaml).expect("YAML");
        if value["metadata"]["namespace"].is_null() {
            value["metadata"]["namespace"] = json!("default");
        }
        let object = match value["kind"].as_str() {
            Some("Gateway") => Object::Gateway(serde_json::from_value(value).expect("a Gateway")),
            Some("VirtualService") => {
                Object::VirtualService(serde_json::from_value(value).expect("a VirtualService"))
            }
            Some("DestinationRule") => {
                Object::DestinationRule(serde_json::from_value(value).expect("a DestinationRule"))
            }
            Some("RequestAuthentication") => {
                Object::RequestAuthentication(serde_json::from_value(value).expect("a RequestAuthentication"))
            }
            Some("AuthorizationPolicy") => {
                Object::AuthorizationPolicy(serde_json::from_value(value).expect("an AuthorizationPolicy"))
            }
            Some("Sidecar") => Object::Sidecar(serde_json::from_value(value).expect("a Sidecar")),
            Some("ServiceEntry") => {
                Object::ServiceEntry(serde_json::from_value(value).expect("a ServiceEntry"))
            }
            Some("WorkloadEntry") => {
                Object::WorkloadEntry(serde_json::from_value(value).expect("a WorkloadEntry"))
            }
            Some("PeerAuthentication") => {
                Object::PeerAuthentication(serde_json::from_value(value).expect("a PeerAuthentication"))
            }
            Some("Ingress") => Object::Ingress(serde_json::from_value(value).expect("an Ingress")),
            other => panic!("unexpected kind {other:?}"),
        };
        self.store.apply(Event::Applied(object))
    }

    /// A Secret; values are text.
    pub(crate) fn secret(&mut self, namespace: &str, name: &str, data: Value) -> Delta {
        let secret = json!({"metadata": {"namespace": namespace, "name": name}, "data": {}});
        let mut secret: k8s_openapi::api::core::v1::Secret =
            serde_json::from_value(secret).expect("a Secret");
        let data = data.as_object().expect("an object").iter();
        let bytes = |value: &Value| k8s_openapi::ByteString(value.as_str().unwrap_or_default().into());
        secret.data = Some(data.map(|(key, value)| (key.clone(), bytes(value))).collect());
        self.store.apply(Event::Applied(Object::Secret(Box::new(secret))))
    }

    pub(crate) fn apply(&mut self, event: Event) -> Delta {
        self.store.apply(event)
    }

    pub(crate) fn mesh_config(&mut self, yaml: &str) -> Delta {
        let map = json!({"metadata": {"name": "istio", "namespace": "istio-system"}, "data": {"mesh": yaml}});
        self.store.apply(Event::Applied(Object::ConfigMap(serde_json::from_value(map).expect("a ConfigMap"))))
    }

    pub(crate) fn service(
        &mut self,
        namespace: &str,
        name: &str,
        ip: &str,
        ports: Value,
        selector: Value,
    ) -> Delta {
        self.service_of(json!({"metadata": {"namespace": namespace, "name": name},
            "spec": {"clusterIP": ip, "clusterIPs": [ip], "ports": ports, "selector": selector}}))
    }

    pub(crate) fn service_of(&mut self, service: Value) -> Delta {
        self.store.apply(Event::Applied(Object::Service(serde_json::from_value(service).expect("a Service"))))
    }

    pub(crate) fn pod(&mut self, namespace: &str, name: &str, ip: &str, labels: Value) -> Delta {
        self.pod_of_account(namespace, name, ip, labels, "default")
    }

    pub(crate) fn pod_of_account(
        &mut self,
        namespace: &str,
        name: &str,
        ip: &str,
        labels: Value,
        account: &str,
    ) -> Delta {
        let pod = json!({"metadata": {"namespace": namespace, "name": name, "labels": labels},
            "spec": {"containers": [], "serviceAccountName": account},
            "status": {"podIP": ip, "phase": "Running"}});
        self.store.apply(Event::Applied(Object::Pod(serde_json::from_value(pod).expect("a Pod"))))
    }

    pub(crate) fn endpoints(
        &mut self,
        namespace: &str,
        service: &str,
        port_name: &str,
        port: u16,
        pods: &[(&str, &str, bool)],
    ) -> Delta {
        let endpoints: Vec<Value> = pods
            .iter()
            .map(|(pod, ip, ready)| {
                json!({"addresses": [ip], "conditions": {"ready": ready}, "targetRef": {"kind": "Pod", "name": pod}})
            })
            .collect();
        let slice = json!({"addressType": "IPv4", "endpoints": endpoints,
            "metadata": {"namespace": namespace, "name": format!("{service}-1"),
                "labels": {"kubernetes.io/service-name": service}},
            "ports": [{"name": port_name, "port": port, "protocol": "TCP"}]});
        self.store
            .apply(Event::Applied(Object::EndpointSlice(serde_json::from_value(slice).expect("a slice"))))
    }

    pub(crate) fn world(&mut self) -> Arc<World> {
        self.store.world()
    }

    pub(crate) fn sidecar(&mut self, namespace: &str, pod: &str) -> Scope {
        self.scope(&format!("sidecar~10.0.0.1~{pod}.{namespace}~{namespace}.svc.cluster.local"))
    }

    pub(crate) fn gateway(&mut self) -> Scope {
        self.scope("router~10.244.0.9~istio-ingressgateway-1.istio-system~istio-system.svc.cluster.local")
    }

    pub(crate) fn scope(&mut self, node: &str) -> Scope {
        self.scope_with(node, &json!({}))
    }

    pub(crate) fn scope_with(&mut self, node: &str, metadata: &Value) -> Scope {
        // Gateways' accounts are given a role for it, others mostly are not.
        self.scope_of(node, metadata, node.starts_with("router"))
    }

    pub(crate) fn scope_reading(&mut self, node: &str, secrets: bool) -> Scope {
        self.scope_of(node, &json!({}), secrets)
    }

    fn scope_of(&mut self, node: &str, metadata: &Value, secrets: bool) -> Scope {
        let mut proxy = Proxy::parse(node, metadata).expect("a node id");
        proxy.reads_secrets = secrets;
        let world = self.store.world();
        let class = ProxyClass::of(&proxy, &world);
        Scope::new(world, Arc::new(class))
    }

    pub(crate) fn resources(&self, scope: &Scope) -> Resources {
        let mut found = BTreeMap::new();
        for kind in ResourceType::ALL {
            for resource in
                lateen_translate::generate(scope, &self.cache, kind, &lateen_translate::Extent::All)
            {
                let value = match kind {
                    ResourceType::NameTable => names(&resource.body),
                    _ => CODEC.any_to_value(kind.type_url(), &resource.body).expect("well-formed"),
                };
                let twice = found.insert((kind, resource.name.to_string()), value);
                assert!(twice.is_none(), "{kind:?} {} is generated twice", resource.name);
            }
        }
        assert_eq!(found.len(), generate_all(scope, &self.cache).len());
        Resources(found)
    }

    pub(crate) fn sidecar_resources(&mut self, namespace: &str, pod: &str) -> Resources {
        let scope = self.sidecar(namespace, pod);
        self.resources(&scope)
    }

    pub(crate) fn gateway_resources(&mut self) -> Resources {
        let scope = self.gateway();
        self.resources(&scope)
    }
}

/// A name table, which Envoy's descriptors do not have: addresses, registry, short name and namespace by name.
fn names(body: &[u8]) -> Value {
    let table: lateen_xds::name_table::NameTable = prost::Message::decode(body).expect("well-formed");
    let info = table.table.into_iter();
    info.map(|(name, info)| (name, json!([info.ips, info.registry, info.shortname, info.namespace])))
        .collect::<serde_json::Map<_, _>>()
        .into()
}

/// A virtual host of a route configuration, by name.
pub(crate) fn virtual_host<'a>(route: &'a Value, name: &str) -> &'a Value {
    let hosts = route["virtual_hosts"].as_array().expect("virtual hosts");
    let names: Vec<_> = hosts.iter().map(|host| host["name"].clone()).collect();
    hosts.iter().find(|host| host["name"] == name).unwrap_or_else(|| panic!("no {name} among {names:?}"))
}

/// The only network filter of a chain.
pub(crate) fn filter(chain: &Value) -> &Value {
    let filters = chain["filters"].as_array().expect("filters");
    assert_eq!(filters.len(), 1, "{chain}");
    &filters[0]["typed_config"]
}

/// An AuthorizationPolicy of the root namespace with every field there is.
pub(crate) fn every_field(action: &str, dry_run: bool) -> String {
    let provider = if action == "CUSTOM" { "provider: {name: it}, " } else { "" };
    let from = "[{source: {principals: [cluster.local/ns/a/sa/b, '*', 'cluster.local/*', '*/sa/b'], notPrincipals: [x/ns/y/sa/z]}},
      {source: {requestPrincipals: ['*', iss/sub, 'iss/*', '*/sub'], notRequestPrincipals: [a/b/c]}},
      {source: {namespaces: [a, 'b*'], notNamespaces: [c], ipBlocks: [10.0.0.0/8], notIpBlocks: [10.0.0.1]}},
      {source: {serviceAccounts: [a/b, c], notServiceAccounts: [d], remoteIpBlocks: ['2001:db8::/32'], notRemoteIpBlocks: [1.2.3.4]}}]";
    let to = "[{operation: {hosts: [a.example, '*.b', 'c.*', '*'], notHosts: [d], ports: ['80'], notPorts: ['81']}},
      {operation: {methods: [GET, '*'], notMethods: [PUT], paths: [/a, '/b*', '*/c', '*', '/d/{*}/e/{**}'], notPaths: [/f]}}]";
    let when = [
        "request.headers[x-a]",
        "source.ip",
        "remote.ip",
        "source.namespace",
        "source.principal",
        "request.auth.principal",
        "request.auth.audiences",
        "request.auth.presenter",
        "request.auth.claims[a]",
        "request.auth.claims[a][b]",
        "destination.ip",
        "connection.sni",
    ];
    let when: Vec<String> = when
        .iter()
        .map(|key| format!("{{key: '{key}', values: [10.1.2.3], notValues: [10.1.2.4]}}"))
        .collect();
    format!(
        "{{kind: AuthorizationPolicy, metadata: {{name: all-{}-{dry_run}, namespace: istio-system, annotations: {{istio.io/dry-run: '{dry_run}'}}}},
          spec: {{action: {action}, {provider}rules: [{{from: {from}, to: {to}, when: [{}, {{key: destination.port, values: ['1']}}]}}]}}}}",
        action.to_lowercase(), when.join(", ")
    )
}
