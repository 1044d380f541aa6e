//! Domain and route matches: tables, and the indexes against a plain reading of Envoy's documentation.

use http::{HeaderMap, HeaderName, HeaderValue};
use proptest::prelude::*;

use super::*;
use crate::route::{Action, DirectResponse, RequireTls};
use crate::{Fraction, FullRegex, HeaderMutations};

fn prefix(value: &str) -> PathMatcher {
    PathMatcher::Prefix { value: value.into(), case_sensitive: true }
}

fn matching(path: PathMatcher) -> RouteMatcher {
    RouteMatcher {
        path,
        headers: Box::default(),
        query_parameters: Box::default(),
        runtime_fraction: None,
        grpc: false,
        metadata: Box::default(),
    }
}

fn route(name: &str, matching: RouteMatcher) -> Arc<Route> {
    let answer = DirectResponse { status: http::StatusCode::OK, body: Arc::from(&b""[..]), format: None };
    Arc::new(Route {
        name: name.into(),
        matching,
        action: Action::DirectResponse(Box::new(answer)),
        request_headers: HeaderMutations::default(),
        response_headers: HeaderMutations::default(),
        overrides: Box::default(),
        stat: None,
    })
}

fn host(name: &str, domains: &[&str], routes: Vec<Arc<Route>>) -> Arc<VirtualHost> {
    Arc::new(VirtualHost {
        name: name.into(),
        domains: domains.iter().map(|domain| (*domain).into()).collect(),
        routes: routes.into(),
        require_tls: RequireTls::None,
        request_headers: HeaderMutations::default(),
        response_headers: HeaderMutations::default(),
        include_request_attempt_count: false,
        include_attempt_count_in_response: false,
        retry_policy: None,
        include_is_timeout_retry_header: false,
        overrides: Box::default(),
        cors: None,
    })
}

fn table(domains: &[&[&str]]) -> RouteTable {
    let hosts =
        domains.iter().enumerate().map(|(n, domains)| host(&n.to_string(), domains, vec![])).collect();
    RouteTable::new(hosts, Arc::default(), false, None).unwrap()
}

#[test]
fn domains_are_searched_in_envoys_order() {
    let table = table(&[
        &["*"],
        &["www.example.com", "EXAMPLE.com:80"],
        &["*.example.com"],
        &["*-bar.example.com"],
        &["www.*"],
        &["www.example.*"],
        &["*.com"],
    ]);
    let cases = [
        ("www.example.com", "1"),
        ("WWW.Example.COM", "1"),
        ("example.com:80", "1"),
        ("a.example.com", "2"),
        ("a.b.example.com", "2"),
        ("foo-bar.example.com", "3"),
        ("-bar.example.com", "2"),
        ("www.example.org", "5"),
        ("www.other.org", "4"),
        ("www.other.com", "6"),
        (".com", "0"),
        ("other", "0"),
        ("", "0"),
        ("www.", "0"),
    ];
    for (authority, expected) in cases {
        assert_eq!(&*table.virtual_host(authority).unwrap().name, expected, "{authority}");
    }
}

#[test]
fn without_a_match_there_is_no_virtual_host() {
    let table = table(&[&["a.com"]]);
    assert!(table.virtual_host("a.com:80").is_none(), "the port belongs to the domain");
    let headers = HeaderMap::new();
    let request = RequestView {
        method: "GET",
        scheme: "http",
        authority: "b",
        path: "/",
        headers: &headers,
        metadata: None,
    };
    assert_eq!(table.route(&request, 0).unwrap_err(), NoRoute::NoVirtualHost);
    let request = RequestView { authority: "a.com", ..request };
    assert_eq!(table.route(&request, 0).unwrap_err(), NoRoute::NoRoute);
}

#[test]
fn ports_can_be_ignored() {
    let table =
        RouteTable::new(vec![host("a", &["a.com", "[::1]"], vec![])], Arc::default(), true, None).unwrap();
    for authority in ["a.com", "a.com:80", "A.com:12345", "[::1]:80", "[::1]"] {
        assert!(table.virtual_host(authority).is_some(), "{authority}");
    }
    assert!(table.virtual_host("a.com:x").is_none());
}

#[test]
fn a_domain_occurs_once() {
    let hosts = vec![host("a", &["x", "*"], vec![]), host("b", &["X"], vec![])];
    assert!(RouteTable::new(hosts, Arc::default(), false, None).unwrap_err().contains("\"X\""));
    let hosts = vec![host("a", &["*"], vec![]), host("b", &["*"], vec![])];
    assert!(RouteTable::new(hosts, Arc::default(), false, None).is_err());
}

#[test]
fn paths_match_without_the_query() {
    let any_case = |value: &str| PathMatcher::Exact { value: value.into(), case_sensitive: false };
    let separated = |value: &str| PathMatcher::SeparatedPrefix { value: value.into(), case_sensitive: true };
    let cases = [
        (prefix("/a"), "/ab?x", true),
        (prefix("/a?"), "/a?", false),
        (prefix("/A"), "/a", false),
        (any_case("/abc"), "/ABC#frag", true),
        (any_case("/abc"), "/abcd", false),
        (separated("/a"), "/a", true),
        (separated("/a"), "/a?x", true),
        (separated("/a"), "/a/b", true),
        (separated("/a"), "/ab", false),
        (PathMatcher::Regex(FullRegex::new("/[0-9]+").unwrap()), "/12?x", true),
        (PathMatcher::Regex(FullRegex::new("/[0-9]+").unwrap()), "/12/", false),
    ];
    let headers = HeaderMap::new();
    for (matcher, path, expected) in cases {
        let request = RequestView {
            method: "GET",
            scheme: "http",
            authority: "a",
            path,
            headers: &headers,
            metadata: None,
        };
        assert_eq!(matching(matcher.clone()).is_match(&request, 0), expected, "{matcher:?} {path}");
    }
}

