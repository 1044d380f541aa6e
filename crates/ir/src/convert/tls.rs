//! TLS towards clients and endpoints, and secrets.
#![allow(deprecated)]

use std::sync::Arc;
use std::time::Duration;

use lateen_xds::pb::envoy::config::core::v3 as core;
use lateen_xds::pb::envoy::extensions::transport_sockets::tls::v3 as proto;
use proto::common_tls_context::ValidationContextType;

use super::certificate_hash::{base64, hashes, hex};
use super::config_source::{STREAM_NOT_SUPPORTED, Source, config_source};
use super::matchers::string_matcher;
use super::values::{
    Converted, bool_or, data_source, duration, enumeration, nonempty, number, optional, required, typed,
};
use crate::error::At;
use crate::support::fields;
use crate::{
    CertificateRef, CipherSuite, CommonTls, Curve, DownstreamTls, Pem, SanMatcher, SanType, Secret,
    SecretKind, SecretName, SecretSource, TlsCertificate, TlsParams, TlsVersion, TrustDomain, UpstreamTls,
    ValidationContext, ValidationRef,
};

/// The cluster by which Istio's configuration means the agent beside the proxy.
const AGENT: &str = "sds-grpc";

/// Which side of the handshake a context is for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Side {
    Server,
    Client,
}

pub(super) fn downstream_tls(at: &At<'_>, message: proto::DownstreamTlsContext) -> Converted<DownstreamTls> {
    use proto::downstream_tls_context::{OcspStaplePolicy, SessionTicketKeysType};
    fields!(at, message => proto::DownstreamTlsContext {
        used {
            common_tls_context, require_client_certificate, disable_stateful_session_resumption, session_timeout,
            ocsp_staple_policy, full_scan_certs_on_sni_mismatch, prefer_client_ciphers, session_ticket_keys_type,
        }
        inert {}
        rejected { require_sni = "Envoy does not implement it either" }
        variants {
            session_ticket_keys = "keys for tickets; each process makes its own",
            session_ticket_keys_sds_secret_config = "keys for tickets; each process makes its own",
        }
    });
    if enumeration::<OcspStaplePolicy>(at, "ocsp_staple_policy", ocsp_staple_policy)?
        != OcspStaplePolicy::LenientStapling
    {
        return Err(at.error_in("ocsp_staple_policy", "not supported: OCSP stapling"));
    }
    let stateless_resumption = match session_ticket_keys_type {
        None => true,
        Some(SessionTicketKeysType::DisableStatelessSessionResumption(disabled)) => !disabled,
        Some(SessionTicketKeysType::SessionTicketKeys(_)) => {
            return Err(at.error_in("session_ticket_keys", "not supported: each process makes its own keys"));
        }
        Some(SessionTicketKeysType::SessionTicketKeysSdsSecretConfig(_)) => {
            let reason = "not supported: each process makes its own keys";
            return Err(at.error_in("session_ticket_keys_sds_secret_config", reason));
        }
    };
    let common = common_tls(
        &at.field("common_tls_context"),
        required(at, "common_tls_context", common_tls_context)?,
        Side::Server,
    )?;
    if common.certificates.is_empty() {
        return Err(at.error_in("common_tls_context", "No TLS certificates found for server context"));
    }
    Ok(DownstreamTls {
        common,
        require_client_certificate: bool_or(require_client_certificate, false),
        stateless_resumption,
        stateful_resumption: !disable_stateful_session_resumption,
        session_timeout: duration(at, "session_timeout", session_timeout)?
            .unwrap_or(Duration::from_secs(7200)),
        prefer_client_ciphers,
        full_scan_certs: bool_or(full_scan_certs_on_sni_mismatch, false),
    })
}

