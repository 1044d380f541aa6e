//! TLS at the gateway and towards services (T1, T10, T15, T22). Certificates are made for each run.

use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lateen_e2e::{Mesh, eventually};

use crate::OnMesh;

pub(crate) const TRIALS: &[OnMesh] =
    &[("gateway_https", gateway_https), ("passed_on_and_originated", passed_on_and_originated)];

const SOON: Duration = Duration::from_secs(30);

/// Files of one run.
struct Pki(tempfile::TempDir);

impl Pki {
    fn new() -> Result<Self> {
        let pki = Self(tempfile::tempdir()?);
        pki.openssl("req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout ca.key -out ca.crt -days 30 -subj /CN=root")?;
        Ok(pki)
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    fn file(&self, name: &str) -> String {
        self.path().join(name).display().to_string()
    }

    fn openssl(&self, arguments: &str) -> Result<()> {
        let out = Command::new("openssl").args(arguments.split(' ')).current_dir(self.path()).output()?;
        ensure!(out.status.success(), "openssl {arguments}: {}", String::from_utf8_lossy(&out.stderr));
        Ok(())
    }

    /// `NAME.crt` and `NAME.key`, for a host.
    fn issue(&self, name: &str, host: &str) -> Result<()> {
        std::fs::write(self.path().join("names"), format!("subjectAltName=DNS:{host}\n"))?;
        self.openssl(&format!("req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout {name}.key -out {name}.csr -subj /CN={name}"))?;
        self.openssl(&format!("x509 -req -in {name}.csr -CA ca.crt -CAkey ca.key -CAcreateserial -out {name}.crt -days 30 -extfile names"))
    }

    fn secret(&self, mesh: &Mesh, namespace: &str, secret: &str, name: &str) -> Result<()> {
        let script = format!(
            "kubectl create secret tls {secret} -n {namespace} --cert {} --key {} --dry-run=client -o json | kubectl apply -f -",
            self.file(&format!("{name}.crt")),
            self.file(&format!("{name}.key"))
        );
        mesh.lab("", &script).map(drop)
    }

    /// What curl gets over HTTPS: the body, then the status; or its exit code.
    fn curl(&self, address: &str, host: &str, more: &[&str]) -> Result<String> {
        let out = Command::new("curl")
            .args(["-s", "-m", "5", "-w", "\n%{http_code}", "--cacert", &self.file("ca.crt")])
            .args(["--resolve", &format!("{host}:443:{address}")])
            .args(more)
            .arg(format!("https://{host}/"))
            .output()?;
        if let Some(code) = out.status.code().filter(|code| *code != 0) {
            return Ok(format!("exit {code}"));
        }
        Ok(String::from_utf8_lossy(&out.stdout).trim().to_owned())
    }

    /// Common name of what a server shows.
    fn shown(&self, address: &str, host: &str) -> Result<String> {
        let script = format!(
            "openssl s_client -connect {address}:443 -servername {host} </dev/null 2>/dev/null | openssl x509 -noout -subject"
        );
        let out = Command::new("sh").args(["-c", &script]).output()?;
        Ok(String::from_utf8_lossy(&out.stdout).trim().to_owned())
    }
}

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
    let authorities = format!(
        "kubectl create secret generic late-cacert -n istio-system --from-file=cacert={} --dry-run=client -o json | kubectl apply -f -",
        pki.file("ca.crt")
    );
    mesh.lab("", &authorities)?;
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

/// New certificates under load, by a change and by the way of Istio's documentation, delete and create: no request fails.
fn rotate(mesh: &Mesh, pki: &Pki, address: &str) -> Result<()> {
    ensure!(pki.shown(address, "a.example")?.contains("first"), "the first certificate is shown");
    let (done, sent, lost) = (AtomicBool::new(false), AtomicU32::new(0), AtomicU32::new(0));
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
