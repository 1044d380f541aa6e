//! String, header and query parameter matchers.

use http::HeaderName;

use crate::MessageKind;

/// A regular expression that must match the whole value, as Envoy's `RegexMatcher` (RE2 `FullMatch`).
#[derive(Clone, Debug)]
pub struct FullRegex(pub(crate) regex::bytes::Regex);

/// Envoy's `type.matcher.v3.StringMatcher`.
#[derive(Clone, Debug)]
pub enum StringMatcher {
    /// The whole value.
    Exact(Text),
    /// The beginning of the value.
    Prefix(Text),
    /// The end of the value.
    Suffix(Text),
    /// Anywhere in the value.
    Contains(Text),
    /// The whole value matches.
    Regex(FullRegex),
}

/// The text of a matcher. When case is ignored `value` is in ASCII lower case.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Text {
    /// What to look for.
    pub value: Box<str>,
    /// Whether ASCII case is ignored.
    pub ignore_case: bool,
}

/// The name in a header matcher: Envoy treats HTTP/2's pseudo headers like headers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HeaderKey {
    /// `:method`
    Method,
    /// `:scheme`
    Scheme,
    /// `:authority` or `host`
    Authority,
    /// `:path`, with the query
    Path,
    /// An ordinary header; several values are looked at one by one.
    Named(HeaderName),
    /// One of which Envoy keeps a single value: several are joined with `,`. See [`HeaderKey::named`].
    Joined(HeaderName),
}

/// Envoy's `route.v3.HeaderMatcher`.
#[derive(Clone, Debug)]
pub struct HeaderMatcher {
    /// Which header.
    pub key: HeaderKey,
    /// The result is inverted (not when the header is missing, see `treat_missing_as_empty`).
    pub invert: bool,
    /// A missing header is matched as an empty value; otherwise a missing header never matches.
    pub treat_missing_as_empty: bool,
    /// What the value must be.
    pub value: HeaderValueMatcher,
}

/// What a header's value must be.
#[derive(Clone, Debug)]
pub enum HeaderValueMatcher {
    /// The header is there (true) or is not there (false).
    Present(bool),
    /// A decimal integer in `start..end`.
    Range {
        /// First number that matches.
        start: i64,
        /// First number after the range.
        end: i64,
    },
    /// The value matches.
    String(StringMatcher),
}

/// Envoy's `route.v3.QueryParameterMatcher`.
#[derive(Clone, Debug)]
pub struct QueryParameterMatcher {
    /// Name of the parameter, compared as it stands in the URL.
    pub name: Box<str>,
    /// What the value must be; `None`: the parameter is there, with any value.
    pub value: Option<StringMatcher>,
    /// With `value: None`: false asks for the parameter's absence.
    pub present: bool,
}

impl FullRegex {
    /// Compiles a pattern that must match the whole value. Its size is limited by the `regex` crate's default.
    ///
    /// # Errors
    /// It is no pattern, or too large.
    pub fn new(pattern: &str) -> Result<Self, regex::Error> {
        // Compiled on its own first, so that an unbalanced parenthesis can't escape the group below.
        Self::compile(pattern)?;
        Self::compile(&format!(r"\A(?:{pattern})\z")).map(Self)
    }

    /// Of bytes, not of characters, as in Envoy since CVE-2026-73552: `.` would match none that is no UTF-8, and a rule that denies
    /// would let such a value pass. Only what characters alone have, such as `\pL`, is compiled for them.
    fn compile(pattern: &str) -> Result<regex::bytes::Regex, regex::Error> {
        let of = |unicode| regex::bytes::RegexBuilder::new(pattern).unicode(unicode).build();
        of(false).or_else(|_| of(true))
    }

    /// Whether the whole value matches.
    pub fn is_match(&self, value: &[u8]) -> bool {
        self.0.is_match(value)
    }
}

impl Text {
    /// Text that is compared with or without ASCII case.
    pub fn new(value: String, ignore_case: bool) -> Self {
        let value = if ignore_case { value.to_ascii_lowercase() } else { value };
        Self { value: value.into(), ignore_case }
    }

