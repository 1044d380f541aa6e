//! SPDY header blocks: name/value pairs inside one zlib stream per direction, primed with the draft's dictionary.

use bytes::{Buf, BufMut, BytesMut};
use flate2::{Decompress, FlushDecompress, Status};

use super::frame::SpdyError;

/// Largest header block after decompression; Kubernetes clients send some hundred bytes.
const MAX_BLOCK: usize = 16 * 1024;

/// Words of the dictionary (draft-mbelshe-httpbis-spdy-00, section 2.6.10.1); each follows its length as a 32-bit number.
const WORDS: &[&str] = &[
    "options",
    "head",
    "post",
    "put",
    "delete",
    "trace",
    "accept",
    "accept-charset",
    "accept-encoding",
    "accept-language",
    "accept-ranges",
    "age",
    "allow",
    "authorization",
    "cache-control",
    "connection",
    "content-base",
    "content-encoding",
    "content-language",
    "content-length",
    "content-location",
    "content-md5",
    "content-range",
    "content-type",
    "date",
    "etag",
    "expect",
    "expires",
    "from",
    "host",
    "if-match",
    "if-modified-since",
    "if-none-match",
    "if-range",
    "if-unmodified-since",
    "last-modified",
    "location",
    "max-forwards",
    "pragma",
    "proxy-authenticate",
    "proxy-authorization",
    "range",
    "referer",
    "retry-after",
    "server",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "user-agent",
    "vary",
    "via",
    "warning",
    "www-authenticate",
    "method",
    "get",
    "status",
    "200 OK",
    "version",
    "HTTP/1.1",
    "url",
    "public",
    "set-cookie",
    "keep-alive",
    "origin",
];

/// The rest of the dictionary, without lengths.
const TAIL: &str = "100101201202205206300302303304305306307402405406407408409410411412413414415416417502504505\
203 Non-Authoritative Information204 No Content301 Moved Permanently400 Bad Request401 Unauthorized403 Forbidden\
404 Not Found500 Internal Server Error501 Not Implemented503 Service Unavailable\
Jan Feb Mar Apr May Jun Jul Aug Sept Oct Nov Dec 00:00:00 Mon, Tue, Wed, Thu, Fri, Sat, Sun, GMT\
chunked,text/html,image/png,image/jpg,image/gif,application/xml,application/xhtml+xml,text/plain,text/javascript,\
publicprivatemax-age=gzip,deflate,sdchcharset=utf-8charset=iso-8859-1,utf-,*,enq=0.";

/// Adler-32 of the dictionary, by which a zlib header names it.
const DICTIONARY_ID: [u8; 4] = [0xe3, 0xc6, 0xa7, 0xc2];

fn dictionary() -> Vec<u8> {
    let mut dictionary = Vec::new();
    for word in WORDS {
        dictionary.put_u32(word.len() as u32);
        dictionary.put_slice(word.as_bytes());
    }
    dictionary.put_slice(TAIL.as_bytes());
    dictionary
}

/// A raw deflate block that holds `data` (at most 64 KiB - 1) as it is, and ends on a byte boundary.
fn stored_block(data: &[u8]) -> Vec<u8> {
    let length = data.len() as u16;
    let mut block = vec![0];
    block.put_u16_le(length);
    block.put_u16_le(!length);
    block.put_slice(data);
    block
}

/// Names and values of one block, names in lower case.
pub(crate) type Headers = Vec<(String, String)>;

/// Decompresses the peer's header blocks; must see every one, in order.
pub(crate) struct HeaderDecoder {
    /// Raw deflate: the zlib header is taken off here, because the inflater in use knows no dictionaries.
    inflate: Decompress,
    begun: bool,
}

impl HeaderDecoder {
    pub(crate) fn new() -> Self {
        Self { inflate: Decompress::new(false), begun: false }
    }

    /// The headers in a compressed block.
    ///
    /// # Errors
    /// When the block isn't what the draft describes or is larger than 16 KiB; the session can't go on then.
    pub(crate) fn decode(&mut self, mut compressed: &[u8]) -> Result<Headers, SpdyError> {
        if !self.begun {
            compressed = self.begin(compressed)?;
        }
        let block = self.inflate(compressed)?;
        parse_block(&block)
    }

