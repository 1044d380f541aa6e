//! `lateen x workload entry configure`: the files `cluster.env`, `mesh.yaml`, `istio-token`, `root-cert.pem` and `hosts`.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::net::IpAddr;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use anyhow::{Context as _, Result};
use k8s_openapi::api::authentication::v1::{TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::{ConfigMap, Service, ServiceAccount};
use kube::api::{ApiResource, DynamicObject, PostParams};
use kube::core::GroupVersionKind;
use kube::{Api, Client};
use serde_json::{Map, Value, json};

use super::{CANONICAL_NAME, CANONICAL_REVISION, ConfigureArgs};
use crate::cluster::{ClusterArgs, api_failure};
use crate::error::Failure;
use crate::output;

/// Annotation with proxy config of a WorkloadGroup's machines.
const PROXY_CONFIG: &str = "proxy.istio.io/config";
/// Ports that are not captured: ssh, since a machine must stay reachable whatever becomes of its proxy; metrics and health.
const EXCLUDED_PORTS: &str = "22,15090,15021";

/// What the files are made of.
struct Machine<'a> {
    args: &'a ConfigureArgs,
    istio_namespace: &'a str,
    namespace: String,
    /// The WorkloadGroup.
    group: Value,
    /// `defaultConfig` of the mesh config, with what the group says of it.
    proxy: Value,
    trust_domain: String,
    cluster_id: String,
}

pub(super) async fn run(cluster: &ClusterArgs, args: &ConfigureArgs) -> Result<()> {
    let client = cluster.client().await?;
    let group = match &args.file {
        Some(file) => read_group(file)?,
        None => fetch_group(&client, args, cluster.namespace()).await?,
    };
    let namespace = group["metadata"]["namespace"].as_str().unwrap_or(cluster.namespace()).to_owned();
    let suffix = if is_revision(&args.revision) { format!("-{}", args.revision) } else { String::new() };
    let mesh = config_map(&client, &cluster.istio_namespace, &format!("istio{suffix}")).await?;
    let mesh: Value = serde_saphyr::from_str(mesh.get("mesh").map_or("{}", String::as_str))
        .with_context(|| format!("the mesh config in ConfigMap istio{suffix} cannot be read"))?;
    let cluster_id = match &args.cluster_id {
        Some(id) => id.clone(),
        None => {
            let injector = format!("istio-sidecar-injector{suffix}");
            let injector = config_map(&client, &cluster.istio_namespace, &injector).await?;
            cluster_name(injector.get("values").map_or("", String::as_str))
        }
    };
    let proxy = proxy_config(&mesh, &group)?;
    let machine = Machine {
        args,
        istio_namespace: &cluster.istio_namespace,
        namespace,
        group,
        proxy,
        trust_domain: mesh["trustDomain"].as_str().unwrap_or_default().to_owned(),
        cluster_id,
    };
    let roots = config_map(&client, &machine.namespace, "istio-ca-root-cert").await?;
    let roots = roots.get("root-cert.pem").cloned().unwrap_or_default();
    let token = token(&client, &machine).await?;
    let address = match args.ingress_ip {
        Some(address) => Some(address),
        None => ingress_address(&client, &args.ingress_service, &cluster.istio_namespace).await?,
    };
    let folder = &args.output;
    std::fs::create_dir_all(folder)
        .with_context(|| format!("cannot make the folder {}", folder.display()))?;
    let mesh = serde_saphyr::to_string(&json!({ "defaultConfig": machine.proxy_yaml() }))?;
    write(folder, "mesh.yaml", &mesh, 0o644)?;
    write(folder, "cluster.env", &machine.cluster_env(), 0o644)?;
    write(folder, "root-cert.pem", &roots, 0o644)?;
    write(folder, "istio-token", &token, 0o600)?;
    let account = machine.account();
    eprintln!(
        "Warning: a security token for namespace {:?} and service account {account:?} has been generated and stored at {:?}",
        machine.namespace,
        folder.join("istio-token").display().to_string()
    );
    let host = machine.istiod();
    if address.is_none() {
        eprintln!(
            "Warning: no address of {} in {} was found. Use --ingressIP to say where the machine reaches {host}",
            args.ingress_service, cluster.istio_namespace
        );
    }
    let hosts = address.map(|address| format!("{address} {host}\n")).unwrap_or_default();
    write(folder, "hosts", &hosts, 0o644)?;
    output::text(&format!("Configuration generation into directory {} was successful\n", folder.display()))
}

