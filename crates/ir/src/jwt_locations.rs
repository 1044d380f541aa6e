//! Where a request carries tokens.

use std::collections::BTreeMap;

use http::header::{self, HeaderMap, HeaderName};
use http::uri::PathAndQuery;

use crate::matcher::each_value;

/// A request's head, as far as tokens are concerned.
#[derive(Debug)]
pub struct JwtRequest<'a> {
    /// Headers but for the pseudo headers.
    pub headers: &'a mut HeaderMap,
    /// `:path` with the query.
    pub path: &'a mut PathAndQuery,
}

/// Whose tokens may come from a place.
#[derive(Clone, Debug, Default)]
pub(crate) struct Issuers {
    any: bool,
    names: Vec<Box<str>>,
}

impl Issuers {
    /// Empty: any.
    fn add(&mut self, issuer: &str) {
        if issuer.is_empty() {
            self.any = true;
        } else {
            self.names.push(issuer.into());
        }
    }

    pub(crate) fn allow(&self, issuer: &str) -> bool {
        self.any || self.names.iter().any(|name| **name == *issuer)
    }
}

/// The places of one or several providers, in the order in which Envoy collects tokens; they are verified in reverse.
#[derive(Clone, Debug, Default)]
pub struct JwtLocations {
    /// Name and prefix, by both put together.
    headers: BTreeMap<String, (HeaderName, Box<str>, Issuers)>,
    params: BTreeMap<Box<str>, Issuers>,
    cookies: BTreeMap<Box<str>, Issuers>,
    /// Headers that only the filter may write.
    pub(crate) reserved: Vec<HeaderName>,
}

/// A token and where it was.
pub(crate) struct Found<'a> {
    pub(crate) token: String,
    pub(crate) issuers: &'a Issuers,
    pub(crate) place: Place<'a>,
}

#[derive(Clone, Copy)]
pub(crate) enum Place<'a> {
    Header(&'a HeaderName),
    Param(&'a str),
    Cookie,
}

/// Characters of a token: Base64 for URLs, and dots.
fn of_token(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.')
}

impl JwtLocations {
    /// A header that holds a token behind `prefix`.
    pub(crate) fn add_header(&mut self, issuer: &str, name: HeaderName, prefix: &str) {
        let key = format!("{name}{prefix}");
        let entry = self.headers.entry(key).or_insert_with(|| (name, prefix.into(), Issuers::default()));
        entry.2.add(issuer);
    }

    /// A query parameter.
    pub(crate) fn add_param(&mut self, issuer: &str, name: &str) {
        self.params.entry(name.into()).or_default().add(issuer);
    }

    /// A cookie.
    pub(crate) fn add_cookie(&mut self, issuer: &str, name: &str) {
        self.cookies.entry(name.into()).or_default().add(issuer);
    }

    /// `authorization: Bearer …` and `?access_token=…`.
    pub(crate) fn add_default(&mut self, issuer: &str) {
        self.add_header(issuer, header::AUTHORIZATION, "Bearer ");
        self.add_param(issuer, "access_token");
    }

    /// The places of both.
    pub(crate) fn merge(&mut self, other: &Self) {
        for (key, (name, prefix, issuers)) in &other.headers {
            let entry = self.headers.entry(key.clone());
            entry.or_insert_with(|| (name.clone(), prefix.clone(), Issuers::default())).2.merge(issuers);
        }
        for (name, issuers) in &other.params {
            self.params.entry(name.clone()).or_default().merge(issuers);
        }
        for (name, issuers) in &other.cookies {
            self.cookies.entry(name.clone()).or_default().merge(issuers);
        }
        self.reserved.extend(other.reserved.iter().cloned());
    }

    /// Puts a token into the first place.
    pub(crate) fn put(&self, request: &mut JwtRequest<'_>, token: &str) {
        let header =
            self.headers.values().next().map(|(name, prefix, _)| (name.clone(), format!("{prefix}{token}")));
        let cookie = || {
            let name = self.cookies.keys().next()?;
            Some((header::COOKIE, format!("{name}={token}")))
        };
        if let Some((name, value)) = header.or_else(|| if self.params.is_empty() { cookie() } else { None }) {
            if let Ok(value) = value.try_into() {
                request.headers.insert(name, value);
            }
        } else if let Some(name) = self.params.keys().next() {
            let sign = if request.path.query().is_some() { '&' } else { '?' };
            if let Ok(path) = format!("{}{sign}{name}={token}", request.path).try_into() {
                *request.path = path;
            }
        }
    }

    /// All tokens.
    pub(crate) fn find(&self, request: &JwtRequest<'_>) -> Vec<Found<'_>> {
        let mut found = Vec::new();
        for (name, prefix, issuers) in self.headers.values() {
            each_value(request.headers, name, |value| {
                let value = String::from_utf8_lossy(value);
                if let Some(token) = behind(&value, prefix) {
                    found.push(Found { token: token.into(), issuers, place: Place::Header(name) });
                }
            });
        }
        let query = request.path.query().filter(|_| !self.params.is_empty());
        for (name, issuers) in query.iter().flat_map(|_| &self.params) {
            if let Some(token) = query.and_then(|query| param(query, name)) {
                found.push(Found { token, issuers, place: Place::Param(name) });
            }
        }
        for (name, issuers) in &self.cookies {
            if let Some(token) = cookie(request.headers, name) {
                found.push(Found { token, issuers, place: Place::Cookie });
            }
        }
        found
    }
}

impl Issuers {
    fn merge(&mut self, other: &Self) {
        self.any |= other.any;
        self.names.extend(other.names.iter().cloned());
    }
}

/// What stands behind the prefix, wherever that is.
fn behind<'a>(value: &'a str, prefix: &str) -> Option<&'a str> {
    if prefix.is_empty() {
        return Some(value);
    }
    let rest = &value[value.find(prefix)? + prefix.len()..];
    // As Envoy: without anything that could be a token it is the whole value, which is none either.
    Some(rest.find(of_token).map_or(value, |start| &rest[start..]))
}

