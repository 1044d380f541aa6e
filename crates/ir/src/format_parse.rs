//! The parser of formats.

use http::HeaderName;

use crate::format::{
    AddressOf, AddressPart, Bytes, FormatHeader, GrpcStatusStyle, JsonFormat, MetadataOf, Operator, Part,
    PathOf, Substitution, TextFormat, TimeFormat, TimePiece, TimePoint, TlsFact,
};

/// Why a format can't be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("format: {0}")]
pub struct FormatError(pub(crate) String);

/// Envoy's default text format for HTTP access logs.
pub const DEFAULT_TEXT_FORMAT: &str = concat!(
    "[%START_TIME%] \"%REQ(:METHOD)% %REQ(X-ENVOY-ORIGINAL-PATH?:PATH)% %PROTOCOL%\" ",
    "%RESPONSE_CODE% %RESPONSE_FLAGS% %BYTES_RECEIVED% %BYTES_SENT% %DURATION% ",
    "%RESP(X-ENVOY-UPSTREAM-SERVICE-TIME)% \"%REQ(X-FORWARDED-FOR)%\" \"%REQ(USER-AGENT)%\" ",
    "\"%REQ(X-REQUEST-ID)%\" \"%REQ(:AUTHORITY)%\" \"%UPSTREAM_HOST%\"\n"
);

impl TextFormat {
    /// Parses a format. `%%` is a percent sign.
    ///
    /// # Errors
    /// When an operator is unknown, unfinished or has a wrong argument.
    pub fn parse(text: &str, omit_empty_values: bool) -> Result<Self, FormatError> {
        let mut parts = Vec::new();
        let mut literal = String::new();
        let mut rest = text;
        while let Some(at) = rest.find('%') {
            literal.push_str(&rest[..at]);
            rest = &rest[at + 1..];
            if let Some(after) = rest.strip_prefix('%') {
                literal.push('%');
                rest = after;
                continue;
            }
            let (substitution, after) = operator(rest)?;
            if !literal.is_empty() {
                parts.push(Part::Literal(std::mem::take(&mut literal).into()));
            }
            parts.push(Part::Operator(substitution));
            rest = after;
        }
        literal.push_str(rest);
        if !literal.is_empty() {
            parts.push(Part::Literal(literal.into()));
        }
        Ok(Self { parts, omit_empty_values })
    }

    /// The text itself, when there is no operator in it.
    pub fn as_literal(&self) -> Option<&str> {
        match self.parts.as_slice() {
            [] => Some(""),
            [Part::Literal(text)] => Some(text),
            _ => None,
        }
    }
}

impl JsonFormat {
    /// Parses the strings inside a JSON value. Keys are sorted, as Envoy sorts them.
    ///
    /// # Errors
    /// As [`TextFormat::parse`].
    pub fn parse(value: &serde_json::Value, omit_empty_values: bool) -> Result<Self, FormatError> {
        Ok(match value {
            serde_json::Value::Object(members) => {
                let mut parsed = members
                    .iter()
                    .map(|(key, value)| Ok((key.as_str().into(), Self::parse(value, omit_empty_values)?)))
                    .collect::<Result<Vec<(Box<str>, Self)>, FormatError>>()?;
                parsed.sort_by(|(a, _), (b, _)| a.cmp(b));
                Self::Object(parsed)
            }
            serde_json::Value::Array(items) => Self::Array(
                items.iter().map(|item| Self::parse(item, omit_empty_values)).collect::<Result<_, _>>()?,
            ),
            serde_json::Value::String(text) => {
                let mut format = TextFormat::parse(text, omit_empty_values)?;
                match (format.parts.len(), format.parts.pop()) {
                    (1, Some(Part::Operator(substitution))) => Self::Value(substitution),
                    (_, last) => {
                        format.parts.extend(last);
                        Self::Text(format)
                    }
                }
            }
            constant => Self::Constant(constant.clone()),
        })
    }
}

