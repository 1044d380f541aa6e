//! HTTP/1 through the proxy: forwarding, headers, local replies.

mod support;

use lateen_engine::ResourceKind::{Cluster, Listener, Routes};
use support::{Act, Bed, OK, Upstream, all_to_c, cluster, http_listener, within};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

async fn bed(more: &str, routes: &str, script: &[Act]) -> (Bed, Upstream) {
    let upstream = Upstream::start(script).await;
    let mut bed = Bed::start().await;
    bed.accept(&[(Cluster, &cluster(&[upstream.address], "")), (Listener, &http_listener(more, routes))])
        .await;
    (bed, upstream)
}

#[tokio::test]
async fn a_request_is_forwarded_with_envoys_headers() {
    let (bed, upstream) = bed("", &all_to_c(""), &[OK]).await;
    let mut client = bed.client("web").await;
    let request = "GET /a?b=c HTTP/1.1\r\nHost: shop.example\r\nConnection: keep-alive\r\nKeep-Alive: timeout=5\r\n\
                   X-Envoy-Retry-On: 5xx\r\nTE: gzip\r\nX-Own: 1\r\n\r\n";
    let answer = client.send(request).await;
    assert_eq!((answer.status, answer.body()), (200, "ok"));
    assert_eq!(answer.header("server"), Some("envoy"));
    assert!(answer.header("date").is_some());
    assert!(answer.header("x-envoy-upstream-service-time").unwrap().parse::<u64>().is_ok());
    let seen = &upstream.seen()[0];
    assert!(seen.starts_with("GET /a?b=c HTTP/1.1\r\n"), "{seen}");
    for line in [
        "host: shop.example\r\n",
        "x-forwarded-proto: http\r\n",
        "x-own: 1\r\n",
        "x-envoy-expected-rq-timeout-ms: 15000\r\n",
    ] {
        assert!(seen.contains(line), "{line} not in {seen}");
    }
    assert!(seen.contains("x-request-id: "), "{seen}");
    for gone in ["connection:", "keep-alive:", "x-envoy-retry-on", "te:", "x-forwarded-for"] {
        assert!(!seen.contains(gone), "{gone} in {seen}");
    }
}

#[tokio::test]
async fn an_edge_proxy_trusts_nothing_from_outside() {
    let (bed, upstream) = bed("use_remote_address: true", &all_to_c(""), &[OK]).await;
    let request = "GET / HTTP/1.1\r\nhost: a\r\nx-forwarded-for: 9.9.9.9\r\nx-forwarded-proto: https\r\n\
                   x-request-id: mine\r\nx-envoy-original-path: /x\r\n\r\n";
    bed.client("web").await.send(request).await;
    let seen = &upstream.seen()[0];
    // A client on this machine shows as the machine's own address, where it has one.
    assert!(
        seen.contains("x-forwarded-for: 9.9.9.9,")
            && seen.contains("x-envoy-external-address: 127.0.0.1\r\n"),
        "{seen}"
    );
    assert!(seen.contains("x-forwarded-proto: http\r\n"), "{seen}");
    assert!(!seen.contains("mine") && !seen.contains("x-envoy-original-path"), "{seen}");
}

#[tokio::test]
async fn connections_are_kept_on_both_sides() {
    let (bed, upstream) = bed("", &all_to_c(""), &[OK]).await;
    let mut client = bed.client("web").await;
    for _ in 0..5 {
        assert_eq!(client.get("/").await.status, 200);
    }
    assert_eq!(upstream.connections.load(std::sync::atomic::Ordering::SeqCst), 1);
    assert_eq!(bed.stat("cluster.c.upstream_cx_total").await, Some(1));
    assert_eq!(bed.stat("cluster.c.upstream_rq_200").await, Some(5));
    assert_eq!(bed.stat("http.web.downstream_rq_2xx").await, Some(5));
}

#[tokio::test]
async fn bodies_stream_both_ways_and_keep_their_framing() {
    let chunked = Act::Reply("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n");
    let (bed, upstream) = bed("", &all_to_c(""), &[OK, chunked]).await;
    let mut client = bed.client("web").await;
    let body = "x".repeat(300_000);
    let request = format!("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: {}\r\n\r\n{body}", body.len());
    assert_eq!(client.send(&request).await.status, 200);
    assert!(upstream.seen()[0].ends_with(&body));
    let request = "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n";
    let answer = client.send(request).await;
    assert_eq!(answer.header("transfer-encoding"), Some("chunked"));
    assert_eq!(answer.body(), "abc");
    assert!(upstream.seen()[1].ends_with("\r\n\r\nhi"));
}

