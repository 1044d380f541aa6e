//! A management server for `bench/scale.py`: one listener with three routes for each of many hosts, and as many clusters.
//!
//! ```text
//! cargo run --release -p lateen-control --example scale_ads -- PORT SERVICES LISTENER_PORT ORIGIN_PORT
//! ```
//! A line on standard input becomes the answer of the last host to `/mark`: a change of one route among all of them.
use std::io::BufRead;
use std::sync::Arc;
use std::time::Instant;

use futures::future::BoxFuture;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::service::TowerToHyperService;
use lateen_xds::Any;
use lateen_xds::pb::envoy::config::cluster::v3 as cluster;
use lateen_xds::pb::envoy::config::core::v3 as core;
use lateen_xds::pb::envoy::config::endpoint::v3 as endpoint;
use lateen_xds::pb::envoy::config::listener::v3 as listener;
use lateen_xds::pb::envoy::config::route::v3 as route;
use lateen_xds::pb::envoy::extensions::filters::http::router::v3::Router;
use lateen_xds::pb::envoy::extensions::filters::network::http_connection_manager::v3 as hcm;
use lateen_xds::pb::google::protobuf::Duration;
use lateen_xds::server::{AdsServer, Hello, Opened, Resource, ResourceSet, Snapshot, Source};
use lateen_xds::type_urls::{CLUSTER, ENDPOINT, LISTENER, ROUTE};
use prost::{Message, Name};
use tokio::sync::watch;
use tonic::Status;

type Error = Box<dyn std::error::Error + Send + Sync>;

struct Given(watch::Sender<Arc<Snapshot>>);

impl Source for Given {
    fn open(&self, _: Hello) -> BoxFuture<'_, Result<Opened, Status>> {
        let snapshots = self.0.subscribe();
        Box::pin(async move { Ok(Opened { snapshots, guard: Box::new(()) }) })
    }
}

#[tokio::main]
async fn main() -> Result<(), Error> {
    let numbers: Vec<u16> =
        std::env::args().skip(1).map(|argument| argument.parse()).collect::<Result<_, _>>()?;
    let [port, services, listener_port, origin] = numbers[..] else {
        return Err("usage: scale_ads PORT SERVICES LISTENER_PORT ORIGIN_PORT".into());
    };
    let routes = Routes::new(services);
    let clusters = (0..services).map(|index| resource(&cluster_name(index), &cluster(index)));
    let endpoints = (0..services).map(|index| resource(&cluster_name(index), &endpoints(index, origin)));
    let snapshot = Snapshot::new(1, Instant::now())
        .with(CLUSTER, Arc::new(clusters.collect()))
        .with(ENDPOINT, Arc::new(endpoints.collect()))
        .with(LISTENER, Arc::new([resource("main", &listener(listener_port))].into_iter().collect()))
        .with(ROUTE, routes.with("first"));
    let given = Arc::new(Given(watch::Sender::new(Arc::new(snapshot))));
    let changes = given.clone();
    std::thread::spawn(move || {
        for (version, line) in (2..).zip(std::io::stdin().lock().lines().map_while(Result::ok)) {
            changes.0.send_modify(|snapshot| {
                let next = Snapshot::clone_at(snapshot, version, Instant::now());
                *snapshot = Arc::new(next.with(ROUTE, routes.with(&line)));
            });
        }
        // Whoever started this is gone.
        std::process::exit(0);
    });
    let server = AdsServer::new(given);
    let socket = tokio::net::TcpListener::bind(("127.0.0.1", port)).await?;
    println!("ready");
    loop {
        let (stream, _) = socket.accept().await?;
        // A response would wait 40 ms for an acknowledgement that waits for more of it.
        stream.set_nodelay(true)?;
        let service = TowerToHyperService::new(server.clone());
        tokio::spawn(async move {
            let builder = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
            // Ends with an error when the client goes.
            let _ended = builder.serve_connection(TokioIo::new(stream), service).await;
        });
    }
}

fn resource<M: Message>(name: &str, message: &M) -> Arc<Resource> {
    let body = message.encode_to_vec().into();
    Arc::new(Resource { name: name.into(), version: "1".into(), body })
}

fn any<M: Message + Name>(message: &M) -> Any {
    Any { type_url: M::type_url(), value: message.encode_to_vec() }
}

fn host(index: u16) -> String {
    format!("s{index}.default.svc.cluster.local")
}

fn cluster_name(index: u16) -> String {
    format!("outbound|80||{}", host(index))
}

fn address(port: u16) -> Option<core::Address> {
    let socket = core::SocketAddress {
        address: "127.0.0.1".to_owned(),
        port_specifier: Some(core::socket_address::PortSpecifier::PortValue(u32::from(port))),
        ..Default::default()
    };
    Some(core::Address { address: Some(core::address::Address::SocketAddress(socket)) })
}

