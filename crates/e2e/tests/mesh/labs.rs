//! The course's labs 3 (Istio Gateway option), 4, 5 and 6 and its Envoy hands-on, with the course's own commands.

use std::time::Duration;

use crate::OnMesh;
use anyhow::{Context, Result, ensure};
use lateen_e2e::{Mesh, eventually, web::Ask};

pub(crate) const TRIALS: &[OnMesh] = &[
    ("lab3_istio_gateway", lab3_istio_gateway),
    ("lab4_failure_injection", lab4_failure_injection),
    ("lab5_traffic_split", lab5_traffic_split),
    ("lab6_header_routing", lab6_header_routing),
    ("envoy_hands_on", envoy_hands_on),
    ("kubectl_as_usual", kubectl_as_usual),
];

const GATEWAY_URL: &str = "export GATEWAY_URL=$(kubectl get svc -n istio-system istio-ingressgateway -o jsonpath='{.status.loadBalancer.ingress[0].ip}')";
/// Long enough for slow shared machines; what is measured is measured elsewhere.
const SOON: Duration = Duration::from_secs(30);

fn page(mesh: &Mesh) -> Result<String> {
    let reply = Ask::get(format!("http://{}/", mesh.gateway()?)).send()?;
    ensure!(reply.status == 200, "{reply:?}");
    Ok(reply.body)
}

fn lab3_istio_gateway(mesh: &Mesh) -> Result<()> {
    mesh.lab("lab3", "kubectl apply -f istio-gateway.yaml")?;
    let service = mesh.lab("lab3", "kubectl get svc -n istio-system istio-ingressgateway")?;
    ensure!(service.contains("LoadBalancer") && service.contains(&mesh.gateway()?), "{service}");
    mesh.lab("lab3", "kubectl apply -f hello-world.yaml")?;
    mesh.lab("lab3", "kubectl apply -f vs-hello-world.yaml")?;
    mesh.kubectl(&["rollout", "status", "deploy/hello-world", "--timeout=30s"])?;
    let body = eventually("hello-world answers", SOON, || page(mesh))?;
    ensure!(body.to_lowercase().contains("hello world"), "{body}");
    let verbose = mesh.lab("lab3", &format!("{GATEWAY_URL}\ncurl -v http://$GATEWAY_URL/ 2>&1"))?;
    ensure!(verbose.contains("200 OK") && verbose.contains("server: istio-envoy"), "{verbose}");
    mesh.lab(
        "lab3",
        "kubectl delete deploy hello-world
         kubectl delete service hello-world
         kubectl delete vs hello-world
         kubectl delete gateway istio-gateway",
    )?;
    let gone = eventually("the route goes", SOON, || {
        Ok(Ask::get(format!("http://{}/", mesh.gateway()?)).send().map_or(0, |r| r.status))
            .and_then(|status| if status == 200 { anyhow::bail!("still 200") } else { Ok(status) })
    });
    gone.map(drop)
}

/// What the lab looks at in Grafana, Zipkin and Kiali waits for tracing and metrics; here are the requests themselves, and the
/// flags that the traces would show, from web-frontend's access log.
fn lab4_failure_injection(mesh: &Mesh) -> Result<()> {
    for file in ["gateway", "web-frontend", "customers"] {
        mesh.lab("lab4", &format!("kubectl apply -f {file}.yaml"))?;
    }
    mesh.lab("lab4", "kubectl wait --for=condition=Available deploy --all --timeout=30s")?;
    eventually("the page answers", SOON, || page(mesh))?;

    mesh.lab("lab4", "kubectl apply -f customers-delay.yaml")?;
    settled_on(mesh, "\"fixedDelay\":\"5s\"")?;
    let delayed = injected(mesh, 64, |_, took| took >= Duration::from_secs(5))?;
    ensure!(delayed.others < Duration::from_secs(5), "others took {:?}", delayed.others);
    half(delayed.hit, 64)?;
    flagged(mesh, " 200 DI via_upstream")?;

    mesh.lab("lab4", "kubectl apply -f customers-fault.yaml")?;
    settled_on(mesh, "\"httpStatus\":500")?;
    let failed = injected(mesh, 200, |status, _| status >= 500)?;
    half(failed.hit, 200)?;
    flagged(mesh, " 500 FI fault_filter_abort")?;
    mesh.lab(
        "lab4",
        "kubectl delete deploy web-frontend customers-v1
         kubectl delete svc customers web-frontend
         kubectl delete vs customers web-frontend
         kubectl delete dr customers
         kubectl delete gateway gateway",
    )
    .map(drop)
}

