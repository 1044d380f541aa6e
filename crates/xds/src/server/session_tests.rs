use super::*;
use crate::type_urls::{CLUSTER, ENDPOINT, LISTENER, ROUTE};

/// `name=version` pairs by type.
type Content<'a> = &'a [(&'static str, &'a [(&'a str, &'a str)])];

fn snapshot(content: Content<'_>) -> Arc<Snapshot> {
    let mut snapshot = Snapshot::new(1, Instant::now());
    for (url, resources) in content {
        let set = resources.iter().map(|(name, version)| {
            Arc::new(Resource { name: (*name).into(), version: (*version).into(), body: bytes::Bytes::new() })
        });
        snapshot = snapshot.with(url, Arc::new(set.collect()));
    }
    Arc::new(snapshot)
}

fn owned(names: &[&str]) -> Vec<String> {
    names.iter().map(|&name| name.to_owned()).collect()
}

/// A client that holds what it was given.
struct Client {
    session: Session,
    held: BTreeMap<(String, String), String>,
    log: Vec<String>,
}

impl Client {
    fn delta(content: Content<'_>) -> Self {
        Self {
            session: Session::new(Protocol::Delta, snapshot(content)),
            held: BTreeMap::new(),
            log: Vec::new(),
        }
    }

    fn subscribe(&mut self, url: &str, names: &[&str]) {
        self.request(url, names, &[], &[]);
    }

    fn request(&mut self, url: &str, subscribe: &[&str], unsubscribe: &[&str], initial: &[(&str, &str)]) {
        let initial = initial.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect();
        let change = Change::Delta { subscribe: owned(subscribe), unsubscribe: owned(unsubscribe), initial };
        let request = Request { type_url: url.into(), change, ..Request::default() };
        assert_eq!(self.session.request(request).unwrap(), None);
    }

    /// Takes the next response and applies it; returns its line in the log.
    fn receive(&mut self) -> Option<Push> {
        let push = self.session.next()?;
        let short = push.type_url.rsplit('.').next().unwrap().to_owned();
        let names: Vec<_> = push.resources.iter().map(|r| format!("+{}={}", r.name, r.version)).collect();
        let removed: Vec<_> = push.removed.iter().map(|name| format!("-{name}")).collect();
        self.log.push([vec![short], names, removed].concat().join(" "));
        for resource in &push.resources {
            let key = (push.type_url.to_string(), resource.name.to_string());
            self.held.insert(key, resource.version.to_string());
        }
        for name in &push.removed {
            self.held.remove(&(push.type_url.to_string(), name.to_string()));
        }
        Some(push)
    }

    fn answer(&mut self, push: &Push, error: Option<&str>) -> Answer {
        let request = Request {
            type_url: push.type_url.to_string(),
            nonce: push.nonce.clone(),
            error: error.map(str::to_owned),
            change: Change::default(),
        };
        self.session.request(request).unwrap().expect("this answers a response in flight")
    }

    /// Receives and accepts until there is nothing more; returns what came.
    fn settle(&mut self) -> Vec<String> {
        while let Some(push) = self.receive() {
            self.answer(&push, None);
        }
        std::mem::take(&mut self.log)
    }

    fn set(&mut self, content: Content<'_>) {
        self.session.set_snapshot(snapshot(content));
    }
}

const START: Content<'static> = &[
    (CLUSTER, &[("a", "1")]),
    (ENDPOINT, &[("a", "1"), ("other", "1")]),
    (LISTENER, &[("l", "1")]),
    (ROUTE, &[("80", "1")]),
];

fn connected() -> Client {
    let mut client = Client::delta(START);
    client.subscribe(CLUSTER, &[]);
    client.subscribe(LISTENER, &[]);
    client.subscribe(ENDPOINT, &["a"]);
    client.subscribe(ROUTE, &["80"]);
    assert_eq!(
        client.settle(),
        ["Cluster +a=1", "ClusterLoadAssignment +a=1", "Listener +l=1", "RouteConfiguration +80=1"]
    );
    client
}

