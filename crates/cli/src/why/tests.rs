use std::convert::Infallible;
use std::net::SocketAddr;

use lateen_ir::Question;

use super::*;
use crate::proxy_config::dump::Dump;

/// The course's web-frontend, a stock Envoy's dump, as if its configuration came from a control plane instead of files.
fn web() -> Proxy {
    let mut dump = serde_json::from_slice(include_bytes!("../../tests/dumps/config_dump.json")).unwrap();
    from_control_plane(&mut dump);
    Proxy::new(Dump::parse(dump.to_string().as_bytes()).unwrap()).unwrap()
}

fn from_control_plane(value: &mut serde_json::Value) {
    match value {
        serde_json::Value::Object(members) => {
            if members.remove("path_config_source").is_some() {
                members.insert("ads".to_owned(), serde_json::json!({}));
            }
            members.values_mut().for_each(from_control_plane);
        }
        serde_json::Value::Array(list) => list.iter_mut().for_each(from_control_plane),
        _ => {}
    }
}

fn start(url: &str) -> Start {
    let target = Target::parse(url).unwrap();
    let asked = request("GET", &target.authority(), target.path.as_deref().unwrap_or("/"), &[], &[]).unwrap();
    Start {
        question: url.to_owned(),
        proxy: Some(("web-frontend.default".to_owned(), Box::new(web()))),
        entry: Some("virtualOutbound"),
        asked: Question {
            destination: SocketAddr::from(([10, 96, 0, 20], target.port())),
            source: SocketAddr::from(([10, 244, 1, 7], 4000)),
            tls: None,
            request: (target.scheme == Scheme::Http).then_some(asked),
        },
    }
}

async fn story(url: &str) -> Story {
    let at = async |address: SocketAddr, _: &str| {
        Ok::<_, Infallible>(match address.to_string().as_str() {
            "10.244.1.122:3000" => Place::Bare("customers-v1.default".to_owned()),
            _ => Place::Unknown,
        })
    };
    let Ok(story) = tell(start(url), at).await;
    story
}

#[test]
fn a_dump_is_read_as_a_whole() {
    let proxy = web();
    assert_eq!(proxy.unread, Vec::<String>::new());
    assert_eq!(proxy.view.listeners.len(), 4);
    assert!(
        !proxy.is_gateway && proxy.hosts().contains(&"customers.default".to_owned()),
        "{:?}",
        proxy.hosts()
    );
}

#[tokio::test]
async fn the_courses_request_goes_to_its_subset() {
    let story = story("http://customers/").await;
    assert_eq!(story.answer.passes, Passes::Yes, "{story:#?}");
    let [hop] = story.hops.as_slice() else { panic!("{story:#?}") };
    assert_eq!(hop.virtual_service, "customers.default");
    let text = text::print(&story);
    insta::assert_snapshot!(text);
}

#[tokio::test]
async fn what_leads_nowhere_is_told() {
    let bytes = story("tcp://echo:9001").await;
    assert_eq!(bytes.answer.passes, Passes::Yes, "unknown destinations are passed through: {bytes:#?}");
    let mut lost = start("http://customers/");
    if let Some((_, proxy)) = &mut lost.proxy {
        proxy.view.endpoints.clear();
    }
    let Ok(lost) = tell(lost, async |_, _: &str| Ok::<_, Infallible>(Place::Unknown)).await;
    assert_eq!((lost.answer.passes, lost.answer.status), (Passes::No, Some(503)));
    assert_eq!((lost.answer.flags.as_str(), lost.answer.details.as_str()), ("UH", "no_healthy_upstream"));
    assert!(
        lost.answer.next[0].starts_with("lateen pc endpoints web-frontend.default"),
        "{:?}",
        lost.answer.next
    );
}

