//! The client against a small ADS server in process, over an in-memory connection.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::future::BoxFuture;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use hyper_util::service::TowerToHyperService;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tokio_stream::{Stream, StreamExt};
use tonic::metadata::MetadataMap;
use tonic::{Request, Response, Streaming};

use super::*;
use crate::any::pack;
use crate::pb::envoy::config::cluster::v3::Cluster;
use crate::pb::envoy::service::discovery::v3::aggregated_discovery_service_server::{
    AggregatedDiscoveryService, AggregatedDiscoveryServiceServer,
};
use crate::pb::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse,
    Resource as WireResource,
};
use crate::type_urls::{CLUSTER, ENDPOINT};

type Answer<T> = Result<T, tonic::Status>;

/// One stream as the test sees it: what the client says, and a way to answer.
struct Scripted<Req, Resp> {
    requests: Streaming<Req>,
    responses: mpsc::Sender<Answer<Resp>>,
    token: Option<String>,
}

impl<Req, Resp> Scripted<Req, Resp> {
    async fn request(&mut self) -> Req {
        let next = tokio::time::timeout(Duration::from_secs(10), self.requests.next());
        next.await.expect("a request in time").expect("an open stream").expect("a request")
    }

    async fn respond(&self, response: Resp) {
        self.responses.send(Ok(response)).await.expect("an open stream");
    }
}

/// Hands every stream to the test.
struct Server {
    delta: mpsc::Sender<Scripted<DeltaDiscoveryRequest, DeltaDiscoveryResponse>>,
    sotw: mpsc::Sender<Scripted<DiscoveryRequest, DiscoveryResponse>>,
}

fn scripted<Req, Resp: Send + 'static>(
    request: Request<Streaming<Req>>,
) -> (Scripted<Req, Resp>, Responses<Resp>) {
    let token =
        request.metadata().get("authorization").and_then(|value| value.to_str().ok()).map(str::to_owned);
    let (responses, receiver) = mpsc::channel(8);
    (Scripted { requests: request.into_inner(), responses, token }, Box::pin(ReceiverStream::new(receiver)))
}

type Responses<T> = std::pin::Pin<Box<dyn Stream<Item = Answer<T>> + Send>>;

#[tonic::async_trait]
impl AggregatedDiscoveryService for Server {
    type StreamAggregatedResourcesStream = Responses<DiscoveryResponse>;
    type DeltaAggregatedResourcesStream = Responses<DeltaDiscoveryResponse>;

    async fn stream_aggregated_resources(
        &self,
        request: Request<Streaming<DiscoveryRequest>>,
    ) -> Answer<Response<Self::StreamAggregatedResourcesStream>> {
        let (stream, responses) = scripted(request);
        let sent = self.sotw.send(stream).await;
        sent.map_err(|_| tonic::Status::unavailable("the test is over"))?;
        Ok(Response::new(responses))
    }

    async fn delta_aggregated_resources(
        &self,
        request: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Answer<Response<Self::DeltaAggregatedResourcesStream>> {
        let (stream, responses) = scripted(request);
        let sent = self.delta.send(stream).await;
        sent.map_err(|_| tonic::Status::unavailable("the test is over"))?;
        Ok(Response::new(responses))
    }
}

struct Fixture {
    client: AdsClient,
    updates: mpsc::Receiver<Update>,
    delta: mpsc::Receiver<Scripted<DeltaDiscoveryRequest, DeltaDiscoveryResponse>>,
    sotw: mpsc::Receiver<Scripted<DiscoveryRequest, DiscoveryResponse>>,
    /// Counts attempts to connect.
    attempts: watch::Receiver<usize>,
    /// While true, connecting fails.
    refuse: Arc<Mutex<bool>>,
}

/// Starts a client whose connections each reach a server over a pair of in-memory pipes.
fn start(mode: Mode, known: Vec<(String, String, String)>) -> Fixture {
    let (delta_sender, delta) = mpsc::channel(4);
    let (sotw_sender, sotw) = mpsc::channel(4);
    let (attempts_sender, attempts) = watch::channel(0);
    let refuse = Arc::new(Mutex::new(false));
    let refused = refuse.clone();
    let connect: Connect = Arc::new(move || -> BoxFuture<'static, Result<Connection, String>> {
        attempts_sender.send_modify(|attempts| *attempts += 1);
        if *refused.lock().unwrap() {
            return Box::pin(async { Err("nobody listens".to_owned()) });
        }
        let server = Server { delta: delta_sender.clone(), sotw: sotw_sender.clone() };
        let (ours, theirs) = tokio::io::duplex(64 * 1024);
        let service = TowerToHyperService::new(AggregatedDiscoveryServiceServer::new(server));
        tokio::spawn(async move {
            let server = auto::Builder::new(TokioExecutor::new()).http2_only();
            // The connection ends with the client's.
            let _ = server.serve_connection(TokioIo::new(theirs), service).await;
        });
        Box::pin(async move {
            let channel = channel_over(ours, "istiod").await?;
            let mut metadata = MetadataMap::new();
            metadata.insert("authorization", "Bearer t".parse().unwrap());
            Ok(Connection { channel, metadata })
        })
    });
    let (client, updates) = AdsClient::start(ClientConfig {
        node: Node { id: "n".into(), ..Default::default() },
        mode,
        wildcards: vec![CLUSTER],
        connect,
        reconnect: Reconnect { base: Duration::from_millis(1), max: Duration::from_millis(5) },
        known,
    });
    Fixture { client, updates, delta, sotw, attempts, refuse }
}

