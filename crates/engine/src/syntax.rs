//! Step 5a, first: whether a request is proper HTTP, as strictly as Envoy's codecs look at it. hyper has parsed it before and has
//! refused what has no meaning at all; this is about what has two.

use http::header::{self, HeaderMap, HeaderValue};
use http::uri::PathAndQuery;
use http::{Method, StatusCode, Version, request};

use crate::failure::Failure;
use crate::presence::Present;

/// Methods an HTTP/1 request may have besides those with a constant. Others are refused, as policies can't know what they mean.
const RARE_METHODS: [&str; 24] = [
    "ACL",
    "BIND",
    "CHECKOUT",
    "COPY",
    "LINK",
    "LOCK",
    "MERGE",
    "MKACTIVITY",
    "MKCALENDAR",
    "MKCOL",
    "MOVE",
    "MSEARCH",
    "NOTIFY",
    "PROPFIND",
    "PROPPATCH",
    "PURGE",
    "REBIND",
    "REPORT",
    "SEARCH",
    "SOURCE",
    "SUBSCRIBE",
    "UNBIND",
    "UNLINK",
    "UNLOCK",
];

fn malformed(details: &'static str) -> Failure {
    Failure::Malformed(StatusCode::BAD_REQUEST, details)
}

/// Checks a head as it came. `authority` is that of the URL or else of `host`; `custom_methods`: any method is taken.
pub(crate) fn check(
    head: &request::Parts,
    authority: &HeaderValue,
    path: &PathAndQuery,
    present: Present,
    custom_methods: bool,
) -> Result<(), Failure> {
    if !authority.as_bytes().iter().all(|byte| AUTHORITY[usize::from(*byte)]) {
        return Err(malformed("http.invalid_authority"));
    }
    if head.version == Version::HTTP_2 {
        return Ok(());
    }
    if !(custom_methods || known_method(&head.method)) || !path.as_str().is_ascii() {
        return Err(malformed("http1.codec_error"));
    }
    let repeated = present.any(Present::REPEATED);
    if repeated && head.headers.get_all(header::HOST).iter().nth(1).is_some() {
        return Err(malformed("http1.codec_error"));
    }
    target(head)?;
    if present.any(Present::TRANSFER_ENCODING) || (repeated && present.any(Present::CONTENT_LENGTH)) {
        framing(&head.headers)?;
    }
    Ok(())
}

fn known_method(method: &Method) -> bool {
    matches!(
        *method,
        Method::GET
            | Method::HEAD
            | Method::POST
            | Method::PUT
            | Method::DELETE
            | Method::OPTIONS
            | Method::PATCH
            | Method::TRACE
            | Method::CONNECT
    ) || RARE_METHODS.contains(&method.as_str())
        || method == "UNSUBSCRIBE"
}

/// The forms of RFC 9112, section 3.2: a path, an absolute URL, `*` for OPTIONS and an authority for CONNECT.
fn target(head: &request::Parts) -> Result<(), Failure> {
    if head.method == Method::CONNECT {
        return if head.uri.port().is_some() { Ok(()) } else { Err(malformed("http1.invalid_url")) };
    }
    match (head.uri.scheme_str(), head.uri.authority()) {
        (None, Some(_)) => Err(malformed("http1.codec_error")),
        (Some("http" | "https"), _) => Ok(()),
        (Some(_), _) => Err(malformed("http1.invalid_scheme")),
        (None, None) if head.uri.path() == "*" && head.method != Method::OPTIONS => {
            Err(malformed("http1.invalid_url"))
        }
        (None, None) => Ok(()),
    }
}

/// Other codings than `chunked` would be lost on the way, because they concern one connection only. hyper refuses lengths that
/// differ, joins equal ones, and lets chunked coding win over a length that it then drops: what goes upstream is unambiguous. A
/// length that is still here together with a coding came in a way hyper does not know.
fn framing(headers: &HeaderMap) -> Result<(), Failure> {
    if only_chunked(headers) == Some(false) {
        return Err(Failure::Malformed(StatusCode::NOT_IMPLEMENTED, "http1.invalid_transfer_encoding"));
    }
    let mut lengths = headers.get_all(header::CONTENT_LENGTH).iter();
    let length = lengths.next().is_some();
    if lengths.next().is_some() || (length && headers.contains_key(header::TRANSFER_ENCODING)) {
        return Err(malformed("http1.content_length_and_chunked_not_allowed"));
    }
    Ok(())
}

