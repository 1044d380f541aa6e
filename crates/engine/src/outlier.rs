//! Outlier detection by consecutive failures: ejection and return. Each worker judges by its own requests.
//! <https://www.envoyproxy.io/docs/envoy/v1.40.0/intro/arch_overview/upstream/outlier>

use std::cell::Cell;
use std::rc::Rc;
use std::time::Instant;

use http::StatusCode;
use lateen_ir::OutlierDetection;

use crate::host::Host;

/// How a request to a host ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    Answered(StatusCode),
    /// Connect failure, reset or time-out.
    LocalFailure,
}

/// Counts the outcome; true when the host was ejected by it.
pub(crate) fn observe(
    config: &OutlierDetection,
    hosts: &[Rc<Host>],
    host: &Host,
    outcome: Outcome,
    random: u64,
    now: Instant,
) -> bool {
    let run = &host.failures;
    let (server_error, gateway_failure, local_failure) = match outcome {
        Outcome::Answered(status) => {
            (status.is_server_error(), (502..=504).contains(&status.as_u16()), false)
        }
        // Without the split a local failure counts as a 503, as Envoy maps it.
        Outcome::LocalFailure => {
            let together = !config.split_external_local_origin_errors;
            (together, together, !together)
        }
    };
    let mut eject = false;
    let mut count = |cell: &Cell<u32>, failed: bool, limit: u32, enforcing: u32| {
        if !failed {
            cell.set(0);
            return;
        }
        cell.set(cell.get() + 1);
        if limit > 0 && cell.get() >= limit {
            cell.set(0);
            eject |= random % 100 < u64::from(enforcing);
        }
    };
    count(&run.server_errors, server_error, config.consecutive_5xx, config.enforcing_consecutive_5xx);
    count(
        &run.gateway_failures,
        gateway_failure,
        config.consecutive_gateway_failure,
        config.enforcing_consecutive_gateway_failure,
    );
    if config.split_external_local_origin_errors {
        count(
            &run.local_failures,
            local_failure,
            config.consecutive_local_origin_failure,
            config.enforcing_consecutive_local_origin_failure,
        );
    }
    if !eject || run.ejected_until.get().is_some() || !may_eject(config, hosts) {
        return false;
    }
    let ejections = run.ejections.get() + 1;
    run.ejections.set(ejections);
    let time = config.base_ejection_time.saturating_mul(ejections).min(config.max_ejection_time);
    run.ejected_until.set(Some(now + time));
    true
}

fn may_eject(config: &OutlierDetection, hosts: &[Rc<Host>]) -> bool {
    let ejected = hosts.iter().filter(|host| host.failures.ejected_until.get().is_some()).count();
    if config.always_eject_one_host && ejected == 0 {
        return true;
    }
    // The share with this host: Envoy ejects none of three at 10 %, unless `always_eject_one_host` says so.
    (ejected + 1) * 100 <= hosts.len() * config.max_ejection_percent as usize
}

/// Whether the host is out of the rotation now.
pub(crate) fn is_ejected(host: &Host) -> bool {
    host.failures.ejected_until.get().is_some()
}

/// Returns hosts whose time is over; true when there were any. One that stays in for an interval is forgiven one ejection.
pub(crate) fn sweep(config: &OutlierDetection, hosts: &[Rc<Host>], now: Instant) -> bool {
    let mut changed = false;
    for host in hosts {
        let run = &host.failures;
        match run.ejected_until.get() {
            Some(until) if until <= now => {
                run.ejected_until.set(None);
                run.quiet_since.set(Some(now));
                changed = true;
            }
            Some(_) => {}
            None if run.ejections.get() == 0 => {}
            None => {
                let since = run.quiet_since.get().unwrap_or(now);
                if now.saturating_duration_since(since) >= config.interval {
                    run.ejections.set(run.ejections.get() - 1);
                    run.quiet_since.set(Some(now));
                }
            }
        }
    }
    changed
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use lateen_ir::{Endpoint, EndpointAddress, HealthStatus};

    use super::*;

    fn hosts(n: u16) -> Vec<Rc<Host>> {
        (1..=n)
            .map(|port| {
                let address = ([127, 0, 0, 1], port).into();
                let endpoint = Endpoint {
                    address: EndpointAddress::Socket(address),
                    additional_addresses: vec![],
                    hostname: None,
                    weight: 1,
                    health: HealthStatus::Healthy,
                    metadata: None,
                };
                Rc::new(Host::new(address, Arc::new(endpoint)))
            })
            .collect()
    }

    fn config() -> OutlierDetection {
        OutlierDetection {
            consecutive_5xx: 3,
            enforcing_consecutive_5xx: 100,
            consecutive_gateway_failure: 0,
            enforcing_consecutive_gateway_failure: 0,
            split_external_local_origin_errors: false,
            consecutive_local_origin_failure: 0,
            enforcing_consecutive_local_origin_failure: 0,
            interval: Duration::from_secs(10),
            base_ejection_time: Duration::from_secs(30),
            max_ejection_time: Duration::from_secs(300),
            max_ejection_time_jitter: Duration::ZERO,
            max_ejection_percent: 50,
            always_eject_one_host: false,
        }
    }

    #[test]
    fn a_run_of_failures_ejects_until_the_time_is_over() {
        let (config, hosts, now) = (config(), hosts(2), Instant::now());
        let bad = Outcome::Answered(StatusCode::INTERNAL_SERVER_ERROR);
        let good = Outcome::Answered(StatusCode::OK);
        for outcome in [bad, bad, good, bad, bad] {
            assert!(!observe(&config, &hosts, &hosts[0], outcome, 0, now));
        }
        assert!(observe(&config, &hosts, &hosts[0], Outcome::LocalFailure, 0, now));
        assert_eq!(hosts[0].health(), HealthStatus::Unhealthy);
        assert!(!sweep(&config, &hosts, now + Duration::from_secs(29)));
        assert!(sweep(&config, &hosts, now + Duration::from_secs(30)));
        assert_eq!(hosts[0].health(), HealthStatus::Healthy);
        assert_eq!(hosts[0].failures.ejections.get(), 1, "the next time would be twice as long");
        assert!(!sweep(&config, &hosts, now + Duration::from_secs(39)));
        assert_eq!(hosts[0].failures.ejections.get(), 1);
        assert!(!sweep(&config, &hosts, now + Duration::from_secs(40)));
        assert_eq!(hosts[0].failures.ejections.get(), 0, "forgiven after a quiet interval");
    }

    #[test]
    fn no_more_than_the_allowed_share_is_ejected() {
        let (config, hosts, now) = (config(), hosts(2), Instant::now());
        let bad = Outcome::Answered(StatusCode::BAD_GATEWAY);
        let ejected: Vec<bool> =
            hosts.iter().map(|host| (0..3).any(|_| observe(&config, &hosts, host, bad, 0, now))).collect();
        assert_eq!(ejected, [true, false]);
    }
}
