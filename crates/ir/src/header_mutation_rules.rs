//! Which headers others may change in a request: Envoy's `HeaderMutationRules`.
//! <https://www.envoyproxy.io/docs/envoy/v1.40.0/api-v3/config/common/mutation_rules/v3/mutation_rules.proto>

use http::HeaderValue;

use crate::FullRegex;

/// The rules. By default everything may change but what steers requests and what is Envoy's own.
#[derive(Clone, Debug, Default)]
pub struct HeaderMutationRules {
    /// `host`, `:authority`, `:scheme` and `:method`, too.
    pub allow_all_routing: bool,
    /// Names that begin with `x-envoy`, too.
    pub allow_envoy: bool,
    /// No pseudo header.
    pub disallow_system: bool,
    /// Nothing but what [`Self::allow`] matches.
    pub disallow_all: bool,
    /// Names that may change whatever else is said, but for [`Self::disallow`].
    pub allow: Option<FullRegex>,
    /// Names that may not.
    pub disallow: Option<FullRegex>,
    /// A change that may not be fails the request; else it is left out.
    pub disallow_is_error: bool,
}

/// What is done to a header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HeaderMutationKind {
    /// It gets a value, in place of its own or in a line more.
    Set,
    /// Its value is continued.
    Append,
    /// It goes.
    Remove,
}

/// What becomes of a change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HeaderMutationVerdict {
    /// It is made.
    Made,
    /// It is left out.
    LeftOut,
    /// The request fails.
    Fails,
}

/// What an authority may consist of besides letters and digits, as Envoy has it.
const AUTHORITY: &[u8] = b"-._~%!$&'()[]*+,;=:";

impl HeaderMutationRules {
    /// Judges a change. `name` is in lower case; `value` is not looked at where something is removed.
    pub fn judge(&self, kind: HeaderMutationKind, name: &str, value: &str) -> HeaderMutationVerdict {
        let allowed =
            self.allows(kind, name) && (kind == HeaderMutationKind::Remove || is_valid(name, value));
        match (allowed, self.disallow_is_error) {
            (true, _) => HeaderMutationVerdict::Made,
            (false, true) => HeaderMutationVerdict::Fails,
            (false, false) => HeaderMutationVerdict::LeftOut,
        }
    }

    fn allows(&self, kind: HeaderMutationKind, name: &str) -> bool {
        let is_pseudo = name.starts_with(':');
        let matches =
            |regex: &Option<FullRegex>| regex.as_ref().is_some_and(|one| one.is_match(name.as_bytes()));
        if kind == HeaderMutationKind::Remove && (is_pseudo || name == "host") || matches(&self.disallow) {
            return false;
        }
        if matches(&self.allow) {
            return true;
        }
        let steers = ["host", ":authority", ":method", ":scheme"].contains(&name);
        !(self.disallow_all
            || steers && !self.allow_all_routing
            || is_pseudo && (kind == HeaderMutationKind::Append || self.disallow_system)
            || name.starts_with("x-envoy") && !self.allow_envoy)
    }
}

fn is_valid(name: &str, value: &str) -> bool {
    match name {
        "host" | ":authority" => {
            value.bytes().all(|byte| byte.is_ascii_alphanumeric() || AUTHORITY.contains(&byte))
        }
        ":scheme" => ["http", "https"].iter().any(|scheme| value.eq_ignore_ascii_case(scheme)),
        name => name.starts_with(':') || HeaderValue::from_str(value).is_ok(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_may_change_is_as_envoy_has_it() {
        use HeaderMutationKind::{Append, Remove, Set};
        let regex = |pattern: &str| Some(FullRegex::new(pattern).unwrap());
        let default = HeaderMutationRules::default();
        let with = |change: fn(&mut HeaderMutationRules)| {
            let mut rules = HeaderMutationRules::default();
            change(&mut rules);
            rules
        };
        let routing = with(|rules| rules.allow_all_routing = true);
        let nothing =
            HeaderMutationRules { disallow_all: true, allow: regex("x-a|x-b|:path"), ..default.clone() };
        let but = HeaderMutationRules { disallow: regex("x-b"), allow: regex("x-.*"), ..default.clone() };
        for (rules, kind, name, value, made) in [
            (&default, Set, "x-a", "1", true),
            (&default, Set, "x-a", "1\n", false),
            (&default, Set, "x-envoy-a", "1", false),
            (&with(|rules| rules.allow_envoy = true), Set, "x-envoy-a", "1", true),
            (&default, Set, ":path", "/", true),
            (&default, Append, ":path", "/", false),
            (&with(|rules| rules.disallow_system = true), Set, ":path", "/", false),
            (&default, Set, ":authority", "a", false),
            (&routing, Set, ":authority", "a:80", true),
            (&routing, Set, "host", "a/b", false),
            (&routing, Set, ":scheme", "HTTPS", true),
            (&routing, Set, ":scheme", "ftp", false),
            (&routing, Remove, "host", "", false),
            (&routing, Remove, ":path", "", false),
            (&nothing, Set, "x-a", "1", true),
            (&nothing, Append, ":path", "1", true),
            (&nothing, Remove, ":path", "", false),
            (&nothing, Remove, "x-c", "", false),
            (&but, Set, "x-b", "1", false),
            (&but, Set, "x-envoy-a", "1", true),
        ] {
            let verdict = rules.judge(kind, name, value);
            assert_eq!(verdict == HeaderMutationVerdict::Made, made, "{kind:?} {name} {value:?} {rules:?}");
        }
        let strict = HeaderMutationRules { disallow_is_error: true, ..default.clone() };
        assert_eq!(strict.judge(Set, "host", "a"), HeaderMutationVerdict::Fails);
        assert_eq!(default.judge(Set, "host", "a"), HeaderMutationVerdict::LeftOut);
    }
}
