//! `lateen up` and `lateen down`: how fast, and what they leave behind (M12).

use std::time::Duration;

use crate::Alone;
use anyhow::{Result, ensure};
use lateen_e2e::{Engine, Mesh, mesh, web::Ask};

pub(crate) const TRIALS: &[Alone] = &[
    ("demo_answers_within_ten_seconds", demo_answers_within_ten_seconds),
    ("down_after_a_crash_leaves_nothing", down_after_a_crash_leaves_nothing),
    ("down_where_others_have_namespaces", down_where_others_have_namespaces),
    ("up_after_a_crash_starts_afresh", up_after_a_crash_starts_afresh),
    ("up_goes_on_where_an_earlier_one_was_stopped", up_goes_on_where_an_earlier_one_was_stopped),
    ("a_shell_in_a_pod", a_shell_in_a_pod),
    ("kept_objects_return", kept_objects_return),
];

/// The two commands of the README: the demo answers through gateway → sidecar → web-frontend → sidecar → customers.
fn demo_answers_within_ten_seconds() -> Result<()> {
    let mesh = Mesh::up(Engine::Lateen, &[])?;
    ensure!(mesh.up_took < Duration::from_secs(10), "lateen up took {:?}", mesh.up_took);
    let gateway = mesh.gateway()?;
    for expected in [gateway.as_str(), "KUBECONFIG", "curl"] {
        ensure!(mesh.up_said.contains(expected), "`up` does not say {expected}:\n{}", mesh.up_said);
    }
    let page = Ask::get(format!("http://{gateway}/")).send()?;
    ensure!(page.status == 200, "{page:?}");
    ensure!(page.body.to_lowercase().contains("<table") && !page.body.contains("city"), "{}", page.body);
    let pods = mesh.kubectl(&["get", "pods"])?;
    ensure!(pods.lines().skip(1).all(|l| l.contains("2/2")), "{pods}");
    let again = Mesh::up(Engine::Lateen, &[]);
    ensure!(
        again.is_ok_and(|m| m.up_said.contains("already")),
        "a second `up` should say that the mesh is up"
    );
    mesh.down()?;
    nothing_left()
}

/// SIGKILL of the daemon, then `down`: nothing of the cluster stays.
fn down_after_a_crash_leaves_nothing() -> Result<()> {
    let mesh = Mesh::up(Engine::Lateen, &["--no-sample"])?;
    let pid = std::fs::read_to_string(mesh::state_dir().join("daemon.pid"))?;
    let killed = std::process::Command::new("kill").args(["-9", pid.trim()]).status()?;
    ensure!(killed.success(), "no daemon with pid {pid}");
    mesh.down()?;
    nothing_left()
}

/// `ip netns add` by somebody else, which mounts over the directory of namespaces: theirs stays, ours go.
fn down_where_others_have_namespaces() -> Result<()> {
    const OTHERS: &str = "e2e-others";
    let ip = |arguments: &[&str]| -> Result<String> {
        let out = std::process::Command::new("ip").arg("netns").args(arguments).output()?;
        ensure!(out.status.success(), "ip netns {arguments:?}: {}", String::from_utf8_lossy(&out.stderr));
        Ok(String::from_utf8_lossy(&out.stdout).into_owned())
    };
    let mesh = Mesh::up(Engine::Lateen, &["--no-sample"])?;
    ip(&["add", OTHERS])?;
    let ended = mesh.down().and_then(|()| nothing_left());
    let left = ip(&["exec", OTHERS, "true"]);
    ip(&["del", OTHERS])?;
    ended.and(left.map(drop))
}

