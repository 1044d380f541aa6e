//! An API server in this process, a control plane on it, and a raw delta ADS client.
use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use kube::api::{Api, DynamicObject, Patch, PatchParams, PostParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::core::GroupVersionKind;
use kube::{Client, discovery};
use lateen_apiserver::{ApiServer, ApiServerConfig, ServiceResolver, ServiceTarget, TokenRequest};
use lateen_control::{Config, ControlPlane, Listen};
use lateen_podstreams::{BoxFuture, Duplex};
use lateen_xds::pb::envoy::config::core::v3::Node;
use lateen_xds::pb::envoy::service::discovery::v3::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient;
use lateen_xds::pb::envoy::service::discovery::v3::{DeltaDiscoveryRequest, DeltaDiscoveryResponse};
use lateen_xds::pb::google::protobuf::{Struct, Value as ProtoValue, value::Kind};
use lateen_xds::pb::google::rpc::Status as RpcStatus;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};
use tonic::{Status, Streaming};

/// The longest that anything here may take.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// Fails instead of hanging.
pub(crate) async fn soon<F: Future>(what: &str, future: F) -> F::Output {
    tokio::time::timeout(PATIENCE, future).await.unwrap_or_else(|_| panic!("{what}: not within {PATIENCE:?}"))
}

/// Sends what is meant for Service istiod to the control plane of the test.
#[derive(Default)]
struct ToControlPlane(Arc<Mutex<Option<SocketAddr>>>);

impl ServiceResolver for ToControlPlane {
    fn dial(&self, target: ServiceTarget) -> BoxFuture<'_, Option<std::io::Result<Box<dyn Duplex>>>> {
        let address = self.0.lock().unwrap().filter(|_| target.name == "istiod");
        Box::pin(async move {
            let stream = tokio::net::TcpStream::connect(address?).await;
            Some(stream.map(|stream| Box::new(stream) as Box<dyn Duplex>))
        })
    }
}

/// An API server with the mesh's objects installed.
pub(crate) struct Cluster {
    pub(crate) api: ApiServer,
    pub(crate) client: Client,
    webhooks: Arc<Mutex<Option<SocketAddr>>>,
}

impl Cluster {
    pub(crate) async fn start() -> Self {
        let webhooks = Arc::new(Mutex::new(None));
        let resolver = Arc::new(ToControlPlane(webhooks.clone()));
        let api = ApiServer::start(ApiServerConfig {
            service_resolver: Some(resolver),
            ..ApiServerConfig::default()
        })
        .await
        .unwrap();
        let kubeconfig = Kubeconfig::from_yaml(&api.kubeconfig(&api.url()).unwrap()).unwrap();
        let config =
            kube::Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await.unwrap();
        let client = Client::try_from(config).unwrap();
        let cluster = Self { api, client, webhooks };
        for object in lateen_manifests::render(&lateen_manifests::Options::default()) {
            // The test itself is the control plane, and there is nothing to run pods.
            if object["kind"] != "Deployment" {
                cluster.apply(object).await;
            }
        }
        cluster
    }

    /// A control plane on free ports.
    pub(crate) async fn control_plane(&self) -> ControlPlane {
        self.control_plane_with(Config::default()).await
    }

    /// The same with other settings.
    pub(crate) async fn control_plane_with(&self, config: Config) -> ControlPlane {
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        let listen = Listen { xds: any, plain_xds: None, monitoring: any, webhooks: any, ready: any };
        let config = Config { listen, ..config };
        let control_plane = soon("start", ControlPlane::start(config, self.client.clone())).await.unwrap();
        self.webhooks_at(control_plane.addresses().webhooks);
        soon("ready", control_plane.ready()).await;
        control_plane
    }

    /// Where webhooks are asked; a second control plane of the same test is not.
    pub(crate) fn webhooks_at(&self, address: SocketAddr) {
        self.webhooks.lock().unwrap().get_or_insert(address);
    }

    /// Where webhooks are asked from now on: the one before is gone.
    pub(crate) fn webhooks_move_to(&self, address: SocketAddr) {
        *self.webhooks.lock().unwrap() = Some(address);
    }

