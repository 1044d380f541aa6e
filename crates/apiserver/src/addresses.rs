//! Cluster IPs and node ports.

use std::{collections::HashSet, net::Ipv4Addr};

use ipnet::Ipv4Net;
use parking_lot::Mutex;
use serde_json::{Value, json};

use crate::status::FieldError;

/// Kubernetes' default node port range.
const NODE_PORTS: std::ops::RangeInclusive<u16> = 30000..=32767;

#[derive(Default)]
struct Taken {
    addresses: HashSet<Ipv4Addr>,
    ports: HashSet<u16>,
}

/// What Services hold of the cluster's addresses and node ports.
pub(crate) struct Addresses {
    range: Ipv4Net,
    taken: Mutex<Taken>,
}

/// What one write took, to give back when the write fails.
#[derive(Debug, Default)]
pub(crate) struct Allocation {
    addresses: Vec<Ipv4Addr>,
    ports: Vec<u16>,
}

impl Addresses {
    pub(crate) fn new(range: Ipv4Net) -> Self {
        let addresses = Self { range, taken: Mutex::new(Taken::default()) };
        addresses.taken.lock().addresses.extend([addresses.nth(1), addresses.nth(10)]);
        addresses
    }

    /// The `n`th address of the range.
    pub(crate) fn nth(&self, n: u32) -> Ipv4Addr {
        Ipv4Addr::from(u32::from(self.range.network()).saturating_add(n))
    }

    /// Notes what a stored Service holds.
    pub(crate) fn note(&self, service: &Value) {
        let mut taken = self.taken.lock();
        taken.addresses.extend(address(service));
        taken.ports.extend(ports(service));
    }

    /// Gives back what a deleted Service held (the first and tenth address stay reserved).
    pub(crate) fn release(&self, service: &Value) {
        let mut taken = self.taken.lock();
        if let Some(address) = address(service).filter(|a| *a != self.nth(1) && *a != self.nth(10)) {
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

    /// Fills in the address and ports of a Service; `old` is its stored state, if any.
    pub(crate) fn assign(&self, old: Option<&Value>, service: &mut Value) -> Result<Allocation, FieldError> {
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
        if service["spec"]["clusterIP"].as_str().unwrap_or_default().is_empty() {
            // An update that leaves it out keeps it.
            if let Some(kept) =
                old.and_then(|old| old["spec"]["clusterIP"].as_str()).filter(|ip| !ip.is_empty())
            {
                service["spec"]["clusterIP"] = json!(kept);
            }
        }
        let mut taken = self.taken.lock();
        let wanted = service["spec"]["clusterIP"].as_str().unwrap_or_default().to_owned();
        let result = self.assign_address(&mut taken, old, &wanted, &mut allocation).and_then(|address| {
            service["spec"]["clusterIP"] = json!(address);
            service["spec"]["clusterIPs"] = json!([address]);
            crate::defaults::set(&mut service["spec"], "ipFamilies", json!(["IPv4"]));
            crate::defaults::set(&mut service["spec"], "ipFamilyPolicy", json!("SingleStack"));
            assign_ports(&mut taken, old, service, &kind, &mut allocation)
        });
        drop(taken);
        match result {
            Ok(()) => Ok(allocation),
            Err(error) => {
                self.give_back(&allocation);
                Err(error)
            }
        }
    }

    fn assign_address(
        &self,
        taken: &mut Taken,
        old: Option<&Value>,
        wanted: &str,
        allocation: &mut Allocation,
    ) -> Result<String, FieldError> {
        let held = old.and_then(|old| old["spec"]["clusterIP"].as_str()).unwrap_or_default();
        if wanted == "None" || (!wanted.is_empty() && wanted == held) {
            return Ok(wanted.to_owned());
        }
        let field = "spec.clusterIPs";
        if wanted.is_empty() {
            let address = self.free_address(&taken.addresses).ok_or_else(|| {
                FieldError::invalid(field, &json!([]), "failed to allocate IP: range is full")
            })?;
            taken.addresses.insert(address);
            allocation.addresses.push(address);
            return Ok(address.to_string());
        }
        let refused = |why: &str| {
            let why = format!("failed to allocate IP {wanted}: {why}");
            FieldError::invalid(field, &json!([wanted]), &why)
        };
        let address: Ipv4Addr = wanted
            .parse()
            .map_err(|_| FieldError::invalid(field, &json!([wanted]), "must be a valid IPv4 address"))?;
        if !self.range.contains(&address) {
            return Err(refused(&format!(
                "the provided IP ({wanted}) is not in the valid range. The range of valid IPs is {}",
                self.range
            )));
        }
        // The tenth is kept for whoever names it (cluster DNS).
        if !taken.addresses.insert(address) && address != self.nth(10) {
            return Err(refused("provided IP is already allocated"));
        }
        allocation.addresses.push(address);
        Ok(wanted.to_owned())
    }

    fn free_address(&self, taken: &HashSet<Ipv4Addr>) -> Option<Ipv4Addr> {
        let hosts = 1_u32
            .checked_shl(32 - u32::from(self.range.prefix_len()))
            .map_or(u32::MAX - 2, |n| n.saturating_sub(2));
        let start = fastrand::u32(0..hosts.max(1));
        // The lower part is left to addresses asked for by name, as Kubernetes does, until the rest is full.
        (0..hosts)
            .map(|step| self.nth(1 + (start + step) % hosts.max(1)))
            .find(|address| !taken.contains(address))
    }
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

fn address(service: &Value) -> Option<Ipv4Addr> {
    service["spec"]["clusterIP"].as_str()?.parse().ok()
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
        let addresses = Addresses::new("10.96.0.0/28".parse().unwrap());
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
        let addresses = Addresses::new("10.96.0.0/16".parse().unwrap());
        let mut old = service(json!({"type": "NodePort", "ports": [{"port": 80, "protocol": "TCP"}]}));
        addresses.assign(None, &mut old).unwrap();
        let mut new = service(json!({"type": "NodePort", "ports": [{"port": 80, "protocol": "TCP"}]}));
        addresses.assign(Some(&old), &mut new).unwrap();
        assert_eq!(old["spec"], new["spec"]);
        let port = old["spec"]["ports"][0]["nodePort"].as_u64().unwrap();
        let mut other = service(json!({"type": "NodePort", "ports": [{"port": 81, "nodePort": port}]}));
        assert!(addresses.assign(None, &mut other).is_err());
    }
}
