//! Applies a route's header mutations.

use http::{HeaderMap, HeaderName, HeaderValue};
use lateen_ir::{
    AppendAction, FormatValues, HeaderMutations, HeaderToAdd, MessageKind, Part, WeightedCluster,
};

use smallvec::SmallVec;

use crate::context::RequestContext;
use crate::hop_by_hop::join_lines;
use crate::render;

/// Headers that one level adds, rendered.
#[derive(Default)]
pub(crate) struct Changes<'a> {
    replaced: SmallVec<[(&'a HeaderName, HeaderValue); 4]>,
    added: SmallVec<[(&'a HeaderName, HeaderValue); 4]>,
}

/// Renders what one level adds to these headers. What is there already is what counts, not what the level itself adds.
pub(crate) fn changes<'a>(
    additions: &'a [HeaderToAdd],
    headers: &HeaderMap,
    values: &dyn FormatValues,
) -> Changes<'a> {
    let mut changes = Changes::default();
    for addition in additions {
        let Some(value) = value(addition, values) else { continue };
        let (name, there) = (&addition.name, || headers.contains_key(&addition.name));
        match addition.action {
            AppendAction::AppendIfExistsOrAdd => changes.added.push((name, value)),
            AppendAction::AddIfAbsent if !there() => changes.added.push((name, value)),
            AppendAction::OverwriteIfExistsOrAdd => changes.replaced.push((name, value)),
            AppendAction::OverwriteIfExists if there() => changes.replaced.push((name, value)),
            AppendAction::AddIfAbsent | AppendAction::OverwriteIfExists => {}
        }
    }
    changes
}

impl Changes<'_> {
    /// As in Envoy, values that replace are set first, and then all others are added.
    pub(crate) fn apply(self, headers: &mut HeaderMap, message: MessageKind) {
        for (name, value) in self.replaced {
            headers.insert(name, value);
        }
        for (name, value) in self.added {
            if headers.contains_key(name) && message.keeps_one_line(name) {
                append_to_line(headers, name, &value);
            } else {
                headers.append(name, value);
            }
        }
    }
}

/// Makes a value part of the line that is there.
fn append_to_line(headers: &mut HeaderMap, name: &HeaderName, value: &HeaderValue) {
    join_lines(headers, name.clone());
    let Some(line) = headers.get_mut(name) else { return };
    let separator: &[u8] = if line.is_empty() { b"" } else { b"," };
    // Parts of values are values.
    if let Ok(joined) = HeaderValue::from_bytes(&[line.as_bytes(), separator, value.as_bytes()].concat()) {
        *line = joined;
    }
}

/// Adds headers to a response whose own headers no value is made of.
pub(crate) fn add_all(additions: &[HeaderToAdd], headers: &mut HeaderMap, values: &dyn FormatValues) {
    changes(additions, headers, values).apply(headers, MessageKind::Response);
}

/// The route's changes to a response, level by level: each sees what those before it have made. `weighted`: of the weighted cluster.
pub(crate) fn mutate_response(
    context: &mut RequestContext,
    weighted: Option<&HeaderMutations>,
    headers: &mut HeaderMap,
) {
    let (Some(route), Some(host), Some(table)) = (&context.route, &context.virtual_host, &context.routes)
    else {
        return;
    };
    let any = [&route.response_headers, &host.response_headers, &table.ir.response_headers];
    if any.iter().all(|level| level.is_empty()) && weighted.is_none_or(|weighted| weighted.is_empty()) {
        return;
    }
    let (route, host, table) = (route.clone(), host.clone(), table.clone());
    let mut levels = [
        weighted,
        Some(&route.response_headers),
        Some(&host.response_headers),
        Some(&table.ir.response_headers),
    ];
    // The weighted cluster's come first all the same, as in Envoy.
    if table.ir.most_specific_header_mutations_wins {
        levels[1..].reverse();
    }
    for level in levels.into_iter().flatten().filter(|level| !level.is_empty()) {
        level.remove.iter().for_each(|name| drop(headers.remove(name)));
        // Where values look for them, for a moment.
        context.response_headers = Some(std::mem::take(headers));
        let changes =
            changes(&level.add, context.response_headers.as_ref().unwrap_or(&HeaderMap::new()), context);
        *headers = context.response_headers.take().unwrap_or_default();
        changes.apply(headers, MessageKind::Response);
    }
}

