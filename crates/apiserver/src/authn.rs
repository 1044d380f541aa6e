//! Who is asking: client certificates, the admin token, service account tokens.

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD as BASE64URL};
use serde_json::{Value, json};

use crate::{
    pki::Pki,
    resources::meta,
    schema::strings,
    server::TokenRequest,
    store::{ObjectKey, Store},
};

/// The least time a token lives, in seconds (Kubernetes' minimum).
const MIN_EXPIRATION: u64 = 600;
/// The most, in seconds: a year, as kube-apiserver extends to.
const MAX_EXPIRATION: u64 = 365 * 24 * 3600;

/// An authenticated (or anonymous) user.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct User {
    pub(crate) name: String,
    pub(crate) uid: String,
    pub(crate) groups: Vec<String>,
    pub(crate) extra: Vec<(String, String)>,
}

impl User {
    pub(crate) fn admin() -> Self {
        Self {
            name: "kubernetes-admin".to_owned(),
            uid: String::new(),
            groups: vec!["system:masters".to_owned(), "system:authenticated".to_owned()],
            extra: Vec::new(),
        }
    }

    /// `UserInfo` of authentication.k8s.io.
    pub(crate) fn info(&self) -> Value {
        let mut info = json!({"username": self.name});
        if !self.uid.is_empty() {
            info["uid"] = json!(self.uid);
        }
        info["groups"] = json!(self.groups);
        for (key, value) in &self.extra {
            info["extra"][key.as_str()] = json!([value]);
        }
        info
    }
}

/// The subject of a verified client certificate.
pub(crate) fn user_of_certificate(certificate: &[u8]) -> Option<User> {
    let (_, certificate) = x509_parser::parse_x509_certificate(certificate).ok()?;
    let subject = certificate.subject();
    let name = subject.iter_common_name().next()?.as_str().ok()?.to_owned();
    let mut groups: Vec<String> =
        subject.iter_organization().filter_map(|o| o.as_str().ok().map(str::to_owned)).collect();
    groups.push("system:authenticated".to_owned());
    Some(User { name, uid: String::new(), groups, extra: Vec::new() })
}

/// The issuer of a cluster's tokens.
pub(crate) fn issuer(cluster_domain: &str) -> String {
    format!("https://kubernetes.default.svc.{cluster_domain}")
}

/// Makes and checks tokens.
pub(crate) struct Authenticator {
    pub(crate) pki: Pki,
    pub(crate) issuer: String,
}

impl Authenticator {
    /// The audiences of the API server itself.
    pub(crate) fn own_audiences(&self) -> Vec<String> {
        vec![self.issuer.clone()]
    }

    /// The user a bearer token stands for, if it is meant for the API server.
    pub(crate) fn bearer(&self, store: &Store, token: &str) -> Option<User> {
        self.review(store, token, &[]).ok().map(|(user, _)| user)
    }

    /// Checks a token for one of `audiences` (empty: the API server's own); returns the user and the audiences that fit.
    pub(crate) fn review(
        &self,
        store: &Store,
        token: &str,
        audiences: &[String],
    ) -> Result<(User, Vec<String>), String> {
        let own = self.own_audiences();
        let wanted = if audiences.is_empty() { &own } else { audiences };
        if aws_lc_rs::constant_time::verify_slices_are_equal(
            token.as_bytes(),
            self.pki.admin_token.as_bytes(),
        )
        .is_ok()
        {
            let fitting: Vec<String> = wanted.iter().filter(|a| own.contains(a)).cloned().collect();
            return if fitting.is_empty() {
                Err("token audiences are not accepted".to_owned())
            } else {
                Ok((User::admin(), fitting))
            };
        }
        let claims = self.verify(token)?;
        let granted = strings(&claims["aud"]);
        let fitting: Vec<String> = wanted.iter().filter(|a| granted.contains(a)).cloned().collect();
        if fitting.is_empty() {
            return Err(format!(
                "token audiences {granted:?} is invalid for the target audiences {wanted:?}"
            ));
        }
        Ok((bound_user(store, &claims["kubernetes.io"])?, fitting))
    }

