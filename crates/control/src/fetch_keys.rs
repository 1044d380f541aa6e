//! Fetching the keys of a token issuer: over HTTP or HTTPS, or found by OpenID discovery; within a time and a size.
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use http::header::{ACCEPT, HOST, LOCATION, USER_AGENT};
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::body::{Bytes, Incoming};
use hyper_util::rt::TokioIo;
use ipnet::IpNet;
use lateen_api::validate::JwksUri;
use lateen_model::KeySource;
use lateen_translate::check_keys;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

/// Largest answer, in bytes: keys go to every proxy whose workload accepts them.
const LARGEST: usize = 256 * 1024;

/// Redirects that are followed.
const REDIRECTS: usize = 3;

/// Where issuers say where their keys are (OpenID Connect Discovery 1.0, section 4).
const DISCOVERY: &str = "/.well-known/openid-configuration";

/// Fetches keys. Cloning gives another handle.
#[derive(Clone)]
pub(crate) struct KeyFetcher {
    tls: TlsConnector,
    blocked: Vec<IpNet>,
}

/// Where a node's own services are, among them those that give away its credentials: link-local addresses, and the clouds'
/// metadata services that have others. Whoever may write a RequestAuthentication must not have them asked, as in Istio since 1.31.1.
fn of_the_node() -> Vec<IpNet> {
    let all = ["169.254.0.0/16", "fe80::/10", "fd00:ec2::254/128", "fd20:ce::254/128", "100.100.100.200/32"];
    all.into_iter().filter_map(|network| network.parse().ok()).collect()
}

impl KeyFetcher {
    /// Trusts the system's authorities and those in `more` (PEM).
    pub(crate) fn new(more: &[u8]) -> Self {
        let mut roots = RootCertStore::empty();
        // Without any, https fails and says so.
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        let given = rustls::pki_types::pem::PemObject::pem_slice_iter(more);
        roots.add_parsable_certificates(given.filter_map(Result::ok));
        let config = ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
        Self { tls: TlsConnector::from(Arc::new(config)), blocked: of_the_node() }
    }

    /// Not from these networks either.
    pub(crate) fn blocking(mut self, networks: &[IpNet]) -> Self {
        self.blocked.extend(networks);
        self
    }

    /// The addresses of a host that may be asked. Decided by address when it is dialled: names may lead anywhere, now or later.
    async fn addresses(&self, host: &str, port: u16) -> Result<Vec<SocketAddr>, String> {
        let found = tokio::net::lookup_host((host, port)).await.map_err(|error| error.to_string())?;
        let may = |one: &SocketAddr| {
            let address = one.ip().to_canonical();
            !self.blocked.iter().any(|network| network.contains(&address))
        };
        let (may, blocked): (Vec<_>, Vec<_>) = found.partition(may);
        match blocked.first() {
            Some(first) if may.is_empty() => Err(format!(
                "{} is an address that keys are not fetched from (a node's own, or BLOCKED_CIDRS_IN_JWKS_URIS)",
                first.ip()
            )),
            _ => Ok(may),
        }
    }

    /// The key set from there.
    ///
    /// # Errors
    /// Why there is none, in words.
    pub(crate) async fn fetch(&self, source: &KeySource, limit: Duration) -> Result<Arc<str>, String> {
        let fetching = async {
            let uri = match source {
                KeySource::Uri(uri) => uri.to_string(),
                KeySource::Issuer(issuer) => self.discover(issuer).await?,
            };
            let text = self.get(&uri).await?;
            check_keys(&text).map_err(|reason| format!("{uri}: {reason}"))?;
            Ok(Arc::from(text))
        };
        tokio::time::timeout(limit, fetching)
            .await
            .unwrap_or_else(|_| Err(format!("no answer within {limit:?}")))
    }

    /// A trust bundle, which has no place but behind `https`.
    ///
    /// # Errors
    /// Why there is none, in words.
    pub(crate) async fn bundle(&self, url: &str, limit: Duration) -> Result<String, String> {
        if !JwksUri::parse(url)?.https {
            return Err("trust bundles are fetched by https only".to_owned());
        }
        let text = tokio::time::timeout(limit, self.get(url)).await;
        text.unwrap_or_else(|_| Err(format!("no answer within {limit:?}")))
    }

