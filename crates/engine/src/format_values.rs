//! Values of format operators (`%REQ(X)%` …) for a request or a TCP connection.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::time::{Duration, Instant, SystemTime};

use http::{HeaderMap, Method, Version};
use jiff::Timestamp;
use jiff::tz::Offset;
use lateen_ir::{
    AddressOf, AddressPart, Bytes, DynamicMetadata, FormatHeader, FormatValues, GrpcStatusStyle, HostAddress,
    MetadataOf, Operator, PathOf, TimeFormat, TimePiece, TimePoint, TlsFact,
};

use crate::context::{ConnectionInfo, RequestContext};
use crate::failure::Flags;
use crate::filters::FilterState;
use crate::local_reply;
use crate::tls::{CertificateFacts, TlsFacts};

/// What formats may read at the end of a TCP connection.
pub(crate) struct TcpFacts<'a> {
    pub(crate) info: &'a ConnectionInfo,
    pub(crate) hostname: &'a str,
    pub(crate) flags: Flags,
    pub(crate) details: &'a str,
    /// What filters noted.
    pub(crate) noted: Option<&'a DynamicMetadata>,
    pub(crate) received: u64,
    pub(crate) sent: u64,
    pub(crate) cluster: Option<&'a str>,
    pub(crate) host: Option<&'a HostAddress>,
    /// The endpoint's name, or its address.
    pub(crate) host_name: Option<&'a str>,
    /// Attempts to connect.
    pub(crate) attempts: u32,
    pub(crate) upstream_local: Option<SocketAddr>,
    /// Where the connection goes; none when there is none.
    pub(crate) upstream_remote: Option<&'a HostAddress>,
    pub(crate) upstream_tls: Option<&'a TlsFacts>,
    pub(crate) failure: Option<&'a str>,
}

/// What formats may read of a message that is too malformed to be a request.
pub(crate) struct RefusedFacts<'a> {
    pub(crate) connection: TcpFacts<'a>,
    pub(crate) status: u16,
}

impl FormatValues for RefusedFacts<'_> {
    fn value(&self, operator: &Operator, out: &mut String) -> bool {
        match operator {
            Operator::ResponseCode => number(out, u64::from(self.status)),
            Operator::ResponseCodeDetails => text(out, Some(self.connection.details)),
            Operator::Protocol => text(out, Some(protocol(Version::HTTP_11))),
            Operator::UpstreamRequestAttemptCount => number(out, 0),
            Operator::AccessLogType => text(out, Some("DownstreamEnd")),
            other => self.connection.value(other, out),
        }
    }
}

impl FormatValues for TcpFacts<'_> {
    fn value(&self, operator: &Operator, out: &mut String) -> bool {
        match operator {
            Operator::Time(point, format) => {
                time(wall_clock(self.info.started), *point, format, out);
                true
            }
            Operator::ResponseCode => text(out, Some("0")),
            Operator::ConnectionTerminationDetails => text(out, Some(self.details).filter(|d| !d.is_empty())),
            Operator::ResponseFlags => flags(self.flags, false, out),
            Operator::ResponseFlagsLong => flags(self.flags, true, out),
            Operator::Bytes(Bytes::Received) => number(out, self.received),
            Operator::Bytes(Bytes::Sent) => number(out, self.sent),
            Operator::Bytes(_) => number(out, 0),
            Operator::Duration => number(out, millis(self.info.started.elapsed())),
            Operator::UpstreamCluster | Operator::UpstreamClusterRaw => text(out, self.cluster),
            Operator::UpstreamHostName => text(out, self.host_name),
            Operator::UpstreamHostNameWithoutPort => text(out, self.host_name.map(without_port)),
            Operator::UpstreamTransportFailureReason => text(out, self.failure),
            Operator::UpstreamRequestAttemptCount => number(out, u64::from(self.attempts)),
            Operator::Address(of, part) => match of {
                AddressOf::UpstreamLocal => address(self.upstream_local, *part, out),
                AddressOf::UpstreamHost => host_address(self.host, *part, out),
                AddressOf::UpstreamRemote => host_address(self.upstream_remote, *part, out),
                other => host_address(downstream_address(self.info, &self.info.peer, *other), *part, out),
            },
            Operator::RequestedServerName => text(out, self.info.server_name.as_deref()),
            Operator::DownstreamTls(fact) => tls(self.info.tls.as_deref(), *fact, out),
            Operator::UpstreamTls(fact) => tls(self.upstream_tls, *fact, out),
            Operator::DownstreamTransportFailureReason => text(out, self.info.transport_failure.as_deref()),
            Operator::FilterChainName => {
                text(out, Some(&*self.info.chain_name).filter(|name| !name.is_empty()))
            }
            Operator::Hostname => text(out, Some(self.hostname)),
            Operator::Environment(value) => text(out, value.as_deref()),
            Operator::ConnectionId => number(out, self.info.id),
            Operator::UniqueId => text(out, Some(&uuid::Uuid::new_v4().to_string())),
            Operator::AccessLogType => text(out, Some("TcpConnectionEnd")),
            Operator::Metadata { of: MetadataOf::Request, path } => noted(self.noted, path, out),
            _ => false,
        }
    }
}

