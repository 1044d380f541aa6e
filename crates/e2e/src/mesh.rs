//! A mesh brought up by the real `lateen` program, and the commands a user types against it.

use std::{
    collections::BTreeSet,
    fmt,
    path::PathBuf,
    process::{Command, Output},
    sync::OnceLock,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};

/// Which proxy carries the traffic.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Engine {
    /// Our own.
    Lateen,
    /// A stock Envoy under our control plane.
    Envoy,
}

impl fmt::Display for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Lateen => "lateen",
            Self::Envoy => "envoy",
        })
    }
}

/// A running mesh. Dropping it runs `lateen down`.
#[derive(Debug)]
pub struct Mesh {
    /// The engine its proxies run.
    pub engine: Engine,
    /// How long `lateen up` took.
    pub up_took: Duration,
    /// What `lateen up` printed.
    pub up_said: String,
    bin: PathBuf,
    /// A folder in which `istioctl` is `lateen`.
    aliases: tempfile::TempDir,
    gateway: OnceLock<String>,
}

/// Folder of the programs under test: `LATEEN_BIN`, which `make` sets.
///
/// # Errors
/// When it is not set or has no `lateen`.
pub fn bin_dir() -> Result<PathBuf> {
    let dir = PathBuf::from(std::env::var("LATEEN_BIN").context("LATEEN_BIN is not set: run `make e2e`")?);
    ensure!(dir.join("lateen").exists(), "no lateen in {}: run `make build`", dir.display());
    Ok(dir)
}

impl Mesh {
    /// Starts the mesh with `lateen up` and further arguments.
    ///
    /// # Errors
    /// When `up` fails; its words are in the error.
    pub fn up(engine: Engine, args: &[&str]) -> Result<Self> {
        let bin = bin_dir()?;
        let aliases = tempfile::tempdir()?;
        std::os::unix::fs::symlink(bin.join("lateen"), aliases.path().join("istioctl"))?;
        let start = Instant::now();
        let out = Command::new(bin.join("lateen"))
            .arg("up")
            .args(["--engine", &engine.to_string()])
            .args(args)
            .output()?;
        let said = text(&out);
        ensure!(out.status.success(), "lateen up failed:\n{said}");
        Ok(Self { engine, up_took: start.elapsed(), up_said: said, bin, aliases, gateway: OnceLock::new() })
    }

    /// Runs `lateen ARGS` and returns its standard output.
    ///
    /// # Errors
    /// When it exits with another status than 0.
    pub fn lateen(&self, args: &[&str]) -> Result<String> {
        checked(Command::new(self.bin.join("lateen")).args(args), &format!("lateen {}", args.join(" ")))
    }

    /// Runs a shell script as the course's reader would type it: kubectl configured, `lateen` on the path also as
    /// `istioctl`, the working folder being `samples/course/LAB`.
    ///
    /// # Errors
    /// When a line of it fails (`set -e`).
    pub fn lab(&self, lab: &str, script: &str) -> Result<String> {
        let dir = repository().join("samples/course").join(lab);
        let path = format!(
            "{}:{}:{}",
            self.aliases.path().display(),
            self.bin.display(),
            std::env::var("PATH").unwrap_or_default()
        );
        checked(
            Command::new("bash")
                .args(["-euo", "pipefail", "-c", script])
                .current_dir(dir)
                .env("PATH", path)
                .env("KUBECONFIG", self.kubeconfig()),
            &format!("{lab}: {script}"),
        )
    }

    /// Runs `kubectl ARGS` and returns its standard output.
    ///
    /// # Errors
    /// When it exits with another status than 0; its error output is in the error.
    pub fn kubectl(&self, args: &[&str]) -> Result<String> {
        checked(
            Command::new("kubectl").args(args).env("KUBECONFIG", self.kubeconfig()),
            &format!("kubectl {}", args.join(" ")),
        )
    }

    /// Replaces the pods of a deployment and waits until the new ones serve.
    ///
    /// The time of a restart is written in whole seconds, and kubectl refuses a second one with the same time
    /// (a deployment of ours may have rolled over within that second): it is asked for again.
    ///
    /// # Errors
    /// As `kubectl rollout restart` and `kubectl rollout status` say.
    pub fn restart(&self, namespace: &str, deployment: &str) -> Result<()> {
        let restart = ["rollout", "restart", "-n", namespace, deployment];
        loop {
            match self.kubectl(&restart) {
                Ok(_) => break,
                Err(e) if format!("{e:#}").contains("within the past second") => {
                    std::thread::park_timeout(Duration::from_millis(200));
                }
                Err(e) => return Err(e),
            }
        }
        self.kubectl(&["rollout", "status", "-n", namespace, deployment, "--timeout=60s"])?;
        Ok(())
    }

    /// Runs `kubectl ARGS` and returns its output whatever its exit status.
    ///
    /// # Errors
    /// When kubectl cannot be started.
    pub fn kubectl_output(&self, args: &[&str]) -> Result<Output> {
        Ok(Command::new("kubectl").args(args).env("KUBECONFIG", self.kubeconfig()).output()?)
    }

    /// Applies a manifest given as text.
    ///
    /// # Errors
    /// As `kubectl apply` says.
    pub fn apply(&self, yaml: &str) -> Result<String> {
        let file = tempfile::NamedTempFile::with_suffix(".yaml")?;
        std::fs::write(file.path(), yaml)?;
        self.kubectl(&["apply", "-f", &file.path().display().to_string()])
    }