#[test]
fn only_what_changed_is_sent() {
    let mut client = connected();
    assert!(client.settle().is_empty());
    let mut changed = START.to_vec();
    changed[1] = (ENDPOINT, &[("a", "2"), ("other", "2")]);
    client.set(&changed);
    assert_eq!(client.settle(), ["ClusterLoadAssignment +a=2"]);
}

#[test]
fn additions_go_before_and_removals_after_what_refers_to_them() {
    let mut client = connected();
    client.set(&[
        (CLUSTER, &[("b", "1")]),
        (ENDPOINT, &[("b", "1")]),
        (LISTENER, &[("l", "1")]),
        (ROUTE, &[("80", "2")]),
    ]);
    let clusters = client.receive().unwrap();
    assert_eq!(client.log, ["Cluster +b=1"], "the old cluster stays while routes name it");
    assert!(client.receive().is_none(), "routes wait for the acknowledgement");
    // As Envoy does: it asks for the endpoints of the new cluster, then acknowledges the cluster.
    client.subscribe(ENDPOINT, &["b"]);
    let endpoints = client.receive().unwrap();
    client.answer(&clusters, None);
    assert!(client.receive().is_none(), "and for the endpoints'");
    client.answer(&endpoints, None);
    assert_eq!(
        client.settle(),
        [
            "Cluster +b=1",
            "ClusterLoadAssignment +b=1",
            "RouteConfiguration +80=2",
            "Cluster -a",
            "ClusterLoadAssignment -a"
        ]
    );
}

#[test]
fn changes_during_a_push_are_merged() {
    let mut client = connected();
    let route = |version: &'static str| {
        Arc::new(
            Snapshot::new(2, Instant::now())
                .with(CLUSTER, client_set("a"))
                .with(ENDPOINT, client_set("a"))
                .with(LISTENER, client_set("l"))
                .with(ROUTE, Arc::new(ResourceSet::from_iter([resource("80", version)]))),
        )
    };
    client.session.set_snapshot(route("2"));
    let push = client.receive().unwrap();
    for version in ["3", "4", "5"] {
        client.session.set_snapshot(route(version));
        assert!(client.receive().is_none(), "one response per type is in flight");
    }
    client.answer(&push, None);
    assert_eq!(client.settle(), ["RouteConfiguration +80=2", "RouteConfiguration +80=5"]);
}

fn resource(name: &str, version: &str) -> Arc<Resource> {
    Arc::new(Resource { name: name.into(), version: version.into(), body: bytes::Bytes::new() })
}

fn client_set(name: &str) -> Arc<ResourceSet> {
    Arc::new(ResourceSet::from_iter([resource(name, "1")]))
}

#[test]
fn a_returning_client_gets_differences() {
    let mut client = Client::delta(START);
    client.request(CLUSTER, &[], &[], &[("a", "1"), ("old", "7")]);
    client.request(ENDPOINT, &["a"], &[], &[("a", "0")]);
    client.request(LISTENER, &[], &[], &[("l", "1")]);
    client.request(ROUTE, &["80"], &[], &[("80", "1")]);
    assert_eq!(
        client.settle(),
        ["Cluster", "ClusterLoadAssignment +a=1", "Listener", "Cluster -old"],
        "wildcards are answered even with nothing, so that the client knows it is up to date"
    );
}

#[test]
fn a_rejected_version_is_not_sent_again() {
    let mut client = connected();
    let mut changed = START.to_vec();
    changed[2] = (LISTENER, &[("l", "2")]);
    client.set(&changed);
    let push = client.receive().unwrap();
    let answer = client.answer(&push, Some("bad listener"));
    assert_eq!(answer.error.as_deref(), Some("bad listener"));
    assert!(answer.changed.is_some(), "convergence is measured for changes");
    client.set(&changed);
    assert_eq!(client.settle(), ["Listener +l=2"], "the same version is not pushed twice");
    changed[2] = (LISTENER, &[("l", "3")]);
    client.set(&changed);
    assert_eq!(client.settle(), ["Listener +l=3"]);
}