#[tokio::test]
async fn replies_of_the_proxy_itself_are_envoys() {
    let unused = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let mut bed = Bed::start().await;
    let routes = "routes:
- {match: {path: /missing-cluster}, route: {cluster: nowhere}}
- {match: {path: /empty}, route: {cluster: empty}}
- {match: {path: /refused}, route: {cluster: c}}
- {match: {path: /direct}, direct_response: {status: 418, body: {inline_string: teapot}}}
- {match: {prefix: /moved}, redirect: {host_redirect: b.example, prefix_rewrite: /new}}";
    let empty = "{name: empty, type: STATIC, load_assignment: {cluster_name: empty}}";
    bed.accept(&[
        (Cluster, &cluster(&[unused], "")),
        (Cluster, empty),
        (Listener, &http_listener("", routes)),
    ])
    .await;
    let mut client = bed.client("web").await;
    let answer = client.get("/other").await;
    assert_eq!((answer.status, answer.body(), answer.header("content-length")), (404, "", Some("0")));
    let answer = client.get("/missing-cluster").await;
    assert_eq!((answer.status, answer.body()), (503, ""));
    let answer = client.get("/empty").await;
    assert_eq!((answer.status, answer.body()), (503, "no healthy upstream"));
    assert_eq!(answer.header("content-type"), Some("text/plain"));
    let answer = client.get("/refused").await;
    assert_eq!(answer.status, 503);
    assert_eq!(
        answer.body(),
        "upstream connect error or disconnect/reset before headers. reset reason: remote connection failure"
    );
    let answer = client.get("/direct").await;
    assert_eq!((answer.status, answer.body()), (418, "teapot"));
    let answer = client.get("/moved/x?q=1").await;
    assert_eq!((answer.status, answer.header("location")), (301, Some("http://b.example/new/x?q=1")));
    assert_eq!(answer.header("server"), Some("envoy"));
}

#[tokio::test]
async fn the_route_time_out_answers_504() {
    let (bed, _upstream) = bed("", &all_to_c("timeout: 0.05s"), &[Act::Silence]).await;
    let answer = bed.client("web").await.get("/").await;
    assert_eq!((answer.status, answer.body()), (504, "upstream request timeout"));
    assert_eq!(bed.stat("cluster.c.upstream_rq_timeout").await, Some(1));
    bed.until_stat("cluster.c.upstream_cx_active", 0).await;
}

#[tokio::test]
async fn an_upstream_that_hangs_up_is_a_503_of_its_own_kind() {
    let (bed, _upstream) = bed("", &all_to_c(""), &[Act::Close]).await;
    let answer = bed.client("web").await.get("/").await;
    assert_eq!(answer.status, 503);
    assert_eq!(
        answer.body(),
        "upstream connect error or disconnect/reset before headers. reset reason: connection termination"
    );
}

#[tokio::test]
async fn a_broken_body_breaks_the_client_connection() {
    let half = Act::ReplyAndClose("HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhalf");
    let (bed, _upstream) = bed("", &all_to_c(""), &[half]).await;
    let mut client = bed.client("web").await;
    client.stream.write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
    let mut all = Vec::new();
    let _ = within(client.stream.read_to_end(&mut all)).await;
    assert!(String::from_utf8_lossy(&all).ends_with("half"), "{}", String::from_utf8_lossy(&all));
}

#[tokio::test]
async fn head_and_empty_statuses_have_no_body() {
    let head = Act::Reply("HTTP/1.1 200 OK\r\ncontent-length: 55\r\n\r\n");
    let none = Act::Reply("HTTP/1.1 204 No Content\r\n\r\n");
    let (bed, _upstream) = bed("", &all_to_c(""), &[head, none, OK]).await;
    let mut client = bed.client("web").await;
    let answer = client.send("HEAD / HTTP/1.1\r\nhost: a\r\n\r\n").await;
    assert_eq!((answer.status, answer.header("content-length")), (200, Some("55")));
    let answer = client.get("/").await;
    assert_eq!((answer.status, answer.header("content-length")), (204, None));
    assert_eq!(client.get("/").await.body(), "ok");
}

