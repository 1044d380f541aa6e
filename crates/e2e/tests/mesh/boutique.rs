//! The course's Online Boutique: traffic splitting, faults and resiliency, with its own manifests and commands, on the
//! reduced shop of `samples/boutique`.

use std::time::{Duration, Instant};

use crate::OnMesh;
use anyhow::{Context, Result, ensure};
use lateen_e2e::{
    Mesh, eventually,
    web::{Ask, Reply},
};

pub(crate) const TRIALS: &[OnMesh] = &[
    ("traffic_splitting", traffic_splitting),
    ("fault_injection", fault_injection),
    ("time_out_and_retries", time_out_and_retries),
    ("outlier_detection", outlier_detection),
];

const SOON: Duration = Duration::from_secs(30);

/// Deploys the shop as the course does and waits until its start page answers.
fn deploy(mesh: &Mesh) -> Result<()> {
    mesh.lab(
        "../boutique",
        "kubectl apply -f kubernetes-manifests.yaml
         kubectl wait --for=condition=Available deploy --all --timeout=60s
         kubectl apply -f istio-manifests.yaml",
    )?;
    eventually("the shop answers", SOON, || {
        let reply = page(mesh, "/")?;
        ensure!(reply.status == 200 && reply.body.contains("Sunglasses"), "{reply:?}");
        Ok(())
    })
}

fn clean(mesh: &Mesh) -> Result<()> {
    mesh.lab(
        "../boutique",
        "kubectl delete --ignore-not-found -f kubernetes-manifests.yaml -f istio-manifests.yaml
         kubectl delete --ignore-not-found vs productcatalogservice recommendationservice
         kubectl delete --ignore-not-found dr frontend productcatalogservice",
    )
    .map(drop)
}

fn page(mesh: &Mesh, path: &str) -> Result<Reply> {
    Ask::get(format!("http://{}{path}", mesh.gateway()?)).send()
}

/// How long a page takes.
fn timed(mesh: &Mesh, path: &str) -> Result<(Duration, Reply)> {
    let begun = Instant::now();
    let reply = page(mesh, path)?;
    Ok((begun.elapsed(), reply))
}

fn traffic_splitting(mesh: &Mesh) -> Result<()> {
    deploy(mesh)?;
    let pods = mesh.kubectl(&["get", "pods"])?;
    ensure!(pods.lines().filter(|l| l.contains("2/2") && l.contains("Running")).count() >= 3, "{pods}");
    mesh.lab(
        "boutique",
        "kubectl delete deploy frontend
         kubectl apply -f frontend-original.yaml
         kubectl apply -f frontend-dr.yaml
         kubectl apply -f frontend-vs.yaml
         kubectl rollout status deploy/frontend --timeout=30s
         kubectl apply -f frontend-v1.yaml
         kubectl rollout status deploy/frontend-v1 --timeout=30s",
    )?;
    let is_v1 = |reply: &Reply| -> Result<bool> {
        ensure!(reply.status == 200, "{reply:?}");
        let (old, new) = (reply.body.contains("products-table"), reply.body.contains("\"products-grid"));
        ensure!(old != new, "{reply:?}");
        Ok(old)
    };
    eventually("the original answers", SOON, || page(mesh, "/").and_then(|reply| is_v1(&reply).map(drop)))?;
    for _ in 0..30 {
        ensure!(!is_v1(&page(mesh, "/")?)?, "v1 must not get traffic before the split");
    }
    mesh.lab("boutique", "kubectl apply -f frontend-30.yaml")?;
    eventually("v1 gets traffic", SOON, || is_v1(&page(mesh, "/")?)?.then_some(()).context("only original"))?;
    let n = 300_u32;
    let mut v1 = 0_u32;
    for _ in 0..n {
        v1 += u32::from(is_v1(&page(mesh, "/")?)?);
    }
    let expected = f64::from(n) * 0.3;
    let deviation = (f64::from(n) * 0.3 * 0.7).sqrt();
    ensure!(
        (f64::from(v1) - expected).abs() <= 4.0 * deviation,
        "{v1} of {n} went to v1, expected {expected}"
    );
    mesh.lab("boutique", "kubectl delete -f frontend-v1.yaml -f frontend-dr.yaml")?;
    clean(mesh)
}

