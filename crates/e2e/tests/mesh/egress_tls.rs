//! TLS that leaves the mesh: passed on by its name, from sidecars and by way of the egress gateway, and originated at both
//! (T10, T15, T16, T19). The objects follow Istio's tasks on egress.

use anyhow::{Result, ensure};
use lateen_e2e::{Mesh, eventually};

use crate::OnMesh;
use crate::outside::{ELSEWHERE, Outside, SOON, egress_gateway};
use crate::pki::is_refused;

pub(crate) const TRIALS: &[OnMesh] = &[
    ("tls_by_its_name", tls_by_its_name),
    ("originated_by_sidecars", originated_by_sidecars),
    ("originated_by_the_egress_gateway", originated_by_the_egress_gateway),
    ("mutual_tls_to_the_egress_gateway", mutual_tls_to_the_egress_gateway),
];

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

/// Istio's example with TLS that the application speaks, by way of the egress gateway.
const PASSED_ON: &str = r"
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
    let (outside, _) = Outside::with_tls(mesh)?;
    mesh.apply(&(entry("secure.example", "secure") + &entry("strict.example", "strict")))?;
    outside.shows("an entry by its name", "secure.example", "CN = server")?;
    outside.shows("another one on the same address", "strict.example", "CN = strict")?;
    // Whatever network this runs in may answer there; it is none of ours.
    let shown = outside.shown("unknown.example")?;
    ensure!(!shown.contains("server") && !shown.contains("strict"), "nobody has this name: {shown}");
    mesh.apply("apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: { name: swapped }\nspec: { hosts: [strict.example], tls: [{ match: [{ port: 443, sniHosts: [strict.example] }], route: [{ destination: { host: secure.example, port: { number: 443 } } }] }] }\n")?;
    outside.shows("a rule's destination", "strict.example", "CN = server")?;
    mesh.apply(&(egress_gateway("[{ port: { number: 443, name: tls, protocol: TLS }, hosts: [secure.example], tls: { mode: PASSTHROUGH } }]") + PASSED_ON))?;
    outside.egress_is_up()?;
    eventually("TLS through the egress gateway", SOON, || {
        let shown = outside.shown("secure.example")?;
        ensure!(shown.contains("CN = server"), "{shown:?}");
        let log = outside.egress_log()?;
        ensure!(log.contains("outbound|443||secure.example"), "{log}");
        Ok(())
    })?;
    outside.clean()
}

/// What Istio's documentation has users bind, so that a sidecar's account may read Secrets.
fn let_caller_read_secrets(mesh: &Mesh) -> Result<()> {
    let script = "kubectl create role client-credential --resource=secret --verb=list -n default --dry-run=client -o yaml | kubectl apply -f -\n\
        kubectl create rolebinding client-credential --role=client-credential --serviceaccount=default:default -n default --dry-run=client -o yaml | kubectl apply -f -";
    mesh.lab("", script).map(drop)
}

fn originated_by_sidecars(mesh: &Mesh) -> Result<()> {
    let (outside, pki) = Outside::with_tls(mesh)?;
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
    outside.status_is(
        "without the right to read Secrets there are no authorities",
        "secure.example",
        "503",
    )?;
    let_caller_read_secrets(mesh)?;
    outside.status_is("the name asked for is in the certificate", "secure.example", "200")?;
    mesh.apply(&simple(", subjectAltNames: [other.example]"))?;
    outside.status_is("another name is wanted", "secure.example", "503")?;
    mesh.apply(&simple(", sni: secure.example, subjectAltNames: [secure.example]"))?;
    outside.status_is("the name that is wanted", "secure.example", "200")?;
    mesh.apply(&rule(
        "default",
        "strict.example",
        selecting,
        80,
        "{ mode: SIMPLE, credentialName: client }",
    ))?;
    outside.status_is("a server that wants a certificate", "strict.example", "503")?;
    mesh.apply(&rule(
        "default",
        "strict.example",
        selecting,
        80,
        "{ mode: MUTUAL, credentialName: client }",
    ))?;
    outside.status_is("with a certificate", "strict.example", "200")?;
    mesh.kubectl(&["delete", "role,rolebinding", "client-credential", "-n", "default"])?;
    mesh.kubectl(&["delete", "secret", "client", "-n", "default"])?;
    outside.clean()
}

/// Istio's example of TLS origination at the egress gateway; what comes to it is plain HTTP.
const ORIGINATED: &str = r"
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
    let (outside, pki) = Outside::with_tls(mesh)?;
    mesh.apply(&entry("strict.example", "strict"))?;
    mesh.apply(
        &(egress_gateway("[{ port: { number: 80, name: http, protocol: HTTP }, hosts: [strict.example] }]")
            + ORIGINATED),
    )?;
    let mutual = "{ mode: MUTUAL, credentialName: client-credential, sni: strict.example }";
    mesh.apply(&rule("istio-system", "strict.example", "", 443, mutual))?;
    outside.status_is("without the Secret", "strict.example", "503")?;
    let client = [("tls.crt", "client.crt"), ("tls.key", "client.key"), ("ca.crt", "ca.crt")];
    pki.generic(mesh, "istio-system", "client-credential", &client)?;
    outside.status_is("with the gateway's certificate", "strict.example", "200")?;
    outside.egress_log_has("outbound|443||strict.example")?;
    mesh.kubectl(&["delete", "secret", "client-credential", "-n", "istio-system"])?;
    outside.clean()
}