#[tokio::test]
async fn malformed_requests_are_refused() {
    let (bed, upstream) = bed("", &all_to_c(""), &[OK]).await;
    for (request, status) in [
        ("GET / HTTP/1.1\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nhost: a\r\nhost: b\r\n\r\n", 400),
        ("GET / HTTP/1.0\r\nhost: a\r\n\r\n", 426),
        ("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\nx", 400),
        (
            "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 9\r\ntransfer-encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n\r\n",
            400,
        ),
        (
            "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\ncontent-length: 9\r\n\r\n1\r\nx\r\n0\r\n\r\n",
            400,
        ),
        ("GET /a#b HTTP/1.1\r\nhost: a\r\n\r\n", 400),
        ("POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: gzip\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nhost: a\r\nbad header: x\r\n\r\n", 400),
        ("CONNECT a:443 HTTP/1.1\r\nhost: a:443\r\n\r\n", 404),
    ] {
        let mut client = bed.client("web").await;
        assert_eq!(client.send(request).await.status, status, "{request:?}");
        assert!(client.is_closed().await, "{request:?}");
    }
    let big = format!("GET / HTTP/1.1\r\nhost: a\r\nx: {}\r\n\r\n", "y".repeat(70_000));
    assert_eq!(bed.client("web").await.send(&big).await.status, 431);
    assert!(upstream.seen().is_empty(), "nothing malformed reaches the service");
}

#[tokio::test]
async fn a_request_that_does_not_come_in_time_is_408() {
    let (bed, _upstream) = bed("request_timeout: 0.05s", &all_to_c(""), &[OK]).await;
    let mut client = bed.client("web").await;
    let answer = client.send("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\n\r\nx").await;
    assert_eq!((answer.status, answer.body()), (408, "request timeout"));
    assert!(client.is_closed().await);
}

#[tokio::test]
async fn fields_the_engine_cannot_honour_are_refused_with_their_path() {
    let mut bed = Bed::start().await;
    let listener =
        http_listener("access_log_options: {flush_access_log_on_new_request: true}", &all_to_c(""));
    let report = bed
        .apply(&[(Listener, &listener), (Cluster, "{name: c, type: STATIC, preconnect_policy: {}}")])
        .await;
    let reasons: Vec<String> = report.rejected.iter().map(ToString::to_string).collect();
    assert_eq!(reasons.len(), 2, "{reasons:?}");
    assert!(
        reasons.iter().any(|reason| reason.contains("filter_chains[0]") && reason.contains("new_request")),
        "{reasons:?}"
    );
    assert!(reasons.iter().any(|reason| reason.starts_with("cluster c: preconnect_policy")), "{reasons:?}");
}

