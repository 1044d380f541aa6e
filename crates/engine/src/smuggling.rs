//! Finds HTTP/1 requests that two hops could read differently and that hyper reads one way without a word: with a length and a
//! coding (RFC 9112, section 6.1), with several lengths, with a fragment in the target (CVE-2021-32779). Envoy answers them with
//! 400. The end of such a line is made unreadable, so that hyper does, too; a fragment, which hyper drops, is refused with the path.

use memchr::memchr;

use crate::guard::{Offence, Verdict};
use crate::interim::HIDDEN;

/// How much of a line is looked at: the longest name of interest with a length of 20 digits and some spaces.
const KEPT: usize = 48;

/// What the next byte belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    RequestLine,
    Header,
    /// So many bytes of a body, or of a chunk with its line end.
    Body(u64),
    Chunk(u64),
    ChunkSize,
    Trailer,
    /// Another protocol, or what hyper will refuse: nothing is looked at any more.
    Beyond,
}

/// Follows the requests of one connection.
#[derive(Debug)]
pub(crate) struct Smuggling {
    place: Place,
    /// The beginning of the line so far.
    line: [u8; KEPT],
    kept: usize,
    /// The line's length so far.
    length: usize,
    fragment: bool,
    /// Of the head so far.
    content_length: Option<u64>,
    coded: bool,
    tunnel: bool,
    verdict: Verdict,
}

impl Smuggling {
    pub(crate) fn new(verdict: Verdict) -> Self {
        Self {
            place: Place::RequestLine,
            line: [0; KEPT],
            kept: 0,
            length: 0,
            fragment: false,
            content_length: None,
            coded: false,
            tunnel: false,
            verdict,
        }
    }

    /// Follows the bytes; what must not be read is changed.
    pub(crate) fn received(&mut self, bytes: &mut [u8]) {
        let mut at = 0;
        while at < bytes.len() {
            match self.place {
                Place::Beyond => return,
                Place::Body(left) | Place::Chunk(left) => {
                    let here = left.min((bytes.len() - at) as u64);
                    at += here as usize;
                    self.place = match (self.place, left - here) {
                        (Place::Body(_), 0) => Place::RequestLine,
                        (Place::Body(_), left) => Place::Body(left),
                        (_, 0) => Place::ChunkSize,
                        (_, left) => Place::Chunk(left),
                    };
                }
                Place::RequestLine | Place::Header | Place::ChunkSize | Place::Trailer => {
                    let Some(end) = memchr(b'\n', &bytes[at..]) else {
                        self.part(&bytes[at..]);
                        self.hide_expectation(&mut bytes[at..]);
                        return;
                    };
                    self.part(&bytes[at..at + end]);
                    self.hide_expectation(&mut bytes[at..at + end]);
                    if let Some(offence) = self.line() {
                        self.verdict.set(offence);
                        self.place = Place::Beyond;
                        if offence != Offence::Fragment {
                            bytes[at + end] = 0;
                        }
                        return;
                    }
                    at += end + 1;
                }
            }
        }
    }

    /// Takes a part of a line.
    fn part(&mut self, bytes: &[u8]) {
        let room = KEPT - self.kept;
        let n = bytes.len().min(room);
        self.line[self.kept..self.kept + n].copy_from_slice(&bytes[..n]);
        self.kept += n;
        self.length += bytes.len();
        if self.place == Place::RequestLine {
            self.fragment |= memchr(b'#', bytes).is_some();
        }
    }

    /// Keeps hyper from seeing `expect: 100-continue`, which it would answer by itself (see [`interim`](crate::interim)): the first
    /// byte of the value, when it comes, is changed. `part`: the line's last part, taken already.
    fn hide_expectation(&mut self, part: &mut [u8]) {
        let line = &self.line[..self.kept];
        // Few lines begin with this letter.
        if !line.first().is_some_and(|byte| byte.eq_ignore_ascii_case(&b'e')) || self.place != Place::Header {
            return;
        }
        const NAME: &[u8] = b"expect:";
        let Some((name, value)) = line.split_at_checked(NAME.len()) else { return };
        let Some(blanks) = value.iter().position(|byte| !matches!(byte, b' ' | b'\t')) else { return };
        if name.eq_ignore_ascii_case(NAME)
            // In an earlier part it has been changed already.
            && let Some(at) = (NAME.len() + blanks).checked_sub(self.length - part.len())
            && part.get(at) == Some(&b'1')
        {
            part[at] = HIDDEN;
        }
    }

