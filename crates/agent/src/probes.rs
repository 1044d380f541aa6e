//! The application's probes, asked in the kubelet's place (`ISTIO_KUBE_APP_PROBERS`): it has no certificate, and would be turned away
//! where mutual TLS alone is accepted.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
use serde::Deserialize;
use tracing::debug;

use crate::dial;
use crate::fetch::fetch_with;

/// One probe, as Kubernetes has it.
#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Prober {
    http_get: Option<HttpGet>,
    tcp_socket: Option<TcpSocket>,
    /// Seconds; default 1.
    timeout_seconds: Option<u64>,
}

#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(rename_all = "camelCase")]
struct HttpGet {
    #[serde(default)]
    path: String,
    port: u16,
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
}

/// All probes by the path the kubelet asks for.
pub type Probers = BTreeMap<String, Prober>;

impl Prober {
    /// Asks the application at `pod`: its status for HTTP, 200 for a connection, 500 for none in time.
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

    async fn answer(&self, pod: IpAddr, mark: Option<u32>) -> std::io::Result<StatusCode> {
        if let Some(get) = &self.http_get {
            let path = if get.path.starts_with('/') { get.path.clone() } else { format!("/{}", get.path) };
            let mut headers = HeaderMap::new();
            for header in &get.http_headers {
                let name = HeaderName::try_from(&header.name).map_err(std::io::Error::other)?;
                headers.append(name, HeaderValue::try_from(&header.value).map_err(std::io::Error::other)?);
            }
            let address = SocketAddr::new(pod, get.port);
            return Ok(fetch_with(Method::GET, address, &path, headers, mark).await?.0);
        }
        if let Some(socket) = &self.tcp_socket {
            dial::connect(SocketAddr::new(pod, socket.port), mark).await?;
        }
        Ok(StatusCode::OK)
    }
}
