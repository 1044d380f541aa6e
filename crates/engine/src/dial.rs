//! Upstream sockets: source address, mark, socket options, connect with a time limit.

use std::borrow::Cow;
use std::io;
use std::net::SocketAddr;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::SocketAddr as UnixAddress;
use std::time::Duration;

use lateen_ir::{BindConfig, SocketOption, SocketOptionValue, TcpKeepalive};
use socket2::{SockRef, TcpKeepalive as SocketKeepalive};
use tokio::net::{TcpSocket, TcpStream, UnixSocket, UnixStream};

use crate::failure::Reset;

/// Everything an upstream socket depends on besides the address.
#[derive(Clone, Copy)]
pub(crate) struct DialOptions<'a> {
    pub(crate) mark: Option<u32>,
    pub(crate) bind: Option<&'a BindConfig>,
    pub(crate) keepalive: Option<&'a TcpKeepalive>,
    pub(crate) timeout: Duration,
}

/// Connects to an endpoint.
pub(crate) async fn dial(address: SocketAddr, options: DialOptions<'_>) -> Result<TcpStream, Reset> {
    match tokio::time::timeout(options.timeout, connect(address, options)).await {
        Ok(Ok(stream)) => Ok(stream),
        Ok(Err(error)) => Err(Reset::ConnectFailure(describe(&error))),
        Err(_) => Err(Reset::ConnectTimeout),
    }
}

/// Connects to an endpoint that is a Unix socket. A path that begins with `@` is in the abstract namespace.
pub(crate) async fn dial_pipe(path: &str, limit: Duration) -> Result<UnixStream, Reset> {
    let address = match path.strip_prefix('@') {
        Some(name) => UnixAddress::from_abstract_name(name),
        None => UnixAddress::from_pathname(path),
    };
    let connect = async {
        let socket = UnixSocket::new_stream()?;
        match address? {
            // The runtime connects to paths itself; names it does not know.
            address if address.as_pathname().is_none() => {
                let stream = std::os::unix::net::UnixStream::connect_addr(&address)?;
                stream.set_nonblocking(true)?;
                UnixStream::from_std(stream)
            }
            _ => socket.connect(path).await,
        }
    };
    match tokio::time::timeout(limit, connect).await {
        Ok(Ok(stream)) => Ok(stream),
        // The kernel answers at once.
        Ok(Err(error)) => Err(Reset::ConnectFailure(describe_as(&error, true))),
        Err(_) => Err(Reset::ConnectTimeout),
    }
}

async fn connect(address: SocketAddr, options: DialOptions<'_>) -> io::Result<TcpStream> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    {
        let raw = SockRef::from(&socket);
        if let Some(mark) = options.mark {
            raw.set_mark(mark)?;
        }
        if let Some(keepalive) = options.keepalive {
            set_keepalive(&raw, keepalive)?;
        }
        if let Some(bind) = options.bind {
            if bind.freebind {
                raw.set_freebind_v4(true)?;
            }
            for option in &bind.socket_options {
                set_socket_option(&raw, option)?;
            }
        }
    }
    if let Some(source) = options.bind.and_then(|bind| bind.source_for(address)) {
        socket.bind(source)?;
    }
    let stream = socket.connect(address).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// Keep-alive probes on a socket.
pub(crate) fn set_keepalive(socket: &SockRef<'_>, keepalive: &TcpKeepalive) -> io::Result<()> {
    let mut wanted = SocketKeepalive::new();
    if let Some(time) = keepalive.time {
        wanted = wanted.with_time(time);
    }
    if let Some(interval) = keepalive.interval {
        wanted = wanted.with_interval(interval);
    }
    if let Some(probes) = keepalive.probes {
        wanted = wanted.with_retries(probes);
    }
    socket.set_tcp_keepalive(&wanted)
}

