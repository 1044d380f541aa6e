//! What a client asks for in its upgrade request, and the `101 Switching Protocols` that grants it.

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, StatusCode, header};
use http_body_util::Full;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;

use crate::PodError;

/// Header with which SPDY clients offer subprotocols, and servers name the chosen one.
const STREAM_PROTOCOL: &str = "x-stream-protocol-version";

/// The transport a client wants, with the subprotocols it offers, best first.
#[derive(Debug)]
pub(crate) enum Offer {
    /// RFC 6455; `key` is the client's `Sec-WebSocket-Key`.
    WebSocket { key: String, protocols: Vec<String> },
    /// SPDY/3.1 right after the upgrade.
    Spdy { protocols: Vec<String> },
}

impl Offer {
    /// Reads the upgrade headers.
    ///
    /// # Errors
    /// [`PodError::BadRequest`] when the request asks for no upgrade or for one that isn't spoken here.
    pub(crate) fn read(headers: &HeaderMap) -> Result<Self, PodError> {
        let upgrading =
            listed(headers, "connection").iter().any(|token| token.eq_ignore_ascii_case("upgrade"));
        let wanted = listed(headers, "upgrade");
        if upgrading && wanted.iter().any(|token| token.eq_ignore_ascii_case("websocket")) {
            let key = headers
                .get(header::SEC_WEBSOCKET_KEY)
                .and_then(|value| value.to_str().ok())
                .ok_or_else(|| {
                    PodError::BadRequest("websocket upgrade without sec-websocket-key".to_owned())
                })?
                .to_owned();
            return Ok(Self::WebSocket { key, protocols: listed(headers, "sec-websocket-protocol") });
        }
        if upgrading && wanted.iter().any(|token| token.eq_ignore_ascii_case("spdy/3.1")) {
            return Ok(Self::Spdy { protocols: listed(headers, STREAM_PROTOCOL) });
        }
        Err(PodError::BadRequest(
            "this subresource needs an upgraded connection: send `connection: Upgrade` with `upgrade: websocket` or `upgrade: SPDY/3.1`"
                .to_owned(),
        ))
    }

    /// The client's most wanted subprotocol that `known` can name.
    ///
    /// # Errors
    /// [`PodError::BadRequest`] with the client's offer when none is known.
    pub(crate) fn choose<T>(&self, known: impl Fn(&Self, &str) -> Option<T>) -> Result<(&str, T), PodError> {
        let (Self::WebSocket { protocols, .. } | Self::Spdy { protocols }) = self;
        protocols.iter().find_map(|name| Some((name.as_str(), known(self, name)?))).ok_or_else(|| {
            PodError::BadRequest(format!("none of the offered stream protocols {protocols:?} is supported"))
        })
    }

    /// The `101` that accepts this offer with `protocol`.
    pub(crate) fn accept(&self, protocol: &str) -> http::Response<Full<Bytes>> {
        let mut response = http::Response::new(Full::default());
        *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        let headers = response.headers_mut();
        headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
        // The protocol came in as a header value, the accept key is base64: both are valid ones.
        let value = |text: &str| HeaderValue::from_str(text).unwrap_or(HeaderValue::from_static(""));
        match self {
            Self::WebSocket { key, .. } => {
                headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
                headers.insert(header::SEC_WEBSOCKET_ACCEPT, value(&derive_accept_key(key.as_bytes())));
                headers.insert(header::SEC_WEBSOCKET_PROTOCOL, value(protocol));
            }
            Self::Spdy { .. } => {
                headers.insert(header::UPGRADE, HeaderValue::from_static("SPDY/3.1"));
                headers.insert(STREAM_PROTOCOL, value(protocol));
            }
        }
        response
    }
}

/// A header's comma-separated values, over all its lines.
fn listed(headers: &HeaderMap, name: &str) -> Vec<String> {
    headers
        .get_all(name)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .map(|token| token.trim().to_owned())
        .filter(|token| !token.is_empty())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        let mut map = HeaderMap::new();
        for (name, value) in pairs {
            map.append(*name, HeaderValue::from_static(value));
        }
        map
    }

    #[test]
    fn websocket_as_in_rfc_6455() {
        let offer = Offer::read(&headers(&[
            ("connection", "keep-alive, Upgrade"),
            ("upgrade", "WebSocket"),
            ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="),
            ("sec-websocket-protocol", "v9.channel.k8s.io, v4.channel.k8s.io"),
        ]))
        .unwrap();
        let (protocol, ()) = offer.choose(|_, name| (name == "v4.channel.k8s.io").then_some(())).unwrap();
        let response = offer.accept(protocol);
        assert_eq!(response.status(), 101);
        assert_eq!(response.headers()["sec-websocket-accept"], "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
        assert_eq!(response.headers()["sec-websocket-protocol"], "v4.channel.k8s.io");
    }

    #[test]
    fn spdy_names_each_protocol_on_its_own_line() {
        let offer = Offer::read(&headers(&[
            ("connection", "Upgrade"),
            ("upgrade", "SPDY/3.1"),
            ("x-stream-protocol-version", "v5.channel.k8s.io"),
            ("x-stream-protocol-version", "v4.channel.k8s.io"),
        ]))
        .unwrap();
        let (protocol, ()) = offer.choose(|_, name| (name == "v4.channel.k8s.io").then_some(())).unwrap();
        assert_eq!(offer.accept(protocol).headers()["x-stream-protocol-version"], "v4.channel.k8s.io");
        let refused = offer.choose(|_, _| None::<()>).unwrap_err().to_string();
        assert!(refused.contains("v5.channel.k8s.io"), "{refused}");
    }

    #[test]
    fn plain_requests_are_refused() {
        for pairs in
            [vec![], vec![("upgrade", "websocket")], vec![("connection", "upgrade"), ("upgrade", "h2c")]]
        {
            assert!(matches!(Offer::read(&headers(&pairs)), Err(PodError::BadRequest(_))), "{pairs:?}");
        }
    }
}
