//! The PROXY protocol, versions 1 and 2: read before anything else from a client, written first to an endpoint.
//! <https://www.haproxy.org/download/1.8/doc/proxy-protocol.txt>

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use lateen_ir::{ProxyProtocolFilter, ProxyProtocolVersion};

use crate::stream::Stream;

const V1: &[u8] = b"PROXY ";
const V2: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";

/// The longest header of version 1.
const V1_MOST: usize = 107;

/// What a header of version 2 has before its addresses.
const V2_HEAD: usize = 16;

/// Bytes of TLVs and addresses that are waited for.
const V2_MOST: usize = 16 * 1024;

/// Both ends as the header tells them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ends {
    pub(crate) source: SocketAddr,
    pub(crate) destination: SocketAddr,
}

/// What the first bytes are.
#[derive(Debug, PartialEq, Eq)]
enum Header {
    NeedMore,
    /// Something else.
    Absent,
    /// So many bytes; `None`: the connection's own ends count (`LOCAL`, `UNKNOWN`).
    Found(usize, ProxyProtocolVersion, Option<Ends>),
    Broken(ProxyProtocolVersion),
}

/// Takes the header off a stream. `Ok(None)`: the connection's own ends count.
///
/// # Errors
/// When the header is broken, missing or of a version that is not taken.
pub(crate) async fn read(stream: &mut Stream, filter: ProxyProtocolFilter) -> io::Result<Option<Ends>> {
    let bad = |reason| Err(io::Error::new(io::ErrorKind::InvalidData, reason));
    let taken = |version| match version {
        ProxyProtocolVersion::V1 => filter.v1,
        ProxyProtocolVersion::V2 => filter.v2,
    };
    loop {
        match parse(stream.ahead()) {
            Header::Found(length, version, ends) => {
                if taken(version) {
                    stream.skip(length);
                    return Ok(ends);
                }
                // A version that is not taken is no header at all.
                return if filter.optional { Ok(None) } else { bad("PROXY protocol of another version") };
            }
            Header::Absent if filter.optional => return Ok(None),
            Header::Absent => return bad("no PROXY protocol header"),
            Header::Broken(version) if filter.optional && !taken(version) => return Ok(None),
            Header::Broken(_) => return bad("broken PROXY protocol header"),
            Header::NeedMore => {
                if stream.read_ahead(V2_HEAD + V2_MOST).await? == 0 {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
            }
        }
    }
}

fn begins(bytes: &[u8], signature: &[u8]) -> bool {
    let n = bytes.len().min(signature.len());
    bytes[..n] == signature[..n]
}

fn parse(bytes: &[u8]) -> Header {
    if begins(bytes, V2) {
        return if bytes.len() < V2_HEAD { Header::NeedMore } else { parse_v2(bytes) };
    }
    if !begins(bytes, V1) {
        return Header::Absent;
    }
    let line = bytes.windows(2).take(V1_MOST).position(|pair| pair == b"\r\n");
    match line {
        Some(end) => match parse_v1(&bytes[..end]) {
            Some(ends) => Header::Found(end + 2, ProxyProtocolVersion::V1, ends),
            None => Header::Broken(ProxyProtocolVersion::V1),
        },
        None if bytes.len() >= V1_MOST => Header::Broken(ProxyProtocolVersion::V1),
        None => Header::NeedMore,
    }
}

/// `None`: broken; `Some(None)`: unknown ends.
fn parse_v1(line: &[u8]) -> Option<Option<Ends>> {
    let line = std::str::from_utf8(line).ok()?;
    let mut words = line.split(' ');
    words.next()?;
    let family = words.next()?;
    if family == "UNKNOWN" {
        return Some(None);
    }
    let [source, destination, source_port, destination_port] =
        [words.next()?, words.next()?, words.next()?, words.next()?];
    let end = |address: &str, port: &str| {
        let address: IpAddr = address.parse().ok()?;
        let fits = match family {
            "TCP4" => address.is_ipv4(),
            "TCP6" => address.is_ipv6(),
            _ => false,
        };
        fits.then_some(SocketAddr::new(address, port.parse().ok()?))
    };
    if words.next().is_some() {
        return None;
    }
    Some(Some(Ends { source: end(source, source_port)?, destination: end(destination, destination_port)? }))
}

/// At least [`V2_HEAD`] bytes.
fn parse_v2(bytes: &[u8]) -> Header {
    let (version, command) = (bytes[12] >> 4, bytes[12] & 0xf);
    let length = usize::from(u16::from_be_bytes([bytes[14], bytes[15]]));
    if version != 2 || length > V2_MOST {
        return Header::Broken(ProxyProtocolVersion::V2);
    }
    let whole = V2_HEAD + length;
    if bytes.len() < whole {
        return Header::NeedMore;
    }
    let found = |ends| Header::Found(whole, ProxyProtocolVersion::V2, ends);
    match command {
        0 => return found(None),
        1 => {}
        _ => return Header::Broken(ProxyProtocolVersion::V2),
    }
    let body = &bytes[V2_HEAD..whole];
    let port = |at: usize| u16::from_be_bytes([body[at], body[at + 1]]);
    match bytes[13] {
        0x11 if body.len() >= 12 => {
            let address = |at: usize| Ipv4Addr::new(body[at], body[at + 1], body[at + 2], body[at + 3]);
            found(Some(Ends {
                source: (address(0), port(8)).into(),
                destination: (address(4), port(10)).into(),
            }))
        }
        0x21 if body.len() >= 36 => {
            let address = |at: usize| {
                let mut octets = [0; 16];
                octets.copy_from_slice(&body[at..at + 16]);
                Ipv6Addr::from(octets)
            };
            found(Some(Ends {
                source: (address(0), port(32)).into(),
                destination: (address(16), port(34)).into(),
            }))
        }
        _ => Header::Broken(ProxyProtocolVersion::V2),
    }
}

/// The header for an endpoint. Ends of two families can't be told, nor none: version 2 says `LOCAL` then, version 1 `UNKNOWN`.
pub(crate) fn header(version: ProxyProtocolVersion, ends: Option<Ends>) -> Vec<u8> {
    let ends = ends.filter(|ends| ends.source.is_ipv4() == ends.destination.is_ipv4());
    match version {
        ProxyProtocolVersion::V1 => match ends {
            None => b"PROXY UNKNOWN\r\n".to_vec(),
            Some(Ends { source, destination }) => format!(
                "PROXY {} {} {} {} {}\r\n",
                if source.is_ipv4() { "TCP4" } else { "TCP6" },
                source.ip(),
                destination.ip(),
                source.port(),
                destination.port()
            )
            .into_bytes(),
        },
        ProxyProtocolVersion::V2 => {
            let mut out = V2.to_vec();
            match ends {
                None => out.extend([0x20, 0, 0, 0]),
                Some(Ends { source, destination }) => {
                    let (family, length): (u8, u8) = if source.is_ipv4() { (0x11, 12) } else { (0x21, 36) };
                    out.extend([0x21, family, 0, length]);
                    for address in [source.ip(), destination.ip()] {
                        match address {
                            IpAddr::V4(v4) => out.extend(v4.octets()),
                            IpAddr::V6(v6) => out.extend(v6.octets()),
                        }
                    }
                    out.extend(source.port().to_be_bytes());
                    out.extend(destination.port().to_be_bytes());
                }
            }
            out
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn end() -> impl Strategy<Value = SocketAddr> {
        (any::<IpAddr>(), any::<u16>()).prop_map(SocketAddr::from)
    }

    proptest! {
        /// Whatever comes: once there is a verdict, more bytes do not change it, and no header is longer than what came.
        #[test]
        fn verdicts_are_final(kind in 0..3_usize, body in prop::collection::vec(any::<u8>(), 0..300), text in "[A-Z0-9 .:]{0,120}(\r\n)?", cut in 0..400_usize) {
            let bytes = match kind {
                0 => [V1, text.as_bytes(), &body].concat(),
                1 => [V2.as_slice(), &body].concat(),
                _ => body,
            };
            let whole = parse(&bytes);
            if let Header::Found(length, ..) = whole {
                prop_assert!(length <= bytes.len());
            }
            let part = parse(&bytes[..cut.min(bytes.len())]);
            prop_assert!(part == Header::NeedMore || part == whole, "{:?} {:?}", part, whole);
        }

        #[test]
        fn any_ends_are_read_as_written(source in end(), destination in end(), v2 in any::<bool>(), more in prop::collection::vec(any::<u8>(), 0..20)) {
            let version = if v2 { ProxyProtocolVersion::V2 } else { ProxyProtocolVersion::V1 };
            let ends = Ends { source, destination };
            let told = Some(ends).filter(|ends| ends.source.is_ipv4() == ends.destination.is_ipv4());
            let bytes = header(version, Some(ends));
            prop_assert_eq!(parse(&[&bytes[..], &more].concat()), Header::Found(bytes.len(), version, told));
        }
    }

    fn ends(source: &str, destination: &str) -> Ends {
        Ends { source: source.parse().unwrap(), destination: destination.parse().unwrap() }
    }

    #[test]
    fn what_is_written_is_read_again() {
        for version in [ProxyProtocolVersion::V1, ProxyProtocolVersion::V2] {
            for ends in
                [None, Some(ends("1.2.3.4:5", "6.7.8.9:10")), Some(ends("[fd00::1]:5", "[fd00::2]:65535"))]
            {
                let bytes = header(version, ends);
                assert_eq!(parse(&bytes), Header::Found(bytes.len(), version, ends));
                for end in 1..bytes.len() {
                    assert_eq!(parse(&bytes[..end]), Header::NeedMore, "{version:?} {end}");
                }
            }
        }
        assert_eq!(
            header(ProxyProtocolVersion::V1, Some(ends("1.2.3.4:5", "[fd00::2]:1"))),
            b"PROXY UNKNOWN\r\n"
        );
    }

    #[test]
    fn what_is_broken_is_refused() {
        for bytes in [
            &b"PROXY TCP4 1.2.3.4 5.6.7.8 1\r\n"[..],
            b"PROXY TCP4 1.2.3.4 5.6.7.8 1 2 3\r\n",
            b"PROXY TCP4 fd00::1 5.6.7.8 1 2\r\n",
            b"PROXY UDP4 1.2.3.4 5.6.7.8 1 2\r\n",
            &[b"PROXY ".as_slice(), &[b'a'; 120]].concat(),
            &[V2.as_slice(), &[0x11, 0x11, 0, 0]].concat(),
            &[V2.as_slice(), &[0x21, 0x12, 0, 0]].concat(),
            &[V2.as_slice(), &[0x21, 0x11, 0, 2, 0, 0]].concat(),
        ] {
            assert!(matches!(parse(bytes), Header::Broken(_)), "{:?}", String::from_utf8_lossy(bytes));
        }
        assert_eq!(parse(b"GET / HTTP/1.1"), Header::Absent);
    }
}
