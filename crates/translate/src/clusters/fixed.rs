//! Clusters without a service, which every proxy of a kind has.
use lateen_xds::pb::envoy::config::cluster::v3::cluster::{ClusterDiscoveryType, DiscoveryType, LbPolicy};

use super::{UpstreamProtocol, base, inbound_source, set_http_options};
use crate::names::{BLACK_HOLE, INBOUND_PASSTHROUGH, PASSTHROUGH};
use crate::resource::{Resource, encode};
use crate::settings::{ConnectionDefaults, Settings};
use crate::traffic_policy::{self, EffectivePolicy};

/// Everything the clusters without a service depend on.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct FixedClusterInputs {
    connections: ConnectionDefaults,
    which: FixedCluster,
    /// Only where it matters.
    dual_stack: bool,
}

/// The clusters every proxy of a kind has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum FixedCluster {
    BlackHole,
    Passthrough,
    InboundPassthrough,
}

pub(crate) fn fixed_inputs(settings: &Settings, which: FixedCluster) -> FixedClusterInputs {
    let dual_stack = settings.dual_stack && which == FixedCluster::InboundPassthrough;
    FixedClusterInputs { connections: settings.connections, which, dual_stack }
}

/// A cluster without a service.
pub(crate) fn fixed(inputs: &FixedClusterInputs) -> Resource {
    let name = match inputs.which {
        FixedCluster::BlackHole => BLACK_HOLE,
        FixedCluster::Passthrough => PASSTHROUGH,
        FixedCluster::InboundPassthrough => INBOUND_PASSTHROUGH,
    };
    let mut message = base(name, inputs.connections, EffectivePolicy::default());
    if inputs.which == FixedCluster::BlackHole {
        message.upstream_connection_options = None;
        message.cluster_discovery_type = Some(ClusterDiscoveryType::Type(DiscoveryType::Static as i32));
        return encode(name, &message);
    }
    message.cluster_discovery_type = Some(ClusterDiscoveryType::Type(DiscoveryType::OriginalDst as i32));
    message.lb_policy = LbPolicy::ClusterProvided as i32;
    message.circuit_breakers = Some(traffic_policy::circuit_breakers(EffectivePolicy::default()));
    if inputs.which == FixedCluster::InboundPassthrough {
        message.upstream_bind_config = Some(inbound_source(inputs.dual_stack));
    }
    set_http_options(&mut message, UpstreamProtocol::AsDownstream, EffectivePolicy::default());
    encode(name, &message)
}
