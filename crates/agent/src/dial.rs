//! Outgoing connections of the agent itself: marked, so that traffic capture leaves them alone, and over TLS to the control plane.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use lateen_ir::Jwt;
use lateen_pki::Roots;
use lateen_xds::client::channel_over;
use nix::sys::socket::{setsockopt, sockopt};
use rustls::{CertificateError, RootCertStore};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, ServerName};
use tokio::net::{TcpSocket, TcpStream};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tonic::metadata::{MetadataMap, MetadataValue};
use tonic::transport::Channel;

use crate::config::Discovery;
use crate::error::AgentError;
use crate::identity::kept::{self, Kept};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// A connection to the control plane.
pub(crate) enum ControlPlaneStream {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

/// Where the proxy reaches its own application from: traffic capture lets it pass, where anything else to the pod's own address
/// would come in by the proxy's inbound port.
const TO_THE_APPLICATION: (Ipv4Addr, Ipv6Addr) =
    (Ipv4Addr::new(127, 0, 0, 6), Ipv6Addr::new(0, 0, 0, 0, 0, 0, 0, 6));

/// Connects to `address`, with `SO_MARK` when `mark` is set.
pub(crate) async fn connect(address: SocketAddr, mark: Option<u32>) -> io::Result<TcpStream> {
    connect_from(None, address, mark).await
}

/// Connects to the application beside us, past the proxy.
pub(crate) async fn application(address: SocketAddr, mark: Option<u32>) -> io::Result<TcpStream> {
    let source: IpAddr = match address.ip() {
        IpAddr::V4(_) => TO_THE_APPLICATION.0.into(),
        IpAddr::V6(_) => TO_THE_APPLICATION.1.into(),
    };
    match connect_from(Some(source), address, mark).await {
        // A pod whose loopback interface was not given ::6 captures no IPv6; what is elsewhere is not reached from the loopback.
        Err(error)
            if matches!(error.kind(), io::ErrorKind::AddrNotAvailable | io::ErrorKind::InvalidInput) =>
        {
            connect(address, mark).await
        }
        other => other,
    }
}

async fn connect_from(
    source: Option<IpAddr>,
    address: SocketAddr,
    mark: Option<u32>,
) -> io::Result<TcpStream> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    if let Some(source) = source {
        socket.bind(SocketAddr::new(source, 0))?;
    }
    if let Some(mark) = mark {
        setsockopt(&socket, sockopt::Mark, &mark)?;
    }
    let stream = tokio::time::timeout(CONNECT_TIMEOUT, socket.connect(address)).await??;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// Resolves `HOST:PORT` and connects to the first address that answers.
pub(crate) async fn connect_host(host: &str, mark: Option<u32>) -> Result<TcpStream, String> {
    let addresses =
        tokio::net::lookup_host(host).await.map_err(|error| format!("cannot resolve {host}: {error}"))?;
    let mut last = format!("{host} has no address");
    for address in addresses {
        match connect(address, mark).await {
            Ok(stream) => return Ok(stream),
            Err(error) => last = format!("cannot connect to {address}: {error}"),
        }
    }
    Err(last)
}

/// A gRPC channel over a connection to the control plane.
pub(crate) async fn channel(discovery: &Discovery, mark: Option<u32>) -> Result<Channel, AgentError> {
    let channel = match control_plane(discovery, mark).await? {
        ControlPlaneStream::Plain(stream) => channel_over(stream, &discovery.address).await,
        ControlPlaneStream::Tls(stream) => channel_over(*stream, &discovery.address).await,
    };
    channel.map_err(|reason| AgentError::ControlPlane { address: discovery.address.clone(), reason })
}

/// Connects to the control plane, with HTTP/2 over TLS unless `discovery` has no roots.
pub(crate) async fn control_plane(
    discovery: &Discovery,
    mark: Option<u32>,
) -> Result<ControlPlaneStream, AgentError> {
    let failed = |reason| AgentError::ControlPlane { address: discovery.address.clone(), reason };
    secure(discovery, connect_host(&discovery.address, mark).await.map_err(failed)?).await
}

async fn secure(discovery: &Discovery, stream: TcpStream) -> Result<ControlPlaneStream, AgentError> {
    let Some(roots) = &discovery.root_cert else {
        return Ok(ControlPlaneStream::Plain(stream));
    };
    let failed = |reason: String| AgentError::ControlPlane { address: discovery.address.clone(), reason };
    let pem = std::fs::read(roots).map_err(|error| AgentError::file("read", roots, error))?;
    let config = client_config(&pem, shown(discovery, &pem))
        .map_err(|reason| failed(format!("{}: {reason}", roots.display())))?;
    let host = discovery.address.rsplit_once(':').map_or(discovery.address.as_str(), |(host, _)| host);
    let name = ServerName::try_from(host.to_owned()).map_err(|error| failed(error.to_string()))?;
    let handshake = TlsConnector::from(Arc::new(config)).connect(name, stream);
    match tokio::time::timeout(CONNECT_TIMEOUT, handshake).await {
        Ok(Ok(stream)) => Ok(ControlPlaneStream::Tls(Box::new(stream))),
        Ok(Err(error)) if is_of_another_root(&error) => {
            Err(failed(format!("TLS handshake: {error}: {}", other_root(discovery, roots))))
        }
        Ok(Err(error)) => Err(failed(format!("TLS handshake: {error}"))),
        Err(_) => Err(failed(format!("TLS handshake not done within {} s", CONNECT_TIMEOUT.as_secs()))),
    }
}

/// The certificate to show. None that is of no root in `pem` where there is a token that holds: the mesh has got another root while the
/// machine was away, and a certificate that the control plane cannot verify ends the handshake, whatever the token says.
fn shown(discovery: &Discovery, pem: &[u8]) -> Option<Kept> {
    let kept = kept::read(discovery.certificate.as_deref()?)?;
    let roots = std::str::from_utf8(pem).ok().and_then(|pem| Roots::from_pem(pem).ok());
    let is_of_them = roots.is_some_and(|roots| roots.issuer_of_certificates(&kept.chain).is_some());
    (is_of_them || !has_valid_token(discovery)).then_some(kept)
}

/// Whether there is a token that says it holds at this time.
fn has_valid_token(discovery: &Discovery) -> bool {
    let token = discovery.token.as_deref().and_then(|path| std::fs::read_to_string(path).ok());
    let Some(token) = token.and_then(|token| Jwt::parse(token.trim()).ok()) else { return false };
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    token.expires == 0 || token.expires > now
}

/// A root that replaces another bears its name as a rule: then only the signature tells.
fn is_of_another_root(error: &io::Error) -> bool {
    use CertificateError::{BadSignature, UnknownIssuer};
    let error = error.get_ref().and_then(|error| error.downcast_ref::<rustls::Error>());
    matches!(error, Some(rustls::Error::InvalidCertificate(UnknownIssuer | BadSignature)))
}

/// What to do when the control plane's certificate is of none of our roots. The file is read with each attempt, so nothing is restarted.
fn other_root(discovery: &Discovery, roots: &Path) -> String {
    let file = roots.display();
    if discovery.certificate.is_none() {
        return format!(
            "none of the roots in {file} has signed it; ConfigMap istio-ca-root-cert has the mesh's"
        );
    }
    format!(
        "none of the roots in {file} has signed it. If the mesh has got a new root while this machine was away, make its files anew \
         (`lateen x workload entry configure`) and put root-cert.pem there, and istio-token where it was; no restart is needed"
    )
}

/// Trusts exactly the roots in `pem`, shows a certificate if there is one, and offers HTTP/2.
fn client_config(pem: &[u8], shown: Option<Kept>) -> Result<rustls::ClientConfig, String> {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(pem) {
        let certificate = certificate.map_err(|error| error.to_string())?;
        roots.add(certificate).map_err(|error| error.to_string())?;
    }
    if roots.is_empty() {
        return Err("no certificate in the file".to_owned());
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let builder = builder.map_err(|error| error.to_string())?.with_root_certificates(roots);
    let mut config = match shown {
        None => builder.with_no_client_auth(),
        Some(Kept { chain, key }) => {
            builder.with_client_auth_cert(chain, key).map_err(|error| error.to_string())?
        }
    };
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(config)
}

/// Adds the service-account token to a request, where there is one.
pub(crate) fn prove(discovery: &Discovery, metadata: &mut MetadataMap) -> Result<(), AgentError> {
    let Some(token) = token(discovery)? else { return Ok(()) };
    let mut value = MetadataValue::try_from(format!("Bearer {token}")).map_err(|_| {
        let reason = "the service-account token is not a header value".to_owned();
        AgentError::ControlPlane { address: discovery.address.clone(), reason }
    })?;
    value.set_sensitive(true);
    metadata.insert("authorization", value);
    Ok(())
}

/// The service-account token, read anew as it rotates. Who has a certificate to show needs none. The error names the file, never its
/// content.
pub(crate) fn token(discovery: &Discovery) -> Result<Option<String>, AgentError> {
    let Some(path) = &discovery.token else { return Ok(None) };
    match std::fs::read_to_string(path) {
        Ok(text) => Ok(Some(text.trim().to_owned())),
        Err(_) if discovery.certificate.as_deref().and_then(kept::read).is_some() => Ok(None),
        Err(error) => Err(AgentError::file("read", path, error)),
    }
}

#[cfg(test)]
#[path = "dial_tests.rs"]
mod tests;
