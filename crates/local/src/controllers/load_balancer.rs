//! Services of type LoadBalancer get an address each, which they keep.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use ipnet::Ipv4Net;
use k8s_openapi::api::core::v1::{Service, ServiceStatus};
use serde_json::json;

use super::cache::Kind;
use super::meta::is_deleting;
use super::write::{Action, Write};

/// Looks at all Services at once, so that no address is given twice.
pub(crate) fn decide<'a>(services: impl IntoIterator<Item = &'a Service>, range: Ipv4Net) -> Vec<Write> {
    let services: Vec<&Service> = services.into_iter().collect();
    let mut taken: BTreeSet<Ipv4Addr> = services
        .iter()
        .filter(|service| wants_address(service))
        .filter_map(|service| address(service))
        .collect();
    let mut writes = Vec::new();
    for service in services {
        let current = address(service);
        if !wants_address(service) {
            if current.is_some() && !is_deleting(&service.metadata) {
                let patch = json!({"status": {"loadBalancer": {"ingress": null}}});
                writes.push(Write::new(Kind::Service, &service.metadata, Action::MergeStatus(patch)));
            }
            continue;
        }
        if current.is_some_and(|address| range.contains(&address)) || is_deleting(&service.metadata) {
            continue;
        }
        let asked = service.spec.as_ref().and_then(|spec| spec.load_balancer_ip.as_deref());
        let asked = asked.and_then(|text| text.parse().ok());
        let free = |address: &Ipv4Addr| range.contains(address) && !taken.contains(address);
        // Without a free address the Service stays pending, as with any provider that has none left.
        let Some(chosen) = asked.filter(free).or_else(|| range.hosts().find(free)) else { continue };
        taken.insert(chosen);
        let status = ServiceStatus {
            load_balancer: serde_json::from_value(json!({"ingress": [{"ip": chosen, "ipMode": "VIP"}]})).ok(),
            ..ServiceStatus::default()
        };
        let patch = json!({"status": status});
        writes.push(Write::new(Kind::Service, &service.metadata, Action::MergeStatus(patch)));
    }
    writes
}

fn wants_address(service: &Service) -> bool {
    service.spec.as_ref().is_some_and(|spec| {
        spec.type_.as_deref() == Some("LoadBalancer")
            && spec.load_balancer_class.as_ref().is_none_or(String::is_empty)
    })
}

fn address(service: &Service) -> Option<Ipv4Addr> {
    let ingress = service.status.as_ref()?.load_balancer.as_ref()?.ingress.as_ref()?;
    ingress.first()?.ip.as_ref()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;

    fn service(name: &str, kind: &str, has: Option<&str>, asks: Option<&str>) -> Service {
        let status = has.map(|ip| json!({"loadBalancer": {"ingress": [{"ip": ip}]}}));
        serde_json::from_value(json!({
            "metadata": {"name": name, "namespace": "shop"},
            "spec": {"type": kind, "loadBalancerIP": asks}, "status": status,
        }))
        .unwrap()
    }

    fn given(services: &[Service]) -> Vec<(String, Value)> {
        let writes = decide(services, "10.97.0.0/29".parse().unwrap());
        let ip = |write: Write| match write.action {
            Action::MergeStatus(patch) => {
                (write.name, patch["status"]["loadBalancer"]["ingress"][0]["ip"].clone())
            }
            other => panic!("{other:?}"),
        };
        writes.into_iter().map(ip).collect()
    }

    #[test]
    fn addresses() {
        let services = [
            service("kept", "LoadBalancer", Some("10.97.0.1"), None),
            service("first", "LoadBalancer", None, None),
            service("second", "LoadBalancer", None, None),
            service("asks", "LoadBalancer", None, Some("10.97.0.5")),
            service("asks-taken", "LoadBalancer", None, Some("10.97.0.1")),
            service("plain", "ClusterIP", None, None),
            service("was", "ClusterIP", Some("10.97.0.6"), None),
            service("moved", "LoadBalancer", Some("192.0.2.1"), None),
            service("too-late", "LoadBalancer", None, None),
        ];
        let expected = [
            ("first", json!("10.97.0.2")),
            ("second", json!("10.97.0.3")),
            ("asks", json!("10.97.0.5")),
            ("asks-taken", json!("10.97.0.4")),
            ("was", Value::Null),
            ("moved", json!("10.97.0.6")),
        ];
        let expected: Vec<_> = expected.into_iter().map(|(name, ip)| (name.to_owned(), ip)).collect();
        assert_eq!(given(&services), expected);
    }
}
