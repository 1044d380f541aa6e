//! A steady mixed load (`lateen-samples load`) on its own, beside the trial: from this machine through the gateway, or
//! inside a pod through its sidecar.

use std::{
    io::{Read, Write},
    process::{Child, Command, Stdio},
};

use anyhow::{Context, Result, anyhow, ensure};
use lateen_samples::load::{Failure, Report, Spec};

use crate::mesh::{Mesh, bin_dir};

/// A running load. It stops when this is dropped.
#[derive(Debug)]
pub struct Traffic {
    child: Child,
}

impl Traffic {
    /// Sends from this machine.
    ///
    /// # Errors
    /// When the program can't be started.
    pub fn from_here(spec: &Spec) -> Result<Self> {
        let mut command = Command::new(bin_dir()?.join("lateen-samples"));
        Self::start(command.args(["load", "--spec", &serde_json::to_string(spec)?]))
    }

    /// Sends from a container of a pod.
    ///
    /// # Errors
    /// When kubectl can't be started.
    pub fn from_pod(mesh: &Mesh, pod: &str, container: &str, spec: &Spec) -> Result<Self> {
        let program = bin_dir()?.join("lateen-samples");
        let mut command = Command::new("kubectl");
        command
            .env("KUBECONFIG", mesh.kubeconfig())
            // Over WebSocket kubectl 1.32 gives up a minute after it last had something to write: its pings keep that write's deadline.
            .env("KUBECTL_REMOTE_COMMAND_WEBSOCKETS", "false")
            .args(["exec", "-i", pod, "-c", container, "--"])
            .arg(program)
            .args(["load", "--spec", &serde_json::to_string(spec)?]);
        Self::start(&mut command)
    }

    fn start(command: &mut Command) -> Result<Self> {
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        // The end of an input that had something in it is what ends the load.
        child.stdin.as_mut().context("no input")?.write_all(b"\n")?;
        Ok(Self { child })
    }

    /// Stops, waits for the answers still due and reports.
    ///
    /// # Errors
    /// When the load has ended before, or says something else than a report.
    pub fn stop(mut self) -> Result<Report> {
        ensure!(self.child.try_wait()?.is_none(), "the load has ended by itself: {}", self.said());
        drop(self.child.stdin.take());
        let said = self.said();
        let report = said.lines().last().and_then(|line| serde_json::from_str(line).ok());
        report.ok_or_else(|| anyhow!("no report: {said}"))
    }

    fn said(&mut self) -> String {
        let mut said = String::new();
        if let Some(mut stdout) = self.child.stdout.take() {
            let read = stdout.read_to_string(&mut said);
            read.map_or_else(|error| error.to_string(), |_| said)
        } else {
            said
        }
    }
}

impl Drop for Traffic {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        // Ended already when it was stopped.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What was lost, but for what `excused` excuses; one line each.
pub fn losses(report: &Report, excused: impl Fn(&Failure) -> bool) -> Vec<String> {
    let told = report.failures.iter().filter(|failure| !excused(failure));
    let mut lines: Vec<_> = told
        .map(|failure| {
            let instance = failure.instance.as_deref().unwrap_or("-");
            format!(
                "{:.3} s (begun {:.3}) {} by {instance}: {}",
                failure.at, failure.began, failure.flow, failure.what
            )
        })
        .collect();
    for flow in &report.flows {
        let of_flow = report.failures.iter().filter(|failure| failure.flow == flow.name).count() as u64;
        if flow.failed > of_flow {
            lines.push(format!("and {} more of {}", flow.failed - of_flow, flow.name));
        }
        if flow.answered == 0 {
            lines.push(format!("nothing was answered of {}", flow.name));
        }
    }
    lines
}
