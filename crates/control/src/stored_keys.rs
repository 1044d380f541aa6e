//! The keys of token issuers over a restart of the control plane: in a Secret, so that whoever can write them could sign as the
//! mesh's CA as well. Only public keys are kept, within a size, and none that nobody has seen for too long.
use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{Patch, PatchParams};
use kube::{Api, Client};
use lateen_model::KeySource;
use lateen_translate::check_keys;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::answered::{PAUSE, answered};

/// Name of the Secret, in the root namespace.
pub(crate) const SECRET: &str = "lateen-token-keys";
const ENTRY: &str = "keys.json";
const FIELD_MANAGER: &str = "istiod";

/// A Secret holds a mebibyte; the keys are left out that came first.
const LARGEST: usize = 768 * 1024;

/// What was seen longer ago is no proof any more.
const OLDEST: SignedDuration = SignedDuration::from_hours(7 * 24);

/// Times within this are not worth a write.
const TOUCH: SignedDuration = SignedDuration::from_hours(1);

/// Keys, and when their provider last said that they are its.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Seen {
    pub(crate) keys: Arc<str>,
    pub(crate) at: Timestamp,
}

#[derive(Debug, Serialize, Deserialize)]
struct Entry {
    #[serde(skip_serializing_if = "Option::is_none")]
    uri: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    issuer: Option<String>,
    keys: String,
    /// RFC 3339.
    seen: String,
}

/// Where keys are kept.
pub(crate) struct StoredKeys {
    api: Option<Api<Secret>>,
    written: BTreeMap<KeySource, Seen>,
}

impl StoredKeys {
    /// In a Secret of this namespace.
    pub(crate) fn new(client: Client, namespace: &str) -> Self {
        Self { api: Some(Api::namespaced(client, namespace)), written: BTreeMap::new() }
    }

    /// Nowhere.
    #[cfg(test)]
    pub(crate) fn nowhere() -> Self {
        Self { api: None, written: BTreeMap::new() }
    }

    /// What was kept; nothing where it can't be read.
    pub(crate) async fn load(&mut self) -> BTreeMap<KeySource, Seen> {
        let Some(api) = &self.api else { return BTreeMap::new() };
        let text = match answered(PAUSE, || api.get_opt(SECRET)).await {
            Ok(secret) => secret.and_then(|secret| secret.data?.remove(ENTRY)),
            Err(error) => {
                tracing::warn!("cannot read the keys in Secret {SECRET}: {error}; going on without");
                None
            }
        };
        let Some(ByteString(text)) = text else { return BTreeMap::new() };
        self.written = read(&text, Timestamp::now()).unwrap_or_else(|error| {
            tracing::warn!("the keys in Secret {SECRET} can't be read: {error}; going on without");
            BTreeMap::new()
        });
        self.written.clone()
    }

    /// Keeps these from now on. A failure is told; the next change tries again.
    pub(crate) async fn keep(&mut self, now: BTreeMap<KeySource, Seen>) {
        let Some(api) = self.api.as_ref().filter(|_| differ(&self.written, &now)) else { return };
        let secret = Secret {
            metadata: ObjectMeta { name: Some(SECRET.to_owned()), ..ObjectMeta::default() },
            data: Some(BTreeMap::from([(ENTRY.to_owned(), ByteString(write(&now)))])),
            ..Secret::default()
        };
        let params = PatchParams::apply(FIELD_MANAGER).force();
        match api.patch(SECRET, &params, &Patch::Apply(&secret)).await {
            Ok(_) => self.written = now,
            Err(error) => tracing::warn!(
                "cannot keep the keys of token issuers in Secret {SECRET}: {error}; after a restart tokens are refused until \
                 their keys are fetched"
            ),
        }
    }
}

fn differ(written: &BTreeMap<KeySource, Seen>, now: &BTreeMap<KeySource, Seen>) -> bool {
    let same = |(a, b): (&Seen, &Seen)| a.keys == b.keys && b.at.duration_since(a.at) < TOUCH;
    !(written.keys().eq(now.keys()) && written.values().zip(now.values()).all(same))
}

/// Whether nothing in a key set is secret: no shared key, no private part.
fn is_public(keys: &str) -> bool {
    let Ok(Value::Object(set)) = serde_json::from_str(keys) else { return false };
    let secret = |key: &Value| {
        ["k", "d", "p", "q", "dp", "dq", "qi", "oth"].iter().any(|part| key.get(part).is_some())
    };
    set.get("keys").and_then(Value::as_array).is_none_or(|list| !list.iter().any(secret))
}

