//! Kubernetes quantities (`100m`, `1.5`, `128Mi`, `1e3`), as far as resource fields need them.

/// A quantity in units of 10⁻⁹; `None` when the text isn't one or is too large.
pub(crate) fn parse(text: &str) -> Option<i128> {
    let end =
        text.find(|c: char| !(c.is_ascii_digit() || matches!(c, '.' | '+' | '-'))).unwrap_or(text.len());
    let (number, suffix) = text.split_at(end);
    let nano = 1_000_000_000_i128;
    let scale = match suffix {
        "" => nano,
        "n" => 1,
        "u" => 1_000,
        "m" => 1_000_000,
        "k" => nano * 1_000,
        "M" => nano * 1_000_000,
        "G" => nano * 1_000_000_000,
        "T" => nano * 1_000_000_000_000,
        "P" => nano * 1_000_000_000_000_000,
        "Ki" => nano << 10,
        "Mi" => nano << 20,
        "Gi" => nano << 30,
        "Ti" => nano << 40,
        "Pi" => nano << 50,
        exponent => {
            let power: u32 = exponent.strip_prefix(['e', 'E'])?.parse().ok().filter(|power| *power <= 18)?;
            nano * 10_i128.pow(power)
        }
    };
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let negative = whole.starts_with('-');
    let digits = |text: &str| if text.is_empty() { Some(0) } else { text.parse::<i128>().ok() };
    let whole = digits(whole.trim_start_matches(['+', '-']))?.checked_mul(scale)?;
    let fraction = match fraction.len() {
        0 => 0,
        length @ 1..=9 => digits(fraction)?.checked_mul(scale)? / 10_i128.pow(u32::try_from(length).ok()?),
        _ => return None,
    };
    let value = whole.checked_add(fraction)?;
    (!number.is_empty()).then_some(if negative { -value } else { value })
}

/// `value / divisor` rounded up, as resource fields are shown; a missing or zero divisor is 1.
pub(crate) fn divide(value: &str, divisor: Option<&str>) -> Option<i128> {
    let value = parse(value)?;
    let divisor = divisor.and_then(parse).filter(|divisor| *divisor > 0).unwrap_or(1_000_000_000);
    Some((value + divisor - 1).div_euclid(divisor))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities() {
        let cases = [
            ("2", None, Some(2)),
            ("100m", None, Some(1)),
            ("2000m", Some("1"), Some(2)),
            ("1.5", Some("1m"), Some(1500)),
            ("128Mi", Some("1Mi"), Some(128)),
            ("1Gi", None, Some(1_073_741_824)),
            ("1e3", Some("0"), Some(1000)),
            ("abc", None, None),
            ("", None, None),
            ("1e99", None, None),
        ];
        for (value, divisor, expected) in cases {
            assert_eq!(divide(value, divisor), expected, "{value}");
        }
    }
}
