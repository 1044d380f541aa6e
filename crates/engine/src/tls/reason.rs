//! Why a handshake failed: what is counted, and the words for logs. They are BoringSSL's, because people grep for them.

use std::io;

use rustls::{AlertDescription, CertificateError, Error};

use super::verify::Refusal;
use crate::stats::tls::TlsCounter;

/// How a handshake failed.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Failed {
    /// `None`: the peer went away, which is nobody's error.
    pub(crate) counter: Option<TlsCounter>,
    /// Envoy's transport failure reason; empty when there is none.
    pub(crate) reason: String,
}

/// `ERR_LIB_SSL` in the upper byte.
const SSL: u32 = 16 << 24;

fn text(code: u32, name: &str, detail: &str) -> String {
    let colon = if detail.is_empty() { "" } else { ":" };
    format!("TLS_error:|{}:SSL routines:OPENSSL_internal:{name}{colon}{detail}:TLS_error_end", SSL + code)
}

/// Takes an error of tokio-rustls apart.
pub(super) fn failed(error: &io::Error) -> Failed {
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<Error>());
    match inner {
        None => Failed { counter: None, reason: String::new() },
        Some(error) => of_rustls(error),
    }
}

/// Words for first bytes that are no TLS.
pub(super) fn not_tls(bytes: &[u8]) -> String {
    let methods: [&[u8]; 4] = [b"GET ", b"POST ", b"HEAD ", b"PUT "];
    if methods.iter().any(|method| bytes.starts_with(method)) {
        text(156, "HTTP_REQUEST", "")
    } else {
        text(247, "WRONG_VERSION_NUMBER", "")
    }
}

fn of_rustls(error: &Error) -> Failed {
    let (counter, reason) = match error {
        Error::InvalidCertificate(error) => {
            let (counter, why) = certificate(error);
            let detail = if why.is_empty() { why } else { format!("verify cert failed: {why}") };
            (counter, text(125, "CERTIFICATE_VERIFY_FAILED", &detail))
        }
        Error::NoCertificatesPresented => {
            (TlsCounter::FailVerifyNoCert, text(192, "PEER_DID_NOT_RETURN_A_CERTIFICATE", ""))
        }
        Error::AlertReceived(alert) => (TlsCounter::ConnectionError, alert_text(*alert)),
        Error::InvalidMessage(_) => (TlsCounter::ConnectionError, text(247, "WRONG_VERSION_NUMBER", "")),
        Error::PeerIncompatible(why) => (TlsCounter::ConnectionError, incompatible(why)),
        Error::NoApplicationProtocol => {
            (TlsCounter::ConnectionError, text(307, "NO_APPLICATION_PROTOCOL", ""))
        }
        other => (TlsCounter::ConnectionError, text(226, "UNEXPECTED_MESSAGE", &other.to_string())),
    };
    Failed { counter: Some(counter), reason }
}

/// What is counted for a refused certificate, and X.509's words for it.
fn certificate(error: &CertificateError) -> (TlsCounter, String) {
    if let CertificateError::Other(other) = error
        && let Some(refusal) = other.0.downcast_ref::<Refusal>()
    {
        return match refusal {
            Refusal::Names(_) => (TlsCounter::FailVerifySan, refusal.to_string()),
            Refusal::Domain | Refusal::Authority => (TlsCounter::FailVerifyError, refusal.to_string()),
            Refusal::Unfounded => (TlsCounter::ConnectionError, refusal.to_string()),
            Refusal::Hash => (TlsCounter::FailVerifyCertHash, refusal.to_string()),
        };
    }
    let why = match error {
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => "certificate has expired",
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
            "certificate is not yet valid"
        }
        CertificateError::Revoked => "certificate revoked",
        CertificateError::UnknownRevocationStatus => "unable to get certificate CRL",
        CertificateError::UnknownIssuer => "unable to get local issuer certificate",
        CertificateError::BadSignature => "certificate signature failure",
        CertificateError::InvalidPurpose => "unsupported certificate purpose",
        other => {
            let why = format!("X509_verify_cert: certificate verification error at depth 0: {other}");
            return (TlsCounter::FailVerifyError, why);
        }
    };
    (
        TlsCounter::FailVerifyError,
        format!("X509_verify_cert: certificate verification error at depth 0: {why}"),
    )
}

