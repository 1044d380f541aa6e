//! `/debug/syncz`: which proxies are connected and where each stands with each type.
//!
//! The fields of istiod (`proxy`, `cluster_sent`, `cluster_acked`, …, nonces as values) with what it does not tell besides:
//! under `types`, by short type name, the state in the words of `proxy-status`, when it was sent and acknowledged, and the
//! proxy's words when it rejected.
use std::collections::BTreeMap;

use jiff::Timestamp;
use lateen_translate::Proxy;
use lateen_xds::server::{ConnectionStatus, Protocol, Stamp, SyncState, TypeStatus};
use lateen_xds::type_urls;
use serde_json::{Map, Value, json};

use crate::node;

/// The types shown, with istiod's prefix of their fields.
const TYPES: [(&str, &str, &str); 5] = [
    ("CDS", type_urls::CLUSTER, "cluster"),
    ("LDS", type_urls::LISTENER, "listener"),
    ("EDS", type_urls::ENDPOINT, "endpoint"),
    ("RDS", type_urls::ROUTE, "route"),
    ("ECDS", type_urls::EXTENSION_CONFIG, "extensionconfig"),
];

/// The document.
pub(crate) fn document(connections: &[ConnectionStatus], istiod: &str) -> Value {
    let proxies = connections.iter().filter(|connection| !only_names(connection));
    Value::Array(proxies.map(|connection| describe(connection, istiod)).collect())
}

/// Whether it is the stream that the agent beside an Envoy has for names and for the application's health: the proxy's own tells
/// where the proxy stands.
fn only_names(connection: &ConnectionStatus) -> bool {
    connection.types.keys().all(|url| **url == *type_urls::NAME_TABLE)
}

fn describe(connection: &ConnectionStatus, istiod: &str) -> Value {
    let metadata = node::metadata(connection.node.metadata.as_ref());
    // A connection that is listed was admitted, so its node parses.
    let proxy = Proxy::parse(&connection.node.id, &metadata).ok();
    let id = proxy.as_ref().map_or_else(|| connection.node.id.clone(), |proxy| proxy.id.clone());
    let kind = connection.node.id.split('~').next().unwrap_or_default();
    let mut fields = Map::new();
    let mut set = |key: &str, value: Value| fields.insert(key.to_owned(), value);
    set("cluster_id", json!(proxy.as_ref().map_or("", |proxy| &proxy.cluster_id)));
    set("proxy", json!(id));
    set("proxy_type", json!(kind));
    set("istio_version", json!(proxy.as_ref().map_or("", |proxy| &proxy.version)));
    let mut types = BTreeMap::new();
    for (short, url, prefix) in TYPES {
        let status = connection.types.get(url).cloned().unwrap_or_default();
        let nonce = |stamp: &Option<Stamp>| json!(stamp.as_ref().map_or("", |stamp| &stamp.nonce));
        set(&format!("{prefix}_sent"), nonce(&status.sent));
        set(&format!("{prefix}_acked"), nonce(&status.acked));
        types.insert(short, describe_type(&status));
    }
    set("types", json!(types));
    set("istiod", json!(istiod));
    set("connection_id", json!(connection.id));
    set("address", json!(connection.peer.map(|peer| peer.to_string())));
    set("connected_at", json!(time(connection.connected)));
    let protocol = match connection.protocol {
        Protocol::Delta => "delta",
        Protocol::Sotw => "sotw",
    };
    set("protocol", json!(protocol));
    Value::Object(fields)
}

fn describe_type(status: &TypeStatus) -> Value {
    let state = match status.state() {
        SyncState::Synced => "SYNCED",
        SyncState::Stale => "STALE",
        SyncState::NotSent => "NOT SENT",
    };
    let stamp = |stamp: &Stamp| json!({ "nonce": stamp.nonce, "version": stamp.version.to_string(), "time": time(stamp.time) });
    let mut fields = json!({ "status": state, "subscribed": status.subscribed });
    if let Some(sent) = &status.sent {
        fields["sent"] = stamp(sent);
    }
    if let Some(acked) = &status.acked {
        fields["acked"] = stamp(acked);
    }
    if let Some(nacked) = &status.nacked {
        fields["nacked"] = stamp(&nacked.stamp);
        fields["error"] = json!(nacked.message);
        let rejected: Vec<&str> = status.rejected.iter().map(|name| &**name).collect();
        fields["rejected"] = json!(rejected);
    }
    fields
}

/// RFC 3339.
pub(crate) fn time(time: std::time::SystemTime) -> String {
    Timestamp::try_from(time).map_or_else(|_| String::new(), |time| time.to_string())
}
