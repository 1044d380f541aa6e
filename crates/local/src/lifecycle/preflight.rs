//! Whether this machine is fit, asked before anything is changed.

use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use lateen_podruntime::{ImageMap, host_check};
use nix::unistd::{AccessFlags, access};

use super::state::{State, other_cluster};
use super::{LifecycleError, UpOptions};

/// Programs that must lie beside `lateen`.
const PROGRAMS: [&str; 3] = ["lateend", "lateen-proxy", "lateen-samples"];
const IP_FORWARD: &str = "/proc/sys/net/ipv4/ip_forward";

/// Checks whether [`up`](super::up) can work on this machine: root, `ip` and `nft`, packet forwarding, the API server's
/// port, the state directory, the programs, the image mappings, other clusters. Changes nothing.
///
/// # Errors
/// [`LifecycleError::Preflight`] with one sentence per problem.
pub fn preflight(options: &UpOptions) -> Result<(), LifecycleError> {
    let mut problems = Vec::new();
    if nix::unistd::geteuid().is_root() {
        problems.extend(host_check().err().map(|error| error.to_string()));
        problems.extend(nft_problem());
        problems.extend(forwarding_problem());
    } else {
        problems.push(not_root());
    }
    let state = State::new(&options.state);
    if state.running().is_none() {
        let other = State::other_running();
        problems.extend(other.as_deref().map(|other| other_cluster(Some(other))));
        if other.is_none() {
            problems.extend(port_problem(SocketAddr::from(([127, 0, 0, 1], 6443))));
        }
    }
    problems.extend(directory_problem(&options.state));
    match executable(options) {
        Ok(executable) => problems.extend(program_problems(&executable)),
        Err(problem) => problems.push(problem),
    }
    let mut images = ImageMap::new(PathBuf::new());
    problems.extend(
        options.images.iter().filter_map(|image| images.add(image).err()).map(|error| error.to_string()),
    );
    if problems.is_empty() { Ok(()) } else { Err(LifecycleError::Preflight(problems)) }
}

/// The `lateen` program.
pub(crate) fn executable(options: &UpOptions) -> Result<PathBuf, String> {
    match &options.executable {
        Some(executable) => Ok(executable.clone()),
        None => {
            std::env::current_exe().map_err(|error| format!("this program's own path can't be read: {error}"))
        }
    }
}

fn not_root() -> String {
    "root is needed, because pods are network namespaces with mounts and firewall rules on this machine: run `sudo lateen up` \
     (a user namespace is not enough: named network namespaces need a mount that the host shares)"
        .to_owned()
}

/// The kernel may lack nftables even where the program is installed, and containers often lack the right to use it.
fn nft_problem() -> Option<String> {
    let output = Command::new("nft").args(["list", "tables"]).stdin(Stdio::null()).output().ok()?;
    (!output.status.success()).then(|| {
        let words = String::from_utf8_lossy(&output.stderr);
        format!(
            "nftables can't be used ({}): it needs a kernel with nf_tables and the capability NET_ADMIN",
            words.lines().next().unwrap_or("no reason given").trim()
        )
    })
}

fn forwarding_problem() -> Option<String> {
    let on = std::fs::read_to_string(IP_FORWARD).is_ok_and(|value| value.trim() == "1");
    let settable = access(IP_FORWARD, AccessFlags::W_OK).is_ok();
    (!on && !settable).then(|| {
        "packets are not forwarded on this machine and that can't be changed from here: run `sysctl -w net.ipv4.ip_forward=1` on the host"
            .to_owned()
    })
}

fn port_problem(address: SocketAddr) -> Option<String> {
    let error = TcpListener::bind(address).err()?;
    Some(format!(
        "{address}, where the API server listens, can't be used ({error}): stop what listens there (`ss -ltnp`)"
    ))
}

fn directory_problem(state: &Path) -> Option<String> {
    // The nearest part that exists decides whether the rest can be made.
    let existing = state.ancestors().find(|path| path.exists())?;
    if !existing.is_dir() {
        return Some(format!(
            "{} is not a directory: choose another state directory with --state",
            existing.display()
        ));
    }
    access(existing, AccessFlags::W_OK).err().map(|error| {
        format!(
            "the state directory {} can't be written ({}): choose another with --state",
            state.display(),
            error.desc()
        )
    })
}

fn program_problems(executable: &Path) -> Vec<String> {
    let folder = executable.parent().unwrap_or(Path::new("."));
    let missing = PROGRAMS.iter().filter(|program| !folder.join(program).is_file());
    missing
        .map(|program| {
            format!("the program {} is missing: build it with `make build`", folder.join(program).display())
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn taken_ports_are_named() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        assert!(port_problem(address).unwrap().contains(&address.to_string()));
        drop(listener);
        assert_eq!(port_problem(address), None);
    }

    #[test]
    fn directories() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(directory_problem(&dir.path().join("a/b/c")), None);
        std::fs::write(dir.path().join("file"), "").unwrap();
        let problem = directory_problem(&dir.path().join("file/b")).unwrap();
        assert!(problem.contains("not a directory") && problem.contains("--state"), "{problem}");
    }

    #[test]
    fn everything_wrong_is_said_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let options = UpOptions {
            state: dir.path().join("state"),
            images: vec!["broken".to_owned()],
            executable: Some(dir.path().join("lateen")),
            ..UpOptions::default()
        };
        let Err(LifecycleError::Preflight(problems)) = preflight(&options) else { panic!("not fit") };
        for expected in
            ["lateend is missing", "lateen-proxy is missing", "lateen-samples is missing", "REF=COMMAND"]
        {
            assert!(problems.iter().any(|problem| problem.contains(expected)), "{expected}: {problems:?}");
        }
        assert!(!options.state.exists(), "nothing was changed");
    }
}
