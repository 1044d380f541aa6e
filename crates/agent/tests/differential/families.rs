//! Endpoints with several addresses, of both families: which is dialled when (RFC 8305), and what names give of each family.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::duo::{Duo, KINDS, cluster, route, say};
use crate::health;
use crate::names::{Names, Says};
use crate::proxies::{self, free_ports, merge};

const V6: IpAddr = IpAddr::V6(Ipv6Addr::LOCALHOST);
const V4: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

/// Answers every request with a word, or what it says first is that.
async fn serve(address: SocketAddr, word: &'static str) -> SocketAddr {
    answer(TcpListener::bind(address).await.unwrap(), word)
}

/// Answers on one port with a word for each family. A port that one of them gives may be taken in the other.
async fn serve_both(four: &'static str, six: &'static str) -> u16 {
    loop {
        let v4 = TcpListener::bind((V4, 0)).await.unwrap();
        let port = v4.local_addr().unwrap().port();
        if let Ok(v6) = TcpListener::bind((V6, port)).await {
            answer(v6, six);
            answer(v4, four);
            return port;
        }
    }
}

fn answer(listener: TcpListener, word: &'static str) -> SocketAddr {
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(say(stream, word));
        }
    });
    address
}

/// An address at which connections neither succeed nor fail: nobody accepts, and the queue is full.
struct Silent {
    address: SocketAddr,
    _socket: socket2::Socket,
    _waiting: Vec<socket2::Socket>,
}

impl Silent {
    fn at(ip: IpAddr) -> Self {
        let new = || {
            let socket = socket2::Socket::new(
                socket2::Domain::for_address((ip, 0).into()),
                socket2::Type::STREAM,
                None,
            );
            socket.unwrap()
        };
        let socket = new();
        socket.bind(&SocketAddr::new(ip, 0).into()).unwrap();
        socket.listen(0).unwrap();
        let address = socket.local_addr().unwrap().as_socket().unwrap();
        let fill = |_| {
            let client = new();
            client.set_nonblocking(true).unwrap();
            let _ = client.connect(&address.into());
            client
        };
        Self { address, _waiting: (0..4).map(fill).collect(), _socket: socket }
    }
}

fn at(address: SocketAddr) -> Value {
    json!({ "socket_address": { "address": address.ip().to_string(), "port_value": address.port() } })
}

fn endpoint(addresses: &[SocketAddr]) -> Value {
    let more: Vec<Value> = addresses[1..].iter().map(|more| json!({ "address": at(*more) })).collect();
    json!({ "endpoint": { "address": at(addresses[0]), "additional_addresses": more } })
}

