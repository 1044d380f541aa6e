use http::HeaderMap;
use lateen_xds::json::JsonCodec;

use super::*;
use crate::{Cluster, ClusterLoadAssignment, Listener, RouteConfiguration};

const SERVER: &str = r#"
name: virtualInbound
address: { socket_address: { address: 0.0.0.0, port_value: 15006 } }
listener_filters:
- { name: tls, typed_config: { "@type": type.googleapis.com/envoy.extensions.filters.listener.tls_inspector.v3.TlsInspector } }
filter_chains:
- name: strict
  filter_chain_match: { destination_port: 8080, transport_protocol: tls, application_protocols: [istio] }
  transport_socket:
    name: tls
    typed_config:
      "@type": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext
      require_client_certificate: true
      common_tls_context:
        tls_certificate_sds_secret_configs: [{ name: default, sds_config: { ads: {} } }]
        combined_validation_context:
          default_validation_context: { match_typed_subject_alt_names: [{ san_type: URI, matcher: { prefix: "spiffe://here/" } }] }
          validation_context_sds_secret_config: { name: ROOTCA, sds_config: { ads: {} } }
  filters:
  - name: http
    typed_config:
      "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
      stat_prefix: inbound
      normalize_path: true
      route_config: { name: inbound, virtual_hosts: [{ name: all, domains: ["*"], routes: [{ match: { prefix: / }, route: { cluster: inbound } }] }] }
      http_filters:
      - name: deny
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.http.rbac.v3.RBAC
          rules: { action: DENY, policies: { "ns[a]-policy[deny]-rule[0]": {
            permissions: [{ url_path: { path: { prefix: /admin } } }], principals: [{ any: true }] } } }
      - name: allow
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.http.rbac.v3.RBAC
          rules: { action: ALLOW, policies: {
            "ns[a]-policy[get]-rule[0]": {
              permissions: [{ and_rules: { rules: [{ or_rules: { rules: [{ header: { name: ":method", string_match: { exact: GET } } }, { header: { name: ":method", string_match: { exact: HEAD } } }] } }] } }],
              principals: [{ and_ids: { ids: [{ or_ids: { ids: [{ authenticated: { principal_name: { safe_regex: { regex: ".*/ns/web/.*" } } } }] } }] } }] },
            "ns[a]-policy[none]-rule[0]": { permissions: [{ not_rule: { any: true } }], principals: [{ not_id: { any: true } }] } } }
      - name: router
        typed_config: { "@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router }
"#;

const CLIENT: &str = r#"
name: virtualOutbound
address: { socket_address: { address: 0.0.0.0, port_value: 15001 } }
use_original_dst: true
filter_chains:
- filters:
  - name: tcp
    typed_config: { "@type": type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy, stat_prefix: p, cluster: PassthroughCluster }
"#;

const PORT: &str = r#"
name: 0.0.0.0_80
address: { socket_address: { address: 0.0.0.0, port_value: 80 } }
bind_to_port: false
filter_chains:
- filters:
  - name: http
    typed_config:
      "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
      stat_prefix: outbound
      rds: { route_config_name: "80", config_source: { ads: {} } }
      http_filters:
      - name: fault
        typed_config: { "@type": type.googleapis.com/envoy.extensions.filters.http.fault.v3.HTTPFault }
      - name: router
        typed_config: { "@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router }
"#;

const ROUTES: &str = r#"
name: "80"
validate_clusters: false
virtual_hosts:
- name: shop
  domains: [shop, shop.example]
  routes:
  - match: { prefix: /broken }
    route: { cluster: one }
    typed_per_filter_config: { fault: { "@type": type.googleapis.com/envoy.extensions.filters.http.fault.v3.HTTPFault, abort: { http_status: 418, percentage: { numerator: 100 } } } }
  - match: { prefix: /often }
    route: { cluster: one }
    typed_per_filter_config: { fault: { "@type": type.googleapis.com/envoy.extensions.filters.http.fault.v3.HTTPFault, abort: { http_status: 503, percentage: { numerator: 30 } } } }
  - match: { prefix: /old/ }
    route: { cluster: one, prefix_rewrite: /new/, host_rewrite_literal: other }
    request_headers_to_add: [{ header: { key: x-by, value: mesh } }]
  - match: { path: /gone }
    redirect: { path_redirect: /here }
  - match: { prefix: /, headers: [{ name: x-user, string_match: { exact: alice } }] }
    route: { weighted_clusters: { clusters: [{ name: one, weight: 30 }, { name: two, weight: 70 }, { name: none, weight: 0 }] } }
"#;

fn view() -> ProxyView {
    let codec = JsonCodec::new().unwrap();
    let routes = RouteConfiguration::from_proto(codec.from_yaml(ROUTES).unwrap()).unwrap();
    let listeners = [SERVER, CLIENT, PORT];
    let cluster = r#"{ name: one, type: EDS, eds_cluster_config: { service_name: e, eds_config: { ads: {} } }, metadata: { filter_metadata: { istio: { config: /a/b } } },
        transport_socket_matches: [{ name: m, match: { tlsMode: istio }, transport_socket: { name: t, typed_config: { "@type": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext, sni: one.sni,
          common_tls_context: { alpn_protocols: [istio], tls_certificate_sds_secret_configs: [{ name: default, sds_config: { ads: {} } }] } } } },
          { name: plain, match: {}, transport_socket: { name: raw, typed_config: { "@type": type.googleapis.com/envoy.extensions.transport_sockets.raw_buffer.v3.RawBuffer } } }] }"#;
    let endpoint = |ip: &str, health: &str, mode: &str| {
        format!(
            "{{ health_status: {health}, metadata: {{ filter_metadata: {{ envoy.transport_socket_match: {{ tlsMode: '{mode}' }} }} }}, endpoint: {{ address: {{ socket_address: {{ address: {ip}, port_value: 8080 }} }} }} }}"
        )
    };
    let assignment = format!(
        "{{ cluster_name: e, endpoints: [{{ locality: {{ region: r, zone: z }}, lb_endpoints: [{}, {}, {}] }}, {{ priority: 1, lb_endpoints: [{}] }}] }}",
        endpoint("10.0.0.1", "HEALTHY", "istio"),
        endpoint("10.0.0.2", "HEALTHY", ""),
        endpoint("10.0.0.3", "DRAINING", "istio"),
        endpoint("10.0.0.4", "HEALTHY", "istio"),
    );
    let cluster = Cluster::from_proto(codec.from_yaml(cluster).unwrap()).unwrap();
    let endpoints = ClusterLoadAssignment::from_proto(codec.from_yaml(&assignment).unwrap()).unwrap();
    ProxyView {
        listeners: listeners.map(|yaml| Listener::from_proto(codec.from_yaml(yaml).unwrap()).unwrap()).into(),
        routes: [(routes.name.clone(), routes)].into(),
        clusters: [(cluster.name.clone(), cluster)].into(),
        endpoints: [(endpoints.cluster_name.clone(), endpoints)].into(),
    }
}

fn asked(method: &str, path: &str, headers: &[(&'static str, &'static str)]) -> Asked {
    let headers: HeaderMap =
        headers.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap())).collect();
    Asked {
        method: method.to_owned(),
        authority: "shop".to_owned(),
        path: path.parse().unwrap(),
        headers,
        claims: None,
    }
}

