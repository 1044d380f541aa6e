//! Looks up the names of gateways between networks, as istiod does (`RESOLVE_HOSTNAME_GATEWAYS`): load balancers of some clouds have a
//! name and no address, and proxies are told addresses. What was found once stays while its name cannot be looked up.
use std::collections::BTreeMap;
use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant as Seen};

use futures::future::BoxFuture;
use futures::stream::{self, StreamExt as _};
use lateen_model::Event;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::due::due;
use crate::push::{Input, Published};

/// What the push loop waits for before it serves anybody: without its gateways a network is reached directly.
pub(crate) const KIND: &str = "network gateways";

/// How often a name is looked up: the least that istiod makes of an answer's time to live, which resolvers do not tell us.
pub(crate) const REFRESH: Duration = Duration::from_secs(30);

/// How long one look-up may take, and never longer than until the next.
const TIME_LIMIT: Duration = Duration::from_secs(5);

/// Looked up at a time.
const AT_A_TIME: usize = 16;

/// The addresses of a name.
type Found = BoxFuture<'static, io::Result<Vec<IpAddr>>>;

/// The system's resolver.
pub(crate) fn of_system(name: Arc<str>) -> Found {
    Box::pin(async move {
        let found = tokio::net::lookup_host((&*name, 0)).await?;
        Ok(found.map(|address| address.ip()).collect())
    })
}

/// Works until told to stop. `refresh`: how often names are looked up.
pub(crate) async fn run(
    lookup: impl Fn(Arc<str>) -> Found,
    refresh: Duration,
    mut published: watch::Receiver<Published>,
    inputs: mpsc::Sender<Input>,
    stop: CancellationToken,
) {
    let working = async {
        // When each name is looked up again.
        let mut known: BTreeMap<Arc<str>, Instant> = BTreeMap::new();
        let mut told = false;
        loop {
            let now = published.borrow_and_update().clone();
            if now.listed {
                let wanted = now.world.networks().gateway_names();
                if round(&lookup, refresh, wanted, &mut known, &inputs).await.is_none() {
                    return;
                }
                if !std::mem::replace(&mut told, true) && inputs.send(Input::Listed(KIND)).await.is_err() {
                    return;
                }
            }
            let next = known.values().min().copied();
            if due(next, &mut published).await.is_none() {
                return;
            }
        }
    };
    stop.run_until_cancelled(working).await;
}

