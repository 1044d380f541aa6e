//! HTTP/2 on both sides: the h2 crate's frames and flow control, a task for each stream, bodies sent as there is room for them.

mod client;
mod duplex;
mod keepalive;
mod pipe;
mod server;

use http::header::{CONNECTION, HeaderMap, HeaderName, HeaderValue, TE, TRANSFER_ENCODING, UPGRADE};

pub(crate) use client::{Sender, connect};
pub(crate) use duplex::Duplex;
pub(crate) use server::{Beside, Server};

const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");

/// Streams that the other side made us reset; with more the connection ends (CVE-2023-44487, CVE-2025-8671).
const MOST_ERRORS: usize = 1024;

/// Removes what has no place in HTTP/2 and a route's or filter's header changes may have put there: the other side would have to
/// refuse it (RFC 9113, section 8.2.2).
fn strip(headers: &mut HeaderMap) {
    let forbidden = |name: &HeaderName| {
        [CONNECTION, TRANSFER_ENCODING, UPGRADE, KEEP_ALIVE, PROXY_CONNECTION].contains(name)
    };
    // One look at all there is costs less than six by name.
    while let Some(name) = headers.keys().find(|name| forbidden(name)).cloned() {
        headers.remove(name);
    }
    if headers.get(TE).is_some_and(|value| *value != HeaderValue::from_static("trailers")) {
        headers.remove(TE);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_sent_that_belongs_to_http1() {
        let mut headers = HeaderMap::new();
        for name in
            ["connection", "keep-alive", "proxy-connection", "transfer-encoding", "upgrade", "te", "x"]
        {
            headers.append(name, HeaderValue::from_static("a"));
            headers.append(name, HeaderValue::from_static("b"));
        }
        strip(&mut headers);
        assert_eq!(headers.keys().map(HeaderName::as_str).collect::<Vec<_>>(), ["x"]);
        headers.insert(TE, HeaderValue::from_static("trailers"));
        strip(&mut headers);
        assert!(headers.contains_key(TE));
    }
}
