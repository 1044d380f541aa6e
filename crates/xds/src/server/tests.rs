//! The server against raw tonic clients on a real socket.
#[path = "../../tests/support/serve.rs"]
mod serve;

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use futures::future::BoxFuture;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Code, Status, Streaming};

use super::*;
use crate::pb::envoy::config::core::v3::Node;
use crate::pb::envoy::service::discovery::v3::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient;
use crate::pb::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest,
};
use crate::pb::google::rpc::Status as RpcStatus;
use crate::type_urls::{CLUSTER, ROUTE};

struct Shared {
    snapshots: watch::Sender<Arc<Snapshot>>,
    events: Mutex<Vec<String>>,
}

impl Source for Shared {
    fn open(&self, hello: Hello) -> BoxFuture<'_, Result<Opened, Status>> {
        Box::pin(async move {
            let Some(token) = hello.headers.get("authorization") else {
                return Err(Status::unauthenticated("no token"));
            };
            let printed = format!("{hello:?}");
            assert!(!printed.contains(token.to_str().unwrap()), "{printed}");
            Ok(Opened { snapshots: self.snapshots.subscribe(), guard: Box::new(()) })
        })
    }

    fn observe(&self, event: &Event<'_>) {
        let kind = format!("{event:?}").split(' ').next().unwrap().to_owned();
        self.events.lock().unwrap().push(kind);
    }
}

fn clusters(version: u64, names: &[(&str, &str)]) -> Arc<Snapshot> {
    let set: ResourceSet = names
        .iter()
        .map(|(name, version)| {
            Arc::new(Resource { name: (*name).into(), version: (*version).into(), body: vec![1, 2].into() })
        })
        .collect();
    Arc::new(Snapshot::new(version, Instant::now()).with(CLUSTER, Arc::new(set)))
}

async fn start(first: Arc<Snapshot>) -> (Arc<Shared>, AdsServer<Shared>, Channel) {
    let shared = Arc::new(Shared { snapshots: watch::Sender::new(first), events: Mutex::default() });
    let server = AdsServer::new(shared.clone());
    let address = serve::serve(server.clone()).await;
    let channel = Channel::from_shared(format!("http://{address}")).unwrap().connect().await.unwrap();
    (shared, server, channel)
}

struct Delta {
    requests: mpsc::Sender<DeltaDiscoveryRequest>,
    responses: Streaming<DeltaDiscoveryResponse>,
}

impl Delta {
    async fn open(channel: Channel, first: DeltaDiscoveryRequest) -> Result<Self, Status> {
        let (requests, receiver) = mpsc::channel(8);
        let node = Node { id: "sidecar~10.0.0.1~a.b~b.svc".into(), ..Node::default() };
        requests.send(DeltaDiscoveryRequest { node: Some(node), ..first }).await.unwrap();
        let mut call = tonic::Request::new(ReceiverStream::new(receiver));
        call.metadata_mut().insert("authorization", "Bearer x".parse().unwrap());
        let responses = AggregatedDiscoveryServiceClient::new(channel)
            .delta_aggregated_resources(call)
            .await?
            .into_inner();
        Ok(Self { requests, responses })
    }

    async fn receive(&mut self) -> DeltaDiscoveryResponse {
        tokio::time::timeout(Duration::from_secs(10), self.responses.message())
            .await
            .unwrap()
            .unwrap()
            .unwrap()
    }

