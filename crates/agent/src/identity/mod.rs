//! Who this workload is: its key and certificate, had from the certificate authority and renewed in time, and given to the engine.
//!
//! Of pods nothing of it is written to disk. When the authority is away, what there is serves until it ends; the log says so.

pub(crate) mod engine;
pub(crate) mod kept;
pub(crate) mod sds;
pub(crate) mod told;
mod trust;

use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use lateen_pki::{KeyKind, SpiffeId, WorkloadCertificate, WorkloadKey};
use lateen_xds::certificate_service::{IstioCertificateRequest, create_certificate};
use lateen_xds::pb::envoy::config::core::v3 as core;
use lateen_xds::pb::envoy::extensions::transport_sockets::tls::v3 as tls;
use lateen_xds::pb::envoy::extensions::transport_sockets::tls::v3::spiffe_cert_validator_config::TrustDomain;
use lateen_xds::pb::google::protobuf::{Struct, Value, value::Kind};
use prost::{Message as _, Name as _};
use tokio::sync::watch;
use tracing::{error, info, warn};

use crate::config::Discovery;
use crate::dial;
use crate::error::AgentError;
use trust::Trust;

/// Name of the secret with the workload's certificate, as Istio's configuration has it.
pub(crate) const CERTIFICATE: &str = "default";
/// Name of the secret with the roots.
pub(crate) const ROOTS: &str = "ROOTCA";

/// Shortest and longest pause before the authority is asked again.
const FIRST_BACK_OFF: Duration = Duration::from_millis(200);
const LAST_BACK_OFF: Duration = Duration::from_secs(15);
/// Over how long workloads spread their renewals when another authority signs, at most, and how often each asks for that.
const SPREAD: Duration = Duration::from_secs(5);
const MOVES: u32 = 5;
/// Shortest time between a certificate and the next: where clocks differ by as much as it lives, or all of its life is grace, the
/// authority would be asked without a pause.
const SOONEST: Duration = Duration::from_secs(1);
/// How long an answer may take.
const ANSWER: Duration = Duration::from_secs(10);

/// How certificates are had, by the variables of Istio's agent.
#[derive(Clone, Debug, PartialEq)]
pub struct Identity {
    /// Life that is asked for. Default 24 h (`SECRET_TTL`).
    pub life: Duration,
    /// Part of the life that is left when a certificate is renewed. Default 0.5 (`SECRET_GRACE_PERIOD_RATIO`).
    pub grace: f64,
    /// How much that part may be more or less, so that not all workloads come at once. Default 0.01
    /// (`SECRET_GRACE_PERIOD_RATIO_JITTER`).
    pub jitter: f64,
    /// Kind of key. Default P-256 (`ECC_CURVE`, `WORKLOAD_RSA_KEY_SIZE`).
    pub key: KeyKind,
    /// Who the workload is: the name in its requests, for authorities that sign what a request has. Default none; it is made of
    /// `TRUST_DOMAIN`, namespace and service account.
    pub id: Option<SpiffeId>,
    /// Which of several authorities signs (`ISTIO_META_CERT_SIGNER`). Default: the control plane's choice.
    pub signer: Option<String>,
    /// Folder into which certificates are written too, for machines (`OUTPUT_CERTS`). Default: none.
    pub output: Option<PathBuf>,
}

impl Default for Identity {
    fn default() -> Self {
        Self {
            life: Duration::from_secs(24 * 3600),
            grace: 0.5,
            jitter: 0.01,
            key: KeyKind::default(),
            id: None,
            signer: None,
            output: None,
        }
    }
}

/// The certificate in use; none before the first one came.
pub(crate) type Current = watch::Receiver<Option<Arc<WorkloadCertificate>>>;

