//! SHA-256 hashes of certificates and of their keys, as texts.

use super::values::Converted;
use crate::error::At;

pub(super) fn hashes(
    at: &At<'_>,
    field: &str,
    texts: &[String],
    decode: fn(&str) -> Option<[u8; 32]>,
) -> Converted<Vec<[u8; 32]>> {
    let convert = |(index, text): (usize, &String)| {
        decode(text).ok_or_else(|| at.index(field, index).error(format!("{text:?} is not a SHA-256 hash")))
    };
    texts.iter().enumerate().map(convert).collect()
}

/// Hexadecimal digits, with or without colons.
pub(super) fn hex(text: &str) -> Option<[u8; 32]> {
    let digits: Vec<u8> = text.bytes().filter(|byte| *byte != b':').collect();
    if digits.len() != 64 {
        return None;
    }
    let mut hash = [0; 32];
    for (byte, pair) in hash.iter_mut().zip(digits.chunks(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?;
    }
    Some(hash)
}

/// Standard base64 with padding (RFC 4648, section 4).
pub(super) fn base64(text: &str) -> Option<[u8; 32]> {
    let digits = text.strip_suffix('=')?;
    if digits.len() != 43 {
        return None;
    }
    let value = |digit: u8| match digit {
        b'A'..=b'Z' => Some(digit - b'A'),
        b'a'..=b'z' => Some(digit - b'a' + 26),
        b'0'..=b'9' => Some(digit - b'0' + 52),
        b'+' => Some(62),
        b'/' => Some(63),
        _ => None,
    };
    let mut bytes = Vec::with_capacity(33);
    let (mut bits, mut have) = (0u32, 0);
    for digit in digits.bytes() {
        bits = (bits << 6) | u32::from(value(digit)?);
        have += 6;
        if have >= 8 {
            have -= 8;
            bytes.push((bits >> have) as u8);
            bits &= (1 << have) - 1;
        }
    }
    bytes.try_into().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hashes_are_read_in_both_spellings() {
        let zeros = "00".repeat(32);
        assert_eq!(hex(&zeros), Some([0; 32]));
        assert_eq!(hex(&["ff"; 32].join(":")), Some([255; 32]));
        assert_eq!(hex("00"), None);
        assert_eq!(base64("//////////////////////////////////////////8="), Some([255; 32]));
        assert_eq!(
            base64("AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAE="),
            Some({
                let mut one = [0; 32];
                one[31] = 1;
                one
            })
        );
        assert_eq!(base64("AAAA"), None);
    }
}