    /// Applies a file of `fixtures/`.
    ///
    /// # Errors
    /// As `kubectl apply` says.
    pub fn apply_fixture(&self, name: &str) -> Result<String> {
        let path = fixture(name);
        self.kubectl(&["apply", "-f", &path.display().to_string()])
    }

    /// The address of the ingress gateway; asked for once, as it stays.
    ///
    /// # Errors
    /// When the service has none.
    pub fn gateway(&self) -> Result<String> {
        if let Some(known) = self.gateway.get() {
            return Ok(known.clone());
        }
        let ip = self.kubectl(&[
            "get",
            "svc",
            "-n",
            "istio-system",
            "istio-ingressgateway",
            "-o",
            "jsonpath={.status.loadBalancer.ingress[0].ip}",
        ])?;
        ensure!(!ip.is_empty(), "the gateway has no address yet");
        Ok(self.gateway.get_or_init(|| ip).clone())
    }

    /// The name of the one ready pod with this label that is not being deleted.
    ///
    /// # Errors
    /// When there is none.
    pub fn pod(&self, namespace: &str, selector: &str) -> Result<String> {
        let out = self.kubectl(&["get", "pods", "-n", namespace, "-l", selector, "-o", "json"])?;
        let list: serde_json::Value = serde_json::from_str(&out)?;
        for pod in list["items"].as_array().context("no items")? {
            let ready = pod["status"]["conditions"]
                .as_array()
                .is_some_and(|c| c.iter().any(|c| c["type"] == "Ready" && c["status"] == "True"));
            if ready && pod["metadata"]["deletionTimestamp"].is_null() {
                return Ok(pod["metadata"]["name"].as_str().unwrap_or_default().to_owned());
            }
        }
        bail!("no ready pod with {selector} in {namespace}")
    }

    /// The address of that pod, and not of one of the same name that is about to end.
    ///
    /// # Errors
    /// When there is none.
    pub fn pod_address(&self, namespace: &str, selector: &str) -> Result<String> {
        let pod = self.pod(namespace, selector)?;
        self.kubectl(&["get", "pod", "-n", namespace, &pod, "-o", "jsonpath={.status.podIP}"])
    }

    /// Path of the kubeconfig that `lateen up` wrote.
    pub fn kubeconfig(&self) -> PathBuf {
        state_dir().join("kubeconfig")
    }

    /// `lateen down`.
    ///
    /// # Errors
    /// When it fails.
    pub fn down(self) -> Result<()> {
        self.lateen(&["down"]).map(drop)
    }
}

impl Drop for Mesh {
    fn drop(&mut self) {
        // After an explicit `down` this finds nothing to do.
        if let Err(e) = self.lateen(&["down"]) {
            eprintln!("lateen down: {e:#}");
        }
    }
}

/// Where the embedded cluster keeps its state.
pub fn state_dir() -> PathBuf {
    std::env::var_os("LATEEN_HOME").map_or_else(|| PathBuf::from("/var/lib/lateen"), PathBuf::from)
}

/// The root of this repository.
pub fn repository() -> PathBuf {
    here().join("../..")
}

/// A file of `fixtures/`.
pub fn fixture(name: &str) -> PathBuf {
    here().join("fixtures").join(name)
}

/// Where this crate's sources are now: what was compiled elsewhere may be used again here, with a target folder that is shared.
fn here() -> PathBuf {
    std::env::var_os("CARGO_MANIFEST_DIR").map_or_else(|| env!("CARGO_MANIFEST_DIR").into(), PathBuf::from)
}

/// Everything of an embedded cluster that a look at the machine shows: processes of ours, network namespaces,
/// interfaces, nftables tables, mounts.
///
/// # Errors
/// When the machine's tools fail.
pub fn leftovers() -> Result<BTreeSet<String>> {
    let mut found = BTreeSet::new();
    let script = r#"
        ip netns list | awk '/^lateen/ {print "netns " $1}'
        ip -o link | awk -F': ' '$2 ~ /^(lt[0-9a-f]|lateen)/ {print "interface " $2}'
        nft list tables | awk '/lateen/ {print "table " $0}'
        awk '$2 ~ /\/lateen/ && $2 !~ /^\/var\/cache/ {print "mount " $2}' /proc/mounts
        for p in /proc/[0-9]*; do
          exe=$(readlink $p/exe 2>/dev/null) || continue
          # Pods' processes have a network of their own; a proxy somebody runs by hand on this machine is not ours.
          [ "$(readlink $p/ns/net)" = "$(readlink /proc/self/ns/net)" ] && [ "${exe##*/}" != lateen ] && continue
          case ${exe##*/} in lateen|lateend|lateen-proxy|lateen-samples|envoy) echo "process ${p#/proc/} $exe";; esac
        done
    "#;
    let out = checked(Command::new("bash").args(["-c", script]), "look for leftovers")?;
    found.extend(out.lines().map(str::to_owned));
    Ok(found)
}

fn checked(command: &mut Command, what: &str) -> Result<String> {
    let out = command.output().with_context(|| format!("cannot run {what}"))?;
    ensure!(out.status.success(), "`{what}` ended with {}:\n{}", out.status, text(&out));
    Ok(String::from_utf8_lossy(&out.stdout).into_owned())
}

fn text(out: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr))
}
