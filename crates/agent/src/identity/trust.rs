//! The roots that a workload trusts, while they may change under it: those in the file the control plane keeps up to date in every
//! pod, where the workload's own certificate is of one of them.
use std::path::PathBuf;
use std::time::Duration;

use lateen_pki::{Roots, WorkloadCertificate};
use tracing::{info, warn};

/// Pause between two looks at the file.
const LOOK: Duration = Duration::from_secs(1);

/// What the file has.
pub(crate) struct Trust {
    file: Option<PathBuf>,
    text: String,
    roots: Option<Roots>,
}

impl Trust {
    /// Reads the file; without one, workloads trust what comes with their certificates.
    pub(crate) fn new(file: Option<PathBuf>) -> Self {
        let mut trust = Self { file, text: String::new(), roots: None };
        trust.look();
        trust
    }

    /// True when there is something new. What cannot be read, or is no certificate, changes nothing.
    fn look(&mut self) -> bool {
        let Some(file) = &self.file else { return false };
        let Ok(text) = std::fs::read_to_string(file) else { return false };
        if text == self.text {
            return false;
        }
        let read = Roots::from_pem(&text);
        self.text = text;
        match read {
            Ok(roots) => {
                let changed = self.roots.as_ref() != Some(&roots);
                self.roots = Some(roots);
                changed
            }
            Err(error) => {
                warn!(%error, file = %file.display(), "the file with the roots cannot be used; those there were stay");
                false
            }
        }
    }

    /// Waits until the roots in the file change; forever without a file.
    pub(crate) async fn changed(&mut self) {
        loop {
            if self.file.is_none() {
                std::future::pending::<()>().await;
            }
            tokio::time::sleep(LOOK).await;
            if self.look() {
                let count = self.roots.iter().flat_map(Roots::iter).count();
                return info!(count, "the roots to trust have changed");
            }
        }
    }

    /// The certificate with the roots its workload trusts: those of the file, if it is of one of them, else those it came with.
    pub(crate) fn apply(&self, certificate: WorkloadCertificate) -> WorkloadCertificate {
        match &self.roots {
            Some(roots) if roots.issuer_of(&certificate.chain).is_some() => {
                WorkloadCertificate { roots: roots.to_pem(), ..certificate }
            }
            _ => certificate,
        }
    }

    /// Whether another authority signs by now than the one of this certificate.
    pub(crate) fn has_moved_on(&self, certificate: &WorkloadCertificate) -> bool {
        self.roots.as_ref().is_some_and(|roots| {
            roots.issuer_of(&certificate.chain).is_some_and(|root| root != roots.first())
        })
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use lateen_pki::{CertificateAuthority, KeyKind, SigningRequest, SpiffeId, WorkloadKey};

    use super::*;

    fn certificate(authority: &CertificateAuthority) -> WorkloadCertificate {
        let key = WorkloadKey::generate(KeyKind::P256).unwrap();
        let request = SigningRequest::from_pem(&key.request().unwrap()).unwrap();
        let id = SpiffeId::new("cluster.local", "shop", "web").unwrap();
        let answer = authority.issue_workload(&request, &id, Duration::from_secs(60)).unwrap();
        WorkloadCertificate::new(&key, answer).unwrap()
    }

    #[test]
    fn the_file_counts_where_it_has_the_certificates_root() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("root-cert.pem");
        let [old, new] = [(), ()].map(|()| CertificateAuthority::generate("cluster.local").unwrap());
        let both = old.roots().with(new.roots());
        let of_old = certificate(&old);
        let mut trust = Trust::new(Some(file.clone()));
        assert_eq!(trust.apply(of_old.clone()).roots, of_old.roots, "no file yet");
        let mut look = |pem: String| {
            std::fs::write(&file, pem).unwrap();
            trust.look()
        };
        assert!(look(old.root_pem().to_owned()));
        assert!(!look("nonsense".to_owned()));
        assert!(look(both.to_pem()));
        assert_eq!(trust.apply(of_old.clone()).roots, both.to_pem());
        assert!(!trust.has_moved_on(&of_old));
        std::fs::write(&file, new.roots().with(old.roots()).to_pem()).unwrap();
        assert!(trust.look() && trust.has_moved_on(&of_old));
        let of_new = certificate(&new);
        assert!(!trust.has_moved_on(&of_new));
        std::fs::write(&file, new.root_pem()).unwrap();
        assert!(trust.look());
        assert_eq!(trust.apply(of_new).roots, new.root_pem(), "the old root is gone");
        assert_eq!(trust.apply(of_old.clone()).roots, of_old.roots, "another authority's");
        assert!(!trust.has_moved_on(&of_old));
    }
}