impl Fixture {
    async fn update(&mut self) -> Update {
        tokio::time::timeout(Duration::from_secs(10), self.updates.recv()).await.unwrap().unwrap()
    }
}

fn cluster(name: &str) -> Any {
    pack(&Cluster { name: name.into(), ..Default::default() })
}

fn delta_response(nonce: &str, names: &[(&str, &str)], removed: &[&str]) -> DeltaDiscoveryResponse {
    let resources = names.iter().map(|(name, version)| WireResource {
        name: (*name).into(),
        version: (*version).into(),
        resource: Some(cluster(name)),
        ..Default::default()
    });
    DeltaDiscoveryResponse {
        type_url: CLUSTER.into(),
        nonce: nonce.into(),
        resources: resources.collect(),
        removed_resources: removed.iter().map(|name| (*name).into()).collect(),
        ..Default::default()
    }
}

fn names(list: &[&str]) -> BTreeSet<String> {
    list.iter().map(|name| (*name).to_owned()).collect()
}

#[tokio::test]
async fn good_resources_apply_and_bad_ones_are_named() {
    let mut fixture = start(Mode::Delta, vec![]);
    let mut stream = fixture.delta.recv().await.unwrap();
    assert_eq!(stream.token.as_deref(), Some("Bearer t"));
    let first = stream.request().await;
    assert_eq!((first.type_url.as_str(), first.node.unwrap().id.as_str()), (CLUSTER, "n"));
    assert!(first.resource_names_subscribe.is_empty(), "no names: everything");

    stream.respond(delta_response("1", &[("a", "v1"), ("b", "v1")], &[])).await;
    let update = fixture.update().await;
    assert_eq!(update.added.iter().map(|added| added.name.as_str()).collect::<Vec<_>>(), ["a", "b"]);
    update.answer(vec![Rejected { name: "b".into(), reason: "lb_policy: no".into() }]);
    let nack = stream.request().await;
    assert_eq!(nack.response_nonce, "1");
    assert!(nack.node.is_none(), "the node is sent once");
    assert_eq!(nack.error_detail.unwrap().message, "b: lb_policy: no");

    // The next stream shows what was accepted, and only that.
    drop(stream);
    let mut stream = fixture.delta.recv().await.unwrap();
    let again = stream.request().await;
    assert_eq!(again.initial_resource_versions, [("a".to_owned(), "v1".to_owned())].into());
    assert!(again.node.is_some());
    stream.respond(delta_response("2", &[], &["a"])).await;
    let update = fixture.update().await;
    assert_eq!((update.added.len(), update.removed.as_slice()), (0, ["a".to_owned()].as_slice()));
    update.answer(vec![]);
    assert!(stream.request().await.error_detail.is_none());
}

#[tokio::test]
async fn names_are_subscribed_and_unsubscribed() {
    let mut fixture = start(Mode::Delta, vec![(ENDPOINT.into(), "a".into(), "7".into())]);
    let mut stream = fixture.delta.recv().await.unwrap();
    stream.request().await;
    // Nothing wanted and nothing asked: silence, because a request without names means everything.
    fixture.client.subscribe(ENDPOINT, names(&[]));
    fixture.client.subscribe(ENDPOINT, names(&["a", "b"]));
    let request = stream.request().await;
    assert_eq!((request.type_url.as_str(), request.resource_names_subscribe.len()), (ENDPOINT, 2));
    assert_eq!(
        request.initial_resource_versions,
        [("a".to_owned(), "7".to_owned())].into(),
        "from the cache"
    );
    fixture.client.subscribe(ENDPOINT, names(&["b", "c"]));
    let request = stream.request().await;
    assert_eq!(request.resource_names_subscribe, ["c"]);
    assert_eq!(request.resource_names_unsubscribe, ["a"]);
    assert!(request.initial_resource_versions.is_empty());

    drop(stream);
    let mut stream = fixture.delta.recv().await.unwrap();
    stream.request().await;
    let request = stream.request().await;
    assert_eq!(request.resource_names_subscribe, ["b", "c"], "all of them anew on a new stream");
}

