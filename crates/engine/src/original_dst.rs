//! Step 2a: where a connection was going before netfilter redirected it here.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use nix::sys::socket::{getsockopt, sockopt};
use tokio::net::TcpStream;

/// The destination before redirection (`SO_ORIGINAL_DST`), or `None` when the connection was not redirected.
pub(crate) fn original_destination(socket: &TcpStream, local: SocketAddr) -> Option<SocketAddr> {
    let original = if local.is_ipv4() {
        let address = getsockopt(socket, sockopt::OriginalDst).ok()?;
        // The kernel gives both in network byte order.
        SocketAddr::new(
            IpAddr::V4(Ipv4Addr::from(u32::from_be(address.sin_addr.s_addr))),
            u16::from_be(address.sin_port),
        )
    } else {
        let address = getsockopt(socket, sockopt::Ip6tOriginalDst).ok()?;
        SocketAddr::new(
            IpAddr::V6(Ipv6Addr::from(address.sin6_addr.s6_addr)),
            u16::from_be(address.sin6_port),
        )
    };
    (original != local).then_some(original)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_direct_connection_has_no_other_destination() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let _client = TcpStream::connect(address).await.unwrap();
        let (socket, _) = listener.accept().await.unwrap();
        assert_eq!(original_destination(&socket, address), None);
    }
}
