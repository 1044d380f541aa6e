//! What the mesh's names stand for, in all their forms. Pure.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use lateen_xds::name_table::{KUBERNETES, NameInfo, NameTable};

/// Where the application is: which short forms of Kubernetes names it may use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Domain {
    namespace: String,
    /// `svc.cluster.local`: the domain without the namespace.
    suffix: String,
    /// The first search domain: what a client adds to a name first.
    search: Option<String>,
}

impl Domain {
    pub(crate) fn new(namespace: &str, domain: &str, search: &[String]) -> Self {
        let domain = domain.trim_matches('.').to_ascii_lowercase();
        let suffix = domain.strip_prefix(&format!("{namespace}.")).unwrap_or(&domain).to_owned();
        let search = search.first().map(|first| format!(".{}", first.to_ascii_lowercase()));
        Self { namespace: namespace.to_owned(), suffix, search }
    }

    /// A name of the table with its short forms. Names of other domains and those of ServiceEntries have none.
    fn forms(&self, host: &str, info: &NameInfo) -> Vec<String> {
        let host = host.trim_end_matches('.').to_ascii_lowercase();
        let here = !self.suffix.is_empty() && host.ends_with(&self.suffix);
        if info.registry != KUBERNETES || info.shortname.is_empty() || !here {
            return vec![host];
        }
        let short = info.shortname.to_ascii_lowercase();
        let of_namespace = format!("{short}.{}", info.namespace);
        let first = self.suffix.split('.').next().unwrap_or_default();
        let mut forms = vec![host, format!("{of_namespace}.{first}"), of_namespace];
        if info.namespace == self.namespace {
            forms.push(short);
        }
        forms
    }
}

/// Addresses by family.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Addresses {
    pub(crate) v4: Vec<Ipv4Addr>,
    pub(crate) v6: Vec<Ipv6Addr>,
}

impl Addresses {
    fn of(info: &NameInfo) -> Option<Arc<Self>> {
        let mut addresses = Self::default();
        for address in info.ips.iter().filter_map(|ip| ip.parse().ok()) {
            match address {
                IpAddr::V4(address) => addresses.v4.push(address),
                IpAddr::V6(address) => addresses.v6.push(address),
            }
        }
        (addresses != Self::default()).then(|| Arc::new(addresses))
    }
}

/// What a name stands for.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Found<'a> {
    /// The name it is an alias of, when the client added a search domain to that.
    pub(crate) alias_of: Option<String>,
    pub(crate) addresses: &'a Addresses,
}

/// The names of one state of the mesh, in lower case without a final dot.
#[derive(Debug)]
pub(crate) struct Table {
    names: HashMap<String, Arc<Addresses>>,
    /// Those with a leading wildcard, without it.
    wildcards: HashMap<String, Arc<Addresses>>,
    search: Option<String>,
}

impl Table {
    pub(crate) fn new(table: &NameTable, domain: &Domain) -> Self {
        let mut made =
            Self { names: HashMap::new(), wildcards: HashMap::new(), search: domain.search.clone() };
        for (host, info) in &table.table {
            let Some(addresses) = Addresses::of(info) else { continue };
            for (index, form) in domain.forms(host, info).into_iter().enumerate() {
                // A name somebody has is his, whatever it may be short for.
                if index > 0 && table.table.contains_key(&form) {
                    continue;
                }
                match form.strip_prefix("*.") {
                    Some(rest) => made.wildcards.insert(rest.to_owned(), Arc::clone(&addresses)),
                    None => made.names.insert(form, Arc::clone(&addresses)),
                };
            }
        }
        made
    }

    /// Looks up a name in lower case without a final dot: itself, as one with the first search domain added, then the
    /// wildcards over it, the longest first.
    pub(crate) fn find(&self, name: &str) -> Option<Found<'_>> {
        let direct = |addresses| Found { alias_of: None, addresses };
        if let Some(addresses) = self.names.get(name) {
            return Some(direct(addresses));
        }
        let unsearched = |name: &str| Some(name.strip_suffix(self.search.as_deref()?)?.to_owned());
        if let Some(bare) = unsearched(name)
            && let Some(addresses) = self.names.get(&bare)
        {
            return Some(Found { alias_of: Some(bare), addresses });
        }
        if self.wildcards.is_empty() {
            return None;
        }
        let mut rest = name;
        while let Some((_, parent)) = rest.split_once('.') {
            rest = parent;
            if let Some(addresses) = self.wildcards.get(rest) {
                return Some(direct(addresses));
            }
            if let Some(bare) = unsearched(rest)
                && let Some(addresses) = self.wildcards.get(&bare)
            {
                return Some(Found { alias_of: Some(format!("*.{bare}")), addresses });
            }
        }
        None
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use lateen_xds::name_table::EXTERNAL;

