//! `httpbin`: describes requests and produces responses on demand; paths and JSON as the original at httpbin.org.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::{ConnectInfo, FromRequestParts, OriginalUri, Path, RawQuery, Request, State};
use axum::response::{Html, IntoResponse, Json, Response};
use axum::routing::{any, delete, get, patch, post, put};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::request::Parts;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use http_body_util::{BodyExt, Limited};
use serde_json::{Map, Value, json};

const MAX_BODY: usize = 16 * 1024 * 1024;
const MAX_BYTES: usize = 100 * 1024;
const MAX_DELAY: Duration = Duration::from_secs(10);

/// How header values look in the JSON.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Style {
    /// Strings, as kennethreitz/httpbin and kong/httpbin.
    Python,
    /// Arrays of strings, as mccutchen/go-httpbin.
    Go,
}

/// The application; the originals listen on port 80 (python) and 8080 (go).
pub fn app(style: Style) -> Router {
    Router::new()
        .route("/", get(|| async { Html("<!doctype html><title>httpbin</title><h1>httpbin</h1>\n") }))
        .route("/get", get(describe))
        .route("/post", post(describe_with_body))
        .route("/put", put(describe_with_body))
        .route("/patch", patch(describe_with_body))
        .route("/delete", delete(describe_with_body))
        .route("/anything", any(describe_anything))
        .route("/anything/{*rest}", any(describe_anything))
        .route(
            "/headers",
            get(async |State(style), headers: HeaderMap| {
                Json(json!({ "headers": header_json(&headers, style) }))
            }),
        )
        .route("/ip", get(async |Origin(origin)| Json(json!({ "origin": origin }))))
        .route(
            "/user-agent",
            get(async |headers: HeaderMap| {
                Json(json!({ "user-agent": text(headers.get(header::USER_AGENT)) }))
            }),
        )
        .route("/uuid", get(async || Json(json!({ "uuid": uuid::Uuid::new_v4().to_string() }))))
        .route("/status/{codes}", any(status))
        .route("/delay/{seconds}", any(delay))
        .route("/bytes/{count}", get(bytes))
        .route("/stream/{count}", get(stream))
        .route("/html", get(|| async { Html(PAGE) }))
        .route("/json", get(async || Json(slideshow())))
        .route("/response-headers", get(response_headers).post(response_headers))
        .route("/redirect/{count}", get(redirect))
        .route("/relative-redirect/{count}", get(redirect))
        .route("/basic-auth/{user}/{password}", get(basic_auth))
        .with_state(style)
}

const PAGE: &str = "<!doctype html>\n<html>\n<head><title>A page</title></head>\n<body><h1>A page of HTML</h1>\
                    <p>It stands here so that something can be fetched.</p></body>\n</html>\n";

fn slideshow() -> Value {
    json!({ "slideshow": {
        "author": "Lateen",
        "date": "date of publication",
        "slides": [
            { "title": "What a mesh does", "type": "all" },
            { "items": ["routes", "secures", "observes"], "title": "Overview", "type": "all" },
        ],
        "title": "Sample Slide Show",
    }})
}

/// The caller's address: the first of `x-forwarded-for`, else the connection's peer.
struct Origin(String);

impl<S: Sync> FromRequestParts<S> for Origin {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Infallible> {
        let forwarded = parts.headers.get("x-forwarded-for").and_then(|value| value.to_str().ok());
        let peer = parts.extensions.get::<ConnectInfo<SocketAddr>>().map(|info| info.0.ip().to_string());
        let first = forwarded.and_then(|list| list.split(',').next()).map(|ip| ip.trim().to_owned());
        Ok(Self(first.or(peer).unwrap_or_default()))
    }
}

fn text(value: Option<&HeaderValue>) -> String {
    value.map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned()).unwrap_or_default()
}

/// Header names the way both originals print them: `X-Request-Id`.
fn canonical(name: &HeaderName) -> String {
    let mut out = String::with_capacity(name.as_str().len());
    let mut upper = true;
    for c in name.as_str().chars() {
        out.push(if upper { c.to_ascii_uppercase() } else { c });
        upper = c == '-';
    }
    out
}

