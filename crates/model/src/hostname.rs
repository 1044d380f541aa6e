//! Host names of services, and how rules' hosts refer to them.
use std::sync::Arc;

/// A service's fully qualified host name, for example `customers.default.svc.cluster.local`.
pub type Hostname = Arc<str>;

/// Completes a short name: a host without a dot means a service in `namespace`. Everything else stays as it is, in lower
/// case: hosts are compared without regard to it, and proxies refuse routes that name one host twice.
/// <https://istio.io/latest/docs/reference/config/networking/virtual-service/#VirtualService>
pub fn resolve_host(host: &str, namespace: &str, domain: &str) -> String {
    let host = host.to_ascii_lowercase();
    if host.is_empty() || host == "*" || host.contains('.') {
        host
    } else {
        format!("{host}.{namespace}.svc.{domain}")
    }
}

/// The service's name in a host name: what stands before the first dot.
pub fn short_name(host: &str) -> &str {
    host.split('.').next().unwrap_or(host)
}

/// Whether `pattern` (a host, `*`, or `*` followed by a suffix) covers the host; the host may be a pattern itself.
pub fn host_matches(pattern: &str, host: &str) -> bool {
    match pattern.strip_prefix('*') {
        None => pattern == host,
        Some(suffix) => {
            let bare = host.strip_prefix('*').unwrap_or(host);
            bare.len() >= suffix.len() && bare.ends_with(suffix)
        }
    }
}

/// Whether some host is covered by both patterns.
pub fn hosts_overlap(a: &str, b: &str) -> bool {
    host_matches(a, b) || host_matches(b, a)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_names_are_completed_and_others_kept() {
        assert_eq!(resolve_host("customers", "shop", "cluster.local"), "customers.shop.svc.cluster.local");
        assert_eq!(resolve_host("customers.shop", "default", "cluster.local"), "customers.shop");
        assert_eq!(resolve_host("*", "default", "cluster.local"), "*");
        assert_eq!(resolve_host("Shop.Example.COM", "default", "cluster.local"), "shop.example.com");
        assert_eq!(resolve_host("*.example.com", "default", "cluster.local"), "*.example.com");
    }

    #[test]
    fn patterns_cover_hosts() {
        for (pattern, host, covered) in [
            ("a.com", "a.com", true),
            ("a.com", "b.com", false),
            ("*", "a.com", true),
            ("*.a.com", "x.a.com", true),
            ("*.a.com", "a.com", false),
            ("*.com", "*.a.com", true),
            ("*.a.com", "*.com", false),
            ("x.a.com", "*.a.com", false),
        ] {
            assert_eq!(host_matches(pattern, host), covered, "{pattern} {host}");
        }
        assert!(hosts_overlap("x.a.com", "*.a.com"));
        assert!(!hosts_overlap("x.a.com", "*.b.com"));
    }
}
