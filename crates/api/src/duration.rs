//! Durations as the proto JSON mapping and Istio's YAML write them: `1.5s`, `250ms`, `1h2m`.
use std::time::Duration;

/// Why a duration did not parse.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DurationError {
    /// Not a sequence of number and unit.
    #[error("invalid duration {0:?}: write a number and a unit, such as 5s or 250ms")]
    Malformed(String),
    /// Below zero.
    #[error("invalid duration {0:?}: must not be negative")]
    Negative(String),
    /// Beyond what Go and Envoy hold: 64 bits of nanoseconds.
    #[error("invalid duration {0:?}: longer than 9223372036s")]
    TooLong(String),
}

/// Parses a duration in Go's notation (`ns us ms s m h`, may be combined), of which the proto JSON form is a subset.
///
/// # Errors
/// When the text is no duration, is negative, or is longer than 9223372036s: proxies refuse that.
pub fn parse(text: &str) -> Result<Duration, DurationError> {
    let malformed = || DurationError::Malformed(text.to_owned());
    if text.starts_with('-') {
        return Err(DurationError::Negative(text.to_owned()));
    }
    let mut rest = text.strip_prefix('+').unwrap_or(text);
    if rest == "0" {
        return Ok(Duration::ZERO);
    }
    if rest.is_empty() {
        return Err(malformed());
    }
    let mut nanos: f64 = 0.0;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.').ok_or_else(malformed)?;
        let number: f64 = rest[..digits].parse().map_err(|_| malformed())?;
        rest = &rest[digits..];
        let letters = rest.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(rest.len());
        let unit = match &rest[..letters] {
            "ns" => 1.0,
            "us" | "µs" => 1e3,
            "ms" => 1e6,
            "s" => 1e9,
            "m" => 60e9,
            "h" => 3600e9,
            _ => return Err(malformed()),
        };
        nanos += number * unit;
        rest = &rest[letters..];
    }
    if nanos > 9_223_372_036e9 {
        return Err(DurationError::TooLong(text.to_owned()));
    }
    let seconds = (nanos / 1e9).floor();
    // Both are within range: checked above, and the remainder is below 1e9.
    Ok(Duration::new(seconds as u64, ((nanos - seconds * 1e9).round() as u32).min(999_999_999)))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn what_is_printed_is_read(hours in 0..1000_u64, seconds in 0..100_000_u64, millis in 0..1000_u64, text in "\\PC{0,30}") {
            drop(parse(&text));
            let whole = Duration::from_secs(hours * 3600 + seconds) + Duration::from_millis(millis);
            prop_assert_eq!(parse(&format!("{hours}h{seconds}s{millis}ms")), Ok(whole));
            prop_assert_eq!(parse(&format!("{}.{millis:03}s", hours * 3600 + seconds)), Ok(whole));
        }
    }

    #[test]
    fn go_and_proto_notations_parse() {
        for (text, millis) in [
            ("0s", 0),
            ("0", 0),
            ("5s", 5000),
            ("1.5s", 1500),
            ("250ms", 250),
            ("1m30s", 90_000),
            ("2h", 7_200_000),
        ] {
            assert_eq!(parse(text), Ok(Duration::from_millis(millis)), "{text}");
        }
        assert_eq!(parse("15ns"), Ok(Duration::from_nanos(15)));
    }

    #[test]
    fn anything_else_is_refused() {
        for text in ["", "5", "s", "five", "5 s", "1.2.3s", "5d", "5s5", "."] {
            assert!(matches!(parse(text), Err(DurationError::Malformed(_))), "{text:?}");
        }
        assert!(matches!(parse("-1s"), Err(DurationError::Negative(_))));
        assert!(parse("9223372036s").is_ok());
        for text in ["9223372037s", "999999999999999s"] {
            assert!(matches!(parse(text), Err(DurationError::TooLong(_))), "{text}");
        }
    }
}
