//! What the control plane says about configuration objects, in their status: whether it took them over, and what their
//! author should know. Written only when it changes.
use std::collections::BTreeMap;
use std::time::Duration;

use futures::{StreamExt as _, stream};
use kube::api::{Patch, PatchParams};
use kube::{Api, Client};
use lateen_api::object::{Condition, HostAddress, MessageType, ValidationMessage};
use lateen_api::{
    AuthorizationPolicySpec, DestinationRuleSpec, GatewaySpec, Kind, Object, PeerAuthenticationSpec,
    RequestAuthenticationSpec, ServiceEntrySpec, SidecarSpec, Status, VirtualServiceSpec, WorkloadEntrySpec,
    WorkloadGroupSpec,
};
use lateen_model::{Config, ObjectName, ServiceEntry, World};
use lateen_translate::{
    Warning, check_authorization_policy, check_destination_rule, check_gateway, check_peer_authentication,
    check_request_authentication, check_service_entry, check_sidecar, check_virtual_service,
    check_workload_entry,
};
use serde_json::json;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::push::Published;
use crate::refused::{Key, Refusal, Refused};

/// Writes at a time.
const WRITERS: usize = 4;
/// Pause before what failed is tried again.
const RETRY: Duration = Duration::from_secs(2);
const RECONCILED: &str = "Reconciled";

/// One object's status, wanted.
#[derive(Clone, Debug, PartialEq)]
struct Wanted {
    generation: i64,
    /// Why this generation is not used.
    refused: Option<String>,
    warnings: Vec<Warning>,
    /// Automatic addresses of a ServiceEntry's hosts.
    addresses: Vec<HostAddress>,
}

/// Follows the world and writes until told to stop.
pub(crate) async fn run(
    client: Client,
    mut published: watch::Receiver<Published>,
    refused: Refused,
    stop: CancellationToken,
) {
    let mut refused = refused.subscribe();
    let mut written: BTreeMap<Key, Wanted> = BTreeMap::new();
    let mut seen = None;
    loop {
        let now = published.borrow_and_update().clone();
        let refusals = refused.borrow_and_update().clone();
        let mut failed = false;
        let current = (now.config_version, refusals);
        if now.complete && seen.as_ref() != Some(&current) {
            // All objects are looked at, which in a big mesh is no work for a thread that others wait for.
            let (world, refusals) = (now.world.clone(), current.1.clone());
            seen = Some(current);
            let wanted = match tokio::task::spawn_blocking(move || wanted(&world, &refusals)).await {
                Ok(wanted) => wanted,
                Err(error) => {
                    tracing::error!(
                        "cannot say what the status of objects should be: {error}; the next change tries again"
                    );
                    written.clone()
                }
            };
            written.retain(|key, _| wanted.contains_key(key));
            let changed: Vec<_> =
                wanted.into_iter().filter(|(key, wanted)| written.get(key) != Some(wanted)).collect();
            let mut writes = stream::iter(changed)
                .map(|(key, wanted)| {
                    let client = &client;
                    async move { (write(client, &key, &wanted).await, key, wanted) }
                })
                .buffer_unordered(WRITERS);
            while let Some((result, key, wanted)) = writes.next().await {
                match result {
                    Ok(()) => {
                        written.insert(key, wanted);
                    }
                    Err(error) => {
                        failed = true;
                        tracing::warn!(
                            "cannot write the status of {} {}: {error}; trying again",
                            key.kind,
                            key.name
                        );
                    }
                }
            }
        }
        if failed {
            seen = None;
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(RETRY), if failed => {}
            changed = published.changed() => if changed.is_err() { return },
            changed = refused.changed() => if changed.is_err() { return },
        }
    }
}

/// The statuses all objects should have.
fn wanted(world: &World, refused: &BTreeMap<Key, Refusal>) -> BTreeMap<Key, Wanted> {
    fn add<S: Kind>(map: &mut BTreeMap<Key, Wanted>, config: &Config<S>, warnings: Vec<Warning>) {
        let key = Key { kind: S::KIND, name: config.name.clone() };
        let generation = config.generation;
        map.insert(key, Wanted { generation, refused: None, warnings, addresses: Vec::new() });
    }
    let mut map = BTreeMap::new();
    for service in world.virtual_services() {
        add(&mut map, service, check_virtual_service(service, world));
    }
    for rule in world.destination_rules() {
        add(&mut map, rule, check_destination_rule(rule, world));
    }
    for gateway in world.gateways() {
        add(&mut map, gateway, check_gateway(gateway, world));
    }
    for entry in world.service_entries() {
        add(&mut map, entry, check_service_entry(entry, world));
        if let Some(wanted) = map.get_mut(&Key { kind: ServiceEntrySpec::KIND, name: entry.name.clone() }) {
            wanted.addresses = addresses(entry, world);
        }
    }
    for entry in world.workload_entries() {
        add(&mut map, entry, check_workload_entry(entry, world));
    }
    for policy in world.authorization_policies() {
        add(&mut map, policy, check_authorization_policy(policy, world));
    }
    for policy in world.request_authentications() {
        add(&mut map, policy, check_request_authentication(policy, world));
    }
    for sidecar in world.sidecars() {
        add(&mut map, sidecar, check_sidecar(sidecar, world));
    }
    for policy in world.peer_authentications() {
        add(&mut map, policy, check_peer_authentication(policy, world));
    }
    for group in world.workload_groups() {
        add(&mut map, group, Vec::new());
    }
    // Over what is said of the last good state, which goes on being used.
    for (key, Refusal { generation, reason }) in refused {
        let warnings = vec![Warning::invalid(reason)];
        let addresses = map.remove(key).map(|wanted| wanted.addresses).unwrap_or_default();
        let refused = Some(reason.clone());
        map.insert(key.clone(), Wanted { generation: *generation, refused, warnings, addresses });
    }
    map
}

