//! One rule of an AuthorizationPolicy as a policy of Envoy's RBAC, as istiod writes it.
//! <https://istio.io/latest/docs/reference/config/security/conditions/>
use lateen_api::security::authorization_policy::{Condition, Operation, Rule, Source};
use lateen_api::validate::is_path_template;
use lateen_xds::pb::envoy::config::core::v3::TypedExtensionConfig;
use lateen_xds::pb::envoy::config::rbac::v3 as rbac;
use lateen_xds::pb::envoy::config::route::v3 as route;
use lateen_xds::pb::envoy::extensions::path::r#match::uri_template::v3::UriTemplateMatchConfig;
use lateen_xds::pb::envoy::r#type::matcher::v3 as matcher;
use rbac::permission::{self, Rule as What};
use rbac::principal::{self, Authenticated, Identifier as Who};

use crate::tokens;
use crate::wire;

const SPIFFE: &str = "spiffe://";
/// Names the local trust domain whatever it is called.
const LOCAL_TRUST_DOMAIN: &str = "cluster.local";

/// What the meaning of a rule depends on.
#[derive(Clone, Copy)]
pub(crate) struct Terms<'a> {
    /// For connections, of which nothing of requests is known.
    pub(crate) tcp: bool,
    /// What is matched passes: what can't be said must not widen the rule. Else it must not narrow it.
    pub(crate) allows: bool,
    /// The policy's.
    pub(crate) namespace: &'a str,
    /// The mesh's, and its aliases.
    pub(crate) trust_domains: &'a [String],
}

/// A field or a condition: the attribute, the values of which one must match, and those of which none may.
type Field<'a> = (&'a str, &'a [String], &'a [String]);

/// A value that can't be said: something of requests, for connections.
struct Unsayable;

/// A policy that matches everything.
pub(crate) fn everything() -> rbac::Policy {
    rbac::Policy {
        permissions: vec![what(What::Any(true))],
        principals: vec![who(Who::Any(true))],
        ..Default::default()
    }
}

/// A policy that matches nothing.
pub(crate) fn nothing() -> rbac::Policy {
    rbac::Policy {
        permissions: vec![what(What::NotRule(Box::new(what(What::Any(true)))))],
        principals: vec![who(Who::NotId(Box::new(who(Who::Any(true)))))],
        ..Default::default()
    }
}

fn what(rule: What) -> rbac::Permission {
    rbac::Permission { rule: Some(rule) }
}

fn who(identifier: Who) -> rbac::Principal {
    rbac::Principal { identifier: Some(identifier) }
}

