//! Who is calling: the bound service-account token, checked by the Kubernetes API.
use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use aws_lc_rs::digest::{SHA256, digest};
use http::HeaderMap;
use http::header::AUTHORIZATION;
use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec, TokenReviewStatus, UserInfo};
use kube::api::PostParams;
use lateen_pki::SpiffeId;
use rustls::pki_types::CertificateDer;
use tokio::sync::Semaphore;
use tonic::Status;

use crate::serve::PeerCertificates;

/// Audience of the tokens proxies are given.
pub(crate) const AUDIENCE: &str = "istio-ca";
/// How long a good answer is believed. A token that is revoked meanwhile opens no new stream after that.
const CACHE_FOR: Duration = Duration::from_secs(30);
/// How many answers are kept.
const CACHE_SIZE: usize = 4096;
/// Reviews at a time: bad tokens must not flood the API server.
const REVIEWS: usize = 16;
/// How long a review may take.
const REVIEW_TIMEOUT: Duration = Duration::from_secs(10);
/// Where Kubernetes says which pod a token is bound to.
const POD_NAME: &str = "authentication.kubernetes.io/pod-name";

/// What a token proves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Caller {
    pub(crate) namespace: String,
    pub(crate) service_account: String,
    /// The pod the token is bound to.
    pub(crate) pod: Option<String>,
}

/// Why a caller is refused. Tokens are never part of the message.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AuthError {
    #[error(
        "no bearer token: send the service-account token of audience {AUDIENCE} as `authorization: Bearer TOKEN`"
    )]
    NoToken,
    #[error("the token is not accepted: {0}")]
    Rejected(String),
    #[error("the certificate is not accepted: {0}")]
    Certificate(String),
    #[error("the token is of {0:?}, which is not a service account")]
    NotAServiceAccount(String),
    #[error("the token cannot be checked: {0}; try again")]
    Unavailable(String),
    #[error("the token is of {proven}, but the node says {claimed}")]
    OtherIdentity { proven: String, claimed: String },
}

impl From<AuthError> for Status {
    fn from(error: AuthError) -> Self {
        let message = error.to_string();
        match error {
            AuthError::NoToken
            | AuthError::Rejected(_)
            | AuthError::Certificate(_)
            | AuthError::NotAServiceAccount(_) => Status::unauthenticated(message),
            AuthError::Unavailable(_) => Status::unavailable(message),
            AuthError::OtherIdentity { .. } => Status::permission_denied(message),
        }
    }
}

/// Reviews tokens.
pub(crate) struct Authenticator {
    reviews: kube::Api<TokenReview>,
    limit: Semaphore,
    known: Mutex<Known>,
}

/// Good answers of the last seconds, by SHA-256 of the token, so that no token is kept; and until when they are believed.
#[derive(Default)]
struct Known(HashMap<[u8; 32], (Caller, Instant)>);

impl Known {
    fn get(&self, key: &[u8; 32], now: Instant) -> Option<Caller> {
        self.0.get(key).filter(|(_, until)| *until > now).map(|(caller, _)| caller.clone())
    }

    /// Where there is no room even without what has ended, it is asked again the next time.
    fn put(&mut self, key: [u8; 32], caller: Caller, now: Instant) {
        if self.0.len() >= CACHE_SIZE {
            self.0.retain(|_, (_, until)| *until > now);
        }
        if self.0.len() < CACHE_SIZE {
            self.0.insert(key, (caller, now + CACHE_FOR));
        }
    }
}

impl Authenticator {
    pub(crate) fn new(client: kube::Client) -> Self {
        Self { reviews: kube::Api::all(client), limit: Semaphore::new(REVIEWS), known: Mutex::default() }
    }

    /// Who sent a request with these headers, by a review of this moment: for answers that outlive the token.
    pub(crate) async fn authenticate_anew(&self, headers: &HeaderMap) -> Result<Caller, AuthError> {
        let token = bearer(headers).ok_or(AuthError::NoToken)?;
        // The semaphore is never closed.
        let _permit = self.limit.acquire().await;
        self.review(token).await
    }

