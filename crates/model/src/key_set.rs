//! Keys of token issuers that the control plane fetches.
use std::fmt;
use std::sync::Arc;

use lateen_api::security::request_authentication::JwtRule;

/// Who fetches keys from the `jwksUri` of rules (istiod's `PILOT_JWT_ENABLE_REMOTE_JWKS`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum KeysBy {
    /// The control plane.
    #[default]
    ControlPlane,
    /// Proxies, where the URI's host is a service of the mesh; else the control plane.
    Both,
    /// Proxies.
    Proxies,
}

/// Where keys come from.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum KeySource {
    /// A URI.
    Uri(Arc<str>),
    /// OpenID discovery at an issuer.
    Issuer(Arc<str>),
}

impl KeySource {
    /// Where the keys of a rule come from; none: they are written in, or nobody says.
    pub fn of(rule: &JwtRule) -> Option<Self> {
        match (rule.jwks.as_str(), rule.jwks_uri.as_str(), rule.issuer.as_str()) {
            ("", "", "") => None,
            ("", "", issuer) => Some(Self::Issuer(issuer.into())),
            ("", uri, _) => Some(Self::Uri(uri.into())),
            _ => None,
        }
    }
}

impl fmt::Display for KeySource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Uri(uri) => f.write_str(uri),
            Self::Issuer(issuer) => write!(f, "OpenID discovery at {issuer}"),
        }
    }
}

/// What is known of the keys from there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeySet {
    /// Where they come from.
    pub source: KeySource,
    /// The last ones that came (a JSON Web Key Set); none: none came so far.
    pub keys: Option<Arc<str>>,
    /// Why the last attempt failed, if it did.
    pub problem: Option<String>,
}
