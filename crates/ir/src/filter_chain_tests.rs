//! Tables of filter chain matches, after the comments of Envoy's `FilterChainMatch`.

use proptest::prelude::*;

use super::*;

fn index(chains: Vec<FilterChainMatch>) -> FilterChainIndex {
    FilterChainIndex::new(chains).unwrap()
}

fn view() -> ConnectionView<'static> {
    ConnectionView {
        destination: "10.1.2.3:80".parse().unwrap(),
        source: "192.168.1.9:5000".parse().unwrap(),
        direct_source: "192.168.1.9:5000".parse().unwrap(),
        server_name: "",
        transport_protocol: "raw_buffer",
        application_protocols: &[],
    }
}

fn nets(list: &[&str]) -> Vec<IpNet> {
    list.iter().map(|net| net.parse().unwrap()).collect()
}

fn texts(list: &[&str]) -> Vec<String> {
    list.iter().map(|text| (*text).to_owned()).collect()
}

fn any() -> FilterChainMatch {
    FilterChainMatch::default()
}

#[test]
fn no_chain_matches_nothing() {
    assert_eq!(index(vec![]).find(&view()), None);
    assert_eq!(index(vec![any()]).find(&view()), Some(0));
}

#[test]
fn destination_port_is_decided_first_and_for_good() {
    let port = FilterChainMatch { destination_port: Some(80), ..any() };
    let narrow = FilterChainMatch { prefix_ranges: nets(&["10.1.2.3/32"]), ..any() };
    assert_eq!(index(vec![narrow.clone(), port.clone()]).find(&view()), Some(1));
    let elsewhere = FilterChainMatch { prefix_ranges: nets(&["10.9.0.0/16"]), ..port };
    assert_eq!(index(vec![narrow, elsewhere, any()]).find(&view()), None, "no way back to port-less chains");
}

#[test]
fn the_longest_destination_prefix_wins() {
    let chain = |list: &[&str]| FilterChainMatch { prefix_ranges: nets(list), ..any() };
    let index = index(vec![
        any(),
        chain(&["10.0.0.0/8"]),
        chain(&["10.1.0.0/16", "172.16.0.0/12"]),
        chain(&["::/8"]),
    ]);
    let find =
        |address: &str| index.find(&ConnectionView { destination: address.parse().unwrap(), ..view() });
    assert_eq!(find("10.1.2.3:80"), Some(2));
    assert_eq!(find("10.2.2.3:80"), Some(1));
    assert_eq!(find("172.17.0.1:80"), Some(2));
    assert_eq!(find("1.1.1.1:80"), Some(0));
    assert_eq!(find("[2001::1]:80"), Some(0));
}

#[test]
fn server_names_match_exactly_then_by_the_longest_wildcard() {
    let chain = |list: &[&str]| FilterChainMatch { server_names: texts(list), ..any() };
    let index = index(vec![
        any(),
        chain(&["*.com"]),
        chain(&["*.example.com"]),
        chain(&["www.example.com"]),
        chain(&["example.com"]),
    ]);
    let find = |name: &'static str| index.find(&ConnectionView { server_name: name, ..view() });
    assert_eq!(find("www.example.com"), Some(3));
    assert_eq!(find("a.b.example.com"), Some(2));
    assert_eq!(find("example.com"), Some(4));
    assert_eq!(find("other.com"), Some(1));
    assert_eq!(find("example.org"), Some(0));
    assert_eq!(find(""), Some(0));
}

#[test]
fn transport_and_application_protocols() {
    let tls = FilterChainMatch { transport_protocol: "tls".into(), ..any() };
    let alpn = FilterChainMatch { application_protocols: texts(&["h2", "http/1.1"]), ..any() };
    let istio = FilterChainMatch { application_protocols: texts(&["istio"]), ..tls.clone() };
    let index = index(vec![any(), tls, alpn, istio]);
    let find = |transport: &'static str, protocols: &'static [&'static str]| {
        let view =
            ConnectionView { transport_protocol: transport, application_protocols: protocols, ..view() };
        index.find(&view)
    };
    assert_eq!(find("raw_buffer", &[]), Some(0));
    assert_eq!(find("raw_buffer", &["http/1.1"]), Some(2));
    assert_eq!(find("tls", &["istio", "h2"]), Some(3));
    assert_eq!(
        find("tls", &["h2"]),
        Some(1),
        "the transport protocol is decided before the application protocol"
    );
}

#[test]
fn the_clients_order_of_protocols_decides() {
    let chain = |list: &[&str]| FilterChainMatch { application_protocols: texts(list), ..any() };
    let index = index(vec![chain(&["a"]), chain(&["b"])]);
    let find = |protocols| index.find(&ConnectionView { application_protocols: protocols, ..view() });
    assert_eq!(find(&["b", "a"]), Some(1));
    assert_eq!(find(&["a", "b"]), Some(0));
    assert_eq!(find(&["c"]), None);
}

#[test]
fn sources_are_decided_by_type_prefix_and_port() {
    let local = FilterChainMatch { source_type: SourceType::SameIpOrLoopback, ..any() };
    let external = FilterChainMatch { source_type: SourceType::External, ..any() };
    let near = FilterChainMatch { source_prefix_ranges: nets(&["192.168.0.0/16"]), ..external.clone() };
    let port = FilterChainMatch { source_ports: vec![5000], ..near.clone() };
    let index = index(vec![any(), local, external, near, port]);
    let find = |source: &str| index.find(&ConnectionView { source: source.parse().unwrap(), ..view() });
    assert_eq!(find("127.0.0.1:1"), Some(1));
    assert_eq!(find("10.1.2.3:1"), Some(1), "the same address as the destination's");
    assert_eq!(find("8.8.8.8:1"), Some(2));
    assert_eq!(find("192.168.1.9:1"), Some(3));
    assert_eq!(find("192.168.1.9:5000"), Some(4));
}