fn write(keys: &BTreeMap<KeySource, Seen>) -> Vec<u8> {
    let mut all: Vec<(&KeySource, &Seen)> = keys.iter().filter(|(_, seen)| is_public(&seen.keys)).collect();
    all.sort_by_key(|(_, seen)| std::cmp::Reverse(seen.at));
    let mut size = 0;
    let fitting = all.into_iter().take_while(|(source, seen)| {
        // Quotation marks are written as two bytes.
        size += 2 * (source.to_string().len() + seen.keys.len()) + 100;
        size <= LARGEST
    });
    let entry = |(source, seen): (&KeySource, &Seen)| {
        let (uri, issuer) = match source {
            KeySource::Uri(uri) => (Some(uri.to_string()), None),
            KeySource::Issuer(issuer) => (None, Some(issuer.to_string())),
        };
        Entry { uri, issuer, keys: seen.keys.to_string(), seen: seen.at.to_string() }
    };
    // Texts and times can be written.
    serde_json::to_vec(&fitting.map(entry).collect::<Vec<_>>()).unwrap_or_default()
}

fn read(text: &[u8], now: Timestamp) -> Result<BTreeMap<KeySource, Seen>, serde_json::Error> {
    let entries: Vec<Entry> = serde_json::from_slice(text)?;
    let usable = entries.into_iter().filter_map(|Entry { uri, issuer, keys, seen }| {
        let source = match (uri, issuer) {
            (Some(uri), None) => KeySource::Uri(uri.into()),
            (None, Some(issuer)) => KeySource::Issuer(issuer.into()),
            _ => return None,
        };
        let at = seen.parse().ok()?;
        let good = now.duration_since(at) < OLDEST && check_keys(&keys).is_ok();
        good.then(|| (source, Seen { keys: keys.into(), at }))
    });
    Ok(usable.collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    const PUBLIC: &str =
        r#"{"keys":[{"kty":"OKP","crv":"Ed25519","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}]}"#;

    fn seen(keys: &str, at: Timestamp) -> Seen {
        Seen { keys: keys.into(), at }
    }

    #[test]
    fn public_keys_are_kept_for_a_while() {
        let now = Timestamp::now();
        let hours = |hours: i64| now - SignedDuration::from_hours(hours);
        let (uri, issuer) = (KeySource::Uri("https://a/keys".into()), KeySource::Issuer("https://b".into()));
        let old = KeySource::Uri("https://old".into());
        let all = BTreeMap::from([
            (uri.clone(), seen(PUBLIC, hours(1))),
            (issuer.clone(), seen(PUBLIC, hours(167))),
            (old, seen(PUBLIC, hours(169))),
            (KeySource::Uri("https://shared".into()), seen(r#"{"keys":[{"kty":"oct","k":"AA"}]}"#, now)),
            (
                KeySource::Uri("https://private".into()),
                seen(&PUBLIC.replace("\"x\"", "\"d\":\"AA\",\"x\""), now),
            ),
        ]);
        let text = write(&all);
        assert!(!String::from_utf8_lossy(&text).contains("AA"), "nothing secret is written");
        let found = read(&text, now).unwrap();
        assert_eq!(found.keys().collect::<Vec<_>>(), [&uri, &issuer]);
        assert_eq!(found[&uri], all[&uri]);
    }

    #[test]
    fn what_does_not_fit_is_left_out() {
        let now = Timestamp::now();
        let long = PUBLIC.replace("OKP\"", &format!("OKP\",\"kid\":\"{}\"", "x".repeat(100_000)));
        let of = |index: i64| {
            (KeySource::Uri(index.to_string().into()), seen(&long, now - SignedDuration::from_secs(index)))
        };
        let text = write(&(0..20).map(of).collect());
        assert!(text.len() <= LARGEST, "{}", text.len());
        let found = read(&text, now).unwrap();
        assert_eq!(
            found.keys().map(ToString::to_string).collect::<Vec<_>>(),
            ["0", "1", "2"],
            "the newest stay"
        );
    }

    #[test]
    fn garbage_is_no_key() {
        let now = Timestamp::now();
        assert!(read(b"{", now).is_err());
        assert!(read(br#"[{"uri":"a","keys":"{}","seen":"2020-01-01T00:00:00Z"}]"#, now).unwrap().is_empty());
        let text = serde_json::json!([{ "uri": "a", "keys": "{}", "seen": now.to_string() }, { "keys": PUBLIC, "seen": now.to_string() }]);
        assert!(read(text.to_string().as_bytes(), now).unwrap().is_empty());
    }

    #[test]
    fn only_what_is_new_is_written() {
        let now = Timestamp::now();
        let source = KeySource::Uri("a".into());
        let of = |keys: &str, minutes: i64| {
            BTreeMap::from([(source.clone(), seen(keys, now + SignedDuration::from_mins(minutes)))])
        };
        assert!(!differ(&of("x", 0), &of("x", 59)));
        assert!(differ(&of("x", 0), &of("x", 60)), "how old they are must be known");
        assert!(differ(&of("x", 0), &of("y", 0)));
        assert!(differ(&of("x", 0), &BTreeMap::new()));
    }
}