/// SIGKILL of the daemon, then `up`: what the crash left is no obstacle, and the objects are there again.
fn up_after_a_crash_starts_afresh() -> Result<()> {
    let mesh = Mesh::up(Engine::Lateen, &[])?;
    mesh.kubectl(&["create", "configmap", "kept", "--from-literal=a=b"])?;
    let pid = std::fs::read_to_string(mesh::state_dir().join("daemon.pid"))?;
    let killed = std::process::Command::new("kill").args(["-9", pid.trim()]).status()?;
    ensure!(killed.success(), "no daemon with pid {pid}");
    std::mem::forget(mesh);
    let mesh = Mesh::up(Engine::Lateen, &[])?;
    ensure!(mesh.kubectl(&["get", "configmap", "kept", "-o", "jsonpath={.data.a}"])? == "b");
    let page = Ask::get(format!("http://{}/", mesh.gateway()?)).send()?;
    ensure!(page.status == 200, "{page:?}");
    mesh.down()?;
    nothing_left()
}

/// Ctrl-C once the API server is up: the next `up` finishes the work.
fn up_goes_on_where_an_earlier_one_was_stopped() -> Result<()> {
    use std::io::BufRead;
    let mut up = std::process::Command::new(lateen_e2e::mesh::bin_dir()?.join("lateen"))
        .args(["up", "--no-sample"])
        .stderr(std::process::Stdio::piped())
        .stdout(std::process::Stdio::null())
        .spawn()?;
    let said = up.stderr.take().map(std::io::BufReader::new);
    for line in said.into_iter().flat_map(BufRead::lines) {
        if line?.contains("API server is up") {
            break;
        }
    }
    up.kill()?;
    up.wait()?;
    let mesh = Mesh::up(Engine::Lateen, &[])?;
    ensure!(!mesh.up_said.contains("already"), "{}", mesh.up_said);
    let page = Ask::get(format!("http://{}/", mesh.gateway()?)).send()?;
    ensure!(page.status == 200, "{page:?}");
    mesh.down()?;
    nothing_left()
}

/// `kubectl run -i --rm`, as the course uses it to look around: input, output, exit code, and the pod is gone.
fn a_shell_in_a_pod() -> Result<()> {
    let mesh = Mesh::up(Engine::Lateen, &["--no-sample"])?;
    let image = "--image=radial/busyboxplus:curl";
    let said = mesh.lab(
        "",
        &format!(
            "echo 'hostname; exit 3' | kubectl run shell {image} -i --rm --restart=Never || echo code $?"
        ),
    )?;
    ensure!(said.contains("shell\n") && said.contains("code 3\n"), "{said}");
    // With a terminal, which `script` makes.
    let run = format!("kubectl run tty {image} -it --rm --restart=Never -- tty");
    let said = mesh.lab("", &format!("script -qec '{run}' /dev/null </dev/null"))?;
    ensure!(said.contains("/dev/pts/0"), "{said}");
    mesh.down()?;
    nothing_left()
}

/// `down --keep`, then `up`: the user's objects are there again and their pods run.
fn kept_objects_return() -> Result<()> {
    let mesh = Mesh::up(Engine::Lateen, &["--no-sample"])?;
    mesh.kubectl(&["create", "configmap", "kept", "--from-literal=a=b"])?;
    mesh.lab(
        "lab3",
        "kubectl apply -f hello-world.yaml && kubectl rollout status deploy/hello-world --timeout=30s",
    )?;
    mesh.lateen(&["down", "--keep"])?;
    nothing_left()?;
    std::mem::forget(mesh);
    let mesh = Mesh::up(Engine::Lateen, &["--no-sample"])?;
    ensure!(mesh.kubectl(&["get", "configmap", "kept", "-o", "jsonpath={.data.a}"])? == "b");
    mesh.kubectl(&["rollout", "status", "deploy/hello-world", "--timeout=30s"])?;
    mesh.down()?;
    ensure!(!mesh::state_dir().join("store").exists(), "`down` without --keep should remove the state");
    nothing_left()
}

pub(crate) fn nothing_left() -> Result<()> {
    let left = mesh::leftovers()?;
    ensure!(left.is_empty(), "left behind: {left:#?}");
    Ok(())
}
