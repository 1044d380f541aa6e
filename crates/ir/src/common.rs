//! Small values shared by several resources.

use std::sync::Arc;
use std::time::Duration;

/// When a socket option is set (Envoy's `SocketOption.SocketState`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SocketState {
    /// After `socket`, before `bind`.
    Prebind,
    /// After `bind`, before `listen`.
    Bound,
    /// After `listen`.
    Listening,
}

/// The value of a raw socket option.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum SocketOptionValue {
    /// A C `int`.
    Int(i32),
    /// Bytes as they are given to `setsockopt`.
    Bytes(Arc<[u8]>),
}

/// A raw `setsockopt` call (Envoy's `core.v3.SocketOption`), for example level 1, name 36, value 1337: `SO_MARK`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct SocketOption {
    /// `level` of `setsockopt`.
    pub level: i32,
    /// `optname` of `setsockopt`.
    pub name: i32,
    /// The value.
    pub value: SocketOptionValue,
    /// When to set it.
    pub state: SocketState,
}

/// TCP keep-alive of a socket; unset members keep the operating system's defaults.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct TcpKeepalive {
    /// `TCP_KEEPCNT`: probes without an answer until the connection is given up.
    pub probes: Option<u32>,
    /// `TCP_KEEPIDLE`: silence before the first probe, in whole seconds.
    pub time: Option<Duration>,
    /// `TCP_KEEPINTVL`: between probes, in whole seconds.
    pub interval: Option<Duration>,
}

/// A probability as Envoy writes it (`type.v3.FractionalPercent`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Fraction {
    /// Part.
    pub numerator: u32,
    /// Whole: 100, 10 000 or 1 000 000.
    pub denominator: u32,
}

impl Fraction {
    /// Whether a uniformly distributed `random` falls into this fraction. Envoy: `random % denominator < numerator`.
    pub fn includes(self, random: u64) -> bool {
        random % u64::from(self.denominator) < u64::from(self.numerator)
    }
}

/// A reference from a route or a TCP proxy to a cluster.
///
/// `index` is dense within the owner ([`RouteTable::clusters`](crate::RouteTable::clusters), [`TcpProxy::clusters`](crate::TcpProxy::clusters)), so the engine can
/// resolve the owner's names once for each configuration snapshot and look clusters up by index for each request.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ClusterRef {
    /// Name of the cluster.
    pub name: Arc<str>,
    /// Position of the name in the owner's list.
    pub index: u32,
}
