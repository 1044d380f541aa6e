//! What of a request or connection is hashed, so that the same caller meets the same endpoint.
//! Source: Envoy's `RouteAction.HashPolicy`; hashes are xxHash64, so that other proxies choose alike.

use std::net::IpAddr;

use http::HeaderMap;
use smallvec::SmallVec;
use xxhash_rust::xxh64::xxh64;

use crate::endpoint::HostAddress;
use crate::matcher::HeaderKey;
use crate::route::RegexRewrite;
use crate::route_table::{RequestView, path_only};

/// One entry of `RouteAction.hash_policy`.
#[derive(Clone, Debug)]
pub struct HashPolicy {
    /// What is hashed.
    pub method: HashMethod,
    /// Later entries don't count once there is a hash.
    pub terminal: bool,
}

/// What is hashed.
#[derive(Clone, Debug)]
pub enum HashMethod {
    /// The values of a header.
    Header {
        /// Which.
        key: HeaderKey,
        /// Changes each value first.
        rewrite: Option<RegexRewrite>,
    },
    /// A cookie.
    Cookie(HashCookie),
    /// The client's address.
    SourceIp,
    /// The first query parameter of this name, as it was sent.
    QueryParameter(Box<str>),
}

/// A cookie that keeps a client at its endpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HashCookie {
    /// Name.
    pub name: Box<str>,
    /// A client without it is given one that lives for so many seconds (0: as long as its session); `None`: it is given none.
    pub ttl: Option<u64>,
    /// Path of a given cookie; may be empty.
    pub path: Box<str>,
    /// More attributes of a given cookie; one without a value is written as its name.
    pub attributes: Vec<(Box<str>, Box<str>)>,
}

impl HashCookie {
    /// The value of `set-cookie`.
    pub fn set_cookie(&self, value: &str) -> String {
        let mut text = format!("{}=\"{value}\"", self.name);
        match self.ttl {
            Some(seconds) if seconds > 0 => text.push_str(&format!("; Max-Age={seconds}")),
            _ => {}
        }
        if !self.path.is_empty() {
            text.push_str(&format!("; Path={}", self.path));
        }
        for (name, value) in &self.attributes {
            text.push_str("; ");
            text.push_str(name);
            if !value.is_empty() {
                text.push('=');
                text.push_str(value);
            }
        }
        text + "; HttpOnly"
    }
}

/// The value of a cookie that a client without one is given: a hash of the two ends of its connection, in hexadecimal.
pub fn new_cookie_value(remote: &HostAddress, local: &HostAddress) -> String {
    format!("{:016x}", xxh64(format!("{remote}{local}").as_bytes(), 0))
}

/// The hash of a client's address.
pub fn address_hash(address: IpAddr) -> u64 {
    xxh64(address.to_string().as_bytes(), 0)
}

/// The hash of a request; `None` when it has nothing that is asked for. `client`: a Unix socket has none. `new_cookie` makes the value of a cookie that is missing and
/// sees to it that the client is told.
pub fn request_hash(
    policies: &[HashPolicy],
    request: &RequestView<'_>,
    client: Option<IpAddr>,
    mut new_cookie: impl FnMut(&HashCookie) -> String,
) -> Option<u64> {
    let mut hash: Option<u64> = None;
    for policy in policies {
        let next = match &policy.method {
            HashMethod::Header { key, rewrite } => header_hash(request, key, rewrite.as_ref()),
            HashMethod::Cookie(wanted) => match (cookie(request.headers, &wanted.name), wanted.ttl) {
                (Some(value), _) => Some(xxh64(value, 0)),
                (None, Some(_)) => Some(xxh64(new_cookie(wanted).as_bytes(), 0)),
                (None, None) => None,
            },
            HashMethod::SourceIp => client.map(address_hash),
            HashMethod::QueryParameter(name) => {
                query_parameter(request.path, name).map(|value| xxh64(value.as_bytes(), 0))
            }
        };
        if let Some(next) = next {
            // Rotated, so that two equal entries don't cancel each other out.
            hash = Some(hash.map_or(0, |before| before.rotate_left(1)) ^ next);
        }
        if policy.terminal && hash.is_some() {
            break;
        }
    }
    hash
}

fn header_hash(request: &RequestView<'_>, key: &HeaderKey, rewrite: Option<&RegexRewrite>) -> Option<u64> {
    // Declared first, since the values may be borrowed from it.
    let rewritten: Vec<String>;
    let named;
    let mut values: SmallVec<[&[u8]; 2]> = match key {
        HeaderKey::Method => SmallVec::from_slice(&[request.method.as_bytes()]),
        HeaderKey::Scheme => SmallVec::from_slice(&[request.scheme.as_bytes()]),
        HeaderKey::Authority => SmallVec::from_slice(&[request.authority.as_bytes()]),
        HeaderKey::Path if request.path.is_empty() => SmallVec::new(),
        HeaderKey::Path => SmallVec::from_slice(&[request.path.as_bytes()]),
        HeaderKey::Named(name) | HeaderKey::Joined(name) => {
            named = request.headers.get_all(name);
            named.iter().map(http::HeaderValue::as_bytes).collect()
        }
    };
    if values.is_empty() {
        return None;
    }
    if let Some(rewrite) = rewrite {
        rewritten = values.iter().map(|value| rewrite.apply(&String::from_utf8_lossy(value))).collect();
        values = rewritten.iter().map(String::as_bytes).collect();
    }
    // The order of the lines does not matter.
    values.sort_unstable();
    Some(values.iter().fold(0, |seed, value| xxh64(value, seed)))
}