    /// Signature, issuer and times.
    fn verify(&self, token: &str) -> Result<Value, String> {
        let (message, signature) = token.rsplit_once('.').ok_or("not a JSON web token")?;
        let (header, payload) = message.split_once('.').ok_or("not a JSON web token")?;
        let decode = |text: &str| BASE64URL.decode(text).map_err(|_| "not base64url".to_owned());
        let json =
            |bytes: Vec<u8>| serde_json::from_slice::<Value>(&bytes).map_err(|_| "not JSON".to_owned());
        if json(decode(header)?)?["alg"] != "ES256" {
            return Err("unexpected signature algorithm".to_owned());
        }
        if !self.pki.tokens.verify(message.as_bytes(), &decode(signature)?) {
            return Err("invalid signature".to_owned());
        }
        let claims = json(decode(payload)?)?;
        if claims["iss"] != self.issuer {
            return Err("unexpected issuer".to_owned());
        }
        let now = jiff::Timestamp::now().as_second();
        if claims["exp"].as_i64().is_none_or(|expiry| expiry <= now) {
            return Err("service account token has expired".to_owned());
        }
        if claims["nbf"].as_i64().is_some_and(|start| start > now + 5) {
            return Err("service account token is not valid yet".to_owned());
        }
        Ok(claims)
    }

    /// Makes a token; returns it with its expiry (RFC 3339). `pod` may also be another bound object.
    pub(crate) fn mint(
        &self,
        store: &Store,
        request: &TokenRequest,
        bound: Option<Bound<'_>>,
    ) -> Result<(String, String), String> {
        let account = store
            .get("serviceaccounts", &ObjectKey::new(&*request.namespace, &*request.service_account))
            .ok_or_else(|| format!("serviceaccounts {:?} not found", request.service_account))?;
        let mut private = json!({
            "namespace": request.namespace,
            "serviceaccount": {"name": request.service_account, "uid": meta(&account, "uid")},
        });
        let pod_bound = request.pod.as_deref().map(|name| Bound { kind: "Pod", name, uid: "" });
        if let Some(bound) = bound.or(pod_bound) {
            let (storage, claim) = match bound.kind {
                "Pod" => ("pods", "pod"),
                "Secret" => ("secrets", "secret"),
                other => return Err(format!("cannot bind a token to a {other}: must be Pod or Secret")),
            };
            let object = store
                .get(storage, &ObjectKey::new(&*request.namespace, bound.name))
                .ok_or_else(|| format!("{storage} {:?} not found", bound.name))?;
            let uid = meta(&object, "uid");
            if !bound.uid.is_empty() && bound.uid != uid {
                return Err(format!(
                    "the UID in the bound object reference ({}) does not match the UID in record ({uid})",
                    bound.uid
                ));
            }
            private[claim] = json!({"name": bound.name, "uid": uid});
        }
        let audiences =
            if request.audiences.is_empty() { self.own_audiences() } else { request.audiences.clone() };
        let now = jiff::Timestamp::now().as_second();
        let lifetime = request.expiration.as_secs().clamp(MIN_EXPIRATION, MAX_EXPIRATION);
        let expiry = now.saturating_add(i64::try_from(lifetime).unwrap_or(i64::MAX));
        let claims = json!({
            "aud": audiences,
            "exp": expiry,
            "iat": now,
            "iss": self.issuer,
            "jti": uuid::Uuid::new_v4().to_string(),
            "kubernetes.io": private,
            "nbf": now,
            "sub": format!("system:serviceaccount:{}:{}", request.namespace, request.service_account),
        });
        let header = json!({"alg": "ES256", "kid": self.pki.tokens.id()});
        let message =
            format!("{}.{}", BASE64URL.encode(header.to_string()), BASE64URL.encode(claims.to_string()));
        let signature = BASE64URL.encode(self.pki.tokens.sign(message.as_bytes())?);
        let expires = jiff::Timestamp::from_second(expiry).map_err(|e| e.to_string())?;
        Ok((format!("{message}.{signature}"), expires.to_string()))
    }
}

