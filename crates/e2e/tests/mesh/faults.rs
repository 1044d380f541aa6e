//! Bad input and killed processes: the mesh keeps its last good state, says what is wrong, and recovers.

use std::time::Duration;

use crate::OnMesh;
use anyhow::{Context, Result, ensure};
use lateen_e2e::{
    Load, Mesh, eventually,
    web::{Ask, Reply},
};

pub(crate) const TRIALS: &[OnMesh] = &[
    ("bad_yaml_is_refused_as_kubernetes_does", bad_yaml_is_refused_as_kubernetes_does),
    ("missing_destination_is_503_and_a_warning", missing_destination_is_503_and_a_warning),
    ("unmapped_image_names_the_remedy", unmapped_image_names_the_remedy),
    ("control_plane_killed_traffic_goes_on", control_plane_killed_traffic_goes_on),
    ("proxy_killed_only_its_pod_suffers", proxy_killed_only_its_pod_suffers),
    ("inbound_fails_closed_without_the_proxy", inbound_fails_closed_without_the_proxy),
];

const SOON: Duration = Duration::from_secs(30);

fn hello(mesh: &Mesh) -> Result<Ask> {
    mesh.lab("lab3", "kubectl apply -f istio-gateway.yaml -f hello-world.yaml -f vs-hello-world.yaml")?;
    mesh.kubectl(&["rollout", "status", "deploy/hello-world", "--timeout=30s"])?;
    let ask = Ask::get(format!("http://{}/", mesh.gateway()?));
    answers(&ask)?;
    Ok(ask)
}

fn answers(ask: &Ask) -> Result<()> {
    eventually("hello-world answers", SOON, || {
        let reply = ask.send()?;
        ensure!(reply.status == 200, "{reply:?}");
        Ok(())
    })
}

fn clean(mesh: &Mesh) -> Result<()> {
    mesh.lab("lab3", "kubectl delete -f istio-gateway.yaml -f hello-world.yaml -f vs-hello-world.yaml")
        .map(drop)
}

fn refused(mesh: &Mesh, yaml: &str) -> Result<String> {
    let said = mesh.apply(yaml);
    let words = format!("{:#}", said.err().context("it was accepted")?);
    Ok(words)
}

