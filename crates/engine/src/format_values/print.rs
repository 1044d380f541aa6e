//! How values are printed, as Envoy prints them. Each says whether there is something to print.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::time::{Duration, Instant, SystemTime};

use http::HeaderMap;
use jiff::Timestamp;
use jiff::tz::Offset;
use lateen_ir::{
    AddressOf, AddressPart, DynamicMetadata, FormatHeader, HostAddress, TimeFormat, TimePiece, TimePoint,
    TlsFact,
};

use crate::context::ConnectionInfo;
use crate::failure::Flags;
use crate::tls::{CertificateFacts, TlsFacts};

pub(super) fn text(out: &mut String, value: Option<&str>) -> bool {
    out.push_str(value.unwrap_or_default());
    value.is_some()
}

pub(super) fn number(out: &mut String, value: u64) -> bool {
    out.push_str(itoa::Buffer::new().format(value));
    true
}

/// A host without the port it may end with, as Envoy takes it off.
pub(super) fn without_port(host: &str) -> &str {
    let port = |port: &str| !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit());
    match host.rsplit_once(':') {
        // A colon within brackets is an address's own.
        Some((name, after)) if port(after) => name,
        _ => host,
    }
}

pub(super) fn flags(flags: Flags, long: bool, out: &mut String) -> bool {
    if flags.is_empty() {
        out.push('-');
    }
    flags.write(long, out);
    true
}

pub(super) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// The first value of a header, as Envoy prints it. Bytes that are not UTF-8 print as replacement characters.
pub(super) fn named(headers: Option<&HeaderMap>, name: &FormatHeader, out: &mut String) -> bool {
    let (Some(headers), FormatHeader::Named(name)) = (headers, name) else { return false };
    let value = headers.get(name);
    if let Some(value) = value {
        out.push_str(&String::from_utf8_lossy(value.as_bytes()));
    }
    value.is_some()
}

pub(super) fn downstream_address<'a>(
    info: &'a ConnectionInfo,
    client: &'a HostAddress,
    of: AddressOf,
) -> Option<&'a HostAddress> {
    match of {
        AddressOf::DownstreamRemote => Some(client),
        AddressOf::DownstreamDirectRemote => Some(&info.direct_peer),
        AddressOf::DownstreamLocal => Some(&info.local),
        AddressOf::DownstreamDirectLocal => Some(&info.direct_local),
        AddressOf::UpstreamLocal | AddressOf::UpstreamRemote | AddressOf::UpstreamHost => None,
    }
}

/// A Unix socket's port is empty, as with Envoy: it is not unknown.
pub(super) fn host_address(host: Option<&HostAddress>, part: AddressPart, out: &mut String) -> bool {
    match host {
        Some(HostAddress::Pipe(_)) if part == AddressPart::Port => true,
        Some(HostAddress::Pipe(path)) => text(out, Some(path)),
        host => address(host.and_then(HostAddress::socket), part, out),
    }
}

pub(super) fn address(address: Option<SocketAddr>, part: AddressPart, out: &mut String) -> bool {
    let Some(address) = address else { return false };
    match (address, part) {
        (_, AddressPart::Port) => return number(out, u64::from(address.port())),
        // By hand, since every line of a log has several, and the standard library's way goes through its formatter for each number.
        (SocketAddr::V4(v4), _) => {
            for (position, octet) in v4.ip().octets().into_iter().enumerate() {
                if position > 0 {
                    out.push('.');
                }
                number(out, u64::from(octet));
            }
            if part == AddressPart::Full {
                out.push(':');
                number(out, u64::from(v4.port()));
            }
        }
        (SocketAddr::V6(v6), AddressPart::Full) => return write!(out, "{v6}").is_ok(),
        (SocketAddr::V6(v6), _) => return write!(out, "{}", v6.ip()).is_ok(),
    }
    true
}