fn is_revision(revision: &str) -> bool {
    !revision.is_empty() && revision != "default"
}

fn read_group(file: &Path) -> Result<Value> {
    let text = std::fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
    let group: Value =
        serde_saphyr::from_str(&text).with_context(|| format!("{} is no YAML", file.display()))?;
    if group["kind"] != "WorkloadGroup" {
        let found = group["kind"].as_str().unwrap_or("nothing with a kind");
        return Err(Failure::new(
            format!("{} has no WorkloadGroup but {found}.", file.display()),
            "lateen x workload group create",
        )
        .into());
    }
    Ok(group)
}

async fn fetch_group(client: &Client, args: &ConfigureArgs, namespace: &str) -> Result<Value> {
    let name = args.name.as_deref().unwrap_or_default();
    let kind = GroupVersionKind::gvk("networking.istio.io", "v1", "WorkloadGroup");
    let resource = ApiResource::from_gvk(&kind);
    let api: Api<DynamicObject> = Api::namespaced_with(client.clone(), namespace, &resource);
    let found = api.get_opt(name).await.map_err(|error| api_failure("read the WorkloadGroup", &error))?;
    let Some(found) = found else {
        return Err(Failure::new(
            format!("workloadgroup {name} not found in namespace {namespace}."),
            "lateen x workload group create, and kubectl apply",
        )
        .into());
    };
    Ok(serde_json::to_value(found)?)
}

async fn config_map(client: &Client, namespace: &str, name: &str) -> Result<BTreeMap<String, String>> {
    let api: Api<ConfigMap> = Api::namespaced(client.clone(), namespace);
    let found = api.get_opt(name).await.map_err(|error| api_failure("read a ConfigMap", &error))?;
    let Some(found) = found else {
        return Err(Failure::new(
            format!("configmap {name} was not found in namespace {namespace}."),
            "lateen status, which says whether the mesh is there",
        )
        .into());
    };
    Ok(found.data.unwrap_or_default())
}

/// `global.multiCluster.clusterName` of the injection's values.
fn cluster_name(values: &str) -> String {
    let values: Value = serde_json::from_str(values).unwrap_or_default();
    values["global"]["multiCluster"]["clusterName"].as_str().unwrap_or_default().to_owned()
}

async fn token(client: &Client, machine: &Machine<'_>) -> Result<String> {
    let (namespace, account) = (&machine.namespace, machine.account());
    let api: Api<ServiceAccount> = Api::namespaced(client.clone(), namespace);
    let spec = TokenRequestSpec {
        audiences: Some(vec!["istio-ca".to_owned()]),
        expiration_seconds: Some(machine.args.token_duration),
        ..TokenRequestSpec::default()
    };
    let request = TokenRequest { spec: Some(spec), ..TokenRequest::default() };
    let made = api.create_token_request(&account, &PostParams::default(), &request).await;
    let made = made.map_err(|error| {
        api_failure(
            &format!("create a token under service account {account} in namespace {namespace}"),
            &error,
        )
    })?;
    Ok(made.status.and_then(|status| status.token).unwrap_or_default())
}

/// The address of the gateway by which the control plane is reached.
async fn ingress_address(client: &Client, service: &str, istio_namespace: &str) -> Result<Option<IpAddr>> {
    let (name, namespace) = service.split_once('.').unwrap_or((service, istio_namespace));
    let api: Api<Service> = Api::namespaced(client.clone(), namespace);
    let found = api.get_opt(name).await.map_err(|error| api_failure("read the gateway's Service", &error))?;
    let Some(found) = found else { return Ok(None) };
    let balancer = found.status.and_then(|status| status.load_balancer).and_then(|status| status.ingress);
    let of_balancer = balancer.into_iter().flatten().find_map(|one| one.ip);
    let external = found.spec.and_then(|spec| spec.external_ips).into_iter().flatten().next();
    Ok(of_balancer.or(external).and_then(|address| address.parse().ok()))
}