pub(super) fn upstream_tls(at: &At<'_>, message: proto::UpstreamTlsContext) -> Converted<UpstreamTls> {
    fields!(at, message => proto::UpstreamTlsContext {
        used { common_tls_context, sni, auto_host_sni, auto_sni_san_validation, max_session_keys }
        inert { enforce_rsa_key_usage = "always enforced, as in Envoy" }
        rejected { allow_renegotiation = "TLS renegotiation" }
    });
    if sni.len() > 255 {
        return Err(at.error_in("sni", "must not be longer than 255 bytes"));
    }
    let common = match common_tls_context {
        None => CommonTls { params: params(at, None, Side::Client)?, ..CommonTls::default() },
        Some(common) => common_tls(&at.field("common_tls_context"), common, Side::Client)?,
    };
    if common.certificates.len() > 1 {
        let reason = "Multiple TLS certificates are not supported for client contexts";
        return Err(at.error_in("common_tls_context", reason));
    }
    if auto_sni_san_validation && matches!(common.validation, ValidationRef::None) {
        let reason = "'auto_sni_san_validation' was configured without a validation context";
        return Err(at.error_in("auto_sni_san_validation", reason));
    }
    Ok(UpstreamTls {
        common,
        sni: optional(sni),
        auto_host_sni,
        auto_sni_san_validation,
        max_session_keys: number(max_session_keys).unwrap_or(1),
    })
}

fn common_tls(at: &At<'_>, message: proto::CommonTlsContext, side: Side) -> Converted<CommonTls> {
    fields!(at, message => proto::CommonTlsContext {
        used {
            tls_params, tls_certificates, tls_certificate_sds_secret_configs, alpn_protocols, validation_context_type,
        }
        inert {}
        rejected {
            tls_certificate_provider_instance = "certificate providers",
            custom_tls_certificate_selector = "a choice of certificates by extension",
            tls_certificate_certificate_provider = "certificate providers",
            tls_certificate_certificate_provider_instance = "certificate providers",
            custom_handshaker = "handshakes by extension",
            key_log = "writing the keys of sessions to a file",
        }
        variants {
            validation_context_certificate_provider = "certificate providers",
            validation_context_certificate_provider_instance = "certificate providers",
        }
    });
    let mut certificates = Vec::new();
    for (index, certificate) in tls_certificates.into_iter().enumerate() {
        let at = at.index("tls_certificates", index);
        certificates.push(CertificateRef::Inline(Arc::new(tls_certificate(&at, certificate)?)));
    }
    // Certificates in place go before secrets, as in Envoy.
    if certificates.is_empty() {
        for (index, secret) in tls_certificate_sds_secret_configs.into_iter().enumerate() {
            let at = at.index("tls_certificate_sds_secret_configs", index);
            certificates.push(CertificateRef::Secret(secret_name(&at, secret)?));
        }
    }
    for (index, protocol) in alpn_protocols.iter().enumerate() {
        if protocol.is_empty() || protocol.len() > 255 {
            return Err(at.index("alpn_protocols", index).error("must have 1 to 255 bytes"));
        }
    }
    Ok(CommonTls {
        params: params(at, tls_params, side)?,
        certificates,
        validation: validation(at, validation_context_type)?,
        alpn: alpn_protocols.into_iter().map(Into::into).collect(),
    })
}

fn validation(at: &At<'_>, context: Option<ValidationContextType>) -> Converted<ValidationRef> {
    Ok(match context {
        None => ValidationRef::None,
        Some(ValidationContextType::ValidationContext(context)) => {
            ValidationRef::Inline(Arc::new(validation_context(&at.field("validation_context"), context)?))
        }
        Some(ValidationContextType::ValidationContextSdsSecretConfig(secret)) => ValidationRef::Secret {
            base: Arc::default(),
            secret: secret_name(&at.field("validation_context_sds_secret_config"), secret)?,
        },
        Some(ValidationContextType::CombinedValidationContext(combined)) => {
            use proto::common_tls_context::CombinedCertificateValidationContext as Combined;
            let at = at.field("combined_validation_context");
            fields!(&at, combined => Combined {
                used { default_validation_context, validation_context_sds_secret_config }
                inert {}
                rejected {
                    validation_context_certificate_provider = "certificate providers",
                    validation_context_certificate_provider_instance = "certificate providers",
                }
            });
            let base = required(&at, "default_validation_context", default_validation_context)?;
            let base = validation_context(&at.field("default_validation_context"), base)?;
            let field = "validation_context_sds_secret_config";
            let secret =
                secret_name(&at.field(field), required(&at, field, validation_context_sds_secret_config)?)?;
            ValidationRef::Secret { base: Arc::new(base), secret }
        }
        Some(ValidationContextType::ValidationContextCertificateProvider(_)) => {
            return Err(at.error_in(
                "validation_context_certificate_provider",
                "not supported: certificate providers",
            ));
        }
        Some(ValidationContextType::ValidationContextCertificateProviderInstance(_)) => {
            let reason = "not supported: certificate providers";
            return Err(at.error_in("validation_context_certificate_provider_instance", reason));
        }
    })
}

