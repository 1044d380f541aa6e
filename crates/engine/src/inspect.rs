//! Step 2b: what the first bytes of a connection say about its protocol (Envoy's `tls_inspector` and `http_inspector`).

use std::io;

use crate::stream::Stream;

/// HTTP/2's connection preface (RFC 9113, section 3.4).
const HTTP2_PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Bytes looked at before giving up: Envoy's `max_client_hello_size` limit, which also bounds a request line.
const MOST_BYTES: usize = 16 * 1024;

/// What a client's first bytes are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Inspected {
    /// A TLS ClientHello came.
    pub(crate) tls: bool,
    /// Server name in the ClientHello, in lower case.
    pub(crate) server_name: Option<Box<str>>,
    /// ALPN in the ClientHello, or what the http inspector found (`http/1.0`, `http/1.1`, `h2c`).
    pub(crate) application_protocols: Vec<Box<str>>,
}

/// Whether a prefix is enough to decide.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Guess<T> {
    NeedMore,
    Known(T),
}

/// Reads ahead until the wanted questions are answered. Ends early, with what is known, when the peer stops sending.
pub(crate) async fn inspect(stream: &mut Stream, want_tls: bool, want_http: bool) -> io::Result<Inspected> {
    let mut found = Inspected::default();
    loop {
        let bytes = stream.ahead();
        let mut open_question = false;
        if want_tls {
            match client_hello(bytes) {
                Guess::NeedMore => open_question = true,
                Guess::Known(Some(hello)) => return Ok(hello),
                Guess::Known(None) => {}
            }
        }
        if want_http && !open_question {
            match http_version(bytes) {
                Guess::NeedMore => open_question = true,
                Guess::Known(version) => {
                    found.application_protocols = version.map(Into::into).into_iter().collect();
                }
            }
        }
        if !open_question || bytes.len() >= MOST_BYTES || stream.read_ahead(MOST_BYTES).await? == 0 {
            return Ok(found);
        }
    }
}

/// Whether the stream starts with HTTP/2's preface; reads ahead as little as that needs.
pub(crate) async fn speaks_http2(stream: &mut Stream) -> io::Result<bool> {
    loop {
        match is_http2(stream.ahead()) {
            Guess::Known(answer) => return Ok(answer),
            Guess::NeedMore => {
                if stream.read_ahead(MOST_BYTES).await? == 0 {
                    return Ok(false);
                }
            }
        }
    }
}

fn is_http2(bytes: &[u8]) -> Guess<bool> {
    let n = bytes.len().min(HTTP2_PREFACE.len());
    if bytes[..n] != HTTP2_PREFACE[..n] {
        Guess::Known(false)
    } else if n == HTTP2_PREFACE.len() {
        Guess::Known(true)
    } else {
        Guess::NeedMore
    }
}

/// The HTTP version spoken, as Envoy's http inspector names it, or `None` for something else.
fn http_version(bytes: &[u8]) -> Guess<Option<&'static str>> {
    match is_http2(bytes) {
        Guess::NeedMore => return Guess::NeedMore,
        Guess::Known(true) => return Guess::Known(Some("h2c")),
        Guess::Known(false) => {}
    }
    let end = bytes.iter().position(|&b| b == b'\n');
    // A request line starts with a method token; anything else is not HTTP and must not be waited for.
    let method = bytes[..end.unwrap_or(bytes.len())].split(|&b| b == b' ').next().unwrap_or_default();
    let plausible = method.len() <= 32
        && method.iter().all(|b| b.is_ascii_alphanumeric() || b"-_!#$%&'*+.^`|~".contains(b));
    if !plausible {
        return Guess::Known(None);
    }
    let Some(end) = end else { return Guess::NeedMore };
    let line = bytes[..end].strip_suffix(b"\r").unwrap_or(&bytes[..end]);
    if line.ends_with(b" HTTP/1.1") {
        Guess::Known(Some("http/1.1"))
    } else if line.ends_with(b" HTTP/1.0") {
        Guess::Known(Some("http/1.0"))
    } else {
        Guess::Known(None)
    }
}

