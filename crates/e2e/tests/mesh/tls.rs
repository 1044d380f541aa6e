//! TLS at the gateway and towards services (T1, T10, T15, T22). Certificates are made for each run.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lateen_e2e::{Mesh, eventually};

use crate::OnMesh;
use crate::pki::Pki;

pub(crate) const TRIALS: &[OnMesh] = &[
    ("gateway_https", gateway_https),
    ("passed_on_and_originated", passed_on_and_originated),
    ("bytes_at_the_gateway", bytes_at_the_gateway),
    ("ingress_tls", ingress_tls),
    ("terms_of_servers", terms_of_servers),
];

const SOON: Duration = Duration::from_secs(30);

fn gateway(servers: &str) -> String {
    format!(
        "apiVersion: networking.istio.io/v1\nkind: Gateway\nmetadata: {{ name: tls }}\nspec: {{ selector: {{ istio: ingressgateway }}, servers: [{servers}] }}\n---\n"
    )
}

fn server(name: &str, host: &str, tls: &str) -> String {
    format!("{{ port: {{ number: 443, name: {name}, protocol: HTTPS }}, hosts: ['{host}'], tls: {tls} }}")
}

const DIRECT: &str = "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: { name: tls }\nspec: { hosts: ['*'], gateways: [tls], http: [{ directResponse: { status: 200, body: { string: hello } } }] }\n---\n";

fn gateway_https(mesh: &Mesh) -> Result<()> {
    let (pki, address) = (Pki::new()?, mesh.gateway()?);
    for (name, host) in
        [("first", "a.example"), ("second", "a.example"), ("mutual", "m.example"), ("client", "client")]
    {
        pki.issue(name, host)?;
    }
    pki.secret(mesh, "istio-system", "web", "first")?;
    let servers = [
        server("simple", "a.example", "{ mode: SIMPLE, credentialName: web }"),
        server("late", "m.example", "{ mode: MUTUAL, credentialName: late }"),
    ];
    mesh.apply(&(gateway(&servers.join(", ")) + DIRECT))?;
    let answers = |host: &str, more: &[&str]| {
        eventually(host, SOON, || {
            let said = pki.curl(&address, host, more)?;
            ensure!(said == "hello\n200", "{said}");
            Ok(())
        })
    };
    answers("a.example", &[])?;
    answers("a.example", &["--http1.1"])?;
    let reset = pki.curl(&address, "m.example", &[])?;
    ensure!(reset == "exit 35", "without its secret the handshake is cut: {reset}");
    eventually("the author is told of the missing secret", SOON, || {
        let status = mesh.kubectl(&["get", "gw", "tls", "-o", "jsonpath={.status}"])?;
        ensure!(status.contains("istio-system/late"), "{status}");
        Ok(())
    })?;
    rotate(mesh, &pki, &address)?;
    bad_contents(mesh, &pki, &address)?;
    pki.secret(mesh, "istio-system", "late", "mutual")?;
    pki.generic(mesh, "istio-system", "late-cacert", &[("cacert", "ca.crt")])?;
    answers("m.example", &["--cert", &pki.file("client.crt"), "--key", &pki.file("client.key")])?;
    ensure!(
        pki.curl(&address, "m.example", &[])?.starts_with("exit"),
        "a client without a certificate is refused"
    );
    mesh.kubectl(&["delete", "gw,vs", "tls", "-n", "default"])?;
    mesh.kubectl(&["delete", "secret", "-n", "istio-system", "web", "late", "late-cacert"]).map(drop)
}

