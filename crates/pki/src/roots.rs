//! Sets of root certificates: what a mesh trusts, which while its root changes is more than one.
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::authority::pem;

/// Why a text is no set of roots.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RootsError {
    /// There is no certificate in it.
    #[error("there is no certificate in it")]
    Empty,
    /// One of its certificates is not what it says.
    #[error("certificate {0} of it does not parse")]
    Certificate(usize),
}

/// Root certificates, each once. The first is the one whose authority signs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Roots(Vec<CertificateDer<'static>>);

impl Roots {
    /// Reads certificates in PEM, one after the other.
    ///
    /// # Errors
    /// When there are none, or one does not parse.
    pub fn from_pem(text: &str) -> Result<Self, RootsError> {
        let mut roots = Self(Vec::new());
        for (index, certificate) in CertificateDer::pem_slice_iter(text.as_bytes()).enumerate() {
            let broken = RootsError::Certificate(index + 1);
            let certificate = certificate.map_err(|_| broken)?;
            X509Certificate::from_der(&certificate).map_err(|_| broken)?;
            roots.add(&certificate);
        }
        if roots.0.is_empty() { Err(RootsError::Empty) } else { Ok(roots) }
    }

    fn add(&mut self, certificate: &CertificateDer<'static>) {
        if !self.0.contains(certificate) {
            self.0.push(certificate.clone());
        }
    }

    /// The root whose authority signs.
    pub fn first(&self) -> &CertificateDer<'static> {
        // Never empty: `from_pem` refuses that, and nothing takes the last one away.
        &self.0[0]
    }

    /// Each of them.
    pub fn iter(&self) -> impl Iterator<Item = &CertificateDer<'static>> {
        self.0.iter()
    }

    /// Whether all of `others` are among these.
    pub fn contains(&self, others: &Self) -> bool {
        others.0.iter().all(|other| self.0.contains(other))
    }

    /// Whether any of `others` is among these.
    pub fn intersects(&self, others: &Self) -> bool {
        others.0.iter().any(|other| self.0.contains(other))
    }

    /// These, followed by those of `others` that are not among them.
    #[must_use]
    pub fn with(&self, others: &Self) -> Self {
        let mut all = self.clone();
        others.0.iter().for_each(|other| all.add(other));
        all
    }

    /// These without `others`; all of them where nothing would be left.
    #[must_use]
    pub fn without(&self, others: &Self) -> Self {
        let left: Vec<_> = self.0.iter().filter(|one| !others.0.contains(one)).cloned().collect();
        if left.is_empty() { self.clone() } else { Self(left) }
    }

    /// These with `first`, one of them, in the first place.
    pub(crate) fn led_by(&self, first: &CertificateDer<'static>) -> Self {
        Self(vec![first.clone()]).with(self)
    }

    /// In PEM, one after the other.
    pub fn to_pem(&self) -> String {
        self.0.iter().map(|certificate| pem(certificate)).collect()
    }

    /// The root under which a chain in PEM, leaf first, was signed: each certificate by the next, the last by the root.
    /// None when that is none of these.
    pub fn issuer_of(&self, chain: &str) -> Option<&CertificateDer<'static>> {
        let chain: Vec<_> =
            CertificateDer::pem_slice_iter(chain.as_bytes()).collect::<Result<_, _>>().ok()?;
        self.issuer_of_certificates(&chain)
    }

    /// The same for a chain that is parsed.
    pub fn issuer_of_certificates(&self, chain: &[CertificateDer<'_>]) -> Option<&CertificateDer<'static>> {
        let whole = chain.windows(2).all(|pair| is_signed_by(&pair[0], &pair[1]));
        let last = chain.last().filter(|_| whole)?;
        self.0.iter().find(|root| *root == last || is_signed_by(last, root))
    }
}

/// Whether `issuer` signed `certificate`, going by its name and its key.
pub(crate) fn is_signed_by(certificate: &CertificateDer<'_>, issuer: &CertificateDer<'_>) -> bool {
    let parsed = |der| X509Certificate::from_der(der).map(|(_, parsed)| parsed);
    let (Ok(certificate), Ok(issuer)) = (parsed(certificate), parsed(issuer)) else { return false };
    certificate.issuer() == issuer.subject()
        && certificate.verify_signature(Some(issuer.public_key())).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::CertificateAuthority;
    use proptest::prelude::*;

    fn root() -> Roots {
        let authority = CertificateAuthority::generate("cluster.local").unwrap();
        Roots::from_pem(authority.root_pem()).unwrap()
    }

    #[test]
    fn sets_are_joined_and_parted() {
        let (old, new) = (root(), root());
        let both = old.with(&new);
        assert_eq!(Roots::from_pem(&both.to_pem()).unwrap(), both);
        assert_eq!(both.first(), old.first());
        assert!(
            both.contains(&new) && both.intersects(&new) && !old.contains(&both) && !old.intersects(&new)
        );
        assert_eq!(both.with(&old), both, "each once");
        assert_eq!(both.without(&old), new);
        assert_eq!(new.without(&new), new, "never nothing");
        assert_eq!(both.led_by(new.first()), new.with(&old));
    }

    #[test]
    fn what_is_no_certificate_is_refused() {
        assert_eq!(Roots::from_pem(""), Err(RootsError::Empty));
        assert_eq!(Roots::from_pem("nonsense"), Err(RootsError::Empty));
        let one = root().to_pem();
        let broken = format!("{one}-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n");
        assert_eq!(Roots::from_pem(&broken), Err(RootsError::Certificate(2)));
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused(text in ".{0,400}", label in "[A-Z ]{0,12}", body in "[A-Za-z0-9+/=\n]{0,200}") {
            let pem = format!("{text}-----BEGIN {label}-----\n{body}\n-----END {label}-----\n");
            for text in [text, pem] {
                drop(Roots::from_pem(&text));
                let found = root().issuer_of(&text).is_some();
                prop_assert!(!found);
            }
        }
    }

    #[test]
    fn a_chain_leads_to_its_root_step_by_step() {
        let authority = CertificateAuthority::generate("cluster.local").unwrap();
        let other = CertificateAuthority::generate("cluster.local").unwrap();
        let roots = Roots::from_pem(authority.root_pem()).unwrap();
        let server = |of: &CertificateAuthority| {
            let made = of.issue_server(&["a.example".into()], std::time::Duration::from_secs(60)).unwrap();
            pem(&made.chain[0])
        };
        let leaf = server(&authority);
        assert_eq!(roots.issuer_of(&leaf), Some(roots.first()));
        assert_eq!(roots.issuer_of(&format!("{leaf}{}", authority.root_pem())), Some(roots.first()));
        // Another root of the same name has not signed it, and what is not of the next leads nowhere.
        assert_eq!(roots.issuer_of(&server(&other)), None);
        assert_eq!(roots.issuer_of(&format!("{}{leaf}", server(&other))), None);
        assert_eq!(roots.issuer_of(&format!("{}{}", server(&other), authority.root_pem())), None);
        assert_eq!(roots.issuer_of(""), None);
        // The key alone does not make the issuer: its name counts too.
        let renamed = {
            let key = rcgen::KeyPair::from_pem(authority.key_pem()).unwrap();
            let mut params = rcgen::CertificateParams::new(Vec::new()).unwrap();
            params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
            params.self_signed(&key).unwrap().pem()
        };
        assert_eq!(Roots::from_pem(&renamed).unwrap().issuer_of(&leaf), None);
    }
}
