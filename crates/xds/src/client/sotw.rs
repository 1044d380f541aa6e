//! The state-of-the-world protocol without I/O.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Request, Response, Streaming};
use xxhash_rust::xxh3::xxh3_128;

use crate::any::resource_name;
use crate::client::variant::{Batch, Variant};
use crate::client::{Health, Rejected, Resource, Wanted, nack_message};
use crate::pb::envoy::config::core::v3::Node;
use crate::pb::envoy::service::discovery::v3::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient;
use crate::pb::envoy::service::discovery::v3::{DiscoveryRequest, DiscoveryResponse};
use crate::pb::google::rpc::Status;
use crate::type_urls;

const INVALID_ARGUMENT: i32 = 3;

/// What is known of one type.
#[derive(Default)]
struct TypeState {
    /// Last accepted version.
    version: String,
    /// Last nonce of the current stream.
    nonce: String,
    /// Content hash of each accepted resource, so that unchanged ones are not applied again.
    accepted: BTreeMap<String, u128>,
    /// Names asked for on the current stream.
    asked: Option<BTreeSet<String>>,
}

/// Everything known across streams.
pub(super) struct Sotw {
    node: Node,
    wildcards: Vec<&'static str>,
    types: HashMap<String, TypeState>,
    node_sent: bool,
    /// What was said of the application on the current stream.
    told: Option<Health>,
}

impl Sotw {
    pub(super) fn new(node: Node, wildcards: Vec<&'static str>) -> Self {
        Self { node, wildcards, types: HashMap::new(), node_sent: false, told: None }
    }

    fn request(&mut self, type_url: &str, error_detail: Option<Status>) -> DiscoveryRequest {
        let node = (!self.node_sent).then(|| self.node.clone());
        self.node_sent = true;
        let state = self.types.entry(type_url.to_owned()).or_default();
        DiscoveryRequest {
            version_info: state.version.clone(),
            node,
            resource_names: state.asked.iter().flatten().cloned().collect(),
            type_url: type_url.to_owned(),
            response_nonce: state.nonce.clone(),
            error_detail,
            ..Default::default()
        }
    }
}

/// A response that is not answered yet.
pub(super) struct Receipt {
    type_url: String,
    version: String,
    nonce: String,
    /// Names and content hashes.
    added: Vec<(String, u128)>,
    removed: Vec<String>,
}

impl Variant for Sotw {
    type Request = DiscoveryRequest;
    type Response = DiscoveryResponse;
    type Receipt = Receipt;

    async fn call(
        client: &mut AggregatedDiscoveryServiceClient<Channel>,
        requests: Request<ReceiverStream<Self::Request>>,
    ) -> Result<Response<Streaming<Self::Response>>, tonic::Status> {
        client.stream_aggregated_resources(requests).await
    }

    fn open(&mut self, wanted: &Wanted) -> Vec<Self::Request> {
        self.node_sent = false;
        self.told = None;
        for state in self.types.values_mut() {
            state.nonce.clear();
            state.asked = None;
        }
        let wildcards = self.wildcards.clone();
        let mut requests: Vec<_> = wildcards.iter().map(|type_url| self.request(type_url, None)).collect();
        requests.extend(self.resubscribe(wanted));
        requests
    }

    fn resubscribe(&mut self, wanted: &Wanted) -> Vec<Self::Request> {
        let mut requests = Vec::new();
        for (type_url, names) in &wanted.names {
            let state = self.types.entry(type_url.clone()).or_default();
            let unchanged = state.asked.as_ref().map_or(names.is_empty(), |asked| asked == names);
            if unchanged {
                continue;
            }
            state.asked = Some(names.clone());
            state.accepted.retain(|name, _| names.contains(name));
            // No names would mean everything; wanting nothing is said by silence.
            if !names.is_empty() {
                requests.push(self.request(type_url, None));
            }
        }
        if self.told != wanted.health {
            self.told.clone_from(&wanted.health);
            let error = wanted.health.as_ref().and_then(Health::error);
            requests.push(self.request(type_urls::HEALTH_INFORMATION, error));
        }
        requests
    }

    /// Of wildcard types, what is missing is removed; of others a response may hold a part.
    fn receive(&self, response: Self::Response) -> (Batch, Receipt) {
        let DiscoveryResponse { type_url, version_info: version, nonce, resources, .. } = response;
        let state = self.types.get(&type_url);
        let accepted = |name: &str| state.and_then(|state| state.accepted.get(name)).copied();
        let mut seen = BTreeSet::new();
        let (mut added, mut hashes) = (Vec::new(), Vec::new());
        for body in resources {
            let Some(name) = resource_name(&body) else { continue };
            seen.insert(name.clone());
            let hash = xxh3_128(&body.value);
            if accepted(&name) != Some(hash) {
                hashes.push((name.clone(), hash));
                added.push(Resource { name, version: version.clone(), body });
            }
        }
        let whole = self.wildcards.contains(&type_url.as_str());
        let known = state.iter().filter(|_| whole).flat_map(|state| state.accepted.keys());
        let removed: Vec<String> = known.filter(|name| !seen.contains(*name)).cloned().collect();
        let receipt = Receipt {
            type_url: type_url.clone(),
            version: version.clone(),
            nonce,
            added: hashes,
            removed: removed.clone(),
        };
        (Batch { type_url, version, added, removed }, receipt)
    }

    fn answer(&mut self, receipt: Receipt, rejected: &[Rejected]) -> Self::Request {
        let state = self.types.entry(receipt.type_url.clone()).or_default();
        state.nonce = receipt.nonce;
        let refused: BTreeSet<&str> = rejected.iter().map(|rejected| rejected.name.as_str()).collect();
        for (name, hash) in receipt.added {
            if !refused.contains(name.as_str()) {
                state.accepted.insert(name, hash);
            }
        }
        for name in &receipt.removed {
            state.accepted.remove(name);
        }
        if rejected.is_empty() {
            state.version = receipt.version;
            return self.request(&receipt.type_url, None);
        }
        let error = Status { code: INVALID_ARGUMENT, message: nack_message(rejected), details: Vec::new() };
        self.request(&receipt.type_url, Some(error))
    }
}
