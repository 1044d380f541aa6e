//! A provider of keys on a real socket, with and without TLS, that changes its keys, misbehaves, and goes away.
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use lateen_model::{Event, KeySet, KeySource, Object, Store, StoreOptions};
use rustls::ServerConfig;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use serde_json::json;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use super::{KIND, run};
use crate::fetch_keys::KeyFetcher;
use crate::push::{Input, Published};
use crate::stored_keys::StoredKeys;

fn keys(secret: &str) -> String {
    json!({ "keys": [{ "kty": "oct", "k": secret }] }).to_string()
}

pub(crate) struct Provider {
    pub(crate) address: SocketAddr,
    keys: Arc<Mutex<String>>,
    serving: tokio::task::JoinHandle<()>,
    /// PEM.
    pub(crate) certificate: String,
}

impl Provider {
    pub(crate) async fn start(tls: bool) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let made = rcgen::generate_simple_self_signed(vec!["127.0.0.1".to_owned()]).unwrap();
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(made.signing_key.serialize_der()));
        let config = ServerConfig::builder()
            .with_no_client_auth()
            .with_single_cert(vec![made.cert.der().clone()], key)
            .unwrap();
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let keys = Arc::new(Mutex::new(keys("AA")));
        let current = keys.clone();
        let serving = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (acceptor, keys) = (acceptor.clone(), current.lock().unwrap().clone());
                tokio::spawn(async move {
                    if tls {
                        if let Ok(stream) = acceptor.accept(stream).await {
                            answer(stream, format!("https://{address}"), keys).await;
                        }
                    } else {
                        answer(stream, format!("http://{address}"), keys).await;
                    }
                });
            }
        });
        Self { address, keys, serving, certificate: made.cert.pem() }
    }
}

impl Provider {
    /// What is at `/keys` from now on.
    pub(crate) fn serve(&self, text: String) {
        *self.keys.lock().unwrap() = text;
    }
}

async fn answer(mut stream: impl AsyncRead + AsyncWrite + Unpin, base: String, keys: String) {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let Ok(byte) = stream.read_u8().await else { return };
        head.push(byte);
    }
    let head = String::from_utf8(head).unwrap();
    let (status, more, body) = match head.split(' ').nth(1).unwrap() {
        "/keys" => ("200 OK", String::new(), keys),
        "/.well-known/openid-configuration" => {
            ("200 OK", String::new(), json!({ "jwks_uri": format!("{base}/keys") }).to_string())
        }
        "/moved" => ("302 Found", "location: /keys\r\n".to_owned(), String::new()),
        "/loop" => ("302 Found", "location: /loop\r\n".to_owned(), String::new()),
        "/plain" => {
            ("302 Found", format!("location: {}/keys\r\n", base.replace("https", "http")), String::new())
        }
        "/large" => ("200 OK", String::new(), " ".repeat(300 * 1024)),
        "/garbage" => ("200 OK", String::new(), "<html>".to_owned()),
        "/empty" => ("200 OK", String::new(), r#"{"keys":[]}"#.to_owned()),
        "/silent" => return std::future::pending().await,
        _ => ("404 Not Found", String::new(), String::new()),
    };
    let text = format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\n{more}\r\n{body}", body.len());
    let _gone = stream.write_all(text.as_bytes()).await;
}

async fn fetched(fetcher: &KeyFetcher, uri: String) -> Result<String, String> {
    // Only where nothing comes is the limit waited for.
    let limit = Duration::from_millis(if uri.ends_with("/silent") { 500 } else { 20_000 });
    let keys = fetcher.fetch(&KeySource::Uri(uri.into()), limit).await;
    keys.map(|keys| keys.to_string())
}

#[tokio::test]
async fn keys_are_fetched_within_bounds() {
    let (plain, secure) = (Provider::start(false).await, Provider::start(true).await);
    let trusting = KeyFetcher::new(secure.certificate.as_bytes());
    let stranger = KeyFetcher::new(&[]);
    for (base, fetcher) in
        [(format!("http://{}", plain.address), &stranger), (format!("https://{}", secure.address), &trusting)]
    {
        let get = |path: &str| fetched(fetcher, format!("{base}{path}"));
        assert_eq!(get("/keys").await, Ok(keys("AA")));
        assert_eq!(get("/moved").await, Ok(keys("AA")));
        let issuer = KeySource::Issuer(format!("{base}/").into());
        let discovered = fetcher.fetch(&issuer, Duration::from_secs(5)).await;
        assert_eq!(discovered.as_deref(), Ok(keys("AA").as_str()));
        for (path, reason) in [
            ("/loop", "redirects"),
            ("/large", "at most"),
            ("/garbage", "not JSON"),
            ("/empty", "no keys"),
            ("/nothing", "status 404"),
            ("/silent", "no answer within"),
        ] {
            let error = get(path).await.unwrap_err();
            assert!(error.contains(reason), "{path}: {error}");
        }
    }
    let error = fetched(&trusting, format!("https://{}/plain", secure.address)).await.unwrap_err();
    assert!(error.contains("not https"), "{error}");
    let error = fetched(&stranger, format!("https://{}/keys", secure.address)).await.unwrap_err();
    assert!(error.contains("certificate"), "{error}");
}

