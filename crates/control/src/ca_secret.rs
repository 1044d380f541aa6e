//! The CA's place in the cluster: Secret `istio-ca-secret`, as Istio keeps it.
use std::collections::BTreeMap;

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Api;
use kube::api::PostParams;
use lateen_pki::{CaError, CertificateAuthority};

const SECRET: &str = "istio-ca-secret";
const SECRET_TYPE: &str = "istio.io/ca-root";
const CERTIFICATE: &str = "ca-cert.pem";
const KEY: &str = "ca-key.pem";

/// Why there is no CA.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CaSecretError {
    #[error("Secret {SECRET}: {0}")]
    Api(#[from] kube::Error),
    #[error("Secret {SECRET}: {0}")]
    Ca(#[from] CaError),
    #[error("Secret {SECRET} has no key {0:?}; restore it, or delete the Secret to start with a new root")]
    Missing(&'static str),
}

/// Loads the CA; makes and stores a new one where there is none. When two control planes start at once, the one that is
/// second to store takes the first one's.
pub(crate) async fn load_or_create(
    client: &kube::Client,
    namespace: &str,
    organization: &str,
) -> Result<CertificateAuthority, CaSecretError> {
    let secrets: Api<Secret> = Api::namespaced(client.clone(), namespace);
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
    let text = |key: &'static str| {
        let bytes = secret.data.as_ref().and_then(|data| data.get(key)).ok_or(CaSecretError::Missing(key))?;
        Ok::<_, CaSecretError>(String::from_utf8_lossy(&bytes.0).into_owned())
    };
    Ok(CertificateAuthority::from_pem(&text(CERTIFICATE)?, &text(KEY)?)?)
}
