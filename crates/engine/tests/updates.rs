//! Configuration changes under live connections, warming, drain.

mod support;

use lateen_engine::ResourceKind::{Cluster, Endpoints, Listener, Routes};
use lateen_engine::{ConfigUpdate, EngineConfig, Subscriptions};
use support::{Act, Bed, OK, Upstream, all_to_c, cluster, http_listener};

const V2: Act = Act::Reply("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nv2");

fn rds_listener() -> String {
    let inline =
        http_listener("rds: {route_config_name: r, config_source: {ads: {}, resource_api_version: V3}}", "");
    inline[..inline.find("      route_config:").unwrap()].to_owned()
}

fn routes(cluster: &str) -> String {
    format!(
        "{{name: r, virtual_hosts: [{{name: all, domains: ['*'], routes: [{{match: {{prefix: /}}, route: {{cluster: {cluster}}}}}]}}]}}"
    )
}

fn eds_cluster(name: &str) -> String {
    format!(
        "{{name: {name}, type: EDS, eds_cluster_config: {{eds_config: {{ads: {{}}, resource_api_version: V3}}}}}}"
    )
}

fn endpoints(name: &str, upstreams: &[&Upstream]) -> String {
    let list: Vec<String> = upstreams
        .iter()
        .map(|u| {
            format!(
                "{{endpoint: {{address: {{socket_address: {{address: 127.0.0.1, port_value: {}}}}}}}}}",
                u.address.port()
            )
        })
        .collect();
    format!("{{cluster_name: {name}, endpoints: [{{lb_endpoints: [{}]}}]}}", list.join(", "))
}

#[tokio::test]
async fn a_listener_waits_for_its_routes_and_a_cluster_for_its_endpoints() {
    let upstream = Upstream::start(&[OK]).await;
    let mut bed = Bed::start().await;
    bed.accept(&[(Listener, &rds_listener()), (Cluster, &eds_cluster("a"))]).await;
    bed.engine.initialized().await.unwrap();
    assert!(!bed.engine.ready());
    let expected = Subscriptions {
        routes: ["r".to_owned()].into(),
        endpoints: ["a".to_owned()].into(),
        ..Subscriptions::default()
    };
    assert_eq!(**bed.engine.subscriptions().borrow(), expected);
    assert_eq!(bed.stat("listener_manager.total_listeners_warming").await, Some(1));
    bed.accept(&[(Endpoints, &endpoints("a", &[&upstream]))]).await;
    assert!(!bed.engine.ready());
    bed.accept(&[(Routes, &routes("a"))]).await;
    assert!(bed.engine.ready());
    assert_eq!(bed.client("web").await.get("/").await.status, 200);
}

#[tokio::test]
async fn route_and_endpoint_changes_apply_to_the_next_request_on_the_same_connection() {
    let (one, two) = (Upstream::start(&[OK]).await, Upstream::start(&[V2]).await);
    let mut bed = Bed::start().await;
    bed.accept(&[
        (Cluster, &eds_cluster("a")),
        (Cluster, &eds_cluster("b")),
        (Endpoints, &endpoints("a", &[&one])),
        (Endpoints, &endpoints("b", &[&two])),
        (Listener, &rds_listener()),
        (Routes, &routes("a")),
    ])
    .await;
    let mut client = bed.client("web").await;
    assert_eq!(client.get("/").await.body(), "ok");
    bed.accept(&[(Routes, &routes("b"))]).await;
    assert_eq!(client.get("/").await.body(), "v2");
    bed.accept(&[(Routes, &routes("a"))]).await;
    bed.accept(&[(Endpoints, &endpoints("a", &[&two]))]).await;
    assert_eq!(client.get("/").await.body(), "v2");
    // The connection to the endpoint that is gone was idle: it is closed.
    assert_eq!(bed.stat("cluster.a.upstream_cx_active").await, Some(1));
    assert_eq!(bed.stat("cluster.a.membership_total").await, Some(1));
}

