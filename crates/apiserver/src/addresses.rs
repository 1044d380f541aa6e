//! Cluster IPs and node ports.

use std::{
    collections::HashSet,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use parking_lot::Mutex;
use serde_json::{Value, json};

use crate::ip_families;
use crate::status::FieldError;

/// Kubernetes' default node port range.
const NODE_PORTS: std::ops::RangeInclusive<u16> = 30000..=32767;
/// Addresses of a range beyond these are not given out, as with kube-apiserver.
const LARGEST_RANGE: u32 = 1 << 16;

#[derive(Default)]
struct Taken {
    addresses: HashSet<IpAddr>,
    ports: HashSet<u16>,
}

/// What Services hold of the cluster's addresses and node ports.
pub(crate) struct Addresses {
    range: Ipv4Net,
    /// A second family, where the cluster has one.
    range6: Option<Ipv6Net>,
    taken: Mutex<Taken>,
}

/// What one write took, to give back when the write fails.
#[derive(Debug, Default)]
pub(crate) struct Allocation {
    addresses: Vec<IpAddr>,
    ports: Vec<u16>,
}

impl Addresses {
    pub(crate) fn new(range: Ipv4Net, range6: Option<Ipv6Net>) -> Self {
        let addresses = Self { range, range6, taken: Mutex::new(Taken::default()) };
        addresses.taken.lock().addresses.extend(addresses.reserved());
        addresses
    }

    /// The `n`th address of the range.
    pub(crate) fn nth(&self, n: u32) -> Ipv4Addr {
        Ipv4Addr::from(u32::from(self.range.network()).saturating_add(n))
    }

    /// The first is `kubernetes.default`'s, the tenth is kept for whoever names it (cluster DNS).
    fn reserved(&self) -> [IpAddr; 2] {
        [1, 10].map(|n| self.nth(n).into())
    }

    /// Notes what a stored Service holds.
    pub(crate) fn note(&self, service: &Value) {
        let mut taken = self.taken.lock();
        taken.addresses.extend(held(service));
        taken.ports.extend(ports(service));
    }

    /// Gives back what a deleted Service held (the first and tenth address stay reserved).
    pub(crate) fn release(&self, service: &Value) {
        let mut taken = self.taken.lock();
        for address in held(service).filter(|address| !self.reserved().contains(address)) {
            taken.addresses.remove(&address);
        }
        for port in ports(service) {
            taken.ports.remove(&port);
        }
    }

    /// Undoes an allocation.
    pub(crate) fn give_back(&self, allocation: &Allocation) {
        let mut taken = self.taken.lock();
        for address in &allocation.addresses {
            taken.addresses.remove(address);
        }
        for port in &allocation.ports {
            taken.ports.remove(port);
        }
    }

    /// Fills in the addresses and ports of a Service; `old` is its stored state, if any.
    pub(crate) fn assign(
        &self,
        old: Option<&Value>,
        service: &mut Value,
    ) -> Result<Allocation, Vec<FieldError>> {
        let mut allocation = Allocation::default();
        let kind = service["spec"]["type"].as_str().unwrap_or_default().to_owned();
        if kind == "ExternalName" {
            if let Some(spec) = service["spec"].as_object_mut() {
                for field in ["clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy"] {
                    spec.shift_remove(field);
                }
            }
            return Ok(allocation);
        }
        let configured = if self.range6.is_some() { &["IPv4", "IPv6"][..] } else { &["IPv4"] };
        ip_families::settle(old, service, configured)?;
        let mut taken = self.taken.lock();
        let result = self
            .assign_addresses(&mut taken, old, service, &mut allocation)
            .and_then(|()| assign_ports(&mut taken, old, service, &kind, &mut allocation));
        drop(taken);
        match result {
            Ok(()) => Ok(allocation),
            Err(error) => {
                self.give_back(&allocation);
                Err(vec![error])
            }
        }
    }

    /// One address for each family, but for headless Services.
    fn assign_addresses(
        &self,
        taken: &mut Taken,
        old: Option<&Value>,
        service: &mut Value,
        allocation: &mut Allocation,
    ) -> Result<(), FieldError> {
        let spec = &mut service["spec"];
        if spec["clusterIPs"][0] != "None" {
            let families: Vec<Value> = spec["ipFamilies"].as_array().cloned().unwrap_or_default();
            let mut addresses = Vec::new();
            for (index, family) in families.iter().enumerate() {
                let address = match spec["clusterIPs"][index].as_str() {
                    Some(wanted) => self.take(taken, old, wanted, allocation)?,
                    None => self.any(taken, family == "IPv6", allocation)?,
                };
                addresses.push(address.to_string());
            }
            spec["clusterIPs"] = json!(addresses);
        }
        spec["clusterIP"] = spec["clusterIPs"][0].clone();
        Ok(())
    }

    /// An address asked for by name, or held already.
    fn take(
        &self,
        taken: &mut Taken,
        old: Option<&Value>,
        wanted: &str,
        allocation: &mut Allocation,
    ) -> Result<IpAddr, FieldError> {
        let refused = |why: &str| {
            let why = format!("failed to allocate IP {wanted}: {why}");
            FieldError::invalid("spec.clusterIPs", &json!([wanted]), &why)
        };
        let address: IpAddr = wanted.parse().map_err(|_| refused("not an IP address"))?;
        if old.is_some_and(|old| held(old).any(|held| held == address)) {
            return Ok(address);
        }
        let range = match (address, self.range6) {
            (IpAddr::V6(_), Some(range)) => IpNet::V6(range),
            _ => IpNet::V4(self.range),
        };
        if !range.contains(&address) {
            return Err(refused(&format!(
                "the provided IP ({wanted}) is not in the valid range. The range of valid IPs is {range}"
            )));
        }
        if !taken.addresses.insert(address) && address != self.reserved()[1] {
            return Err(refused("provided IP is already allocated"));
        }
        allocation.addresses.push(address);
        Ok(address)
    }

    /// Any free address of a family.
    fn any(&self, taken: &mut Taken, v6: bool, allocation: &mut Allocation) -> Result<IpAddr, FieldError> {
        let free = match self.range6.filter(|_| v6) {
            Some(range) => free_address(&taken.addresses, 128 - range.prefix_len(), |n| {
                Ipv6Addr::from(u128::from(range.network()) + u128::from(n)).into()
            }),
            None => free_address(&taken.addresses, 32 - self.range.prefix_len(), |n| self.nth(n).into()),
        };
        let address = free.ok_or_else(|| {
            FieldError::invalid("spec.clusterIPs", &json!([]), "failed to allocate IP: range is full")
        })?;
        taken.addresses.insert(address);
        allocation.addresses.push(address);
        Ok(address)
    }
}

/// A free one of the addresses that so many bits tell apart; neither the network's own nor the last.
fn free_address(taken: &HashSet<IpAddr>, bits: u8, nth: impl Fn(u32) -> IpAddr) -> Option<IpAddr> {
    let hosts = 1_u32.checked_shl(u32::from(bits)).map_or(LARGEST_RANGE, |n| n.min(LARGEST_RANGE));
    let hosts = hosts.saturating_sub(2);
    let start = fastrand::u32(0..hosts.max(1));
    (0..hosts).map(|step| nth(1 + (start + step) % hosts.max(1))).find(|address| !taken.contains(address))
}

fn assign_ports(
    taken: &mut Taken,
    old: Option<&Value>,
    service: &mut Value,
    kind: &str,
    allocation: &mut Allocation,
) -> Result<(), FieldError> {
    let wants = kind == "NodePort"
        || (kind == "LoadBalancer" && service["spec"]["allocateLoadBalancerNodePorts"] != false);
    let held: HashSet<u16> = old.map(|old| ports(old).collect()).unwrap_or_default();
    let former: Vec<Value> = old.and_then(|old| old["spec"]["ports"].as_array().cloned()).unwrap_or_default();
    for (index, port) in crate::defaults::each(&mut service["spec"], "ports").enumerate() {
        if kind == "ClusterIP" {
            if let Some(map) = port.as_object_mut() {
                map.shift_remove("nodePort");
            }
            continue;
        }
        if port["nodePort"].as_u64().unwrap_or(0) == 0 {
            let same =
                former.iter().find(|one| one["port"] == port["port"] && one["protocol"] == port["protocol"]);
            if let Some(kept) = same.and_then(|one| one.get("nodePort")) {
                port["nodePort"] = kept.clone();
            }
        }
        let at = format!("spec.ports[{index}].nodePort");
        match port["nodePort"].as_u64().unwrap_or(0) {
            0 if !wants => {}
            0 => {
                let start = fastrand::u16(0..2768);
                let free = (0..2768)
                    .map(|step| NODE_PORTS.start() + (start + step) % 2768)
                    .find(|p| !taken.ports.contains(p));
                let free = free.ok_or_else(|| {
                    FieldError::invalid(&at, &json!(0), "failed to allocate a nodePort: range is full")
                })?;
                taken.ports.insert(free);
                allocation.ports.push(free);
                port["nodePort"] = json!(free);
            }
            number => {
                let wanted = u16::try_from(number).ok().filter(|n| NODE_PORTS.contains(n));
                let wanted = wanted.ok_or_else(|| {
                    FieldError::invalid(
                        &at,
                        &port["nodePort"],
                        "provided port is not in the valid range. The range of valid ports is 30000-32767",
                    )
                })?;
                if !held.contains(&wanted) {
                    if !taken.ports.insert(wanted) {
                        return Err(FieldError::invalid(
                            &at,
                            &port["nodePort"],
                            "provided port is already allocated",
                        ));
                    }
                    allocation.ports.push(wanted);
                }
            }
        }
    }
    Ok(())
}

/// The cluster IPs a Service has; none when it is headless.
fn held(service: &Value) -> impl Iterator<Item = IpAddr> + '_ {
    let spec = &service["spec"];
    let listed = spec["clusterIPs"].as_array().into_iter().flatten();
    let all = listed.chain([&spec["clusterIP"]]).filter_map(|address| address.as_str()?.parse().ok());
    let first = spec["clusterIP"].as_str().and_then(|address| address.parse::<IpAddr>().ok());
    // The first is told twice.
    all.enumerate()
        .filter(move |(index, address)| *index == 0 || Some(*address) != first)
        .map(|(_, address)| address)
}

