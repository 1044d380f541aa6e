//! `web-frontend`: an HTML page with the customers of another service.

use std::fmt::Write;
use std::time::Duration;

use axum::Router;
use axum::extract::{Request, State};
use axum::response::{Html, IntoResponse, Response};
use bytes::Bytes;
use http::{HeaderMap, StatusCode, Uri};
use http_body_util::{BodyExt, Empty, Limited};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};

use crate::customers::Customer;
use crate::propagate::copy_headers;

const MAX_ANSWER: usize = 1024 * 1024;

#[derive(Clone)]
struct Frontend {
    customers: Uri,
    client: Client<HttpConnector, Empty<Bytes>>,
}

/// The application; the original listens on port 8080. `customers` is where to fetch the list.
pub fn app(customers: Uri) -> Router {
    let client = Client::builder(TokioExecutor::new())
        .pool_timer(TokioTimer::new())
        .pool_idle_timeout(Duration::from_secs(30))
        .build_http();
    Router::new().fallback(page).with_state(Frontend { customers, client })
}

async fn page(State(frontend): State<Frontend>, request: Request) -> Response {
    match frontend.fetch(request.headers()).await {
        Ok(customers) => Html(render(&customers)).into_response(),
        Err(failure) => failure.into_response(),
    }
}

/// Why there is no list, as shown to the visitor.
struct Failure {
    status: StatusCode,
    text: String,
}

impl Failure {
    fn unreachable(text: impl std::fmt::Display) -> Self {
        Self { status: StatusCode::BAD_GATEWAY, text: text.to_string() }
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        let body = format!(
            "<!doctype html><title>Customers</title><h1>The customers service failed</h1><p>{}: {}</p>\n",
            self.status,
            escape(&self.text)
        );
        (self.status, Html(body)).into_response()
    }
}

impl Frontend {
    async fn fetch(&self, incoming: &HeaderMap) -> Result<Vec<Customer>, Failure> {
        let mut request = http::Request::get(self.customers.clone())
            .header("user-agent", "web-frontend")
            .body(Empty::new())
            .map_err(Failure::unreachable)?;
        copy_headers(incoming, request.headers_mut());
        let response =
            self.client.request(request).await.map_err(|error| Failure::unreachable(causes(&error)))?;
        let status = response.status();
        let body = Limited::new(response.into_body(), MAX_ANSWER).collect().await;
        let body = body.map_err(Failure::unreachable)?.to_bytes();
        if !status.is_success() {
            return Err(Failure { status, text: String::from_utf8_lossy(&body).into_owned() });
        }
        serde_json::from_slice(&body)
            .map_err(|error| Failure::unreachable(format!("the answer is not a list of customers: {error}")))
    }
}

/// An error with what caused it, down to the system's word. A connection that the other side reset is called what Node calls it, which
/// the course's mTLS lab looks for.
fn causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let reset = |error: &std::io::Error| error.kind() == std::io::ErrorKind::ConnectionReset;
        let word = if cause.downcast_ref().is_some_and(reset) { "read ECONNRESET, " } else { "" };
        text = format!("{text}: {word}{cause}");
        next = cause.source();
    }
    text
}

/// The word by which the course's labs tell version 2 from version 1 (`grep -o "city"`) is on the page, as a style class
/// beside the visible heading, exactly when customers have one.
fn render(customers: &[Customer]) -> String {
    let with_city = customers.iter().any(|customer| customer.city.is_some());
    let mut page = String::from(
        "<!doctype html>\n<html lang=\"en\">\n<head><meta charset=\"utf-8\"><title>Customers</title>\n<style>\
         body{font-family:sans-serif;margin:3rem auto;max-width:40rem}table{border-collapse:collapse;width:100%}\
         th,td{border:1px solid #ccc;padding:.5rem 1rem;text-align:left}th{background:#f2f2f2}</style></head>\n\
         <body><h1>Customers</h1>\n<table>\n<thead><tr>",
    );
    if with_city {
        page.push_str("<th class=\"city\">CITY</th>");
    }
    page.push_str("<th class=\"name\">NAME</th></tr></thead>\n<tbody>\n");
    for customer in customers {
        page.push_str("<tr>");
        if with_city {
            let city = customer.city.as_deref().unwrap_or_default();
            // Writing to a String cannot fail.
            let _ = write!(page, "<td class=\"city\">{}</td>", escape(city));
        }
        let _ = writeln!(page, "<td class=\"name\">{}</td></tr>", escape(&customer.name));
    }
    page.push_str("</tbody>\n</table>\n</body>\n</html>\n");
    page
}