fn question(port: u16, tls: Option<Hello>, request: Asked) -> Question {
    let at = |last: u8, port: u16| SocketAddr::from(([10, 0, 0, last], port));
    Question { destination: at(9, port), source: at(1, 4000), tls, request: Some(request) }
}

fn caller(uri: &str) -> Option<Hello> {
    let certificate = Some(vec![uri.to_owned()]);
    Some(Hello { server_name: String::new(), protocols: vec!["istio".to_owned()], certificate })
}

fn inbound(method: &str, path: &str, tls: Option<Hello>) -> Passage {
    view().passage(Some("virtualInbound"), &question(8080, tls, asked(method, path, &[])))
}

#[test]
fn policies_decide_with_reasons() {
    let web = || caller("spiffe://here/ns/web/sa/a");
    let passage = inbound("GET", "/", web());
    assert_eq!((passage.chain.as_deref(), passage.transport), (Some("strict"), "mutual TLS"));
    assert!(matches!(passage.outcome, Outcome::Forwarded { .. }), "{passage:?}");
    let [deny, allow] = passage.checks.as_slice() else { panic!("{passage:?}") };
    assert_eq!((deny.result, allow.result), (CheckResult::Passes, CheckResult::Passes));
    assert_eq!(allow.decided_by.as_deref(), Some("ns[a]-policy[get]-rule[0]"));
    assert_eq!(deny.rules[0].reason, "path is /, not /admin*");
    assert_eq!(allow.rules[1].reason, "it has no rules, so nothing matches it");

    let denied = |details: &str, passage: &Passage| match &passage.outcome {
        Outcome::Answered { status: 403, details: said, .. } => assert_eq!(said, details),
        other => panic!("{other:?}"),
    };
    // Normalised before it is judged.
    denied(
        "rbac_access_denied_matched_policy[ns[a]-policy[deny]-rule[0]]",
        &inbound("GET", "/x/../admin/y", web()),
    );
    let passage = inbound("POST", "/", web());
    denied("rbac_access_denied_matched_policy[none]", &passage);
    assert_eq!(passage.checks[1].rules[0].reason, "method is POST, not GET or HEAD");
    let passage = inbound("GET", "/", caller("spiffe://here/ns/other/sa/a"));
    denied("rbac_access_denied_matched_policy[none]", &passage);
    assert_eq!(
        passage.checks[1].rules[0].reason,
        "identity is spiffe://here/ns/other/sa/a, not namespace web"
    );
}

