//! `ext-authz`: an external authorizer like Istio's sample. What has the header `x-ext-authz: allow` passes, and over gRPC without the
//! header what comes from the chosen service account.
//! <https://github.com/istio/istio/tree/master/samples/extauthz>

use axum::Router;
use axum::extract::Request;
use axum::response::{IntoResponse, Response};
use http::{HeaderName, HeaderValue, StatusCode};
use http_body_util::{BodyExt, Limited};
use lateen_xds::pb::envoy::config::core::v3 as core;
use lateen_xds::pb::envoy::service::auth::v3 as auth;
use lateen_xds::pb::envoy::r#type::v3::HttpStatus;

use crate::grpc::{service, unary};

const CHECK: &str = "x-ext-authz";
const ALLOW: &str = "allow";
const RESULT: &str = "x-ext-authz-check-result";
const RECEIVED: &str = "x-ext-authz-check-received";
const OVERRIDE: &str = "x-ext-authz-additional-header-override";
const OVERRIDE_GRPC: &str = "grpc-additional-header-override-value";
const DENIED: &str = "denied by ext_authz for not found header `x-ext-authz: allow` in the request";

/// A longer text about a request is not told.
const LONGEST: usize = 60_000;

fn if_short(text: String) -> String {
    if text.len() > LONGEST { "<too-long>".to_owned() } else { text }
}

/// The authorizer over gRPC; the original listens on port 9000. `account`: the service account that passes.
pub fn grpc_app(account: &str) -> Router {
    let suffix = format!("/sa/{account}");
    service(Router::new().route(
        "/envoy.service.auth.v3.Authorization/Check",
        unary(move |request: tonic::Request<auth::CheckRequest>| {
            let answer = check(&request.into_inner(), &suffix);
            async move { Ok(tonic::Response::new(answer)) }
        }),
    ))
}

fn check(request: &auth::CheckRequest, account: &str) -> auth::CheckResponse {
    use auth::check_response::HttpResponse;
    let attributes = request.attributes.clone().unwrap_or_default();
    let http = attributes.request.clone().unwrap_or_default().http.unwrap_or_default();
    let principal = attributes.source.clone().unwrap_or_default().principal;
    let allowed = match http.headers.get(CHECK) {
        Some(value) => value == ALLOW,
        None => principal.ends_with(account),
    };
    let verdict = if allowed { "allowed" } else { "denied" };
    println!("[gRPC] {verdict}: {} {}{}, from {principal}", http.method, http.host, http.path);
    // A line feed may not stand in a header.
    let received = if_short(format!("{attributes:?}"));
    let set = |key: &str, value: &str| core::HeaderValueOption {
        header: Some(core::HeaderValue {
            key: key.to_owned(),
            value: value.to_owned(),
            ..Default::default()
        }),
        ..Default::default()
    };
    let headers = vec![set(RESULT, verdict), set(OVERRIDE, OVERRIDE_GRPC), set(RECEIVED, &received)];
    let (code, http_response) = if allowed {
        (0, HttpResponse::OkResponse(auth::OkHttpResponse { headers, ..Default::default() }))
    } else {
        let status = Some(HttpStatus { code: 403 });
        (
            7,
            HttpResponse::DeniedResponse(auth::DeniedHttpResponse {
                status,
                headers,
                body: DENIED.to_owned(),
            }),
        )
    };
    let status = lateen_xds::pb::google::rpc::Status { code, ..Default::default() };
    auth::CheckResponse { status: Some(status), http_response: Some(http_response), ..Default::default() }
}

/// The authorizer over HTTP; the original listens on port 8000.
pub fn http_app() -> Router {
    Router::new().fallback(http_check)
}

async fn http_check(request: Request) -> Response {
    let (head, body) = request.into_parts();
    let body = match Limited::new(body, LONGEST).collect().await {
        Ok(body) => String::from_utf8_lossy(&body.to_bytes()).into_owned(),
        Err(_) => "<too-long>".to_owned(),
    };
    let host = head.headers.get(http::header::HOST).and_then(|host| host.to_str().ok()).unwrap_or_default();
    let allowed = head.headers.get(CHECK).is_some_and(|value| value == ALLOW);
    let verdict = if allowed { "allowed" } else { "denied" };
    println!("[HTTP] {verdict}: {} {host}{}", head.method, head.uri);
    let received =
        if_short(format!("{} {host}{}, headers: {:?}, body: [{body}]", head.method, head.uri, head.headers));
    let status = if allowed { StatusCode::OK } else { StatusCode::FORBIDDEN };
    let mut response = (status, if allowed { "" } else { DENIED }).into_response();
    let headers = response.headers_mut();
    headers.insert(RESULT, HeaderValue::from_static(verdict));
    let told = head.headers.get(OVERRIDE).cloned().unwrap_or_else(|| HeaderValue::from_static(""));
    headers.insert(OVERRIDE, told);
    if let Ok(received) = HeaderValue::try_from(received) {
        headers.insert(HeaderName::from_static(RECEIVED), received);
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;
    use tower::ServiceExt;

    fn question(headers: &[(&str, &str)], principal: &str) -> auth::CheckRequest {
        use auth::attribute_context::{HttpRequest, Peer, Request};
        let headers = headers.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        let http = HttpRequest { headers, ..Default::default() };
        auth::CheckRequest {
            attributes: Some(auth::AttributeContext {
                source: Some(Peer { principal: principal.to_owned(), ..Default::default() }),
                request: Some(Request { http: Some(http), ..Default::default() }),
                ..Default::default()
            }),
        }
    }

    #[test]
    fn the_header_decides_and_without_it_the_account() {
        for (headers, principal, code) in [
            (&[(CHECK, "allow")][..], "spiffe://x/ns/a/sa/other", 0),
            (&[(CHECK, "deny")], "spiffe://x/ns/a/sa/a", 7),
            (&[], "spiffe://x/ns/a/sa/a", 0),
            (&[], "spiffe://x/ns/a/sa/other", 7),
        ] {
            let answer = check(&question(headers, principal), "/sa/a");
            assert_eq!(answer.status.unwrap().code, code, "{headers:?} {principal}");
        }
    }

    #[tokio::test]
    async fn over_http_the_header_decides() {
        for (value, status, body) in [("allow", 200, ""), ("deny", 403, DENIED)] {
            let request =
                http::Request::get("/a?b").header("host", "h").header(CHECK, value).header(OVERRIDE, "mine");
            let response =
                http_app().oneshot(request.body(axum::body::Body::empty()).unwrap()).await.unwrap();
            assert_eq!(response.status(), status);
            assert_eq!(response.headers()[OVERRIDE], "mine");
            assert!(response.headers()[RECEIVED].to_str().unwrap().starts_with("GET h/a?b"));
            assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), body);
        }
    }
}
