//! `/listeners`.

use lateen_ir::HostAddress;
use serde_json::{Value as Json, json};

use crate::inspection::Inspection;
use crate::snapshot::ListenerConfig;

/// As text: `name::address`, a line for each address.
pub(super) fn text(inspection: &Inspection) -> String {
    let lines = inspection
        .listeners
        .iter()
        .flat_map(|listener| addresses(listener).map(|address| format!("{}::{address}\n", listener.ir.name)));
    lines.collect()
}

/// As JSON (`envoy.admin.v3.Listeners`).
pub(super) fn json(inspection: &Inspection) -> Json {
    let status = |listener: &std::sync::Arc<ListenerConfig>| {
        let mut all = addresses(listener).map(address);
        let mut status = json!({ "name": &*listener.ir.name, "local_address": all.next() });
        let others: Vec<Json> = all.collect();
        if !others.is_empty() {
            status["additional_local_addresses"] = others.into();
        }
        status
    };
    let statuses: Vec<Json> = inspection.listeners.iter().map(status).collect();
    json!({ "listener_statuses": statuses })
}

/// Where a listener is, or would be.
fn addresses(listener: &ListenerConfig) -> impl Iterator<Item = &HostAddress> {
    let configured = std::iter::once(&listener.ir.address)
        .chain(listener.ir.additional_addresses.iter().map(|additional| &additional.address));
    configured.enumerate().map(|(position, address)| listener.bound.get(position).unwrap_or(address))
}

fn address(address: &HostAddress) -> Json {
    match address {
        HostAddress::Socket(address) => json!({
            "socket_address": { "address": address.ip().to_string(), "port_value": address.port() },
        }),
        HostAddress::Pipe(path) => json!({ "pipe": { "path": path } }),
    }
}
