//! What an external authorizer is asked.
//! <https://www.envoyproxy.io/docs/envoy/v1.40.0/api-v3/service/auth/v3/attribute_context.proto>

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, header};
use lateen_xds::pb::envoy::config::core::v3 as core;
use lateen_xds::pb::envoy::service::auth::v3 as auth;
use lateen_xds::pb::google::protobuf as google;
use serde_json::Value as Json;

use crate::{DynamicMetadata, ExtAuthz, HostAddress, HttpAuthz, PeerView, RequestView};

const PARTIAL_BODY: &str = "x-envoy-auth-partial-body";
const SERVICE_CLUSTER: HeaderName = HeaderName::from_static("x-envoy-downstream-service-cluster");

/// What is known of a connection.
#[derive(Clone, Debug)]
pub struct AuthzConnection<'a> {
    /// The client.
    pub source: &'a HostAddress,
    /// Where it wanted to go.
    pub destination: &'a HostAddress,
    /// The client's certificate. `None`: plaintext.
    pub peer: Option<PeerView<'a>>,
    /// Our own.
    pub own: Option<PeerView<'a>>,
    /// The client's certificate as PEM, percent-encoded; empty without.
    pub certificate: String,
    /// The TLS server name that listener filters saw; empty without.
    pub server_name: &'a str,
    /// The one of the connection's own TLS; empty without.
    pub session_name: &'a str,
}

/// What is known of a request.
#[derive(Clone, Copy, Debug)]
pub struct AuthzRequest<'a> {
    /// A number of its own.
    pub id: u64,
    /// Its head.
    pub view: RequestView<'a>,
    /// `HTTP/1.1`
    pub protocol: &'static str,
    /// When it began, since 1970.
    pub time: Duration,
    /// Bytes of its body so far.
    pub size: u64,
    /// What is sent of its body, and whether that is only a part. `None`: nothing is.
    pub body: Option<(&'a [u8], bool)>,
    /// What filters noted of it.
    pub metadata: Option<&'a DynamicMetadata>,
}

/// The names a certificate is known by: URI, else DNS, else its subject.
fn principal(certificate: Option<PeerView<'_>>) -> String {
    certificate.map_or_else(String::new, |peer| {
        let name = peer.uris.first().or_else(|| peer.dns.first());
        name.map_or(peer.subject, String::as_str).to_owned()
    })
}

fn address(address: &HostAddress) -> core::Address {
    use core::{address::Address, socket_address::PortSpecifier};
    let address = match address {
        HostAddress::Socket(address) => Address::SocketAddress(core::SocketAddress {
            address: address.ip().to_string(),
            port_specifier: Some(PortSpecifier::PortValue(u32::from(address.port()))),
            ..Default::default()
        }),
        HostAddress::Pipe(path) => {
            Address::Pipe(core::Pipe { path: path.as_ref().to_owned(), ..Default::default() })
        }
    };
    core::Address { address: Some(address) }
}

impl AuthzConnection<'_> {
    fn attributes(&self, tls_session: bool) -> auth::AttributeContext {
        use auth::attribute_context::{Peer, TlsSession};
        auth::AttributeContext {
            source: Some(Peer {
                address: Some(address(self.source)),
                principal: principal(self.peer),
                certificate: self.certificate.clone(),
                ..Default::default()
            }),
            destination: Some(Peer {
                address: Some(address(self.destination)),
                principal: principal(self.own),
                ..Default::default()
            }),
            tls_session: tls_session.then(|| TlsSession { sni: self.session_name.to_owned() }),
            metadata_context: Some(core::Metadata::default()),
            ..Default::default()
        }
    }

    /// The question about the connection itself. `noted`: by the filters before, of which these namespaces are told.
    pub fn check(
        &self,
        tls_session: bool,
        noted: Option<&DynamicMetadata>,
        namespaces: &[Box<str>],
    ) -> auth::CheckRequest {
        let mut attributes = self.attributes(tls_session);
        if let Some(destination) = &mut attributes.destination {
            self.server_name.clone_into(&mut destination.service);
        }
        attributes.metadata_context = Some(metadata_context(noted, namespaces));
        auth::CheckRequest { attributes: Some(attributes) }
    }
}

fn text(value: &HeaderValue) -> String {
    String::from_utf8_lossy(value.as_bytes()).into_owned()
}

/// All headers of a request as Envoy has them: pseudo headers first, no `host`.
fn each_header<'a>(view: &RequestView<'a>, mut each: impl FnMut(&'a str, &'a [u8])) {
    let pseudo = [
        Some((":authority", view.authority)),
        Some((":path", view.path)).filter(|(_, path)| !path.is_empty()),
        Some((":method", view.method)),
        Some((":scheme", view.scheme)),
    ];
    pseudo.into_iter().flatten().for_each(|(name, value)| each(name, value.as_bytes()));
    for (name, value) in view.headers {
        // A client's own could be taken for ours.
        if name != header::HOST && name != PARTIAL_BODY {
            each(name.as_str(), value.as_bytes());
        }
    }
}

