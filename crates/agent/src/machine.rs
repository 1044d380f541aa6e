//! The agent on a machine that is no pod: its environment from the files that `lateen x workload entry configure` makes, where Istio's
//! own start script looks for them.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, UdpSocket};
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::config::{Config, PROXY_MARK};
use crate::error::AgentError;

/// Variables, as a shell reads them: who the machine is, and what is captured on it.
const VARIABLES: [&str; 2] = ["var/lib/istio/envoy/sidecar.env", "var/lib/istio/envoy/cluster.env"];
/// The mesh config, of which `defaultConfig` counts.
const MESH: &str = "etc/istio/config/mesh";
/// The certificate, and what the control plane's is of.
const CERTIFICATES: &str = "etc/certs";
const TOKEN: &str = "var/run/secrets/tokens/istio-token";
const HOST_NAME: &str = "/proc/sys/kernel/hostname";

/// The variables an agent runs with on this machine: `vars`, over them those in the files below `root` (`/` on a machine of its own), and
/// what the machine itself says.
///
/// # Errors
/// When a file cannot be read or understood.
pub fn variables(
    root: &Path,
    mut vars: BTreeMap<String, String>,
) -> Result<BTreeMap<String, String>, AgentError> {
    for name in VARIABLES {
        let path = root.join(name);
        if let Some(text) = read(&path)? {
            let failed = |reason| AgentError::Bootstrap { origin: path.display().to_string(), reason };
            vars.extend(assignments(&text).map_err(failed)?);
        }
    }
    let path = root.join(MESH);
    if let Some(text) = read(&path)? {
        let failed = |reason| AgentError::Bootstrap { origin: path.display().to_string(), reason };
        let mesh: Value = serde_saphyr::from_str(&text).map_err(|error| failed(error.to_string()))?;
        let config = &mesh["defaultConfig"];
        if config.is_object() {
            vars.insert("PROXY_CONFIG".to_owned(), config.to_string());
            for (name, value) in config["proxyMetadata"].as_object().into_iter().flatten() {
                if let Some(value) = value.as_str() {
                    vars.entry(name.clone()).or_insert_with(|| value.to_owned());
                }
            }
        }
    }
    let mut default = |name: &str, value: Option<String>| {
        if let (None | Some(""), Some(value)) = (vars.get(name).map(String::as_str), value) {
            vars.insert(name.to_owned(), value);
        }
    };
    let certificates = root.join(CERTIFICATES).display().to_string();
    default("PROV_CERT", Some(certificates.clone()));
    default("OUTPUT_CERTS", Some(certificates));
    default("POD_NAME", host_name());
    let given = |vars: &BTreeMap<String, String>, name: &str| {
        vars.get(name).filter(|value| !value.is_empty()).cloned()
    };
    let (address, namespace) =
        (given(&vars, "ISTIO_SVC_IP").or_else(own_address), given(&vars, "ISTIO_NAMESPACE"));
    for (name, value) in [("INSTANCE_IP", address), ("POD_NAMESPACE", namespace)] {
        if let (None, Some(value)) = (given(&vars, name), value) {
            vars.insert(name.to_owned(), value);
        }
    }
    Ok(vars)
}

/// Moves what is elsewhere in a pod below `root`. The agent of a machine is whoever started it, root as a rule, like much else there: its
/// sockets are told apart by their mark.
pub fn below(root: &Path, mut config: Config) -> Config {
    config.discovery.token = Some(root.join(TOKEN));
    config.mark = Some(PROXY_MARK);
    let folders = &mut config.folders;
    for folder in [&mut folders.podinfo, &mut folders.proxy, &mut folders.data] {
        *folder = root.join(folder.strip_prefix("/").unwrap_or(folder));
    }
    config
}

/// The flags of `istio-iptables` on a machine with these variables; none when somebody else captures (`ISTIO_CUSTOM_IP_TABLES`).
pub fn capture_flags(vars: &BTreeMap<String, String>) -> Option<Vec<String>> {
    let var = |name: &str| vars.get(name).map(String::as_str).filter(|value| !value.is_empty());
    if var("ISTIO_CUSTOM_IP_TABLES") == Some("true") {
        return None;
    }
    let mut flags: Vec<String> =
        ["-p", "15001", "-z", "15006", "-u", "1337", "-m", "REDIRECT"].map(str::to_owned).into();
    for (flag, name, default) in [
        ("-i", "ISTIO_SERVICE_CIDR", "*"),
        ("-x", "ISTIO_SERVICE_EXCLUDE_CIDR", ""),
        ("-b", "ISTIO_INBOUND_PORTS", "*"),
        ("-d", "ISTIO_LOCAL_EXCLUDE_PORTS", ""),
        ("-o", "ISTIO_LOCAL_OUTBOUND_PORTS_EXCLUDE", ""),
    ] {
        flags.extend([flag.to_owned(), var(name).unwrap_or(default).to_owned()]);
    }
    Some(flags)
}

fn read(path: &PathBuf) -> Result<Option<String>, AgentError> {
    match std::fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(AgentError::file("read", path, error)),
    }
}

