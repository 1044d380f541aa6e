//! External authorizers for both proxies: what a request's `x-authz` header says is what they answer, and they tell what they were
//! asked in `x-asked`.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, Response};
use http_body_util::{BodyExt as _, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper_util::rt::{TokioExecutor, TokioIo};
use lateen_xds::pb::envoy::config::core::v3 as core;
use lateen_xds::pb::envoy::service::auth::v3 as auth;
use lateen_xds::pb::envoy::r#type::v3::HttpStatus;
use lateen_xds::pb::google::protobuf as google;
use prost::Message as _;
use tokio::net::TcpListener;

use crate::wire::comparable;

type Body = http_body_util::combinators::BoxBody<Bytes, std::convert::Infallible>;

fn whole(frames: Vec<Frame<Bytes>>) -> Body {
    StreamBody::new(futures::stream::iter(frames.into_iter().map(Ok))).boxed()
}

async fn serve<F>(
    http2: bool,
    answer: impl Fn(Request<Incoming>) -> F + Clone + Send + Sync + 'static,
) -> SocketAddr
where
    F: Future<Output = Response<Body>> + Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let answer = answer.clone();
            let service = hyper::service::service_fn(move |request| {
                let answer = answer(request);
                async move { Ok::<_, std::convert::Infallible>(answer.await) }
            });
            tokio::spawn(async move {
                let io = TokioIo::new(stream);
                // A proxy that goes away ends it.
                if http2 {
                    drop(
                        hyper::server::conn::http2::Builder::new(TokioExecutor::new())
                            .serve_connection(io, service)
                            .await,
                    );
                } else {
                    drop(hyper::server::conn::http1::Builder::new().serve_connection(io, service).await);
                }
            });
        }
    });
    address
}

/// Over gRPC.
pub(crate) async fn start_grpc() -> SocketAddr {
    serve(true, grpc).await
}

/// One over gRPC that allows everything, and remembers who asked.
pub(crate) struct Heard {
    pub(crate) address: SocketAddr,
    /// Who the ends of each connection are, in one line.
    pub(crate) questions: Arc<Mutex<Vec<String>>>,
}

/// See [`Heard`].
pub(crate) async fn start_recorder() -> Heard {
    let questions = Arc::new(Mutex::new(Vec::new()));
    let heard = questions.clone();
    let answer = move |request: Request<Incoming>| {
        let heard = heard.clone();
        async move {
            let bytes = request.into_body().collect().await.unwrap().to_bytes();
            let question = auth::CheckRequest::decode(&bytes[5..]).unwrap().attributes.unwrap_or_default();
            let (source, destination) =
                (question.source.unwrap_or_default(), question.destination.unwrap_or_default());
            heard.lock().unwrap().push(format!(
                "source {:?} {:?} {:?} destination {:?} {:?} {:?} session {:?}",
                source.principal,
                source.service,
                source.certificate,
                destination.principal,
                destination.service,
                destination.certificate,
                question.tls_session,
            ));
            // An empty message allows.
            let trailers =
                HeaderMap::from_iter([("grpc-status".parse().unwrap(), HeaderValue::from_static("0"))]);
            let mut response = Response::new(whole(vec![
                Frame::data(Bytes::from_static(&[0; 5])),
                Frame::trailers(trailers),
            ]));
            response.headers_mut().insert("content-type", HeaderValue::from_static("application/grpc"));
            response
        }
    };
    Heard { address: serve(true, answer).await, questions }
}

/// Over HTTP/1.1.
pub(crate) async fn start_http() -> SocketAddr {
    serve(false, http).await
}

/// Whether a request is asked about for the first time, by its id.
fn is_new(id: &str) -> bool {
    static KNOWN: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());
    assert!(!id.is_empty(), "only who has an id is known again");
    KNOWN.lock().unwrap().insert(id.to_owned())
}

