//! A request's whole way, proxy after proxy. Pure: whoever tells it says what stands at each address.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use lateen_ir::{Asked, Check, CheckResult, EndpointSeen, Hello, Outcome, Passage, Question, Reach, Share};
use serde::Serialize;

use super::advice;
use super::network::Beyond;
use super::proxy::Proxy;

/// Proxies a request may pass.
const MOST_HOPS: usize = 6;

/// The whole way of a request.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Story {
    /// What was asked, in words.
    pub question: String,
    /// The proxies on the way.
    pub hops: Vec<Hop>,
    /// What comes of it.
    pub answer: Answer,
}

/// A proxy on the way.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Hop {
    /// `POD.NAMESPACE`.
    pub proxy: String,
    /// `client`, `gateway` or `server`.
    pub role: &'static str,
    /// The way through it.
    #[serde(flatten)]
    pub passage: Passage,
    /// Who the caller is by its certificate; empty: unknown.
    pub caller: Vec<String>,
    /// The VirtualService of the route, `NAME.NAMESPACE`; empty: none.
    pub virtual_service: String,
    /// Where its clusters lead, the one that is followed first.
    pub clusters: Vec<Reach>,
    /// What stands at the endpoints, by address: `POD.NAMESPACE`.
    pub pods: BTreeMap<String, String>,
    /// What is behind endpoints that are gateways between networks, by address.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub networks: BTreeMap<String, Beyond>,
    /// What of its configuration could not be read, with the reasons: the way may be another.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub unread: Vec<String>,
}

/// What comes of a request.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Answer {
    /// Whether it passes.
    pub passes: Passes,
    /// The status the client gets, where a proxy answers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub status: Option<u16>,
    /// Response flags in the access log of the proxy that decides.
    pub flags: String,
    /// Response code details there.
    pub details: String,
    /// The proxy that decides; empty: none, it passes.
    pub decided_at: String,
    /// The rule that decides, as it is named in the access log; empty: none.
    pub decided_by: String,
    /// In words.
    pub reason: String,
    /// What to look at next.
    pub next: Vec<String>,
}

/// See [`Answer::passes`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Passes {
    /// The application gets it.
    Yes,
    /// It does not.
    No,
    /// Configuration alone does not tell.
    Depends,
}

/// What stands at an address.
#[derive(Clone, Debug)]
pub enum Place {
    /// A pod with a proxy.
    Proxied(String, Box<Proxy>),
    /// A pod without one.
    Bare(String),
    /// The gateway of another network, which passes mutual TLS on; and its pod, where that is one of this cluster.
    Gateway(Beyond, Option<GatewayPod>),
    /// Nothing that is known.
    Unknown,
}

/// A pod behind the address of a gateway between networks.
#[derive(Clone, Debug)]
pub struct GatewayPod {
    /// `POD.NAMESPACE`.
    pub name: String,
    /// Its proxy.
    pub proxy: Box<Proxy>,
    /// Where connections to the gateway's address arrive.
    pub socket: SocketAddr,
}

/// The beginning of the way.
#[derive(Clone, Debug)]
pub struct Start {
    /// In words.
    pub question: String,
    /// `POD.NAMESPACE` of the first proxy, and the proxy; `None`: the client has none and connects to the destination itself.
    pub proxy: Option<(String, Box<Proxy>)>,
    /// The first proxy's listener where connections are redirected to it.
    pub entry: Option<&'static str>,
    /// The connection and the request.
    pub asked: Question,
}

