//! The admin service and access logs.

mod support;

use lateen_engine::ResourceKind::{Cluster, Listener};
use lateen_engine::{EngineConfig, NodeInfo};
use serde_json::Value as Json;
use support::{Bed, OK, Upstream, all_to_c, cluster, http_listener, within};

async fn bed() -> (Bed, Upstream) {
    let upstream = Upstream::start(&[OK]).await;
    let node = NodeInfo { id: "sidecar~1".into(), cluster: "web.default".into(), ..NodeInfo::default() };
    let mut bed = Bed::with(EngineConfig { node, ..EngineConfig::default() });
    bed.accept(&[
        (Cluster, &cluster(&[upstream.address], "")),
        (Listener, &http_listener("", &all_to_c(""))),
    ])
    .await;
    bed.client("web").await.get("/").await;
    (bed, upstream)
}

async fn json(bed: &Bed, path: &str) -> Json {
    let answer = bed.admin(&format!("GET {path}")).await;
    assert_eq!((answer.status, answer.header("content-type")), (200, Some("application/json")));
    serde_json::from_str(answer.body()).unwrap()
}

#[tokio::test]
async fn config_dump_has_envoys_shape() {
    let (bed, _upstream) = bed().await;
    let dump = json(&bed, "/config_dump?include_eds").await;
    let section = |name: &str| {
        let wanted = format!("type.googleapis.com/envoy.admin.v3.{name}");
        dump["configs"].as_array().unwrap().iter().find(|config| config["@type"] == *wanted).unwrap().clone()
    };
    let listener = &section("ListenersConfigDump")["dynamic_listeners"][0];
    assert_eq!(listener["name"], "web");
    let state = &listener["active_state"];
    assert_eq!(state["version_info"], "1");
    let manager = &state["listener"]["filter_chains"][0]["filters"][0]["typed_config"];
    assert_eq!(manager["stat_prefix"], "web", "{state}");
    assert!(state["last_updated"].as_str().unwrap().ends_with('Z'));
    assert_eq!(section("ClustersConfigDump")["dynamic_active_clusters"][0]["cluster"]["name"], "c");
    section("RoutesConfigDump");
    section("EndpointsConfigDump");
    let part = json(&bed, "/config_dump?resource=dynamic_listeners").await;
    assert_eq!(part["configs"][0]["name"], "web");
    let kind = "type.googleapis.com/envoy.admin.v3.ListenersConfigDump.DynamicListener";
    assert_eq!(part["configs"][0]["@type"], kind);
    assert_eq!(json(&bed, "/config_dump?resource=dynamic_active_secrets").await, serde_json::json!({}));
    let unknown = bed.admin("GET /config_dump?resource=secrets").await;
    assert_eq!((unknown.status, unknown.body()), (404, "secrets not found in config dump"));
}

#[tokio::test]
async fn clusters_and_listeners_have_envoys_shape() {
    let (bed, upstream) = bed().await;
    let clusters = json(&bed, "/clusters?format=json").await;
    let host = &clusters["cluster_statuses"][0]["host_statuses"][0];
    assert_eq!(host["address"]["socket_address"]["port_value"], upstream.address.port());
    assert_eq!(host["health_status"]["eds_health_status"], "HEALTHY");
    let total = host["stats"].as_array().unwrap().iter().find(|stat| stat["name"] == "rq_total").unwrap();
    assert_eq!(total["value"], "1");
    let text = bed.admin("GET /clusters").await.text();
    assert!(text.contains(&format!("c::{}::health_flags::healthy\n", upstream.address)), "{text}");
    let listeners = json(&bed, "/listeners?format=json").await;
    assert_eq!(listeners["listener_statuses"][0]["name"], "web");
    assert_eq!(bed.admin("GET /listeners").await.text(), format!("web::{}\n", bed.address("web").await));
}