fn telling(name: &str) -> Value {
    let header = |key: &str, value: &str| json!({ "header": { "key": key, "value": value } });
    let mut route = route(name, json!({}));
    let more = json!({ "response_headers_to_add": [
        header("x-host", "%UPSTREAM_HOST%"), header("x-remote", "%UPSTREAM_REMOTE_ADDRESS%"),
        header("x-remote-port", "%UPSTREAM_REMOTE_PORT%"),
    ] });
    merge(&mut route, more);
    route
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn addresses_of_an_endpoint_are_tried_in_turn() {
    let [v4, v6] = [serve((V4, 0).into(), "four").await, serve((V6, 0).into(), "six").await];
    let dead: Vec<SocketAddr> = free_ports(2).into_iter().map(|port| (V4, port).into()).collect();
    let dead6 = SocketAddr::new(V6, dead[0].port());
    let silent = [Silent::at(V4), Silent::at(V6)];
    let cases: [(&str, Vec<SocketAddr>); 9] = [
        ("first", vec![v4, v6]),
        ("first6", vec![v6, v4]),
        ("second", vec![dead[0], v6]),
        ("third", vec![dead[0], dead6, v4]),
        ("alternate", vec![dead[0], dead[1], v4, v6]),
        ("none", vec![dead[0], dead6]),
        ("slow", vec![silent[1].address, v4]),
        ("silent", vec![silent[0].address, silent[1].address]),
        ("checked", vec![dead[1], v6]),
    ];
    let clusters: Vec<Value> = cases
        .iter()
        .map(|(name, addresses)| {
            let checked = match *name {
                "checked" => health::check(json!({ "tcp_health_check": {} })),
                _ => json!({}),
            };
            cluster(name, vec![endpoint(addresses)], checked)
        })
        .chain([cluster("bytes", vec![endpoint(&[dead[0], v6])], json!({}))])
        .collect();
    let routes: Vec<Value> = cases.iter().map(|(name, _)| telling(name)).collect();
    let format = "tcp host=%UPSTREAM_HOST% remote=%UPSTREAM_REMOTE_ADDRESS% flags=%RESPONSE_FLAGS%\n";
    let tcp = [("bytes", "bytes"), ("nobody", "none")]
        .map(|(listener, cluster)| (listener, json!({ "cluster": cluster, "log_format": format })));
    let duo = Duo::start(json!(routes), &clusters, &tcp).await;
    for (name, _) in &cases {
        let began = Instant::now();
        let [envoy, lateen] = duo.both(&format!("/{name}"), &[]).await;
        if *name == "silent" {
            assert!(
                began.elapsed() >= Duration::from_secs(1),
                "the time to connect is all addresses' together"
            );
        }
        assert_eq!((envoy.status, &envoy.body), (lateen.status, &lateen.body), "{name}");
        for header in ["x-host", "x-remote", "x-remote-port"] {
            assert_eq!(envoy.header(header), lateen.header(header), "{name} {header}");
        }
        let prefix = format!("cluster.{name}.upstream_cx_");
        let timing = ["length_ms", "connect_ms", "destroy", "bytes", "active", "http1_total"];
        let [envoy, lateen] = [0, 1].map(|kind| duo.stats(kind, &prefix, &timing));
        let (envoy, lateen) = tokio::join!(envoy, lateen);
        assert_eq!(envoy, lateen, "{name}");
    }
    let second = duo.get(1, "/second", &[]).await;
    assert_eq!((second.status, &*second.body), (200, "six"));
    assert_eq!(second.header("x-host"), Some(&*dead[0].to_string()));
    assert_eq!(second.header("x-remote"), Some(&*v6.to_string()));
    // Families alternate: the fourth address is the second that is tried.
    assert_eq!(duo.get(1, "/alternate", &[]).await.body, "six");
    for kind in [0, 1] {
        // This one may join an attempt of another's that is already under way, and fail sooner.
        assert_eq!(duo.get(kind, "/silent", &[]).await.status, 503, "{}", KINDS[kind]);
        // A check asks one address only.
        duo.reaches(kind, "cluster.checked.membership_healthy", 0).await;
        let mut stream = TcpStream::connect(duo.address(kind, "bytes")).await.unwrap();
        stream.write_all(b"x").await.unwrap();
        let mut answer = [0; 12];
        stream.read_exact(&mut answer).await.unwrap();
        assert_eq!(&answer, b"HTTP/1.1 200", "{}", KINDS[kind]);
        drop(stream);
        let mut nobody = TcpStream::connect(duo.address(kind, "nobody")).await.unwrap();
        assert_eq!(nobody.read(&mut answer).await.unwrap_or(0), 0, "{}", KINDS[kind]);
    }
    let lines = async |kind| -> BTreeSet<String> {
        duo.log(kind).await.lines().filter(|line| line.starts_with("tcp ")).map(str::to_owned).collect()
    };
    let (envoy, lateen) = tokio::join!(lines(0), lines(1));
    assert_eq!(envoy, lateen);
    assert!(lateen.contains(&format!("tcp host={} remote={v6} flags=-", dead[0])), "{lateen:?}");
}

/// A server that is slow to answer takes as long as a dead one until another address has answered.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_next_address_is_tried_after_300_ms() {
    let v4 = serve((V4, 0).into(), "four").await;
    let silent = Silent::at(V6);
    let clusters = [cluster("slow", vec![endpoint(&[silent.address, v4])], json!({}))];
    let duo = Duo::start(json!([telling("slow")]), &clusters, &[]).await;
    for (kind, engine) in KINDS.iter().enumerate() {
        let began = Instant::now();
        let reply = duo.get(kind, "/slow", &[]).await;
        assert_eq!(reply.body, "four", "{engine}");
        let took = began.elapsed();
        assert!(
            took >= Duration::from_millis(290) && took < Duration::from_millis(950),
            "{engine}: {took:?}"
        );
    }
}

