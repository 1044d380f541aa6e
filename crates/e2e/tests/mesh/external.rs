//! What is outside the mesh: ServiceEntries, WorkloadEntries, unknown destinations, the egress gateway (T16, T17, T19, T23).

use std::time::Duration;

use anyhow::{Result, ensure};
use lateen_e2e::{Mesh, eventually};

use crate::OnMesh;

pub(crate) const TRIALS: &[OnMesh] = &[
    ("entries_by_address_and_by_name", entries_by_address_and_by_name),
    ("unknown_destinations_by_policy", unknown_destinations_by_policy),
    ("machines_behind_services", machines_behind_services),
    ("egress_gateway", egress_gateway),
];

const SOON: Duration = Duration::from_secs(30);
/// An address nobody has: what a name outside might resolve to.
const ELSEWHERE: &str = "198.18.0.1";

struct Outside<'a> {
    mesh: &'a Mesh,
    /// Address of the pod outside the mesh.
    far: String,
}

impl<'a> Outside<'a> {
    fn new(mesh: &'a Mesh) -> Result<Self> {
        mesh.apply_fixture("external.yaml")?;
        mesh.kubectl(&["wait", "--for=condition=Ready", "pod/caller", "--timeout=60s"])?;
        mesh.kubectl(&["wait", "-n", "outside", "--for=condition=Ready", "pod/far", "--timeout=60s"])?;
        let far = mesh.kubectl(&["get", "pod", "-n", "outside", "far", "-o", "jsonpath={.status.podIP}"])?;
        Ok(Self { mesh, far })
    }

    /// What curl in the caller's pod gets for a host that resolves to `address`: body, then status; or its exit code.
    fn curl(&self, host: &str, port: u16, address: &str, more: &str) -> Result<String> {
        let command = format!(
            "curl -s -m 5 -w '\\n%{{http_code}}' --resolve {host}:{port}:{address} {more} http://{host}:{port}/ || echo \"exit $?\""
        );
        let args = ["exec", "caller", "-c", "client", "--", "sh", "-c", &command];
        let out = self.mesh.kubectl_output(&args)?;
        Ok(String::from_utf8_lossy(&out.stdout).trim().to_owned())
    }

    fn answers(&self, what: &str, host: &str, port: u16, address: &str) -> Result<String> {
        eventually(what, SOON, || {
            let said = self.curl(host, port, address, "")?;
            ensure!(said.ends_with("200") && said.contains("far"), "{host}: {said}");
            Ok(said)
        })
    }

    fn clean(&self) -> Result<()> {
        let kinds = "se,we,vs,dr,gw";
        self.mesh.kubectl(&["delete", kinds, "--all", "-n", "default", "--wait=false"])?;
        self.mesh.kubectl(&["delete", "pod", "caller", "--grace-period=1", "--wait=true"])?;
        self.mesh.kubectl(&["delete", "namespace", "outside", "--wait=true", "--timeout=60s"]).map(drop)
    }
}

fn entry(name: &str, spec: &str) -> String {
    format!(
        "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {{ name: {name} }}\nspec: {spec}\n---\n"
    )
}