impl ExtAuthz {
    /// The question about a request. `extensions`: what routes have to say to whom is asked.
    pub fn check(
        &self,
        connection: &AuthzConnection<'_>,
        request: &AuthzRequest<'_>,
        extensions: BTreeMap<String, String>,
    ) -> auth::CheckRequest {
        use auth::attribute_context::{HttpRequest, Request};
        let view = &request.view;
        let mut attributes = connection.attributes(self.include_tls_session);
        if let (Some(source), Some(service)) = (&mut attributes.source, view.headers.get(SERVICE_CLUSTER)) {
            source.service = text(service);
        }
        let mut http = HttpRequest {
            id: request.id.to_string(),
            method: view.method.to_owned(),
            path: view.path.to_owned(),
            host: view.authority.to_owned(),
            scheme: view.scheme.to_owned(),
            size: i64::try_from(request.size).unwrap_or(i64::MAX),
            protocol: request.protocol.to_owned(),
            ..Default::default()
        };
        if self.encode_raw_headers {
            http.header_map = Some(self.raw_headers(request));
        } else {
            http.headers = self.joined_headers(request);
        }
        if let Some((body, _)) = request.body {
            if self.body.is_some_and(|settings| settings.as_bytes) {
                http.raw_body = body.to_vec();
            } else {
                http.body = String::from_utf8_lossy(body).into_owned();
            }
        }
        attributes.request = Some(Request {
            time: Some(google::Timestamp {
                seconds: i64::try_from(request.time.as_secs()).unwrap_or_default(),
                nanos: i32::try_from(request.time.subsec_nanos()).unwrap_or_default(),
            }),
            http: Some(http),
        });
        attributes.context_extensions = extensions.into_iter().collect();
        attributes.metadata_context = Some(metadata_context(request.metadata, &self.metadata_namespaces));
        attributes.route_metadata_context = Some(core::Metadata::default());
        auth::CheckRequest { attributes: Some(attributes) }
    }

    fn joined_headers(&self, request: &AuthzRequest<'_>) -> HashMap<String, String> {
        let mut headers: HashMap<String, String> = HashMap::new();
        each_header(&request.view, |name, value| {
            if !self.sends(name) {
                return;
            }
            let value = String::from_utf8_lossy(value);
            match headers.get_mut(name) {
                Some(there) => {
                    there.push(',');
                    there.push_str(&value);
                }
                None => drop(headers.insert(name.to_owned(), value.into_owned())),
            }
        });
        if let Some((_, partial)) = request.body {
            headers.insert(PARTIAL_BODY.to_owned(), partial.to_string());
        }
        headers
    }

    fn raw_headers(&self, request: &AuthzRequest<'_>) -> core::HeaderMap {
        let mut headers = Vec::new();
        let mut add = |name: &str, value: &[u8]| {
            headers.push(core::HeaderValue {
                key: name.to_owned(),
                raw_value: value.to_vec(),
                ..Default::default()
            });
        };
        each_header(&request.view, |name, value| {
            if self.sends(name) {
                add(name, value);
            }
        });
        if let Some((_, partial)) = request.body {
            add(PARTIAL_BODY, partial.to_string().as_bytes());
        }
        core::HeaderMap { headers }
    }

    /// The same question to an HTTP server: path, headers and body of the call. Method and authority are the request's.
    pub fn http_check(&self, service: &HttpAuthz, request: &AuthzRequest<'_>) -> (String, HeaderMap, Bytes) {
        let mut headers = HeaderMap::new();
        for name in request.view.headers.keys() {
            let is_own = [header::HOST, header::CONTENT_LENGTH].contains(name) || name == PARTIAL_BODY;
            if is_own || !self.sends(name.as_str()) {
                continue;
            }
            let values = request.view.headers.get_all(name).iter();
            let joined = values.map(HeaderValue::as_bytes).collect::<Vec<_>>().join(&b","[..]);
            headers.extend(HeaderValue::from_bytes(&joined).ok().map(|value| (name.clone(), value)));
        }
        let body = request.body.map_or_else(Bytes::new, |(body, partial)| {
            let value = HeaderValue::from_static(if partial { "true" } else { "false" });
            headers.insert(HeaderName::from_static(PARTIAL_BODY), value);
            Bytes::copy_from_slice(body)
        });
        headers.insert(header::CONTENT_LENGTH, body.len().into());
        let path = if service.path_override.is_empty() {
            format!("{}{}", service.path_prefix, request.view.path)
        } else {
            service.path_override.to_string()
        };
        (path, headers, body)
    }
}

fn metadata_context(noted: Option<&DynamicMetadata>, namespaces: &[Box<str>]) -> core::Metadata {
    let named = |name: &str| Some((name.to_owned(), structure(&*noted?.get(name)?)));
    let found = namespaces.iter().filter_map(|name| named(name));
    core::Metadata { filter_metadata: found.collect(), ..Default::default() }
}

fn structure(value: &Json) -> google::Struct {
    let members = value.as_object().into_iter().flatten();
    google::Struct { fields: members.map(|(name, value)| (name.clone(), proto_value(value))).collect() }
}

fn proto_value(value: &Json) -> google::Value {
    use google::value::Kind;
    let kind = match value {
        Json::Null => Kind::NullValue(0),
        Json::Bool(value) => Kind::BoolValue(*value),
        Json::Number(number) => Kind::NumberValue(number.as_f64().unwrap_or_default()),
        Json::String(text) => Kind::StringValue(text.clone()),
        Json::Array(list) => {
            Kind::ListValue(google::ListValue { values: list.iter().map(proto_value).collect() })
        }
        Json::Object(_) => Kind::StructValue(structure(value)),
    };
    google::Value { kind: Some(kind) }
}