#[tokio::test]
async fn what_routes_count_goes_on_until_they_are_gone() {
    let upstream = Upstream::start(&[OK, OK, OK]).await;
    let mut bed = Bed::start().await;
    let with = |host: &str, paths: &[(&str, &str)]| {
        let routes: Vec<String> = paths
            .iter()
            .map(|(path, prefix)| {
                format!("{{match: {{prefix: {path}}}, route: {{cluster: c}}, stat_prefix: {prefix}}}")
            })
            .collect();
        format!(
            "{{name: r, virtual_hosts: [{{name: {host}, domains: ['*'], routes: [{}]}}]}}",
            routes.join(", ")
        )
    };
    bed.accept(&[
        (Cluster, &cluster(&[upstream.address], "")),
        (Listener, &rds_listener()),
        (Routes, &with("a.b:80", &[("/one", "one"), ("/two", "'t:w.o'")])),
    ])
    .await;
    let mut client = bed.client("web").await;
    assert_eq!(bed.stat("vhost.a.b:80.route.one.upstream_rq_total").await, Some(0), "before any request");
    assert_eq!(bed.stat("vhost.a.b:80.route.one.upstream_rq_completed").await, None);
    assert_eq!((client.get("/one").await.status, client.get("/two").await.status), (200, 200));
    // Another path of the same name goes on with its numbers.
    bed.accept(&[(Routes, &with("a.b:80", &[("/three", "one")]))]).await;
    assert_eq!(client.get("/three").await.status, 200);
    assert_eq!(bed.stat("vhost.a.b:80.route.one.upstream_rq_total").await, Some(2));
    assert_eq!(bed.stat("vhost.a.b:80.route.one.upstream_rq_200").await, Some(2));
    bed.until_stat_gone("vhost.a.b:80.route.t:w.o.upstream_rq_total").await;
    bed.accept(&[(Routes, &with("a.b:80", &[("/three", "other")]))]).await;
    bed.until_stat_gone("vhost.a.b:80.route.one.upstream_rq_total").await;
    assert_eq!(bed.stat("vhost.a.b:80.route.other.upstream_rq_total").await, Some(0));
}

#[tokio::test]
async fn a_cluster_that_routes_still_name_serves_a_little_longer() {
    let upstream = Upstream::start(&[OK]).await;
    let mut bed = Bed::start().await;
    bed.accept(&[
        (Cluster, &cluster(&[upstream.address], "")),
        (Listener, &rds_listener()),
        (Routes, &routes("c")),
    ])
    .await;
    let mut client = bed.client("web").await;
    bed.remove(Cluster, "c").await;
    assert_eq!(client.get("/").await.status, 200);
    bed.accept(&[(Routes, &routes("other"))]).await;
    assert_eq!(client.get("/").await.status, 503);
    assert_eq!(bed.stat("cluster_manager.active_clusters").await, Some(0));
}

#[tokio::test]
async fn only_connections_of_a_changed_chain_are_ended() {
    let upstream = Upstream::start(&[OK]).await;
    let mut bed = Bed::start().await;
    let before = http_listener("", &all_to_c(""));
    bed.accept(&[(Cluster, &cluster(&[upstream.address], "")), (Listener, &before)]).await;
    let address = bed.address("web").await;
    let mut client = bed.client("web").await;
    assert_eq!(client.get("/").await.header("connection"), None);
    bed.accept(&[(Listener, &before)]).await;
    assert_eq!(client.get("/").await.header("connection"), None, "nothing changed");
    bed.accept(&[(Listener, &http_listener("server_name: other", &all_to_c("")))]).await;
    assert_eq!(bed.address("web").await, address, "the socket stays");
    let mut second = bed.client("web").await;
    assert_eq!(second.get("/").await.header("server"), Some("other"));
    assert_eq!(client.get("/").await.header("connection"), Some("close"), "told with the next answer");
    assert!(client.is_closed().await);
    assert_eq!(second.get("/").await.header("connection"), None);
}

#[tokio::test]
async fn a_request_under_way_survives_the_change_of_its_chain() {
    let upstream = Upstream::start(&[Act::Silence]).await;
    let mut bed = Bed::start().await;
    let slow = all_to_c("timeout: 0.1s");
    bed.accept(&[(Cluster, &cluster(&[upstream.address], "")), (Listener, &http_listener("", &slow))]).await;
    let mut client = bed.client("web").await;
    tokio::io::AsyncWriteExt::write_all(&mut client.stream, b"GET / HTTP/1.1\r\nhost: a\r\n\r\n")
        .await
        .unwrap();
    bed.until_stat("cluster.c.upstream_rq_active", 1).await;
    bed.accept(&[(Listener, &http_listener("server_name: other", &slow))]).await;
    let answer = client.send("").await;
    assert_eq!((answer.status, answer.header("connection")), (504, Some("close")));
    assert_eq!(answer.header("server"), Some("envoy"), "the configuration it began with");
}

