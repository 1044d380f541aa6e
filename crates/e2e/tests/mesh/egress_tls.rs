//! TLS that leaves the mesh: passed on by its name, from sidecars and by way of the egress gateway, and originated at both
//! (T10, T15, T16, T19). The objects follow Istio's tasks on egress.

use std::time::Duration;

use anyhow::{Result, ensure};
use lateen_e2e::{Mesh, eventually};

use crate::OnMesh;
use crate::pki::Pki;

pub(crate) const TRIALS: &[OnMesh] = &[
    ("tls_by_its_name", tls_by_its_name),
    ("originated_by_sidecars", originated_by_sidecars),
    ("originated_by_the_egress_gateway", originated_by_the_egress_gateway),
];

const SOON: Duration = Duration::from_secs(30);
/// An address nobody has: what a name outside might resolve to.
const ELSEWHERE: &str = "198.18.0.1";

struct Outside<'a> {
    mesh: &'a Mesh,
    pki: Pki,
}

/// `HOST` on port 80 as HTTP and on 443 as TLS, at a Service outside the mesh.
fn entry(host: &str, service: &str) -> String {
    let name = host.replace('.', "-");
    format!(
        "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {{ name: {name} }}\nspec: {{ hosts: [{host}], location: MESH_EXTERNAL, resolution: DNS, endpoints: [{{ address: {service}.outside.svc.cluster.local }}], ports: [{{ number: 80, name: http-port, protocol: HTTP, targetPort: 443 }}, {{ number: 443, name: https-port, protocol: HTTPS }}] }}\n---\n"
    )
}

fn rule(namespace: &str, host: &str, more: &str, port: u16, tls: &str) -> String {
    let name = host.replace('.', "-");
    format!(
        "apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {{ name: {name}, namespace: {namespace} }}\nspec: {{ host: {host}, {more} trafficPolicy: {{ portLevelSettings: [{{ port: {{ number: {port} }}, tls: {tls} }}] }} }}\n---\n"
    )
}

impl<'a> Outside<'a> {
    fn new(mesh: &'a Mesh) -> Result<Self> {
        let pki = Pki::new()?;
        pki.issue("server", "secure.example")?;
        pki.issue("strict", "strict.example")?;
        pki.issue("client", "client.example")?;
        mesh.apply_fixture("external.yaml")?;
        for (secret, name) in [("certificate", "server"), ("strict", "strict")] {
            let (certificate, key) = (format!("{name}.crt"), format!("{name}.key"));
            let data = [("tls.crt", certificate.as_str()), ("tls.key", &key), ("ca.crt", "ca.crt")];
            pki.generic(mesh, "outside", secret, &data)?;
        }
        mesh.apply_fixture("secure.yaml")?;
        mesh.kubectl(&["wait", "--for=condition=Ready", "pod/caller", "--timeout=60s"])?;
        for pod in ["pod/secure", "pod/strict"] {
            mesh.kubectl(&["wait", "-n", "outside", "--for=condition=Ready", pod, "--timeout=60s"])?;
        }
        Ok(Self { mesh, pki })
    }

    fn run(&self, command: &str) -> Result<String> {
        let out = self.mesh.kubectl_output(&["exec", "caller", "-c", "client", "--", "sh", "-c", command])?;
        Ok(String::from_utf8_lossy(&out.stdout).trim().to_owned())
    }

    /// The status of a plain request in the caller's pod.
    fn status(&self, host: &str) -> Result<String> {
        self.run(&format!(
            "curl -s -m 5 -o /dev/null -w '%{{http_code}}' --resolve {host}:80:{ELSEWHERE} http://{host}/"
        ))
    }

    fn answers(&self, what: &str, host: &str, status: &str) -> Result<()> {
        eventually(what, SOON, || {
            let said = self.status(host)?;
            ensure!(said == status, "{host}: {said}");
            Ok(())
        })
    }

    /// The subject of the certificate that the caller is shown for a name.
    fn shown(&self, host: &str) -> Result<String> {
        self.run(&format!(
            "openssl s_client -connect {ELSEWHERE}:443 -servername {host} </dev/null 2>/dev/null | openssl x509 -noout -subject 2>/dev/null"
        ))
    }