    /// The API of an object's kind; kinds of CRDs may take a moment to be served.
    pub(crate) async fn api_of(&self, object: &Value) -> Api<DynamicObject> {
        let (version, kind) = (object["apiVersion"].as_str().unwrap(), object["kind"].as_str().unwrap());
        let (group, version) = version.split_once('/').unwrap_or(("", version));
        let gvk = GroupVersionKind::gvk(group, version, kind);
        let (resource, capabilities) = soon("discovery", async {
            loop {
                if let Ok(found) = discovery::pinned_kind(&self.client, &gvk).await {
                    break found;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        })
        .await;
        match capabilities.scope {
            discovery::Scope::Cluster => Api::all_with(self.client.clone(), &resource),
            discovery::Scope::Namespaced => {
                let namespace = object["metadata"]["namespace"].as_str().unwrap_or("default");
                Api::namespaced_with(self.client.clone(), namespace, &resource)
            }
        }
    }

    pub(crate) async fn try_apply(&self, object: Value) -> Result<DynamicObject, kube::Error> {
        let name = object["metadata"]["name"].as_str().unwrap();
        let params = PatchParams::apply("test").force();
        self.api_of(&object).await.patch(name, &params, &Patch::Apply(&object)).await
    }

    pub(crate) async fn apply(&self, object: Value) -> DynamicObject {
        self.try_apply(object.clone()).await.unwrap_or_else(|error| panic!("{error}: {object}"))
    }

    /// Merges into an object; null removes.
    pub(crate) async fn merge(&self, patch: Value) {
        let name = patch["metadata"]["name"].as_str().unwrap();
        let merge = kube::api::Patch::Merge(&patch);
        self.api_of(&patch).await.patch(name, &kube::api::PatchParams::default(), &merge).await.unwrap();
    }

    pub(crate) async fn create(&self, object: Value) -> Result<Value, kube::Error> {
        let typed: DynamicObject = serde_json::from_value(object.clone()).unwrap();
        let created = self.api_of(&object).await.create(&PostParams::default(), &typed).await?;
        Ok(serde_json::to_value(created).unwrap())
    }

    pub(crate) async fn delete(&self, object: &Value) {
        let name = object["metadata"]["name"].as_str().unwrap();
        self.api_of(object).await.delete(name, &kube::api::DeleteParams::default()).await.unwrap();
    }

    /// Deletes a pod without waiting for it to end.
    pub(crate) async fn remove_at_once(&self, object: &Value) {
        let name = object["metadata"]["name"].as_str().unwrap();
        let params = kube::api::DeleteParams { grace_period_seconds: Some(0), ..Default::default() };
        self.api_of(object).await.delete(name, &params).await.unwrap();
    }

    /// Reads an object until `found` says what was looked for.
    pub(crate) async fn until<T>(&self, what: &str, object: Value, found: impl Fn(&Value) -> Option<T>) -> T {
        let api = self.api_of(&object).await;
        let name = object["metadata"]["name"].as_str().unwrap();
        let looking = async {
            loop {
                if let Ok(Some(now)) = api.get_opt(name).await
                    && let Some(result) = found(&serde_json::to_value(now).unwrap())
                {
                    break result;
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        soon(what, looking).await
    }

    /// A token of a service account of namespace `default`, which is made when it is not there.
    pub(crate) async fn token(&self, service_account: &str, audience: &str) -> String {
        self.token_in("default", service_account, audience).await
    }

    /// The same for any namespace, which is made too.
    pub(crate) async fn token_in(&self, namespace: &str, service_account: &str, audience: &str) -> String {
        if namespace != "default" {
            let object =
                json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": namespace } });
            self.apply(object).await;
        }
        let account = json!({ "apiVersion": "v1", "kind": "ServiceAccount",
            "metadata": { "name": service_account, "namespace": namespace } });
        self.apply(account).await;
        let request = TokenRequest {
            namespace: namespace.into(),
            service_account: service_account.into(),
            audiences: vec![audience.into()],
            expiration: Duration::from_secs(3600),
            pod: None,
        };
        self.api.mint_token(&request).unwrap()
    }

    /// A token bound to a pod of namespace `default`, as pods are given them.
    pub(crate) fn token_of_pod(&self, service_account: &str, audience: &str, pod: &str) -> String {
        let request = TokenRequest {
            namespace: "default".into(),
            service_account: service_account.into(),
            audiences: vec![audience.into()],
            expiration: Duration::from_secs(3600),
            pod: Some(pod.into()),
        };
        self.api.mint_token(&request).unwrap()
    }
}

/// A service with one port and a selector.
pub(crate) fn service(name: &str, port: u16) -> Value {
    json!({ "apiVersion": "v1", "kind": "Service", "metadata": { "name": name, "namespace": "default" },
        "spec": { "selector": { "app": name }, "ports": [{ "name": "http", "port": port, "targetPort": 8080 }] } })
}

/// Its endpoints.
pub(crate) fn slice(service: &str, addresses: &[&str]) -> Value {
    json!({ "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": { "name": format!("{service}-x"), "namespace": "default",
            "labels": { "kubernetes.io/service-name": service } },
        "addressType": "IPv4",
        "ports": [{ "name": "http", "port": 8080, "protocol": "TCP" }],
        "endpoints": [{ "addresses": addresses, "conditions": { "ready": true } }] })
}

/// A VirtualService of a host of the same name that sends everything to one destination.
pub(crate) fn virtual_service(host: &str, destination: &str) -> Value {
    json!({ "apiVersion": "networking.istio.io/v1", "kind": "VirtualService",
        "metadata": { "name": host, "namespace": "default" },
        "spec": { "hosts": [host], "http": [{ "route": [{ "destination": { "host": destination } }] }] } })
}

/// A proxy of service account `web` in namespace `default`, seen from the wire.
pub(crate) struct Proxy {
    requests: mpsc::Sender<DeltaDiscoveryRequest>,
    responses: Streaming<DeltaDiscoveryResponse>,
    /// Versions by type and name.
    pub(crate) held: BTreeMap<(String, String), String>,
}

/// How a proxy introduces itself.
pub(crate) struct Introduction<'a> {
    /// `sidecar` or `router`.
    pub(crate) kind: &'a str,
    pub(crate) namespace: &'a str,
    pub(crate) account: &'a str,
    pub(crate) authorization: Option<String>,
    /// What is shown of a certificate.
    pub(crate) identity: Option<Identity>,
    pub(crate) address: &'a str,
    /// Metadata besides, an object.
    pub(crate) metadata: Value,
    pub(crate) known: HashMap<String, String>,
}

impl Introduction<'_> {
    pub(crate) fn web(token: &str) -> Self {
        Self {
            kind: "sidecar",
            namespace: "default",
            account: "web",
            authorization: Some(format!("Bearer {token}")),
            identity: None,
            address: "10.1.1.1",
            metadata: json!({}),
            known: HashMap::new(),
        }
    }
}

/// A connection that trusts the mesh's root.
pub(crate) async fn channel(control_plane: &ControlPlane) -> Channel {
    connect(control_plane, None).await.unwrap()
}

/// The same of a client that shows a certificate.
pub(crate) async fn channel_as(
    control_plane: &ControlPlane,
    identity: Identity,
) -> Result<Channel, tonic::transport::Error> {
    connect(control_plane, Some(identity)).await
}

async fn connect(
    control_plane: &ControlPlane,
    identity: Option<Identity>,
) -> Result<Channel, tonic::transport::Error> {
    let mut tls = ClientTlsConfig::new()
        .ca_certificate(Certificate::from_pem(control_plane.root_certificate()))
        .domain_name("istiod.istio-system.svc");
    if let Some(identity) = identity {
        tls = tls.identity(identity);
    }
    let address = control_plane.addresses().xds;
    let endpoint = Endpoint::from_shared(format!("https://{address}")).unwrap().tls_config(tls).unwrap();
    soon("TLS", endpoint.connect()).await
}

impl Proxy {
    /// Opens the stream and asks for all of a type.
    pub(crate) async fn connect(
        control_plane: &ControlPlane,
        introduction: Introduction<'_>,
        type_url: &str,
    ) -> Result<Self, Status> {
        let Introduction { kind, namespace, account, authorization, identity, address, metadata, known } =
            introduction;
        let mut fields =
            json!({ "NAMESPACE": namespace, "SERVICE_ACCOUNT": account, "ISTIO_VERSION": "1.24.0" });
        fields.as_object_mut().unwrap().extend(metadata.as_object().unwrap().clone());
        let node = Node {
            id: format!("{kind}~{address}~web-1.{namespace}~{namespace}.svc.cluster.local"),
            metadata: Some(fields_of(&fields)),
            ..Node::default()
        };
        let (requests, receiver) = mpsc::channel(16);
        let first = DeltaDiscoveryRequest {
            node: Some(node),
            type_url: type_url.to_owned(),
            initial_resource_versions: known,
            ..DeltaDiscoveryRequest::default()
        };
        requests.send(first).await.unwrap();
        let mut call = tonic::Request::new(ReceiverStream::new(receiver));
        if let Some(authorization) = authorization {
            call.metadata_mut().insert("authorization", authorization.parse().unwrap());
        }
        let channel = connect(control_plane, identity).await.unwrap();
        let mut client = AggregatedDiscoveryServiceClient::new(channel).max_decoding_message_size(64 << 20);
        let responses = soon("stream", client.delta_aggregated_resources(call)).await?.into_inner();
        Ok(Self { requests, responses, held: BTreeMap::new() })
    }

    /// Subscribes to names of a type; no name is all of it.
    pub(crate) async fn subscribe(&self, type_url: &str, names: &[&str]) {
        let request = DeltaDiscoveryRequest {
            type_url: type_url.to_owned(),
            resource_names_subscribe: names.iter().map(|&name| name.to_owned()).collect(),
            ..DeltaDiscoveryRequest::default()
        };
        self.requests.send(request).await.unwrap();
    }

    /// Tells how the application is, as an agent does.
    pub(crate) async fn report(&self, problem: Option<&str>) {
        let error = |message: &str| RpcStatus { code: 500, message: message.into(), details: vec![] };
        let request = DeltaDiscoveryRequest {
            type_url: lateen_xds::type_urls::HEALTH_INFORMATION.to_owned(),
            error_detail: problem.map(error),
            ..DeltaDiscoveryRequest::default()
        };
        self.requests.send(request).await.unwrap();
    }

    /// The next response, not yet answered.
    pub(crate) async fn receive(&mut self) -> DeltaDiscoveryResponse {
        let response = soon("response", self.responses.message()).await.unwrap().expect("the stream is open");
        for resource in &response.resources {
            self.held.insert((response.type_url.clone(), resource.name.clone()), resource.version.clone());
        }
        for name in &response.removed_resources {
            self.held.remove(&(response.type_url.clone(), name.clone()));
        }
        response
    }

    pub(crate) async fn answer(&self, response: &DeltaDiscoveryResponse, error: Option<&str>) {
        let error_detail =
            error.map(|message| RpcStatus { code: 3, message: message.into(), details: vec![] });
        let request = DeltaDiscoveryRequest {
            type_url: response.type_url.clone(),
            response_nonce: response.nonce.clone(),
            error_detail,
            ..DeltaDiscoveryRequest::default()
        };
        self.requests.send(request).await.unwrap();
    }

    /// Receives and accepts until a response fulfils the condition; returns that one.
    pub(crate) async fn until(
        &mut self,
        found: impl Fn(&DeltaDiscoveryResponse) -> bool,
    ) -> DeltaDiscoveryResponse {
        loop {
            let response = self.receive().await;
            self.answer(&response, None).await;
            if found(&response) {
                return response;
            }
        }
    }

    /// The end of the stream: how it ended.
    pub(crate) async fn end(mut self) -> Status {
        loop {
            match soon("end of stream", self.responses.message()).await {
                Ok(Some(_)) => {}
                Ok(None) => return Status::ok(""),
                Err(status) => return status,
            }
        }
    }
}

/// Whether a response carries this resource.
pub(crate) fn carries(response: &DeltaDiscoveryResponse, name: &str) -> bool {
    response.resources.iter().any(|resource| resource.name == name)
}

/// GET from the control plane's monitoring port.
pub(crate) async fn debug(control_plane: &ControlPlane, path: &str) -> (u16, String) {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let mut stream = tokio::net::TcpStream::connect(control_plane.addresses().monitoring).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nhost: istiod\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    soon(path, stream.read_to_string(&mut answer)).await.unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    let code = head.split(' ').nth(1).unwrap().parse().unwrap();
    // Bodies of known length are not chunked.
    (code, body.to_owned())
}

/// JSON as a message; objects and texts are enough here.
fn fields_of(value: &Value) -> Struct {
    let kind = |value: &Value| match value {
        Value::String(text) => Kind::StringValue(text.clone()),
        object => Kind::StructValue(fields_of(object)),
    };
    let fields = value.as_object().into_iter().flatten();
    let fields = fields.map(|(key, value)| (key.clone(), ProtoValue { kind: Some(kind(value)) }));
    Struct { fields: fields.collect() }
}
