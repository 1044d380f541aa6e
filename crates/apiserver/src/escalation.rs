//! Nobody gives away, by a role or a binding, what they may not do themselves.
//! <https://kubernetes.io/docs/reference/access-authn-authz/rbac/#privilege-escalation-prevention-and-bootstrapping>

use std::sync::Arc;

use serde_json::{Value, json};

use crate::{
    call::Call,
    rbac::{self, Attributes},
    resources::meta,
    schema::strings,
    state::Api,
    status::ApiError,
};

/// Refuses a role or binding that gives more than the caller has, unless a rule lets them (`escalate`, `bind`).
///
/// # Errors
/// 403 in kube-apiserver's words.
pub(crate) fn check(api: &Api, call: &Call, object: &Value, old: Option<&Value>) -> Result<(), ApiError> {
    if call.def.group != "rbac.authorization.k8s.io" {
        return Ok(());
    }
    let same = |field: &str| old.is_some_and(|old| old[field] == object[field]);
    let (given, exempt) = match call.def.plural.as_str() {
        "roles" | "clusterroles" if same("rules") && same("aggregationRule") => return Ok(()),
        "roles" | "clusterroles" => {
            (vec![Arc::new(object.clone())], asking(call, "escalate", &call.def.plural, meta(object, "name")))
        }
        "rolebindings" | "clusterrolebindings" if same("roleRef") && same("subjects") => return Ok(()),
        "rolebindings" | "clusterrolebindings" => {
            let reference = &object["roleRef"];
            let kind = if reference["kind"] == "Role" { "roles" } else { "clusterroles" };
            let exempt = asking(call, "bind", kind, reference["name"].as_str().unwrap_or_default());
            // A role that is not there yet gives nothing yet; whoever makes it is asked then.
            (rbac::role_of(api, object).unwrap_or_default(), exempt)
        }
        _ => return Ok(()),
    };
    if rbac::decide(api, &call.user, &exempt).is_ok() {
        return Ok(());
    }
    let (held, _) = rbac::grants(api, &call.user, &call.namespace);
    // What a role is made of is for those to say who may give everything.
    let aggregates = given.iter().any(|role| role["aggregationRule"].is_object());
    let everything = json!({"apiGroups": ["*"], "resources": ["*"], "verbs": ["*"]});
    let wanted = given.iter().flat_map(|role| role["rules"].as_array().into_iter().flatten());
    let wanted = wanted.chain(aggregates.then_some(&everything));
    let covered =
        |atom: &Attributes| held.iter().any(|grant| grant.rules().any(|rule| rbac::covers(rule, atom)));
    let missing: Vec<String> =
        wanted.flat_map(atoms).filter(|atom| !covered(atom)).map(|atom| shown(&atom)).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let groups: Vec<String> = call.user.groups.iter().map(|group| format!("{group:?}")).collect();
    let why = format!(
        "user {:?} (groups=[{}]) is attempting to grant RBAC permissions not currently held:\n{}",
        call.user.name,
        groups.join(" "),
        missing.join("\n")
    );
    Err(ApiError::forbidden(&call.def, meta(object, "name"), &why))
}

fn asking(call: &Call, verb: &str, resource: &str, name: &str) -> Attributes {
    Attributes {
        verb: verb.into(),
        group: call.def.group.clone(),
        resource: resource.into(),
        namespace: call.namespace.clone(),
        name: name.into(),
        ..Attributes::default()
    }
}

/// A rule taken apart: one verb on one resource each. A `*` is held by a `*` only.
fn atoms(rule: &Value) -> Vec<Attributes> {
    let or_none = |list: Vec<String>| if list.is_empty() { vec![String::new()] } else { list };
    let names = or_none(strings(&rule["resourceNames"]));
    let mut atoms = Vec::new();
    for verb in strings(&rule["verbs"]) {
        for path in strings(&rule["nonResourceURLs"]) {
            atoms.push(Attributes { verb: verb.clone(), path: Some(path), ..Attributes::default() });
        }
        for group in strings(&rule["apiGroups"]) {
            for resource in strings(&rule["resources"]) {
                let (resource, subresource) = resource.split_once('/').unwrap_or((&resource, ""));
                atoms.extend(names.iter().map(|name| Attributes {
                    verb: verb.clone(),
                    group: group.clone(),
                    resource: resource.to_owned(),
                    subresource: subresource.to_owned(),
                    name: name.clone(),
                    ..Attributes::default()
                }));
            }
        }
    }
    atoms
}

/// As Go prints a rule.
fn shown(atom: &Attributes) -> String {
    match &atom.path {
        Some(path) => format!("{{NonResourceURLs:[{path:?}], Verbs:[{:?}]}}", atom.verb),
        None => {
            let slash = if atom.subresource.is_empty() { "" } else { "/" };
            let resource = format!("{}{slash}{}", atom.resource, atom.subresource);
            let names = if atom.name.is_empty() {
                String::new()
            } else {
                format!(" ResourceNames:[{:?}],", atom.name)
            };
            format!(
                "{{APIGroups:[{:?}], Resources:[{resource:?}],{names} Verbs:[{:?}]}}",
                atom.group, atom.verb
            )
        }
    }
}
