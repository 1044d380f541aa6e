//! TLS towards clients and endpoints.
//!
//! A context of configuration ([`ServerTls`], [`ClientTls`]) lives as long as the chain or cluster that has it; what it is made of changes
//! with its secrets, between one handshake and the next. Connections that are there stay. Sessions do not: tickets and session caches
//! belong to what was made of the secrets of the time, so that nobody resumes a session with a trust that is gone.

mod accept;
mod certificate;
mod connect;
mod facts;
mod names;
mod provider;
mod reason;
mod revocation;
mod tickets;
mod verify;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use ahash::AHashMap;
use arc_swap::ArcSwapOption;
use lateen_ir as ir;

pub(crate) use accept::accept;
pub(crate) use certificate::{CertificateDetails, details};
pub(crate) use connect::{ServerIdentity, connect};
pub(crate) use facts::{CertificateFacts, TlsFacts};
pub(crate) use reason::Failed;

/// Secrets by name.
pub(crate) struct Secrets {
    known: AHashMap<Arc<str>, Arc<ir::Secret>>,
    /// Whether an agent brings some.
    has_agent: bool,
}

impl Secrets {
    /// None yet.
    pub(crate) fn new(has_agent: bool) -> Self {
        Self { known: AHashMap::new(), has_agent }
    }

    /// Takes a secret, whose PEM must be what it says.
    pub(crate) fn set(&mut self, secret: ir::Secret) -> Result<(), String> {
        match &secret.kind {
            ir::SecretKind::Certificate(own) => drop(certificate::load(own)?),
            ir::SecretKind::Validation(context) => verify::check(context)?,
        }
        self.known.insert(secret.name.clone(), Arc::new(secret));
        Ok(())
    }

    /// Forgets all but these.
    pub(crate) fn retain(&mut self, keep: impl Fn(&str) -> bool) {
        self.known.retain(|name, _| keep(name));
    }

    pub(crate) fn has(&self, name: &str) -> bool {
        self.known.contains_key(name)
    }

    fn certificate(&self, name: &str) -> Result<Option<Arc<ir::TlsCertificate>>, String> {
        match self.known.get(name).map(|secret| &secret.kind) {
            None => Ok(None),
            Some(ir::SecretKind::Certificate(own)) => Ok(Some(own.clone())),
            Some(ir::SecretKind::Validation(_)) => Err(format!("secret {name:?} is no certificate")),
        }
    }

    fn validation(&self, name: &str) -> Result<Option<Arc<ir::ValidationContext>>, String> {
        match self.known.get(name).map(|secret| &secret.kind) {
            None => Ok(None),
            Some(ir::SecretKind::Validation(context)) => Ok(Some(context.clone())),
            Some(ir::SecretKind::Certificate(_)) => Err(format!("secret {name:?} is no validation context")),
        }
    }

    /// Refuses what names a static secret that is not there, or one of an agent where there is none.
    pub(crate) fn check_sources(&self, common: &ir::CommonTls) -> Result<(), String> {
        let of_agent = |secret: &&ir::SecretName| matches!(secret.source, ir::SecretSource::Agent { .. });
        if let Some(secret) = common.secrets().find(of_agent).filter(|_| !self.has_agent) {
            return Err(format!(
                "secret {}: there is no agent to have it from (sds-grpc); use ads or path_config_source",
                secret.name
            ));
        }
        let missing = common
            .secrets()
            .find(|secret| secret.source == ir::SecretSource::Static && !self.has(&secret.name));
        missing.map_or(Ok(()), |secret| Err(format!("Unknown static secret: {}", secret.name)))
    }
}

/// Own certificates and how the peer's is verified, secrets resolved.
struct Material {
    certificates: Vec<Arc<ir::TlsCertificate>>,
    validation: Arc<ir::ValidationContext>,
}

