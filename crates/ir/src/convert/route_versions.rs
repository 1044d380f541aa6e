//! A route configuration from its encoded form: one virtual host after the other, so that the messages of thousands are never in memory
//! at once, and only those that were not in the version before.

use std::cell::OnceCell;
use std::collections::BTreeSet;
use std::sync::Arc;

use ahash::AHashMap;
use lateen_xds::pb::envoy::config::route::v3 as proto;
use lateen_xds::split::{Split, split};
use prost::Message;
use xxhash_rust::xxh3::xxh3_128;

use super::route::{Shared, configuration, route_configuration, virtual_host};
use super::values::Converted;
use crate::error::At;
use crate::route::Origin;
use crate::{ConvertError, RouteConfiguration, VirtualHost};

/// Number of the field `virtual_hosts`.
const VIRTUAL_HOSTS: u32 = 2;

/// A configuration may know so many names of clusters, and of stats, that no route refers to any more, and as many as there are in use.
const UNUSED_NAMES: usize = 64;

impl RouteConfiguration {
    /// Converts the message.
    ///
    /// # Errors
    /// The first field that can't be used, with its path.
    pub fn from_proto(message: proto::RouteConfiguration) -> Result<Self, ConvertError> {
        route_configuration(&At::ROOT, message)
    }

    /// Decodes (the `value` of an `Any` of the right type) and converts. What did not change since the version `before` is taken over from
    /// it: its virtual hosts, the index of domains, and the numbers of clusters and filters.
    ///
    /// # Errors
    /// As [`Self::from_proto`], and when the bytes don't decode.
    pub fn from_bytes(bytes: &[u8], before: Option<&Self>) -> Result<Self, ConvertError> {
        let undecodable = |error| At::ROOT.error(format!("not a valid encoding: {error}"));
        let parts = split(bytes, VIRTUAL_HOSTS).map_err(undecodable)?;
        let origin = Origin {
            rest: xxh3_128(&parts.rest),
            hosts: parts.values.iter().map(|host| xxh3_128(host)).collect(),
        };
        // What virtual hosts take from the configuration around them is in its other fields.
        let before =
            before.filter(|before| before.origin.as_ref().is_some_and(|then| then.rest == origin.rest));
        let made = Self::from_parts(&parts, &origin, before)?;
        let names = |config: &Self| config.table.clusters().len() + config.stats.len();
        let made = match before {
            Some(before) if names(&made) > names(before) && made.has_many_unused_names() => {
                Self::from_parts(&parts, &origin, None)?
            }
            _ => made,
        };
        Ok(Self { origin: Some(origin), ..made })
    }

    fn from_parts(parts: &Split<'_>, origin: &Origin, before: Option<&Self>) -> Converted<Self> {
        let known = before.map(Known::of);
        let rest = super::decode(&parts.rest)?;
        configuration(&At::ROOT, rest, before, |shared| {
            let hosts = parts.values.iter().zip(&origin.hosts).enumerate();
            hosts
                .map(|(index, (bytes, digest))| {
                    let known = known.as_ref().and_then(|known| known.host(index, *digest));
                    known.map_or_else(|| convert(index, bytes, shared), |host| Ok(host.clone()))
                })
                .collect()
        })
    }

    fn has_many_unused_names(&self) -> bool {
        let used: BTreeSet<u32> = self.table.references().map(|cluster| cluster.index).collect();
        let many = |known: usize, used: usize| known > 2 * used + UNUSED_NAMES;
        many(self.table.clusters().len(), used.len()) || many(self.stats.len(), self.used_stats().len())
    }

    /// Which of [`Self::stats`] routes of this version have.
    pub fn used_stats(&self) -> BTreeSet<u32> {
        if self.stats.is_empty() {
            return BTreeSet::new();
        }
        let routes = self.table.virtual_hosts().iter().flat_map(|host| &host.routes);
        routes.filter_map(|route| route.stat).collect()
    }
}

fn convert(index: usize, bytes: &[u8], shared: &mut Shared) -> Converted<Arc<VirtualHost>> {
    let at = At::ROOT.index("virtual_hosts", index);
    let message = proto::VirtualHost::decode(bytes)
        .map_err(|error| at.error(format!("not a valid encoding: {error}")))?;
    virtual_host(&at, message, shared).map(Arc::new)
}

/// The virtual hosts of the version before, by what they were made from.
struct Known<'a> {
    hosts: &'a [Arc<VirtualHost>],
    digests: &'a [u128],
    /// Made when a host is not where it was.
    positions: OnceCell<AHashMap<u128, usize>>,
}

impl<'a> Known<'a> {
    fn of(before: &'a RouteConfiguration) -> Self {
        let digests = before.origin.as_ref().map(|origin| &origin.hosts[..]).unwrap_or_default();
        Self { hosts: before.table.virtual_hosts(), digests, positions: OnceCell::new() }
    }

    fn host(&self, position: usize, digest: u128) -> Option<&'a Arc<VirtualHost>> {
        let here = self.digests.get(position).filter(|known| **known == digest).map(|_| position);
        let positions = || self.positions.get_or_init(|| self.digests.iter().copied().zip(0..).collect());
        self.hosts.get(here.or_else(|| positions().get(&digest).copied())?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Action, ClusterSpecifier};

    fn host(name: &str, domain: &str, cluster: &str) -> proto::VirtualHost {
        use proto::route::Action;
        use proto::route_action::ClusterSpecifier;
        use proto::route_match::PathSpecifier;
        let forward = proto::RouteAction {
            cluster_specifier: Some(ClusterSpecifier::Cluster(cluster.to_owned())),
            ..Default::default()
        };
        let path = PathSpecifier::Prefix("/".to_owned());
        let route = proto::Route {
            r#match: Some(proto::RouteMatch { path_specifier: Some(path), ..Default::default() }),
            action: Some(Action::Route(forward)),
            ..Default::default()
        };
        proto::VirtualHost {
            name: name.to_owned(),
            domains: vec![domain.to_owned()],
            routes: vec![route],
            ..Default::default()
        }
    }