/// Reads a ClientHello with rustls' own parser: nothing here decodes TLS.
fn client_hello(bytes: &[u8]) -> Guess<Option<Inspected>> {
    // A TLS record of type handshake, major version 3.
    match bytes {
        [] | [22] => return Guess::NeedMore,
        [22, 3, ..] => {}
        _ => return Guess::Known(None),
    }
    let mut acceptor = rustls::server::Acceptor::default();
    let mut rest = bytes;
    while !rest.is_empty() {
        match acceptor.read_tls(&mut rest) {
            Ok(0) => break,
            Ok(_) => {}
            Err(_) => return Guess::Known(None),
        }
        match acceptor.accept() {
            Ok(None) => {}
            Ok(Some(accepted)) => {
                let hello = accepted.client_hello();
                return Guess::Known(Some(Inspected {
                    tls: true,
                    server_name: hello.server_name().map(|name| name.to_ascii_lowercase().into()),
                    application_protocols: hello
                        .alpn()
                        .into_iter()
                        .flatten()
                        .map(|protocol| String::from_utf8_lossy(protocol).into())
                        .collect(),
                }));
            }
            Err(_) => return Guess::Known(None),
        }
    }
    Guess::NeedMore
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use proptest::prelude::*;
    use tokio::io::AsyncWriteExt;

    use super::*;
    use crate::stream::Transport;

    #[test]
    fn http_is_told_from_other_protocols() {
        for (bytes, expected) in [
            (&b"GET / HTTP/1.1\r\n"[..], Guess::Known(Some("http/1.1"))),
            (b"POST /a b HTTP/1.0\n", Guess::Known(Some("http/1.0"))),
            (HTTP2_PREFACE, Guess::Known(Some("h2c"))),
            (b"PRI * HT", Guess::NeedMore),
            (b"GET /long", Guess::NeedMore),
            (b"", Guess::NeedMore),
            (b"\x00\x01binary", Guess::Known(None)),
            (b"EHLO x\r\n", Guess::Known(None)),
        ] {
            assert_eq!(http_version(bytes), expected, "{:?}", String::from_utf8_lossy(bytes));
        }
    }

    fn hello() -> Vec<u8> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut config = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(rustls::RootCertStore::empty())
            .with_no_client_auth();
        config.alpn_protocols = vec![b"istio".to_vec(), b"h2".to_vec()];
        let name = rustls_pki_types::ServerName::try_from("Web.Example.com").unwrap();
        let mut client = rustls::ClientConnection::new(Arc::new(config), name).unwrap();
        let mut bytes = Vec::new();
        client.write_tls(&mut bytes).unwrap();
        bytes
    }

    /// What a verdict says; none: more bytes are needed.
    fn known<T>(guess: Guess<T>) -> Option<T> {
        match guess {
            Guess::NeedMore => None,
            Guess::Known(verdict) => Some(verdict),
        }
    }

    proptest! {
        /// Whatever comes: once there is a verdict, more bytes do not change it.
        #[test]
        fn verdicts_are_final(text in "(PRI |GET |[A-Z]{0,40}|\\PC{0,8})[ -~]{0,40}( HTTP/1.[01])?\r?\n?", bytes in prop::collection::vec(any::<u8>(), 0..60), record in any::<bool>(), cut in 0..200_usize) {
            let text = text.into_bytes();
            if let Some(verdict) = known(http_version(&text[..cut.min(text.len())])) {
                prop_assert_eq!(known(http_version(&text)), Some(verdict));
            }
            let bytes = if record { [&[22, 3, 1][..], &bytes].concat() } else { bytes };
            if let Some(verdict) = known(client_hello(&bytes[..cut.min(bytes.len())])) {
                prop_assert_eq!(known(client_hello(&bytes)), Some(verdict));
            }
            prop_assert!(http_version(&bytes) != Guess::Known(Some("h2c")) || bytes.starts_with(HTTP2_PREFACE));
        }

        /// A hello with one byte that is another is read, or is none; nothing panics.
        #[test]
        fn a_changed_hello_is_read_or_none(at in any::<prop::sample::Index>(), byte in any::<u8>(), cut in any::<prop::sample::Index>()) {
            let mut bytes = hello();
            let at = at.index(bytes.len());
            bytes[at] = byte;
            drop(client_hello(&bytes));
            drop(client_hello(&bytes[..cut.index(bytes.len())]));
        }
    }

    #[tokio::test]
    async fn server_name_and_alpn_come_out_of_a_client_hello_sent_in_pieces() {
        let (mut client, server) = tokio::io::duplex(4096);
        let mut stream = Stream::new(Transport::Memory(server));
        let bytes = hello();
        let writer = async {
            for piece in bytes.chunks(7) {
                client.write_all(piece).await.unwrap();
                tokio::task::yield_now().await;
            }
        };
        let (found, ()) = tokio::join!(inspect(&mut stream, true, true), writer);
        let found = found.unwrap();
        assert!(found.tls);
        assert_eq!(found.server_name.as_deref(), Some("web.example.com"));
        assert_eq!(found.application_protocols, ["istio".into(), "h2".into()]);
    }

    #[tokio::test]
    async fn a_silent_client_that_hangs_up_is_not_waited_for() {
        let (client, server) = tokio::io::duplex(64);
        drop(client);
        let mut stream = Stream::new(Transport::Memory(server));
        assert_eq!(inspect(&mut stream, true, true).await.unwrap(), Inspected::default());
        assert!(!speaks_http2(&mut stream).await.unwrap());
    }
}
