//! Host names, namespaces and `exportTo`.
use std::net::IpAddr;

use super::Findings;

/// A DNS label: letters, digits and hyphens, 1 to 63, no hyphen at the ends.
pub(crate) fn is_dns_label(text: &str) -> bool {
    (1..=63).contains(&text.len())
        && !text.starts_with('-')
        && !text.ends_with('-')
        && text.bytes().all(|c| c.is_ascii_alphanumeric() || c == b'-')
}

/// A host with a leading wildcard allowed: `*`, `*.example.com`, `*-a.example.com`, `example.com`, `customers`.
pub(super) fn check_wildcard_host(findings: &mut Findings, path: &str, host: &str) {
    if host.len() > 255 {
        findings.error(path, format!("domain name {host:?} too long (max 255)"));
        return;
    }
    if host.is_empty() {
        findings.error(path, "empty domain name not allowed");
        return;
    }
    if host == "*" {
        return;
    }
    let bare = host.strip_prefix("*.").or_else(|| host.strip_prefix("*-")).unwrap_or(host);
    let trimmed = bare.strip_suffix('.').unwrap_or(bare);
    // Or it could be taken for an address.
    if let Some((_, top)) = host.rsplit_once('.')
        && !top.is_empty()
        && top.bytes().all(|c| c.is_ascii_digit())
    {
        let words = format!("domain name {host:?} invalid (top level domain {top:?} cannot be all-numeric)");
        findings.error(path, words);
        return;
    }
    for label in trimmed.split('.') {
        if !is_dns_label(label) {
            let message = if label.contains('*') {
                format!("domain name {host:?} invalid (wildcards are only allowed as the leftmost label)")
            } else {
                format!("domain name {host:?} invalid (label {label:?} invalid)")
            };
            findings.error(path, message);
            return;
        }
    }
}

/// A host without wildcards, or an address.
pub(super) fn check_fqdn(findings: &mut Findings, path: &str, host: &str) {
    if host.parse::<IpAddr>().is_ok() {
        return;
    }
    if host.starts_with('*') {
        findings.error(path, format!("domain name {host:?} must not have a wildcard"));
        return;
    }
    check_wildcard_host(findings, path, host);
}

/// Whether a text is an address, a slash and the length of a prefix.
pub(crate) fn is_range(text: &str) -> bool {
    let Some((base, bits)) = text.split_once('/') else { return false };
    let longest = base.parse::<IpAddr>().map(|base| if base.is_ipv4() { 32 } else { 128 });
    longest.is_ok_and(|longest| bits.parse::<u8>().is_ok_and(|bits| bits <= longest))
}

/// What is wrong with a host without wildcards, or an address.
pub(crate) fn check_name(host: &str) -> Option<String> {
    let mut findings = Findings::default();
    check_fqdn(&mut findings, "", host);
    findings.errors.pop().map(|finding| finding.message)
}

/// `exportTo`: `.`, `*` or namespaces, `*` only alone; `~` (nobody) only where `nobody` is allowed.
pub(super) fn check_export_to(findings: &mut Findings, export_to: &[String], nobody: bool) {
    for (index, entry) in export_to.iter().enumerate() {
        let path = format!("spec.exportTo[{index}]");
        if export_to[..index].contains(entry) {
            findings.error(path, format!("duplicate entries in exportTo for entry {entry}"));
            continue;
        }
        let message = match entry.as_str() {
            "." => continue,
            "*" if export_to.len() > 1 => {
                "cannot have both public (*) and non-public exportTo values for a resource"
            }
            "~" if nobody && export_to.len() > 1 => "cannot export service entry to no one (~) and someone",
            "~" if !nobody => "exportTo ~ (none) is not allowed for Istio configuration objects",
            "*" | "~" => continue,
            name if is_dns_label(name) => continue,
            _ => "only .,*, or a valid DNS 1123 label is allowed as exportTo entry",
        };
        findings.error(path, message);
    }
}

/// Addresses of Unix sockets begin with this.
pub(super) const UNIX: &str = "unix://";

/// The most bytes of a Unix socket's path that the kernel takes (`sun_path`, less the byte that ends it).
const MOST_OF_SOCKET: usize = 107;

/// Checks what follows [`UNIX`].
pub(super) fn check_unix(findings: &mut Findings, path: String, socket: &str) {
    if socket.is_empty() {
        findings.error(path, "unix address must not be empty");
    } else if socket.ends_with('/') || socket == "@" || !socket.starts_with(['/', '@']) {
        findings.error(path, format!("{socket} is not an absolute path to a file"));
    } else if socket.len() > MOST_OF_SOCKET {
        findings.error(path, format!("{socket} is longer than the {MOST_OF_SOCKET} bytes of a unix address"));
    }
}