    fn encoded(hosts: &[proto::VirtualHost]) -> Vec<u8> {
        let message = proto::RouteConfiguration {
            name: "80".to_owned(),
            virtual_hosts: hosts.to_vec(),
            ..Default::default()
        };
        message.encode_to_vec()
    }

    fn made(hosts: &[proto::VirtualHost], before: Option<&RouteConfiguration>) -> RouteConfiguration {
        RouteConfiguration::from_bytes(&encoded(hosts), before).expect("a good configuration")
    }

    /// The cluster for a domain, by the number the reference has.
    fn cluster<'a>(config: &'a RouteConfiguration, domain: &str) -> &'a str {
        let host = config.table.virtual_host(domain).expect("there is one");
        let Action::Forward(forward) = &host.routes[0].action else { panic!("a route to a cluster") };
        let ClusterSpecifier::Cluster(cluster) = &forward.cluster else { panic!("one cluster") };
        assert_eq!(config.table.clusters()[cluster.index as usize], cluster.name);
        &cluster.name
    }

    #[test]
    fn what_did_not_change_is_taken_over() {
        let first = made(&[host("a", "a", "one"), host("b", "b", "two"), host("c", "c", "three")], None);
        // The first changes, the second goes, one comes before the third.
        let changed = [host("a", "a", "four"), host("d", "d", "two"), host("c", "c", "three")];
        let second = made(&changed, Some(&first));
        let [then, now] = [&first, &second].map(|config| config.table.virtual_hosts());
        assert!(!Arc::ptr_eq(&then[0], &now[0]));
        assert!(Arc::ptr_eq(&then[2], &now[2]));
        assert_eq!(["a", "c", "d"].map(|domain| cluster(&second, domain)), ["four", "three", "two"]);
        assert!(second.table.virtual_host("b").is_none());
        // Moved.
        let third = made(&[changed[2].clone(), changed[0].clone()], Some(&second));
        assert!(Arc::ptr_eq(&second.table.virtual_hosts()[0], &third.table.virtual_hosts()[1]));
        assert_eq!(["a", "c"].map(|domain| cluster(&third, domain)), ["four", "three"]);
        assert!(third.table.virtual_host("d").is_none());
    }

    #[test]
    fn what_hosts_take_from_around_them_counts() {
        let hosts = [host("a", "a", "one")];
        let first = made(&hosts, None);
        let mirror =
            proto::route_action::RequestMirrorPolicy { cluster: "copy".to_owned(), ..Default::default() };
        let mirrored = proto::RouteConfiguration {
            name: "80".to_owned(),
            virtual_hosts: hosts.to_vec(),
            request_mirror_policies: vec![mirror],
            ..Default::default()
        };
        let second = RouteConfiguration::from_bytes(&mirrored.encode_to_vec(), Some(&first)).expect("good");
        let Action::Forward(forward) = &second.table.virtual_hosts()[0].routes[0].action else {
            panic!("a route to a cluster")
        };
        assert_eq!(forward.mirrors.len(), 1);
    }

    #[test]
    fn domains_are_still_told_apart() {
        let first = made(&[host("a", "a", "one"), host("b", "b", "two")], None);
        let again = encoded(&[host("a", "a", "one"), host("b", "A", "two")]);
        let error = RouteConfiguration::from_bytes(&again, Some(&first)).expect_err("a twice");
        assert!(error.to_string().contains("\"A\" occurs more than once"), "{error}");
    }

    #[test]
    fn names_of_stats_keep_their_numbers_and_are_forgotten_in_time() {
        let counted = |name: &str, prefix: &str| {
            let mut host = host(name, name, "one");
            prefix.clone_into(&mut host.routes[0].stat_prefix);
            host
        };
        let named = |config: &RouteConfiguration, host: usize| {
            let number = config.table.virtual_hosts()[host].routes[0].stat?;
            Some(config.stats[number as usize].to_string())
        };
        let mut config = made(&[counted("a", "a"), counted("b", "kept"), host("c", "c", "one")], None);
        let kept = config.table.virtual_hosts()[1].clone();
        let mut most = 0;
        for version in 1..500 {
            let next = counted("a", &version.to_string());
            config = made(&[next, counted("b", "kept"), host("c", "c", "one")], Some(&config));
            assert_eq!(named(&config, 0), Some(format!("a\n{version}")));
            assert_eq!((named(&config, 1).as_deref(), named(&config, 2)), (Some("b\nkept"), None));
            assert_eq!(config.used_stats().len(), 2);
            assert!(version > UNUSED_NAMES || Arc::ptr_eq(&kept, &config.table.virtual_hosts()[1]));
            most = most.max(config.stats.len());
        }
        assert!((UNUSED_NAMES..=UNUSED_NAMES + 6).contains(&most), "{most}");
    }

    #[test]
    fn names_nobody_uses_are_forgotten_in_time() {
        let mut config = made(&[host("a", "a", "0")], None);
        let mut most = 0;
        for version in 1..500 {
            config = made(&[host("a", "a", &version.to_string())], Some(&config));
            assert_eq!(cluster(&config, "a"), version.to_string());
            most = most.max(config.table.clusters().len());
        }
        assert!((UNUSED_NAMES..=UNUSED_NAMES + 2).contains(&most), "{most}");
    }
}
