//! Gateway: a load balancer at the edge of the mesh.
//! <https://istio.io/latest/docs/reference/config/networking/gateway/>
use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{GROUP, TlsProtocol, VERSIONS};
use crate::object::Kind;

message! {
    /// The spec of a Gateway.
    pub struct GatewaySpec {
        /// What it serves.
        servers: Vec<Server>,
        /// Labels of the pods it is about. Empty: every gateway workload.
        selector: BTreeMap<String, String>,
    }
}

impl Kind for GatewaySpec {
    const GROUP: &'static str = GROUP;
    const VERSIONS: &'static [&'static str] = VERSIONS;
    const KIND: &'static str = "Gateway";
    const PLURAL: &'static str = "gateways";
    const SHORT_NAMES: &'static [&'static str] = &["gw"];
    const COLUMNS: &'static [(&'static str, &'static str, &'static str)] = &[];
}

message! {
    /// One port of a gateway and the hosts it serves.
    pub struct Server {
        /// The port.
        port!: Port,
        /// Address or Unix socket to listen on; empty is all addresses.
        bind: String,
        /// Hosts, each `host`, `namespace/host`, `./host` or `*/host`, the host possibly with a leading wildcard.
        hosts!: Vec<String>,
        /// TLS of the downstream.
        tls: Option<ServerTlsSettings>,
        /// Not implemented by Istio either.
        default_endpoint: String,
        /// Unique name of the server.
        name: String,
    }
}

message! {
    /// A port a gateway listens on.
    pub struct Port {
        /// Port number.
        number!: u32,
        /// `HTTP|HTTPS|GRPC|GRPC-WEB|HTTP2|MONGO|TCP|TLS`.
        protocol!: String,
        /// Name of the port.
        name!: String,
        /// Deprecated by Istio.
        target_port: u32,
    }
}

message! {
    /// TLS of a gateway's server.
    pub struct ServerTlsSettings {
        /// Redirect plain HTTP to HTTPS with 301.
        https_redirect: bool,
        /// How the connection is secured.
        mode: ServerTlsMode,
        /// Path of the certificate.
        server_certificate: String,
        /// Path of the private key.
        private_key: String,
        /// Path of the CA certificates of clients.
        ca_certificates: String,
        /// Path of a certificate revocation list.
        ca_crl: String,
        /// Name of the secret with certificate and key.
        credential_name: String,
        /// Names of several secrets.
        credential_names: Vec<String>,
        /// Name of the secret with the CA certificates.
        ca_cert_credential_name: String,
        /// Certificates given by path.
        tls_certificates: Vec<TlsCertificate>,
        /// Acceptable subject alternative names of clients.
        subject_alt_names: Vec<String>,
        /// Base64 of SHA-256 of acceptable public keys.
        verify_certificate_spki: Vec<String>,
        /// SHA-256 of acceptable certificates.
        verify_certificate_hash: Vec<String>,
        /// Lowest TLS version.
        min_protocol_version: TlsProtocol,
        /// Highest TLS version.
        max_protocol_version: TlsProtocol,
        /// Cipher suites for TLS 1.2 and below.
        cipher_suites: Vec<String>,
    }
}

message! {
    /// A certificate by path.
    pub struct TlsCertificate {
        /// Path of the certificate.
        server_certificate: String,
        /// Path of the private key.
        private_key: String,
        /// Path of the CA certificates.
        ca_certificates: String,
    }
}

/// How a gateway's server secures connections.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum ServerTlsMode {
    /// Routed by SNI, not terminated.
    #[default]
    Passthrough,
    /// Server certificate only.
    Simple,
    /// Client certificate required.
    Mutual,
    /// Passed to the service named by SNI, no VirtualService needed.
    AutoPassthrough,
    /// Mutual TLS with the mesh's certificates.
    IstioMutual,
    /// Client certificate validated when given.
    OptionalMutual,
}
