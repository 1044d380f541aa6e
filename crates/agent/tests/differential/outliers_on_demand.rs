//! Outlier detection of hosts that nobody knows before a request names them (T14, T16): original destinations and names.

use std::fmt::Write as _;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::net::TcpStream;

use crate::duo::{Backend, KINDS};
use crate::dynamic::{HTTP_FILTER, cache, dynamic, logs};
use crate::names::{Names, Says};
use crate::proxies::{self, Proxy, address, merge, router};
use crate::wire::Wire;

const LIMIT: Duration = Duration::from_secs(20);

const FORMAT: &str = "%REQ(:AUTHORITY)% %RESPONSE_CODE% flags=%RESPONSE_FLAGS% %RESPONSE_CODE_DETAILS% host=%UPSTREAM_HOST% %UPSTREAM_HOST_NAME%\n";

/// A service of names with the filter, the same without it, and original destinations. The others forget hosts soon.
const LISTENERS: [&str; 5] = ["named", "bare", "original", "brief-named", "brief-original"];

fn listener(port: u16, cluster: &str, filters: &[Value], log: &Path) -> Value {
    json!({
        "name": cluster, "address": address(port),
        "filter_chains": [{ "filters": [{ "name": "hcm", "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
            "stat_prefix": cluster, "access_log": logs(log, FORMAT),
            "route_config": { "name": "routes", "virtual_hosts": [{ "name": "all", "domains": ["*"],
                "routes": [{ "match": { "prefix": "/" }, "route": { "cluster": cluster } }] }] },
            "http_filters": filters,
        } }] }],
    })
}

fn looks_up(cache: &Value) -> Value {
    json!({ "name": HTTP_FILTER, "typed_config": {
        "@type": "type.googleapis.com/envoy.extensions.filters.http.dynamic_forward_proxy.v3.FilterConfig",
        "dns_cache_config": cache,
    } })
}

fn original(name: &str, more: &Value) -> Value {
    let mut cluster = json!({
        "name": name, "type": "ORIGINAL_DST", "lb_policy": "CLUSTER_PROVIDED", "connect_timeout": "1s",
        "original_dst_lb_config": { "use_http_header": true },
    });
    merge(&mut cluster, more.clone());
    cluster
}

struct Both {
    proxies: [Proxy; 2],
    /// `a.test`, `b.test` and `c.test`.
    backends: Vec<Backend>,
    _names: Names,
    _folder: tempfile::TempDir,
}

impl Both {
    async fn start() -> Self {
        let (names, backends) = (Names::start().await, Backend::several(3).await);
        for name in ["a.test", "b.test", "c.test"] {
            names.set(name, Says::address(Ipv4Addr::LOCALHOST, 1));
        }
        let detection = |base: &str| {
            json!({ "outlier_detection": { "consecutive_5xx": 2, "interval": "0.5s", "base_ejection_time": base,
                "max_ejection_percent": 50, "enforcing_success_rate": 0 } })
        };
        let folder = tempfile::tempdir().unwrap();
        let proxies = proxies::both(folder.path(), &LISTENERS, |ports, log| {
            let steady = cache("steady", &names, json!({}));
            let brief = cache(
                "brief",
                &names,
                json!({ "host_ttl": "1s", "dns_min_refresh_rate": "1s", "dns_refresh_rate": "1s" }),
            );
            let (returns, stays) = (detection("1s"), detection("1000s"));
            let mut idle = stays.clone();
            merge(&mut idle, json!({ "cleanup_interval": "1s", "common_http_protocol_options": { "idle_timeout": "0.5s" } }));
            let filters = |listener: &str| match listener {
                "named" => vec![looks_up(&steady), router()],
                "brief-named" => vec![looks_up(&brief), router()],
                _ => vec![router()],
            };
            let listeners = LISTENERS.map(|name| listener(ports[name], name, &filters(name), log)).to_vec();
            let clusters = vec![
                dynamic("named", &steady, returns.clone()),
                dynamic("bare", &steady, returns.clone()),
                original("original", &returns),
                dynamic("brief-named", &brief, stays),
                original("brief-original", &idle),
            ];
            [listeners, clusters]
        })
        .await;
        Self { proxies, backends, _names: names, _folder: folder }
    }

    /// What a request for a backend (0: `a.test`) gets.
    async fn ask(&self, kind: usize, listener: &str, backend: usize) -> String {
        let at = SocketAddr::from(([127, 0, 0, 1], self.proxies[kind].ports[listener]));
        let address = self.backends[backend].address;
        let mut wire = Wire::new(TcpStream::connect(at).await.unwrap());
        let name = ["a.test", "b.test", "c.test"][backend];
        let request = format!(
            "GET / HTTP/1.1\r\nhost: {name}:{}\r\nx-envoy-original-dst-host: {address}\r\n\r\n",
            address.port()
        );
        wire.send(request.as_bytes()).await;
        wire.answer("GET").await.unwrap()
    }

    async fn stat(&self, kind: usize, name: &str) -> u64 {
        let page = self.proxies[kind].admin("/stats").await.unwrap();
        let line = page.lines().filter_map(|line| line.split_once(": ")).find(|(known, _)| *known == name);
        line.map_or(0, |(_, value)| value.trim().parse().unwrap())
    }