/// The automatic addresses of a ServiceEntry's hosts.
fn addresses(entry: &ServiceEntry, world: &World) -> Vec<HostAddress> {
    let hosts = entry.spec.hosts.iter();
    hosts
        .flat_map(|host| {
            let service = world.service_in(&host.to_ascii_lowercase(), &entry.name.namespace);
            let addresses = service.map(|service| service.auto_addresses(true)).unwrap_or_default();
            addresses
                .into_iter()
                .map(|address| HostAddress { value: address.to_string(), host: host.clone() })
        })
        .collect()
}

async fn write(client: &Client, key: &Key, wanted: &Wanted) -> Result<(), kube::Error> {
    match key.kind {
        VirtualServiceSpec::KIND => write_kind::<VirtualServiceSpec>(client, &key.name, wanted).await,
        DestinationRuleSpec::KIND => write_kind::<DestinationRuleSpec>(client, &key.name, wanted).await,
        GatewaySpec::KIND => write_kind::<GatewaySpec>(client, &key.name, wanted).await,
        ServiceEntrySpec::KIND => write_kind::<ServiceEntrySpec>(client, &key.name, wanted).await,
        WorkloadEntrySpec::KIND => write_kind::<WorkloadEntrySpec>(client, &key.name, wanted).await,
        AuthorizationPolicySpec::KIND => {
            write_kind::<AuthorizationPolicySpec>(client, &key.name, wanted).await
        }
        RequestAuthenticationSpec::KIND => {
            write_kind::<RequestAuthenticationSpec>(client, &key.name, wanted).await
        }
        SidecarSpec::KIND => write_kind::<SidecarSpec>(client, &key.name, wanted).await,
        PeerAuthenticationSpec::KIND => write_kind::<PeerAuthenticationSpec>(client, &key.name, wanted).await,
        WorkloadGroupSpec::KIND => write_kind::<WorkloadGroupSpec>(client, &key.name, wanted).await,
        _ => Ok(()),
    }
}

/// Times that an object is read again which somebody else has written meanwhile.
const CONFLICTS: usize = 5;

async fn write_kind<S: Kind>(client: &Client, name: &ObjectName, wanted: &Wanted) -> Result<(), kube::Error> {
    let mut conflicts = 0;
    loop {
        match try_write::<S>(client, name, wanted).await {
            Err(kube::Error::Api(answer)) if answer.code == 409 && conflicts < CONFLICTS => conflicts += 1,
            other => return other,
        }
    }
}

async fn try_write<S: Kind>(client: &Client, name: &ObjectName, wanted: &Wanted) -> Result<(), kube::Error> {
    let api: Api<Object<S>> = Api::namespaced(client.clone(), &name.namespace);
    // Read first: after a restart most statuses are as they should be.
    let Some(object) = api.get_opt(&name.name).await? else { return Ok(()) };
    if object.metadata.generation.unwrap_or_default() > wanted.generation {
        // The watch is about to bring a newer object.
        return Ok(());
    }
    let read = object.metadata.resource_version;
    let Some(status) = status(object.status.unwrap_or_default(), wanted, &now()) else { return Ok(()) };
    // Every field, since a merge patch keeps what it does not name, and empty fields are left out of the JSON form.
    let mut patch = json!({ "status": {
        "conditions": status.conditions,
        "validationMessages": status.validation_messages,
        "observedGeneration": status.observed_generation,
    } });
    if S::KIND == WorkloadEntrySpec::KIND {
        // Health is a condition too, written by somebody else: what is not what was read is not overwritten.
        patch["metadata"] = json!({ "resourceVersion": read });
    }
    if S::KIND == ServiceEntrySpec::KIND {
        patch["status"]["addresses"] = json!(status.addresses);
    }
    match api.patch_status(&name.name, &PatchParams::default(), &Patch::Merge(patch)).await {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(answer)) if answer.code == 404 => Ok(()),
        Err(error) => Err(error),
    }
}

