//! Load balancing of a DestinationRule.
use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

message! {
    /// Load balancing; `simple` and `consistentHash` exclude each other.
    pub struct LoadBalancerSettings {
        /// A standard algorithm.
        simple: Option<SimpleLb>,
        /// Affinity by hash.
        consistent_hash: Option<ConsistentHashLb>,
        /// Locality weights and failover.
        locality_lb_setting: Option<LocalityLbSettings>,
        /// Warm-up of new endpoints in seconds, a duration; replaced by `warmup`.
        warmup_duration_secs: Option<String>,
        /// Warm-up of new endpoints.
        warmup: Option<Warmup>,
    }
}

/// Standard algorithms.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum SimpleLb {
    /// Istio's choice: least request.
    #[default]
    Unspecified,
    /// Deprecated name of least request.
    LeastConn,
    /// A random endpoint.
    Random,
    /// The caller's original destination.
    Passthrough,
    /// In turn.
    RoundRobin,
    /// The less loaded of two random endpoints.
    LeastRequest,
}

message! {
    /// Affinity by a hash of the request.
    pub struct ConsistentHashLb {
        /// Hash of this header.
        http_header_name: Option<String>,
        /// Hash of a cookie.
        http_cookie: Option<HttpCookie>,
        /// Hash of the client's address.
        use_source_ip: Option<bool>,
        /// Hash of this query parameter.
        http_query_parameter_name: Option<String>,
        /// Ring hash.
        ring_hash: Option<RingHash>,
        /// Maglev.
        maglev: Option<Maglev>,
        /// Deprecated: as in `ringHash`.
        minimum_ring_size: Option<u64>,
    }
}

message! {
    /// A cookie for affinity.
    pub struct HttpCookie {
        /// Name.
        name!: String,
        /// Path.
        path: String,
        /// Life, a duration; given: the cookie is issued when absent.
        ttl: Option<String>,
        /// Further attributes of an issued cookie.
        attributes: Vec<CookieAttribute>,
    }
}

message! {
    /// An attribute of an issued cookie.
    pub struct CookieAttribute {
        /// Name.
        name!: String,
        /// Value.
        value: String,
    }
}

message! {
    /// Ring hash.
    pub struct RingHash {
        /// Smallest number of points on the ring. Default 1024.
        minimum_ring_size: Option<u64>,
    }
}

message! {
    /// Maglev.
    pub struct Maglev {
        /// Size of the table, a prime. Default 65537.
        table_size: Option<u64>,
    }
}

message! {
    /// Locality weights and failover.
    pub struct LocalityLbSettings {
        /// Explicit weights.
        distribute: Vec<Distribute>,
        /// Explicit failover of regions.
        failover: Vec<Failover>,
        /// Labels by which endpoints are ordered.
        failover_priority: Vec<String>,
        /// Whether it is on; unset is the mesh's choice.
        enabled: Option<bool>,
    }
}

message! {
    /// Share of traffic from one locality to others.
    pub struct Distribute {
        /// `region/zone/sub_zone` the traffic comes from.
        from: String,
        /// Weight per destination locality; they sum to 100.
        to: BTreeMap<String, u32>,
    }
}

message! {
    /// Where a region fails over to.
    pub struct Failover {
        /// Region.
        from: String,
        /// Region.
        to: String,
    }
}

message! {
    /// Warm-up of new endpoints.
    pub struct Warmup {
        /// How long, a duration.
        duration!: Option<String>,
        /// Share of traffic at the beginning, percent. Default 10.
        minimum_percent: Option<f64>,
        /// Shape of the ramp. Default 1.0, linear.
        aggression: Option<f64>,
    }
}
