//! What is decided about the WorkloadEntries of machines, without I/O.
//! Names and annotations are Istio's (`pilot/pkg/autoregistration`).
use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use lateen_api::networking::workload_entry::{HEALTH_CHECKS, HEALTHY};
use lateen_api::object::Condition;
use lateen_api::{Kind, WorkloadEntry, WorkloadEntrySpec, WorkloadGroup, WorkloadGroupSpec};
use lateen_translate::Proxy;
use lateen_xds::pb::envoy::config::core::v3::Node;
use serde_json::{Value, json};

use crate::authenticate::Caller;

/// The WorkloadGroup that an entry was made from.
pub(super) const GROUP: &str = "istio.io/autoRegistrationGroup";
/// The control plane that its machine is, or was last, connected to.
pub(super) const CONTROLLER: &str = "istio.io/workloadController";
/// Since when it is connected.
pub(super) const CONNECTED: &str = "istio.io/connectedAt";
/// Since when it is not.
pub(super) const DISCONNECTED: &str = "istio.io/disconnectedAt";

/// Longest name of an object in Kubernetes.
const LONGEST_NAME: usize = 253;

/// A machine as it introduces itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Machine {
    /// The WorkloadGroup it belongs to (metadata `AUTO_REGISTER_GROUP`); none: its entry was made by hand.
    group: Option<String>,
    /// The name of its entry.
    pub(super) entry: String,
    pub(super) namespace: String,
    address: String,
    /// Metadata `NETWORK`.
    network: String,
    labels: BTreeMap<String, String>,
    locality: String,
    /// Whether its agent looks after its application's health (`readinessProbe` of its ProxyConfig).
    probed: bool,
}

impl Machine {
    /// The machine that a proxy stands beside; none for pods' proxies.
    pub(crate) fn of(proxy: &Proxy, node: &Node, metadata: &Value) -> Option<Self> {
        let text = |key: &str| metadata[key].as_str().filter(|text| !text.is_empty()).map(str::to_owned);
        let group = text("AUTO_REGISTER_GROUP");
        let network = text("NETWORK").unwrap_or_default();
        let address = proxy.workload.addresses.first()?.to_string();
        let entry = match &group {
            Some(group) => entry_name(group, &address, &network),
            None => text("WORKLOAD_ENTRY")?,
        };
        let locality = node.locality.clone().unwrap_or_default();
        let parts = [&locality.region, &locality.zone, &locality.sub_zone];
        let parts: Vec<&str> =
            parts.into_iter().map(String::as_str).take_while(|part| !part.is_empty()).collect();
        Some(Self {
            group,
            entry,
            namespace: proxy.workload.namespace.to_string(),
            address,
            network,
            labels: (*proxy.workload.labels).clone(),
            locality: parts.join("/"),
            probed: metadata["PROXY_CONFIG"]["readinessProbe"].is_object(),
        })
    }

    /// The group it belongs to.
    pub(super) fn group(&self) -> Option<&str> {
        self.group.as_deref()
    }

    /// The entry to make. Labels of the machine go before those of the group, and those before the template's.
    ///
    /// # Errors
    /// When the group has no template.
    pub(super) fn new_entry(
        &self,
        group: &WorkloadGroup,
        controller: &str,
        now: Timestamp,
    ) -> Result<WorkloadEntry, String> {
        let mut spec: WorkloadEntrySpec = group.spec.template.clone().ok_or("it has no template")?;
        let of_group = group.spec.metadata.clone().unwrap_or_default();
        spec.address.clone_from(&self.address);
        spec.labels.extend(of_group.labels);
        spec.labels.extend(self.labels.clone());
        if !self.network.is_empty() {
            spec.network.clone_from(&self.network);
        }
        if !self.locality.is_empty() {
            spec.locality.clone_from(&self.locality);
        }
        let name = group.metadata.name.clone().unwrap_or_default();
        let mut annotations = of_group.annotations;
        annotations.extend([
            (GROUP.to_owned(), name.clone()),
            (CONTROLLER.to_owned(), controller.to_owned()),
            (CONNECTED.to_owned(), now.to_string()),
        ]);
        if self.probed {
            annotations.insert(HEALTH_CHECKS.to_owned(), "true".to_owned());
        }
        let owner = OwnerReference {
            api_version: format!("{}/{}", WorkloadGroupSpec::GROUP, WorkloadGroupSpec::VERSIONS[0]),
            kind: WorkloadGroupSpec::KIND.to_owned(),
            name,
            uid: group.metadata.uid.clone().unwrap_or_default(),
            controller: Some(true),
            ..OwnerReference::default()
        };
        let metadata = ObjectMeta {
            name: Some(self.entry.clone()),
            namespace: Some(self.namespace.clone()),
            labels: Some(spec.labels.clone()),
            annotations: Some(annotations),
            owner_references: Some(vec![owner]),
            ..ObjectMeta::default()
        };
        Ok(WorkloadEntry { metadata, spec, status: None })
    }
}

