//! Encoded messages taken apart without decoding them: the values of one field, and everything else.

use prost::DecodeError;
use prost::encoding::{DecodeContext, WireType, decode_key, decode_varint, skip_field};

/// An encoded message in two parts.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Split<'a> {
    /// The values of the field, in order. It must hold messages, bytes or text, and may be repeated.
    pub values: Vec<&'a [u8]>,
    /// The message without the field.
    pub rest: Vec<u8>,
}

/// Takes the field with this number out of a message.
///
/// # Errors
/// The bytes are not an encoded message. What stands inside of fields is not looked at.
pub fn split(bytes: &[u8], field: u32) -> Result<Split<'_>, DecodeError> {
    let mut parts = Split::default();
    let mut left = bytes;
    while !left.is_empty() {
        let begin = left;
        let (number, wire_type) = decode_key(&mut left)?;
        let after_key = left;
        skip_field(wire_type, number, &mut left, DecodeContext::default())?;
        if number == field && wire_type == WireType::LengthDelimited {
            let mut value = &after_key[..after_key.len() - left.len()];
            decode_varint(&mut value)?;
            parts.values.push(value);
        } else {
            parts.rest.extend_from_slice(&begin[..begin.len() - left.len()]);
        }
    }
    Ok(parts)
}

#[cfg(test)]
mod tests {
    use prost::Message;

    use super::*;
    use crate::pb::envoy::config::route::v3::{RouteConfiguration, VirtualHost};

    fn message() -> RouteConfiguration {
        let host = |name: &str| VirtualHost { name: name.to_owned(), ..Default::default() };
        RouteConfiguration {
            name: "80".to_owned(),
            virtual_hosts: vec![host("a"), host("")],
            internal_only_headers: vec!["x".to_owned()],
            ..Default::default()
        }
    }

    #[test]
    fn parts_make_up_the_whole() {
        let bytes = message().encode_to_vec();
        let parts = split(&bytes, 2).expect("an encoded message");
        let hosts = parts.values.iter().map(|host| VirtualHost::decode(*host).expect("a virtual host"));
        let rest = RouteConfiguration::decode(&*parts.rest).expect("a route configuration");
        assert!(rest.virtual_hosts.is_empty());
        assert_eq!(RouteConfiguration { virtual_hosts: hosts.collect(), ..rest }, message());
    }

    #[test]
    fn what_ends_too_early_is_refused() {
        let bytes = message().encode_to_vec();
        let ends = (0..bytes.len()).filter(|end| RouteConfiguration::decode(&bytes[..*end]).is_err());
        let mut refused = 0;
        for end in ends {
            // What is cut within a virtual host's own fields is cut at the virtual host's length too.
            assert!(split(&bytes[..end], 2).is_err(), "{end}");
            refused += 1;
        }
        assert!(refused > 5);
    }
}
