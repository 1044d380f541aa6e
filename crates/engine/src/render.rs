//! Renders formats (`ir`'s precompiled operators) with the values of a request or connection.

use lateen_ir::{FormatValues, JsonFormat, LogFormat, Operator, Part, Substitution, TextFormat};
use serde_json::{Map, Value as Json};

/// Appends a text format.
pub(crate) fn text(format: &TextFormat, values: &dyn FormatValues, out: &mut String) {
    for part in &format.parts {
        match part {
            Part::Literal(literal) => out.push_str(literal),
            Part::Operator(substitution) => {
                let absent = if format.omit_empty_values { "" } else { "-" };
                if !substitute(substitution, values, out) {
                    out.push_str(absent);
                }
            }
        }
    }
}

/// Appends a log line.
pub(crate) fn line(format: &LogFormat, values: &dyn FormatValues, out: &mut String) {
    match format {
        LogFormat::Text(format) => text(format, values, out),
        LogFormat::Json { format, omit_empty_values } => {
            if let Some(value) = json(format, *omit_empty_values, values) {
                out.push_str(&value.to_string());
            }
            out.push('\n');
        }
    }
}

/// A JSON format's value; `None` when it is absent and absent values are left out.
pub(crate) fn json(format: &JsonFormat, omit: bool, values: &dyn FormatValues) -> Option<Json> {
    match format {
        JsonFormat::Object(members) => {
            let object: Map<String, Json> = members
                .iter()
                .filter_map(|(key, member)| Some((key.to_string(), json(member, omit, values)?)))
                .collect();
            Some(Json::Object(object))
        }
        JsonFormat::Array(members) => {
            Some(Json::Array(members.iter().filter_map(|m| json(m, omit, values)).collect()))
        }
        JsonFormat::Value(substitution) => {
            let mut out = String::new();
            if !substitute(substitution, values, &mut out) {
                return (!omit).then_some(Json::Null);
            }
            if is_number(&substitution.operator)
                && let Ok(number) = out.parse::<u64>()
            {
                return Some(Json::from(number));
            }
            Some(Json::String(out))
        }
        JsonFormat::Text(format) => {
            let mut out = String::new();
            text(format, values, &mut out);
            Some(Json::String(out))
        }
        JsonFormat::Constant(value) => Some(value.clone()),
    }
}

fn substitute(substitution: &Substitution, values: &dyn FormatValues, out: &mut String) -> bool {
    let start = out.len();
    if !values.value(&substitution.operator, out) {
        out.truncate(start);
        return false;
    }
    if let Some(longest) = substitution.max_length
        && out.len() - start > longest
    {
        let mut end = start + longest;
        while !out.is_char_boundary(end) {
            end -= 1;
        }
        out.truncate(end);
    }
    true
}

/// Operators that stay numbers in JSON.
fn is_number(operator: &Operator) -> bool {
    matches!(
        operator,
        Operator::ResponseCode
            | Operator::Bytes(_)
            | Operator::Duration
            | Operator::RequestDuration
            | Operator::RequestTxDuration
            | Operator::ResponseDuration
            | Operator::ResponseTxDuration
            | Operator::UpstreamRequestAttemptCount
            | Operator::UpstreamConnectionId
            | Operator::ConnectionId
            | Operator::GrpcStatusNumber
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Fixed;

    impl FormatValues for Fixed {
        fn value(&self, operator: &Operator, out: &mut String) -> bool {
            match operator {
                Operator::ResponseCode => out.push_str("200"),
                Operator::Protocol => out.push_str("HTTP/1.1é"),
                _ => return false,
            }
            true
        }
    }

    fn operator(operator: Operator, max_length: Option<usize>) -> Substitution {
        Substitution { operator, max_length }
    }

    #[test]
    fn absent_values_print_as_a_dash_and_long_ones_are_cut_between_characters() {
        let format = TextFormat {
            parts: vec![
                Part::Operator(operator(Operator::ResponseCode, None)),
                Part::Literal(" ".into()),
                Part::Operator(operator(Operator::RouteName, None)),
                Part::Literal(" ".into()),
                Part::Operator(operator(Operator::Protocol, Some(9))),
            ],
            omit_empty_values: false,
        };
        let mut out = String::new();
        text(&format, &Fixed, &mut out);
        assert_eq!(out, "200 - HTTP/1.1");
    }

    #[test]
    fn json_keeps_numbers_and_nulls() {
        let format = JsonFormat::Object(vec![
            ("code".into(), JsonFormat::Value(operator(Operator::ResponseCode, None))),
            ("route".into(), JsonFormat::Value(operator(Operator::RouteName, None))),
        ]);
        assert_eq!(json(&format, false, &Fixed).unwrap().to_string(), r#"{"code":200,"route":null}"#);
        assert_eq!(json(&format, true, &Fixed).unwrap().to_string(), r#"{"code":200}"#);
    }
}
