//! `productcatalogservice`: the products. `EXTRA_LATENCY` makes every method that slow.

use std::time::Duration;

use axum::Router;
use tonic::{Request, Response, Status};

use super::messages::{
    Empty, GetProductRequest, ListProductsResponse, Money, Product, SearchProductsRequest,
    SearchProductsResponse,
};
use crate::grpc::{service, unary};

/// Full name of the service.
pub const SERVICE: &str = "hipstershop.ProductCatalogService";

/// Key, name, description, price in cents, category.
const PRODUCTS: [(&str, &str, &str, i64, &str); 9] = [
    ("OLJCESPC7Z", "Sunglasses", "Dark glasses in a light frame.", 1999, "accessories"),
    ("66VCHSJNUP", "Tank Top", "Cotton, cropped, scooped neck.", 1899, "clothing"),
    ("1YMWWN1N4O", "Watch", "Gold-toned, with a steel band.", 10999, "accessories"),
    ("L9ECAV7KIM", "Loafers", "Soft shoes without laces.", 8999, "footwear"),
    ("2ZYFJ3GM2N", "Hairdryer", "Two speeds, folds away.", 2499, "beauty"),
    ("0PUK6V6EV0", "Candle Holder", "Brass, for one candle.", 1899, "home"),
    ("LS4PSXUNUM", "Salt & Pepper Shakers", "A pair for the table.", 1849, "kitchen"),
    ("9SIQT8TOJO", "Bamboo Glass Jar", "Holds a pound of beans.", 549, "kitchen"),
    ("6E92ZMYYFZ", "Mug", "Stoneware, mustard yellow.", 899, "kitchen"),
];

/// The application; the original listens on port 3550. Every method takes `extra_latency` longer.
pub fn app(extra_latency: Duration) -> Router {
    let method = |name: &str| format!("/{SERVICE}/{name}");
    service(
        Router::new()
            .route(
                &method("ListProducts"),
                unary(move |_: Request<Empty>| async move {
                    tokio::time::sleep(extra_latency).await;
                    Ok(Response::new(ListProductsResponse { products: products() }))
                }),
            )
            .route(
                &method("GetProduct"),
                unary(move |request: Request<GetProductRequest>| async move {
                    tokio::time::sleep(extra_latency).await;
                    let id = request.into_inner().id;
                    let found = products().into_iter().find(|product| product.id == id);
                    found
                        .map(Response::new)
                        .ok_or_else(|| Status::not_found(format!("no product with ID {id}")))
                }),
            )
            .route(
                &method("SearchProducts"),
                unary(move |request: Request<SearchProductsRequest>| async move {
                    tokio::time::sleep(extra_latency).await;
                    let query = request.into_inner().query.to_lowercase();
                    let matches = |text: &str| text.to_lowercase().contains(&query);
                    let mut results = products();
                    results.retain(|product| matches(&product.name) || matches(&product.description));
                    Ok(Response::new(SearchProductsResponse { results }))
                }),
            ),
    )
}

fn products() -> Vec<Product> {
    PRODUCTS
        .iter()
        .map(|(id, name, description, cents, category)| Product {
            id: (*id).to_owned(),
            name: (*name).to_owned(),
            description: (*description).to_owned(),
            picture: String::new(),
            price_usd: Some(Money {
                currency_code: "USD".to_owned(),
                units: cents / 100,
                nanos: i32::try_from(cents % 100).unwrap_or(0) * 10_000_000,
            }),
            categories: vec![(*category).to_owned()],
        })
        .collect()
}

/// Reads a duration as Go writes it, such as `6s`, `5.5s` or `1m500ms`.
///
/// # Errors
/// What is wrong with it.
pub fn parse_latency(text: &str) -> Result<Duration, String> {
    const UNITS: [(&str, f64); 7] =
        [("ns", 1e-9), ("us", 1e-6), ("µs", 1e-6), ("ms", 1e-3), ("s", 1.0), ("m", 60.0), ("h", 3600.0)];
    let wrong = || format!("{text:?} is not a duration such as 6s or 5.5s or 500ms");
    let mut seconds = 0.0;
    let mut rest = text;
    while !rest.is_empty() {
        let number = rest.find(|c: char| !c.is_ascii_digit() && c != '.').ok_or_else(wrong)?;
        let unit = rest[number..].find(|c: char| c.is_ascii_digit()).map_or(rest.len(), |at| number + at);
        let value: f64 = rest[..number].parse().map_err(|_| wrong())?;
        let (_, scale) = UNITS.iter().find(|(name, _)| *name == &rest[number..unit]).ok_or_else(wrong)?;
        seconds += value * scale;
        rest = &rest[unit..];
    }
    Duration::try_from_secs_f64(seconds).map_err(|_| wrong())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_gos() {
        for (text, ms) in [("6s", 6000), ("5.5s", 5500), ("1m500ms", 60_500), ("", 0), ("1h", 3_600_000)] {
            assert_eq!(parse_latency(text), Ok(Duration::from_millis(ms)), "{text}");
        }
        for text in ["6", "s", "6 s", "-1s", "6x", "1..5s"] {
            assert!(parse_latency(text).is_err(), "{text}");
        }
    }
}
