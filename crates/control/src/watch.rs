//! Following the Kubernetes objects that the mesh's configuration is made of.
//!
//! One task per kind. A kind whose CRD is not there yet counts as listed with no objects, and is asked for again, so that
//! CRDs may come late, go, and come back.
use std::collections::BTreeSet;
use std::fmt::Debug;
use std::time::{Duration, Instant};

use futures::TryStreamExt as _;
use k8s_openapi::api::core::v1::{Namespace, Node, Pod, Secret, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::networking::v1::{Ingress, IngressClass};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{ApiResource, DynamicObject};
use kube::runtime::watcher;
use kube::{Api, Client, Resource};
use lateen_api::validate::{
    Findings, validate_authorization_policy, validate_destination_rule, validate_gateway, validate_metadata,
    validate_peer_authentication, validate_request_authentication, validate_service_entry, validate_sidecar,
    validate_virtual_service, validate_workload_entry, validate_workload_group,
};
use lateen_api::{
    AuthorizationPolicySpec, DestinationRuleSpec, GatewaySpec, Kind, PeerAuthenticationSpec,
    RequestAuthenticationSpec, ServiceEntrySpec, SidecarSpec, VirtualServiceSpec, WorkloadEntrySpec,
    WorkloadGroupSpec,
};
use lateen_model::{Event, Object, ObjectName};
use serde::de::DeserializeOwned;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::push::Input;
use crate::refused::{Refusal, Refused};

/// Pauses after an error: the first, and the longest.
const RETRY_FIRST: Duration = Duration::from_millis(100);
const RETRY_LAST: Duration = Duration::from_secs(5);
/// Pause before asking again for a kind that the API server does not know.
const ABSENT: Duration = Duration::from_millis(500);

/// The kinds that are followed here. ConfigMaps are followed by [`mesh_objects`](crate::mesh_objects).
pub(crate) const KINDS: [&str; 18] = [
    "Service",
    "EndpointSlice",
    "Pod",
    "Namespace",
    "Node",
    "Gateway",
    "VirtualService",
    "DestinationRule",
    "ServiceEntry",
    "WorkloadEntry",
    "WorkloadGroup",
    "Sidecar",
    "Ingress",
    "IngressClass",
    "Secret",
    "PeerAuthentication",
    "AuthorizationPolicy",
    "RequestAuthentication",
];

/// Starts following every kind.
pub(crate) fn start(
    client: &Client,
    inputs: &mpsc::Sender<Input>,
    refused: &Refused,
    stop: &CancellationToken,
) {
    let core = Watches { client, inputs, refused, stop };
    core.typed::<Service>(KINDS[0], Object::Service);
    core.typed::<EndpointSlice>(KINDS[1], Object::EndpointSlice);
    core.typed::<Pod>(KINDS[2], Object::Pod);
    core.typed::<Namespace>(KINDS[3], Object::Namespace);
    core.typed::<Node>(KINDS[4], Object::Node);
    core.typed::<Secret>(KINDS[14], Object::Secret);
    core.custom::<GatewaySpec>(KINDS[5], Object::Gateway, validate_gateway);
    core.custom::<VirtualServiceSpec>(KINDS[6], Object::VirtualService, validate_virtual_service);
    core.custom::<DestinationRuleSpec>(KINDS[7], Object::DestinationRule, validate_destination_rule);
    core.custom::<ServiceEntrySpec>(KINDS[8], Object::ServiceEntry, validate_service_entry);
    core.custom::<WorkloadEntrySpec>(KINDS[9], Object::WorkloadEntry, validate_workload_entry);
    core.custom::<WorkloadGroupSpec>(KINDS[10], Object::WorkloadGroup, validate_workload_group);
    core.custom::<SidecarSpec>(KINDS[11], Object::Sidecar, validate_sidecar);
    core.custom::<PeerAuthenticationSpec>(
        KINDS[15],
        Object::PeerAuthentication,
        validate_peer_authentication,
    );
    core.typed::<Ingress>(KINDS[12], Object::Ingress);
    core.typed::<IngressClass>(KINDS[13], Object::IngressClass);
    core.custom::<AuthorizationPolicySpec>(
        KINDS[16],
        Object::AuthorizationPolicy,
        validate_authorization_policy,
    );
    core.custom::<RequestAuthenticationSpec>(
        KINDS[17],
        Object::RequestAuthentication,
        validate_request_authentication,
    );
}

struct Watches<'a> {
    client: &'a Client,
    inputs: &'a mpsc::Sender<Input>,
    refused: &'a Refused,
    stop: &'a CancellationToken,
}

