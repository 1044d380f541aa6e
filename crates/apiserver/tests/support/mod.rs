//! An API server and the real `kubectl` against it.
#![allow(dead_code, unreachable_pub, reason = "each test file uses a part")]

use std::{
    io::Write,
    path::PathBuf,
    process::{Command, Stdio},
};

use lateen_apiserver::{ApiServer, ApiServerConfig};

/// A server and a kubeconfig for it.
pub struct Cluster {
    pub server: Option<ApiServer>,
    pub runtime: tokio::runtime::Runtime,
    pub directory: tempfile::TempDir,
}

/// What a command printed.
pub struct Output {
    pub ok: bool,
    pub stdout: String,
    pub stderr: String,
}

fn kubectl_path() -> PathBuf {
    let path = PathBuf::from("/usr/bin/kubectl");
    assert!(
        path.exists(),
        "KUBECTL IS MISSING: these tests need /usr/bin/kubectl 1.32 (run scripts for the tools first)"
    );
    path
}

impl Cluster {
    pub fn start() -> Self {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let server = runtime.block_on(ApiServer::start(ApiServerConfig::default())).unwrap();
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("config"), server.kubeconfig(&server.url()).unwrap()).unwrap();
        Self { server: Some(server), runtime, directory }
    }

    /// A kubeconfig of nobody, for `--token`.
    pub fn anonymous_kubeconfig(&self) -> String {
        let server = self.server.as_ref().unwrap();
        let (authority, path) =
            (self.directory.path().join("ca.pem"), self.directory.path().join("anonymous"));
        std::fs::write(&authority, server.ca_pem()).unwrap();
        let config = serde_json::json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "c",
            "clusters": [{"name": "c", "cluster": {"server": server.url(), "certificate-authority": authority}}],
            "users": [{"name": "c", "user": {}}],
            "contexts": [{"name": "c", "context": {"cluster": "c", "user": "c"}}],
        });
        std::fs::write(&path, config.to_string()).unwrap();
        path.display().to_string()
    }

    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new("timeout");
        command
            .arg("30")
            .arg(kubectl_path())
            .args(arguments)
            .env("KUBECONFIG", self.directory.path().join("config"))
            .env("HOME", self.directory.path())
            .env("NO_PROXY", "*")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    pub fn run_with(&self, arguments: &[&str], input: &str) -> Output {
        let mut child = self.command(arguments).spawn().unwrap();
        child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
        let output = child.wait_with_output().unwrap();
        Output {
            ok: output.status.success(),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    /// Runs a command that must succeed; gives its output.
    pub fn ok(&self, arguments: &[&str]) -> String {
        self.ok_with(arguments, "")
    }

    pub fn ok_with(&self, arguments: &[&str], input: &str) -> String {
        let output = self.run_with(arguments, input);
        assert!(output.ok, "kubectl {}: {}{}", arguments.join(" "), output.stdout, output.stderr);
        output.stdout
    }

    /// Runs a command that must fail; gives what it complained.
    pub fn fails_with(&self, arguments: &[&str], input: &str) -> String {
        let output = self.run_with(arguments, input);
        assert!(!output.ok, "kubectl {} should have failed: {}", arguments.join(" "), output.stdout);
        output.stderr
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if let Some(server) = self.server.take() {
            self.runtime.block_on(server.shutdown());
        }
    }
}
