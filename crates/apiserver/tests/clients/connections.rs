//! Plain HTTP, where a client library would hide the answer: who is let in, and how long is waited for whom.
use std::{sync::Arc, time::Duration};

use k8s_openapi::api::core::v1::ConfigMap;
use kube::{
    Api,
    api::{ListParams, PostParams},
};
use lateen_apiserver::{ApiServer, ApiServerConfig};
use serde_json::json;

use crate::{code, config_map, start, within};

/// A connection over TLS without a client certificate.
async fn connect(server: &ApiServer) -> tokio_rustls::client::TlsStream<tokio::net::TcpStream> {
    use rustls_pki_types::{CertificateDer, ServerName, pem::PemObject};
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(server.ca_pem().as_bytes()).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let stream = tokio::net::TcpStream::connect(server.addresses()[0]).await.unwrap();
    let name = ServerName::try_from("localhost").unwrap();
    tokio_rustls::TlsConnector::from(Arc::new(config)).connect(name, stream).await.unwrap()
}

/// Sends one HTTP/1.1 request over TLS without a client certificate; gives the whole answer.
pub(crate) async fn raw(server: &ApiServer, head: &str) -> String {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let mut tls = connect(server).await;
    let request = format!("{head}host: localhost\r\nconnection: close\r\n\r\n");
    tls.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    // The server may close without a TLS goodbye.
    let _ = tls.read_to_end(&mut answer).await;
    String::from_utf8_lossy(&answer).into_owned()
}

#[tokio::test]
async fn strangers_and_oversized_bodies() {
    let (server, client) = start().await;
    assert!(raw(&server, "GET /healthz HTTP/1.1\r\n").await.starts_with("HTTP/1.1 200"));
    assert!(raw(&server, "GET /api/v1/pods HTTP/1.1\r\n").await.starts_with("HTTP/1.1 401"));
    assert!(
        raw(&server, "GET /api/v1/pods HTTP/1.1\r\nauthorization: Bearer nope\r\n")
            .await
            .starts_with("HTTP/1.1 401")
    );
    let jwks = raw(&server, "GET /openid/v1/jwks HTTP/1.1\r\n").await;
    assert!(jwks.contains("\"crv\":\"P-256\""), "{jwks}");
    let maps: Api<ConfigMap> = Api::default_namespaced(client);
    let huge = config_map("huge", json!({"a": "x".repeat(3 << 20)}));
    assert_eq!(code(maps.create(&PostParams::default(), &huge).await.unwrap_err()).0, 413);
}

#[tokio::test]
async fn idle_connections_outlive_the_clients_patience() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let default = ApiServerConfig::default();
    assert!(
        default.idle_limit > Duration::from_secs(90),
        "client-go and hyper keep idle connections that long"
    );
    let config = ApiServerConfig { idle_limit: Duration::from_millis(50), ..default };
    let server = ApiServer::start(config).await.unwrap();
    let mut tls = connect(&server).await;
    tls.write_all(b"GET /healthz HTTP/1.1\r\nhost: localhost\r\n\r\n").await.unwrap();
    let mut answer = Vec::new();
    // The server may close without a TLS goodbye.
    let _ = within("the end of the idle connection", tls.read_to_end(&mut answer)).await;
    assert!(answer.ends_with(b"ok"), "{}", String::from_utf8_lossy(&answer));
}

#[tokio::test]
async fn a_body_that_does_not_come_is_not_waited_for() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let config = ApiServerConfig { request_limit: Duration::from_millis(50), ..ApiServerConfig::default() };
    let server = ApiServer::start(config).await.unwrap();
    let mut tls = connect(&server).await;
    let head = format!(
        "POST /api/v1/namespaces HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {}\r\n\
         content-type: application/json\r\ncontent-length: 100\r\n\r\n{{",
        server.admin_token()
    );
    tls.write_all(head.as_bytes()).await.unwrap();
    let mut buffer = [0; 1024];
    let length = within("an answer", tls.read(&mut buffer)).await.unwrap();
    let answer = String::from_utf8_lossy(&buffer[..length]).into_owned();
    assert!(answer.starts_with("HTTP/1.1 504") && answer.contains("allotted timeout"), "{answer}");
}

/// Two servers of one process are two clusters, and neither takes long to start.
#[tokio::test]
async fn two_servers_in_one_process() {
    let begun = std::time::Instant::now();
    let (one, two) = (start().await, start().await);
    assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
    let maps: Api<ConfigMap> = Api::default_namespaced(one.1);
    maps.create(&PostParams::default(), &config_map("m", json!({}))).await.unwrap();
    let others: Api<ConfigMap> = Api::default_namespaced(two.1);
    assert!(others.get_opt("m").await.unwrap().is_none());
    let token = one.0.admin_token();
    let head = format!("GET /api/v1/pods HTTP/1.1\r\nauthorization: Bearer {token}\r\n");
    assert!(raw(&one.0, &head).await.starts_with("HTTP/1.1 200"));
    assert!(raw(&two.0, &head).await.starts_with("HTTP/1.1 401"), "a token of another cluster");
    one.0.shutdown().await;
    assert!(others.list(&ListParams::default()).await.is_ok());
}