/// A key of another certificate: the author is told, and what was good stays in force.
fn bad_contents(mesh: &Mesh, pki: &Pki, address: &str) -> Result<()> {
    let script = format!(
        "kubectl create secret generic web -n istio-system --from-file=tls.crt={} --from-file=tls.key={} --dry-run=client -o json \\\n\
           | jq '{{data: .data}}' > /tmp/lateen-secret-patch\n\
         kubectl patch secret web -n istio-system --patch-file /tmp/lateen-secret-patch && rm /tmp/lateen-secret-patch",
        pki.file("first.crt"),
        pki.file("second.key")
    );
    mesh.lab("", &script)?;
    eventually("the author is told of the wrong key", SOON, || {
        let status = mesh.kubectl(&["get", "gw", "tls", "-o", "jsonpath={.status}"])?;
        ensure!(
            status.contains("istio-system/web: the private key is not that of the certificate"),
            "{status}"
        );
        Ok(())
    })?;
    let said = pki.curl(address, "a.example", &[])?;
    ensure!(said == "hello\n200", "{said}");
    ensure!(pki.shown(address, "a.example")?.contains("second"), "the last good certificate is shown");
    Ok(())
}

/// New certificates under load of new and of lasting connections, by a change and by the way of Istio's documentation, delete and create: no request fails.
fn rotate(mesh: &Mesh, pki: &Pki, address: &str) -> Result<()> {
    ensure!(pki.shown(address, "a.example")?.contains("first"), "the first certificate is shown");
    let (done, sent, lost) = (AtomicBool::new(false), AtomicU32::new(0), AtomicU32::new(0));
    let lasting =
        [pki.lasting(address, "a.example", "--http1.1")?, pki.lasting(address, "a.example", "--http2")?];
    let rotated = std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    let said = pki.curl(address, "a.example", &[]);
                    sent.fetch_add(1, Ordering::Relaxed);
                    if !said.is_ok_and(|said| said == "hello\n200") {
                        lost.fetch_add(1, Ordering::Relaxed);
                    }
                }
            });
        }
        let swap = |name: &str| {
            pki.secret(mesh, "istio-system", "web", name)?;
            eventually("the new certificate", SOON, || {
                let shown = pki.shown(address, "a.example")?;
                ensure!(shown.contains(name), "{shown}");
                Ok(())
            })
        };
        let delete = || mesh.kubectl(&["delete", "secret", "-n", "istio-system", "web"]).map(drop);
        let outcome =
            swap("second").and_then(|()| swap("first")).and_then(|()| delete()).and_then(|()| swap("second"));
        done.store(true, Ordering::Relaxed);
        outcome
    });
    rotated?;
    for mut lasting in lasting {
        lasting.end()?;
    }
    let (sent, lost) = (sent.into_inner(), lost.into_inner());
    ensure!(sent > 0 && lost == 0, "{lost} of {sent} requests failed during the rotation");
    Ok(())
}

fn passed_on_and_originated(mesh: &Mesh) -> Result<()> {
    let (pki, address) = (Pki::new()?, mesh.gateway()?);
    mesh.apply_fixture("external.yaml")?;
    pki.issue("server", "secure.example")?;
    pki.secret(mesh, "outside", "certificate", "server")?;
    mesh.apply_fixture("tls.yaml")?;
    mesh.kubectl(&["wait", "--for=condition=Ready", "pod/caller", "--timeout=60s"])?;
    mesh.kubectl(&["wait", "-n", "outside", "--for=condition=Ready", "pod/secure", "--timeout=60s"])?;
    eventually("TLS that the gateway passes on", SOON, || {
        let said = pki.curl(&address, "secure.example", &["--http1.1"])?;
        ensure!(said.ends_with("200"), "{said}");
        Ok(())
    })?;
    ensure!(
        pki.shown(&address, "secure.example")?.contains("server"),
        "the server's own certificate is shown"
    );
    ensure!(pki.curl(&address, "other.example", &[])?.starts_with("exit"), "other names are not passed on");
    let call = "curl -s -m 5 -o /dev/null -w '%{http_code}' http://secure.outside.svc.cluster.local/";
    eventually("TLS that the caller's proxy originates", SOON, || {
        let out = mesh.kubectl(&["exec", "caller", "-c", "client", "--", "sh", "-c", call]);
        let said = out.context("the call")?;
        ensure!(said == "200", "{said}");
        Ok(())
    })?;
    mesh.kubectl(&["delete", "gw,vs,dr", "--all", "-n", "default"])?;
    mesh.kubectl(&["delete", "pod", "caller", "--grace-period=1", "--wait=true"])?;
    mesh.kubectl(&["delete", "namespace", "outside", "--wait=true", "--timeout=60s"]).map(drop)
}