impl Identity {
    /// When a certificate is to be renewed. `random` is from -1 to 1.
    fn renewal(&self, certificate: &WorkloadCertificate, random: f64) -> SystemTime {
        let life = certificate.not_after.duration_since(certificate.received).unwrap_or_default();
        let grace = (self.grace + self.jitter * random).clamp(0.0, 1.0);
        (certificate.not_after - life.mul_f64(grace)).max(certificate.received + SOONEST)
    }

    /// Keeps a certificate until nobody wants it any more.
    pub(crate) async fn keep(
        self,
        discovery: Discovery,
        mark: Option<u32>,
        current: watch::Sender<Option<Arc<WorkloadCertificate>>>,
    ) {
        let mut pause = FIRST_BACK_OFF;
        let mut told_of_end = false;
        let mut trust = Trust::new(discovery.root_cert.clone());
        let mut moves = MOVES;
        while !current.is_closed() {
            let obtained = {
                let mut obtained = std::pin::pin!(self.obtain(&discovery, mark));
                following(&current, &mut trust, &mut moves, &mut obtained).await
            };
            match obtained {
                Ok(certificate) => {
                    let until = certificate.not_after.duration_since(SystemTime::now()).unwrap_or_default();
                    info!(seconds_left = until.as_secs(), "certificate received");
                    let renewal = self.renewal(&certificate, fastrand::f64() * 2.0 - 1.0);
                    let certificate = trust.apply(certificate);
                    // What the control plane's own certificate is of stands where it is: another authority may have signed ours.
                    let elsewhere = |folder: &PathBuf| discovery.root_cert != Some(folder.join(kept::ROOTS));
                    if let Some(folder) = &self.output
                        && let Err(error) = kept::write(folder, &certificate, elsewhere(folder))
                    {
                        warn!(%error, folder = %folder.display(), "the certificate cannot be kept in a file");
                    }
                    current.send_replace(Some(Arc::new(certificate)));
                    (pause, told_of_end) = (FIRST_BACK_OFF, false);
                    until_renewal(renewal, &current, &mut trust, &mut moves).await;
                }
                Err(problem) => {
                    let left = current
                        .borrow()
                        .as_ref()
                        .map(|held| held.not_after.duration_since(SystemTime::now()));
                    match left {
                        None => warn!(%problem, "no certificate yet; mutual TLS waits for it"),
                        Some(Ok(left)) => {
                            warn!(%problem, seconds_left = left.as_secs(), "cannot renew the certificate; the one there is serves on");
                        }
                        Some(Err(_)) if !told_of_end => {
                            error!(%problem, "the certificate has expired and cannot be renewed; peers refuse mutual TLS until it can");
                            told_of_end = true;
                        }
                        Some(Err(_)) => {}
                    }
                    // Of many proxies that lost the same authority not all come back at once.
                    let pause_ends = tokio::time::sleep(pause.mul_f64(0.5 + fastrand::f64() / 2.0));
                    following(&current, &mut trust, &mut moves, std::pin::pin!(pause_ends)).await;
                    pause = (pause * 2).min(LAST_BACK_OFF);
                }
            }
        }
    }

    /// What a request says besides.
    fn metadata(&self) -> Option<Struct> {
        let signer = Value { kind: Some(Kind::StringValue(self.signer.clone()?)) };
        Some(Struct { fields: [("CertSigner".to_owned(), signer)].into() })
    }