/// Tells the story. `at` says what stands at an address that is an endpoint of a cluster ("": of none).
///
/// # Errors
/// What `at` says.
pub async fn tell<E>(
    start: Start,
    at: impl AsyncFn(SocketAddr, &str) -> Result<Place, E>,
) -> Result<Story, E> {
    let mut story = Story { question: start.question, hops: Vec::new(), answer: Answer::passing("") };
    let mut question = start.asked;
    let mut entry = start.entry;
    let mut place = match start.proxy {
        Some((name, proxy)) => Place::Proxied(name, proxy),
        None => at(question.destination, "").await?,
    };
    let mut role = if entry == Some("virtualOutbound") { "client" } else { "gateway" };
    if story.hops.is_empty()
        && entry.is_none()
        && matches!(&place, Place::Proxied(_, proxy) if !proxy.is_gateway)
    {
        (entry, role) = (Some("virtualInbound"), "server");
    }
    loop {
        let (name, proxy) = match place {
            Place::Proxied(name, proxy) => (name, proxy),
            Place::Bare(name) => {
                story.answer = without_proxy(&story, &question, &name);
                return Ok(story);
            }
            Place::Unknown | Place::Gateway(..) => {
                story.answer = without_proxy(&story, &question, "");
                return Ok(story);
            }
        };
        let mut hop = Hop::new(name, role, &proxy, proxy.view.passage(entry, &question), &question);
        let followed = match follow(&hop, &proxy) {
            Ok(endpoint) => endpoint,
            Err(answer) => {
                story.hops.push(hop);
                story.answer = *answer;
                return Ok(story);
            }
        };
        let Some(socket) = followed.socket else {
            let reason = format!("{} answers; it is outside of what configuration tells", followed.address);
            story.hops.push(hop);
            story.answer = finished(&story, Answer::passing(&reason));
            return Ok(story);
        };
        if role == "server" {
            let application = format!("the application at {socket} answers");
            story.hops.push(hop);
            story.answer = finished(&story, Answer::passing(&application));
            return Ok(story);
        }
        let cluster = hop.clusters.first().map(|reach| reach.cluster.clone()).unwrap_or_default();
        place = at(socket, &cluster).await?;
        if let Place::Proxied(name, _) | Place::Bare(name) = &place {
            hop.pods.insert(followed.address.clone(), name.clone());
        }
        question = onward(&question, &hop.passage, &followed, socket, &proxy);
        let mut passes_on = false;
        if let Place::Gateway(beyond, pod) = place {
            hop.networks.insert(followed.address.clone(), beyond.clone());
            let Some(GatewayPod { name, proxy, socket }) = pod else {
                story.hops.push(hop);
                story.answer = at_gateway(&story, &followed.address, &beyond);
                return Ok(story);
            };
            hop.pods.insert(followed.address.clone(), name.clone());
            question.destination = socket;
            passes_on = true;
            place = Place::Proxied(name, proxy);
        }
        story.hops.push(hop);
        if let Some(answer) = mistaken(&story, &place, &followed).filter(|_| !passes_on) {
            story.answer = answer;
            return Ok(story);
        }
        if story.hops.len() >= MOST_HOPS {
            story.answer = Answer {
                passes: Passes::Depends,
                reason: format!("after {MOST_HOPS} proxies it has not arrived: do they send it in a circle?"),
                ..Answer::passing("")
            };
            return Ok(story);
        }
        let gateway = matches!(&place, Place::Proxied(_, proxy) if proxy.is_gateway);
        (entry, role) = if gateway { (None, "gateway") } else { (Some("virtualInbound"), "server") };
    }
}

impl Hop {
    fn new(name: String, role: &'static str, proxy: &Proxy, passage: Passage, question: &Question) -> Self {
        let caller = question.tls.as_ref().and_then(|hello| hello.certificate.clone()).unwrap_or_default();
        let virtual_service =
            passage.route.as_ref().map(|route| proxy.virtual_service(route)).unwrap_or_default();
        let http = passage.route.is_some();
        let clusters: Vec<Reach> = match &passage.outcome {
            Outcome::Forwarded { clusters } => clusters
                .iter()
                .filter_map(|share| proxy.view.reach(&share.cluster, question.destination, http))
                .collect(),
            Outcome::Answered { .. } | Outcome::Closed { .. } => Vec::new(),
        };
        Self {
            proxy: name,
            role,
            passage,
            caller,
            virtual_service,
            clusters,
            pods: BTreeMap::new(),
            networks: BTreeMap::new(),
            unread: proxy.unread.clone(),
        }
    }
}

/// The connection to the next proxy.
fn onward(
    question: &Question,
    passage: &Passage,
    followed: &EndpointSeen,
    socket: SocketAddr,
    proxy: &Proxy,
) -> Question {
    // TLS of the mesh that a gateway passes on is ended by a proxy all the same.
    let of_mesh = question.tls.as_ref().is_some_and(|hello| hello.certificate.is_some());
    let opaque = passage.route.is_none() && question.tls.is_some() && !of_mesh;
    let tls = match followed.transport {
        "plain text" if passage.route.is_none() => question.tls.clone(),
        "plain text" => None,
        _ => Some(Hello {
            server_name: followed.server_name.to_ascii_lowercase(),
            protocols: followed.protocols.clone(),
            certificate: followed.shows_certificate.then(|| proxy.identity.clone()),
        }),
    };
    Question {
        destination: socket,
        source: question.source,
        tls,
        request: passage.request.clone().filter(|_| !opaque),
    }
}