    /// Judges the line that has ended.
    fn line(&mut self) -> Option<Offence> {
        let line = std::mem::take(&mut self.kept);
        let length = std::mem::take(&mut self.length);
        let text = &self.line[..line];
        let blank = length == 0 || (length == 1 && text == b"\r");
        match self.place {
            Place::RequestLine if blank => None,
            Place::RequestLine => {
                self.tunnel = text.starts_with(b"CONNECT ");
                self.content_length = None;
                self.coded = false;
                self.place = Place::Header;
                std::mem::take(&mut self.fragment).then_some(Offence::Fragment)
            }
            Place::Header if blank => {
                self.place = match (self.tunnel, self.coded, self.content_length) {
                    (true, ..) => Place::Beyond,
                    (_, true, _) => Place::ChunkSize,
                    (.., None | Some(0)) => Place::RequestLine,
                    (.., Some(length)) => Place::Body(length),
                };
                None
            }
            Place::Header => header(text).and_then(|header| self.header(header)),
            Place::ChunkSize => {
                self.place = match chunk_size(text) {
                    None => Place::Beyond,
                    Some(0) => Place::Trailer,
                    // With the line end behind it.
                    Some(size) => Place::Chunk(size.saturating_add(2)),
                };
                None
            }
            Place::Trailer => {
                if blank {
                    self.place = Place::RequestLine;
                }
                None
            }
            Place::Body(_) | Place::Chunk(_) | Place::Beyond => None,
        }
    }

    fn header(&mut self, header: Header) -> Option<Offence> {
        match header {
            Header::Upgrade => self.tunnel = true,
            Header::Coding if self.content_length.is_some() => return Some(Offence::LengthAndCoding),
            Header::Coding => self.coded = true,
            Header::Length(_) if self.coded => return Some(Offence::LengthAndCoding),
            Header::Length(_) if self.content_length.is_some() => return Some(Offence::Lengths),
            // hyper refuses what is no number.
            Header::Length(length) => self.content_length = Some(length.unwrap_or(0)),
        }
        None
    }
}

enum Header {
    Upgrade,
    Coding,
    Length(Option<u64>),
}

fn header(line: &[u8]) -> Option<Header> {
    // Most lines begin with another letter.
    if !matches!(line.first()?.to_ascii_lowercase(), b'c' | b't' | b'u') {
        return None;
    }
    let (name, value) = line.split_at_checked(memchr(b':', line)?)?;
    if name.eq_ignore_ascii_case(b"content-length") {
        let text = std::str::from_utf8(&value[1..]).ok().map(str::trim);
        return Some(Header::Length(text.and_then(|text| text.parse().ok())));
    }
    if name.eq_ignore_ascii_case(b"transfer-encoding") {
        return Some(Header::Coding);
    }
    name.eq_ignore_ascii_case(b"upgrade").then_some(Header::Upgrade)
}

/// The hexadecimal number a chunk's line begins with.
fn chunk_size(line: &[u8]) -> Option<u64> {
    let digits = line.iter().take_while(|byte| byte.is_ascii_hexdigit()).count();
    u64::from_str_radix(std::str::from_utf8(&line[..digits]).ok()?, 16).ok()
}

