//! Step 5a: what the connection manager does to a request before routing: checks, hop-by-hop headers, trusted headers.
//! <https://www.envoyproxy.io/docs/envoy/v1.40.0/configuration/http/http_conn_man/headers>

use std::borrow::Cow;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::rc::Rc;
use std::time::Instant;

use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::uri::PathAndQuery;
use http::{Method, Version, request};
use lateen_ir::{EscapedSlashes, HttpConnectionManager, PathProblem, Scheme};

use crate::client_cert::{self, X_FORWARDED_CLIENT_CERT};
use crate::context::{HttpConnection, RequestContext};
use crate::failure::{Failure, Flags};
use crate::guard::Offence;
use crate::hop_by_hop::{contains_token, hop_by_hop, join_cookies, join_lines, remove_nominated};
use crate::presence::Present;

pub(crate) const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
pub(crate) const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
pub(crate) const X_FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
pub(crate) const X_FORWARDED_PORT: HeaderName = HeaderName::from_static("x-forwarded-port");
pub(crate) const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
pub(crate) const X_ENVOY_FORCE_TRACE: HeaderName = HeaderName::from_static("x-envoy-force-trace");
const X_ENVOY_INTERNAL: HeaderName = HeaderName::from_static("x-envoy-internal");
const X_ENVOY_EXTERNAL_ADDRESS: HeaderName = HeaderName::from_static("x-envoy-external-address");
const X_ENVOY_DOWNSTREAM_SERVICE_CLUSTER: HeaderName =
    HeaderName::from_static("x-envoy-downstream-service-cluster");
const X_ENVOY_DOWNSTREAM_SERVICE_NODE: HeaderName =
    HeaderName::from_static("x-envoy-downstream-service-node");

/// Removed from every request that is not internal (Envoy's `cleanInternalHeaders`).
const NOT_FOR_OUTSIDERS: [&str; 15] = [
    "x-envoy-retriable-status-codes",
    "x-envoy-retriable-header-names",
    "x-envoy-retry-on",
    "x-envoy-retry-grpc-on",
    "x-envoy-max-retries",
    "x-envoy-upstream-alt-stat-name",
    "x-envoy-upstream-rq-timeout-ms",
    "x-envoy-upstream-rq-per-try-timeout-ms",
    "x-envoy-upstream-rq-timeout-alt-response",
    "x-envoy-upstream-stream-duration-ms",
    "x-envoy-expected-rq-timeout-ms",
    "x-envoy-force-trace",
    "x-envoy-ip-tags",
    "x-envoy-original-url",
    "x-envoy-hedge-on-per-try-timeout",
];

/// Removed at the edge as well.
const NOT_FROM_CLIENTS: [&str; 5] = [
    "x-envoy-decorator-operation",
    "x-envoy-downstream-service-cluster",
    "x-envoy-downstream-service-node",
    "x-envoy-original-path",
    "x-envoy-original-host",
];

/// Makes the context of a request. The head is as received; [`well_formed`](crate::well_formed) and [`normalise`] do the rest.
pub(crate) fn receive(
    connection: &Rc<HttpConnection>,
    head: request::Parts,
    present: Present,
) -> Box<RequestContext> {
    let authority = match head.uri.authority() {
        // An absolute URL and HTTP/2's :authority win over `host` (RFC 9112, section 3.2.2). Who the client says it is stays here.
        Some(authority) => {
            let text = authority.as_str();
            HeaderValue::from_str(text.rsplit_once('@').map_or(text, |(_, host)| host)).ok()
        }
        None => head.headers.get(header::HOST).cloned(),
    };
    let path = head.uri.path_and_query().cloned().unwrap_or_else(|| PathAndQuery::from_static("/"));
    let secure = head
        .uri
        .scheme_str()
        .map_or(connection.info.tls.is_some(), |scheme| scheme.eq_ignore_ascii_case("https"));
    Box::new(RequestContext {
        connection: connection.clone(),
        view: connection.worker.view(),
        started: Instant::now(),
        version: head.version,
        authority: authority.unwrap_or_else(|| HeaderValue::from_static("")),
        path,
        connect_port: None,
        secure,
        has_scheme: head.uri.scheme().is_some(),
        client: connection.info.peer.clone(),
        present,
        answered: Present::default(),
        head,
        routes: None,
        virtual_host: None,
        route: None,
        route_stats: None,
        weighted: None,
        no_content_on_timeout: false,
        followed: None,
        metadata: None,
        filters: Vec::new(),
        cluster: None,
        host: None,
        upstream: None,
        upstream_version: None,
        upstream_failure: None,
        body: None,
        interim: None,
        begun_upstream: false,
        unread: false,
        attempts: 0,
        flags: Flags::default(),
        details: Cow::Borrowed(""),
        status: None,
        answering: None,
        response_headers: None,
        response_trailers: None,
        local_reply: None,
        bytes_sent: 0,
        first_upstream_byte: None,
        new_cookies: Vec::new(),
        complete: false,
    })
}

