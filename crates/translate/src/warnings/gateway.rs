//! Warnings about a Gateway.

use std::collections::BTreeSet;
use std::sync::Arc;

use lateen_api::is_served_cipher;
use lateen_api::networking::TlsProtocol;
use lateen_api::networking::gateway::ServerTlsSettings;
use lateen_model::{Gateway, Pod, World, labels_match};

use super::Warning;
use crate::{conflicts, gateways_tls, secrets};

/// Unix seconds: certificates end by the clock.
fn now() -> i64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}

fn check_server_tls(
    path: &str,
    tls: &ServerTlsSettings,
    gateway: &Gateway,
    world: &World,
    warnings: &mut Vec<Warning>,
) {
    // Secrets are looked for where the gateway's pods are.
    let selects = |pod: &&Arc<Pod>| labels_match(&gateway.spec.selector, &pod.labels);
    let namespaces: BTreeSet<_> =
        world.pods().filter(selects).map(|pod| pod.name.namespace.clone()).collect();
    for namespace in namespaces {
        if let Some(reason) = secrets::missing(world, &namespace, tls, now()) {
            let message = format!("{path}.tls.credentialName: {reason}");
            let path = format!("{path}.tls.credentialName");
            warnings.push(Warning {
                code: Some("IST0101"),
                name: "ReferencedResourceNotFound",
                path,
                message,
            });
        }
    }
    for (index, name) in tls.cipher_suites.iter().enumerate() {
        if !is_served_cipher(name) {
            warnings.push(Warning::no_effect(format!("{path}.tls.cipherSuites[{index}]")));
        }
    }
    for (field, given) in
        [("minProtocolVersion", tls.min_protocol_version), ("maxProtocolVersion", tls.max_protocol_version)]
    {
        if matches!(given, TlsProtocol::TLSV1_0 | TlsProtocol::TLSV1_1) {
            let reason = "TLS 1.0 and 1.1 are not served; it counts as TLS 1.2";
            warnings.push(Warning::no_effect_as(format!("{path}.tls.{field}"), reason));
        }
    }
}

/// Warnings about a Gateway in a world.
pub fn check_gateway(gateway: &Gateway, world: &World) -> Vec<Warning> {
    let mut warnings = Vec::new();
    for (index, server) in gateway.spec.servers.iter().enumerate() {
        let path = format!("spec.servers[{index}]");
        if let Some(reason) = gateways_tls::no_effect(server) {
            warnings.push(Warning::no_effect_as(path, &reason));
            continue;
        }
        if let Some(tls) = &server.tls {
            check_server_tls(&path, tls, gateway, world, &mut warnings);
        }
    }
    let selected = world.pods().any(|pod| labels_match(&gateway.spec.selector, &pod.labels));
    if !gateway.spec.selector.is_empty() && !selected {
        let selector: Vec<String> =
            gateway.spec.selector.iter().map(|(key, value)| format!("{key}={value}")).collect();
        warnings.push(Warning::not_found("spec.selector".to_owned(), "selector", &selector.join(",")));
    }
    warnings.extend(conflicts::gateways(gateway, world));
    warnings
}
