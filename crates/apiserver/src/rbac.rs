//! Role-based access control: what the stored roles and bindings let a user do.
//! <https://kubernetes.io/docs/reference/access-authn-authz/rbac/>

use std::sync::Arc;

use http::StatusCode;
use serde_json::{Value, json};

use crate::{
    authn::User, schema::strings, selector::LabelSelector, state::Api, status::ApiError, store::ObjectKey,
};

const ROLES: &str = "roles.rbac.authorization.k8s.io";
const ROLE_BINDINGS: &str = "rolebindings.rbac.authorization.k8s.io";
const CLUSTER_ROLES: &str = "clusterroles.rbac.authorization.k8s.io";
const CLUSTER_ROLE_BINDINGS: &str = "clusterrolebindings.rbac.authorization.k8s.io";
/// Members may do everything, whatever roles there are.
const MASTERS: &str = "system:masters";

/// What somebody wants to do.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Attributes {
    pub(crate) verb: String,
    pub(crate) group: String,
    pub(crate) resource: String,
    pub(crate) subresource: String,
    /// Empty: at the cluster scope, or in all namespaces.
    pub(crate) namespace: String,
    pub(crate) name: String,
    /// Of a request that is about no resource.
    pub(crate) path: Option<String>,
}

impl Attributes {
    /// Those of a SubjectAccessReview's spec.
    pub(crate) fn of_review(spec: &Value) -> Self {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let path = &spec["nonResourceAttributes"];
        if path.is_object() {
            return Self { verb: text(&path["verb"]), path: Some(text(&path["path"])), ..Self::default() };
        }
        let asked = &spec["resourceAttributes"];
        Self {
            verb: text(&asked["verb"]),
            group: text(&asked["group"]),
            resource: text(&asked["resource"]),
            subresource: text(&asked["subresource"]),
            namespace: text(&asked["namespace"]),
            name: text(&asked["name"]),
            path: None,
        }
    }

    /// `pods/log`
    fn whole_resource(&self) -> String {
        match self.subresource.as_str() {
            "" => self.resource.clone(),
            subresource => format!("{}/{subresource}", self.resource),
        }
    }

    /// kube-apiserver's words for a refusal.
    fn refusal(&self, user: &str) -> String {
        if let Some(path) = &self.path {
            return format!("User {user:?} cannot {} path {path:?}", self.verb);
        }
        let scope = match self.namespace.as_str() {
            "" => "at the cluster scope".to_owned(),
            namespace => format!("in the namespace {namespace:?}"),
        };
        format!(
            "User {user:?} cannot {} resource {:?} in API group {:?} {scope}",
            self.verb,
            self.whole_resource(),
            self.group
        )
    }
}

/// Lets a user do what they may.
///
/// # Errors
/// 403 in kube-apiserver's words.
pub(crate) fn authorize(api: &Api, user: &User, asked: &Attributes) -> Result<(), ApiError> {
    let Err(reason) = decide(api, user, asked) else { return Ok(()) };
    let mut why = asked.refusal(&user.name);
    if !reason.is_empty() {
        why = format!("{why}: {reason}");
    }
    let subject = match (asked.resource.as_str(), asked.group.as_str(), asked.name.as_str()) {
        ("", ..) => String::new(),
        (resource, "", "") => format!("{resource} is "),
        (resource, "", name) => format!("{resource} {name:?} is "),
        (resource, group, "") => format!("{resource}.{group} is "),
        (resource, group, name) => format!("{resource}.{group} {name:?} is "),
    };
    let mut error = ApiError::new(StatusCode::FORBIDDEN, "Forbidden", format!("{subject}forbidden: {why}"));
    let mut details = json!({});
    for (field, value) in [("name", &asked.name), ("group", &asked.group), ("kind", &asked.resource)] {
        if !value.is_empty() {
            details[field] = json!(value);
        }
    }
    error.details = Some(Box::new(details));
    Err(error)
}

/// Whether a user may do something: by which binding, or what of their bindings is amiss.
pub(crate) fn decide(api: &Api, user: &User, asked: &Attributes) -> Result<String, String> {
    if user.groups.iter().any(|group| group == MASTERS) {
        return Ok(String::new());
    }
    let (grants, missing) = grants(api, user, &asked.namespace);
    let grant = grants.iter().find(|grant| grant.rules().any(|rule| covers(rule, asked)));
    match (grant, &missing[..]) {
        (Some(grant), _) => Ok(format!("RBAC: allowed by {}", grant.describe())),
        (None, []) => Err(String::new()),
        (None, [one]) => Err(format!("RBAC: {one}")),
        (None, several) => Err(format!("RBAC: [{}]", several.join(", "))),
    }
}

