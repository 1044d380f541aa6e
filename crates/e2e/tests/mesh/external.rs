//! What is outside the mesh: ServiceEntries, WorkloadEntries, unknown destinations, the egress gateway (T16, T17, T19, T23).

use anyhow::{Result, ensure};
use lateen_e2e::{Mesh, eventually};

use crate::OnMesh;
use crate::outside::{ELSEWHERE, Outside, SOON, entry};

pub(crate) const TRIALS: &[OnMesh] = &[
    ("entries_by_address_and_by_name", entries_by_address_and_by_name),
    ("unknown_destinations_by_policy", unknown_destinations_by_policy),
    ("machines_behind_services", machines_behind_services),
    ("egress_gateway", egress_gateway),
    ("hosts_found_on_request", hosts_found_on_request),
    ("failing_hosts_found_on_request", failing_hosts_found_on_request),
];

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
        "d=$(mktemp -d)\n\
         kubectl get cm -n istio-system istio -o jsonpath='{{.data.mesh}}' | grep -v '^outboundTrafficPolicy' > $d/mesh\n\
         printf '\\noutboundTrafficPolicy: {{ mode: {mode} }}\\n' >> $d/mesh\n\
         kubectl create cm -n istio-system istio --from-file=mesh=$d/mesh --dry-run=client -o json \\\n\
           | jq '{{data: {{mesh: .data.mesh}}}}' > $d/patch\n\
         kubectl patch cm -n istio-system istio --patch-file $d/patch\n\
         rm -r $d"
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
    outside.egress_is_up()?;
    mesh.apply(&entry("edition", "{ hosts: [edition.example.com], resolution: DNS, endpoints: [{ address: far.outside.svc.cluster.local }], ports: [{ number: 80, name: http-port, protocol: HTTP }, { number: 443, name: https, protocol: HTTPS }] }"))?;
    outside.answers("directly", "edition.example.com", 80, ELSEWHERE)?;
    mesh.apply(
        &(crate::outside::egress_gateway(
            "[{ port: { number: 80, name: http, protocol: HTTP }, hosts: [edition.example.com] }]",
        ) + EGRESS),
    )?;
    eventually("the gateway's log has the request", SOON, || {
        outside.answers("through the gateway", "edition.example.com", 80, ELSEWHERE)?;
        let log = outside.egress_log()?;
        let cluster = "outbound|80||edition.example.com";
        ensure!(
            log.lines().any(|line| line.contains("edition.example.com\"") && line.contains(cluster)),
            "{log}"
        );
        Ok(())
    })?;
    outside.clean()
}

/// Any host of the namespace `outside`, over HTTP and over TLS by way of the egress gateway.
const ON_REQUEST: &str = r"
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: { name: wild }
spec:
  selector: { istio: egressgateway }
  servers:
    - port: { number: 443, name: tls, protocol: TLS }
      hosts: ['*.outside.svc.cluster.local']
      tls: { mode: PASSTHROUGH }
    - port: { number: 80, name: http, protocol: HTTP }
      hosts: ['*.outside.svc.cluster.local']
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: { name: wild }
spec:
  hosts: ['*.outside.svc.cluster.local']
  gateways: [mesh, wild]
  http:
    - match: [{ gateways: [mesh], port: 80 }]
      route: [{ destination: { host: istio-egressgateway.istio-system.svc.cluster.local, port: { number: 80 } } }]
    - match: [{ gateways: [wild], port: 80 }]
      route: [{ destination: { host: '*.outside.svc.cluster.local', port: { number: 80 } } }]
  tls:
    - match: [{ gateways: [mesh], port: 443, sniHosts: ['*.outside.svc.cluster.local'] }]
      route: [{ destination: { host: istio-egressgateway.istio-system.svc.cluster.local, port: { number: 443 } } }]
    - match: [{ gateways: [wild], port: 443, sniHosts: ['*.outside.svc.cluster.local'] }]
      route: [{ destination: { host: '*.outside.svc.cluster.local', port: { number: 443 } } }]
";

/// The same hosts for callers outside the mesh.
const INWARD: &str = r"
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: { name: inward }
spec:
  selector: { istio: ingressgateway }
  servers: [{ port: { number: 80, name: http, protocol: HTTP }, hosts: ['*.outside.svc.cluster.local'] }]
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: { name: inward }
spec:
  hosts: ['*.outside.svc.cluster.local']
  gateways: [inward]
  http: [{ route: [{ destination: { host: '*.outside.svc.cluster.local', port: { number: 80 } } }] }]
