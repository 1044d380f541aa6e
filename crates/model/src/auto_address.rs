//! Automatic addresses of ServiceEntries' hosts.
//!
//! A host's address follows from its namespace and name, so that it stays the same across restarts and replicas. Where two
//! want the same address the older one has it and the other takes the next free one: what is newly made never moves what is
//! in use.
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::digest::digest_of;
use crate::name::ObjectName;

/// Istio's range, `240.240.0.0/16`: it is reserved, so nobody is reached by it.
const BASE: u32 = u32::from_be_bytes([240, 240, 0, 0]);
/// Hosts in the range, without its first and last address.
const SIZE: u32 = 0xffff - 1;

/// Istio's range of IPv6, `2001:2::/48`. Hosts have the same place in both.
const BASE6: u128 = Ipv6Addr::new(0x2001, 2, 0, 0, 0, 0, 0, 0).to_bits();

/// The automatic address of IPv6 of the host that has this one of IPv4.
pub(crate) fn ipv6_of(address: IpAddr) -> Option<IpAddr> {
    let IpAddr::V4(address) = address else { return None };
    let place = u32::from(address).checked_sub(BASE)?;
    Some(IpAddr::V6(Ipv6Addr::from_bits(BASE6 + u128::from(place))))
}

/// A host in a namespace, with its age: older ones come first.
pub(crate) type Claim = (i64, ObjectName);

/// Who has which address.
#[derive(Debug, Default)]
pub(crate) struct AutoAddresses {
    slots: BTreeMap<Claim, u32>,
    taken: BTreeSet<u32>,
    /// Hosts that do not have the address that follows from their name. While there are none, adding one to a free address
    /// or removing one moves nobody.
    displaced: usize,
}

impl AutoAddresses {
    /// The address of a host, if it has one.
    pub(crate) fn get(&self, claim: &Claim) -> Option<IpAddr> {
        self.slots.get(claim).map(|slot| IpAddr::V4(Ipv4Addr::from(BASE + 1 + slot)))
    }

    /// Adds a host; the others whose address changed by it.
    pub(crate) fn insert(&mut self, claim: Claim) -> Vec<ObjectName> {
        if self.slots.contains_key(&claim) {
            return Vec::new();
        }
        let wanted = wanted(&claim);
        if self.taken.insert(wanted) {
            self.slots.insert(claim, wanted);
            return Vec::new();
        }
        self.reassign(|slots| {
            slots.insert(claim, wanted);
        })
    }

    /// Removes a host; the others whose address changed by it.
    pub(crate) fn remove(&mut self, claim: &Claim) -> Vec<ObjectName> {
        let Some(slot) = self.slots.get(claim) else { return Vec::new() };
        if self.displaced == 0 {
            self.taken.remove(slot);
            self.slots.remove(claim);
            return Vec::new();
        }
        self.reassign(|slots| {
            slots.remove(claim);
        })
    }

    fn reassign(&mut self, change: impl FnOnce(&mut BTreeMap<Claim, u32>)) -> Vec<ObjectName> {
        let before = self.slots.clone();
        change(&mut self.slots);
        self.taken.clear();
        self.displaced = 0;
        let claims = std::mem::take(&mut self.slots);
        for claim in claims.into_keys() {
            let wanted = wanted(&claim);
            let free = (0..SIZE).map(|step| (wanted + step) % SIZE).find(|slot| !self.taken.contains(slot));
            // More hosts than addresses (65,534): the youngest go without, until the control plane starts again.
            let Some(slot) = free else { break };
            self.displaced += usize::from(slot != wanted);
            self.taken.insert(slot);
            self.slots.insert(claim, slot);
        }
        let moved =
            |(claim, slot): (&Claim, &u32)| (self.slots.get(claim) != Some(slot)).then(|| claim.1.clone());
        before.iter().filter_map(moved).collect()
    }
}

fn wanted((_, host): &Claim) -> u32 {
    let digest = digest_of(format!("{host}").as_bytes());
    // The remainder is below a number that fits.
    (digest % u128::from(SIZE)) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claim(created: i64, host: &str) -> Claim {
        (created, ObjectName::new("default", host))
    }

    #[test]
    fn addresses_follow_from_names_and_are_unique() {
        let mut addresses = AutoAddresses::default();
        for index in 0..3000 {
            assert!(
                addresses.insert(claim(index, &format!("h{index}.example.com"))).is_empty(),
                "newer ones move nobody"
            );
        }
        assert!(addresses.displaced > 0, "the test has collisions in it");
        let all: BTreeSet<IpAddr> = addresses.slots.keys().filter_map(|claim| addresses.get(claim)).collect();
        assert_eq!(all.len(), 3000);
        let mut backward = AutoAddresses::default();
        for index in (0..3000).rev() {
            backward.insert(claim(index, &format!("h{index}.example.com")));
        }
        assert_eq!(backward.slots, addresses.slots, "whatever the order in which they came");
        let mut alone = AutoAddresses::default();
        alone.insert(claim(7, "h1.example.com"));
        let address = alone.get(&claim(7, "h1.example.com")).unwrap();
        assert!(address.to_string().starts_with("240.240."), "{address}");
    }

    #[test]
    fn removals_leave_what_a_fresh_start_would_make() {
        let (mut some, mut fresh) = (AutoAddresses::default(), AutoAddresses::default());
        for index in 0..2000 {
            some.insert(claim(index, &format!("h{index}")));
        }
        for index in (0..2000).step_by(100) {
            some.remove(&claim(index, &format!("h{index}")));
        }
        for index in (0..2000).filter(|index| index % 100 != 0) {
            fresh.insert(claim(index, &format!("h{index}")));
        }
        assert_eq!(some.slots, fresh.slots);
    }
}
