//! The handshake with an endpoint.

use std::sync::{Arc, OnceLock};

use lateen_ir as ir;
use rustls::client::{ClientSessionMemoryCache, Resumption};
use rustls::sign::SingleCertAndKey;
use rustls::{ClientConfig, CommonState};
use rustls_pki_types::{CertificateDer, ServerName};
use tokio_rustls::TlsConnector;

use super::certificate;
use super::facts::TlsFacts;
use super::verify::{Peer, Verifier, no_name};
use super::{ClientTls, Failed, Material, provider, reason};
use crate::stats::tls::TlsCounter;
use crate::stream::Stream;

/// A client's side, ready for handshakes.
pub(super) struct ClientContext {
    config: Arc<ClientConfig>,
    local: Option<CertificateDer<'static>>,
}

impl ClientContext {
    pub(super) fn new(tls: &ir::UpstreamTls, by_request: bool, material: &Material) -> Result<Self, String> {
        let provider = provider::provider(&tls.common.params);
        let algorithms = provider.signature_verification_algorithms;
        let peer = Peer::Server { by_request, by_sni: tls.auto_sni_san_validation };
        let verifier = Verifier::new(material.validation.clone(), peer, algorithms)?;
        let builder = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&provider::versions(&tls.common.params))
            .map_err(|error| format!("tls_params: {error}"))?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier));
        let own = material.certificates.first().map(|own| certificate::load(own)).transpose()?;
        let local = own.as_ref().and_then(|own| own.key.cert.first().cloned());
        let mut config = match own {
            None => builder.with_no_client_auth(),
            Some(own) => {
                builder.with_client_cert_resolver(Arc::new(SingleCertAndKey::from((*own.key).clone())))
            }
        };
        config.alpn_protocols = tls.common.alpn.iter().map(|protocol| protocol.as_bytes().to_vec()).collect();
        config.resumption = match tls.max_session_keys {
            0 => Resumption::disabled(),
            // rustls keeps sessions by server; Envoy counts tickets. A few more do no harm.
            keys => Resumption::store(Arc::new(ClientSessionMemoryCache::new((keys as usize).max(8)))),
        };
        Ok(Self { config: Arc::new(config), local })
    }
}

/// A context that is made at the first handshake: of thousands of clusters with the workload's certificate a proxy calls few.
pub(super) struct LazyContext {
    material: Material,
    made: OnceLock<Result<Arc<ClientContext>, String>>,
}

impl LazyContext {
    pub(super) fn new(material: Material) -> Self {
        Self { material, made: OnceLock::new() }
    }

    pub(super) fn get(&self, tls: &ir::UpstreamTls, by_request: bool) -> Result<Arc<ClientContext>, String> {
        let make = || ClientContext::new(tls, by_request, &self.material).map(Arc::new);
        self.made.get_or_init(make).clone()
    }
}

/// Who the endpoint is to be, besides what the context says.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct ServerIdentity<'a> {
    /// Host of the request, when the cluster takes the name from there.
    pub(crate) of_request: Option<&'a str>,
    /// The endpoint's `hostname`.
    pub(crate) of_endpoint: Option<&'a str>,
    /// Protocols to offer when the context names none.
    pub(crate) alpn: &'a [&'static str],
    /// Protocols to offer whatever the context names; empty: those of the context.
    pub(crate) only_alpn: &'a [Box<str>],
}

/// Shakes hands with an endpoint.
///
/// # Errors
/// The transport failure reason, and what it counts as.
pub(crate) async fn connect(
    tls: &ClientTls,
    stream: Stream,
    identity: ServerIdentity<'_>,
) -> Result<(Stream, TlsFacts), Failed> {
    let uncounted = |reason: String| Failed { counter: None, reason };
    let Some(context) = tls.current.load_full() else {
        let reason = "TLS error: Secret is not supplied by SDS".to_owned();
        return Err(Failed { counter: Some(TlsCounter::UpstreamSecretsNotReady), reason });
    };
    let context = context.get(&tls.ir, tls.by_request);
    let context = context.map_err(|error| uncounted(format!("TLS error: {error}")))?;
    let name = server_name(tls, identity).map_err(uncounted)?;
    let connector = TlsConnector::from(context.config.clone());
    let fallback = if tls.ir.common.alpn.is_empty() { identity.alpn } else { &[] };
    let bytes = |protocol: &str| protocol.as_bytes().to_vec();
    let protocols: Vec<Vec<u8>> = if identity.only_alpn.is_empty() {
        fallback.iter().map(|protocol| bytes(protocol)).collect()
    } else {
        identity.only_alpn.iter().map(|protocol| bytes(protocol)).collect()
    };
    let shaken = if !protocols.is_empty() {
        connector.with_alpn(protocols).connect(name, stream).await
    } else {
        connector.connect(name, stream).await
    };
    match shaken {
        Ok(stream) => {
            let state: &CommonState = stream.get_ref().1;
            let facts = TlsFacts::new(state, context.local.as_ref());
            Ok((Stream::over_tls(stream.into()), facts))
        }
        Err(error) => Err(reason::failed(&error)),
    }
}

/// The name to ask for: the request's, or the endpoint's, or the context's.
fn server_name(tls: &ClientTls, identity: ServerIdentity<'_>) -> Result<ServerName<'static>, String> {
    let of_endpoint = identity.of_endpoint.filter(|_| tls.ir.auto_host_sni);
    let Some(name) = identity.of_request.or(of_endpoint).or(tls.ir.sni.as_deref()) else {
        return Ok(no_name());
    };
    let parsed = ServerName::try_from(name.to_owned());
    parsed.map_err(|_| format!("TLS error: {name:?} is not a name that can be asked for"))
}
