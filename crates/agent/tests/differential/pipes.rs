//! Endpoints that are Unix sockets.

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UnixListener};

use crate::duo::{Duo, KINDS, cluster, route, say};

/// Answers every request with a word.
fn serve(listener: UnixListener, word: &'static str) {
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(say(stream, word));
        }
    });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unix_sockets_are_endpoints() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let (here, there) = (path("here"), path("there"));
    serve(UnixListener::bind(&here).unwrap(), "here");
    serve(UnixListener::bind(&there).unwrap(), "there");
    // Nobody listens here any more, and that is nothing at all.
    drop(UnixListener::bind(path("left")).unwrap());
    std::fs::write(path("file"), "").unwrap();
    let hidden = format!("lateen-pipes-{}", std::process::id());
    {
        use std::os::linux::net::SocketAddrExt;
        let address = std::os::unix::net::SocketAddr::from_abstract_name(&hidden).unwrap();
        let listener = std::os::unix::net::UnixListener::bind_addr(&address).unwrap();
        listener.set_nonblocking(true).unwrap();
        serve(UnixListener::from_std(listener).unwrap(), "hidden");
    }
    let pipe = |path: &str| json!({ "endpoint": { "address": { "pipe": { "path": path } } } });
    let clusters = [
        cluster("one", vec![pipe(&here)], json!({ "alt_stat_name": "told:otherwise;" })),
        cluster("both", vec![pipe(&here), pipe(&there)], json!({})),
        cluster("hidden", vec![pipe(&format!("@{hidden}"))], json!({})),
        cluster("left", vec![pipe(&path("left"))], json!({})),
        cluster("none", vec![pipe(&path("none"))], json!({})),
        cluster("file", vec![pipe(&path("file"))], json!({})),
        cluster("bytes", vec![pipe(&there)], json!({})),
    ];
    let logged = json!([{ "name": "file", "typed_config": {
        "@type": "type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog",
        "path": "/dev/null",
    } }]);
    let names = ["one", "both", "hidden", "left", "none", "file"];
    let answering = |name: &str| {
        route(name, json!({})).as_object().cloned().map(|mut route| {
            let header = |key: &str, value: &str| json!({ "header": { "key": key, "value": value } });
            route.insert(
                "response_headers_to_add".to_owned(),
                json!([
                    header("x-host", "%UPSTREAM_HOST%"),
                    header("x-remote", "%UPSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%"),
                    header("x-port", "%UPSTREAM_REMOTE_PORT%"),
                    header("x-cluster", "%UPSTREAM_CLUSTER%|%UPSTREAM_CLUSTER_RAW%"),
                ]),
            );
            Value::Object(route)
        })
    };
    let routes: Vec<Value> = names.iter().filter_map(|name| answering(name)).collect();
    let tcp = [("bytes", json!({ "cluster": "bytes", "access_log": logged }))];
    let duo = Duo::start(json!(routes), &clusters, &tcp).await;
    for name in names {
        let path = format!("/{name}");
        for _ in 0..4 {
            let [envoy, lateen] = duo.both(&path, &[]).await;
            if name == "both" {
                continue; // who of the two is asked is by chance
            }
            let seen = |reply: &crate::duo::Reply| {
                let header = |name| reply.header(name).map(str::to_owned);
                // Of connections that failed Envoy does not tell the far end, whatever its kind; ours does.
                let far = ["x-remote", "x-port"].map(|name| header(name).filter(|_| reply.status == 200));
                (reply.status, reply.body.clone(), header("x-host"), header("x-cluster"), far)
            };
            assert_eq!(seen(&envoy), seen(&lateen), "{name}");
        }
    }
    for kind in [0, 1] {
        assert_eq!(duo.get(kind, "/one", &[]).await.body, "here", "{}", KINDS[kind]);
        assert_eq!(duo.get(kind, "/hidden", &[]).await.body, "hidden", "{}", KINDS[kind]);
        let mut stream = TcpStream::connect(duo.address(kind, "bytes")).await.unwrap();
        stream.write_all(b"anything").await.unwrap();
        let mut buffer = [0; 256];
        let n = stream.read(&mut buffer).await.unwrap();
        assert!(String::from_utf8_lossy(&buffer[..n]).ends_with("there"), "{}", KINDS[kind]);
    }
    // A connection that failed has no version here, and no end; so it is over TCP.
    for name in ["told_otherwise;", "left", "none", "bytes"] {
        let counted = async |kind| {
            duo.stats(
                kind,
                &format!("cluster.{name}.upstream_cx_"),
                &["length", "_ms", "bytes", "active", "http1_total", "destroy"],
            )
            .await
        };
        let ours = counted(1).await;
        assert_eq!(counted(0).await, ours, "{name}");
        assert!(name != "told_otherwise;" || !ours.is_empty(), "counted by its other name");
    }
    let hosts = async |kind| {
        let page = duo.page(kind, "/clusters").await;
        let told = page.lines().filter(|line| {
            line.contains("both::/")
                && !line.contains("_total")
                && !line.contains("x_active")
                && !line.contains("success")
        });
        told.map(str::to_owned).collect::<std::collections::BTreeSet<_>>()
    };
    assert_eq!(hosts(0).await, hosts(1).await);
}