fn pairs(query: &str) -> impl Iterator<Item = (String, String)> {
    query.split('&').filter(|pair| !pair.is_empty()).map(|pair| {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        (percent_decoded(name), percent_decoded(value))
    })
}

/// The first value of a parameter.
fn param(query: &str, name: &str) -> Option<String> {
    pairs(query).find(|(key, _)| key == name).map(|(_, value)| value)
}

/// `%41` is `A`; what is not an encoding stays.
fn percent_decoded(text: &str) -> String {
    let bytes = text.as_bytes();
    let digit = |at: usize| bytes.get(at).and_then(|byte| char::from(*byte).to_digit(16));
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while let Some(byte) = bytes.get(at) {
        match (byte, digit(at + 1), digit(at + 2)) {
            (b'%', Some(high), Some(low)) => {
                out.push((high * 16 + low) as u8);
                at += 3;
            }
            _ => {
                out.push(*byte);
                at += 1;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

/// The first cookie of that name; quotes around its value are not part of it.
fn cookie(headers: &HeaderMap, name: &str) -> Option<String> {
    let lines = headers.get_all(header::COOKIE).iter().filter_map(|line| line.to_str().ok());
    let mut pairs = lines.flat_map(|line| line.split(';')).filter_map(|pair| pair.trim().split_once('='));
    let (_, value) = pairs.find(|(key, _)| *key == name)?;
    let bare = value.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')).unwrap_or(value);
    Some(bare.to_owned())
}

/// Takes the token out of the request. Cookies stay, as with Envoy.
pub(crate) fn remove(request: &mut JwtRequest<'_>, place: Place<'_>) {
    match place {
        Place::Header(name) => {
            request.headers.remove(name);
        }
        Place::Param(name) => without_param(request, name),
        Place::Cookie => {}
    }
}

/// As Envoy, which writes the query anew: parameters by name, each with a `=`. But what is encoded stays so: decoded, it could
/// be another parameter, or another request.
fn without_param(request: &mut JwtRequest<'_>, name: &str) {
    let Some(query) = request.path.query() else { return };
    let pairs = query.split('&').filter(|pair| !pair.is_empty());
    let mut left: Vec<(&str, &str)> = pairs.map(|pair| pair.split_once('=').unwrap_or((pair, ""))).collect();
    left.retain(|(key, _)| percent_decoded(key) != name);
    left.sort_by_key(|(key, _)| *key);
    let mut text = request.path.path().to_owned();
    for (position, (key, value)) in left.into_iter().enumerate() {
        text.push(if position == 0 { '?' } else { '&' });
        text.extend([key, "=", value]);
    }
    if let Ok(path) = PathAndQuery::try_from(text) {
        *request.path = path;
    }
}