/// The first cookie of a name that is not empty, without its quotes.
fn cookie<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a [u8]> {
    let lines = headers.get_all(http::header::COOKIE).iter();
    let mut pairs = lines.flat_map(|line| line.as_bytes().split(|byte| *byte == b';'));
    let value = pairs.find_map(|pair| {
        let equals = pair.iter().position(|byte| *byte == b'=')?;
        let (key, value) = (&pair[..equals], &pair[equals + 1..]);
        let start = key.iter().position(|byte| *byte != b' ').unwrap_or(key.len());
        (&key[start..] == name.as_bytes()).then_some(value)
    })?;
    let bare = value.strip_prefix(b"\"").and_then(|value| value.strip_suffix(b"\"")).unwrap_or(value);
    (!bare.is_empty()).then_some(bare)
}

/// The first value that a path's query has for a name, as it stands there.
pub fn query_parameter<'a>(path: &'a str, name: &str) -> Option<&'a str> {
    let query = path[path_only(path).len()..].strip_prefix('?')?;
    query.split('&').find_map(|parameter| {
        let (key, value) = parameter.split_once('=').unwrap_or((parameter, ""));
        (key == name).then_some(value)
    })
}

#[cfg(test)]
mod tests {
    use http::{HeaderName, HeaderValue};

    use super::*;

    fn policy(method: HashMethod) -> HashPolicy {
        HashPolicy { method, terminal: false }
    }

    fn hash(policies: &[HashPolicy], path: &str, headers: &HeaderMap) -> Option<u64> {
        let request =
            RequestView { method: "GET", scheme: "http", authority: "a", path, headers, metadata: None };
        request_hash(policies, &request, Some([10, 0, 0, 1].into()), |_| "new".to_owned())
    }

    fn header(name: &'static str) -> HashMethod {
        HashMethod::Header { key: HeaderKey::Named(HeaderName::from_static(name)), rewrite: None }
    }

    #[test]
    fn headers_are_hashed_in_any_order() {
        let policies = [policy(header("x-user"))];
        let mut one = HeaderMap::new();
        assert_eq!(hash(&policies, "/", &one), None);
        one.append("x-user", HeaderValue::from_static("jane"));
        assert_eq!(hash(&policies, "/", &one), Some(xxh64(b"jane", 0)));
        let mut other = one.clone();
        one.append("x-user", HeaderValue::from_static("joe"));
        other.insert("x-user", HeaderValue::from_static("joe"));
        other.append("x-user", HeaderValue::from_static("jane"));
        assert_eq!(hash(&policies, "/", &one), hash(&policies, "/", &other));
    }

    #[test]
    fn cookies_are_found_or_made() {
        let cookie = |ttl| HashCookie { name: "user".into(), ttl, path: "".into(), attributes: vec![] };
        let mut headers = HeaderMap::new();
        assert_eq!(hash(&[policy(HashMethod::Cookie(cookie(None)))], "/", &headers), None);
        let made = hash(&[policy(HashMethod::Cookie(cookie(Some(0))))], "/", &headers);
        assert_eq!(made, Some(xxh64(b"new", 0)));
        for text in ["user=a1", "b=2; user=a1", "b;user=\"a1\"; user=z"] {
            headers.insert("cookie", HeaderValue::from_str(text).unwrap());
            let found = hash(&[policy(HashMethod::Cookie(cookie(None)))], "/", &headers);
            assert_eq!(found, Some(xxh64(b"a1", 0)), "{text}");
        }
        assert_eq!(cookie(Some(0)).set_cookie("x"), "user=\"x\"; HttpOnly");
        let full = HashCookie {
            path: "/p".into(),
            attributes: vec![("SameSite".into(), "Strict".into()), ("Secure".into(), "".into())],
            ..cookie(Some(30))
        };
        assert_eq!(
            full.set_cookie("x"),
            "user=\"x\"; Max-Age=30; Path=/p; SameSite=Strict; Secure; HttpOnly"
        );
    }

    #[test]
    fn several_policies_are_joined_until_a_terminal_one() {
        let mut headers = HeaderMap::new();
        headers.insert("x-a", HeaderValue::from_static("1"));
        let a = xxh64(b"1", 0);
        let ip = address_hash([10, 0, 0, 1].into());
        let both = [policy(header("x-a")), policy(HashMethod::SourceIp)];
        assert_eq!(hash(&both, "/", &headers), Some(a.rotate_left(1) ^ ip));
        let first = [HashPolicy { terminal: true, ..both[0].clone() }, both[1].clone()];
        assert_eq!(hash(&first, "/", &headers), Some(a));
        assert_eq!(hash(&first, "/", &HeaderMap::new()), Some(ip), "a terminal one that finds nothing");
        let query = [policy(HashMethod::QueryParameter("q".into()))];
        assert_eq!(hash(&query, "/?p=1&q=%20&q=2", &headers), Some(xxh64(b"%20", 0)));
        assert_eq!(hash(&query, "/?p=q", &headers), None);
    }
}
