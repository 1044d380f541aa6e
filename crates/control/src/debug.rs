//! Port 15014: metrics for everybody; the control plane's inside for callers on the loopback, as `kubectl port-forward` and
//! `kubectl exec` are.
use std::sync::Arc;

use axum::extract::{Query, Request, State};
use axum::http::StatusCode;
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use lateen_api::Kind;
use lateen_model::{Config, Health, Registry, Service};
use lateen_xds::json::JsonCodec;
use lateen_xds::server::{Connections, PeerAddress, Snapshot};
use lateen_xds::type_urls;
use serde::Deserialize;
use serde_json::{Map, Value, json};
use tokio::sync::watch;

use crate::metrics::Metrics;
use crate::push::Published;
use crate::source::{Session, Sessions};
use crate::syncz;

/// Content type of the exposition text.
const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// What is shown.
#[derive(Clone)]
pub(crate) struct Debug {
    pub(crate) name: String,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) published: watch::Receiver<Published>,
    pub(crate) connections: Connections,
    pub(crate) sessions: Sessions,
}

/// The routes of the port.
pub(crate) fn router(debug: Debug) -> Router {
    let inside = Router::new()
        .route("/debug", get(index))
        .route("/debug/syncz", get(show_syncz))
        .route("/debug/adsz", get(adsz))
        .route("/debug/configz", get(configz))
        .route("/debug/registryz", get(registryz))
        .route("/debug/endpointz", get(endpointz))
        .route("/debug/config_dump", get(config_dump))
        .layer(middleware::from_fn(loopback_only));
    Router::new()
        .route("/metrics", get(show_metrics))
        .route("/version", get(|| async { env!("CARGO_PKG_VERSION") }))
        .merge(inside)
        .with_state(debug)
}

/// The inside of the control plane tells the whole mesh's configuration; only who is in the pod may read it.
async fn loopback_only(request: Request, next: Next) -> Response {
    let peer = request.extensions().get::<PeerAddress>().map(|peer| peer.0.ip().to_canonical());
    if peer.is_some_and(|address| address.is_loopback()) {
        return next.run(request).await;
    }
    let hint = "debug is for callers on the loopback; use kubectl port-forward or kubectl exec\n";
    (StatusCode::FORBIDDEN, hint).into_response()
}

async fn index() -> &'static str {
    "/debug/syncz\n/debug/adsz\n/debug/configz\n/debug/registryz\n/debug/endpointz\n/debug/config_dump?proxyID=POD.NAMESPACE\n"
}

async fn show_metrics(State(debug): State<Debug>) -> impl IntoResponse {
    ([("content-type", OPEN_METRICS)], debug.metrics.encode())
}

async fn show_syncz(State(debug): State<Debug>) -> Json<Value> {
    Json(syncz::document(&debug.connections.list(), &debug.name))
}

async fn adsz(State(debug): State<Debug>) -> Json<Value> {
    let list = debug.connections.list();
    let clients: Vec<Value> = list
        .iter()
        .map(|connection| {
            let watches: Map<String, Value> = connection
                .types
                .iter()
                .map(|(url, status)| (url.to_string(), json!(status.subscribed)))
                .collect();
            json!({
                "connectionId": connection.id,
                "node": connection.node.id,
                "address": connection.peer.map(|peer| peer.to_string()),
                "connectedAt": syncz::time(connection.connected),
                "watches": watches,
            })
        })
        .collect();
    Json(json!({ "totalClients": clients.len(), "clients": clients }))
}

async fn configz(State(debug): State<Debug>) -> Json<Value> {
    fn object<S: Kind>(config: &Config<S>) -> Value {
        json!({
            "apiVersion": format!("{}/{}", S::GROUP, S::VERSIONS[0]),
            "kind": S::KIND,
            "metadata": {
                "name": &*config.name.name,
                "namespace": &*config.name.namespace,
                "generation": config.generation,
            },
            "spec": config.spec,
        })
    }
    let world = debug.published.borrow().world.clone();
    let gateways = world.gateways().map(|config| object(config));
    let services = world.virtual_services().map(|config| object(config));
    let rules = world.destination_rules().map(|config| object(config));
    let entries = world.service_entries().map(|config| object(config));
    let workloads = world.workload_entries().map(|config| object(config));
    let groups = world.workload_groups().map(|config| object(config));
    let sidecars = world.sidecars().map(|config| object(config));
    let access = world.authorization_policies().map(|config| object(config));
    let tokens = world.request_authentications().map(|config| object(config));
    let peers = world.peer_authentications().map(|config| object(config));
    let networking = gateways.chain(services).chain(rules).chain(entries);
    Json(Value::Array(
        networking
            .chain(workloads)
            .chain(groups)
            .chain(sidecars)
            .chain(access)
            .chain(tokens)
            .chain(peers)
            .collect(),
    ))
}

async fn registryz(State(debug): State<Debug>) -> Json<Value> {
    let world = debug.published.borrow().world.clone();
    Json(Value::Array(world.services().map(|service| describe_service(service)).collect()))
}

fn describe_service(service: &Service) -> Value {
    let ports: Vec<Value> = service
        .ports
        .iter()
        .map(|port| json!({ "name": port.name, "port": port.port, "protocol": format!("{:?}", port.protocol) }))
        .collect();
    let registry = match service.registry {
        Registry::Kubernetes => "Kubernetes",
        Registry::ServiceEntry => "External",
    };
    json!({
        "hostname": &*service.hostname,
        "Attributes": { "ServiceRegistry": registry, "Name": &*service.name.name, "Namespace": &*service.name.namespace },
        "clusterVIPs": service.addresses,
        "ranges": service.ranges.iter().map(ToString::to_string).collect::<Vec<_>>(),
        "autoAddress": service.auto_address,
        "ports": ports,
        "Resolution": format!("{:?}", service.resolution),
    })
}