";

fn hosts_found_on_request(mesh: &Mesh) -> Result<()> {
    let (outside, _) = Outside::with_tls(mesh)?;
    let known = "far.outside.svc.cluster.local";
    let unknown = "nobody.outside.svc.cluster.local";
    // A name for what is outside, which the mesh does not know: it is passed through.
    mesh.apply("apiVersion: v1\nkind: Service\nmetadata: { name: elsewhere }\nspec: { type: ExternalName, externalName: far.outside.svc.cluster.local, ports: [{ port: 80 }] }\n")?;
    eventually("a name for what is outside", SOON, || {
        let said = outside.run("curl -s -m 5 http://elsewhere/")?;
        ensure!(said.contains("far"), "{said}");
        Ok(())
    })?;
    mesh.apply(&entry("wild", "{ hosts: ['*.outside.svc.cluster.local'], location: MESH_EXTERNAL, resolution: DYNAMIC_DNS, ports: [{ number: 80, name: http, protocol: HTTP }, { number: 443, name: tls, protocol: TLS }] }"))?;
    outside.answers("a host that is looked up", known, 80, ELSEWHERE)?;
    let said = outside.curl(unknown, 80, ELSEWHERE, "")?;
    ensure!(said.ends_with("503") && said.contains("DNS resolution failure"), "{said}");
    eventually("the log says so", SOON, || {
        let log = mesh.kubectl(&["logs", "caller", "-c", "istio-proxy", "--tail=50"])?;
        let has = |parts: [&str; 2]| log.lines().any(|line| parts.iter().all(|part| line.contains(part)));
        ensure!(has([unknown, "503 DF dns_resolution_failure{"]), "{log}");
        ensure!(has([known, "outbound|80||*.outside.svc.cluster.local"]), "{log}");
        Ok(())
    })?;
    outside.shows("TLS by the name it asks for", "secure.outside.svc.cluster.local", "CN = server")?;
    outside.shows("another one on the same address", "strict.outside.svc.cluster.local", "CN = strict")?;
    ensure!(outside.shown(unknown)?.is_empty(), "nobody has this name");
    outside.egress_is_up()?;
    mesh.apply(ON_REQUEST)?;
    eventually("by way of the egress gateway", SOON, || {
        let shown = outside.shown("secure.outside.svc.cluster.local")?;
        ensure!(shown.contains("CN = server"), "{shown:?}");
        let log = outside.egress_log()?;
        ensure!(log.contains("outbound|443||*.outside.svc.cluster.local"), "{log}");
        Ok(())
    })?;
    eventually("HTTP by way of the egress gateway", SOON, || {
        outside.answers("a host that the gateway looks up", known, 80, ELSEWHERE)?;
        let log = outside.egress_log()?;
        ensure!(log.contains("outbound|80||*.outside.svc.cluster.local"), "{log}");
        Ok(())
    })?;
    let said = outside.curl(unknown, 80, ELSEWHERE, "")?;
    ensure!(said.ends_with("503") && said.contains("DNS resolution failure"), "{said}");
    outside.egress_log_has("503 DF dns_resolution_failure{")?;
    // And from outside the mesh in, whatever host of the wildcard is asked for.
    mesh.apply(INWARD)?;
    let gateway = mesh.gateway()?;
    let ask = |host: &str| {
        let ask = format!("curl -s -m 5 -w '\\n%{{http_code}}' -H 'host: {host}' {gateway}/ || true");
        mesh.lab("", &ask).map(|said| said.trim().to_owned())
    };
    eventually("HTTP by way of the ingress gateway", SOON, || {
        let said = ask(known)?;
        ensure!(said.ends_with("200") && said.contains("far"), "{said}");
        Ok(())
    })?;
    let said = ask(unknown)?;
    ensure!(said.ends_with("503") && said.contains("DNS resolution failure"), "{said}");
    ensure!(ask("far.elsewhere.example")?.ends_with("404"), "no host of the wildcard");
    mesh.kubectl(&["delete", "svc", "elsewhere"])?;
    outside.clean()
}

/// A server whose answers are what callers ask for.
const SICK: &str = r#"
apiVersion: v1
kind: Pod
metadata: { name: sick, namespace: outside, labels: { app: sick } }
spec:
  containers:
    - name: httpbin
      image: docker.io/kong/httpbin
      args: ["--port", "8080"]
      ports: [{ containerPort: 8080 }]
      readinessProbe: { httpGet: { path: /get, port: 8080 } }
