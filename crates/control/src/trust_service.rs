//! Tells proxies on machines what the mesh trusts: what pods find in ConfigMap `istio-ca-root-cert`.
use futures::future::BoxFuture;
use futures::stream::{self, StreamExt as _};
use lateen_pki::Federation;
use lateen_xds::trust_service::{Bundles, TrustBundle, TrustRequest, TrustSource};
use tokio::sync::watch;
use tonic::{Request, Status};

use crate::authenticate::Authenticator;
use crate::ca_secret::CurrentAuthority;
use crate::push::Published;
use crate::serve::PeerCertificates;

/// Says it to whoever proves to be a workload of the mesh.
pub(crate) struct TrustTeller {
    pub(crate) authority: CurrentAuthority,
    pub(crate) federation: watch::Receiver<Option<Federation>>,
    pub(crate) authenticator: Authenticator,
    pub(crate) published: watch::Receiver<Published>,
}

impl TrustSource for TrustTeller {
    fn follow(&self, request: Request<TrustRequest>) -> BoxFuture<'_, Result<Bundles, Status>> {
        Box::pin(async move {
            let (metadata, extensions, _) = request.into_parts();
            let trust_domain = self.published.borrow().world.mesh().trust_domain.clone();
            let shown = extensions.get::<PeerCertificates>();
            self.authenticator.authenticate(&metadata.into_headers(), shown, &trust_domain).await?;
            Ok(bundles(self.authority.clone(), self.federation.clone()))
        })
    }
}

/// What is trusted from now on. Nothing is said before it is known whom other meshes' roots vouch for; ends with the control plane.
fn bundles(authority: CurrentAuthority, federation: watch::Receiver<Option<Federation>>) -> Bundles {
    let begin = (authority, federation, None);
    stream::unfold(begin, |(mut authority, mut federation, mut told)| async move {
        loop {
            federation.wait_for(Option::is_some).await.ok()?;
            let domains = federation.borrow_and_update().as_ref().and_then(Federation::text);
            let now = TrustBundle {
                roots: authority.borrow_and_update().root_pem().to_owned(),
                domains: domains.unwrap_or_default(),
            };
            if told.as_ref() != Some(&now) {
                told = Some(now.clone());
                return Some((Ok(now), (authority, federation, told)));
            }
            tokio::select! {
                changed = authority.changed() => changed.ok()?,
                changed = federation.changed() => changed.ok()?,
            }
        }
    })
    .boxed()
}