async fn endpointz(State(debug): State<Debug>) -> Json<Value> {
    let world = debug.published.borrow().world.clone();
    let mut list = Vec::new();
    for service in world.services() {
        let Some(endpoints) = world.endpoints(service) else { continue };
        for (port, endpoints) in &endpoints.by_port {
            let endpoints: Vec<Value> = endpoints
                .iter()
                .map(|endpoint| {
                    json!({
                        "address": endpoint.address.to_string(),
                        "port": endpoint.port,
                        "health": match endpoint.health {
                            Health::Healthy => "HEALTHY",
                            Health::Unhealthy => "UNHEALTHY",
                            Health::Draining => "DRAINING",
                        },
                        "workload": endpoint.workload,
                        "labels": *endpoint.labels,
                    })
                })
                .collect();
            list.push(json!({ "svc": format!("{}:{port}", service.hostname), "ep": endpoints }));
        }
    }
    Json(Value::Array(list))
}

#[derive(Deserialize)]
struct ProxyQuery {
    #[serde(rename = "proxyID", default)]
    proxy_id: String,
}

/// What a proxy should have, in the shape of Envoy's `/config_dump`.
async fn config_dump(State(debug): State<Debug>, Query(query): Query<ProxyQuery>) -> Response {
    let sessions = debug.connections.list().into_iter().rev().filter_map(|one| debug.sessions.get(one.id));
    let Some(session) = sessions.into_iter().find(|session| session.proxy.id == query.proxy_id) else {
        let hint = format!(
            "no proxy {:?} is connected here; proxyID is POD.NAMESPACE, see /debug/syncz\n",
            query.proxy_id
        );
        return (StatusCode::NOT_FOUND, hint).into_response();
    };
    // Unpacking the descriptors and decoding everything takes a while: not on an I/O thread.
    match tokio::task::spawn_blocking(move || dump(&session)).await {
        Ok(Ok(document)) => Json(document).into_response(),
        Ok(Err(error)) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")).into_response(),
    }
}

fn dump(session: &Session) -> Result<Value, lateen_xds::json::JsonError> {
    let codec = JsonCodec::new()?;
    let snapshot: Arc<Snapshot> = session.snapshots.borrow().clone();
    let resources = |url: &str, field: &str| {
        snapshot
            .set(url)
            .iter()
            .map(|resource| {
                let body = codec.any_to_value(url, &resource.body)?;
                Ok(json!({ "version_info": &*resource.version, field: body }))
            })
            .collect::<Result<Vec<Value>, lateen_xds::json::JsonError>>()
    };
    let listeners: Vec<Value> = resources(type_urls::LISTENER, "listener")?
        .into_iter()
        .map(|state| json!({ "name": state["listener"]["name"], "active_state": state }))
        .collect();
    let kind = |name: &str| format!("type.googleapis.com/envoy.admin.v3.{name}");
    Ok(json!({ "configs": [
        { "@type": kind("ClustersConfigDump"), "dynamic_active_clusters": resources(type_urls::CLUSTER, "cluster")? },
        { "@type": kind("ListenersConfigDump"), "dynamic_listeners": listeners },
        { "@type": kind("RoutesConfigDump"), "dynamic_route_configs": resources(type_urls::ROUTE, "route_config")? },
        { "@type": kind("EndpointsConfigDump"),
          "dynamic_endpoint_configs": resources(type_urls::ENDPOINT, "endpoint_config")? },
    ] }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::push::PushLoop;
    use axum::body::Body;
    use lateen_model::{Store, StoreOptions};
    use std::net::SocketAddr;
    use tower::ServiceExt as _;

    #[tokio::test]
    async fn only_metrics_are_for_everybody() {
        let metrics = Metrics::new("1");
        let push = PushLoop::new(Store::new(StoreOptions::default()), [], metrics.clone());
        let debug = Debug {
            name: "istiod".into(),
            metrics,
            published: push.subscribe(),
            connections: Connections::default(),
            sessions: Sessions::default(),
        };
        let router = router(debug);
        let status = async |path: &str, peer: Option<&str>| {
            let mut request = Request::builder().uri(path).body(Body::empty()).unwrap();
            if let Some(peer) = peer {
                let peer: SocketAddr = peer.parse().unwrap();
                request.extensions_mut().insert(PeerAddress(peer));
            }
            router.clone().oneshot(request).await.unwrap().status()
        };
        let paths = ["syncz", "adsz", "configz", "registryz", "endpointz", "config_dump"];
        for path in paths.map(|name| format!("/debug/{name}")) {
            assert_eq!(status(&path, Some("10.1.2.3:4")).await, StatusCode::FORBIDDEN, "{path}");
            assert_eq!(status(&path, None).await, StatusCode::FORBIDDEN, "{path}");
            for near in ["127.0.0.1:4", "[::1]:4", "[::ffff:127.0.0.1]:4"] {
                assert_ne!(status(&path, Some(near)).await, StatusCode::FORBIDDEN, "{path} from {near}");
            }
        }
        assert_eq!(status("/metrics", Some("10.1.2.3:4")).await, StatusCode::OK);
    }
}
