//! Validation of locality load balancing, of DestinationRules and of the mesh, with Istio's words.
use super::Findings;
use crate::networking::load_balancing::LocalityLbSettings;

/// Labels that `failover` goes by already.
const PLACES: [&str; 3] =
    ["topology.kubernetes.io/region", "topology.kubernetes.io/zone", "topology.istio.io/subzone"];

/// Checks a setting; `ejects` says whether its hosts are found to be missing.
pub(crate) fn check_locality(
    findings: &mut Findings,
    path: &str,
    setting: &LocalityLbSettings,
    ejects: bool,
) {
    let failover = !setting.failover.is_empty();
    if failover && !setting.distribute.is_empty() {
        findings.error(path, "can not simultaneously specify 'distribute' and 'failover'");
        return;
    }
    if let Some(label) = setting.failover_priority.iter().find(|label| PLACES.contains(&label.as_str()))
        && failover
    {
        let words = format!(
            "can not simultaneously set 'failover' and topology label '{label}' in 'failover_priority'"
        );
        findings.error(path, words);
        return;
    }
    for (index, distribute) in setting.distribute.iter().enumerate() {
        let path = format!("{path}.distribute[{index}]");
        if distribute.to.values().any(|weight| !(1..=100).contains(weight)) {
            findings.error(path, "locality weight must be in range [1, 100]");
            return;
        }
        let total: u64 = distribute.to.values().map(|&weight| u64::from(weight)).sum();
        if total != 100 {
            findings.error(path, format!("total locality weight {total} != 100"));
            return;
        }
        check_places(findings, &path, distribute.to.keys());
    }
    check_places(findings, path, setting.distribute.iter().map(|distribute| &distribute.from));
    if (failover || !setting.failover_priority.is_empty()) && !ejects {
        findings.warn(path, "outlier detection policy must be provided for failover");
    }
    for (index, rule) in setting.failover.iter().enumerate() {
        let path = format!("{path}.failover[{index}]");
        if rule.from == rule.to {
            findings.error(&path, "locality lb failover settings must specify different regions");
        }
        let either = |c: char| rule.from.contains(c) || rule.to.contains(c);
        if either('/') {
            findings.error(&path, "locality lb failover only specify region");
        }
        if either('*') {
            findings.error(&path, "locality lb failover region should not contain '*' wildcard");
        }
    }
}

/// Places of which none may lie in another; only the first that is wrong is told.
fn check_places<'a>(findings: &mut Findings, path: &str, places: impl Iterator<Item = &'a String>) {
    let mut seen: Vec<[&str; 3]> = Vec::new();
    for place in places {
        let stars = place.matches('*').count();
        if stars > 1 || (stars == 1 && !place.ends_with('*')) {
            let words =
                format!("locality {place} wildcard '*' number can not exceed 1 and must be in the end");
            findings.error(path, words);
            return;
        }
        let parts: Vec<&str> = place.splitn(3, '/').collect();
        if parts.contains(&"") {
            findings.error(path, format!("locality {place} must not contain empty region/zone/subzone info"));
            return;
        }
        let part = |index: usize| parts.get(index).copied();
        // A wildcard covers what comes after it; one that comes last takes what is left.
        let covered = |[region, zone, subzone]: &[&str; 3]| {
            let within = |one: &str, index| one == "*" || part(index).is_none_or(|part| part == one);
            *region == "*" || (part(0) == Some(region) && within(zone, 1) && within(subzone, 2))
        };
        if seen.iter().any(covered) {
            findings.error(path, format!("locality {place} overlap with previous specified ones"));
            return;
        }
        seen.push([0, 1, 2].map(|index| part(index).unwrap_or("*")));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn said(setting: Value) -> (Vec<String>, Vec<String>) {
        let mut findings = Findings::default();
        check_locality(&mut findings, "l", &serde_json::from_value(setting).unwrap(), false);
        let words = |list: &[crate::validate::Finding]| list.iter().map(ToString::to_string).collect();
        (words(&findings.errors), words(&findings.warnings))
    }

    #[test]
    fn istios_words() {
        let to = |to: Value| json!({ "distribute": [{ "from": "r1", "to": to }] });
        let from = |from: &[&str]| {
            let all: Vec<Value> =
                from.iter().map(|from| json!({ "from": from, "to": { "r9": 100 } })).collect();
            json!({ "distribute": all })
        };
        let over = |from: &str, to: &str| json!({ "failover": [{ "from": from, "to": to }] });
        let region = "topology.kubernetes.io/region";
        for (setting, words) in [
            (
                json!({ "distribute": [{ "from": "a", "to": { "b": 100 } }], "failover": [{ "from": "a", "to": "b" }] }),
                "l: can not simultaneously specify 'distribute' and 'failover'",
            ),
            (
                json!({ "failover": [{ "from": "a", "to": "b" }], "failoverPriority": ["version", region] }),
                "l: can not simultaneously set 'failover' and topology label 'topology.kubernetes.io/region' in 'failover_priority'",
            ),
            (to(json!({ "r1": 100, "r2": 0 })), "l.distribute[0]: locality weight must be in range [1, 100]"),
            (to(json!({ "r1": 101 })), "l.distribute[0]: locality weight must be in range [1, 100]"),
            (to(json!({ "r1": 1, "r2": 98 })), "l.distribute[0]: total locality weight 99 != 100"),
            (
                to(json!({ "r1/z1": 50, "r1/*": 50 })),
                "l.distribute[0]: locality r1/z1 overlap with previous specified ones",
            ),
            (from(&["r1", "r1/z1"]), "l: locality r1/z1 overlap with previous specified ones"),
            (from(&["r1/z1/s1", "r1/z1"]), "l: locality r1/z1 overlap with previous specified ones"),
            (from(&["r1/*", "r1/z1"]), "l: locality r1/z1 overlap with previous specified ones"),
            (from(&["*", "r1"]), "l: locality r1 overlap with previous specified ones"),
            (
                from(&["r*/z1"]),
                "l: locality r*/z1 wildcard '*' number can not exceed 1 and must be in the end",
            ),
            (from(&["*/*"]), "l: locality */* wildcard '*' number can not exceed 1 and must be in the end"),
            (from(&["r1//s1"]), "l: locality r1//s1 must not contain empty region/zone/subzone info"),
            (over("a", "a"), "l.failover[0]: locality lb failover settings must specify different regions"),
            (over("a", "b/z"), "l.failover[0]: locality lb failover only specify region"),
            (over("*", "b"), "l.failover[0]: locality lb failover region should not contain '*' wildcard"),
        ] {
            assert_eq!(said(setting.clone()).0, [words], "{setting}");
        }
        let missing = ["l: outlier detection policy must be provided for failover".to_owned()];
        assert_eq!(said(over("a", "b")), (vec![], missing.to_vec()));
        assert_eq!(said(json!({ "failoverPriority": [region] })), (vec![], missing.to_vec()));
        for good in [
            json!({}),
            to(json!({ "r1": 100 })),
            to(json!({ "r1/z1": 50, "r1/z2/*": 50 })),
            from(&["r1/z1/s1", "r1/z1/s2", "r1/z2", "r2"]),
            from(&["r1/z1", "r1/*", "*"]),
            json!({ "distribute": [{ "from": "a", "to": { "b": 100 } }], "enabled": true }),
        ] {
            assert_eq!(said(good.clone()), (vec![], vec![]), "{good}");
        }
    }
}