    pub(crate) fn table() -> Table {
        let kubernetes = |short: &str, namespace: &str, ips: &[&str]| NameInfo {
            ips: ips.iter().map(|ip| (*ip).to_owned()).collect(),
            registry: KUBERNETES.to_owned(),
            shortname: short.to_owned(),
            namespace: namespace.to_owned(),
        };
        let external = |ips: &[&str]| NameInfo { registry: EXTERNAL.to_owned(), ..kubernetes("", "", ips) };
        let table = [
            ("web.shop.svc.cluster.local", kubernetes("web", "shop", &["10.96.0.7"])),
            ("web.other.svc.cluster.local", kubernetes("web", "other", &["10.96.0.8", "fd00::8"])),
            (
                "db.shop.svc.cluster.local",
                kubernetes("db", "shop", &["10.244.0.1", "10.244.0.2", "10.244.0.3"]),
            ),
            ("db-0.db.shop.svc.cluster.local", kubernetes("db-0.db", "shop", &["10.244.0.1"])),
            ("Api.example.com", external(&["240.240.0.1"])),
            ("*.wild.example.com", external(&["10.9.9.9"])),
            ("none.example.com", external(&["range/24"])),
        ];
        let table = NameTable { table: table.map(|(name, info)| (name.to_owned(), info)).into() };
        let search = ["shop.svc.cluster.local", "svc.cluster.local", "cluster.local"].map(str::to_owned);
        Table::new(&table, &Domain::new("shop", "shop.svc.cluster.local", &search))
    }

    /// The addresses of a name, and what it is an alias of.
    fn found(name: &str) -> Option<(Vec<String>, Option<String>)> {
        let table = table();
        let found = table.find(name)?;
        let v4 = found.addresses.v4.iter().map(ToString::to_string);
        Some((v4.chain(found.addresses.v6.iter().map(ToString::to_string)).collect(), found.alias_of))
    }

    fn direct(ips: &[&str]) -> Option<(Vec<String>, Option<String>)> {
        Some((ips.iter().map(|ip| (*ip).to_owned()).collect(), None))
    }

    #[test]
    fn names_in_all_forms() {
        for name in ["web", "web.shop", "web.shop.svc", "web.shop.svc.cluster.local"] {
            assert_eq!(found(name), direct(&["10.96.0.7"]), "{name}");
        }
        for name in ["web.other", "web.other.svc", "web.other.svc.cluster.local"] {
            assert_eq!(found(name), direct(&["10.96.0.8", "fd00::8"]), "{name}");
        }
        for name in ["db-0.db", "db-0.db.shop", "db-0.db.shop.svc.cluster.local"] {
            assert_eq!(found(name), direct(&["10.244.0.1"]), "{name}");
        }
        assert_eq!(found("db").unwrap().0.len(), 3);
        assert_eq!(found("api.example.com"), direct(&["240.240.0.1"]));
        for name in ["none.example.com", "example.com", "com", "", "web.shop.svc.cluster", "other"] {
            assert_eq!(found(name), None, "{name}");
        }
    }

    #[test]
    fn the_first_search_domain_makes_aliases() {
        let alias = |ip: &str, of: &str| Some((vec![ip.to_owned()], Some(of.to_owned())));
        let searched = |name: &str| format!("{name}.shop.svc.cluster.local");
        assert_eq!(found(&searched("api.example.com")), alias("240.240.0.1", "api.example.com"));
        assert_eq!(found(&searched("web.shop")), alias("10.96.0.7", "web.shop"));
        assert_eq!(found(&searched("web")), direct(&["10.96.0.7"]), "that is its own name");
        assert_eq!(found(&searched("a.wild.example.com")), alias("10.9.9.9", "*.wild.example.com"));
        assert_eq!(found("api.example.com.svc.cluster.local"), None, "only the first");
    }

    #[test]
    fn wildcards_stand_for_what_is_below_them() {
        assert_eq!(found("a.wild.example.com"), direct(&["10.9.9.9"]));
        assert_eq!(found("b.a.wild.example.com"), direct(&["10.9.9.9"]));
        assert_eq!(found("wild.example.com"), None);
    }
}