    fn shows(&self, what: &str, host: &str, subject: &str) -> Result<()> {
        eventually(what, SOON, || {
            let shown = self.shown(host)?;
            ensure!(shown.contains(subject), "{host}: {shown:?}");
            Ok(())
        })
    }

    fn egress_log_has(&self, cluster: &str) -> Result<()> {
        eventually("the egress gateway's log", SOON, || {
            let log = self.mesh.kubectl(&[
                "logs",
                "-n",
                "istio-system",
                "deploy/istio-egressgateway",
                "--tail=30",
            ])?;
            ensure!(log.contains(cluster), "{log}");
            Ok(())
        })
    }

    fn clean(&self) -> Result<()> {
        self.mesh.kubectl(&["delete", "se,vs,dr,gw", "--all", "-n", "default", "--wait=false"])?;
        self.mesh.kubectl(&["delete", "dr", "--all", "-n", "istio-system", "--wait=false"])?;
        self.mesh.kubectl(&["delete", "pod", "caller", "--grace-period=1", "--wait=true"])?;
        self.mesh.kubectl(&["delete", "namespace", "outside", "--wait=true", "--timeout=60s"]).map(drop)
    }
}

/// Istio's example with TLS that the application speaks, by way of the egress gateway.
const PASSED_ON: &str = r"
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: { name: istio-egressgateway }
spec:
  selector: { istio: egressgateway }
  servers:
    - port: { number: 443, name: tls, protocol: TLS }
      hosts: [secure.example]
      tls: { mode: PASSTHROUGH }
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: { name: through-egress-gateway }
spec:
  hosts: [secure.example]
  gateways: [mesh, istio-egressgateway]
  tls:
    - match: [{ gateways: [mesh], port: 443, sniHosts: [secure.example] }]
      route: [{ destination: { host: istio-egressgateway.istio-system.svc.cluster.local, port: { number: 443 } } }]
    - match: [{ gateways: [istio-egressgateway], port: 443, sniHosts: [secure.example] }]
      route: [{ destination: { host: secure.example, port: { number: 443 } }, weight: 100 }]
";

fn tls_by_its_name(mesh: &Mesh) -> Result<()> {
    let outside = Outside::new(mesh)?;
    mesh.apply(&(entry("secure.example", "secure") + &entry("strict.example", "strict")))?;
    outside.shows("an entry by its name", "secure.example", "CN = server")?;
    outside.shows("another one on the same address", "strict.example", "CN = strict")?;
    // Whatever network this runs in may answer there; it is none of ours.
    let shown = outside.shown("unknown.example")?;
    ensure!(!shown.contains("server") && !shown.contains("strict"), "nobody has this name: {shown}");
    mesh.apply("apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: { name: swapped }\nspec: { hosts: [strict.example], tls: [{ match: [{ port: 443, sniHosts: [strict.example] }], route: [{ destination: { host: secure.example, port: { number: 443 } } }] }] }\n")?;
    outside.shows("a rule's destination", "strict.example", "CN = server")?;
    mesh.apply(PASSED_ON)?;
    outside.egress_passes()?;
    outside.clean()
}

impl Outside<'_> {
    fn egress_passes(&self) -> Result<()> {
        let rollout =
            ["rollout", "status", "-n", "istio-system", "deploy/istio-egressgateway", "--timeout=60s"];
        self.mesh.kubectl(&rollout)?;
        eventually("TLS through the egress gateway", SOON, || {
            let shown = self.shown("secure.example")?;
            ensure!(shown.contains("CN = server"), "{shown:?}");
            let log = self.mesh.kubectl(&[
                "logs",
                "-n",
                "istio-system",
                "deploy/istio-egressgateway",
                "--tail=30",
            ])?;
            ensure!(log.contains("outbound|443||secure.example"), "{log}");
            Ok(())
        })
    }

    /// What Istio's documentation has users bind, so that a sidecar's account may read Secrets.
    fn let_caller_read_secrets(&self) -> Result<()> {
        let script = "kubectl create role client-credential --resource=secret --verb=list -n default --dry-run=client -o yaml | kubectl apply -f -\n\
            kubectl create rolebinding client-credential --role=client-credential --serviceaccount=default:default -n default --dry-run=client -o yaml | kubectl apply -f -";
        self.mesh.lab("", script).map(drop)
    }
}

