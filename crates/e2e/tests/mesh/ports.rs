//! What ports of proxies and of the control plane tell other pods, and what they do for them: no more than they must; and with
//! how few rights the mesh's own pods do it (S11).
use std::fmt::Write as _;
use std::time::Duration;

use crate::OnMesh;
use crate::mutual_tls::STRANGER;
use anyhow::{Context, Result, ensure};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use lateen_e2e::{Mesh, eventually};

pub(crate) const TRIALS: &[OnMesh] = &[
    ("proxies_keep_their_ports", proxies_keep_their_ports),
    ("the_control_plane_keeps_its_ports", the_control_plane_keeps_its_ports),
    ("the_meshs_pods_have_few_rights", the_meshs_pods_have_few_rights),
];

const XDS: &str = "https://istiod.istio-system.svc:15012/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources";

/// What a command prints in a pod, and its exit code.
fn run(mesh: &Mesh, pod: &str, container: &str, command: &str) -> Result<String> {
    let script = format!("{command} 2>&1; echo \" exit $?\"");
    mesh.kubectl(&["exec", pod, "-c", container, "--", "bash", "-c", &script])
}

fn start(mesh: &Mesh) -> Result<String> {
    mesh.apply_fixture("echo.yaml")?;
    mesh.apply(STRANGER)?;
    mesh.kubectl(&["wait", "--for=condition=Available", "deploy", "--all", "--timeout=60s"])?;
    mesh.kubectl(&["wait", "--for=condition=Ready", "pod/client", "pod/stranger", "--timeout=60s"])?;
    let ip = mesh.pod_address("default", "app=httpbin")?;
    eventually("a request from outside the mesh", Duration::from_secs(30), || {
        let said = run(
            mesh,
            "stranger",
            "client",
            "curl -s -m 5 -o /dev/null -w %{http_code} http://httpbin:8000/get",
        )?;
        ensure!(said.starts_with("200"), "{said}");
        Ok(())
    })?;
    Ok(ip)
}

fn clean(mesh: &Mesh) -> Result<()> {
    // The next trial makes pods of these names.
    mesh.kubectl(&["delete", "pod", "client", "stranger", "--grace-period=1"])?;
    mesh.kubectl(&["delete", "deploy,svc,dr", "--all", "-n", "default", "--wait=false"])?;
    mesh.kubectl(&["delete", "pod", "-n", "default", "-l", "app=httpbin", "--grace-period=1"]).map(drop)
}

fn proxies_keep_their_ports(mesh: &Mesh) -> Result<()> {
    let ip = start(mesh)?;
    for pod in ["stranger", "client"] {
        let ask = |method: &str, port: u16, path: &str| {
            let said = run(
                mesh,
                pod,
                "client",
                &format!("curl -s -m 5 -X {method} -w ' %{{http_code}}' http://{ip}:{port}{path}"),
            )?;
            let code = said
                .rsplit_once(" exit ")
                .and_then(|(body, _)| body.rsplit(' ').next())
                .unwrap_or_default()
                .to_owned();
            Ok::<_, anyhow::Error>((code, said))
        };
        // The admin service, by its own port and by those of captured traffic.
        for (method, path) in [
            ("GET", "/config_dump"),
            ("GET", "/stats"),
            ("POST", "/quitquitquit"),
            ("POST", "/logging?level=trace"),
        ] {
            for port in [15000, 15001, 15006, 15004] {
                let (code, said) = ask(method, port, path)?;
                ensure!(
                    code != "200" && !said.contains("configs") && !said.contains("ssl.handshake"),
                    "{pod} {port}{path}: {said}"
                );
            }
        }
        // What others are for: probes and metrics, and nothing else.
        for (port, path) in
            [(15021, "/healthz/ready"), (15020, "/stats/prometheus"), (15090, "/stats/prometheus")]
        {
            let (code, said) = ask("GET", port, path)?;
            ensure!(code == "200", "{pod} {port}{path}: {said}");
        }
        for port in [15020, 15021, 15090] {
            for path in [
                "/config_dump",
                "/certs",
                "/server_info",
                "/debug/pprof/",
                "/app-health/none/readyz",
                "/../config_dump",
            ] {
                let (code, said) = ask("GET", port, path)?;
                ensure!(code == "404", "{pod} {port}{path}: {said}");
            }
            let (code, said) = ask("POST", port, "/quitquitquit")?;
            ensure!(["403", "404"].contains(&code.as_str()), "{pod} {port}/quitquitquit: {said}");
        }
        let (_, said) = ask("POST", 15020, "/quitquitquit")?;
        ensure!(said.contains("Only requests from localhost are allowed"), "{said}");
    }
    // All of it has ended nothing.
    let pods = mesh.kubectl(&["get", "pods", "-l", "app=httpbin", "-o", "jsonpath={.items[*].status.containerStatuses[*].ready} {.items[*].status.containerStatuses[*].restartCount}"])?;
    ensure!(pods == "true true 0 0", "{pods}");
    clean(mesh)
}