#[test]
fn names_asked_for_are_always_answered() {
    let mut client = connected();
    client.subscribe(ROUTE, &["absent"]);
    assert_eq!(client.settle(), ["RouteConfiguration -absent"]);
    // Asking again for what one has means one has it no more.
    client.subscribe(ROUTE, &["80"]);
    assert_eq!(client.settle(), ["RouteConfiguration +80=1"]);
    client.request(ROUTE, &[], &["80"], &[]);
    let mut changed = START.to_vec();
    changed[3] = (ROUTE, &[("80", "2"), ("absent", "1")]);
    client.set(&changed);
    assert_eq!(client.settle(), ["RouteConfiguration +absent=1"], "not what was unsubscribed");
}

#[test]
fn a_changed_cluster_brings_its_endpoints_again() {
    let mut client = connected();
    let mut changed = START.to_vec();
    changed[0] = (CLUSTER, &[("a", "2")]);
    client.set(&changed);
    assert_eq!(client.settle(), ["Cluster +a=2", "ClusterLoadAssignment +a=1"]);
}

#[test]
fn an_answer_to_an_older_response_does_not_count() {
    let mut client = connected();
    let mut changed = START.to_vec();
    changed[3] = (ROUTE, &[("80", "2")]);
    client.set(&changed);
    let push = client.receive().unwrap();
    let stale = Request { type_url: ROUTE.into(), nonce: "1".into(), ..Request::default() };
    assert_eq!(client.session.request(stale).unwrap(), None);
    client.answer(&push, None);
}

#[test]
fn state_of_the_world_sends_whole_clusters_and_keeps_order() {
    let mut session = Session::new(Protocol::Sotw, snapshot(START));
    let ask = |session: &mut Session, url: &str, nonce: &str, names: &[&str]| {
        let change = Change::Sotw { names: owned(names) };
        session.request(Request { type_url: url.into(), nonce: nonce.into(), error: None, change }).unwrap()
    };
    let names =
        |push: &Push| push.resources.iter().map(|r| format!("{}={}", r.name, r.version)).collect::<Vec<_>>();
    ask(&mut session, CLUSTER, "", &[]);
    let clusters = session.next().unwrap();
    assert_eq!(names(&clusters), ["a=1"]);
    assert!(ask(&mut session, CLUSTER, &clusters.nonce, &[]).is_some());
    ask(&mut session, ROUTE, "", &["80"]);
    let routes = session.next().unwrap();
    ask(&mut session, ROUTE, &routes.nonce, &["80"]);
    assert!(session.next().is_none());

    session.set_snapshot(snapshot(&[(CLUSTER, &[("b", "1")]), (ROUTE, &[("80", "2")])]));
    let clusters = session.next().unwrap();
    assert_eq!(names(&clusters), ["b=1", "a=1"], "the old cluster is still part of the state");
    assert!(session.next().is_none());
    ask(&mut session, CLUSTER, &clusters.nonce, &[]);
    let routes = session.next().unwrap();
    assert_eq!(names(&routes), ["80=2"]);
    ask(&mut session, ROUTE, &routes.nonce, &["80"]);
    let clusters = session.next().unwrap();
    assert_eq!(names(&clusters), ["b=1"], "now it is gone");
    // A request that names more resources is answered for those.
    ask(&mut session, CLUSTER, &clusters.nonce, &[]);
    ask(&mut session, ROUTE, &routes.nonce, &["80", "absent"]);
    assert!(names(&session.next().unwrap()).is_empty(), "answered, though there is none");
}

#[test]
fn requests_beyond_the_limits_end_the_stream() {
    let mut session = Session::new(Protocol::Delta, snapshot(START));
    assert_eq!(session.request(Request::default()), Err(RequestError::NoType));
    for number in 0..MAX_TYPES {
        session.request(Request { type_url: number.to_string(), ..Request::default() }).unwrap();
    }
    let one_more = Request { type_url: "more".into(), ..Request::default() };
    assert_eq!(session.request(one_more), Err(RequestError::TooManyTypes));
}

#[test]
fn wanting_all_after_some_brings_the_rest() {
    let content: Content<'_> = &[(CLUSTER, &[("a", "1"), ("b", "1")])];
    let mut client = Client::delta(content);
    client.subscribe(CLUSTER, &["a"]);
    assert_eq!(client.settle(), ["Cluster +a=1"]);
    client.subscribe(CLUSTER, &["*"]);
    assert_eq!(client.settle(), ["Cluster +b=1"], "it was never given b");
    client.set(&[(CLUSTER, &[("a", "2"), ("b", "1")])]);
    assert_eq!(client.settle(), ["Cluster +a=2"]);
}

