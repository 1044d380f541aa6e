//! Matchers over what filters noted.

use lateen_xds::pb::envoy::r#type::matcher::v3 as matcher;

use super::matchers::string_matcher;
use super::values::{Converted, nonempty, required};
use crate::error::At;
use crate::support::fields;
use crate::{MetadataMatcher, ValueMatcher};

pub(super) fn metadata_matcher(at: &At<'_>, message: matcher::MetadataMatcher) -> Converted<MetadataMatcher> {
    fields!(at, message => matcher::MetadataMatcher {
        used { filter, path, value, invert }
        inert {}
        rejected {}
    });
    if path.is_empty() {
        return Err(at.error_in("path", "must not be empty"));
    }
    let key = |(index, segment): (usize, matcher::metadata_matcher::PathSegment)| {
        let at = at.index("path", index);
        let matcher::metadata_matcher::path_segment::Segment::Key(key) =
            required(&at, "segment", segment.segment)?;
        Ok((*nonempty(&at, "key", key)?).into())
    };
    Ok(MetadataMatcher {
        filter: (*nonempty(at, "filter", filter)?).into(),
        path: path.into_iter().enumerate().map(key).collect::<Converted<_>>()?,
        value: value_matcher(&at.field("value"), required(at, "value", value)?)?,
        invert,
    })
}

fn value_matcher(at: &At<'_>, message: matcher::ValueMatcher) -> Converted<ValueMatcher> {
    use matcher::value_matcher::MatchPattern;
    use matcher::{double_matcher, list_matcher};
    Ok(match required(at, "match_pattern", message.match_pattern)? {
        MatchPattern::NullMatch(_) => ValueMatcher::Null,
        MatchPattern::DoubleMatch(double) => {
            let at = at.field("double_match");
            match required(&at, "match_pattern", double.match_pattern)? {
                double_matcher::MatchPattern::Exact(number) => ValueMatcher::Number(number),
                double_matcher::MatchPattern::Range(range) => {
                    ValueMatcher::Range { start: range.start, end: range.end }
                }
            }
        }
        MatchPattern::StringMatch(string) => {
            ValueMatcher::String(string_matcher(&at.field("string_match"), string)?)
        }
        MatchPattern::BoolMatch(wanted) => ValueMatcher::Bool(wanted),
        MatchPattern::PresentMatch(wanted) => ValueMatcher::Present(wanted),
        MatchPattern::ListMatch(list) => {
            let at = at.field("list_match");
            let list_matcher::MatchPattern::OneOf(one) = required(&at, "match_pattern", list.match_pattern)?;
            ValueMatcher::ListOneOf(Box::new(value_matcher(&at.field("one_of"), *one)?))
        }
        MatchPattern::OrMatch(or) => {
            let at = at.field("or_match");
            let matchers = or.value_matchers.into_iter().enumerate();
            ValueMatcher::Or(
                matchers
                    .map(|(index, matcher)| value_matcher(&at.index("value_matchers", index), matcher))
                    .collect::<Converted<_>>()?,
            )
        }
    })
}
