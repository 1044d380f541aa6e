//! The client's task: connect, stream, wait, again.

use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Streaming};
use tracing::{debug, info, warn};

use crate::client::delta::Delta;
use crate::client::sotw::Sotw;
use crate::client::variant::{Batch, Variant};
use crate::client::{ClientConfig, Connection, Mode, Rejected, Status, Update, Wanted};
use crate::pb::envoy::service::discovery::v3::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient;

/// Largest response taken, in bytes. A first response to a big mesh holds every cluster.
const MAX_RESPONSE: usize = 256 * 1024 * 1024;
/// Requests that may wait to be sent; the protocol itself keeps their number small.
const REQUEST_QUEUE: usize = 64;

/// Why a stream ended.
enum Ended {
    /// The consumer is gone: stop for good.
    ConsumerGone,
    /// Reconnect.
    Lost { reason: String, received_any: bool },
}

/// The protocol's state, which outlives streams.
enum Protocol {
    Delta(Delta),
    Sotw(Sotw),
}

pub(super) async fn run(
    config: ClientConfig,
    mut wanted: watch::Receiver<Wanted>,
    updates: mpsc::Sender<Update>,
    status: watch::Sender<Status>,
) {
    let ClientConfig { node, mode, wildcards, connect, reconnect, known } = config;
    let mut protocol = match mode {
        Mode::Delta => Protocol::Delta(Delta::new(node, wildcards, known)),
        Mode::Sotw => Protocol::Sotw(Sotw::new(node, wildcards)),
    };
    let mut limit = reconnect.base;
    loop {
        status.send_replace(Status::Connecting);
        let ended = match connect().await {
            Err(reason) => Ended::Lost { reason, received_any: false },
            Ok(connection) => match &mut protocol {
                Protocol::Delta(delta) => stream(delta, connection, &mut wanted, &updates, &status).await,
                Protocol::Sotw(sotw) => stream(sotw, connection, &mut wanted, &updates, &status).await,
            },
        };
        let Ended::Lost { reason, received_any } = ended else { return };
        if received_any {
            limit = reconnect.base;
        }
        let pause = limit.mul_f64(fastrand::f64());
        warn!(%reason, ?pause, "no xDS stream; the last good configuration stays in use");
        status.send_replace(Status::Disconnected { reason });
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = updates.closed() => return,
        }
        limit = limit.saturating_mul(2).min(reconnect.max).max(Duration::from_millis(1));
    }
}

/// Hands a batch to the consumer and waits for its answer. `None`: the consumer is gone.
async fn offer(updates: &mpsc::Sender<Update>, batch: Batch) -> Option<Vec<Rejected>> {
    let Batch { type_url, version, added, removed } = batch;
    let names: Vec<String> = added.iter().map(|resource| resource.name.clone()).collect();
    let (kind, added_count, removed_count) =
        (crate::any::message_name(&type_url).to_owned(), added.len(), removed.len());
    let (reply, answer) = oneshot::channel();
    updates.send(Update { type_url, version, added, removed, reply }).await.ok()?;
    let rejected = answer.await.unwrap_or_else(|_| {
        let reason = "the update was dropped".to_owned();
        names.into_iter().map(|name| Rejected { name, reason: reason.clone() }).collect()
    });
    debug!(
        kind,
        added = added_count,
        removed = removed_count,
        rejected = rejected.len(),
        "xDS response applied"
    );
    for rejected in &rejected {
        warn!(kind, name = %rejected.name, reason = %rejected.reason, "resource refused");
    }
    Some(rejected)
}

/// Sends requests; false when the stream is gone.
async fn send_all<T>(sender: &mpsc::Sender<T>, requests: Vec<T>) -> bool {
    for request in requests {
        if sender.send(request).await.is_err() {
            return false;
        }
    }
    true
}

/// The next event of a stream.
enum Event<T> {
    Message(T),
    Resubscribe,
    Ended(Ended),
}

async fn next_event<T>(
    stream: &mut Streaming<T>,
    wanted: &mut watch::Receiver<Wanted>,
    updates: &mpsc::Sender<Update>,
    received_any: bool,
) -> Event<T> {
    tokio::select! {
        message = stream.message() => match message {
            Ok(Some(message)) => Event::Message(message),
            Ok(None) => Event::Ended(Ended::Lost { reason: "the server closed the stream".into(), received_any }),
            Err(error) => Event::Ended(Ended::Lost { reason: status_text(&error), received_any }),
        },
        changed = wanted.changed() => match changed {
            Ok(()) => Event::Resubscribe,
            Err(_) => Event::Ended(Ended::ConsumerGone),
        },
        () = updates.closed() => Event::Ended(Ended::ConsumerGone),
    }
}

fn status_text(status: &tonic::Status) -> String {
    format!("{:?}: {}", status.code(), status.message())
}

fn lost(reason: impl Into<String>, received_any: bool) -> Ended {
    Ended::Lost { reason: reason.into(), received_any }
}

/// One stream, from its first requests to its end.
async fn stream<V: Variant>(
    variant: &mut V,
    connection: Connection,
    wanted: &mut watch::Receiver<Wanted>,
    updates: &mpsc::Sender<Update>,
    status: &watch::Sender<Status>,
) -> Ended {
    let (sender, receiver) = mpsc::channel(REQUEST_QUEUE);
    let first = variant.open(&wanted.borrow_and_update().clone());
    let mut request = Request::new(ReceiverStream::new(receiver));
    *request.metadata_mut() = connection.metadata;
    let mut client =
        AggregatedDiscoveryServiceClient::new(connection.channel).max_decoding_message_size(MAX_RESPONSE);
    // The first requests must be on their way before the server answers with headers.
    let (opened, sent) = tokio::join!(V::call(&mut client, request), send_all(&sender, first));
    let mut stream = match opened {
        Ok(response) if sent => response.into_inner(),
        Ok(_) => return lost("the stream closed at once", false),
        Err(error) => return lost(status_text(&error), false),
    };
    info!("xDS stream open");
    status.send_replace(Status::Connected);
    let mut received_any = false;
    loop {
        let message = match next_event(&mut stream, wanted, updates, received_any).await {
            Event::Ended(ended) => return ended,
            Event::Resubscribe => {
                if !resubscribe(variant, wanted, &sender).await {
                    return lost("the server closed the stream", received_any);
                }
                continue;
            }
            Event::Message(message) => message,
        };
        received_any = true;
        let (batch, receipt) = variant.receive(message);
        let Some(rejected) = offer(updates, batch).await else { return Ended::ConsumerGone };
        // What the batch refers to is asked for before it is acknowledged, as Envoy does: servers take an acknowledgement of clusters
        // for leave to send the routes to them, and hold those back while endpoints are on their way.
        let asked = !wanted.has_changed().unwrap_or(false) || resubscribe(variant, wanted, &sender).await;
        if !asked || sender.send(variant.answer(receipt, &rejected)).await.is_err() {
            return lost("the server closed the stream", received_any);
        }
    }
}

/// Asks for what is wanted now; false when the stream is gone.
async fn resubscribe<V: Variant>(
    variant: &mut V,
    wanted: &mut watch::Receiver<Wanted>,
    sender: &mpsc::Sender<V::Request>,
) -> bool {
    let requests = variant.resubscribe(&wanted.borrow_and_update().clone());
    send_all(sender, requests).await
}
