//! The application's probes, asked in the kubelet's place (`ISTIO_KUBE_APP_PROBERS`): it has no certificate, and would be turned away
//! where mutual TLS alone is accepted.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper_util::rt::{TokioExecutor, TokioIo};
use lateen_ir::{GRPC_HEALTH_PATH, GrpcProbe, HealthVerdict};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::{DigitallySignedStruct, SignatureScheme};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use serde::Deserialize;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tracing::debug;

use crate::dial;
use crate::fetch::exchange;

/// Most bytes of an answer about health over gRPC; a real one has a handful.
const GRPC_ANSWER: usize = 4096;

/// One probe, as Kubernetes has it.
#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Prober {
    http_get: Option<HttpGet>,
    tcp_socket: Option<TcpSocket>,
    grpc: Option<Grpc>,
    exec: Option<Exec>,
    /// Seconds; default 1.
    timeout_seconds: Option<u64>,
}

#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(rename_all = "camelCase")]
struct HttpGet {
    #[serde(default)]
    path: String,
    port: u16,
    /// Of a machine's probe: where the application is; empty is beside us.
    #[serde(default)]
    host: String,
    /// `HTTP` or `HTTPS`.
    #[serde(default)]
    scheme: String,
    #[serde(default)]
    http_headers: Vec<Header>,
}

#[derive(Clone, Debug, Deserialize, PartialEq)]
struct Header {
    name: String,
    #[serde(default)]
    value: String,
}

#[derive(Clone, Debug, Deserialize, PartialEq)]
struct TcpSocket {
    port: u16,
    #[serde(default)]
    host: String,
}

#[derive(Clone, Debug, Deserialize, PartialEq)]
struct Exec {
    command: Vec<String>,
}

#[derive(Clone, Debug, Deserialize, PartialEq)]
struct Grpc {
    port: u16,
    service: Option<String>,
}

/// All probes by the path the kubelet asks for.
pub type Probers = BTreeMap<String, Prober>;