/// `None`: a secret is missing.
fn material(common: &ir::CommonTls, secrets: &Secrets) -> Result<Option<Material>, String> {
    let mut certificates = Vec::with_capacity(common.certificates.len());
    for one in &common.certificates {
        match one {
            ir::CertificateRef::Inline(own) => certificates.push(own.clone()),
            ir::CertificateRef::Secret(secret) => match secrets.certificate(&secret.name)? {
                Some(own) => certificates.push(own),
                None => return Ok(None),
            },
        }
    }
    let validation = match &common.validation {
        ir::ValidationRef::None => Arc::default(),
        ir::ValidationRef::Inline(context) => context.clone(),
        ir::ValidationRef::Secret { base, secret } => match secrets.validation(&secret.name)? {
            Some(dynamic) => Arc::new(base.merged(&dynamic)),
            None => return Ok(None),
        },
    };
    validation.check_founded()?;
    Ok(Some(Material { certificates, validation }))
}

/// TLS of a filter chain.
pub(crate) struct ServerTls {
    pub(crate) ir: Arc<ir::DownstreamTls>,
    /// `None`: a secret has not come.
    current: ArcSwapOption<accept::ServerContext>,
    updates: AtomicU64,
}

impl ServerTls {
    pub(crate) fn new(ir: Arc<ir::DownstreamTls>, secrets: &Secrets) -> Result<Arc<Self>, String> {
        secrets.check_sources(&ir.common)?;
        let tls = Self { ir, current: ArcSwapOption::empty(), updates: AtomicU64::new(0) };
        tls.refresh(secrets)?;
        Ok(Arc::new(tls))
    }

    /// Makes it anew of the secrets as they are. On an error what there is stays.
    pub(crate) fn refresh(&self, secrets: &Secrets) -> Result<(), String> {
        if let Some(material) = material(&self.ir.common, secrets)? {
            self.current.store(Some(Arc::new(accept::ServerContext::new(&self.ir, &material)?)));
            if self.ir.common.secrets().next().is_some() {
                self.updates.fetch_add(1, Relaxed);
            }
        }
        Ok(())
    }
}

/// TLS of a cluster, for all of its endpoints or for those that match.
pub(crate) struct ClientTls {
    pub(crate) ir: Arc<ir::UpstreamTls>,
    /// The certificate must have the name that is asked for in a request.
    by_request: bool,
    current: ArcSwapOption<connect::LazyContext>,
    updates: AtomicU64,
}

impl ClientTls {
    pub(crate) fn new(
        ir: Arc<ir::UpstreamTls>,
        by_request: bool,
        secrets: &Secrets,
    ) -> Result<Arc<Self>, String> {
        secrets.check_sources(&ir.common)?;
        let tls = Self { ir, by_request, current: ArcSwapOption::empty(), updates: AtomicU64::new(0) };
        tls.refresh(secrets)?;
        Ok(Arc::new(tls))
    }

    /// As [`ServerTls::refresh`].
    pub(crate) fn refresh(&self, secrets: &Secrets) -> Result<(), String> {
        if let Some(material) = material(&self.ir.common, secrets)? {
            let context = connect::LazyContext::new(material);
            if self.ir.common.secrets().next().is_none() {
                // What stands in place is checked with the configuration; secrets were when they came.
                context.get(&self.ir, self.by_request)?;
            }
            self.current.store(Some(Arc::new(context)));
            if self.ir.common.secrets().next().is_some() {
                self.updates.fetch_add(1, Relaxed);
            }
        }
        Ok(())
    }
}

/// Times that secrets changed one of these contexts.
pub(crate) fn updates<'a>(servers: impl Iterator<Item = &'a Arc<ServerTls>>) -> u64 {
    servers.map(|tls| tls.updates.load(Relaxed)).sum()
}

/// As [`updates`], for clusters.
pub(crate) fn client_updates<'a>(clients: impl Iterator<Item = &'a Arc<ClientTls>>) -> u64 {
    clients.map(|tls| tls.updates.load(Relaxed)).sum()
}

/// What a context that is in force shows on `/certs`: authorities, then own certificates.
pub(crate) fn shown(common: &ir::CommonTls, secrets: &Secrets) -> (Vec<ir::Pem>, Vec<ir::Pem>) {
    match material(common, secrets) {
        Ok(Some(material)) => (
            material.validation.trusted_ca.iter().cloned().collect(),
            material.certificates.iter().map(|own| own.chain.clone()).collect(),
        ),
        _ => (Vec::new(), Vec::new()),
    }
}