#[tokio::test]
async fn what_a_batch_refers_to_is_asked_for_before_it_is_acknowledged() {
    let mut fixture = start(Mode::Delta, vec![]);
    let mut stream = fixture.delta.recv().await.unwrap();
    stream.request().await;
    for (nonce, cluster) in [("1", "a"), ("2", "b"), ("3", "c")] {
        stream.respond(delta_response(nonce, &[(cluster, "v1")], &[])).await;
        let update = fixture.update().await;
        fixture.client.subscribe(ENDPOINT, names(&[cluster]));
        update.answer(vec![]);
        let request = stream.request().await;
        assert_eq!(
            (request.type_url.as_str(), request.resource_names_subscribe),
            (ENDPOINT, vec![cluster.to_owned()])
        );
        assert_eq!(stream.request().await.response_nonce, nonce);
    }
}

#[tokio::test]
async fn attempts_go_on_while_nobody_listens() {
    let mut fixture = start(Mode::Delta, vec![]);
    let stream = fixture.delta.recv().await.unwrap();
    *fixture.refuse.lock().unwrap() = true;
    drop(stream);
    fixture.attempts.wait_for(|attempts| *attempts >= 4).await.unwrap();
    let mut status = fixture.client.status();
    let failed = Status::Disconnected { reason: "nobody listens".into() };
    status.wait_for(|status| *status == failed).await.unwrap();
    *fixture.refuse.lock().unwrap() = false;
    let _stream = fixture.delta.recv().await.unwrap();
    status.wait_for(|status| *status == Status::Connected).await.unwrap();
}

#[tokio::test]
async fn a_dropped_update_refuses_everything() {
    let mut fixture = start(Mode::Delta, vec![]);
    let mut stream = fixture.delta.recv().await.unwrap();
    stream.request().await;
    stream.respond(delta_response("1", &[("a", "v1")], &[])).await;
    drop(fixture.update().await);
    assert_eq!(stream.request().await.error_detail.unwrap().message, "a: the update was dropped");
}

fn sotw_response(nonce: &str, version: &str, clusters: &[&str]) -> DiscoveryResponse {
    DiscoveryResponse {
        type_url: CLUSTER.into(),
        version_info: version.into(),
        nonce: nonce.into(),
        resources: clusters.iter().map(|name| cluster(name)).collect(),
        ..Default::default()
    }
}

#[tokio::test]
async fn state_of_the_world_becomes_differences() {
    let mut fixture = start(Mode::Sotw, vec![]);
    let mut stream = fixture.sotw.recv().await.unwrap();
    let first = stream.request().await;
    assert_eq!((first.type_url.as_str(), first.version_info.as_str()), (CLUSTER, ""));
    stream.respond(sotw_response("1", "v1", &["a", "b"])).await;
    let update = fixture.update().await;
    assert_eq!(update.added.len(), 2);
    update.answer(vec![]);
    let ack = stream.request().await;
    assert_eq!((ack.version_info.as_str(), ack.response_nonce.as_str()), ("v1", "1"));

    stream.respond(sotw_response("2", "v2", &["b", "c"])).await;
    let update = fixture.update().await;
    let added: Vec<_> = update.added.iter().map(|added| added.name.as_str()).collect();
    assert_eq!(
        (added.as_slice(), update.removed.as_slice()),
        (["c"].as_slice(), ["a".to_owned()].as_slice())
    );
    update.answer(vec![Rejected { name: "c".into(), reason: "no".into() }]);
    let nack = stream.request().await;
    assert_eq!((nack.version_info.as_str(), nack.response_nonce.as_str()), ("v1", "2"));
    assert_eq!(nack.error_detail.unwrap().message, "c: no");

    fixture.client.subscribe(ENDPOINT, names(&["e"]));
    let request = stream.request().await;
    assert_eq!(
        (request.type_url.as_str(), request.resource_names.as_slice()),
        (ENDPOINT, ["e".to_owned()].as_slice())
    );

    drop(stream);
    let mut stream = fixture.sotw.recv().await.unwrap();
    let again = stream.request().await;
    assert_eq!(
        (again.version_info.as_str(), again.response_nonce.as_str()),
        ("v1", ""),
        "a nonce is for one stream"
    );
    assert_eq!(stream.request().await.resource_names, ["e"]);
}

#[test]
fn nacks_stay_readable() {
    let many: Vec<_> = (0..50).map(|n| Rejected { name: n.to_string(), reason: "no".into() }).collect();
    let message = nack_message(&many);
    assert!(message.starts_with("0: no; 1: no; ") && message.ends_with("; and 30 more"), "{message}");
}