/// Parses `NAME(argument):N%…` and returns what follows.
fn operator(text: &str) -> Result<(Substitution, &str), FormatError> {
    let error = |reason: String| FormatError(reason);
    let name_end = text
        .find(|c: char| !(c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_'))
        .ok_or_else(|| error(format!("%{text} has no closing %")))?;
    let (name, mut rest) = text.split_at(name_end);
    if name.is_empty() {
        return Err(error(format!("no operator name after % at {:?}", excerpt(text))));
    }
    let mut argument = None;
    if let Some(inside) = rest.strip_prefix('(') {
        let (found, after) = argument_end(inside)
            .ok_or_else(|| error(format!("%{name}( has no closing parenthesis followed by %")))?;
        argument = Some(found);
        rest = after;
    }
    let mut max_length = None;
    if let Some(digits) = rest.strip_prefix(':') {
        let end = digits.find('%').ok_or_else(|| error(format!("%{name}: has no closing %")))?;
        let length = digits[..end].parse().ok().filter(|length| *length > 0);
        max_length =
            Some(length.ok_or_else(|| error(format!("%{name}%: {:?} is not a length", &digits[..end])))?);
        rest = &digits[end..];
    }
    let rest = rest.strip_prefix('%').ok_or_else(|| error(format!("%{name} has no closing %")))?;
    let operator = named(name, argument).map_err(error)?;
    Ok((Substitution { operator, max_length }, rest))
}

fn excerpt(text: &str) -> String {
    text.chars().take(20).collect()
}

/// The shortest argument whose `)` is followed by the operator's end: time formats have parentheses and percent signs inside.
fn argument_end(inside: &str) -> Option<(&str, &str)> {
    inside.match_indices(')').find_map(|(at, _)| {
        let after = &inside[at + 1..];
        let digits =
            after.strip_prefix(':').map(|rest| rest.trim_start_matches(|c: char| c.is_ascii_digit()));
        let ends = after.starts_with('%') || digits.is_some_and(|rest| rest.starts_with('%'));
        ends.then_some((&inside[..at], after))
    })
}

fn named(name: &str, argument: Option<&str>) -> Result<Operator, String> {
    if let Some(operator) = with_argument(name, argument)? {
        return Ok(operator);
    }
    let operator = plain(name)
        .or_else(|| byte_counter(name).map(Operator::Bytes))
        .or_else(|| address(name))
        .or_else(|| tls(name))
        .ok_or_else(|| match unsupported(name) {
            Some(reason) => format!("%{name}% is not supported: {reason}"),
            None => format!("unknown command operator %{name}%"),
        })?;
    match argument {
        None => Ok(operator),
        Some(_) => Err(format!("%{name}% takes no argument")),
    }
}

fn with_argument(name: &str, argument: Option<&str>) -> Result<Option<Operator>, String> {
    let needed = || {
        argument
            .filter(|text| !text.is_empty())
            .ok_or_else(|| format!("%{name}% needs an argument in parentheses"))
    };
    Ok(Some(match name {
        "START_TIME" => Operator::Time(TimePoint::Start, time_format(argument)?),
        "EMIT_TIME" => Operator::Time(TimePoint::Emit, time_format(argument)?),
        "REQ" | "REQUEST_HEADER" => {
            let (main, other) = header_pair(needed()?)?;
            Operator::Request(main, other)
        }
        "RESP" | "RESPONSE_HEADER" => {
            let (main, other) = header_pair(needed()?)?;
            Operator::Response(main, other)
        }
        "TRAILER" | "RESPONSE_TRAILER" => {
            let (main, other) = header_pair(needed()?)?;
            Operator::Trailer(main, other)
        }
        "PATH" => path(argument.unwrap_or_default())?,
        "QUERY_PARAM" => Operator::QueryParameter(needed()?.into()),
        "ENVIRONMENT" => {
            let value = std::env::var(needed()?).ok();
            Operator::Environment(value.map(Into::into))
        }
        "GRPC_STATUS" => Operator::GrpcStatus(match argument.unwrap_or_default() {
            "" | "CAMEL_STRING" => GrpcStatusStyle::Camel,
            "SNAKE_STRING" => GrpcStatusStyle::Snake,
            "NUMBER" => GrpcStatusStyle::Number,
            other => return Err(format!("%GRPC_STATUS({other})%: use CAMEL_STRING, SNAKE_STRING or NUMBER")),
        }),
        "DYNAMIC_METADATA" => metadata(MetadataOf::Request, needed()?),
        "CLUSTER_METADATA" => metadata(MetadataOf::Cluster, needed()?),
        "UPSTREAM_METADATA" => metadata(MetadataOf::Endpoint, needed()?),
        "FILTER_STATE" => metadata(MetadataOf::FilterState, needed()?),
        "METADATA" => typed_metadata(needed()?)?,
        _ => return Ok(None),
    }))
}

/// `WQ` or `NQ`, a colon, and which path.
fn path(argument: &str) -> Result<Operator, String> {
    let (query, of) = argument.split_once(':').unwrap_or((argument, ""));
    let query = match query {
        "" | "WQ" => true,
        "NQ" => false,
        other => return Err(format!("%PATH({other}…)%: use WQ or NQ")),
    };
    let of = match of {
        "" | "ORIG_OR_PATH" => PathOf::OriginalOrRequest,
        "ORIG" => PathOf::Original,
        "PATH" => PathOf::Request,
        other => return Err(format!("%PATH(…:{other})%: use ORIG, PATH or ORIG_OR_PATH")),
    };
    Ok(Operator::Path { query, of })
}

/// Why an operator of Envoy 1.40 has no value here.
fn unsupported(name: &str) -> Option<&'static str> {
    Some(match name {
        "TRACE_ID" | "SPAN_ID" => "there is no tracing",
        "START_TIME_LOCAL" | "EMIT_TIME_LOCAL" => "times are in UTC; use START_TIME or EMIT_TIME",
        "BYTES_RETRANSMITTED" | "PACKETS_RETRANSMITTED" | "DOWNSTREAM_CX_RTT" | "ROUNDTRIP_DURATION" => {
            "the kernel's numbers of a connection are not read"
        }
        "DOWNSTREAM_HANDSHAKE_DURATION"
        | "UPSTREAM_CONNECTION_POOL_READY_DURATION"
        | "COMMON_DURATION"
        | "ROUTE_RESOLUTION_COUNT"
        | "ROUTE_RESOLUTION_TIME_US" => "that is not measured",
        "DOWNSTREAM_DECOMPRESSED_HEADER_BYTES_RECEIVED"
        | "DOWNSTREAM_DECOMPRESSED_HEADER_BYTES_SENT"
        | "UPSTREAM_DECOMPRESSED_HEADER_BYTES_RECEIVED"
        | "UPSTREAM_DECOMPRESSED_HEADER_BYTES_SENT" => "bytes of headers are not counted",
        "DOWNSTREAM_DETECTED_CLOSE_TYPE"
        | "DOWNSTREAM_LOCAL_CLOSE_REASON"
        | "UPSTREAM_DETECTED_CLOSE_TYPE"
        | "UPSTREAM_LOCAL_CLOSE_REASON" => "how connections were closed is not kept",
        "UPSTREAM_CONNECTION_IDS_ATTEMPTED"
        | "UPSTREAM_HOSTS_ATTEMPTED"
        | "UPSTREAM_HOSTS_ATTEMPTED_WITHOUT_PORT"
        | "UPSTREAM_HOST_NAMES_ATTEMPTED"
        | "UPSTREAM_HOST_NAMES_ATTEMPTED_WITHOUT_PORT" => "only the last attempt is kept",
        "DOWNSTREAM_DIRECT_LOCAL_ADDRESS_ENDPOINT_ID"
        | "DOWNSTREAM_LOCAL_ADDRESS_ENDPOINT_ID"
        | "UPSTREAM_REMOTE_ADDRESS_ENDPOINT_ID" => "there are no internal addresses",
        "DOWNSTREAM_LOCAL_OTHERNAME_SAN"
        | "DOWNSTREAM_PEER_OTHERNAME_SAN"
        | "DOWNSTREAM_PEER_FINGERPRINT_1"
        | "DOWNSTREAM_PEER_CHAIN_FINGERPRINTS_1"
        | "DOWNSTREAM_PEER_CHAIN_FINGERPRINTS_256"
        | "DOWNSTREAM_PEER_CHAIN_SERIALS"
        | "DOWNSTREAM_PEER_ISSUER_FINGERPRINT_256"
        | "DOWNSTREAM_PEER_ISSUER_SERIAL" => "that is not read out of certificates",
        "TLS_JA3_FINGERPRINT" | "TLS_JA4_FINGERPRINT" => "clients' hellos get no fingerprint",
        "UPSTREAM_SERVER_NAME" => "the name that an endpoint was asked for is not kept",
        "QUERY_PARAMS" => "use QUERY_PARAM(NAME)",
        "CUSTOM_FLAGS" | "CEL" | "UPSTREAM_FILTER_STATE" => "no filter here gives it a value",
        _ => return None,
    })
}

fn metadata(of: MetadataOf, path: &str) -> Operator {
    Operator::Metadata { of, path: path.split(':').map(Into::into).collect() }
}

fn typed_metadata(argument: &str) -> Result<Operator, String> {
    let (kind, path) = argument.split_once(':').ok_or("%METADATA(TYPE:NAMESPACE:KEY)% needs a namespace")?;
    let of = match kind {
        "DYNAMIC" => MetadataOf::Request,
        "CLUSTER" => MetadataOf::Cluster,
        "UPSTREAM_HOST" => MetadataOf::Endpoint,
        "ROUTE" => MetadataOf::Route,
        "VIRTUAL_HOST" => MetadataOf::VirtualHost,
        other => return Err(format!("%METADATA({other}:…)% is not a known kind of metadata")),
    };
    Ok(metadata(of, path))
}

fn plain(name: &str) -> Option<Operator> {
    Some(match name {
        "PROTOCOL" => Operator::Protocol,
        "UPSTREAM_PROTOCOL" => Operator::UpstreamProtocol,
        "RESPONSE_CODE" => Operator::ResponseCode,
        "RESPONSE_CODE_DETAILS" => Operator::ResponseCodeDetails,
        "CONNECTION_TERMINATION_DETAILS" => Operator::ConnectionTerminationDetails,
        "RESPONSE_FLAGS" => Operator::ResponseFlags,
        "RESPONSE_FLAGS_LONG" => Operator::ResponseFlagsLong,
        "DURATION" => Operator::Duration,
        "REQUEST_DURATION" => Operator::RequestDuration,
        "REQUEST_TX_DURATION" => Operator::RequestTxDuration,
        "RESPONSE_DURATION" => Operator::ResponseDuration,
        "RESPONSE_TX_DURATION" => Operator::ResponseTxDuration,
        "UPSTREAM_CLUSTER" => Operator::UpstreamCluster,
        "UPSTREAM_CLUSTER_RAW" => Operator::UpstreamClusterRaw,
        "UPSTREAM_HOST_NAME" => Operator::UpstreamHostName,
        "UPSTREAM_HOST_NAME_WITHOUT_PORT" => Operator::UpstreamHostNameWithoutPort,
        "UPSTREAM_TRANSPORT_FAILURE_REASON" => Operator::UpstreamTransportFailureReason,
        "DOWNSTREAM_TRANSPORT_FAILURE_REASON" => Operator::DownstreamTransportFailureReason,
        "UPSTREAM_REQUEST_ATTEMPT_COUNT" => Operator::UpstreamRequestAttemptCount,
        "UPSTREAM_CONNECTION_ID" => Operator::UpstreamConnectionId,
        "REQUESTED_SERVER_NAME" => Operator::RequestedServerName,
        "ROUTE_NAME" => Operator::RouteName,
        "VIRTUAL_CLUSTER_NAME" => Operator::VirtualClusterName,
        "FILTER_CHAIN_NAME" => Operator::FilterChainName,
        "HOSTNAME" => Operator::Hostname,
        "CONNECTION_ID" => Operator::ConnectionId,
        "STREAM_ID" => Operator::StreamId,
        "UNIQUE_ID" => Operator::UniqueId,
        "LOCAL_REPLY_BODY" => Operator::LocalReplyBody,
        "GRPC_STATUS_NUMBER" => Operator::GrpcStatusNumber,
        "ACCESS_LOG_TYPE" => Operator::AccessLogType,
        _ => return None,
    })
}

fn byte_counter(name: &str) -> Option<Bytes> {
    Some(match name {
        "BYTES_RECEIVED" => Bytes::Received,
        "BYTES_SENT" => Bytes::Sent,
        "REQUEST_HEADERS_BYTES" => Bytes::RequestHeaders,
        "RESPONSE_HEADERS_BYTES" => Bytes::ResponseHeaders,
        "RESPONSE_TRAILERS_BYTES" => Bytes::ResponseTrailers,
        "UPSTREAM_WIRE_BYTES_SENT" => Bytes::UpstreamWireSent,
        "UPSTREAM_WIRE_BYTES_RECEIVED" => Bytes::UpstreamWireReceived,
        "UPSTREAM_HEADER_BYTES_SENT" => Bytes::UpstreamHeaderSent,
        "UPSTREAM_HEADER_BYTES_RECEIVED" => Bytes::UpstreamHeaderReceived,
        "DOWNSTREAM_WIRE_BYTES_SENT" => Bytes::DownstreamWireSent,
        "DOWNSTREAM_WIRE_BYTES_RECEIVED" => Bytes::DownstreamWireReceived,
        "DOWNSTREAM_HEADER_BYTES_SENT" => Bytes::DownstreamHeaderSent,
        "DOWNSTREAM_HEADER_BYTES_RECEIVED" => Bytes::DownstreamHeaderReceived,
        _ => return None,
    })
}

fn address(name: &str) -> Option<Operator> {
    if name == "UPSTREAM_HOST" {
        return Some(Operator::Address(AddressOf::UpstreamHost, AddressPart::Full));
    }
    let (of, rest) = [
        ("DOWNSTREAM_DIRECT_REMOTE_", AddressOf::DownstreamDirectRemote),
        ("DOWNSTREAM_DIRECT_LOCAL_", AddressOf::DownstreamDirectLocal),
        ("DOWNSTREAM_REMOTE_", AddressOf::DownstreamRemote),
        ("DOWNSTREAM_LOCAL_", AddressOf::DownstreamLocal),
        ("UPSTREAM_LOCAL_", AddressOf::UpstreamLocal),
        ("UPSTREAM_REMOTE_", AddressOf::UpstreamRemote),
    ]
    .into_iter()
    .find_map(|(prefix, of)| Some((of, name.strip_prefix(prefix)?)))?;
    let part = match rest {
        "ADDRESS" => AddressPart::Full,
        "ADDRESS_WITHOUT_PORT" => AddressPart::WithoutPort,
        "PORT" => AddressPart::Port,
        _ => return None,
    };
    Some(Operator::Address(of, part))
}

fn tls(name: &str) -> Option<Operator> {
    let (downstream, rest) = match name.strip_prefix("DOWNSTREAM_") {
        Some(rest) => (true, rest),
        None => (false, name.strip_prefix("UPSTREAM_")?),
    };
    let fact = match rest {
        "TLS_VERSION" => TlsFact::Version,
        "TLS_CIPHER" => TlsFact::Cipher,
        "TLS_SESSION_ID" => TlsFact::SessionId,
        "PEER_SUBJECT" => TlsFact::PeerSubject,
        "PEER_ISSUER" => TlsFact::PeerIssuer,
        "PEER_URI_SAN" => TlsFact::PeerUriSan,
        "PEER_DNS_SAN" => TlsFact::PeerDnsSan,
        "PEER_IP_SAN" => TlsFact::PeerIpSan,
        "PEER_EMAIL_SAN" => TlsFact::PeerEmailSan,
        "LOCAL_SUBJECT" => TlsFact::LocalSubject,
        "LOCAL_IP_SAN" => TlsFact::LocalIpSan,
        "LOCAL_EMAIL_SAN" => TlsFact::LocalEmailSan,
        "TLS_GROUP" => TlsFact::Group,
        "LOCAL_URI_SAN" => TlsFact::LocalUriSan,
        "LOCAL_DNS_SAN" => TlsFact::LocalDnsSan,
        "PEER_FINGERPRINT_256" => TlsFact::PeerFingerprint256,
        "PEER_SERIAL" => TlsFact::PeerSerial,
        "PEER_CERT" => TlsFact::PeerCert,
        "PEER_CERT_V_START" => TlsFact::PeerCertStart,
        "PEER_CERT_V_END" => TlsFact::PeerCertEnd,
        _ => return None,
    };
    // Envoy has these of clients only.
    let of_clients = matches!(
        fact,
        TlsFact::LocalSubject
            | TlsFact::LocalEmailSan
            | TlsFact::PeerEmailSan
            | TlsFact::PeerFingerprint256
            | TlsFact::PeerSerial
    );
    if downstream {
        Some(Operator::DownstreamTls(fact))
    } else {
        (!of_clients).then_some(Operator::UpstreamTls(fact))
    }
}

fn header_pair(argument: &str) -> Result<(FormatHeader, Option<FormatHeader>), String> {
    match argument.split_once('?') {
        None => Ok((header(argument)?, None)),
        Some((_, other)) if other.contains('?') => {
            Err(format!("{argument:?}: more than one alternative header"))
        }
        Some((main, other)) => Ok((header(main)?, Some(header(other)?))),
    }
}

fn header(name: &str) -> Result<FormatHeader, String> {
    Ok(match name.to_ascii_lowercase().as_str() {
        ":method" => FormatHeader::Method,
        ":scheme" => FormatHeader::Scheme,
        ":authority" | "host" => FormatHeader::Authority,
        ":path" => FormatHeader::Path,
        ":status" => FormatHeader::Status,
        lower => FormatHeader::Named(
            HeaderName::from_bytes(lower.as_bytes()).map_err(|_| format!("{name:?} is not a header name"))?,
        ),
    })
}

/// `strftime` with Envoy's fractions. Without an argument: `2026-11-24T03:39:44.123Z`.
fn time_format(argument: Option<&str>) -> Result<TimeFormat, String> {
    let Some(text) = argument.filter(|text| !text.is_empty()) else { return Ok(TimeFormat::Iso8601Millis) };
    let mut pieces = Vec::new();
    let mut plain = String::new();
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        if c != '%' {
            plain.push(c);
            continue;
        }
        let Some((piece, length)) = time_piece(chars.as_str()) else {
            plain.push('%');
            // The specifier too, so that `%%` is not taken for the beginning of another.
            plain.extend(chars.next());
            continue;
        };
        if !plain.is_empty() {
            pieces.push(TimePiece::Strftime(std::mem::take(&mut plain).into()));
        }
        pieces.push(piece);
        chars.nth(length - 1);
    }
    if !plain.is_empty() {
        pieces.push(TimePiece::Strftime(plain.into()));
    }
    // Writing an unknown specifier fails, so each is tried out here.
    let zoned = jiff::Timestamp::UNIX_EPOCH.to_zoned(jiff::tz::TimeZone::UTC);
    for piece in &pieces {
        if let TimePiece::Strftime(format) = piece {
            jiff::fmt::strtime::format(format.as_bytes(), &zoned)
                .map_err(|error| format!("time format {text:?}: {error}"))?;
        }
    }
    Ok(TimeFormat::Pieces(pieces))
}

/// What follows a `%`, when it is one of Envoy's additions, with its length.
fn time_piece(text: &str) -> Option<(TimePiece, usize)> {
    match text.as_bytes() {
        [b's', ..] => Some((TimePiece::EpochSeconds, 1)),
        [b'f', ..] => Some((TimePiece::Fraction(9), 1)),
        [digit @ b'1'..=b'9', b'f', ..] => Some((TimePiece::Fraction(digit - b'0'), 2)),
        [digit @ b'1'..=b'9', b's', ..] => Some((TimePiece::EpochFraction(digit - b'0'), 2)),
        _ => None,
    }
}
