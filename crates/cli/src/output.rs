//! Structured output: JSON indented as istioctl's, or YAML.

use std::io::Write;

use anyhow::{Context, Result};
use serde::Serialize;

use crate::args::Output;

/// Prints `value` as JSON, or as YAML when that was asked for.
///
/// # Errors
/// When it can't be written in that form.
pub fn print(value: &impl Serialize, output: Output) -> Result<()> {
    match output {
        Output::Yaml => text(&serde_saphyr::to_string(value)?),
        Output::Json | Output::Short => text(&format!("{}\n", json(value)?)),
    }
}

/// Prints text as it is. A reader that has seen enough (`head`, a pager) is no error.
///
/// # Errors
/// When standard output can't be written.
pub fn text(text: &str) -> Result<()> {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        other => other.context("cannot write to standard output"),
    }
}

/// JSON with istioctl's four blanks.
///
/// # Errors
/// When it can't be written as JSON.
pub fn json(value: &impl Serialize) -> Result<String> {
    let mut out = Vec::new();
    let formatter = serde_json::ser::PrettyFormatter::with_indent(b"    ");
    value.serialize(&mut serde_json::Serializer::with_formatter(&mut out, formatter))?;
    Ok(String::from_utf8(out)?)
}

#[cfg(test)]
mod tests {
    #[test]
    fn json_is_indented_by_four() {
        assert_eq!(super::json(&serde_json::json!({ "a": 1 })).unwrap(), "{\n    \"a\": 1\n}");
    }
}
