//! String, header and query parameter matchers; header mutations.

use http::{HeaderName, HeaderValue};
use lateen_xds::pb::envoy::config::core::v3 as core;
use lateen_xds::pb::envoy::config::route::v3 as route;
use lateen_xds::pb::envoy::r#type::matcher::v3 as matcher;

use super::values::{Converted, enumeration, required};
use crate::error::At;
use crate::support::fields;
use crate::{
    AppendAction, FullRegex, HeaderKey, HeaderMatcher, HeaderMutations, HeaderToAdd, HeaderValueMatcher,
    QueryParameterMatcher, RegexRewrite, StringMatcher, Text, TextFormat,
};

/// Text of a pattern in RE2 notation, which the `regex` crate shares for what RE2 has.
fn pattern(at: &At<'_>, regex: matcher::RegexMatcher) -> Converted<String> {
    fields!(at, regex => matcher::RegexMatcher {
        used { regex }
        inert { engine_type = "RE2's options are deprecated; the pattern's language is RE2's" }
        rejected {}
    });
    if regex.is_empty() {
        return Err(at.error_in("regex", "must not be empty"));
    }
    Ok(regex)
}

pub(super) fn full_regex(at: &At<'_>, regex: matcher::RegexMatcher) -> Converted<FullRegex> {
    let pattern = pattern(at, regex)?;
    FullRegex::new(&pattern).map_err(|error| at.error_in("regex", error.to_string()))
}

pub(super) fn regex_rewrite(
    at: &At<'_>,
    rewrite: matcher::RegexMatchAndSubstitute,
) -> Converted<RegexRewrite> {
    fields!(at, rewrite => matcher::RegexMatchAndSubstitute {
        used { pattern, substitution }
        inert {}
        rejected {}
    });
    let at_pattern = at.field("pattern");
    let pattern = self::pattern(&at_pattern, required(at, "pattern", pattern)?)?;
    let pattern =
        regex::Regex::new(&pattern).map_err(|error| at_pattern.error_in("regex", error.to_string()))?;
    let replacement = replacement(&substitution, pattern.captures_len())
        .map_err(|reason| at.error_in("substitution", reason))?;
    Ok(RegexRewrite { pattern, replacement: replacement.into() })
}

/// RE2's `\1` in the `regex` crate's notation.
fn replacement(substitution: &str, groups: usize) -> Result<String, String> {
    let mut text = String::new();
    let mut chars = substitution.chars();
    while let Some(c) = chars.next() {
        match c {
            '$' => text.push_str("$$"),
            '\\' => match chars.next() {
                Some('\\') => text.push('\\'),
                Some(digit @ '0'..='9') => {
                    if digit.to_digit(10).is_some_and(|group| group as usize >= groups) {
                        return Err(format!("the pattern has no group \\{digit}"));
                    }
                    text.push_str(&format!("${{{digit}}}"));
                }
                _ => return Err("a backslash must be followed by a digit or a backslash".to_owned()),
            },
            c => text.push(c),
        }
    }
    Ok(text)
}

pub(super) fn string_matcher(at: &At<'_>, string: matcher::StringMatcher) -> Converted<StringMatcher> {
    use matcher::string_matcher::MatchPattern;
    fields!(at, string => matcher::StringMatcher {
        used { ignore_case, match_pattern }
        inert {}
        rejected {}
        variants { custom = "matchers by extension" }
    });
    let text = |value: String| Text::new(value, ignore_case);
    Ok(match required(at, "match_pattern", match_pattern)? {
        MatchPattern::Exact(value) => StringMatcher::Exact(text(value)),
        MatchPattern::Prefix(value) => StringMatcher::Prefix(text(value)),
        MatchPattern::Suffix(value) => StringMatcher::Suffix(text(value)),
        MatchPattern::Contains(value) => StringMatcher::Contains(text(value)),
        MatchPattern::SafeRegex(regex) => StringMatcher::Regex(full_regex(&at.field("safe_regex"), regex)?),
        MatchPattern::Custom(_) => return Err(at.error_in("custom", "not supported: matchers by extension")),
    })
}

pub(super) fn header_matchers(
    at: &At<'_>,
    field: &str,
    headers: Vec<route::HeaderMatcher>,
) -> Converted<Vec<HeaderMatcher>> {
    let convert = |(index, header)| header_matcher(&at.index(field, index), header);
    headers.into_iter().enumerate().map(convert).collect()
}