/// Sets a raw option. Only options with a safe setter are known; [`socket_option_supported`] tells beforehand.
pub(crate) fn set_socket_option(socket: &SockRef<'_>, option: &SocketOption) -> io::Result<()> {
    let SocketOptionValue::Int(value) = option.value else { return Err(io::ErrorKind::Unsupported.into()) };
    let unsigned = value.unsigned_abs();
    let seconds = Duration::from_secs(u64::from(unsigned));
    // Numbers of <asm-generic/socket.h>, <linux/in.h> and <linux/tcp.h>.
    match (option.level, option.name) {
        (1, 2) => socket.set_reuse_address(value != 0),
        (1, 7) => socket.set_send_buffer_size(unsigned as usize),
        (1, 8) => socket.set_recv_buffer_size(unsigned as usize),
        (1, 9) => socket.set_keepalive(value != 0),
        (1, 15) => socket.set_reuse_port(value != 0),
        (1, 36) => socket.set_mark(value as u32),
        (0, 1) => socket.set_tos_v4(unsigned),
        (0, 15) => socket.set_freebind_v4(value != 0),
        (0, 19) => socket.set_ip_transparent_v4(value != 0),
        (6, 1) => socket.set_tcp_nodelay(value != 0),
        (6, 4) => socket.set_tcp_keepalive(&SocketKeepalive::new().with_time(seconds)),
        (6, 5) => socket.set_tcp_keepalive(&SocketKeepalive::new().with_interval(seconds)),
        (6, 6) => socket.set_tcp_keepalive(&SocketKeepalive::new().with_retries(unsigned)),
        (6, 18) => socket.set_tcp_user_timeout(Some(Duration::from_millis(u64::from(unsigned)))),
        _ => Err(io::ErrorKind::Unsupported.into()),
    }
}

/// Whether [`set_socket_option`] knows the option.
pub(crate) fn socket_option_supported(option: &SocketOption) -> bool {
    matches!(option.value, SocketOptionValue::Int(_))
        && matches!(
            (option.level, option.name),
            (1, 2 | 7 | 8 | 9 | 15 | 36) | (0, 1 | 15 | 19) | (6, 1 | 4 | 5 | 6 | 18)
        )
}

/// Envoy's wording of a failed connect.
fn describe(error: &io::Error) -> Cow<'static, str> {
    // Errors of the connect call itself, as against the network's answer.
    let immediate = matches!(
        error.kind(),
        io::ErrorKind::NetworkUnreachable | io::ErrorKind::AddrNotAvailable | io::ErrorKind::InvalidInput
    );
    describe_as(error, immediate)
}

fn describe_as(error: &io::Error, immediate: bool) -> Cow<'static, str> {
    let Some(code) = error.raw_os_error() else { return Cow::Owned(error.to_string()) };
    let text = nix::errno::Errno::from_raw(code).desc();
    Cow::Owned(format!("{} connect error: {text}", if immediate { "immediate" } else { "delayed" }))
}

#[cfg(test)]
mod tests {
    use super::*;

    const NO_OPTIONS: DialOptions<'static> =
        DialOptions { mark: None, bind: None, keepalive: None, timeout: Duration::from_secs(5) };

    #[tokio::test]
    async fn a_refused_connection_says_so_in_envoys_words() {
        let unused = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = unused.local_addr().unwrap();
        drop(unused);
        assert_eq!(
            dial(address, NO_OPTIONS).await.unwrap_err(),
            Reset::ConnectFailure("delayed connect error: Connection refused".into())
        );
    }

    #[tokio::test]
    async fn the_source_address_is_bound() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let bind = BindConfig { source: Some("127.0.0.6:0".parse().unwrap()), ..BindConfig::default() };
        let options = DialOptions { bind: Some(&bind), ..NO_OPTIONS };
        let stream = dial(listener.local_addr().unwrap(), options).await.unwrap();
        assert_eq!(stream.local_addr().unwrap().ip().to_string(), "127.0.0.6");
    }
}
