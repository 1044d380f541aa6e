//! SHA-256 hashes of certificates and of their keys, as texts.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

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

/// Characters of a hash in hexadecimal digits with colons between its bytes.
const WITH_COLONS: usize = 95;

/// Hexadecimal digits. As with Envoy colons may be among them only where they make up the length of the usual spelling.
pub(super) fn hex(text: &str) -> Option<[u8; 32]> {
    let colons = text.len() == WITH_COLONS;
    let digits: Vec<u8> = text.bytes().filter(|byte| !colons || *byte != b':').collect();
    if digits.len() != 64 {
        return None;
    }
    let value = |digit: u8| char::from(digit).to_digit(16).map(|value| value as u8);
    let mut hash = [0; 32];
    for (byte, pair) in hash.iter_mut().zip(digits.chunks(2)) {
        *byte = value(pair[0])? << 4 | value(pair[1])?;
    }
    Some(hash)
}

/// Standard base64 with padding (RFC 4648, section 4). Bits that no byte takes must be 0.
pub(super) fn base64(text: &str) -> Option<[u8; 32]> {
    STANDARD.decode(text).ok()?.try_into().ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn hashes_are_read_in_both_spellings() {
        let zeros = "00".repeat(32);
        assert_eq!(hex(&zeros), Some([0; 32]));
        assert_eq!(hex(&["fF"; 32].join(":")), Some([255; 32]));
        // The colons' places do not matter, their number does.
        assert_eq!(hex(&(":".repeat(31) + &zeros)), Some([0; 32]));
        for wrong in [
            "00",
            &("+0".repeat(32)),
            &(zeros.clone() + ":"),
            &(zeros[1..].to_owned() + "g"),
            &["00"; 31].join(":"),
        ] {
            assert_eq!(hex(wrong), None, "{wrong}");
        }
        assert_eq!(base64("//////////////////////////////////////////8="), Some([255; 32]));
        for wrong in [
            "AAAA",
            "//////////////////////////////////////////9=",
            "//////////////////////////////////////////8",
            "__________________________________________8=",
            "/////////////////////////////////////////8==",
        ] {
            assert_eq!(base64(wrong), None, "{wrong}");
        }
    }

    proptest! {
        #[test]
        fn what_is_printed_is_read(hash in any::<[u8; 32]>(), upper in any::<bool>(), colons in any::<bool>()) {
            let byte = |byte: &u8| if upper { format!("{byte:02X}") } else { format!("{byte:02x}") };
            let text = hash.iter().map(byte).collect::<Vec<_>>().join(if colons { ":" } else { "" });
            prop_assert_eq!(hex(&text), Some(hash));
            prop_assert_eq!(base64(&STANDARD.encode(hash)), Some(hash));
        }

        /// A hash has one spelling in base64, and in hexadecimal only case and colons differ.
        #[test]
        fn nothing_else_is(text in "[0-9a-fA-F:+g ]{60,97}|[A-Za-z0-9+/=_-]{42,46}|\\PC{0,50}") {
            if let Some(hash) = hex(&text) {
                let digits: String = text.chars().filter(|c| *c != ':').collect();
                prop_assert!(text.len() == 64 || text.len() == 95);
                prop_assert_eq!(hash.iter().map(|byte| format!("{byte:02x}")).collect::<String>(), digits.to_lowercase());
            }
            if let Some(hash) = base64(&text) {
                prop_assert_eq!(STANDARD.encode(hash), text);
            }
        }
    }
}