#[allow(deprecated)]
pub(super) fn header_matcher(at: &At<'_>, header: route::HeaderMatcher) -> Converted<HeaderMatcher> {
    use route::header_matcher::HeaderMatchSpecifier as Specifier;
    fields!(at, header => route::HeaderMatcher {
        used { name, invert_match, treat_missing_header_as_empty, header_match_specifier }
        inert {}
        rejected {}
    });
    let case = |value: String| Text::new(value, false);
    let value = match header_match_specifier {
        // Envoy takes an empty exact value for "the header is there".
        None => HeaderValueMatcher::Present(true),
        Some(Specifier::ExactMatch(value)) if value.is_empty() => HeaderValueMatcher::Present(true),
        Some(Specifier::ExactMatch(value)) => HeaderValueMatcher::String(StringMatcher::Exact(case(value))),
        Some(Specifier::PrefixMatch(value)) => HeaderValueMatcher::String(StringMatcher::Prefix(case(value))),
        Some(Specifier::SuffixMatch(value)) => HeaderValueMatcher::String(StringMatcher::Suffix(case(value))),
        Some(Specifier::ContainsMatch(value)) => {
            HeaderValueMatcher::String(StringMatcher::Contains(case(value)))
        }
        Some(Specifier::SafeRegexMatch(regex)) => HeaderValueMatcher::String(StringMatcher::Regex(
            full_regex(&at.field("safe_regex_match"), regex)?,
        )),
        Some(Specifier::StringMatch(string)) => {
            HeaderValueMatcher::String(string_matcher(&at.field("string_match"), string)?)
        }
        Some(Specifier::RangeMatch(range)) => {
            HeaderValueMatcher::Range { start: range.start, end: range.end }
        }
        Some(Specifier::PresentMatch(present)) => HeaderValueMatcher::Present(present),
    };
    Ok(HeaderMatcher {
        key: header_key(at, "name", &name)?,
        invert: invert_match,
        treat_missing_as_empty: treat_missing_header_as_empty,
        value,
    })
}

pub(super) fn header_key(at: &At<'_>, field: &str, name: &str) -> Converted<HeaderKey> {
    Ok(match name.to_ascii_lowercase().as_str() {
        ":method" => HeaderKey::Method,
        ":scheme" => HeaderKey::Scheme,
        ":authority" | "host" => HeaderKey::Authority,
        ":path" => HeaderKey::Path,
        _ => HeaderKey::named(header_name(at, field, name)?),
    })
}

pub(super) fn header_name(at: &At<'_>, field: &str, name: &str) -> Converted<HeaderName> {
    HeaderName::from_bytes(name.as_bytes())
        .map_err(|_| at.error_in(field, format!("{name:?} is not a header name")))
}

pub(super) fn header_names(at: &At<'_>, field: &str, names: Vec<String>) -> Converted<Vec<HeaderName>> {
    names.iter().map(|name| header_name(at, field, name)).collect()
}

pub(super) fn header_value(at: &At<'_>, field: &str, value: &str) -> Converted<HeaderValue> {
    HeaderValue::from_str(value).map_err(|_| at.error_in(field, format!("{value:?} is not a header value")))
}

pub(super) fn query_parameter(
    at: &At<'_>,
    parameter: route::QueryParameterMatcher,
) -> Converted<QueryParameterMatcher> {
    use route::query_parameter_matcher::QueryParameterMatchSpecifier as Specifier;
    fields!(at, parameter => route::QueryParameterMatcher {
        used { name, query_parameter_match_specifier }
        inert {}
        rejected {}
    });
    let (value, present) = match query_parameter_match_specifier {
        None => (None, true),
        Some(Specifier::PresentMatch(present)) => (None, present),
        Some(Specifier::StringMatch(string)) => {
            (Some(string_matcher(&at.field("string_match"), string)?), true)
        }
    };
    Ok(QueryParameterMatcher { name: name.into(), value, present })
}

/// The mutations of one level; `prefix` is `request` or `response`.
pub(super) fn mutations(
    at: &At<'_>,
    prefix: &str,
    add: Vec<core::HeaderValueOption>,
    remove: Vec<String>,
) -> Converted<HeaderMutations> {
    let field = format!("{prefix}_headers_to_remove");
    let mut names = Vec::with_capacity(remove.len());
    for (index, name) in remove.iter().enumerate() {
        names.push(mutable_name(&at.index(&field, index), name)?);
    }
    let field = format!("{prefix}_headers_to_add");
    Ok(HeaderMutations { remove: names.into(), add: headers_to_add(at, &field, add)?.into() })
}

pub(super) fn headers_to_add(
    at: &At<'_>,
    field: &str,
    add: Vec<core::HeaderValueOption>,
) -> Converted<Vec<HeaderToAdd>> {
    let convert = |(index, option)| header_to_add(&at.index(field, index), option);
    add.into_iter().enumerate().map(convert).collect()
}

/// Envoy refuses mutations of pseudo headers and `host`: rewrites are for those.
fn mutable_name(at: &At<'_>, name: &str) -> Converted<HeaderName> {
    if name.starts_with(':') || name.eq_ignore_ascii_case("host") {
        return Err(
            at.error(format!("{name:?} can't be changed by header mutations; use the route's rewrites"))
        );
    }
    HeaderName::from_bytes(name.as_bytes()).map_err(|_| at.error(format!("{name:?} is not a header name")))
}

