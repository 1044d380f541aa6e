//! What is out of the ordinary in a request for an upstream connection: high priority, and what becomes part of the connection: the name
//! that TLS asks for, and the ends that the PROXY protocol tells. Requests that differ in those can't share connections.

use http::{HeaderMap, HeaderName, HeaderValue};
use lateen_ir::{Cluster, UpstreamTransport};

use crate::context::RequestContext;
use crate::host::Host;
use crate::proxy_protocol::Ends;

/// See the module.
pub(crate) struct Special {
    /// Host of the request, where TLS takes its names from there.
    pub(crate) server_name: Option<Box<str>>,
    /// Both ends of the client's connection; `None`: there is none.
    pub(crate) client: Option<Ends>,
    key: Option<Box<str>>,
    /// The circuit breakers of high priority count.
    pub(crate) high_priority: bool,
}

impl Special {
    /// `None`, and at no cost, for a request without; boxed, as the future of every request would hold it.
    pub(crate) fn of(
        request: Option<(&HeaderValue, &HeaderMap)>,
        client: Option<Ends>,
        cluster: &Cluster,
        host: &Host,
        high_priority: bool,
    ) -> Option<Box<Self>> {
        let plain = || {
            let plain = Self { server_name: None, client, key: None, high_priority };
            high_priority.then(|| Box::new(plain))
        };
        if matches!(cluster.transport, UpstreamTransport::Plaintext) && cluster.transport_matches.is_empty() {
            return plain();
        }
        let names = &cluster.http.names;
        let request = request.filter(|_| names.auto_sni);
        let server_name =
            request.and_then(|(authority, headers)| request_host(authority, headers, names.header.as_ref()));
        let endpoint = host.endpoint.borrow();
        let mut matches = cluster.transport_matches.iter();
        let matching = matches.find(|one| one.is_match(endpoint.metadata.as_deref()));
        let key = match matching.map_or(&cluster.transport, |one| &one.transport) {
            UpstreamTransport::Plaintext => return plain(),
            UpstreamTransport::Tls(_) => server_name.clone(),
            UpstreamTransport::ProxyProtocol { .. } => {
                let name = server_name.as_deref().unwrap_or_default();
                let ends = client.map(|ends| format!("{} {}", ends.source, ends.destination));
                Some(format!("{name} {}", ends.unwrap_or_default()).into())
            }
        };
        Some(Box::new(Self { server_name, client, key, high_priority }))
    }

    /// Those of a request.
    pub(crate) fn of_request(
        context: &RequestContext,
        cluster: &Cluster,
        host: &Host,
        high_priority: bool,
    ) -> Option<Box<Self>> {
        let client = context.connection.info.ends();
        let request = (&context.authority, &context.head.headers);
        Self::of(Some(request), client, cluster, host, high_priority)
    }

    /// Tells kinds of connections apart; `None`: all requests may share them.
    pub(crate) fn pool_key(&self) -> Option<&str> {
        self.key.as_deref()
    }
}

/// The host that a request is for, without its port.
fn request_host(
    authority: &HeaderValue,
    headers: &HeaderMap,
    header: Option<&HeaderName>,
) -> Option<Box<str>> {
    let special = header.and_then(|name| headers.get(name)).filter(|value| !value.is_empty());
    let host = host_of(special.unwrap_or(authority).to_str().ok()?);
    (!host.is_empty()).then(|| host.into())
}

fn host_of(authority: &str) -> &str {
    if let Some(rest) = authority.strip_prefix('[') {
        return rest.split(']').next().unwrap_or_default();
    }
    match authority.rsplit_once(':') {
        Some((host, port)) if port.bytes().all(|digit| digit.is_ascii_digit()) && !host.contains(':') => host,
        _ => authority,
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_host_has_no_port() {
        for (authority, host) in [
            ("a.b", "a.b"),
            ("a.b:80", "a.b"),
            ("1.2.3.4:5", "1.2.3.4"),
            ("[fd00::1]:80", "fd00::1"),
            ("fd00::1", "fd00::1"),
        ] {
            assert_eq!(super::host_of(authority), host);
        }
    }
}
