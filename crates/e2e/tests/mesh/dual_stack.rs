//! IPv4 and IPv6 side by side, through sidecars with mutual TLS and a gateway (T23).

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lateen_e2e::{Mesh, eventually, web::Ask};

use crate::OnMesh;

pub(crate) const TRIALS: &[OnMesh] = &[("both_families", both_families)];

const SOON: Duration = Duration::from_secs(30);

fn both_families(mesh: &Mesh) -> Result<()> {
    let families = mesh.kubectl(&["get", "node", "-o", "jsonpath={.items[0].spec.podCIDRs}"])?;
    ensure!(families.contains(':'), "this machine has no IPv6, which the trial needs: {families}");
    let control_plane = |change: &str| -> Result<()> {
        mesh.kubectl(&["set", "env", "-n", "istio-system", "deploy/istiod", change])?;
        mesh.kubectl(&["rollout", "status", "-n", "istio-system", "deploy/istiod", "--timeout=90s"]).map(drop)
    };
    control_plane("ISTIO_DUAL_STACK=true")?;
    let outcome = with_dual_stack(mesh);
    control_plane("ISTIO_DUAL_STACK-")?;
    outcome?;
    mesh.kubectl(&["delete", "pod", "dual-server", "dual-client", "dual-stranger", "--grace-period=1"])?;
    mesh.kubectl(&[
        "delete",
        "peerauthentication,gateway.networking.istio.io,virtualservice,destinationrule",
        "dual",
    ])?;
    mesh.kubectl(&["delete", "svc", "dual", "six", "dual-pods"]).map(drop)
}

/// Status and body of a request from a pod.
fn curl(mesh: &Mesh, pod: &str, args: &str) -> Result<String> {
    let command = format!(
        "curl -s -g -m 10 -w '%{http_code} via %{remote_ip}' {args}",
        http_code = "{http_code}",
        remote_ip = "{remote_ip}"
    );
    let out = mesh.kubectl_output(&["exec", pod, "-c", "client", "--", "sh", "-c", &command])?;
    Ok(String::from_utf8_lossy(&out.stdout).trim().to_owned())
}

fn with_dual_stack(mesh: &Mesh) -> Result<()> {
    mesh.apply_fixture("dual_stack.yaml")?;
    let pods = ["pod/dual-server", "pod/dual-client", "pod/dual-stranger"];
    mesh.kubectl(&[&["wait", "--for=condition=Ready", "--timeout=90s"][..], &pods].concat())?;
    let field = |kind: &str, name: &str, path: &str| -> Result<Vec<String>> {
        let list = mesh.kubectl(&["get", kind, name, "-o", &format!("jsonpath={{{path}}}")])?;
        Ok(list.split_whitespace().map(str::to_owned).collect())
    };
    let dual = field("svc", "dual", ".spec.clusterIPs[*]")?;
    let six = field("svc", "six", ".spec.clusterIPs[*]")?;
    let server = field("pod", "dual-server", ".status.podIPs[*].ip")?;
    ensure!(dual.len() == 2 && six.len() == 1 && server.len() == 2, "{dual:?} {six:?} {server:?}");
    // By name in either family and by address, HTTP and bytes.
    let asked = [
        ("-4 http://dual/name4".to_owned(), &dual[0]),
        ("-6 http://dual/name6".to_owned(), &dual[1]),
        ("http://six/six".to_owned(), &six[0]),
        (format!("http://{}/address4", dual[0]), &dual[0]),
        (format!("http://[{}]/address6", dual[1]), &dual[1]),
        (format!("http://[{}]/six-address", six[0]), &six[0]),
        ("-4 http://dual:9000/bytes4".to_owned(), &dual[0]),
        ("-6 http://dual:9000/bytes6".to_owned(), &dual[1]),
        ("http://six:9000/six-bytes".to_owned(), &six[0]),
        ("-4 http://dual-pods:8080/pods4".to_owned(), &server[0]),
        ("-6 http://dual-pods:8080/pods6".to_owned(), &server[1]),
    ];
    for (args, via) in &asked {
        eventually(args, SOON, || {
            let said = curl(mesh, "dual-client", args)?;
            ensure!(
                said.contains("\"version\":\"dual\"") && said.ends_with(&format!("200 via {via}")),
                "{said}"
            );
            Ok(())
        })?;
    }
    known_to_the_mesh(mesh, &server)?;
    strangers_are_refused(mesh, &dual, &six, &server)?;
    gateway(mesh)
}

/// Nothing went by the mesh: no connection was to an address without a service, and the server met none without mutual TLS.
fn known_to_the_mesh(mesh: &Mesh, server: &[String]) -> Result<()> {
    let log = eventually("the last request is in the log", SOON, || {
        let log = mesh.kubectl(&["logs", "dual-client", "-c", "istio-proxy", "--tail=500"])?;
        ensure!(log.contains("dual-pods") && log.contains("/address6"), "{log}");
        Ok(log)
    })?;
    ensure!(!log.contains("PassthroughCluster"), "{log}");
    // The endpoint is known by its first address, whichever is dialled; the IPv6-only Service's by the other.
    for address in [format!("{}:8080", server[0]), format!("[{}]:8080", server[1])] {
        ensure!(log.contains(&address), "no {address} in {log}");
    }
    Ok(())
}

fn strangers_are_refused(mesh: &Mesh, dual: &[String], six: &[String], server: &[String]) -> Result<()> {
    let urls = [
        format!("http://{}", dual[0]),
        format!("http://[{}]", dual[1]),
        format!("http://[{}]", six[0]),
        format!("http://[{}]:8080", server[1]),
    ];
    for url in urls {
        let said = curl(mesh, "dual-stranger", &url)?;
        ensure!(said.starts_with("000"), "{url} let a stranger in: {said}");
    }
    Ok(())
}

/// The gateway listens at both families, and reaches an IPv6-only Service.
fn gateway(mesh: &Mesh) -> Result<()> {
    let pod = mesh.pod("istio-system", "istio=ingressgateway")?;
    let path = "jsonpath={.status.podIPs[*].ip}";
    let addresses = mesh.kubectl(&["get", "pod", "-n", "istio-system", &pod, "-o", path])?;
    let addresses: Vec<&str> = addresses.split_whitespace().collect();
    ensure!(addresses.len() == 2, "{addresses:?}");
    for url in [format!("http://{}:8080/", addresses[0]), format!("http://[{}]:8080/", addresses[1])] {
        eventually(&url, SOON, || {
            let reply = Ask::get(&*url).header("host", "dual.example.com").send()?;
            ensure!(reply.status == 200, "{}", reply.status);
            Ok(())
        })
        .with_context(|| format!("the gateway at {url}"))?;
    }
    Ok(())
}