    fn equals(&self, value: &[u8]) -> bool {
        let own = self.value.as_bytes();
        if self.ignore_case { own.eq_ignore_ascii_case(value) } else { own == value }
    }
}

impl StringMatcher {
    /// Whether the value matches. Does not allocate.
    pub fn is_match(&self, value: &[u8]) -> bool {
        match self {
            Self::Exact(text) => text.equals(value),
            Self::Prefix(text) => value.get(..text.value.len()).is_some_and(|start| text.equals(start)),
            Self::Suffix(text) => {
                value.len().checked_sub(text.value.len()).is_some_and(|start| text.equals(&value[start..]))
            }
            Self::Contains(text) => {
                text.value.is_empty() || value.windows(text.value.len()).any(|window| text.equals(window))
            }
            Self::Regex(regex) => regex.is_match(value),
        }
    }
}

/// Calls back with every value of a header, where Envoy keeps one with all of them joined.
pub(crate) fn each_value(headers: &http::HeaderMap, name: &HeaderName, mut value: impl FnMut(&[u8])) {
    let mut lines = headers.get_all(name).iter();
    match (lines.next(), lines.next()) {
        (None, _) => {}
        (Some(only), None) => value(only.as_bytes()),
        _ => HeaderKey::named(name.clone()).find_in(headers).each(value),
    }
}

/// What a matcher looks at; one value is borrowed.
enum Found<'a> {
    Missing,
    One(&'a [u8]),
    Joined(Vec<u8>),
    /// Several, each for itself.
    Each(http::header::ValueIter<'a, http::HeaderValue>),
}

impl Found<'_> {
    fn each(self, mut value: impl FnMut(&[u8])) {
        match self {
            Self::Missing => {}
            Self::One(one) => value(one),
            Self::Joined(all) => value(&all),
            Self::Each(values) => values.for_each(|one| value(one.as_bytes())),
        }
    }
}

impl HeaderKey {
    /// An ordinary header of this name.
    pub fn named(name: HeaderName) -> Self {
        if MessageKind::Request.keeps_one_line(&name) { Self::Joined(name) } else { Self::Named(name) }
    }

    /// Calls back with every value in a request, one by one.
    pub(crate) fn each(&self, request: &crate::RequestView<'_>, value: impl FnMut(&[u8])) {
        self.find(request).each(value);
    }

    fn find<'a>(&self, request: &crate::RequestView<'a>) -> Found<'a> {
        match self {
            Self::Method => Found::One(request.method.as_bytes()),
            Self::Scheme => Found::One(request.scheme.as_bytes()),
            Self::Authority => Found::One(request.authority.as_bytes()),
            Self::Path if request.path.is_empty() => Found::Missing,
            Self::Path => Found::One(request.path.as_bytes()),
            Self::Named(_) | Self::Joined(_) => self.find_in(request.headers),
        }
    }

    fn find_in<'a>(&self, headers: &'a http::HeaderMap) -> Found<'a> {
        let (Self::Named(name) | Self::Joined(name)) = self else { return Found::Missing };
        let all = headers.get_all(name);
        let mut values = all.iter();
        match (values.next(), values.next()) {
            (None, _) => Found::Missing,
            (Some(only), None) => Found::One(only.as_bytes()),
            _ if matches!(self, Self::Named(_)) => Found::Each(all.iter()),
            _ => {
                // As they come in: what is empty adds nothing.
                let parts: Vec<&[u8]> =
                    all.iter().map(http::HeaderValue::as_bytes).filter(|value| !value.is_empty()).collect();
                Found::Joined(parts.join(&b','))
            }
        }
    }
}

impl HeaderMatcher {
    /// Whether a request matches. A header with several values matches if one of them does: joined, a value that is to be refused
    /// could hide behind another.
    ///
    /// A missing header matches only as Envoy has it: an inverted "present", or a value that matches empty text when missing counts as empty.
    pub fn is_match(&self, request: &crate::RequestView<'_>) -> bool {
        self.matches(self.key.find(request))
    }

