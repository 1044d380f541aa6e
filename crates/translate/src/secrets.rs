//! Secrets for gateways, named as in Istio: `kubernetes://NAME`, and `kubernetes://NAME-cacert` for authorities.
//!
//! A proxy gets the secrets of its own namespace that its Gateways and DestinationRules name, and only when the API server knows its
//! pod and lets its service account read them: what a proxy says of itself is not enough. Sidecars get those of rules with a
//! `workloadSelector`, as in Istio.
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use lateen_api::networking::destination_rule::TrafficPolicy;
use lateen_api::networking::gateway::{ServerTlsMode, ServerTlsSettings};
use lateen_model::{Credential, DestinationRule, ObjectName, Service, World};
use lateen_xds::pb::envoy::config::core::v3 as core;
use lateen_xds::pb::envoy::extensions::transport_sockets::tls::v3 as tls;

use crate::cache::Cache;
use crate::clusters;
use crate::proxy::ProxyKind;
use crate::resource::{Resource, ResourceType, encode};
use crate::scope::Scope;
use crate::wire;

const PREFIX: &str = "kubernetes://";
const AUTHORITIES: &str = "-cacert";
/// How long what needs a secret waits for it. One that is there comes at once; one that is not must not hold up what is beside it.
/// (Istio leaves Envoy's 15 seconds.) After that connections are reset until it comes.
const MISSING: Duration = Duration::from_secs(2);

/// Name of the resource with a certificate and its key.
pub(crate) fn certificate_name(credential: &str) -> String {
    format!("{PREFIX}{}", bare(credential))
}

/// Name of the resource with authorities.
pub(crate) fn authorities_name(credential: &str) -> String {
    format!("{PREFIX}{}{AUTHORITIES}", bare(credential))
}

fn bare(credential: &str) -> &str {
    credential.strip_prefix(PREFIX).unwrap_or(credential)
}

/// How to get a secret.
pub(crate) fn config(name: String) -> tls::SdsSecretConfig {
    let source = core::ConfigSource { initial_fetch_timeout: Some(wire::duration(MISSING)), ..wire::ads() };
    tls::SdsSecretConfig { name, sds_config: Some(source) }
}

/// A secret's contents.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum SecretInputs {
    Certificate { name: String, credential: Arc<Credential> },
    Authorities { name: String, credential: Arc<Credential> },
}

/// Whether the clusters of a rule may need secrets, for whichever port or subset, at proxies of a kind.
pub(crate) fn are_wanted(kind: ProxyKind, rule: &DestinationRule) -> bool {
    let names_one = |policy: &TrafficPolicy| {
        let ports = policy.port_level_settings.iter().filter_map(|port| port.tls.as_ref());
        policy.tls.iter().chain(ports).any(|tls| !tls.credential_name.is_empty())
    };
    let selects = kind == ProxyKind::Router || rule.spec.workload_selector.is_some();
    let of_subsets = rule.spec.subsets.iter().filter_map(|subset| subset.traffic_policy.as_ref());
    selects && rule.spec.traffic_policy.iter().chain(of_subsets).any(names_one)
}

/// The namespaces whose sidecars may come to want secrets, since a rule there has some for them. Gateways always may.
pub fn namespaces_wanting_secrets(world: &World) -> BTreeSet<Arc<str>> {
    let of_sidecars = world.destination_rules().filter(|rule| are_wanted(ProxyKind::Sidecar, rule));
    of_sidecars.map(|rule| rule.name.namespace.clone()).collect()
}

/// All secrets of a proxy.
pub(crate) fn generate(scope: &Scope, cache: &Cache) -> Vec<Arc<Resource>> {
    if !scope.class.reads_secrets {
        return Vec::new();
    }
    let mut names: BTreeSet<String> = BTreeSet::new();
    let gateways = match scope.class.kind {
        ProxyKind::Router => scope.world.gateways_for(&scope.class.labels),
        ProxyKind::Sidecar => Vec::new(),
    };
    for gateway in gateways {
        for tls in gateway.spec.servers.iter().filter_map(|server| server.tls.as_ref()) {
            let ca = (!tls.ca_cert_credential_name.is_empty()).then(|| tls.ca_cert_credential_name.clone());
            names.extend(credentials(tls).into_iter().map(str::to_owned).chain(ca));
        }
    }
    let with_secrets = |service: &&Arc<Service>| {
        scope.destination_rule(service).is_some_and(|rule| are_wanted(scope.class.kind, &rule))
    };
    for service in scope.services.iter().filter(with_secrets) {
        for inputs in clusters::outbound_inputs(scope, service) {
            names.extend(inputs.credential().map(str::to_owned));
        }
    }
    let mut resources = Vec::new();
    for name in names {
        let find = |name: &str| {
            scope.world.credential(&ObjectName::new(&scope.class.namespace, bare(name))).cloned()
        };
        if let Some(credential) = find(&name).filter(|found| found.pair.is_some()) {
            let inputs = SecretInputs::Certificate { name: certificate_name(&name), credential };
            resources.push(cache.resource(ResourceType::Secret, &inputs, resource));
        }
        if let Some(credential) = authorities_of(&scope.world, &scope.class.namespace, &name) {
            let inputs = SecretInputs::Authorities { name: authorities_name(&name), credential };
            resources.push(cache.resource(ResourceType::Secret, &inputs, resource));
        }
    }
    resources
}

