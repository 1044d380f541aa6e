//! The CA's place in the cluster, as Istio keeps it: Secret `cacerts` where somebody has plugged one in, else `istio-ca-secret`
//! with a root of our own.
use std::collections::BTreeMap;

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Api;
use kube::api::PostParams;
use lateen_pki::{CaError, CertificateAuthority, PluggedIn};

const SECRET: &str = "istio-ca-secret";
/// Where an organization puts an intermediate authority for the mesh.
const PLUGGED_IN: &str = "cacerts";
const SECRET_TYPE: &str = "istio.io/ca-root";
const CERTIFICATE: &str = "ca-cert.pem";
const KEY: &str = "ca-key.pem";
const CHAIN: &str = "cert-chain.pem";
const ROOT: &str = "root-cert.pem";

/// Why there is no CA.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CaSecretError {
    #[error("Secret {SECRET}: {0}")]
    Api(#[from] kube::Error),
    #[error("Secret {SECRET}: {0}")]
    Ca(#[from] CaError),
    #[error("Secret {PLUGGED_IN}: {0}")]
    PluggedIn(CaError),
    #[error("Secret {secret} has no key {key:?}; restore it, or delete the Secret to start with a new root")]
    Missing { secret: &'static str, key: &'static str },
}

/// Loads the CA; makes and stores a new one where there is none. When two control planes start at once, the one that is
/// second to store takes the first one's.
pub(crate) async fn load_or_create(
    client: &kube::Client,
    namespace: &str,
    organization: &str,
) -> Result<CertificateAuthority, CaSecretError> {
    let secrets: Api<Secret> = Api::namespaced(client.clone(), namespace);
    if let Some(secret) = secrets.get_opt(PLUGGED_IN).await? {
        tracing::info!("the mesh's CA is the one of Secret {namespace}/{PLUGGED_IN}");
        return plugged_in(&secret);
    }
    if let Some(secret) = secrets.get_opt(SECRET).await? {
        return load(&secret);
    }
    let authority = CertificateAuthority::generate(organization)?;
    let pem = |text: &str| ByteString(text.as_bytes().to_vec());
    let secret = Secret {
        metadata: ObjectMeta { name: Some(SECRET.to_owned()), ..ObjectMeta::default() },
        type_: Some(SECRET_TYPE.to_owned()),
        data: Some(BTreeMap::from([
            (CERTIFICATE.to_owned(), pem(authority.certificate_pem())),
            (KEY.to_owned(), pem(authority.key_pem())),
        ])),
        ..Secret::default()
    };
    match secrets.create(&PostParams::default(), &secret).await {
        Ok(_) => {
            tracing::info!("made a new root certificate, kept in Secret {namespace}/{SECRET}");
            Ok(authority)
        }
        Err(kube::Error::Api(status)) if status.code == 409 => load(&secrets.get(SECRET).await?),
        Err(error) => Err(error.into()),
    }
}

fn load(secret: &Secret) -> Result<CertificateAuthority, CaSecretError> {
    let text = |key| text(secret, SECRET, key);
    Ok(CertificateAuthority::from_pem(&text(CERTIFICATE)?, &text(KEY)?)?)
}

fn plugged_in(secret: &Secret) -> Result<CertificateAuthority, CaSecretError> {
    let text = |key| text(secret, PLUGGED_IN, key);
    let [certificate, key, chain, root] = [text(CERTIFICATE)?, text(KEY)?, text(CHAIN)?, text(ROOT)?];
    let parts = PluggedIn { certificate: &certificate, key: &key, chain: &chain, root: &root };
    CertificateAuthority::plugged_in(parts).map_err(CaSecretError::PluggedIn)
}

fn text(secret: &Secret, name: &'static str, key: &'static str) -> Result<String, CaSecretError> {
    let bytes = secret.data.as_ref().and_then(|data| data.get(key));
    let bytes = bytes.ok_or(CaSecretError::Missing { secret: name, key })?;
    Ok(String::from_utf8_lossy(&bytes.0).into_owned())
}