/// A role that a binding gives to a user.
pub(crate) struct Grant {
    role: Arc<Value>,
    binding: Arc<Value>,
    /// Which of the binding's subjects the user is.
    subject: usize,
}

impl Grant {
    pub(crate) fn rules(&self) -> impl Iterator<Item = &Value> {
        self.role["rules"].as_array().into_iter().flatten()
    }

    fn describe(&self) -> String {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let (binding, subject) = (&*self.binding, &self.binding["subjects"][self.subject]);
        let (kind, name) = match binding["metadata"]["namespace"].as_str() {
            Some(namespace) => ("RoleBinding", format!("{}/{namespace}", text(&binding["metadata"]["name"]))),
            None => ("ClusterRoleBinding", text(&binding["metadata"]["name"])),
        };
        let who = match subject["kind"].as_str() {
            Some("ServiceAccount") => {
                format!("{}/{}", text(&subject["name"]), account_namespace(subject, binding))
            }
            _ => text(&subject["name"]),
        };
        format!(
            "{kind} {name:?} of {} {:?} to {} {who:?}",
            text(&binding["roleRef"]["kind"]),
            text(&binding["roleRef"]["name"]),
            text(&subject["kind"])
        )
    }
}

/// The roles a user has in a namespace (empty: in all), and those that bindings name in vain.
pub(crate) fn grants(api: &Api, user: &User, namespace: &str) -> (Vec<Grant>, Vec<String>) {
    let everywhere = api.store.list(CLUSTER_ROLE_BINDINGS, None, None, None, |_| true).objects;
    let of_namespace = match namespace {
        "" => Vec::new(),
        namespace => api.store.list(ROLE_BINDINGS, Some(namespace), None, None, |_| true).objects,
    };
    let (mut found, mut missing) = (Vec::new(), Vec::new());
    for binding in everywhere.into_iter().chain(of_namespace) {
        let mut subjects = binding["subjects"].as_array().into_iter().flatten();
        let Some(subject) = subjects.position(|subject| is_subject(subject, &binding, user)) else {
            continue;
        };
        match role_of(api, &binding) {
            Ok(roles) => {
                let grant = |role| Grant { role, binding: binding.clone(), subject };
                found.extend(roles.into_iter().map(grant));
            }
            Err(problem) => missing.push(problem),
        }
    }
    (found, missing)
}

/// The role a binding refers to; of an aggregated one also those it is made of.
pub(crate) fn role_of(api: &Api, binding: &Value) -> Result<Vec<Arc<Value>>, String> {
    let own = binding["metadata"]["namespace"].as_str().unwrap_or_default();
    let name = binding["roleRef"]["name"].as_str().unwrap_or_default();
    let (storage, key, kind) = match binding["roleRef"]["kind"].as_str() {
        Some("Role") => (ROLES, ObjectKey::new(own, name), "role"),
        _ => (CLUSTER_ROLES, ObjectKey::new("", name), "clusterrole"),
    };
    let role = api.store.get(storage, &key);
    let role = role.ok_or_else(|| format!("{kind}.rbac.authorization.k8s.io {name:?} not found"))?;
    let selectors = role["aggregationRule"]["clusterRoleSelectors"].as_array();
    let selectors: Vec<_> =
        selectors.into_iter().flatten().filter_map(|one| LabelSelector::from_object(one).ok()).collect();
    let mut roles = vec![role];
    if !selectors.is_empty() {
        let is_part = |role: &Value| selectors.iter().any(|one| one.matches(&role["metadata"]["labels"]));
        roles.extend(api.store.list(CLUSTER_ROLES, None, None, None, is_part).objects);
    }
    Ok(roles)
}

fn account_namespace<'a>(subject: &'a Value, binding: &'a Value) -> &'a str {
    let given = subject["namespace"].as_str().filter(|given| !given.is_empty());
    given.or_else(|| binding["metadata"]["namespace"].as_str()).unwrap_or_default()
}

