//! The IP families of a Service: what its policy, families and cluster IPs become together (Kubernetes, "IPv4/IPv6 dual-stack").

use std::net::IpAddr;

use serde_json::{Value, json};

use crate::status::FieldError;

const POLICY: &str = "spec.ipFamilyPolicy";
const POLICIES: [&str; 3] = ["PreferDualStack", "RequireDualStack", "SingleStack"];
const FAMILIES: [&str; 2] = ["IPv4", "IPv6"];

/// The family of an address, as `ipFamilies` spells it.
pub(crate) fn family_of(address: IpAddr) -> &'static str {
    if address.is_ipv4() { FAMILIES[0] } else { FAMILIES[1] }
}

/// Fills in what a Service leaves out of `ipFamilyPolicy`, `ipFamilies` and `clusterIPs`, and checks what it says. Afterwards it has a
/// policy and as many families as it is to have addresses; of the addresses those that were asked for or held. `old` is its
/// stored state; `configured` the cluster's families, its own first.
pub(crate) fn settle(
    old: Option<&Value>,
    service: &mut Value,
    configured: &[&'static str],
) -> Result<(), Vec<FieldError>> {
    let old = old.map(|old| &old["spec"]).filter(|old| old["type"] != "ExternalName");
    let mut ips = cluster_ips(old, &service["spec"])?;
    let spec = &mut service["spec"];
    let mut families = strings(&spec["ipFamilies"]);
    if families.is_empty() {
        families = old.map(|old| strings(&old["ipFamilies"])).unwrap_or_default();
    }
    let headless = ips.first().is_some_and(|ip| ip == "None");
    let selects = spec["selector"].as_object().is_some_and(|selector| !selector.is_empty());
    let policy = policy(old, spec, headless && !selects);
    check_fields(&policy, &families, &ips)?;
    let mut errors = Vec::new();
    if let Some(old) = old {
        let (old_ips, old_families) = (strings(&old["clusterIPs"]), strings(&old["ipFamilies"]));
        if policy == "SingleStack" {
            // To ask for one where nothing else has changed is to let the second go.
            if ips == old_ips {
                ips.truncate(1);
            }
            if families == old_families {
                families.truncate(1);
            }
        } else {
            let mut reduced = |what: &str, new: usize, old: usize| {
                if new > 0 && new < old {
                    let why = format!("must be 'SingleStack' to release the secondary {what}");
                    errors.push(FieldError::invalid(POLICY, &json!(policy), &why));
                }
            };
            reduced("cluster IP", ips.len(), old_ips.len());
            reduced("IP family", families.len(), old_families.len());
        }
    }
    if policy == "SingleStack" {
        for (several, what) in [(ips.len() > 1, "cluster IPs"), (families.len() > 1, "IP families")] {
            if several {
                let why = format!(
                    "must be 'RequireDualStack' or 'PreferDualStack' when multiple {what} are specified"
                );
                errors.push(FieldError::invalid(POLICY, &json!(policy), &why));
            }
        }
    }
    if !headless {
        infer(&mut families, &ips, configured, &mut errors);
    }
    done(errors)?;
    // A headless Service without a selector may have families that the cluster lacks.
    let anything_goes = headless && !selects;
    if !anything_goes {
        done(unconfigured(&policy, &families, configured))?;
    }
    if families.is_empty() {
        families.push(configured[0].to_owned());
    }
    if policy != "SingleStack" && families.len() == 1 && (anything_goes || configured.len() > 1) {
        let other = if families[0] == FAMILIES[0] { FAMILIES[1] } else { FAMILIES[0] };
        families.push(other.to_owned());
    }
    spec["ipFamilyPolicy"] = json!(policy);
    spec["ipFamilies"] = json!(families);
    spec["clusterIPs"] = json!(ips);
    Ok(())
}

/// What may not change once it is there.
pub(crate) fn check_change(old: &Value, new: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    for field in ["clusterIPs", "ipFamilies"] {
        let (old, now) = (strings(&old["spec"][field]), strings(&new["spec"][field]));
        for (index, (old, now)) in old.iter().zip(&now).enumerate() {
            if old != now {
                let shown =
                    if field == "clusterIPs" { &new["spec"][field] } else { &new["spec"][field][index] };
                let at = format!("spec.{field}[{index}]");
                errors.push(FieldError::invalid(at, shown, "may not change once set"));
            }
        }
    }
    errors
}

fn done(errors: Vec<FieldError>) -> Result<(), Vec<FieldError>> {
    if errors.is_empty() { Ok(()) } else { Err(errors) }
}

fn strings(value: &Value) -> Vec<String> {
    value.as_array().into_iter().flatten().filter_map(|one| one.as_str().map(str::to_owned)).collect()
}

/// The cluster IPs asked for or held: `clusterIP` and `clusterIPs` say the same in two ways, and what an update leaves out it keeps.
fn cluster_ips(old: Option<&Value>, spec: &Value) -> Result<Vec<String>, Vec<FieldError>> {
    let first = spec["clusterIP"].as_str().unwrap_or_default();
    let mut ips = strings(&spec["clusterIPs"]);
    if let Some(old) = old {
        let (held, held_first) = (strings(&old["clusterIPs"]), old["clusterIP"].as_str().unwrap_or_default());
        let unsaid = |ip: &str| ip.is_empty() || ip == held_first;
        if ips.is_empty() && unsaid(first) {
            return Ok(held);
        }
        // Only one of the two was changed.
        if ips == held && !unsaid(first) {
            return Ok(vec![first.to_owned()]);
        }
        if !ips.is_empty() && unsaid(first) {
            return Ok(ips);
        }
    }
    if ips.is_empty() && !first.is_empty() {
        ips.push(first.to_owned());
    }
    match ips.first() {
        Some(ip) if !first.is_empty() && ip != first => {
            let shown = json!(ips);
            Err(vec![FieldError::invalid("spec.clusterIPs", &shown, "first value must match `clusterIP`")])
        }
        _ => Ok(ips),
    }
}

fn policy(old: Option<&Value>, spec: &Value, anything_goes: bool) -> String {
    let said = |spec: &Value| spec["ipFamilyPolicy"].as_str().map(str::to_owned);
    let unsaid = if anything_goes { "RequireDualStack" } else { "SingleStack" };
    said(spec).or_else(|| old.and_then(said)).unwrap_or_else(|| unsaid.to_owned())
}

/// What each field must be by itself, and cluster IPs beside families.
fn check_fields(policy: &str, families: &[String], ips: &[String]) -> Result<(), Vec<FieldError>> {
    let mut errors = Vec::new();
    if !POLICIES.contains(&policy) {
        errors.push(FieldError::not_supported(POLICY, &json!(policy), &POLICIES));
    }
    for (index, family) in families.iter().enumerate() {
        let at = format!("spec.ipFamilies[{index}]");
        if !FAMILIES.contains(&family.as_str()) {
            errors.push(FieldError::not_supported(at, &json!(family), &FAMILIES));
        } else if families[..index].contains(family) {
            errors.push(FieldError::duplicate(at, &json!(family)));
        }
    }
    let at = "spec.clusterIPs";
    if ips.len() > 1 && ips.iter().any(|ip| ip == "None") {
        let why = "'None' must be the first and only value";
        errors.push(FieldError::invalid(at, &json!(ips), why));
    } else if ips.len() > 2 {
        errors.push(FieldError::invalid(at, &json!(ips), "may only hold up to 2 values"));
    }
    done(errors)?;
    let mut errors = Vec::new();
    let mut seen: Vec<&str> = Vec::new();
    for (index, ip) in ips.iter().enumerate().filter(|(_, ip)| *ip != "None") {
        let at = format!("{at}[{index}]");
        let Ok(address) = ip.parse::<IpAddr>() else {
            let why = "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)";
            errors.push(FieldError::invalid(at, &json!(ip), why));
            continue;
        };
        let family = family_of(address);
        match families.get(index) {
            Some(wanted) if wanted != family => {
                let why = format!("expected an {wanted} value as indicated by `ipFamilies[{index}]`");
                errors.push(FieldError::invalid(at, &json!(ip), &why));
            }
            _ if seen.contains(&family) => {
                let why = "may specify no more than one IP for each IP family";
                errors.push(FieldError::invalid("spec.clusterIPs", &json!(ips), why));
            }
            _ => {}
        }
        seen.push(family);
    }
    done(errors)
}

/// Families follow from cluster IPs where they are not given.
fn infer(families: &mut Vec<String>, ips: &[String], configured: &[&str], errors: &mut Vec<FieldError>) {
    for (index, ip) in ips.iter().enumerate().skip(families.len()) {
        let Ok(address) = ip.parse() else { continue };
        let family = family_of(address);
        if configured.contains(&family) {
            families.push(family.to_owned());
        } else {
            let why = format!("{family} is not configured on this cluster");
            errors.push(FieldError::invalid(format!("spec.clusterIPs[{index}]"), &json!(ips), &why));
        }
    }
}

fn unconfigured(policy: &str, families: &[String], configured: &[&str]) -> Vec<FieldError> {
    let mut errors = Vec::new();
    if policy == "RequireDualStack" && configured.len() < 2 {
        let why = "this cluster is not configured for dual-stack services";
        errors.push(FieldError::invalid(POLICY, &json!(policy), why));
    }
    for (index, family) in families.iter().enumerate() {
        if !configured.contains(&family.as_str()) {
            let at = format!("spec.ipFamilies[{index}]");
            errors.push(FieldError::invalid(at, &json!(family), "not configured on this cluster"));
        }
    }
    errors
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOTH: &[&str] = &["IPv4", "IPv6"];
    const ONE: &[&str] = &["IPv4"];

    /// Policy, families and cluster IPs, or what is wrong.
    fn settled(old: Option<&Value>, spec: Value, configured: &[&'static str]) -> String {
        let mut service = json!({ "spec": spec });
        match settle(old, &mut service, configured) {
            Ok(()) => {
                let spec = &service["spec"];
                let list = |field: &str| strings(&spec[field]).join(",");
                format!(
                    "{} {} [{}]",
                    spec["ipFamilyPolicy"].as_str().unwrap(),
                    list("ipFamilies"),
                    list("clusterIPs")
                )
            }
            Err(errors) => {
                let errors: Vec<String> =
                    errors.iter().map(|error| format!("{}: {}", error.field, error.message)).collect();
                errors.join("; ")
            }
        }
    }

    #[test]
    fn what_new_services_get() {
        let cases = [
            (json!({}), BOTH, "SingleStack IPv4 []"),
            (json!({ "ipFamilies": ["IPv6"] }), BOTH, "SingleStack IPv6 []"),
            (json!({ "ipFamilyPolicy": "PreferDualStack" }), BOTH, "PreferDualStack IPv4,IPv6 []"),
            (json!({ "ipFamilyPolicy": "PreferDualStack" }), ONE, "PreferDualStack IPv4 []"),
            (
                json!({ "ipFamilyPolicy": "RequireDualStack", "ipFamilies": ["IPv6"] }),
                BOTH,
                "RequireDualStack IPv6,IPv4 []",
            ),
            (json!({ "clusterIP": "fd00::9" }), BOTH, "SingleStack IPv6 [fd00::9]"),
            (json!({ "clusterIP": "None", "selector": { "a": "b" } }), BOTH, "SingleStack IPv4 [None]"),
            (json!({ "clusterIP": "None" }), ONE, "RequireDualStack IPv4,IPv6 [None]"),
            (
                json!({ "ipFamilyPolicy": "PreferDualStack", "clusterIPs": ["fd00::9", "10.1.1.1"] }),
                BOTH,
                "PreferDualStack IPv6,IPv4 [fd00::9,10.1.1.1]",
            ),
        ];
        for (spec, configured, expected) in cases {
            assert_eq!(settled(None, spec.clone(), configured), expected, "{spec}");
        }
    }

    #[test]
    fn what_new_services_may_not_ask_for() {
        let cases = [
            (
                json!({ "ipFamilyPolicy": "RequireDualStack" }),
                ONE,
                "spec.ipFamilyPolicy: Invalid value: \"RequireDualStack\": this cluster is not configured for dual-stack services",
            ),
            (
                json!({ "ipFamilies": ["IPv6"] }),
                ONE,
                "spec.ipFamilies[0]: Invalid value: \"IPv6\": not configured on this cluster",
            ),
            (
                json!({ "clusterIP": "fd00::9" }),
                ONE,
                "spec.clusterIPs[0]: Invalid value: [\"fd00::9\"]: IPv6 is not configured on this cluster",
            ),
            (
                json!({ "ipFamilies": ["IPv4", "IPv6"] }),
                BOTH,
                "spec.ipFamilyPolicy: Invalid value: \"SingleStack\": must be 'RequireDualStack' or 'PreferDualStack' when multiple IP families are specified",
            ),
            (
                json!({ "ipFamilies": ["IPv6"], "clusterIP": "10.1.1.1" }),
                BOTH,
                "spec.clusterIPs[0]: Invalid value: \"10.1.1.1\": expected an IPv6 value as indicated by `ipFamilies[0]`",
            ),
            (
                json!({ "ipFamilyPolicy": "PreferDualStack", "clusterIPs": ["10.1.1.2", "10.1.1.1"] }),
                BOTH,
                "spec.clusterIPs: Invalid value: [\"10.1.1.2\",\"10.1.1.1\"]: may specify no more than one IP for each IP family",
            ),
            (
                json!({ "ipFamilies": ["IPv4", "IPv4"] }),
                BOTH,
                "spec.ipFamilies[1]: Duplicate value: \"IPv4\"",
            ),
            (
                json!({ "ipFamilyPolicy": "Both", "ipFamilies": ["IPX"] }),
                BOTH,
                "spec.ipFamilyPolicy: Unsupported value: \"Both\": supported values: \"PreferDualStack\", \"RequireDualStack\", \"SingleStack\"; spec.ipFamilies[0]: Unsupported value: \"IPX\": supported values: \"IPv4\", \"IPv6\"",
            ),
            (
                json!({ "clusterIP": "10.1.1.1", "clusterIPs": ["10.1.1.2"] }),
                BOTH,
                "spec.clusterIPs: Invalid value: [\"10.1.1.2\"]: first value must match `clusterIP`",
            ),
            (
                json!({ "clusterIP": "ten" }),
                BOTH,
                "spec.clusterIPs[0]: Invalid value: \"ten\": must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)",
            ),
        ];
        for (spec, configured, expected) in cases {
            assert_eq!(settled(None, spec.clone(), configured), expected, "{spec}");
        }
    }

    #[test]
    fn what_changes_do() {
        let single = json!({ "spec": { "type": "ClusterIP", "clusterIP": "10.1.1.1", "clusterIPs": ["10.1.1.1"],
            "ipFamilies": ["IPv4"], "ipFamilyPolicy": "SingleStack" } });
        let dual = json!({ "spec": { "type": "ClusterIP", "clusterIP": "10.1.1.1", "clusterIPs": ["10.1.1.1", "fd00::1"],
            "ipFamilies": ["IPv4", "IPv6"], "ipFamilyPolicy": "PreferDualStack" } });
        let with = |old: &Value, change: Value| {
            let mut spec = old["spec"].clone();
            for (key, value) in change.as_object().unwrap() {
                spec[key] = value.clone();
            }
            spec
        };
        let cases = [
            (&single, json!({}), "SingleStack IPv4 [10.1.1.1]"),
            (
                &single,
                with(&single, json!({ "ipFamilyPolicy": "PreferDualStack" })),
                "PreferDualStack IPv4,IPv6 [10.1.1.1]",
            ),
            (&dual, json!({}), "PreferDualStack IPv4,IPv6 [10.1.1.1,fd00::1]"),
            (&dual, with(&dual, json!({ "ipFamilyPolicy": "SingleStack" })), "SingleStack IPv4 [10.1.1.1]"),
            (
                &dual,
                with(&dual, json!({ "clusterIPs": ["10.1.1.1"] })),
                "spec.ipFamilyPolicy: Invalid value: \"PreferDualStack\": must be 'SingleStack' to release the secondary cluster IP",
            ),
        ];
        for (old, spec, expected) in cases {
            assert_eq!(settled(Some(old), spec.clone(), BOTH), expected, "{spec}");
        }
        let swapped =
            json!({ "spec": { "clusterIPs": ["10.1.1.2", "fd00::1"], "ipFamilies": ["IPv6", "IPv4"] } });
        let errors = check_change(&dual, &swapped);
        let fields: Vec<&str> = errors.iter().map(|error| &*error.field).collect();
        assert_eq!(fields, ["spec.clusterIPs[0]", "spec.ipFamilies[0]", "spec.ipFamilies[1]"]);
        assert!(errors[0].message.ends_with("may not change once set"));
        assert!(check_change(&dual, &single).is_empty(), "a second one may go");
    }
}
