//! `proxy-config secret`: the certificates a proxy holds. Keys are blacked out by the proxy itself.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;
use serde_json::Value;
use x509_parser::pem::Pem;

use super::text;
use crate::table::Table;

/// One row for each secret, with the first certificate in it; `now` in seconds since 1970.
pub fn table(secrets: &[(&'static str, &Value)], now: i64) -> Table {
    let columns =
        ["RESOURCE NAME", "TYPE", "STATUS", "VALID CERT", "SERIAL NUMBER", "NOT AFTER", "NOT BEFORE"];
    let mut table = Table::new(columns);
    let mut rows: Vec<_> = secrets.iter().map(|(status, entry)| row(status, entry, now)).collect();
    rows.sort();
    rows.into_iter().for_each(|row| {
        table.row(row);
    });
    table
}

fn row(status: &str, entry: &Value, now: i64) -> [String; 7] {
    let name = text(entry, "/name").to_owned();
    let chain = text(entry, "/secret/tlsCertificate/certificateChain/inlineBytes");
    let authorities = text(entry, "/secret/validationContext/trustedCa/inlineBytes");
    let (kind, encoded) = if authorities.is_empty() { ("Cert Chain", chain) } else { ("CA", authorities) };
    let found = STANDARD.decode(encoded).ok().and_then(|pem| Certificate::first(&pem));
    let (valid, serial, after, before) = match found {
        None => (false, String::new(), String::new(), String::new()),
        Some(found) => (
            (found.not_before..=found.not_after).contains(&now),
            found.serial,
            time(found.not_after),
            time(found.not_before),
        ),
    };
    [name, kind.to_owned(), status.to_owned(), valid.to_string(), serial, after, before]
}

struct Certificate {
    serial: String,
    not_before: i64,
    not_after: i64,
}

impl Certificate {
    fn first(pem: &[u8]) -> Option<Self> {
        let pem = Pem::iter_from_buffer(pem).next()?.ok()?;
        let parsed = pem.parse_x509().ok()?;
        Some(Self {
            serial: format!("{:x}", parsed.tbs_certificate.serial),
            not_before: parsed.validity().not_before.timestamp(),
            not_after: parsed.validity().not_after.timestamp(),
        })
    }
}

fn time(seconds: i64) -> String {
    Timestamp::from_second(seconds).map(|time| time.to_string()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    /// `openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -set_serial 0x1f2e -subj /O=a -days 1`.
    const PEM: &str = include_str!("secret.pem");

    #[test]
    fn certificates_are_listed_as_by_istioctl() {
        let bytes = STANDARD.encode(PEM);
        let own = json!({ "name": "default", "secret": { "tlsCertificate": {
            "certificateChain": { "inlineBytes": bytes }, "privateKey": { "inlineBytes": "W3JlZGFjdGVkXQ==" } } } });
        let roots = json!({ "name": "ROOTCA", "secret": { "validationContext": { "trustedCa": { "inlineBytes": bytes } } } });
        let missing = json!({ "name": "kubernetes://later" });
        let secrets = [("ACTIVE", &own), ("ACTIVE", &roots), ("WARMING", &missing)];
        // In between.
        let text = table(&secrets, 1_795_662_722).to_string();
        let lines: Vec<String> =
            text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect();
        assert_eq!(
            lines,
            [
                "RESOURCE NAME TYPE STATUS VALID CERT SERIAL NUMBER NOT AFTER NOT BEFORE",
                "ROOTCA CA ACTIVE true 1f2e 2026-11-27T02:12:02Z 2026-11-26T02:12:02Z",
                "default Cert Chain ACTIVE true 1f2e 2026-11-27T02:12:02Z 2026-11-26T02:12:02Z",
                "kubernetes://later Cert Chain WARMING false",
            ]
        );
        assert!(table(&secrets, 1_795_745_523).to_string().contains("false"), "it has expired");
    }
}