fn originated_by_sidecars(mesh: &Mesh) -> Result<()> {
    let outside = Outside::new(mesh)?;
    let pki = &outside.pki;
    let client = [("tls.crt", "client.crt"), ("tls.key", "client.key"), ("ca.crt", "ca.crt")];
    pki.generic(mesh, "default", "client", &client)?;
    mesh.apply(&(entry("secure.example", "secure") + &entry("strict.example", "strict")))?;
    let selecting = "workloadSelector: { matchLabels: { app: caller } },";
    let simple = |more: &str| {
        rule(
            "default",
            "secure.example",
            selecting,
            80,
            &format!("{{ mode: SIMPLE, credentialName: client{more} }}"),
        )
    };
    mesh.apply(&simple(""))?;
    outside.answers("without the right to read Secrets there are no authorities", "secure.example", "503")?;
    outside.let_caller_read_secrets()?;
    outside.answers("the name asked for is in the certificate", "secure.example", "200")?;
    mesh.apply(&simple(", subjectAltNames: [other.example]"))?;
    outside.answers("another name is wanted", "secure.example", "503")?;
    mesh.apply(&simple(", sni: secure.example, subjectAltNames: [secure.example]"))?;
    outside.answers("the name that is wanted", "secure.example", "200")?;
    mesh.apply(&rule(
        "default",
        "strict.example",
        selecting,
        80,
        "{ mode: SIMPLE, credentialName: client }",
    ))?;
    outside.answers("a server that wants a certificate", "strict.example", "503")?;
    mesh.apply(&rule(
        "default",
        "strict.example",
        selecting,
        80,
        "{ mode: MUTUAL, credentialName: client }",
    ))?;
    outside.answers("with a certificate", "strict.example", "200")?;
    mesh.kubectl(&["delete", "role,rolebinding", "client-credential", "-n", "default"])?;
    mesh.kubectl(&["delete", "secret", "client", "-n", "default"])?;
    outside.clean()
}

/// Istio's example of TLS origination at the egress gateway; what comes to it is plain HTTP.
const ORIGINATED: &str = r"
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: { name: istio-egressgateway }
spec:
  selector: { istio: egressgateway }
  servers:
    - port: { number: 80, name: http, protocol: HTTP }
      hosts: [strict.example]
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: { name: through-egress-gateway }
spec:
  hosts: [strict.example]
  gateways: [istio-egressgateway, mesh]
  http:
    - match: [{ gateways: [mesh], port: 80 }]
      route: [{ destination: { host: istio-egressgateway.istio-system.svc.cluster.local, port: { number: 80 } }, weight: 100 }]
    - match: [{ gateways: [istio-egressgateway], port: 80 }]
      route: [{ destination: { host: strict.example, port: { number: 443 } }, weight: 100 }]
";

fn originated_by_the_egress_gateway(mesh: &Mesh) -> Result<()> {
    let outside = Outside::new(mesh)?;
    mesh.apply(&entry("strict.example", "strict"))?;
    mesh.apply(ORIGINATED)?;
    let mutual = "{ mode: MUTUAL, credentialName: client-credential, sni: strict.example }";
    mesh.apply(&rule("istio-system", "strict.example", "", 443, mutual))?;
    outside.answers("without the Secret", "strict.example", "503")?;
    let client = [("tls.crt", "client.crt"), ("tls.key", "client.key"), ("ca.crt", "ca.crt")];
    outside.pki.generic(mesh, "istio-system", "client-credential", &client)?;
    outside.answers("with the gateway's certificate", "strict.example", "200")?;
    outside.egress_log_has("outbound|443||strict.example")?;
    mesh.kubectl(&["delete", "secret", "client-credential", "-n", "istio-system"])?;
    outside.clean()
}
