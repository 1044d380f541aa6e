//! `/certs`: the certificates in use, without their keys (`envoy.admin.v3.Certificates`).

use std::time::SystemTime;

use jiff::Timestamp;
use lateen_ir::Pem;
use serde_json::{Value as Json, json};

use crate::inspection::Inspection;
use crate::tls::{CertificateDetails, details};

const DAY: i64 = 24 * 3600;

/// The page.
pub(super) fn json(inspection: &Inspection) -> Json {
    let now =
        SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs() as i64);
    let show = |pems: &[Pem]| -> Vec<Json> {
        pems.iter().filter_map(details).map(|certificate| one(&certificate, now)).collect()
    };
    let context = |(authorities, own): &(Vec<Pem>, Vec<Pem>)| json!({ "ca_cert": show(authorities), "cert_chain": show(own) });
    let contexts: Vec<Json> = inspection.certificates.iter().map(context).collect();
    json!({ "certificates": contexts })
}

fn one(certificate: &CertificateDetails, now: i64) -> Json {
    let names: Vec<Json> = certificate
        .names
        .iter()
        .filter(|(kind, _)| *kind != "email")
        .map(|(kind, name)| json!({ *kind: name }))
        .collect();
    let time = |seconds: i64| {
        Timestamp::from_second(seconds)
            .map_or(Json::Null, |stamp| json!(stamp.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()))
    };
    json!({
        "path": *certificate.path,
        "serial_number": certificate.serial,
        "subject_alt_names": names,
        // Whole days that are left, none when it has expired.
        "days_until_expiration": (((certificate.expires - now).max(0)) / DAY).to_string(),
        "valid_from": time(certificate.valid_from),
        "expiration_time": time(certificate.expires),
    })
}
