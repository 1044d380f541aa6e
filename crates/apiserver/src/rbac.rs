//! What the stored roles and bindings grant. Nothing is enforced by it in this cluster; it answers those who ask
//! (SubjectAccessReview), so that a component that guards something for others can go by it.

use serde_json::Value;

use crate::{schema::strings, state::Api, store::ObjectKey};

const ROLES: &str = "roles.rbac.authorization.k8s.io";
const ROLE_BINDINGS: &str = "rolebindings.rbac.authorization.k8s.io";
const CLUSTER_ROLES: &str = "clusterroles.rbac.authorization.k8s.io";
const CLUSTER_ROLE_BINDINGS: &str = "clusterrolebindings.rbac.authorization.k8s.io";
/// Members may do everything, as in Kubernetes.
const MASTERS: &str = "system:masters";

/// The answer to a SubjectAccessReview's spec: the binding that allows it, in words, or none.
pub(crate) fn granted(api: &Api, spec: &Value) -> Option<String> {
    let groups = strings(&spec["groups"]);
    if groups.iter().any(|group| group == MASTERS) {
        return Some(format!("members of {MASTERS} may do everything"));
    }
    let user = spec["user"].as_str().unwrap_or_default();
    let asked = &spec["resourceAttributes"];
    let namespace = asked["namespace"].as_str().unwrap_or_default();
    let of_namespace = match namespace {
        "" => Vec::new(),
        namespace => api.store.list(ROLE_BINDINGS, Some(namespace), None, None, |_| true).objects,
    };
    let everywhere = api.store.list(CLUSTER_ROLE_BINDINGS, None, None, None, |_| true).objects;
    for binding in of_namespace.iter().chain(&everywhere) {
        let own = binding["metadata"]["namespace"].as_str().unwrap_or_default();
        let subjects = binding["subjects"].as_array().into_iter().flatten();
        let mut named = subjects.filter(|subject| is_subject(subject, own, user, &groups));
        if named.next().is_none() {
            continue;
        }
        let (kind, name) = (&binding["roleRef"]["kind"], binding["roleRef"]["name"].as_str()?);
        let role = match kind.as_str() {
            Some("Role") => api.store.get(ROLES, &ObjectKey::new(own, name)),
            _ => api.store.get(CLUSTER_ROLES, &ObjectKey::new("", name)),
        };
        let rules = role.as_ref().and_then(|role| role["rules"].as_array());
        if rules.into_iter().flatten().any(|rule| covers(rule, spec)) {
            let binding = binding["metadata"]["name"].as_str().unwrap_or_default();
            return Some(format!("allowed by binding {binding:?} of role {name:?} to {user:?}"));
        }
    }
    None
}

fn is_subject(subject: &Value, own: &str, user: &str, groups: &[String]) -> bool {
    let name = subject["name"].as_str().unwrap_or_default();
    match subject["kind"].as_str() {
        Some("ServiceAccount") => {
            let namespace = subject["namespace"].as_str().filter(|given| !given.is_empty()).unwrap_or(own);
            user == format!("system:serviceaccount:{namespace}:{name}")
        }
        Some("User") => user == name,
        Some("Group") => groups.iter().any(|group| group == name),
        _ => false,
    }
}

/// Whether a rule covers what is asked for: <https://kubernetes.io/docs/reference/access-authn-authz/rbac/#referring-to-resources>
fn covers(rule: &Value, spec: &Value) -> bool {
    let lists =
        |field: &str, wanted: &str| strings(&rule[field]).iter().any(|given| given == "*" || given == wanted);
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let path = &spec["nonResourceAttributes"];
    if path.is_object() {
        let wanted = text(&path["path"]);
        let is_path = |given: &String| match given.strip_suffix('*') {
            Some(prefix) => wanted.starts_with(prefix),
            None => *given == wanted,
        };
        return lists("verbs", &text(&path["verb"])) && strings(&rule["nonResourceURLs"]).iter().any(is_path);
    }
    let asked = &spec["resourceAttributes"];
    let resource = text(&asked["resource"]);
    let (subresource, name) = (text(&asked["subresource"]), text(&asked["name"]));
    let of_any = format!("*/{subresource}");
    let has_resource = if subresource.is_empty() {
        lists("resources", &resource)
    } else {
        lists("resources", &format!("{resource}/{subresource}")) || lists("resources", &of_any)
    };
    let names = strings(&rule["resourceNames"]);
    lists("verbs", &text(&asked["verb"]))
        && lists("apiGroups", &text(&asked["group"]))
        && has_resource
        && (names.is_empty() || names.contains(&name))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn rules_cover_what_they_list() {
        let rule = json!({"apiGroups": [""], "resources": ["secrets", "pods/log"], "verbs": ["list"]});
        let asked = |verb: &str, group: &str, resource: &str, sub: &str| {
            let attributes = json!({"verb": verb, "group": group, "resource": resource, "subresource": sub});
            covers(&rule, &json!({"resourceAttributes": attributes}))
        };
        assert!(asked("list", "", "secrets", ""));
        assert!(asked("list", "", "pods", "log"));
        assert!(!asked("get", "", "secrets", ""));
        assert!(!asked("list", "apps", "secrets", ""));
        assert!(!asked("list", "", "pods", ""));
        let one = json!({"apiGroups": ["*"], "resources": ["*"], "verbs": ["*"], "resourceNames": ["a"]});
        assert!(covers(
            &one,
            &json!({"resourceAttributes": {"verb": "get", "resource": "pods", "name": "a"}})
        ));
        assert!(!covers(&one, &json!({"resourceAttributes": {"verb": "list", "resource": "pods"}})));
        let path = json!({"nonResourceURLs": ["/healthz", "/debug/*"], "verbs": ["get"]});
        let at = |path_asked: &str| {
            covers(&path, &json!({"nonResourceAttributes": {"path": path_asked, "verb": "get"}}))
        };
        assert!(at("/healthz") && at("/debug/pprof") && !at("/metrics"));
    }

    #[test]
    fn subjects_are_accounts_users_and_groups() {
        let account = json!({"kind": "ServiceAccount", "name": "web"});
        assert!(is_subject(&account, "shop", "system:serviceaccount:shop:web", &[]));
        assert!(!is_subject(&account, "shop", "system:serviceaccount:other:web", &[]));
        let group = json!({"kind": "Group", "name": "system:serviceaccounts:shop"});
        assert!(is_subject(&group, "", "x", &["system:serviceaccounts:shop".to_owned()]));
        assert!(is_subject(&json!({"kind": "User", "name": "ann"}), "", "ann", &[]));
    }
}
