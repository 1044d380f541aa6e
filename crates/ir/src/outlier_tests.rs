use super::*;

const SECOND: Duration = Duration::from_secs(1);

fn config() -> OutlierDetection {
    OutlierDetection {
        consecutive_5xx: 5,
        consecutive_gateway_failure: 5,
        split_external_local_origin_errors: false,
        consecutive_local_origin_failure: 5,
        enforcing: [100; 7],
        success_rate_minimum_hosts: 5,
        success_rate_request_volume: 100,
        success_rate_stdev_factor: 1900,
        failure_percentage_threshold: 85,
        failure_percentage_minimum_hosts: 5,
        failure_percentage_request_volume: 50,
        interval: 10 * SECOND,
        base_ejection_time: 30 * SECOND,
        max_ejection_time: 70 * SECOND,
        max_ejection_time_jitter: Duration::ZERO,
        max_ejection_percent: 50,
        always_eject_one_host: false,
        health_check_ends_ejection: true,
    }
}

fn host(n: u16) -> HostKey {
    HostKey::Address(([127, 0, 0, 1], n).into())
}

fn judge(hosts: u16) -> OutlierJudge {
    let mut judge = OutlierJudge::default();
    judge.keep((1..=hosts).map(host));
    judge
}

fn quiet(judge: &mut OutlierJudge, now: Instant) -> (Vec<HostKey>, Vec<HostKey>) {
    judge.interval(&config(), &[], &mut || 0, now)
}

#[test]
fn each_ejection_is_longer_until_the_most_and_quiet_intervals_forgive() {
    let (config, mut judge, begin) = (config(), judge(2), Instant::now());
    let mut now = begin;
    // Base times the number of ejections, at most 70 seconds.
    for seconds in [30, 60, 70, 70] {
        assert!(judge.detect(&config, host(1), Ejection::Consecutive5xx, 0, now));
        assert!(!judge.detect(&config, host(1), Ejection::Consecutive5xx, 0, now), "it is out already");
        assert_eq!(quiet(&mut judge, now + (seconds - 1) * SECOND).0, []);
        now += seconds * SECOND;
        assert_eq!(quiet(&mut judge, now).0, [host(1)], "after {seconds} s");
    }
    let backoff = |judge: &OutlierJudge| judge.hosts[&host(1)].backoff;
    let before = backoff(&judge);
    quiet(&mut judge, now + 9 * SECOND);
    assert_eq!(backoff(&judge), before);
    quiet(&mut judge, now + 10 * SECOND);
    assert_eq!(backoff(&judge), before - 1);
}

#[test]
fn no_more_than_the_allowed_share_is_ejected() {
    let (config, mut judge, now) = (config(), judge(4), Instant::now());
    let why = Ejection::ConsecutiveGatewayFailure;
    let ejected = [1, 2, 3].map(|n| judge.detect(&config, host(n), why, 0, now));
    assert_eq!(ejected, [true, true, false]);
    assert_eq!((judge.active(), judge.counts.overflow, judge.counts.total), (2, 1, 0));
    // Whoever leaves the cluster makes room.
    judge.keep([1, 3, 4, 5].map(host).into_iter());
    assert_eq!(judge.active(), 1);
    assert!(judge.detect(&config, host(3), why, 0, now));
    let one = OutlierDetection { max_ejection_percent: 0, ..config };
    let always = OutlierDetection { always_eject_one_host: true, ..one };
    for (config, ejected) in [(one, [false, false]), (always, [true, false])] {
        let mut judge = self::judge(3);
        assert_eq!([1, 2].map(|n| judge.detect(&config, host(n), why, 0, now)), ejected);
    }
}

#[test]
fn ejections_are_enforced_by_chance() {
    let config = OutlierDetection { enforcing: [40; 7], ..config() };
    let (mut judge, now) = (judge(2), Instant::now());
    assert!(!judge.detect(&config, host(1), Ejection::Consecutive5xx, 40, now));
    assert!(judge.detect(&config, host(1), Ejection::Consecutive5xx, 39, now));
    assert_eq!((judge.counts.detected[0], judge.counts.enforced[0], judge.counts.total), (2, 1, 2));
}

fn rates(good: [u64; 5], total: u64) -> Vec<(HostKey, [RequestRate; 2])> {
    let rate = |good| [RequestRate { total, good }, RequestRate::default()];
    (1..).zip(good).map(|(n, good)| (host(n), rate(good))).collect()
}

/// The example in Envoy's own documentation of the calculation: the threshold of these is 52.
#[test]
fn rates_far_below_the_others_are_outliers() {
    let now = Instant::now();
    for (good, volume, ejected) in
        [([50, 100, 100, 100, 100], 100, vec![host(1)]), ([50, 100, 100, 100, 100], 101, vec![])]
    {
        let config = OutlierDetection { success_rate_request_volume: volume, ..config() };
        let mut judge = judge(5);
        let rates = rates(good, 100);
        assert_eq!(judge.interval(&config, &rates, &mut || 0, now).1, ejected);
        assert_eq!(judge.success_rate(host(1), FailureOrigin::External), Some(50.0));
        assert_eq!(judge.success_rate(host(1), FailureOrigin::Local), None);
        quiet(&mut judge, now);
        assert_eq!(judge.success_rate(host(1), FailureOrigin::External), None, "it is the last interval's");
    }
    let mut few = judge(4);
    assert_eq!(few.interval(&config(), &rates([50, 100, 100, 100, 100], 100), &mut || 0, now).1, []);
}

#[test]
fn failure_percentages_count_by_themselves() {
    let (mut judge, now) = (judge(5), Instant::now());
    // All fail alike, so that no rate is an outlier among the others.
    let (_, ejected) = judge.interval(&config(), &rates([15, 15, 15, 15, 15], 100), &mut || 0, now);
    assert_eq!(ejected, [host(1), host(2)], "as many as may be");
    assert_eq!(judge.counts.detected, [0, 0, 0, 0, 0, 5, 0]);
    assert_eq!((judge.counts.enforced[5], judge.counts.overflow), (2, 3));
}

#[test]
fn who_is_brought_back_early_goes_again_for_longer() {
    let now = Instant::now();
    let mut judge = OutlierJudge::default();
    judge.keep([host(1), host(2)].into_iter());
    assert!(!judge.uneject(host(1), now), "it is not out");
    assert!(judge.detect(&config(), host(1), Ejection::Consecutive5xx, 0, now));
    assert!(judge.uneject(host(1), now) && judge.active() == 0);
    assert!(judge.detect(&config(), host(1), Ejection::Consecutive5xx, 0, now));
    let (returned, _) = judge.interval(&config(), &[], &mut || 0, now + 40 * SECOND);
    assert!(returned.is_empty(), "the second time is longer");
}
