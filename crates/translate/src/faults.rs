//! Faults.
//! <https://istio.io/latest/docs/reference/config/networking/virtual-service/#HTTPFaultInjection>
use lateen_api::duration;
use lateen_api::networking::Percent;
use lateen_api::networking::virtual_service::{FaultAbort, FaultDelay, HttpFaultInjection};
use lateen_xds::pb::envoy::extensions::filters::common::fault::v3 as common;
use lateen_xds::pb::envoy::extensions::filters::http::fault::v3 as fault;
use lateen_xds::pb::envoy::r#type::v3::FractionalPercent;
use lateen_xds::pb::envoy::r#type::v3::fractional_percent::DenominatorType;

use crate::wire;

/// The fault filter's configuration for a route; none when nothing is left of it.
pub(crate) fn http_fault(given: &HttpFaultInjection) -> Option<fault::HttpFault> {
    let delay = given.delay.as_ref().and_then(delay);
    let abort = given.abort.as_ref().and_then(abort);
    (delay.is_some() || abort.is_some()).then(|| fault::HttpFault { delay, abort, ..Default::default() })
}

fn delay(given: &FaultDelay) -> Option<common::FaultDelay> {
    let fixed = duration::parse(given.fixed_delay.as_ref()?).ok()?;
    let percentage = given
        .percentage
        .as_ref()
        .map_or_else(|| whole_percent(u32::try_from(given.percent).unwrap_or_default()), percentage);
    Some(common::FaultDelay {
        percentage: Some(percentage),
        fault_delay_secifier: Some(common::fault_delay::FaultDelaySecifier::FixedDelay(wire::duration(
            fixed,
        ))),
    })
}

/// Without a percentage no request is aborted, as with Istio.
fn abort(given: &FaultAbort) -> Option<fault::FaultAbort> {
    use fault::fault_abort::ErrorType;
    let status = given.http_status.and_then(|status| u32::try_from(status).ok());
    let error = match (status, &given.grpc_status) {
        (Some(status), _) => ErrorType::HttpStatus(status),
        (None, Some(name)) => ErrorType::GrpcStatus(lateen_api::grpc::status_code(name)?),
        (None, None) => return None,
    };
    Some(fault::FaultAbort {
        percentage: given.percentage.as_ref().map(percentage),
        error_type: Some(error),
        ..Default::default()
    })
}

/// A share in parts of a million.
pub(crate) fn percentage(percent: &Percent) -> FractionalPercent {
    FractionalPercent {
        // Validation bounds it; what is finer than a millionth is cut off, as Istio does.
        numerator: (percent.value * 10_000.0) as u32,
        denominator: DenominatorType::Million as i32,
    }
}

/// A share in whole percents.
pub(crate) fn whole_percent(numerator: u32) -> FractionalPercent {
    FractionalPercent { numerator, denominator: DenominatorType::Hundred as i32 }
}