fn is_subject(subject: &Value, binding: &Value, user: &User) -> bool {
    let name = subject["name"].as_str().unwrap_or_default();
    match subject["kind"].as_str() {
        Some("ServiceAccount") => {
            let own = user.name.strip_prefix("system:serviceaccount:");
            own.and_then(|own| own.split_once(':')) == Some((account_namespace(subject, binding), name))
        }
        Some("User") => user.name == name,
        Some("Group") => user.groups.iter().any(|group| group == name),
        _ => false,
    }
}

/// Whether a rule covers what is asked for: <https://kubernetes.io/docs/reference/access-authn-authz/rbac/#referring-to-resources>
pub(crate) fn covers(rule: &Value, asked: &Attributes) -> bool {
    let lists =
        |field: &str, wanted: &str| strings(&rule[field]).iter().any(|given| given == "*" || given == wanted);
    if let Some(path) = &asked.path {
        let is_path = |given: &String| match given.strip_suffix('*') {
            Some(prefix) => path.starts_with(prefix),
            None => given == path,
        };
        return lists("verbs", &asked.verb) && strings(&rule["nonResourceURLs"]).iter().any(is_path);
    }
    let has_resource = lists("resources", &asked.whole_resource())
        || !asked.subresource.is_empty() && lists("resources", &format!("*/{}", asked.subresource));
    let names = strings(&rule["resourceNames"]);
    lists("verbs", &asked.verb)
        && lists("apiGroups", &asked.group)
        && has_resource
        && (names.is_empty() || names.contains(&asked.name))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asking(verb: &str, group: &str, resource: &str, subresource: &str) -> Attributes {
        let [verb, group, resource, subresource] = [verb, group, resource, subresource].map(str::to_owned);
        Attributes { verb, group, resource, subresource, ..Attributes::default() }
    }

    #[test]
    fn rules_cover_what_they_list() {
        let rule = json!({"apiGroups": [""], "resources": ["secrets", "pods/log"], "verbs": ["list"]});
        let asked = |verb, group, resource, sub| covers(&rule, &asking(verb, group, resource, sub));
        assert!(asked("list", "", "secrets", ""));
        assert!(asked("list", "", "pods", "log"));
        assert!(!asked("get", "", "secrets", ""));
        assert!(!asked("list", "apps", "secrets", ""));
        assert!(!asked("list", "", "pods", ""));
        assert!(!asked("list", "", "secrets", "log"));
        let all = json!({"apiGroups": [""], "resources": ["*"], "verbs": ["get"]});
        assert!(covers(&all, &asking("get", "", "pods", "log")));
        let scale = json!({"apiGroups": ["apps"], "resources": ["*/scale"], "verbs": ["get"]});
        assert!(covers(&scale, &asking("get", "apps", "deployments", "scale")));
        assert!(!covers(&scale, &asking("get", "apps", "deployments", "")));
        let one = json!({"apiGroups": ["*"], "resources": ["*"], "verbs": ["*"], "resourceNames": ["a"]});
        assert!(covers(&one, &Attributes { name: "a".into(), ..asking("get", "", "pods", "") }));
        assert!(!covers(&one, &asking("list", "", "pods", "")));
        let path = json!({"nonResourceURLs": ["/healthz", "/debug/*"], "verbs": ["get"]});
        let at = |path_asked: &str| {
            let path_asked = Some(path_asked.to_owned());
            covers(&path, &Attributes { verb: "get".into(), path: path_asked, ..Attributes::default() })
        };
        assert!(at("/healthz") && at("/debug/pprof") && !at("/metrics"));
    }

    #[test]
    fn subjects_are_accounts_users_and_groups() {
        let user = |name: &str, groups: &[&str]| User {
            name: name.into(),
            uid: String::new(),
            groups: groups.iter().map(|group| (*group).to_owned()).collect(),
            extra: Vec::new(),
        };
        let binding = json!({"metadata": {"namespace": "shop"}});
        let account = json!({"kind": "ServiceAccount", "name": "web"});
        assert!(is_subject(&account, &binding, &user("system:serviceaccount:shop:web", &[])));
        assert!(!is_subject(&account, &binding, &user("system:serviceaccount:other:web", &[])));
        assert!(!is_subject(&account, &binding, &user("web", &[])));
        let group = json!({"kind": "Group", "name": "system:serviceaccounts:shop"});
        assert!(is_subject(&group, &binding, &user("x", &["system:serviceaccounts:shop"])));
        assert!(is_subject(&json!({"kind": "User", "name": "ann"}), &binding, &user("ann", &[])));
    }
}
