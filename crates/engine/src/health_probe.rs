//! One endpoint's health checks: the connection they use, what is asked over it, what the answer says.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::uri::{Authority, PathAndQuery};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, Uri, Version, header};
use http_body_util::BodyExt as _;
use hyper::body::{Frame, Incoming};
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use lateen_ir::{
    Endpoint, GRPC_HEALTH_PATH, GrpcProbe, HealthProbe, HealthVerdict, HttpProbe, ProxyProtocolVersion,
    TcpProbe, UpstreamTransport, grpc_timeout_text,
};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::dial::{DialOptions, dial};
use crate::health_check::HealthTarget;
use crate::proxy_protocol::{self, Ends};
use crate::stream::{Stream, Transport};
use crate::tls::{self, ServerIdentity};

/// An answer to a TCP or gRPC check that is longer is no answer.
const MOST_RECEIVED: usize = 64 * 1024;

/// A body in one piece, whose length nobody is told.
struct Body(Option<Bytes>);

impl hyper::body::Body for Body {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        Poll::Ready(self.0.take().map(|piece| Ok(Frame::data(piece))))
    }

    fn is_end_stream(&self) -> bool {
        self.0.is_none()
    }
}

/// A connection kept for the next check.
enum Kept {
    Http1(http1::SendRequest<Body>),
    Http2(http2::SendRequest<Body>),
    Tcp(Stream),
}

impl Kept {
    fn is_closed(&self) -> bool {
        match self {
            Self::Http1(sender) => sender.is_closed(),
            Self::Http2(sender) => sender.is_closed(),
            Self::Tcp(_) => false,
        }
    }
}

/// See the module.
pub(crate) struct Asker<'a> {
    target: &'a HealthTarget,
    endpoint: &'a Endpoint,
    /// Who is asked.
    address: SocketAddr,
    /// Name of the endpoint, where it has one of its own for checks.
    hostname: Option<&'a str>,
    kept: Option<Kept>,
}

impl<'a> Asker<'a> {
    pub(crate) fn new(target: &'a HealthTarget, address: SocketAddr, endpoint: &'a Endpoint) -> Self {
        let settings = endpoint.health_check.as_deref();
        let ip = settings.and_then(|settings| settings.address).unwrap_or(address.ip());
        let port = settings.and_then(|settings| settings.port).unwrap_or(address.port());
        let hostname = settings.and_then(|settings| settings.hostname.as_deref());
        Self { target, endpoint, address: SocketAddr::new(ip, port), hostname, kept: None }
    }

    /// One check. When it is given up in the middle its connection is lost.
    pub(crate) async fn ask(&mut self) -> HealthVerdict {
        let before = self.kept.take().filter(|kept| !kept.is_closed());
        let asked = match &self.target.check.probe {
            HealthProbe::Http(probe) => self.ask_http(probe, before).await,
            HealthProbe::Tcp(probe) => self.ask_tcp(probe, before).await,
            HealthProbe::Grpc(probe) => self.ask_grpc(probe, before).await,
        };
        match asked {
            Some((verdict, connection)) => {
                self.kept = connection.filter(|_| self.target.check.reuse_connection);
                verdict
            }
            None => HealthVerdict::Unreachable,
        }
    }

    /// The transport that checks of this endpoint use: by the check's own criteria, or as its traffic.
    fn transport(&self) -> (&UpstreamTransport, Option<&Arc<tls::ClientTls>>) {
        let cluster = &self.target.cluster;
        let position = match &self.target.check.transport_criteria {
            None => cluster.transport_position(self.endpoint.metadata.as_deref()),
            Some(criteria) => {
                let metadata = serde_json::json!({ "envoy.transport_socket_match": &**criteria });
                cluster.transport_position(Some(&metadata))
            }
        };
        self.target.transports.at(cluster, position)
    }

    fn is_secure(&self) -> bool {
        self.transport().1.is_some()
    }

