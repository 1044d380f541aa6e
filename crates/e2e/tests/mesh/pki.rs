//! Certificates of one run, made with openssl, and what clients get with them.

use std::path::{Path, PathBuf};
use std::process::{Child, Command};

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
        self.issue_with(name, host, "ec -pkeyopt ec_paramgen_curve:P-256")
    }

    /// The same with a key of another kind, as openssl names it.
    pub(crate) fn issue_with(&self, name: &str, host: &str, kind: &str) -> Result<()> {
        std::fs::write(self.path().join("names"), format!("subjectAltName=DNS:{host}\n"))?;
        self.openssl(&format!(
            "req -newkey {kind} -nodes -keyout {name}.key -out {name}.csr -subj /CN={name}"
        ))?;
        self.openssl(&format!("x509 -req -in {name}.csr -CA ca.crt -CAkey ca.key -CAcreateserial -out {name}.crt -days 30 -extfile names"))
    }

    /// `NAME.crt` and `NAME.key` of a workload with this identity.
    pub(crate) fn workload(&self, name: &str, identity: &str) -> Result<()> {
        std::fs::write(
            self.path().join("names"),
            format!(
                "subjectAltName=critical,URI:{identity}\nkeyUsage=critical,digitalSignature\nbasicConstraints=critical,CA:FALSE\n"
            ),
        )?;
        self.openssl(&format!(
            "req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout {name}.key -out {name}.csr -subj /O=other"
        ))?;
        self.openssl(&format!("x509 -req -in {name}.csr -CA ca.crt -CAkey ca.key -CAcreateserial -out {name}.crt -days 30 -extfile names"))
    }

    /// The same workload as a server on this machine, which answers HTTP and wants clients of any certificate. It ends when dropped.
    pub(crate) fn serve(&self, name: &str) -> Result<Serving> {
        let port = std::net::TcpListener::bind("0.0.0.0:0")?.local_addr()?.port();
        let child = Command::new("openssl")
            .args(["s_server", "-www", "-quiet", "-verify", "4", "-accept", &port.to_string()])
            .args(["-cert", &format!("{name}.crt"), "-key", &format!("{name}.key")])
            .current_dir(self.path())
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::null())
            .spawn()?;
        Ok(Serving { child, port })
    }

    /// `NAME.crt` and `NAME.key` of an authority below the root.
    pub(crate) fn authority(&self, name: &str) -> Result<()> {
        std::fs::write(
            self.path().join("extensions"),
            "basicConstraints=critical,CA:TRUE\nkeyUsage=keyCertSign,cRLSign\n",
        )?;
        self.openssl(&format!(
            "req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout {name}.key -out {name}.csr -subj /O={name}"
        ))?;
        self.openssl(&format!("x509 -req -in {name}.csr -CA ca.crt -CAkey ca.key -CAcreateserial -out {name}.crt -days 30 -extfile extensions"))
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

    /// A client that goes on asking over one connection, until it is told to end.
    pub(crate) fn lasting(&self, address: &str, host: &str, version: &str) -> Result<Lasting> {
        let log = self.path().join(format!("lasting{version}"));
        // By the line, so that what it has said is there when it is stopped.
        let child = Command::new("stdbuf")
            .args([
                "-oL",
                "curl",
                "-s",
                "-o",
                "/dev/null",
                "--rate",
                "40/s",
                "-w",
                "%{http_code} %{num_connects}\n",
                version,
            ])
            .args(["--cacert", &self.file("ca.crt"), "--resolve", &format!("{host}:443:{address}")])
            .arg(format!("https://{host}/?[1-100000]"))
            .stdout(std::fs::File::create(&log)?)
            .spawn()?;
        Ok(Lasting { child, log })
    }

    /// SHA-256 of a certificate, in hexadecimal digits.
    pub(crate) fn hash(&self, name: &str) -> Result<String> {
        let script =
            format!("openssl x509 -in {} -outform DER | sha256sum", self.file(&format!("{name}.crt")));
        let out = Command::new("sh").args(["-c", &script]).output()?;
        let text = String::from_utf8_lossy(&out.stdout).into_owned();
        Ok(text.split(' ').next().unwrap_or_default().to_owned())
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

/// See [`Pki::serve`].
pub(crate) struct Serving {
    child: Child,
    pub(crate) port: u16,
}

impl Drop for Serving {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// See [`Pki::lasting`].
pub(crate) struct Lasting {
    child: Child,
    log: PathBuf,
}

impl Lasting {
    /// Stops asking.
    ///
    /// # Errors
    /// When a request failed, or there was another connection than the first.
    pub(crate) fn end(&mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        let text = std::fs::read_to_string(&self.log)?;
        let lines: Vec<&str> = text.lines().collect();
        let others = lines.iter().skip(1).filter(|line| **line != "200 0").count();
        ensure!(
            lines.len() > 20 && lines[0] == "200 1" && others == 0,
            "{others} of {} requests failed or took another connection: {text:.500}",
            lines.len()
        );
        Ok(())
    }
}

impl Drop for Lasting {
    fn drop(&mut self) {
        // Ended already, mostly.
        let _gone = self.child.kill();
        let _waited = self.child.wait();
    }
}

/// Whether `openssl s_client` was refused, by what it says. Whoever refuses may close before the alert has been read.
pub(crate) fn is_refused(said: &str) -> bool {
    ["alert", "unexpected eof", "errno=104"].iter().any(|sign| said.contains(sign))
        && !said.contains("HTTP/1.1")
}
