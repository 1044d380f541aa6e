//! Values of headers, and other text that becomes part of one.
use super::Findings;

/// Envoy's limit.
const MAX_BYTES: usize = 16_384;

/// Text that a proxy puts into a header as it is.
pub(super) fn check_text(findings: &mut Findings, path: String, text: &str) {
    if text.bytes().any(|c| (c < 0x20 && c != b'\t') || c == 0x7f) {
        findings.error(path, format!("{text:?} has control characters"));
    }
}

/// Proxies read `%COMMAND%` in header values, and refuse all routes of a port for one value they cannot read.
pub(super) fn check_header_value(findings: &mut Findings, path: String, value: &str) {
    check_text(findings, path.clone(), value);
    if value.len() > MAX_BYTES {
        findings.error(path, format!("a header value may have {MAX_BYTES} bytes at most"));
    } else if let Err(problem) = check_commands(value) {
        findings.error(path, format!("header value {value:?}: {problem}; write %% for a percent sign"));
    }
}

/// Whether every `%` is doubled or part of a command operator: `%NAME%`, `%NAME(ARGUMENT)%`, `%NAME(ARGUMENT):LENGTH%`.
///
/// # Errors
/// What is wrong, in words.
pub(crate) fn check_commands(value: &str) -> Result<(), String> {
    let unpaired = || "a % that begins no %COMMAND%".to_owned();
    let mut rest = value;
    while let Some(start) = rest.find('%') {
        rest = &rest[start + 1..];
        if let Some(after) = rest.strip_prefix('%') {
            rest = after;
            continue;
        }
        let length =
            rest.bytes().take_while(|c| c.is_ascii_uppercase() || c.is_ascii_digit() || *c == b'_').count();
        let name = &rest[..length];
        rest = &rest[length..];
        let mut argument = None;
        if let Some(arguments) = rest.strip_prefix('(') {
            let end = arguments.find(')').ok_or_else(unpaired)?;
            argument = Some(&arguments[..end]);
            rest = &arguments[end + 1..];
        }
        if let Some(length) = rest.strip_prefix(':') {
            rest = length.trim_start_matches(|c: char| c.is_ascii_digit());
        }
        rest = rest.strip_prefix('%').filter(|_| !name.is_empty()).ok_or_else(unpaired)?;
        check_command(name, argument)?;
    }
    Ok(())
}

fn check_command(name: &str, argument: Option<&str>) -> Result<(), String> {
    if WITH_ARGUMENT.contains(&name) {
        return match argument {
            Some(argument) if !argument.is_empty() => Ok(()),
            _ => Err(format!("%{name}% needs an argument in parentheses")),
        };
    }
    let part = |rest: &str| matches!(rest, "ADDRESS" | "ADDRESS_WITHOUT_PORT" | "PORT");
    let address = ADDRESSES.iter().any(|prefix| name.strip_prefix(prefix).is_some_and(part));
    let connection = name.strip_prefix("DOWNSTREAM_").or_else(|| name.strip_prefix("UPSTREAM_"));
    let of_clients = name.starts_with("DOWNSTREAM_");
    let tls =
        connection.is_some_and(|rest| TLS.contains(&rest) || (of_clients && TLS_OF_CLIENTS.contains(&rest)));
    if address || tls || PLAIN.contains(&name) {
        Ok(())
    } else {
        Err(format!("%{name}% is no command that proxies know"))
    }
}