/// What [`normalise`] found besides failures.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Normalised {
    Go,
    /// Answer 307 to this path.
    Redirect(PathAndQuery),
}

/// Brings the head of a request whose form is right into the form the rest works with.
pub(crate) fn normalise(context: &mut RequestContext) -> Result<Normalised, Failure> {
    let connection = context.connection.clone();
    let hcm = &*connection.config.hcm;
    let present = context.present;
    if context.head.method != Method::CONNECT && !context.path.as_str().starts_with('/') {
        connection.stats.downstream_rq_non_relative_path.inc();
        return Err(Failure::NotAPath);
    }
    context.head.uri = http::Uri::default();
    if context.version == Version::HTTP_2 && present.any(Present::COOKIE) {
        join_cookies(&mut context.head.headers);
    }
    let upgrade = present.any(Present::UPGRADE) && is_upgrade(&context.head);
    if present.any(Present::CONNECTION) {
        remove_nominated(&mut context.head.headers)?;
        context.present = Present::of(&context.head.headers);
    }
    let present = context.present;
    hop_by_hop(&mut context.head.headers, present, upgrade);
    if connection.verdict.get() == Some(Offence::Fragment) {
        return Err(Failure::BadRequest(Offence::Fragment.details()));
    }
    if context.head.method != Method::CONNECT {
        match lateen_ir::normalise_path(&context.path, hcm) {
            Ok(None) => {}
            Ok(Some(changed)) if changed.redirect => return Ok(Normalised::Redirect(changed.path)),
            Ok(Some(changed)) => context.path = changed.path,
            Err(PathProblem) => {
                connection.stats.downstream_rq_failed_path_normalization.inc();
                // What it would have been is what Envoy logs.
                if let Some(path) = lateen_ir::path_with_slashes(&context.path)
                    && hcm.escaped_slashes == EscapedSlashes::Reject
                {
                    context.path = path;
                }
                return Err(Failure::BadRequest("path_normalization_failed"));
            }
        }
    }
    strip_authority(context, hcm);
    trusted_headers(context, hcm);
    Ok(Normalised::Go)
}

fn strip_authority(context: &mut RequestContext, hcm: &HttpConnectionManager) {
    let Ok(text) = context.authority.to_str() else { return };
    // A Unix socket's port counts as 0, as with Envoy.
    let port = context.connection.info.local.port().unwrap_or(0);
    let stripped = hcm.stripped_authority(text, port);
    if let Some(stripped) = stripped
        && let Ok(value) = HeaderValue::try_from(&stripped)
    {
        // What is a CONNECT over HTTP/2 is an upgrade here.
        let connects = context.head.method == Method::CONNECT
            || (context.version == Version::HTTP_2 && is_upgrade(&context.head));
        let had = text.rsplit_once(':').and_then(|(_, port)| port.parse::<u16>().ok());
        let lost = had.filter(|port| connects && !stripped.ends_with(&format!(":{port}")));
        (context.connect_port, context.authority) = (lost, value);
    }
}

/// Whether the client asks for another protocol (RFC 9110, section 7.8).
pub(crate) fn is_upgrade(head: &request::Parts) -> bool {
    // HTTP/2 has the header only where an extended CONNECT was given this form.
    head.version >= Version::HTTP_11
        && head.headers.contains_key(header::UPGRADE)
        && head
            .headers
            .get_all(header::CONNECTION)
            .iter()
            .any(|value| contains_token(value.as_bytes(), b"upgrade"))
}