fn header_json(headers: &HeaderMap, style: Style) -> Value {
    let mut names: Vec<&HeaderName> = headers.keys().collect();
    names.sort_by_key(|name| name.as_str().to_owned());
    let mut out = Map::new();
    for name in names {
        let values: Vec<String> = headers.get_all(name).iter().map(|value| text(Some(value))).collect();
        let value = match style {
            Style::Python => Value::String(values.join(",")),
            Style::Go => json!(values),
        };
        out.insert(canonical(name), value);
    }
    Value::Object(out)
}

/// `a=1&a=2&b=3` as `{"a": ["1", "2"], "b": "3"}`; go-httpbin prints arrays always.
fn form_json(encoded: &str, style: Style) -> Value {
    let mut out: Map<String, Value> = Map::new();
    for pair in encoded.split('&').filter(|pair| !pair.is_empty()) {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        let (name, value) = (percent_decode(name), Value::String(percent_decode(value)));
        match out.get_mut(&name) {
            Some(Value::Array(list)) => list.push(value),
            Some(single) => *single = json!([single.take(), value]),
            None if style == Style::Go => drop(out.insert(name, json!([value]))),
            None => drop(out.insert(name, value)),
        }
    }
    Value::Object(out)
}

fn percent_decode(encoded: &str) -> String {
    let bytes = encoded.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut i = 0;
    while let Some(&byte) = bytes.get(i) {
        let hex = encoded.get(i + 1..i + 3).and_then(|hex| u8::from_str_radix(hex, 16).ok());
        match (byte, hex) {
            (b'%', Some(decoded)) => {
                out.push(decoded);
                i += 2;
            }
            (b'+', _) => out.push(b' '),
            _ => out.push(byte),
        }
        i += 1;
    }
    String::from_utf8_lossy(&out).into_owned()
}

fn url(headers: &HeaderMap, uri: &http::Uri) -> String {
    let scheme = headers.get("x-forwarded-proto").and_then(|value| value.to_str().ok()).unwrap_or("http");
    let host = uri.authority().map(ToString::to_string).unwrap_or_else(|| text(headers.get(header::HOST)));
    format!("{scheme}://{host}{}", uri.path_and_query().map_or("/", |path| path.as_str()))
}

async fn describe(
    State(style): State<Style>,
    Origin(origin): Origin,
    OriginalUri(uri): OriginalUri,
    headers: HeaderMap,
) -> Json<Value> {
    Json(json!({
        "args": form_json(uri.query().unwrap_or_default(), style),
        "headers": header_json(&headers, style),
        "origin": origin,
        "url": url(&headers, &uri),
    }))
}

async fn describe_anything(
    state: State<Style>,
    origin: Origin,
    uri: OriginalUri,
    request: Request,
) -> Response {
    let method = request.method().to_string();
    match body_json(state, origin, uri, request).await {
        Ok(mut json) => {
            json.insert("method".into(), method.into());
            Json(json).into_response()
        }
        Err(status) => status.into_response(),
    }
}

async fn describe_with_body(
    state: State<Style>,
    origin: Origin,
    uri: OriginalUri,
    request: Request,
) -> Response {
    match body_json(state, origin, uri, request).await {
        Ok(json) => Json(json).into_response(),
        Err(status) => status.into_response(),
    }
}

async fn body_json(
    State(style): State<Style>,
    Origin(origin): Origin,
    OriginalUri(uri): OriginalUri,
    request: Request,
) -> Result<Map<String, Value>, StatusCode> {
    let (parts, body) = request.into_parts();
    let body =
        Limited::new(body, MAX_BODY).collect().await.map_err(|_| StatusCode::PAYLOAD_TOO_LARGE)?.to_bytes();
    let body = String::from_utf8_lossy(&body);
    let content_type = text(parts.headers.get(header::CONTENT_TYPE));
    let is_form = content_type.starts_with("application/x-www-form-urlencoded");
    let mut json = Map::new();
    json.insert("args".into(), form_json(uri.query().unwrap_or_default(), style));
    json.insert("data".into(), if is_form { "".into() } else { body.as_ref().into() });
    json.insert("files".into(), json!({}));
    json.insert("form".into(), if is_form { form_json(&body, style) } else { json!({}) });
    json.insert("headers".into(), header_json(&parts.headers, style));
    json.insert("json".into(), serde_json::from_str(&body).unwrap_or(Value::Null));
    json.insert("origin".into(), origin.into());
    json.insert("url".into(), url(&parts.headers, &uri).into());
    Ok(json)
}

