//! Columns and cells of built-in kinds (`pkg/printers/internalversion/printers.go`).

use serde_json::{Value, json};

use super::{age_of, human_duration, pod};
use crate::{
    resources::{ResourceDef, meta},
    scale::selector_text,
    schema::strings,
};

/// Column names; the second part is shown by `-o wide` only (after a `|`).
fn names(def: &ResourceDef) -> &'static str {
    match def.kind.as_str() {
        "Pod" => "Name,Ready,Status,Restarts,Age|IP,Node,Nominated Node,Readiness Gates",
        "Service" => "Name,Type,Cluster-IP,External-IP,Port(s),Age|Selector",
        "Endpoints" => "Name,Endpoints,Age",
        "EndpointSlice" => "Name,AddressType,Ports,Endpoints,Age",
        "ConfigMap" => "Name,Data,Age",
        "Secret" => "Name,Type,Data,Age",
        "Namespace" => "Name,Status,Age",
        "ServiceAccount" => "Name,Secrets,Age",
        "Node" => {
            "Name,Status,Roles,Age,Version|Internal-IP,External-IP,OS-Image,Kernel-Version,Container-Runtime"
        }
        "Event" => "Last Seen,Type,Reason,Object,Message|Subobject,Source,First Seen,Count,Name",
        "Deployment" => "Name,Ready,Up-to-date,Available,Age|Containers,Images,Selector",
        "ReplicaSet" | "ReplicationController" => "Name,Desired,Current,Ready,Age|Containers,Images,Selector",
        "StatefulSet" => "Name,Ready,Age|Containers,Images",
        "DaemonSet" => {
            "Name,Desired,Current,Ready,Up-to-date,Available,Node Selector,Age|Containers,Images,Selector"
        }
        "ControllerRevision" => "Name,Controller,Revision,Age",
        "Job" => "Name,Status,Completions,Duration,Age|Containers,Images,Selector",
        "CronJob" => "Name,Schedule,Timezone,Suspend,Active,Last Schedule,Age|Containers,Images,Selector",
        "Ingress" => "Name,Class,Hosts,Address,Ports,Age",
        "IngressClass" => "Name,Controller,Parameters,Age",
        "NetworkPolicy" => "Name,Pod-Selector,Age",
        "Lease" => "Name,Holder,Age",
        "RoleBinding" | "ClusterRoleBinding" => "Name,Role,Age|Users,Groups,ServiceAccounts",
        "Role" | "ClusterRole" | "CustomResourceDefinition" => "Name,Created At",
        "MutatingWebhookConfiguration" | "ValidatingWebhookConfiguration" => "Name,Webhooks,Age",
        "HorizontalPodAutoscaler" => "Name,Reference,MinPods,MaxPods,Replicas,Age",
        "PodDisruptionBudget" => "Name,Min Available,Max Unavailable,Allowed Disruptions,Age",
        "CertificateSigningRequest" => "Name,Age,SignerName,Requestor,Condition",
        "StorageClass" => "Name,Provisioner,ReclaimPolicy,VolumeBindingMode,AllowVolumeExpansion,Age",
        "PriorityClass" => "Name,Value,Global-Default,Age",
        "PersistentVolume" => "Name,Capacity,Access Modes,Reclaim Policy,Status,Claim,StorageClass,Age",
        "PersistentVolumeClaim" => "Name,Status,Volume,Capacity,Access Modes,StorageClass,Age",
        _ => "Name,Age",
    }
}

/// Column names with their priority (1 for `-o wide`).
pub(super) fn layout(def: &ResourceDef) -> Vec<(&'static str, i64)> {
    let (narrow, wide) = names(def).split_once('|').unwrap_or((names(def), ""));
    let wide = wide.split(',').filter(|name| !name.is_empty()).map(|name| (name, 1));
    narrow.split(',').map(|name| (name, 0)).chain(wide).collect()
}

fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value[key].as_str().unwrap_or_default()
}

fn or_none(text: &str) -> String {
    if text.is_empty() { "<none>".to_owned() } else { text.to_owned() }
}

fn list<'a>(value: &'a Value, key: &str) -> &'a [Value] {
    value[key].as_array().map(Vec::as_slice).unwrap_or_default()
}

fn number(value: &Value) -> i64 {
    value.as_i64().unwrap_or(0)
}