/// `NAME=VALUE` a line, the value quoted as for a shell: as far as these files go, nothing is expanded.
fn assignments(text: &str) -> Result<BTreeMap<String, String>, String> {
    let mut found = BTreeMap::new();
    for (number, line) in text.lines().enumerate() {
        let line = line.trim();
        let line = line.strip_prefix("export ").unwrap_or(line);
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let failed = |why: &str| format!("line {}: {why}", number + 1);
        let (name, value) = line.split_once('=').ok_or_else(|| failed("not NAME=VALUE"))?;
        found.insert(name.trim().to_owned(), unquote(value).map_err(failed)?);
    }
    Ok(found)
}

fn unquote(text: &str) -> Result<String, &'static str> {
    let mut out = String::new();
    let mut letters = text.chars();
    while let Some(letter) = letters.next() {
        match letter {
            '\'' => loop {
                match letters.next().ok_or("a quote is not closed")? {
                    '\'' => break,
                    other => out.push(other),
                }
            },
            '"' => loop {
                match letters.next().ok_or("a quote is not closed")? {
                    '"' => break,
                    '\\' => match letters.next().ok_or("a quote is not closed")? {
                        escaped @ ('"' | '\\' | '$' | '`') => out.push(escaped),
                        other => out.extend(['\\', other]),
                    },
                    '$' | '`' => return Err("variables and commands are not expanded here"),
                    other => out.push(other),
                }
            },
            '\\' => out.extend(letters.next()),
            '$' | '`' => return Err("variables and commands are not expanded here"),
            '#' if out.is_empty() || text.contains(" #") => break,
            other if other.is_whitespace() => break,
            other => out.push(other),
        }
    }
    Ok(out)
}

fn host_name() -> Option<String> {
    let name = std::fs::read_to_string(HOST_NAME).ok()?;
    // As `hostname -s`.
    Some(name.trim().split('.').next()?.to_owned()).filter(|name| !name.is_empty())
}

/// The address from which others are reached. Nothing is sent.
fn own_address() -> Option<String> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).ok()?;
    socket.connect((Ipv4Addr::new(198, 18, 0, 1), 9)).ok()?;
    Some(socket.local_addr().ok()?.ip().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Role;

    #[test]
    fn files_are_read_as_a_shell_reads_them() {
        let text = "# a\nA=b\nexport B='c d'\nC=\"e \\\"f\\\"\"\nD=\nE='*'\nF=a\\ b\n";
        let found = assignments(text).unwrap();
        let expected = [("A", "b"), ("B", "c d"), ("C", "e \"f\""), ("D", ""), ("E", "*"), ("F", "a b")];
        assert_eq!(found, expected.map(|(name, value)| (name.to_owned(), value.to_owned())).into());
        for (bad, why) in [("A", "line 1: not"), ("A='b", "closed"), ("A=$(id)", "expanded")] {
            assert!(assignments(bad).unwrap_err().contains(why), "{bad}");
        }
    }

    #[test]
    fn a_machines_files_make_its_environment() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        for (name, text) in [
            (
                VARIABLES[1],
                "ISTIO_INBOUND_PORTS=8080\nISTIO_NAMESPACE=vms\nISTIO_SVC_IP=10.9.9.9\nSERVICE_ACCOUNT=vm\nISTIO_LOCAL_EXCLUDE_PORTS=22\n",
            ),
            (
                MESH,
                "defaultConfig:\n  discoveryAddress: istiod.istio-system.svc:15012\n  proxyMetadata:\n    ISTIO_META_AUTO_REGISTER_GROUP: shop\n    ISTIO_META_DNS_CAPTURE: 'true'\n",
            ),
        ] {
            let path = root.join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        let vars =
            variables(root, BTreeMap::from([("LATEEN_ENGINE".to_owned(), "envoy".to_owned())])).unwrap();
        assert_eq!((vars["INSTANCE_IP"].as_str(), vars["POD_NAMESPACE"].as_str()), ("10.9.9.9", "vms"));
        assert_eq!(vars["ISTIO_META_DNS_CAPTURE"], "true", "capture is told too");
        let flags = capture_flags(&vars).unwrap().join(" ");
        assert!(flags.ends_with("-i * -x  -b 8080 -d 22 -o "), "{flags}");
        let config = below(root, Config::from_env(Role::Sidecar, &vars).unwrap());
        assert_eq!(config.discovery.token, Some(root.join(TOKEN)));
        assert_eq!(config.discovery.certificate, Some(root.join(CERTIFICATES)));
        assert_eq!(config.folders.data, root.join("var/lib/istio/data"));
        assert_eq!(config.metadata["AUTO_REGISTER_GROUP"], "shop");
        let custom = BTreeMap::from([("ISTIO_CUSTOM_IP_TABLES".to_owned(), "true".to_owned())]);
        assert_eq!(capture_flags(&custom), None);
        std::fs::write(root.join(MESH), "defaultConfig: [").unwrap();
        let error = variables(root, BTreeMap::new()).unwrap_err().to_string();
        assert!(error.contains(MESH), "{error}");
    }
}