impl Prober {
    /// Asks the application at `pod`: its status for HTTP, 200 for a connection or a gRPC server that serves, 500 for none in time.
    pub(crate) async fn ask(&self, pod: IpAddr, mark: Option<u32>) -> StatusCode {
        let limit = Duration::from_secs(self.timeout_seconds.unwrap_or(1).max(1));
        match tokio::time::timeout(limit, self.answer(pod, mark)).await {
            Ok(Ok(status)) => status,
            Ok(Err(error)) => {
                debug!(%error, "a probe of the application");
                StatusCode::INTERNAL_SERVER_ERROR
            }
            Err(_) => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }

    /// Whether the application of this machine is well, in the way of Istio's agent: any status from 200 to 399 is. The error is for people.
    pub(crate) async fn check(&self, mark: Option<u32>) -> Result<(), String> {
        let limit = Duration::from_secs(self.timeout_seconds.unwrap_or(1).max(1));
        let asked = async {
            let host = self.http_get.as_ref().map(|get| &get.host);
            let host = host.or_else(|| self.tcp_socket.as_ref().map(|socket| &socket.host));
            let address = match host.filter(|host| !host.is_empty()) {
                None => IpAddr::V4(Ipv4Addr::LOCALHOST),
                Some(host) => {
                    let looked_up = tokio::net::lookup_host((host.as_str(), 0)).await;
                    let mut found =
                        looked_up.map_err(|error| io::Error::other(format!("{host}: {error}")))?;
                    let none = || io::Error::new(io::ErrorKind::NotFound, format!("{host} has no address"));
                    found.next().ok_or_else(none)?.ip()
                }
            };
            self.answer(address, mark).await
        };
        match tokio::time::timeout(limit, asked).await {
            Ok(Ok(status)) if (200..400).contains(&status.as_u16()) => Ok(()),
            Ok(Ok(status)) => {
                Err(format!("status code was not from [200,400), bad code {}", status.as_u16()))
            }
            Ok(Err(error)) => Err(error.to_string()),
            Err(_) => Err(format!("no answer within {} s", limit.as_secs())),
        }
    }

    async fn answer(&self, pod: IpAddr, mark: Option<u32>) -> io::Result<StatusCode> {
        let connect = |port| dial::application(SocketAddr::new(pod, port), mark);
        if let Some(get) = &self.http_get {
            return get.answer(connect(get.port).await?, SocketAddr::new(pod, get.port)).await;
        }
        if let Some(grpc) = &self.grpc {
            return grpc.answer(connect(grpc.port).await?, SocketAddr::new(pod, grpc.port)).await;
        }
        if let Some(exec) = &self.exec {
            exec.run().await?;
        }
        if let Some(socket) = &self.tcp_socket {
            connect(socket.port).await?;
        }
        Ok(StatusCode::OK)
    }
}

impl HttpGet {
    async fn answer(&self, stream: TcpStream, address: SocketAddr) -> io::Result<StatusCode> {
        let path = if self.path.starts_with('/') { self.path.clone() } else { format!("/{}", self.path) };
        let mut headers = HeaderMap::new();
        for header in &self.http_headers {
            let name = HeaderName::try_from(&header.name).map_err(io::Error::other)?;
            headers.append(name, HeaderValue::try_from(&header.value).map_err(io::Error::other)?);
        }
        let host = address.to_string();
        let answer = if self.scheme.eq_ignore_ascii_case("https") {
            let stream = unverified(stream, address.ip()).await?;
            exchange(stream, Method::GET, &host, &path, headers).await
        } else {
            exchange(stream, Method::GET, &host, &path, headers).await
        };
        Ok(answer?.0)
    }
}

impl Exec {
    /// Runs it to a good end; one that takes too long is killed.
    async fn run(&self) -> io::Result<()> {
        let (program, arguments) =
            self.command.split_first().ok_or_else(|| io::Error::other("there is no command"))?;
        let mut command = tokio::process::Command::new(program);
        command.args(arguments).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let status = command.kill_on_drop(true).status().await?;
        if status.success() { Ok(()) } else { Err(io::Error::other(status.to_string())) }
    }
}

impl Grpc {
    async fn answer(&self, stream: TcpStream, address: SocketAddr) -> io::Result<StatusCode> {
        let probe =
            GrpcProbe { service: self.service.clone().unwrap_or_default().into(), ..GrpcProbe::default() };
        let (mut sender, connection) =
            hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
                .await
                .map_err(io::Error::other)?;
        let connection = tokio::spawn(connection);
        let request = http::Request::post(format!("http://{address}{GRPC_HEALTH_PATH}"))
            .header(header::CONTENT_TYPE, "application/grpc")
            .header(header::TE, "trailers")
            .body(Full::new(Bytes::from(probe.request())))
            .map_err(io::Error::other)?;
        let response = sender.send_request(request).await.map_err(io::Error::other)?;
        // An error without a message has its status in the headers, and is none of success.
        let body =
            Limited::new(response.into_body(), GRPC_ANSWER).collect().await.map_err(io::Error::other)?;
        connection.abort();
        let status = body.trailers().and_then(|trailers| trailers.get("grpc-status")).cloned();
        let status = status.as_ref().map(HeaderValue::as_bytes);
        match GrpcProbe::judge(&body.to_bytes(), status) {
            HealthVerdict::Passed => Ok(StatusCode::OK),
            _ => Err(io::Error::other("the gRPC server does not serve")),
        }
    }
}

/// TLS with whoever answers, as the kubelet's HTTPS probes are: they are about health, and nothing secret goes by them.
async fn unverified(
    stream: TcpStream,
    pod: IpAddr,
) -> io::Result<tokio_rustls::client::TlsStream<TcpStream>> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(io::Error::other)?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Anybody(provider)))
        .with_no_client_auth();
    TlsConnector::from(Arc::new(config)).connect(ServerName::from(pod), stream).await
}

/// Takes any certificate.
#[derive(Debug)]
struct Anybody(Arc<CryptoProvider>);

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, certificate, signed, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signed, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
