//! CertificateSigningRequests (certificates.k8s.io): who asks is written by the server, who approves needs a right to, and what has
//! been decided stays (`pkg/apis/certificates/validation`, `pkg/registry/certificates` and the plugin `CertificateApproval` of
//! Kubernetes). A signer is somebody else's: see the controllers of crate `local`.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use rustls_pki_types::{CertificateDer, CertificateSigningRequestDer, pem::PemObject};
use serde_json::{Value, json};
use x509_parser::prelude::FromDer;
use x509_parser::{certificate::X509Certificate, certification_request::X509CertificationRequest};

use crate::{
    authn::User,
    call::Call,
    rbac::{self, Attributes},
    resources::{ResourceDef, meta},
    state::{self, Api},
    status::{ApiError, FieldError},
};

/// Usages the API knows.
const USAGES: &[&str] = &[
    "signing",
    "digital signature",
    "content commitment",
    "key encipherment",
    "key agreement",
    "data encipherment",
    "cert sign",
    "crl sign",
    "encipher only",
    "decipher only",
    "any",
    "server auth",
    "client auth",
    "code signing",
    "email protection",
    "s/mime",
    "ipsec end system",
    "ipsec tunnel",
    "ipsec user",
    "timestamping",
    "ocsp signing",
    "microsoft sgc",
    "netscape sgc",
];
/// Least life that may be asked for, in seconds.
const LEAST_SECONDS: i64 = 600;
/// The signer of the beta API, which v1 has no more.
const LEGACY: &str = "kubernetes.io/legacy-unknown";
/// Conditions that a decision is made of; they stay, and are true.
const FINAL: [&str; 3] = ["Approved", "Denied", "Failed"];

/// Whether a kind is this one.
pub(crate) fn is_request(def: &ResourceDef) -> bool {
    def.is("certificates.k8s.io", "certificatesigningrequests")
}

/// Writes into a new request who has sent it.
pub(crate) fn sign_in(user: &User, object: &mut Value) {
    let Some(spec) = object.get_mut("spec").and_then(Value::as_object_mut) else { return };
    let info = user.info();
    for field in ["username", "uid", "groups", "extra"] {
        match info.get(field) {
            Some(value) => spec.insert(field.to_owned(), value.clone()),
            None => spec.shift_remove(field),
        };
    }
}

/// Puts back what a write through this path cannot change; `new` still has its own status.
pub(crate) fn keep(call: &Call, old: &Value, new: &mut Value) {
    let given = new.get("status").cloned().unwrap_or_else(|| json!({}));
    new["spec"] = old["spec"].clone();
    let mut status =
        old.get("status").filter(|status| status.is_object()).cloned().unwrap_or_else(|| json!({}));
    let decides = |condition: &&Value| matches!(condition["type"].as_str(), Some("Approved" | "Denied"));
    let conditions = |status: &Value| status["conditions"].as_array().cloned().unwrap_or_default();
    match call.subresource.as_str() {
        "approval" => status["conditions"] = json!(conditions(&given)),
        "status" => {
            // Who may say that it is signed says nothing about whether it should be.
            let mut kept: Vec<Value> = conditions(&status).iter().filter(decides).cloned().collect();
            kept.extend(conditions(&given).iter().filter(|one| !decides(one)).cloned());
            status["conditions"] = json!(kept);
            match given.get("certificate").filter(|certificate| !certificate.is_null()) {
                Some(certificate) => status["certificate"] = certificate.clone(),
                None => drop(status.as_object_mut().and_then(|map| map.shift_remove("certificate"))),
            }
        }
        _ => {}
    }
    let before = conditions(&old["status"]);
    let now = json!(state::now());
    for condition in crate::defaults::each(&mut status, "conditions") {
        let same = before.iter().find(|one| one["type"] == condition["type"]);
        crate::defaults::set(condition, "lastUpdateTime", now.clone());
        let since = same
            .filter(|one| one["status"] == condition["status"])
            .map(|one| one["lastTransitionTime"].clone());
        crate::defaults::set(condition, "lastTransitionTime", since.unwrap_or_else(|| now.clone()));
    }
    if status["conditions"].as_array().is_some_and(Vec::is_empty) {
        status.as_object_mut().and_then(|map| map.shift_remove("conditions"));
    }
    let Some(map) = new.as_object_mut() else { return };
    match status.as_object().is_some_and(serde_json::Map::is_empty) {
        true => map.shift_remove("status"),
        false => map.insert("status".to_owned(), status),
    };
}

/// Whether the caller may approve or deny requests to this one's signer: the verb `approve` on `signers`, by its name or by all of
/// its domain.
///
/// # Errors
/// 403, in Kubernetes' words.
pub(crate) fn may_decide(api: &Api, call: &Call) -> Result<(), ApiError> {
    let stored = api
        .stored(&call.def, &call.namespace, &call.name)
        .ok_or_else(|| ApiError::not_found(&call.def, &call.name))?;
    let signer = stored["spec"]["signerName"].as_str().unwrap_or_default();
    let domain = signer.split('/').next().unwrap_or_default();
    let granted = [signer.to_owned(), format!("{domain}/*")].into_iter().any(|name| {
        let asked = Attributes {
            verb: "approve".to_owned(),
            group: "certificates.k8s.io".to_owned(),
            resource: "signers".to_owned(),
            name,
            ..Attributes::default()
        };
        rbac::decide(api, &call.user, &asked).is_ok()
    });
    let why = format!("user not permitted to approve requests with signerName {signer:?}");
    if granted { Ok(()) } else { Err(ApiError::forbidden(&call.def, meta(&stored, "name"), &why)) }
}

