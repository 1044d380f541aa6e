//! Which controller looks at what, and when.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::ControllerConfig;
use super::cache::{Cache, Change, Kind, Object};
use super::meta::{Labels, controller_of, name, selects};
use super::write::Decision;
use super::{
    daemon_set, deployment, endpoints, job, load_balancer, namespace, replica_set, scheduler, signer,
    stateful_set,
};

/// Which decision is meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Controller {
    Scheduler,
    Endpoints,
    ReplicaSet,
    Deployment,
    StatefulSet,
    DaemonSet,
    Job,
    Namespace,
    LoadBalancer,
    Signer,
}

/// A decision to be made (again): about the object of this name, of the kind the controller is named after (the
/// scheduler's are pods, the endpoints controller's Services). The load balancer has one key for all Services.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Key {
    pub(crate) controller: Controller,
    pub(crate) namespace: String,
    pub(crate) name: String,
}

impl Key {
    fn new(controller: Controller, namespace: &str, name: &str) -> Self {
        Self { controller, namespace: namespace.to_owned(), name: name.to_owned() }
    }

    fn of(controller: Controller, meta: &ObjectMeta) -> Self {
        Self::new(controller, meta.namespace.as_deref().unwrap_or_default(), name(meta))
    }
}

/// The decisions a change concerns.
pub(crate) fn affected(cache: &Cache, change: &Change) -> Vec<Key> {
    let mut keys = Vec::new();
    for object in [&change.old, &change.new].into_iter().flatten() {
        keys_of(cache, object, &mut keys);
    }
    keys.sort();
    keys.dedup();
    keys
}

fn keys_of(cache: &Cache, object: &Object, keys: &mut Vec<Key>) {
    let meta = object.metadata();
    let namespace = meta.namespace.as_deref().unwrap_or_default();
    match object {
        Object::Pod(pod) => pod_keys(cache, pod, keys),
        Object::Service(_) => {
            keys.push(Key::of(Controller::Endpoints, meta));
            keys.push(Key::new(Controller::LoadBalancer, "", ""));
        }
        Object::Endpoints(_) => keys.push(Key::of(Controller::Endpoints, meta)),
        Object::EndpointSlice(_) => {
            let service = meta.labels.as_ref().and_then(|labels| labels.get(endpoints::SERVICE_NAME));
            keys.extend(service.map(|service| Key::new(Controller::Endpoints, namespace, service)));
        }
        Object::ReplicaSet(_) => {
            keys.push(Key::of(Controller::ReplicaSet, meta));
            keys.extend(owner_key(meta));
        }
        Object::Deployment(_) => keys.push(Key::of(Controller::Deployment, meta)),
        Object::StatefulSet(_) => keys.push(Key::of(Controller::StatefulSet, meta)),
        Object::DaemonSet(_) => keys.push(Key::of(Controller::DaemonSet, meta)),
        Object::Job(_) => keys.push(Key::of(Controller::Job, meta)),
        Object::Namespace(_) => keys.push(Key::new(Controller::Namespace, "", name(meta))),
        Object::ServiceAccount(_) | Object::ConfigMap(_) => {
            keys.push(Key::new(Controller::Namespace, "", namespace));
        }
        Object::CertificateSigningRequest(_) => keys.push(Key::of(Controller::Signer, meta)),
        // What waits for an authority that comes later.
        Object::Secret(_) => {
            let waiting =
                cache.signing_requests.all().filter(|request| signer::waits_for(request, name(meta)));
            keys.extend(waiting.map(|request| Key::of(Controller::Signer, &request.metadata)));
        }
        Object::Node(_) => {
            keys.extend(cache.daemon_sets.all().map(|set| Key::of(Controller::DaemonSet, &set.metadata)));
            let waiting =
                cache.pods.all().filter(|pod| pod.spec.as_ref().is_some_and(|spec| spec.node_name.is_none()));
            keys.extend(waiting.map(|pod| Key::of(Controller::Scheduler, &pod.metadata)));
        }
    }
}