/// Whether a head, whole and by itself, has what is refused. For tests of the incremental reader.
#[cfg(test)]
fn offends(head: &[u8]) -> bool {
    let lines: Vec<&[u8]> = head.split(|byte| *byte == b'\n').collect();
    let names = |name: &[u8]| {
        let starts = |line: &&&[u8]| {
            line.len() > name.len()
                && line[..name.len()].eq_ignore_ascii_case(name)
                && line[name.len()] == b':'
        };
        lines[1..].iter().filter(starts).count()
    };
    let (lengths, codings) = (names(b"content-length"), names(b"transfer-encoding"));
    lengths > 1 || (lengths > 0 && codings > 0) || lines[0].contains(&b'#')
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Feeds in pieces of a size; gives the offence and what the parser gets to see.
    fn feed(bytes: &[u8], size: usize) -> (Option<Offence>, Vec<u8>) {
        let verdict = Verdict::default();
        let mut smuggling = Smuggling::new(verdict.clone());
        let mut seen = bytes.to_vec();
        for piece in seen.chunks_mut(size) {
            smuggling.received(piece);
        }
        (verdict.get(), seen)
    }

    #[test]
    fn what_has_two_ends_or_two_targets_is_found() {
        let post = |headers: &str| format!("POST / HTTP/1.1\r\nhost: a\r\n{headers}\r\n");
        for (bytes, expected) in [
            (post("content-length: 3\r\ntransfer-encoding: chunked\r\n"), Some(Offence::LengthAndCoding)),
            (post("Transfer-Encoding: chunked\r\nContent-Length: 3\r\n"), Some(Offence::LengthAndCoding)),
            (post("content-length: 3\r\nContent-Length: 3\r\n"), Some(Offence::Lengths)),
            (post("content-length: 3\r\n") + "abc", None),
            (post("x-content-length: 3\r\ntransfer-encoding: chunked\r\n") + "0\r\n\r\n", None),
            ("GET /a#b HTTP/1.1\r\nhost: a\r\n\r\n".to_owned(), Some(Offence::Fragment)),
            ("GET /a HTTP/1.1\r\nreferer: http://a/#b\r\n\r\n".to_owned(), None),
        ] {
            for size in [1, 2, 7, 1000] {
                let (found, seen) = feed(bytes.as_bytes(), size);
                assert_eq!(found, expected, "{bytes:?} by {size}");
                let unreadable = expected.is_some_and(|offence| offence != Offence::Fragment);
                assert_eq!(seen.contains(&0), unreadable, "{bytes:?} by {size}");
            }
        }
    }

    #[test]
    fn bodies_are_not_taken_for_heads() {
        let evil = "GET /x#y HTTP/1.1\r\ncontent-length: 1\r\ntransfer-encoding: chunked\r\n\r\n";
        let n = evil.len();
        for bytes in [
            format!("POST / HTTP/1.1\r\ncontent-length: {n}\r\n\r\n{evil}GET / HTTP/1.1\r\n\r\n"),
            format!(
                "POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n{n:x};a=b\r\n{evil}\r\n0\r\nx-t: 1\r\n\r\n\r\nGET / HTTP/1.1\r\n\r\n"
            ),
            format!("GET / HTTP/1.1\r\nupgrade: x\r\n\r\n{evil}"),
            format!("CONNECT a:1 HTTP/1.1\r\n\r\n{evil}"),
        ] {
            for size in [1, 3, 1000] {
                let (found, seen) = feed(bytes.as_bytes(), size);
                assert_eq!((found, &seen[..]), (None, bytes.as_bytes()), "{bytes:?} by {size}");
            }
            // And the next request is looked at again.
            if bytes.ends_with("GET / HTTP/1.1\r\n\r\n") {
                let (found, _) = feed((bytes + evil).as_bytes(), 5);
                assert_eq!(found, Some(Offence::Fragment));
            }
        }
    }

    #[test]
    fn an_expectation_is_hidden_in_heads_alone() {
        let (head, body) = (
            "POST / HTTP/1.1\r\nEXPECT: \t100-continue\r\ncontent-length: 22\r\n\r\n",
            "expect: 100-continue\r\n",
        );
        let other = "POST / HTTP/1.1\r\nexpect: x\r\nexpected: 100-continue\r\nx: expect: 1\r\n\r\n";
        let bytes = [head, body, other].concat();
        for size in [1, 2, 7, 30, 1000] {
            let (found, seen) = feed(bytes.as_bytes(), size);
            let mut expected = bytes.clone().into_bytes();
            expected[bytes.find("100").unwrap()] = HIDDEN;
            assert_eq!((found, seen), (None, expected), "by {size}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_in_any_pieces_are_survived(bytes in proptest::collection::vec(any::<u8>(), 0..400), size in 1usize..50) {
            let whole = feed(&bytes, bytes.len().max(1));
            prop_assert_eq!(feed(&bytes, size), whole);
        }

        #[test]
        fn heads_are_judged_as_a_whole_head_is(
            target in "[ -~]{0,12}",
            lines in proptest::collection::vec("(content-length|transfer-encoding|Content-Length|x|te|upgrade): ?[0-9a-z]{0,4}", 0..5),
            size in 1usize..30,
        ) {
            let head = format!("GET /{target} HTTP/1.1\r\n{}\r\n\r\n", lines.join("\r\n"));
            prop_assert_eq!(feed(head.as_bytes(), size).0.is_some(), offends(head.as_bytes()), "{}", head);
        }
    }
}
