//! Whom the roots of other meshes vouch for: roots by trust domain, as the control plane writes them into every namespace beside the
//! mesh's own root, and workloads read them.
use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::Roots;

/// Roots by trust domain. Empty: there is nothing but the mesh's own, which vouch for whatever names peers may have.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Federation(pub BTreeMap<String, DomainRoots>);

/// The roots of one trust domain.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct DomainRoots {
    /// The mesh's own roots vouch for it.
    pub own: bool,
    /// Further roots, PEM; may be empty where `own` is true.
    pub roots: String,
}

impl Federation {
    /// Entry of the ConfigMap `istio-ca-root-cert`, and name of the file beside `root-cert.pem`.
    pub const FILE: &str = "trust-domains.json";

    /// Reads the file.
    ///
    /// # Errors
    /// It is no such file, or a domain in it has no root.
    pub fn from_json(text: &str) -> Result<Self, String> {
        let read: Self = serde_json::from_str(text).map_err(|error| error.to_string())?;
        for (domain, of) in &read.0 {
            if !(of.own && of.roots.is_empty()) {
                Roots::from_pem(&of.roots).map_err(|error| format!("{domain}: {error}"))?;
            }
        }
        Ok(read)
    }

    /// Writes the file.
    pub fn to_json(&self) -> String {
        // Texts can be written.
        serde_json::to_string(self).unwrap_or_default()
    }

    /// The file's text; none where there is nothing to say.
    pub fn text(&self) -> Option<String> {
        (!self.0.is_empty()).then(|| self.to_json())
    }

    /// The roots of each domain (PEM), where the mesh's own are these.
    pub fn with_own(&self, own: &str) -> BTreeMap<String, String> {
        let all = |of: &DomainRoots| {
            if of.own { format!("{}\n{}", own.trim_end(), of.roots) } else { of.roots.clone() }
        };
        self.0.iter().map(|(domain, of)| (domain.clone(), all(of))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::CertificateAuthority;

    #[test]
    fn only_whole_files_are_read() {
        let root = CertificateAuthority::generate("other").unwrap().root_pem().to_owned();
        let own = DomainRoots { own: true, roots: String::new() };
        let other = DomainRoots { own: false, roots: root.clone() };
        let all = Federation(BTreeMap::from([("a".to_owned(), own), ("b".to_owned(), other)]));
        assert_eq!(Federation::from_json(&all.to_json()), Ok(all.clone()));
        let with_own = all.with_own("OWN\n");
        assert_eq!((with_own["a"].trim(), &with_own["b"]), ("OWN", &root));
        for wrong in [
            "",
            "[]",
            "{\"a\":{\"own\":false,\"roots\":\"\"}}",
            "{\"a\":{\"own\":true,\"roots\":\"nonsense\"}}",
            "{\"a\":{\"roots\":\"\"}}",
        ] {
            assert!(Federation::from_json(wrong).is_err(), "{wrong}");
        }
    }
}
