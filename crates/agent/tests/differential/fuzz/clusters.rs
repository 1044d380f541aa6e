//! Clusters by chance, of which both proxies choose the same endpoint: several endpoints are told apart by a hash that every route
//! to them has, and other balancers have one to choose from.

use serde_json::{Value, json};

use super::random::Dice;
use super::secured;

/// Stands for the port of the services at [`ADDRESSES`].
pub(super) const SERVICE_PORT: u16 = 65_533;
/// Stands for the port of those that speak HTTP/2.
pub(super) const HTTP2_PORT: u16 = 65_534;
/// Stand for the ports of services that speak HTTP/1 and HTTP/2, and of both behind TLS.
pub(super) const PORTS: [u16; 4] = [SERVICE_PORT, HTTP2_PORT, 65_531, 65_532];
/// Where services are.
pub(super) const ADDRESSES: [&str; 8] =
    ["127.1.0.1", "127.1.0.2", "127.1.0.3", "127.1.0.4", "127.1.0.5", "127.1.0.6", "127.1.0.7", "127.1.0.8"];
/// Where none is.
const NOBODY: &str = "127.1.0.9";
/// Names of clusters a configuration may have.
pub(super) const NAMES: [&str; 3] = ["pool-0", "pool-1", "pool-2"];

/// Endpoints not yet taken: what two have in common, hashes could not tell apart.
struct Free {
    addresses: Vec<&'static str>,
    port: u16,
}

impl Free {
    fn new(dice: &mut Dice, port: u16) -> Self {
        let mut addresses = ADDRESSES.to_vec();
        dice.0.shuffle(&mut addresses);
        if dice.once_in(3) {
            addresses.push(NOBODY);
        }
        Self { addresses, port }
    }

    fn endpoint(&mut self, dice: &mut Dice) -> Option<Value> {
        let address = self.addresses.pop()?;
        let mut endpoint = json!({ "endpoint": {
            "address": { "socket_address": { "address": address, "port_value": self.port } },
        } });
        let e = &mut endpoint;
        dice.sometimes(3, e, "health_status", |dice| {
            json!(dice.one(&["HEALTHY", "UNHEALTHY", "DEGRADED", "DRAINING", "TIMEOUT"]))
        });
        dice.sometimes(3, e, "load_balancing_weight", |dice| json!(dice.one(&[1, 2, 7])));
        let mut labels = json!({});
        dice.sometimes(2, &mut labels, "v", |dice| dice.one(&[json!(1), json!(2), json!([1, 2])]));
        dice.sometimes(3, &mut labels, "s", |dice| json!(dice.one(&["a", "b"])));
        dice.sometimes(4, &mut labels, "hash_key", |_| json!(format!("key of {address}")));
        if dice.once_in(2) {
            e["metadata"] = json!({ "filter_metadata": { "envoy.lb": labels } });
        }
        dice.sometimes(4, &mut e["endpoint"], "hostname", |_| json!(format!("at-{address}.example")));
        // Where nobody is at the first address, the next is tried.
        if address == NOBODY && dice.once_in(2) {
            let next = self.addresses.pop()?;
            e["endpoint"]["additional_addresses"] = json!([{
                "address": { "socket_address": { "address": next, "port_value": self.port } },
            }]);
        }
        Some(endpoint)
    }
}

fn localities(dice: &mut Dice, free: &mut Free) -> Value {
    // Priorities leave none out.
    let mut priority = 0;
    let all: Vec<Value> = (0..1 + dice.0.usize(..3))
        .map(|number| {
            priority += usize::from(number > 0 && dice.0.bool());
            let endpoints: Vec<Value> = (0..dice.0.usize(..4)).filter_map(|_| free.endpoint(dice)).collect();
            let mut locality = json!({
                "locality": { "zone": format!("z{number}") }, "priority": priority, "lb_endpoints": endpoints,
            });
            dice.sometimes(2, &mut locality, "load_balancing_weight", |dice| json!(dice.one(&[1, 3])));
            locality
        })
        .collect();
    json!(all)
}

fn subsets(dice: &mut Dice) -> Value {
    const POLICIES: [&str; 3] = ["NO_FALLBACK", "ANY_ENDPOINT", "DEFAULT_SUBSET"];
    let mut selectors = Vec::new();
    for keys in [vec!["v"], vec!["s"], vec!["v", "s"]] {
        if dice.once_in(3) {
            continue;
        }
        let mut selector = json!({ "keys": keys });
        dice.sometimes(3, &mut selector, "fallback_policy", |dice| json!(dice.one(&POLICIES)));
        if keys.len() == 2 && dice.once_in(3) {
            selector["fallback_policy"] = json!("KEYS_SUBSET");
            selector["fallback_keys_subset"] = json!([dice.one(&keys)]);
        }
        selectors.push(selector);
    }
    let mut config = json!({ "fallback_policy": dice.one(&POLICIES), "subset_selectors": selectors });
    let c = &mut config;
    dice.sometimes(2, c, "default_subset", |dice| {
        dice.one(&[json!({ "v": 1 }), json!({ "s": "b" }), json!({})])
    });
    dice.sometimes(3, c, "list_as_any", |_| json!(true));
    dice.sometimes(3, c, "panic_mode_any", |_| json!(true));
    dice.sometimes(6, c, "metadata_fallback_policy", |_| json!("FALLBACK_LIST"));
    config
}

