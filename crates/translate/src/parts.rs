//! Parts of resources that are encoded by themselves: the virtual hosts of route configurations. A change of one of a thousand
//! costs its own encoding and the concatenation of what is there.
use std::sync::Arc;

use lateen_model::Digest;
use lateen_xds::pb::envoy::config::route::v3 as route;
use prost::Message;
use prost::encoding::message;

use crate::resource::{Resource, versioned};

/// Number of the field `virtual_hosts` of `envoy.config.route.v3.RouteConfiguration`.
const VIRTUAL_HOSTS: u32 = 2;

/// An encoded virtual host, with the field's number and length before it.
#[derive(Debug)]
pub(crate) struct Part {
    /// Digest of everything it was made from.
    pub(crate) digest: Digest,
    /// Name.
    pub(crate) name: Box<str>,
    /// Domains.
    pub(crate) domains: Vec<String>,
    bytes: Box<[u8]>,
}

impl Part {
    pub(crate) fn new(digest: Digest, virtual_host: &route::VirtualHost) -> Self {
        let mut bytes = Vec::with_capacity(message::encoded_len(VIRTUAL_HOSTS, virtual_host));
        message::encode(VIRTUAL_HOSTS, virtual_host, &mut bytes);
        Self {
            digest,
            name: virtual_host.name.as_str().into(),
            domains: virtual_host.domains.clone(),
            bytes: bytes.into(),
        }
    }
}

/// A route configuration of these virtual hosts; `rest` has none.
pub(crate) fn route_configuration(rest: &route::RouteConfiguration, parts: &[Arc<Part>]) -> Resource {
    let length = parts.iter().map(|part| part.bytes.len()).sum::<usize>() + rest.encoded_len();
    let mut body = Vec::with_capacity(length);
    // The buffer has room for all of it.
    rest.encode_raw(&mut body);
    parts.iter().for_each(|part| body.extend_from_slice(&part.bytes));
    versioned(rest.name.as_str(), body.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_read_as_the_whole() {
        let host = |name: &str| route::VirtualHost {
            name: name.to_owned(),
            domains: vec![format!("{name}.example.com")],
            ..Default::default()
        };
        let hosts = [host("a"), host("b")];
        let rest = route::RouteConfiguration { name: "80".to_owned(), ..Default::default() };
        let parts: Vec<_> = hosts.iter().map(|host| Arc::new(Part::new(0, host))).collect();
        let made = route_configuration(&rest, &parts);
        let read = route::RouteConfiguration::decode(made.body).expect("decodes");
        assert_eq!(read, route::RouteConfiguration { virtual_hosts: hosts.to_vec(), ..rest });
    }
}