fn pod_keys(cache: &Cache, pod: &Pod, keys: &mut Vec<Key>) {
    let meta = &pod.metadata;
    let namespace = meta.namespace.as_deref().unwrap_or_default();
    let labels = meta.labels.as_ref();
    keys.push(Key::of(Controller::Scheduler, meta));
    let services = cache.services.in_namespace(namespace);
    let selecting = services.filter(|service| {
        endpoints::selector(service).is_some_and(|selector| endpoints::matches(selector, labels))
    });
    keys.extend(selecting.map(|service| Key::of(Controller::Endpoints, &service.metadata)));
    match owner_key(meta) {
        Some(owner) => {
            // Strategy Recreate waits for pods that are leaving.
            if let Some(set) = cache.replica_sets.get(namespace, &owner.name)
                && owner.controller == Controller::ReplicaSet
            {
                keys.extend(owner_key(&set.metadata));
            }
            keys.push(owner);
        }
        None => keys.extend(adopters(cache, namespace, labels)),
    }
}

/// ReplicaSets that might want a pod without an owner.
fn adopters<'a>(
    cache: &'a Cache,
    namespace: &'a str,
    labels: Option<&'a Labels>,
) -> impl Iterator<Item = Key> + use<'a> {
    let sets = cache.replica_sets.in_namespace(namespace);
    let wanting = sets.filter(move |set| selects(&set.spec.selector, labels));
    wanting.map(|set| Key::of(Controller::ReplicaSet, &set.metadata))
}

/// The decision about an object's controller, if it is one of ours.
fn owner_key(meta: &ObjectMeta) -> Option<Key> {
    let owner = controller_of(meta)?;
    let controller = match (owner.api_version.as_str(), owner.kind.as_str()) {
        ("apps/v1", "ReplicaSet") => Controller::ReplicaSet,
        ("apps/v1", "Deployment") => Controller::Deployment,
        ("apps/v1", "StatefulSet") => Controller::StatefulSet,
        ("apps/v1", "DaemonSet") => Controller::DaemonSet,
        ("batch/v1", "Job") => Controller::Job,
        _ => return None,
    };
    Some(Key::new(controller, meta.namespace.as_deref().unwrap_or_default(), &owner.name))
}

/// Makes a decision; an object that is gone needs none (what it owned is the garbage collector's).
pub(crate) fn decide(cache: &Cache, config: &ControllerConfig, key: &Key, now: Timestamp) -> Decision {
    let (ns, name) = (key.namespace.as_str(), key.name.as_str());
    let pods = || cache.pods.in_namespace(ns);
    let decision = match key.controller {
        Controller::Scheduler => {
            cache.pods.get(ns, name).map(|pod| scheduler::decide(pod, cache.nodes.all()).into())
        }
        Controller::Endpoints => cache.services.get(ns, name).map(|service| {
            let slices = cache.endpoint_slices.in_namespace(ns);
            endpoints::decide(service, pods(), slices, cache.endpoints.get(ns, name)).into()
        }),
        Controller::ReplicaSet => {
            cache.replica_sets.get(ns, name).map(|set| replica_set::decide(set, pods(), now))
        }
        Controller::Deployment => cache.deployments.get(ns, name).map(|deployment| {
            deployment::decide(deployment, cache.replica_sets.in_namespace(ns), pods(), now)
        }),
        Controller::StatefulSet => {
            cache.stateful_sets.get(ns, name).map(|set| stateful_set::decide(set, pods(), now))
        }
        Controller::DaemonSet => {
            cache.daemon_sets.get(ns, name).map(|set| daemon_set::decide(set, cache.nodes.all(), pods(), now))
        }
        Controller::Job => cache.jobs.get(ns, name).map(|job| job::decide(job, pods(), now)),
        Controller::Namespace => cache.namespaces.get("", name).map(|object| {
            let account = cache.service_accounts.get(name, "default");
            let config_map = cache.config_maps.get(name, namespace::ROOT_CA);
            namespace::decide(object, account, config_map, &config.root_ca_pem).into()
        }),
        Controller::Signer => cache.signing_requests.get("", name).map(|request| {
            let secret = |name: &str| cache.secrets.get(signer::NAMESPACE, name);
            signer::decide(request, secret, now).into()
        }),
        Controller::LoadBalancer => {
            Some(load_balancer::decide(cache.services.all(), config.network.load_balancer_cidr).into())
        }
    };
    decision.unwrap_or_default()
}