pub(super) fn tls(facts: Option<&TlsFacts>, fact: TlsFact, out: &mut String) -> bool {
    let Some(facts) = facts else { return false };
    let peer = |of: fn(&CertificateFacts) -> &str, out: &mut String| {
        text(out, facts.peer().map(|peer| of(peer)).filter(|value| !value.is_empty()))
    };
    let names = |of: Option<&[String]>, out: &mut String| match of {
        Some(names) if !names.is_empty() => text(out, Some(&names.join(","))),
        _ => false,
    };
    let date = |seconds: Option<i64>, out: &mut String| {
        let stamp = seconds.and_then(|seconds| Timestamp::from_second(seconds).ok());
        text(out, stamp.map(|stamp| stamp.strftime("%Y-%m-%dT%H:%M:%S.000Z").to_string()).as_deref())
    };
    match fact {
        TlsFact::Version => text(out, Some(facts.version)),
        TlsFact::Cipher => text(out, Some(facts.cipher)),
        // rustls does not tell it.
        TlsFact::SessionId => false,
        TlsFact::PeerSubject => peer(|peer| &peer.subject, out),
        TlsFact::PeerIssuer => peer(|peer| &peer.issuer, out),
        TlsFact::PeerUriSan => names(facts.peer().map(|peer| &*peer.uris), out),
        TlsFact::PeerDnsSan => names(facts.peer().map(|peer| &*peer.dns), out),
        TlsFact::PeerIpSan => names(facts.peer().map(|peer| &*peer.addresses), out),
        TlsFact::PeerEmailSan => names(facts.peer().map(|peer| &*peer.emails), out),
        TlsFact::LocalIpSan => names(facts.local().map(|own| &*own.addresses), out),
        TlsFact::LocalEmailSan => names(facts.local().map(|own| &*own.emails), out),
        TlsFact::Group => text(out, facts.curve),
        TlsFact::LocalSubject => {
            text(out, facts.local().map(|own| &*own.subject).filter(|subject| !subject.is_empty()))
        }
        TlsFact::LocalUriSan => names(facts.local().map(|own| &*own.uris), out),
        TlsFact::LocalDnsSan => names(facts.local().map(|own| &*own.dns), out),
        TlsFact::PeerFingerprint256 => peer(|peer| &peer.fingerprint, out),
        TlsFact::PeerSerial => peer(|peer| &peer.serial, out),
        TlsFact::PeerCert => text(out, facts.peer_pem().as_deref()),
        TlsFact::PeerCertStart => date(facts.peer().map(|peer| peer.not_before), out),
        TlsFact::PeerCertEnd => date(facts.peer().map(|peer| peer.not_after), out),
    }
}

/// What filters noted, at a path that begins with a filter's name.
pub(super) fn noted(all: Option<&DynamicMetadata>, path: &[Box<str>], out: &mut String) -> bool {
    let found = all.zip(path.split_first());
    let found = found.and_then(|(all, (filter, keys))| Some((all.get(filter)?, keys)));
    found.is_some_and(|(value, keys)| json_at(Some(&*value), keys, out))
}

pub(super) fn json_at(value: Option<&serde_json::Value>, path: &[Box<str>], out: &mut String) -> bool {
    let found = path.iter().try_fold(value, |value, key| Some(value?.get(&**key))).flatten();
    match found {
        None | Some(serde_json::Value::Null) => false,
        Some(serde_json::Value::String(value)) => text(out, Some(value)),
        Some(other) => {
            sorted(other, out);
            true
        }
    }
}

/// Writes JSON with its keys in order, as Envoy does.
pub(super) fn sorted(value: &serde_json::Value, out: &mut String) {
    let separate = |index: usize, out: &mut String| {
        if index > 0 {
            out.push(',');
        }
    };
    match value {
        serde_json::Value::Object(members) => {
            let mut members: Vec<_> = members.iter().collect();
            members.sort_by_key(|(key, _)| *key);
            out.push('{');
            for (index, (key, value)) in members.into_iter().enumerate() {
                separate(index, out);
                let _ = write!(out, "{}:", serde_json::Value::from(key.as_str()));
                sorted(value, out);
            }
            out.push('}');
        }
        serde_json::Value::Array(list) => {
            out.push('[');
            for (index, value) in list.iter().enumerate() {
                separate(index, out);
                sorted(value, out);
            }
            out.push(']');
        }
        other => drop(write!(out, "{other}")),
    }
}

/// Wall-clock time of a moment. Only logs need it, so requests do not read two clocks.
pub(super) fn wall_clock(moment: Instant) -> SystemTime {
    SystemTime::now().checked_sub(moment.elapsed()).unwrap_or(SystemTime::UNIX_EPOCH)
}

pub(super) fn time(start: SystemTime, point: TimePoint, format: &TimeFormat, out: &mut String) {
    let moment = match point {
        TimePoint::Start => start,
        TimePoint::Emit => SystemTime::now(),
    };
    let since_epoch = moment.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let Ok(stamp) = Timestamp::try_from(moment) else { return };
    match format {
        TimeFormat::Iso8601Millis => iso_8601_millis(stamp, out),
        TimeFormat::Pieces(pieces) => {
            for piece in pieces {
                time_piece(stamp, since_epoch, piece, out);
            }
        }
    }
}