/// Istio's example of an egress gateway that is spoken to with mutual TLS of the mesh: HTTP on 443, and bytes on 8443's neighbour.
const MUTUAL: &str = r"
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: { name: egressgateway }
spec:
  host: istio-egressgateway.istio-system.svc.cluster.local
  subsets:
    - name: plain
      trafficPolicy: { portLevelSettings: [{ port: { number: 443 }, tls: { mode: ISTIO_MUTUAL, sni: plain.example } }] }
    - name: bytes
      trafficPolicy: { portLevelSettings: [{ port: { number: 443 }, tls: { mode: ISTIO_MUTUAL, sni: bytes.example } }] }
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: { name: plain }
spec:
  hosts: [plain.example]
  gateways: [istio-egressgateway, mesh]
  http:
    - match: [{ gateways: [mesh], port: 80 }]
      route: [{ destination: { host: istio-egressgateway.istio-system.svc.cluster.local, subset: plain, port: { number: 443 } } }]
    - match: [{ gateways: [istio-egressgateway], port: 443 }]
      route: [{ destination: { host: plain.example, port: { number: 80 } } }]
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: { name: bytes }
spec:
  hosts: [bytes.example]
  gateways: [istio-egressgateway, mesh]
  tcp:
    - match: [{ gateways: [mesh], port: 8123 }]
      route: [{ destination: { host: istio-egressgateway.istio-system.svc.cluster.local, subset: bytes, port: { number: 443 } } }]
    - match: [{ gateways: [istio-egressgateway], port: 443 }]
      route: [{ destination: { host: bytes.example, port: { number: 8123 } } }]
";

fn mutual_tls_to_the_egress_gateway(mesh: &Mesh) -> Result<()> {
    let outside = Outside::new(mesh)?;
    outside.egress_is_up()?;
    let far = &outside.far;
    mesh.apply(&[
        crate::outside::entry("plain", &format!("{{ hosts: [plain.example], location: MESH_EXTERNAL, resolution: STATIC, endpoints: [{{ address: {far} }}], ports: [{{ number: 80, name: http, protocol: HTTP, targetPort: 8080 }}] }}")),
        crate::outside::entry("bytes", &format!("{{ hosts: [bytes.example], location: MESH_EXTERNAL, addresses: [198.18.9.9], resolution: STATIC, endpoints: [{{ address: {far} }}], ports: [{{ number: 8123, name: tcp, protocol: TCP, targetPort: 8080 }}] }}")),
    ].concat())?;
    mesh.apply(&(egress_gateway("[{ port: { number: 443, name: https-mutual, protocol: HTTPS }, hosts: [plain.example], tls: { mode: ISTIO_MUTUAL } }, { port: { number: 443, name: tls-mutual, protocol: TLS }, hosts: [bytes.example], tls: { mode: ISTIO_MUTUAL } }]") + MUTUAL))?;
    // The gateway tells whom it was asked by, as it knows from the certificate.
    let caller = "URI=spiffe://cluster.local/ns/default/sa/default";
    eventually("HTTP with mutual TLS to the egress gateway", SOON, || {
        let said = outside.curl("plain.example", 80, ELSEWHERE, "")?;
        ensure!(said.ends_with("200") && said.contains(caller), "{said}");
        Ok(())
    })?;
    outside.egress_log_has("outbound|80||plain.example")?;
    eventually("bytes with mutual TLS to the egress gateway", SOON, || {
        let said = outside.curl("bytes.example", 8123, "198.18.9.9", "")?;
        ensure!(said.ends_with("200") && said.contains("far") && !said.contains(caller), "{said}");
        Ok(())
    })?;
    outside.egress_log_has("outbound|8123||bytes.example")?;
    // Who has no certificate of the mesh is not let in.
    let stranger = "kubectl exec -n outside far -- sh -c 'echo | openssl s_client -connect istio-egressgateway.istio-system.svc.cluster.local:443 -servername plain.example 2>&1; printf \"GET / HTTP/1.1\\r\\nhost: plain.example\\r\\n\\r\\n\" | openssl s_client -quiet -connect istio-egressgateway.istio-system.svc.cluster.local:443 -servername plain.example 2>&1'";
    let said = mesh.lab("", &format!("{stranger} || true"))?;
    ensure!(is_refused(&said), "{said}");
    outside.clean()
}
