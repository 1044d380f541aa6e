//! Role-based access control, as Envoy's HTTP and network filters do it: policies in the order of their names, of which the
//! first that matches decides. Pure: what is known of a request or connection goes in, the decision comes out.

use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;

use crate::rbac_index::AnyOf;
use crate::{HeaderMatcher, MetadataMatcher, PathTemplate, RequestView, StringMatcher};

/// Envoy's `filters.http.rbac.v3.RBAC` and `filters.network.rbac.v3.RBAC`.
#[derive(Clone, Debug, Default)]
pub struct RbacFilter {
    /// What is enforced. `None`: nothing.
    pub rules: Option<Rbac>,
    /// What is counted only.
    pub shadow_rules: Option<Rbac>,
    /// What stands before `allowed` and `denied` in the names of stats.
    pub stat_prefix: Box<str>,
    /// What stands before `shadow_allowed` and `shadow_denied`.
    pub shadow_stat_prefix: Box<str>,
    /// Where what is enforced is noted.
    pub notes: RbacNotes,
    /// Where what the shadow rules say is noted.
    pub shadow_notes: RbacNotes,
}

/// Names of what a filter notes.
#[derive(Clone, Debug, Default)]
pub struct RbacNotes {
    /// Which policy matched.
    pub policy: Box<str>,
    /// What that means: `allowed` or `denied`.
    pub result: Box<str>,
    /// They begin with something of their own.
    pub prefixed: bool,
}

/// Envoy's `config.rbac.v3.RBAC`.
#[derive(Clone, Debug)]
pub struct Rbac {
    /// What a match means.
    pub action: RbacAction,
    names: Vec<Box<str>>,
    policies: AnyOf,
}

/// What a match means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RbacAction {
    /// Nothing else passes.
    Allow,
    /// Everything else passes.
    Deny,
    /// Everything passes.
    Log,
}

/// Envoy's `config.rbac.v3.Policy`.
#[derive(Clone, Debug)]
pub struct RbacPolicy {
    /// Its key in the map of policies.
    pub name: Box<str>,
    /// One must hold.
    pub permissions: Vec<AccessCondition>,
    /// One must hold.
    pub principals: Vec<AccessCondition>,
}

/// A permission or a principal.
#[derive(Clone, Debug)]
pub enum AccessCondition {
    /// All hold.
    All(Vec<AccessCondition>),
    /// One holds.
    Any(AnyOf),
    /// It does not hold.
    Not(Box<AccessCondition>),
    /// Holds.
    Always,
    /// A header of the request.
    Header(HeaderMatcher),
    /// The path without query and fragment.
    Path(StringMatcher),
    /// The same by a template.
    Template(PathTemplate),
    /// The (restored) address the client connected to.
    Destination(IpNet),
    /// Its port is in `start..end`.
    DestinationPorts {
        /// First port.
        start: u32,
        /// First port after the range.
        end: u32,
    },
    /// The name in the TLS handshake; empty without one.
    ServerName(StringMatcher),
    /// The connection's peer.
    Source(IpNet),
    /// The socket's peer, whatever the PROXY protocol says.
    DirectSource(IpNet),
    /// The client, worked out from `x-forwarded-for`.
    Client(IpNet),
    /// The connection has TLS, and with a matcher: some URI or DNS name in the client's certificate, or its subject, matches.
    Authenticated(Option<StringMatcher>),
    /// What a filter before this one noted.
    Metadata(MetadataMatcher),
}

/// What a decision is made from.
#[derive(Clone, Copy, Debug)]
pub struct AccessView<'a> {
    /// `None`: nothing is known of requests, only of the connection.
    pub request: Option<RequestView<'a>>,
    /// See [`AccessCondition::Destination`].
    /// `None`, here and below: a Unix socket, which no network holds and which has no port.
    pub destination: Option<SocketAddr>,
    /// See [`AccessCondition::Source`].
    pub source: Option<IpAddr>,
    /// See [`AccessCondition::DirectSource`].
    pub direct_source: Option<IpAddr>,
    /// See [`AccessCondition::Client`].
    pub client: Option<IpAddr>,
    /// Empty without one.
    pub server_name: &'a str,
    /// `None`: the connection is plaintext.
    pub peer: Option<PeerView<'a>>,
}

/// The client's certificate; without one, all is empty.
#[derive(Clone, Copy, Debug, Default)]
pub struct PeerView<'a> {
    /// URI names.
    pub uris: &'a [String],
    /// DNS names.
    pub dns: &'a [String],
    /// Subject, RFC 2253.
    pub subject: &'a str,
}

impl<'a> PeerView<'a> {
    /// The names a principal is looked for in.
    pub(crate) fn names(self) -> impl Iterator<Item = &'a str> {
        self.uris.iter().chain(self.dns).map(String::as_str).chain([self.subject])
    }
}