fn trusted_headers(context: &mut RequestContext, hcm: &HttpConnectionManager) {
    let connection = context.connection.clone();
    let peer = &connection.info.peer;
    let present = context.present;
    let told = std::mem::replace(&mut context.has_scheme, true);
    let forwarded = present.any(Present::FORWARDED_FOR);
    if present.any(Present::REPEATED) {
        // Several lines are one list (RFC 9110, section 5.3): whoever looked at one of them would not see the others.
        for (name, there) in
            [(X_FORWARDED_FOR, forwarded), (X_FORWARDED_CLIENT_CERT, present.any(Present::CLIENT_CERT))]
        {
            if there {
                join_lines(&mut context.head.headers, name);
            }
        }
    }
    // Nobody is internal but by one address in `x-forwarded-for`, be it the one that is appended here.
    let single_hop = if hcm.use_remote_address {
        !forwarded
    } else {
        forwarded && hcm.xff_num_trusted_hops == 0 && names_one_address(&context.head.headers)
    };
    if forwarded {
        context.client = hcm.client_address(&context.head.headers, peer);
    }
    let headers = &mut context.head.headers;
    if hcm.use_remote_address {
        // A client on this machine is known to others by the machine's address.
        let loopback = [IpAddr::from(Ipv4Addr::LOCALHOST), IpAddr::from(Ipv6Addr::LOCALHOST)];
        let own =
            connection.worker.identity.address.filter(|_| peer.ip().is_some_and(|ip| loopback.contains(&ip)));
        if !hcm.skip_xff_append
            && let Some(ip) = own.or(peer.ip())
            && let Some(text) = connection.forwarded_text.get(ip)
        {
            append_forwarded_for(headers, text);
        }
    }
    let distrusted = hcm.use_remote_address && hcm.xff_num_trusted_hops == 0;
    let tls = connection.info.tls.is_some();
    let forwarded_proto = present.any(Present::FORWARDED_PROTO) && !distrusted;
    if !forwarded_proto {
        let scheme = if tls { "https" } else { "http" };
        headers.insert(X_FORWARDED_PROTO, HeaderValue::from_static(scheme));
    }
    if hcm.append_x_forwarded_port
        && (distrusted || !headers.contains_key(X_FORWARDED_PORT))
        && let Some(port) = connection.info.local.port()
    {
        headers.insert(X_FORWARDED_PORT, HeaderValue::from(port));
    }
    if let Some(scheme) = hcm.scheme_to_overwrite {
        let scheme = if scheme == Scheme::Https { "https" } else { "http" };
        headers.insert(X_FORWARDED_PROTO, HeaderValue::from_static(scheme));
        context.secure = scheme == "https";
    } else if forwarded_proto && !told {
        // What the request says itself (HTTP/2, absolute URLs) is not changed.
        let value = headers.get(X_FORWARDED_PROTO).map(HeaderValue::as_bytes).unwrap_or_default();
        context.secure =
            value.eq_ignore_ascii_case(b"https") || (tls && !value.eq_ignore_ascii_case(b"http"));
    }
    let internal = single_hop && hcm.is_internal(&context.client);
    let edge = !internal && hcm.use_remote_address;
    if internal {
        headers.insert(X_ENVOY_INTERNAL, HeaderValue::from_static("true"));
    } else if present.any(Present::ENVOY) {
        remove_untrusted(headers, edge);
    }
    if edge && let Some(client) = context.client.ip() {
        let kept = (Some(client) == peer.ip()).then(|| connection.peer_text.get(client)).flatten();
        if let Some(text) = kept.or_else(|| HeaderValue::try_from(client.to_string()).ok()) {
            headers.insert(X_ENVOY_EXTERNAL_ADDRESS, text);
        }
    }
    if hcm.add_user_agent {
        add_user_agent(headers, &connection);
    }
    request_id(headers, hcm, edge, present, &connection);
    client_cert::forward(headers, hcm, connection.info.tls.as_deref(), present.any(Present::CLIENT_CERT));
    if let Some(via) = &hcm.via {
        append_via(headers, via);
    }
}

/// Looks through the names that are there, since nearly always there is one at most, and looking for each of these costs more than
/// all else that is done to a head.
fn remove_untrusted(headers: &mut HeaderMap, edge: bool) {
    let untrusted = |name: &&HeaderName| {
        name.as_str().starts_with("x-envoy-")
            && (**name == X_ENVOY_INTERNAL
                || NOT_FOR_OUTSIDERS.contains(&name.as_str())
                || edge && NOT_FROM_CLIENTS.contains(&name.as_str()))
    };
    while let Some(name) = headers.keys().find(untrusted).cloned() {
        headers.remove(name);
    }
}