#[tokio::test]
async fn stats_can_be_filtered_and_scraped() {
    let (bed, _upstream) = bed().await;
    let text = bed.admin("GET /stats?filter=%5Ecluster%5C.c%5C.upstream_rq_2xx$").await.text();
    assert_eq!(text, "cluster.c.upstream_rq_2xx: 1\n");
    let used = bed.admin("GET /stats?usedonly&filter=upstream_rq_retry").await.text();
    assert_eq!(used, "");
    let stats = json(&bed, "/stats?format=json&filter=cluster.c.upstream_rq_total").await;
    assert_eq!(stats["stats"][0]["value"], 1);
    let prometheus = bed.admin("GET /stats/prometheus").await.text();
    for line in [
        "envoy_cluster_upstream_rq{envoy_response_code=\"200\",envoy_cluster_name=\"c\"} 1\n",
        "envoy_http_downstream_rq_xx{envoy_response_code_class=\"2\",envoy_http_conn_manager_prefix=\"web\"} 1\n",
        "envoy_cluster_membership_healthy{envoy_cluster_name=\"c\"} 1\n",
        "envoy_server_concurrency{} 1\n",
    ] {
        assert!(prometheus.contains(line), "{line} not in {prometheus}");
    }
    assert_eq!(bed.engine.prometheus().await.unwrap().lines().count(), prometheus.lines().count());
    assert_eq!(bed.admin("POST /reset_counters").await.status, 200);
    bed.until_stat("cluster.c.upstream_rq_total", 0).await;
}

#[tokio::test]
async fn state_follows_health_and_commands_need_post() {
    let (bed, _upstream) = bed().await;
    assert_eq!(bed.admin("GET /ready").await.status, 503);
    bed.engine.initialized().await.unwrap();
    assert_eq!(bed.admin("GET /ready").await.text(), "LIVE\n");
    let info = json(&bed, "/server_info").await;
    assert_eq!((info["state"].as_str(), info["node"]["id"].as_str()), (Some("LIVE"), Some("sidecar~1")));
    assert_eq!(bed.admin("GET /healthcheck/fail").await.status, 405);
    assert_eq!(bed.admin("POST /healthcheck/fail").await.status, 200);
    within(bed.engine.ready_watch().wait_for(|ready| !ready)).await.unwrap();
    assert_eq!(bed.admin("GET /ready").await.status, 503);
    assert_eq!(bed.admin("POST /healthcheck/ok").await.status, 200);
    within(bed.engine.ready_watch().wait_for(|ready| *ready)).await.unwrap();
    assert_eq!(bed.admin("GET /nowhere").await.status, 404);
    assert!(json(&bed, "/certs").await["certificates"].as_array().unwrap().is_empty());
    assert_eq!(bed.admin("POST /quitquitquit").await.status, 200);
    within(async { while bed.engine.initialized().await.is_ok() {} }).await;
}

#[tokio::test]
async fn access_logs_say_what_happened() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("access.log");
    let log = format!(
        "access_log:
- name: envoy.access_loggers.file
  typed_config:
    '@type': type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog
    path: {}
    log_format:
      text_format_source:
        inline_string: \"%REQ(:METHOD)% %REQ(:PATH)% %RESPONSE_CODE% %RESPONSE_FLAGS% %RESPONSE_CODE_DETAILS% %BYTES_SENT% %UPSTREAM_CLUSTER% %REQ(X-MISSING)%\\n\"",
        path.display()
    );
    let upstream = Upstream::start(&[OK]).await;
    let mut bed = Bed::start().await;
    let routes = "routes:
- {match: {path: /gone}, route: {cluster: nowhere}}
- {match: {prefix: /ok}, route: {cluster: c}}";
    bed.accept(&[(Cluster, &cluster(&[upstream.address], "")), (Listener, &http_listener(&log, routes))])
        .await;
    let mut client = bed.client("web").await;
    for path in ["/ok?q", "/gone", "/none"] {
        client.get(path).await;
    }
    bed.engine.shutdown().await;
    assert_eq!(
        std::fs::read_to_string(path).unwrap(),
        "GET /ok?q 200 - via_upstream 2 c -\n\
         GET /gone 503 NC cluster_not_found 0 - -\n\
         GET /none 404 NR route_not_found 0 - -\n"
    );
}
