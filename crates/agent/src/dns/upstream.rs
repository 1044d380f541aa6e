//! Names that are not the mesh's: asked of the pod's own resolvers, with the application's own bytes.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use nix::sys::socket::{setsockopt, sockopt};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UdpSocket;
use tokio::time::timeout;

use crate::dial;

/// How long one resolver may take; Istio's limit.
const PATIENCE: Duration = Duration::from_secs(5);

/// The resolvers, asked one after another.
#[derive(Debug)]
pub(super) struct Upstreams {
    servers: Vec<SocketAddr>,
    /// The proxy's own queries carry its mark, or capture would lead them back here.
    mark: Option<u32>,
    patience: Duration,
}

impl Upstreams {
    pub(super) fn new(servers: Vec<SocketAddr>, mark: Option<u32>) -> Self {
        Self { servers, mark, patience: PATIENCE }
    }

    /// The first answer to a query; none when no resolver gives one in time. A truncated answer goes to the client as it is,
    /// which then asks over TCP, and so do we.
    pub(super) async fn ask(&self, query: &[u8], over_tcp: bool) -> Option<Vec<u8>> {
        for server in &self.servers {
            let answer = async {
                if over_tcp { self.ask_tcp(*server, query).await } else { self.ask_udp(*server, query).await }
            };
            match timeout(self.patience, answer).await {
                Ok(Ok(answer)) => return Some(answer),
                Ok(Err(error)) => tracing::debug!(%server, %error, "a resolver of the pod"),
                Err(_) => {
                    tracing::debug!(%server, patience = ?self.patience, "a resolver of the pod is silent")
                }
            }
        }
        None
    }

    async fn ask_udp(&self, server: SocketAddr, query: &[u8]) -> io::Result<Vec<u8>> {
        let any: SocketAddr = match server {
            SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
            SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
        };
        let socket = UdpSocket::bind(any).await?;
        if let Some(mark) = self.mark {
            setsockopt(&socket, sockopt::Mark, &mark)?;
        }
        socket.connect(server).await?;
        socket.send(query).await?;
        let mut buffer = vec![0; usize::from(u16::MAX)];
        loop {
            let length = socket.recv(&mut buffer).await?;
            // Another id is no answer to this question.
            if length >= 2 && buffer.get(..2) == query.get(..2) {
                buffer.truncate(length);
                return Ok(buffer);
            }
        }
    }

    async fn ask_tcp(&self, server: SocketAddr, query: &[u8]) -> io::Result<Vec<u8>> {
        let mut stream = dial::connect(server, self.mark).await?;
        write_message(&mut stream, query).await?;
        let answer = read_message(&mut stream).await?;
        let ours = answer.len() >= 2 && answer.get(..2) == query.get(..2);
        if ours {
            Ok(answer)
        } else {
            Err(io::Error::new(io::ErrorKind::InvalidData, "an answer to another question"))
        }
    }
}

/// Reads a message with its two-byte length (RFC 1035, 4.2.2).
pub(super) async fn read_message(stream: &mut tokio::net::TcpStream) -> io::Result<Vec<u8>> {
    let length = stream.read_u16().await?;
    let mut message = vec![0; usize::from(length)];
    stream.read_exact(&mut message).await?;
    Ok(message)
}

/// Writes a message with its two-byte length.
pub(super) async fn write_message(stream: &mut tokio::net::TcpStream, message: &[u8]) -> io::Result<()> {
    let length = u16::try_from(message.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
    let mut framed = length.to_be_bytes().to_vec();
    framed.extend_from_slice(message);
    stream.write_all(&framed).await
}