async fn grpc(request: Request<Incoming>) -> Response<Body> {
    let (head, body) = request.into_parts();
    let bytes = body.collect().await.unwrap().to_bytes();
    assert_eq!(head.uri.path(), "/envoy.service.auth.v3.Authorization/Check");
    let question = auth::CheckRequest::decode(&bytes[5..]).unwrap();
    let attributes = question.attributes.unwrap_or_default();
    let http = attributes.request.clone().unwrap_or_default().http.unwrap_or_default();
    let raw = http.header_map.clone().unwrap_or_default().headers.into_iter();
    let raw = raw.map(|header| (header.key, String::from_utf8_lossy(&header.raw_value).into_owned()));
    let of_call = head.headers.get("x-authz").and_then(|value| value.to_str().ok()).map(str::to_owned);
    let act = of_call
        .or_else(|| http.headers.get("x-authz").cloned())
        .or_else(|| raw.clone().find(|(name, _)| name == "x-authz").map(|(_, value)| value));
    let told = told(&head.headers, &head.uri, attributes);
    let act = act.unwrap_or_default();
    if act == "slow" {
        tokio::time::sleep(Duration::from_secs(2)).await;
    }
    let id = http.headers.get("x-request-id").cloned().unwrap_or_default();
    let status = match act.as_str() {
        "grpc-error" => "14",
        "again" if is_new(&id) => "14",
        _ => "0",
    };
    let mut response = Response::new(if status == "0" {
        let answer = answer(&act, &told).encode_to_vec();
        let mut framed = vec![0];
        framed.extend(u32::try_from(answer.len()).unwrap().to_be_bytes());
        framed.extend(answer);
        let trailers =
            HeaderMap::from_iter([("grpc-status".parse().unwrap(), HeaderValue::from_static("0"))]);
        let frames = match act.as_str() {
            "no-message" => vec![Frame::trailers(trailers)],
            "no-status" => vec![Frame::data(framed.into())],
            "half-a-message" => vec![Frame::data(framed[..6].to_vec().into()), Frame::trailers(trailers)],
            _ => vec![Frame::data(framed.into()), Frame::trailers(trailers)],
        };
        whole(frames)
    } else {
        whole(Vec::new())
    });
    if act == "http-503" {
        *response.status_mut() = http::StatusCode::SERVICE_UNAVAILABLE;
    }
    response.headers_mut().insert("content-type", HeaderValue::from_static("application/grpc"));
    if status != "0" {
        response.headers_mut().insert("grpc-status", HeaderValue::from_static(status));
    }
    response
}

/// What was asked, in one line, without what differs from run to run.
fn told(headers: &HeaderMap, uri: &http::Uri, attributes: auth::AttributeContext) -> String {
    let mut call: Vec<String> =
        headers.iter().map(|(name, value)| format!("{name}={}", value.to_str().unwrap())).collect();
    call.sort_unstable();
    let authority = uri.authority().map(|authority| authority.as_str()).unwrap_or_default();
    let peer = |peer: Option<auth::attribute_context::Peer>| {
        let peer = peer.unwrap_or_default();
        let address = match peer.address.and_then(|address| address.address) {
            Some(core::address::Address::SocketAddress(socket)) => {
                format!("{}/{}", socket.address, socket.protocol)
            }
            other => format!("{other:?}"),
        };
        format!("{address} {} {:?} {} {}", peer.service, peer.labels, peer.principal, peer.certificate.len())
    };
    let request = attributes.request.unwrap_or_default();
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    let recent = request.time.is_some_and(|time| now.abs_diff(u64::try_from(time.seconds).unwrap()) < 10);
    let http = request.http.unwrap_or_default();
    let numbered = http.id.parse::<u64>().is_ok();
    let shown = |name: &String, value: &String| comparable(&format!("{name}: {value}"));
    let mut sent: Vec<String> = http.headers.iter().map(|(name, value)| shown(name, value)).collect();
    sent.sort_unstable();
    let raw = http.header_map.unwrap_or_default().headers;
    let mut raw: Vec<String> = raw
        .iter()
        .map(|header| shown(&header.key, &String::from_utf8_lossy(&header.raw_value).into_owned()))
        .collect();
    raw.sort_unstable();
    let extensions: BTreeMap<_, _> = attributes.context_extensions.into_iter().collect();
    let noted = |metadata: Option<core::Metadata>| {
        metadata.map(|metadata| {
            let all: BTreeMap<_, _> = metadata.filter_metadata.into_iter().collect();
            let all = all
                .into_iter()
                .map(|(name, value)| (name, value.fields.into_iter().collect::<BTreeMap<_, _>>()));
            format!("{:?}", all.collect::<Vec<_>>())
        })
    };
    let mut text = format!(
        "call {authority} {call:?} from {} to {} at {recent} id {numbered} {} {} {} {} {} {} {} query={} fragment={} headers {sent:?} raw {raw:?} body {:?} {:?} extensions {extensions:?} noted {:?} of route {:?} tls {:?}",
        peer(attributes.source),
        peer(attributes.destination),
        http.method,
        http.host,
        http.scheme,
        http.path,
        http.protocol,
        http.size,
        http.headers.len(),
        http.query,
        http.fragment,
        http.body,
        http.raw_body,
        noted(attributes.metadata_context),
        noted(attributes.route_metadata_context),
        attributes.tls_session,
    );
    text.retain(|c| c != '\n');
    text
}

fn set(key: &str, value: &str) -> core::HeaderValueOption {
    option(key, value, None, 0)
}