/// The first message of a stream of delta xDS, as a proxy of this id sends it, framed for gRPC, for `printf`.
fn hello(node: &str) -> String {
    let field = |tag: u8, body: &[u8]| [&[tag, u8::try_from(body.len()).unwrap_or(u8::MAX)], body].concat();
    let node = field(0x0a, &field(0x0a, node.as_bytes()));
    let message = [node, field(0x12, b"type.googleapis.com/envoy.config.cluster.v3.Cluster")].concat();
    let framed = [&[0, 0, 0, 0, u8::try_from(message.len()).unwrap_or(u8::MAX)], &message[..]].concat();
    framed.iter().fold(String::new(), |mut out, byte| {
        let _infallible = write!(out, "\\x{byte:02x}");
        out
    })
}

fn the_control_plane_keeps_its_ports(mesh: &Mesh) -> Result<()> {
    let ip = start(mesh)?;
    let said = |pod: &str, command: &str| run(mesh, pod, "client", command);
    let code = "-s -m 5 -o /dev/null -w '%{http_code}'";

    // Plain-text xDS is not there, and nobody speaks plain text to the port with TLS.
    let answer = said("stranger", &format!("curl {code} http://istiod.istio-system:15010/"))?;
    ensure!(answer.contains("exit 7"), "15010: {answer}");
    let answer =
        said("stranger", &format!("curl {code} --http2-prior-knowledge http://istiod.istio-system:15012/"))?;
    ensure!(answer.starts_with("000"), "15012 in plain text: {answer}");

    // Over TLS: not without a token, not with nonsense for one, not as another pod, service account or namespace.
    let stream = |token: &str, node: &str| {
        format!(
            "printf '{}' | curl -sk -m 3 --http2 -X POST -H 'content-type: application/grpc' -H 'te: trailers' {token} --data-binary @- -o /dev/null -D - {XDS}",
            hello(node)
        )
    };
    let id =
        |pod: &str, namespace: &str| format!("sidecar~{ip}~{pod}.{namespace}~{namespace}.svc.cluster.local");
    for token in ["", "-H 'authorization: Bearer nonsense'"] {
        let answer = said("stranger", &stream(token, &id("client", "default")))?;
        ensure!(answer.contains("grpc-status: 16"), "{token}: {answer}");
    }
    let own = "-H \"authorization: Bearer $(cat /var/run/secrets/tokens/istio-token)\"";
    let as_proxy = |node: &str| run(mesh, "client", "istio-proxy", &stream(own, node));
    let httpbin = mesh.pod("default", "app=httpbin")?;
    for node in [id(&httpbin, "default"), id("client", "istio-system"), id("client", "other")] {
        let answer = as_proxy(&node)?;
        ensure!(
            answer.contains("grpc-status: 7") && answer.contains("but%20the%20node%20says"),
            "{node}: {answer}"
        );
    }
    let answer = as_proxy("nonsense")?;
    ensure!(answer.contains("grpc-status: 3"), "{answer}");
    // Itself it may be; the stream ends well, since nothing follows.
    let answer = as_proxy(&id("client", "default"))?;
    ensure!(answer.contains("HTTP/2 200") && answer.contains("grpc-status: 0"), "itself: {answer}");

    // The inside of the control plane is for its own pod; metrics are for everybody.
    for path in
        ["", "/syncz", "/adsz", "/configz", "/registryz", "/endpointz", "/config_dump?proxyID=client.default"]
    {
        for pod in ["stranger", "client"] {
            let answer = said(pod, &format!("curl {code} http://istiod.istio-system:15014/debug{path}"))?;
            ensure!(answer.starts_with("403"), "{pod} /debug{path}: {answer}");
        }
    }
    let answer = said("stranger", &format!("curl {code} http://istiod.istio-system:15014/metrics"))?;
    ensure!(answer.starts_with("200"), "{answer}");

    // Webhooks answer whoever asks, with what pods get anyway, and change nothing; what is no review is refused.
    for (path, body, wanted) in [
        ("/inject", "nonsense", "4"),
        ("/validate", "nonsense", "4"),
        ("/", "", "404"),
        ("/debug/configz", "", "404"),
        ("/metrics", "", "404"),
    ] {
        let answer = said(
            "stranger",
            &format!(
                "curl {code} -k -X POST -H 'content-type: application/json' -d '{body}' https://istiod.istio-system.svc{path}"
            ),
        )?;
        ensure!(answer.starts_with(wanted), "{path}: {answer}");
    }
    let answer = said("stranger", &format!("curl {code} -k https://istiod.istio-system.svc/inject"))?;
    ensure!(answer.starts_with("405"), "{answer}");
    reviews(mesh)?;
    clean(mesh)
}

