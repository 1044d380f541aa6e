//! What a machine can be like when somebody types `lateen up`: one clear sentence with the remedy, nothing half-started.
//!
//! Needs root, like `lateen up` itself. Each case runs in namespaces of its own, so that neither a cluster on this machine nor
//! another test is in the way.

use std::net::TcpListener;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use nix::sched::{CloneFlags, unshare};

/// A machine with nothing on it: no other network, no `/run`, no state, all programs in place.
struct Machine {
    folder: tempfile::TempDir,
}

impl Machine {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let programs = folder.path().join("programs");
        std::fs::create_dir(&programs).unwrap();
        std::fs::copy(env!("CARGO_BIN_EXE_lateen"), programs.join("lateen")).unwrap();
        for program in ["lateend", "lateen-proxy", "lateen-samples"] {
            std::fs::write(programs.join(program), "").unwrap();
        }
        let open = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(folder.path(), open).unwrap();
        Self { folder }
    }

    fn state(&self) -> PathBuf {
        self.folder.path().join("state")
    }

    /// `lateen up` after `arrange`, both inside the machine; what `arrange` returns lives as long.
    fn up<T>(&self, arrange: impl FnOnce(&mut Command) -> T + Send) -> Output {
        let lateen = self.folder.path().join("programs/lateen");
        let state = self.state();
        std::thread::scope(|scope| {
            let inside = scope.spawn(|| {
                enter_own_namespaces();
                let mut command = Command::new(lateen);
                command.arg("up").arg("--state").arg(state).env_remove("KUBECONFIG");
                let _arranged = arrange(&mut command);
                command.output().unwrap()
            });
            inside.join().unwrap()
        })
    }

    /// It failed with this sentence alone, and left nothing.
    fn refuses(&self, output: &Output, sentence: &str) {
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(said.starts_with("Error: ") && said.contains(sentence), "no {sentence:?} in {said}");
        assert_eq!(said.trim().lines().count(), 1, "one problem, one sentence: {said}");
        assert!(output.stdout.is_empty());
        assert!(!self.state().join("daemon.json").exists(), "nothing is half-started");
    }
}

/// This thread, and what it starts, see a network of their own and an empty `/run`.
fn enter_own_namespaces() {
    unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS).expect("these tests need root");
    for command in ["mount --make-rprivate /", "mount -t tmpfs none /run", "ip link set lo up"] {
        let mut words = command.split(' ');
        let status = Command::new(words.next().unwrap()).args(words).status().unwrap();
        assert!(status.success(), "{command}");
    }
}

/// A folder with links to these programs only.
fn path_of(folder: &Path, programs: &[&str]) -> PathBuf {
    let bin = folder.join("bin");
    std::fs::create_dir(&bin).unwrap();
    for program in programs {
        let found = std::env::split_paths(&std::env::var_os("PATH").unwrap())
            .chain(["/usr/sbin".into(), "/sbin".into()])
            .map(|directory| directory.join(program))
            .find(|file| file.is_file());
        symlink(found.unwrap_or_else(|| panic!("{program} is needed")), bin.join(program)).unwrap();
    }
    bin
}

#[test]
fn without_root() {
    let machine = Machine::new();
    // The state directory is no problem of this user's.
    nix::unistd::chown(machine.folder.path(), Some(65534.into()), None).unwrap();
    let output = machine.up(|command| {
        use std::os::unix::process::CommandExt;
        command.uid(65534).gid(65534);
    });
    machine.refuses(&output, "root is needed");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains("run `sudo lateen up`") && said.contains("user namespace"), "{said}");
}

#[test]
fn without_nft_or_ip() {
    for (there, missing, package) in [("ip", "nft", "nftables"), ("nft", "ip", "iproute2")] {
        let machine = Machine::new();
        let bin = path_of(machine.folder.path(), &[there]);
        let output = machine.up(|command| {
            command.env("PATH", &bin);
        });
        machine.refuses(&output, &format!("`{missing}` is not in PATH; install the package `{package}`"));
    }
}

#[test]
fn where_the_port_is_taken() {
    let machine = Machine::new();
    let output = machine.up(|_| TcpListener::bind("127.0.0.1:6443").unwrap());
    machine.refuses(&output, "127.0.0.1:6443, where the API server listens, can't be used");
    assert!(String::from_utf8_lossy(&output.stderr).contains("stop what listens there (`ss -ltnp`)"));
}

#[test]
fn where_the_kernel_or_a_container_forbids_nftables() {
    let machine = Machine::new();
    let bin = path_of(machine.folder.path(), &["ip"]);
    let nft = bin.join("nft");
    std::fs::write(&nft, "#!/bin/sh\necho 'Operation not permitted (you must be root)' >&2\nexit 1\n")
        .unwrap();
    std::fs::set_permissions(&nft, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let output = machine.up(|command| {
        command.env("PATH", format!("{}:/bin:/usr/bin", bin.display()));
    });
    machine.refuses(&output, "nftables can't be used (Operation not permitted (you must be root))");
}

#[test]
fn where_the_state_directory_is_something_else() {
    let machine = Machine::new();
    std::fs::write(machine.state(), "a file").unwrap();
    let output = machine.up(|_| ());
    machine.refuses(&output, "is not a directory: choose another state directory with --state");
}

#[test]
fn where_a_program_or_an_image_mapping_is_wrong() {
    let machine = Machine::new();
    std::fs::remove_file(machine.folder.path().join("programs/lateend")).unwrap();
    machine.refuses(&machine.up(|_| ()), "programs/lateend is missing: build it with `make build`");
    let machine = Machine::new();
    let output = machine.up(|command| {
        command.args(["--image", "nonsense"]);
    });
    machine.refuses(&output, "expected REF=COMMAND");
}

/// On another system there is nothing to build: `make build` says so first.
#[test]
fn not_on_linux() {
    let folder = tempfile::tempdir().unwrap();
    let bin = path_of(folder.path(), &["bash", "env"]);
    let uname = bin.join("uname");
    std::fs::write(&uname, "#!/bin/sh\necho Darwin\n").unwrap();
    std::fs::set_permissions(&uname, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../scripts/install-tools.sh");
    // The stand-in for uname comes first; its shell is the machine's.
    let path = format!("{}:/bin:/usr/bin", bin.display());
    let output = Command::new("bash").arg(script).arg("build").env("PATH", path).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(
        said.contains("this is Darwin, and Lateen runs on Linux only") && said.contains("virtual machine"),
        "{said}"
    );
    assert_eq!(said.trim().lines().count(), 1, "{said}");
}

#[test]
fn output_nobody_reads_is_no_panic() {
    let dump = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/dumps/config_dump.json");
    let lateen = |stdout: Stdio| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_lateen"));
        command.args(["pc", "all", "-o", "json", "-f"]).arg(&dump).stdout(stdout).stderr(Stdio::piped());
        command.output().unwrap()
    };
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let output = lateen(writer.into());
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.is_empty(), "{said}");
    let full = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let output = lateen(full.into());
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.starts_with("Error: cannot write to standard output: No space left"), "{said}");
}
