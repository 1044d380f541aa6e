//! The files every container of a pod sees: `/etc/hosts` and `/etc/resolv.conf`.

use std::{
    fs,
    net::{IpAddr, Ipv4Addr},
    path::{Path, PathBuf},
};

use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;

use crate::{Network, RuntimeError, container_run::MountSpec, environment::hostname, host};

const HOST_RESOLV_CONF: &str = "/etc/resolv.conf";

/// Writes both into the pod's directory.
pub(super) fn write(
    directory: &Path,
    pod: &Pod,
    pod_ip: Ipv4Addr,
    network: &Network,
) -> Result<(), RuntimeError> {
    let etc = directory.join("etc");
    fs::create_dir_all(&etc).map_err(RuntimeError::file(&etc))?;
    let host = fs::read_to_string(HOST_RESOLV_CONF).unwrap_or_default();
    for (name, text) in
        [("hosts", hosts(pod, pod_ip, network)), ("resolv.conf", resolv_conf(pod, network, &host))]
    {
        let file = etc.join(name);
        // In place: containers have the file itself mounted.
        if fs::read_to_string(&file).ok().as_deref() != Some(&text) {
            fs::write(&file, text).map_err(RuntimeError::file(&file))?;
        }
    }
    Ok(())
}

/// Their mounts.
pub(super) fn mounts(directory: &Path) -> Vec<MountSpec> {
    let mount = |name: &str| MountSpec {
        source: directory.join("etc").join(name),
        target: PathBuf::from("/etc").join(name),
        read_only: false,
    };
    vec![mount("hosts"), mount("resolv.conf")]
}

/// Removes the pod's directory with whatever is mounted in it.
pub(super) fn remove(directory: &Path) -> Result<(), RuntimeError> {
    let Ok(directory) = directory.canonicalize() else { return Ok(()) };
    host::unmount_below(&directory)?;
    fs::remove_dir_all(&directory).map_err(RuntimeError::file(&directory))
}

fn hosts(pod: &Pod, pod_ip: Ipv4Addr, network: &Network) -> String {
    let spec = pod.spec.as_ref();
    let hostname = hostname(pod);
    let mut text = String::from(
        "# Kubernetes-managed hosts file.\n127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\nfe00::0\tip6-localnet\nfe00::0\tip6-mcastprefix\nfe00::1\tip6-allnodes\nfe00::2\tip6-allrouters\n",
    );
    let addresses = std::iter::once(IpAddr::V4(pod_ip)).chain(network.ipv6_of(pod_ip).map(IpAddr::V6));
    for pod_ip in addresses {
        match spec.and_then(|spec| spec.subdomain.as_ref()) {
            Some(subdomain) => {
                let namespace = pod.namespace().unwrap_or_default();
                let domain = &network.cluster_domain;
                text.push_str(&format!(
                    "{pod_ip}\t{hostname}.{subdomain}.{namespace}.svc.{domain}\t{hostname}\n"
                ));
            }
            None => text.push_str(&format!("{pod_ip}\t{hostname}\n")),
        }
    }
    for alias in spec.and_then(|spec| spec.host_aliases.as_ref()).into_iter().flatten() {
        let names = alias.hostnames.iter().flatten().cloned().collect::<Vec<_>>().join("\t");
        text.push_str(&format!("{}\t{names}\n", alias.ip));
    }
    text
}

/// By `dnsPolicy` and `dnsConfig` (Kubernetes, "DNS for Services and Pods").
fn resolv_conf(pod: &Pod, network: &Network, host: &str) -> String {
    let spec = pod.spec.as_ref();
    let host_network = spec.and_then(|spec| spec.host_network).unwrap_or(false);
    let policy = spec.and_then(|spec| spec.dns_policy.as_deref()).unwrap_or("ClusterFirst");
    let namespace = pod.namespace().unwrap_or_default();
    let domain = &network.cluster_domain;
    let words = |keyword: &str| -> Vec<String> {
        let lines = host
            .lines()
            .filter_map(|line| line.strip_prefix(keyword))
            .filter(|rest| rest.starts_with([' ', '\t']));
        lines.flat_map(str::split_whitespace).map(str::to_owned).collect()
    };
    let (mut servers, mut searches, mut options) = match policy {
        "None" => (Vec::new(), Vec::new(), Vec::new()),
        "Default" => (words("nameserver"), words("search"), words("options")),
        "ClusterFirst" if host_network => (words("nameserver"), words("search"), words("options")),
        _ => (
            vec![network.dns_ip().to_string()],
            vec![format!("{namespace}.svc.{domain}"), format!("svc.{domain}"), domain.clone()],
            vec!["ndots:5".to_owned()],
        ),
    };
    if let Some(config) = spec.and_then(|spec| spec.dns_config.as_ref()) {
        servers.extend(config.nameservers.iter().flatten().cloned());
        searches.extend(config.searches.iter().flatten().cloned());
        for option in config.options.iter().flatten() {
            let Some(name) = &option.name else { continue };
            options.retain(|old| old.split(':').next() != Some(name));
            options
                .push(option.value.as_ref().map_or_else(|| name.clone(), |value| format!("{name}:{value}")));
        }
    }
    let mut text = String::new();
    if !searches.is_empty() {
        text.push_str(&format!("search {}\n", searches.join(" ")));
    }
    for server in servers {
        text.push_str(&format!("nameserver {server}\n"));
    }
    if !options.is_empty() {
        text.push_str(&format!("options {}\n", options.join(" ")));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fields::tests::pod;
    use serde_json::json;

    #[test]
    fn resolvers_by_policy() {
        let host = "nameserver 192.0.2.1\nsearch lan\noptions edns0\n";
        let cluster = "search default.svc.cluster.local svc.cluster.local cluster.local\nnameserver 10.96.0.10\noptions ndots:5\n";
        let cases = [
            (json!({}), cluster),
            (json!({ "hostNetwork": true, "dnsPolicy": "ClusterFirstWithHostNet" }), cluster),
            (json!({ "hostNetwork": true }), "search lan\nnameserver 192.0.2.1\noptions edns0\n"),
            (json!({ "dnsPolicy": "Default" }), "search lan\nnameserver 192.0.2.1\noptions edns0\n"),
            (
                json!({ "dnsPolicy": "None", "dnsConfig": { "nameservers": ["1.2.3.4"], "options": [{ "name": "ndots", "value": "2" }] } }),
                "nameserver 1.2.3.4\noptions ndots:2\n",
            ),
        ];
        for (mut spec, expected) in cases {
            spec["containers"] = json!([]);
            assert_eq!(resolv_conf(&pod(spec.clone()), &Network::default(), host), expected, "{spec}");
        }
    }

    #[test]
    fn hosts_file() {
        let spec = json!({ "containers": [], "hostname": "db-0", "subdomain": "db", "hostAliases": [{ "ip": "1.2.3.4", "hostnames": ["a", "b"] }] });
        let text = hosts(&pod(spec), Ipv4Addr::new(10, 244, 0, 5), &Network::default());
        assert!(
            text.ends_with("10.244.0.5\tdb-0.db.default.svc.cluster.local\tdb-0\n1.2.3.4\ta\tb\n"),
            "{text}"
        );
    }
}