/// Whole reviews from a pod, as the API server sends them: the answer is what everybody's pods show anyway, without a secret in it,
/// and nothing is made by it.
fn reviews(mesh: &Mesh) -> Result<()> {
    let review = |path: &str, kind: &str, object: &str, more: &str| {
        let body = format!(
            r#"{{"apiVersion":"admission.k8s.io/v1","kind":"AdmissionReview","request":{{"uid":"u-1","operation":"CREATE","namespace":"default","kind":{kind},"object":{object}}}}}"#
        );
        run(
            mesh,
            "stranger",
            "client",
            &format!(
                "printf '%s{more}' '{body}' | curl -sk -m 10 -w ' %{{http_code}}' -H 'content-type: application/json' --data-binary @- https://istiod.istio-system.svc{path}"
            ),
        )
    };
    let pod = r#"{"apiVersion":"v1","kind":"Pod","metadata":{"name":"asked","namespace":"default"},"spec":{"containers":[{"name":"a","image":"busybox"}]}}"#;
    let answer = review("/inject", r#"{"group":"","version":"v1","kind":"Pod"}"#, pod, "")?;
    ensure!(
        answer.contains(" 200 exit 0")
            && answer.contains(r#""allowed":true"#)
            && answer.contains(r#""uid":"u-1""#),
        "{answer}"
    );
    let (_, patch) = answer.split_once(r#""patch":""#).with_context(|| answer.clone())?;
    let patch = patch.split('"').next().unwrap_or_default();
    let patch = String::from_utf8(STANDARD.decode(patch)?)?;
    ensure!(patch.contains("istio-proxy") && patch.contains("istio-init"), "{patch}");
    // A token begins so, and a key or a certificate so.
    ensure!(!patch.contains("eyJ") && !patch.contains("-----BEGIN"), "{patch}");

    let kind = r#"{"group":"networking.istio.io","version":"v1","kind":"VirtualService"}"#;
    let object = |weight: i32| {
        format!(
            r#"{{"apiVersion":"networking.istio.io/v1","kind":"VirtualService","metadata":{{"name":"asked","namespace":"default"}},"spec":{{"hosts":["a"],"http":[{{"route":[{{"destination":{{"host":"a"}},"weight":{weight}}}]}}]}}}}"#
        )
    };
    let answer = review("/validate", kind, &object(-5), "")?;
    ensure!(answer.contains(r#""allowed":false"#) && answer.contains("weight"), "{answer}");
    let answer = review("/validate", kind, &object(1), "")?;
    ensure!(answer.contains(r#""allowed":true"#), "{answer}");
    // A body without an end is not read to it.
    let answer = review("/validate", kind, &object(1), "%20000000s")?;
    // 413, or over HTTP/2 the stream's end while curl still sends (its exit code 92).
    ensure!(
        !answer.contains("allowed") && (answer.contains("413") || answer.contains("exit 92")),
        "{answer}"
    );

    for (kind, name) in [("pod", "asked"), ("virtualservice.networking.istio.io", "asked")] {
        let there = mesh.kubectl(&["get", kind, name, "--ignore-not-found", "-o", "name"])?;
        ensure!(there.is_empty(), "{there}");
    }
    Ok(())
}

/// What the kernel says of every process in a container: of nobody's user, without capabilities and ways to gain any, its system
/// calls filtered, its root read-only.
const NO_RIGHTS: &str = r#"
    for p in /proc/[0-9]*; do
      # Those that ended in between have no status.
      status=$(grep -E '^(Uid|Gid|Groups|CapInh|CapPrm|CapEff|CapBnd|CapAmb|NoNewPrivs|Seccomp):' $p/status 2>/dev/null) || continue
      [ -n "$status" ] && echo $status
    done | sort -u
    for d in / /etc /tmp /run /var/lib; do echo x > $d/written 2>/dev/null && echo "can write to $d"; done
    exit 0
"#;

fn the_meshs_pods_have_few_rights(mesh: &Mesh) -> Result<()> {
    let ip = start(mesh)?;
    let httpbin = mesh.pod("default", "app=httpbin")?;
    let gateway = mesh.pod("istio-system", "app=istio-ingressgateway")?;
    let istiod = mesh.pod("istio-system", "app=istiod")?;
    for (namespace, pod, container) in [
        ("default", "client", "istio-proxy"),
        ("default", &httpbin, "istio-proxy"),
        ("istio-system", &gateway, "istio-proxy"),
        ("istio-system", &istiod, "discovery"),
    ] {
        let said =
            mesh.kubectl(&["exec", "-n", namespace, pod, "-c", container, "--", "bash", "-c", NO_RIGHTS])?;
        let lines: Vec<&str> = said.lines().collect();
        let [line] = lines.as_slice() else { anyhow::bail!("{pod}: more than one kind of process:\n{said}") };
        let words: Vec<&str> = line.split_whitespace().collect();
        let text = words.join(" ");
        let none = "0000000000000000";
        let expected = format!(
            "CapInh: {none} CapPrm: {none} CapEff: {none} CapBnd: {none} CapAmb: {none} NoNewPrivs: 1 Seccomp: 2"
        );
        ensure!(text.starts_with("Uid: 1337 1337 1337 1337 Gid: 1337 1337 1337 1337 "), "{pod}: {text}");
        ensure!(text.ends_with(&expected), "{pod}: {text}");
    }
    // What captures traffic is root, and has one capability of root's.
    let init = "jsonpath={.spec.initContainers[?(@.name==\"istio-init\")].securityContext}";
    let init = mesh.kubectl(&["get", "pod", "client", "-o", init])?;
    for part in [
        r#""add":["NET_ADMIN"]"#,
        r#""drop":["ALL"]"#,
        r#""type":"RuntimeDefault""#,
        r#""readOnlyRootFilesystem":true"#,
    ] {
        ensure!(init.contains(part), "{init}");
    }
    // With that much all is as ever: captured both ways, and what is the proxy's own user's is not captured.
    let said = run(mesh, "client", "client", "curl -s -m 5 http://httpbin:8000/headers")?;
    ensure!(said.to_lowercase().contains("x-forwarded-client-cert") && said.contains("exit 0"), "{said}");
    let own = format!("curl -s -m 5 -o /dev/null -w %{{http_code}} http://{ip}:15021/healthz/ready");
    let said = run(mesh, "client", "istio-proxy", &own)?;
    ensure!(said.starts_with("200"), "{said}");
    clean(mesh)
}
