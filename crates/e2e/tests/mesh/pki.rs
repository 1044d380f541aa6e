//! Certificates of one run, made with openssl, and what clients get with them.

use std::path::Path;
use std::process::Command;

use anyhow::{Result, ensure};
use lateen_e2e::Mesh;

/// Files of one run.
pub(crate) struct Pki(tempfile::TempDir);

impl Pki {
    pub(crate) fn new() -> Result<Self> {
        let pki = Self(tempfile::tempdir()?);
        pki.openssl("req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout ca.key -out ca.crt -days 30 -subj /CN=root")?;
        Ok(pki)
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    pub(crate) fn file(&self, name: &str) -> String {
        self.path().join(name).display().to_string()
    }

    fn openssl(&self, arguments: &str) -> Result<()> {
        let out = Command::new("openssl").args(arguments.split(' ')).current_dir(self.path()).output()?;
        ensure!(out.status.success(), "openssl {arguments}: {}", String::from_utf8_lossy(&out.stderr));
        Ok(())
    }

    /// `NAME.crt` and `NAME.key`, for a host.
    pub(crate) fn issue(&self, name: &str, host: &str) -> Result<()> {
        std::fs::write(self.path().join("names"), format!("subjectAltName=DNS:{host}\n"))?;
        self.openssl(&format!("req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout {name}.key -out {name}.csr -subj /CN={name}"))?;
        self.openssl(&format!("x509 -req -in {name}.csr -CA ca.crt -CAkey ca.key -CAcreateserial -out {name}.crt -days 30 -extfile names"))
    }

    pub(crate) fn secret(&self, mesh: &Mesh, namespace: &str, secret: &str, name: &str) -> Result<()> {
        let script = format!(
            "kubectl create secret tls {secret} -n {namespace} --cert {} --key {} --dry-run=client -o json | kubectl apply -f -",
            self.file(&format!("{name}.crt")),
            self.file(&format!("{name}.key"))
        );
        mesh.lab("", &script).map(drop)
    }

    /// A Secret of any type: keys with the files that hold their values.
    pub(crate) fn generic(
        &self,
        mesh: &Mesh,
        namespace: &str,
        secret: &str,
        data: &[(&str, &str)],
    ) -> Result<()> {
        let from: Vec<String> =
            data.iter().map(|(key, file)| format!("--from-file={key}={}", self.file(file))).collect();
        let script = format!(
            "kubectl create secret generic {secret} -n {namespace} {} --dry-run=client -o json | kubectl apply -f -",
            from.join(" ")
        );
        mesh.lab("", &script).map(drop)
    }

    /// What curl gets over HTTPS: the body, then the status; or its exit code.
    pub(crate) fn curl(&self, address: &str, host: &str, more: &[&str]) -> Result<String> {
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
    pub(crate) fn shown(&self, address: &str, host: &str) -> Result<String> {
        let script = format!(
            "openssl s_client -connect {address}:443 -servername {host} </dev/null 2>/dev/null | openssl x509 -noout -subject"
        );
        let out = Command::new("sh").args(["-c", &script]).output()?;
        Ok(String::from_utf8_lossy(&out.stdout).trim().to_owned())
    }
}