/// The mesh's proxy config with that of the group's annotations over it.
fn proxy_config(mesh: &Value, group: &Value) -> Result<Value> {
    let mut proxy = mesh["defaultConfig"].clone();
    if !proxy.is_object() {
        proxy = json!({});
    }
    for metadata in [&group["metadata"], &group["spec"]["metadata"]] {
        let Some(text) = metadata["annotations"][PROXY_CONFIG].as_str() else { continue };
        let over: Value = serde_saphyr::from_str(text)
            .with_context(|| format!("annotation {PROXY_CONFIG} of the WorkloadGroup is no YAML"))?;
        for (key, value) in over.as_object().into_iter().flatten() {
            match (key.as_str(), value.as_object()) {
                ("proxyMetadata", Some(fields)) => {
                    for (name, value) in fields {
                        proxy[key][name] = value.clone();
                    }
                }
                _ => proxy[key] = value.clone(),
            }
        }
    }
    Ok(proxy)
}

impl Machine<'_> {
    fn template(&self) -> &Value {
        &self.group["spec"]["template"]
    }

    fn name(&self) -> &str {
        self.group["metadata"]["name"].as_str().unwrap_or_default()
    }

    fn account(&self) -> String {
        let given = self.template()["serviceAccount"].as_str().filter(|name| !name.is_empty());
        given.unwrap_or("default").to_owned()
    }

    /// Host of the control plane.
    fn istiod(&self) -> String {
        let revision = &self.args.revision;
        let istiod = if is_revision(revision) { format!("istiod-{revision}") } else { "istiod".to_owned() };
        format!("{istiod}.{}.svc", self.istio_namespace)
    }

    /// Names and numbers of its ports, by name.
    fn ports(&self) -> Vec<(&String, u64)> {
        let ports = self.template()["ports"].as_object().into_iter().flatten();
        let mut ports: Vec<_> = ports.filter_map(|(name, port)| Some((name, port.as_u64()?))).collect();
        ports.sort();
        ports
    }

    /// What goes into `mesh.yaml` under `defaultConfig`.
    fn proxy_yaml(&self) -> Value {
        let mut labels: BTreeMap<String, String> = BTreeMap::new();
        for of in [&self.group["spec"]["metadata"]["labels"], &self.template()["labels"]] {
            let texts = of.as_object().into_iter().flatten();
            labels.extend(texts.filter_map(|(key, value)| Some((key.clone(), value.as_str()?.to_owned()))));
        }
        let first = |keys: [&str; 3], default: &str| {
            keys.iter().find_map(|key| labels.get(*key)).cloned().unwrap_or_else(|| default.to_owned())
        };
        let service = first([CANONICAL_NAME, "app.kubernetes.io/name", "app"], self.name());
        let revision = first([CANONICAL_REVISION, "app.kubernetes.io/version", "version"], "latest");
        labels.insert(CANONICAL_NAME.to_owned(), service.clone());
        labels.insert(CANONICAL_REVISION.to_owned(), revision.clone());

        let mut proxy = self.proxy.clone();
        if is_revision(&self.args.revision) && proxy["discoveryAddress"].as_str().is_none_or(str::is_empty) {
            proxy["discoveryAddress"] = json!(format!("{}:15012", self.istiod()));
        }
        if let Some(probe) = self.group["spec"].get("probe") {
            proxy["readinessProbe"] = probe.clone();
        }
        let mesh_id = proxy["meshId"].as_str().unwrap_or_default().to_owned();
        let network = self.template()["network"].as_str().unwrap_or_default();
        let labels = serde_json::to_string(&labels).unwrap_or_default();
        let mut metadata = match proxy["proxyMetadata"].take() {
            Value::Object(fields) => fields,
            _ => Map::new(),
        };
        let mut set = |name: &str, value: String| metadata.insert(name.to_owned(), Value::String(value));
        set("CANONICAL_SERVICE", service);
        set("CANONICAL_REVISION", revision);
        set("POD_NAMESPACE", self.namespace.clone());
        set("SERVICE_ACCOUNT", self.account());
        set("TRUST_DOMAIN", self.trust_domain.clone());
        set("ISTIO_META_CLUSTER_ID", self.cluster_id.clone());
        set("ISTIO_META_MESH_ID", mesh_id);
        set("ISTIO_META_NETWORK", network.to_owned());
        let ports: Vec<Value> =
            self.ports().iter().map(|(name, port)| json!({ "name": name, "containerPort": port })).collect();
        if !ports.is_empty() {
            set("ISTIO_META_POD_PORTS", Value::Array(ports).to_string());
        }
        set("ISTIO_META_WORKLOAD_NAME", self.name().to_owned());
        set("ISTIO_METAJSON_LABELS", labels);
        if self.args.capture_dns {
            set("ISTIO_META_DNS_CAPTURE", "true".to_owned());
        }
        if self.args.autoregister {
            set("ISTIO_META_AUTO_REGISTER_GROUP", self.name().to_owned());
        }
        metadata.sort_keys();
        proxy["proxyMetadata"] = Value::Object(metadata);
        proxy
    }

    /// `NAME=VALUE` lines, quoted for a shell.
    fn cluster_env(&self) -> String {
        let ports: Vec<String> = self.ports().iter().map(|(_, port)| port.to_string()).collect();
        let inbound = if ports.is_empty() { "*".to_owned() } else { ports.join(",") };
        let excluded = match self.proxy["statusPort"].as_u64().unwrap_or_default() {
            15090 | 15021 => EXCLUDED_PORTS.to_owned(),
            0 => format!("{EXCLUDED_PORTS},15020"),
            given => format!("{EXCLUDED_PORTS},{given}"),
        };
        let mut vars: BTreeMap<String, String> = BTreeMap::new();
        let given = self.proxy["proxyMetadata"].as_object().into_iter().flatten();
        vars.extend(given.filter_map(|(name, value)| Some((name.clone(), value.as_str()?.to_owned()))));
        let mut set = |name: &str, value: String| vars.insert(name.to_owned(), value);
        set("ISTIO_INBOUND_PORTS", inbound);
        set("ISTIO_NAMESPACE", self.namespace.clone());
        set("ISTIO_SERVICE", format!("{}.{}", self.name(), self.namespace));
        set("ISTIO_SERVICE_CIDR", "*".to_owned());
        set("ISTIO_LOCAL_EXCLUDE_PORTS", excluded);
        set("SERVICE_ACCOUNT", self.account());
        if is_revision(&self.args.revision) {
            set("CA_ADDR", format!("{}:15012", self.istiod()));
        }
        if let Some(address) = self.args.internal_ip {
            set("ISTIO_SVC_IP", address.to_string());
        } else if let Some(address) = self.args.external_ip {
            set("ISTIO_SVC_IP", address.to_string());
            set("REWRITE_PROBE_LEGACY_LOCALHOST_DESTINATION", "true".to_owned());
        }
        vars.iter().map(|(name, value)| format!("{name}={}\n", quoted(value))).collect()
    }
}