#[test]
fn a_returning_client_gets_the_endpoints_of_clusters_that_changed_meanwhile() {
    let mut client =
        Client::delta(&[(CLUSTER, &[("a", "2"), ("b", "1")]), (ENDPOINT, &[("a", "1"), ("b", "1")])]);
    client.request(CLUSTER, &[], &[], &[("a", "1"), ("b", "1")]);
    let clusters = client.receive().unwrap();
    assert_eq!(client.log, ["Cluster +a=2"]);
    // Envoy warms the new a and waits for endpoints that it says it has.
    client.request(ENDPOINT, &["a", "b"], &[], &[("a", "1"), ("b", "1")]);
    client.answer(&clusters, None);
    assert_eq!(client.settle(), ["Cluster +a=2", "ClusterLoadAssignment +a=1"]);
}

/// A client that refuses a response whole when it carries what it does not like.
fn refuse_whole(client: &mut Client, bad: &[&str], mention: bool) -> (Vec<String>, usize) {
    let mut accepted = Vec::new();
    let mut refusals = 0;
    while let Some(push) = client.session.next() {
        let found: Vec<_> = push.resources.iter().filter(|resource| bad.contains(&&*resource.name)).collect();
        if let Some(first) = found.first() {
            refusals += 1;
            let message = if mention { format!("I do not like {}", first.name) } else { "no".to_owned() };
            let answer = client.answer(&push, Some(&message));
            assert!(answer.names.is_empty() || found.len() == push.resources.len(), "{answer:?}");
        } else {
            accepted.extend(push.resources.iter().map(|resource| resource.name.to_string()));
            accepted.extend(push.removed.iter().map(|name| format!("-{name}")));
            client.answer(&push, None);
        }
    }
    accepted.sort();
    (accepted, refusals)
}

#[test]
fn one_bad_resource_keeps_no_other_from_arriving() {
    let names: Vec<String> = (0..100).map(|index| format!("r{index:02}")).collect();
    let all: Vec<(&str, &str)> = names.iter().map(|name| (name.as_str(), "1")).collect();
    let asked: Vec<&str> = names.iter().map(String::as_str).collect();
    for (mention, most) in [(true, 4), (false, 20)] {
        let mut client = Client::delta(&[(ROUTE, &all)]);
        client.subscribe(ROUTE, &asked);
        let (accepted, refusals) = refuse_whole(&mut client, &["r42", "r77"], mention);
        assert_eq!(accepted.len(), 98, "mention: {mention}");
        assert!(refusals <= most, "mention: {mention}: {refusals}");
        assert!(client.session.next().is_none(), "what was refused alone is not sent again");
        // What changes is sent, the bad one too.
        let changed: Vec<(&str, &str)> =
            all.iter().map(|(name, _)| (*name, if *name == "r42" { "2" } else { "1" })).collect();
        client.set(&[(ROUTE, &changed)]);
        assert_eq!(client.settle(), ["RouteConfiguration +r42=2"]);
    }
}

#[test]
fn removals_of_a_refused_response_arrive_too() {
    let mut client = Client::delta(&[(ROUTE, &[("a", "1"), ("b", "1")])]);
    client.subscribe(ROUTE, &["a", "b"]);
    client.settle();
    client.set(&[(ROUTE, &[("a", "2")])]);
    assert_eq!(refuse_whole(&mut client, &["a"], true), (vec!["-b".to_owned()], 2));
}

#[test]
fn a_client_that_refuses_everything_is_not_asked_for_ever() {
    let names: Vec<String> = (0..5000).map(|index| format!("r{index}")).collect();
    let all: Vec<(&str, &str)> = names.iter().map(|name| (name.as_str(), "1")).collect();
    let mut client = Client::delta(&[(CLUSTER, &all)]);
    client.subscribe(CLUSTER, &[]);
    let mut refusals = 0;
    while let Some(push) = client.session.next() {
        refusals += 1;
        client.answer(&push, Some("no"));
    }
    assert!(refusals <= 2 * MAX_SPLITS as usize + 1, "{refusals}");
}