fn entries_by_address_and_by_name(mesh: &Mesh) -> Result<()> {
    let outside = Outside::new(mesh)?;
    let http = "ports: [{ number: 80, name: http, protocol: HTTP, targetPort: 8080 }]";
    let far = &outside.far;
    mesh.apply(&[
        entry("static", &format!("{{ hosts: [static.example.com], resolution: STATIC, endpoints: [{{ address: {far} }}], {http} }}")),
        entry("dns", "{ hosts: [dns.example.com], resolution: DNS, endpoints: [{ address: far.outside.svc.cluster.local }], ports: [{ number: 80, name: http, protocol: HTTP }] }"),
        entry("turn", "{ hosts: [far.outside.svc.cluster.local], resolution: DNS_ROUND_ROBIN, ports: [{ number: 80, name: http, protocol: HTTP }] }"),
        entry("bytes", &format!("{{ hosts: [bytes.example.com], addresses: [198.18.7.0/24], resolution: STATIC, endpoints: [{{ address: {far} }}], ports: [{{ number: 8123, name: tcp, protocol: TCP, targetPort: 8080 }}] }}")),
        entry("wild", "{ hosts: ['*.wild.example.com'], resolution: NONE, ports: [{ number: 8080, name: http, protocol: HTTP }] }"),
    ].concat())?;
    outside.answers("an entry's listed address", "static.example.com", 80, ELSEWHERE)?;
    outside.answers("a name of an entry's endpoint", "dns.example.com", 80, ELSEWHERE)?;
    outside.answers("a host that is looked up itself", "far.outside.svc.cluster.local", 80, ELSEWHERE)?;
    outside.answers("bytes to a range of addresses", "bytes.example.com", 8123, "198.18.7.9")?;
    outside.answers("a wildcard host where the caller resolved it", "a.wild.example.com", 8080, far)?;
    let clusters =
        mesh.lateen(&["proxy-config", "clusters", "caller.default", "--fqdn", "dns.example.com"])?;
    ensure!(clusters.contains("STRICT_DNS"), "{clusters}");
    let status = mesh.kubectl(&["get", "se", "dns", "-o", "jsonpath={.status.addresses[0].value}"])?;
    ensure!(status.starts_with("240.240."), "an automatic address is in the status: {status:?}");
    outside.clean()
}

fn set_policy(mesh: &Mesh, mode: &str) -> Result<()> {
    let script = format!(
        "kubectl get cm -n istio-system istio -o jsonpath='{{.data.mesh}}' | grep -v '^outboundTrafficPolicy' > /tmp/lateen-mesh-config\n\
         printf '\\noutboundTrafficPolicy: {{ mode: {mode} }}\\n' >> /tmp/lateen-mesh-config\n\
         kubectl create cm -n istio-system istio --from-file=mesh=/tmp/lateen-mesh-config --dry-run=client -o json \\\n\
           | jq '{{data: {{mesh: .data.mesh}}}}' > /tmp/lateen-mesh-patch\n\
         kubectl patch cm -n istio-system istio --patch-file /tmp/lateen-mesh-patch\n\
         rm /tmp/lateen-mesh-config /tmp/lateen-mesh-patch"
    );
    mesh.lab("", &script).map(drop)
}

fn unknown_destinations_by_policy(mesh: &Mesh) -> Result<()> {
    let outside = Outside::new(mesh)?;
    let far = outside.far.clone();
    mesh.apply(&entry(
        "known",
        &format!("{{ hosts: [known.example.com], resolution: STATIC, endpoints: [{{ address: {far} }}], ports: [{{ number: 80, name: http, protocol: HTTP, targetPort: 8080 }}] }}"),
    ))?;
    outside.answers("what is registered", "known.example.com", 80, ELSEWHERE)?;
    outside.answers("what is unknown passes through", "unknown.example.com", 8080, &far)?;
    set_policy(mesh, "REGISTRY_ONLY")?;
    let refused = eventually("HTTP to an unknown host is refused", SOON, || {
        let said = outside.curl("unknown.example.com", 80, &far, "")?;
        ensure!(said.ends_with("502"), "{said}");
        Ok(said)
    });
    let reset = eventually("a connection to an unknown port is closed", SOON, || {
        let said = outside.curl("unknown.example.com", 8080, &far, "")?;
        ensure!(said.contains("exit 52") || said.contains("exit 56"), "{said}");
        Ok(said)
    });
    let known = outside.answers("what is registered still answers", "known.example.com", 80, ELSEWHERE);
    let log = eventually("the log says block_all", SOON, || {
        let log = mesh.kubectl(&["logs", "caller", "-c", "istio-proxy", "--tail=50"])?;
        let line =
            log.lines().find(|line| line.contains("unknown.example.com\"") && line.contains("block_all"));
        ensure!(line.is_some_and(|line| line.contains(" 502 - direct_response ")), "{log}");
        Ok(())
    });
    // Whatever was seen, the mesh's policy goes back to what it was.
    set_policy(mesh, "ALLOW_ANY")?;
    refused?;
    reset?;
    known?;
    log?;
    outside.answers("what is unknown passes through again", "unknown.example.com", 8080, &far)?;
    outside.clean()
}