/// As a word of a shell.
fn quoted(text: &str) -> String {
    let plain = |letter: char| letter.is_ascii_alphanumeric() || "_@%+=:,./-".contains(letter);
    if !text.is_empty() && text.chars().all(plain) {
        return text.to_owned();
    }
    format!("'{}'", text.replace('\'', "'\"'\"'"))
}

fn write(folder: &Path, name: &str, text: &str, mode: u32) -> Result<()> {
    let path = folder.join(name);
    let failed = || format!("cannot write {}", path.display());
    let new = folder.join(format!(".{name}.new"));
    let mut options = std::fs::OpenOptions::new();
    let mut file =
        options.write(true).create(true).truncate(true).mode(mode).open(&new).with_context(failed)?;
    file.write_all(text.as_bytes()).with_context(failed)?;
    std::fs::rename(&new, &path).with_context(failed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::{Cli, Command, Experimental};
    use crate::workload::{EntryCommand, WorkloadCommand};
    use clap::Parser as _;

    fn args(line: &str) -> ConfigureArgs {
        let line = format!("istioctl x workload entry configure {line}");
        let cli = Cli::try_parse_from(line.split(' ')).unwrap_or_else(|error| panic!("{error}"));
        let Command::Experimental { command: Experimental::Workload { command } } = cli.command else {
            panic!()
        };
        let WorkloadCommand::Entry { command: EntryCommand::Configure(args) } = command else { panic!() };
        args
    }

    fn machine<'a>(args: &'a ConfigureArgs, spec: Value) -> Machine<'a> {
        let group = json!({ "metadata": { "name": "shop", "annotations": {
            PROXY_CONFIG: "proxyMetadata: {A: group}\nconcurrency: 3" } }, "spec": spec });
        let mesh = json!({ "defaultConfig": { "discoveryAddress": "istiod.istio-system.svc:15012",
            "proxyMetadata": { "A": "mesh", "B": "b c" } } });
        Machine {
            args,
            istio_namespace: "istio-system",
            namespace: "vms".into(),
            proxy: proxy_config(&mesh, &group).unwrap(),
            group,
            trust_domain: "cluster.local".into(),
            cluster_id: "Kubernetes".into(),
        }
    }

    #[test]
    fn the_files_are_istioctls() {
        let args =
            args("-f workloadgroup.yaml -o out --autoregister --clusterID Kubernetes --internalIP 10.9.9.9");
        let machine = machine(
            &args,
            json!({ "metadata": { "labels": { "app": "shop" } }, "probe": { "tcpSocket": { "port": 80 } },
            "template": { "serviceAccount": "vm", "network": "n1", "ports": { "http": 8080, "grpc": 3550 },
                "labels": { "version": "v2" } } }),
        );
        assert_eq!(
            machine.cluster_env(),
            "A=group\nB='b c'\nISTIO_INBOUND_PORTS=3550,8080\nISTIO_LOCAL_EXCLUDE_PORTS=22,15090,15021,15020\n\
             ISTIO_NAMESPACE=vms\nISTIO_SERVICE=shop.vms\nISTIO_SERVICE_CIDR='*'\nISTIO_SVC_IP=10.9.9.9\nSERVICE_ACCOUNT=vm\n"
        );
        let proxy = machine.proxy_yaml();
        assert_eq!(proxy["readinessProbe"], json!({ "tcpSocket": { "port": 80 } }));
        assert_eq!(proxy["concurrency"], 3);
        let labels = r#"{"app":"shop","service.istio.io/canonical-name":"shop","service.istio.io/canonical-revision":"v2","version":"v2"}"#;
        assert_eq!(
            proxy["proxyMetadata"],
            json!({ "A": "group", "B": "b c", "CANONICAL_REVISION": "v2", "CANONICAL_SERVICE": "shop",
                "ISTIO_METAJSON_LABELS": labels, "ISTIO_META_AUTO_REGISTER_GROUP": "shop",
                "ISTIO_META_CLUSTER_ID": "Kubernetes", "ISTIO_META_DNS_CAPTURE": "true", "ISTIO_META_MESH_ID": "",
                "ISTIO_META_NETWORK": "n1",
                "ISTIO_META_POD_PORTS": r#"[{"name":"grpc","containerPort":3550},{"name":"http","containerPort":8080}]"#,
                "ISTIO_META_WORKLOAD_NAME": "shop", "POD_NAMESPACE": "vms", "SERVICE_ACCOUNT": "vm",
                "TRUST_DOMAIN": "cluster.local" })
        );
    }

    #[test]
    fn flags_change_them() {
        let args = args("--name shop -o out --revision canary --capture-dns=false --externalIP 192.0.2.1");
        let mut machine = machine(&args, json!({ "template": {} }));
        machine.proxy = json!({ "statusPort": 15021 });
        let env = machine.cluster_env();
        for line in [
            "CA_ADDR=istiod-canary.istio-system.svc:15012",
            "ISTIO_INBOUND_PORTS='*'",
            "ISTIO_LOCAL_EXCLUDE_PORTS=22,15090,15021",
            "ISTIO_SVC_IP=192.0.2.1",
            "REWRITE_PROBE_LEGACY_LOCALHOST_DESTINATION=true",
            "SERVICE_ACCOUNT=default",
        ] {
            assert!(env.lines().any(|one| one == line), "{line}: {env}");
        }
        let proxy = machine.proxy_yaml();
        assert_eq!(proxy["discoveryAddress"], "istiod-canary.istio-system.svc:15012");
        assert!(proxy["proxyMetadata"].get("ISTIO_META_DNS_CAPTURE").is_none());
        assert!(proxy["proxyMetadata"].get("ISTIO_META_AUTO_REGISTER_GROUP").is_none());
        let both =
            "istioctl x workload entry configure -f f -o o --internalIP 10.0.0.1 --externalIP 10.0.0.2";
        assert!(Cli::try_parse_from(both.split(' ')).is_err());
        assert!(Cli::try_parse_from("istioctl x workload entry configure -o o".split(' ')).is_err());
    }

    #[test]
    fn words_of_a_shell() {
        assert_eq!(quoted("a-b/c:1,2"), "a-b/c:1,2");
        assert_eq!(quoted(""), "''");
        assert_eq!(quoted("it's"), "'it'\"'\"'s'");
        assert_eq!(cluster_name(r#"{"global":{"multiCluster":{"clusterName":"c1"}}}"#), "c1");
        assert_eq!(cluster_name("nonsense"), "");
    }
}
