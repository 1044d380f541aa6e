//! A request as it is sent to an endpoint.

use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderValue, Method, Request, Uri, Version, header};

use crate::body::RequestBody;
use crate::upgrade;

/// What is sent, but for its body and the version it is sent in.
pub(crate) struct Message {
    pub(crate) method: Method,
    pub(crate) headers: HeaderMap,
    pub(crate) authority: HeaderValue,
    pub(crate) path: PathAndQuery,
    /// True: `https`.
    pub(crate) secure: bool,
}

impl Message {
    /// The same message, for another try.
    pub(crate) fn again(&self) -> Self {
        Self {
            method: self.method.clone(),
            headers: self.headers.clone(),
            authority: self.authority.clone(),
            path: self.path.clone(),
            secure: self.secure,
        }
    }

    /// In the form of an HTTP version.
    pub(crate) fn request(self, version: Version, body: RequestBody) -> Request<RequestBody> {
        let Self { mut method, headers, authority, path, secure } = self;
        let connect = method == Method::CONNECT;
        let empty = matches!(body, RequestBody::Empty);
        let mut request = Request::new(body);
        *request.version_mut() = version;
        *request.headers_mut() = headers;
        let headers = request.headers_mut();
        if version == Version::HTTP_2 {
            headers.remove(header::HOST);
            if headers.contains_key(header::UPGRADE) && upgrade::to_http2(&mut request) {
                method = Method::CONNECT;
            }
            let mut parts = http::uri::Parts::default();
            parts.scheme = Some(if secure { http::uri::Scheme::HTTPS } else { http::uri::Scheme::HTTP });
            parts.authority = http::uri::Authority::try_from(authority.as_bytes()).ok();
            parts.path_and_query = Some(path);
            if connect {
                // RFC 9113, section 8.5: neither scheme nor path.
                (parts.scheme, parts.path_and_query) = (None, None);
            }
            // Without a valid authority the path alone goes, and the server refuses it.
            *request.uri_mut() = Uri::from_parts(parts).unwrap_or_default();
        } else {
            if headers.get(header::HOST) != Some(&authority) {
                headers.insert(header::HOST, authority.clone());
            }
            // hyper would drop a body of unknown length from a GET.
            if !empty && !headers.contains_key(header::CONTENT_LENGTH) {
                headers.insert(header::TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
            }
            // Some services answer 411 to a method that may have a body and doesn't say how long it is (RFC 9110, section 8.6).
            if empty && !has_no_body(&method) {
                headers.insert(header::CONTENT_LENGTH, HeaderValue::from_static("0"));
            }
            *request.uri_mut() = if connect {
                Uri::try_from(authority.as_bytes()).unwrap_or_default()
            } else {
                Uri::from(path)
            };
        }
        *request.method_mut() = method;
        request
    }
}

/// Methods whose requests nobody expects a body of.
fn has_no_body(method: &Method) -> bool {
    matches!(*method, Method::GET | Method::HEAD | Method::DELETE | Method::TRACE | Method::CONNECT)
}