/// What a control plane sends by mistake: each such resource is refused by itself, and all else serves.
#[tokio::test]
async fn wrong_resources_are_refused_alone() {
    let (mut bed, _upstream) = bed("", &all_to_c(""), &[OK, OK]).await;
    assert_eq!(bed.client("web").await.get("/").await.status, 200);
    let routes = |name: &str, hosts: &str| format!("{{name: {name}, virtual_hosts: [{hosts}]}}");
    let to = |name: &str, condition: &str, action: &str| {
        let host = format!("{{name: v, domains: [a], routes: [{{match: {condition}, route: {action}}}]}}");
        routes(name, &host)
    };
    let chains = |name: &str, first: &str, second: &str| {
        let chain = |condition: &str| format!("{{filter_chain_match: {condition}}}");
        format!(
            "{{name: {name}, address: {{socket_address: {{address: 127.0.0.1, port_value: 0}}}}, filter_chains: [{}, {}]}}",
            chain(first),
            chain(second)
        )
    };
    let any = "routes: [{match: {prefix: /}, route: {cluster: c}}]";
    let wrong = [
        (
            Routes,
            to("weights", "{prefix: /}", "{weighted_clusters: {clusters: [{name: c, weight: 0}]}}"),
            "sum of the weights",
        ),
        (
            Routes,
            to("time", "{prefix: /}", "{cluster: c, timeout: -1s}"),
            "routes[0].route.timeout: a duration must not be negative",
        ),
        (
            Routes,
            to("pause", "{prefix: /}", "{cluster: c, retry_policy: {retry_back_off: {base_interval: 0s}}}"),
            "retry_back_off",
        ),
        (Routes, to("regex", "{safe_regex: {regex: '('}}", "{cluster: c}"), "match.safe_regex"),
        (
            Routes,
            routes("twice", &format!("{{name: a, domains: [x], {any}}}, {{name: b, domains: [X], {any}}}")),
            "domain \"X\" occurs more than once",
        ),
        (Cluster, "{name: slow, type: STATIC, connect_timeout: -1s}".to_owned(), "connect_timeout"),
        (
            Cluster,
            "{name: ejects, type: STATIC, outlier_detection: {max_ejection_percent: 101}}".to_owned(),
            "max_ejection_percent",
        ),
        (
            Listener,
            chains("same", "{destination_port: 1}", "{destination_port: 1}"),
            "filter_chains[1].filter_chain_match",
        ),
        (
            Listener,
            chains("port", "{destination_port: 0}", "{}"),
            "filter_chains[0].filter_chain_match.destination_port",
        ),
    ];
    let right = [
        (Cluster, "{name: d, type: STATIC}".to_owned()),
        (Routes, to("right", "{prefix: /}", "{cluster: d}")),
    ];
    let all: Vec<_> = wrong.iter().map(|(kind, yaml, _)| (*kind, yaml.as_str())).collect();
    let all: Vec<_> =
        all.into_iter().chain(right.iter().map(|(kind, yaml)| (*kind, yaml.as_str()))).collect();
    let report = bed.apply(&all).await;
    let reasons: Vec<String> = report.rejected.iter().map(ToString::to_string).collect();
    assert_eq!(reasons.len(), wrong.len(), "{reasons:#?}");
    for (_, yaml, part) in &wrong {
        assert!(reasons.iter().any(|reason| reason.contains(part)), "{part} of {yaml} not in {reasons:#?}");
    }
    let accepted: Vec<_> = report.accepted.iter().map(|(_, name)| name.as_str()).collect();
    assert_eq!(accepted.len(), right.len(), "{accepted:?}");
    assert_eq!(bed.client("web").await.get("/").await.status, 200);
}

#[tokio::test]
async fn header_operations_and_rewrites_apply() {
    let routes = "routes:
- match: {prefix: /old}
  route: {cluster: c, prefix_rewrite: /new, host_rewrite_literal: inner}
  request_headers_to_add:
  - {header: {key: x-path, value: 'was %REQ(:PATH)%'}}
  request_headers_to_remove: [x-secret]
  response_headers_to_add:
  - {header: {key: x-code, value: '%RESPONSE_CODE%'}}
  response_headers_to_remove: [x-inner]";
    let reply = Act::Reply("HTTP/1.1 200 OK\r\ncontent-length: 0\r\nx-inner: 1\r\n\r\n");
    let (bed, upstream) = bed("", routes, &[reply]).await;
    let request = "GET /old/a?b HTTP/1.1\r\nhost: outer\r\nx-secret: 1\r\n\r\n";
    let answer = bed.client("web").await.send(request).await;
    assert_eq!((answer.header("x-code"), answer.header("x-inner")), (Some("200"), None));
    let seen = &upstream.seen()[0];
    assert!(seen.starts_with("GET /new/a?b HTTP/1.1\r\n"), "{seen}");
    for line in [
        "host: inner\r\n",
        "x-envoy-original-host: outer\r\n",
        "x-path: was /old/a?b\r\n",
        "x-envoy-original-path: /old/a?b\r\n",
    ] {
        assert!(seen.contains(line), "{line} not in {seen}");
    }
    assert!(!seen.contains("x-secret"));
}

#[tokio::test]
async fn websockets_pass_when_allowed() {
    let switch = Act::Reply(
        "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\nhello",
    );
    let request = "GET /ws HTTP/1.1\r\nhost: a\r\nconnection: Upgrade\r\nupgrade: websocket\r\n\r\n";
    let (allowed, upstream) =
        bed("upgrade_configs: [{upgrade_type: websocket}]", &all_to_c(""), std::slice::from_ref(&switch))
            .await;
    let mut client = allowed.client("web").await;
    let answer = client.send(request).await;
    assert_eq!((answer.status, answer.header("upgrade")), (101, Some("websocket")));
    let mut hello = [0; 5];
    within(client.stream.read_exact(&mut hello)).await.unwrap();
    assert_eq!(&hello, b"hello");
    assert!(upstream.seen()[0].contains("upgrade: websocket"));
    let (refused, _upstream) = bed("", &all_to_c(""), &[switch]).await;
    assert_eq!(refused.client("web").await.send(request).await.status, 403);
}
