//! Which of the headers that matter to the proxy a message has, found in one pass over the names it has. A look-up hashes its name,
//! and the dozens that a request would need cost more than everything else that is done to its head.

use http::header::{self, HeaderMap, HeaderName};

/// A set of headers; see the constants.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Present(u32);

impl Present {
    pub(crate) const CONNECTION: Self = Self(1);
    pub(crate) const UPGRADE: Self = Self(1 << 1);
    pub(crate) const TRANSFER_ENCODING: Self = Self(1 << 2);
    pub(crate) const CONTENT_LENGTH: Self = Self(1 << 3);
    pub(crate) const HOST: Self = Self(1 << 4);
    pub(crate) const COOKIE: Self = Self(1 << 5);
    pub(crate) const TE: Self = Self(1 << 6);
    pub(crate) const EXPECT: Self = Self(1 << 7);
    pub(crate) const KEEP_ALIVE: Self = Self(1 << 9);
    pub(crate) const PROXY_CONNECTION: Self = Self(1 << 10);
    /// `x-forwarded-for`
    pub(crate) const FORWARDED_FOR: Self = Self(1 << 11);
    /// `x-forwarded-proto`
    pub(crate) const FORWARDED_PROTO: Self = Self(1 << 12);
    /// `x-forwarded-client-cert`
    pub(crate) const CLIENT_CERT: Self = Self(1 << 13);
    /// `x-request-id`
    pub(crate) const REQUEST_ID: Self = Self(1 << 14);
    /// `grpc-timeout`
    pub(crate) const GRPC_TIMEOUT: Self = Self(1 << 15);
    /// Any `x-envoy-…`.
    pub(crate) const ENVOY: Self = Self(1 << 16);
    /// Some header has several values.
    pub(crate) const REPEATED: Self = Self(1 << 17);
    /// An `x-envoy-…` that asks something of the router: see `asked`.
    pub(crate) const ASKING: Self = Self(1 << 18);

    /// Looks at every name once.
    pub(crate) fn of(headers: &HeaderMap) -> Self {
        let repeated = if headers.len() > headers.keys_len() { Self::REPEATED } else { Self::default() };
        headers.keys().fold(repeated, |found, name| found.and(Self::one(name)))
    }

    const fn and(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// True when it has any of these.
    pub(crate) const fn any(self, of: Self) -> bool {
        self.0 & of.0 != 0
    }

    fn one(name: &HeaderName) -> Self {
        // Names with a constant compare by a number; the others are told apart by their length first.
        match *name {
            header::HOST => Self::HOST,
            header::CONTENT_LENGTH => Self::CONTENT_LENGTH,
            header::COOKIE => Self::COOKIE,
            header::CONNECTION => Self::CONNECTION,
            header::UPGRADE => Self::UPGRADE,
            header::TRANSFER_ENCODING => Self::TRANSFER_ENCODING,
            header::TE => Self::TE,
            header::EXPECT => Self::EXPECT,
            _ => Self::other(name.as_str()),
        }
    }

    fn other(name: &str) -> Self {
        match name.len() {
            10 if name == "keep-alive" => Self::KEEP_ALIVE,
            16 if name == "proxy-connection" => Self::PROXY_CONNECTION,
            15 if name == "x-forwarded-for" => Self::FORWARDED_FOR,
            17 if name == "x-forwarded-proto" => Self::FORWARDED_PROTO,
            23 if name == "x-forwarded-client-cert" => Self::CLIENT_CERT,
            12 if name == "x-request-id" => Self::REQUEST_ID,
            12 if name == "grpc-timeout" => Self::GRPC_TIMEOUT,
            _ => name.strip_prefix("x-envoy-").map_or(Self::default(), Self::envoy),
        }
    }

    /// Most requests in a mesh have one of these, which says how much time the proxy before gave them, and asks nothing.
    fn envoy(rest: &str) -> Self {
        match rest {
            "hedge-on-per-try-timeout"
            | "max-retries"
            | "retriable-header-names"
            | "retriable-status-codes"
            | "retry-grpc-on"
            | "retry-on"
            | "upstream-rq-per-try-timeout-ms"
            | "upstream-rq-timeout-alt-response"
            | "upstream-rq-timeout-ms"
            | "upstream-stream-duration-ms" => Self::ENVOY.and(Self::ASKING),
            _ => Self::ENVOY,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;

    #[test]
    fn every_header_of_interest_is_seen() {
        for (name, of) in [
            ("host", Present::HOST),
            ("content-length", Present::CONTENT_LENGTH),
            ("cookie", Present::COOKIE),
            ("connection", Present::CONNECTION),
            ("upgrade", Present::UPGRADE),
            ("transfer-encoding", Present::TRANSFER_ENCODING),
            ("x-forwarded-for", Present::FORWARDED_FOR),
            ("x-forwarded-proto", Present::FORWARDED_PROTO),
            ("x-forwarded-client-cert", Present::CLIENT_CERT),
            ("x-request-id", Present::REQUEST_ID),
            ("grpc-timeout", Present::GRPC_TIMEOUT),
            ("x-envoy-max-retries", Present::ENVOY),
            ("x-envoy-upstream-rq-timeout-ms", Present::ASKING),
            ("te", Present::TE),
            ("expect", Present::EXPECT),
            ("keep-alive", Present::KEEP_ALIVE),
            ("proxy-connection", Present::PROXY_CONNECTION),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert("accept", HeaderValue::from_static("x"));
            headers.insert(HeaderName::from_static(name), HeaderValue::from_static("x"));
            assert!(Present::of(&headers).any(of), "{name}");
            headers.remove(name);
            assert_eq!(Present::of(&headers), Present::default(), "{name}");
        }
        let expected = HeaderMap::from_iter([(
            HeaderName::from_static("x-envoy-expected-rq-timeout-ms"),
            HeaderValue::from_static("1"),
        )]);
        assert!(!Present::of(&expected).any(Present::ASKING));
        let mut headers = HeaderMap::new();
        headers.append("accept", HeaderValue::from_static("x"));
        assert!(!Present::of(&headers).any(Present::REPEATED));
        headers.append("accept", HeaderValue::from_static("y"));
        assert!(Present::of(&headers).any(Present::REPEATED));
    }
}