fn add_user_agent(headers: &mut HeaderMap, connection: &HttpConnection) {
    let Ok(cluster) = HeaderValue::from_str(&connection.worker.identity.cluster) else { return };
    if headers.get(header::USER_AGENT).is_none_or(|value| value.is_empty()) {
        headers.insert(header::USER_AGENT, cluster.clone());
    }
    headers.insert(X_ENVOY_DOWNSTREAM_SERVICE_CLUSTER, cluster);
    let node = &connection.worker.identity.node;
    if let Some(Ok(node)) = (!node.is_empty()).then(|| HeaderValue::from_str(node)) {
        headers.insert(X_ENVOY_DOWNSTREAM_SERVICE_NODE, node);
    }
}

fn request_id(
    headers: &mut HeaderMap,
    hcm: &HttpConnectionManager,
    edge: bool,
    present: Present,
    connection: &HttpConnection,
) {
    if !hcm.generate_request_id {
        return;
    }
    let replace = edge && !hcm.preserve_external_request_id;
    if replace || !present.any(Present::REQUEST_ID) {
        headers.insert(X_REQUEST_ID, new_request_id(connection.worker.random(), connection.worker.random()));
    }
}

/// A random UUID (RFC 9562, version 4) from a fast generator: it must be unique, not secret.
fn new_request_id(high: u64, low: u64) -> HeaderValue {
    let bytes = ((u128::from(high) << 64) | u128::from(low)).to_be_bytes();
    let id = uuid::Builder::from_random_bytes(bytes).into_uuid();
    let mut buffer = uuid::Uuid::encode_buffer();
    HeaderValue::from_str(id.hyphenated().encode_lower(&mut buffer))
        .unwrap_or_else(|_| HeaderValue::from_static(""))
}

fn append_forwarded_for(headers: &mut HeaderMap, address: HeaderValue) {
    append_list(headers, X_FORWARDED_FOR, &address);
}

/// The proxy's own name after those that are there, in one line as Envoy has it.
pub(crate) fn append_via(headers: &mut HeaderMap, via: &HeaderValue) {
    join_lines(headers, header::VIA);
    append_list(headers, header::VIA, via);
}

pub(crate) fn append_list(headers: &mut HeaderMap, name: HeaderName, value: &HeaderValue) {
    match headers.get(&name) {
        None => {
            headers.insert(name, value.clone());
        }
        Some(before) if before.is_empty() => {
            headers.insert(name, value.clone());
        }
        Some(before) => {
            let separator: &[u8] = if name == header::VIA { b", " } else { b"," };
            let joined = [before.as_bytes(), separator, value.as_bytes()].concat();
            if let Ok(joined) = HeaderValue::from_bytes(&joined) {
                headers.insert(name, joined);
            }
        }
    }
}

/// Whether `x-forwarded-for` is an address and nothing else.
fn names_one_address(headers: &HeaderMap) -> bool {
    let mut lists = headers.get_all(X_FORWARDED_FOR).iter();
    let (first, more) = (lists.next(), lists.next());
    let parses = |list: &HeaderValue| list.to_str().is_ok_and(|list| list.trim().parse::<IpAddr>().is_ok());
    more.is_none() && first.is_some_and(parses)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outsiders_cannot_steer_the_proxy() {
        let mut headers = HeaderMap::new();
        headers.insert("x-envoy-retry-on", HeaderValue::from_static("5xx"));
        headers.insert("x-envoy-original-path", HeaderValue::from_static("/"));
        headers.insert("x-other", HeaderValue::from_static("1"));
        remove_untrusted(&mut headers, false);
        assert!(!headers.contains_key("x-envoy-retry-on"));
        assert!(headers.contains_key("x-envoy-original-path"), "only the edge removes this");
        remove_untrusted(&mut headers, true);
        assert_eq!(headers.len(), 1);
    }

    #[test]
    fn request_ids_are_version_4_uuids() {
        let id = new_request_id(u64::MAX, u64::MAX);
        assert_eq!(id, "ffffffff-ffff-4fff-bfff-ffffffffffff");
    }

    #[test]
    fn forwarded_for_grows_in_one_header() {
        let mut headers = HeaderMap::new();
        append_forwarded_for(&mut headers, HeaderValue::from_static("10.0.0.1"));
        append_forwarded_for(&mut headers, HeaderValue::from_static("10.0.0.2"));
        assert_eq!(headers["x-forwarded-for"], "10.0.0.1,10.0.0.2");
    }
}