/// `GROUP-IP[-NETWORK]`; of one that is too long, its end.
fn entry_name(group: &str, address: &str, network: &str) -> String {
    let mut name = format!("{group}-{}", address.replace(':', "-"));
    if !network.is_empty() {
        name = format!("{name}-{network}");
    }
    let excess = name.len().saturating_sub(LONGEST_NAME);
    let start = (excess..name.len()).find(|&at| name.is_char_boundary(at)).unwrap_or(0);
    name.split_off(start)
}

/// Whether a caller is who an entry is for: it has proven to be of its namespace and service account.
pub(super) fn may_have(caller: Option<&Caller>, entry: &WorkloadEntry) -> Result<(), String> {
    let caller = caller.ok_or("registration of WorkloadEntry requires a verified identity")?;
    let namespace = entry.metadata.namespace.as_deref().unwrap_or_default();
    if caller.namespace != namespace {
        return Err(format!(
            "registration of WorkloadEntry namespace mismatch: {:?} vs {namespace:?}",
            caller.namespace
        ));
    }
    let account = &entry.spec.service_account;
    if !account.is_empty() && caller.service_account != *account {
        return Err(format!(
            "registration of WorkloadEntry service account mismatch: {:?} vs {account:?}",
            caller.service_account
        ));
    }
    Ok(())
}

fn annotation<'a>(entry: &'a WorkloadEntry, name: &str) -> Option<&'a str> {
    entry.metadata.annotations.as_ref()?.get(name).map(String::as_str).filter(|text| !text.is_empty())
}

fn time(entry: &WorkloadEntry, name: &str) -> Option<Timestamp> {
    annotation(entry, name)?.parse().ok()
}

/// The merge patch that says that the machine is connected to this control plane.
pub(super) fn connected(controller: &str, now: Timestamp) -> Value {
    json!({ "metadata": { "annotations": {
        CONTROLLER: controller, CONNECTED: now.to_string(), DISCONNECTED: null
    } } })
}

/// The merge patch that says that the machine's last stream, opened at `since`, has ended; none when the entry is not ours to say
/// it of: the machine has come back, to us or to another.
pub(super) fn disconnected(
    entry: &WorkloadEntry,
    controller: &str,
    since: Timestamp,
    now: Timestamp,
) -> Option<Value> {
    if annotation(entry, CONTROLLER) != Some(controller)
        || time(entry, CONNECTED).is_some_and(|at| at > since)
    {
        return None;
    }
    Some(json!({ "metadata": {
        "resourceVersion": entry.metadata.resource_version,
        "annotations": { CONNECTED: null, DISCONNECTED: now.to_string() }
    } }))
}

/// What becomes of the entry of a machine that does not come back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Leftover {
    /// It was made for the machine, and goes.
    Entry,
    /// It was made by hand: only what is said of the machine's health goes.
    Health,
}

/// What is to be cleaned up should the machine be away; none for entries that no machine controls.
pub(super) fn leftover(entry: &WorkloadEntry) -> Option<Leftover> {
    if annotation(entry, GROUP).is_some() {
        return Some(Leftover::Entry);
    }
    let conditions = entry.status.iter().flat_map(|status| &status.conditions);
    let judged = conditions.into_iter().any(|condition| condition.r#type == HEALTHY);
    (annotation(entry, CONTROLLER).is_some() && judged).then_some(Leftover::Health)
}

/// Where the machine of an entry is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Whereabouts {
    /// Connected to this control plane, by what the entry says.
    With(String),
    /// Away for longer than it may be.
    Gone,
    /// Away, and may come back.
    Away,
}

/// Where the machine of an entry is, at `now`.
pub(super) fn whereabouts(entry: &WorkloadEntry, grace: Duration, now: Timestamp) -> Whereabouts {
    if annotation(entry, CONNECTED).is_some() {
        return Whereabouts::With(annotation(entry, CONTROLLER).unwrap_or_default().to_owned());
    }
    match time(entry, DISCONNECTED) {
        None => Whereabouts::Away,
        Some(since) => {
            let away = Duration::try_from(now.duration_since(since)).unwrap_or_default();
            if away >= grace { Whereabouts::Gone } else { Whereabouts::Away }
        }
    }
}

