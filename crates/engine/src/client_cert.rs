//! `x-forwarded-client-cert`.
//! <https://www.envoyproxy.io/docs/envoy/v1.40.0/configuration/http/http_conn_man/headers#x-forwarded-client-cert>

use std::fmt::Write as _;

use http::header::{HeaderMap, HeaderName, HeaderValue};
use lateen_ir::{ClientCertDetails, ForwardClientCert, HttpConnectionManager};

use crate::tls::TlsFacts;

pub(crate) const X_FORWARDED_CLIENT_CERT: HeaderName = HeaderName::from_static("x-forwarded-client-cert");

/// Removes, keeps, appends to or replaces the header. `present`: the request has one.
pub(crate) fn forward(
    headers: &mut HeaderMap,
    hcm: &HttpConnectionManager,
    tls: Option<&TlsFacts>,
    present: bool,
) {
    let mode = hcm.forward_client_cert;
    if mode == ForwardClientCert::AlwaysForwardOnly {
        return;
    }
    // Only a connection whose client has shown a certificate is trusted with it.
    let mutual = tls.filter(|tls| tls.has_peer());
    let (Some(tls), true) = (mutual, mode != ForwardClientCert::Sanitize) else {
        if present {
            headers.remove(X_FORWARDED_CLIENT_CERT);
        }
        return;
    };
    if mode == ForwardClientCert::ForwardOnly {
        return;
    }
    let Some(own) = element(tls, &hcm.client_cert_details) else { return };
    let value = match headers.get(&X_FORWARDED_CLIENT_CERT) {
        Some(before) if mode == ForwardClientCert::AppendForward => {
            HeaderValue::from_bytes(&[before.as_bytes(), b",", own.as_bytes()].concat())
        }
        _ => HeaderValue::from_str(&own),
    };
    if let Ok(value) = value {
        headers.insert(X_FORWARDED_CLIENT_CERT, value);
    }
}

/// What this hop has to say.
fn element(tls: &TlsFacts, details: &ClientCertDetails) -> Option<String> {
    let peer = tls.peer()?;
    let mut out = String::new();
    let mut part = |key: &str, value: &str| {
        let separator = if out.is_empty() { "" } else { ";" };
        // Writing to a String cannot fail.
        let _ = write!(out, "{separator}{key}={value}");
    };
    for uri in tls.local().into_iter().flat_map(|own| &own.uris) {
        part("By", uri);
    }
    part("Hash", &peer.fingerprint);
    if details.cert {
        part("Cert", &format!("\"{}\"", tls.peer_pem()?));
    }
    if details.chain {
        part("Chain", &format!("\"{}\"", tls.peer_chain_pem()?));
    }
    if details.subject {
        part("Subject", &format!("\"{}\"", peer.subject));
    }
    if details.uri {
        if peer.uris.is_empty() {
            part("URI", "");
        }
        peer.uris.iter().for_each(|uri| part("URI", uri));
    }
    if details.dns {
        peer.dns.iter().for_each(|name| part("DNS", name));
    }
    Some(out)
}