impl FormatValues for RequestContext {
    fn value(&self, operator: &Operator, out: &mut String) -> bool {
        match operator {
            Operator::Time(point, format) => {
                time(wall_clock(self.started), *point, format, out);
                true
            }
            Operator::Request(first, second) => {
                self.request_header(first, out)
                    || second.as_ref().is_some_and(|name| self.request_header(name, out))
            }
            Operator::Response(first, second) => {
                self.response_header(first, out)
                    || second.as_ref().is_some_and(|name| self.response_header(name, out))
            }
            Operator::Trailer(first, second) => {
                let trailers = self.response_trailers.as_deref();
                named(trailers, first, out) || second.as_ref().is_some_and(|name| named(trailers, name, out))
            }
            Operator::Protocol => text(out, Some(protocol(self.version))),
            Operator::UpstreamProtocol => text(out, self.upstream_version.map(protocol)),
            Operator::ResponseCode => number(out, self.status.map_or(0, |status| u64::from(status.as_u16()))),
            Operator::ResponseCodeDetails => {
                text(out, Some(&*self.details).filter(|details| !details.is_empty()))
            }
            Operator::ResponseFlags => flags(self.flags, false, out),
            Operator::ResponseFlagsLong => flags(self.flags, true, out),
            Operator::Bytes(Bytes::Received) => number(out, self.bytes_received()),
            Operator::Bytes(Bytes::Sent) => number(out, self.bytes_sent),
            Operator::Duration | Operator::RequestDuration | Operator::RequestTxDuration => {
                number(out, millis(self.started.elapsed()))
            }
            Operator::ResponseDuration => self
                .first_upstream_byte
                .is_some_and(|at| number(out, millis(at.saturating_duration_since(self.started)))),
            Operator::ResponseTxDuration => {
                self.first_upstream_byte.is_some_and(|at| number(out, millis(at.elapsed())))
            }
            Operator::UpstreamCluster => {
                let name = self.cluster.as_ref().map(|cluster| &cluster.config.ir);
                text(out, name.map(|cluster| cluster.alt_stat_name.as_deref().unwrap_or(&cluster.name)))
            }
            Operator::UpstreamClusterRaw => {
                text(out, self.cluster.as_ref().map(|cluster| &*cluster.config.ir.name))
            }
            Operator::UpstreamHostName => text(out, self.host.as_ref().map(|host| host.name()).as_deref()),
            Operator::UpstreamHostNameWithoutPort => {
                text(out, self.host.as_ref().map(|host| host.name()).as_deref().map(without_port))
            }
            Operator::Path { query, of } => self.path(*query, *of, out),
            Operator::QueryParameter(name) => text(out, lateen_ir::query_parameter(self.path.as_str(), name)),
            Operator::UpstreamTransportFailureReason => text(out, self.upstream_failure.as_deref()),
            Operator::UpstreamRequestAttemptCount => number(out, u64::from(self.attempts)),
            Operator::UpstreamConnectionId => {
                self.upstream.as_ref().is_some_and(|facts| number(out, facts.id))
            }
            Operator::Address(of, part) => self.address(*of, *part, out),
            Operator::RequestedServerName => text(out, self.connection.info.server_name.as_deref()),
            Operator::DownstreamTls(fact) => tls(self.connection.info.tls.as_deref(), *fact, out),
            Operator::UpstreamTls(fact) => {
                let facts = self.upstream.as_ref().and_then(|facts| facts.tls.get());
                tls(facts.map(|facts| &**facts), *fact, out)
            }
            Operator::RouteName => {
                text(out, self.route.as_ref().map(|route| &*route.name).filter(|name| !name.is_empty()))
            }
            Operator::FilterChainName => {
                text(out, Some(&*self.connection.info.chain_name).filter(|name| !name.is_empty()))
            }
            Operator::Hostname => text(out, Some(&self.connection.worker.identity.hostname)),
            Operator::Environment(value) => text(out, value.as_deref()),
            Operator::ConnectionId => number(out, self.connection.info.id),
            Operator::StreamId => {
                let id = self.head.headers.get("x-request-id").and_then(|id| id.to_str().ok());
                text(out, id)
            }
            Operator::UniqueId => text(out, Some(&uuid::Uuid::new_v4().to_string())),
            Operator::LocalReplyBody => text(out, Some(self.local_reply.as_deref().unwrap_or_default())),
            Operator::GrpcStatus(style) => self.grpc_status(*style, out),
            Operator::GrpcStatusNumber => self.grpc_status(GrpcStatusStyle::Number, out),
            Operator::AccessLogType => text(out, Some("DownstreamEnd")),
            Operator::Metadata { of: MetadataOf::Cluster, path } => {
                let metadata = self.cluster.as_ref().and_then(|cluster| cluster.config.ir.metadata.clone());
                json_at(metadata.as_deref(), path, out)
            }
            Operator::Metadata { of: MetadataOf::Endpoint, path } => {
                let metadata = self.host.as_ref().and_then(|host| host.endpoint.borrow().metadata.clone());
                json_at(metadata.as_deref(), path, out)
            }
            Operator::Metadata { of: MetadataOf::Request, path } => {
                noted(self.metadata.as_deref(), path, out)
            }
            Operator::Metadata { of: MetadataOf::FilterState, path } => self.filter_state(path, out),
            // Nothing here makes these: no virtual clusters.
            _ => false,
        }
    }
}