pub(crate) fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::propagate::FORWARDED;
    use axum::body::Body;
    use tokio::net::TcpListener;
    use tower::ServiceExt;

    async fn upstream(app: Router) -> Uri {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move { axum::serve(listener, app).await });
        format!("http://{address}/").parse().unwrap()
    }

    async fn get(app: Router, headers: &[(&str, &str)]) -> (StatusCode, String) {
        let mut request = http::Request::get("/");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let response = app.oneshot(request.body(Body::empty()).unwrap()).await.unwrap();
        let status = response.status();
        let body = response.into_body().collect().await.unwrap().to_bytes();
        (status, String::from_utf8(body.to_vec()).unwrap())
    }

    #[tokio::test]
    async fn grep_city_tells_the_versions_apart() {
        let v1 = get(app(upstream(crate::customers::app("1.0.0")).await), &[]).await;
        assert_eq!(v1.0, 200);
        assert!(v1.1.contains(">NAME</th>") && v1.1.contains("Ada Winter"), "{}", v1.1);
        assert!(!v1.1.to_lowercase().contains("city"), "{}", v1.1);
        let v2 = get(app(upstream(crate::customers::app("2.0.0")).await), &[]).await;
        assert!(v2.1.contains("city") && v2.1.contains(">CITY</th>") && v2.1.contains("London"), "{}", v2.1);
    }

    #[tokio::test]
    async fn forwards_user_and_trace_headers_and_nothing_else() {
        async fn names(headers: HeaderMap) -> axum::Json<serde_json::Value> {
            let names: Vec<_> = headers.keys().map(ToString::to_string).collect();
            axum::Json(serde_json::json!([{ "name": names.join(" ") }]))
        }
        let echo = upstream(Router::new().fallback(names)).await;
        let sent =
            [("user", "debug"), ("x-request-id", "1"), ("traceparent", "00-1"), ("cookie", "secret=1")];
        let (_, page) = get(app(echo), &sent).await;
        assert!(page.contains("x-request-id traceparent user"), "{page}");
        assert!(!page.contains("cookie"), "{page}");
        // Everything a trace needs, whichever of the propagation formats it comes in.
        let echo = upstream(Router::new().fallback(names)).await;
        let sent = FORWARDED.map(|name| (name, "1"));
        let (_, page) = get(app(echo), &sent).await;
        for needed in
            ["b3", "x-b3-traceid", "x-b3-spanid", "x-b3-sampled", "traceparent", "tracestate", "end-user"]
        {
            assert!(page.split([' ', '<', '>']).any(|word| word == needed), "{needed}: {page}");
        }
    }

    #[tokio::test]
    async fn shows_the_upstreams_status_and_words() {
        let failing =
            Router::new().fallback(|| async { (StatusCode::GATEWAY_TIMEOUT, "upstream request <timeout>") });
        let (status, page) = get(app(upstream(failing).await), &[]).await;
        assert_eq!(status, 504);
        assert!(page.contains("504 Gateway Timeout: upstream request &lt;timeout&gt;"), "{page}");
        let (status, page) = get(app("http://127.0.0.1:1/".parse().unwrap()), &[]).await;
        assert_eq!(status, 502);
        assert!(page.contains("502 Bad Gateway"), "{page}");
    }
}
