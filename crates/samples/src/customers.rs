//! `customers`: a list of customers as JSON. Version 1 knows names only, version 2 adds cities.

use axum::routing::get;
use axum::{Json, Router};
use serde::{Deserialize, Serialize};

/// One customer, as the service prints it and web-frontend reads it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Customer {
    /// Present from version 2 on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub city: Option<String>,
    /// Full name.
    pub name: String,
}

const CUSTOMERS: [(&str, &str); 10] = [
    ("Ada Winter", "London"),
    ("Bruno Castel", "Lyon"),
    ("Chiara Fontana", "Turin"),
    ("Dmitri Oswald", "Riga"),
    ("Elena Marku", "Tirana"),
    ("Farid Nazari", "Hamburg"),
    ("Greta Lindholm", "Uppsala"),
    ("Hugo Barros", "Porto"),
    ("Imani Okafor", "Lagos"),
    ("Jonas Keller", "Basel"),
];

/// The application for an image tag such as `2.0.0`; the original listens on port 3000.
pub fn app(tag: &str) -> Router {
    let list = Json(customers(tag));
    Router::new().fallback(get(move || async move { list }))
}

fn customers(tag: &str) -> Vec<Customer> {
    let major = tag.trim_start_matches('v').split('.').next().and_then(|m| m.parse::<u32>().ok());
    let with_city = major.is_some_and(|major| major >= 2);
    CUSTOMERS
        .iter()
        .map(|(name, city)| Customer {
            city: with_city.then(|| (*city).to_owned()),
            name: (*name).to_owned(),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_version_2_has_cities() {
        let v1 = serde_json::to_string(&customers("1.0.0")).unwrap();
        assert!(v1.contains(r#"{"name":"Ada Winter"}"#), "{v1}");
        assert!(!v1.to_lowercase().contains("city"), "{v1}");
        let v2 = serde_json::to_string(&customers("2.0.0")).unwrap();
        assert!(v2.contains(r#"{"city":"London","name":"Ada Winter"}"#), "{v2}");
        assert_eq!(customers("v2"), customers("2.0.0"));
        assert_eq!(customers("latest"), customers("1.0.0"));
    }
}