    async fn connect(&self) -> Option<Stream> {
        let options = DialOptions {
            mark: self.target.mark,
            bind: self.target.bind.as_deref(),
            keepalive: self.target.cluster.tcp_keepalive.as_ref(),
            timeout: self.target.check.timeout,
        };
        let tcp = dial(self.address, options).await.ok()?;
        let ends = tcp.local_addr().ok().map(|source| Ends { source, destination: self.address });
        let mut stream = Stream::new(Transport::Tcp(tcp));
        let (transport, tls) = self.transport();
        if let UpstreamTransport::ProxyProtocol { version, .. } = transport {
            // Nobody's connection: version 1 has no word for that, and tells of this one.
            let ends = ends.filter(|_| *version == ProxyProtocolVersion::V1);
            stream.write_all(&proxy_protocol::header(*version, ends)).await.ok()?;
        }
        let Some(tls) = tls else { return Some(stream) };
        let identity = ServerIdentity {
            of_request: None,
            of_endpoint: self.endpoint.hostname.as_deref(),
            alpn: &[],
            only_alpn: &self.target.check.alpn,
        };
        let shaken = tls::connect(tls, stream, identity).await;
        let stats = self.target.stats.tls();
        match shaken {
            Ok((stream, facts)) => {
                stats.shaken(&facts);
                Some(stream)
            }
            Err(failed) => {
                stats.failed(&failed);
                None
            }
        }
    }

    /// A connection for requests.
    async fn sender(&self, http2: bool, kept: Option<Kept>) -> Option<Kept> {
        if let Some(kept @ (Kept::Http1(_) | Kept::Http2(_))) = kept {
            return Some(kept);
        }
        let io = TokioIo::new(self.connect().await?);
        // Drivers end with their senders; what goes wrong is seen there.
        if http2 {
            let (sender, driver) = http2::handshake(TokioExecutor::new(), io).await.ok()?;
            tokio::spawn(driver);
            Some(Kept::Http2(sender))
        } else {
            let (sender, driver) = http1::handshake(io).await.ok()?;
            tokio::spawn(driver);
            Some(Kept::Http1(sender))
        }
    }

    async fn ask_http(&self, probe: &HttpProbe, kept: Option<Kept>) -> Option<(HealthVerdict, Option<Kept>)> {
        let mut kept = self.sender(probe.http2, kept).await?;
        let host = self.hostname.or(probe.host.as_deref()).unwrap_or(&self.target.cluster.name);
        let mut request = self.request(&kept, &probe.method, &probe.path, host, None)?;
        if matches!(probe.method, Method::POST | Method::PUT | Method::PATCH | Method::OPTIONS)
            && matches!(kept, Kept::Http1(_))
        {
            request.headers_mut().insert(header::CONTENT_LENGTH, HeaderValue::from_static("0"));
        }
        let response = send(&mut kept, request).await?;
        let has = |name: &str| response.headers().contains_key(name);
        let (degraded, leaving) = (has("x-envoy-degraded"), has("x-envoy-immediate-health-check-fail"));
        let verdict = probe.judge(response.status().as_u16(), degraded, leaving);
        let mut body = response.into_body();
        while let Some(frame) = body.frame().await {
            frame.ok()?;
        }
        Some((verdict, Some(kept)))
    }