fn now() -> String {
    jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// The status to write in place of `current`, or none when that says the same. Conditions of others stay.
fn status(current: Status, wanted: &Wanted, now: &str) -> Option<Status> {
    let messages: Vec<ValidationMessage> = wanted.warnings.iter().map(message).collect();
    let (state, reason, text) = match (&wanted.refused, wanted.warnings.len()) {
        (Some(reason), _) => {
            ("False", "Invalid", format!("not used, the last good state stays in force: {reason}"))
        }
        (None, 0) => ("True", "Reconciled", "taken over by the control plane".to_owned()),
        (None, 1) => ("True", "Warnings", "taken over by the control plane with 1 warning".to_owned()),
        (None, count) => {
            ("True", "Warnings", format!("taken over by the control plane with {count} warnings"))
        }
    };
    let old = current.conditions.iter().find(|condition| condition.r#type == RECONCILED);
    let changed_at = old.filter(|old| old.status == state).and_then(|old| old.last_transition_time.clone());
    let condition = Condition {
        r#type: RECONCILED.to_owned(),
        status: state.to_owned(),
        last_probe_time: None,
        last_transition_time: Some(changed_at.unwrap_or_else(|| now.to_owned())),
        reason: reason.to_owned(),
        message: text,
        observed_generation: Some(wanted.generation),
    };
    let mut conditions: Vec<Condition> =
        current.conditions.iter().filter(|condition| condition.r#type != RECONCILED).cloned().collect();
    conditions.push(condition);
    conditions.sort_by(|a, b| a.r#type.cmp(&b.r#type));
    let next = Status {
        conditions,
        validation_messages: messages,
        observed_generation: Some(wanted.generation),
        addresses: wanted.addresses.clone(),
    };
    let mut same = current;
    same.conditions.sort_by(|a, b| a.r#type.cmp(&b.r#type));
    (same != next).then_some(next)
}

fn message(warning: &Warning) -> ValidationMessage {
    let code = warning.code.unwrap_or_default();
    let (level, documentation_url) = if code.is_empty() {
        ("WARNING", String::new())
    } else {
        let page = code.to_ascii_lowercase();
        ("ERROR", format!("https://istio.io/latest/docs/reference/config/analysis/{page}/"))
    };
    ValidationMessage {
        r#type: MessageType { name: warning.name.to_owned(), code: code.to_owned() },
        level: level.to_owned(),
        documentation_url,
        message: warning.message.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn missing(host: &str) -> Warning {
        Warning {
            code: Some("IST0101"),
            name: "ReferencedResourceNotFound",
            path: "spec".into(),
            message: format!("Referenced host not found: {host:?}"),
        }
    }

    #[test]
    fn a_status_is_written_only_when_it_says_something_new() {
        let good = Wanted { generation: 1, refused: None, warnings: vec![], addresses: vec![] };
        let first = status(Status::default(), &good, "T1").unwrap();
        assert_eq!(first.conditions[0].status, "True");
        assert_eq!(first.observed_generation, Some(1));
        assert_eq!(status(first.clone(), &good, "T2"), None, "time alone is no news");
        let bad = Wanted { generation: 2, refused: None, warnings: vec![missing("x")], addresses: vec![] };
        let second = status(first, &bad, "T3").unwrap();
        assert_eq!(second.validation_messages[0].message, "Referenced host not found: \"x\"");
        assert_eq!(second.validation_messages[0].r#type.code, "IST0101");
        assert_eq!(
            second.conditions[0].last_transition_time.as_deref(),
            Some("T1"),
            "the condition itself stayed True"
        );
        assert_eq!(status(second, &bad, "T4"), None);
    }

    #[test]
    fn a_refused_object_is_not_reconciled() {
        let good = Wanted { generation: 1, refused: None, warnings: vec![], addresses: vec![] };
        let first = status(Status::default(), &good, "T1").unwrap();
        let reason = "spec.http: bad".to_owned();
        let warnings = vec![Warning::invalid(&reason)];
        let second = status(
            first,
            &Wanted { generation: 2, refused: Some(reason), warnings, addresses: vec![] },
            "T2",
        )
        .unwrap();
        let condition = &second.conditions[0];
        assert_eq!((condition.status.as_str(), condition.reason.as_str()), ("False", "Invalid"));
        assert_eq!(condition.last_transition_time.as_deref(), Some("T2"));
        assert_eq!(second.validation_messages[0].r#type.code, "IST0106");
    }

    #[test]
    fn conditions_of_others_stay() {
        let theirs =
            Condition { r#type: "Programmed".into(), status: "False".into(), ..Condition::default() };
        let current = Status { conditions: vec![theirs.clone()], ..Status::default() };
        let next = status(
            current,
            &Wanted { generation: 1, refused: None, warnings: vec![], addresses: vec![] },
            "T",
        )
        .unwrap();
        assert_eq!(next.conditions.len(), 2);
        assert!(next.conditions.contains(&theirs));
    }
}
