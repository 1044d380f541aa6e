//! The indexed evaluator against one that looks at every policy in turn.

use std::net::{IpAddr, SocketAddr};

use http::{HeaderMap, HeaderName, HeaderValue};
use proptest::prelude::*;

use crate::{
    AccessCondition, AccessView, AnyOf, HeaderKey, HeaderMatcher, HeaderValueMatcher, PeerView, Rbac,
    RbacAction, RbacPolicy, RequestView, StringMatcher, Text,
};

/// A condition without indexes, from which either evaluator is made.
#[derive(Clone, Debug)]
enum Plan {
    All(Vec<Plan>),
    Any(Vec<Plan>),
    Not(Box<Plan>),
    Leaf(AccessCondition),
}

impl Plan {
    fn build(&self, from: usize) -> AccessCondition {
        let list = |list: &[Plan]| list.iter().map(|plan| plan.build(from)).collect::<Vec<_>>();
        match self {
            Self::All(plans) => AccessCondition::All(list(plans)),
            Self::Any(plans) => AccessCondition::Any(AnyOf::with_index(list(plans), from)),
            Self::Not(plan) => AccessCondition::Not(Box::new(plan.build(from))),
            Self::Leaf(condition) => condition.clone(),
        }
    }
}

const WORDS: [&str; 6] = ["/", "/a", "/a/b", "/b", "GET", "spiffe://a"];

fn string() -> impl Strategy<Value = StringMatcher> {
    (0..WORDS.len(), 0..4, any::<bool>()).prop_map(|(word, kind, ignore_case)| {
        let text = Text::new(WORDS[word].to_owned(), ignore_case);
        match kind {
            0 => StringMatcher::Exact(text),
            1 => StringMatcher::Prefix(text),
            2 => StringMatcher::Suffix(text),
            _ => StringMatcher::Contains(text),
        }
    })
}

fn leaf() -> impl Strategy<Value = AccessCondition> {
    let key = prop_oneof![
        Just(HeaderKey::Method),
        Just(HeaderKey::Authority),
        Just(HeaderKey::Named(HeaderName::from_static("x-a"))),
    ];
    let header = (key, string(), any::<bool>(), any::<bool>()).prop_map(|(key, value, invert, empty)| {
        AccessCondition::Header(HeaderMatcher {
            key,
            invert,
            treat_missing_as_empty: empty,
            value: HeaderValueMatcher::String(value),
        })
    });
    let net = (0..3_u8, 0..=32_u8).prop_map(|(last, length)| {
        ipnet::IpNet::new(IpAddr::from([10, 0, 0, last]), length).unwrap().trunc()
    });
    prop_oneof![
        4 => string().prop_map(AccessCondition::Path),
        3 => header,
        2 => net.clone().prop_map(AccessCondition::Source),
        1 => net.clone().prop_map(AccessCondition::Client),
        1 => net.prop_map(AccessCondition::Destination),
        2 => proptest::option::of(string()).prop_map(AccessCondition::Authenticated),
        1 => string().prop_map(AccessCondition::ServerName),
        1 => (79..82_u32).prop_map(|port| AccessCondition::DestinationPorts { start: port, end: port + 1 }),
        1 => Just(AccessCondition::Always),
    ]
}

fn plan() -> impl Strategy<Value = Plan> {
    leaf().prop_map(Plan::Leaf).prop_recursive(3, 24, 4, |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 1..4).prop_map(Plan::All),
            proptest::collection::vec(inner.clone(), 1..4).prop_map(Plan::Any),
            inner.prop_map(|plan| Plan::Not(Box::new(plan))),
        ]
    })
}

proptest! {
    #[test]
    fn indexes_change_no_decision(
        plans in proptest::collection::vec((plan(), plan()), 0..12),
        words in [0..WORDS.len(), 0..WORDS.len(), 0..WORDS.len(), 0..WORDS.len()],
        ends in (0..3_u8, 0..3_u8, 79..82_u16),
        tls in any::<bool>(),
        twice in any::<bool>(),
        action in prop_oneof![Just(RbacAction::Allow), Just(RbacAction::Deny), Just(RbacAction::Log)],
    ) {
        let build = |from: usize| {
            let policy = |(index, (permission, principal)): (usize, &(Plan, Plan))| RbacPolicy {
                name: format!("p{index:02}").into(),
                permissions: vec![permission.build(from)],
                principals: vec![principal.build(from)],
            };
            Rbac::with_index(action, plans.iter().enumerate().map(policy).collect(), from)
        };
        let mut headers = HeaderMap::new();
        for _ in 0..=usize::from(twice) {
            headers.append("x-a", HeaderValue::from_static(WORDS[words[0]]));
        }
        let uris = [WORDS[words[1]].to_owned()];
        let path = format!("{}?{}", WORDS[words[2]], WORDS[words[3]]);
        let view = AccessView {
            request: Some(RequestView { method: "GET", scheme: "http", authority: "/a", path: &path, headers: &headers, metadata: None }),
            destination: (ends.0 > 0).then_some(SocketAddr::from(([10, 0, 0, ends.0], ends.2))),
            source: (ends.1 > 0).then_some(IpAddr::from([10, 0, 0, ends.1])),
            direct_source: Some(IpAddr::from([10, 0, 0, ends.0])),
            client: Some(IpAddr::from([10, 0, 0, ends.0])),
            server_name: WORDS[words[1]],
            peer: tls.then_some(PeerView { uris: &uris, dns: &[], subject: "" }),
        };
        let (indexed, plain) = (build(0), build(usize::MAX));
        prop_assert_eq!(indexed.judge(&view), plain.judge(&view));
        let connection = AccessView { request: None, ..view };
        prop_assert_eq!(indexed.judge(&connection), plain.judge(&connection));
        for view in [view, connection] {
            let explained = indexed.explain(&view);
            let first = explained.iter().find(|one| one.matches).map(|one| one.name.as_str());
            prop_assert_eq!(first, indexed.judge(&view).policy);
            prop_assert!(explained.iter().all(|one| one.matches == one.reason.is_empty()), "{:?}", explained);
        }
    }
}