impl Terms<'_> {
    /// The rule; `None`: nothing of it can be said, so that it matches nothing.
    pub(crate) fn policy(&self, rule: &Rule) -> Option<rbac::Policy> {
        let when = |of_destination: bool| {
            let fields = rule.when.iter().filter(move |one| is_of_destination(one) == of_destination);
            fields
                .map(|one| (one.key.as_str(), &one.values[..], &one.not_values[..]))
                .collect::<Vec<Field<'_>>>()
        };
        let operations = rule.to.iter().map(|to| to.operation.as_ref().map(of_operation).unwrap_or_default());
        let sources = rule.from.iter().map(|from| from.source.as_ref().map(of_source).unwrap_or_default());
        let permissions = or_empty(operations.collect())
            .into_iter()
            .map(|fields| self.permission(&[fields, when(true)].concat()))
            .collect::<Result<_, Unsayable>>()
            .ok()?;
        let principals = or_empty(sources.collect())
            .into_iter()
            .map(|fields| self.principal(&[fields, when(false)].concat()))
            .collect::<Result<_, Unsayable>>()
            .ok()?;
        Some(rbac::Policy { permissions, principals, ..Default::default() })
    }

    fn permission(&self, fields: &[Field<'_>]) -> Result<rbac::Permission, Unsayable> {
        let or = |rules| what(What::OrRules(permission::Set { rules }));
        let not = |rule| what(What::NotRule(Box::new(rule)));
        let one =
            |attribute: &str, value: &str| self.operation(attribute, value).map(|rule| vec![what(rule)]);
        let rules = self.all(fields, one, or, not)?;
        Ok(if rules.is_empty() {
            what(What::Any(true))
        } else {
            what(What::AndRules(permission::Set { rules }))
        })
    }

    fn principal(&self, fields: &[Field<'_>]) -> Result<rbac::Principal, Unsayable> {
        let or = |ids| who(Who::OrIds(principal::Set { ids }));
        let not = |id| who(Who::NotId(Box::new(id)));
        let one = |attribute: &str, value: &str| self.source(attribute, value);
        let ids = self.all(fields, one, or, not)?;
        Ok(if ids.is_empty() { who(Who::Any(true)) } else { who(Who::AndIds(principal::Set { ids })) })
    }

    /// What must all hold.
    fn all<T>(
        &self,
        fields: &[Field<'_>],
        one: impl Fn(&str, &str) -> Result<Vec<T>, Unsayable>,
        or: impl Fn(Vec<T>) -> T,
        not: impl Fn(T) -> T,
    ) -> Result<Vec<T>, Unsayable> {
        let mut all = Vec::new();
        for (attribute, values, not_values) in fields {
            for (list, negated) in [(values, false), (not_values, true)] {
                let mut any = Vec::new();
                for value in *list {
                    match one(attribute, value) {
                        Ok(said) => any.extend(said),
                        Err(unsayable) if self.allows => return Err(unsayable),
                        Err(Unsayable) => {}
                    }
                }
                if any.is_empty() {
                    continue;
                }
                let any = or(any);
                all.push(if negated { not(any) } else { any });
            }
        }
        Ok(all)
    }

    fn operation(&self, attribute: &str, value: &str) -> Result<What, Unsayable> {
        if self.tcp && ["hosts", "methods", "paths"].contains(&attribute) {
            return Err(Unsayable);
        }
        Ok(match attribute {
            "hosts" => What::Header(header(":authority", value, true)),
            "methods" => What::Header(header(":method", value, false)),
            "paths" if is_path_template(value) => What::UriTemplate(template(value)),
            "paths" => What::UrlPath(matcher::PathMatcher {
                rule: Some(matcher::path_matcher::Rule::Path(text(value, ""))),
            }),
            "ports" | "destination.port" => What::DestinationPort(value.parse().map_err(|_| Unsayable)?),
            "destination.ip" => What::DestinationIp(wire::cidr(value).ok_or(Unsayable)?),
            "connection.sni" => What::RequestedServerName(text(value, "")),
            _ => return Err(Unsayable),
        })
    }

    fn source(&self, attribute: &str, value: &str) -> Result<Vec<rbac::Principal>, Unsayable> {
        if self.tcp && attribute.starts_with("request.") {
            return Err(Unsayable);
        }
        let address = || wire::cidr(value).ok_or(Unsayable);
        Ok(vec![who(match attribute {
            "source.ip" => Who::DirectRemoteIp(address()?),
            "remote.ip" => Who::RemoteIp(address()?),
            "source.principal" => {
                let names = self.with_aliases(value).into_iter();
                return Ok(names.map(|name| authenticated(text(&name, SPIFFE))).collect());
            }
            "source.namespace" => {
                let namespace = pattern(value);
                return Ok(vec![authenticated(regex(&format!(".*/ns/{namespace}/.*")))]);
            }
            "source.serviceAccount" => {
                let (namespace, account) = value.split_once('/').unwrap_or((self.namespace, value));
                let (namespace, account) = (pattern(namespace), pattern(account));
                return Ok(vec![authenticated(regex(&format!("{SPIFFE}.*/ns/{namespace}/sa/{account}")))]);
            }
            "request.auth.principal" => request_principal(value),
            "request.auth.audiences" => claim(&["aud"], text(value, "")),
            "request.auth.presenter" => claim(&["azp"], text(value, "")),
            _ => {
                if let Some(path) = in_brackets(attribute, "request.auth.claims") {
                    claim(&path, text(value, ""))
                } else if let Some([name]) = in_brackets(attribute, "request.headers").as_deref() {
                    Who::Header(header(name, value, false))
                } else {
                    return Err(Unsayable);
                }
            }
        })])
    }

    /// The principal in every trust domain it may be of.
    fn with_aliases(&self, principal: &str) -> Vec<String> {
        let Some((domain, rest)) = principal.split_once('/') else { return vec![principal.to_owned()] };
        let known = domain == LOCAL_TRUST_DOMAIN || self.trust_domains.iter().any(|own| own == domain);
        if !known {
            return vec![principal.to_owned()];
        }
        let mut names: Vec<String> = Vec::new();
        for own in self.trust_domains {
            let name = format!("{own}/{rest}");
            if !names.contains(&name) {
                names.push(name);
            }
        }
        names
    }
}

/// No entries are one without fields, which always matches.
fn or_empty<T: Default>(list: Vec<T>) -> Vec<T> {
    if list.is_empty() { vec![T::default()] } else { list }
}

fn is_of_destination(condition: &Condition) -> bool {
    condition.key.starts_with("destination.") || condition.key == "connection.sni"
}

fn of_operation(operation: &Operation) -> Vec<Field<'_>> {
    vec![
        ("hosts", &operation.hosts, &operation.not_hosts),
        ("ports", &operation.ports, &operation.not_ports),
        ("methods", &operation.methods, &operation.not_methods),
        ("paths", &operation.paths, &operation.not_paths),
    ]
}

fn of_source(source: &Source) -> Vec<Field<'_>> {
    vec![
        ("source.ip", &source.ip_blocks, &source.not_ip_blocks),
        ("remote.ip", &source.remote_ip_blocks, &source.not_remote_ip_blocks),
        ("source.namespace", &source.namespaces, &source.not_namespaces),
        ("source.serviceAccount", &source.service_accounts, &source.not_service_accounts),
        ("source.principal", &source.principals, &source.not_principals),
        ("request.auth.principal", &source.request_principals, &source.not_request_principals),
    ]
}