/// The addresses a cluster's hosts have.
async fn hosts(duo: &Duo, kind: usize, name: &str) -> BTreeSet<String> {
    let page = duo.page(kind, "/clusters").await;
    let lines = page.lines().filter_map(|line| line.strip_prefix(name)?.strip_prefix("::"));
    lines.filter_map(|line| Some(line.split_once("::cx_total::")?.0.to_owned())).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn names_have_addresses_of_the_families_asked_for() {
    let port = serve_both("four", "six").await;
    let names = Names::start().await;
    names.set("both.test", Says::Families(vec![Ipv4Addr::LOCALHOST], vec![Ipv6Addr::LOCALHOST], 60));
    names.set("four.test", Says::Families(vec![Ipv4Addr::LOCALHOST], vec![], 60));
    names.set("six.test", Says::Families(vec![], vec![Ipv6Addr::LOCALHOST], 60));
    // Nobody listens at its address of IPv4.
    let nobody = Ipv4Addr::new(127, 0, 0, 2);
    names.set("half.test", Says::Families(vec![nobody], vec![Ipv6Addr::LOCALHOST], 60));
    let resolver = json!({ "name": "envoy.network.dns_resolver.cares", "typed_config": {
        "@type": "type.googleapis.com/envoy.extensions.network.dns_resolver.cares.v3.CaresDnsResolverConfig",
        "resolvers": [at(names.address)], "dns_resolver_options": { "no_default_search_domain": true },
    } });
    let mut clusters = Vec::new();
    let mut known = Vec::new();
    for kind in ["STRICT_DNS", "LOGICAL_DNS"] {
        for family in ["AUTO", "V4_ONLY", "V6_ONLY", "V4_PREFERRED", "ALL"] {
            for name in ["both", "four", "six", "half"] {
                let cluster_name = format!("{kind}-{family}-{name}").to_lowercase();
                let host = json!({ "endpoint": { "address": { "socket_address": { "address": format!("{name}.test"), "port_value": port } } } });
                let more = json!({ "type": kind, "dns_lookup_family": family, "typed_dns_resolver_config": resolver });
                clusters.push(cluster(&cluster_name, vec![host], more));
                known.push(cluster_name);
            }
        }
    }
    let routes: Vec<Value> = known.iter().map(|name| telling(name)).collect();
    let duo = Duo::start(json!(routes), &clusters, &[]).await;
    let mut seen = [String::new(), String::new()];
    for (kind, seen) in seen.iter_mut().enumerate() {
        for name in &known {
            let hosts = hosts(&duo, kind, name).await;
            // Which of two hosts is first asked is chance.
            let reply = duo.get(kind, &format!("/{name}"), &[]).await;
            let answer = match hosts.len() {
                2 => "one of two".to_owned(),
                _ => format!("{} {} {:?}", reply.status, reply.body, reply.header("x-remote")),
            };
            seen.push_str(&format!("{name}: {hosts:?} {answer}\n"));
        }
    }
    let [envoy, lateen] = seen;
    assert_eq!(envoy, lateen);
    let half = format!("logical_dns-all-half: {{\"127.0.0.2:{0}\"}} 200 six Some(\"[::1]:{0}\")", port);
    assert!(lateen.contains(&half), "{lateen}");
}

/// Which of IPv4 and IPv6 a proxy's port takes.
async fn taken(port: u16) -> [bool; 2] {
    let mut taken = [false; 2];
    for (ip, taken) in [V4, V6].into_iter().zip(&mut taken) {
        *taken = TcpStream::connect((ip, port)).await.is_ok();
    }
    taken
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn listeners_take_the_families_they_name() {
    let folder = tempfile::tempdir().unwrap();
    let back = serve((V4, 0).into(), "four").await;
    let names = ["both", "six", "compat"];
    let any = |ip: &str, port: u16| json!({ "socket_address": { "address": ip, "port_value": port } });
    let compat = |port| {
        let mut address = any("::", port);
        address["socket_address"]["ipv4_compat"] = json!(true);
        address
    };
    let proxies = proxies::both(folder.path(), &names, |ports, _| {
        let listener = |name: &str, address: Value, more: Value| {
            json!({ "name": name, "address": address, "additional_addresses": more, "filter_chains": [{ "filters": [{
                "name": "envoy.filters.network.tcp_proxy", "typed_config": {
                    "@type": "type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy",
                    "stat_prefix": name, "cluster": "back",
                },
            }] }] })
        };
        let port = |name: &str| ports[name];
        let listeners = vec![
            listener("both", any("0.0.0.0", port("both")), json!([{ "address": any("::", port("both")) }])),
            listener("six", any("::", port("six")), json!([])),
            listener("compat", compat(port("compat")), json!([])),
        ];
        [listeners, vec![cluster("back", vec![endpoint(&[back])], json!({}))]]
    })
    .await;
    let expected = [("both", [true, true]), ("six", [false, true]), ("compat", [true, true])];
    for (kind, proxy) in proxies.iter().enumerate() {
        for (name, expected) in expected {
            assert_eq!(taken(proxy.ports[name]).await, expected, "{} {name}", KINDS[kind]);
        }
    }
    let mut pages = Vec::new();
    for proxy in &proxies {
        let mut page = proxy.admin("/listeners").await.unwrap();
        for name in names {
            page = page.replace(&proxy.ports[name].to_string(), "PORT");
        }
        let mut lines: Vec<String> =
            page.lines().filter(|line| line.contains("::")).map(str::to_owned).collect();
        lines.sort();
        pages.push(lines);
    }
    assert_eq!(pages[0], pages[1]);
}