fn secret_name(at: &At<'_>, config: proto::SdsSecretConfig) -> Converted<SecretName> {
    fields!(at, config => proto::SdsSecretConfig {
        used { name, sds_config }
        inert {}
        rejected {}
    });
    let source = match sds_config {
        None => SecretSource::Static,
        Some(source) => match config_source(&at.field("sds_config"), source)? {
            (Source::Ads, initial_fetch_timeout) => SecretSource::Ads { initial_fetch_timeout },
            (Source::Path(path), initial_fetch_timeout) => SecretSource::Path { path, initial_fetch_timeout },
            (Source::Stream(cluster), initial_fetch_timeout) if cluster == AGENT => {
                SecretSource::Agent { initial_fetch_timeout }
            }
            (Source::Stream(_), _) => return Err(at.error_in("sds_config", STREAM_NOT_SUPPORTED)),
        },
    };
    Ok(SecretName { name: nonempty(at, "name", name)?, source })
}

/// Versions, suites and groups. Envoy's clients speak TLS 1.2 unless told otherwise.
fn params(at: &At<'_>, params: Option<proto::TlsParameters>, side: Side) -> Converted<TlsParams> {
    let at = at.field("tls_params");
    let message = params.unwrap_or_default();
    fields!(&at, message => proto::TlsParameters {
        used { tls_minimum_protocol_version, tls_maximum_protocol_version, cipher_suites, ecdh_curves }
        inert {}
        rejected {
            signature_algorithms = "a choice of signature algorithms",
            compliance_policies = "compliance policies",
        }
    });
    let default_max = if side == Side::Server { TlsVersion::V1_3 } else { TlsVersion::V1_2 };
    let min = version(&at, "tls_minimum_protocol_version", tls_minimum_protocol_version)?;
    let max = version(&at, "tls_maximum_protocol_version", tls_maximum_protocol_version)?;
    let params = TlsParams {
        min: min.unwrap_or(TlsVersion::V1_2),
        max: max.unwrap_or(default_max),
        cipher_suites: self::cipher_suites(&at, &cipher_suites)?,
        curves: ecdh_curves
            .iter()
            .enumerate()
            .map(|(index, name)| match name.as_str() {
                "X25519" => Ok(Curve::X25519),
                "P-256" => Ok(Curve::P256),
                "P-384" => Ok(Curve::P384),
                "X25519MLKEM768" => Ok(Curve::X25519MlKem768),
                other => {
                    let reason = format!("{other:?} is not one of X25519, P-256, P-384 and X25519MLKEM768");
                    Err(at.index("ecdh_curves", index).error(reason))
                }
            })
            .collect::<Converted<_>>()?,
    };
    if params.min > params.max {
        let reason = format!("{:?} is above tls_maximum_protocol_version {:?}", params.min, params.max);
        return Err(at.error_in("tls_minimum_protocol_version", reason));
    }
    Ok(params)
}

fn version(at: &At<'_>, field: &str, value: i32) -> Converted<Option<TlsVersion>> {
    use proto::tls_parameters::TlsProtocol;
    match enumeration(at, field, value)? {
        TlsProtocol::TlsAuto => Ok(None),
        TlsProtocol::TlSv12 => Ok(Some(TlsVersion::V1_2)),
        TlsProtocol::TlSv13 => Ok(Some(TlsVersion::V1_3)),
        TlsProtocol::TlSv10 | TlsProtocol::TlSv11 => {
            Err(at.error_in(field, "TLS 1.0 and 1.1 are not supported (RFC 8996); use TLSv1_2"))
        }
    }
}

/// Names, and groups of equal preference in brackets: `[A|B]`. Within a group the first named goes first.
fn cipher_suites(at: &At<'_>, names: &[String]) -> Converted<Vec<CipherSuite>> {
    let mut suites = Vec::new();
    for (index, entry) in names.iter().enumerate() {
        let group = entry.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(entry);
        for name in group.split('|') {
            let known = CipherSuite::NAMES.iter().find(|(known, _)| *known == name);
            let Some((_, suite)) = known else {
                let reason =
                    format!("{name:?} is not supported; the ECDHE suites with GCM and ChaCha20-Poly1305 are");
                return Err(at.index("cipher_suites", index).error(reason));
            };
            suites.push(*suite);
        }
    }
    Ok(suites)
}

