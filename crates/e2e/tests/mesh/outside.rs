//! A caller in the mesh, and what is outside it.

use std::time::Duration;

use anyhow::{Result, ensure};
use lateen_e2e::{Mesh, eventually};

use crate::pki::Pki;

pub(crate) const SOON: Duration = Duration::from_secs(30);
/// An address nobody has: what a name outside might resolve to.
pub(crate) const ELSEWHERE: &str = "198.18.0.1";

/// The pod `caller` in the mesh and the namespace `outside`, whose pods have no proxy.
pub(crate) struct Outside<'a> {
    pub(crate) mesh: &'a Mesh,
    /// Address of the pod `far`, which answers everything with its name.
    pub(crate) far: String,
}

/// A ServiceEntry of namespace `default`.
pub(crate) fn entry(name: &str, spec: &str) -> String {
    format!(
        "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {{ name: {name} }}\nspec: {spec}\n---\n"
    )
}

/// The egress gateway's Gateway with these servers, a list.
pub(crate) fn egress_gateway(servers: &str) -> String {
    format!(
        "apiVersion: networking.istio.io/v1\nkind: Gateway\nmetadata: {{ name: istio-egressgateway }}\nspec: {{ selector: {{ istio: egressgateway }}, servers: {servers} }}\n---\n"
    )
}

impl<'a> Outside<'a> {
    pub(crate) fn new(mesh: &'a Mesh) -> Result<Self> {
        mesh.apply_fixture("external.yaml")?;
        mesh.kubectl(&["wait", "--for=condition=Ready", "pod/caller", "--timeout=60s"])?;
        mesh.kubectl(&["wait", "-n", "outside", "--for=condition=Ready", "pod/far", "--timeout=60s"])?;
        let far = mesh.kubectl(&["get", "pod", "-n", "outside", "far", "-o", "jsonpath={.status.podIP}"])?;
        Ok(Self { mesh, far })
    }

    /// With servers of TLS, `secure` and `strict` (which wants a certificate of its callers), and what made their certificates.
    pub(crate) fn with_tls(mesh: &'a Mesh) -> Result<(Self, Pki)> {
        let outside = Self::new(mesh)?;
        let pki = Pki::new()?;
        pki.issue("server", "secure.example")?;
        pki.issue("strict", "strict.example")?;
        pki.issue("client", "client.example")?;
        for (secret, name) in [("certificate", "server"), ("strict", "strict")] {
            let (certificate, key) = (format!("{name}.crt"), format!("{name}.key"));
            let data = [("tls.crt", certificate.as_str()), ("tls.key", &key), ("ca.crt", "ca.crt")];
            pki.generic(mesh, "outside", secret, &data)?;
        }
        mesh.apply_fixture("secure.yaml")?;
        for pod in ["pod/secure", "pod/strict"] {
            mesh.kubectl(&["wait", "-n", "outside", "--for=condition=Ready", pod, "--timeout=60s"])?;
        }
        Ok((outside, pki))
    }

    /// What a command in the caller's pod prints.
    pub(crate) fn run(&self, command: &str) -> Result<String> {
        let out = self.mesh.kubectl_output(&["exec", "caller", "-c", "client", "--", "sh", "-c", command])?;
        Ok(String::from_utf8_lossy(&out.stdout).trim().to_owned())
    }

    /// What curl in the caller's pod gets for a host that resolves to `address`: body, then status; or its exit code.
    pub(crate) fn curl(&self, host: &str, port: u16, address: &str, more: &str) -> Result<String> {
        self.run(&format!(
            "curl -s -m 5 -w '\\n%{{http_code}}' --resolve {host}:{port}:{address} {more} http://{host}:{port}/ || echo \"exit $?\""
        ))
    }

    /// Until `far` answers for the host.
    pub(crate) fn answers(&self, what: &str, host: &str, port: u16, address: &str) -> Result<String> {
        eventually(what, SOON, || {
            let said = self.curl(host, port, address, "")?;
            ensure!(said.ends_with("200") && said.contains("far"), "{host}: {said}");
            Ok(said)
        })
    }

    /// Until a plain request for the host, at an address nobody has, has this status.
    pub(crate) fn status_is(&self, what: &str, host: &str, status: &str) -> Result<()> {
        eventually(what, SOON, || {
            let said = self.curl(host, 80, ELSEWHERE, "-o /dev/null")?;
            ensure!(said.ends_with(status), "{host}: {said}");
            Ok(())
        })
    }

    /// The subject of the certificate that the caller is shown for a name.
    pub(crate) fn shown(&self, host: &str) -> Result<String> {
        self.run(&format!(
            "openssl s_client -connect {ELSEWHERE}:443 -servername {host} </dev/null 2>/dev/null | openssl x509 -noout -subject 2>/dev/null"
        ))
    }

    pub(crate) fn shows(&self, what: &str, host: &str, subject: &str) -> Result<()> {
        eventually(what, SOON, || {
            let shown = self.shown(host)?;
            ensure!(shown.contains(subject), "{host}: {shown:?}");
            Ok(())
        })
    }

    pub(crate) fn egress_is_up(&self) -> Result<()> {
        let rollout =
            ["rollout", "status", "-n", "istio-system", "deploy/istio-egressgateway", "--timeout=60s"];
        self.mesh.kubectl(&rollout).map(drop)
    }

    pub(crate) fn egress_log(&self) -> Result<String> {
        let logs = ["logs", "-n", "istio-system", "deploy/istio-egressgateway", "--tail=30"];
        self.mesh.kubectl(&logs)
    }

    pub(crate) fn egress_log_has(&self, part: &str) -> Result<()> {
        eventually("the egress gateway's log", SOON, || {
            let log = self.egress_log()?;
            ensure!(log.contains(part), "no {part} in {log}");
            Ok(())
        })
    }

    pub(crate) fn clean(&self) -> Result<()> {
        let kinds = "se,we,vs,dr,gw";
        self.mesh.kubectl(&["delete", kinds, "--all", "-n", "default", "--wait=false"])?;
        self.mesh.kubectl(&["delete", "dr", "--all", "-n", "istio-system", "--wait=false"])?;
        self.mesh.kubectl(&["delete", "pod", "caller", "--grace-period=1", "--wait=true"])?;
        self.mesh.kubectl(&["delete", "namespace", "outside", "--wait=true", "--timeout=60s"]).map(drop)
    }
}
