//! Where Ingresses are reached, in their status: at the addresses of the ingress gateway's service.
use std::collections::BTreeMap;
use std::time::Duration;

use k8s_openapi::api::core::v1::LoadBalancerIngress;
use k8s_openapi::api::networking::v1::Ingress;
use kube::api::{Patch, PatchParams};
use kube::{Api, Client};
use lateen_model::{ObjectName, World};
use serde_json::json;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::push::Published;

/// Pause before what failed is tried again.
const RETRY: Duration = Duration::from_secs(2);

/// Follows the world and writes until told to stop.
pub(crate) async fn run(client: Client, mut published: watch::Receiver<Published>, stop: CancellationToken) {
    let mut written = BTreeMap::new();
    let mut seen = None;
    loop {
        let now = published.borrow_and_update().clone();
        let mut failed = false;
        if now.complete && seen != Some(now.config_version) {
            seen = Some(now.config_version);
            let wanted = wanted(&now.world);
            written.retain(|name, _| wanted.contains_key(name));
            for (name, addresses) in wanted {
                if written.get(&name) == Some(&addresses) {
                    continue;
                }
                match write(&client, &name, &addresses).await {
                    Ok(()) => {
                        written.insert(name, addresses);
                    }
                    Err(error) => {
                        failed = true;
                        tracing::warn!("cannot write the status of Ingress {name}: {error}; trying again");
                    }
                }
            }
        }
        if failed {
            seen = None;
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(RETRY), if failed => {}
            changed = published.changed() => if changed.is_err() { return },
        }
    }
}

/// The addresses that the served Ingresses should have.
fn wanted(world: &World) -> BTreeMap<ObjectName, Vec<LoadBalancerIngress>> {
    let mesh = world.mesh();
    let service = ObjectName::new(&mesh.root_namespace, &mesh.ingress_service);
    let addresses = world.load_balancer(&service);
    let served = world.ingresses().filter(|ingress| ingress.is_served(world));
    served.map(|ingress| (ingress.name.clone(), addresses.to_vec())).collect()
}

async fn write(
    client: &Client,
    name: &ObjectName,
    addresses: &[LoadBalancerIngress],
) -> Result<(), kube::Error> {
    let api: Api<Ingress> = Api::namespaced(client.clone(), &name.namespace);
    let Some(ingress) = api.get_opt(&name.name).await? else { return Ok(()) };
    let wanted: Vec<_> =
        addresses.iter().map(|one| json!({ "ip": one.ip, "hostname": one.hostname })).collect();
    let current = ingress.status.and_then(|status| status.load_balancer?.ingress).unwrap_or_default();
    let shown: Vec<_> = current.iter().map(|one| json!({ "ip": one.ip, "hostname": one.hostname })).collect();
    if shown == wanted {
        return Ok(());
    }
    let given = addresses.iter().map(|one| {
        let mut fields = serde_json::Map::new();
        fields.extend(one.ip.clone().map(|ip| ("ip".to_owned(), json!(ip))));
        fields.extend(one.hostname.clone().map(|name| ("hostname".to_owned(), json!(name))));
        fields
    });
    let patch = json!({ "status": { "loadBalancer": { "ingress": given.collect::<Vec<_>>() } } });
    match api.patch_status(&name.name, &PatchParams::default(), &Patch::Merge(patch)).await {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(answer)) if answer.code == 404 => Ok(()),
        Err(error) => Err(error),
    }
}