/// Waits until web-frontend's own proxy has routes with this in them.
fn settled_on(mesh: &Mesh, part: &str) -> Result<()> {
    eventually("the fault arrives", SOON, || {
        let pod = mesh.pod("default", "app=web-frontend")?;
        let routes = mesh.lateen(&["proxy-config", "routes", &pod, "--name", "80", "-o", "json"])?;
        let routes = serde_json::from_str::<serde_json::Value>(&routes)?.to_string();
        routes.contains(part).then_some(()).with_context(|| format!("no {part} in {routes}"))
    })
}

/// Of so many requests, those that a fault hit, and the slowest of the others.
struct Injected {
    hit: u32,
    others: Duration,
}

fn injected(mesh: &Mesh, n: u32, hit: fn(u16, Duration) -> bool) -> Result<Injected> {
    let url = format!("http://{}/", mesh.gateway()?);
    // Side by side: each may take five seconds.
    let asked: Vec<_> = (0..16)
        .map(|worker| {
            let url = url.clone();
            std::thread::spawn(move || -> Result<Vec<(u16, Duration)>> {
                (0..n)
                    .filter(|i| i % 16 == worker)
                    .map(|_| {
                        let began = std::time::Instant::now();
                        Ok((Ask::get(url.clone()).send()?.status, began.elapsed()))
                    })
                    .collect()
            })
        })
        .collect();
    let mut found = Injected { hit: 0, others: Duration::ZERO };
    for thread in asked {
        for (status, took) in thread.join().map_err(|_| anyhow::anyhow!("a client panicked"))?? {
            if hit(status, took) {
                found.hit += 1;
            } else {
                ensure!(status == 200, "a request without a fault got {status}");
                found.others = found.others.max(took);
            }
        }
    }
    Ok(found)
}

/// About half of them: within four standard deviations (T8).
fn half(hit: u32, of: u32) -> Result<()> {
    let (hit, of) = (f64::from(hit), f64::from(of));
    let deviation = (of / 4.0).sqrt();
    ensure!((hit - of / 2.0).abs() <= 4.0 * deviation, "{hit} of {of} were hit, about half should be");
    Ok(())
}

/// Waits until web-frontend's proxy has logged a call to customers with this verdict.
fn flagged(mesh: &Mesh, verdict: &str) -> Result<()> {
    eventually("the fault is logged", SOON, || {
        let log = mesh.kubectl(&["logs", "deploy/web-frontend", "-c", "istio-proxy", "--tail=500"])?;
        let found = log.lines().any(|l| l.contains(verdict) && l.contains("customers.default"));
        found.then_some(()).with_context(|| format!("no {verdict:?} in {log}"))
    })
}