/// `2023-11-14T22:13:20.123Z`, put together by hand: it is in every line of a log.
pub(super) fn iso_8601_millis(stamp: Timestamp, out: &mut String) {
    let at = Offset::UTC.to_datetime(stamp);
    let digits = |out: &mut String, value: u32, width: u32| {
        for place in (0..width).rev() {
            out.push(char::from(b'0' + (value / 10u32.pow(place) % 10) as u8));
        }
    };
    let fields = [
        (at.year().unsigned_abs().into(), 4, '-'),
        (at.month().unsigned_abs().into(), 2, '-'),
        (at.day().unsigned_abs().into(), 2, 'T'),
        (at.hour().unsigned_abs().into(), 2, ':'),
        (at.minute().unsigned_abs().into(), 2, ':'),
        (at.second().unsigned_abs().into(), 2, '.'),
        (at.millisecond().unsigned_abs().into(), 3, 'Z'),
    ];
    for (value, width, end) in fields {
        digits(out, value, width);
        out.push(end);
    }
}

pub(super) fn time_piece(stamp: Timestamp, since_epoch: Duration, piece: &TimePiece, out: &mut String) {
    let digits = |n: u8| usize::from(n.clamp(1, 9));
    let fraction = |n: u8| since_epoch.subsec_nanos() / 10u32.pow(9 - digits(n) as u32);
    let _ = match piece {
        TimePiece::Strftime(format) => write!(out, "{}", stamp.strftime(&**format)),
        TimePiece::EpochSeconds => write!(out, "{}", since_epoch.as_secs()),
        TimePiece::Fraction(n) => write!(out, "{:0width$}", fraction(*n), width = digits(*n)),
        TimePiece::EpochFraction(n) => {
            write!(out, "{}{:0width$}", since_epoch.as_secs(), fraction(*n), width = digits(*n))
        }
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_print_as_envoys() {
        let moment = SystemTime::UNIX_EPOCH + Duration::new(1_700_000_000, 123_456_789);
        let print = |format: TimeFormat| {
            let mut out = String::new();
            time(moment, TimePoint::Start, &format, &mut out);
            out
        };
        assert_eq!(print(TimeFormat::Iso8601Millis), "2023-11-14T22:13:20.123Z");
        let pieces = TimeFormat::Pieces(vec![
            TimePiece::Strftime("%Y/%m/%d ".into()),
            TimePiece::EpochSeconds,
            TimePiece::Strftime(" ".into()),
            TimePiece::Fraction(6),
            TimePiece::Strftime(" ".into()),
            TimePiece::EpochFraction(3),
        ]);
        assert_eq!(print(pieces), "2023/11/14 1700000000 123456 1700000000123");
    }

    #[test]
    fn addresses_print_as_the_standard_library_does() {
        for text in ["10.0.0.200:8080", "0.0.0.0:0", "255.255.255.255:65535", "[::1]:80", "[2001:db8::7]:1"] {
            let socket: SocketAddr = text.parse().unwrap();
            let print = |part| {
                let mut out = String::new();
                address(Some(socket), part, &mut out).then_some(out).unwrap()
            };
            assert_eq!(print(AddressPart::Full), text);
            assert_eq!(print(AddressPart::WithoutPort), socket.ip().to_string());
            assert_eq!(print(AddressPart::Port), socket.port().to_string());
        }
    }

    #[test]
    fn ports_are_taken_off_hosts() {
        for (host, expected) in [
            ("10.0.0.1:80", "10.0.0.1"),
            ("[::1]:80", "[::1]"),
            ("[::1]", "[::1]"),
            ("a.example", "a.example"),
            ("a:b", "a:b"),
            ("/a/socket", "/a/socket"),
            ("a:", "a:"),
        ] {
            assert_eq!(without_port(host), expected, "{host}");
        }
    }

    #[test]
    fn metadata_is_found_by_path() {
        let value = serde_json::json!({"istio": {"workload": "web", "n": 3}});
        let find = |path: &[&str]| {
            let path: Vec<Box<str>> = path.iter().map(|key| (*key).into()).collect();
            let mut out = String::new();
            json_at(Some(&value), &path, &mut out).then_some(out)
        };
        assert_eq!(find(&["istio", "workload"]).as_deref(), Some("web"));
        assert_eq!(find(&["istio", "n"]).as_deref(), Some("3"));
        assert_eq!(find(&["other"]), None);
    }
}