fn size(value: &Value) -> usize {
    value.as_object().map_or_else(|| value.as_array().map_or(0, Vec::len), serde_json::Map::len)
}

/// One cell per column of [`layout`].
pub(super) fn cells(def: &ResourceDef, object: &Value, now: jiff::Timestamp) -> Vec<Value> {
    layout(def).into_iter().map(|(column, _)| cell(def, object, column, now)).collect()
}

fn cell(def: &ResourceDef, object: &Value, column: &str, now: jiff::Timestamp) -> Value {
    let (spec, status) = (&object["spec"], &object["status"]);
    match column {
        "Name" => return json!(meta(object, "name")),
        "Age" => return json!(age_of(meta(object, "creationTimestamp"), now)),
        "Created At" => return json!(meta(object, "creationTimestamp")),
        "Containers" | "Images" => return json!(containers(pod_spec(object), column)),
        _ => {}
    }
    match def.kind.as_str() {
        "Pod" => pod_cell(object, column, now),
        "Service" => service_cell(object, column),
        "Node" => node_cell(object, column),
        "Event" => event_cell(def, object, column, now),
        "Endpoints" => json!(endpoints(object)),
        "EndpointSlice" => slice_cell(object, column),
        "ConfigMap" => json!(size(&object["data"]) + size(&object["binaryData"])),
        "Secret" if column == "Type" => json!(text(object, "type")),
        "Secret" => json!(size(&object["data"])),
        "Namespace" => json!(text(status, "phase")),
        "ServiceAccount" => json!(list(object, "secrets").len()),
        "Deployment" | "ReplicaSet" | "ReplicationController" | "StatefulSet" | "DaemonSet" => {
            workload_cell(def, object, column)
        }
        "Job" => job_cell(object, column, now),
        "CronJob" => cron_cell(object, column, now),
        "Lease" => json!(text(spec, "holderIdentity")),
        "NetworkPolicy" => json!(or_none(&selector_text(&spec["podSelector"]))),
        "Ingress" => ingress_cell(object, column),
        "IngressClass" if column == "Controller" => json!(text(spec, "controller")),
        "MutatingWebhookConfiguration" | "ValidatingWebhookConfiguration" => {
            json!(list(object, "webhooks").len())
        }
        "RoleBinding" | "ClusterRoleBinding" => binding_cell(object, column),
        "PersistentVolume" | "PersistentVolumeClaim" => volume_cell(object, column),
        _ => other_cell(object, column),
    }
}

fn pod_spec(object: &Value) -> &Value {
    let template = &object["spec"]["template"];
    if template.is_object() {
        &template["spec"]
    } else {
        &object["spec"]["jobTemplate"]["spec"]["template"]["spec"]
    }
}

fn containers(spec: &Value, column: &str) -> String {
    let field = if column == "Images" { "image" } else { "name" };
    list(spec, "containers").iter().map(|c| text(c, field)).collect::<Vec<_>>().join(",")
}

fn pod_cell(object: &Value, column: &str, now: jiff::Timestamp) -> Value {
    let (spec, status) = (&object["spec"], &object["status"]);
    let summary = || pod::summarize(object, now);
    match column {
        "Ready" => json!(summary().ready),
        "Status" => json!(summary().status),
        "Restarts" => json!(summary().restarts),
        "IP" => json!(or_none(text(status, "podIP"))),
        "Node" => json!(or_none(text(spec, "nodeName"))),
        "Nominated Node" => json!(or_none(text(status, "nominatedNodeName"))),
        _ => {
            let gates = list(spec, "readinessGates");
            let met = |gate: &&Value| {
                list(status, "conditions")
                    .iter()
                    .any(|c| c["type"] == gate["conditionType"] && c["status"] == "True")
            };
            if gates.is_empty() {
                json!("<none>")
            } else {
                json!(format!("{}/{}", gates.iter().filter(met).count(), gates.len()))
            }
        }
    }
}

fn service_cell(object: &Value, column: &str) -> Value {
    let spec = &object["spec"];
    match column {
        "Type" => json!(text(spec, "type")),
        "Cluster-IP" => json!(or_none(text(spec, "clusterIP"))),
        "External-IP" => json!(external_address(object)),
        "Port(s)" => {
            let ports: Vec<String> = list(spec, "ports")
                .iter()
                .map(|port| {
                    let node = number(&port["nodePort"]);
                    let node = if node > 0 { format!(":{node}") } else { String::new() };
                    format!("{}{node}/{}", number(&port["port"]), text(port, "protocol"))
                })
                .collect();
            json!(or_none(&ports.join(",")))
        }
        _ => json!(or_none(&selector_text(&spec["selector"]))),
    }
}