fn pem(at: &At<'_>, field: &str, source: core::DataSource) -> Converted<Pem> {
    use core::data_source::Specifier;
    let origin = match &source.specifier {
        Some(Specifier::Filename(path)) => path.as_str().into(),
        _ => "<inline>".into(),
    };
    let bytes = data_source(&at.field(field), source)?;
    Ok(Pem { origin, bytes: bytes.into() })
}

fn tls_certificate(at: &At<'_>, message: proto::TlsCertificate) -> Converted<TlsCertificate> {
    fields!(at, message => proto::TlsCertificate {
        used { certificate_chain, private_key }
        inert {}
        rejected {
            pkcs12 = "PKCS #12 files; use certificate_chain and private_key",
            watched_directory = "files that are watched; use SDS",
            private_key_provider = "keys in hardware",
            password = "keys with a password",
            ocsp_staple = "OCSP stapling",
            signed_certificate_timestamp = "certificate transparency, which Envoy does not implement either",
            tls_params = "parameters of one certificate",
        }
    });
    Ok(TlsCertificate {
        chain: pem(at, "certificate_chain", required(at, "certificate_chain", certificate_chain)?)?,
        key: pem(at, "private_key", required(at, "private_key", private_key)?)?,
    })
}

/// The one extension that validates certificates: SPIFFE's.
fn trust_domains(at: &At<'_>, config: core::TypedExtensionConfig) -> Converted<Arc<[TrustDomain]>> {
    let core::TypedExtensionConfig { name: _, typed_config } = config;
    let any = required(at, "typed_config", typed_config)?;
    let at = at.field("typed_config");
    let message: proto::SpiffeCertValidatorConfig = typed(&at, &any)?;
    fields!(&at, message => proto::SpiffeCertValidatorConfig {
        used { trust_domains }
        inert {}
        rejected { trust_bundles = "bundles in one file; name each domain in trust_domains" }
    });
    if trust_domains.is_empty() {
        return Err(at.error_in("trust_domains", "must not be empty"));
    }
    let mut known: Vec<TrustDomain> = Vec::with_capacity(trust_domains.len());
    for (index, domain) in trust_domains.into_iter().enumerate() {
        let at = at.index("trust_domains", index);
        fields!(&at, domain => proto::spiffe_cert_validator_config::TrustDomain {
            used { name, trust_bundle }
            inert {}
            rejected { workload_trust_domain = "bundles by the workload's own domain" }
        });
        if name.is_empty() || known.iter().any(|known| *known.name == *name) {
            return Err(at.error_in("name", format!("{name:?}: a domain has a name and is given once")));
        }
        let roots = pem(&at, "trust_bundle", required(&at, "trust_bundle", trust_bundle)?)?;
        known.push(TrustDomain { name: name.into(), roots });
    }
    Ok(known.into())
}

fn validation_context(
    at: &At<'_>,
    message: proto::CertificateValidationContext,
) -> Converted<ValidationContext> {
    use proto::certificate_validation_context::TrustChainVerification;
    fields!(at, message => proto::CertificateValidationContext {
        used {
            trusted_ca, verify_certificate_spki, verify_certificate_hash, match_typed_subject_alt_names,
            match_subject_alt_names, crl, allow_expired_certificate, trust_chain_verification, only_verify_leaf_cert_crl,
            custom_validator_config,
        }
        inert {
            suppress_client_ca_list = "the list of acceptable authorities is a hint, which clients may ignore",
        }
        rejected {
            ca_certificate_provider_instance = "certificate providers",
            system_root_certs = "name the file in trusted_ca; Envoy does not implement it either",
            watched_directory = "files that are watched; use SDS",
            require_signed_certificate_timestamp = "certificate transparency, which Envoy does not implement either",
            max_verify_depth = "a limit of its own for the length of chains",
        }
    });
    let mut sans = Vec::new();
    for (index, name) in match_typed_subject_alt_names.into_iter().enumerate() {
        sans.push(san_matcher(&at.index("match_typed_subject_alt_names", index), name)?);
    }
    for (index, matcher) in match_subject_alt_names.into_iter().enumerate() {
        let at = at.index("match_subject_alt_names", index);
        sans.push(SanMatcher { san_type: None, matcher: string_matcher(&at, matcher)? });
    }
    if custom_validator_config.is_some()
        && sans.iter().any(|san| !matches!(san.san_type, None | Some(SanType::Uri)))
    {
        let reason =
            "by trust domain only URIs are looked at; with names of other kinds Envoy would let everybody in";
        return Err(at.error_in("match_typed_subject_alt_names", reason));
    }
    let context = ValidationContext {
        trusted_ca: trusted_ca.map(|source| pem(at, "trusted_ca", source)).transpose()?,
        verify_spki: hashes(at, "verify_certificate_spki", &verify_certificate_spki, base64)?,
        verify_hash: hashes(at, "verify_certificate_hash", &verify_certificate_hash, hex)?,
        sans,
        crl: crl.map(|source| pem(at, "crl", source)).transpose()?,
        only_leaf_crl: only_verify_leaf_cert_crl,
        allow_expired: allow_expired_certificate,
        accept_untrusted: match enumeration(at, "trust_chain_verification", trust_chain_verification)? {
            TrustChainVerification::VerifyTrustChain => false,
            TrustChainVerification::AcceptUntrusted => true,
        },
        trust_domains: custom_validator_config
            .map(|config| trust_domains(&at.field("custom_validator_config"), config))
            .transpose()?,
    };
    Ok(context)
}

