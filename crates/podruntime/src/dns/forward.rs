//! Other people's names: asked of the host's own resolvers.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpStream, UdpSocket},
    time::timeout,
};

/// How long one resolver may take.
const PATIENCE: Duration = Duration::from_secs(2);
/// At most this many resolvers are tried, as the C library does.
const MOST: usize = 3;

/// The host's resolvers.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Upstreams(Vec<SocketAddr>);

impl Upstreams {
    /// Reads `/etc/resolv.conf`; an unreadable file means none. `own` is left out, so that nothing goes round in circles.
    pub(crate) fn of_host(own: Ipv4Addr) -> Self {
        let text = std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
        Self::parse(&text, own)
    }

    fn parse(text: &str, own: Ipv4Addr) -> Self {
        let address = |line: &str| {
            let mut words = line.split_whitespace();
            let address: IpAddr = (words.next()? == "nameserver").then(|| words.next())??.parse().ok()?;
            (address != IpAddr::V4(own)).then(|| SocketAddr::new(address, 53))
        };
        Self(text.lines().filter_map(address).take(MOST).collect())
    }

    /// The first answer to `query`, or `None` when there is none in time.
    pub(super) async fn ask(&self, query: &[u8], over_tcp: bool) -> Option<Vec<u8>> {
        for resolver in &self.0 {
            let answer = async {
                if over_tcp { ask_tcp(*resolver, query).await } else { ask_udp(*resolver, query).await }
            };
            match timeout(PATIENCE, answer).await {
                // The same id: the answer to this question.
                Ok(Ok(answer)) if answer.get(..2) == query.get(..2) => return Some(answer),
                Ok(Ok(_)) | Err(_) => {}
                Ok(Err(error)) => tracing::debug!(%resolver, %error, "resolver of the host"),
            }
        }
        None
    }
}

async fn ask_udp(resolver: SocketAddr, query: &[u8]) -> std::io::Result<Vec<u8>> {
    let any: SocketAddr = if resolver.is_ipv4() {
        (Ipv4Addr::UNSPECIFIED, 0).into()
    } else {
        (std::net::Ipv6Addr::UNSPECIFIED, 0).into()
    };
    let socket = UdpSocket::bind(any).await?;
    socket.connect(resolver).await?;
    socket.send(query).await?;
    let mut buffer = vec![0; usize::from(u16::MAX)];
    let length = socket.recv(&mut buffer).await?;
    buffer.truncate(length);
    Ok(buffer)
}

async fn ask_tcp(resolver: SocketAddr, query: &[u8]) -> std::io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(resolver).await?;
    write_message(&mut stream, query).await?;
    read_message(&mut stream).await
}

/// Reads a message with its two-byte length (RFC 1035, 4.2.2).
pub(super) async fn read_message(stream: &mut TcpStream) -> std::io::Result<Vec<u8>> {
    let length = stream.read_u16().await?;
    let mut message = vec![0; usize::from(length)];
    stream.read_exact(&mut message).await?;
    Ok(message)
}

/// Writes a message with its two-byte length.
pub(super) async fn write_message(stream: &mut TcpStream, message: &[u8]) -> std::io::Result<()> {
    let length = u16::try_from(message.len()).map_err(|_| std::io::ErrorKind::InvalidInput)?;
    let mut framed = length.to_be_bytes().to_vec();
    framed.extend_from_slice(message);
    stream.write_all(&framed).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resolvers_of_the_host() {
        let text = "# comment\nnameserver 10.96.0.10\nnameserver 192.0.2.1\nnameserver 2001:db8::1\nsearch a b\nnameserver x\noptions ndots:1";
        let upstreams = Upstreams::parse(text, Ipv4Addr::new(10, 96, 0, 10));
        assert_eq!(upstreams.0, ["192.0.2.1:53".parse().unwrap(), "[2001:db8::1]:53".parse().unwrap()]);
    }
}
