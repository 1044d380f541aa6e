//! TLS that clusters speak because a DestinationRule says so (SIMPLE and MUTUAL).
use lateen_api::networking::destination_rule::{ClientTlsMode, ClientTlsSettings};
use lateen_xds::pb::envoy::config::core::v3 as core;
use lateen_xds::pb::envoy::extensions::transport_sockets::tls::v3 as tls;
use lateen_xds::pb::envoy::r#type::matcher::v3::{StringMatcher, string_matcher::MatchPattern};
use tls::common_tls_context::{CombinedCertificateValidationContext, ValidationContextType};

use crate::secrets;
use crate::wire;

/// The authorities of the system, by which servers are verified when a rule names no others.
const SYSTEM_AUTHORITIES: &str = "/etc/ssl/certs/ca-certificates.crt";

/// Whether these settings mean TLS that can be spoken without the mesh's own certificates.
pub(crate) fn is_spoken(settings: &ClientTlsSettings) -> bool {
    matches!(settings.mode, ClientTlsMode::Simple | ClientTlsMode::Mutual)
}

/// What of a request a connection's TLS depends on, as in Istio: its host is asked for, and must be in the certificate, where the rule
/// gives neither.
pub(crate) fn names(settings: &ClientTlsSettings) -> Option<core::UpstreamHttpProtocolOptions> {
    if !is_spoken(settings) || !settings.sni.is_empty() {
        return None;
    }
    let verified = settings.insecure_skip_verify != Some(true);
    Some(core::UpstreamHttpProtocolOptions {
        auto_sni: true,
        auto_san_validation: verified && settings.subject_alt_names.is_empty(),
        ..Default::default()
    })
}

/// The transport socket, with parameters of the mesh. `secrets`: the rule's credentials are for this proxy.
pub(crate) fn transport_socket(
    settings: &ClientTlsSettings,
    params: Option<tls::TlsParameters>,
    http2: bool,
    secrets: bool,
) -> core::TransportSocket {
    let credential = Some(settings.credential_name.as_str()).filter(|name| secrets && !name.is_empty());
    let mut common = tls::CommonTlsContext {
        tls_params: params,
        alpn_protocols: if http2 { vec!["h2".to_owned()] } else { Vec::new() },
        ..Default::default()
    };
    if settings.insecure_skip_verify != Some(true) {
        common.validation_context_type = Some(validation(settings, credential));
    }
    if settings.mode == ClientTlsMode::Mutual {
        match credential {
            Some(name) => {
                common.tls_certificate_sds_secret_configs =
                    vec![secrets::config(secrets::certificate_name(name))];
            }
            None if !settings.client_certificate.is_empty() => {
                common.tls_certificates = vec![pair(&settings.client_certificate, &settings.private_key)];
            }
            // A credential that is not for this proxy: it has nothing to show, and the server will not have it.
            None => {}
        }
    }
    let context = tls::UpstreamTlsContext {
        common_tls_context: Some(common),
        sni: settings.sni.clone(),
        ..Default::default()
    };
    socket(wire::any(&context))
}

fn validation(settings: &ClientTlsSettings, credential: Option<&str>) -> ValidationContextType {
    let mut context = tls::CertificateValidationContext {
        match_typed_subject_alt_names: alternative_names(&settings.subject_alt_names),
        crl: (!settings.ca_crl.is_empty()).then(|| file(&settings.ca_crl)),
        ..Default::default()
    };
    if let Some(name) = credential {
        return ValidationContextType::CombinedValidationContext(CombinedCertificateValidationContext {
            default_validation_context: Some(context),
            validation_context_sds_secret_config: Some(secrets::config(secrets::authorities_name(name))),
            ..Default::default()
        });
    }
    let path = &settings.ca_certificates;
    let path = if path.is_empty() || path == "system" { SYSTEM_AUTHORITIES } else { path };
    context.trusted_ca = Some(file(path));
    ValidationContextType::ValidationContext(context)
}

/// A name may be one of DNS or a URI.
pub(crate) fn alternative_names(names: &[String]) -> Vec<tls::SubjectAltNameMatcher> {
    use tls::subject_alt_name_matcher::SanType;
    let matcher = |kind: SanType, name: &String| tls::SubjectAltNameMatcher {
        san_type: kind as i32,
        matcher: Some(StringMatcher {
            match_pattern: Some(MatchPattern::Exact(name.clone())),
            ..Default::default()
        }),
        ..Default::default()
    };
    names.iter().flat_map(|name| [SanType::Uri, SanType::Dns].map(|kind| matcher(kind, name))).collect()
}

/// A certificate and key in files.
pub(crate) fn pair(certificate: &str, key: &str) -> tls::TlsCertificate {
    tls::TlsCertificate {
        certificate_chain: Some(file(certificate)),
        private_key: Some(file(key)),
        ..Default::default()
    }
}

pub(crate) fn file(path: &str) -> core::DataSource {
    core::DataSource {
        specifier: Some(core::data_source::Specifier::Filename(path.to_owned())),
        ..Default::default()
    }
}

/// A TLS transport socket.
pub(crate) fn socket(context: lateen_xds::Any) -> core::TransportSocket {
    core::TransportSocket {
        name: "envoy.transport_sockets.tls".to_owned(),
        config_type: Some(core::transport_socket::ConfigType::TypedConfig(context)),
    }
}
