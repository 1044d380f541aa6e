//! A small blocking HTTP client for the trials.

use std::{collections::BTreeMap, time::Duration};

use anyhow::{Context, Result};
use bytes::Bytes;
use http::{Method, Request, Version};
use http_body_util::{BodyExt, Full};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};

/// What came back.
#[derive(Debug, Clone)]
pub struct Reply {
    /// Status code.
    pub status: u16,
    /// Header fields, names in lower case, repeated ones joined by a comma.
    pub headers: BTreeMap<String, String>,
    /// The body, lossily as text.
    pub body: String,
}

/// A request to send.
#[derive(Debug, Clone)]
pub struct Ask {
    method: Method,
    url: String,
    headers: Vec<(String, String)>,
    body: Bytes,
    h2: bool,
}

impl Ask {
    /// A GET.
    pub fn get(url: impl Into<String>) -> Self {
        Self { method: Method::GET, url: url.into(), headers: Vec::new(), body: Bytes::new(), h2: false }
    }

    /// Another method with a body.
    #[must_use]
    pub fn method(mut self, method: Method, body: impl Into<Bytes>) -> Self {
        self.method = method;
        self.body = body.into();
        self
    }

    /// One more header field; `host` replaces the URL's.
    #[must_use]
    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    /// HTTP/2 with prior knowledge.
    #[must_use]
    pub fn h2(mut self) -> Self {
        self.h2 = true;
        self
    }

    /// Sends it on a new connection and reads the whole reply; at most 15 s.
    ///
    /// # Errors
    /// When no reply comes.
    pub fn send(&self) -> Result<Reply> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async {
            let client = client(self.h2);
            tokio::time::timeout(Duration::from_secs(15), self.send_with(&client))
                .await
                .context("no reply in 15 s")?
        })
    }

    /// Sends it through a client that keeps connections.
    ///
    /// # Errors
    /// When no reply comes.
    pub async fn send_with(&self, client: &Client<HttpConnector, Full<Bytes>>) -> Result<Reply> {
        let mut request = Request::builder().method(self.method.clone()).uri(&self.url);
        if self.h2 {
            request = request.version(Version::HTTP_2);
        }
        for (name, value) in &self.headers {
            request = request.header(name, value);
        }
        let reply = client.request(request.body(Full::new(self.body.clone()))?).await?;
        let status = reply.status().as_u16();
        let mut headers = BTreeMap::<String, String>::new();
        for (name, value) in reply.headers() {
            let value = String::from_utf8_lossy(value.as_bytes()).into_owned();
            headers
                .entry(name.as_str().to_owned())
                .and_modify(|v| *v = format!("{v},{value}"))
                .or_insert(value);
        }
        let body = reply.into_body().collect().await?.to_bytes();
        Ok(Reply { status, headers, body: String::from_utf8_lossy(&body).into_owned() })
    }
}

/// A client that keeps its connections, HTTP/1.1 or HTTP/2 with prior knowledge.
pub fn client(h2: bool) -> Client<HttpConnector, Full<Bytes>> {
    let mut connector = HttpConnector::new();
    connector.set_connect_timeout(Some(Duration::from_secs(5)));
    Client::builder(TokioExecutor::new()).http2_only(h2).build(connector)
}