/// `/status/503`, or one of several by chance: `/status/200,503`.
async fn status(Path(codes): Path<String>) -> Response {
    let codes: Option<Vec<StatusCode>> =
        codes.split(',').map(|code| StatusCode::from_bytes(code.trim().as_bytes()).ok()).collect();
    let Some(code) = codes.as_deref().and_then(|codes| codes.get(fastrand::usize(..codes.len().max(1))))
    else {
        return (StatusCode::BAD_REQUEST, "Invalid status code").into_response();
    };
    let mut response = code.into_response();
    if code.is_redirection() {
        response.headers_mut().insert(header::LOCATION, HeaderValue::from_static("/redirect/1"));
    }
    response
}

/// Waits up to ten seconds, as the original does.
async fn delay(
    Path(seconds): Path<f64>,
    state: State<Style>,
    origin: Origin,
    uri: OriginalUri,
    request: Request,
) -> Response {
    tokio::time::sleep(capped_delay(seconds)).await;
    describe_with_body(state, origin, uri, request).await
}

fn capped_delay(seconds: f64) -> Duration {
    Duration::try_from_secs_f64(seconds).unwrap_or(MAX_DELAY).min(MAX_DELAY)
}

async fn bytes(Path(count): Path<usize>) -> impl IntoResponse {
    let body: Vec<u8> = std::iter::repeat_with(|| fastrand::u8(..)).take(count.min(MAX_BYTES)).collect();
    ([(header::CONTENT_TYPE, "application/octet-stream")], body)
}

/// `count` (at most 100) JSON documents, one a line, each in its own chunk.
async fn stream(
    Path(count): Path<usize>,
    state: State<Style>,
    origin: Origin,
    uri: OriginalUri,
    headers: HeaderMap,
) -> impl IntoResponse {
    let Json(document) = describe(state, origin, uri, headers).await;
    let lines = (0..count.min(100)).map(move |id| {
        let mut document = document.clone();
        document["id"] = id.into();
        Ok::<_, Infallible>(Bytes::from(format!("{document}\n")))
    });
    ([(header::CONTENT_TYPE, "application/json")], Body::from_stream(futures::stream::iter(lines)))
}

async fn response_headers(RawQuery(query): RawQuery) -> Response {
    let wanted = form_json(query.as_deref().unwrap_or_default(), Style::Go);
    let mut response = Json(form_json(query.as_deref().unwrap_or_default(), Style::Python)).into_response();
    for (name, values) in wanted.as_object().into_iter().flatten() {
        for value in values.as_array().into_iter().flatten().filter_map(Value::as_str) {
            let pair = (HeaderName::try_from(name.as_str()), HeaderValue::try_from(value));
            let (Ok(name), Ok(value)) = pair else {
                return (StatusCode::BAD_REQUEST, "not a header").into_response();
            };
            response.headers_mut().append(name, value);
        }
    }
    response
}

async fn redirect(Path(count): Path<u32>) -> impl IntoResponse {
    let location = match count {
        0 | 1 => "/get".to_owned(),
        more => format!("/relative-redirect/{}", more - 1),
    };
    (StatusCode::FOUND, [(header::LOCATION, location)])
}

