//! Validation of RequestAuthentication, with Istio's words.
use super::target_reference::check_targets;
use super::{Findings, check_duration};
use crate::security::request_authentication::{JwtRule, RequestAuthenticationSpec};

/// A key set's place taken apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JwksUri<'a> {
    /// `https` rather than `http`.
    pub https: bool,
    /// A name or an address; IPv6 without brackets.
    pub host: &'a str,
    /// As given, or the scheme's own.
    pub port: u16,
    /// Host and port as given, for the `host` header.
    pub authority: &'a str,
    /// With the query; `/` at least.
    pub path: String,
}

impl<'a> JwksUri<'a> {
    /// Takes a URI apart.
    ///
    /// # Errors
    /// It is none that keys can be fetched from; Istio's words.
    pub fn parse(uri: &'a str) -> Result<Self, String> {
        let (scheme, rest) = uri.split_once("://").unwrap_or(("", uri));
        let https = match scheme.to_ascii_lowercase().as_str() {
            "https" => true,
            "http" => false,
            _ => return Err(format!("URI scheme {scheme:?} is not supported")),
        };
        let rest = rest.split('#').next().unwrap_or_default();
        let end = rest.find(['/', '?']).unwrap_or(rest.len());
        let (authority, path) = rest.split_at(end);
        let bad = |what: &str| format!("parse {uri:?}: {what}");
        if !uri.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(bad("invalid character in URL"));
        }
        if authority.contains('@') {
            return Err(bad("a user has no place in it"));
        }
        let (host, port) = match authority.strip_prefix('[') {
            Some(rest) => {
                let (host, port) = rest.split_once(']').ok_or_else(|| bad("missing ']' in host"))?;
                (host, port.strip_prefix(':'))
            }
            None => match authority.rsplit_once(':') {
                Some((host, port)) => (host, Some(port)),
                None => (authority, None),
            },
        };
        if host.is_empty() {
            return Err(bad("it has no host"));
        }
        let port = match port {
            None | Some("") => {
                if https {
                    443
                } else {
                    80
                }
            }
            Some(port) => port.parse().map_err(|_| bad(&format!("invalid port {port:?} after host")))?,
        };
        let slash = if path.starts_with('/') { "" } else { "/" };
        Ok(Self { https, host, port, authority, path: format!("{slash}{path}") })
    }
}

/// Validates a RequestAuthentication's spec.
pub fn validate_request_authentication(spec: &RequestAuthenticationSpec) -> Findings {
    let mut findings = Findings::default();
    check_targets(&mut findings, spec);
    for (index, rule) in spec.jwt_rules.iter().enumerate() {
        check_rule(&mut findings, &format!("spec.jwtRules[{index}]"), rule);
    }
    findings
}

fn check_rule(findings: &mut Findings, path: &str, rule: &JwtRule) {
    for (field, list, message) in [
        ("audiences", &rule.audiences, "audience must be non-empty string"),
        ("fromParams", &rule.from_params, "location query must be non-empty string"),
        ("fromCookies", &rule.from_cookies, "cookie name must be non-empty string"),
        ("spaceDelimitedClaims", &rule.space_delimited_claims, "claim name must be non-empty string"),
    ] {
        for (index, _) in list.iter().enumerate().filter(|(_, value)| value.is_empty()) {
            findings.error(format!("{path}.{field}[{index}]"), message);
        }
    }
    if rule.issuer.is_empty() && rule.jwks_uri.is_empty() {
        findings.error(path, "issuer or jwksUri must be non-empty string");
    }
    if !rule.jwks_uri.is_empty()
        && let Err(reason) = JwksUri::parse(&rule.jwks_uri)
    {
        findings.error(format!("{path}.jwksUri"), reason);
    }
    if !rule.jwks.is_empty()
        && let Some(reason) = jwks_problem(&rule.jwks)
    {
        findings.error(format!("{path}.jwks"), format!("jwks parse error: {reason}"));
    }
    for (index, header) in rule.from_headers.iter().enumerate() {
        let path = format!("{path}.fromHeaders[{index}]");
        if header.name.is_empty() {
            findings.error(path, "location header name must be non-empty string");
        } else {
            check_header(findings, &path, &header.name);
        }
    }
    if !rule.output_payload_to_header.is_empty() {
        check_header(findings, &format!("{path}.outputPayloadToHeader"), &rule.output_payload_to_header);
    }
    for (index, output) in rule.output_claim_to_headers.iter().enumerate() {
        let path = format!("{path}.outputClaimToHeaders[{index}]");
        if output.claim.is_empty() || output.header.is_empty() {
            let message = "outputClaimToHeaders header and claim value must be non-empty string";
            findings.error(path, message);
        } else {
            check_header(findings, &path, &output.header);
        }
    }
    check_duration(findings, format!("{path}.timeout"), rule.timeout.as_ref());
}

/// Istio's strict header names, which proxies take in any case.
fn check_header(findings: &mut Findings, path: &str, name: &str) {
    if !name.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_')) {
        findings.error(path, format!("header name {name} is not a valid header name"));
    }
}

