//! What the host needs around the pods, and taking all of it away again.

use std::{
    fs,
    os::unix::fs::{DirBuilderExt, MetadataExt},
    path::{Path, PathBuf},
    time::Duration,
};

use nix::{
    mount::{MntFlags, umount2},
    sys::signal::{Signal, kill},
    unistd::{Pid, geteuid},
};

use crate::{Names, Network, RuntimeError, command, mountinfo, netns, sandbox, service_rules};

/// Packet forwarding by family: the setting, and what is left in the state directory while it is on because of us.
const FORWARDING: [(&str, &str); 2] = [
    ("/proc/sys/net/ipv4/ip_forward", "ip-forward-enabled"),
    ("/proc/sys/net/ipv6/conf/all/forwarding", "ip6-forward-enabled"),
];
/// Settings of interfaces for IPv6.
const IPV6_INTERFACES: &str = "/proc/sys/net/ipv6/conf";
/// The alias of every cluster's node interface, so that clusters know of each other.
const ALIAS: &str = "lateen-node";
/// How long processes may take to die after SIGKILL.
const KILL_PATIENCE: Duration = Duration::from_secs(10);

/// Checks that this machine can run pods at all, without changing anything.
///
/// # Errors
/// [`RuntimeError::Host`] with one sentence that names what is missing and the remedy.
pub fn host_check() -> Result<(), RuntimeError> {
    if !geteuid().is_root() {
        return Err(RuntimeError::Host(
            "pods need root (network namespaces and mounts); run with sudo".to_owned(),
        ));
    }
    for (program, package) in [("ip", "iproute2"), ("nft", "nftables")] {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let found = std::env::split_paths(&path).any(|folder| folder.join(program).is_file());
        if !found {
            return Err(RuntimeError::Host(format!(
                "the program `{program}` is not in PATH; install the package `{package}`"
            )));
        }
    }
    Ok(())
}

/// Prepares the host: the node's interface with its addresses, routes to service addresses, forwarding, nftables rules.
///
/// Leftovers of a former run with the same names must have been removed by [`host_teardown`].
///
/// # Errors
/// [`RuntimeError`] with one sentence; what had been made is to be removed by [`host_teardown`].
pub async fn host_setup(names: &Names, network: &Network, state_dir: &Path) -> Result<(), RuntimeError> {
    host_check()?;
    network.validate()?;
    // Tokens and Secrets are among the pods' files, and whatever they print among the logs.
    for directory in [state_dir, &state_dir.join("pods"), &state_dir.join("logs")] {
        let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(directory);
        made.map_err(RuntimeError::file(directory))?;
    }
    let interface = names.node_interface();
    add_interface(&interface).await?;
    let (node, api, dns) = (network.node_ip, network.api_ip(), network.dns_ip());
    command::ip(&[
        format!("link set {interface} alias {ALIAS}"),
        format!("addr replace {node}/32 dev {interface}"),
        format!("addr replace {api}/32 dev {interface}"),
        format!("addr replace {dns}/32 dev {interface}"),
        format!("link set {interface} up"),
        // Service addresses must be routable before DNAT replaces them.
        format!("route replace {} dev {interface} scope link src {node}", network.service_cidr),
        format!("route replace {} dev {interface} scope link src {node}", network.load_balancer_cidr),
    ])
    .await?;
    enable_forwarding(FORWARDING[0], state_dir)?;
    if let (Some(ranges), Some(node)) = (&network.ipv6, network.ipv6_of(network.node_ip)) {
        command::ip(&[
            format!("addr replace {node}/128 dev {interface} nodad"),
            format!("route replace {} dev {interface} src {node}", ranges.service_cidr),
        ])
        .await?;
        keep_router_advertisements();
        enable_forwarding(FORWARDING[1], state_dir)?;
    }
    command::nft(&service_rules::script(names, network, &[])).await
}

/// A dummy interface, or a bridge without ports where the kernel has no dummies.
async fn add_interface(name: &str) -> Result<(), RuntimeError> {
    if Path::new("/sys/class/net").join(name).exists() {
        return Ok(());
    }
    match command::ip(&[format!("link add {name} type dummy")]).await {
        Err(RuntimeError::Command { .. }) => command::ip(&[format!("link add {name} type bridge")]).await,
        result => result,
    }
}

/// Whether this machine carries IPv6: it is on, and nftables translates its addresses.
pub(crate) fn has_ipv6() -> bool {
    let off = fs::read_to_string(Path::new(IPV6_INTERFACES).join("all/disable_ipv6"));
    let probe = "table ip6 lateen-probe { chain c { type nat hook prerouting priority dstnat;\n}\n}\n";
    off.is_ok_and(|off| off.trim() == "0") && command::nft_would_load(probe)
}

/// A host that forwards packets of IPv6 no longer learns its routes from routers, unless told to (`accept_ra`, kernel documentation
/// "ip-sysctl"). Interfaces that do so go on.
fn keep_router_advertisements() {
    for interface in list(IPV6_INTERFACES).iter().filter(|name| *name != "all" && *name != "default") {
        let setting = Path::new(IPV6_INTERFACES).join(interface).join("accept_ra");
        if fs::read_to_string(&setting).is_ok_and(|value| value.trim() == "1")
            && let Err(error) = fs::write(&setting, "2")
        {
            tracing::warn!(%interface, %error, "routes of IPv6 are no longer learnt from routers while packets are forwarded");
        }
    }
}

