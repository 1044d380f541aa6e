//! Parameters of TLS that hold for the mesh.
use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::networking::TlsProtocol;

/// TLS of the mesh (`MeshConfig.TLSConfig`).
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct TlsConfig {
    /// Least version: TLS 1.2 unless it says `TLSV1_3`.
    pub min_protocol_version: TlsProtocol,
    /// Cipher suites of TLS 1.2, by their names in OpenSSL. Default: those with forward secrecy.
    pub cipher_suites: Vec<String>,
    /// Groups for the key exchange, in order of preference: `X25519`, `P-256`, `P-384`, `X25519MLKEM768`. Default of mutual TLS
    /// in the mesh: the last first; of other TLS: the proxy's.
    pub ecdh_curves: Vec<String>,
    /// Everything else that was given.
    #[serde(flatten)]
    pub rest: BTreeMap<String, Value>,
}

impl TlsConfig {
    /// What a proxy would refuse with everything around it is refused here; in Istio's words, which only warns.
    pub(super) fn check(&self) -> Result<(), String> {
        let unknown = |names: &[String], known: &dyn Fn(&str) -> bool| {
            let mut unknown: Vec<_> = names.iter().filter(|name| !known(name)).cloned().collect();
            unknown.sort();
            unknown.join(" ")
        };
        let curves = unknown(&self.ecdh_curves, &|name| CURVES.contains(&name));
        if !curves.is_empty() {
            return Err(format!(
                "detected unrecognized ECDH curves: [{curves}]; known are {}",
                CURVES.join(", ")
            ));
        }
        for (what, names) in [("ECDH curves", &self.ecdh_curves), ("cipher suites", &self.cipher_suites)] {
            let mut sorted = names.clone();
            sorted.sort();
            if let Some(pair) = sorted.windows(2).find(|pair| pair[0] == pair[1]) {
                return Err(format!("detected duplicate {what}: [{}]", pair[0]));
            }
        }
        let suites =
            unknown(&self.cipher_suites, &|name| is_served_cipher(name) || WEAK_CIPHERS.contains(&name));
        if !suites.is_empty() {
            return Err(format!("detected unrecognized cipher suites: [{suites}]"));
        }
        if !self.cipher_suites.is_empty() && !self.cipher_suites.iter().any(|name| is_served_cipher(name)) {
            let reason =
                "cipherSuites has none with forward secrecy, which are all that proxies serve: add one of";
            return Err(format!("{reason} {}", SERVED_CIPHERS.join(", ")));
        }
        Ok(())
    }

    pub(super) fn without_effect(&self) -> Vec<String> {
        let weak = self.cipher_suites.iter().enumerate().filter(|(_, name)| !is_served_cipher(name));
        let paths = weak.map(|(index, _)| format!("cipherSuites[{index}]"));
        paths.chain(self.rest.keys().cloned()).collect()
    }
}

/// Cipher suites of TLS 1.2 that proxies serve: forward secret and authenticated.
const SERVED_CIPHERS: [&str; 6] = [
    "ECDHE-ECDSA-AES128-GCM-SHA256",
    "ECDHE-ECDSA-AES256-GCM-SHA384",
    "ECDHE-ECDSA-CHACHA20-POLY1305",
    "ECDHE-RSA-AES128-GCM-SHA256",
    "ECDHE-RSA-AES256-GCM-SHA384",
    "ECDHE-RSA-CHACHA20-POLY1305",
];

/// Others that Istio knows.
const WEAK_CIPHERS: [&str; 8] = [
    "ECDHE-ECDSA-AES128-SHA",
    "ECDHE-ECDSA-AES256-SHA",
    "ECDHE-RSA-AES128-SHA",
    "ECDHE-RSA-AES256-SHA",
    "AES128-GCM-SHA256",
    "AES256-GCM-SHA384",
    "AES128-SHA",
    "AES256-SHA",
];

/// Whether a cipher suite is one that proxies serve.
pub fn is_served_cipher(name: &str) -> bool {
    SERVED_CIPHERS.contains(&name)
}

/// Groups that proxies know.
const CURVES: [&str; 4] = ["X25519", "P-256", "P-384", "X25519MLKEM768"];