/// What is asked of endpoints before they are used. They answer the same each time, and are asked once.
fn health_checks(dice: &mut Dice, http2: bool) -> Value {
    let mut check = json!({
        "timeout": "2s", "interval": "600s", "no_traffic_interval": "600s", "healthy_threshold": 1, "unhealthy_threshold": 1,
    });
    if dice.once_in(4) {
        check["tcp_health_check"] = json!({});
        return json!([check]);
    }
    let mut by_http = json!({ "path": "/health" });
    let h = &mut by_http;
    dice.sometimes(3, h, "host", |_| json!("health.example"));
    dice.sometimes(
        3,
        h,
        "expected_statuses",
        |dice| json!([{ "start": dice.one(&[200, 400]), "end": dice.one(&[405, 500]) }]),
    );
    dice.sometimes(4, h, "method", |dice| json!(dice.one(&["GET", "HEAD", "OPTIONS"])));
    if http2 {
        h["codec_client_type"] = json!("HTTP2");
    }
    check["http_health_check"] = by_http;
    json!([check])
}

/// A balancer as an extension, with what it is told there.
fn extension(dice: &mut Dice, balancer: &str, localities: bool) -> Value {
    let mut config = json!({});
    let c = &mut config;
    let (name, kind) = match balancer {
        "RING_HASH" => {
            (c["minimum_ring_size"], c["maximum_ring_size"]) =
                (json!(dice.one(&[1, 16, 64])), json!(dice.one(&[64, 256])));
            ("ring_hash", "RingHash")
        }
        "MAGLEV" => {
            c["table_size"] = json!(dice.one(&[101, 251]));
            ("maglev", "Maglev")
        }
        "ROUND_ROBIN" => ("round_robin", "RoundRobin"),
        "LEAST_REQUEST" => {
            dice.sometimes(2, c, "choice_count", |_| json!(3));
            dice.sometimes(2, c, "selection_method", |_| json!("FULL_SCAN"));
            ("least_request", "LeastRequest")
        }
        _ => ("random", "Random"),
    };
    if localities && ["ring_hash", "maglev"].contains(&name) {
        c["locality_weighted_lb_config"] = json!({});
    }
    c["@type"] =
        json!(format!("type.googleapis.com/envoy.extensions.load_balancing_policies.{name}.v3.{kind}"));
    json!({ "policies": [{ "typed_extension_config": { "name": name, "typed_config": config } }] })
}

fn protocol(dice: &mut Dice, http2: bool) -> Value {
    let mut options =
        json!({ "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions" });
    let mut of_http1 = json!({});
    dice.sometimes(2, &mut of_http1, "header_key_format", |_| json!({ "proper_case_words": {} }));
    options["explicit_http_config"] = if http2 {
        json!({ "http2_protocol_options": {} })
    } else {
        json!({ "http_protocol_options": of_http1 })
    };
    let mut common = json!({ "idle_timeout": "60s" });
    dice.sometimes(3, &mut common, "max_requests_per_connection", |_| json!(1));
    dice.sometimes(3, &mut common, "max_stream_duration", |_| json!("6s"));
    options["common_http_protocol_options"] = common;
    if dice.once_in(3) {
        options["upstream_http_protocol_options"] =
            json!({ "auto_sni": true, "auto_san_validation": dice.0.bool() });
    }
    json!({ "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": options })
}