fn option(key: &str, value: &str, append: Option<bool>, action: i32) -> core::HeaderValueOption {
    #[allow(deprecated)]
    core::HeaderValueOption {
        header: Some(core::HeaderValue {
            key: key.to_owned(),
            value: value.to_owned(),
            ..Default::default()
        }),
        append: append.map(|value| google::BoolValue { value }),
        append_action: action,
        ..Default::default()
    }
}

/// The same in every way there is.
fn all_ways(prefix: &str) -> Vec<core::HeaderValueOption> {
    let mut all = Vec::new();
    for there in ["there", "new"] {
        for (way, append, action) in [
            ("plain", None, 0),
            ("append", Some(true), 0),
            ("not-append", Some(false), 0),
            ("absent", None, 1),
            ("overwrite", None, 2),
            ("if-exists", None, 3),
        ] {
            for value in ["1", "2"] {
                all.push(option(&format!("{prefix}{there}-{way}"), value, append, action));
            }
        }
    }
    all
}

fn parameter(key: &str, value: &str) -> core::QueryParameter {
    core::QueryParameter { key: key.to_owned(), value: value.to_owned() }
}

#[allow(clippy::too_many_lines)] // A table of answers.
fn answer(act: &str, told: &str) -> auth::CheckResponse {
    use auth::check_response::HttpResponse;
    let status = |code: i32| Some(lateen_xds::pb::google::rpc::Status { code, ..Default::default() });
    let asked = || option("x-asked", told, Some(false), 0);
    let ok = |ok: auth::OkHttpResponse| auth::CheckResponse {
        status: status(0),
        http_response: Some(HttpResponse::OkResponse(ok)),
        ..Default::default()
    };
    let denied = |code: i32, denied: auth::DeniedHttpResponse| auth::CheckResponse {
        status: status(code),
        http_response: Some(HttpResponse::DeniedResponse(denied)),
        ..Default::default()
    };
    let http = |code: i32| Some(HttpStatus { code });
    let text = |text: &str| google::Struct {
        fields: [(
            "said".to_owned(),
            google::Value { kind: Some(google::value::Kind::StringValue(text.to_owned())) },
        )]
        .into(),
    };
    match act {
        "plain" => auth::CheckResponse { status: status(0), ..Default::default() },
        "no-status-at-all" => auth::CheckResponse::default(),
        "deny" => auth::CheckResponse { status: status(7), ..Default::default() },
        "deny-ok" => auth::CheckResponse {
            status: status(7),
            ..ok(auth::OkHttpResponse { headers: vec![asked()], ..Default::default() })
        },
        "deny-more" => denied(
            16,
            auth::DeniedHttpResponse {
                status: http(401),
                headers: vec![
                    set("x-a", "1"),
                    set("x-a", "2"),
                    set("content-type", "text/x"),
                    set("www-authenticate", "Basic"),
                    set("content-length", "3"),
                ],
                body: "who are you?".into(),
            },
        ),
        "deny-ways" => denied(7, auth::DeniedHttpResponse { headers: all_ways("x-"), ..Default::default() }),
        "deny-odd" => denied(
            7,
            auth::DeniedHttpResponse { status: http(200), body: "fine".into(), ..Default::default() },
        ),
        "deny-empty" => denied(
            7,
            auth::DeniedHttpResponse { headers: vec![set("content-type", "text/x")], ..Default::default() },
        ),
        "deny-server" => denied(
            7,
            auth::DeniedHttpResponse {
                status: http(503),
                headers: vec![set("server", "mine"), set("location", "/there")],
                body: "x".repeat(30),
            },
        ),
        "deny-invalid" => denied(
            7,
            auth::DeniedHttpResponse {
                headers: vec![set("x bad", "1"), set("x-good", "1")],
                ..Default::default()
            },
        ),
        "denied-but-zero" => denied(0, auth::DeniedHttpResponse { status: http(401), ..Default::default() }),
        "error-response" => auth::CheckResponse {
            status: status(13),
            http_response: Some(HttpResponse::ErrorResponse(auth::DeniedHttpResponse {
                status: http(502),
                headers: vec![set("x-a", "1")],
                body: "broken".into(),
            })),
            ..Default::default()
        },
        "error-response-plain" => auth::CheckResponse {
            status: status(13),
            http_response: Some(HttpResponse::ErrorResponse(auth::DeniedHttpResponse::default())),
            ..Default::default()
        },
        "ways" => ok(auth::OkHttpResponse {
            headers: all_ways("x-"),
            headers_to_remove: vec![
                "x-gone".into(),
                ":path".into(),
                "host".into(),
                "X-Gone-Too".into(),
                "not there".into(),
            ],
            response_headers_to_add: all_ways("x-r-")
                .into_iter()
                .chain([option("server", "authz", None, 2), option("date", "d", None, 1)])
                .collect(),
            ..Default::default()
        }),
        "query" => ok(auth::OkHttpResponse {
            query_parameters_to_set: vec![
                parameter("b", "new"),
                parameter("z", "%20"),
                parameter("b", "newer"),
            ],
            query_parameters_to_remove: vec!["c".into()],
            ..Default::default()
        }),
        "invalid-query" => ok(auth::OkHttpResponse {
            query_parameters_to_set: vec![parameter("b", "a b")],
            ..Default::default()
        }),
        "invalid-name" => ok(auth::OkHttpResponse {
            headers: vec![option("x bad", "1", Some(false), 0)],
            ..Default::default()
        }),
        "invalid-response" => ok(auth::OkHttpResponse {
            response_headers_to_add: vec![option("x bad", "1", Some(false), 0)],
            ..Default::default()
        }),
        "pseudo" => ok(auth::OkHttpResponse {
            headers: vec![
                option(":path", "/other?x", Some(false), 0),
                option(":authority", "b.example", Some(false), 0),
                option(":method", "PUT", Some(false), 0),
            ],
            ..Default::default()
        }),
        "many" => ok(auth::OkHttpResponse {
            headers: (0..120).map(|n| option(&format!("x-many-{n}"), "1", Some(false), 0)).collect(),
            ..Default::default()
        }),
        "steers" => ok(auth::OkHttpResponse {
            headers: vec![
                asked(),
                option("host", "b.example", Some(false), 0),
                option(":scheme", "ftp", Some(false), 0),
                option("x-envoy-mine", "1", Some(false), 0),
                option(":path", "/more", Some(true), 0),
                option("x-after", "1", Some(false), 0),
            ],
            headers_to_remove: vec!["x-gone".into(), "x-envoy-there".into()],
            ..Default::default()
        }),
        "reroute" => ok(auth::OkHttpResponse {
            headers: vec![option("x-route", "other", Some(false), 0)],
            ..Default::default()
        }),
        "reroute-by-removal" => {
            ok(auth::OkHttpResponse { headers_to_remove: vec!["x-route".into()], ..Default::default() })
        }
        "noted" => auth::CheckResponse {
            dynamic_metadata: Some(text("outer")),
            ..ok(auth::OkHttpResponse::default())
        },
        "noted-denied" => auth::CheckResponse {
            dynamic_metadata: Some(text("denied")),
            ..denied(7, auth::DeniedHttpResponse::default())
        },
        _ => ok(auth::OkHttpResponse { headers: vec![asked()], ..Default::default() }),
    }
}