/// `a` and `b` of `PREFIX[a][b]`.
fn in_brackets<'a>(attribute: &'a str, prefix: &str) -> Option<Vec<&'a str>> {
    let inner = attribute.strip_prefix(prefix)?.strip_prefix('[')?.strip_suffix(']')?;
    Some(inner.split("][").collect())
}

fn regex(expression: &str) -> matcher::StringMatcher {
    matcher::StringMatcher {
        match_pattern: Some(matcher::string_matcher::MatchPattern::SafeRegex(wire::regex(expression))),
        ..Default::default()
    }
}

/// A value with `*` for anything, as an expression.
fn pattern(value: &str) -> String {
    value.split('*').map(quoted).collect::<Vec<_>>().join(".*")
}

fn quoted(text: &str) -> String {
    let mut out = String::new();
    for c in text.chars() {
        if !c.is_alphanumeric() && !matches!(c, '_' | '/' | ':' | '@') {
            out.push('\\');
        }
        out.push(c);
    }
    out
}

/// A value of a policy, before which `prefix` stands: `*` is anything, `a*` a prefix, `*a` a suffix.
fn text(value: &str, prefix: &str) -> matcher::StringMatcher {
    use matcher::string_matcher::MatchPattern;
    let pattern = if value == "*" {
        return regex(".+");
    } else if let Some(end) = value.strip_prefix('*') {
        if !prefix.is_empty() {
            return regex(&format!("{prefix}.*{}", quoted(end)));
        }
        MatchPattern::Suffix(end.to_owned())
    } else if let Some(start) = value.strip_suffix('*') {
        MatchPattern::Prefix(format!("{prefix}{start}"))
    } else {
        MatchPattern::Exact(format!("{prefix}{value}"))
    };
    matcher::StringMatcher { match_pattern: Some(pattern), ..Default::default() }
}

fn header(name: &str, value: &str, ignore_case: bool) -> route::HeaderMatcher {
    use route::header_matcher::HeaderMatchSpecifier;
    let specifier = match value {
        "*" => HeaderMatchSpecifier::PresentMatch(true),
        value => HeaderMatchSpecifier::StringMatch(matcher::StringMatcher { ignore_case, ..text(value, "") }),
    };
    route::HeaderMatcher {
        name: name.to_owned(),
        header_match_specifier: Some(specifier),
        ..Default::default()
    }
}

fn template(path: &str) -> TypedExtensionConfig {
    let path_template = path.replace("{**}", "**").replace("{*}", "*");
    TypedExtensionConfig {
        name: "uri-template".to_owned(),
        typed_config: Some(wire::any(&UriTemplateMatchConfig { path_template })),
    }
}

fn authenticated(name: matcher::StringMatcher) -> rbac::Principal {
    who(Who::Authenticated(Authenticated { principal_name: Some(name) }))
}

/// A claim of a verified token.
fn claim(path: &[&str], value: matcher::StringMatcher) -> Who {
    let metadata_matcher = Some(tokens::claim(path, value));
    let metadata_source = rbac::MetadataSource::Dynamic as i32;
    Who::SourcedMetadata(rbac::SourcedMetadata { metadata_matcher, metadata_source })
}

/// `ISSUER/SUBJECT`, of which the issuer may have slashes.
fn request_principal(value: &str) -> Who {
    let (issuer, subject) = match value.rsplit_once('/') {
        Some((issuer, subject)) => (issuer, subject),
        None if value.starts_with('*') => ("*", value),
        None if value.ends_with('*') => (value, "*"),
        None => (value, ""),
    };
    let ids = [("iss", issuer), ("sub", subject)];
    let ids = ids.map(|(name, value)| who(claim(&[name], text(value, "")))).into();
    Who::AndIds(principal::Set { ids })
}
