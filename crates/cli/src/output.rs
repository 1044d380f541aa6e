//! Structured output: JSON indented as istioctl's, or YAML.

use anyhow::Result;
use serde::Serialize;

use crate::args::Output;

/// Prints `value` as JSON, or as YAML when that was asked for.
///
/// # Errors
/// When it can't be written in that form.
pub fn print(value: &impl Serialize, output: Output) -> Result<()> {
    match output {
        Output::Yaml => print!("{}", serde_saphyr::to_string(value)?),
        Output::Json | Output::Short => println!("{}", json(value)?),
    }
    Ok(())
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
