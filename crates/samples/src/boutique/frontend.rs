//! `frontend`: the shop's pages. The start page lists the products, a product's page recommends others.

use std::fmt::Write;
use std::sync::Arc;

use axum::Router;
use axum::extract::{Path, State};
use axum::response::{Html, IntoResponse, Response};
use axum::routing::get;
use http::{HeaderMap, StatusCode};
use tonic::Status;

use super::messages::{
    Empty, GetProductRequest, ListProductsResponse, ListRecommendationsRequest, ListRecommendationsResponse,
    Product,
};
use super::{catalog, recommendation};
use crate::grpc::{Remote, describe};
use crate::web_frontend::escape;

/// Recommendations shown on a product's page.
const SHOWN: usize = 4;

struct Frontend {
    /// The image's tag.
    tag: String,
    pod: String,
    catalog: Remote,
    recommendation: Remote,
}

/// Addresses of the services behind the pages.
#[derive(Clone, Debug)]
pub struct Addresses {
    /// productcatalogservice, as `host:port`.
    pub catalog: String,
    /// recommendationservice, as `host:port`.
    pub recommendation: String,
}

/// The application; the original listens on port 8080. Images before 0.10 have another layout, as `tag` says; `pod` is
/// shown at the foot of each page.
///
/// # Errors
/// When an address is none.
pub fn app(tag: &str, pod: &str, addresses: &Addresses) -> Result<Router, tonic::transport::Error> {
    let frontend = Frontend {
        tag: tag.to_owned(),
        pod: pod.to_owned(),
        catalog: Remote::new(catalog::SERVICE, &addresses.catalog)?,
        recommendation: Remote::new(recommendation::SERVICE, &addresses.recommendation)?,
    };
    Ok(Router::new()
        .route("/", get(home))
        .route("/product/{id}", get(product))
        .route("/_healthz", get(async || "ok"))
        .with_state(Arc::new(frontend)))
}

async fn home(State(shop): State<Arc<Frontend>>, headers: HeaderMap) -> Response {
    let listed: Result<ListProductsResponse, _> = shop.catalog.call("ListProducts", Empty {}, &headers).await;
    match listed {
        Ok(list) => {
            shop.page(StatusCode::OK, &format!("<h2>Hot Products</h2>\n{}", shop.list(&list.products)))
        }
        Err(status) => shop.failure(&status, "could not retrieve products"),
    }
}

async fn product(State(shop): State<Arc<Frontend>>, Path(id): Path<String>, headers: HeaderMap) -> Response {
    let product = match shop.product(&id, &headers).await {
        Ok(product) => product,
        Err(status) => return shop.failure(&status, "could not retrieve product"),
    };
    let mut body = format!(
        "<h2>{}</h2>\n<p>{}</p>\n<p>{}</p>\n",
        escape(&product.name),
        price(&product),
        escape(&product.description)
    );
    // The page does without recommendations when there are none to have, as the original's.
    match shop.recommended(&id, &headers).await {
        Ok(others) => {
            let _ = write!(body, "<h3>Other Products You Might Like</h3>\n{}", shop.list(&others));
        }
        Err(status) => eprintln!("failed to get product recommendations: {}", describe(&status)),
    }
    shop.page(StatusCode::OK, &body)
}

impl Frontend {
    async fn product(&self, id: &str, headers: &HeaderMap) -> Result<Product, Status> {
        self.catalog.call("GetProduct", GetProductRequest { id: id.to_owned() }, headers).await
    }

    async fn recommended(&self, id: &str, headers: &HeaderMap) -> Result<Vec<Product>, Status> {
        let question =
            ListRecommendationsRequest { user_id: String::new(), product_ids: vec![id.to_owned()] };
        let answer: ListRecommendationsResponse =
            self.recommendation.call("ListRecommendations", question, headers).await?;
        let mut products = Vec::new();
        for id in answer.product_ids.iter().take(SHOWN) {
            products.push(self.product(id, headers).await?);
        }
        Ok(products)
    }

    /// Layout of images before 0.10: a table in place of tiles.
    fn is_old(&self) -> bool {
        let mut numbers = self.tag.trim_start_matches('v').split('.').map(str::parse::<u32>);
        matches!((numbers.next(), numbers.next()), (Some(Ok(0)), Some(Ok(minor))) if minor < 10)
    }

    fn list(&self, products: &[Product]) -> String {
        let (outer, inner) = if self.is_old() { ("table", "tr") } else { ("div", "section") };
        let mut out =
            format!("<{outer} class=\"products-{}\">\n", if self.is_old() { "table" } else { "grid" });
        for product in products {
            let cell = format!(
                "<a href=\"/product/{}\">{}</a> {}",
                escape(&product.id),
                escape(&product.name),
                price(product)
            );
            let cell = if self.is_old() { format!("<td>{cell}</td>") } else { cell };
            let _ = writeln!(out, "<{inner}>{cell}</{inner}>");
        }
        let _ = writeln!(out, "</{outer}>");
        out
    }

