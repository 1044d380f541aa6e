//! `hello-world`: answers "Hello World" to everything.

use axum::Router;

/// The application; the original listens on port 3000.
pub fn app() -> Router {
    Router::new().fallback(|| async { "Hello World" })
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt;
    use tower::ServiceExt;

    #[tokio::test]
    async fn greets_on_every_path() {
        for path in ["/", "/any/path?x=1"] {
            let request = http::Request::get(path).body(axum::body::Body::empty()).unwrap();
            let response = super::app().oneshot(request).await.unwrap();
            assert_eq!(response.status(), 200);
            assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), "Hello World");
        }
    }
}
