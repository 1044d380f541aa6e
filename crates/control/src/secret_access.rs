//! Which service accounts may read the Secrets of their namespace.
//!
//! The control plane reads all Secrets, so it must not hand out what a proxy could not get by itself: as Istio does, the API server
//! is asked (SubjectAccessReview, verb `list`), and asked again while a proxy is connected, since roles come and go.
use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use k8s_openapi::api::authorization::v1::{ResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec};
use kube::api::PostParams;
use lateen_translate::{Proxy, ProxyKind, namespaces_wanting_secrets};
use tokio::sync::{Semaphore, mpsc, watch};
use tokio_util::sync::CancellationToken;

use crate::authenticate::AuthError;
use crate::push::{Input, Published};
use crate::source::Sessions;

/// How long a yes is believed (Istio's time); a role that is taken away takes that long to have an effect.
const YES_FOR: Duration = Duration::from_secs(60);
/// How long a no is believed: shorter, since whoever binds a role waits for what it brings.
const NO_FOR: Duration = Duration::from_secs(5);
/// How often connected proxies are looked at. Nothing of it is on the way of a change to a proxy.
const AGAIN: Duration = Duration::from_secs(2);
/// Questions at a time.
const REVIEWS: usize = 16;
/// How long an answer may take.
const REVIEW_TIMEOUT: Duration = Duration::from_secs(10);

/// A service account: namespace and name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Account {
    pub(crate) namespace: Arc<str>,
    pub(crate) name: String,
}

impl Account {
    pub(crate) fn of(proxy: &Proxy) -> Self {
        Self { namespace: proxy.workload.namespace.clone(), name: proxy.service_account.clone() }
    }
}

fn wants(proxy: &Proxy, namespaces: &BTreeSet<Arc<str>>) -> bool {
    proxy.kind == ProxyKind::Router || namespaces.contains(&proxy.workload.namespace)
}

/// Asks, and remembers for a while.
pub(crate) struct SecretAccess {
    reviews: kube::Api<SubjectAccessReview>,
    limit: Semaphore,
    known: Mutex<HashMap<Account, (bool, Instant)>>,
}

impl SecretAccess {
    pub(crate) fn new(client: kube::Client) -> Self {
        Self { reviews: kube::Api::all(client), limit: Semaphore::new(REVIEWS), known: Mutex::default() }
    }

    /// Whether the account may list the Secrets of its namespace.
    ///
    /// # Errors
    /// When the API server does not say.
    pub(crate) async fn may_read(&self, account: &Account) -> Result<bool, AuthError> {
        if let Some(known) = self.known(account) {
            return Ok(known);
        }
        // The semaphore is never closed.
        let _permit = self.limit.acquire().await;
        let spec = SubjectAccessReviewSpec {
            user: Some(format!("system:serviceaccount:{}:{}", account.namespace, account.name)),
            groups: Some(vec![
                "system:serviceaccounts".to_owned(),
                format!("system:serviceaccounts:{}", account.namespace),
                "system:authenticated".to_owned(),
            ]),
            resource_attributes: Some(ResourceAttributes {
                namespace: Some(account.namespace.to_string()),
                resource: Some("secrets".to_owned()),
                verb: Some("list".to_owned()),
                ..ResourceAttributes::default()
            }),
            ..SubjectAccessReviewSpec::default()
        };
        let review = SubjectAccessReview { spec, ..SubjectAccessReview::default() };
        let params = PostParams::default();
        let answer = tokio::time::timeout(REVIEW_TIMEOUT, self.reviews.create(&params, &review))
            .await
            .map_err(|_| AuthError::Unavailable("the Kubernetes API did not answer in time".to_owned()))?
            .map_err(|error| AuthError::Unavailable(error.to_string()))?;
        let allowed = answer.status.is_some_and(|status| status.allowed);
        let until = Instant::now() + if allowed { YES_FOR } else { NO_FOR };
        self.known.lock().unwrap_or_else(PoisonError::into_inner).insert(account.clone(), (allowed, until));
        Ok(allowed)
    }

    fn known(&self, account: &Account) -> Option<bool> {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.get(account).filter(|(_, until)| *until > Instant::now()).map(|(allowed, _)| *allowed)
    }

    /// Tells the push loop what becomes of the accounts of connected proxies, until stopped.
    pub(crate) async fn follow(
        self: Arc<Self>,
        sessions: Sessions,
        published: watch::Receiver<Published>,
        inputs: mpsc::Sender<Input>,
        stop: CancellationToken,
    ) {
        let following = async {
            let mut told: HashMap<Account, bool> = HashMap::new();
            let mut warned = false;
            loop {
                tokio::time::sleep(AGAIN).await;
                let world = published.borrow().world.clone();
                let namespaces = namespaces_wanting_secrets(&world);
                let wanting: BTreeSet<Account> = sessions
                    .proxies()
                    .iter()
                    .filter(|proxy| wants(proxy, &namespaces))
                    .map(|proxy| Account::of(proxy))
                    .collect();
                told.retain(|account, _| wanting.contains(account));
                let gone = |account: &Account| !wanting.contains(account);
                self.known
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .retain(|account, (_, until)| !gone(account) || *until > Instant::now());
                for account in wanting {
                    match self.may_read(&account).await {
                        Ok(allowed) if told.insert(account.clone(), allowed) != Some(allowed) => {
                            if inputs.send(Input::SecretAccess(account, allowed)).await.is_err() {
                                return;
                            }
                        }
                        Ok(_) => warned = false,
                        // What was known stays in force: an API server that is away takes no certificate from a gateway.
                        Err(error) => {
                            if !std::mem::replace(&mut warned, true) {
                                let Account { namespace, name } = &account;
                                tracing::warn!("whether {namespace}/{name} may read secrets: {error}");
                            }
                        }
                    }
                }
            }
        };
        stop.run_until_cancelled(following).await;
    }

    /// Whether a proxy that connects is to be given secrets.
    ///
    /// # Errors
    /// When the API server does not say; the proxy keeps what it has and comes again.
    pub(crate) async fn of_new(
        &self,
        proxy: &Proxy,
        published: &watch::Receiver<Published>,
    ) -> Result<bool, AuthError> {
        let world = published.borrow().world.clone();
        if wants(proxy, &namespaces_wanting_secrets(&world)) {
            self.may_read(&Account::of(proxy)).await
        } else {
            Ok(false)
        }
    }
}