    async fn discover(&self, issuer: &str) -> Result<String, String> {
        let uri = format!("{}{DISCOVERY}", issuer.trim_end_matches('/'));
        let text = self.get(&uri).await?;
        let value: serde_json::Value =
            serde_json::from_str(&text).map_err(|error| format!("{uri}: not JSON: {error}"))?;
        let found = value.get("jwks_uri").and_then(|found| found.as_str());
        found.map(str::to_owned).ok_or_else(|| format!("{uri}: it has no jwks_uri"))
    }

    /// The text there, also where an answer leads elsewhere.
    async fn get(&self, uri: &str) -> Result<String, String> {
        let mut uri = uri.to_owned();
        for _ in 0..=REDIRECTS {
            let parsed = JwksUri::parse(&uri)?;
            let failed = |reason: String| format!("{uri}: {reason}");
            let response = self.ask(&parsed).await.map_err(failed)?;
            if response.status() == StatusCode::OK {
                return text(response).await.map_err(failed);
            }
            let location = response.headers().get(LOCATION).and_then(|value| value.to_str().ok());
            match location.filter(|_| response.status().is_redirection()) {
                Some(location) => uri = elsewhere(&parsed, location).map_err(failed)?,
                None => return Err(failed(format!("status {}", response.status()))),
            }
        }
        Err(format!("{uri}: more than {REDIRECTS} redirects"))
    }

    async fn ask(&self, uri: &JwksUri<'_>) -> Result<Response<Incoming>, String> {
        let addresses = self.addresses(uri.host, uri.port).await?;
        let stream = TcpStream::connect(&addresses[..]).await.map_err(|error| error.to_string())?;
        if !uri.https {
            return exchange(stream, uri).await;
        }
        let name = ServerName::try_from(uri.host.to_owned()).map_err(|error| error.to_string())?;
        let stream = self.tls.connect(name, stream).await.map_err(|error| error.to_string())?;
        exchange(stream, uri).await
    }
}

async fn exchange<S>(stream: S, uri: &JwksUri<'_>) -> Result<Response<Incoming>, String>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let words = |error: hyper::Error| error.to_string();
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake::<_, Empty<Bytes>>(TokioIo::new(stream))
            .await
            .map_err(words)?;
    // Ends with the last of the sender and the answer's body.
    tokio::spawn(connection);
    let request = Request::get(uri.path.as_str())
        .header(HOST, uri.authority)
        .header(ACCEPT, "application/json")
        .header(USER_AGENT, "lateen")
        .body(Empty::new())
        .map_err(|error| error.to_string())?;
    sender.send_request(request).await.map_err(words)
}

async fn text(response: Response<Incoming>) -> Result<String, String> {
    let body = Limited::new(response.into_body(), LARGEST).collect().await;
    let bytes = body.map_err(|error| format!("reading at most {LARGEST} bytes: {error}"))?.to_bytes();
    String::from_utf8(bytes.into()).map_err(|_| "it is not UTF-8".to_owned())
}

/// Where a redirect leads. What came over TLS does not go on without.
fn elsewhere(from: &JwksUri<'_>, location: &str) -> Result<String, String> {
    let scheme = if from.https { "https" } else { "http" };
    if location.starts_with('/') && !location.starts_with("//") {
        return Ok(format!("{scheme}://{}{location}", from.authority));
    }
    let to = JwksUri::parse(location)?;
    if from.https && !to.https {
        return Err(format!("redirects to {location:?}, which is not https"));
    }
    Ok(location.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn redirects_do_not_leave_tls() {
        let from = JwksUri::parse("https://a:1/b").unwrap();
        assert_eq!(elsewhere(&from, "/c?d"), Ok("https://a:1/c?d".to_owned()));
        assert_eq!(elsewhere(&from, "https://e/f"), Ok("https://e/f".to_owned()));
        for location in ["http://a:1/c", "//e/f", "c", "file:///etc/passwd", ""] {
            assert!(elsewhere(&from, location).is_err(), "{location}");
        }
        let from = JwksUri::parse("http://a/b").unwrap();
        for location in ["https://a/b", "http://c/d"] {
            assert_eq!(elsewhere(&from, location), Ok(location.to_owned()));
        }
        assert_eq!(elsewhere(&from, "/c"), Ok("http://a/c".to_owned()));
    }
}
