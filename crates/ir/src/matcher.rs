//! String, header and query parameter matchers.

use http::HeaderName;

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
    /// An ordinary header.
    Named(HeaderName),
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

/// What a header's value must be. Several values of one header are joined with `,` first, as Envoy does.
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
