//! Kinds that are kept for tools that bring them along, and that nothing in a cluster of ours acts on: whoever writes one is told.

use serde_json::Value;

use crate::resources::ResourceDef;

/// What writing an object of this kind is answered with besides the object (a `Warning` header, which kubectl prints).
pub(crate) fn warning(def: &ResourceDef, object: &Value) -> Option<String> {
    let lacking = match def.kind.as_str() {
        _ if def.custom => return None,
        "CustomResourceDefinition" => {
            let rules = has_rules(object);
            return rules.then(|| "x-kubernetes-validations are not evaluated in this cluster".to_owned());
        }
        "HorizontalPodAutoscaler" => "there is no autoscaler (use `kubectl scale`)",
        "CronJob" => "no Job is made by the clock (use `kubectl create job --from=cronjob/NAME`)",
        "NetworkPolicy" => "connections are not restricted (use an AuthorizationPolicy of the mesh)",
        "Role" | "ClusterRole" | "RoleBinding" | "ClusterRoleBinding" => {
            "the API server enforces no authorization (SubjectAccessReviews go by it)"
        }
        "PersistentVolume" | "PersistentVolumeClaim" | "StorageClass" => {
            "there are no persistent volumes (use emptyDir or hostPath)"
        }
        "ReplicationController" => "no pods are made (use a Deployment)",
        "ResourceQuota" | "LimitRange" => "resources are not limited",
        "PriorityClass" => "pods have no priorities",
        _ => return None,
    };
    Some(format!("{} objects are only stored in this cluster: {lacking}", def.kind))
}

fn has_rules(value: &Value) -> bool {
    match value {
        Value::Object(map) => map.contains_key("x-kubernetes-validations") || map.values().any(has_rules),
        Value::Array(items) => items.iter().any(has_rules),
        _ => false,
    }
}

/// What a client that asks for a group version we leave out is told, where a bare "not found" would puzzle.
pub(crate) fn refusal(group: &str, version: &str) -> Option<&'static str> {
    // `kubectl autoscale` posts this version.
    (group == "autoscaling" && version == "v1")
        .then_some("this cluster has no autoscaler: set the number of replicas with `kubectl scale`")
}