fn ports(service: &Value) -> impl Iterator<Item = u16> + '_ {
    let ports = service["spec"]["ports"].as_array().into_iter().flatten();
    ports.filter_map(|port| u16::try_from(port["nodePort"].as_u64()?).ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn service(spec: Value) -> Value {
        json!({"spec": spec})
    }

    #[test]
    fn addresses_are_unique_and_given_back() {
        let addresses = Addresses::new("10.96.0.0/28".parse().unwrap(), None);
        let mut seen = HashSet::new();
        for _ in 0..12 {
            let mut one = service(json!({"type": "ClusterIP", "ports": [{"port": 80}]}));
            addresses.assign(None, &mut one).unwrap();
            assert!(seen.insert(one["spec"]["clusterIP"].as_str().unwrap().to_owned()));
        }
        assert!(!seen.contains("10.96.0.1") && !seen.contains("10.96.0.10"), "{seen:?}");
        let mut full = service(json!({"type": "ClusterIP"}));
        assert!(addresses.assign(None, &mut full).is_err());
        addresses.release(&service(json!({"clusterIP": "10.96.0.2"})));
        addresses.assign(None, &mut full).unwrap();
        assert_eq!(full["spec"]["clusterIP"], "10.96.0.2");
        let mut dns = service(json!({"type": "ClusterIP", "clusterIP": "10.96.0.10"}));
        addresses.assign(None, &mut dns).unwrap();
        let mut headless = service(json!({"type": "ClusterIP", "clusterIP": "None"}));
        addresses.assign(None, &mut headless).unwrap();
        assert_eq!(headless["spec"]["clusterIPs"], json!(["None"]));
    }

    #[test]
    fn updates_keep_what_they_leave_out() {
        let addresses = Addresses::new("10.96.0.0/16".parse().unwrap(), None);
        let mut old = service(json!({"type": "NodePort", "ports": [{"port": 80, "protocol": "TCP"}]}));
        addresses.assign(None, &mut old).unwrap();
        let mut new = service(json!({"type": "NodePort", "ports": [{"port": 80, "protocol": "TCP"}]}));
        addresses.assign(Some(&old), &mut new).unwrap();
        assert_eq!(old["spec"], new["spec"]);
        let port = old["spec"]["ports"][0]["nodePort"].as_u64().unwrap();
        let mut other = service(json!({"type": "NodePort", "ports": [{"port": 81, "nodePort": port}]}));
        assert!(addresses.assign(None, &mut other).is_err());
    }

    #[test]
    fn a_second_family_has_addresses_of_its_own() {
        let range6: Ipv6Net = "fd00:10:96::/112".parse().unwrap();
        let addresses = Addresses::new("10.96.0.0/16".parse().unwrap(), Some(range6));
        let mut dual = service(json!({"type": "ClusterIP", "ipFamilyPolicy": "RequireDualStack"}));
        addresses.assign(None, &mut dual).unwrap();
        let ips: Vec<IpAddr> = held(&dual).collect();
        assert!(ips.len() == 2 && ips[0].is_ipv4(), "{dual}");
        assert!(matches!(ips[1], IpAddr::V6(address) if range6.contains(&address)), "{dual}");
        assert_eq!(dual["spec"]["clusterIP"], dual["spec"]["clusterIPs"][0]);
        let mut same = service(json!({"type": "ClusterIP", "clusterIP": ips[1].to_string()}));
        let errors = addresses.assign(None, &mut same).unwrap_err();
        assert!(errors[0].message.ends_with("provided IP is already allocated"), "{errors:?}");
        // The second goes when it is no longer asked for, and can be had by others.
        let mut single = dual.clone();
        single["spec"]["ipFamilyPolicy"] = json!("SingleStack");
        addresses.assign(Some(&dual), &mut single).unwrap();
        assert_eq!(single["spec"]["clusterIPs"], json!([ips[0]]));
        addresses.release(&dual);
        addresses.note(&single);
        addresses.assign(None, &mut same).unwrap();
        assert_eq!(same["spec"]["ipFamilies"], json!(["IPv6"]));
        let mut outside = service(json!({"type": "ClusterIP", "clusterIP": "fd01::1"}));
        let errors = addresses.assign(None, &mut outside).unwrap_err();
        assert!(errors[0].message.ends_with("The range of valid IPs is fd00:10:96::/112"), "{errors:?}");
    }
}
