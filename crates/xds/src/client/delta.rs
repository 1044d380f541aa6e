//! The delta protocol without I/O: what to ask, and what a response means.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Request, Response, Streaming};

use crate::client::variant::{Batch, Variant};
use crate::client::{Health, Rejected, Resource, Wanted, nack_message};
use crate::pb::envoy::config::core::v3::Node;
use crate::pb::envoy::service::discovery::v3::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient;
use crate::pb::envoy::service::discovery::v3::{DeltaDiscoveryRequest, DeltaDiscoveryResponse};
use crate::pb::google::rpc::Status;
use crate::type_urls;

const INVALID_ARGUMENT: i32 = 3;

/// Everything known across streams.
pub(super) struct Delta {
    node: Node,
    wildcards: Vec<&'static str>,
    /// Accepted versions by type and name.
    versions: HashMap<String, BTreeMap<String, String>>,
    /// Names asked for on the current stream.
    asked: HashMap<String, BTreeSet<String>>,
    node_sent: bool,
    /// What was said of the application on the current stream.
    told: Option<Health>,
}

impl Delta {
    pub(super) fn new(
        node: Node,
        wildcards: Vec<&'static str>,
        known: Vec<(String, String, String)>,
    ) -> Self {
        let mut versions: HashMap<String, BTreeMap<String, String>> = HashMap::new();
        for (type_url, name, version) in known {
            versions.entry(type_url).or_default().insert(name, version);
        }
        Self { node, wildcards, versions, asked: HashMap::new(), node_sent: false, told: None }
    }

    fn with_node(&mut self, mut request: DeltaDiscoveryRequest) -> DeltaDiscoveryRequest {
        if !self.node_sent {
            self.node_sent = true;
            request.node = Some(self.node.clone());
        }
        request
    }
}

/// A response that is not answered yet.
pub(super) struct Receipt {
    type_url: String,
    nonce: String,
    /// Names and versions.
    added: Vec<(String, String)>,
    removed: Vec<String>,
}

impl Variant for Delta {
    type Request = DeltaDiscoveryRequest;
    type Response = DeltaDiscoveryResponse;
    type Receipt = Receipt;

    async fn call(
        client: &mut AggregatedDiscoveryServiceClient<Channel>,
        requests: Request<ReceiverStream<Self::Request>>,
    ) -> Result<Response<Streaming<Self::Response>>, tonic::Status> {
        client.delta_aggregated_resources(requests).await
    }

    fn open(&mut self, wanted: &Wanted) -> Vec<Self::Request> {
        self.asked.clear();
        self.node_sent = false;
        self.told = None;
        let mut requests = Vec::new();
        for type_url in self.wildcards.clone() {
            // No names in the first request means everything, for old servers and new ones alike.
            let versions = self.versions.get(type_url).cloned().unwrap_or_default();
            let request = DeltaDiscoveryRequest {
                type_url: type_url.to_owned(),
                initial_resource_versions: versions.into_iter().collect(),
                ..Default::default()
            };
            requests.push(self.with_node(request));
        }
        requests.extend(self.resubscribe(wanted));
        requests
    }

    fn resubscribe(&mut self, wanted: &Wanted) -> Vec<Self::Request> {
        let mut requests = Vec::new();
        for (type_url, names) in &wanted.names {
            let first = !self.asked.contains_key(type_url);
            // A first request without names would mean everything.
            if first && names.is_empty() {
                continue;
            }
            let asked = self.asked.entry(type_url.clone()).or_default();
            let subscribe: Vec<String> = names.difference(asked).cloned().collect();
            let unsubscribe: Vec<String> = asked.difference(names).cloned().collect();
            if subscribe.is_empty() && unsubscribe.is_empty() {
                continue;
            }
            asked.clone_from(names);
            let versions = self.versions.entry(type_url.clone()).or_default();
            versions.retain(|name, _| names.contains(name));
            let initial = if first { versions.clone().into_iter().collect() } else { HashMap::new() };
            let request = DeltaDiscoveryRequest {
                type_url: type_url.clone(),
                resource_names_subscribe: subscribe,
                resource_names_unsubscribe: unsubscribe,
                initial_resource_versions: initial,
                ..Default::default()
            };
            requests.push(self.with_node(request));
        }
        if self.told != wanted.health {
            self.told.clone_from(&wanted.health);
            let request = DeltaDiscoveryRequest {
                type_url: type_urls::HEALTH_INFORMATION.to_owned(),
                error_detail: wanted.health.as_ref().and_then(Health::error),
                ..Default::default()
            };
            requests.push(self.with_node(request));
        }
        requests
    }

    fn receive(&self, response: Self::Response) -> (Batch, Receipt) {
        // A resource without a body would be an alias only; those are not used here.
        let present = response.resources.into_iter().filter_map(|resource| {
            let body = resource.resource?;
            Some(Resource { name: resource.name, version: resource.version, body })
        });
        let batch = Batch {
            type_url: response.type_url,
            version: response.system_version_info,
            added: present.collect(),
            removed: response.removed_resources,
        };
        let versions = batch.added.iter().map(|resource| (resource.name.clone(), resource.version.clone()));
        let receipt = Receipt {
            type_url: batch.type_url.clone(),
            nonce: response.nonce,
            added: versions.collect(),
            removed: batch.removed.clone(),
        };
        (batch, receipt)
    }

    fn answer(&mut self, receipt: Receipt, rejected: &[Rejected]) -> Self::Request {
        let versions = self.versions.entry(receipt.type_url.clone()).or_default();
        let refused: BTreeSet<&str> = rejected.iter().map(|rejected| rejected.name.as_str()).collect();
        for (name, version) in receipt.added {
            if !refused.contains(name.as_str()) {
                versions.insert(name, version);
            }
        }
        for name in &receipt.removed {
            versions.remove(name);
        }
        let error_detail = (!rejected.is_empty()).then(|| Status {
            code: INVALID_ARGUMENT,
            message: nack_message(rejected),
            details: Vec::new(),
        });
        DeltaDiscoveryRequest {
            type_url: receipt.type_url,
            response_nonce: receipt.nonce,
            error_detail,
            ..Default::default()
        }
    }
}
