//! What the authority is made of, and the three steps in which a mesh changes its root without a refused connection:
//! the new root is trusted before it signs, and the old one until nothing is of it any more.
//!
//! 1. **Announced**: the old authority signs; both roots are trusted.
//! 2. **Switched**: the new authority signs; both roots are trusted.
//! 3. **Settled**: the new authority signs; the old root is gone.
//!
//! All of it is in one Secret, so that each step is one write, seen whole by every control plane, and whoever goes on after an
//! interruption knows where to.
use crate::{CaError, CertificateAuthority, Roots};

/// Keys of the Secret for the authority that signs, as Istio names them.
const CURRENT: [&str; 4] = ["ca-cert.pem", "ca-key.pem", "cert-chain.pem", "root-cert.pem"];
/// The authority that is to sign next.
const NEXT: [&str; 4] = ["next-ca-cert.pem", "next-ca-key.pem", "next-cert-chain.pem", "next-root-cert.pem"];
/// The roots that are to go.
const OLD_ROOTS: &str = "old-root-cert.pem";

/// The parts of an authority, all PEM.
/// <https://istio.io/latest/docs/tasks/security/cert-management/plugin-ca-cert/>
#[derive(Clone, PartialEq, Eq)]
pub struct AuthorityFiles {
    /// `ca-cert.pem`: the certificate that signs.
    pub certificate: String,
    /// `ca-key.pem`: its key.
    pub key: String,
    /// `cert-chain.pem`: from it to the root; with or without either end.
    pub chain: String,
    /// `root-cert.pem`: what workloads trust; the root of `certificate` is among them. Empty where `certificate` is the root.
    pub roots: String,
}

/// The key stays out of logs.
impl std::fmt::Debug for AuthorityFiles {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AuthorityFiles").field("certificate", &self.certificate).finish_non_exhaustive()
    }
}

impl AuthorityFiles {
    /// The authority that signs, by the values of a Secret.
    ///
    /// # Errors
    /// [`CaError::Missing`] without a certificate or a key.
    pub fn read(value: impl Fn(&str) -> Option<String>) -> Result<Self, CaError> {
        Self::under(CURRENT, value)
    }

    fn under(keys: [&'static str; 4], value: impl Fn(&str) -> Option<String>) -> Result<Self, CaError> {
        let [certificate, key, chain, roots] = keys;
        let needed = |key| value(key).ok_or(CaError::Missing(key));
        let optional = |key| value(key).unwrap_or_default();
        Ok(Self {
            certificate: needed(certificate)?,
            key: needed(key)?,
            chain: optional(chain),
            roots: optional(roots),
        })
    }

    /// What is to be written into a Secret.
    pub fn entries(&self) -> [(&'static str, &str); 4] {
        let [certificate, key, chain, roots] = CURRENT;
        [(certificate, &self.certificate), (key, &self.key), (chain, &self.chain), (roots, &self.roots)]
    }

    /// Those of an authority that is its own root.
    pub fn of_own_root(authority: &CertificateAuthority) -> Self {
        Self {
            certificate: authority.certificate_pem().to_owned(),
            key: authority.key_pem().to_owned(),
            chain: String::new(),
            roots: authority.root_pem().to_owned(),
        }
    }
}

/// Where a mesh is on the way from one root to another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Rotation {
    /// Nothing changes.
    Settled {
        /// The authority that signs.
        current: AuthorityFiles,
    },
    /// The next root is to be trusted everywhere.
    Announced {
        /// The authority that signs; its roots have those of the next.
        current: AuthorityFiles,
        /// The authority that is to sign.
        next: AuthorityFiles,
    },
    /// Every certificate is to be of the new root.
    Switched {
        /// The authority that signs; its roots have the old ones.
        current: AuthorityFiles,
        /// The roots that are to go.
        old: Roots,
    },
}

impl Rotation {
    /// By the values of a Secret.
    ///
    /// # Errors
    /// When the authority it has, or the next, cannot be used.
    pub fn read(value: impl Fn(&str) -> Option<String>) -> Result<Self, CaError> {
        let current = AuthorityFiles::read(&value)?;
        if NEXT.iter().any(|key| value(key).is_some()) {
            return Ok(Self::Announced { current, next: AuthorityFiles::under(NEXT, value)? });
        }
        match value(OLD_ROOTS) {
            None => Ok(Self::Settled { current }),
            Some(old) => {
                let old = Roots::from_pem(&old).map_err(|error| CaError::in_file(OLD_ROOTS, error))?;
                Ok(Self::Switched { current, old })
            }
        }
    }

    /// What is to be in the Secret, and, without a value, what is not.
    pub fn entries(&self) -> Vec<(&'static str, Option<String>)> {
        let (current, next, old) = match self {
            Self::Settled { current } => (current, None, None),
            Self::Announced { current, next } => (current, Some(next), None),
            Self::Switched { current, old } => (current, None, Some(old.to_pem())),
        };
        let mut entries: Vec<_> = current.entries().map(|(key, value)| (key, Some(value.to_owned()))).into();
        let next = next.map(AuthorityFiles::entries);
        for (index, key) in NEXT.into_iter().enumerate() {
            entries.push((key, next.as_ref().map(|next| next[index].1.to_owned())));
        }
        entries.push((OLD_ROOTS, old));
        entries
    }

    /// The authority that signs.
    pub fn current(&self) -> &AuthorityFiles {
        let (Self::Settled { current } | Self::Announced { current, .. } | Self::Switched { current, .. }) =
            self;
        current
    }

