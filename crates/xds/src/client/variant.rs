//! What the two variants of the protocol have in common.

use std::future::Future;

use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Request, Response, Status, Streaming};

use crate::client::{Rejected, Resource, Wanted};
use crate::pb::envoy::service::discovery::v3::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient;

/// The differences a response makes.
pub(super) struct Batch {
    pub(super) type_url: String,
    /// Version of the response, for people.
    pub(super) version: String,
    pub(super) added: Vec<Resource>,
    pub(super) removed: Vec<String>,
}

/// A variant of the protocol, without I/O. It outlives streams.
pub(super) trait Variant {
    /// What the client says.
    type Request: Send + 'static;
    /// What the server says.
    type Response;
    /// What must be remembered of a response until it is answered.
    type Receipt;

    /// Opens a stream on a connection.
    fn call(
        client: &mut AggregatedDiscoveryServiceClient<Channel>,
        requests: Request<ReceiverStream<Self::Request>>,
    ) -> impl Future<Output = Result<Response<Streaming<Self::Response>>, Status>> + Send;

    /// First requests of a new stream: wildcards in their order, then what is subscribed by name.
    fn open(&mut self, wanted: &Wanted) -> Vec<Self::Request>;

    /// Requests that bring the stream from what was asked to what is wanted.
    fn resubscribe(&mut self, wanted: &Wanted) -> Vec<Self::Request>;

    /// The differences a response makes.
    fn receive(&self, response: Self::Response) -> (Batch, Self::Receipt);

    /// Notes what was accepted, and answers.
    fn answer(&mut self, receipt: Self::Receipt, rejected: &[Rejected]) -> Self::Request;
}
