//! Headers that concern one connection, and those that may come in several lines where one is meant.

use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::{StatusCode, Version};

use crate::failure::Failure;
use crate::ingress::{X_FORWARDED_FOR, X_FORWARDED_HOST, X_FORWARDED_PROTO};
use crate::presence::Present;

const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");

/// Whether an HTTP/1.0 client asks for a connection that lasts.
pub(crate) fn keeps_alive(headers: &HeaderMap) -> bool {
    headers.get_all(header::CONNECTION).iter().any(|value| contains_token(value.as_bytes(), b"keep-alive"))
}

/// Whether a client asks for the connection's end by a header that is no standard, but that Envoy heeds.
pub(crate) fn closes_by_proxy_connection(headers: &HeaderMap) -> bool {
    headers.get_all(PROXY_CONNECTION).iter().any(|value| contains_token(value.as_bytes(), b"close"))
}

/// Whether an answer over HTTP/1 is the last on its connection, as Envoy sees it.
pub(crate) fn ends_connection(version: Version, headers: &HeaderMap, present: Present) -> bool {
    let old = version == Version::HTTP_10;
    let says = |token: &[u8]| {
        let mut lists = headers.get_all(header::CONNECTION).iter();
        present.any(Present::CONNECTION) && lists.any(|list| contains_token(list.as_bytes(), token))
    };
    (old && !says(b"keep-alive"))
        || (!old && says(b"close"))
        || (present.any(Present::PROXY_CONNECTION) && closes_by_proxy_connection(headers))
}

pub(crate) fn contains_token(list: &[u8], token: &[u8]) -> bool {
    list.split(|&b| b == b',').any(|item| item.trim_ascii().eq_ignore_ascii_case(token))
}

/// Headers that concern one connection only (RFC 9110, section 7.6.1), as Envoy removes them.
pub(crate) fn hop_by_hop(headers: &mut HeaderMap, present: Present, upgrade: bool) {
    if !upgrade {
        let names = [(Present::CONNECTION, header::CONNECTION), (Present::UPGRADE, header::UPGRADE)];
        remove_present(headers, present, names);
    }
    let names = [
        (Present::TRANSFER_ENCODING, header::TRANSFER_ENCODING),
        (Present::KEEP_ALIVE, KEEP_ALIVE),
        (Present::PROXY_CONNECTION, PROXY_CONNECTION),
    ];
    remove_present(headers, present, names);
    if !upgrade
        && present.any(Present::TE)
        && let Some(te) = headers.get(header::TE)
    {
        if contains_token(te.as_bytes(), b"trailers") {
            headers.insert(header::TE, HeaderValue::from_static("trailers"));
        } else {
            headers.remove(header::TE);
        }
    }
}

fn remove_present<const N: usize>(
    headers: &mut HeaderMap,
    present: Present,
    names: [(Present, HeaderName); N],
) {
    for (one, name) in names {
        if present.any(one) {
            headers.remove(name);
        }
    }
}

/// HTTP/2 may split `cookie` into many fields; whoever comes next must see one (RFC 9113, section 8.2.3).
pub(crate) fn join_cookies(headers: &mut HeaderMap) {
    join(headers, header::COOKIE, b"; ");
}

/// Makes one list of the lines of a header.
pub(crate) fn join_lines(headers: &mut HeaderMap, name: HeaderName) {
    join(headers, name, b",");
}

fn join(headers: &mut HeaderMap, name: HeaderName, separator: &[u8]) {
    if headers.get_all(&name).iter().nth(1).is_none() {
        return;
    }
    let values: Vec<&[u8]> = headers.get_all(&name).iter().map(HeaderValue::as_bytes).collect();
    if let Ok(joined) = HeaderValue::from_bytes(&values.join(separator)) {
        headers.insert(name, joined);
    }
}

/// Names `connection` may hold. Envoy's limit.
const MOST_NOMINATED: usize = 10;

/// Headers that `connection` names go too. Naming one that carries trust is refused, or a client could make a proxy in front
/// disappear.
pub(crate) fn remove_nominated(headers: &mut HeaderMap) -> Result<(), Failure> {
    if !headers.contains_key(header::CONNECTION) {
        return Ok(());
    }
    let lists: Vec<HeaderValue> = headers.get_all(header::CONNECTION).iter().cloned().collect();
    let tokens = lists.iter().flat_map(|list| list.as_bytes().split(|&b| b == b','));
    for (position, token) in tokens.map(<[u8]>::trim_ascii).enumerate() {
        let Ok(name) = HeaderName::from_bytes(token) else { continue };
        let trusted = [X_FORWARDED_FOR, X_FORWARDED_HOST, X_FORWARDED_PROTO].contains(&name);
        if trusted || position >= MOST_NOMINATED {
            return Err(Failure::Malformed(StatusCode::BAD_REQUEST, "http1.connection_header_rejected"));
        }
        let keeps =
            [header::UPGRADE, header::TE, header::HOST, header::CONTENT_LENGTH, header::TRANSFER_ENCODING];
        if !keeps.contains(&name) && name != header::CONNECTION {
            headers.remove(name);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connection_headers_go_and_trailers_stay_announced() {
        let mut headers = HeaderMap::new();
        for (name, value) in [
            ("connection", "keep-alive, x-nominated"),
            ("x-nominated", "1"),
            ("x-forwarded-for", "1.2.3.4"),
            ("keep-alive", "timeout=5"),
            ("proxy-connection", "close"),
            ("te", "gzip, trailers;q=1"),
            ("transfer-encoding", "chunked"),
            ("upgrade", "h2c"),
            ("accept", "*/*"),
        ] {
            headers.insert(HeaderName::from_static(name), HeaderValue::from_static(value));
        }
        headers.insert("te", HeaderValue::from_static("gzip, trailers"));
        headers.append("connection", HeaderValue::from_static("X-Second"));
        headers.insert("x-second", HeaderValue::from_static("1"));
        remove_nominated(&mut headers).unwrap();
        let present = Present::of(&headers);
        hop_by_hop(&mut headers, present, false);
        assert_eq!(headers["te"], "trailers");
        assert!(headers.contains_key("accept"));
        assert!(headers.contains_key("x-forwarded-for"));
        assert_eq!(headers.len(), 3);
        headers.insert("connection", HeaderValue::from_static("close, X-Forwarded-For"));
        assert!(remove_nominated(&mut headers).is_err());
    }
}
