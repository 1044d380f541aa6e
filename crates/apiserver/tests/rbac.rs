//! Who may do what, asked by the real `kubectl`.

mod support;

use support::Cluster;

const ROBOT: &str = "--as=system:serviceaccount:default:robot";

const READER: &str = r#"
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata: {name: reader}
rules:
- {apiGroups: [""], resources: [configmaps, pods/log], verbs: [get, list]}
- {apiGroups: [""], resources: [secrets], resourceNames: [its-own], verbs: [get, list, watch, create, deletecollection]}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {name: reader}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: Role, name: reader}
subjects: [{kind: ServiceAccount, name: robot}]
"#;

fn robots() -> Cluster {
    let cluster = Cluster::start();
    cluster.ok(&["create", "serviceaccount", "robot"]);
    cluster
}

#[test]
fn an_account_may_do_nothing_but_what_roles_say() {
    let cluster = robots();
    let refused = |arguments: &[&str], why: &str| {
        let said = cluster.fails_with(&[arguments, &[ROBOT]].concat(), "");
        assert!(said.contains(&format!("Error from server (Forbidden): {why}")), "{arguments:?}: {said}");
    };
    let user = r#"User "system:serviceaccount:default:robot" cannot"#;
    refused(
        &["get", "secrets"],
        &format!(
            r#"secrets is forbidden: {user} list resource "secrets" in API group "" in the namespace "default""#
        ),
    );
    refused(
        &["get", "deployments", "web", "-n", "kube-system"],
        &format!(
            r#"deployments.apps "web" is forbidden: {user} get resource "deployments" in API group "apps" in the namespace "kube-system""#
        ),
    );
    refused(
        &["get", "nodes"],
        &format!(r#"nodes is forbidden: {user} list resource "nodes" in API group "" at the cluster scope"#),
    );
    refused(&["get", "--raw", "/nothing"], &format!(r#"forbidden: {user} get path "/nothing""#));
    refused(&["delete", "configmap", "--all"], "configmaps is forbidden");
    // What everybody may: find out what there is, and what they may.
    for everybodys in
        [&["api-resources"][..], &["version"], &["get", "--raw", "/readyz"], &["auth", "whoami"]]
    {
        cluster.ok(&[everybodys, &[ROBOT]].concat());
    }
    assert!(cluster.run_with(&["auth", "can-i", "list", "secrets", ROBOT], "").stdout.starts_with("no"));
    let token = cluster.ok(&["create", "token", "robot"]);
    let nobody = cluster.anonymous_kubeconfig();
    let with_token = ["get", "secrets", "--kubeconfig", &nobody, "--token", token.trim()];
    let said = cluster.fails_with(&with_token, "");
    assert!(said.contains("secrets is forbidden"), "by its token as well: {said}");
}

#[test]
fn roles_give_what_they_list_where_they_are_bound() {
    let cluster = robots();
    cluster.ok_with(&["apply", "-f", "-"], READER);
    let can = |words: &[&str]| {
        cluster.run_with(&[&["auth", "can-i"], words, &[ROBOT]].concat(), "").stdout == "yes\n"
    };
    assert!(can(&["list", "configmaps"]) && can(&["get", "pods", "--subresource=log"]));
    assert!(!can(&["get", "pods"]) && !can(&["watch", "configmaps"]) && !can(&["create", "configmaps"]));
    assert!(!can(&["list", "configmaps", "-n", "kube-system"]) && !can(&["list", "configmaps", "-A"]));
    assert!(
        can(&["get", "secrets/its-own"]) && !can(&["get", "secrets/other"]) && !can(&["list", "secrets"])
    );
    cluster.ok(&["get", "configmaps", ROBOT]);
    cluster.ok(&["get", "secrets", "--field-selector=metadata.name=its-own", ROBOT]);
    // A name that is asked for gives no right to make or delete what has none.
    let named = "/api/v1/namespaces/default/secrets?fieldSelector=metadata.name=its-own";
    let secret = r#"{"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "other"}}"#;
    let said = cluster.fails_with(&["create", "--raw", named, "-f", "-", ROBOT], secret);
    assert!(said.contains("secrets is forbidden"), "{said}");
    let said = cluster.fails_with(&["delete", "--raw", named, ROBOT], "");
    assert!(said.contains("secrets is forbidden"), "{said}");
    let listed = cluster.ok(&["auth", "can-i", "--list", ROBOT]);
    for line in ["pods/log", "selfsubjectaccessreviews.authorization.k8s.io", "[its-own]"] {
        assert!(listed.contains(line), "{line}: {listed}");
    }
    // Default roles, and aggregated ones.
    cluster.ok(&["create", "rolebinding", "viewer", "--clusterrole=view", "--user=ann", "-n", "kube-system"]);
    let ann =
        |words: &[&str]| cluster.run_with(&[&["auth", "can-i"], words, &["--as=ann"]].concat(), "").stdout;
    assert_eq!(ann(&["list", "pods", "-n", "kube-system"]), "yes\n");
    assert!(ann(&["list", "secrets", "-n", "kube-system"]).starts_with("no"));
    assert!(ann(&["list", "pods"]).starts_with("no"));
    let aggregated = r#"
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: monitoring}
aggregationRule: {clusterRoleSelectors: [{matchLabels: {to: monitoring}}]}
rules: []
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: endpoints, labels: {to: monitoring}}
rules: [{apiGroups: [""], resources: [endpoints], verbs: [get]}]
"#;
    cluster.ok_with(&["apply", "-f", "-"], aggregated);
    cluster.ok(&[
        "create",
        "clusterrolebinding",
        "monitoring",
        "--clusterrole=monitoring",
        "--group=watchers",
    ]);
    let watcher = ["auth", "can-i", "get", "endpoints", "--as=eve", "--as-group=watchers"];
    assert_eq!(cluster.ok(&watcher), "yes\n");
    cluster.ok(&["delete", "clusterrole", "endpoints"]);
    assert!(cluster.run_with(&watcher, "").stdout.starts_with("no"));
    // A binding to a role that is not there is said.
    cluster.ok(&["create", "rolebinding", "dangling", "--role=gone", "--user=bob"]);
    let said = cluster.fails_with(&["get", "pods", "--as=bob"], "");
    assert!(said.contains(r#"RBAC: role.rbac.authorization.k8s.io "gone" not found"#), "{said}");
}

#[test]
fn nobody_gives_or_becomes_more_than_they_are() {
    let cluster = robots();
    let maker = r#"
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata: {name: maker}
rules:
- {apiGroups: [rbac.authorization.k8s.io], resources: [roles, rolebindings], verbs: [get, create, patch, update]}
- {apiGroups: [""], resources: [pods], verbs: [get]}
"#;
    cluster.ok_with(&["apply", "-f", "-"], maker);
    cluster.ok(&["create", "rolebinding", "maker", "--role=maker", "--serviceaccount=default:robot"]);
    let create = |words: &[&str]| cluster.run_with(&[&["create"], words, &[ROBOT]].concat(), "");
    let said = create(&["role", "thief", "--verb=get", "--resource=secrets"]).stderr;
    assert!(said.contains("is attempting to grant RBAC permissions not currently held"), "{said}");
    assert!(said.contains(r#"{APIGroups:[""], Resources:["secrets"], Verbs:["get"]}"#), "{said}");
    let said =
        create(&["rolebinding", "thief", "--clusterrole=cluster-admin", "--serviceaccount=default:robot"])
            .stderr;
    assert!(said.contains(r#"{APIGroups:["*"], Resources:["*"], Verbs:["*"]}"#), "{said}");
    assert!(create(&["role", "fair", "--verb=get", "--resource=pods"]).ok);
    assert!(create(&["rolebinding", "fair", "--role=fair", "--user=ann"]).ok);
    let more = r#"{"rules":[{"apiGroups":[""],"resources":["pods"],"verbs":["*"]}]}"#;
    let said = cluster.fails_with(&["patch", "role", "fair", "--type=merge", "-p", more, ROBOT], "");
    assert!(said.contains("not currently held"), "{said}");
    cluster.ok(&[
        "patch",
        "role",
        "fair",
        "--type=merge",
        "-p",
        r#"{"metadata":{"labels":{"a":"b"}}}"#,
        ROBOT,
    ]);
    // `bind` and `escalate` let them.
    cluster.ok(&["create", "role", "binder", "--verb=bind,escalate", "--resource=roles"]);
    cluster.ok(&["create", "rolebinding", "binder", "--role=binder", "--serviceaccount=default:robot"]);
    assert!(create(&["role", "thief", "--verb=get", "--resource=secrets"]).ok);
    assert!(create(&["rolebinding", "thief", "--role=thief", "--user=ann"]).ok);

    // Acting as somebody else takes a right, too.
    let token = cluster.ok(&["create", "token", "robot"]);
    let nobody = cluster.anonymous_kubeconfig();
    let itself = ["get", "pods", "--kubeconfig", &nobody, "--token", token.trim()];
    let as_admin = [&itself[..], &["--as=kubernetes-admin", "--as-group=system:masters"]].concat();
    let said = cluster.fails_with(&as_admin, "");
    assert!(said.contains(r#"users "kubernetes-admin" is forbidden: User "system:serviceaccount:default:robot" cannot impersonate resource "users""#), "{said}");
    // Who applies what is not there makes it.
    cluster.ok(&["create", "role", "patcher", "--verb=get,patch", "--resource=configmaps"]);
    cluster.ok(&["create", "rolebinding", "patcher", "--role=patcher", "--serviceaccount=default:robot"]);
    let map = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: fresh}\n";
    let said = cluster.fails_with(&["apply", "--server-side", "-f", "-", ROBOT], map);
    assert!(said.contains("cannot create resource \"configmaps\""), "{said}");
    cluster.ok(&["create", "configmap", "fresh"]);
    cluster.ok_with(&["apply", "--server-side", "-f", "-", ROBOT], map);
}