#[tokio::test]
async fn what_is_a_nodes_own_is_not_asked_for_keys() {
    let provider = Provider::start(false).await;
    let keys_at = format!("http://{}/keys", provider.address);
    assert_eq!(fetched(&KeyFetcher::new(&[]), keys_at.clone()).await, Ok(keys("AA")));
    let blocked = |network: &str| KeyFetcher::new(&[]).blocking(&[network.parse().unwrap()]);
    for uri in [
        "http://169.254.169.254/latest/meta-data",
        "http://[::ffff:169.254.169.254]/latest/meta-data",
        "http://[fe80::1]/",
        "http://[fd00:ec2::254]/",
        "http://100.100.100.200/",
    ] {
        let error = fetched(&KeyFetcher::new(&[]), uri.to_owned()).await.unwrap_err();
        assert!(error.contains("keys are not fetched from"), "{uri}: {error}");
    }
    // By address, however it is written, named or led to.
    for path in ["/keys", "/moved"] {
        let uri = format!("http://{}{path}", provider.address);
        let error = fetched(&blocked("127.0.0.0/8"), uri).await.unwrap_err();
        assert!(error.contains("127.0.0.1 is an address that keys are not fetched from"), "{error}");
    }
    let named = format!("http://localhost:{}/keys", provider.address.port());
    let both = KeyFetcher::new(&[]).blocking(&["127.0.0.0/8".parse().unwrap(), "::1/128".parse().unwrap()]);
    assert!(fetched(&both, named).await.unwrap_err().contains("keys are not fetched from"));
    assert_eq!(fetched(&blocked("10.0.0.0/8"), keys_at).await, Ok(keys("AA")));
}

/// The next set of keys that is told, from there.
async fn next(told: &mut mpsc::Receiver<Input>) -> Input {
    tokio::time::timeout(Duration::from_secs(20), told.recv()).await.unwrap().unwrap()
}

async fn next_set(told: &mut mpsc::Receiver<Input>, fits: impl Fn(&KeySet) -> bool) -> KeySet {
    loop {
        match next(told).await {
            Input::Object(Event::Keys(set), _) if fits(&set) => return set,
            Input::Object(Event::Keys(_), _) => {}
            _ => panic!("something else was told"),
        }
    }
}

fn world(uri: Option<&str>) -> Arc<lateen_model::World> {
    let mut store = Store::new(StoreOptions::default());
    if let Some(uri) = uri {
        let object = json!({ "metadata": { "name": "it", "namespace": "default" }, "spec": { "jwtRules": [{ "issuer": "a", "jwksUri": uri }] } });
        let object = serde_json::from_value(object).unwrap();
        store.apply(Event::Applied(Object::RequestAuthentication(object)));
    }
    store.world()
}

#[tokio::test]
async fn keys_follow_their_provider_and_outlive_it() {
    let provider = Provider::start(false).await;
    let uri = format!("http://{}/keys", provider.address);
    let published = |uri: Option<&str>, listed| Published {
        world: world(uri),
        config_version: 1,
        listed,
        complete: false,
    };
    let (sender, receiver) = watch::channel(published(None, false));
    let (inputs, mut told) = mpsc::channel(64);
    let stop = CancellationToken::new();
    let refresh = Duration::from_millis(50);
    let running = tokio::spawn(run(
        KeyFetcher::new(&[]),
        refresh,
        StoredKeys::nowhere(),
        receiver,
        inputs,
        stop.clone(),
    ));

    sender.send_replace(published(Some(&uri), true));
    let first = next_set(&mut told, |_| true).await;
    assert_eq!((first.keys.as_deref(), first.problem), (Some(keys("AA").as_str()), None));
    assert!(
        matches!(next(&mut told).await, Input::Listed(KIND)),
        "proxies are served when the first round is over"
    );

    *provider.keys.lock().unwrap() = keys("BB");
    next_set(&mut told, |set| set.keys.as_deref() == Some(&keys("BB"))).await;

    provider.serving.abort();
    let away = next_set(&mut told, |set| set.problem.is_some()).await;
    assert_eq!(away.keys.as_deref(), Some(keys("BB").as_str()), "the last ones stay");

    sender.send_replace(published(None, true));
    loop {
        match next(&mut told).await {
            Input::Object(Event::NoKeys(source), _) => {
                assert_eq!(source, KeySource::Uri(uri.as_str().into()));
                break;
            }
            Input::Object(Event::Keys(_), _) => {}
            _ => panic!("something else was told"),
        }
    }
    stop.cancel();
    running.await.unwrap();
}

#[tokio::test]
async fn a_provider_that_is_away_from_the_start_holds_nobody_up() {
    let (inputs, mut told) = mpsc::channel(64);
    let uri = "http://127.0.0.1:1/keys";
    let now = Published { world: world(Some(uri)), config_version: 1, listed: true, complete: false };
    let (_sender, receiver) = watch::channel(now);
    let stop = CancellationToken::new();
    tokio::spawn(run(
        KeyFetcher::new(&[]),
        Duration::from_secs(60),
        StoredKeys::nowhere(),
        receiver,
        inputs,
        stop.clone(),
    ));
    let first = next_set(&mut told, |_| true).await;
    assert!(first.keys.is_none() && first.problem.is_some());
    assert!(matches!(next(&mut told).await, Input::Listed(KIND)));
    stop.cancel();
}