#[test]
fn the_first_matching_route_is_used() {
    let half = RouteMatcher {
        runtime_fraction: Some(Fraction { numerator: 50, denominator: 100 }),
        ..matching(prefix("/"))
    };
    let grpc = RouteMatcher { grpc: true, ..matching(prefix("/")) };
    let routes = vec![route("grpc", grpc), route("half", half), route("rest", matching(prefix("/")))];
    let table = RouteTable::new(vec![host("h", &["*"], routes)], Arc::default(), false, None).unwrap();
    let mut headers = HeaderMap::new();
    let find = |headers: &HeaderMap, random| {
        let request =
            RequestView { method: "GET", scheme: "http", authority: "a", path: "/", headers, metadata: None };
        table.route(&request, random).unwrap().route.name.to_string()
    };
    assert_eq!(find(&headers, 149), "half");
    assert_eq!(find(&headers, 150), "rest");
    for (value, expected) in [
        ("application/grpc", "grpc"),
        ("application/grpc+proto", "grpc"),
        ("application/grpc;x", "half"),
        ("application/grpc-web", "half"),
    ] {
        headers.insert("content-type", HeaderValue::from_static(value));
        assert_eq!(find(&headers, 0), expected, "{value}");
    }
}

#[test]
fn weights_and_headers_choose_the_cluster() {
    let entry = |cluster, weight| WeightedCluster {
        cluster,
        weight,
        metadata_match: None,
        request_headers: HeaderMutations::default(),
        response_headers: HeaderMutations::default(),
        host_rewrite: None,
        overrides: Box::default(),
    };
    let named = |name: &str, index| WeightedTarget::Cluster(ClusterRef { name: name.into(), index });
    let specifier = ClusterSpecifier::Weighted(Box::new(WeightedClusters {
        clusters: vec![entry(named("v1", 0), 70), entry(named("v0", 1), 0), entry(named("v2", 2), 30)].into(),
        total_weight: 100,
        random_header: Some(HeaderName::from_static("x-random")),
    }));
    let mut headers = HeaderMap::new();
    let pick = |headers: &HeaderMap, random| {
        let request =
            RequestView { method: "GET", scheme: "http", authority: "a", path: "/", headers, metadata: None };
        match specifier.pick(&request, random).cluster {
            PickedCluster::Ref(cluster) => cluster.name.to_string(),
            other => panic!("{other:?}"),
        }
    };
    assert_eq!((0..100).filter(|random| pick(&headers, *random) == "v1").count(), 70);
    assert_eq!((0..100).filter(|random| pick(&headers, *random) == "v0").count(), 0);
    headers.insert("x-random", HeaderValue::from_static("99"));
    assert_eq!(pick(&headers, 0), "v2");

    let by_header = ClusterSpecifier::Header(HeaderName::from_static("x-cluster"));
    let request = RequestView {
        method: "GET",
        scheme: "http",
        authority: "a",
        path: "/",
        headers: &headers,
        metadata: None,
    };
    assert!(matches!(by_header.pick(&request, 0).cluster, PickedCluster::HeaderMissing));
    let mut headers = HeaderMap::new();
    headers.insert("x-cluster", HeaderValue::from_static("c"));
    let request = RequestView { headers: &headers, ..request };
    assert!(matches!(by_header.pick(&request, 0).cluster, PickedCluster::Named("c")));
}

/// The documentation of `VirtualHost.domains`, read plainly.
fn reference(domains: &[String], host: &str) -> Option<usize> {
    let host = host.to_ascii_lowercase();
    let ranked = |domain: &String| {
        let domain = domain.to_ascii_lowercase();
        if domain == host {
            return Some((3, 0));
        }
        if domain == "*" {
            return Some((0, 0));
        }
        if let Some(suffix) = domain.strip_prefix('*') {
            return (host.ends_with(suffix) && host.len() > suffix.len()).then_some((2, suffix.len()));
        }
        let prefix = domain.strip_suffix('*')?;
        (host.starts_with(prefix) && host.len() > prefix.len()).then_some((1, prefix.len()))
    };
    let ranks = domains.iter().enumerate().filter_map(|(n, domain)| Some((ranked(domain)?, n)));
    ranks.max_by_key(|(rank, _)| *rank).map(|(_, n)| n)
}

proptest! {
    #[test]
    fn the_index_agrees_with_the_documentation(
        domains in prop::collection::btree_set("(\\*|\\*?[ab.]{1,4}|[ab.]{1,4}\\*)", 0..10),
        host in "[abAB.]{0,6}",
    ) {
        let domains: Vec<String> = domains.into_iter().collect();
        let lists: Vec<Vec<&str>> = domains.iter().map(|domain| vec![domain.as_str()]).collect();
        let slices: Vec<&[&str]> = lists.iter().map(Vec::as_slice).collect();
        let table = table(&slices);
        let found = table.virtual_host(&host).map(|host| host.name.parse::<usize>().unwrap());
        prop_assert_eq!(found, reference(&domains, &host));
    }

    #[test]
    fn any_request_is_routed_without_panic(path in ".{0,40}", authority in ".{0,40}") {
        let routes = vec![route("a", matching(PathMatcher::SeparatedPrefix { value: "/é".into(), case_sensitive: false }))];
        let table = RouteTable::new(vec![host("h", &["*é.b", "a*"], routes)], Arc::default(), true, None).unwrap();
        let headers = HeaderMap::new();
        let request = RequestView { method: "GET", scheme: "http", authority: &authority, path: &path, headers: &headers, metadata: None };
        let _ = table.route(&request, 0);
    }
}