    async fn answer(&self, response: &DeltaDiscoveryResponse, error: Option<&str>) {
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
}

fn names(response: &DeltaDiscoveryResponse) -> Vec<String> {
    response.resources.iter().map(|r| format!("{}={}", r.name, r.version)).collect()
}

fn of_type(type_url: &str) -> DeltaDiscoveryRequest {
    DeltaDiscoveryRequest { type_url: type_url.into(), ..DeltaDiscoveryRequest::default() }
}

/// Waits until the only connection's clusters are in this state.
async fn state_becomes(server: &AdsServer<Shared>, expected: SyncState) -> TypeStatus {
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        let list = server.connections().list();
        let found =
            list.first().and_then(|connection| connection.types.get(CLUSTER)).cloned().unwrap_or_default();
        let done = found.state() == expected && (expected != SyncState::Stale || found.nacked.is_some());
        if done {
            return found;
        }
        assert!(Instant::now() < deadline, "still {found:?}");
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_delta_client_follows_changes_and_its_state_is_known() {
    let (shared, server, channel) = start(clusters(1, &[("a", "1"), ("b", "1")])).await;
    let mut client = Delta::open(channel, of_type(CLUSTER)).await.unwrap();
    let response = client.receive().await;
    assert_eq!(names(&response), ["a=1", "b=1"]);
    assert_eq!(response.resources[0].resource.as_ref().unwrap().value, [1, 2]);
    client.answer(&response, None).await;
    state_becomes(&server, SyncState::Synced).await;

    shared.snapshots.send_replace(clusters(2, &[("a", "2"), ("b", "1")]));
    let response = client.receive().await;
    assert_eq!(names(&response), ["a=2"]);
    client.answer(&response, Some("field x is not supported")).await;
    let state = state_becomes(&server, SyncState::Stale).await;
    assert_eq!(state.nacked.unwrap().message, "field x is not supported");

    shared.snapshots.send_replace(clusters(3, &[("a", "3")]));
    let response = client.receive().await;
    assert_eq!((names(&response), response.removed_resources.len()), (vec!["a=3".to_owned()], 0));
    client.answer(&response, None).await;
    let response = client.receive().await;
    assert_eq!(response.removed_resources, ["b"]);
    client.answer(&response, None).await;
    let state = state_becomes(&server, SyncState::Synced).await;
    assert!(state.nacked.is_none());
    assert_eq!(state.acked.unwrap().version, 3);

    drop(client);
    while !server.connections().is_empty() {
        tokio::task::yield_now().await;
    }
    let events = shared.events.lock().unwrap().clone();
    assert!(events.contains(&"Nacked".to_owned()) && events.contains(&"Acked".to_owned()), "{events:?}");
}

#[tokio::test]
async fn after_a_restart_only_differences_are_sent() {
    let (_shared, _server, channel) = start(clusters(9, &[("a", "1"), ("b", "2")])).await;
    let initial = HashMap::from([("a".to_owned(), "1".to_owned()), ("b".to_owned(), "1".to_owned())]);
    let first = DeltaDiscoveryRequest { initial_resource_versions: initial, ..of_type(CLUSTER) };
    let mut client = Delta::open(channel, first).await.unwrap();
    assert_eq!(names(&client.receive().await), ["b=2"]);
}

#[tokio::test]
async fn a_client_that_does_not_read_finds_the_latest_state() {
    let (shared, _server, channel) = start(clusters(1, &[("a", "1")])).await;
    let mut client = Delta::open(channel, of_type(CLUSTER)).await.unwrap();
    let first = client.receive().await;
    for version in 2..2000_u64 {
        shared.snapshots.send_replace(clusters(version, &[("a", &version.to_string())]));
    }
    client.answer(&first, None).await;
    assert_eq!(names(&client.receive().await), ["a=1999"], "what was in between is not sent");
}

#[tokio::test]
async fn a_client_that_does_not_answer_delays_nobody_and_piles_nothing_up() {
    let (shared, server, channel) = start(clusters(1, &[("a", "1")])).await;
    let mut stuck = Delta::open(channel.clone(), of_type(CLUSTER)).await.unwrap();
    stuck.receive().await;
    let mut quick = Delta::open(channel, of_type(CLUSTER)).await.unwrap();
    let first = quick.receive().await;
    quick.answer(&first, None).await;
    for version in 2..50 {
        let text = version.to_string();
        shared.snapshots.send_replace(clusters(version, &[("a", &text)]));
        let response = quick.receive().await;
        assert_eq!(names(&response), [format!("a={text}")]);
        quick.answer(&response, None).await;
    }
    let sent = server.connections().list()[0].types[CLUSTER].sent.clone().unwrap();
    assert_eq!((sent.nonce.as_str(), sent.version), ("1", 1), "one response is in flight");
}

#[tokio::test]
async fn refusals_and_nonsense_are_clear_statuses() {
    let (shared, _server, channel) = start(clusters(1, &[])).await;
    let mut client = AggregatedDiscoveryServiceClient::new(channel.clone());
    let with_node = DeltaDiscoveryRequest { node: Some(Node::default()), ..of_type(CLUSTER) };
    let refused = client.delta_aggregated_resources(tokio_stream::iter([with_node])).await.unwrap_err();
    assert_eq!((refused.code(), refused.message()), (Code::Unauthenticated, "no token"));
    let refused =
        client.delta_aggregated_resources(tokio_stream::iter([of_type(CLUSTER)])).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
    assert!(refused.message().contains("node"), "{refused}");
    let refused = Delta::open(channel, of_type("")).await.err().unwrap();
    assert_eq!(refused.code(), Code::InvalidArgument);
    assert_eq!(shared.events.lock().unwrap().iter().filter(|event| *event == "Failed").count(), 3);
}

#[tokio::test]
async fn a_state_of_the_world_client_is_served_too() {
    let (shared, _server, channel) = start(clusters(1, &[("a", "1")])).await;
    let (requests, receiver) = mpsc::channel(8);
    let mut first = DiscoveryRequest { type_url: CLUSTER.into(), ..DiscoveryRequest::default() };
    first.node = Some(Node::default());
    requests.send(first).await.unwrap();
    let mut call = tonic::Request::new(ReceiverStream::new(receiver));
    call.metadata_mut().insert("authorization", "Bearer x".parse().unwrap());
    let mut client = AggregatedDiscoveryServiceClient::new(channel);
    let mut responses = client.stream_aggregated_resources(call).await.unwrap().into_inner();
    let response = responses.message().await.unwrap().unwrap();
    assert_eq!((response.version_info.as_str(), response.resources.len()), ("1", 1));
    let ack = DiscoveryRequest {
        type_url: CLUSTER.into(),
        version_info: response.version_info,
        response_nonce: response.nonce,
        ..DiscoveryRequest::default()
    };
    requests.send(ack).await.unwrap();
    let ask = DiscoveryRequest {
        type_url: ROUTE.into(),
        resource_names: vec!["80".into()],
        ..DiscoveryRequest::default()
    };
    requests.send(ask).await.unwrap();
    let response = responses.message().await.unwrap().unwrap();
    assert_eq!((response.type_url.as_str(), response.resources.len()), (ROUTE, 0));
    shared.snapshots.send_replace(clusters(2, &[("a", "1"), ("b", "1")]));
    let response = responses.message().await.unwrap().unwrap();
    assert_eq!((response.version_info.as_str(), response.resources.len()), ("2", 2));
}
