//! `lateen status`: what runs, how to reach it, and what is wrong.

use anyhow::Result;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{Pod, Service};
use kube::api::{ApiResource, DynamicObject, ListParams};
use kube::{Api, Client, ResourceExt};
use serde::Serialize;
use serde_json::Value;

use crate::args::Output;
use crate::cluster::{ClusterArgs, api_failure};
use crate::control_plane::{ControlPlane, SyncState};
use crate::style::Style;
use crate::table::Table;

/// Configuration kinds whose status may carry warnings, with their plural names.
const CONFIGURATION: [(&str, &str); 3] =
    [("Gateway", "gateways"), ("VirtualService", "virtualservices"), ("DestinationRule", "destinationrules")];

/// Everything that is shown.
#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
struct Report {
    components: Vec<Component>,
    pods: PodCount,
    /// `http://ADDRESS/` of the ingress gateway.
    gateway: Option<String>,
    /// Engine of proxies that don't choose one.
    engine: Option<String>,
    proxies: Proxies,
    warnings: Vec<Warning>,
    /// Parts that could not be asked, and why.
    unknown: Vec<String>,
}

#[derive(Debug, Serialize)]
struct Component {
    name: String,
    ready: i32,
    wanted: i32,
}

#[derive(Debug, Default, Serialize)]
struct PodCount {
    ready: usize,
    total: usize,
}

#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
struct Proxies {
    in_sync: usize,
    total: usize,
}

#[derive(Debug, PartialEq, Eq, Serialize)]
struct Warning {
    /// `Kind namespace/name`.
    object: String,
    message: String,
}

/// Prints the state of the mesh.
///
/// # Errors
/// When there is no cluster, or it does not answer.
pub(crate) async fn run(cluster: &ClusterArgs, output: Output) -> Result<()> {
    let client = cluster.client().await?;
    let report = gather(cluster, &client).await?;
    match output {
        Output::Short => crate::output::text(&describe(&report, Style::stdout()))?,
        structured => crate::output::print(&report, structured)?,
    }
    Ok(())
}

async fn gather(cluster: &ClusterArgs, client: &Client) -> Result<Report> {
    let everything = ListParams::default();
    let mesh = &cluster.istio_namespace;
    let deployments = Api::<Deployment>::namespaced(client.clone(), mesh).list(&everything).await;
    let deployments = deployments.map_err(|error| api_failure("list the mesh's components", &error))?;
    let pods = Api::<Pod>::all(client.clone()).list(&everything).await;
    let pods = pods.map_err(|error| api_failure("list pods", &error))?;
    let mut report = Report {
        components: deployments.iter().map(component).collect(),
        pods: PodCount {
            ready: pods.iter().filter(|pod| crate::pods::is_ready(pod)).count(),
            total: pods.items.len(),
        },
        ..Report::default()
    };
    let services: Api<Service> = Api::namespaced(client.clone(), mesh);
    match services.get_opt("istio-ingressgateway").await {
        Ok(service) => report.gateway = service.as_ref().and_then(gateway_address),
        Err(error) => report.unknown.push(format!("gateway: {error}")),
    }
    report.engine = default_engine(client, mesh).await;
    match proxies(cluster).await {
        Ok(proxies) => report.proxies = proxies,
        Err(error) => report.unknown.push(format!("proxies: {error}")),
    }
    for (kind, plural) in CONFIGURATION {
        match warnings(client, kind, plural).await {
            Ok(found) => report.warnings.extend(found),
            // The kind is not installed: there is nothing to warn about.
            Err(kube::Error::Api(status)) if status.code == 404 => {}
            Err(error) => report.unknown.push(format!("{kind}: {error}")),
        }
    }
    Ok(report)
}

fn component(deployment: &Deployment) -> Component {
    let status = deployment.status.as_ref();
    Component {
        name: deployment.name_any(),
        ready: status.and_then(|status| status.ready_replicas).unwrap_or(0),
        wanted: deployment.spec.replicas.unwrap_or(1),
    }
}

fn gateway_address(service: &Service) -> Option<String> {
    let ingress = service.status.as_ref()?.load_balancer.as_ref()?.ingress.as_ref()?.first()?;
    let address = ingress.ip.as_ref().or(ingress.hostname.as_ref())?;
    Some(format!("http://{address}/"))
}

/// From the values the injection webhook uses.
async fn default_engine(client: &Client, namespace: &str) -> Option<String> {
    let maps: Api<k8s_openapi::api::core::v1::ConfigMap> = Api::namespaced(client.clone(), namespace);
    let map = maps.get_opt("istio-sidecar-injector").await.ok()??;
    let values: Value = serde_json::from_str(map.data?.get("values")?).ok()?;
    values.pointer("/global/proxy/engine")?.as_str().map(str::to_owned)
}

async fn proxies(cluster: &ClusterArgs) -> Result<Proxies> {
    let statuses = ControlPlane::find(cluster).await?.sync_statuses().await?;
    let settled = |state| !matches!(state, SyncState::Stale | SyncState::Error);
    let in_sync = statuses.iter().filter(|status| status.types.iter().all(|t| settled(t.state))).count();
    Ok(Proxies { in_sync, total: statuses.len() })
}