/// The outcome.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AccessVerdict<'a> {
    /// Whether it passes.
    pub allowed: bool,
    /// The policy that matched.
    pub policy: Option<&'a str>,
    /// Its position.
    pub position: Option<u32>,
}

impl Rbac {
    /// Makes the decision's indexes. The order of the policies is that of their names.
    pub fn new(action: RbacAction, policies: Vec<RbacPolicy>) -> Self {
        Self::with_index(action, policies, crate::rbac_index::INDEXED_FROM)
    }

    pub(crate) fn with_index(action: RbacAction, mut policies: Vec<RbacPolicy>, from: usize) -> Self {
        policies.sort_by(|a, b| a.name.cmp(&b.name));
        let (names, conditions) = policies
            .into_iter()
            .map(|policy| {
                let any = |list| AccessCondition::Any(AnyOf::with_index(list, from));
                (policy.name, AccessCondition::All(vec![any(policy.permissions), any(policy.principals)]))
            })
            .unzip();
        Self { action, names, policies: AnyOf::with_index(conditions, from) }
    }

    /// The name of the policy at a position in their order.
    pub fn name(&self, position: u32) -> Option<&str> {
        self.names.get(position as usize).map(|name| &**name)
    }

    /// The policies in their order, with what each asks for.
    pub(crate) fn named(&self) -> impl Iterator<Item = (&str, &AccessCondition)> {
        self.names.iter().map(|name| &**name).zip(self.policies.conditions())
    }

    /// Whether some policy looks at a header.
    pub(crate) fn looks_at_headers(&self) -> bool {
        self.policies.conditions().iter().any(AccessCondition::looks_at_headers)
    }

    /// Decides. Does not allocate.
    pub fn judge(&self, view: &AccessView<'_>) -> AccessVerdict<'_> {
        let index = self.policies.first(view);
        let policy = index.map(|index| &*self.names[index]);
        let position = index.and_then(|index| u32::try_from(index).ok());
        let allowed = match self.action {
            RbacAction::Allow => policy.is_some(),
            RbacAction::Deny => policy.is_none(),
            RbacAction::Log => true,
        };
        AccessVerdict { allowed, policy, position }
    }
}

impl AccessVerdict<'_> {
    /// Envoy's detail of a denial. White space would break the columns of access logs.
    pub fn denial(&self) -> String {
        let name: String = self
            .policy
            .unwrap_or("none")
            .chars()
            .map(|c| if c.is_ascii_whitespace() || c == '\x0b' { '_' } else { c })
            .collect();
        format!("rbac_access_denied_matched_policy[{name}]")
    }
}

impl AccessCondition {
    fn looks_at_headers(&self) -> bool {
        match self {
            Self::Header(_) => true,
            Self::All(list) => list.iter().any(Self::looks_at_headers),
            Self::Any(list) => list.conditions().iter().any(Self::looks_at_headers),
            Self::Not(one) => one.looks_at_headers(),
            _ => false,
        }
    }

    /// Whether it holds.
    pub fn holds(&self, view: &AccessView<'_>) -> bool {
        match self {
            Self::All(list) => list.iter().all(|one| one.holds(view)),
            Self::Any(list) => list.first(view).is_some(),
            Self::Not(one) => !one.holds(view),
            Self::Always => true,
            Self::Header(matcher) => match &view.request {
                Some(request) => matcher.is_match(request),
                None => matcher.is_match_in(&http::HeaderMap::new()),
            },
            Self::Path(matcher) => view.path().is_some_and(|path| matcher.is_match(path.as_bytes())),
            Self::Template(template) => view.path().is_some_and(|path| template.is_match(path)),
            Self::Destination(net) => within(*net, view.destination.map(|end| end.ip())),
            Self::DestinationPorts { start, end } => {
                view.destination.is_some_and(|own| (*start..*end).contains(&u32::from(own.port())))
            }
            Self::ServerName(matcher) => matcher.is_match(view.server_name.as_bytes()),
            Self::Source(net) => within(*net, view.source),
            Self::DirectSource(net) => within(*net, view.direct_source),
            Self::Client(net) => within(*net, view.client),
            Self::Authenticated(None) => view.peer.is_some(),
            Self::Authenticated(Some(matcher)) => {
                view.peer.is_some_and(|peer| peer.names().any(|name| matcher.is_match(name.as_bytes())))
            }
            Self::Metadata(matcher) => matcher.is_match(view.request.and_then(|request| request.metadata)),
        }
    }
}

/// Whether a network holds an address.
fn within(net: IpNet, address: Option<IpAddr>) -> bool {
    address.is_some_and(|address| net.contains(&address))
}

impl<'a> AccessView<'a> {
    /// The path without query and fragment.
    pub(crate) fn path(&self) -> Option<&'a str> {
        let path = Some(self.request?.path).filter(|path| !path.is_empty())?;
        Some(&path[..path.find(['?', '#']).unwrap_or(path.len())])
    }
}
