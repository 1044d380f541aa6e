//! Conditions in words.

use std::borrow::Cow;

use crate::{
    AccessCondition, AccessView, FilterChainMatch, FullRegex, HeaderKey, HeaderMatcher, HeaderValueMatcher,
    PathMatcher, RouteMatcher, StringMatcher, ValueMatcher,
};

/// A pattern without what makes it match as a whole.
pub(super) fn pattern(regex: &FullRegex) -> &str {
    let text = regex.0.as_str();
    text.strip_prefix(r"\A(?:").and_then(|rest| rest.strip_suffix(r")\z")).unwrap_or(text)
}

pub(super) fn string(matcher: &StringMatcher) -> String {
    match matcher {
        StringMatcher::Exact(text) => text.value.to_string(),
        StringMatcher::Prefix(text) => format!("{}*", text.value),
        StringMatcher::Suffix(text) => format!("*{}", text.value),
        StringMatcher::Contains(text) => format!("*{}*", text.value),
        // How namespaces are looked for in identities, and that there is one at all.
        StringMatcher::Regex(regex) => match pattern(regex) {
            ".+" => "*".to_owned(),
            pattern => match pattern.strip_prefix(".*/ns/").and_then(|rest| rest.strip_suffix("/.*")) {
                Some(namespace) => format!("namespace {}", namespace.replace('\\', "")),
                None => format!("~{pattern}"),
            },
        },
    }
}

fn header_name(key: &HeaderKey) -> Cow<'static, str> {
    match key {
        HeaderKey::Method => "method".into(),
        HeaderKey::Scheme => "scheme".into(),
        HeaderKey::Authority => "host".into(),
        HeaderKey::Path => "path with query".into(),
        HeaderKey::Named(name) | HeaderKey::Joined(name) => format!("header {name}").into(),
    }
}

fn header_value(matcher: &HeaderMatcher) -> String {
    let value = match &matcher.value {
        HeaderValueMatcher::Present(true) => "there".to_owned(),
        HeaderValueMatcher::Present(false) => "absent".to_owned(),
        HeaderValueMatcher::Range { start, end } => format!("{start} to {}", end - 1),
        HeaderValueMatcher::String(matcher) => string(matcher),
    };
    if matcher.invert { format!("other than {value}") } else { value }
}

/// A header condition of a route.
pub(super) fn header(matcher: &HeaderMatcher) -> String {
    format!("{} {}", header_name(&matcher.key), header_value(matcher))
}

/// What a route matches.
pub(super) fn route(matcher: &RouteMatcher) -> String {
    let path = match &matcher.path {
        PathMatcher::Prefix { value, .. } => format!("path {value}*"),
        PathMatcher::Exact { value, .. } => format!("path {value}"),
        PathMatcher::SeparatedPrefix { value, .. } => format!("path {value} or {value}/*"),
        PathMatcher::Regex(regex) => format!("path ~{}", pattern(regex)),
        PathMatcher::Connect => "CONNECT".to_owned(),
    };
    let mut parts = vec![path];
    parts.extend(matcher.headers.iter().map(header));
    parts.extend(matcher.query_parameters.iter().map(|one| match &one.value {
        Some(value) => format!("query {}={}", one.name, string(value)),
        None => format!("query {} {}", one.name, if one.present { "there" } else { "absent" }),
    }));
    if matcher.grpc {
        parts.push("gRPC".to_owned());
    }
    parts.extend(matcher.metadata.iter().map(|one| format!("{} {}", one.path.join("."), value(&one.value))));
    parts.join(", ")
}

/// What a filter chain matches.
pub(super) fn chain(matching: &FilterChainMatch) -> String {
    let mut parts = Vec::new();
    parts.extend(matching.destination_port.map(|port| format!("port {port}")));
    if !matching.prefix_ranges.is_empty() {
        let ranges: Vec<String> = matching.prefix_ranges.iter().map(ToString::to_string).collect();
        parts.push(format!("to {}", ranges.join(",")));
    }
    if !matching.server_names.is_empty() {
        parts.push(format!("SNI {}", matching.server_names.join(",")));
    }
    if !matching.transport_protocol.is_empty() {
        parts.push(matching.transport_protocol.clone());
    }
    if !matching.application_protocols.is_empty() {
        parts.push(format!("ALPN {}", matching.application_protocols.join(",")));
    }
    if parts.is_empty() { "everything".to_owned() } else { parts.join(", ") }
}

