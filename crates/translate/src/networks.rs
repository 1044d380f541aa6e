//! How endpoints of other networks are reached: through the gateways of their network, which pass mutual TLS on by the name of the
//! cluster (istiod's "split horizon").
use std::borrow::Cow;
use std::collections::BTreeMap;

use lateen_api::WorkloadEntrySpec;
use lateen_model::{
    Address, Endpoint, Gateways, Health, Locality, NETWORK_LABEL, NetworkGateway, Resolution, Service, World,
};

use crate::mutual_tls::{ISTIO, TLS_MODE_LABEL};
use crate::scope::Scope;
use crate::warnings::Warning;

/// How a class of proxies reaches the endpoints of one service that are not all reached as they are.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Reach {
    /// Gateways of the networks, other than the proxies' own, that its endpoints are in.
    gateways: BTreeMap<String, Vec<NetworkGateway>>,
    /// Networks whose endpoints the proxies do not want.
    hidden: Vec<String>,
    /// What weights are multiplied by, so that gateways can share them.
    scale: u32,
}

/// One endpoint as proxies are told of it.
#[derive(Clone, Debug)]
pub(crate) struct Member<'a> {
    pub(crate) endpoint: Cow<'a, Endpoint>,
    pub(crate) weight: u32,
    /// Whether mutual TLS is spoken to it wherever a rule does not say otherwise.
    pub(crate) mutual_tls: bool,
}

/// How a service is reached; none when all its endpoints are reached as they are.
pub(crate) fn reach(scope: &Scope, service: &Service) -> Option<Reach> {
    let networks = scope.world.networks();
    let gateways = match service.resolution {
        Resolution::Dns | Resolution::DnsRoundRobin => networks.named_gateways(),
        _ => networks.gateways(),
    };
    let view = &scope.class.network_view;
    if gateways.is_empty() && view.is_empty() {
        return None;
    }
    let reach = Reach::new(scope, service, gateways)?;
    (reach.scale > 1 || !reach.gateways.is_empty() || !reach.hidden.is_empty()).then_some(reach)
}

impl Reach {
    fn new(scope: &Scope, service: &Service, gateways: &Gateways) -> Option<Self> {
        let (own, view) = (&scope.class.network, &scope.class.network_view);
        let endpoints = scope.world.endpoints(service)?;
        let mut reach = Self { gateways: BTreeMap::new(), hidden: Vec::new(), scale: gateways.scale() };
        for network in &endpoints.networks {
            let of_network = gateways.of(network);
            if !view.is_empty() && !view.contains(network) {
                reach.hidden.push(network.clone());
            } else if !own.is_empty() && network != own && !of_network.is_empty() {
                reach.gateways.insert(network.clone(), of_network.to_vec());
            }
        }
        Some(reach)
    }
}

/// What a proxy is told of these endpoints. Those of other networks that have gateways are left out, and the gateways have their
/// weight, place by place; they pass on nothing but mutual TLS, so that endpoints without it are out of reach. Networks without
/// gateways are reached directly.
pub(crate) fn members<'a>(
    reach: Option<&Reach>,
    endpoints: impl IntoIterator<Item = &'a Endpoint>,
    takes_mutual_tls: impl Fn(&Endpoint) -> bool,
    is_spoken_to: impl Fn(&Endpoint) -> bool,
) -> Vec<Member<'a>> {
    let mut members = Vec::new();
    let mut shares: BTreeMap<(&Locality, &NetworkGateway, &str), u32> = BTreeMap::new();
    for endpoint in endpoints {
        let scale = reach.map_or(1, |reach| reach.scale);
        let weight = endpoint.weight.saturating_mul(scale);
        if reach.is_some_and(|reach| reach.hidden.contains(&endpoint.network)) {
            continue;
        }
        match reach.and_then(|reach| reach.gateways.get_key_value(&endpoint.network)) {
            None if endpoint.address == Address::Unknown => {}
            None => members.push(Member {
                endpoint: Cow::Borrowed(endpoint),
                weight,
                mutual_tls: takes_mutual_tls(endpoint),
            }),
            Some((network, gateways)) if is_spoken_to(endpoint) => {
                // No count is greater than a weight may be.
                let share = weight / u32::try_from(gateways.len()).unwrap_or(u32::MAX);
                for gateway in gateways {
                    let sum = shares.entry((&endpoint.locality, gateway, network)).or_default();
                    *sum = sum.saturating_add(share);
                }
            }
            Some(_) => {}
        }
    }
    members.extend(shares.into_iter().map(|((locality, gateway, network), weight)| Member {
        endpoint: Cow::Owned(endpoint_of(gateway, network, locality)),
        weight: weight.max(1),
        mutual_tls: true,
    }));
    members
}

/// Warns of an endpoint that only its network's gateways lead to, when there are none.
pub(crate) fn out_of_reach(path: &str, endpoint: &WorkloadEntrySpec, world: &World) -> Option<Warning> {
    let network = &endpoint.network;
    if !endpoint.address.is_empty() || !world.networks().named_gateways().of(network).is_empty() {
        return None;
    }
    let message = format!(
        "nobody reaches it: it has no address, and network {network:?} has no gateway; label a Service of gateways \
         {NETWORK_LABEL}={network}, or name one in meshNetworks"
    );
    Some(Warning::left_out(format!("{path}.network"), "NoNetworkGateway", message))
}

/// A gateway as if it were an endpoint.
fn endpoint_of(gateway: &NetworkGateway, network: &str, locality: &Locality) -> Endpoint {
    let labels = [(NETWORK_LABEL, network), (TLS_MODE_LABEL, ISTIO)];
    let labels: BTreeMap<String, String> =
        labels.map(|(key, value)| (key.to_owned(), value.to_owned())).into();
    Endpoint {
        address: gateway.address.clone(),
        port: gateway.port,
        other_addresses: Vec::new(),
        health: Health::Healthy,
        pod: None,
        entry: None,
        hostname: String::new(),
        labels: labels.into(),
        workload: String::new(),
        service_account: String::new(),
        node: String::new(),
        locality: locality.clone(),
        network: network.to_owned(),
        weight: 1,
    }
}