/// The Secret that holds the authorities of a credential: one of its own, else the credential itself.
fn authorities_of(world: &World, namespace: &str, credential: &str) -> Option<Arc<Credential>> {
    let own = format!("{}{AUTHORITIES}", bare(credential));
    [own.as_str(), bare(credential)].into_iter().find_map(|name| {
        let found = world.credential(&ObjectName::new(namespace, name))?;
        found.authorities.is_some().then(|| found.clone())
    })
}

/// Names of a server's certificates.
pub(crate) fn credentials(settings: &ServerTlsSettings) -> Vec<&str> {
    let one = Some(settings.credential_name.as_str()).filter(|name| !name.is_empty());
    one.into_iter().chain(settings.credential_names.iter().map(String::as_str)).collect()
}

/// What a server's TLS lacks among the secrets of a namespace, in words; `now` in Unix seconds.
pub(crate) fn missing(
    world: &World,
    namespace: &str,
    settings: &ServerTlsSettings,
    now: i64,
) -> Option<String> {
    for name in credentials(settings) {
        let shown = format!("secret {namespace}/{}", bare(name));
        if bare(name).contains('/') {
            return Some(format!(
                "{name:?}: secrets of other namespaces are not given; put it into {namespace}"
            ));
        }
        let Some(found) = world.credential(&ObjectName::new(namespace, bare(name))) else {
            return Some(format!("{shown} is not there, or has no certificate and key"));
        };
        match (&found.pair, &found.problem) {
            (None, Some(problem)) => return Some(format!("{shown}: {problem}")),
            (None, None) => return Some(format!("{shown} has no certificate and key")),
            (Some(pair), _) if pair.not_after < now => {
                return Some(format!("{shown}: the certificate has expired; clients will refuse it"));
            }
            (Some(_), _) => {}
        }
    }
    if !matches!(settings.mode, ServerTlsMode::Mutual | ServerTlsMode::OptionalMutual) {
        return None;
    }
    let name = bare(authorities_credential(settings)?);
    if authorities_of(world, namespace, name).is_some() {
        return None;
    }
    let problems = [format!("{name}{AUTHORITIES}"), name.to_owned()]
        .into_iter()
        .filter_map(|name| world.credential(&ObjectName::new(namespace, &name))?.problem.clone());
    let problem = problems.map(|problem| format!(" ({problem})")).next().unwrap_or_default();
    Some(format!(
        "there are no authorities for clients: neither secret {namespace}/{name}{AUTHORITIES} nor {namespace}/{name} has them{problem}"
    ))
}

/// What a client's TLS lacks among the secrets of a namespace, in words. Nothing but authorities is needed in every mode.
pub(crate) fn missing_for_client(world: &World, namespace: &str, name: &str) -> Option<String> {
    if authorities_of(world, namespace, name).is_some() {
        return None;
    }
    let name = bare(name);
    Some(format!(
        "there are no authorities for servers: neither secret {namespace}/{name}{AUTHORITIES} nor {namespace}/{name} has them"
    ))
}

/// Name of the credential with the authorities of a server's clients.
pub(crate) fn authorities_credential(settings: &ServerTlsSettings) -> Option<&str> {
    let given = Some(settings.ca_cert_credential_name.as_str()).filter(|name| !name.is_empty());
    given.or_else(|| credentials(settings).first().copied())
}

fn inline(bytes: &Arc<[u8]>) -> core::DataSource {
    core::DataSource {
        specifier: Some(core::data_source::Specifier::InlineBytes(bytes.to_vec())),
        ..Default::default()
    }
}

fn resource(inputs: &SecretInputs) -> Resource {
    let (name, kind) = match inputs {
        SecretInputs::Certificate { name, credential } => (
            name,
            tls::secret::Type::TlsCertificate(tls::TlsCertificate {
                certificate_chain: credential.pair.as_ref().map(|pair| inline(&pair.certificate)),
                private_key: credential.pair.as_ref().map(|pair| inline(&pair.key)),
                ..Default::default()
            }),
        ),
        SecretInputs::Authorities { name, credential } => (
            name,
            tls::secret::Type::ValidationContext(tls::CertificateValidationContext {
                trusted_ca: credential.authorities.as_ref().map(inline),
                crl: credential.revoked.as_ref().map(inline),
                ..Default::default()
            }),
        ),
    };
    encode(name.clone(), &tls::Secret { name: name.clone(), r#type: Some(kind) })
}