/// A port more on the gateway's Service, as Istio's demo profile has it.
fn open_port(mesh: &Mesh, port: u16) -> Result<()> {
    let patch =
        format!(r#"{{"spec":{{"ports":[{{"name":"tcp-{port}","port":{port},"targetPort":{port}}}]}}}}"#);
    mesh.kubectl(&["patch", "svc", "-n", "istio-system", "istio-ingressgateway", "-p", &patch]).map(drop)
}

fn bytes_at_the_gateway(mesh: &Mesh) -> Result<()> {
    let (pki, address) = (Pki::new()?, mesh.gateway()?);
    mesh.apply_fixture("external.yaml")?;
    pki.issue("server", "secure.example")?;
    let data = [("tls.crt", "server.crt"), ("tls.key", "server.key"), ("ca.crt", "ca.crt")];
    for secret in ["certificate", "strict"] {
        pki.generic(mesh, "outside", secret, &data)?;
    }
    pki.secret(mesh, "istio-system", "bytes", "server")?;
    mesh.apply_fixture("secure.yaml")?;
    mesh.kubectl(&["wait", "-n", "outside", "--for=condition=Ready", "pod/one", "pod/two", "--timeout=60s"])?;
    open_port(mesh, 31400)?;
    mesh.apply(&(gateway("{ port: { number: 31400, name: tcp, protocol: TCP }, hosts: ['*'] }, { port: { number: 443, name: tls, protocol: TLS }, hosts: [secure.example], tls: { mode: SIMPLE, credentialName: bytes } }")
        + "apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: { name: plain, namespace: outside }\nspec: { host: plain.outside.svc.cluster.local, subsets: [{ name: one, labels: { version: one } }, { name: two, labels: { version: two } }] }\n---\n"
        + "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: { name: tls }\nspec: { hosts: ['*'], gateways: [tls], tcp: [{ match: [{ port: 31400 }], route: [{ destination: { host: plain.outside.svc.cluster.local, subset: one }, weight: 75 }, { destination: { host: plain.outside.svc.cluster.local, subset: two }, weight: 25 }] }, { match: [{ port: 443 }], route: [{ destination: { host: plain.outside.svc.cluster.local, subset: two } }] }] }\n---\n"))?;
    let ask = || mesh.lab("", &format!("curl -s -m 5 http://{address}:31400/"));
    eventually("bytes through the gateway", SOON, || {
        let said = ask()?;
        ensure!(said.contains("one") || said.contains("two"), "{said}");
        Ok(())
    })?;
    let many =
        mesh.lab("", &format!("for i in $(seq 200); do curl -s -m 5 http://{address}:31400/; echo; done"))?;
    let count = |version: &str| many.lines().filter(|line| line.contains(&format!("\"{version}\""))).count();
    let (one, two) = (count("one"), count("two"));
    // Four standard deviations of 200 connections at 75%.
    ensure!(one + two == 200 && one.abs_diff(150) <= 25, "{one} and {two} of 200 connections: {many:.300}");
    eventually("bytes over TLS that ends at the gateway", SOON, || {
        let said = pki.curl(&address, "secure.example", &["--http1.1"])?;
        ensure!(said.ends_with("200") && said.contains("two"), "{said}");
        Ok(())
    })?;
    ensure!(pki.shown(&address, "secure.example")?.contains("server"), "the gateway's certificate is shown");
    by_cluster_name(mesh, &address)?;
    mesh.kubectl(&["delete", "gw,vs,dr", "--all", "-n", "default"])?;
    mesh.kubectl(&["delete", "secret", "-n", "istio-system", "bytes"])?;
    mesh.kubectl(&["delete", "pod", "caller", "--grace-period=1", "--wait=true"])?;
    mesh.kubectl(&["delete", "namespace", "outside", "--wait=true", "--timeout=60s"]).map(drop)
}

/// AUTO_PASSTHROUGH: the mesh's TLS is passed on to workloads that have it, without any VirtualService.
fn by_cluster_name(mesh: &Mesh, address: &str) -> Result<()> {
    open_port(mesh, 15443)?;
    mesh.kubectl(&["label", "pod", "-n", "outside", "secure", "security.istio.io/tlsMode=istio"])?;
    mesh.apply(&gateway("{ port: { number: 15443, name: tls, protocol: TLS }, hosts: ['*.svc.cluster.local'], tls: { mode: AUTO_PASSTHROUGH } }"))?;
    let shown = |service: &str, more: &str| {
        mesh.lab("", &format!("openssl s_client -connect {address}:15443 -servername outbound_.443_._.{service}.outside.svc.cluster.local {more} </dev/null 2>/dev/null | openssl x509 -noout -subject 2>/dev/null || true"))
    };
    eventually("TLS by the name of a cluster", SOON, || {
        let shown = shown("secure", "-alpn istio")?;
        ensure!(shown.contains("server"), "{shown}");
        Ok(())
    })?;
    let plain = shown("secure", "")?;
    ensure!(plain.is_empty(), "only the mesh's own TLS is passed on: {plain}");
    let without = shown("strict", "-alpn istio")?;
    ensure!(without.is_empty(), "only to workloads that have it: {without}");
    Ok(())
}

/// Versions, ciphers and client certificates that servers ask for.
fn terms_of_servers(mesh: &Mesh) -> Result<()> {
    let (pki, address) = (Pki::new()?, mesh.gateway()?);
    for (name, host) in [("server", "*.terms.example"), ("client", "client"), ("stranger", "stranger")] {
        pki.issue(name, host)?;
    }
    let data = [("tls.crt", "server.crt"), ("tls.key", "server.key"), ("ca.crt", "ca.crt")];
    pki.generic(mesh, "istio-system", "terms", &data)?;
    pki.issue_with("rsa", "*.terms.example", "rsa:2048")?;
    for (secret, name) in [("terms-ec", "server"), ("terms-rsa", "rsa")] {
        pki.secret(mesh, "istio-system", secret, name)?;
    }
    pki.generic(mesh, "istio-system", "terms-clients", &[("ca.crt", "ca.crt")])?;
    let hash = pki.hash("client")?;
    let servers = [
        server(
            "new",
            "new.terms.example",
            "{ mode: SIMPLE, credentialName: terms, minProtocolVersion: TLSV1_3 }",
        ),
        server(
            "cipher",
            "cipher.terms.example",
            "{ mode: SIMPLE, credentialName: terms, maxProtocolVersion: TLSV1_2, cipherSuites: [ECDHE-ECDSA-AES256-GCM-SHA384] }",
        ),
        server(
            "hash",
            "hash.terms.example",
            &format!("{{ mode: MUTUAL, credentialName: terms, verifyCertificateHash: [{hash}] }}"),
        ),
        server(
            "names",
            "names.terms.example",
            "{ mode: MUTUAL, credentialName: terms, subjectAltNames: [stranger] }",
        ),
        server("optional", "optional.terms.example", "{ mode: OPTIONAL_MUTUAL, credentialName: terms }"),
        server("both", "both.terms.example", "{ mode: SIMPLE, credentialNames: [terms-ec, terms-rsa] }"),
        server(
            "clients",
            "clients.terms.example",
            "{ mode: MUTUAL, credentialName: terms-ec, caCertCredentialName: terms-clients }",
        ),
    ];
    mesh.apply(&(gateway(&servers.join(", ")) + DIRECT))?;
    let certificate = |name: &str| {
        [
            "--cert".to_owned(),
            pki.file(&format!("{name}.crt")),
            "--key".to_owned(),
            pki.file(&format!("{name}.key")),
        ]
    };
    let (client, stranger) = (certificate("client"), certificate("stranger"));
    let (client, stranger) = (client.each_ref().map(String::as_str), stranger.each_ref().map(String::as_str));
    let with_cipher = |name: &'static str| ["--tls-max", "1.2", "--ciphers", name];
    let (strong, weak) =
        (with_cipher("ECDHE-ECDSA-AES256-GCM-SHA384"), with_cipher("ECDHE-ECDSA-AES128-GCM-SHA256"));
    let (with_ec, with_rsa) =
        (with_cipher("ECDHE-ECDSA-AES128-GCM-SHA256"), with_cipher("ECDHE-RSA-AES128-GCM-SHA256"));
    let cases: [(&str, &[&str], bool); 15] = [
        ("both", &with_ec, true),
        ("both", &with_rsa, true),
        ("clients", &client, true),
        ("clients", &[], false),
        ("new", &[], true),
        ("new", &["--tls-max", "1.2"], false),
        ("cipher", &strong, true),
        ("cipher", &weak, false),
        ("hash", &client, true),
        ("hash", &stranger, false),
        ("names", &stranger, true),
        ("names", &client, false),
        ("names", &[], false),
        ("optional", &[], true),
        ("optional", &client, true),
    ];
    for (name, options, accepted) in cases {
        eventually(&format!("{name} {options:?}"), SOON, || {
            let said = pki.curl(&address, &format!("{name}.terms.example"), options)?;
            let expected = if accepted { said == "hello\n200" } else { said.starts_with("exit") };
            ensure!(expected, "{said}");
            Ok(())
        })?;
    }
    mesh.kubectl(&["delete", "gw,vs", "tls", "-n", "default"])?;
    let secrets = ["terms", "terms-ec", "terms-rsa", "terms-clients"];
    mesh.kubectl(&[&["delete", "secret", "-n", "istio-system"][..], &secrets].concat()).map(drop)
}

fn ingress_tls(mesh: &Mesh) -> Result<()> {
    let (pki, address) = (Pki::new()?, mesh.gateway()?);
    for (name, host) in [("first", "a.example"), ("second", "b.example")] {
        pki.issue(name, host)?;
        pki.secret(mesh, "istio-system", name, name)?;
    }
    mesh.apply_fixture("external.yaml")?;
    mesh.kubectl(&["wait", "-n", "outside", "--for=condition=Ready", "pod/far", "--timeout=60s"])?;
    mesh.apply("apiVersion: networking.k8s.io/v1\nkind: Ingress\nmetadata: { name: tls, namespace: outside, annotations: { kubernetes.io/ingress.class: istio } }\nspec:\n  tls: [{ hosts: [a.example], secretName: first }, { hosts: [b.example], secretName: second }]\n  rules:\n    - { host: a.example, http: { paths: [{ path: /, pathType: Prefix, backend: { service: { name: near, port: { number: 80 } } } }] } }\n    - { host: b.example, http: { paths: [{ path: /, pathType: Prefix, backend: { service: { name: near, port: { number: 80 } } } }] } }\n---\napiVersion: v1\nkind: Service\nmetadata: { name: near, namespace: outside }\nspec: { selector: { app: far }, ports: [{ name: http, port: 80, targetPort: 8080 }] }\n")?;
    for (name, host) in [("first", "a.example"), ("second", "b.example")] {
        eventually(host, SOON, || {
            let said = pki.curl(&address, host, &[])?;
            ensure!(said.ends_with("200") && said.contains("far"), "{said}");
            Ok(())
        })?;
        let shown = pki.shown(&address, host)?;
        ensure!(shown.contains(name), "each host has its certificate: {shown}");
    }
    ensure!(
        pki.curl(&address, "c.example", &[])?.starts_with("exit"),
        "hosts without one are not served over TLS"
    );
    let status = mesh.kubectl(&[
        "get",
        "ingress",
        "-n",
        "outside",
        "tls",
        "-o",
        "jsonpath={.status.loadBalancer.ingress[0].ip}",
    ])?;
    ensure!(status == address, "the gateway's address is in the status: {status:?}");
    mesh.kubectl(&["delete", "secret", "-n", "istio-system", "first", "second"])?;
    mesh.kubectl(&["delete", "pod", "caller", "--grace-period=1", "--wait=true"])?;
    mesh.kubectl(&["delete", "namespace", "outside", "--wait=true", "--timeout=60s"]).map(drop)
}
