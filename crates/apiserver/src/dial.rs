//! Connecting to what runs in the cluster: endpoints of Services.

use std::{io, sync::Arc};

use lateen_podstreams::Duplex;
use serde_json::Value;
use tokio::net::TcpStream;

use crate::{ServiceTarget, resources::meta, state::Api, store::ObjectKey};

/// Connects to a Service's endpoint: by the configured resolver, else by EndpointSlices, else by its cluster IP.
pub(crate) async fn service(api: &Api, target: ServiceTarget) -> io::Result<Box<dyn Duplex>> {
    if let Some(resolver) = &api.resolver
        && let Some(result) = resolver.dial(target.clone()).await
    {
        return result;
    }
    let missing = |what: String| io::Error::new(io::ErrorKind::NotFound, what);
    let service = api
        .store
        .get("services", &ObjectKey::new(&*target.namespace, &*target.name))
        .ok_or_else(|| missing(format!("service {:?} not found", target.name)))?;
    let ports = service["spec"]["ports"].as_array().map(Vec::as_slice).unwrap_or_default();
    let port = match ports {
        [only] if target.port.is_empty() => Some(only),
        many => many.iter().find(|port| {
            port["name"] == target.port.as_str()
                || port["port"].as_u64().is_some_and(|n| n.to_string() == target.port)
        }),
    };
    let port = port.ok_or_else(|| {
        missing(format!("no service port {:?} found for service {:?}", target.port, target.name))
    })?;
    let endpoints = endpoints(api, &target, port);
    if endpoints.is_empty() {
        return Err(missing(format!("no endpoints available for service {:?}", target.name)));
    }
    let mut last = None;
    for (address, number) in endpoints {
        match TcpStream::connect((address.as_str(), number)).await {
            Ok(stream) => return Ok(Box::new(stream)),
            Err(error) => last = Some(error),
        }
    }
    Err(last.unwrap_or_else(|| missing(format!("no endpoints available for service {:?}", target.name))))
}

fn endpoints(api: &Api, target: &ServiceTarget, port: &Value) -> Vec<(String, u16)> {
    let of_service =
        |slice: &Value| slice["metadata"]["labels"]["kubernetes.io/service-name"] == target.name.as_str();
    let slices: Vec<Arc<Value>> = api
        .store
        .list("endpointslices.discovery.k8s.io", Some(&target.namespace), None, None, of_service)
        .objects;
    let mut found = Vec::new();
    for slice in slices {
        let wanted = port["name"].as_str().unwrap_or_default();
        let slice_port = slice["ports"]
            .as_array()
            .into_iter()
            .flatten()
            .find(|one| one["name"].as_str().unwrap_or_default() == wanted);
        let Some(number) = slice_port.and_then(|one| u16::try_from(one["port"].as_u64()?).ok()) else {
            continue;
        };
        for endpoint in slice["endpoints"].as_array().into_iter().flatten() {
            if endpoint["conditions"]["ready"] == false {
                continue;
            }
            let addresses = endpoint["addresses"].as_array().into_iter().flatten();
            found.extend(addresses.filter_map(|a| Some((a.as_str()?.to_owned(), number))));
        }
    }
    fastrand::shuffle(&mut found);
    found
}

/// The port of a pod a proxy path names: a number or the name of a container's port; the first port without one.
pub(crate) fn pod_port(pod: &Value, port: &str) -> Option<u16> {
    if let Ok(number) = port.parse() {
        return Some(number);
    }
    let containers = pod["spec"]["containers"].as_array().into_iter().flatten();
    let mut ports = containers.flat_map(|c| c["ports"].as_array().into_iter().flatten());
    let found = if port.is_empty() { ports.next() } else { ports.find(|p| p["name"] == port) };
    match found {
        Some(found) => u16::try_from(found["containerPort"].as_u64()?).ok(),
        None if port.is_empty() => Some(80),
        None => None,
    }
}

/// `NAME`, `NAME:PORT`, `SCHEME:NAME:PORT` of a proxy path.
pub(crate) fn split_proxy_name(text: &str) -> (&str, &str, &str) {
    let mut parts = text.splitn(3, ':');
    match (parts.next(), parts.next(), parts.next()) {
        (Some(scheme), Some(name), Some(port)) => (scheme, name, port),
        (Some(name), Some(port), None) => ("http", name, port),
        _ => ("http", text, ""),
    }
}

/// Connects to a pod: through the runtime when there is one, else to the address in its status.
pub(crate) async fn pod(api: &Api, pod: &Value, port: u16) -> io::Result<Box<dyn Duplex>> {
    let backend = api.pods.read().clone();
    if let Some(backend) = backend {
        let connected = backend.dial(meta(pod, "namespace"), meta(pod, "name"), port).await;
        return connected.map_err(io::Error::other);
    }
    let address = pod["status"]["podIP"].as_str().unwrap_or_default();
    if address.is_empty() {
        return Err(io::Error::new(
            io::ErrorKind::NotConnected,
            "address not allowed: the pod has no IP yet",
        ));
    }
    Ok(Box::new(TcpStream::connect((address, port)).await?))
}
