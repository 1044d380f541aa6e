//! A reduced Online Boutique: three of its services, with the names, ports, environment and wire format of Google's
//! demo, so that the course's manifests for it work as they are. No cart, checkout, payment, shipping or advertisements.

pub mod catalog;
pub mod frontend;
pub mod recommendation;

/// `hipstershop`, the boutique's protobuf package: the messages of the services here.
pub mod messages {
    /// No arguments.
    #[derive(Clone, PartialEq, prost::Message)]
    pub struct Empty {}

    /// An amount of money.
    #[derive(Clone, PartialEq, Eq, prost::Message)]
    pub struct Money {
        /// ISO 4217.
        #[prost(string, tag = "1")]
        pub currency_code: String,
        /// Whole units.
        #[prost(int64, tag = "2")]
        pub units: i64,
        /// Billionths of a unit.
        #[prost(int32, tag = "3")]
        pub nanos: i32,
    }

    /// Something to buy.
    #[derive(Clone, PartialEq, Eq, prost::Message)]
    pub struct Product {
        /// Key.
        #[prost(string, tag = "1")]
        pub id: String,
        /// Title.
        #[prost(string, tag = "2")]
        pub name: String,
        /// A sentence.
        #[prost(string, tag = "3")]
        pub description: String,
        /// Path of an image; empty here.
        #[prost(string, tag = "4")]
        pub picture: String,
        /// Price in US dollars.
        #[prost(message, optional, tag = "5")]
        pub price_usd: Option<Money>,
        /// Words to find it by.
        #[prost(string, repeated, tag = "6")]
        pub categories: Vec<String>,
    }

    /// Answer of `ListProducts`.
    #[derive(Clone, PartialEq, prost::Message)]
    pub struct ListProductsResponse {
        /// All of them.
        #[prost(message, repeated, tag = "1")]
        pub products: Vec<Product>,
    }

    /// Question of `GetProduct`.
    #[derive(Clone, PartialEq, prost::Message)]
    pub struct GetProductRequest {
        /// Key.
        #[prost(string, tag = "1")]
        pub id: String,
    }

    /// Question of `SearchProducts`.
    #[derive(Clone, PartialEq, prost::Message)]
    pub struct SearchProductsRequest {
        /// Part of a name or description, in any case.
        #[prost(string, tag = "1")]
        pub query: String,
    }

    /// Answer of `SearchProducts`.
    #[derive(Clone, PartialEq, prost::Message)]
    pub struct SearchProductsResponse {
        /// What was found.
        #[prost(message, repeated, tag = "1")]
        pub results: Vec<Product>,
    }

    /// Question of `ListRecommendations`.
    #[derive(Clone, PartialEq, prost::Message)]
    pub struct ListRecommendationsRequest {
        /// Who asks.
        #[prost(string, tag = "1")]
        pub user_id: String,
        /// What is looked at already.
        #[prost(string, repeated, tag = "2")]
        pub product_ids: Vec<String>,
    }

    /// Answer of `ListRecommendations`.
    #[derive(Clone, PartialEq, prost::Message)]
    pub struct ListRecommendationsResponse {
        /// At most five other products.
        #[prost(string, repeated, tag = "1")]
        pub product_ids: Vec<String>,
    }
}
