//! Fault injection.

use lateen_xds::pb::envoy::extensions::filters::common::fault::v3 as common;
use lateen_xds::pb::envoy::extensions::filters::http::fault::v3 as proto;
use lateen_xds::pb::envoy::r#type::v3::FractionalPercent;

use super::matchers::header_matchers;
use super::values::{Converted, fraction, number, positive, required};
use crate::error::At;
use crate::support::fields;
use crate::{AbortWith, DelayDuration, Fault, FaultAbort, FaultDelay, FaultRateLimit, Fraction};

pub(super) fn fault(at: &At<'_>, message: proto::HttpFault) -> Converted<Fault> {
    fields!(at, message => proto::HttpFault {
        used {
            delay, abort, upstream_cluster, headers, downstream_nodes, max_active_faults, response_rate_limit,
            disable_downstream_cluster_stats,
        }
        inert {
            delay_percent_runtime = "there is no runtime; the value here counts",
            abort_percent_runtime = "there is no runtime; the value here counts",
            delay_duration_runtime = "there is no runtime; the value here counts",
            abort_http_status_runtime = "there is no runtime; the value here counts",
            max_active_faults_runtime = "there is no runtime; the value here counts",
            response_rate_limit_percent_runtime = "there is no runtime; the value here counts",
            abort_grpc_status_runtime = "there is no runtime; the value here counts",
        }
        rejected { filter_metadata = "dynamic metadata" }
    });
    Ok(Fault {
        delay: delay.map(|delay| self::delay(&at.field("delay"), delay)).transpose()?,
        abort: abort.map(|abort| self::abort(&at.field("abort"), abort)).transpose()?,
        upstream_cluster: (!upstream_cluster.is_empty()).then(|| upstream_cluster.into()),
        headers: header_matchers(at, "headers", headers)?,
        downstream_nodes: downstream_nodes.into_iter().map(Into::into).collect(),
        max_active_faults: number(max_active_faults),
        response_rate_limit: response_rate_limit
            .map(|limit| rate_limit(&at.field("response_rate_limit"), limit))
            .transpose()?,
        downstream_cluster_stats: !disable_downstream_cluster_stats,
    })
}

/// Without a percentage nothing is injected.
fn percentage(at: &At<'_>, percentage: Option<FractionalPercent>) -> Converted<Fraction> {
    match percentage {
        None => Ok(Fraction { numerator: 0, denominator: 100 }),
        Some(percentage) => fraction(&at.field("percentage"), percentage),
    }
}

fn delay(at: &At<'_>, message: common::FaultDelay) -> Converted<FaultDelay> {
    use common::fault_delay::FaultDelaySecifier as Specifier;
    fields!(at, message => common::FaultDelay {
        used { percentage, fault_delay_secifier }
        inert {}
        rejected {}
    });
    let duration = match required(at, "fixed_delay", fault_delay_secifier)? {
        Specifier::FixedDelay(duration) => {
            DelayDuration::Fixed(positive(at, "fixed_delay", Some(duration), std::time::Duration::ZERO)?)
        }
        Specifier::HeaderDelay(_) => DelayDuration::Header,
    };
    Ok(FaultDelay { duration, percentage: self::percentage(at, percentage)? })
}

fn abort(at: &At<'_>, message: proto::FaultAbort) -> Converted<FaultAbort> {
    use proto::fault_abort::ErrorType;
    fields!(at, message => proto::FaultAbort {
        used { percentage, response_body, error_type }
        inert {}
        rejected {}
    });
    let with = match required(at, "http_status", error_type)? {
        ErrorType::HttpStatus(status) => {
            let status = u16::try_from(status).ok().filter(|status| (200..600).contains(status));
            let reason = "must be between 200 and 599";
            AbortWith::Http(status.ok_or_else(|| at.error_in("http_status", reason))?)
        }
        ErrorType::GrpcStatus(status) => AbortWith::Grpc(status),
        ErrorType::HeaderAbort(_) => AbortWith::Header,
    };
    Ok(FaultAbort {
        with,
        percentage: self::percentage(at, percentage)?,
        body: (!response_body.is_empty()).then(|| response_body.into()),
    })
}

fn rate_limit(at: &At<'_>, message: common::FaultRateLimit) -> Converted<FaultRateLimit> {
    use common::fault_rate_limit::LimitType;
    fields!(at, message => common::FaultRateLimit {
        used { percentage, limit_type }
        inert {}
        rejected {}
    });
    let kib_per_second = match required(at, "fixed_limit", limit_type)? {
        LimitType::FixedLimit(limit) if limit.limit_kbps == 0 => {
            return Err(at.field("fixed_limit").error_in("limit_kbps", "must be at least 1"));
        }
        LimitType::FixedLimit(limit) => Some(limit.limit_kbps),
        LimitType::HeaderLimit(_) => None,
    };
    Ok(FaultRateLimit { kib_per_second, percentage: self::percentage(at, percentage)? })
}