/// Looks up what is due. `None`: nobody listens any more.
async fn round(
    lookup: &impl Fn(Arc<str>) -> Found,
    refresh: Duration,
    wanted: &[Arc<str>],
    known: &mut BTreeMap<Arc<str>, Instant>,
    inputs: &mpsc::Sender<Input>,
) -> Option<()> {
    let gone: Vec<Arc<str>> = known.keys().filter(|name| !wanted.contains(name)).cloned().collect();
    for name in gone {
        known.remove(&name);
        let event = Event::GatewayName { name, addresses: Vec::new() };
        inputs.send(Input::Object(event, Seen::now())).await.ok()?;
    }
    let now = Instant::now();
    let is_due = |name: &&Arc<str>| known.get(*name).is_none_or(|next| *next <= now);
    let due: Vec<Arc<str>> = wanted.iter().filter(is_due).cloned().collect();
    let mut found = stream::iter(due)
        .map(|name| async move {
            let result = tokio::time::timeout(refresh.min(TIME_LIMIT), lookup(name.clone())).await;
            (name, result.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())))
        })
        .buffer_unordered(AT_A_TIME);
    while let Some((name, result)) = found.next().await {
        known.insert(name.clone(), Instant::now() + refresh);
        match result {
            Ok(addresses) => {
                let event = Event::GatewayName { name, addresses };
                inputs.send(Input::Object(event, Seen::now())).await.ok()?;
            }
            Err(error) => {
                tracing::warn!(
                    "cannot look up {name}, a gateway between networks: {error}; its last addresses stay, and it is asked again in {refresh:?}"
                );
            }
        }
    }
    Some(())
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

    use lateen_model::{Object, Store, StoreOptions};
    use serde_json::json;

    use super::*;

    fn networks(text: &str) -> Event {
        let map = json!({"metadata": {"namespace": "istio-system", "name": "istio"}, "data": {"meshNetworks": text}});
        Event::Applied(Object::ConfigMap(serde_json::from_value(map).unwrap()))
    }

    fn publish(store: &mut Store, sender: &watch::Sender<Published>) {
        let world = store.world();
        sender.send_replace(Published { world, config_version: 0, listed: true, complete: false });
    }

    #[tokio::test]
    async fn names_of_gateways_are_looked_up_again_and_again() {
        let mut store = Store::new(StoreOptions::default());
        store.apply(networks(
            "networks: {n2: {gateways: [{address: gw.example.com, port: 15443}, {address: nobody.example.com, port: 1}]}}",
        ));
        let world = store.world();
        let (sender, published) =
            watch::channel(Published { world, config_version: 0, listed: true, complete: false });
        let (inputs, mut received) = mpsc::channel(16);
        let stop = CancellationToken::new();
        let (away, failed) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let (is_away, failures) = (away.clone(), failed.clone());
        let resolver = move |name: Arc<str>| -> Found {
            let of_gateway = *name == *"gw.example.com";
            if of_gateway && !is_away.load(Ordering::SeqCst) {
                return Box::pin(async { Ok(vec![[7, 7, 7, 7].into()]) });
            }
            failures.fetch_add(usize::from(of_gateway), Ordering::SeqCst);
            Box::pin(async { Err(io::ErrorKind::NotFound.into()) })
        };
        let refresh = Duration::from_millis(20);
        let running = tokio::spawn(run(resolver, refresh, published, inputs, stop.clone()));
        let take = |store: &mut Store, input: Option<Input>| match input {
            Some(Input::Object(event, _)) => !store.apply(event).is_empty(),
            Some(Input::Listed(kind)) => {
                assert_eq!(kind, KIND);
                false
            }
            _ => panic!("nothing else is said"),
        };
        let addresses = |store: &mut Store| {
            let world = store.world();
            world.networks().gateways().of("n2").iter().map(|one| one.address.to_string()).collect::<Vec<_>>()
        };
        assert!(take(&mut store, received.recv().await), "the first answer is news");
        assert_eq!(addresses(&mut store), ["7.7.7.7"]);
        assert!(matches!(received.recv().await, Some(Input::Listed(KIND))));
        assert!(!take(&mut store, received.recv().await), "the same answer is none");
        // What is not found any more stays.
        away.store(true, Ordering::SeqCst);
        while failed.load(Ordering::SeqCst) < 2 {
            tokio::time::sleep(refresh).await;
        }
        while let Ok(input) = received.try_recv() {
            assert!(!take(&mut store, Some(input)));
        }
        assert_eq!(addresses(&mut store), ["7.7.7.7"]);
        // What nobody names goes.
        store.apply(networks("networks: {n2: {gateways: [{address: 9.9.9.9, port: 1}]}}"));
        publish(&mut store, &sender);
        let gone = received.recv().await;
        assert!(
            matches!(&gone, Some(Input::Object(Event::GatewayName { addresses, .. }, _)) if addresses.is_empty())
        );
        assert!(!take(&mut store, gone), "it was of no use any more");
        assert_eq!(addresses(&mut store), ["9.9.9.9"]);
        stop.cancel();
        running.await.unwrap();
    }

    #[tokio::test]
    async fn a_round_looks_up_what_is_due_and_gives_up_in_time() {
        let (inputs, mut received) = mpsc::channel(16);
        let asked = std::sync::Mutex::new(Vec::new());
        let resolver = |name: Arc<str>| -> Found {
            asked.lock().unwrap().push(name.to_string());
            match &*name {
                "silent" => Box::pin(std::future::pending()),
                _ => Box::pin(async { Ok(vec![[7, 7, 7, 7].into()]) }),
            }
        };
        let (refresh, now) = (Duration::from_millis(100), Instant::now());
        let later = now + Duration::from_secs(60);
        let wanted: Vec<Arc<str>> = ["due", "later", "new", "silent"].map(Arc::from).into();
        let mut known = BTreeMap::from([("due".into(), now), ("later".into(), later)]);
        let done = round(&resolver, refresh, &wanted, &mut known, &inputs);
        tokio::time::timeout(Duration::from_secs(20), done).await.expect("no name is waited for").unwrap();
        assert_eq!(*asked.lock().unwrap(), ["due", "new", "silent"]);
        assert_eq!(known["later"], later);
        for name in ["due", "new", "silent"] {
            assert!(known[name] >= now + refresh, "{name} is asked again, and not before its time");
        }
        let mut found = Vec::new();
        while let Ok(Input::Object(Event::GatewayName { name, addresses }, _)) = received.try_recv() {
            found.push((name.to_string(), addresses.len()));
        }
        assert_eq!(found, [("due".to_owned(), 1), ("new".to_owned(), 1)], "of a failure nothing is said");
    }
}
