//! What is remembered of a machine while its entry is written.
use http::{Request, Response};
use kube::client::Body;
use lateen_model::{Store, StoreOptions};

use super::*;

/// Keeps the entries of an API server that answers this to everything. The other end of what is published must be kept.
fn registration(status: u16) -> (Arc<Registration>, watch::Sender<Published>) {
    let server = tower::service_fn(move |_: Request<Body>| async move {
        let reason = if status == 404 { "NotFound" } else { "InternalError" };
        let body =
            serde_json::json!({ "kind": "Status", "status": "Failure", "reason": reason, "code": status });
        let body = body.to_string();
        Ok::<_, std::convert::Infallible>(
            Response::builder().status(status).body(Body::from(body.into_bytes())).unwrap(),
        )
    });
    let world = Store::new(StoreOptions::default()).world();
    let (sender, published) =
        watch::channel(Published { world, config_version: 0, listed: true, complete: true });
    let client = kube::Client::new(server, "default");
    let (options, metrics) = (MachineOptions::default(), RegistrationMetrics::default());
    (Registration::new(client, "istiod-0", "istio-system", options, metrics, published), sender)
}

fn entry() -> ObjectName {
    ObjectName::new("default", "shop")
}

fn at(seconds: i64) -> Timestamp {
    Timestamp::from_second(seconds).unwrap()
}

fn report(seconds: i64) -> Report {
    Report { problem: None, at: at(seconds) }
}

/// A machine that left.
fn away() -> Held {
    Held { streams: 0, opened: at(1), ended: None, health: None, clean_up: None }
}

#[tokio::test]
async fn what_was_written_is_forgotten_unless_more_has_happened_meanwhile() {
    let (registration, _published) = registration(500);
    let after = |held: Held, job: Job| {
        registration.lock().insert(entry(), held);
        registration.finish(&entry(), &job);
        registration.lock().remove(&entry())
    };
    let ended = |seconds| Job::Ended { opened: at(1), at: at(seconds) };

    let left = after(Held { ended: Some(at(2)), ..away() }, ended(2)).unwrap();
    assert!(left.ended.is_none() && left.clean_up.is_some(), "its time to come back runs");
    // It came back and left again while the first end was written.
    let left = after(Held { ended: Some(at(3)), ..away() }, ended(2)).unwrap();
    assert_eq!((left.ended, left.clean_up), (Some(at(3)), None), "the second end is to be written still");
    // It came back.
    let back = after(Held { streams: 1, ..away() }, ended(2)).unwrap();
    assert_eq!((back.ended, back.clean_up), (None, None));

    let told = after(Held { streams: 1, health: Some(report(2)), ..away() }, Job::Health(report(2))).unwrap();
    assert_eq!(told.health, None);
    let told = after(Held { streams: 1, health: Some(report(3)), ..away() }, Job::Health(report(2))).unwrap();
    assert_eq!(told.health, Some(report(3)), "what was said since is to be written still");

    let due = Some(Instant::now());
    assert!(after(Held { clean_up: due, ..away() }, Job::CleanUp).is_none(), "nothing more is to be done");
    let more = after(Held { clean_up: due, health: Some(report(2)), ..away() }, Job::CleanUp).unwrap();
    assert_eq!((more.clean_up, more.health), (None, Some(report(2))));
}

#[tokio::test]
async fn the_next_round_is_when_something_is_due_or_failures_are_tried_again() {
    let begun = Instant::now();
    let soon = begun + Duration::from_secs(60);
    let next = async |status: u16, clean_up: Option<Instant>| {
        let (registration, _published) = registration(status);
        registration.lock().insert(entry(), Held { clean_up, ..away() });
        registration.round().await
    };
    assert_eq!(next(500, None).await, None);
    assert_eq!(next(500, Some(soon)).await, Some(soon), "nothing is due yet");
    let again = next(500, Some(begun)).await.unwrap();
    assert!(again >= begun + RETRY, "what failed is not tried at once");
    assert_eq!(next(404, Some(begun)).await, None, "the entry has gone by itself");
}