fn external_address(object: &Value) -> String {
    let spec = &object["spec"];
    let given = strings(&spec["externalIPs"]);
    match text(spec, "type") {
        "ExternalName" => or_none(text(spec, "externalName")),
        "LoadBalancer" => {
            let ingress = list(&object["status"]["loadBalancer"], "ingress");
            let mut addresses: Vec<String> = ingress
                .iter()
                .map(|one| {
                    if text(one, "ip").is_empty() { text(one, "hostname") } else { text(one, "ip") }
                        .to_owned()
                })
                .collect();
            addresses.extend(given);
            if addresses.is_empty() { "<pending>".to_owned() } else { addresses.join(",") }
        }
        _ => or_none(&given.join(",")),
    }
}

fn node_cell(object: &Value, column: &str) -> Value {
    let (status, info) = (&object["status"], &object["status"]["nodeInfo"]);
    let address = |kind: &str| {
        let found = list(status, "addresses").iter().find(|address| address["type"] == kind);
        or_none(found.map_or("", |address| text(address, "address")))
    };
    match column {
        "Status" => {
            let ready = list(status, "conditions").iter().find(|c| c["type"] == "Ready");
            let mut word = match ready.map(|c| text(c, "status")) {
                Some("True") => "Ready",
                Some(_) => "NotReady",
                None => "Unknown",
            }
            .to_owned();
            if object["spec"]["unschedulable"] == true {
                word.push_str(",SchedulingDisabled");
            }
            json!(word)
        }
        "Roles" => {
            let labels = object["metadata"]["labels"].as_object();
            let roles: Vec<&str> = labels
                .into_iter()
                .flatten()
                .filter_map(|(k, _)| k.strip_prefix("node-role.kubernetes.io/"))
                .collect();
            json!(or_none(&roles.join(",")))
        }
        "Version" => json!(text(info, "kubeletVersion")),
        "Internal-IP" => json!(address("InternalIP")),
        "External-IP" => json!(address("ExternalIP")),
        "OS-Image" => json!(text(info, "osImage")),
        "Kernel-Version" => json!(text(info, "kernelVersion")),
        _ => json!(text(info, "containerRuntimeVersion")),
    }
}

fn event_cell(def: &ResourceDef, object: &Value, column: &str, now: jiff::Timestamp) -> Value {
    let new = def.group == "events.k8s.io";
    let pick = |core: &str, events: &str| &object[if new { events } else { core }];
    let subject = pick("involvedObject", "regarding");
    let first = pick("firstTimestamp", "deprecatedFirstTimestamp").as_str().or(object["eventTime"].as_str());
    let last = object["series"]["lastObservedTime"]
        .as_str()
        .or(pick("lastTimestamp", "deprecatedLastTimestamp").as_str())
        .or(first);
    match column {
        "Last Seen" => json!(age_of(last.unwrap_or_default(), now)),
        "First Seen" => json!(age_of(first.unwrap_or_default(), now)),
        "Type" => json!(text(object, "type")),
        "Reason" => json!(text(object, "reason")),
        "Object" => json!(format!("{}/{}", text(subject, "kind").to_lowercase(), text(subject, "name"))),
        "Message" => json!(pick("message", "note").as_str().unwrap_or_default().trim()),
        "Subobject" => json!(text(subject, "fieldPath")),
        "Source" => {
            let component = text(pick("source", "deprecatedSource"), "component");
            let reporter = pick("reportingComponent", "reportingController").as_str().unwrap_or_default();
            json!(if component.is_empty() { reporter } else { component })
        }
        _ => json!(pick("count", "deprecatedCount").as_i64().unwrap_or(1)),
    }
}

/// At most three, and how many more.
fn shortened(items: &[String]) -> String {
    let shown = items.iter().take(3).cloned().collect::<Vec<_>>().join(",");
    if items.len() > 3 { format!("{shown} + {} more...", items.len() - 3) } else { or_none(&shown) }
}