/// The endpoint that is followed; how it ends where there is none.
fn follow(hop: &Hop, proxy: &Proxy) -> Result<EndpointSeen, Box<Answer>> {
    let http = hop.passage.route.is_some();
    let pod = &hop.proxy;
    let no = |status, flags: &str, details: &str, reason: String, next: Vec<String>| {
        let refusing = hop.passage.checks.iter().rev().find(|check| check.result == CheckResult::Refused);
        Box::new(Answer {
            passes: Passes::No,
            status,
            flags: flags.to_owned(),
            details: details.to_owned(),
            decided_at: pod.clone(),
            decided_by: refusing.and_then(|check| check.decided_by.clone()).unwrap_or_default(),
            reason,
            next,
        })
    };
    match &hop.passage.outcome {
        Outcome::Closed { details, reason } => {
            Err(no(None, "-", details, reason.clone(), advice::of_refusal(hop, proxy)))
        }
        Outcome::Answered { status, flags, details, reason } => {
            let mut answer =
                no(Some(*status), flags, details, reason.clone(), advice::of_refusal(hop, proxy));
            if *status < 400 {
                answer.passes = Passes::Yes;
            }
            Err(answer)
        }
        Outcome::Forwarded { clusters } => {
            let Some(Share { cluster, .. }) = clusters.first() else {
                return Err(no(Some(503), "NC", "cluster_not_found", String::new(), Vec::new()));
            };
            let Some(reach) = hop.clusters.first().filter(|reach| reach.cluster == *cluster) else {
                let next = vec![format!("lateen pc clusters {pod}"), "lateen proxy-status".to_owned()];
                let reason = format!("the proxy has no cluster {cluster}");
                return Err(no(http.then_some(503), "NC", "cluster_not_found", reason, next));
            };
            let used = reach.endpoints.iter().find(|endpoint| endpoint.used);
            // Names and hosts that are found on request have no endpoints before.
            let looked_up = reach.endpoints.iter().find(|endpoint| endpoint.socket.is_none());
            used.or(looked_up).cloned().ok_or_else(|| {
                let reason = match reach.endpoints.len() {
                    0 => format!("{cluster} has no endpoints"),
                    some => format!("none of the {some} endpoints of {cluster} takes requests"),
                };
                let details = if http { "no_healthy_upstream" } else { "" };
                let next = vec![
                    format!("lateen pc endpoints {pod} --cluster '{cluster}'"),
                    "kubectl get endpointslices -A, and the labels of the pods that should be among them"
                        .to_owned(),
                ];
                no(http.then_some(503), "UH", details, reason, next)
            })
        }
    }
}

/// The server is another than TLS expects, or speaks none.
fn mistaken(story: &Story, place: &Place, followed: &EndpointSeen) -> Option<Answer> {
    let last = story.hops.last()?;
    let details = "upstream_reset_before_response_started{remote_connection_failure|TLS_error}";
    let http = last.passage.route.is_some();
    let no = |reason: String| Answer {
        passes: Passes::No,
        status: http.then_some(503),
        flags: "UF".to_owned(),
        details: if http { details.to_owned() } else { String::new() },
        decided_at: last.proxy.clone(),
        decided_by: String::new(),
        reason,
        next: vec![
            "kubectl get peerauthentication,destinationrule -A".to_owned(),
            "lateen proxy-status".to_owned(),
        ],
    };
    match place {
        Place::Proxied(name, proxy) if followed.transport == "mutual TLS" && !proxy.identity.is_empty() => {
            let known = followed.expected.is_empty()
                || proxy.identity.iter().any(|uri| followed.expected.contains(uri));
            let expected = followed.expected.join(" or ");
            (!known)
                .then(|| no(format!("{name} is {}, and {expected} is expected", proxy.identity.join(", "))))
        }
        Place::Bare(name) if followed.shows_certificate => {
            Some(no(format!("{name} has no proxy, and mutual TLS of the mesh is spoken to it")))
        }
        Place::Proxied(..) | Place::Bare(_) | Place::Gateway(..) | Place::Unknown => None,
    }
}

fn without_proxy(story: &Story, question: &Question, name: &str) -> Answer {
    let place = if name.is_empty() { question.destination.to_string() } else { name.to_owned() };
    let reason = match name {
        "" => format!("{place} is not a pod of the cluster; whatever is there answers"),
        _ => format!(
            "{place} has no proxy, so no policy of the mesh is applied there; the application answers"
        ),
    };
    finished(story, Answer::passing(&reason))
}