/// Delay and abort with the course's numbers: half of the calls five seconds late, half of them failed with 500.
fn fault_injection(mesh: &Mesh) -> Result<()> {
    deploy(mesh)?;
    let product = "/product/6E92ZMYYFZ";
    mesh.lab("boutique", "kubectl apply -f recommendation-delay.yaml")?;
    eventually("a page is late", SOON, || {
        let (took, _) = timed(mesh, product)?;
        ensure!(took >= Duration::from_secs(5), "only {took:?}");
        Ok(())
    })?;
    // At the same time, as half of them take five seconds.
    let pages = std::thread::scope(|scope| {
        let pages: Vec<_> = (0..40).map(|_| scope.spawn(|| timed(mesh, product))).collect();
        pages
            .into_iter()
            .map(|page| page.join().map_err(|_| anyhow::anyhow!("a page panicked"))?)
            .collect::<Result<Vec<_>>>()
    })?;
    for (took, reply) in &pages {
        ensure!(reply.status == 200 && reply.body.contains("Other Products You Might Like"), "{reply:?}");
        ensure!(*took < Duration::from_secs(10), "{took:?}");
    }
    let late = pages.iter().filter(|(took, _)| *took >= Duration::from_secs(5)).count();
    about_half(late, pages.len())?;
    mesh.lab(
        "boutique",
        "kubectl delete virtualservice recommendationservice
         kubectl apply -f productcatalogservice-abort.yaml",
    )?;
    let words = "rpc error: code = Unknown desc = fault filter abort\ncould not retrieve products";
    eventually("a page fails", SOON, || {
        page(mesh, "/")?.body.contains(words).then_some(()).context("no failure")
    })?;
    let n = 100;
    let mut failed = 0;
    for _ in 0..n {
        let reply = page(mesh, "/")?;
        let fails = reply.status == 500 && reply.body.contains(words);
        ensure!(fails || reply.status == 200, "{reply:?}");
        failed += usize::from(fails);
    }
    about_half(failed, n)?;
    mesh.lab("boutique", "kubectl delete virtualservice productcatalogservice")?;
    eventually("pages answer again", SOON, || {
        for _ in 0..10 {
            ensure!(page(mesh, "/")?.status == 200, "a page failed");
        }
        Ok(())
    })?;
    clean(mesh)
}

/// Within four standard deviations.
fn about_half(count: usize, n: usize) -> Result<()> {
    let off = (count as f64 - n as f64 * 0.5).abs();
    ensure!(off <= 4.0 * (n as f64 * 0.25).sqrt(), "{count} of {n}");
    Ok(())
}

/// Resiliency with the course's numbers: 6 s of latency, 2 s of time-out, tries of 1 s each.
fn time_out_and_retries(mesh: &Mesh) -> Result<()> {
    deploy(mesh)?;
    let (fast, _) = timed(mesh, "/")?;
    ensure!(fast < Duration::from_secs(2), "without latency the page took {fast:?}");
    // What `kubectl edit deploy productcatalogservice` would write.
    mesh.lab(
        "boutique",
        "kubectl set env deploy/productcatalogservice EXTRA_LATENCY=6s
         kubectl rollout status deploy/productcatalogservice --timeout=30s",
    )?;
    let near = |took: Duration, from: f64, to: f64| (from..to).contains(&took.as_secs_f64());
    eventually("the page takes six seconds", SOON, || {
        let (took, reply) = timed(mesh, "/")?;
        ensure!(reply.status == 200 && near(took, 6.0, 9.0), "{took:?} {reply:?}");
        Ok(())
    })?;
    mesh.lab("boutique", "kubectl apply -f productcatalogservice-timeout.yaml")?;
    eventually("the call ends after two seconds", SOON, || {
        let (took, reply) = timed(mesh, "/")?;
        let words =
            "rpc error: code = Unavailable desc = upstream request timeout\ncould not retrieve products";
        ensure!(
            reply.status == 500 && reply.body.contains(words) && near(took, 2.0, 4.0),
            "{took:?} {reply:?}"
        );
        Ok(())
    })?;
    mesh.lab("boutique", "kubectl apply -f productcatalogservice-retry.yaml")?;
    // A try that timed out is not among the conditions Istio retries on by default: the page fails after one second.
    tries(mesh, 1, (1.0, 2.0))?;
    mesh.lab(
        "boutique",
        r#"kubectl patch vs productcatalogservice --type json \
             -p '[{"op": "add", "path": "/spec/http/0/retries/retryOn", "value": "5xx"}]'"#,
    )?;
    tries(mesh, 4, (4.0, 7.0))?;
    clean(mesh)
}