#[test]
fn connections_that_do_not_come_about() {
    let closed = |passage: Passage| match passage.outcome {
        Outcome::Closed { reason, .. } => reason,
        other => panic!("{other:?}"),
    };
    assert_eq!(closed(inbound("GET", "/", None)), "no filter chain takes plain text here");
    let stranger = closed(inbound("GET", "/", caller("spiffe://elsewhere/ns/web/sa/a")));
    assert_eq!(
        stranger,
        "the client is spiffe://elsewhere/ns/web/sa/a, and the server takes spiffe://here/*"
    );
    let nobody = Some(Hello { protocols: vec!["istio".to_owned()], ..Hello::default() });
    assert_eq!(
        closed(inbound("GET", "/", nobody)),
        "the server wants a certificate, and the client has none"
    );
    assert!(
        closed(view().passage(Some("other"), &question(1, None, asked("GET", "/", &[]))))
            .contains("no listener other")
    );
}

fn outbound(request: Asked) -> Passage {
    view().passage(Some("virtualOutbound"), &question(80, None, request))
}

#[test]
fn routes_with_what_they_change() {
    let passage = outbound(asked("GET", "/old/x?y", &[]));
    assert_eq!(passage.listener.as_deref(), Some("0.0.0.0_80"), "handed on by the destination");
    let route = passage.route.unwrap();
    assert_eq!(
        (route.virtual_host.as_str(), route.position, route.matching.as_str()),
        ("shop", Some(2), "path /old/*")
    );
    let request = passage.request.unwrap();
    assert_eq!((request.authority.as_str(), request.path.as_str()), ("other", "/new/x?y"));
    assert_eq!(
        (&request.headers["x-by"], &request.headers["x-forwarded-proto"]),
        (&"mesh".parse().unwrap(), &"http".parse().unwrap())
    );

    let passage = outbound(asked("GET", "/", &[("x-user", "alice")]));
    let Outcome::Forwarded { clusters } = passage.outcome else { panic!() };
    let shares: Vec<_> = clusters.iter().map(|share| (share.cluster.as_str(), share.percent)).collect();
    assert_eq!(shares, [("two", 70.0), ("one", 30.0)]);
    let answered = |passage: Passage| match passage.outcome {
        Outcome::Answered { status, flags, details, .. } => (status, flags, details),
        other => panic!("{other:?}"),
    };
    assert_eq!(answered(outbound(asked("GET", "/", &[]))), (404, "NR", "route_not_found".to_owned()));
    let mut elsewhere = asked("GET", "/", &[]);
    elsewhere.authority = "nowhere".to_owned();
    assert_eq!(answered(outbound(elsewhere)), (404, "NR", "route_not_found".to_owned()));
    assert_eq!(answered(outbound(asked("GET", "/gone", &[]))).0, 301);
    assert_eq!(
        answered(outbound(asked("GET", "/broken", &[]))),
        (418, "FI", "fault_filter_abort".to_owned())
    );
    let often = outbound(asked("GET", "/often", &[]));
    assert_eq!((often.checks.len(), often.checks[0].result), (1, CheckResult::Depends));
    assert!(often.checks[0].reason.starts_with("30 % of such requests are answered with 503"), "{often:?}");
    // Nothing listens there: passed through.
    let other = view().passage(Some("virtualOutbound"), &question(81, None, asked("GET", "/", &[])));
    assert_eq!(other.listener.as_deref(), Some("virtualOutbound"));
}