async fn basic_auth(Path((user, password)): Path<(String, String)>, headers: HeaderMap) -> Response {
    let expected = format!("Basic {}", STANDARD.encode(format!("{user}:{password}")));
    if text(headers.get(header::AUTHORIZATION)) == expected {
        return Json(json!({ "authenticated": true, "user": user })).into_response();
    }
    (StatusCode::UNAUTHORIZED, [(header::WWW_AUTHENTICATE, "Basic realm=\"Fake Realm\"")]).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;
    use tower::ServiceExt;

    async fn call(
        style: Style,
        request: http::request::Builder,
        body: &'static str,
    ) -> (StatusCode, HeaderMap, Value) {
        let response = app(style).oneshot(request.body(Body::from(body)).unwrap()).await.unwrap();
        let (parts, body) = response.into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        (parts.status, parts.headers, serde_json::from_slice(&body).unwrap_or(Value::Null))
    }

    #[tokio::test]
    async fn get_prints_args_headers_origin_and_url() {
        let request = http::Request::get("/get?a=1&a=2&b=x%20y")
            .header("host", "httpbin:8000")
            .header("x-forwarded-for", "10.0.0.9, 10.0.0.1")
            .header("x-envoy-attempt-count", "1");
        let (status, _, json) = call(Style::Python, request, "").await;
        assert_eq!(status, 200);
        assert_eq!(json["args"], json!({ "a": ["1", "2"], "b": "x y" }));
        assert_eq!(json["headers"]["X-Envoy-Attempt-Count"], "1");
        assert_eq!(json["origin"], "10.0.0.9");
        assert_eq!(json["url"], "http://httpbin:8000/get?a=1&a=2&b=x%20y");
    }

    #[tokio::test]
    async fn go_style_prints_arrays() {
        let request = http::Request::get("/headers").header("host", "h");
        let (_, _, json) = call(Style::Go, request, "").await;
        assert_eq!(json["headers"]["Host"], json!(["h"]));
    }

    #[tokio::test]
    async fn post_prints_forms_and_json() {
        let form = http::Request::post("/post").header("content-type", "application/x-www-form-urlencoded");
        let (_, _, json) = call(Style::Python, form, "a=1").await;
        assert_eq!((&json["form"], &json["data"]), (&json!({ "a": "1" }), &json!("")));
        let (_, _, json) = call(Style::Python, http::Request::post("/post"), r#"{"a":1}"#).await;
        assert_eq!((&json["json"], &json["data"]), (&json!({ "a": 1 }), &json!(r#"{"a":1}"#)));
        let (_, _, json) = call(Style::Python, http::Request::put("/anything/x"), "").await;
        assert_eq!(json["method"], "PUT");
        assert_eq!(call(Style::Python, http::Request::get("/post"), "").await.0, 405);
    }

    #[tokio::test]
    async fn responses_on_demand() {
        let status = async |path: &str| call(Style::Python, http::Request::get(path), "").await;
        assert_eq!(status("/status/418").await.0, 418);
        assert_eq!(status("/status/x").await.0, 400);
        assert_eq!(status("/redirect/1").await.1["location"], "/get");
        assert_eq!(status("/redirect/3").await.1["location"], "/relative-redirect/2");
        assert_eq!(status("/response-headers?x-a=b").await.1["x-a"], "b");
        assert_eq!(status("/bytes/17").await.1["content-length"], "17");
        assert_eq!(status("/basic-auth/u/p").await.0, 401);
        let authorized = http::Request::get("/basic-auth/u/p").header("authorization", "Basic dTpw");
        assert_eq!(call(Style::Python, authorized, "").await.0, 200);
        assert_eq!(status("/uuid").await.2["uuid"].as_str().unwrap().len(), 36);
    }

    #[tokio::test]
    async fn stream_sends_one_document_a_line() {
        let request = http::Request::get("/stream/3").body(Body::empty()).unwrap();
        let body = app(Style::Python)
            .oneshot(request)
            .await
            .unwrap()
            .into_body()
            .collect()
            .await
            .unwrap()
            .to_bytes();
        let ids: Vec<Value> = body
            .split(|b| *b == b'\n')
            .filter_map(|line| serde_json::from_slice::<Value>(line).ok())
            .collect();
        assert_eq!(
            ids.iter().map(|line| line["id"].clone()).collect::<Vec<_>>(),
            [json!(0), json!(1), json!(2)]
        );
    }

    #[test]
    fn a_delay_is_ten_seconds_at_most() {
        assert_eq!(capped_delay(0.25), Duration::from_millis(250));
        for too_much in [60.0, 1e300, f64::NAN, -1.0] {
            assert_eq!(capped_delay(too_much), MAX_DELAY);
        }
    }
}
