//! A certificate's names, against those that are wanted.

use lateen_ir as ir;
use x509_parser::prelude::{GeneralName, X509Certificate};

/// Whether one of the certificate's names is what is wanted.
pub(super) fn matches(certificate: &X509Certificate<'_>, wanted: &ir::SanMatcher) -> bool {
    let Ok(Some(names)) = certificate.subject_alternative_name() else { return false };
    let is = |kind| wanted.san_type.is_none_or(|wanted| wanted == kind);
    names.value.general_names.iter().any(|name| match name {
        GeneralName::DNSName(name) if is(ir::SanType::Dns) => match &wanted.matcher {
            ir::StringMatcher::Exact(text) => dns_fits(name, &text.value),
            matcher => matcher.is_match(name.as_bytes()),
        },
        GeneralName::URI(uri) if is(ir::SanType::Uri) => wanted.matcher.is_match(uri.as_bytes()),
        GeneralName::RFC822Name(address) if is(ir::SanType::Email) => {
            wanted.matcher.is_match(address.as_bytes())
        }
        GeneralName::IPAddress(bytes) if is(ir::SanType::IpAddress) => {
            super::facts::address(bytes).is_some_and(|text| wanted.matcher.is_match(text.as_bytes()))
        }
        _ => false,
    })
}

/// Whether the certificate has this name, of whatever kind.
pub(super) fn has_name(certificate: &X509Certificate<'_>, wanted: &str) -> bool {
    let Ok(Some(names)) = certificate.subject_alternative_name() else { return false };
    names.value.general_names.iter().any(|name| match name {
        GeneralName::DNSName(name) => dns_fits(name, wanted),
        GeneralName::URI(uri) => *uri == wanted,
        GeneralName::IPAddress(bytes) => super::facts::address(bytes).as_deref() == Some(wanted),
        _ => false,
    })
}

/// Whether the certificate is of this host.
pub(super) fn has_host(certificate: &X509Certificate<'_>, wanted: &str) -> bool {
    let names = certificate.subject_alternative_name().ok().flatten();
    let mut names = names.iter().flat_map(|names| &names.value.general_names);
    names.any(|name| matches!(name, GeneralName::DNSName(name) if dns_fits(name, wanted)))
}

/// A certificate's DNS name, which may have a wildcard for its first label, against a host.
fn dns_fits(name: &str, host: &str) -> bool {
    if name.eq_ignore_ascii_case(host) {
        return true;
    }
    let Some(rest) = name.strip_prefix("*.") else { return false };
    host.split_once('.').is_some_and(|(_, parent)| parent.eq_ignore_ascii_case(rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wildcard_stands_for_one_label() {
        assert!(dns_fits("*.example.com", "a.Example.com"));
        assert!(dns_fits("a.example.com", "A.example.com"));
        assert!(!dns_fits("*.example.com", "a.b.example.com"));
        assert!(!dns_fits("*.example.com", "example.com"));
        assert!(!dns_fits("a.example.com", "b.example.com"));
    }
}