/// It goes to another network by a gateway that is not of this cluster.
fn at_gateway(story: &Story, address: &str, beyond: &Beyond) -> Answer {
    let Beyond { network, workloads } = beyond;
    let behind = match workloads.as_slice() {
        [] => "none of the service's workloads that are known stands there".to_owned(),
        some => format!("behind it stand {}", advice::some_of(some)),
    };
    let reason = format!(
        "{address} is a gateway of network {network}, which is not of this cluster; {behind}, and their proxies decide"
    );
    finished(story, Answer { passes: Passes::Depends, ..Answer::passing(&reason) })
}

/// A request that passes, unless something on the way decides that configuration does not tell.
fn finished(story: &Story, mut answer: Answer) -> Answer {
    let asked = |check: &&Check| check.result == CheckResult::Depends;
    let open = story.hops.iter().find_map(|hop| Some((hop, hop.passage.checks.iter().find(asked)?)));
    if let Some((hop, check)) = open {
        answer.passes = Passes::Depends;
        answer.decided_at.clone_from(&hop.proxy);
        answer.decided_by = check.decided_by.clone().unwrap_or_default();
        answer.reason = format!("{} (if {}: {})", answer.reason, check.by, check.reason);
    }
    answer
}

impl Answer {
    /// Nothing in the cluster is called so; `hosts` are those that the client's proxy knows.
    pub(super) fn of_unknown(&mut self, host: &str, hosts: &[String]) {
        let unknown = format!("no Service and no ServiceEntry with an address is called {host}");
        if self.passes == Passes::Yes {
            self.passes = Passes::Depends;
            self.reason = format!("{unknown}; where else DNS may lead is not looked at");
        } else {
            self.reason = format!("{}; {unknown}", self.reason);
        }
        self.next.extend(advice::similar(hosts, host).map(|known| format!("{known}, if that was meant")));
    }

    fn passing(reason: &str) -> Self {
        Self {
            passes: Passes::Yes,
            status: None,
            flags: "-".to_owned(),
            details: String::new(),
            decided_at: String::new(),
            decided_by: String::new(),
            reason: reason.to_owned(),
            next: Vec::new(),
        }
    }
}

/// A request by its parts, for [`Question::request`].
///
/// # Errors
/// What of it is no part of a request.
pub fn request(
    method: &str,
    authority: &str,
    path: &str,
    headers: &[String],
    claims: &[String],
) -> Result<Asked, String> {
    let method = http::Method::from_bytes(method.to_ascii_uppercase().as_bytes())
        .map_err(|_| format!("--method {method:?} is not a method"))?;
    let path = if path.starts_with('/') { path.to_owned() } else { format!("/{path}") };
    let path = path.parse().map_err(|_| format!("--path {path:?} is not a path"))?;
    let mut map = http::HeaderMap::new();
    let mut authority = authority.to_owned();
    for header in headers {
        let (name, value) =
            header.split_once([':', '=']).ok_or_else(|| format!("--header {header:?} is not NAME: VALUE"))?;
        let name = http::HeaderName::from_bytes(name.trim().as_bytes())
            .map_err(|_| format!("--header {header:?}: {name:?} is not a header's name"))?;
        let value = http::HeaderValue::from_str(value.trim())
            .map_err(|_| format!("--header {header:?}: that is not a header's value"))?;
        match name.as_str() {
            "host" => authority = value.to_str().unwrap_or_default().to_owned(),
            _ => drop(map.append(name, value)),
        }
    }
    let mut object = serde_json::Map::new();
    for claim in claims {
        let (name, value) =
            claim.split_once('=').ok_or_else(|| format!("--jwt-claim {claim:?} is not NAME=VALUE"))?;
        // Numbers, truth values, lists and objects are JSON; everything else is a text.
        let value = serde_json::from_str(value).unwrap_or_else(|_| value.into());
        put(&mut object, name, value);
    }
    if !object.is_empty() && !object.contains_key("iss") {
        return Err("a token has an issuer: add --jwt-claim iss=ISSUER".to_owned());
    }
    let claims = (!object.is_empty()).then_some(object);
    Ok(Asked { method: method.to_string(), authority, path, headers: map, claims })
}

/// Puts a claim into its object: `a.b` is `b` in `a`.
fn put(object: &mut serde_json::Map<String, serde_json::Value>, name: &str, value: serde_json::Value) {
    match name.split_once('.') {
        // Names of claims may be URLs.
        Some((first, rest)) if !name.contains('/') => {
            let inner = object.entry(first).or_insert_with(|| serde_json::json!({}));
            match inner.as_object_mut() {
                Some(inner) => put(inner, rest, value),
                None => *inner = value,
            }
        }
        _ => drop(object.insert(name.to_owned(), value)),
    }
}