fn cluster(dice: &mut Dice, name: &str) -> Value {
    let http2 = dice.once_in(4);
    let secured = dice.once_in(4);
    let port = PORTS[usize::from(http2) + if secured { 2 } else { 0 }];
    let hashed = !dice.once_in(4);
    let mut free = Free::new(dice, port);
    let mut assignment = json!({ "cluster_name": name });
    assignment["endpoints"] =
        if hashed { localities(dice, &mut free) } else { json!([{ "lb_endpoints": [free.endpoint(dice)] }]) };
    let mut policy = json!({});
    dice.sometimes(3, &mut policy, "overprovisioning_factor", |dice| json!(dice.one(&[100, 140, 200])));
    dice.sometimes(4, &mut policy, "weighted_priority_health", |_| json!(true));
    assignment["policy"] = policy;
    let balancers: &[&str] =
        if hashed { &["RING_HASH", "MAGLEV"] } else { &["ROUND_ROBIN", "LEAST_REQUEST", "RANDOM"] };
    let balancer = dice.one(balancers);
    // Cases go on side by side.
    let mut limits = json!({ "max_retries": 100 });
    dice.sometimes(8, &mut limits, "max_retries", |_| json!(0));
    dice.sometimes(10, &mut limits, "max_requests", |_| json!(0));
    dice.sometimes(10, &mut limits, "max_pending_requests", |_| json!(0));
    dice.sometimes(10, &mut limits, "max_connections", |_| json!(0));
    dice.sometimes(
        8,
        &mut limits,
        "retry_budget",
        |dice| json!({ "budget_percent": { "value": dice.one(&[0, 100]) }, "min_retry_concurrency": dice.one(&[0, 100]) }),
    );
    let mut cluster = json!({
        "name": name, "type": "STATIC", "connect_timeout": "2s", "lb_policy": balancer, "load_assignment": assignment,
        "circuit_breakers": { "thresholds": [limits, { "priority": "HIGH", "max_retries": 100 }] },
    });
    let c = &mut cluster;
    if balancer == "RING_HASH" {
        let function = dice.one(&["XX_HASH", "MURMUR_HASH_2"]);
        c["ring_hash_lb_config"] =
            json!({ "minimum_ring_size": dice.one(&[1, 16, 64]), "hash_function": function });
    } else if balancer == "MAGLEV" {
        c["maglev_lb_config"] = json!({ "table_size": dice.one(&[101, 251]) });
    }
    let mut common = json!({});
    dice.sometimes(
        2,
        &mut common,
        "healthy_panic_threshold",
        |dice| json!({ "value": dice.one(&[0, 30, 50, 100]) }),
    );
    if hashed {
        dice.sometimes(3, &mut common, "locality_weighted_lb_config", |_| json!({}));
        // Static clusters have no names to hash.
        if dice.once_in(4) {
            c["type"] = json!("STRICT_DNS");
            common["consistent_hashing_lb_config"] = json!({ "use_hostname_for_hashing": true });
        }
        dice.sometimes(3, c, "lb_subset_config", subsets);
        if !common["locality_weighted_lb_config"].is_null()
            && !c["lb_subset_config"].is_null()
            && dice.once_in(2)
        {
            c["lb_subset_config"]["locality_weight_aware"] = json!(true);
            c["lb_subset_config"]["scale_locality_weight"] = json!(dice.0.bool());
        }
    }
    c["common_lb_config"] = common;
    if c["lb_subset_config"].is_null()
        && c["common_lb_config"]["consistent_hashing_lb_config"].is_null()
        && dice.once_in(5)
    {
        let localities =
            c["common_lb_config"].as_object_mut().unwrap().remove("locality_weighted_lb_config").is_some();
        c["load_balancing_policy"] = extension(dice, balancer, localities);
    }
    if dice.once_in(5) {
        c["health_checks"] = health_checks(dice, http2);
        c["ignore_health_on_host_removal"] = json!(true);
    }
    if secured {
        c["transport_socket"] = secured::cluster(dice, http2);
    }
    if http2 || dice.once_in(3) {
        c["typed_extension_protocol_options"] = protocol(dice, http2);
    }
    cluster
}

/// Up to three.
pub(super) fn all(dice: &mut Dice) -> Value {
    let mut all = Vec::new();
    for name in NAMES {
        if !dice.once_in(3) {
            all.push(cluster(dice, name));
        }
    }
    json!(all)
}

/// A route's hash policies; the last has always something to say.
pub(super) fn hashes(dice: &mut Dice) -> Value {
    let mut all: Vec<Value> = dice.some(2, |dice| {
        let mut policy = dice.one(&[
            json!({ "header": { "header_name": "x-a" } }),
            json!({ "header": { "header_name": "x-b", "regex_rewrite": { "pattern": { "regex": "[a-c]" }, "substitution": "z" } } }),
            json!({ "header": { "header_name": ":path" } }),
            json!({ "query_parameter": { "name": "a" } }),
            json!({ "cookie": { "name": "a" } }),
        ]);
        dice.sometimes(4, &mut policy, "terminal", |_| json!(true));
        policy
    });
    all.push(json!({ "connection_properties": { "source_ip": true } }));
    json!(all)
}

/// Which subset a route asks for.
pub(super) fn wanted(dice: &mut Dice) -> Value {
    let labels = dice.one(&[
        json!({ "v": 1 }),
        json!({ "v": 2 }),
        json!({ "s": "a" }),
        json!({ "v": 1, "s": "b" }),
        json!({ "z": 1 }),
    ]);
    json!({ "filter_metadata": { "envoy.lb": labels } })
}