    /// Who sent a request with these headers on a connection where these certificates were shown and verified: a certificate goes
    /// before a token, as in Istio. Machines come by theirs when their token has ended.
    pub(crate) async fn authenticate(
        &self,
        headers: &HeaderMap,
        shown: Option<&PeerCertificates>,
        trust_domain: &str,
    ) -> Result<Caller, AuthError> {
        if let Some(shown) = shown {
            let id = identity_of(shown.0.first(), trust_domain).map_err(AuthError::Certificate)?;
            return Ok(Caller {
                namespace: id.namespace().to_owned(),
                service_account: id.service_account().to_owned(),
                pod: None,
            });
        }
        let token = bearer(headers).ok_or(AuthError::NoToken)?;
        let mut key = [0; 32];
        key.copy_from_slice(digest(&SHA256, token.as_bytes()).as_ref());
        if let Some(caller) = self.known().get(&key, Instant::now()) {
            return Ok(caller);
        }
        // The semaphore is never closed.
        let _permit = self.limit.acquire().await;
        let caller = self.review(token).await?;
        self.known().put(key, caller.clone(), Instant::now());
        Ok(caller)
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn review(&self, token: &str) -> Result<Caller, AuthError> {
        let spec = TokenReviewSpec { audiences: Some(vec![AUDIENCE.to_owned()]), token: token.to_owned() };
        let review = TokenReview { spec, ..TokenReview::default() };
        let params = PostParams::default();
        let answer = tokio::time::timeout(REVIEW_TIMEOUT, self.reviews.create(&params, &review))
            .await
            .map_err(|_| AuthError::Unavailable("the Kubernetes API did not answer in time".to_owned()))?
            .map_err(|error| AuthError::Unavailable(error.to_string()))?;
        judged(answer.status.unwrap_or_default())
    }
}

/// Whom the API server takes the token's sender for.
fn judged(status: TokenReviewStatus) -> Result<Caller, AuthError> {
    if status.authenticated != Some(true) {
        let reason = status.error.filter(|reason| !reason.is_empty());
        return Err(AuthError::Rejected(reason.unwrap_or_else(|| "it is not a valid token".to_owned())));
    }
    // An API server that does not know audiences answers without them, for tokens of any audience.
    if !status.audiences.iter().flatten().any(|audience| audience == AUDIENCE) {
        return Err(AuthError::Rejected(format!("it is not for audience {AUDIENCE}")));
    }
    caller(status.user.unwrap_or_default())
}

fn bearer(headers: &HeaderMap) -> Option<&str> {
    let (scheme, token) = headers.get(AUTHORIZATION)?.to_str().ok()?.split_once(' ')?;
    let token = token.trim();
    (scheme.eq_ignore_ascii_case("bearer") && !token.is_empty()).then_some(token)
}

fn caller(user: UserInfo) -> Result<Caller, AuthError> {
    let username = user.username.unwrap_or_default();
    let parts: Vec<&str> = username.split(':').collect();
    let ["system", "serviceaccount", namespace, service_account] = parts[..] else {
        return Err(AuthError::NotAServiceAccount(username));
    };
    let pod =
        user.extra.and_then(|mut extra| extra.remove(POD_NAME)).and_then(|names| names.into_iter().next());
    Ok(Caller { namespace: namespace.to_owned(), service_account: service_account.to_owned(), pod })
}

/// The workload whose certificate this is. The handshake has verified it: it is of our root and has not expired.
pub(crate) fn identity_of(leaf: Option<&CertificateDer<'_>>, trust_domain: &str) -> Result<SpiffeId, String> {
    let leaf = leaf.ok_or("no certificate was shown")?;
    let id = SpiffeId::of_certificate(leaf).map_err(|error| error.to_string())?;
    if id.trust_domain() != trust_domain {
        return Err(format!("the certificate is of {id}, which is not of the trust domain {trust_domain}"));
    }
    Ok(id)
}

impl Caller {
    /// Whether the caller may be served as the proxy it says it is: same namespace, service account and, for a token bound
    /// to a pod, pod.
    pub(crate) fn may_be(&self, proxy: &lateen_translate::Proxy) -> Result<(), AuthError> {
        let claimed_namespace = &*proxy.workload.namespace;
        let claimed_account = &proxy.service_account;
        let same_account = claimed_account.is_empty() || *claimed_account == self.service_account;
        let same_pod = match (&self.pod, &proxy.workload.pod) {
            (Some(proven), Some(claimed)) => proven == claimed,
            _ => true,
        };
        if self.namespace == claimed_namespace && same_account && same_pod {
            return Ok(());
        }
        let name = |namespace: &str, account: &str, pod: Option<&String>| {
            let pod = pod.map(|pod| format!(", pod {pod}")).unwrap_or_default();
            format!("service account {namespace}/{account}{pod}")
        };
        Err(AuthError::OtherIdentity {
            proven: name(&self.namespace, &self.service_account, self.pod.as_ref()),
            claimed: name(claimed_namespace, claimed_account, proxy.workload.pod.as_ref()),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn user(name: &str) -> UserInfo {
        UserInfo { username: Some(name.to_owned()), ..UserInfo::default() }
    }

    #[test]
    fn only_service_accounts_are_callers() {
        let caller_ = caller(user("system:serviceaccount:shop:web")).unwrap();
        assert_eq!((caller_.namespace.as_str(), caller_.service_account.as_str()), ("shop", "web"));
        for name in
            ["", "admin", "system:node:a", "system:serviceaccount:shop", "system:serviceaccount:a:b:c"]
        {
            assert!(caller(user(name)).is_err(), "{name}");
        }
    }

    #[test]
    fn a_review_must_be_good_and_for_us() {
        let judge = |status: serde_json::Value| {
            judged(serde_json::from_value(status).unwrap()).map_err(|error| error.to_string())
        };
        let user = json!({ "username": "system:serviceaccount:shop:web", "extra": { POD_NAME: ["web-1"] } });
        let good = json!({ "authenticated": true, "audiences": ["other", "istio-ca"], "user": user });
        let caller = judge(good.clone()).unwrap();
        assert_eq!((caller.service_account.as_str(), caller.pod.as_deref()), ("web", Some("web-1")));
        let with = |field: &str, value: serde_json::Value| {
            let mut status = good.clone();
            status[field] = value;
            judge(status).unwrap_err()
        };
        for value in [json!(false), json!(null)] {
            assert!(with("authenticated", value).contains("not a valid token"));
        }
        for value in [json!(null), json!([]), json!(["https://kubernetes.default.svc"]), json!(["istio-ca2"])]
        {
            assert!(with("audiences", value).contains("not for audience"));
        }
        assert!(with("user", json!(null)).contains("not a service account"));
        let told = judge(json!({ "authenticated": false, "error": "it has ended" })).unwrap_err();
        assert!(told.contains("it has ended"));
        assert!(judge(json!({ "error": "" })).unwrap_err().contains("not a valid token"));
    }

    #[test]
    fn answers_are_believed_for_a_while() {
        let now = Instant::now();
        let caller = Caller { namespace: "shop".into(), service_account: "web".into(), pod: None };
        let key = |number: usize| {
            let mut key = [0; 32];
            key[..8].copy_from_slice(&number.to_be_bytes());
            key
        };
        let mut known = Known::default();
        known.put(key(0), caller.clone(), now);
        let just_before = now + CACHE_FOR - Duration::from_millis(1);
        assert_eq!(known.get(&key(0), just_before), Some(caller.clone()));
        assert_eq!(known.get(&key(0), now + CACHE_FOR), None, "no longer");
        assert_eq!(known.get(&key(1), now), None, "another's");
        for number in 1..CACHE_SIZE + 10 {
            known.put(key(number), caller.clone(), now);
        }
        assert_eq!(known.0.len(), CACHE_SIZE, "it grows no further");
        assert_eq!(known.get(&key(CACHE_SIZE), now), None);
        // What has ended makes room.
        known.put(key(CACHE_SIZE), caller.clone(), now + CACHE_FOR);
        assert_eq!(known.get(&key(CACHE_SIZE), now + CACHE_FOR), Some(caller));
        assert_eq!(known.0.len(), 1);
    }

    #[test]
    fn headers_without_a_bearer_token() {
        for (value, expected) in [
            ("Bearer abc", Some("abc")),
            ("bearer  abc ", Some("abc")),
            ("Basic abc", None),
            ("Bearer ", None),
            ("abc", None),
        ] {
            let headers = HeaderMap::from_iter([(AUTHORIZATION, value.parse().unwrap())]);
            assert_eq!(bearer(&headers), expected, "{value:?}");
        }
        assert_eq!(bearer(&HeaderMap::new()), None);
    }

    #[test]
    fn a_caller_is_only_who_it_proved_to_be() {
        let proxy = |pod: &str, namespace: &str, account: &str| {
            let id = format!("sidecar~10.0.0.1~{pod}.{namespace}~{namespace}.svc.cluster.local");
            lateen_translate::Proxy::parse(&id, &json!({ "SERVICE_ACCOUNT": account })).unwrap()
        };
        let caller =
            Caller { namespace: "shop".into(), service_account: "web".into(), pod: Some("web-1".into()) };
        assert!(caller.may_be(&proxy("web-1", "shop", "web")).is_ok());
        assert!(caller.may_be(&proxy("web-1", "shop", "")).is_ok());
        assert!(caller.may_be(&proxy("web-1", "other", "web")).is_err());
        assert!(caller.may_be(&proxy("web-1", "shop", "admin")).is_err());
        assert!(caller.may_be(&proxy("web-2", "shop", "web")).is_err());
        let unbound = Caller { pod: None, ..caller };
        assert!(unbound.may_be(&proxy("web-2", "shop", "web")).is_ok());
    }
}
