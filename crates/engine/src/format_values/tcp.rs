//! Values for a TCP connection, and for a message that is too malformed to be a request.

use std::net::SocketAddr;

use http::Version;
use lateen_ir::{AddressOf, Bytes, DynamicMetadata, FormatValues, HostAddress, MetadataOf, Operator};

use super::print::{
    address, downstream_address, flags, host_address, millis, noted, number, text, time, tls, wall_clock,
    without_port,
};
use super::protocol;
use crate::context::ConnectionInfo;
use crate::failure::Flags;
use crate::tls::TlsFacts;

/// What formats may read at the end of a TCP connection.
pub(crate) struct TcpFacts<'a> {
    pub(crate) info: &'a ConnectionInfo,
    pub(crate) hostname: &'a str,
    pub(crate) flags: Flags,
    pub(crate) details: &'a str,
    /// What filters noted.
    pub(crate) noted: Option<&'a DynamicMetadata>,
    pub(crate) received: u64,
    pub(crate) sent: u64,
    pub(crate) cluster: Option<&'a str>,
    pub(crate) host: Option<&'a HostAddress>,
    /// The endpoint's name, or its address.
    pub(crate) host_name: Option<&'a str>,
    /// Attempts to connect.
    pub(crate) attempts: u32,
    pub(crate) upstream_local: Option<SocketAddr>,
    /// Where the connection goes; none when there is none.
    pub(crate) upstream_remote: Option<&'a HostAddress>,
    pub(crate) upstream_tls: Option<&'a TlsFacts>,
    pub(crate) failure: Option<&'a str>,
}

impl<'a> TcpFacts<'a> {
    /// Of a connection that came to nothing before anybody was asked.
    pub(crate) fn unserved(
        info: &'a ConnectionInfo,
        hostname: &'a str,
        flags: Flags,
        details: &'a str,
    ) -> Self {
        Self {
            info,
            hostname,
            flags,
            details,
            noted: None,
            received: 0,
            sent: 0,
            cluster: None,
            host: None,
            host_name: None,
            attempts: 0,
            upstream_local: None,
            upstream_remote: None,
            upstream_tls: None,
            failure: None,
        }
    }
}

/// What formats may read of a message that is too malformed to be a request.
pub(crate) struct RefusedFacts<'a> {
    pub(crate) connection: TcpFacts<'a>,
    pub(crate) status: u16,
}

impl FormatValues for RefusedFacts<'_> {
    fn value(&self, operator: &Operator, out: &mut String) -> bool {
        match operator {
            Operator::ResponseCode => number(out, u64::from(self.status)),
            Operator::ResponseCodeDetails => text(out, Some(self.connection.details)),
            Operator::Protocol => text(out, Some(protocol(Version::HTTP_11))),
            Operator::UpstreamRequestAttemptCount => number(out, 0),
            Operator::AccessLogType => text(out, Some("DownstreamEnd")),
            other => self.connection.value(other, out),
        }
    }
}

impl FormatValues for TcpFacts<'_> {
    fn value(&self, operator: &Operator, out: &mut String) -> bool {
        match operator {
            Operator::Time(point, format) => {
                time(wall_clock(self.info.started), *point, format, out);
                true
            }
            Operator::ResponseCode => text(out, Some("0")),
            Operator::ConnectionTerminationDetails => text(out, Some(self.details).filter(|d| !d.is_empty())),
            Operator::ResponseFlags => flags(self.flags, false, out),
            Operator::ResponseFlagsLong => flags(self.flags, true, out),
            Operator::Bytes(Bytes::Received) => number(out, self.received),
            Operator::Bytes(Bytes::Sent) => number(out, self.sent),
            Operator::Bytes(_) => number(out, 0),
            Operator::Duration => number(out, millis(self.info.started.elapsed())),
            Operator::UpstreamCluster | Operator::UpstreamClusterRaw => text(out, self.cluster),
            Operator::UpstreamHostName => text(out, self.host_name),
            Operator::UpstreamHostNameWithoutPort => text(out, self.host_name.map(without_port)),
            Operator::UpstreamTransportFailureReason => text(out, self.failure),
            Operator::UpstreamRequestAttemptCount => number(out, u64::from(self.attempts)),
            Operator::Address(of, part) => match of {
                AddressOf::UpstreamLocal => address(self.upstream_local, *part, out),
                AddressOf::UpstreamHost => host_address(self.host, *part, out),
                AddressOf::UpstreamRemote => host_address(self.upstream_remote, *part, out),
                other => host_address(downstream_address(self.info, &self.info.peer, *other), *part, out),
            },
            Operator::RequestedServerName => text(out, self.info.server_name.as_deref()),
            Operator::DownstreamTls(fact) => tls(self.info.tls.as_deref(), *fact, out),
            Operator::UpstreamTls(fact) => tls(self.upstream_tls, *fact, out),
            Operator::DownstreamTransportFailureReason => text(out, self.info.transport_failure.as_deref()),
            Operator::FilterChainName => {
                text(out, Some(&*self.info.chain_name).filter(|name| !name.is_empty()))
            }
            Operator::Hostname => text(out, Some(self.hostname)),
            Operator::Environment(value) => text(out, value.as_deref()),
            Operator::ConnectionId => number(out, self.info.id),
            Operator::UniqueId => text(out, Some(&uuid::Uuid::new_v4().to_string())),
            Operator::AccessLogType => text(out, Some("TcpConnectionEnd")),
            Operator::Metadata { of: MetadataOf::Request, path } => noted(self.noted, path, out),
            _ => false,
        }
    }
}