fn machines_behind_services(mesh: &Mesh) -> Result<()> {
    let outside = Outside::new(mesh)?;
    let far = &outside.far;
    mesh.apply(&format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{ name: machine }}\nspec:\n  selector: {{ app: machine }}\n  ports: [{{ name: http, port: 80, targetPort: 8080 }}]\n---\n\
         apiVersion: networking.istio.io/v1\nkind: WorkloadEntry\nmetadata: {{ name: machine }}\nspec: {{ address: {far}, labels: {{ app: machine }} }}\n---\n{}",
        entry("selecting", "{ hosts: [machines.example.com], resolution: STATIC, location: MESH_INTERNAL, workloadSelector: { labels: { app: machine } }, ports: [{ number: 80, name: http, protocol: HTTP, targetPort: 8080 }] }"),
    ))?;
    outside.answers("a machine behind a Service", "machine.default.svc.cluster.local", 80, ELSEWHERE)?;
    outside.answers("a machine behind an entry", "machines.example.com", 80, ELSEWHERE)?;
    mesh.kubectl(&["delete", "we", "machine"])?;
    eventually("without it nobody is there", SOON, || {
        let said = outside.curl("machines.example.com", 80, ELSEWHERE, "")?;
        ensure!(said.ends_with("503") && said.contains("no healthy upstream"), "{said}");
        Ok(())
    })?;
    mesh.kubectl(&["delete", "svc", "machine"])?;
    outside.clean()
}

/// Istio's example (tasks, traffic management, egress gateways), with a host of ours.
const EGRESS: &str = r"
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: { name: istio-egressgateway }
spec:
  selector: { istio: egressgateway }
  servers:
    - port: { number: 80, name: http, protocol: HTTP }
      hosts: [edition.example.com]
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: { name: egressgateway-for-edition }
spec:
  host: istio-egressgateway.istio-system.svc.cluster.local
  subsets: [{ name: edition }]
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: { name: direct-edition-through-egress-gateway }
spec:
  hosts: [edition.example.com]
  gateways: [istio-egressgateway, mesh]
  http:
    - match: [{ gateways: [mesh], port: 80 }]
      route:
        - destination:
            host: istio-egressgateway.istio-system.svc.cluster.local
            subset: edition
            port: { number: 80 }
          weight: 100
    - match: [{ gateways: [istio-egressgateway], port: 80 }]
      route:
        - destination: { host: edition.example.com, port: { number: 80 } }
          weight: 100
";

fn egress_gateway(mesh: &Mesh) -> Result<()> {
    let outside = Outside::new(mesh)?;
    mesh.kubectl(&[
        "rollout",
        "status",
        "-n",
        "istio-system",
        "deploy/istio-egressgateway",
        "--timeout=60s",
    ])?;
    mesh.apply(&entry("edition", "{ hosts: [edition.example.com], resolution: DNS, endpoints: [{ address: far.outside.svc.cluster.local }], ports: [{ number: 80, name: http-port, protocol: HTTP }, { number: 443, name: https, protocol: HTTPS }] }"))?;
    outside.answers("directly", "edition.example.com", 80, ELSEWHERE)?;
    mesh.apply(EGRESS)?;
    eventually("the gateway's log has the request", SOON, || {
        outside.answers("through the gateway", "edition.example.com", 80, ELSEWHERE)?;
        let log = mesh.kubectl(&["logs", "-n", "istio-system", "deploy/istio-egressgateway", "--tail=20"])?;
        let cluster = "outbound|80||edition.example.com";
        ensure!(
            log.lines().any(|line| line.contains("edition.example.com\"") && line.contains(cluster)),
            "{log}"
        );
        Ok(())
    })?;
    outside.clean()
}
