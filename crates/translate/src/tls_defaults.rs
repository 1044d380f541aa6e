//! `tlsDefaults` of mesh config: parameters of TLS that is not the mesh's own. As in Istio they hold for servers of gateways and
//! sidecars (SIMPLE, MUTUAL, OPTIONAL_MUTUAL), and but for the least version for clients of DestinationRules.
use lateen_api::MeshConfig;
use lateen_api::networking::TlsProtocol;
use lateen_xds::pb::envoy::extensions::transport_sockets::tls::v3 as tls;
use tls::tls_parameters::TlsProtocol as Version;

/// What of mesh config it depends on.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct TlsDefaults {
    /// Not even TLS 1.2.
    only_tls13: bool,
    cipher_suites: Vec<String>,
    curves: Vec<String>,
}

impl TlsDefaults {
    pub(crate) fn new(mesh: &MeshConfig) -> Self {
        let Some(given) = &mesh.tls_defaults else { return Self::default() };
        Self {
            only_tls13: given.min_protocol_version == TlsProtocol::TLSV1_3,
            cipher_suites: served(&given.cipher_suites),
            curves: given.ecdh_curves.clone(),
        }
    }

    /// A server's parameters before its own settings.
    pub(crate) fn server(&self) -> tls::TlsParameters {
        let minimum = if self.only_tls13 { Version::TlSv13 } else { Version::TlSv12 };
        tls::TlsParameters {
            tls_minimum_protocol_version: minimum as i32,
            ..self.client().unwrap_or_default()
        }
    }

    /// A client's parameters, if there is anything to say.
    pub(crate) fn client(&self) -> Option<tls::TlsParameters> {
        let given = !self.cipher_suites.is_empty() || !self.curves.is_empty();
        given.then(|| tls::TlsParameters {
            cipher_suites: self.cipher_suites.clone(),
            ecdh_curves: self.curves.clone(),
            ..Default::default()
        })
    }
}

/// The cipher suites among these that the proxies serve.
pub(crate) fn served(names: &[String]) -> Vec<String> {
    names.iter().filter(|name| lateen_api::is_served_cipher(name)).cloned().collect()
}