    /// From settled to announced: `next` is to be trusted.
    ///
    /// # Errors
    /// When one of the two authorities cannot be used.
    pub fn announce(current: &AuthorityFiles, next: AuthorityFiles) -> Result<Self, CaError> {
        let (signing, coming) = (roots_of(current)?, roots_of(&next)?);
        let current = AuthorityFiles { roots: signing.with(&coming).to_pem(), ..current.clone() };
        Ok(Self::Announced { current, next: AuthorityFiles { roots: coming.to_pem(), ..next } })
    }

    /// One step on: from announced to switched, from switched to settled.
    ///
    /// # Errors
    /// When one of the authorities cannot be used.
    pub fn advance(self) -> Result<Self, CaError> {
        match self {
            Self::Settled { .. } => Ok(self),
            Self::Announced { current, next } => {
                let coming = roots_of(&next)?;
                let all = coming.with(&roots_of(&current)?);
                // An intermediate authority of the same root leaves nothing that is to go.
                let old = (all != coming).then(|| all.without(&coming));
                let current = AuthorityFiles { roots: all.to_pem(), ..next };
                Ok(match old {
                    Some(old) => Self::Switched { current, old },
                    None => Self::Settled { current },
                })
            }
            Self::Switched { current, old } => {
                let roots = roots_of(&current)?.without(&old).to_pem();
                Ok(Self::Settled { current: AuthorityFiles { roots, ..current } })
            }
        }
    }

    /// From announced back to settled, as if nothing had been.
    ///
    /// # Errors
    /// When one of the authorities cannot be used.
    pub fn abandon(current: &AuthorityFiles, next: &AuthorityFiles) -> Result<Self, CaError> {
        let all = roots_of(current)?;
        let coming = roots_of(next)?;
        let signing = all.led_by(all.first());
        let kept = if coming.iter().any(|root| root == signing.first()) {
            signing
        } else {
            signing.without(&coming)
        };
        Ok(Self::Settled { current: AuthorityFiles { roots: kept.to_pem(), ..current.clone() } })
    }
}

/// What an authority has workloads trust, its own root first. Checks the authority on the way.
fn roots_of(files: &AuthorityFiles) -> Result<Roots, CaError> {
    Ok(CertificateAuthority::from_files(files)?.roots().clone())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn own() -> AuthorityFiles {
        AuthorityFiles::of_own_root(&CertificateAuthority::generate("cluster.local").unwrap())
    }

    /// Written and read again.
    fn kept(rotation: &Rotation) -> Rotation {
        let entries = rotation.entries().into_iter();
        let data: BTreeMap<_, _> = entries.filter_map(|(key, value)| Some((key, value?))).collect();
        Rotation::read(|key| data.get(key).cloned()).unwrap()
    }

    fn trusted(rotation: &Rotation) -> Roots {
        roots_of(rotation.current()).unwrap()
    }

    #[test]
    fn the_new_root_is_trusted_before_it_signs_and_the_old_one_after() {
        let (old, new) = (own(), own());
        let [old_root, new_root] = [&old, &new].map(|files| roots_of(files).unwrap());
        let announced = Rotation::announce(&old, new.clone()).unwrap();
        assert_eq!((&announced.current().key, trusted(&announced)), (&old.key, old_root.with(&new_root)));
        assert_eq!(kept(&announced), announced);
        let switched = announced.clone().advance().unwrap();
        assert_eq!((&switched.current().key, trusted(&switched)), (&new.key, new_root.with(&old_root)));
        assert_eq!(kept(&switched), switched);
        let settled = switched.advance().unwrap();
        assert_eq!(settled, Rotation::Settled { current: new.clone() });
        assert_eq!(kept(&settled), settled);
        assert_eq!(settled.clone().advance().unwrap(), settled);

        let Rotation::Announced { current, next } = announced else { panic!("announced") };
        assert_eq!(Rotation::abandon(&current, &next).unwrap(), Rotation::Settled { current: old });
    }

    #[test]
    fn an_old_secret_has_no_roots_of_its_own() {
        let files = own();
        let data = [("ca-cert.pem", files.certificate.clone()), ("ca-key.pem", files.key.clone())];
        let data = BTreeMap::from(data);
        let read = AuthorityFiles::read(|key| data.get(key).cloned()).unwrap();
        assert_eq!(roots_of(&read).unwrap(), roots_of(&files).unwrap());
        let without = AuthorityFiles::read(|_| None).unwrap_err().to_string();
        assert!(without.contains("ca-cert.pem"), "{without}");
    }

    #[test]
    fn a_bad_next_authority_is_not_announced() {
        let (old, new) = (own(), own());
        let mixed = AuthorityFiles { key: old.key.clone(), ..new };
        let error = Rotation::announce(&old, mixed).unwrap_err().to_string();
        assert!(error.contains("not the key"), "{error}");
        assert!(!format!("{old:?}").contains("PRIVATE"));
    }

    #[test]
    fn giving_up_an_authority_of_the_same_root_keeps_the_root() {
        let files = own();
        let kept = Rotation::abandon(&files, &files).unwrap();
        assert_eq!(trusted(&kept), roots_of(&files).unwrap());
        // Of two that are trusted, the one that was coming goes.
        let (one, two) = (own(), own());
        let both = roots_of(&one).unwrap().with(&roots_of(&two).unwrap()).to_pem();
        let current = AuthorityFiles { roots: both.clone(), ..one.clone() };
        assert_eq!(trusted(&Rotation::abandon(&current, &two).unwrap()), roots_of(&one).unwrap());
        assert_eq!(trusted(&Rotation::abandon(&current, &current).unwrap()), roots_of(&current).unwrap());
        // The root that signs stays, though it is the coming one's, too.
        assert_eq!(trusted(&Rotation::abandon(&current, &one).unwrap()), roots_of(&current).unwrap());
    }
}
