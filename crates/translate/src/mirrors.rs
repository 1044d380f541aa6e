//! Mirroring.
//! <https://istio.io/latest/docs/reference/config/networking/virtual-service/#HTTPMirrorPolicy>
use lateen_api::networking::virtual_service::{Destination, HttpRoute};
use lateen_xds::pb::envoy::config::core::v3::RuntimeFractionalPercent;
use lateen_xds::pb::envoy::config::route::v3::route_action::RequestMirrorPolicy;
use lateen_xds::pb::envoy::r#type::v3::FractionalPercent;

use crate::faults::{percentage, whole_percent};
use crate::wire;

/// Where requests of a rule are copied to, with the share of them. A share of 0 is no mirror.
pub(crate) fn mirrors(http: &HttpRoute) -> Vec<(&Destination, FractionalPercent)> {
    // Older fields first, as Istio reads them: the percentage, or else whole percents, or else everything.
    let share = match (&http.mirror_percentage, http.mirror_percent) {
        (Some(given), _) => percentage(given),
        (None, Some(given)) => whole_percent(given),
        (None, None) => whole_percent(100),
    };
    let of_route = http.mirror.iter().map(|destination| (destination, share));
    let of_list = http.mirrors.iter().map(|mirror| {
        (&mirror.destination, mirror.percentage.as_ref().map_or(whole_percent(100), percentage))
    });
    of_route.chain(of_list).filter(|(_, share)| share.numerator > 0).collect()
}

pub(crate) fn mirror_policy(cluster: String, share: FractionalPercent) -> RequestMirrorPolicy {
    RequestMirrorPolicy {
        cluster,
        runtime_fraction: Some(RuntimeFractionalPercent { default_value: Some(share), ..Default::default() }),
        trace_sampled: wire::boolean(false),
        ..Default::default()
    }
}
