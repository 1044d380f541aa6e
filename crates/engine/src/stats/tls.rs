//! `listener.ADDRESS.ssl.*` and `cluster.NAME.ssl.*`.
//! <https://www.envoyproxy.io/docs/envoy/v1.40.0/configuration/listeners/stats#tls-statistics>

use super::blocks::{BlockNames, BlockReading};
use super::slots::Counter;
use crate::tls::{Failed, TlsFacts};

macro_rules! counters {
    ($($name:ident = $text:literal,)*) => {
        /// What is counted, whoever the peer is.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub(crate) enum TlsCounter {
            $(#[doc = $text] $name,)*
        }

        const COUNTERS: &[&str] = &[
            $($text,)*
            "ssl.versions.TLSv1.2",
            "ssl.versions.TLSv1.3",
            "ssl.ciphers.TLS_AES_128_GCM_SHA256",
            "ssl.ciphers.TLS_AES_256_GCM_SHA384",
            "ssl.ciphers.TLS_CHACHA20_POLY1305_SHA256",
            "ssl.ciphers.ECDHE-ECDSA-AES128-GCM-SHA256",
            "ssl.ciphers.ECDHE-ECDSA-AES256-GCM-SHA384",
            "ssl.ciphers.ECDHE-ECDSA-CHACHA20-POLY1305",
            "ssl.ciphers.ECDHE-RSA-AES128-GCM-SHA256",
            "ssl.ciphers.ECDHE-RSA-AES256-GCM-SHA384",
            "ssl.ciphers.ECDHE-RSA-CHACHA20-POLY1305",
            "ssl.curves.X25519",
            "ssl.curves.P-256",
            "ssl.curves.P-384",
            "ssl.curves.X25519MLKEM768",
        ];
    };
}

counters! {
    ConnectionError = "ssl.connection_error",
    FailVerifyCertHash = "ssl.fail_verify_cert_hash",
    FailVerifyError = "ssl.fail_verify_error",
    FailVerifyNoCert = "ssl.fail_verify_no_cert",
    FailVerifySan = "ssl.fail_verify_san",
    Handshake = "ssl.handshake",
    NoCertificate = "ssl.no_certificate",
    SessionReused = "ssl.session_reused",
    DownstreamSecretsNotReady = "server_ssl_socket_factory.downstream_context_secrets_not_ready",
    UpstreamSecretsNotReady = "client_ssl_socket_factory.upstream_context_secrets_not_ready",
}

/// Names that exist from their first count on, as Envoy makes them.
pub(crate) fn appears_when_used(name: &str) -> bool {
    ["ssl.versions.", "ssl.ciphers.", "ssl.curves."].iter().any(|prefix| name.starts_with(prefix))
}

/// One end's numbers: a listener's or a cluster's. The engine makes it when there is TLS.
#[derive(Debug, Default)]
pub(crate) struct TlsStats {
    counters: [Counter; COUNTERS.len()],
}

impl TlsStats {
    pub(crate) const NAMES: BlockNames = BlockNames { counters: COUNTERS, gauges: &[], histograms: &[] };

    pub(crate) fn inc(&self, counter: TlsCounter) {
        self.counters[counter as usize].inc();
    }

    /// Counts a handshake that succeeded.
    pub(crate) fn shaken(&self, facts: &TlsFacts) {
        self.inc(TlsCounter::Handshake);
        if facts.resumed {
            self.inc(TlsCounter::SessionReused);
        }
        if !facts.has_peer() {
            self.inc(TlsCounter::NoCertificate);
        }
        self.inc_named("ssl.versions.", facts.version);
        self.inc_named("ssl.ciphers.", facts.cipher);
        if let Some(curve) = facts.curve {
            self.inc_named("ssl.curves.", curve);
        }
    }

    /// Counts one that did not.
    pub(crate) fn failed(&self, failed: &Failed) {
        if let Some(counter) = failed.counter {
            self.inc(counter);
        }
    }

    fn inc_named(&self, prefix: &str, name: &str) {
        let position = COUNTERS.iter().position(|known| known.strip_prefix(prefix) == Some(name));
        if let Some(position) = position {
            self.counters[position].inc();
        }
    }

    pub(crate) fn read(&self) -> BlockReading {
        BlockReading { counters: self.counters.iter().map(Counter::get).collect(), ..BlockReading::default() }
    }

    pub(crate) fn reset_counters(&self) {
        self.counters.iter().for_each(Counter::reset);
    }
}