/// The endpoint is a gateway of another network, which is not of this cluster.
#[tokio::test]
async fn gateways_between_networks_are_told() {
    let story = async |workloads: &[&str]| {
        let beyond = Beyond {
            network: "far".to_owned(),
            workloads: workloads.iter().map(|name| (*name).to_owned()).collect(),
        };
        let at = async |_, cluster: &str| {
            assert_eq!(cluster, "outbound|80|v1|customers.default.svc.cluster.local");
            Ok::<_, Infallible>(Place::Gateway(beyond.clone(), None))
        };
        let Ok(story) = tell(start("http://customers/"), at).await;
        story
    };
    let told = story(&["a.far", "b.far"]).await;
    assert_eq!((told.answer.passes, told.hops.len()), (Passes::Depends, 1));
    assert_eq!(told.hops[0].networks["10.244.1.122:3000"].network, "far");
    let text = text::print(&told);
    for part in ["the gateway of network far; behind it: a.far, b.far\n", "behind it stand a.far, b.far, and"]
    {
        assert!(text.contains(part), "{text}");
    }
    let text = text::print(&story(&[]).await);
    assert!(text.contains("behind it: nobody that is known\n"), "{text}");
}

#[tokio::test]
async fn unknown_hosts_are_told_with_what_may_be_meant() {
    let mut story = story("http://custmers/").await;
    story.answer.of_unknown("custmers", &web().hosts());
    assert_eq!(story.answer.passes, Passes::Depends);
    assert!(story.answer.reason.contains("is called custmers"), "{:?}", story.answer);
    assert_eq!(story.answer.next, ["customers, if that was meant"]);
    story.answer.next.clear();
    story.answer.of_unknown("elsewhere.example", &web().hosts());
    assert!(story.answer.next.is_empty(), "{:?}", story.answer);
}

#[test]
fn what_is_asked_may_be_written_in_many_ways() {
    let target = |text: &str| Target::parse(text);
    let of = |scheme, host: &str, port, path: Option<&str>| Target {
        scheme,
        host: host.to_owned(),
        port,
        path: path.map(str::to_owned),
    };
    for (text, wanted) in [
        ("customers", of(Scheme::Http, "customers", None, None)),
        ("customers.default:8080/a?b", of(Scheme::Http, "customers.default", Some(8080), Some("/a?b"))),
        ("https://shop.example/", of(Scheme::Https, "shop.example", None, Some("/"))),
        ("tcp://db:5432", of(Scheme::Tcp, "db", Some(5432), None)),
        ("http://[fd00::1]:80/", of(Scheme::Http, "fd00::1", Some(80), Some("/"))),
        ("[fd00::1]", of(Scheme::Http, "fd00::1", None, None)),
    ] {
        assert_eq!(target(text), Ok(wanted), "{text}");
    }
    for (text, words) in [
        ("ftp://a", "ftp:// is none of"),
        ("a:x", "not a port"),
        ("a:0", "not a port"),
        ("http:///a", "no host"),
        ("tcp://db", "bytes go to a port"),
    ] {
        assert!(target(text).unwrap_err().contains(words), "{text}");
    }
}

#[test]
fn requests_are_checked() {
    let headers = ["x-user: alice".to_owned(), "Host: other".to_owned()];
    let claims = [
        "iss=me".to_owned(),
        "org.team=red".to_owned(),
        "groups=[\"a\"]".to_owned(),
        "https://a.b/c=x".to_owned(),
    ];
    let asked = request("get", "shop", "a", &headers, &claims).unwrap();
    assert_eq!(
        (asked.method.as_str(), asked.authority.as_str(), asked.path.as_str()),
        ("GET", "other", "/a")
    );
    let claims = serde_json::Value::from(asked.claims.unwrap());
    assert_eq!(
        claims,
        serde_json::json!({ "iss": "me", "org": { "team": "red" }, "groups": ["a"], "https://a.b/c": "x" })
    );
    let wrong = |method: &str, header: &str, claim: &str| {
        let list = |text: &str| if text.is_empty() { Vec::new() } else { vec![text.to_owned()] };
        request(method, "a", "/", &list(header), &list(claim)).unwrap_err()
    };
    assert!(wrong("G T", "", "").contains("is not a method"));
    assert!(wrong("GET", "x", "").contains("is not NAME: VALUE"));
    assert!(wrong("GET", "x y: z", "").contains("is not a header's name"));
    assert!(wrong("GET", "", "sub").contains("is not NAME=VALUE"));
    assert!(wrong("GET", "", "sub=a").contains("has an issuer"));
}
