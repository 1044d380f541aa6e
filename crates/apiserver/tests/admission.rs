//! Admission webhooks over TLS, by Service (through the resolver hook and through EndpointSlices) and by URL.

use std::{convert::Infallible, net::SocketAddr, sync::Arc};

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::{body::Incoming, service::service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::{
    Api, Client, Config,
    api::{DeleteParams, DynamicObject, Patch, PatchParams, PostParams},
    config::{KubeConfigOptions, Kubeconfig},
    core::{ApiResource, GroupVersionKind},
};
use lateen_apiserver::{ApiServer, ApiServerConfig, ServiceResolver, ServiceTarget};
use lateen_podstreams::{BoxFuture, Duplex};
use serde_json::{Value, json};

/// A webhook server: `/mutate` adds a data key counting its calls, `/deny` refuses, `/broken` answers nonsense, `/hang`
/// nothing.
struct Hook {
    address: SocketAddr,
    ca_bundle: String,
}

async fn answer(request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    let path = request.uri().path().to_owned();
    let body = request.into_body().collect().await.unwrap().to_bytes();
    let review: Value = serde_json::from_slice(&body).unwrap();
    let object = &review["request"]["object"];
    let mut response = json!({"uid": review["request"]["uid"], "allowed": true});
    match path.as_str() {
        "/mutate" => {
            let calls = object["data"]["calls"].as_str().and_then(|n| n.parse::<u32>().ok()).unwrap_or(0) + 1;
            let patch = json!([{"op": "add", "path": "/data/calls", "value": calls.to_string()}]);
            response["patchType"] = json!("JSONPatch");
            response["patch"] = json!(BASE64.encode(patch.to_string()));
            response["warnings"] = json!(["be careful"]);
        }
        "/second" => {
            let patch = json!([{"op": "add", "path": "/data/second", "value": "yes"}]);
            response["patchType"] = json!("JSONPatch");
            response["patch"] = json!(BASE64.encode(patch.to_string()));
        }
        "/deny" => {
            response["allowed"] = json!(false);
            response["status"] = json!({"message": format!("no {} by {}", review["request"]["operation"], review["request"]["userInfo"]["username"])});
        }
        "/hang" => std::future::pending().await,
        _ => return Ok(Response::new(Full::new(Bytes::from_static(b"nonsense")))),
    }
    let review =
        json!({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "response": response});
    Ok(Response::new(Full::new(Bytes::from(review.to_string()))))
}

impl Hook {
    async fn start() -> Self {
        let names = ["hook.system.svc".to_owned(), "127.0.0.1".to_owned()];
        let certified = rcgen::generate_simple_self_signed(names).unwrap();
        let key = rustls_pki_types::PrivateKeyDer::try_from(certified.signing_key.serialize_der()).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![certified.cert.der().clone()], key)
            .unwrap();
        let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let acceptor = acceptor.clone();
                tokio::spawn(async move {
                    let Ok(tls) = acceptor.accept(stream).await else { return };
                    let builder = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
                    // The client closes when it has its answer.
                    let _ = builder.serve_connection(TokioIo::new(tls), service_fn(answer)).await;
                });
            }
        });
        Self { address, ca_bundle: BASE64.encode(certified.cert.pem()) }
    }
}

/// Leads `hook.system.svc` to the hook.
struct ToHook(SocketAddr);

impl ServiceResolver for ToHook {
    fn dial(&self, target: ServiceTarget) -> BoxFuture<'_, Option<std::io::Result<Box<dyn Duplex>>>> {
        Box::pin(async move {
            if target.name != "hook" {
                return None;
            }
            let connected = tokio::net::TcpStream::connect(self.0).await;
            Some(connected.map(|stream| Box::new(stream) as Box<dyn Duplex>))
        })
    }
}

async fn start(resolver: Option<Arc<dyn ServiceResolver>>) -> (ApiServer, Client) {
    let config = ApiServerConfig { service_resolver: resolver, ..ApiServerConfig::default() };
    let server = ApiServer::start(config).await.unwrap();
    let kubeconfig = Kubeconfig::from_yaml(&server.kubeconfig(&server.url()).unwrap()).unwrap();
    let config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await.unwrap();
    (server, Client::try_from(config).unwrap())
}