#[test]
fn the_first_name_decides_and_denials_name_it() {
    let policy = |name: &str, path: &str| RbacPolicy {
        name: name.into(),
        permissions: vec![AccessCondition::Path(StringMatcher::Prefix(Text::new(path.to_owned(), false)))],
        principals: vec![AccessCondition::Always],
    };
    let headers = HeaderMap::new();
    let view = AccessView {
        request: Some(RequestView {
            method: "GET",
            scheme: "http",
            authority: "a",
            path: "/a/b?c",
            headers: &headers,
            metadata: None,
        }),
        destination: Some(SocketAddr::from(([10, 0, 0, 1], 80))),
        source: Some(IpAddr::from([10, 0, 0, 2])),
        direct_source: Some(IpAddr::from([10, 0, 0, 2])),
        client: Some(IpAddr::from([10, 0, 0, 2])),
        server_name: "",
        peer: None,
    };
    let denies = Rbac::new(RbacAction::Deny, vec![policy("z", "/"), policy("a b", "/a"), policy("0", "/x")]);
    let verdict = denies.judge(&view);
    assert!(!verdict.allowed);
    assert_eq!(verdict.denial(), "rbac_access_denied_matched_policy[a_b]");
    let allows = Rbac::new(RbacAction::Allow, vec![policy("0", "/x")]);
    assert_eq!(allows.judge(&view).denial(), "rbac_access_denied_matched_policy[none]");
    assert!(!Rbac::new(RbacAction::Allow, vec![]).judge(&view).allowed);
    assert!(Rbac::new(RbacAction::Deny, vec![]).judge(&view).allowed);
}

/// What random policies seldom have: prefixes and networks of several lengths in any order, both families, names of the second kind.
#[test]
fn indexes_find_every_length_and_family() {
    let prefix = |text: &str| AccessCondition::Path(StringMatcher::Prefix(Text::new(text.to_owned(), false)));
    let from = |net: &str| AccessCondition::Source(net.parse().unwrap());
    let header = |value: &str, empty: bool| {
        AccessCondition::Header(HeaderMatcher {
            key: HeaderKey::Named(HeaderName::from_static("x-a")),
            invert: false,
            treat_missing_as_empty: empty,
            value: HeaderValueMatcher::String(StringMatcher::Exact(Text::new(value.to_owned(), false))),
        })
    };
    let name = |text: &str| {
        AccessCondition::Authenticated(Some(StringMatcher::Exact(Text::new(text.to_owned(), false))))
    };
    let conditions = vec![
        prefix("/long/long/long"),
        prefix("/x"),
        prefix("/lo"),
        from("2001:db8::/64"),
        from("2001:db8:1::/32"),
        from("10.1.1.0/24"),
        from("10.0.0.0/8"),
        from("fd00::1/128"),
        header("", true),
        header("b", false),
        name("spiffe://a"),
        name("b.example"),
    ];
    let policy = |(index, condition): (usize, &AccessCondition)| RbacPolicy {
        name: format!("p{index:02}").into(),
        permissions: vec![AccessCondition::Always],
        principals: vec![condition.clone()],
    };
    let build =
        |from| Rbac::with_index(RbacAction::Deny, conditions.iter().enumerate().map(policy).collect(), from);
    let (indexed, plain) = (build(0), build(usize::MAX));
    let mut set = HeaderMap::new();
    set.insert("x-a", HeaderValue::from_static("b"));
    let mut other = HeaderMap::new();
    other.insert("x-a", HeaderValue::from_static("c"));
    let uris = ["spiffe://a".to_owned()];
    let names = ["b.example".to_owned()];
    for (path, source, headers, peer, expected) in [
        ("/long/long/longer", "1.1.1.1", &other, None, Some("p00")),
        ("/long", "1.1.1.1", &other, None, Some("p02")),
        ("/x", "1.1.1.1", &other, None, Some("p01")),
        ("/", "2001:db8::7", &other, None, Some("p03")),
        ("/", "2001:db8:1::7", &other, None, Some("p04")),
        ("/", "10.1.1.7", &other, None, Some("p05")),
        ("/", "10.1.2.7", &other, None, Some("p06")),
        ("/", "fd00::1", &other, None, Some("p07")),
        ("/", "fd00::2", &other, None, None),
        ("/", "1.1.1.1", &HeaderMap::new(), None, Some("p08")),
        ("/", "1.1.1.1", &set, None, Some("p09")),
        ("/", "1.1.1.1", &other, Some((&uris[..], &[][..])), Some("p10")),
        ("/", "1.1.1.1", &other, Some((&[][..], &names[..])), Some("p11")),
        ("/", "1.1.1.1", &other, None, None),
    ] {
        let view = AccessView {
            request: Some(RequestView {
                method: "GET",
                scheme: "http",
                authority: "a",
                path,
                headers,
                metadata: None,
            }),
            destination: None,
            source: source.parse().ok(),
            direct_source: None,
            client: None,
            server_name: "",
            peer: peer.map(|(uris, dns)| PeerView { uris, dns, subject: "" }),
        };
        assert_eq!(plain.judge(&view).policy, expected, "{path} {source}");
        assert_eq!(indexed.judge(&view).policy, expected, "indexed: {path} {source}");
    }
}