fn ads() -> Option<core::ConfigSource> {
    let specifier = core::config_source::ConfigSourceSpecifier::Ads(core::AggregatedConfigSource::default());
    Some(core::ConfigSource {
        config_source_specifier: Some(specifier),
        resource_api_version: 2,
        ..Default::default()
    })
}

fn cluster(index: u16) -> cluster::Cluster {
    use cluster::cluster::{ClusterDiscoveryType, DiscoveryType, EdsClusterConfig};
    cluster::Cluster {
        name: cluster_name(index),
        cluster_discovery_type: Some(ClusterDiscoveryType::Type(DiscoveryType::Eds as i32)),
        eds_cluster_config: Some(EdsClusterConfig { eds_config: ads(), ..Default::default() }),
        connect_timeout: Some(Duration { seconds: 10, nanos: 0 }),
        ..Default::default()
    }
}

fn endpoints(index: u16, origin: u16) -> endpoint::ClusterLoadAssignment {
    let own = endpoint::Endpoint { address: address(origin), ..Default::default() };
    let host = endpoint::LbEndpoint {
        host_identifier: Some(endpoint::lb_endpoint::HostIdentifier::Endpoint(own)),
        ..Default::default()
    };
    endpoint::ClusterLoadAssignment {
        cluster_name: cluster_name(index),
        endpoints: vec![endpoint::LocalityLbEndpoints { lb_endpoints: vec![host], ..Default::default() }],
        ..Default::default()
    }
}

fn listener(port: u16) -> listener::Listener {
    use hcm::http_connection_manager::RouteSpecifier;
    let router = hcm::HttpFilter {
        name: "envoy.filters.http.router".to_owned(),
        config_type: Some(hcm::http_filter::ConfigType::TypedConfig(any(&Router::default()))),
        ..Default::default()
    };
    let rds = hcm::Rds { config_source: ads(), route_config_name: "80".to_owned() };
    let manager = hcm::HttpConnectionManager {
        stat_prefix: "main".to_owned(),
        route_specifier: Some(RouteSpecifier::Rds(rds)),
        http_filters: vec![router],
        ..Default::default()
    };
    let filter = listener::Filter {
        name: "envoy.filters.network.http_connection_manager".to_owned(),
        config_type: Some(listener::filter::ConfigType::TypedConfig(any(&manager))),
    };
    listener::Listener {
        name: "main".to_owned(),
        address: address(port),
        filter_chains: vec![listener::FilterChain { filters: vec![filter], ..Default::default() }],
        ..Default::default()
    }
}

/// The routes of all hosts, of which those of the last one change; the others are encoded once, as a control plane keeps them.
struct Routes {
    services: u16,
    encoded: Vec<u8>,
}

impl Routes {
    fn new(services: u16) -> Self {
        let hosts = (0..services - 1).map(|index| virtual_host(index, None));
        let message = route::RouteConfiguration {
            name: "80".to_owned(),
            virtual_hosts: hosts.collect(),
            ..Default::default()
        };
        Self { services, encoded: message.encode_to_vec() }
    }

    fn with(&self, mark: &str) -> Arc<ResourceSet> {
        let last = virtual_host(self.services - 1, Some(mark));
        let rest = route::RouteConfiguration { virtual_hosts: vec![last], ..Default::default() };
        // Encoded messages one after the other are one with the lists of both.
        let body = [&self.encoded[..], &rest.encode_to_vec()].concat().into();
        let resource = Resource { name: "80".into(), version: mark.into(), body };
        Arc::new([Arc::new(resource)].into_iter().collect())
    }
}

fn virtual_host(index: u16, mark: Option<&str>) -> route::VirtualHost {
    use route::route::Action;
    use route::route_match::PathSpecifier;
    let forward = || {
        Action::Route(route::RouteAction {
            cluster_specifier: Some(route::route_action::ClusterSpecifier::Cluster(cluster_name(index))),
            timeout: Some(Duration::default()),
            ..Default::default()
        })
    };
    let one = |path, action| route::Route {
        r#match: Some(route::RouteMatch { path_specifier: Some(path), ..Default::default() }),
        action: Some(action),
        ..Default::default()
    };
    let answer = mark.map(|mark| {
        let text = core::data_source::Specifier::InlineString(mark.to_owned());
        let body = core::DataSource { specifier: Some(text), ..Default::default() };
        Action::DirectResponse(route::DirectResponseAction {
            status: 200,
            body: Some(body),
            ..Default::default()
        })
    });
    let (name, [a, b]) = (host(index), index.to_be_bytes());
    route::VirtualHost {
        name: format!("{name}:80"),
        domains: vec![
            name,
            format!("s{index}"),
            format!("s{index}.default"),
            format!("s{index}.default.svc"),
            format!("10.96.{a}.{b}"),
        ],
        routes: vec![
            one(PathSpecifier::Path("/exact".to_owned()), forward()),
            one(PathSpecifier::Prefix("/mark".to_owned()), answer.unwrap_or_else(forward)),
            one(PathSpecifier::Prefix("/".to_owned()), forward()),
        ],
        ..Default::default()
    }
}