fn incompatible(why: &rustls::PeerIncompatible) -> String {
    use rustls::PeerIncompatible as P;
    match why {
        P::NoCipherSuitesInCommon => text(184, "NO_SHARED_CIPHER", ""),
        P::NoKxGroupsInCommon => text(310, "NO_SHARED_GROUP", ""),
        P::SupportedVersionsExtensionRequired
        | P::Tls12NotOffered
        | P::Tls12NotOfferedOrEnabled
        | P::Tls13RequiredForQuic
        | P::ServerTlsVersionIsDisabledByOurConfig
        | P::ServerDoesNotSupportTls12Or13 => text(240, "UNSUPPORTED_PROTOCOL", ""),
        other => text(240, "UNSUPPORTED_PROTOCOL", &format!("{other:?}")),
    }
}

fn alert_text(alert: AlertDescription) -> String {
    let code: u8 = alert.into();
    let name = match alert {
        AlertDescription::UnexpectedMessage => "SSLV3_ALERT_UNEXPECTED_MESSAGE",
        AlertDescription::BadRecordMac => "SSLV3_ALERT_BAD_RECORD_MAC",
        AlertDescription::HandshakeFailure => "SSLV3_ALERT_HANDSHAKE_FAILURE",
        AlertDescription::BadCertificate => "SSLV3_ALERT_BAD_CERTIFICATE",
        AlertDescription::UnsupportedCertificate => "SSLV3_ALERT_UNSUPPORTED_CERTIFICATE",
        AlertDescription::CertificateRevoked => "SSLV3_ALERT_CERTIFICATE_REVOKED",
        AlertDescription::CertificateExpired => "SSLV3_ALERT_CERTIFICATE_EXPIRED",
        AlertDescription::CertificateUnknown => "SSLV3_ALERT_CERTIFICATE_UNKNOWN",
        AlertDescription::IllegalParameter => "SSLV3_ALERT_ILLEGAL_PARAMETER",
        AlertDescription::UnknownCA => "TLSV1_ALERT_UNKNOWN_CA",
        AlertDescription::AccessDenied => "TLSV1_ALERT_ACCESS_DENIED",
        AlertDescription::DecodeError => "TLSV1_ALERT_DECODE_ERROR",
        AlertDescription::DecryptError => "TLSV1_ALERT_DECRYPT_ERROR",
        AlertDescription::ProtocolVersion => "TLSV1_ALERT_PROTOCOL_VERSION",
        AlertDescription::InsufficientSecurity => "TLSV1_ALERT_INSUFFICIENT_SECURITY",
        AlertDescription::InternalError => "TLSV1_ALERT_INTERNAL_ERROR",
        AlertDescription::UnrecognisedName => "TLSV1_ALERT_UNRECOGNIZED_NAME",
        AlertDescription::CertificateRequired => "TLSV1_ALERT_CERTIFICATE_REQUIRED",
        AlertDescription::NoApplicationProtocol => "TLSV1_ALERT_NO_APPLICATION_PROTOCOL",
        _ => "TLSV1_ALERT_INTERNAL_ERROR",
    };
    text(1000 + u32::from(code), name, "")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_and_numbers_are_boringssls() {
        let failed = of_rustls(&Error::AlertReceived(AlertDescription::UnknownCA));
        assert_eq!(
            failed.reason,
            "TLS_error:|268436504:SSL routines:OPENSSL_internal:TLSV1_ALERT_UNKNOWN_CA:TLS_error_end"
        );
        let failed = of_rustls(&Error::InvalidCertificate(CertificateError::UnknownIssuer));
        assert!(failed.reason.starts_with("TLS_error:|268435581:SSL routines"), "{}", failed.reason);
        assert_eq!(failed.counter, Some(TlsCounter::FailVerifyError));
    }
}
