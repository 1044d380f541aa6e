//! Lifecycle hooks.

use std::{net::Ipv4Addr, path::Path, time::Duration};

use k8s_openapi::api::core::v1::{Container, LifecycleHandler};

use crate::{
    container::exec_to_end,
    container_run::ExecSpec,
    images::{PROGRAMS, our_program},
    probe::{self, Question, http_question},
};

/// An HTTP hook's answer is waited for this long; the caller's own limit may be shorter.
const HTTP_PATIENCE: Duration = Duration::from_secs(30);

/// Runs a hook to its end; `Err` is the message for the pod's events.
pub(super) async fn run(
    hook: &LifecycleHandler,
    container: &Container,
    pod_ip: Ipv4Addr,
    exec: &ExecSpec,
    executable: &Path,
) -> Result<(), String> {
    if let Some(action) = &hook.exec {
        let mut command = action.command.clone().unwrap_or_default();
        // Our own programs are in a folder of their own, not where their images would have them.
        if let Some(program) = command.first_mut()
            && let Some(name) = our_program(program)
        {
            *program = format!("{PROGRAMS}/{name}");
        }
        let spec = ExecSpec { command, ..exec.clone() };
        return match exec_to_end(executable, &spec).await {
            Ok((0, _)) => Ok(()),
            Ok((code, output)) => {
                Err(format!("Exec lifecycle hook failed: exit code {code}: {}", output.trim()))
            }
            Err(error) => Err(format!("Exec lifecycle hook failed: {error}")),
        };
    }
    if let Some(action) = &hook.http_get {
        let question = http_question(action, container, pod_ip).map_err(|error| error.to_string())?;
        // Any answer will do (kubelet's HTTP handler); only none is a failure.
        return match (probe::ask(&question, HTTP_PATIENCE, executable).await, &question) {
            (Err(message), Question::Http { .. }) if message.starts_with("HTTP probe failed") => Ok(()),
            (outcome, _) => outcome,
        };
    }
    if let Some(action) = &hook.sleep {
        tokio::time::sleep(Duration::from_secs(u64::try_from(action.seconds).unwrap_or(0))).await;
    }
    Ok(())
}