async fn http(request: Request<Incoming>) -> Response<Body> {
    let (head, body) = request.into_parts();
    let bytes = body.collect().await.unwrap().to_bytes();
    let mut lines: Vec<String> = head
        .headers
        .iter()
        .map(|(name, value)| comparable(&format!("{name}: {}", String::from_utf8_lossy(value.as_bytes()))))
        .collect();
    lines.sort_unstable();
    let told = format!("{} {} {lines:?} {:?}", head.method, head.uri, String::from_utf8_lossy(&bytes));
    let act = head
        .headers
        .get("x-authz")
        .or_else(|| head.headers.get("authorization"))
        .map(|value| value.to_str().unwrap().to_owned())
        .unwrap_or_default();
    if act == "slow" {
        tokio::time::sleep(Duration::from_secs(2)).await;
    }
    let id = head.headers.get("x-request-id").map(|id| id.to_str().unwrap().to_owned());
    let status = match act.as_str() {
        "again" if is_new(&id.unwrap_or_default()) => 503,
        _ => act.parse::<u16>().ok().unwrap_or(200),
    };
    let text = if status < 300 { "" } else { "no" };
    let mut response = Response::builder()
        .status(status)
        .header("x-asked", told)
        .header("x-up", "up")
        .header("x-up", "upper")
        .header("x-there", "up")
        .header("x-append", "more")
        .header("x-down", "down")
        .header("server", "authorizer")
        .header("location", "/there")
        .header("set-cookie", "a=1")
        .header("set-cookie", "b=2");
    if act == "remove" {
        response = response
            .header("x-envoy-auth-headers-to-remove", "x-gone, x-gone-too")
            .header("x-envoy-auth-headers-to-remove", ":path");
    }
    let mut response = response.body(whole(vec![Frame::data(Bytes::from_static(text.as_bytes()))])).unwrap();
    response.headers_mut().insert("content-length", text.len().into());
    response
}