/// The route's changes to a request, level by level. `weighted`: the weighted cluster that was chosen; its host is set with its headers.
pub(crate) fn mutate_request(context: &mut RequestContext, weighted: Option<&WeightedCluster>) {
    let literal = weighted.and_then(|entry| entry.host_rewrite.clone());
    let (Some(route), Some(host), Some(table)) = (&context.route, &context.virtual_host, &context.routes)
    else {
        return;
    };
    let (route, host, table) = (route.clone(), host.clone(), table.clone());
    let mut levels = [
        weighted.map(|entry| &entry.request_headers),
        Some(&route.request_headers),
        Some(&host.request_headers),
        Some(&table.ir.request_headers),
    ];
    if table.ir.most_specific_header_mutations_wins {
        levels[1..].reverse();
    }
    for (position, level) in levels.into_iter().enumerate() {
        if position == 1
            && let Some(literal) = &literal
        {
            context.authority = literal.clone();
        }
        let Some(level) = level.filter(|level| !level.is_empty()) else { continue };
        level.remove.iter().for_each(|name| drop(context.head.headers.remove(name)));
        let changes = changes(&level.add, &context.head.headers, context);
        changes.apply(&mut context.head.headers, MessageKind::Request);
    }
}

/// The rendered value; `None`: there is nothing to add.
fn value(addition: &HeaderToAdd, values: &dyn FormatValues) -> Option<HeaderValue> {
    let mut text = String::new();
    match &*addition.value.parts {
        [Part::Literal(literal)] => text.push_str(literal),
        _ => render::text(&addition.value, values, &mut text),
    }
    if text.is_empty() && !addition.keep_empty_value {
        return None;
    }
    // A rendered value may hold bytes a header can't; then there is no header rather than a broken message.
    HeaderValue::try_from(text).ok()
}

#[cfg(test)]
mod tests {
    use lateen_ir::{Operator, Substitution, TextFormat};

    use super::*;

    struct Nothing;

    impl FormatValues for Nothing {
        fn value(&self, _: &Operator, _: &mut String) -> bool {
            false
        }
    }

    fn header(value: Vec<Part>, action: AppendAction, keep_empty_value: bool) -> HeaderToAdd {
        let value = TextFormat { parts: value, omit_empty_values: true };
        HeaderToAdd { name: HeaderName::from_static("x"), value, action, keep_empty_value }
    }

    fn run(before: &[&'static str], addition: HeaderToAdd) -> Vec<String> {
        let mut headers = HeaderMap::new();
        for value in before {
            headers.append("x", HeaderValue::from_static(value));
        }
        add_all(&[addition], &mut headers, &Nothing);
        headers.get_all("x").iter().map(|value| value.to_str().unwrap().to_owned()).collect()
    }

    #[test]
    fn actions_follow_envoy() {
        use AppendAction::*;
        let literal = || vec![Part::Literal("n".into())];
        assert_eq!(run(&["a"], header(literal(), AppendIfExistsOrAdd, false)), ["a", "n"]);
        assert_eq!(run(&["a", "b"], header(literal(), OverwriteIfExistsOrAdd, false)), ["n"]);
        assert_eq!(run(&["a"], header(literal(), AddIfAbsent, false)), ["a"]);
        assert_eq!(run(&[], header(literal(), AddIfAbsent, false)), ["n"]);
        assert!(run(&[], header(literal(), OverwriteIfExists, false)).is_empty());
    }

    #[test]
    fn absent_values_add_nothing_unless_empty_ones_are_kept() {
        let operator =
            || vec![Part::Operator(Substitution { operator: Operator::RouteName, max_length: None })];
        assert!(run(&[], header(operator(), AppendAction::AppendIfExistsOrAdd, false)).is_empty());
        assert_eq!(run(&[], header(operator(), AppendAction::AppendIfExistsOrAdd, true)), [""]);
    }
}