    /// Whether a header map (a response) matches; pseudo headers count as missing.
    pub fn is_match_in(&self, headers: &http::HeaderMap) -> bool {
        self.matches(self.key.find_in(headers))
    }

    fn matches(&self, found: Found<'_>) -> bool {
        match found {
            Found::Missing => self.matches_value(None),
            Found::One(value) => self.matches_value(Some(value)),
            Found::Joined(value) => self.matches_value(Some(&value)),
            Found::Each(mut values) => {
                values.any(|value| self.matches_value(Some(value.as_bytes())) != self.invert) != self.invert
            }
        }
    }

    fn matches_value(&self, value: Option<&[u8]>) -> bool {
        let matched = match (&self.value, value) {
            (HeaderValueMatcher::Present(present), value) => {
                *present == (value.is_some() || self.treat_missing_as_empty)
            }
            (_, None) if !self.treat_missing_as_empty => return false,
            (HeaderValueMatcher::Range { start, end }, value) => {
                let number = std::str::from_utf8(value.unwrap_or_default())
                    .ok()
                    .and_then(|text| text.parse::<i64>().ok());
                number.is_some_and(|number| (*start..*end).contains(&number))
            }
            (HeaderValueMatcher::String(matcher), value) => matcher.is_match(value.unwrap_or_default()),
        };
        matched != self.invert
    }
}

impl QueryParameterMatcher {
    /// Whether a query (without `?`) matches. The first parameter of the name counts.
    pub fn is_match(&self, query: &str) -> bool {
        let found = query.split('&').find_map(|parameter| {
            let (name, value) = parameter.split_once('=').unwrap_or((parameter, ""));
            (name == &*self.name).then_some(value)
        });
        match (&self.value, found) {
            (None, found) => found.is_some() == self.present,
            (Some(_), None) => false,
            (Some(matcher), Some(value)) => matcher.is_match(value.as_bytes()),
        }
    }
}

#[cfg(test)]
mod tests {
    use http::{HeaderMap, HeaderValue};

    use super::*;

    fn text(value: &str, ignore_case: bool) -> Text {
        Text::new(value.to_owned(), ignore_case)
    }

    #[test]
    fn strings_match() {
        let table = [
            (StringMatcher::Exact(text("a", false)), "a", true),
            (StringMatcher::Exact(text("a", false)), "A", false),
            (StringMatcher::Exact(text("A", true)), "a", true),
            (StringMatcher::Prefix(text("ab", true)), "ABc", true),
            (StringMatcher::Prefix(text("ab", false)), "a", false),
            (StringMatcher::Suffix(text("bc", false)), "abc", true),
            (StringMatcher::Suffix(text("abcd", false)), "abc", false),
            (StringMatcher::Suffix(text("bc", false)), "abd", false),
            (StringMatcher::Suffix(text("BC", true)), "abc", true),
            (StringMatcher::Contains(text("B", true)), "abc", true),
            (StringMatcher::Contains(text("", false)), "", true),
            (StringMatcher::Contains(text("x", false)), "abc", false),
            (StringMatcher::Regex(FullRegex::new("a|ab").unwrap()), "ab", true),
            (StringMatcher::Regex(FullRegex::new("b").unwrap()), "abc", false),
        ];
        for (matcher, value, expected) in table {
            assert_eq!(matcher.is_match(value.as_bytes()), expected, "{matcher:?} {value}");
        }
        assert!(FullRegex::new("a)(b").is_err(), "a pattern can't leave its group");
    }

