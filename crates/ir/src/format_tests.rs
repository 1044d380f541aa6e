//! Tests of the format parser and renderer.

use proptest::prelude::*;

use crate::format::*;
use crate::format_parse::DEFAULT_TEXT_FORMAT;

/// The parts in a compact notation: literals in quotes.
fn shape(format: &str) -> String {
    let parts = TextFormat::parse(format, false).unwrap().parts;
    let shown = parts.iter().map(|part| match part {
        Part::Literal(text) => format!("{text:?}"),
        Part::Operator(Substitution { operator, max_length: None }) => format!("{operator:?}"),
        Part::Operator(Substitution { operator, max_length: Some(max) }) => format!("{operator:?}:{max}"),
    });
    shown.collect::<Vec<_>>().join(" ")
}

#[test]
fn text_formats_parse() {
    let table = [
        ("", ""),
        ("plain", "\"plain\""),
        ("100%%", "\"100%\""),
        ("%RESPONSE_CODE%", "ResponseCode"),
        ("a %PROTOCOL% b %RESPONSE_FLAGS%", "\"a \" Protocol \" b \" ResponseFlags"),
        ("%REQ(X-A):4%", "Request(Named(\"x-a\"), None):4"),
        ("%REQ(X-ENVOY-ORIGINAL-PATH?:PATH):9%", "Request(Named(\"x-envoy-original-path\"), Some(Path)):9"),
        ("%REQ(:METHOD)%%%", "Request(Method, None) \"%\""),
        ("%RESP(:STATUS)%%TRAILER(a)%", "Response(Status, None) Trailer(Named(\"a\"), None)"),
        ("%START_TIME%", "Time(Start, Iso8601Millis)"),
        ("%EMIT_TIME(%s.%3f)%", "Time(Emit, Pieces([EpochSeconds, Strftime(\".\"), Fraction(3)]))"),
        (
            "%START_TIME(100%% (%6f))%",
            "Time(Start, Pieces([Strftime(\"100%% (\"), Fraction(6), Strftime(\")\")]))",
        ),
        (
            "%START_TIME(%Y)%-%START_TIME(%m%f)%",
            "Time(Start, Pieces([Strftime(\"%Y\")])) \"-\" Time(Start, Pieces([Strftime(\"%m\"), Fraction(9)]))",
        ),
        ("%UPSTREAM_HOST%", "Address(UpstreamHost, Full)"),
        ("%DOWNSTREAM_DIRECT_REMOTE_ADDRESS_WITHOUT_PORT%", "Address(DownstreamDirectRemote, WithoutPort)"),
        ("%UPSTREAM_PEER_URI_SAN%", "UpstreamTls(PeerUriSan)"),
        ("%METADATA(ROUTE:istio:config)%", "Metadata { of: Route, path: [\"istio\", \"config\"] }"),
        (
            "%PATH%%PATH()%",
            "Path { query: true, of: OriginalOrRequest } Path { query: true, of: OriginalOrRequest }",
        ),
        ("%PATH(NQ:ORIG)%", "Path { query: false, of: Original }"),
        ("%QUERY_PARAM(q):3%", "QueryParameter(\"q\"):3"),
        ("%UPSTREAM_LOCAL_URI_SAN%%UPSTREAM_TLS_GROUP%", "UpstreamTls(LocalUriSan) UpstreamTls(Group)"),
    ];
    for (format, expected) in table {
        assert_eq!(shape(format), expected, "{format}");
    }
}

#[test]
fn bad_formats_say_why() {
    let table = [
        ("%", "no closing %"),
        ("%RESPONSE_CODE", "no closing %"),
        ("%NO_SUCH%", "unknown command operator %NO_SUCH%"),
        ("%REQ%", "needs an argument"),
        ("%REQ()%", "needs an argument"),
        ("%REQ(A?B?C)%", "more than one alternative"),
        ("%REQ(a b)%", "not a header name"),
        ("%REQ(A", "no closing parenthesis"),
        ("%REQ(A):x%", "no closing parenthesis"),
        ("%PROTOCOL:0%", "not a length"),
        ("%PROTOCOL(x)%", "takes no argument"),
        ("%GRPC_STATUS(LOUD)%", "CAMEL_STRING"),
        ("%START_TIME(%!)%", "time format"),
        ("% %", "no operator name"),
        ("%PATH(X)%", "use WQ or NQ"),
        ("%PATH(WQ:NEW)%", "use ORIG, PATH or ORIG_OR_PATH"),
        ("%QUERY_PARAM%", "needs an argument"),
        ("%UPSTREAM_PEER_SERIAL%", "unknown command operator"),
        ("%TRACE_ID%", "%TRACE_ID% is not supported: there is no tracing"),
        (
            "%COMMON_DURATION(DS_RX_BEG:DS_TX_END:ms)%",
            "%COMMON_DURATION% is not supported: that is not measured",
        ),
    ];
    for (format, expected) in table {
        let error = TextFormat::parse(format, false).unwrap_err().to_string();
        assert!(error.contains(expected), "{format}: {error}");
    }
}