impl Watches<'_> {
    fn typed<K>(&self, kind: &'static str, wrap: fn(Box<K>) -> Object)
    where
        K: Resource<DynamicType = ()> + Default + Clone + Debug + DeserializeOwned + Send + Sync + 'static,
    {
        let tombstone = move |metadata: ObjectMeta| {
            let mut object = K::default();
            *object.meta_mut() = metadata;
            wrap(Box::new(object))
        };
        let convert = move |object| Ok(wrap(Box::new(object)));
        self.spawn(Api::<K>::all(self.client.clone()), kind, convert, tombstone);
    }

    /// Custom resources are read field by field, so that one object that does not parse stops only itself. They are validated
    /// again, since one may have been written while no webhook answered, and a proxy would refuse all routes of a port for a
    /// field it cannot read.
    fn custom<S: Kind + Default>(
        &self,
        kind: &'static str,
        wrap: fn(Box<lateen_api::Object<S>>) -> Object,
        validate: fn(&S) -> Findings,
    ) {
        let resource = ApiResource::erase::<lateen_api::Object<S>>(&());
        let api = Api::<DynamicObject>::all_with(self.client.clone(), &resource);
        let convert = move |mut object: DynamicObject| {
            let mut findings = validate_metadata(S::KIND, &object.metadata, &object.data["spec"]);
            let spec =
                serde_json::from_value::<S>(object.data["spec"].take()).map_err(|error| error.to_string())?;
            findings.extend(validate(&spec));
            if !findings.is_valid() {
                let errors: Vec<String> = findings.errors.iter().map(ToString::to_string).collect();
                return Err(errors.join("; "));
            }
            // It says whether a machine is well. One that does not parse says nothing.
            let status = serde_json::from_value(object.data["status"].take()).ok();
            Ok(wrap(Box::new(lateen_api::Object { metadata: object.metadata, spec, status })))
        };
        let tombstone = move |metadata: ObjectMeta| {
            wrap(Box::new(lateen_api::Object { metadata, spec: S::default(), status: None }))
        };
        self.spawn(api, kind, convert, tombstone);
    }

    fn spawn<K>(
        &self,
        api: Api<K>,
        kind: &'static str,
        convert: impl Fn(K) -> Result<Object, String> + Send + Sync + 'static,
        tombstone: impl Fn(ObjectMeta) -> Object + Send + Sync + 'static,
    ) where
        K: Resource + Clone + Debug + DeserializeOwned + Send + Sync + 'static,
    {
        let (inputs, refused) = (self.inputs.clone(), self.refused.clone());
        let follower = Follower { kind, inputs, refused, convert, tombstone, known: BTreeSet::new() };
        let stop = self.stop.clone();
        tokio::spawn(async move { stop.run_until_cancelled(follower.run(api)).await });
    }
}

struct Follower<C, T> {
    kind: &'static str,
    inputs: mpsc::Sender<Input>,
    refused: Refused,
    convert: C,
    tombstone: T,
    /// What the store holds of this kind.
    known: BTreeSet<ObjectName>,
}

/// The push loop is gone: the control plane is shutting down.
struct Closed;