async fn configure(client: &Client, kind: &str, name: &str, client_config: Value, extra: Value) {
    let gvk = GroupVersionKind::gvk("admissionregistration.k8s.io", "v1", kind);
    let api: Api<DynamicObject> = Api::all_with(client.clone(), &ApiResource::from_gvk(&gvk));
    let mut webhook = json!({"name": format!("{name}.example.com"), "clientConfig": client_config, "sideEffects": "None",
        "admissionReviewVersions": ["v1"],
        "rules": [{"operations": ["CREATE", "DELETE"], "apiGroups": [""], "apiVersions": ["v1"], "resources": ["configmaps"]}]});
    for (key, value) in extra.as_object().into_iter().flatten() {
        webhook[key.as_str()] = value.clone();
    }
    let object = json!({"apiVersion": "admissionregistration.k8s.io/v1", "kind": kind, "metadata": {"name": name}, "webhooks": [webhook]});
    let object = Patch::Apply(object);
    api.patch(name, &PatchParams::apply("test").force(), &object).await.unwrap();
}

fn map(name: &str, labels: Value) -> ConfigMap {
    serde_json::from_value(json!({"metadata": {"name": name, "labels": labels}, "data": {"a": "b"}})).unwrap()
}

fn message(error: kube::Error) -> String {
    match error {
        kube::Error::Api(status) => status.message.clone(),
        other => panic!("{other}"),
    }
}

#[tokio::test]
async fn mutation_reinvocation_and_selection() {
    let hook = Hook::start().await;
    let (_server, client) = start(Some(Arc::new(ToHook(hook.address)))).await;
    let service = |path: &str| json!({"service": {"namespace": "system", "name": "hook", "path": path}, "caBundle": hook.ca_bundle});
    let selector =
        json!({"objectSelector": {"matchLabels": {"inject": "true"}}, "reinvocationPolicy": "IfNeeded"});
    configure(&client, "MutatingWebhookConfiguration", "first", service("/mutate"), selector).await;
    let maps: Api<ConfigMap> = Api::default_namespaced(client.clone());
    let plain = maps.create(&PostParams::default(), &map("plain", json!({}))).await.unwrap();
    assert_eq!(json!(plain.data), json!({"a": "b"}));
    let mutated = maps.create(&PostParams::default(), &map("one", json!({"inject": "true"}))).await.unwrap();
    assert_eq!(json!(mutated.data)["calls"], "1");
    // A later webhook changes the object, so the first is asked once more.
    configure(&client, "MutatingWebhookConfiguration", "second", service("/second"), json!({})).await;
    let mutated = maps.create(&PostParams::default(), &map("two", json!({"inject": "true"}))).await.unwrap();
    assert_eq!(json!(mutated.data), json!({"a": "b", "calls": "2", "second": "yes"}));
    let dry = PostParams { dry_run: true, ..PostParams::default() };
    maps.create(&dry, &map("dry", json!({"inject": "true"}))).await.unwrap();
    assert!(maps.get_opt("dry").await.unwrap().is_none());
}

#[tokio::test]
async fn refusals_and_failures_are_worded_as_kubernetes_does() {
    let hook = Hook::start().await;
    let (_server, client) = start(None).await;
    let maps: Api<ConfigMap> = Api::default_namespaced(client.clone());
    maps.create(&PostParams::default(), &map("old", json!({}))).await.unwrap();
    let url =
        |path: &str| json!({"url": format!("https://{}{path}", hook.address), "caBundle": hook.ca_bundle});
    let validating = "ValidatingWebhookConfiguration";
    configure(&client, validating, "hook", url("/deny"), json!({})).await;
    let refused = maps.create(&PostParams::default(), &map("x", json!({}))).await.unwrap_err();
    assert_eq!(
        message(refused),
        "admission webhook \"hook.example.com\" denied the request: no \"CREATE\" by \"kubernetes-admin\""
    );
    let refused = maps.delete("old", &DeleteParams::default()).await.unwrap_err();
    assert!(message(refused).contains("no \"DELETE\""));
    configure(&client, validating, "hook", url("/broken"), json!({})).await;
    let failed = message(maps.create(&PostParams::default(), &map("x", json!({}))).await.unwrap_err());
    assert!(failed.starts_with("Internal error occurred: failed calling webhook \"hook.example.com\": failed to call webhook: Post \"https://127.0.0.1:"), "{failed}");
    configure(&client, validating, "hook", url("/broken"), json!({"failurePolicy": "Ignore"})).await;
    maps.create(&PostParams::default(), &map("x", json!({}))).await.unwrap();
    let selected_out = json!({"namespaceSelector": {"matchLabels": {"no": "match"}}});
    configure(&client, validating, "hook", url("/deny"), selected_out).await;
    maps.create(&PostParams::default(), &map("y", json!({}))).await.unwrap();
}