/// Everything wrong with a request's spec.
pub(crate) fn validate_spec(spec: &Value, errors: &mut Vec<FieldError>) {
    let text = |field: &str| spec[field].as_str().unwrap_or_default();
    if let Err(why) = check_request(text("request")) {
        errors.push(FieldError::invalid("spec.request", &spec["request"], why));
    }
    match text("signerName") {
        "" => errors.push(FieldError::required("spec.signerName")),
        LEGACY => {
            let why = "the legacy signerName is not allowed via this API version";
            errors.push(FieldError::invalid("spec.signerName", &spec["signerName"], why));
        }
        name => {
            let whole = name.split_once('/').is_some_and(|(domain, path)| {
                domain.contains('.') && crate::names::is_dns_subdomain(domain) && is_path(path)
            });
            if !whole {
                let why = "must be a fully qualified domain and path of the form 'example.com/signer-name'";
                errors.push(FieldError::invalid("spec.signerName", &spec["signerName"], why));
            }
        }
    }
    let usages = spec["usages"].as_array().map(Vec::as_slice).unwrap_or_default();
    if usages.is_empty() {
        errors.push(FieldError::required("spec.usages"));
    }
    for (index, usage) in usages.iter().enumerate() {
        let field = format!("spec.usages[{index}]");
        if !usage.as_str().is_some_and(|usage| USAGES.contains(&usage)) {
            errors.push(FieldError::not_supported(field, usage, USAGES));
        } else if usages[..index].contains(usage) {
            errors.push(FieldError::duplicate(field, usage));
        }
    }
    if spec["expirationSeconds"].as_i64().is_some_and(|seconds| seconds < LEAST_SECONDS) {
        let why = "may not specify a duration less than 600 seconds (10 minutes)";
        errors.push(FieldError::invalid("spec.expirationSeconds", &spec["expirationSeconds"], why));
    }
}

fn is_path(path: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    !path.is_empty() && path.len() <= 571 && path.bytes().all(allowed)
}

fn check_request(text: &str) -> Result<(), &'static str> {
    let pem = STANDARD.decode(text).map_err(|_| "must be base64")?;
    let der = CertificateSigningRequestDer::from_pem_slice(&pem)
        .map_err(|_| "PEM block type must be CERTIFICATE REQUEST")?;
    let parsed = X509CertificationRequest::from_der(&der);
    parsed.map(drop).map_err(|_| "must be a certificate signing request (PKCS #10) in PEM")
}

/// Everything wrong with what becomes of a request's status.
pub(crate) fn validate_status(call: &Call, old: &Value, new: &Value, errors: &mut Vec<FieldError>) {
    let conditions = |object: &Value| object["status"]["conditions"].as_array().cloned().unwrap_or_default();
    let (before, now) = (conditions(old), conditions(new));
    let has = |list: &[Value], kind: &str| list.iter().any(|one| one["type"] == kind);
    for (index, condition) in now.iter().enumerate() {
        let kind = condition["type"].as_str().unwrap_or_default();
        if kind.is_empty() {
            errors.push(FieldError::required(format!("status.conditions[{index}].type")));
        }
        if now[..index].iter().any(|one| one["type"] == kind) {
            errors
                .push(FieldError::duplicate(format!("status.conditions[{index}].type"), &condition["type"]));
        }
        if FINAL.contains(&kind) && condition["status"] != "True" {
            let field = format!("status.conditions[{index}].status");
            errors.push(FieldError::not_supported(field, &condition["status"], &["True"]));
        }
    }
    if has(&now, "Approved") && has(&now, "Denied") {
        let why = "Approved and Denied conditions are mutually exclusive";
        errors.push(FieldError::invalid("status.conditions", &new["status"]["conditions"], why));
    }
    for kind in FINAL {
        if has(&before, kind) && !has(&now, kind) {
            let why = format!("updates may not remove a condition of type {kind:?}");
            errors.push(FieldError::forbidden("status.conditions", &why));
        }
        if call.subresource == "approval" && kind == "Failed" && !has(&before, kind) && has(&now, kind) {
            errors.push(FieldError::forbidden(
                "status.conditions",
                "updates may not add a condition of type \"Failed\"",
            ));
        }
    }
    let (held, given) = (&old["status"]["certificate"], &new["status"]["certificate"]);
    if held == given {
        return;
    }
    if !held.is_null() {
        errors.push(FieldError::forbidden(
            "status.certificate",
            "updates may not modify existing certificate content",
        ));
    } else if let Err(why) = check_certificates(given.as_str().unwrap_or_default()) {
        errors.push(FieldError::invalid("status.certificate", given, why));
    }
}

fn check_certificates(text: &str) -> Result<(), &'static str> {
    let pem = STANDARD.decode(text).map_err(|_| "must be base64")?;
    let mut count = 0;
    for certificate in CertificateDer::pem_slice_iter(&pem) {
        let certificate = certificate.map_err(|_| "must be certificates in PEM")?;
        X509Certificate::from_der(&certificate).map_err(|_| "a certificate does not parse")?;
        count += 1;
    }
    if count == 0 { Err("must contain at least one certificate in PEM") } else { Ok(()) }
}
