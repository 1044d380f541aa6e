//! A client's part of a conversation.

use std::net::SocketAddr;

use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpSocket;

use super::asked::{Asked, Version};
use super::http2;
use crate::Seen;
use crate::wire::{Duplex, Wire};

/// What goes through a tunnel; where it ends at a service this is a request.
const THROUGH: &[u8] = b"GET /through HTTP/1.1\r\nhost: tunnel\r\n\r\n";

/// Asks, from an address of its own: a port that a reset has freed may come again, and lines of the log would be taken for another's.
pub(super) async fn talk(number: usize, asked: &Asked, address: SocketAddr) -> Seen {
    let socket = TcpSocket::new_v4().unwrap();
    let from = std::net::Ipv4Addr::from(0x7f00_0002 + u32::try_from(number).unwrap());
    socket.bind((from, 0).into()).unwrap();
    let mut stream = socket.connect(address).await.unwrap();
    let ends = format!("{address}-{}", stream.local_addr().unwrap());
    let asked = asked.at(address.port());
    // The proxy may have closed already; then that is seen.
    let _ = stream.write_all(&asked.before).await;
    let text = match &asked.tls {
        None => converse(&asked, stream).await,
        Some(hello) => match hello.shake(stream).await {
            Ok((stream, agreed)) => converse(&asked, stream).await + &agreed,
            Err(end) => end,
        },
    };
    Seen { text, ends }
}

async fn converse(asked: &Asked, stream: impl Duplex + 'static) -> String {
    if asked.version == Version::Http2 {
        return http2::ask(asked, stream).await;
    }
    let mut wire = Wire::new(stream);
    wire.send(&asked.bytes()).await;
    let mut text = String::new();
    for method in asked.methods() {
        loop {
            let Some(answer) = wire.answer(method).await else {
                text.push_str("END\n");
                return text;
            };
            text.push_str(&answer);
            // What comes before an answer is none.
            let status = answer.split(' ').nth(1).unwrap_or_default();
            if !["100", "102", "103"].contains(&status) {
                break;
            }
        }
    }
    if text.starts_with("HTTP/1.1 101 ") {
        text.push_str(&String::from_utf8_lossy(&wire.raw(5).await));
    } else if asked.is_connect()
        && text.starts_with("HTTP/1.1 200 ")
        && !text.to_lowercase().contains("content-length")
    {
        wire.send(THROUGH).await;
        text.push_str(&String::from_utf8_lossy(&wire.raw(12).await));
    }
    text
}