impl RequestContext {
    /// What filters have written down under a key; behind that may stand how it is shown.
    fn filter_state(&self, path: &[Box<str>], out: &mut String) -> bool {
        let Some((key, style)) = path.split_first() else { return false };
        let camel = match style.first().map(|style| &**style) {
            None | Some("TYPED") => true,
            Some("PLAIN") => false,
            Some(_) => return false,
        };
        let shadow = self.filters.iter().find_map(|state| match state {
            FilterState::Shadow(shadow) if *shadow.name == **key => Some(shadow),
            _ => None,
        });
        text(out, shadow.map(|shadow| shadow.decision.json(camel)).as_deref())
    }

    fn address(&self, of: AddressOf, part: AddressPart, out: &mut String) -> bool {
        let which = match of {
            AddressOf::UpstreamLocal => {
                return address(self.upstream.as_ref().and_then(|facts| facts.local.get()), part, out);
            }
            AddressOf::UpstreamHost => self.host.as_ref().map(|host| &host.address),
            AddressOf::UpstreamRemote => self.upstream.as_ref().and_then(|facts| facts.remote.get()),
            other => downstream_address(&self.connection.info, &self.client, other),
        };
        host_address(which, part, out)
    }

    fn path(&self, query: bool, of: PathOf, out: &mut String) -> bool {
        let original = self.head.headers.get("x-envoy-original-path").and_then(|path| path.to_str().ok());
        // CONNECT has none.
        let own = (self.head.method != Method::CONNECT).then(|| self.path.as_str());
        let path = match of {
            PathOf::Original => original,
            PathOf::Request => own,
            PathOf::OriginalOrRequest => original.filter(|path| !path.is_empty()).or(own),
        };
        let path = path.filter(|path| !path.is_empty());
        text(out, path.map(|path| if query { path } else { path.split('?').next().unwrap_or(path) }))
    }

    fn request_header(&self, name: &FormatHeader, out: &mut String) -> bool {
        match name {
            FormatHeader::Method => text(out, Some(self.head.method.as_str())),
            FormatHeader::Scheme => text(out, Some(if self.secure { "https" } else { "http" })),
            FormatHeader::Authority => {
                let there = !self.authority.is_empty() || self.head.headers.contains_key("host");
                text(out, self.authority.to_str().ok().filter(|_| there))
            }
            FormatHeader::Path => {
                // CONNECT has none.
                text(out, (self.head.method != Method::CONNECT).then(|| self.path.as_str()))
            }
            FormatHeader::Status => false,
            FormatHeader::Named(_) => named(Some(&self.head.headers), name, out),
        }
    }

    fn response_header(&self, name: &FormatHeader, out: &mut String) -> bool {
        match name {
            FormatHeader::Status => {
                self.status.or(self.answering).is_some_and(|status| text(out, Some(status.as_str())))
            }
            _ => named(self.response_headers.as_ref(), name, out),
        }
    }

    fn grpc_status(&self, style: GrpcStatusStyle, out: &mut String) -> bool {
        let find = |headers: Option<&HeaderMap>| -> Option<usize> {
            headers?.get("grpc-status")?.to_str().ok()?.parse().ok()
        };
        let in_headers = || find(self.response_headers.as_ref());
        // Without one a gRPC client makes it of the answer's status.
        let meant = || {
            let status = self.status.filter(|_| local_reply::is_grpc(&self.head.headers))?;
            Some(local_reply::grpc_status(status) as usize)
        };
        let told = find(self.response_trailers.as_deref()).or_else(in_headers);
        let Some(status) = told.or_else(meant) else {
            return false;
        };
        match (style, GRPC_STATUSES.get(status)) {
            (GrpcStatusStyle::Camel, Some((camel, _))) => text(out, Some(camel)),
            (GrpcStatusStyle::Snake, Some((_, snake))) => text(out, Some(snake)),
            _ => number(out, status as u64),
        }
    }
}