/// Whether the health of its machine is looked after, whether or not it counts.
pub(super) fn is_probed(entry: &WorkloadEntry) -> bool {
    annotation(entry, HEALTH_CHECKS).is_some()
}

/// Whether the entry says that its machine is connected to this control plane.
pub(super) fn is_with(entry: &WorkloadEntry, controller: &str) -> bool {
    annotation(entry, CONTROLLER) == Some(controller)
}

/// The conditions of an entry with a new judgement about its machine; `None` takes the judgement away. Those of others stay.
pub(super) fn conditions_with(entry: &WorkloadEntry, healthy: Option<Condition>) -> Vec<Condition> {
    let old = entry.status.iter().flat_map(|status| &status.conditions);
    let mut conditions: Vec<Condition> =
        old.filter(|condition| condition.r#type != HEALTHY).cloned().chain(healthy).collect();
    conditions.sort_by(|a, b| a.r#type.cmp(&b.r#type));
    conditions
}

/// The condition `Healthy`. An agent tells of changes only, so that it was asked and changed at once.
pub(super) fn judgement(problem: Option<&str>, now: Timestamp) -> Condition {
    let now = Some(now.to_string());
    Condition {
        r#type: HEALTHY.to_owned(),
        status: if problem.is_none() { "True" } else { "False" }.to_owned(),
        last_probe_time: now.clone(),
        last_transition_time: now,
        message: problem.unwrap_or_default().to_owned(),
        ..Condition::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn machine(metadata: Value) -> Option<Machine> {
        let id = "sidecar~10.9.9.9~vm-1.vms~vms.svc.cluster.local";
        Machine::of(&Proxy::parse(id, &metadata).unwrap(), &Node::default(), &metadata)
    }

    fn group(spec: Value) -> WorkloadGroup {
        let object = json!({"metadata": {"name": "shop", "namespace": "vms", "uid": "u"}, "spec": spec});
        serde_json::from_value(object).unwrap()
    }

    fn now() -> Timestamp {
        "2026-01-02T03:04:05.000000006Z".parse().unwrap()
    }

    #[test]
    fn entries_are_made_of_group_and_machine() {
        let of_group = group(json!({
            "metadata": {"labels": {"app": "shop", "tier": "b"}, "annotations": {"a": "b", GROUP: "forged"}},
            "template": {"serviceAccount": "vm", "ports": {"http": 8080}, "labels": {"app": "t", "from": "template"}, "network": "n0"}
        }));
        let machine =
            machine(json!({"AUTO_REGISTER_GROUP": "shop", "NETWORK": "n1", "LABELS": {"tier": "c"},
            "PROXY_CONFIG": {"readinessProbe": {"tcpSocket": {"port": 1}}}}))
            .unwrap();
        let entry = machine.new_entry(&of_group, "istiod-1", now()).unwrap();
        assert_eq!(entry.metadata.name.as_deref(), Some("shop-10.9.9.9-n1"));
        let labels = json!({"app": "shop", "from": "template", "tier": "c"});
        assert_eq!(json!(entry.spec.labels), labels);
        assert_eq!(json!(entry.metadata.labels), labels);
        assert_eq!(
            json!(entry.metadata.annotations),
            json!({"a": "b", GROUP: "shop", CONTROLLER: "istiod-1", HEALTH_CHECKS: "true",
                CONNECTED: "2026-01-02T03:04:05.000000006Z"})
        );
        assert_eq!((entry.spec.address.as_str(), entry.spec.network.as_str()), ("10.9.9.9", "n1"));
        assert_eq!((entry.spec.service_account.as_str(), entry.spec.ports["http"]), ("vm", 8080));
        let owner = &entry.metadata.owner_references.unwrap()[0];
        assert_eq!((owner.kind.as_str(), owner.uid.as_str()), ("WorkloadGroup", "u"));
        assert!(machine.new_entry(&group(json!({})), "x", now()).unwrap_err().contains("template"));
    }

    #[test]
    fn names_are_istios() {
        assert_eq!(entry_name("g", "10.0.0.1", ""), "g-10.0.0.1");
        assert_eq!(entry_name("g", "fd00::1", "n"), "g-fd00--1-n");
        let long = entry_name(&"g".repeat(300), "10.0.0.1", "");
        assert_eq!((long.len(), long.ends_with("gg-10.0.0.1")), (253, true));
        assert_eq!(machine(json!({})), None, "a pod's proxy");
        assert_eq!(machine(json!({"WORKLOAD_ENTRY": "by-hand"})).unwrap().entry, "by-hand");
    }

    #[test]
    fn only_who_an_entry_is_for_may_have_it() {
        let entry = |spec: Value| -> WorkloadEntry {
            serde_json::from_value(json!({"metadata": {"name": "e", "namespace": "vms"}, "spec": spec}))
                .unwrap()
        };
        let caller = |namespace: &str, account: &str| Caller {
            namespace: namespace.into(),
            service_account: account.into(),
            pod: None,
        };
        let of_vm = entry(json!({"serviceAccount": "vm"}));
        assert_eq!(may_have(Some(&caller("vms", "vm")), &of_vm), Ok(()));
        assert_eq!(may_have(Some(&caller("vms", "any")), &entry(json!({}))), Ok(()));
        for (caller, why) in [
            (None, "requires a verified identity"),
            (Some(caller("other", "vm")), "namespace mismatch: \"other\" vs \"vms\""),
            (Some(caller("vms", "other")), "service account mismatch: \"other\" vs \"vm\""),
        ] {
            let refused = may_have(caller.as_ref(), &of_vm).unwrap_err();
            assert!(refused.contains(why), "{refused}");
        }
    }

    #[test]
    fn an_end_counts_only_for_the_last_connection() {
        let entry = |annotations: Value| -> WorkloadEntry {
            serde_json::from_value(json!({"metadata": {"name": "e", "annotations": annotations}, "spec": {}}))
                .unwrap()
        };
        let later = now() + Duration::from_secs(1);
        let ours = entry(json!({CONTROLLER: "c", CONNECTED: now().to_string(), GROUP: "g"}));
        assert!(disconnected(&ours, "c", now(), later).is_some());
        assert!(disconnected(&ours, "other", now(), later).is_none());
        assert!(disconnected(&ours, "c", now() - Duration::from_secs(1), later).is_none(), "it is back");
        let grace = Duration::from_secs(10);
        assert_eq!(whereabouts(&ours, grace, later), Whereabouts::With("c".into()));
        let away = entry(json!({CONTROLLER: "c", DISCONNECTED: now().to_string(), GROUP: "g"}));
        assert_eq!(whereabouts(&away, grace, later), Whereabouts::Away);
        assert_eq!(whereabouts(&away, grace, now() + grace), Whereabouts::Gone);
        assert_eq!(leftover(&away), Some(Leftover::Entry));
        assert_eq!(leftover(&entry(json!({CONTROLLER: "c", DISCONNECTED: now().to_string()}))), None);
        assert_eq!(leftover(&entry(json!({}))), None, "nobody's");
    }

    #[test]
    fn what_others_said_of_an_entry_stays() {
        let entry = |annotations: Value, conditions: Value| -> WorkloadEntry {
            let object = json!({"metadata": {"name": "e", "annotations": annotations}, "spec": {}, "status": {"conditions": conditions}});
            serde_json::from_value(object).unwrap()
        };
        let condition = |kind: &str| json!({"type": kind, "status": "True"});
        let both = json!([condition("Reconciled"), condition(HEALTHY)]);
        let of_machine = json!({CONTROLLER: "c"});
        assert_eq!(leftover(&entry(of_machine.clone(), both.clone())), Some(Leftover::Health));
        assert_eq!(leftover(&entry(json!({}), both.clone())), None, "no machine of ours is behind it");
        let others = json!([condition("Reconciled")]);
        assert_eq!(leftover(&entry(of_machine.clone(), others)), None, "nobody judged it");
        let kinds = |healthy: Option<Condition>| -> Vec<(String, String)> {
            let all = conditions_with(&entry(of_machine.clone(), both.clone()), healthy);
            all.into_iter().map(|one| (one.r#type, one.status)).collect()
        };
        let pair = |kind: &str, status: &str| (kind.to_owned(), status.to_owned());
        assert_eq!(kinds(None), [pair("Reconciled", "True")]);
        assert_eq!(
            kinds(Some(judgement(Some("it hangs"), now()))),
            [pair(HEALTHY, "False"), pair("Reconciled", "True")]
        );
        assert_eq!(judgement(None, now()).status, "True");
        assert!(is_probed(&entry(json!({HEALTH_CHECKS: "true"}), json!([]))));
        assert!(
            !is_probed(&entry(json!({HEALTH_CHECKS: ""}), json!([])))
                && !is_probed(&entry(json!({}), json!([])))
        );
        let ours = entry(of_machine, json!([]));
        assert!(is_with(&ours, "c") && !is_with(&ours, "d") && !is_with(&entry(json!({}), json!([])), "c"));
    }
}