#[test]
fn endpoints_that_are_used() {
    let reach = view().reach("one", SocketAddr::from(([10, 0, 0, 9], 80)), true).unwrap();
    let seen: Vec<_> = reach
        .endpoints
        .iter()
        .map(|one| (one.address.as_str(), one.used, one.health, one.transport, one.priority))
        .collect();
    assert_eq!(
        seen,
        [
            ("10.0.0.1:8080", true, "healthy", "mutual TLS", 0),
            ("10.0.0.2:8080", true, "healthy", "plain text", 0),
            ("10.0.0.3:8080", false, "draining", "mutual TLS", 0),
            // Two thirds of the first count for 93 %, which is not quite enough.
            ("10.0.0.4:8080", true, "healthy", "mutual TLS", 1),
        ]
    );
    let first = &reach.endpoints[0];
    assert_eq!(
        (first.server_name.as_str(), first.protocols.join(","), first.locality.as_str()),
        ("one.sni", "istio".to_owned(), "r/z")
    );
    assert!(first.shows_certificate);
    assert_eq!(reach.origin, "/a/b");
    assert!(view().reach("nowhere", SocketAddr::from(([10, 0, 0, 9], 80)), true).is_none());
}

const TOKENS: &str = r#"
name: gateway
address: { socket_address: { address: 0.0.0.0, port_value: 8081 } }
filter_chains:
- filters:
  - name: http
    typed_config:
      "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
      stat_prefix: inbound
      use_remote_address: true
      route_config: { name: inbound, virtual_hosts: [{ name: all, domains: ["*"], routes: [{ match: { prefix: / }, route: { cluster: inbound } }] }] }
      http_filters:
      - name: jwt
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.http.jwt_authn.v3.JwtAuthentication
          providers: { me: { issuer: me, audiences: [shop], payload_in_metadata: payload, local_jwks: { inline_string:
            '{"keys":[{"kty":"EC","crv":"P-256","alg":"ES256","x":"n-gJskFJQ4Wywt_fxO50ZozaiwdK5xcx6exnOrckX18","y":"cHckAFqYdem1Gw5g6l08IXgxPI5oQDgDrAj8JHMXeZ8"}]}' } } }
          rules: [{ match: { prefix: / }, requires: { requires_any: { requirements: [{ provider_name: me }, { allow_missing: {} }] } } }]
      - name: allow
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.http.rbac.v3.RBAC
          rules: { action: ALLOW, policies: { admins: { permissions: [{ any: true }], principals: [{ metadata: {
            filter: envoy.filters.http.jwt_authn, path: [{ key: payload }, { key: groups }], value: { list_match: { one_of: { string_match: { exact: admins } } } } } }] } } }
      - name: router
        typed_config: { "@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router }
"#;

#[test]
fn tokens_are_supposed_to_be_good() {
    let codec = JsonCodec::new().unwrap();
    let listener = Listener::from_proto(codec.from_yaml(TOKENS).unwrap()).unwrap();
    let view = ProxyView { listeners: vec![listener], ..ProxyView::default() };
    let ask = |claims: serde_json::Value, headers: &[(&'static str, &'static str)]| {
        let claims = claims.as_object().cloned().filter(|claims| !claims.is_empty());
        let request = Asked { claims, ..asked("GET", "/", headers) };
        view.passage(None, &question(8081, None, request))
    };
    let claims = |groups: &str| serde_json::json!({ "iss": "me", "aud": "shop", "groups": [groups] });
    let good = ask(claims("admins"), &[]);
    assert!(matches!(good.outcome, Outcome::Forwarded { .. }), "{good:?}");
    assert_eq!((good.checks[0].by.as_str(), good.checks[0].reason.as_str()), ("tokens", "the token is good"));
    // Not sent on, unless that is said.
    let request = good.request.unwrap();
    assert!(request.claims.is_none() && !request.headers.contains_key("authorization"), "{request:?}");
    assert_eq!(request.headers["x-forwarded-for"], "10.0.0.1");
    let refused = |passage: Passage| match passage.outcome {
        Outcome::Answered { status, .. } => (status, passage.checks.last().unwrap().reason.clone()),
        other => panic!("{other:?}"),
    };
    let users = ask(claims("users"), &[]);
    assert_eq!(users.checks[1].rules[0].reason, "claim groups is [\"users\"], not admins");
    assert_eq!(refused(users).0, 403);
    let nobody = ask(serde_json::json!({}), &[]);
    assert_eq!(nobody.checks[0].reason, "there is no token, and none is needed here");
    assert_eq!(nobody.checks[1].rules[0].reason, "claim groups is missing: no good token has it, not admins");
    let (status, reason) = refused(ask(serde_json::json!({ "iss": "you" }), &[]));
    assert_eq!((status, reason.as_str()), (401, "Jwt issuer is not configured; tokens of me are taken"));
    let (status, _) = refused(ask(serde_json::json!({ "iss": "me", "aud": "bank" }), &[]));
    assert_eq!(status, 403);
    // A real one is looked at with its signature.
    assert_eq!(refused(ask(serde_json::json!({}), &[("authorization", "Bearer a.b.c")])).0, 401);
}