#[test]
fn the_direct_source_is_decided_before_the_source() {
    let direct = FilterChainMatch { direct_source_prefix_ranges: nets(&["192.168.0.0/16"]), ..any() };
    let source = FilterChainMatch { source_prefix_ranges: nets(&["192.168.1.9/32"]), ..any() };
    assert_eq!(index(vec![source, direct]).find(&view()), Some(1));
}

#[test]
fn chains_that_take_the_same_are_refused() {
    let a = FilterChainMatch { server_names: texts(&["a", "b"]), ..any() };
    let b = FilterChainMatch { server_names: texts(&["b", "c"]), ..any() };
    assert_eq!(FilterChainIndex::new(vec![any(), a, b]).unwrap_err(), (1, 2));
    assert_eq!(FilterChainIndex::new(vec![any(), any()]).unwrap_err(), (0, 1));
}

/// Whether a chain has a key.
type Fits = Box<dyn Fn(&FilterChainMatch) -> bool>;

/// Envoy's algorithm as it is written there: nested maps, looked up from the most specific key to the least, without a way back.
fn reference(chains: &[FilterChainMatch], connection: &ConnectionView<'_>) -> Option<usize> {
    let mut left: Vec<usize> = (0..chains.len()).collect();
    let port = Some(connection.destination.port());
    let specific = left.iter().any(|i| chains[*i].destination_port == port);
    left.retain(|i| chains[*i].destination_port == if specific { port } else { None });

    let mut step = |keys: Vec<Fits>| {
        for key in keys {
            let kept: Vec<usize> = left.iter().copied().filter(|i| key(&chains[*i])).collect();
            if !kept.is_empty() {
                left = kept;
                return Some(());
            }
        }
        None
    };
    let prefixes = |address: IpAddr, of: fn(&FilterChainMatch) -> &Vec<IpNet>| {
        let mut keys: Vec<Fits> = Vec::new();
        for length in (0..=32u8).rev() {
            keys.push(Box::new(move |chain| {
                (length == 0 && of(chain).is_empty())
                    || of(chain).iter().any(|net| net.prefix_len() == length && net.contains(&address))
            }));
        }
        keys
    };
    step(prefixes(connection.destination.ip(), |chain| &chain.prefix_ranges))?;

    let mut keys: Vec<Fits> = Vec::new();
    let mut names = vec![connection.server_name.to_owned()];
    for (at, _) in connection.server_name.match_indices('.').filter(|(at, _)| *at > 0) {
        names.push(format!("*{}", &connection.server_name[at..]));
    }
    for name in names.into_iter().filter(|name| !name.is_empty()) {
        keys.push(Box::new(move |chain| chain.server_names.contains(&name)));
    }
    keys.push(Box::new(|chain| chain.server_names.is_empty()));
    step(keys)?;

    let protocol = connection.transport_protocol.to_owned();
    step(vec![
        Box::new(move |chain| chain.transport_protocol == protocol),
        Box::new(|chain| chain.transport_protocol.is_empty()),
    ])?;
    step(prefixes(connection.source.ip(), |chain| &chain.source_prefix_ranges))?;
    left.first().copied()
}

prop_compose! {
    fn chains()(list in prop::collection::vec(
        (
            prop::option::of(80u16..82),
            prop::sample::subsequence(vec!["10.0.0.0/8", "10.1.0.0/16", "10.1.2.3/32", "0.0.0.0/0"], 0..3),
            prop::sample::subsequence(vec!["a.b.c", "*.b.c", "*.c", "b.c"], 0..3),
            prop::sample::select(vec!["", "tls", "raw_buffer"]),
            prop::sample::subsequence(vec!["192.168.0.0/16", "192.168.1.0/24"], 0..2),
        ),
        0..8,
    )) -> Vec<FilterChainMatch> {
        list.into_iter()
            .map(|(destination_port, prefixes, names, transport, sources)| FilterChainMatch {
                destination_port,
                prefix_ranges: nets(&prefixes),
                server_names: texts(&names),
                transport_protocol: transport.to_owned(),
                source_prefix_ranges: nets(&sources),
                ..any()
            })
            .collect()
    }
}

proptest! {
    #[test]
    fn the_index_agrees_with_the_reference(
        chains in chains(),
        destination in prop::sample::select(vec!["10.1.2.3:80", "10.1.9.9:81", "10.9.9.9:80", "11.0.0.1:9"]),
        source in prop::sample::select(vec!["192.168.1.1:1", "192.168.2.2:2", "8.8.8.8:3"]),
        server_name in prop::sample::select(vec!["", "a.b.c", "x.b.c", "b.c", "x.y.c", "c", "d"]),
        transport_protocol in prop::sample::select(vec!["tls", "raw_buffer"]),
    ) {
        let connection = ConnectionView {
            destination: destination.parse().unwrap(),
            source: source.parse().unwrap(),
            direct_source: source.parse().unwrap(),
            server_name,
            transport_protocol,
            application_protocols: &[],
        };
        // Sets with overlaps are refused, so there is nothing to compare.
        if let Ok(index) = FilterChainIndex::new(chains.clone()) {
            prop_assert_eq!(index.find(&connection), reference(&chains, &connection));
        }
    }
}
