//! One call of an admission webhook: HTTPS POST of a review.

use std::{sync::Arc, time::Duration};

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use bytes::Bytes;
use http::{Request, Uri, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper_util::rt::TokioIo;
use lateen_podstreams::Duplex;
use rustls_pki_types::{CertificateDer, ServerName, pem::PemObject};
use serde_json::Value;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::{ServiceTarget, dial, state::Api};

/// Largest answer taken, in bytes.
const ANSWER_LIMIT: usize = 4 << 20;

/// Posts `review` and gives the answer; errors are sentences as Go's HTTP client words them.
pub(crate) async fn call(
    api: &Api,
    config: &Value,
    timeout: Duration,
    review: &Value,
) -> Result<Value, String> {
    let target = Target::of(config)?;
    let shown = format!("{}?timeout={}s", target.url, timeout.as_secs());
    let result = tokio::time::timeout(timeout, post(api, config, &target, &shown, review)).await;
    match result {
        Err(_) => Err(format!("Post {shown:?}: context deadline exceeded")),
        Ok(Err(why)) => Err(format!("Post {shown:?}: {why}")),
        Ok(Ok(answer)) => Ok(answer),
    }
}

enum Address {
    Service(ServiceTarget),
    Host(String, u16),
}

struct Target {
    url: String,
    server_name: String,
    address: Address,
}

impl Target {
    fn of(config: &Value) -> Result<Self, String> {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let service = &config["service"];
        if service.is_object() {
            let (namespace, name) = (text(&service["namespace"]), text(&service["name"]));
            let port = service["port"].as_u64().unwrap_or(443);
            let path = text(&service["path"]);
            let path = if path.starts_with('/') { path } else { format!("/{path}") };
            let server_name = format!("{name}.{namespace}.svc");
            return Ok(Self {
                url: format!("https://{server_name}:{port}{path}"),
                server_name,
                address: Address::Service(ServiceTarget { namespace, name, port: port.to_string() }),
            });
        }
        let url = text(&config["url"]);
        let uri: Uri = url.parse().map_err(|e| format!("webhook url {url:?}: {e}"))?;
        let host = uri.host().filter(|_| uri.scheme_str() == Some("https"));
        let host = host.ok_or_else(|| format!("webhook url {url:?} must be https with a host"))?;
        let host = host.trim_matches(['[', ']']).to_owned();
        let port = uri.port_u16().unwrap_or(443);
        Ok(Self { url: url.clone(), server_name: host.clone(), address: Address::Host(host, port) })
    }
}

async fn post(
    api: &Api,
    config: &Value,
    target: &Target,
    url: &str,
    review: &Value,
) -> Result<Value, String> {
    let stream: Box<dyn Duplex> = match &target.address {
        Address::Service(service) => dial::service(api, service.clone()).await.map_err(|e| e.to_string())?,
        Address::Host(host, port) => {
            let stream = TcpStream::connect((host.as_str(), *port)).await;
            Box::new(stream.map_err(|e| format!("dial tcp {host}:{port}: connect: {e}"))?)
        }
    };
    let name = ServerName::try_from(target.server_name.clone()).map_err(|e| e.to_string())?;
    let tls = connector(api, config)?.connect(name, stream).await.map_err(|e| format!("tls: {e}"))?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(tls)).await.map_err(|e| e.to_string())?;
    let driver = tokio::spawn(async move {
        // The request's own result tells what went wrong.
        let _ = connection.await;
    });
    let uri: Uri = url.parse().map_err(|e| format!("{e}"))?;
    let path = uri.path_and_query().map_or("/", |path| path.as_str());
    let host = uri.authority().map_or("", |authority| authority.as_str());
    let request = Request::post(path)
        .header(header::HOST, host)
        .header(header::CONTENT_TYPE, "application/json")
        .header(header::ACCEPT, "application/json, */*")
        .header(header::USER_AGENT, "kube-apiserver-admission")
        .body(Full::new(Bytes::from(review.to_string())))
        .map_err(|e| e.to_string())?;
    let response = sender.send_request(request).await.map_err(|e| e.to_string())?;
    let code = response.status();
    let body = Limited::new(response.into_body(), ANSWER_LIMIT)
        .collect()
        .await
        .map_err(|e| e.to_string())?
        .to_bytes();
    driver.abort();
    if !code.is_success() {
        let text = String::from_utf8_lossy(&body).trim().chars().take(500).collect::<String>();
        return Err(if text.is_empty() { format!("the server returned {code}") } else { text });
    }
    serde_json::from_slice(&body).map_err(|e| format!("the answer is not JSON: {e}"))
}

/// Trusts `caBundle`, or the cluster's CA without one.
fn connector(api: &Api, config: &Value) -> Result<TlsConnector, String> {
    let mut roots = rustls::RootCertStore::empty();
    match config["caBundle"].as_str().filter(|bundle| !bundle.is_empty()) {
        Some(bundle) => {
            let pem = BASE64.decode(bundle).map_err(|e| format!("caBundle is not base64: {e}"))?;
            for certificate in CertificateDer::pem_slice_iter(&pem) {
                let certificate = certificate.map_err(|e| format!("caBundle is not PEM: {e}"))?;
                roots.add(certificate).map_err(|e| format!("caBundle: {e}"))?;
            }
            if roots.is_empty() {
                return Err("caBundle holds no certificate".to_owned());
            }
        }
        None => roots.add(api.authenticator.pki.ca_der.clone()).map_err(|e| e.to_string())?,
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|e| e.to_string())?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(TlsConnector::from(Arc::new(config)))
}
