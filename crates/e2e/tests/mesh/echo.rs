//! The fixture `echo.yaml`: services of the mesh, and the pod `client` whose curl sees what trials look at.

use std::time::Duration;

use anyhow::{Result, ensure};
use lateen_e2e::{Mesh, eventually};

/// How long a change may take until traffic follows it, on a machine that is busy.
pub(crate) const SOON: Duration = Duration::from_secs(30);

/// Everything of the fixture is ready, which is not to say that every proxy knows the others yet.
pub(crate) fn up(mesh: &Mesh) -> Result<()> {
    mesh.apply_fixture("echo.yaml")?;
    mesh.kubectl(&["wait", "--for=condition=Available", "deploy", "--all", "--timeout=60s"])?;
    mesh.kubectl(&["wait", "--for=condition=Ready", "pod/client", "--timeout=60s"]).map(drop)
}

/// It is gone, with its rules and more of namespace `default` (kinds, separated by commas).
pub(crate) fn down(mesh: &Mesh, more: &str) -> Result<()> {
    if !more.is_empty() {
        mesh.kubectl(&["delete", more, "--all", "-n", "default"])?;
    }
    mesh.kubectl(&["delete", "pod", "client", "--grace-period=1", "--ignore-not-found"])?;
    mesh.kubectl(&["delete", "deploy,svc,dr", "--all", "-n", "default", "--wait=false"]).map(drop)
}

/// What a command prints in the client pod.
pub(crate) fn run(mesh: &Mesh, command: &str) -> Result<String> {
    mesh.kubectl(&["exec", "client", "-c", "client", "--", "sh", "-c", command])
}

/// What curl in the client pod gets: body, blank, status; that is `000` where there is no answer.
pub(crate) fn ask(mesh: &Mesh, request: &str) -> Result<String> {
    run(mesh, &format!("curl -s --path-as-is -m 5 -w ' %{{http_code}}' {request} || true"))
}

/// Until an answer (see [`ask`]) ends so.
pub(crate) fn becomes(mesh: &Mesh, request: &str, wanted: &str) -> Result<()> {
    eventually(&format!("{request} answers {wanted}"), SOON, || {
        let said = ask(mesh, request)?;
        ensure!(said.ends_with(wanted), "{said}");
        Ok(())
    })
}

/// Writes an AuthorizationPolicy.
pub(crate) fn policy(mesh: &Mesh, name: &str, spec: &str) -> Result<()> {
    let header = "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\n";
    mesh.apply(&format!("{header}metadata: {{ name: {name}, namespace: default }}\nspec: {spec}\n")).map(drop)
}