fn lab5_traffic_split(mesh: &Mesh) -> Result<()> {
    for file in ["gateway", "web-frontend", "customers-v1", "web-frontend-vs"] {
        mesh.lab("lab5", &format!("kubectl apply -f {file}.yaml"))?;
    }
    mesh.lab(
        "lab5",
        "kubectl wait --for=condition=Available deploy/web-frontend deploy/customers-v1 --timeout=30s",
    )?;
    let pods = mesh.kubectl(&["get", "pods"])?;
    ensure!(pods.lines().filter(|l| l.contains("2/2") && l.contains("Running")).count() >= 2, "{pods}");
    let vs = mesh.kubectl(&["get", "vs"])?;
    ensure!(vs.contains("GATEWAYS") && vs.contains(r#"["gateway"]"#), "{vs}");
    let v1 = eventually("the page answers", SOON, || page(mesh))?;
    ensure!(!v1.contains("city"), "v1 should have no city: {v1}");

    mesh.lab("lab5", "kubectl apply -f customers-dr.yaml && kubectl apply -f customers-vs.yaml")?;
    mesh.lab(
        "lab5",
        "kubectl apply -f customers-v2.yaml && kubectl rollout status deploy/customers-v2 --timeout=30s",
    )?;
    for _ in 0..40 {
        ensure!(!page(mesh)?.contains("city"), "v2 must not get traffic before the split");
    }

    mesh.lab("lab5", "kubectl apply -f customers-50-50.yaml")?;
    eventually("v2 gets traffic", SOON, || page(mesh)?.contains("city").then_some(()).context("only v1"))?;
    share(mesh, 400, 0.50)?;
    let looped = mesh.lab(
        "lab5",
        &format!(
            "{GATEWAY_URL}\nfor i in {{1..10}}; do curl -s http://$GATEWAY_URL/ | grep -o \"city\" && echo \"v2\" || echo \"v1\"; done"
        ),
    )?;
    ensure!(looped.contains("v1") || looped.contains("v2"), "{looped}");
    for (v1, v2) in [(70, 30), (90, 10)] {
        let yaml = std::fs::read_to_string(
            lateen_e2e::mesh::repository().join("samples/course/lab5/customers-50-50.yaml"),
        )?
        .replacen("weight: 50", &format!("weight: {v1}"), 1)
        .replacen("weight: 50", &format!("weight: {v2}"), 1);
        mesh.apply(&yaml)?;
        settled(mesh, &[v1, v2])?;
        share(mesh, 400, f64::from(v2) / 100.0)?;
    }
    mesh.lab(
        "lab5",
        "kubectl delete deploy web-frontend customers-v1 customers-v2
         kubectl delete svc customers web-frontend
         kubectl delete vs customers web-frontend
         kubectl delete dr customers
         kubectl delete gateway gateway",
    )
    .map(drop)
}

/// Waits until web-frontend's own proxy shows these weights.
fn settled(mesh: &Mesh, weights: &[u32]) -> Result<()> {
    eventually("the weights arrive", SOON, || {
        let pod = mesh.pod("default", "app=web-frontend")?;
        let routes = mesh.lateen(&["proxy-config", "routes", &pod, "--name", "80", "-o", "json"])?;
        let routes: serde_json::Value = serde_json::from_str(&routes)?;
        let text = routes.to_string();
        weights
            .iter()
            .all(|w| text.contains(&format!("\"weight\":{w}")))
            .then_some(())
            .with_context(|| format!("no weights {weights:?} in {text}"))
    })
}

/// The part of `n` pages served by v2 lies within four standard deviations of `expected` (T3).
fn share(mesh: &Mesh, n: u32, expected: f64) -> Result<()> {
    let mut v2 = 0;
    for _ in 0..n {
        v2 += u32::from(page(mesh)?.contains("city"));
    }
    let n = f64::from(n);
    let deviation = (n * expected * (1.0 - expected)).sqrt();
    let off = (f64::from(v2) - n * expected).abs();
    ensure!(off <= 4.0 * deviation, "{v2} of {n} went to v2, expected {expected}");
    Ok(())
}

fn lab6_header_routing(mesh: &Mesh) -> Result<()> {
    for file in ["gateway", "web-frontend", "customers"] {
        mesh.lab("lab6", &format!("kubectl apply -f {file}.yaml"))?;
    }
    mesh.lab("lab6", "kubectl wait --for=condition=Available deploy --all --timeout=30s")?;
    let v1 = eventually("the page answers", SOON, || page(mesh))?;
    ensure!(!v1.contains("city"), "{v1}");
    mesh.lab("lab6", "kubectl apply -f customers-vs.yaml")?;
    let debug = format!("{GATEWAY_URL}\ncurl -s -H \"user: debug\" http://$GATEWAY_URL/");
    eventually("user: debug reaches v2", SOON, || {
        mesh.lab("lab6", &debug)?.contains("city").then_some(()).context("still v1")
    })?;
    for _ in 0..20 {
        ensure!(!page(mesh)?.contains("city"), "without the header v1 answers");
        ensure!(mesh.lab("lab6", &debug)?.contains("city"), "with the header v2 answers");
    }
    mesh.lab("lab6", "kubectl delete -f gateway.yaml -f web-frontend.yaml -f customers.yaml").map(drop)
}

/// The course's walk from listener to endpoint, with its own `istioctl` lines.
fn envoy_hands_on(mesh: &Mesh) -> Result<()> {
    for file in ["gateway", "web-frontend", "web-frontend-vs", "customers-v1", "customers-vs", "customers-dr"]
    {
        mesh.lab("lab5", &format!("kubectl apply -f {file}.yaml"))?;
    }
    mesh.lab("lab5", "kubectl wait --for=condition=Available deploy --all --timeout=30s")?;
    let pod = mesh.pod("default", "app=web-frontend")?;
    let istioctl = |line: &str| mesh.lab("lab5", &format!("istioctl {}", line.replace("POD", &pod)));
    let cluster = "outbound|80|v1|customers.default.svc.cluster.local";
    let ask_endpoints = format!("proxy-config endpoints POD --cluster \"{cluster}\"");
    let endpoints = eventually("the proxy knows v1", SOON, || {
        let all = istioctl(&ask_endpoints)?;
        all.contains(":3000").then_some(all.clone()).context(all)
    })?;
    let listeners = istioctl("proxy-config listeners POD")?;
    ensure!(listeners.starts_with("ADDRESSES"), "{listeners}");
    for row in ["0.0.0.0 80 ", "0.0.0.0 15001 ", "0.0.0.0 15006 "] {
        let shown = listeners.lines().map(|l| l.split_whitespace().collect::<Vec<_>>().join(" "));
        ensure!(shown.clone().any(|l| l.starts_with(row)), "no {row} in {listeners}");
    }
    let listener = istioctl("proxy-config listeners POD --address 0.0.0.0 --port 80 -o json")?;
    for part in ["\"rds\": {", "\"ads\": {}", "\"resourceApiVersion\": \"V3\"", "\"routeConfigName\": \"80\""]
    {
        ensure!(listener.contains(part), "no {part} in {listener}");
    }
    let routes = istioctl("proxy-config routes POD --name 80 -o json")?;
    let host = "\"name\": \"customers.default.svc.cluster.local:80\"";
    for part in [host, "\"customers\"", "\"prefix\": \"/\"", &format!("\"cluster\": \"{cluster}\"")] {
        ensure!(routes.contains(part), "no {part} in {routes}");
    }
    let clusters = istioctl("proxy-config clusters POD --fqdn customers.default.svc.cluster.local")?;
    let rows: Vec<Vec<_>> = clusters.lines().map(|l| l.split_whitespace().collect()).collect();
    let row = |subset| {
        vec!["customers.default.svc.cluster.local", "80", subset, "outbound", "EDS", "customers.default"]
    };
    for subset in ["-", "v1"] {
        ensure!(rows.contains(&row(subset)), "no subset {subset} in {clusters}");
    }
    // Not just any: pods of the trial before may still be ending.
    let customers = mesh.pod("default", "app=customers")?;
    let ip = mesh.kubectl(&["get", "pod", &customers, "-o", "jsonpath={.status.podIP}"])?;
    let row = endpoints.lines().nth(1).with_context(|| endpoints.clone())?;
    let row: Vec<_> = row.split_whitespace().collect();
    ensure!(row == [format!("{ip}:3000").as_str(), "HEALTHY", "OK", cluster], "{endpoints}");
    let bootstrap = istioctl("proxy-config bootstrap POD")?;
    ensure!(bootstrap.contains("\"bootstrap\"") && bootstrap.contains("\"node\""), "{bootstrap}");
    let status = istioctl("proxy-status")?;
    ensure!(status.lines().any(|l| l.starts_with(&format!("{pod}.default"))), "{status}");
    for command in ["listener", "route", "cluster", "endpoint", "bootstrap"] {
        let said = istioctl(&format!("proxy-config {command} POD -n default"))?;
        ensure!(said.lines().count() > 1, "proxy-config {command}: {said}");
    }
    mesh.lab("lab5", "kubectl delete -f gateway.yaml -f web-frontend.yaml -f web-frontend-vs.yaml -f customers-v1.yaml -f customers-vs.yaml -f customers-dr.yaml")
        .map(drop)
}

/// The kubectl commands of the labs and of every day that the labs above do not use.
fn kubectl_as_usual(mesh: &Mesh) -> Result<()> {
    mesh.lab(
        "lab5",
        r#"
        kubectl apply -f customers-v1.yaml | grep created
        kubectl apply -f customers-v1.yaml | grep unchanged
        kubectl rollout status deploy/customers-v1 --timeout=30s
        kubectl run curl --image=curlimages/curl:latest --image-pull-policy=IfNotPresent --command -- /bin/sh -c "sleep infinity"
        kubectl wait --for=condition=Ready pod/curl --timeout=30s
        kubectl exec curl -c curl -- curl -s http://customers/ | grep name
        kubectl exec deploy/customers-v1 -c istio-proxy -- curl -s localhost:15000/server_info | grep -i version
        kubectl describe pod curl | grep -E 'Image: +curlimages/curl:latest'
        kubectl logs deploy/customers-v1 -c istio-proxy | grep -c . >/dev/null
        (kubectl get secrets -A --as=system:serviceaccount:default:default 2>&1 || true) | grep -F '"system:serviceaccount:default:default" cannot list resource "secrets"'
        kubectl label pod curl tier=test && kubectl get pods -l tier=test -o name | grep pod/curl
        kubectl get pods -o wide | grep -E '10\.244\.'
        kubectl port-forward deploy/customers-v1 13000:3000 >/dev/null & forward=$!
        for i in $(seq 100); do curl -sf localhost:13000/ >/dev/null && break; sleep 0.05; done
        curl -sf localhost:13000/ | grep name
        kill $forward
        timeout 2 kubectl get pods -w --no-headers | grep curl || test $? = 124
        kubectl rollout restart deploy/customers-v1
        kubectl rollout status deploy/customers-v1 --timeout=60s
        kubectl delete pod curl --wait
        kubectl delete -f customers-v1.yaml
        "#,
    )?;
    let bare = mesh.lab(
        "lab3",
        r"
        kubectl create namespace plain
        kubectl apply -n plain -f hello-world.yaml
        kubectl rollout status -n plain deploy/hello-world --timeout=30s
        kubectl get pods -n plain --no-headers
        kubectl delete namespace plain
        ",
    )?;
    ensure!(bare.contains("1/1"), "without the label there is no sidecar: {bare}");
    Ok(())
}
