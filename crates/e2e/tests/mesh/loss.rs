//! Nothing is lost while configuration and pods change under a steady load, and a change is live fast.

use std::time::{Duration, Instant};

use crate::OnMesh;
use anyhow::{Context, Result, ensure};
use lateen_e2e::{
    Load, Mesh, eventually,
    web::{Ask, Reply},
};

pub(crate) const TRIALS: &[OnMesh] = &[
    ("weights_change_under_load", weights_change_under_load),
    ("pods_restart_under_load", pods_restart_under_load),
    ("change_is_live_within_half_a_second", change_is_live_within_half_a_second),
];

const RATE: u32 = 50;

pub(crate) fn demo(mesh: &Mesh) -> Result<Ask> {
    mesh.lab("lab6", "kubectl apply -f gateway.yaml -f web-frontend.yaml -f customers.yaml")?;
    mesh.kubectl(&["wait", "--for=condition=Available", "deploy", "--all", "--timeout=60s"])?;
    let ask = Ask::get(format!("http://{}/", mesh.gateway()?));
    eventually("the demo answers", Duration::from_secs(30), || {
        let reply = ask.send()?;
        ensure!(reply.status == 200, "{reply:?}");
        Ok(())
    })?;
    Ok(ask)
}

pub(crate) fn clean(mesh: &Mesh) -> Result<()> {
    mesh.lab("lab6", "kubectl delete -f gateway.yaml -f web-frontend.yaml -f customers.yaml").map(drop)
}

fn version(reply: &Reply) -> String {
    if reply.body.contains("city") { "v2" } else { "v1" }.to_owned()
}

fn routed(v1: u32, v2: u32) -> String {
    format!(
        r#"{{"apiVersion":"networking.istio.io/v1","kind":"VirtualService","metadata":{{"name":"customers","namespace":"default"}},
        "spec":{{"hosts":["customers.default.svc.cluster.local"],"http":[{{"route":[
        {{"destination":{{"host":"customers.default.svc.cluster.local","subset":"v1"}},"weight":{v1}}},
        {{"destination":{{"host":"customers.default.svc.cluster.local","subset":"v2"}},"weight":{v2}}}]}}]}}}}"#
    )
}

fn weights_change_under_load(mesh: &Mesh) -> Result<()> {
    let ask = demo(mesh)?;
    let load = Load::start(ask, RATE, version);
    for step in 0..20_u32 {
        let v2 = (step * 37) % 101;
        mesh.apply(&routed(100 - v2, v2))?;
    }
    mesh.apply(&routed(0, 100))?;
    pause(Duration::from_secs(2));
    let report = load.stop()?;
    report.lossless()?;
    let last: Vec<_> = report.seen.iter().rev().take(20).map(|(_, v)| v.as_str()).collect();
    ensure!(last.iter().all(|v| *v == "v2"), "after 0/100 only v2 may answer: {last:?}");
    ensure!(report.seen.iter().any(|(_, v)| v == "v1"), "v1 never answered");
    clean(mesh)
}

fn pods_restart_under_load(mesh: &Mesh) -> Result<()> {
    let ask = demo(mesh)?;
    let load = Load::start(ask, RATE, version);
    let deployments = [
        ("default", "deploy/customers-v1"),
        ("default", "deploy/web-frontend"),
        ("istio-system", "deploy/istio-ingressgateway"),
        ("default", "deploy/customers-v1"),
    ];
    for (namespace, deployment) in deployments {
        mesh.restart(namespace, deployment)?;
    }
    pause(Duration::from_secs(3));
    let report = load.stop()?;
    report.lossless()?;
    clean(mesh)
}

/// From the write to the first reply of v2, through the API server, the control plane and every proxy on the way.
fn change_is_live_within_half_a_second(mesh: &Mesh) -> Result<()> {
    let ask = demo(mesh)?;
    mesh.apply(&routed(100, 0))?;
    pause(Duration::from_secs(1));
    let mut times = Vec::new();
    for round in 0..6 {
        let to_v2 = round % 2 == 0;
        let (wanted, yaml) = if to_v2 { ("v2", routed(0, 100)) } else { ("v1", routed(100, 0)) };
        // From the start of kubectl, so that nothing of the write is left out; kubectl itself takes most of it.
        let begun = Instant::now();
        std::thread::scope(|scope| -> Result<()> {
            let apply = scope.spawn(|| mesh.apply(&yaml));
            eventually("the change is live", Duration::from_secs(10), || {
                (version(&ask.send()?) == wanted).then_some(()).context("not yet")
            })?;
            times.push(begun.elapsed());
            apply.join().map_err(|_| anyhow::anyhow!("apply panicked"))?.map(drop)
        })?;
    }
    times.sort();
    eprintln!("change live after {times:?}");
    ensure!(times[times.len() - 1] <= Duration::from_millis(500), "slowest change took {times:?}");
    clean(mesh)
}

/// Lets the load run on; nothing is waited for.
fn pause(time: Duration) {
    let end = Instant::now() + time;
    while let Some(left) = end.checked_duration_since(Instant::now()) {
        std::thread::park_timeout(left);
    }
}
