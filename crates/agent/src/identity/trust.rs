//! The roots that a workload trusts, while they may change under it: those in the file the control plane keeps up to date in every
//! pod, where the workload's own certificate is of one of them.
use std::path::PathBuf;
use std::time::Duration;

use lateen_pki::{Federation, Roots, WorkloadCertificate};
use tracing::{info, warn};

/// Pause between two looks at the file.
const LOOK: Duration = Duration::from_secs(1);

/// What the file has.
pub(crate) struct Trust {
    file: Option<PathBuf>,
    text: String,
    roots: Option<Roots>,
    /// The file beside it, about trust domains; empty without one.
    domains_text: String,
    federation: Federation,
}

impl Trust {
    /// Reads the file; without one, workloads trust what comes with their certificates.
    pub(crate) fn new(file: Option<PathBuf>) -> Self {
        let mut trust = Self {
            file,
            text: String::new(),
            roots: None,
            domains_text: String::new(),
            federation: Federation::default(),
        };
        trust.look();
        trust
    }

    /// True when there is something new. What cannot be read, or is no certificate, changes nothing.
    fn look(&mut self) -> bool {
        let domains = self.look_at_domains();
        self.look_at_roots() || domains
    }

    fn look_at_domains(&mut self) -> bool {
        let Some(file) = self.file.as_ref().map(|file| file.with_file_name(Federation::FILE)) else {
            return false;
        };
        let text = match std::fs::read_to_string(&file) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => String::new(),
            Err(_) => return false,
        };
        if text == self.domains_text {
            return false;
        }
        let read = if text.is_empty() { Ok(Federation::default()) } else { Federation::from_json(&text) };
        self.domains_text = text;
        match read {
            Ok(read) => std::mem::replace(&mut self.federation, read) != self.federation,
            Err(error) => {
                warn!(error, file = %file.display(), "the file with trust domains cannot be used; what there was stays");
                false
            }
        }
    }

    fn look_at_roots(&mut self) -> bool {
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
        let roots = self.roots.as_ref().filter(|roots| roots.issuer_of(&certificate.chain).is_some());
        let roots = roots.map_or_else(|| certificate.roots.clone(), Roots::to_pem);
        WorkloadCertificate { domains: self.federation.with_own(&roots), roots, ..certificate }
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
    fn other_domains_have_roots_of_their_own() {
        let folder = tempfile::tempdir().unwrap();
        let [own, other] = [(), ()].map(|()| CertificateAuthority::generate("cluster.local").unwrap());
        let file = folder.path().join("root-cert.pem");
        std::fs::write(&file, own.root_pem()).unwrap();
        let mut trust = Trust::new(Some(file));
        let held = certificate(&own);
        assert!(trust.apply(held.clone()).domains.is_empty(), "its roots vouch for all");
        let mut look = |text: Option<&str>| {
            let file = folder.path().join(Federation::FILE);
            match text {
                Some(text) => std::fs::write(file, text).unwrap(),
                None => std::fs::remove_file(file).unwrap(),
            }
            (trust.look(), trust.apply(held.clone()).domains)
        };
        let roots = |own: bool, roots: &str| lateen_pki::DomainRoots { own, roots: roots.to_owned() };
        let both = Federation(std::collections::BTreeMap::from([
            ("cluster.local".to_owned(), roots(true, "")),
            ("other.example".to_owned(), roots(false, other.root_pem())),
        ]));
        let (new, domains) = look(Some(&both.to_json()));
        assert!(new);
        assert_eq!(domains["cluster.local"].trim(), own.root_pem().trim());
        assert_eq!(domains["other.example"], other.root_pem());
        assert_eq!(look(Some("nonsense")), (false, domains.clone()), "what there was stays");
        assert_eq!(look(Some(&both.to_json())), (false, domains));
        assert_eq!(look(None), (true, std::collections::BTreeMap::new()));
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