    /// What Envoy 1.40 answers for these values.
    #[test]
    fn expressions_are_about_bytes() {
        let values: [&[u8]; 6] =
            [b"x\xffsecret", b"x\xc3\xa9 secret", b"a\xffb", b"a\xc3\xa9b", b"\xc3\xa9", b"\xff"];
        for (pattern, expected) in [
            ("x.*secret.*", [true, true, false, false, false, false]),
            ("a.b", [false, false, true, false, false, false]),
            ("a..b", [false, false, false, true, false, false]),
            ("\u{e9}", [false, false, false, false, true, false]),
            (".+", [true; 6]),
            (r"a\xffb", [false, false, true, false, false, false]),
            ("[^b]+", [true, true, false, false, true, true]),
            (r"\w+", [false; 6]),
            ("[a-z]+", [false; 6]),
        ] {
            let regex = FullRegex::new(pattern).unwrap();
            assert_eq!(values.map(|value| regex.is_match(value)), expected, "{pattern}");
        }
        assert!(FullRegex::new(r"\pL+").unwrap().is_match(b"abc"));
    }

    #[test]
    fn headers_match_as_envoys() {
        let mut headers = HeaderMap::new();
        headers.append("x-a", HeaderValue::from_static("1"));
        headers.append("x-a", HeaderValue::from_static("2"));
        headers.insert("x-n", HeaderValue::from_static("-5"));
        for value in ["", "1", "", "2"] {
            headers.append("accept", HeaderValue::from_static(value));
        }
        let exact = |value: &str| HeaderValueMatcher::String(StringMatcher::Exact(text(value, false)));
        let range = HeaderValueMatcher::Range { start: -10, end: 0 };
        // name, value, invert, missing counts as empty, expected
        let table = [
            ("x-a", exact("1,2"), false, false, false),
            ("x-a", exact("1"), false, false, true),
            ("x-a", exact("2"), true, false, false),
            ("x-a", exact("3"), true, false, true),
            ("accept", exact("1,2"), false, false, true),
            ("accept", exact("1"), false, false, false),
            ("x-n", range.clone(), false, false, true),
            ("x-n", range.clone(), true, false, false),
            ("x-a", range.clone(), false, false, false),
            ("missing", exact("1"), false, false, false),
            ("missing", exact("1"), true, false, false),
            ("missing", exact("1"), true, true, true),
            ("missing", exact(""), false, true, true),
            ("missing", range, true, true, true),
            ("missing", HeaderValueMatcher::Present(true), false, false, false),
            ("missing", HeaderValueMatcher::Present(true), true, false, true),
            ("missing", HeaderValueMatcher::Present(false), false, false, true),
            ("missing", HeaderValueMatcher::Present(true), false, true, true),
            ("missing", HeaderValueMatcher::Present(false), false, true, false),
            ("x-a", HeaderValueMatcher::Present(true), false, false, true),
            ("x-a", HeaderValueMatcher::Present(false), true, false, true),
        ];
        let request = crate::RequestView {
            method: "GET",
            scheme: "http",
            authority: "a",
            path: "/",
            headers: &headers,
            metadata: None,
        };
        for (name, value, invert, treat_missing_as_empty, expected) in table {
            let matcher = HeaderMatcher {
                key: HeaderKey::named(HeaderName::from_static(name)),
                invert,
                treat_missing_as_empty,
                value,
            };
            assert_eq!(matcher.is_match(&request), expected, "{matcher:?}");
            assert_eq!(matcher.is_match_in(&headers), expected, "{matcher:?}");
        }
    }

    #[test]
    fn query_parameters_match() {
        let parameter = |value: Option<StringMatcher>, present| QueryParameterMatcher {
            name: "a".into(),
            value,
            present,
        };
        let one = StringMatcher::Exact(text("1", false));
        let table = [
            (parameter(Some(one.clone()), true), "a=1&a=2", true),
            (parameter(Some(one.clone()), true), "a=2&a=1", false),
            (parameter(Some(one), true), "b=1", false),
            (parameter(None, true), "a", true),
            (parameter(None, true), "ab=1", false),
            (parameter(None, false), "b", true),
        ];
        for (matcher, query, expected) in table {
            assert_eq!(matcher.is_match(query), expected, "{matcher:?} {query}");
        }
    }
}