fn enable_forwarding((setting, mark): (&str, &str), state_dir: &Path) -> Result<(), RuntimeError> {
    let before = fs::read_to_string(setting).map_err(RuntimeError::file(setting))?;
    if before.trim() == "1" {
        return Ok(());
    }
    let mark = state_dir.join(mark);
    fs::write(&mark, "").map_err(RuntimeError::file(&mark))?;
    fs::write(setting, "1").map_err(RuntimeError::file(setting))
}

/// Removes everything with these names from the host: processes in the pods' namespaces, namespaces, interfaces, the
/// nftables table, mounts and `pods/` under the state directory. Needs no record of the former run; what is missing is fine.
///
/// # Errors
/// The first error; the rest is removed all the same.
pub async fn host_teardown(names: &Names, state_dir: &Path) -> Result<(), RuntimeError> {
    host_check()?;
    let pods: Vec<String> = list(netns::DIRECTORY).into_iter().filter(|name| names.is_netns(name)).collect();
    let mut first_error = Ok(());
    let mut note = |result: Result<(), RuntimeError>| {
        if first_error.is_ok() {
            first_error = result;
        }
    };
    note(kill_inside(&pods).await);
    for interface in list("/sys/class/net").into_iter().filter(|name| names.is_veth(name)) {
        note(sandbox::remove_link(&interface).await);
    }
    for name in &pods {
        note(netns::delete(name));
    }
    // Only an empty directory goes, and only if nobody else uses it.
    let _ = fs::remove_dir(netns::DIRECTORY);
    note(sandbox::remove_link(&names.node_interface()).await);
    let table = names.nft_table();
    note(command::nft(&format!("table ip {table}\ndelete table ip {table}\n")).await);
    if Path::new(IPV6_INTERFACES).exists() {
        note(command::nft(&format!("table ip6 {table}\ndelete table ip6 {table}\n")).await);
    }
    note(remove_pods(state_dir));
    for family in FORWARDING {
        note(restore_forwarding(family, state_dir));
    }
    first_error
}

/// Kills every process in these network namespaces and waits until they are gone.
async fn kill_inside(pods: &[String]) -> Result<(), RuntimeError> {
    let inodes: Vec<u64> =
        pods.iter().filter_map(|name| fs::metadata(netns::path(name)).ok()).map(|file| file.ino()).collect();
    if inodes.is_empty() {
        return Ok(());
    }
    let give_up = tokio::time::Instant::now() + KILL_PATIENCE;
    loop {
        let left = processes_in(&inodes);
        if left.is_empty() {
            return Ok(());
        }
        if tokio::time::Instant::now() > give_up {
            return Err(RuntimeError::Host(format!("processes of pods do not die: {left:?}")));
        }
        for pid in left {
            // It may have died by itself; the next round shows.
            let _ = kill(pid, Signal::SIGKILL);
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Living processes whose network namespace is one of these.
fn processes_in(namespaces: &[u64]) -> Vec<Pid> {
    let own = std::process::id().cast_signed();
    list("/proc")
        .into_iter()
        .filter_map(|name| name.parse::<i32>().ok())
        .filter(|pid| *pid != own)
        // A zombie has no namespaces any more, so the link can't be followed.
        .filter(|pid| {
            fs::metadata(format!("/proc/{pid}/ns/net")).is_ok_and(|file| namespaces.contains(&file.ino()))
        })
        .map(Pid::from_raw)
        .collect()
}

fn remove_pods(state_dir: &Path) -> Result<(), RuntimeError> {
    let pods = state_dir.join("pods");
    if !pods.exists() {
        return Ok(());
    }
    let pods = pods.canonicalize().map_err(RuntimeError::file(&pods))?;
    unmount_below(&pods)?;
    fs::remove_dir_all(&pods).map_err(RuntimeError::file(&pods))
}

/// Unmounts whatever is mounted at or below a directory, the innermost first.
pub(crate) fn unmount_below(directory: &Path) -> Result<(), RuntimeError> {
    let mut mounts: Vec<PathBuf> = mountinfo::read()?
        .into_iter()
        .map(|mount| mount.target)
        .filter(|target| target.starts_with(directory))
        .collect();
    mounts.sort_by_key(|target| std::cmp::Reverse(target.components().count()));
    for target in mounts {
        umount2(&target, MntFlags::MNT_DETACH)
            .map_err(RuntimeError::system(format!("unmounting {}", target.display())))?;
    }
    Ok(())
}

fn restore_forwarding((setting, mark): (&str, &str), state_dir: &Path) -> Result<(), RuntimeError> {
    let mark = state_dir.join(mark);
    if !mark.exists() {
        return Ok(());
    }
    let others = list("/sys/class/net").into_iter().any(|name| {
        let alias = Path::new("/sys/class/net").join(name).join("ifalias");
        fs::read_to_string(alias).is_ok_and(|alias| alias.trim() == ALIAS)
    });
    if !others {
        fs::write(setting, "0").map_err(RuntimeError::file(setting))?;
    }
    fs::remove_file(&mark).map_err(RuntimeError::file(&mark))
}

/// Names in a directory; none when it isn't there.
fn list(directory: &str) -> Vec<String> {
    let Ok(entries) = fs::read_dir(directory) else { return Vec::new() };
    entries.flatten().filter_map(|entry| entry.file_name().into_string().ok()).collect()
}