    async fn ask_grpc(&self, probe: &GrpcProbe, kept: Option<Kept>) -> Option<(HealthVerdict, Option<Kept>)> {
        let mut kept = self.sender(true, kept).await?;
        let authority = self.hostname.or(probe.authority.as_deref()).unwrap_or(&self.target.cluster.name);
        let path = PathAndQuery::from_static(GRPC_HEALTH_PATH);
        let mut request =
            self.request(&kept, &Method::POST, &path, authority, Some(probe.request().into()))?;
        for (name, value) in [(header::CONTENT_TYPE, "application/grpc"), (header::TE, "trailers")] {
            request.headers_mut().insert(name, HeaderValue::from_static(value));
        }
        let timeout = HeaderValue::try_from(grpc_timeout_text(self.target.check.timeout)).ok()?;
        request.headers_mut().insert("grpc-timeout", timeout);
        let response = send(&mut kept, request).await?;
        let failed = HealthVerdict::Failed { retriable: false, leaving: false };
        if response.status() != StatusCode::OK || !is_grpc(response.headers()) {
            return Some((failed, Some(kept)));
        }
        let (mut received, mut status) = (Vec::new(), None);
        let mut body = response.into_body();
        while let Some(frame) = body.frame().await {
            match frame.ok()?.into_data() {
                Ok(data) if received.len() + data.len() > MOST_RECEIVED => {
                    return Some((failed, Some(kept)));
                }
                Ok(data) => received.extend_from_slice(&data),
                Err(frame) => {
                    let trailers = frame.into_trailers().unwrap_or_default();
                    status = trailers.get("grpc-status").cloned();
                }
            }
        }
        let status = status.as_ref().map(HeaderValue::as_bytes);
        Some((GrpcProbe::judge(&received, status), Some(kept)))
    }

    fn request(
        &self,
        connection: &Kept,
        method: &Method,
        path: &PathAndQuery,
        host: &str,
        body: Option<Bytes>,
    ) -> Option<Request<Body>> {
        let mut request = Request::new(Body(body));
        *request.method_mut() = method.clone();
        let headers = request.headers_mut();
        headers.insert(header::USER_AGENT, HeaderValue::from_static("Envoy/HC"));
        let mut parts = http::uri::Parts::default();
        parts.path_and_query = Some(path.clone());
        match (connection, Authority::try_from(host)) {
            (Kept::Http2(_), Ok(authority)) => {
                parts.authority = Some(authority);
                parts.scheme =
                    Some(if self.is_secure() { http::uri::Scheme::HTTPS } else { http::uri::Scheme::HTTP });
                *request.version_mut() = Version::HTTP_2;
            }
            _ => drop(headers.insert(HeaderName::from_static("host"), HeaderValue::from_str(host).ok()?)),
        }
        *request.uri_mut() = Uri::from_parts(parts).ok()?;
        Some(request)
    }

    async fn ask_tcp(&self, probe: &TcpProbe, kept: Option<Kept>) -> Option<(HealthVerdict, Option<Kept>)> {
        let mut stream = match kept {
            Some(Kept::Tcp(stream)) => stream,
            _ => self.connect().await?,
        };
        if probe.receive.is_empty() {
            return Some((HealthVerdict::Passed, None));
        }
        stream.write_all(&probe.send).await.ok()?;
        let mut received = Vec::new();
        while !probe.is_answered(&received) {
            let read = stream.read_buf(&mut received).await.ok()?;
            if read == 0 || received.len() > MOST_RECEIVED {
                return None;
            }
        }
        Some((HealthVerdict::Passed, Some(Kept::Tcp(stream))))
    }
}

/// Content types of gRPC: `application/grpc`, alone or with what is behind `+` or `;`.
fn is_grpc(headers: &HeaderMap) -> bool {
    let value = headers.get(header::CONTENT_TYPE).map(HeaderValue::as_bytes).unwrap_or_default();
    let rest = value.strip_prefix(b"application/grpc");
    rest.is_some_and(|rest| matches!(rest.first(), None | Some(b'+' | b';')))
}

async fn send(connection: &mut Kept, request: Request<Body>) -> Option<Response<Incoming>> {
    match connection {
        Kept::Http1(sender) => {
            sender.ready().await.ok()?;
            sender.send_request(request).await.ok()
        }
        Kept::Http2(sender) => {
            sender.ready().await.ok()?;
            sender.send_request(request).await.ok()
        }
        Kept::Tcp(_) => None,
    }
}