#[allow(deprecated)]
fn header_to_add(at: &At<'_>, option: core::HeaderValueOption) -> Converted<HeaderToAdd> {
    use core::header_value_option::HeaderAppendAction;
    fields!(at, option => core::HeaderValueOption {
        used { header, append, append_action, keep_empty_value }
        inert {}
        rejected {}
    });
    let header = required(at, "header", header)?;
    let at_header = at.field("header");
    fields!(&at_header, header => core::HeaderValue {
        used { key, value }
        inert {}
        rejected { raw_value = "values as raw bytes" }
    });
    let action = match enumeration(at, "append_action", append_action)? {
        HeaderAppendAction::AppendIfExistsOrAdd => AppendAction::AppendIfExistsOrAdd,
        HeaderAppendAction::AddIfAbsent => AppendAction::AddIfAbsent,
        HeaderAppendAction::OverwriteIfExistsOrAdd => AppendAction::OverwriteIfExistsOrAdd,
        HeaderAppendAction::OverwriteIfExists => AppendAction::OverwriteIfExists,
    };
    let action = match (append, action) {
        (None, action) => action,
        (Some(_), action) if action != AppendAction::AppendIfExistsOrAdd => {
            return Err(at.error_in("append", "must not be set together with append_action"));
        }
        (Some(append), _) if append.value => AppendAction::AppendIfExistsOrAdd,
        (Some(_), _) => AppendAction::OverwriteIfExistsOrAdd,
    };
    let name = mutable_name(&at_header.field("key"), &key)?;
    let value =
        TextFormat::parse(&value, true).map_err(|error| at_header.error_in("value", error.to_string()))?;
    if let Some(literal) = value.as_literal() {
        header_value(&at_header, "value", literal)?;
    }
    Ok(HeaderToAdd { name, value, action, keep_empty_value })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn substitutions_of_re2_become_the_regex_crates() {
        let rewrite = |pattern: &str, substitution: &str| {
            regex_rewrite(
                &At::ROOT,
                matcher::RegexMatchAndSubstitute {
                    pattern: Some(matcher::RegexMatcher { regex: pattern.into(), engine_type: None }),
                    substitution: substitution.into(),
                },
            )
        };
        let table = [
            // The examples of Envoy's `regex_rewrite` documentation.
            ("^/service/([^/]+)(/.*)$", r"\2/instance/\1", "/service/foo/v1/api", "/v1/api/instance/foo"),
            ("one", "two", "/xxx/one/yyy/one/zzz", "/xxx/two/yyy/two/zzz"),
            ("^(.*?)one(.*)$", r"\1two\2", "/xxx/one/yyy/one/zzz", "/xxx/two/yyy/one/zzz"),
            ("(?i)/xxx/", "/yyy/", "/aaa/XxX/bbb", "/aaa/yyy/bbb"),
            ("a", r"$1\\", "a", r"$1\"),
            ("(a)1", r"\0\1", "a1", "a1a"),
        ];
        for (pattern, substitution, path, expected) in table {
            assert_eq!(rewrite(pattern, substitution).unwrap().apply(path), expected, "{pattern}");
        }
        assert!(rewrite("a", r"\1").unwrap_err().to_string().contains("no group"));
        assert!(rewrite("(", "a").unwrap_err().path.ends_with("pattern.regex"));
    }

    #[test]
    fn pseudo_headers_are_not_mutated() {
        for name in [":path", "Host", ":authority"] {
            let error = mutations(&At::ROOT, "request", vec![], vec![name.to_owned()]).unwrap_err();
            assert_eq!(error.path, "request_headers_to_remove[0]");
        }
    }

    /// RE2's rewriting by hand: `None` where RE2 refuses it.
    fn rewritten(substitution: &str, captures: &regex::Captures<'_>) -> Option<String> {
        let (mut text, mut escaped) = (String::new(), false);
        for c in substitution.chars() {
            match (escaped, c) {
                (false, '\\') => escaped = true,
                (false, c) => text.push(c),
                (true, '\\') => (text, escaped) = (text + "\\", false),
                (true, digit) if digit.is_ascii_digit() => {
                    let group = digit as usize - '0' as usize;
                    if group >= captures.len() {
                        return None;
                    }
                    text.push_str(captures.get(group).map_or("", |group| group.as_str()));
                    escaped = false;
                }
                _ => return None,
            }
        }
        (!escaped).then_some(text)
    }

    proptest! {
        #[test]
        fn substitutions_mean_what_re2_means(substitution in "([a$1{}]|\\\\[0-4]|\\\\\\\\|\\\\|\u{e9}){0,8}") {
            let pattern = regex::Regex::new("(b+)(c)?").expect("a pattern");
            let captures = pattern.captures("bbc").expect("it matches");
            let converted = replacement(&substitution, pattern.captures_len());
            let ours = converted.ok().map(|text| pattern.replace_all("bbc", text.as_str()).into_owned());
            prop_assert_eq!(ours, rewritten(&substitution, &captures), "{}", substitution);
        }

        #[test]
        fn any_text_is_a_substitution_or_refused(substitution in "\\PC{0,40}", groups in 0_usize..12) {
            let lone = substitution.replace("\\\\", "").contains('\\');
            let plain = replacement(&substitution, groups);
            prop_assert!(lone || plain.is_ok_and(|text| text.replace("$$", "") == text.replace('$', "")));
        }
    }
}
