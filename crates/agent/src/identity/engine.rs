//! The workload's certificate for our engine, in this process.

use std::collections::BTreeSet;

use lateen_engine::{ConfigUpdate, EngineError, EngineHandle, Resource};
use lateen_xds::type_urls;
use prost::Message;
use prost_types::Any;
use tracing::{info, warn};

use super::{Current, secret, version};

/// Brings the secrets that configuration names, and again whenever there is a new certificate, until the engine stops.
pub(crate) async fn supply(engine: EngineHandle, mut current: Current) {
    let mut wanted = engine.subscriptions();
    let mut given: BTreeSet<String> = BTreeSet::new();
    let mut held = None;
    loop {
        let names = wanted.borrow_and_update().agent_secrets.clone();
        let certificate = current.borrow_and_update().clone();
        if certificate.as_ref().map(|one| version(one)) != held {
            held = certificate.as_ref().map(|one| version(one));
            given.clear();
        }
        // What is not named any more the engine has forgotten.
        given.retain(|name| names.contains(name));
        if let Some(certificate) = certificate {
            let new = names.iter().filter(|name| !given.contains(*name));
            let made = new.filter_map(|name| Some((name, secret(name, &certificate)?)));
            let set: Vec<Resource> = made
                .map(|(name, secret)| Resource {
                    name: name.clone(),
                    version: version(&certificate),
                    body: Any { type_url: type_urls::SECRET.to_owned(), value: secret.encode_to_vec() },
                    is_static: false,
                })
                .collect();
            if !set.is_empty() {
                given.extend(set.iter().map(|resource| resource.name.clone()));
                match engine.apply(ConfigUpdate { set, removed: Vec::new() }).await {
                    Ok(report) => {
                        for rejection in report.rejected {
                            warn!(%rejection, "the workload's certificate is refused");
                        }
                    }
                    Err(EngineError::Stopped) => return,
                    Err(error) => warn!(%error, "the workload's certificate does not reach the engine"),
                }
            }
        }
        tokio::select! {
            changed = wanted.changed() => if changed.is_err() {
                info!("the engine has stopped; it needs no certificate");
                return;
            },
            changed = current.changed() => if changed.is_err() {
                return;
            },
        }
    }
}
