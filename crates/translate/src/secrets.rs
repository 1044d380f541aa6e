//! Secrets for gateways, named as in Istio: `kubernetes://NAME`, and `kubernetes://NAME-cacert` for authorities.
//!
//! A gateway gets the secrets of its own namespace that its Gateways and DestinationRules name, and only when the API server knows its
//! pod: what a proxy says of itself is not enough.
use std::collections::BTreeSet;
use std::sync::Arc;

use lateen_api::networking::gateway::{ServerTlsMode, ServerTlsSettings};
use lateen_model::{Credential, ObjectName, World};
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
    // With Envoy's default time-out: a secret that never comes must not keep a proxy from starting.
    let source = core::ConfigSource { initial_fetch_timeout: None, ..wire::ads() };
    tls::SdsSecretConfig { name, sds_config: Some(source) }
}

/// A secret's contents.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum SecretInputs {
    Certificate { name: String, credential: Arc<Credential> },
    Authorities { name: String, credential: Arc<Credential> },
}

/// All secrets of a gateway.
pub(crate) fn generate(scope: &Scope, cache: &Cache) -> Vec<Arc<Resource>> {
    if scope.class.kind != ProxyKind::Router || !scope.class.attested {
        return Vec::new();
    }
    let mut names: BTreeSet<String> = BTreeSet::new();
    for gateway in scope.world.gateways_for(&scope.class.labels) {
        for tls in gateway.spec.servers.iter().filter_map(|server| server.tls.as_ref()) {
            let ca = (!tls.ca_cert_credential_name.is_empty()).then(|| tls.ca_cert_credential_name.clone());
            names.extend(credentials(tls).into_iter().map(str::to_owned).chain(ca));
        }
    }
    for service in scope.services.iter() {
        for inputs in clusters::outbound_inputs(scope, service) {
            names.extend(inputs.credential().map(str::to_owned));
        }
    }
    let mut resources = Vec::new();
    for name in names {
        let find = |name: &str| {
            scope.world.credential(&ObjectName::new(&scope.class.namespace, bare(name))).cloned()
        };
        if let Some(credential) = find(&name).filter(|found| has_pair(found)) {
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

fn is_pem(bytes: Option<&Arc<[u8]>>, label: &str) -> bool {
    let find = |bytes: &Arc<[u8]>| bytes.windows(label.len()).any(|window| window == label.as_bytes());
    bytes.is_some_and(find)
}

fn has_pair(credential: &Credential) -> bool {
    is_pem(credential.certificate.as_ref(), "-----BEGIN CERTIFICATE-----")
        && is_pem(credential.key.as_ref(), "PRIVATE KEY-----")
}

/// What a server's TLS lacks among the secrets of a namespace, in words.
pub(crate) fn missing(world: &World, namespace: &str, settings: &ServerTlsSettings) -> Option<String> {
    for name in credentials(settings) {
        match world.credential(&ObjectName::new(namespace, bare(name))) {
            None => {
                return Some(format!(
                    "secret {namespace}/{} is not there, or has no certificate",
                    bare(name)
                ));
            }
            Some(found) if !has_pair(found) => {
                return Some(format!("secret {namespace}/{} has no certificate and key in PEM", bare(name)));
            }
            Some(_) => {}
        }
    }
    let mutual = matches!(settings.mode, ServerTlsMode::Mutual | ServerTlsMode::OptionalMutual);
    let name = authorities_credential(settings)?;
    if mutual && authorities_of(world, namespace, name).is_none() {
        return Some(format!(
            "there are no authorities for clients: neither secret {namespace}/{0}{AUTHORITIES} nor {namespace}/{0} has them",
            bare(name)
        ));
    }
    None
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
                certificate_chain: credential.certificate.as_ref().map(inline),
                private_key: credential.key.as_ref().map(inline),
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