/// Envoy refuses a whole listener for keys it can't read.
fn jwks_problem(text: &str) -> Option<String> {
    let value: serde_json::Value = match serde_json::from_str(text) {
        Ok(value) => value,
        Err(error) => return Some(error.to_string()),
    };
    let Some(keys) = value.get("keys") else { return Some("it has no keys".to_owned()) };
    let Some(keys) = keys.as_array() else { return Some("keys is not a list".to_owned()) };
    let known = |key: &serde_json::Value| {
        key.get("kty")
            .and_then(|kind| kind.as_str())
            .is_some_and(|kind| ["RSA", "EC", "oct", "OKP"].contains(&kind))
    };
    (!keys.iter().any(known)).then(|| "it has no keys of a known type (kty)".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn said(rule: Value) -> Vec<String> {
        let spec = json!({ "jwtRules": [rule] });
        let findings = validate_request_authentication(&serde_json::from_value(spec).unwrap());
        findings.errors.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn istios_words() {
        let keys = r#"{"keys":[{"kty":"RSA"}]}"#;
        let good = json!({
            "issuer": "i", "audiences": ["a"], "jwks": keys, "fromHeaders": [{ "name": "x-a", "prefix": "B " }],
            "fromParams": ["t"], "fromCookies": ["c"], "outputPayloadToHeader": "x-p", "timeout": "5s",
            "outputClaimToHeaders": [{ "header": "x-c", "claim": "a.b" }], "forwardOriginalToken": true,
        });
        assert_eq!(said(good), Vec::<String>::new());
        let table = [
            (
                json!({ "audiences": [""] }),
                "spec.jwtRules[0].audiences[0]: audience must be non-empty string",
            ),
            (
                json!({ "jwksUri": "ftp://a/b" }),
                "spec.jwtRules[0].jwksUri: URI scheme \"ftp\" is not supported",
            ),
            (json!({ "jwks": "{}" }), "spec.jwtRules[0].jwks: jwks parse error: it has no keys"),
            (
                json!({ "fromHeaders": [{}] }),
                "spec.jwtRules[0].fromHeaders[0]: location header name must be non-empty string",
            ),
            (
                json!({ "fromParams": [""] }),
                "spec.jwtRules[0].fromParams[0]: location query must be non-empty string",
            ),
            (
                json!({ "fromCookies": [""] }),
                "spec.jwtRules[0].fromCookies[0]: cookie name must be non-empty string",
            ),
            (
                json!({ "outputClaimToHeaders": [{ "header": "x" }] }),
                "spec.jwtRules[0].outputClaimToHeaders[0]: outputClaimToHeaders header and claim value must be non-empty string",
            ),
            (
                json!({ "outputClaimToHeaders": [{ "claim": "c" }] }),
                "spec.jwtRules[0].outputClaimToHeaders[0]: outputClaimToHeaders header and claim value must be non-empty string",
            ),
            (
                json!({ "outputClaimToHeaders": [{ "header": "a b", "claim": "c" }] }),
                "spec.jwtRules[0].outputClaimToHeaders[0]: header name a b is not a valid header name",
            ),
            (json!({ "timeout": "0s" }), "spec.jwtRules[0].timeout: duration must be greater than 1ms"),
        ];
        for (mut rule, expected) in table {
            rule["issuer"] = json!("i");
            assert_eq!(said(rule), [expected]);
        }
        assert_eq!(said(json!({ "jwksUri": "https://a" })), Vec::<String>::new());
        let missing = "spec.jwtRules[0]: issuer or jwksUri must be non-empty string";
        assert_eq!(said(json!({ "jwks": keys })), [missing]);
        let both = json!({ "selector": { "matchLabels": { "a": "b" } }, "targetRefs": [{ "kind": "Gateway", "name": "g" }] });
        let findings = validate_request_authentication(&serde_json::from_value(both).unwrap());
        assert_eq!(findings.errors[0].message, "only one of targetRefs or workloadSelector can be set");
    }

    #[test]
    fn uris_are_taken_apart() {
        let parse = |uri| JwksUri::parse(uri).map(|uri| (uri.https, uri.host.to_owned(), uri.port, uri.path));
        assert_eq!(
            parse("https://a.example/k?x#y"),
            Ok((true, "a.example".to_owned(), 443, "/k?x".to_owned()))
        );
        assert_eq!(parse("HTTP://a:81"), Ok((false, "a".to_owned(), 81, "/".to_owned())));
        assert_eq!(parse("http://[::1]:8080/?q"), Ok((false, "::1".to_owned(), 8080, "/?q".to_owned())));
        for uri in [
            "",
            "a/b",
            "https://",
            "https://u:p@a/",
            "https://a:x/",
            "https://a:99999/",
            "http://[::1/",
            "http://a b/",
        ] {
            assert!(parse(uri).is_err(), "{uri}");
        }
    }
}