    async fn reaches(&self, kind: usize, name: &str, value: u64) {
        let began = Instant::now();
        while self.stat(kind, name).await != value {
            assert!(began.elapsed() < LIMIT, "{}: {name} is not {value}", KINDS[kind]);
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// The numbers of a cluster, and what is shown of its hosts.
    async fn shown(&self, kind: usize, cluster: &str) -> String {
        let mut out = String::new();
        let page = self.proxies[kind].admin("/stats").await.unwrap();
        for leaf in ["membership_total", "upstream_cx_", "upstream_rq_", "outlier_detection."] {
            let prefix = format!("cluster.{cluster}.{leaf}");
            let counted = |line: &&str| {
                !line.ends_with(": 0") && ![": No", ": P", "_buffered"].iter().any(|part| line.contains(part))
            };
            page.lines()
                .filter(|line| line.starts_with(&prefix))
                .filter(counted)
                .for_each(|line| writeln!(out, "{line}").unwrap());
        }
        let page = self.proxies[kind].admin("/clusters").await.unwrap();
        let told = ["::hostname::", "::health_flags::", "::cx_total::", "::cx_active::", "::success_rate::"];
        let mut lines: Vec<&str> = page
            .lines()
            .filter(|line| {
                line.starts_with(&format!("{cluster}::127")) && told.iter().any(|part| line.contains(part))
            })
            .collect();
        lines.sort_unstable();
        out + &lines.join("\n") + "\n"
    }

    /// Both hosts answer, then the first fails until it is out.
    async fn first_fails(&self, kind: usize, listener: &str) -> String {
        self.backends.iter().for_each(|backend| backend.answers(200));
        let mut out = String::new();
        for backend in [0, 1] {
            out += &self.ask(kind, listener, backend).await;
        }
        self.backends[0].answers(500);
        for _ in 0..2 {
            out += &self.ask(kind, listener, 0).await;
        }
        self.reaches(kind, &format!("cluster.{listener}.outlier_detection.ejections_active"), 1).await;
        out
    }

    /// A host fails until it is out, another fails but may not go, the first returns.
    async fn story(&self, kind: usize, listener: &str) -> String {
        let stat = |leaf: &str| format!("cluster.{listener}.{leaf}");
        let active = stat("outlier_detection.ejections_active");
        let mut out = self.first_fails(kind, listener).await;
        // Its connection goes with it.
        self.reaches(kind, &stat("upstream_cx_destroy"), 1).await;
        self.reaches(kind, &stat("membership_healthy"), self.stat(kind, &stat("membership_total")).await - 1)
            .await;
        out += &self.shown(kind, listener).await;
        for backend in [0, 1, 2] {
            out += &self.ask(kind, listener, backend).await;
        }
        self.reaches(kind, &stat("membership_total"), 3).await;
        self.backends[1].answers(500);
        for _ in 0..2 {
            out += &self.ask(kind, listener, 1).await;
        }
        self.reaches(kind, &stat("outlier_detection.ejections_overflow"), 1).await;
        self.backends[1].answers(200);
        out += &self.ask(kind, listener, 1).await;
        self.backends[0].answers(200);
        self.reaches(kind, &active, 0).await;
        self.reaches(kind, &stat("membership_healthy"), 3).await;
        for backend in [0, 1, 2] {
            out += &self.ask(kind, listener, backend).await;
        }
        out + &self.shown(kind, listener).await
    }

    /// What is out is forgotten, and then it is new.
    async fn forgotten(&self, kind: usize, listener: &str) -> String {
        let stat = |leaf: &str| format!("cluster.{listener}.{leaf}");
        let mut out = self.first_fails(kind, listener).await;
        self.backends[0].answers(200);
        self.reaches(kind, &stat("outlier_detection.ejections_active"), 0).await;
        self.reaches(kind, &stat("membership_total"), 0).await;
        for backend in [0, 1] {
            out += &self.ask(kind, listener, backend).await;
        }
        self.reaches(kind, &stat("membership_healthy"), 2).await;
        out
    }

    /// With each port in the place of its backend.
    fn named(&self, text: String) -> String {
        let ports = self.backends.iter().enumerate();
        ports.fold(text, |text, (n, backend)| {
            text.replace(&format!(":{}", backend.address.port()), &format!(":{n}"))
        })
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hosts_found_on_demand_go_and_return_as_envoys() {
    let both = Both::start().await;
    for listener in ["named", "bare", "original"] {
        let (envoy, lateen) = (both.story(0, listener).await, both.story(1, listener).await);
        assert_eq!(both.named(envoy), both.named(lateen), "{listener}");
    }
    for listener in ["brief-named", "brief-original"] {
        let (envoy, lateen) = (both.forgotten(0, listener).await, both.forgotten(1, listener).await);
        assert_eq!(envoy, lateen, "{listener}");
    }
    let (envoy, lateen) = (both.proxies[0].log().await, both.proxies[1].log().await);
    assert_eq!(both.named(envoy), both.named(lateen));
}
