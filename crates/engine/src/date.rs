//! The time as `date` has it (RFC 9110, section 6.6.1), formatted once a second.

use std::cell::RefCell;
use std::time::{SystemTime, UNIX_EPOCH};

use http::HeaderValue;
use jiff::Timestamp;
use jiff::fmt::rfc2822::DateTimePrinter;

/// See the module.
#[derive(Debug)]
pub(crate) struct Date(RefCell<(u64, HeaderValue)>);

impl Default for Date {
    fn default() -> Self {
        Self(RefCell::new((0, text(0))))
    }
}

impl Date {
    /// Now.
    pub(crate) fn now(&self) -> HeaderValue {
        // A clock before 1970 is wrong, and what it says is of no use to anybody.
        let seconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        let mut known = self.0.borrow_mut();
        if known.0 != seconds {
            *known = (seconds, text(seconds));
        }
        known.1.clone()
    }
}

fn text(seconds: u64) -> HeaderValue {
    let time = Timestamp::from_second(seconds.cast_signed()).unwrap_or(Timestamp::UNIX_EPOCH);
    let text = DateTimePrinter::new().timestamp_to_rfc9110_string(&time).unwrap_or_default();
    HeaderValue::try_from(text).unwrap_or(HeaderValue::from_static(""))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_is_written_as_http_writes_it() {
        assert_eq!(text(784_111_777), "Sun, 06 Nov 1994 08:49:37 GMT");
        let date = Date::default();
        assert_eq!(date.now().as_bytes().len(), 29);
    }
}
