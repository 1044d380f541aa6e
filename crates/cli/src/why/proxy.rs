//! A proxy's configuration dump as the evaluator's view of it, with what only the dump tells: which objects things come from.

use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use lateen_ir::{
    Cluster, ClusterLoadAssignment, EndpointAddress, HealthStatus, Listener, ProxyView, RouteConfiguration,
    RouteSeen,
};
use lateen_xds::json::JsonCodec;
use serde_json::Value;
use x509_parser::extensions::GeneralName;
use x509_parser::pem::Pem;

use crate::proxy_config::dump::{Dump, DumpError};
use crate::proxy_config::{items, number, origin, text};

/// A proxy by its dump.
#[derive(Clone, Debug)]
pub struct Proxy {
    /// What it does.
    pub view: ProxyView,
    /// URI names in its certificate.
    pub identity: Vec<String>,
    /// It is a gateway, not a sidecar.
    pub is_gateway: bool,
    /// What of its configuration could not be read, with the reasons.
    pub unread: Vec<String>,
    dump: Dump,
}

impl Proxy {
    /// Reads a dump (with endpoints). What can't be read is told in [`Self::unread`].
    ///
    /// # Errors
    /// When it is no dump of a proxy.
    pub fn new(dump: Dump) -> Result<Self, DumpError> {
        let codec = JsonCodec::new()?;
        let mut unread = Vec::new();
        let mut view = ProxyView::default();
        let mut take = |what: &str, value: &Value, read: &mut dyn FnMut(&[u8]) -> Result<(), String>| {
            let bytes = codec.any_from_value(value).map_err(|error| error.to_string());
            if let Err(reason) = bytes.and_then(|any| read(&any.value)) {
                let name = [text(value, "/name"), text(value, "/clusterName")].concat();
                unread.push(format!("{what} {name}: {reason}"));
            }
        };
        for value in dump.listeners()? {
            take("listener", value, &mut |bytes| {
                view.listeners.push(Listener::from_bytes(bytes).map_err(|error| error.to_string())?);
                Ok(())
            });
        }
        for value in dump.routes()? {
            take("route configuration", value, &mut |bytes| {
                let routes =
                    RouteConfiguration::from_bytes(bytes, None).map_err(|error| error.to_string())?;
                view.routes.insert(routes.name.clone(), routes);
                Ok(())
            });
        }
        for value in dump.clusters()? {
            take("cluster", value, &mut |bytes| {
                let cluster = Cluster::from_bytes(bytes).map_err(|error| error.to_string())?;
                view.clusters.insert(cluster.name.clone(), cluster);
                Ok(())
            });
        }
        for value in dump.endpoints() {
            // What comes with a cluster is in the cluster.
            let name = text(value, "/clusterName");
            let of_eds = |cluster: &Cluster| matches!(&cluster.discovery, lateen_ir::Discovery::Eds { service_name, .. } if **service_name == *name);
            if view.clusters.values().any(of_eds) {
                take("endpoints of", value, &mut |bytes| {
                    let endpoints =
                        ClusterLoadAssignment::from_bytes(bytes).map_err(|error| error.to_string())?;
                    view.endpoints.insert(endpoints.cluster_name.clone(), endpoints);
                    Ok(())
                });
            }
        }
        let node = dump.bootstrap()?;
        let is_gateway = text(&node, "/bootstrap/node/id").starts_with("router~");
        let identity = identity(&dump).unwrap_or_default();
        Ok(Self { view, identity, is_gateway, unread, dump })
    }

    /// Takes over what the proxy itself has found out about its endpoints: `/clusters?format=json`.
    pub fn judge_health(&mut self, statuses: &[Value]) {
        for status in statuses {
            let name = text(status, "/name");
            let Some(cluster) = self.view.clusters.get(name) else { continue };
            let lateen_ir::Discovery::Eds { service_name, .. } = &cluster.discovery else { continue };
            let Some(endpoints) = self.view.endpoints.get_mut(service_name) else { continue };
            let sick: Vec<String> =
                items(status, "/hostStatuses").iter().filter(|host| is_sick(host)).map(address).collect();
            let places = endpoints.priorities.iter_mut().flatten();
            for endpoint in places.flat_map(|place| &mut place.endpoints) {
                let socket = match &endpoint.address {
                    EndpointAddress::Socket(socket) => socket.to_string(),
                    EndpointAddress::Pipe(_) | EndpointAddress::Name(..) => continue,
                };
                if sick.contains(&socket) {
                    Arc::make_mut(endpoint).health = HealthStatus::Unhealthy;
                }
            }
        }
    }

    /// The VirtualService a route comes from, `NAME.NAMESPACE`; empty: none.
    pub fn virtual_service(&self, route: &RouteSeen) -> String {
        let found = || {
            let all = self.dump.routes().ok()?;
            let configuration = all.into_iter().find(|one| text(one, "/name") == route.configuration)?;
            let host = items(configuration, "/virtualHosts")
                .iter()
                .find(|one| text(one, "/name") == route.virtual_host)?;
            Some(origin(items(host, "/routes").get(route.position?)?))
        };
        found().unwrap_or_default()
    }

    /// Every host a route configuration knows, without ports.
    pub fn hosts(&self) -> Vec<String> {
        let hosts = self.view.routes.values().flat_map(|routes| routes.table.virtual_hosts());
        let domains = hosts.flat_map(|host| host.domains.iter());
        let mut all: Vec<String> =
            domains.filter(|domain| !domain.contains(['*', ':'])).map(|domain| domain.to_string()).collect();
        all.sort();
        all.dedup();
        all
    }
}

fn is_sick(host: &Value) -> bool {
    let health = &host["healthStatus"];
    ["failedOutlierCheck", "failedActiveHealthCheck"].iter().any(|field| health[*field] == Value::Bool(true))
}

fn address(host: &Value) -> String {
    let (ip, port) =
        (text(host, "/address/socketAddress/address"), number(host, "/address/socketAddress/portValue"));
    match ip.parse::<std::net::IpAddr>() {
        Ok(ip) => {
            std::net::SocketAddr::new(ip, port.and_then(|port| port.try_into().ok()).unwrap_or_default())
                .to_string()
        }
        Err(_) => String::new(),
    }
}

/// URI names in the workload's certificate.
fn identity(dump: &Dump) -> Option<Vec<String>> {
    let secrets = dump.secrets();
    let (_, entry) = secrets.iter().find(|(_, entry)| text(entry, "/name") == "default")?;
    let chain = text(entry, "/secret/tlsCertificate/certificateChain/inlineBytes");
    let pem = STANDARD.decode(chain).ok()?;
    let pem = Pem::iter_from_buffer(&pem).next()?.ok()?;
    let certificate = pem.parse_x509().ok()?;
    let names = certificate.subject_alternative_name().ok()??;
    let uris = names.value.general_names.iter().filter_map(|name| match name {
        GeneralName::URI(uri) => Some((*uri).to_owned()),
        _ => None,
    });
    Some(uris.collect())
}
