//! Cross-origin resource sharing: what a policy says to a request. Pure.
//! <https://www.envoyproxy.io/docs/envoy/v1.40.0/configuration/http/http_filters/cors_filter>

use http::HeaderValue;

use crate::common::Fraction;
use crate::matcher::StringMatcher;

/// Envoy's `CorsPolicy`. What a member leaves open, the next outer level's policy says.
#[derive(Clone, Debug, Default)]
pub struct CorsPolicy {
    /// Origins that may read answers.
    pub allow_origins: Vec<StringMatcher>,
    /// Value of `access-control-allow-methods`; `*`: what the client asks for.
    pub allow_methods: Option<HeaderValue>,
    /// Value of `access-control-allow-headers`; `*`: what the client asks for.
    pub allow_headers: Option<HeaderValue>,
    /// Value of `access-control-expose-headers`.
    pub expose_headers: Option<HeaderValue>,
    /// Value of `access-control-max-age`.
    pub max_age: Option<HeaderValue>,
    /// Whether credentials may be sent. Default false.
    pub allow_credentials: Option<bool>,
    /// Whether a public site may ask a private network. Default false.
    pub allow_private_network_access: Option<bool>,
    /// Preflights of other origins go on to the service. Default true.
    pub forward_not_matching_preflights: Option<bool>,
    /// Share of the requests it applies to; `None`: all.
    pub enabled: Option<Fraction>,
    /// Share of the requests that are only counted, where it does not apply.
    pub shadow_enabled: Option<Fraction>,
}

/// The policies of a request, the most specific first.
#[derive(Clone, Copy, Debug)]
pub struct CorsPolicies<'a>(pub &'a [&'a CorsPolicy]);

impl<'a> CorsPolicies<'a> {
    /// Whether the policy applies, and whether origins are counted all the same. The most specific level decides.
    pub fn mode(self, random: u64) -> (bool, bool) {
        let Some(policy) = self.0.first() else { return (false, false) };
        let includes = |fraction: Fraction| fraction.includes(random);
        (policy.enabled.is_none_or(includes), policy.shadow_enabled.is_some_and(includes))
    }

    /// Whether an origin may read answers.
    pub fn allows(self, origin: &[u8]) -> bool {
        let origins = self.0.iter().map(|policy| &policy.allow_origins).find(|origins| !origins.is_empty());
        origins.is_some_and(|origins| origins.iter().any(|one| one.is_match(b"*") || one.is_match(origin)))
    }

    /// The first level's answer to a question.
    pub fn first<T>(self, ask: impl FnMut(&'a CorsPolicy) -> Option<T>) -> Option<T> {
        self.0.iter().copied().find_map(ask)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Text;

    fn exact(origin: &str) -> StringMatcher {
        StringMatcher::Exact(Text::new(origin.to_owned(), false))
    }

    #[test]
    fn levels_complete_each_other() {
        let route = CorsPolicy { allow_credentials: Some(true), ..CorsPolicy::default() };
        let host = CorsPolicy {
            allow_origins: vec![exact("https://a")],
            allow_credentials: Some(false),
            max_age: Some(HeaderValue::from_static("1")),
            ..CorsPolicy::default()
        };
        let list = [&route, &host];
        let both = CorsPolicies(&list);
        assert!(both.allows(b"https://a") && !both.allows(b"https://b"));
        assert_eq!(both.first(|policy| policy.allow_credentials), Some(true));
        assert_eq!(both.first(|policy| policy.max_age.as_ref()), Some(&HeaderValue::from_static("1")));
        let any = CorsPolicy { allow_origins: vec![exact("*")], ..CorsPolicy::default() };
        assert!(CorsPolicies(&[&any]).allows(b"https://b"));
        assert!(!CorsPolicies(&[]).allows(b"https://b"));
    }

    #[test]
    fn fractions_turn_it_on() {
        let half = Some(Fraction { numerator: 50, denominator: 100 });
        let policy = CorsPolicy { enabled: half, shadow_enabled: half, ..CorsPolicy::default() };
        assert_eq!(CorsPolicies(&[&policy]).mode(49), (true, true));
        assert_eq!(CorsPolicies(&[&policy]).mode(50), (false, false));
        assert_eq!(CorsPolicies(&[&CorsPolicy::default()]).mode(99), (true, false));
        assert_eq!(CorsPolicies(&[]).mode(0), (false, false));
    }
}