/// Statuses by number: <https://grpc.github.io/grpc/core/md_doc_statuscodes.html>
const GRPC_STATUSES: [(&str, &str); 17] = [
    ("OK", "OK"),
    ("Canceled", "CANCELLED"),
    ("Unknown", "UNKNOWN"),
    ("InvalidArgument", "INVALID_ARGUMENT"),
    ("DeadlineExceeded", "DEADLINE_EXCEEDED"),
    ("NotFound", "NOT_FOUND"),
    ("AlreadyExists", "ALREADY_EXISTS"),
    ("PermissionDenied", "PERMISSION_DENIED"),
    ("ResourceExhausted", "RESOURCE_EXHAUSTED"),
    ("FailedPrecondition", "FAILED_PRECONDITION"),
    ("Aborted", "ABORTED"),
    ("OutOfRange", "OUT_OF_RANGE"),
    ("Unimplemented", "UNIMPLEMENTED"),
    ("Internal", "INTERNAL"),
    ("Unavailable", "UNAVAILABLE"),
    ("DataLoss", "DATA_LOSS"),
    ("Unauthenticated", "UNAUTHENTICATED"),
];

fn protocol(version: Version) -> &'static str {
    match version {
        Version::HTTP_09 | Version::HTTP_10 => "HTTP/1.0",
        Version::HTTP_2 => "HTTP/2",
        Version::HTTP_3 => "HTTP/3",
        _ => "HTTP/1.1",
    }
}

fn text(out: &mut String, value: Option<&str>) -> bool {
    out.push_str(value.unwrap_or_default());
    value.is_some()
}

fn number(out: &mut String, value: u64) -> bool {
    out.push_str(itoa::Buffer::new().format(value));
    true
}

/// A host without the port it may end with, as Envoy takes it off.
fn without_port(host: &str) -> &str {
    let port = |port: &str| !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit());
    match host.rsplit_once(':') {
        // A colon within brackets is an address's own.
        Some((name, after)) if port(after) => name,
        _ => host,
    }
}

fn flags(flags: Flags, long: bool, out: &mut String) -> bool {
    if flags.is_empty() {
        out.push('-');
    }
    flags.write(long, out);
    true
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// The first value of a header, as Envoy prints it. Bytes that are not UTF-8 print as replacement characters.
fn named(headers: Option<&HeaderMap>, name: &FormatHeader, out: &mut String) -> bool {
    let (Some(headers), FormatHeader::Named(name)) = (headers, name) else { return false };
    let value = headers.get(name);
    if let Some(value) = value {
        out.push_str(&String::from_utf8_lossy(value.as_bytes()));
    }
    value.is_some()
}

fn downstream_address<'a>(
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
fn host_address(host: Option<&HostAddress>, part: AddressPart, out: &mut String) -> bool {
    match host {
        Some(HostAddress::Pipe(_)) if part == AddressPart::Port => true,
        Some(HostAddress::Pipe(path)) => text(out, Some(path)),
        host => address(host.and_then(HostAddress::socket), part, out),
    }
}

fn address(address: Option<SocketAddr>, part: AddressPart, out: &mut String) -> bool {
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

fn tls(facts: Option<&TlsFacts>, fact: TlsFact, out: &mut String) -> bool {
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
fn noted(all: Option<&DynamicMetadata>, path: &[Box<str>], out: &mut String) -> bool {
    let found = all.zip(path.split_first());
    let found = found.and_then(|(all, (filter, keys))| Some((all.get(filter)?, keys)));
    found.is_some_and(|(value, keys)| json_at(Some(&*value), keys, out))
}

fn json_at(value: Option<&serde_json::Value>, path: &[Box<str>], out: &mut String) -> bool {
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
fn sorted(value: &serde_json::Value, out: &mut String) {
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
fn wall_clock(moment: Instant) -> SystemTime {
    SystemTime::now().checked_sub(moment.elapsed()).unwrap_or(SystemTime::UNIX_EPOCH)
}

fn time(start: SystemTime, point: TimePoint, format: &TimeFormat, out: &mut String) {
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
fn iso_8601_millis(stamp: Timestamp, out: &mut String) {
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

fn time_piece(stamp: Timestamp, since_epoch: Duration, piece: &TimePiece, out: &mut String) {
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