#[tokio::test]
async fn services_are_reached_through_endpoint_slices() {
    let hook = Hook::start().await;
    let (_server, client) = start(None).await;
    let service = json!({"service": {"namespace": "system", "name": "hook", "path": "/mutate"}, "caBundle": hook.ca_bundle});
    configure(&client, "MutatingWebhookConfiguration", "hook", service, json!({})).await;
    let maps: Api<ConfigMap> = Api::default_namespaced(client.clone());
    let failed = message(maps.create(&PostParams::default(), &map("x", json!({}))).await.unwrap_err());
    assert!(failed.contains("service \"hook\" not found"), "{failed}");
    let create = |kind: &'static str, group: &'static str, object: Value| {
        let client = client.clone();
        async move {
            let resource = ApiResource::from_gvk(&GroupVersionKind::gvk(group, "v1", kind));
            let object: DynamicObject = serde_json::from_value(object).unwrap();
            let namespace = object.metadata.namespace.clone();
            let api: Api<DynamicObject> = match namespace {
                Some(namespace) => Api::namespaced_with(client, &namespace, &resource),
                None => Api::all_with(client, &resource),
            };
            api.create(&PostParams::default(), &object).await.unwrap();
        }
    };
    create("Namespace", "", json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "system"}}))
        .await;
    create(
        "Service",
        "",
        json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "hook", "namespace": "system"},
        "spec": {"ports": [{"name": "https", "port": 443}]}}),
    )
    .await;
    let failed = message(maps.create(&PostParams::default(), &map("x", json!({}))).await.unwrap_err());
    assert!(failed.contains("no endpoints available for service \"hook\""), "{failed}");
    create("EndpointSlice", "discovery.k8s.io", json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {"name": "hook-1", "namespace": "system", "labels": {"kubernetes.io/service-name": "hook"}},
        "addressType": "IPv4", "ports": [{"name": "https", "port": hook.address.port()}],
        "endpoints": [{"addresses": ["127.0.0.1"], "conditions": {"ready": true}}]})).await;
    let mutated = maps.create(&PostParams::default(), &map("x", json!({}))).await.unwrap();
    assert_eq!(json!(mutated.data)["calls"], "1");
}

#[tokio::test]
async fn a_validating_webhook_is_asked_about_valid_objects_only() {
    let hook = Hook::start().await;
    let (_server, client) = start(None).await;
    let url = json!({"url": format!("https://{}/deny", hook.address), "caBundle": hook.ca_bundle});
    configure(&client, "ValidatingWebhookConfiguration", "hook", url, json!({})).await;
    let maps: Api<ConfigMap> = Api::default_namespaced(client);
    let mut bad = map("x", json!({}));
    bad.data.as_mut().unwrap().insert("a/b".to_owned(), String::new());
    let kube::Error::Api(status) = maps.create(&PostParams::default(), &bad).await.unwrap_err() else {
        panic!("not an answer")
    };
    assert_eq!((status.code, status.reason.as_str()), (422, "Invalid"));
    assert!(status.message.contains("data[a/b]"), "{}", status.message);
}

#[tokio::test]
async fn webhooks_that_hang_or_are_somebody_else() {
    let hook = Hook::start().await;
    let (server, client) = start(None).await;
    let maps: Api<ConfigMap> = Api::default_namespaced(client.clone());
    let url =
        |path: &str| json!({"url": format!("https://{}{path}", hook.address), "caBundle": hook.ca_bundle});
    let validating = "ValidatingWebhookConfiguration";
    configure(&client, validating, "hook", url("/hang"), json!({"timeoutSeconds": 1})).await;
    let begun = std::time::Instant::now();
    let failed = message(maps.create(&PostParams::default(), &map("x", json!({}))).await.unwrap_err());
    assert!(failed.contains("?timeout=1s\": context deadline exceeded"), "{failed}");
    assert!(
        begun.elapsed() < std::time::Duration::from_secs(8),
        "not the default of 10 s: {:?}",
        begun.elapsed()
    );
    // The right address with another's certificate.
    let mut stranger = url("/mutate");
    stranger["caBundle"] = json!(BASE64.encode(server.ca_pem()));
    configure(&client, validating, "hook", stranger, json!({})).await;
    let failed = message(maps.create(&PostParams::default(), &map("x", json!({}))).await.unwrap_err());
    assert!(failed.contains("tls: ") && failed.contains("certificate"), "{failed}");
    assert!(maps.get_opt("x").await.unwrap().is_none());
}
