//! The CA's place in the cluster, as Istio keeps it: Secret `cacerts` where somebody has plugged one in, else `istio-ca-secret`
//! with a root of our own. It is followed, so that a change of the root needs no restart.
use std::sync::Arc;

use futures::TryStreamExt as _;
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Api;
use kube::api::PostParams;
use kube::runtime::{WatchStreamExt as _, watcher};
use lateen_pki::{AuthorityFiles, CaError, CertificateAuthority};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::ca_metrics::CaMetrics;

/// Our own root.
const SECRET: &str = "istio-ca-secret";
/// Where an organization puts an intermediate authority for the mesh.
const PLUGGED_IN: &str = "cacerts";
const SECRET_TYPE: &str = "istio.io/ca-root";

/// Why there is no CA.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CaSecretError {
    #[error("the Secret with the CA: {0}")]
    Api(#[from] kube::Error),
    #[error("Secret {0}: {1}")]
    Ca(&'static str, CaError),
}

/// The CA and the Secret it is in.
pub(crate) struct Stored {
    pub(crate) authority: CertificateAuthority,
    pub(crate) secret: &'static str,
}

/// Loads the CA; makes and stores a new one where there is none. When two control planes start at once, the one that is
/// second to store takes the first one's.
pub(crate) async fn load_or_create(
    client: &kube::Client,
    namespace: &str,
    organization: &str,
) -> Result<Stored, CaSecretError> {
    let secrets: Api<Secret> = Api::namespaced(client.clone(), namespace);
    if let Some(secret) = secrets.get_opt(PLUGGED_IN).await? {
        tracing::info!("the mesh's CA is the one of Secret {namespace}/{PLUGGED_IN}");
        return stored(&secret, PLUGGED_IN);
    }
    if let Some(secret) = secrets.get_opt(SECRET).await? {
        return stored(&secret, SECRET);
    }
    let authority =
        CertificateAuthority::generate(organization).map_err(|error| CaSecretError::Ca(SECRET, error))?;
    let files = AuthorityFiles::of_own_root(&authority);
    let entries = files.entries().into_iter();
    let secret = Secret {
        metadata: ObjectMeta { name: Some(SECRET.to_owned()), ..ObjectMeta::default() },
        type_: Some(SECRET_TYPE.to_owned()),
        data: Some(entries.map(|(key, pem)| (key.to_owned(), ByteString(pem.as_bytes().to_vec()))).collect()),
        ..Secret::default()
    };
    match secrets.create(&PostParams::default(), &secret).await {
        Ok(_) => {
            tracing::info!("made a new root certificate, kept in Secret {namespace}/{SECRET}");
            Ok(Stored { authority, secret: SECRET })
        }
        Err(kube::Error::Api(status)) if status.code == 409 => stored(&secrets.get(SECRET).await?, SECRET),
        Err(error) => Err(error.into()),
    }
}

fn stored(secret: &Secret, name: &'static str) -> Result<Stored, CaSecretError> {
    let authority = read(secret).map_err(|error| CaSecretError::Ca(name, error))?;
    Ok(Stored { authority, secret: name })
}

fn read(secret: &Secret) -> Result<CertificateAuthority, CaError> {
    let value = |key: &str| {
        let bytes = secret.data.as_ref().and_then(|data| data.get(key))?;
        Some(String::from_utf8_lossy(&bytes.0).into_owned())
    };
    CertificateAuthority::from_files(&AuthorityFiles::read(value)?)
}

/// The authority of the moment.
pub(crate) type CurrentAuthority = watch::Receiver<Arc<CertificateAuthority>>;

/// Takes over what becomes of the Secret. What cannot be used, or would break connections, changes nothing.
pub(crate) async fn follow(
    client: kube::Client,
    namespace: String,
    name: &'static str,
    current: watch::Sender<Arc<CertificateAuthority>>,
    metrics: CaMetrics,
    stop: CancellationToken,
) {
    let api: Api<Secret> = Api::namespaced(client, &namespace);
    let config = watcher::Config::default().fields(&format!("metadata.name={name}"));
    let mut events = std::pin::pin!(watcher(api, config).default_backoff());
    let following = async {
        loop {
            match events.try_next().await {
                Ok(Some(watcher::Event::Apply(secret) | watcher::Event::InitApply(secret))) => {
                    if secret.metadata.name.as_deref() == Some(name) {
                        replace(&secret, name, &current, &metrics);
                    }
                }
                Ok(Some(watcher::Event::Delete(_))) => tracing::warn!(
                    "Secret {namespace}/{name} with the CA was deleted; the CA stays until the control plane restarts"
                ),
                Ok(Some(watcher::Event::Init | watcher::Event::InitDone)) => {}
                Ok(None) => return,
                Err(error) => tracing::warn!("watching Secret {namespace}/{name}: {error}; trying again"),
            }
        }
    };
    stop.run_until_cancelled(following).await;
}

fn replace(
    secret: &Secret,
    name: &str,
    current: &watch::Sender<Arc<CertificateAuthority>>,
    metrics: &CaMetrics,
) {
    let new = match read(secret) {
        Ok(new) => new,
        Err(error) => return tracing::error!("Secret {name}: {error}; the CA there was goes on"),
    };
    let held = current.borrow().clone();
    if new.certificate_pem() == held.certificate_pem() && new.roots() == held.roots() {
        return;
    }
    if !held.roots().iter().any(|root| root == new.roots().first()) {
        return tracing::error!(
            "Secret {name} has an authority of a root that no workload trusts yet; the CA there was goes on. Add the new root \
             to root-cert.pem first, or let lateen x ca rotate do it"
        );
    }
    let roots = new.roots().iter().count();
    tracing::info!(roots, "the CA is now as Secret {name} has it");
    metrics.authority(&new);
    current.send_replace(Arc::new(new));
}