fn bad_yaml_is_refused_as_kubernetes_does(mesh: &Mesh) -> Result<()> {
    let ask = hello(mesh)?;
    let words = refused(mesh, "apiVersion: v1\nkind: Service\nmetadata:\n  name: x\nspec:\n  prots: []\n")?;
    ensure!(words.contains(r#"unknown field "spec.prots""#), "{words}");
    let vs = |route: &str| {
        format!(
            "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {{ name: hello-world }}\nspec:\n  hosts: ['*']\n  gateways: [istio-gateway]\n  http:\n  - {route}\n"
        )
    };
    let words = refused(mesh, &vs("ruote: []"))?;
    ensure!(words.contains(r#"unknown field "spec.http[0].ruote""#), "{words}");
    let words = refused(mesh, &vs("route: [{ destination: { host: hello-world }, weight: -1 }]"))?;
    ensure!(words.to_lowercase().contains("weight"), "{words}");
    let words = refused(
        mesh,
        &vs("{ match: [{ uri: { regex: '(' } }], route: [{ destination: { host: hello-world } }] }"),
    )?;
    ensure!(words.contains("regex"), "{words}");
    let words = refused(
        mesh,
        "apiVersion: v1\nkind: Service\nmetadata:\n  name: Not_A_Name\nspec: { ports: [{ port: 80 }] }\n",
    )?;
    ensure!(words.contains("Invalid value") && words.contains("Not_A_Name"), "{words}");
    let words = refused(mesh, "apiVersion: v1\nkind: [\n")?;
    ensure!(words.to_lowercase().contains("error"), "{words}");
    for _ in 0..10 {
        ensure!(ask.send()?.status == 200, "bad input must not touch good configuration");
    }
    clean(mesh)
}

fn missing_destination_is_503_and_a_warning(mesh: &Mesh) -> Result<()> {
    let ask = hello(mesh)?;
    for (host, subset) in
        [("nowhere.default.svc.cluster.local", ""), ("hello-world.default.svc.cluster.local", ", subset: v9")]
    {
        mesh.apply(&format!(
            "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {{ name: hello-world }}\nspec:\n  hosts: ['*']\n  gateways: [istio-gateway]\n  http:\n  - route: [{{ destination: {{ host: {host}{subset} }} }}]\n"
        ))?;
        eventually("503", SOON, || (ask.send()?.status == 503).then_some(()).context("not 503"))?;
        eventually("a warning in status", SOON, || {
            let status = mesh.kubectl(&["get", "vs", "hello-world", "-o", "jsonpath={.status}"])?;
            // What was said of the destination before may still be there.
            ensure!(status.contains("IST0101") && status.contains(host), "{status}");
            Ok(())
        })?;
        eventually("the flag in the access log", SOON, || {
            let log =
                mesh.kubectl(&["logs", "-n", "istio-system", "deploy/istio-ingressgateway", "--tail=20"])?;
            ensure!(log.contains(" 503 NC cluster_not_found "), "{log}");
            Ok(())
        })?;
    }
    mesh.lab("lab3", "kubectl apply -f vs-hello-world.yaml")?;
    answers(&ask)?;
    eventually("the warning goes", SOON, || {
        let status = mesh.kubectl(&["get", "vs", "hello-world", "-o", "jsonpath={.status}"])?;
        ensure!(!status.contains("IST0101"), "{status}");
        Ok(())
    })?;
    clean(mesh)
}

fn unmapped_image_names_the_remedy(mesh: &Mesh) -> Result<()> {
    mesh.kubectl(&["run", "unknown", "--image=example.com/nobody/knows:1"])?;
    eventually("the pod says why it waits", SOON, || {
        let pods = mesh.kubectl(&["get", "pod", "unknown", "--no-headers"])?;
        ensure!(pods.contains("ErrImagePull") || pods.contains("ImagePullBackOff"), "{pods}");
        let described = mesh.kubectl(&["describe", "pod", "unknown"])?;
        ensure!(described.contains("--image example.com/nobody/knows"), "{described}");
        Ok(())
    })?;
    mesh.kubectl(&["delete", "pod", "unknown", "--grace-period=0", "--force"]).map(drop)
}

fn any(_: &Reply) -> String {
    String::new()
}

fn control_plane_killed_traffic_goes_on(mesh: &Mesh) -> Result<()> {
    let ask = hello(mesh)?;
    let load = Load::start(ask.clone(), 50, any);
    let killed = std::process::Command::new("bash")
        .args(["-c", "for p in /proc/[0-9]*; do case $(readlink $p/exe) in */lateend) kill -9 ${p#/proc/};; esac; done"])
        .status()?;
    ensure!(killed.success(), "cannot kill lateend");
    eventually("istiod is restarted", SOON, || {
        let restarts = mesh.kubectl(&[
            "get",
            "pods",
            "-n",
            "istio-system",
            "-l",
            "app=istiod",
            "-o",
            "jsonpath={.items[0].status.containerStatuses[0].restartCount}",
        ])?;
        ensure!(restarts.trim() != "0" && !restarts.is_empty(), "restarts: {restarts}");
        Ok(())
    })?;
    mesh.kubectl(&["rollout", "status", "-n", "istio-system", "deploy/istiod", "--timeout=30s"])?;
    mesh.apply("apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: { name: teapot }\nspec:\n  hosts: [teapot.example.com]\n  gateways: [istio-gateway]\n  http:\n  - directResponse: { status: 418 }\n")?;
    let teapot = Ask::get(format!("http://{}/", mesh.gateway()?)).header("host", "teapot.example.com");
    eventually("a change after the restart arrives", SOON, || {
        (teapot.send()?.status == 418).then_some(()).context("not yet")
    })?;
    load.stop()?.lossless()?;
    mesh.kubectl(&["delete", "vs", "teapot"])?;
    clean(mesh)
}

/// Kills the proxy of one pod with SIGKILL.
fn kill_proxy(mesh: &Mesh, pod: &str) -> Result<()> {
    // From inside: the proxy is the only process of its container but for its children.
    mesh.kubectl_output(&["exec", pod, "-c", "istio-proxy", "--", "sh", "-c", "kill -9 -1; kill -9 1"])?;
    let ip = mesh.kubectl(&["get", "pod", pod, "-o", "jsonpath={.status.podIP}"])?;
    let script = format!(
        "for n in $(ip netns list | awk '/^lateen-/ {{print $1}}'); do
           if ip netns exec $n ip -o addr | grep -q 'inet {ip}/'; then
             for p in $(ip netns pids $n); do case $(readlink /proc/$p/exe) in */lateen-proxy|*/envoy) kill -9 $p;; esac; done
           fi
         done"
    );
    ensure!(
        std::process::Command::new("bash").args(["-c", &script]).status()?.success(),
        "cannot kill the proxy of {pod}"
    );
    Ok(())
}

fn proxy_killed_only_its_pod_suffers(mesh: &Mesh) -> Result<()> {
    let ask = hello(mesh)?;
    mesh.lab(
        "lab5",
        "kubectl apply -f customers-v1.yaml && kubectl rollout status deploy/customers-v1 --timeout=30s",
    )?;
    let victim = mesh.pod("default", "app=customers")?;
    let load = Load::start(ask, 50, any);
    kill_proxy(mesh, &victim)?;
    eventually("the proxy is back", SOON, || {
        let pod = mesh.kubectl(&["get", "pod", &victim, "-o", "json"])?;
        let pod: serde_json::Value = serde_json::from_str(&pod)?;
        let statuses = pod["status"]["containerStatuses"].as_array().context("no statuses")?;
        let proxy = statuses.iter().find(|c| c["name"] == "istio-proxy").context("no proxy")?;
        ensure!(proxy["restartCount"].as_u64() > Some(0) && proxy["ready"] == true, "{proxy}");
        let others = statuses.iter().filter(|c| c["name"] != "istio-proxy");
        ensure!(others.clone().all(|c| c["restartCount"] == 0), "the application was restarted too: {pod}");
        Ok(())
    })?;
    load.stop()?.lossless()?;
    mesh.kubectl(&["delete", "-n", "default", "deploy/customers-v1", "svc/customers"])?;
    clean(mesh)
}

/// Straight to the pod's address from outside the mesh: with the proxy dead the application must not answer.
fn inbound_fails_closed_without_the_proxy(mesh: &Mesh) -> Result<()> {
    hello(mesh)?;
    let pod = mesh.pod("default", "app=hello-world")?;
    let ip = mesh.kubectl(&["get", "pod", &pod, "-o", "jsonpath={.status.podIP}"])?;
    let direct = Ask::get(format!("http://{ip}:3000/"));
    ensure!(direct.send()?.status == 200, "through the proxy the application answers");
    let mut refused = 0;
    for _ in 0..5 {
        kill_proxy(mesh, &pod)?;
        for _ in 0..20 {
            match direct.send() {
                Err(_) => refused += 1,
                Ok(reply) => ensure!(
                    reply.headers.contains_key("x-envoy-upstream-service-time")
                        || reply.headers.get("server").is_some_and(|s| s.contains("envoy")),
                    "the application answered past its proxy: {reply:?}"
                ),
            }
        }
    }
    ensure!(refused > 0, "the proxy was never seen dead");
    clean(mesh)
}