    async fn obtain(
        &self,
        discovery: &Discovery,
        mark: Option<u32>,
    ) -> Result<WorkloadCertificate, AgentError> {
        let failed = |reason: String| AgentError::ControlPlane {
            address: discovery.address.clone(),
            reason: format!("certificate: {reason}"),
        };
        let (kind, id) = (self.key, self.id.clone());
        // An RSA key takes a while, and configuration comes on this thread too.
        let made = tokio::task::spawn_blocking(move || {
            let key = WorkloadKey::generate(kind)?;
            let csr = id.as_ref().map_or_else(|| key.request(), |id| key.request_as(id))?;
            Ok::<_, lateen_pki::WorkloadError>((key, csr))
        });
        let (key, csr) = made
            .await
            .map_err(|error| failed(error.to_string()))?
            .map_err(|error| failed(error.to_string()))?;
        let validity_duration = i64::try_from(self.life.as_secs()).unwrap_or(i64::MAX);
        let message = IstioCertificateRequest { csr, validity_duration, metadata: self.metadata() };
        let mut request = tonic::Request::new(message);
        dial::prove(discovery, request.metadata_mut())?;
        let channel = dial::channel(discovery, mark).await?;
        let answer = tokio::time::timeout(ANSWER, create_certificate(channel, request))
            .await
            .map_err(|_| failed(format!("no answer within {} s", ANSWER.as_secs())))?
            .map_err(|status| failed(format!("{}: {}", status.code(), status.message())))?;
        WorkloadCertificate::new(&key, answer.cert_chain).map_err(|error| failed(error.to_string()))
    }
}

/// The roots have changed: the engine has them from now on.
fn follow(current: &watch::Sender<Option<Arc<WorkloadCertificate>>>, trust: &Trust, moves: &mut u32) {
    *moves = MOVES;
    current.send_modify(|held| {
        *held = held.take().map(|held| Arc::new(trust.apply(WorkloadCertificate::clone(&held))));
    });
}

/// Waits for something, and gives the engine the roots of the moment meanwhile.
async fn following<T>(
    current: &watch::Sender<Option<Arc<WorkloadCertificate>>>,
    trust: &mut Trust,
    moves: &mut u32,
    mut until: impl Future<Output = T> + Unpin,
) -> T {
    loop {
        tokio::select! {
            done = &mut until => return done,
            () = trust.changed() => follow(current, trust, moves),
        }
    }
}

/// Waits until the certificate is to be renewed: at its time, or soon after another authority has begun to sign. Gives the engine
/// the roots of the moment meanwhile.
async fn until_renewal(
    renewal: SystemTime,
    current: &watch::Sender<Option<Arc<WorkloadCertificate>>>,
    trust: &mut Trust,
    moves: &mut u32,
) {
    let spread = renewal.duration_since(SystemTime::now()).unwrap_or_default().div_f64(10.0).min(SPREAD);
    loop {
        let held = current.borrow().clone();
        let moved = *moves > 0 && held.is_some_and(|held| trust.has_moved_on(&held));
        tokio::select! {
            () = sleep_until(renewal) => return,
            () = tokio::time::sleep(spread.mul_f64(fastrand::f64())), if moved => {
                // A control plane may not have heard of it yet; one that never signs as the file has it is not asked for ever.
                *moves -= 1;
                return;
            }
            () = trust.changed() => follow(current, trust, moves),
        }
    }
}

/// By the clock on the wall, which certificates go by: it may be set while we sleep.
async fn sleep_until(time: SystemTime) {
    const LOOK: Duration = Duration::from_secs(60);
    while let Ok(left) = time.duration_since(SystemTime::now()) {
        tokio::time::sleep(left.min(LOOK)).await;
    }
}

fn inline(text: &str) -> core::DataSource {
    core::DataSource {
        specifier: Some(core::data_source::Specifier::InlineBytes(text.as_bytes().to_vec())),
        ..Default::default()
    }
}

