//! Names of everything the runtime makes on the host, so that a clean-up finds it without any other record.

use crate::RuntimeError;

/// Host-wide names derived from one prefix; two clusters with different prefixes (and address ranges) coexist.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Names {
    prefix: String,
}

impl Default for Names {
    /// The prefix `lateen`.
    fn default() -> Self {
        Self { prefix: "lateen".to_owned() }
    }
}

impl Names {
    /// Names with this prefix: 2 to 7 characters of `a-z`, `0-9`, `-`, beginning with a letter, and not `lt`
    /// (which the prefix `lateen` uses for its interfaces).
    ///
    /// # Errors
    /// [`RuntimeError::Config`] for any other prefix.
    pub fn new(prefix: &str) -> Result<Self, RuntimeError> {
        let characters = prefix.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-');
        let begins = prefix.starts_with(|c: char| c.is_ascii_lowercase());
        // An interface name has at most 15 characters, 8 of which are the pod's.
        if !characters || !begins || prefix == "lt" || !(2..=7).contains(&prefix.len()) {
            return Err(RuntimeError::Config(format!(
                "the name prefix {prefix:?} must be 2 to 7 characters of a-z, 0-9 and '-', begin with a letter and not be \"lt\""
            )));
        }
        Ok(Self { prefix: prefix.to_owned() })
    }

    /// The interface that carries the node's own addresses, for example `lateen0`.
    pub fn node_interface(&self) -> String {
        format!("{}0", self.prefix)
    }

    /// The nftables table (families `ip` and `ip6`) with service addresses, for example `lateen`.
    pub fn nft_table(&self) -> &str {
        &self.prefix
    }

    /// The network namespace of a pod, for example `lateen-1a2b3c4d`.
    pub fn netns(&self, pod: ShortId) -> String {
        format!("{}-{}", self.prefix, pod.hex())
    }

    /// The host's end of a pod's veth pair, for example `lt1a2b3c4d`.
    pub fn veth(&self, pod: ShortId) -> String {
        format!("{}{}", self.veth_prefix(), pod.hex())
    }

    /// Whether `name` is a network namespace of this prefix.
    pub fn is_netns(&self, name: &str) -> bool {
        name.strip_prefix(&self.prefix).and_then(|rest| rest.strip_prefix('-')).is_some_and(is_short_hex)
    }

    /// Whether `name` is the host's end of a veth pair of this prefix.
    pub fn is_veth(&self, name: &str) -> bool {
        name.strip_prefix(self.veth_prefix()).is_some_and(is_short_hex)
    }

    fn veth_prefix(&self) -> &str {
        if self.prefix == "lateen" { "lt" } else { &self.prefix }
    }
}

fn is_short_hex(text: &str) -> bool {
    text.len() == 8 && text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}

/// Eight hexadecimal digits that stand for a pod in names on the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ShortId(u32);

impl ShortId {
    /// The id of a pod's uid: its first eight hexadecimal digits, or a hash of it when it isn't a UUID.
    pub fn of_uid(uid: &str) -> Self {
        let first = uid.get(..8).and_then(|text| u32::from_str_radix(text, 16).ok());
        // FNV-1a: stable across processes, so that a later clean-up derives the same name.
        Self(first.unwrap_or_else(|| {
            uid.bytes().fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193))
        }))
    }

    fn hex(self) -> String {
        format!("{:08x}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_the_default_prefix() {
        let names = Names::default();
        let pod = ShortId::of_uid("1a2b3c4d-0000-4000-8000-000000000000");
        assert_eq!(names.netns(pod), "lateen-1a2b3c4d");
        assert_eq!(names.veth(pod), "lt1a2b3c4d");
        assert_eq!(names.node_interface(), "lateen0");
        assert!(names.is_netns("lateen-1a2b3c4d") && names.is_veth("lt1a2b3c4d"));
        assert_ne!(ShortId::of_uid("pod-a"), ShortId::of_uid("pod-b"));
    }

    #[test]
    fn clusters_do_not_see_each_other() {
        let (ours, theirs) = (Names::default(), Names::new("lateen2").unwrap());
        let pod = ShortId::of_uid("1a2b3c4d");
        assert!(!ours.is_netns(&theirs.netns(pod)) && !theirs.is_netns(&ours.netns(pod)));
        assert!(!ours.is_veth(&theirs.veth(pod)) && !theirs.is_veth(&ours.veth(pod)));
        assert!(theirs.veth(pod).len() <= 15);
        assert!(!ours.is_veth("lt1a2b3c4") && !ours.is_veth("ltether00"));
    }

    #[test]
    fn bad_prefixes() {
        for bad in ["", "a", "lt", "Lateen", "0lat", "lateen-test", "lat_en"] {
            assert!(Names::new(bad).is_err(), "{bad}");
        }
    }
}