/// The object a token is bound to; an empty uid is looked up.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bound<'a> {
    pub(crate) kind: &'a str,
    pub(crate) name: &'a str,
    pub(crate) uid: &'a str,
}

/// Checks that the service account, and the object the token is bound to, are still those it was made for.
fn bound_user(store: &Store, private: &Value) -> Result<User, String> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let namespace = text(&private["namespace"]);
    let exists = |storage: &str, claim: &Value| {
        let key = ObjectKey::new(&*namespace, text(&claim["name"]));
        store.get(storage, &key).is_some_and(|object| object["metadata"]["uid"] == claim["uid"])
    };
    let account = &private["serviceaccount"];
    if !exists("serviceaccounts", account) {
        return Err("service account has been deleted".to_owned());
    }
    let mut extra = Vec::new();
    let pod = &private["pod"];
    if !pod.is_null() {
        if !exists("pods", pod) {
            return Err("pod the token is bound to has been deleted".to_owned());
        }
        extra.push(("authentication.kubernetes.io/pod-name".to_owned(), text(&pod["name"])));
        extra.push(("authentication.kubernetes.io/pod-uid".to_owned(), text(&pod["uid"])));
    }
    let secret = &private["secret"];
    if !secret.is_null() && !exists("secrets", secret) {
        return Err("secret the token is bound to has been deleted".to_owned());
    }
    Ok(User {
        name: format!("system:serviceaccount:{namespace}:{}", text(&account["name"])),
        uid: text(&account["uid"]),
        groups: vec![
            "system:serviceaccounts".to_owned(),
            format!("system:serviceaccounts:{namespace}"),
            "system:authenticated".to_owned(),
        ],
        extra,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn tokens_live_and_die_with_what_they_are_bound_to() {
        let store = Store::ephemeral(10);
        let create = |storage: &str, name: &str, uid: &str| {
            let object = json!({"metadata": {"name": name, "namespace": "ns", "uid": uid}});
            store.create(&storage.into(), ObjectKey::new("ns", name), object).unwrap()
        };
        create("serviceaccounts", "web", "u1");
        let pod = create("pods", "web-1", "u2");
        let authenticator = Authenticator { pki: Pki::open(None).unwrap(), issuer: issuer("cluster.local") };
        let request = TokenRequest {
            namespace: "ns".into(),
            service_account: "web".into(),
            audiences: vec!["istio-ca".into()],
            expiration: Duration::from_secs(3600),
            pod: Some("web-1".into()),
        };
        let (token, _) = authenticator.mint(&store, &request, None).unwrap();
        let audiences = ["other".to_owned(), "istio-ca".to_owned()];
        let (user, fitting) = authenticator.review(&store, &token, &audiences).unwrap();
        assert_eq!(user.name, "system:serviceaccount:ns:web");
        assert_eq!(user.extra[1], ("authentication.kubernetes.io/pod-uid".to_owned(), "u2".to_owned()));
        assert_eq!(fitting, ["istio-ca"]);
        assert!(authenticator.bearer(&store, &token).is_none(), "not for the API server");
        let mut forged = token.clone();
        forged.replace_range(token.len() - 4.., "AAAA");
        assert!(authenticator.review(&store, &forged, &audiences).is_err());
        let version = meta(&pod, "resourceVersion").to_owned();
        store.delete(&"pods".into(), ObjectKey::new("ns", "web-1"), &version, Value::clone(&pod)).unwrap();
        let error = authenticator.review(&store, &token, &audiences).unwrap_err();
        assert!(error.contains("pod"), "{error}");
    }
}