fn endpoints(object: &Value) -> String {
    let mut found = Vec::new();
    for subset in list(object, "subsets") {
        for port in list(subset, "ports") {
            for address in list(subset, "addresses") {
                found.push(format!("{}:{}", text(address, "ip"), number(&port["port"])));
            }
        }
    }
    shortened(&found)
}

fn slice_cell(object: &Value, column: &str) -> Value {
    match column {
        "AddressType" => json!(text(object, "addressType")),
        "Ports" => {
            let ports: Vec<String> =
                list(object, "ports").iter().map(|p| number(&p["port"]).to_string()).collect();
            json!(if ports.is_empty() { "<unset>".to_owned() } else { shortened(&ports) })
        }
        _ => {
            let addresses: Vec<String> = list(object, "endpoints")
                .iter()
                .flat_map(|endpoint| strings(&endpoint["addresses"]))
                .collect();
            json!(if addresses.is_empty() { "<unset>".to_owned() } else { shortened(&addresses) })
        }
    }
}

fn workload_cell(def: &ResourceDef, object: &Value, column: &str) -> Value {
    let (spec, status) = (&object["spec"], &object["status"]);
    let daemon = def.kind == "DaemonSet";
    match column {
        "Ready" if daemon => json!(number(&status["numberReady"])),
        "Ready" if matches!(def.kind.as_str(), "Deployment" | "StatefulSet") => {
            json!(format!("{}/{}", number(&status["readyReplicas"]), number(&spec["replicas"])))
        }
        "Ready" => json!(number(&status["readyReplicas"])),
        "Up-to-date" if daemon => json!(number(&status["updatedNumberScheduled"])),
        "Up-to-date" => json!(number(&status["updatedReplicas"])),
        "Available" if daemon => json!(number(&status["numberAvailable"])),
        "Available" => json!(number(&status["availableReplicas"])),
        "Desired" if daemon => json!(number(&status["desiredNumberScheduled"])),
        "Desired" => json!(number(&spec["replicas"])),
        "Current" if daemon => json!(number(&status["currentNumberScheduled"])),
        "Current" => json!(number(&status["replicas"])),
        "Node Selector" => json!(or_none(&selector_text(&spec["template"]["spec"]["nodeSelector"]))),
        _ => json!(selector_text(&spec["selector"])),
    }
}

fn job_cell(object: &Value, column: &str, now: jiff::Timestamp) -> Value {
    let (spec, status) = (&object["spec"], &object["status"]);
    let holds =
        |kind: &str| list(status, "conditions").iter().any(|c| c["type"] == kind && c["status"] == "True");
    match column {
        "Status" => json!(match () {
            () if holds("Complete") => "Complete",
            () if holds("Failed") => "Failed",
            () if object["metadata"]["deletionTimestamp"].is_string() => "Terminating",
            () if holds("Suspended") => "Suspended",
            () => "Running",
        }),
        "Completions" => {
            let wanted = spec["completions"].as_i64().or(spec["parallelism"].as_i64()).unwrap_or(1);
            json!(format!("{}/{wanted}", number(&status["succeeded"])))
        }
        "Duration" => {
            let time =
                |key: &str| text(status, key).parse::<jiff::Timestamp>().ok().map(jiff::Timestamp::as_second);
            let duration =
                time("startTime").map(|start| time("completionTime").unwrap_or(now.as_second()) - start);
            json!(duration.map_or_else(String::new, human_duration))
        }
        _ => json!(selector_text(&spec["selector"])),
    }
}

fn cron_cell(object: &Value, column: &str, now: jiff::Timestamp) -> Value {
    let (spec, status) = (&object["spec"], &object["status"]);
    match column {
        "Schedule" => json!(text(spec, "schedule")),
        "Timezone" => json!(or_none(text(spec, "timeZone"))),
        "Suspend" => json!(if spec["suspend"] == true { "True" } else { "False" }),
        "Active" => json!(list(status, "active").len()),
        "Last Schedule" if status["lastScheduleTime"].is_string() => {
            json!(age_of(text(status, "lastScheduleTime"), now))
        }
        "Last Schedule" => json!("<none>"),
        _ => json!(or_none(&selector_text(&spec["jobTemplate"]["spec"]["selector"]))),
    }
}

