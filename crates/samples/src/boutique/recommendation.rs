//! `recommendationservice`: up to five products of the catalogue that the caller does not look at.

use axum::Router;
use tonic::{Request, Response};

use super::catalog;
use super::messages::{Empty, ListProductsResponse, ListRecommendationsRequest, ListRecommendationsResponse};
use crate::grpc::{Remote, service, unary};

/// Full name of the service.
pub const SERVICE: &str = "hipstershop.RecommendationService";

const MOST: usize = 5;

/// The application; the original listens on port 8080. `catalog` is the address of productcatalogservice.
///
/// # Errors
/// When `catalog` is no address.
pub fn app(catalog: &str) -> Result<Router, tonic::transport::Error> {
    let catalog = Remote::new(catalog::SERVICE, catalog)?;
    let list = move |request: Request<ListRecommendationsRequest>| {
        let catalog = catalog.clone();
        async move {
            let (metadata, _, question) = request.into_parts();
            let all: ListProductsResponse =
                catalog.call("ListProducts", Empty {}, &metadata.into_headers()).await?;
            let mut product_ids: Vec<_> = all.products.into_iter().map(|product| product.id).collect();
            product_ids.retain(|id| !question.product_ids.contains(id));
            fastrand::shuffle(&mut product_ids);
            product_ids.truncate(MOST);
            Ok(Response::new(ListRecommendationsResponse { product_ids }))
        }
    };
    let path = format!("/{SERVICE}/ListRecommendations");
    Ok(service(Router::new().route(&path, unary(list))))
}