/// Waits until a page's call fails for time-outs after this many tries, within these seconds.
fn tries(mesh: &Mesh, wanted: u64, (from, to): (f64, f64)) -> Result<()> {
    eventually("tries of a second each", SOON, || {
        let before = catalog_requests(mesh)?;
        let (took, reply) = timed(mesh, "/")?;
        ensure!(reply.status == 500 && reply.body.contains("desc = upstream request timeout"), "{reply:?}");
        ensure!((from..to).contains(&took.as_secs_f64()), "{took:?} {reply:?}");
        let made = catalog_requests(mesh)? - before;
        ensure!(made == wanted, "{made} tries, not {wanted}");
        Ok(())
    })
}

/// Requests that the frontend's proxy has sent to productcatalogservice, retries included.
fn catalog_requests(mesh: &Mesh) -> Result<u64> {
    let frontend = mesh.pod("default", "app=frontend")?;
    let ask = "curl -s localhost:15000/stats | grep productcatalogservice | grep upstream_rq_total:";
    let said = mesh.kubectl(&["exec", &frontend, "-c", "istio-proxy", "--", "sh", "-c", ask])?;
    let number = said.trim().rsplit(' ').next().and_then(|n| n.parse().ok());
    number.with_context(|| format!("no number of requests in {said:?}"))
}

/// A host that fails five times in a row is ejected, and the others carry on.
fn outlier_detection(mesh: &Mesh) -> Result<()> {
    deploy(mesh)?;
    // Of two catalogues one is broken: it has no product methods, and a time-out makes its answers 504s.
    mesh.lab(
        "../boutique",
        "kubectl get deploy productcatalogservice -o json |
           sed 's/\"name\": \"productcatalogservice\"/\"name\": \"productcatalogservice-slow\"/; s/\"app\": \"productcatalogservice\"/\"app\": \"productcatalogservice\", \"version\": \"slow\"/g' |
           kubectl apply -f -
         kubectl set env deploy/productcatalogservice-slow EXTRA_LATENCY=3s
         kubectl rollout status deploy/productcatalogservice-slow --timeout=30s",
    )?;
    mesh.apply(
        "apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: { name: productcatalogservice }
spec:
  hosts: [productcatalogservice]
  http:
  - route: [{ destination: { host: productcatalogservice } }]
    timeout: 0.3s
    retries: { attempts: 0 }
",
    )?;
    eventually("the slow host is seen", SOON, || {
        let failed = (0..6).map(|_| page(mesh, "/")).collect::<Result<Vec<_>>>()?;
        failed.iter().any(|reply| reply.status == 500).then_some(()).context("all pages answered")
    })?;
    mesh.apply(
        "apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: { name: productcatalogservice }
spec:
  host: productcatalogservice
  trafficPolicy:
    outlierDetection: { consecutiveGatewayErrors: 2, interval: 1s, baseEjectionTime: 60s, maxEjectionPercent: 50 }
",
    )?;
    eventually("the slow host is ejected", SOON, || {
        for _ in 0..10 {
            ensure!(page(mesh, "/")?.status == 200, "a page failed");
        }
        Ok(())
    })?;
    let frontend = mesh.pod("default", "app=frontend")?;
    let shown = mesh.lateen(&["proxy-config", "endpoints", &frontend])?;
    let rows = shown.lines().filter(|l| l.contains("outbound|3550||productcatalogservice"));
    let ejected = rows.clone().filter(|l| l.contains("FAILED")).count();
    ensure!(ejected == 1 && rows.count() == 2, "{shown}");
    mesh.lab("boutique", "kubectl delete deploy productcatalogservice-slow")?;
    clean(mesh)
}
