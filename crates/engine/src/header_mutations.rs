//! Applies a route's header mutations.

use http::{HeaderMap, HeaderValue};
use lateen_ir::{AppendAction, FormatValues, HeaderMutations, HeaderToAdd, Part};

use crate::render;

/// Applies the levels in order. `values` is asked only for operators; constant values are not copied by character.
pub(crate) fn apply<'a>(
    levels: impl Iterator<Item = &'a HeaderMutations>,
    headers: &mut HeaderMap,
    values: &dyn FormatValues,
) {
    for mutations in levels {
        for name in &mutations.remove {
            headers.remove(name);
        }
        add_all(&mutations.add, headers, values);
    }
}

/// Adds headers in order.
pub(crate) fn add_all(additions: &[HeaderToAdd], headers: &mut HeaderMap, values: &dyn FormatValues) {
    for addition in additions {
        add(addition, headers, values);
    }
}

fn add(addition: &HeaderToAdd, headers: &mut HeaderMap, values: &dyn FormatValues) {
    let mut text = String::new();
    match &*addition.value.parts {
        [Part::Literal(literal)] => text.push_str(literal),
        _ => render::text(&addition.value, values, &mut text),
    }
    if text.is_empty() && !addition.keep_empty_value {
        return;
    }
    // A rendered value may hold bytes a header can't; then there is no header rather than a broken message.
    let Ok(value) = HeaderValue::try_from(text) else { return };
    let name = &addition.name;
    match addition.action {
        AppendAction::AppendIfExistsOrAdd => {
            headers.append(name, value);
        }
        AppendAction::AddIfAbsent => {
            if !headers.contains_key(name) {
                headers.insert(name, value);
            }
        }
        AppendAction::OverwriteIfExistsOrAdd => {
            headers.insert(name, value);
        }
        AppendAction::OverwriteIfExists => {
            if headers.contains_key(name) {
                headers.insert(name, value);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderName;
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
        let mutations = HeaderMutations { remove: vec![], add: vec![addition] };
        apply([&mutations].into_iter(), &mut headers, &Nothing);
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