impl<C, T> Follower<C, T> {
    async fn run<K>(mut self, api: Api<K>)
    where
        K: Resource + Clone + Debug + DeserializeOwned + Send + 'static,
        C: Fn(K) -> Result<Object, String>,
        T: Fn(ObjectMeta) -> Object,
    {
        let mut pause = RETRY_FIRST;
        let mut listed = BTreeSet::new();
        let mut events = std::pin::pin!(watcher(api, watcher::Config::default()));
        loop {
            let done = match events.try_next().await {
                Ok(Some(event)) => {
                    pause = RETRY_FIRST;
                    self.take(event, &mut listed).await
                }
                Ok(None) => return,
                Err(error) if is_absent(&error) => {
                    let gone = self.forget_all_but(&BTreeSet::new()).await;
                    tokio::time::sleep(ABSENT).await;
                    gone
                }
                Err(error) => {
                    tracing::warn!("watching {}: {error}; trying again", self.kind);
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(RETRY_LAST);
                    Ok(())
                }
            };
            if done.is_err() {
                return;
            }
        }
    }

    async fn take<K>(
        &mut self,
        event: watcher::Event<K>,
        listed: &mut BTreeSet<ObjectName>,
    ) -> Result<(), Closed>
    where
        K: Resource,
        C: Fn(K) -> Result<Object, String>,
        T: Fn(ObjectMeta) -> Object,
    {
        match event {
            watcher::Event::Init => {
                listed.clear();
                Ok(())
            }
            watcher::Event::InitApply(object) => {
                listed.insert(ObjectName::of(object.meta()));
                self.applied(object).await
            }
            watcher::Event::Apply(object) => self.applied(object).await,
            watcher::Event::Delete(object) => self.deleted(ObjectName::of(object.meta())).await,
            watcher::Event::InitDone => self.forget_all_but(&std::mem::take(listed)).await,
        }
    }

    async fn applied<K: Resource>(&mut self, object: K) -> Result<(), Closed>
    where
        C: Fn(K) -> Result<Object, String>,
    {
        let name = ObjectName::of(object.meta());
        let generation = object.meta().generation.unwrap_or_default();
        match (self.convert)(object) {
            Ok(object) => {
                self.refused.set(self.kind, &name, None);
                self.known.insert(name);
                self.send(Input::Object(Event::Applied(object), Instant::now())).await
            }
            Err(reason) => {
                tracing::warn!("{} {name} is not used, its last good state stays: {reason}", self.kind);
                self.refused.set(self.kind, &name, Some(Refusal { generation, reason }));
                Ok(())
            }
        }
    }

    async fn deleted(&mut self, name: ObjectName) -> Result<(), Closed>
    where
        T: Fn(ObjectMeta) -> Object,
    {
        self.known.remove(&name);
        self.refused.set(self.kind, &name, None);
        let metadata = ObjectMeta {
            name: Some(name.name.to_string()),
            namespace: (!name.namespace.is_empty()).then(|| name.namespace.to_string()),
            ..ObjectMeta::default()
        };
        let object = (self.tombstone)(metadata);
        self.send(Input::Object(Event::Deleted(object), Instant::now())).await
    }

    /// A list is complete: what is not in it is gone.
    async fn forget_all_but(&mut self, listed: &BTreeSet<ObjectName>) -> Result<(), Closed>
    where
        T: Fn(ObjectMeta) -> Object,
    {
        self.refused.retain(self.kind, |name| listed.contains(name));
        let gone: Vec<ObjectName> =
            self.known.iter().filter(|name| !listed.contains(name)).cloned().collect();
        for name in gone {
            self.deleted(name).await?;
        }
        self.send(Input::Listed(self.kind)).await
    }

    async fn send(&self, input: Input) -> Result<(), Closed> {
        self.inputs.send(input).await.map_err(|_| Closed)
    }
}

/// Whether the API server does not know the kind.
fn is_absent(error: &watcher::Error) -> bool {
    let source = match error {
        watcher::Error::InitialListFailed(source) | watcher::Error::WatchStartFailed(source) => source,
        _ => return false,
    };
    matches!(source, kube::Error::Api(status) if status.code == 404)
}