---
apiVersion: v1
kind: Service
metadata: { name: sick, namespace: outside, annotations: { networking.istio.io/exportTo: "~" } }
spec:
  selector: { app: sick }
  ports: [{ name: http, port: 80, targetPort: 8080 }]
"#;

/// Hosts that nobody knows before they are asked for are ejected too (T14, T16): those with names are kept back, those at the
/// caller's addresses are counted and shown but used, as with Envoy.
fn failing_hosts_found_on_request(mesh: &Mesh) -> Result<()> {
    let outside = Outside::new(mesh)?;
    mesh.apply(SICK)?;
    mesh.kubectl(&["wait", "-n", "outside", "--for=condition=Ready", "pod/sick", "--timeout=60s"])?;
    let sick = mesh.kubectl(&["get", "pod", "-n", "outside", "sick", "-o", "jsonpath={.status.podIP}"])?;
    let rule = |name: &str, host: &str| {
        format!(
            "apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {{ name: {name} }}\nspec:\n  host: '{host}'\n  trafficPolicy:\n    outlierDetection: {{ consecutive5xxErrors: 2, interval: 1s, baseEjectionTime: 100s, maxEjectionPercent: 100 }}\n---\n"
        )
    };
    mesh.apply(&[
        entry("named", "{ hosts: ['*.outside.svc.cluster.local'], location: MESH_EXTERNAL, resolution: DYNAMIC_DNS, ports: [{ number: 80, name: http, protocol: HTTP }] }"),
        rule("named", "*.outside.svc.cluster.local"),
        entry("addressed", "{ hosts: ['*.addressed.example.com'], resolution: NONE, ports: [{ number: 8080, name: http, protocol: HTTP }] }"),
        rule("addressed", "*.addressed.example.com"),
    ].concat())?;
    let status = mesh.kubectl(&["get", "dr", "named", "-o", "jsonpath={.status.conditions[*].message}"])?;
    ensure!(!status.contains("no effect"), "{status}");
    let ask = |host: &str, port: u16, address: &str, status: u16| {
        outside.run(&format!(
            "curl -s -m 5 -w '\\n%{{http_code}}' --resolve {host}:{port}:{address} http://{host}:{port}/status/{status} || echo \"exit $?\""
        ))
    };
    let failed = |cluster: &str| {
        let shown = mesh.lateen(&["proxy-config", "endpoints", "caller.default"])?;
        let rows = shown.lines().filter(|row| row.contains(cluster) && row.contains("FAILED"));
        ensure!(rows.count() == 1, "{shown}");
        Ok(())
    };
    let named = "sick.outside.svc.cluster.local";
    outside.answers("a host that is looked up", "far.outside.svc.cluster.local", 80, ELSEWHERE)?;
    eventually("a host that fails is kept back", SOON, || {
        let said = ask(named, 80, ELSEWHERE, 500)?;
        ensure!(said.ends_with("503") && said.contains("no healthy upstream"), "{said}");
        Ok(())
    })?;
    let said = ask(named, 80, ELSEWHERE, 200)?;
    ensure!(said.ends_with("503") && said.contains("no healthy upstream"), "{said}");
    outside.answers("another one is not", "far.outside.svc.cluster.local", 80, ELSEWHERE)?;
    eventually("it is shown", SOON, || failed("outbound|80||*.outside.svc.cluster.local"))?;
    eventually("the log says so", SOON, || {
        let log = mesh.kubectl(&["logs", "caller", "-c", "istio-proxy", "--tail=50"])?;
        let line = log.lines().any(|line| line.contains(named) && line.contains(" 503 UH "));
        ensure!(line, "{log}");
        Ok(())
    })?;
    // Where the caller chose the address nobody else could answer.
    let addressed = "a.addressed.example.com";
    eventually("a host at the caller's address is found failing", SOON, || {
        for _ in 0..2 {
            let said = ask(addressed, 8080, &sick, 500)?;
            ensure!(said.ends_with("500"), "{said}");
        }
        failed("outbound|8080||*.addressed.example.com")
    })?;
    let said = ask(addressed, 8080, &sick, 200)?;
    ensure!(said.ends_with("200"), "{said}");
    outside.clean()
}
