//! Pod addresses.

use std::{collections::HashSet, net::Ipv4Addr};

use ipnet::Ipv4Net;

/// Free and used addresses of the pods' range. The next address follows the last one given out, so that an address is
/// not reused while others still remember who had it.
#[derive(Debug)]
pub(crate) struct AddressPool {
    range: Ipv4Net,
    used: HashSet<Ipv4Addr>,
    next: u32,
}

impl AddressPool {
    pub(crate) fn new(range: Ipv4Net, node_ip: Ipv4Addr) -> Self {
        Self { range, used: HashSet::from([node_ip]), next: 1 }
    }

    /// The next free address; `None` when the range is exhausted.
    pub(crate) fn allocate(&mut self) -> Option<Ipv4Addr> {
        let first = u32::from(self.range.network());
        // Without the network's own and the broadcast address.
        let usable = u32::from(self.range.broadcast()) - first - 1;
        for step in 0..usable {
            let offset = (self.next - 1 + step) % usable + 1;
            let address = Ipv4Addr::from(first + offset);
            if self.used.insert(address) {
                self.next = offset % usable + 1;
                return Some(address);
            }
        }
        None
    }

    pub(crate) fn release(&mut self, address: Ipv4Addr) {
        self.used.remove(&address);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gives_each_address_once_and_reuses_late() {
        let mut pool = AddressPool::new("10.9.0.0/29".parse().unwrap(), Ipv4Addr::new(10, 9, 0, 1));
        let first = pool.allocate().unwrap();
        assert_eq!(first, Ipv4Addr::new(10, 9, 0, 2));
        pool.release(first);
        let rest: Vec<_> = std::iter::from_fn(|| pool.allocate()).collect();
        let last_octets: Vec<u8> = rest.iter().map(|address| address.octets()[3]).collect();
        assert_eq!(last_octets, [3, 4, 5, 6, 2]);
        pool.release(rest[1]);
        assert_eq!(pool.allocate(), Some(rest[1]));
    }
}