/// The kinds that are watched, with the field selector that keeps the number of objects small.
pub(crate) const WATCHED: [(Kind, Option<&str>); 15] = [
    (Kind::Namespace, None),
    (Kind::Node, None),
    (Kind::Pod, None),
    (Kind::Service, None),
    (Kind::Endpoints, None),
    (Kind::ServiceAccount, None),
    (Kind::ConfigMap, Some("metadata.name=kube-root-ca.crt")),
    (Kind::EndpointSlice, None),
    (Kind::Deployment, None),
    (Kind::ReplicaSet, None),
    (Kind::StatefulSet, None),
    (Kind::DaemonSet, None),
    (Kind::Job, None),
    (Kind::Secret, Some(signer::SECRETS)),
    (Kind::CertificateSigningRequest, None),
];

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn put(cache: &mut Cache, kind: Kind, object: Value) -> Change {
        cache.apply(kind.parse(object).unwrap()).unwrap()
    }

    #[test]
    fn a_pod_concerns_its_owners_its_services_and_the_scheduler() {
        let mut cache = Cache::default();
        let owned_by = |kind: &str, name: &str| {
            json!([{
                "apiVersion": "apps/v1", "kind": kind, "name": name, "uid": name, "controller": true
            }])
        };
        put(
            &mut cache,
            Kind::Service,
            json!({
                "metadata": {"name": "front", "namespace": "shop", "uid": "1", "resourceVersion": "1"},
                "spec": {"selector": {"app": "web"}},
            }),
        );
        put(
            &mut cache,
            Kind::Service,
            json!({
                "metadata": {"name": "other", "namespace": "shop", "uid": "2", "resourceVersion": "2"},
                "spec": {"selector": {"app": "db"}},
            }),
        );
        put(
            &mut cache,
            Kind::ReplicaSet,
            json!({
                "metadata": {"name": "web-1", "namespace": "shop", "uid": "web-1", "resourceVersion": "3",
                             "ownerReferences": owned_by("Deployment", "web")},
                "spec": {"selector": {"matchLabels": {"app": "web"}}},
            }),
        );
        let change = put(
            &mut cache,
            Kind::Pod,
            json!({
                "metadata": {"name": "web-1-x", "namespace": "shop", "uid": "p", "resourceVersion": "4",
                             "labels": {"app": "web"}, "ownerReferences": owned_by("ReplicaSet", "web-1")},
            }),
        );
        let expected = [
            Key::new(Controller::Scheduler, "shop", "web-1-x"),
            Key::new(Controller::Endpoints, "shop", "front"),
            Key::new(Controller::ReplicaSet, "shop", "web-1"),
            Key::new(Controller::Deployment, "shop", "web"),
        ];
        assert_eq!(affected(&cache, &change), expected);

        // Relabelled out of the Service: the Service is told because of the old labels.
        let change = put(
            &mut cache,
            Kind::Pod,
            json!({
                "metadata": {"name": "web-1-x", "namespace": "shop", "uid": "p", "resourceVersion": "5",
                             "labels": {"app": "debug"}, "ownerReferences": owned_by("ReplicaSet", "web-1")},
            }),
        );
        assert_eq!(affected(&cache, &change), expected);
    }

    #[test]
    fn an_orphan_concerns_those_who_might_adopt_it() {
        let mut cache = Cache::default();
        put(
            &mut cache,
            Kind::ReplicaSet,
            json!({
                "metadata": {"name": "web-1", "namespace": "shop", "uid": "1", "resourceVersion": "1"},
                "spec": {"selector": {"matchLabels": {"app": "web"}}},
            }),
        );
        let change = put(
            &mut cache,
            Kind::Pod,
            json!({
                "metadata": {"name": "lone", "namespace": "shop", "uid": "2", "resourceVersion": "2", "labels": {"app": "web"}},
            }),
        );
        assert!(affected(&cache, &change).contains(&Key::new(Controller::ReplicaSet, "shop", "web-1")));
    }
}