fn san_matcher(at: &At<'_>, message: proto::SubjectAltNameMatcher) -> Converted<SanMatcher> {
    use proto::subject_alt_name_matcher::SanType as Type;
    fields!(at, message => proto::SubjectAltNameMatcher {
        used { san_type, matcher }
        inert {}
        rejected { oid = "names of other kinds" }
    });
    let san_type = match enumeration(at, "san_type", san_type)? {
        Type::Email => SanType::Email,
        Type::Dns => SanType::Dns,
        Type::Uri => SanType::Uri,
        Type::IpAddress => SanType::IpAddress,
        Type::OtherName => return Err(at.error_in("san_type", "not supported: OTHER_NAME")),
        Type::Unspecified => return Err(at.error_in("san_type", "must not be SAN_TYPE_UNSPECIFIED")),
    };
    let matcher = string_matcher(&at.field("matcher"), required(at, "matcher", matcher)?)?;
    Ok(SanMatcher { san_type: Some(san_type), matcher })
}

/// A secret.
pub(super) fn secret(at: &At<'_>, message: proto::Secret) -> Converted<Secret> {
    use proto::secret::Type;
    let proto::Secret { name, r#type } = message;
    let kind = match required(at, "type", r#type)? {
        Type::TlsCertificate(certificate) => {
            SecretKind::Certificate(Arc::new(tls_certificate(&at.field("tls_certificate"), certificate)?))
        }
        Type::ValidationContext(context) => {
            SecretKind::Validation(Arc::new(validation_context(&at.field("validation_context"), context)?))
        }
        Type::SessionTicketKeys(_) => {
            return Err(at.error_in("session_ticket_keys", "not supported: each process makes its own keys"));
        }
        Type::GenericSecret(_) => {
            return Err(at.error_in("generic_secret", "not supported: nothing uses one"));
        }
    };
    Ok(Secret { name: nonempty(at, "name", name)?, kind })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_rustls_has_not_is_refused_with_its_path() {
        let of = |params: proto::TlsParameters| {
            self::params(&At::ROOT, Some(params), Side::Server).unwrap_err().to_string()
        };
        let error =
            of(proto::TlsParameters { cipher_suites: vec!["AES128-SHA".into()], ..Default::default() });
        assert!(error.starts_with("tls_params.cipher_suites[0]: \"AES128-SHA\""), "{error}");
        let error = of(proto::TlsParameters { tls_minimum_protocol_version: 1, ..Default::default() });
        assert!(error.starts_with("tls_params.tls_minimum_protocol_version: TLS 1.0"), "{error}");
        let error = of(proto::TlsParameters {
            tls_minimum_protocol_version: 4,
            tls_maximum_protocol_version: 3,
            ..Default::default()
        });
        assert!(error.contains("above"), "{error}");
        let groups = proto::TlsParameters {
            cipher_suites: vec!["[ECDHE-ECDSA-AES128-GCM-SHA256|ECDHE-ECDSA-CHACHA20-POLY1305]".into()],
            ..Default::default()
        };
        let params = self::params(&At::ROOT, Some(groups), Side::Client).unwrap();
        assert_eq!(params.cipher_suites, [CipherSuite::EcdsaAes128, CipherSuite::EcdsaChacha20]);
        assert_eq!(params.max, TlsVersion::V1_2);
    }
}