async fn warnings(client: &Client, kind: &str, plural: &str) -> kube::Result<Vec<Warning>> {
    let resource = ApiResource {
        group: "networking.istio.io".to_owned(),
        version: "v1".to_owned(),
        api_version: "networking.istio.io/v1".to_owned(),
        kind: kind.to_owned(),
        plural: plural.to_owned(),
    };
    let objects: Api<DynamicObject> = Api::all_with(client.clone(), &resource);
    let list = objects.list(&ListParams::default()).await?;
    Ok(list.iter().flat_map(|object| object_warnings(kind, object)).collect())
}

/// Conditions that aren't true and validation messages, as Istio's status has them.
fn object_warnings(kind: &str, object: &DynamicObject) -> Vec<Warning> {
    let name = format!("{kind} {}/{}", object.namespace().unwrap_or_default(), object.name_any());
    let list =
        |pointer: &str| object.data.pointer(pointer).and_then(Value::as_array).cloned().unwrap_or_default();
    let text = |value: &Value, pointer: &str| {
        value.pointer(pointer).and_then(Value::as_str).unwrap_or_default().to_owned()
    };
    let conditions = list("/status/conditions");
    let conditions = conditions
        .iter()
        .filter(|condition| text(condition, "/status") == "False")
        .map(|condition| [text(condition, "/message"), text(condition, "/reason")])
        .filter_map(|texts| texts.into_iter().find(|text| !text.is_empty()));
    let messages = list("/status/validationMessages");
    let messages = messages.iter().map(|message| {
        let code = text(message, "/type/code");
        let words =
            [text(message, "/message"), text(message, "/type/name"), text(message, "/documentationUrl")];
        let words = words.into_iter().find(|words| !words.is_empty()).unwrap_or_default();
        if code.is_empty() { words } else { format!("[{code}] {words}") }
    });
    let mut found: Vec<_> =
        conditions.chain(messages).map(|message| Warning { object: name.clone(), message }).collect();
    found.dedup();
    found
}

fn describe(report: &Report, style: Style) -> String {
    let mut out = String::new();
    let mut components = Table::new(["COMPONENT", "READY"]);
    for component in &report.components {
        components.row([component.name.clone(), format!("{}/{}", component.ready, component.wanted)]);
    }
    out += &components.to_string();
    let none = || "none".to_owned();
    out += &format!("\nPods:     {} of {} ready\n", report.pods.ready, report.pods.total);
    out += &format!("Gateway:  {}\n", report.gateway.clone().unwrap_or_else(none));
    out += &format!("Engine:   {}\n", report.engine.as_deref().unwrap_or("unknown"));
    let Proxies { in_sync, total } = report.proxies;
    let proxies = format!("{in_sync} of {total} in sync");
    out += &format!(
        "Proxies:  {}\n",
        if in_sync == total { style.good(&proxies) } else { style.warn(&proxies) }
    );
    if !report.warnings.is_empty() {
        out += &format!("\n{}\n", style.warn("Warnings:"));
    }
    for warning in &report.warnings {
        out += &format!("  {}: {}\n", warning.object, warning.message);
    }
    for unknown in &report.unknown {
        out += &format!("{} {unknown}\n", style.bad("unknown:"));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn warnings_come_from_conditions_and_messages() {
        let object: DynamicObject = serde_json::from_value(json!({
            "apiVersion": "networking.istio.io/v1", "kind": "VirtualService",
            "metadata": { "name": "web", "namespace": "default" },
            "status": {
                "conditions": [
                    { "type": "Reconciled", "status": "True" },
                    { "type": "Valid", "status": "False", "reason": "R", "message": "host x does not exist" },
                ],
                "validationMessages": [{ "type": { "code": "IST0101", "name": "ReferencedResourceNotFound" } }],
            },
        }))
        .unwrap();
        let warnings = object_warnings("VirtualService", &object);
        let messages: Vec<_> = warnings.iter().map(|warning| warning.message.as_str()).collect();
        assert_eq!(messages, ["host x does not exist", "[IST0101] ReferencedResourceNotFound"]);
        assert_eq!(warnings[0].object, "VirtualService default/web");
    }

    #[test]
    fn the_report_says_what_is_missing() {
        let report = Report {
            components: vec![Component { name: "istiod".into(), ready: 1, wanted: 1 }],
            pods: PodCount { ready: 3, total: 4 },
            gateway: Some("http://10.97.0.1/".into()),
            engine: Some("lateen".into()),
            proxies: Proxies { in_sync: 2, total: 3 },
            warnings: vec![Warning { object: "Gateway a/b".into(), message: "no such selector".into() }],
            unknown: vec![],
        };
        let text = describe(&report, Style::stdout());
        for line in [
            "istiod        1/1",
            "Pods:     3 of 4 ready",
            "Proxies:  2 of 3 in sync",
            "Gateway a/b: no such selector",
        ] {
            assert!(text.contains(line), "{text}");
        }
    }
}
