//! DestinationRules.
use serde_json::{Value, json};

use super::{check, found};

#[test]
fn destination_rules() {
    let policy = |policy: Value| json!({"host": "a", "trafficPolicy": policy});
    check(
        "DestinationRule",
        [
            (json!({}), "spec.host: empty domain name not allowed"),
            (
                json!({"host": "a", "subsets": [{"name": "v1"}, {"name": "v1"}]}),
                "spec.subsets[1].name: duplicate subset names: v1",
            ),
            (
                json!({"host": "a", "subsets": [{"name": "v.1"}]}),
                "spec.subsets[0].name: subset name is invalid: v.1",
            ),
            (json!({"host": "a", "subsets": [{}]}), "spec.subsets[0].name: subset name cannot be empty"),
            (policy(json!({})), "spec.trafficPolicy: traffic policy must have at least one field"),
            (
                policy(json!({"portLevelSettings": [{"tls": {"mode": "DISABLE"}, "port": null}]})),
                "spec.trafficPolicy.portLevelSettings[0].port: portTrafficPolicy must have valid port",
            ),
            (
                policy(json!({"portLevelSettings": [{"port": {"number": 80}}]})),
                "spec.trafficPolicy.portLevelSettings[0]: port traffic policy must have at least one field",
            ),
            (
                policy(json!({"connectionPool": {}})),
                "spec.trafficPolicy.connectionPool: connection pool must have at least one field",
            ),
            (
                policy(json!({"connectionPool": {"http": {"maxRetries": -1}}})),
                "spec.trafficPolicy.connectionPool.http.maxRetries: max retries must be non-negative",
            ),
            (
                policy(
                    json!({"connectionPool": {"http": {"h2UpgradePolicy": "UPGRADE", "useClientProtocol": true}}}),
                ),
                "spec.trafficPolicy.connectionPool.http.useClientProtocol: use client protocol must not be true when H2UpgradePolicy is UPGRADE",
            ),
            (
                policy(json!({"connectionPool": {"tcp": {"connectTimeout": "-1s"}}})),
                "spec.trafficPolicy.connectionPool.tcp.connectTimeout: invalid duration \"-1s\": must not be negative",
            ),
            (
                policy(json!({"outlierDetection": {"maxEjectionPercent": 101}})),
                "spec.trafficPolicy.outlierDetection.maxEjectionPercent: percentage 101 is not in range 0..100",
            ),
            (
                policy(json!({"outlierDetection": {"consecutiveLocalOriginFailures": 1}})),
                "spec.trafficPolicy.outlierDetection.consecutiveLocalOriginFailures: outlier detection consecutive local origin failures is specified, but split external local origin errors is set to false",
            ),
            (
                policy(json!({"tunnel": {"protocol": "GET", "targetHost": "a", "targetPort": 1}})),
                "spec.trafficPolicy.tunnel.protocol: tunnel protocol must be \"CONNECT\" or \"POST\"",
            ),
            (
                policy(json!({"tunnel": {"targetHost": "a", "targetPort": 1}, "proxyProtocol": {}})),
                "spec.trafficPolicy: tunnel and proxyProtocol must not be set together",
            ),
            (
                json!({"host": "a", "workloadSelector": {"matchLabels": {"a": "*"}}}),
                "spec.workloadSelector.matchLabels: wildcard is not supported in selector: \"a=*\"",
            ),
            (
                json!({"host": "a", "workloadSelector": {"matchLabels": {"": "b"}}}),
                "spec.workloadSelector.matchLabels: empty key is not supported in selector: \"=b\"",
            ),
        ],
    );
    let empty = found("DestinationRule", json!({"host": "a", "workloadSelector": {}}));
    assert_eq!(empty.warnings[0].message, "workload selector specified without labels");
}

#[test]
fn settings_of_rules_that_exclude_each_other() {
    let policy = |policy: Value| json!({"host": "a", "trafficPolicy": policy});
    let tls = |tls: Value| policy(json!({"tls": tls}));
    let at = "spec.trafficPolicy.tls: cannot specify";
    let by_secret = "client certificates or CA certificate or CA CRL If credentialName is set";
    let unverified =
        "CaCertificates or CredentialName or SubjectAltNames when InsecureSkipVerify is set true";
    let mutual =
        json!({"mode": "MUTUAL", "clientCertificate": "/c", "privateKey": "/k", "insecureSkipVerify": true});
    let with = |base: &Value, more: Value| {
        let mut base = base.clone();
        base.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        base
    };
    let simple = json!({"mode": "SIMPLE", "insecureSkipVerify": true});
    let secret = json!({"mode": "SIMPLE", "credentialName": "c"});
    let errors = |spec: Value| -> Vec<String> {
        found("DestinationRule", spec).errors.iter().map(ToString::to_string).collect()
    };
    for (given, words) in [
        (with(&simple, json!({"caCertificates": "/ca"})), unverified),
        (with(&simple, json!({"credentialName": "c"})), unverified),
        (with(&simple, json!({"subjectAltNames": ["a"]})), unverified),
        (
            with(&mutual, json!({"caCertificates": "/ca"})),
            "CaCertificates or SubjectAltNames when InsecureSkipVerify is set true",
        ),
        (
            with(&mutual, json!({"subjectAltNames": ["a"]})),
            "CaCertificates or SubjectAltNames when InsecureSkipVerify is set true",
        ),
        (with(&secret, json!({"clientCertificate": "/c"})), by_secret),
        (with(&secret, json!({"privateKey": "/c"})), by_secret),
        (with(&secret, json!({"caCertificates": "/c"})), by_secret),
        (with(&secret, json!({"mode": "MUTUAL", "caCrl": "/c"})), by_secret),
    ] {
        assert_eq!(errors(tls(given.clone())), [format!("{at} {words}")], "{given}");
    }
    for good in [simple, mutual, secret.clone(), with(&secret, json!({"subjectAltNames": ["a"], "sni": "a"}))]
    {
        assert_eq!(errors(tls(good)), Vec::<String>::new());
    }
    let hash = |hash: Value| policy(json!({"loadBalancer": {"consistentHash": hash}}));
    let old = found("DestinationRule", hash(json!({"useSourceIp": true, "minimumRingSize": 8})));
    assert!(old.is_valid());
    assert_eq!(
        old.warnings[0].to_string(),
        "spec.trafficPolicy.loadBalancer.consistentHash.minimumRingSize: consistent hash MinimumRingSize is deprecated, use ConsistentHashLB's RingHash configuration instead"
    );
    check(
        "DestinationRule",
        [
            (
                hash(json!({"useSourceIp": true, "minimumRingSize": 8, "ringHash": {}})),
                "spec.trafficPolicy.loadBalancer.consistentHash: only one of MinimumRingSize or Maglev/Ringhash can be specified",
            ),
            (
                policy(json!({"connectionPool": {"tcp": {"idleTimeout": "1us"}}})),
                "spec.trafficPolicy.connectionPool.tcp.idleTimeout: only durations to ms precision are supported",
            ),
            (
                policy(json!({"tunnel": {"targetHost": "*", "targetPort": 1}})),
                "spec.trafficPolicy.tunnel.targetHost: tunnel target host must be valid FQDN or IP address: domain name \"*\" must not have a wildcard",
            ),
            (
                policy(json!({"tunnel": {"targetHost": "a", "targetPort": 0}})),
                "spec.trafficPolicy.tunnel.targetPort: tunnel target port is invalid: port number 0 must be in the range 1..65535",
            ),
        ],
    );
}