    fn failure(&self, status: &Status, what: &str) -> Response {
        let cause = format!("{}\n{what}", describe(status));
        let body = format!("<h2>Uh, oh!</h2>\n<p>Something has failed.</p>\n<pre>{}</pre>\n", escape(&cause));
        self.page(StatusCode::INTERNAL_SERVER_ERROR, &body)
    }

    fn page(&self, status: StatusCode, body: &str) -> Response {
        let page = format!(
            "<!doctype html>\n<html lang=\"en\">\n<head><meta charset=\"utf-8\"><title>Online Boutique</title>\n\
             <style>body{{font-family:sans-serif;margin:3rem auto;max-width:50rem}}\
             .products-grid{{display:grid;grid-template-columns:repeat(3,1fr);gap:1rem}}\
             section,td{{border:1px solid #ccc;padding:1rem}}</style></head>\n\
             <body><h1>Online Boutique</h1>\n{body}<footer>version: {}, pod: {}</footer></body>\n</html>\n",
            escape(&self.tag),
            escape(&self.pod)
        );
        (status, Html(page)).into_response()
    }
}

fn price(product: &Product) -> String {
    product
        .price_usd
        .as_ref()
        .map_or_else(String::new, |money| format!("${}.{:02}", money.units, money.nanos / 10_000_000))
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::body::Body;
    use http_body_util::BodyExt;
    use std::time::Duration;
    use tokio::net::TcpListener;
    use tower::ServiceExt;

    async fn serve(app: Router) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        tokio::spawn(async move { axum::serve(listener, app).await });
        address
    }

    async fn shop(tag: &str) -> Router {
        let catalog = serve(catalog::app(Duration::ZERO)).await;
        let recommendation = serve(recommendation::app(&catalog).unwrap()).await;
        app(tag, "pod-1", &Addresses { catalog, recommendation }).unwrap()
    }

    async fn page(app: Router, path: &str) -> (StatusCode, String) {
        let response = app.oneshot(http::Request::get(path).body(Body::empty()).unwrap()).await.unwrap();
        let status = response.status();
        let body = response.into_body().collect().await.unwrap().to_bytes();
        (status, String::from_utf8(body.to_vec()).unwrap())
    }

    #[tokio::test]
    async fn pages_list_products_and_recommend_others() {
        let (status, start) = page(shop("v0.10.2").await, "/").await;
        assert_eq!(status, 200);
        assert!(start.contains("Sunglasses</a> $19.99") && start.contains("products-grid"), "{start}");
        assert!(start.contains("version: v0.10.2, pod: pod-1"), "{start}");
        let (_, old) = page(shop("v0.9.0").await, "/").await;
        assert!(old.contains("products-table") && !old.contains("products-grid\""), "{old}");
        let (status, mug) = page(shop("v0.10.2").await, "/product/6E92ZMYYFZ").await;
        assert_eq!(status, 200);
        let (own, others) = mug.split_once("Other Products You Might Like").unwrap();
        assert!(own.contains("Mug") && own.contains("$8.99"), "{own}");
        assert_eq!(others.matches("<section>").count(), SHOWN, "{others}");
        assert!(!others.contains("6E92ZMYYFZ"), "{others}");
    }

    #[tokio::test]
    async fn failures_are_shown_in_the_words_of_the_call() {
        let (status, body) = page(shop("v0.10.2").await, "/product/none").await;
        assert_eq!(status, 500);
        let words = "rpc error: code = NotFound desc = no product with ID none\ncould not retrieve product";
        assert!(body.contains(words), "{body}");
        let nowhere = Addresses { catalog: "127.0.0.1:1".into(), recommendation: "127.0.0.1:1".into() };
        let (status, body) = page(app("v0.10.2", "pod-1", &nowhere).unwrap(), "/").await;
        assert_eq!(status, 500);
        assert!(
            body.contains("code = Unavailable") && body.contains("could not retrieve products"),
            "{body}"
        );
    }

    #[tokio::test]
    async fn a_product_is_shown_without_recommendations_when_they_fail() {
        let catalog = serve(catalog::app(Duration::ZERO)).await;
        let addresses = Addresses { catalog, recommendation: "127.0.0.1:1".into() };
        let (status, mug) = page(app("v0.10.2", "pod-1", &addresses).unwrap(), "/product/6E92ZMYYFZ").await;
        assert_eq!(status, 200);
        assert!(mug.contains("Mug") && !mug.contains("Other Products"), "{mug}");
    }
}
