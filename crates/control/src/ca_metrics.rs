//! The CA's metrics, by Istio's names.
use std::time::{Duration, SystemTime};

use lateen_pki::CertificateAuthority;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ErrorLabel {
    error: &'static str,
}

/// How a request for a certificate ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum CsrOutcome {
    /// A certificate was issued.
    Issued,
    /// The caller did not prove who it is.
    NotAuthenticated,
    /// What it proved is no identity.
    NoIdentity,
    /// The request does not parse, or its key is weak.
    BadRequest,
    /// It was not signed; Istio's word for the reason.
    NotSigned(&'static str),
}

/// Counters of one CA.
#[derive(Clone, Default)]
pub(crate) struct CaMetrics {
    requests: Gauge,
    issued: Gauge,
    not_authenticated: Gauge,
    no_identity: Gauge,
    bad_requests: Gauge,
    not_signed: Family<ErrorLabel, Gauge>,
    root_expiry: Gauge,
    chain_expiry: Gauge,
}

impl CaMetrics {
    pub(crate) fn register(&self, registry: &mut Registry) {
        let gauges = [
            ("csr_count", "Certificate signing requests received", &self.requests),
            ("success_cert_issuance_count", "Certificates issued", &self.issued),
            (
                "authentication_failure_count",
                "Callers who did not prove who they are",
                &self.not_authenticated,
            ),
            ("id_extraction_err_count", "Callers whose proof names no workload", &self.no_identity),
            ("csr_parsing_err_count", "Requests that do not parse or have a weak key", &self.bad_requests),
            ("root_cert_expiry_timestamp", "Unix time in seconds at which the root ends", &self.root_expiry),
            (
                "cert_chain_expiry_timestamp",
                "Unix time in seconds at which the certificate that signs ends",
                &self.chain_expiry,
            ),
        ];
        for (name, help, gauge) in gauges {
            registry.register(format!("citadel_server_{name}"), help, gauge.clone());
        }
        registry.register(
            "citadel_server_csr_sign_err_count",
            "Requests not signed",
            self.not_signed.clone(),
        );
    }

    /// Tells of the authority in use.
    pub(crate) fn authority(&self, authority: &CertificateAuthority) {
        let seconds = |time: SystemTime| {
            let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or(Duration::ZERO);
            i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
        };
        self.root_expiry.set(seconds(authority.root_not_after()));
        self.chain_expiry.set(seconds(authority.not_after()));
    }

    pub(crate) fn count(&self, outcome: CsrOutcome) {
        self.requests.inc();
        match outcome {
            CsrOutcome::Issued => self.issued.inc(),
            CsrOutcome::NotAuthenticated => self.not_authenticated.inc(),
            CsrOutcome::NoIdentity => self.no_identity.inc(),
            CsrOutcome::BadRequest => self.bad_requests.inc(),
            CsrOutcome::NotSigned(error) => self.not_signed.get_or_create(&ErrorLabel { error }).inc(),
        };
    }
}