fn value(matcher: &ValueMatcher) -> String {
    match matcher {
        ValueMatcher::Null => "null".to_owned(),
        ValueMatcher::Number(number) => number.to_string(),
        ValueMatcher::Range { start, end } => format!("{start} to below {end}"),
        ValueMatcher::String(matcher) => string(matcher),
        ValueMatcher::Bool(wanted) => wanted.to_string(),
        ValueMatcher::Present(_) => "*".to_owned(),
        ValueMatcher::ListOneOf(one) => value(one),
        // The value, or a list with it: the same words.
        ValueMatcher::Or(list) => list.first().map(value).unwrap_or_default(),
    }
}

/// What a condition looks at, what that is, and what is wanted; `None`: it is about other conditions.
pub(super) fn leaf(
    condition: &AccessCondition,
    view: &AccessView<'_>,
) -> Option<(Cow<'static, str>, String, String)> {
    let missing = || "missing".to_owned();
    let none = || "none: a Unix socket".to_owned();
    let ip = |address: Option<std::net::IpAddr>| address.map_or_else(none, |address| address.to_string());
    let request = view.request;
    Some(match condition {
        AccessCondition::Header(matcher) => {
            let is = match (&matcher.key, request) {
                (_, None) => missing(),
                (HeaderKey::Method, Some(request)) => request.method.to_owned(),
                (HeaderKey::Scheme, Some(request)) => request.scheme.to_owned(),
                (HeaderKey::Authority, Some(request)) => request.authority.to_owned(),
                (HeaderKey::Path, Some(request)) => request.path.to_owned(),
                (HeaderKey::Named(name) | HeaderKey::Joined(name), Some(request)) => {
                    let values = request.headers.get_all(name).iter();
                    let values: Vec<_> =
                        values.map(|value| String::from_utf8_lossy(value.as_bytes())).collect();
                    if values.is_empty() { missing() } else { values.join(", ") }
                }
            };
            (header_name(&matcher.key), is, header_value(matcher))
        }
        AccessCondition::Path(matcher) => {
            ("path".into(), view.path().unwrap_or("unknown: not HTTP").to_owned(), string(matcher))
        }
        AccessCondition::Template(template) => {
            ("path".into(), view.path().unwrap_or("unknown: not HTTP").to_owned(), template.to_string())
        }
        AccessCondition::Destination(net) => {
            ("destination".into(), ip(view.destination.map(|address| address.ip())), net.to_string())
        }
        AccessCondition::DestinationPorts { start, end } => {
            let wanted = if end - start == 1 { start.to_string() } else { format!("{start} to {}", end - 1) };
            let is = view.destination.map_or_else(none, |address| address.port().to_string());
            ("port".into(), is, wanted)
        }
        AccessCondition::ServerName(matcher) => {
            let name = view.server_name;
            ("SNI".into(), if name.is_empty() { missing() } else { name.to_owned() }, string(matcher))
        }
        AccessCondition::Source(net) => ("source".into(), ip(view.source), net.to_string()),
        AccessCondition::DirectSource(net) => ("source".into(), ip(view.direct_source), net.to_string()),
        AccessCondition::Client(net) => ("client address".into(), ip(view.client), net.to_string()),
        AccessCondition::Authenticated(matcher) => {
            let is = match view.peer {
                None => "unknown: plain text".to_owned(),
                Some(peer) if peer.uris.is_empty() => "unknown: no certificate".to_owned(),
                Some(peer) => peer.uris.join(", "),
            };
            ("identity".into(), is, matcher.as_ref().map_or_else(|| "any".to_owned(), string))
        }
        AccessCondition::Metadata(matcher) => {
            let noted = request.and_then(|request| request.metadata);
            let noted = noted.and_then(|noted| noted.get(&matcher.filter));
            let found = matcher
                .path
                .iter()
                .try_fold(noted.as_deref(), |value, key| Some(value?.get(&**key)))
                .flatten();
            let is = match found {
                None => "missing: no good token has it".to_owned(),
                Some(serde_json::Value::String(text)) => text.clone(),
                Some(other) => other.to_string(),
            };
            let name = match matcher.path.split_first() {
                Some((first, rest)) if &**first == "payload" => format!("claim {}", rest.join(".")),
                _ => matcher.path.join("."),
            };
            (name.into(), is, value(&matcher.value))
        }
        AccessCondition::All(_)
        | AccessCondition::Any(_)
        | AccessCondition::Not(_)
        | AccessCondition::Always => {
            return None;
        }
    })
}