#[tokio::test]
async fn a_rejected_listener_leaves_the_old_one_and_the_rest_applies() {
    let upstream = Upstream::start(&[OK]).await;
    let mut bed = Bed::start().await;
    bed.accept(&[
        (Cluster, &cluster(&[upstream.address], "")),
        (Listener, &http_listener("", &all_to_c(""))),
    ])
    .await;
    let bad = http_listener("", &all_to_c("")) + "tcp_fast_open_queue_length: 5\n";
    let report = bed.apply(&[(Listener, &bad), (Cluster, "{name: new, type: STATIC}")]).await;
    assert_eq!(report.rejected.len(), 1);
    assert_eq!(report.accepted, [(Cluster, "new".to_owned())]);
    assert_eq!(bed.client("web").await.get("/").await.status, 200);
    let dump = bed.admin("GET /config_dump").await.text();
    assert!(dump.contains("error_state"), "{dump}");
}

#[tokio::test]
async fn a_removed_listener_stops_accepting() {
    let mut bed = Bed::start().await;
    bed.accept(&[(Listener, &http_listener("", &all_to_c("")))]).await;
    let address = bed.address("web").await;
    bed.remove(Listener, "web").await;
    support::within(async {
        while tokio::net::TcpStream::connect(address).await.is_ok() {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

#[tokio::test]
async fn an_address_is_taken_once() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let mut bed = Bed::start().await;
    let listener = http_listener("", &all_to_c(""))
        .replace("port_value: 0", &format!("port_value: {}", taken.local_addr().unwrap().port()));
    let report = bed.apply(&[(Listener, &listener)]).await;
    assert!(report.rejected[0].reason.contains("cannot listen on"), "{:?}", report.rejected);
}

#[tokio::test]
async fn drain_finishes_connections_and_then_returns() {
    let upstream = Upstream::start(&[OK]).await;
    let mut bed = Bed::start().await;
    bed.accept(&[
        (Cluster, &cluster(&[upstream.address], "")),
        (Listener, &http_listener("", &all_to_c(""))),
    ])
    .await;
    bed.engine.initialized().await.unwrap();
    let mut client = bed.client("web").await;
    client.get("/").await;
    bed.engine.drain().await.unwrap();
    assert!(client.is_closed().await);
    assert!(!bed.engine.ready());
    let mut late = bed.client("web").await;
    assert_eq!(late.get("/").await.header("connection"), Some("close"));
    bed.engine.shutdown().await;
    assert!(bed.engine.apply(ConfigUpdate::default()).await.is_err());
}

#[tokio::test]
async fn two_engines_do_not_know_each_other() {
    let upstream = Upstream::start(&[OK]).await;
    let (mut one, two) = (Bed::start().await, Bed::start().await);
    one.accept(&[
        (Cluster, &cluster(&[upstream.address], "")),
        (Listener, &http_listener("", &all_to_c(""))),
    ])
    .await;
    assert_eq!(one.client("web").await.get("/").await.status, 200);
    assert_eq!(two.stat("cluster_manager.active_clusters").await, Some(0));
    two.engine.shutdown().await;
    assert_eq!(one.client("web").await.get("/").await.status, 200);
}

#[tokio::test]
async fn a_request_on_its_way_to_a_draining_connection_is_served() {
    let upstream = Upstream::start(&[OK]).await;
    let drain_time = std::time::Duration::from_secs(600);
    let mut bed = Bed::with(EngineConfig { drain_time, ..EngineConfig::default() });
    bed.accept(&[
        (Cluster, &cluster(&[upstream.address], "")),
        (Listener, &http_listener("", &all_to_c(""))),
    ])
    .await;
    let mut client = bed.client("web").await;
    assert_eq!(client.get("/").await.status, 200);
    // From here on the connection's filter chain is gone, and the client can't know.
    bed.accept(&[(Listener, &http_listener("server_name: other", &all_to_c("")))]).await;
    let answer = client.get("/").await;
    assert_eq!((answer.status, answer.header("connection")), (200, Some("close")));
    assert!(client.is_closed().await);
}