    /// Checks the zlib header and primes the window with the dictionary by inflating it from a stored block: deflate
    /// knows no difference between a preset dictionary and bytes produced before.
    fn begin<'a>(&mut self, compressed: &'a [u8]) -> Result<&'a [u8], SpdyError> {
        let [method, flags, body @ ..] = compressed else {
            return Err(SpdyError::Headers("the zlib header is missing"));
        };
        if method & 0x0f != 8 || u16::from_be_bytes([*method, *flags]) % 31 != 0 {
            return Err(SpdyError::Headers("the zlib header is malformed"));
        }
        self.begun = true;
        if flags & 0x20 == 0 {
            return Ok(body);
        }
        let body = body
            .strip_prefix(&DICTIONARY_ID)
            .ok_or(SpdyError::Headers("the zlib stream uses another dictionary than the draft's"))?;
        self.inflate(&stored_block(&dictionary()))?;
        Ok(body)
    }

    fn inflate(&mut self, mut compressed: &[u8]) -> Result<Vec<u8>, SpdyError> {
        let mut block = Vec::with_capacity(4 * 1024);
        while !compressed.is_empty() {
            if block.len() == block.capacity() {
                block.reserve(4 * 1024);
            }
            let before = self.inflate.total_in();
            let length = block.len();
            let status = self
                .inflate
                .decompress_vec(compressed, &mut block, FlushDecompress::Sync)
                .map_err(|_| SpdyError::Headers("the header block is not deflate data"))?;
            let taken = (self.inflate.total_in() - before) as usize;
            compressed = &compressed[taken..];
            let stuck = taken == 0 && block.len() == length && block.len() < block.capacity();
            if block.len() > MAX_BLOCK {
                return Err(SpdyError::Headers("the header block is larger than 16 KiB"));
            }
            if status == Status::StreamEnd || stuck {
                return Err(SpdyError::Headers("the header block is cut short"));
            }
        }
        self.drain(&mut block)?;
        Ok(block)
    }

    /// Output may be left when the input was taken just as the buffer filled up.
    fn drain(&mut self, block: &mut Vec<u8>) -> Result<(), SpdyError> {
        while block.len() == block.capacity() {
            if block.len() > MAX_BLOCK {
                return Err(SpdyError::Headers("the header block is larger than 16 KiB"));
            }
            block.reserve(4 * 1024);
            // A buffer error here only says that there was nothing left.
            let _ = self.inflate.decompress_vec(&[], block, FlushDecompress::Sync);
        }
        Ok(())
    }
}

fn parse_block(mut block: &[u8]) -> Result<Headers, SpdyError> {
    let short = SpdyError::Headers("the header block is cut short");
    let Ok(count) = block.try_get_u32() else { return Err(short) };
    let mut text = || {
        let length = block.try_get_u32().ok()? as usize;
        let (text, rest) = block.split_at_checked(length)?;
        block = rest;
        Some(String::from_utf8_lossy(text).into_owned())
    };
    let mut headers = Vec::new();
    for _ in 0..count {
        let (Some(name), Some(value)) = (text(), text()) else { return Err(short) };
        headers.push((name.to_ascii_lowercase(), value));
    }
    Ok(headers)
}

/// Writes our header blocks: always empty ones, since a SYN_REPLY has nothing to say to Kubernetes clients.
pub(crate) struct HeaderEncoder {
    begun: bool,
}

impl HeaderEncoder {
    pub(crate) fn new() -> Self {
        Self { begun: false }
    }

    /// Appends a block of no headers. It is stored, not compressed; an empty stored block follows as a zlib flush would
    /// write it, because inflaters hand out what they have on it.
    pub(crate) fn encode_empty(&mut self, frame: &mut BytesMut) {
        if !self.begun {
            self.begun = true;
            // Deflate with a 32 KiB window and a preset dictionary.
            frame.put_slice(&[0x78, 0x20]);
            frame.put_slice(&DICTIONARY_ID);
        }
        frame.put_slice(&stored_block(&0u32.to_be_bytes()));
        frame.put_slice(&stored_block(b""));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn adler32(data: &[u8]) -> u32 {
        let (a, b) = data.iter().fold((1u32, 0u32), |(a, b), byte| {
            let a = (a + u32::from(*byte)) % 65521;
            (a, (b + a) % 65521)
        });
        b << 16 | a
    }

    #[test]
    fn the_dictionary_is_the_drafts() {
        assert_eq!(dictionary().len(), 1423);
        assert_eq!(adler32(&dictionary()).to_be_bytes(), DICTIONARY_ID);
    }

    #[test]
    fn what_we_write_can_be_read() {
        let mut encoder = HeaderEncoder::new();
        let mut decoder = HeaderDecoder::new();
        for _ in 0..3 {
            let mut block = BytesMut::new();
            encoder.encode_empty(&mut block);
            assert_eq!(decoder.decode(&block).unwrap(), []);
        }
    }

    /// Two header blocks as zlib writes them with the dictionary at its best level (made by CPython's zlib module).
    #[test]
    fn blocks_of_a_real_zlib_share_a_window() {
        let first = hex(
            "78f9e3c6a7c202253a703a2b294a4dcc851625aca9a0808614cb45e01c6061606100a4398b20d198094ade8c0600000000ffff",
        );
        let second = hex("02c960680695438944e9452d4d911237000000ffff");
        let mut decoder = HeaderDecoder::new();
        let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        assert_eq!(
            decoder.decode(&first).unwrap(),
            [pair("streamtype", "error"), pair("port", "8080"), pair("requestid", "0")]
        );
        assert_eq!(
            decoder.decode(&second).unwrap(),
            [
                pair("streamtype", "data"),
                pair("port", "8080"),
                pair("requestid", "0"),
                pair("connection", "keep-alive")
            ]
        );
    }

    #[test]
    fn broken_blocks_are_errors() {
        for block in ["", "78", "ffff", "78bb00000000", "7820e3c6a7c2ff", "7820e3c6a7c2000400fbff00000001"] {
            assert!(HeaderDecoder::new().decode(&hex(block)).is_err(), "{block}");
        }
    }

    #[test]
    fn blocks_are_bounded() {
        let mut bomb = vec![0x78, 0x20];
        bomb.extend(DICTIONARY_ID);
        for _ in 0..3 {
            bomb.extend(stored_block(&[0; 16 * 1024]));
        }
        let error = HeaderDecoder::new().decode(&bomb).unwrap_err().to_string();
        assert!(error.contains("16 KiB"), "{error}");
    }

    fn hex(text: &str) -> Vec<u8> {
        text.as_bytes()
            .chunks(2)
            .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap())
            .collect()
    }
}