/// One of our two secrets, for an engine; none of another name.
pub(crate) fn secret(name: &str, certificate: &WorkloadCertificate) -> Option<tls::Secret> {
    let kind = match name {
        CERTIFICATE => tls::secret::Type::TlsCertificate(tls::TlsCertificate {
            certificate_chain: Some(inline(&certificate.chain)),
            private_key: Some(inline(&certificate.key)),
            ..Default::default()
        }),
        ROOTS => tls::secret::Type::ValidationContext(tls::CertificateValidationContext {
            trusted_ca: Some(inline(&certificate.roots)),
            custom_validator_config: by_domain(certificate),
            ..Default::default()
        }),
        _ => return None,
    };
    Some(tls::Secret { name: name.to_owned(), r#type: Some(kind) })
}

/// The validator that holds roots to their trust domains; none where there is one domain's only.
fn by_domain(certificate: &WorkloadCertificate) -> Option<core::TypedExtensionConfig> {
    let domain = |(name, roots): (&String, &String)| TrustDomain {
        name: name.clone(),
        trust_bundle: Some(inline(roots)),
        ..Default::default()
    };
    let config = tls::SpiffeCertValidatorConfig {
        trust_domains: certificate.domains.iter().map(domain).collect(),
        ..Default::default()
    };
    let config = lateen_xds::Any {
        type_url: format!("type.googleapis.com/{}", tls::SpiffeCertValidatorConfig::full_name()),
        value: config.encode_to_vec(),
    };
    (!certificate.domains.is_empty()).then(|| core::TypedExtensionConfig {
        name: "envoy.tls.cert_validator.spiffe".to_owned(),
        typed_config: Some(config),
    })
}

/// What secrets of this certificate are called in xDS: which one it is and with which roots, without saying what is in it.
pub(crate) fn version(certificate: &WorkloadCertificate) -> String {
    let since = certificate.received.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let mut roots = DefaultHasher::new();
    (&certificate.roots, &certificate.domains).hash(&mut roots);
    format!("{}-{:016x}", since.as_micros(), roots.finish())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn roots_are_followed_while_nobody_signs() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("root-cert.pem");
        let authorities =
            [(), ()].map(|()| lateen_pki::CertificateAuthority::generate("cluster.local").unwrap());
        let [old, new] = &authorities;
        std::fs::write(&file, old.root_pem()).unwrap();
        let key = WorkloadKey::generate(KeyKind::P256).unwrap();
        let request = lateen_pki::SigningRequest::from_pem(&key.request().unwrap()).unwrap();
        let id = lateen_pki::SpiffeId::new("cluster.local", "shop", "web").unwrap();
        let chain = old.issue_workload(&request, &id, Duration::from_secs(60)).unwrap();
        let held = WorkloadCertificate::new(&key, chain).unwrap();
        let (sender, mut current) = watch::channel(Some(Arc::new(held)));
        // Nobody listens there.
        let discovery = Discovery {
            address: "127.0.0.1:1".to_owned(),
            root_cert: Some(file.clone()),
            token: None,
            certificate: None,
        };
        tokio::spawn(Identity::default().keep(discovery, None, sender));
        // It has read the file when it first waits.
        tokio::task::yield_now().await;
        let both = old.roots().with(new.roots()).to_pem();
        for roots in [&both, old.root_pem(), &both] {
            std::fs::write(&file, roots).unwrap();
            let changed = current.wait_for(|held| held.as_ref().is_some_and(|held| held.roots == *roots));
            tokio::time::timeout(Duration::from_secs(15), changed).await.expect("in seconds").unwrap();
        }
    }

    #[test]
    fn renewal_is_at_half_of_the_life_more_or_less() {
        let received = SystemTime::now();
        let life = Duration::from_secs(1000);
        let certificate = WorkloadCertificate {
            chain: String::new(),
            key: String::new(),
            roots: String::new(),
            domains: std::collections::BTreeMap::new(),
            received,
            not_after: received + life,
        };
        let after = |identity: Identity, random| {
            identity.renewal(&certificate, random).duration_since(received).unwrap().as_secs()
        };
        let default = Identity::default();
        assert_eq!([-1.0, 0.0, 1.0].map(|random| after(default.clone(), random)), [510, 500, 490]);
        assert_eq!(after(Identity { grace: 0.2, jitter: 0.0, ..default.clone() }, 1.0), 800);
        assert_eq!(after(Identity { grace: 1.0, ..default }, 1.0), 1, "never at once, and again and again");
    }
}
