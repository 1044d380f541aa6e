//! Istio's configuration objects as the world keeps them.
use std::hash::{Hash, Hasher};

use lateen_api::networking::virtual_service::Destination;
use lateen_api::networking::workload_entry::{HEALTH_CHECKS, HEALTHY};
use lateen_api::security::authorization_policy::DRY_RUN;
use lateen_api::{
    AuthorizationPolicySpec, DestinationRuleSpec, GatewaySpec, Kind, PeerAuthenticationSpec,
    RequestAuthenticationSpec, ServiceEntrySpec, SidecarSpec, VirtualServiceSpec, WorkloadEntrySpec,
    WorkloadGroupSpec,
};

use crate::digest::{Digest, digest_of};
use crate::endpoint::Locality;
use crate::name::ObjectName;
use crate::pod::Labels;
use crate::workload_entry;

/// An AuthorizationPolicy.
pub type AuthorizationPolicy = Config<AuthorizationPolicySpec>;
/// A VirtualService.
pub type VirtualService = Config<VirtualServiceSpec>;
/// A DestinationRule.
pub type DestinationRule = Config<DestinationRuleSpec>;
/// A Sidecar.
pub type Sidecar = Config<SidecarSpec>;
/// A Gateway.
pub type Gateway = Config<GatewaySpec>;
/// A PeerAuthentication.
pub type PeerAuthentication = Config<PeerAuthenticationSpec>;
/// A RequestAuthentication.
pub type RequestAuthentication = Config<RequestAuthenticationSpec>;
/// A ServiceEntry.
pub type ServiceEntry = Config<ServiceEntrySpec>;
/// A WorkloadEntry.
pub type WorkloadEntry = Config<WorkloadEntrySpec>;
/// A WorkloadGroup.
pub type WorkloadGroup = Config<WorkloadGroupSpec>;

/// A configuration object. Equality and hash go by name and content digest, so that comparing and keying caches is cheap.
#[derive(Clone, Debug)]
pub struct Config<S> {
    /// Namespace and name.
    pub name: ObjectName,
    /// Creation time, seconds since 1970; 0 when unknown.
    pub created: i64,
    /// `metadata.generation`; 0 when unknown.
    pub generation: i64,
    /// Labels of the object.
    pub labels: Labels,
    /// What it was made from.
    pub origin: Origin,
    /// Whether it is annotated to be counted only (`istio.io/dry-run`).
    pub dry_run: bool,
    /// Whether the workload of a WorkloadEntry is well, as far as that is looked after
    /// (`proxy.istio.io/health-checks-enabled`); true of everything else.
    pub healthy: bool,
    /// Digest of the spec.
    pub digest: Digest,
    /// The spec.
    pub spec: S,
}

/// What a configuration object was made from, which decides how its paths are read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Origin {
    /// An object of its own kind.
    #[default]
    Object,
    /// A Kubernetes Ingress: prefixes are of whole path elements.
    Ingress,
}

impl VirtualService {
    /// Where its rules may send anything, mirrored requests among it.
    pub fn destinations(&self) -> impl Iterator<Item = &Destination> {
        let http = self.spec.http.iter().flat_map(|rule| {
            let mirrors = rule.mirrors.iter().map(|mirror| &mirror.destination);
            rule.route.iter().map(|route| &route.destination).chain(&rule.mirror).chain(mirrors)
        });
        let tcp = self.spec.tcp.iter().flat_map(|rule| &rule.route).map(|route| &route.destination);
        let tls = self.spec.tls.iter().flat_map(|rule| &rule.route).map(|route| &route.destination);
        http.chain(tcp).chain(tls)
    }
}

impl WorkloadEntry {
    /// Labels of its workload. Those of the object go before those of its spec.
    pub fn workload_labels(&self) -> Labels {
        workload_entry::labels(self)
    }

    /// Where its workload is.
    pub fn locality(&self) -> Locality {
        workload_entry::locality(&self.spec, &self.workload_labels())
    }
}

impl<S: Kind> Config<S> {
    /// Takes over a Kubernetes object.
    pub fn new(object: lateen_api::Object<S>) -> Self {
        let metadata = &object.metadata;
        // Map keys are strings and numbers finite, the only reasons for serialization to fail.
        let bytes = serde_json::to_vec(&object.spec).unwrap_or_default();
        Self {
            name: ObjectName::of(metadata),
            created: metadata.creation_timestamp.as_ref().map_or(0, |time| time.0.as_second()),
            generation: metadata.generation.unwrap_or_default(),
            labels: metadata.labels.clone().unwrap_or_default().into(),
            origin: Origin::Object,
            dry_run: metadata
                .annotations
                .as_ref()
                .and_then(|all| all.get(DRY_RUN))
                .is_some_and(|value| value == "true"),
            healthy: is_healthy(&object),
            digest: digest_of(bytes.as_slice()),
            spec: object.spec,
        }
    }

    /// The path Istio puts into Envoy metadata and `proxy-config` shows:
    /// `/apis/networking.istio.io/v1/namespaces/NS/KIND/NAME`.
    pub fn config_path(&self) -> String {
        let mut kind = String::new();
        for (index, letter) in S::KIND.chars().enumerate() {
            if letter.is_ascii_uppercase() && index > 0 {
                kind.push('-');
            }
            kind.push(letter.to_ascii_lowercase());
        }
        let (group, version) = (S::GROUP, S::VERSIONS[0]);
        format!("/apis/{group}/{version}/namespaces/{}/{kind}/{}", self.name.namespace, self.name.name)
    }
}

impl<S> PartialEq for Config<S> {
    fn eq(&self, other: &Self) -> bool {
        self.name == other.name
            && self.digest == other.digest
            && self.dry_run == other.dry_run
            && self.healthy == other.healthy
            && self.labels == other.labels
            && self.created == other.created
            && self.generation == other.generation
    }
}

impl<S> Eq for Config<S> {}

impl<S> Hash for Config<S> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.name.hash(state);
        self.digest.hash(state);
        self.dry_run.hash(state);
        self.healthy.hash(state);
    }
}

/// What is looked after is not healthy before it is known to be.
fn is_healthy<S>(object: &lateen_api::Object<S>) -> bool {
    let annotations = object.metadata.annotations.as_ref();
    if annotations.and_then(|all| all.get(HEALTH_CHECKS)).is_none_or(|value| value != "true") {
        return true;
    }
    let conditions = object.status.iter().flat_map(|status| &status.conditions);
    conditions.into_iter().any(|condition| condition.r#type == HEALTHY && condition.status == "True")
}
