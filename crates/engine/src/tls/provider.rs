//! rustls' cryptography, narrowed to what a context allows.

use std::sync::Arc;

use lateen_ir::{CipherSuite, Curve, TlsParams, TlsVersion};
use rustls::crypto::aws_lc_rs::{self, cipher_suite as suites, kx_group};
use rustls::crypto::{CryptoProvider, SupportedKxGroup};
use rustls::{SupportedCipherSuite, SupportedProtocolVersion};

/// Envoy's preference, where a context gives none.
const TLS12: [CipherSuite; 6] = [
    CipherSuite::EcdsaAes128,
    CipherSuite::EcdsaChacha20,
    CipherSuite::RsaAes128,
    CipherSuite::RsaChacha20,
    CipherSuite::EcdsaAes256,
    CipherSuite::RsaAes256,
];

/// Envoy's preference, and one more that clients may insist on.
const CURVES: [Curve; 4] = [Curve::X25519MlKem768, Curve::X25519, Curve::P256, Curve::P384];

fn suite(of: CipherSuite) -> SupportedCipherSuite {
    match of {
        CipherSuite::EcdsaAes128 => suites::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256,
        CipherSuite::EcdsaAes256 => suites::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384,
        CipherSuite::EcdsaChacha20 => suites::TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256,
        CipherSuite::RsaAes128 => suites::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,
        CipherSuite::RsaAes256 => suites::TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384,
        CipherSuite::RsaChacha20 => suites::TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256,
    }
}

fn group(of: Curve) -> &'static dyn SupportedKxGroup {
    match of {
        Curve::X25519 => kx_group::X25519,
        Curve::P256 => kx_group::SECP256R1,
        Curve::P384 => kx_group::SECP384R1,
        Curve::X25519MlKem768 => kx_group::X25519MLKEM768,
    }
}

/// The provider for a context.
pub(super) fn provider(params: &TlsParams) -> Arc<CryptoProvider> {
    let mut provider = aws_lc_rs::default_provider();
    let tls12: &[CipherSuite] = if params.cipher_suites.is_empty() { &TLS12 } else { &params.cipher_suites };
    let tls13 = [
        suites::TLS13_AES_128_GCM_SHA256,
        suites::TLS13_AES_256_GCM_SHA384,
        suites::TLS13_CHACHA20_POLY1305_SHA256,
    ];
    provider.cipher_suites = tls13.into_iter().chain(tls12.iter().copied().map(suite)).collect();
    let curves: &[Curve] = if params.curves.is_empty() { &CURVES } else { &params.curves };
    provider.kx_groups = curves.iter().copied().map(group).collect();
    Arc::new(provider)
}

/// The versions of a context.
pub(super) fn versions(params: &TlsParams) -> Vec<&'static SupportedProtocolVersion> {
    let allowed = |version: TlsVersion| params.min <= version && version <= params.max;
    let all = [(TlsVersion::V1_2, &rustls::version::TLS12), (TlsVersion::V1_3, &rustls::version::TLS13)];
    all.into_iter().filter(|(version, _)| allowed(*version)).map(|(_, version)| version).collect()
}