/// Whether the transfer coding is `chunked` and nothing else; `None`: there is none.
fn only_chunked(headers: &HeaderMap) -> Option<bool> {
    // Most messages have none, and this look-up is the cheaper one.
    headers.get(header::TRANSFER_ENCODING)?;
    let mut codings = headers.get_all(header::TRANSFER_ENCODING).iter();
    let first = codings.next()?;
    Some(codings.next().is_none() && first.as_bytes().eq_ignore_ascii_case(b"chunked"))
}

/// Whether an HTTP/1 answer says in one way only how long it is. With two the next hop might believe the other.
pub(crate) fn proper_answer(headers: &HeaderMap) -> bool {
    only_chunked(headers).is_none_or(|chunked| chunked && !headers.contains_key(header::CONTENT_LENGTH))
}

/// What an authority may consist of: unreserved, sub-delims, `:`, `@`, `[`, `]` and escapes (RFC 3986, section 3.2).
const AUTHORITY: [bool; 256] = {
    let mut table = [false; 256];
    let allowed = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~%!$&'()*+,;=:@[]";
    let mut i = 0;
    while i < allowed.len() {
        table[allowed[i] as usize] = true;
        i += 1;
    }
    table
};

#[cfg(test)]
mod tests {
    use http::Request;

    use super::*;

    fn details(method: &str, target: &str, headers: &[(&str, &str)]) -> Option<&'static str> {
        let mut request = Request::builder().method(method).uri(target);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let (head, ()) = request.body(()).unwrap().into_parts();
        let authority = head.headers.get("host").cloned().unwrap_or_else(|| HeaderValue::from_static(""));
        let path = head.uri.path_and_query().cloned().unwrap_or_else(|| PathAndQuery::from_static("/"));
        match check(&head, &authority, &path, Present::of(&head.headers), false) {
            Ok(()) => None,
            Err(Failure::Malformed(_, details)) => Some(details),
            Err(other) => panic!("{other:?}"),
        }
    }

    #[test]
    fn what_has_two_meanings_is_refused() {
        for (method, target, headers, expected) in [
            ("GET", "/", &[][..], None),
            ("OPTIONS", "*", &[], None),
            ("GET", "*", &[], Some("http1.invalid_url")),
            ("GET", "http://a/b", &[], None),
            ("GET", "ftp://a/b", &[], Some("http1.invalid_scheme")),
            ("GET", "a:80", &[], Some("http1.codec_error")),
            ("CONNECT", "a:80", &[], None),
            ("CONNECT", "a", &[], Some("http1.invalid_url")),
            ("PROPFIND", "/", &[], None),
            ("BREW", "/", &[], Some("http1.codec_error")),
            ("GET", "/é", &[], Some("http1.codec_error")),
            ("GET", "/", &[("host", "[::1]:80")], None),
            ("GET", "/", &[("host", "a b")], Some("http.invalid_authority")),
            ("GET", "/", &[("host", "a/b")], Some("http.invalid_authority")),
            ("GET", "/", &[("host", "a"), ("host", "a")], Some("http1.codec_error")),
            ("POST", "/", &[("transfer-encoding", "chunked")], None),
            ("POST", "/", &[("transfer-encoding", "gzip, chunked")], Some("http1.invalid_transfer_encoding")),
            (
                "POST",
                "/",
                &[("transfer-encoding", "chunked"), ("content-length", "3")],
                Some("http1.content_length_and_chunked_not_allowed"),
            ),
        ] {
            assert_eq!(details(method, target, headers), expected, "{method} {target} {headers:?}");
        }
    }

    #[test]
    fn an_answer_has_one_length() {
        let map = |pairs: &[(&'static str, &'static str)]| {
            pairs
                .iter()
                .map(|(name, value)| (http::HeaderName::from_static(name), HeaderValue::from_static(value)))
                .collect::<HeaderMap>()
        };
        assert!(proper_answer(&map(&[("content-length", "3")])));
        assert!(proper_answer(&map(&[("transfer-encoding", "Chunked")])));
        assert!(!proper_answer(&map(&[("transfer-encoding", "gzip")])));
        assert!(!proper_answer(&map(&[("transfer-encoding", "chunked"), ("content-length", "3")])));
    }
}