#[test]
fn every_operator_of_istios_default_log_is_known() {
    let istio = "[%START_TIME%] \"%REQ(:METHOD)% %REQ(X-ENVOY-ORIGINAL-PATH?:PATH)% %PROTOCOL%\" %RESPONSE_CODE% \
        %RESPONSE_FLAGS% %RESPONSE_CODE_DETAILS% %CONNECTION_TERMINATION_DETAILS% \
        \"%UPSTREAM_TRANSPORT_FAILURE_REASON%\" %BYTES_RECEIVED% %BYTES_SENT% %DURATION% \
        %RESP(X-ENVOY-UPSTREAM-SERVICE-TIME)% \"%REQ(X-FORWARDED-FOR)%\" \"%REQ(USER-AGENT)%\" \"%REQ(X-REQUEST-ID)%\" \
        \"%REQ(:AUTHORITY)%\" \"%UPSTREAM_HOST%\" %UPSTREAM_CLUSTER_RAW% %UPSTREAM_LOCAL_ADDRESS% \
        %DOWNSTREAM_LOCAL_ADDRESS% %DOWNSTREAM_REMOTE_ADDRESS% %REQUESTED_SERVER_NAME% %ROUTE_NAME%\n";
    for format in [istio, DEFAULT_TEXT_FORMAT] {
        TextFormat::parse(format, false).unwrap();
    }
}

#[test]
fn json_formats_sort_keys_and_keep_single_operators() {
    let value = serde_json::json!({
        "z": "%RESPONSE_CODE%",
        "a": "%PROTOCOL% and",
        "list": ["%DURATION:2%", 7, true, "text"],
    });
    let JsonFormat::Object(members) = JsonFormat::parse(&value, false).unwrap() else { panic!("an object") };
    let keys: Vec<&str> = members.iter().map(|(key, _)| &**key).collect();
    assert_eq!(keys, ["a", "list", "z"]);
    let [JsonFormat::Text(text), JsonFormat::Array(list), JsonFormat::Value(code)] =
        [&members[0].1, &members[1].1, &members[2].1]
    else {
        panic!("{members:?}")
    };
    assert_eq!(text.parts.len(), 2);
    assert_eq!(code, &Substitution { operator: Operator::ResponseCode, max_length: None });
    let duration = Substitution { operator: Operator::Duration, max_length: Some(2) };
    let constant = |value: serde_json::Value| JsonFormat::Constant(value);
    assert_eq!(list[0], JsonFormat::Value(duration));
    assert_eq!(list[1..3], [constant(7.into()), constant(true.into())]);
    assert!(matches!(&list[3], JsonFormat::Text(text) if text.as_literal() == Some("text")));
}

proptest! {
    #[test]
    fn no_text_breaks_the_parser(text in ".{0,60}") {
        let _ = TextFormat::parse(&text, false);
    }

    #[test]
    fn near_formats_do_not_break_the_parser(text in "(%|REQ|START_TIME|\\(|\\)|:|[0-9]|[a-zA-Z?]|ü){0,20}") {
        let _ = TextFormat::parse(&text, false);
    }

    #[test]
    fn text_without_percent_is_itself(text in "[^%]{0,40}") {
        let format = TextFormat::parse(&text, false).unwrap();
        prop_assert_eq!(format.as_literal(), Some(text.as_str()));
    }
}

/// The operators that Envoy 1.40 takes in a log of TCP and of HTTP, found by asking it.
const OF_ENVOY: &str = include_str!("envoy_operators.txt");

#[test]
fn every_operator_of_envoy_is_known_or_refused_by_name() {
    for operator in OF_ENVOY.lines() {
        let Err(error) = TextFormat::parse(&format!("%{operator}%"), false) else { continue };
        let name = operator.split('(').next().unwrap_or_default();
        let reason = format!("%{name}% is not supported: ");
        assert!(error.to_string().contains(&reason), "{operator}: {error}");
    }
}
