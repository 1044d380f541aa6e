//! Routes, and what they say of filters.
use std::time::Duration;

use super::*;

#[test]
fn routes_have_envoys_defaults_and_share_cluster_numbers() {
    let yaml = "{name: '80', ignore_port_in_host_matching: true, virtual_hosts: [\
        {name: a, domains: [a.com], retry_policy: {retry_on: 'connect-failure,refused-stream,unavailable,cancelled', num_retries: 2, \
         retry_host_predicate: [{name: envoy.retry_host_predicates.previous_hosts}], host_selection_retry_max_attempts: '5'}, routes: [\
         {match: {prefix: /}, name: r, route: {cluster: c1}}]}, \
        {name: b, domains: ['*'], routes: [{match: {path: /X, case_sensitive: false}, route: {weighted_clusters: {clusters: [\
         {name: c2, weight: 10, request_headers_to_add: [{header: {key: x, value: 'a %PROTOCOL%'}, append_action: OVERWRITE_IF_EXISTS_OR_ADD}]}, \
         {name: c1, weight: 0}]}, timeout: 0s, idle_timeout: 0s, prefix_rewrite: /new, auto_host_rewrite: true}}]}]}";
    let routes = Yaml::new().routes(yaml).unwrap();
    assert_eq!(routes.table.clusters().iter().map(|name| &**name).collect::<Vec<_>>(), ["c1", "c2"]);
    let headers = http::HeaderMap::new();
    let request = RequestView {
        method: "GET",
        scheme: "http",
        authority: "A.com:80",
        path: "/x?q",
        headers: &headers,
        metadata: None,
    };
    let found = routes.table.route(&request, 0).unwrap();
    let Action::Forward(forward) = &found.route.action else { panic!() };
    assert_eq!((forward.timeout, forward.idle_timeout), (Some(Duration::from_secs(15)), None));
    let retry = found.virtual_host.retry_policy.as_ref().unwrap();
    assert!(retry.on.connect_failure && retry.on.grpc_cancelled && !retry.on.server_error);
    assert_eq!(
        (retry.num_retries, retry.avoid_previous_hosts, retry.host_selection_max_attempts),
        (2, true, 5)
    );
    assert_eq!(retry.backoff, Backoff { base: Duration::from_millis(25), max: Duration::from_millis(250) });

    let found = routes.table.route(&RequestView { authority: "other", ..request }, 0).unwrap();
    let Action::Forward(forward) = &found.route.action else { panic!() };
    assert_eq!((forward.timeout, forward.idle_timeout), (None, Some(None)));
    assert!(matches!(forward.host_rewrite, HostRewrite::Auto));
    let pick = forward.cluster.pick(&request, 9);
    assert!(
        matches!(pick.cluster, PickedCluster::Ref(cluster) if &*cluster.name == "c2" && cluster.index == 1)
    );
    assert_eq!(pick.weighted.unwrap().request_headers.add[0].action, AppendAction::OverwriteIfExistsOrAdd);
}

#[test]
fn every_level_may_configure_filters() {
    let yaml = format!(
        "{{name: '80', typed_per_filter_config: {{f: {{{FAULT}, abort: {{http_status: 503}}}}}}, virtual_hosts: [{{name: h, domains: ['*'],
           typed_per_filter_config: {{c: {{{CORS}, max_age: '1'}}}},
           routes: [{{match: {{prefix: /}}, typed_per_filter_config: {{f: {{{FILTER_CONFIG}, disabled: true}}}},
             route: {{weighted_clusters: {{clusters: [{{name: a, weight: 1,
               typed_per_filter_config: {{f: {{{FILTER_CONFIG}, is_optional: true, config: {{{FAULT}, delay: {{fixed_delay: 1s}}}}}}}}}}]}}}}}}]}}]}}"
    );
    let routes = Yaml::new().routes(&yaml).unwrap();
    assert_eq!(routes.filters.iter().map(|name| &**name).collect::<Vec<_>>(), ["f", "c"]);
    let host = &routes.table.virtual_hosts()[0];
    let route = &host.routes[0];
    let Action::Forward(action) = &route.action else { panic!("{route:?}") };
    let ClusterSpecifier::Weighted(weighted) = &action.cluster else { panic!("{action:?}") };
    let levels = [&weighted.clusters[0].overrides[..], &route.overrides, &host.overrides, &routes.overrides];
    let fault = FilterLevels { levels, filter: 0 };
    assert_eq!((fault.enabled(), fault.configs().count()), (Some(true), 2));
    let without_weighted = FilterLevels { levels: [&[], levels[1], levels[2], levels[3]], filter: 0 };
    assert_eq!(without_weighted.enabled(), Some(false));
    assert_eq!(FilterLevels { levels, filter: 1 }.configs().count(), 1);
    let unknown = "'@type': type.googleapis.com/google.protobuf.Duration, value: 1s";
    for (config, accepted) in [
        (format!("{{{FILTER_CONFIG}, is_optional: true, config: {{{unknown}}}}}"), true),
        (format!("{{{FILTER_CONFIG}, config: {{{unknown}}}}}"), false),
        (format!("{{{FILTER_CONFIG}}}"), false),
        (format!("{{{unknown}}}"), false),
    ] {
        let text = one_route(
            "{prefix: /}",
            &format!("route: {{cluster: c}}, typed_per_filter_config: {{x: {config}}}"),
        );
        let found = Yaml::new().routes(&text);
        assert_eq!(found.is_ok(), accepted, "{text}: {found:?}");
        if let Err(error) = found {
            assert!(
                error.path.starts_with("virtual_hosts[0].routes[0].typed_per_filter_config[\"x\"]"),
                "{error}"
            );
        }
    }
}