fn ingress_cell(object: &Value, column: &str) -> Value {
    let spec = &object["spec"];
    match column {
        "Class" => json!(or_none(text(spec, "ingressClassName"))),
        "Hosts" => {
            let hosts: Vec<String> =
                list(spec, "rules").iter().filter_map(|r| r["host"].as_str().map(str::to_owned)).collect();
            json!(if hosts.is_empty() { "*".to_owned() } else { hosts.join(",") })
        }
        "Address" => {
            let ingress = list(&object["status"]["loadBalancer"], "ingress");
            let all: Vec<&str> = ingress
                .iter()
                .map(|i| if text(i, "ip").is_empty() { text(i, "hostname") } else { text(i, "ip") })
                .collect();
            json!(all.join(","))
        }
        _ => json!(if list(spec, "tls").is_empty() { "80" } else { "80, 443" }),
    }
}

fn binding_cell(object: &Value, column: &str) -> Value {
    let subjects = |kind: &str| {
        let names: Vec<String> = list(object, "subjects")
            .iter()
            .filter(|subject| subject["kind"] == kind)
            .map(|subject| match text(subject, "namespace") {
                "" => text(subject, "name").to_owned(),
                namespace => format!("{namespace}/{}", text(subject, "name")),
            })
            .collect();
        json!(names.join(", "))
    };
    match column {
        "Role" => json!(format!("{}/{}", text(&object["roleRef"], "kind"), text(&object["roleRef"], "name"))),
        "Users" => subjects("User"),
        "Groups" => subjects("Group"),
        _ => subjects("ServiceAccount"),
    }
}

fn volume_cell(object: &Value, column: &str) -> Value {
    let (spec, status) = (&object["spec"], &object["status"]);
    let claim = object["kind"] == "PersistentVolumeClaim";
    match column {
        "Status" => json!(text(status, "phase")),
        "Volume" => json!(text(spec, "volumeName")),
        "Capacity" => json!(text(if claim { &status["capacity"] } else { &spec["capacity"] }, "storage")),
        "Access Modes" => json!(strings(&spec["accessModes"]).join(",")),
        "Reclaim Policy" => json!(text(spec, "persistentVolumeReclaimPolicy")),
        "Claim" => {
            json!(format!("{}/{}", text(&spec["claimRef"], "namespace"), text(&spec["claimRef"], "name")))
        }
        _ => json!(text(spec, "storageClassName")),
    }
}

fn other_cell(object: &Value, column: &str) -> Value {
    let (spec, status) = (&object["spec"], &object["status"]);
    let shown = |value: &Value| {
        value
            .as_str()
            .map_or_else(|| if value.is_null() { "N/A".to_owned() } else { value.to_string() }, str::to_owned)
    };
    match column {
        "Reference" => json!(format!(
            "{}/{}",
            text(&spec["scaleTargetRef"], "kind"),
            text(&spec["scaleTargetRef"], "name")
        )),
        "MinPods" => json!(shown(&spec["minReplicas"])),
        "MaxPods" => json!(shown(&spec["maxReplicas"])),
        "Replicas" => json!(number(&status["currentReplicas"])),
        "Min Available" => json!(shown(&spec["minAvailable"])),
        "Max Unavailable" => json!(shown(&spec["maxUnavailable"])),
        "Allowed Disruptions" => json!(number(&status["disruptionsAllowed"])),
        "Controller" => {
            let owner = list(&object["metadata"], "ownerReferences").first();
            json!(owner.map_or_else(
                || "<none>".to_owned(),
                |o| format!("{}/{}", text(o, "kind").to_lowercase(), text(o, "name"))
            ))
        }
        "Revision" => json!(number(&object["revision"])),
        "Provisioner" => json!(text(object, "provisioner")),
        "ReclaimPolicy" => json!(text(object, "reclaimPolicy")),
        "VolumeBindingMode" => json!(text(object, "volumeBindingMode")),
        "AllowVolumeExpansion" => json!(object["allowVolumeExpansion"] == true),
        "Value" => json!(number(&object["value"])),
        "Global-Default" => json!(object["globalDefault"] == true),
        "SignerName" => json!(text(spec, "signerName")),
        "Requestor" => json!(text(spec, "username")),
        "Condition" => {
            let words: Vec<&str> = list(status, "conditions").iter().map(|c| text(c, "type")).collect();
            json!(if words.is_empty() { "Pending".to_owned() } else { words.join(",") })
        }
        _ => json!("<none>"),
    }
}