/// Envoy's command operators, "Access logging" in its documentation: those with an argument, ...
const WITH_ARGUMENT: &[&str] = &[
    "REQ",
    "RESP",
    "TRAILER",
    "REQUEST_HEADER",
    "RESPONSE_HEADER",
    "RESPONSE_TRAILER",
    "QUERY_PARAM",
    "ENVIRONMENT",
    "DYNAMIC_METADATA",
    "CLUSTER_METADATA",
    "UPSTREAM_METADATA",
    "FILTER_STATE",
    "METADATA",
];
/// ... and without one (or with one that may be left out).
const PLAIN: &[&str] = &[
    "START_TIME",
    "EMIT_TIME",
    "PATH",
    "GRPC_STATUS",
    "GRPC_STATUS_NUMBER",
    "PROTOCOL",
    "UPSTREAM_PROTOCOL",
    "RESPONSE_CODE",
    "RESPONSE_CODE_DETAILS",
    "CONNECTION_TERMINATION_DETAILS",
    "RESPONSE_FLAGS",
    "RESPONSE_FLAGS_LONG",
    "DURATION",
    "REQUEST_DURATION",
    "REQUEST_TX_DURATION",
    "RESPONSE_DURATION",
    "RESPONSE_TX_DURATION",
    "UPSTREAM_CLUSTER",
    "UPSTREAM_CLUSTER_RAW",
    "UPSTREAM_HOST",
    "UPSTREAM_HOST_NAME",
    "UPSTREAM_HOST_NAME_WITHOUT_PORT",
    "UPSTREAM_TRANSPORT_FAILURE_REASON",
    "DOWNSTREAM_TRANSPORT_FAILURE_REASON",
    "UPSTREAM_REQUEST_ATTEMPT_COUNT",
    "UPSTREAM_CONNECTION_ID",
    "REQUESTED_SERVER_NAME",
    "ROUTE_NAME",
    "VIRTUAL_CLUSTER_NAME",
    "FILTER_CHAIN_NAME",
    "HOSTNAME",
    "CONNECTION_ID",
    "STREAM_ID",
    "UNIQUE_ID",
    "LOCAL_REPLY_BODY",
    "ACCESS_LOG_TYPE",
    "BYTES_RECEIVED",
    "BYTES_SENT",
    "REQUEST_HEADERS_BYTES",
    "RESPONSE_HEADERS_BYTES",
    "RESPONSE_TRAILERS_BYTES",
    "UPSTREAM_WIRE_BYTES_SENT",
    "UPSTREAM_WIRE_BYTES_RECEIVED",
    "UPSTREAM_HEADER_BYTES_SENT",
    "UPSTREAM_HEADER_BYTES_RECEIVED",
    "DOWNSTREAM_WIRE_BYTES_SENT",
    "DOWNSTREAM_WIRE_BYTES_RECEIVED",
    "DOWNSTREAM_HEADER_BYTES_SENT",
    "DOWNSTREAM_HEADER_BYTES_RECEIVED",
];
/// What addresses begin with.
const ADDRESSES: &[&str] = &[
    "DOWNSTREAM_DIRECT_REMOTE_",
    "DOWNSTREAM_DIRECT_LOCAL_",
    "DOWNSTREAM_REMOTE_",
    "DOWNSTREAM_LOCAL_",
    "UPSTREAM_LOCAL_",
    "UPSTREAM_REMOTE_",
];
/// Facts about TLS, after `DOWNSTREAM_` or `UPSTREAM_`.
const TLS: &[&str] = &[
    "TLS_VERSION",
    "TLS_CIPHER",
    "TLS_SESSION_ID",
    "PEER_SUBJECT",
    "PEER_ISSUER",
    "PEER_URI_SAN",
    "PEER_DNS_SAN",
    "PEER_IP_SAN",
    "LOCAL_URI_SAN",
    "LOCAL_DNS_SAN",
    "LOCAL_IP_SAN",
    "TLS_GROUP",
    "PEER_CERT",
    "PEER_CERT_V_START",
    "PEER_CERT_V_END",
];
/// The same, after `DOWNSTREAM_` only.
const TLS_OF_CLIENTS: &[&str] =
    &["LOCAL_SUBJECT", "LOCAL_EMAIL_SAN", "PEER_EMAIL_SAN", "PEER_FINGERPRINT_256", "PEER_SERIAL"];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_checked() {
        for value in [
            "",
            "plain",
            "100%%",
            "a%REQ(x-a?b):10%b",
            "%DOWNSTREAM_REMOTE_ADDRESS%%%",
            "%START_TIME%",
            "%START_TIME(%Y-%m)%",
            "%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%",
            "%DOWNSTREAM_TLS_VERSION%",
        ] {
            assert_eq!(check_commands(value), Ok(()), "{value}");
        }
        for value in [
            "100%",
            "%",
            "%REQ(x%",
            "%start%",
            "% %",
            "%A%%",
            "%FOO%",
            "%REQ%",
            "%REQ()%",
            "%DOWNSTREAM_REMOTE_FOO%",
            "%UPSTREAM_%",
        ] {
            assert!(check_commands(value).is_err(), "{value}");
        }
    }
}
