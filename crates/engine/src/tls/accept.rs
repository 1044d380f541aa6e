//! The handshake with a client.

use std::sync::Arc;

use lateen_ir as ir;
use rustls::server::{
    ClientHello, NoServerSessionStorage, ResolvesServerCert, ServerSessionMemoryCache, WebPkiClientVerifier,
};
use rustls::sign::CertifiedKey;
use rustls::{CipherSuite, CommonState, ServerConfig};
use tokio_rustls::LazyConfigAcceptor;

use super::certificate::{self, Own};
use super::facts::TlsFacts;
use super::tickets::Tickets;
use super::verify::{Peer, Verifier};
use super::{Material, ServerTls, provider, reason};
use crate::stats::tls::{TlsCounter, TlsStats};
use crate::stream::Stream;

/// Sessions of TLS 1.2 kept by one context.
const SESSIONS: usize = 1024;

/// Bytes read before the handshake.
const LOOK: usize = 4096;

/// The first byte of a TLS handshake.
const HANDSHAKE_RECORD: u8 = 22;

const TLS13: [CipherSuite; 3] = [
    CipherSuite::TLS13_AES_128_GCM_SHA256,
    CipherSuite::TLS13_AES_256_GCM_SHA384,
    CipherSuite::TLS13_CHACHA20_POLY1305_SHA256,
];

/// A server's side, ready for handshakes.
pub(super) struct ServerContext {
    /// For clients that speak TLS 1.3, whose order of suites counts, as with BoringSSL.
    tls13: Arc<ServerConfig>,
    /// For others.
    tls12: Arc<ServerConfig>,
    own: Arc<Certificates>,
    allow_expired: bool,
}

/// Own certificates, from which one is chosen for each client.
struct Certificates {
    all: Vec<Own>,
    full_scan: bool,
}

impl std::fmt::Debug for Certificates {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} certificates", self.all.len())
    }
}

impl Certificates {
    fn chosen(&self, hello: &ClientHello<'_>) -> Option<&Arc<CertifiedKey>> {
        let position = certificate::choose(&self.all, hello, self.full_scan);
        self.all.get(position).map(|own| &own.key)
    }
}

impl ResolvesServerCert for Certificates {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.chosen(&hello).cloned()
    }
}

impl ServerContext {
    pub(super) fn new(tls: &ir::DownstreamTls, material: &Material) -> Result<Self, String> {
        let provider = provider::provider(&tls.common.params);
        let algorithms = provider.signature_verification_algorithms;
        let all =
            material.certificates.iter().map(|own| certificate::load(own)).collect::<Result<Vec<_>, _>>()?;
        let own = Arc::new(Certificates { all, full_scan: tls.full_scan_certs });
        let builder = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&provider::versions(&tls.common.params))
            .map_err(|error| format!("tls_params: {error}"))?;
        let validation = &material.validation;
        // Without anything to verify a certificate by none is asked for, required or not, as in Envoy.
        let verifier: Arc<dyn rustls::server::danger::ClientCertVerifier> = if validation.verifies() {
            let peer = Peer::Client { required: tls.require_client_certificate };
            Arc::new(Verifier::new(validation.clone(), peer, algorithms)?)
        } else {
            WebPkiClientVerifier::no_client_auth()
        };
        let mut config = builder.with_client_cert_verifier(verifier).with_cert_resolver(own.clone());
        config.alpn_protocols = tls.common.alpn.iter().map(|protocol| protocol.as_bytes().to_vec()).collect();
        config.ignore_client_order = !tls.prefer_client_ciphers;
        config.session_storage = if tls.stateful_resumption {
            ServerSessionMemoryCache::new(SESSIONS)
        } else {
            Arc::new(NoServerSessionStorage {})
        };
        if tls.stateless_resumption {
            config.ticketer = Tickets::new(tls.session_timeout)?;
        } else {
            config.send_tls13_tickets = 0;
        }
        let mut tls13 = config.clone();
        tls13.ignore_client_order = false;
        let both = tls.common.params.max == ir::TlsVersion::V1_3;
        let tls12 = Arc::new(config);
        Ok(Self {
            tls13: if both { Arc::new(tls13) } else { tls12.clone() },
            tls12,
            own,
            allow_expired: validation.allow_expired
                || validation.accept_untrusted && validation.trust_domains.is_none()
                || !validation.verifies(),
        })
    }

    /// A resumed session shows no certificate anew; that of its beginning may have expired since.
    fn still_valid(&self, facts: &TlsFacts) -> bool {
        if self.allow_expired || !facts.resumed {
            return true;
        }
        let now = std::time::SystemTime::now().duration_since(std::time::SystemTime::UNIX_EPOCH);
        let now = now.map_or(0, |since| since.as_secs() as i64);
        facts.peer().is_none_or(|peer| now <= peer.not_after)
    }
}

/// A client that was not let in.
pub(crate) struct Refused {
    /// The transport failure reason; empty when the client went away.
    pub(crate) reason: String,
}

/// Shakes hands with a client. What is sent to it from here on is encrypted.
pub(crate) async fn accept(
    tls: &ServerTls,
    stream: Stream,
    stats: &TlsStats,
) -> Result<(Stream, TlsFacts), Refused> {
    let Some(context) = tls.current.load_full() else {
        stats.inc(TlsCounter::DownstreamSecretsNotReady);
        return Err(Refused { reason: "TLS error: Secret is not supplied by SDS".to_owned() });
    };
    let refused = |error: std::io::Error| {
        let failed = reason::failed(&error);
        if let Some(counter) = failed.counter {
            stats.inc(counter);
        }
        Refused { reason: failed.reason }
    };
    // Who does not speak TLS gets no answer in it.
    let mut stream = stream;
    if stream.ahead().is_empty() {
        stream.read_ahead(LOOK).await.map_err(refused)?;
    }
    if stream.ahead().first().is_some_and(|byte| *byte != HANDSHAKE_RECORD) {
        stats.inc(TlsCounter::ConnectionError);
        return Err(Refused { reason: reason::not_tls(stream.ahead()) });
    }
    let start =
        LazyConfigAcceptor::new(rustls::server::Acceptor::default(), stream).await.map_err(refused)?;
    let hello = start.client_hello();
    let local = context.own.chosen(&hello).and_then(|key| key.cert.first().cloned());
    let speaks_tls13 = hello.cipher_suites().iter().any(|suite| TLS13.contains(suite));
    let config = if speaks_tls13 { &context.tls13 } else { &context.tls12 };
    // A client whose protocols are all foreign is served without one; rustls would refuse it.
    let foreign = hello.alpn().is_some_and(|mut offered| {
        !offered.any(|protocol| config.alpn_protocols.iter().any(|own| own == protocol))
    });
    let config = if foreign && !config.alpn_protocols.is_empty() {
        let mut without = (**config).clone();
        without.alpn_protocols.clear();
        Arc::new(without)
    } else {
        config.clone()
    };
    let stream = start.into_stream(config).await.map_err(refused)?;
    let session = stream.get_ref().1;
    let state: &CommonState = session;
    let mut facts = TlsFacts::new(state, local.as_ref());
    facts.server_name = session.server_name().map(Into::into);
    if !context.still_valid(&facts) {
        stats.inc(TlsCounter::FailVerifyError);
        return Err(Refused { reason: "the certificate of a resumed session has expired".to_owned() });
    }
    stats.shaken(&facts);
    Ok((Stream::over_tls(stream.into()), facts))
}
