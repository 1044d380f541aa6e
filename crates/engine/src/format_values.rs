//! Values of format operators (`%REQ(X)%` …) for a request or a TCP connection.

mod print;
mod tcp;

use http::{HeaderMap, Method, StatusCode, Version};
use lateen_ir::{
    AddressOf, AddressPart, Bytes, FormatHeader, FormatValues, GrpcStatusStyle, MetadataOf, Operator, PathOf,
};

use self::print::{
    address, downstream_address, flags, host_address, json_at, millis, named, noted, number, text, time, tls,
    wall_clock, without_port,
};
pub(crate) use self::tcp::{RefusedFacts, TcpFacts};
use crate::context::RequestContext;
use crate::filters::FilterState;
use crate::local_reply;

impl FormatValues for RequestContext {
    fn value(&self, operator: &Operator, out: &mut String) -> bool {
        match operator {
            Operator::Time(point, format) => {
                time(wall_clock(self.started), *point, format, out);
                true
            }
            Operator::Request(first, second) => {
                self.request_header(first, out)
                    || second.as_ref().is_some_and(|name| self.request_header(name, out))
            }
            Operator::Response(first, second) => {
                self.response_header(first, out)
                    || second.as_ref().is_some_and(|name| self.response_header(name, out))
            }
            Operator::Trailer(first, second) => {
                let trailers = self.response_trailers.as_deref();
                named(trailers, first, out) || second.as_ref().is_some_and(|name| named(trailers, name, out))
            }
            Operator::Protocol => {
                // Whose form is none has no version of its own.
                let version = if self.unread { self.version.max(Version::HTTP_11) } else { self.version };
                text(out, Some(protocol(version)))
            }
            Operator::UpstreamProtocol => text(out, self.upstream_version.map(protocol)),
            Operator::ResponseCode => number(out, self.status.map_or(0, |status| u64::from(status.as_u16()))),
            Operator::ResponseCodeDetails => {
                text(out, Some(&*self.details).filter(|details| !details.is_empty()))
            }
            Operator::ResponseFlags => flags(self.flags, false, out),
            Operator::ResponseFlagsLong => flags(self.flags, true, out),
            Operator::Bytes(Bytes::Received) => number(out, self.bytes_received()),
            Operator::Bytes(Bytes::Sent) => number(out, self.bytes_sent),
            Operator::Duration | Operator::RequestDuration | Operator::RequestTxDuration => {
                number(out, millis(self.started.elapsed()))
            }
            Operator::ResponseDuration => self
                .first_upstream_byte
                .is_some_and(|at| number(out, millis(at.saturating_duration_since(self.started)))),
            Operator::ResponseTxDuration => {
                self.first_upstream_byte.is_some_and(|at| number(out, millis(at.elapsed())))
            }
            Operator::UpstreamCluster => {
                let name = self.cluster.as_ref().map(|cluster| &cluster.config.ir);
                text(out, name.map(|cluster| cluster.alt_stat_name.as_deref().unwrap_or(&cluster.name)))
            }
            Operator::UpstreamClusterRaw => {
                text(out, self.cluster.as_ref().map(|cluster| &*cluster.config.ir.name))
            }
            Operator::UpstreamHostName => text(out, self.host.as_ref().map(|host| host.name()).as_deref()),
            Operator::UpstreamHostNameWithoutPort => {
                text(out, self.host.as_ref().map(|host| host.name()).as_deref().map(without_port))
            }
            Operator::Path { query, of } => self.path(*query, *of, out),
            Operator::QueryParameter(name) => {
                let path = (!self.unread).then(|| self.path.as_str());
                text(out, path.and_then(|path| lateen_ir::query_parameter(path, name)))
            }
            Operator::UpstreamTransportFailureReason => text(out, self.upstream_failure.as_deref()),
            Operator::UpstreamRequestAttemptCount => number(out, u64::from(self.attempts)),
            Operator::UpstreamConnectionId => {
                self.upstream.as_ref().is_some_and(|facts| number(out, facts.id))
            }
            Operator::Address(of, part) => self.address(*of, *part, out),
            Operator::RequestedServerName => text(out, self.connection.info.server_name.as_deref()),
            Operator::DownstreamTls(fact) => tls(self.connection.info.tls.as_deref(), *fact, out),
            Operator::UpstreamTls(fact) => {
                let facts = self.upstream.as_ref().and_then(|facts| facts.tls.get());
                tls(facts.map(|facts| &**facts), *fact, out)
            }
            Operator::RouteName => {
                text(out, self.route.as_ref().map(|route| &*route.name).filter(|name| !name.is_empty()))
            }
            Operator::FilterChainName => {
                text(out, Some(&*self.connection.info.chain_name).filter(|name| !name.is_empty()))
            }
            Operator::Hostname => text(out, Some(&self.connection.worker.identity.hostname)),
            Operator::Environment(value) => text(out, value.as_deref()),
            Operator::ConnectionId => number(out, self.connection.info.id),
            Operator::StreamId => {
                let id = self.head.headers.get("x-request-id").and_then(|id| id.to_str().ok());
                text(out, id)
            }
            Operator::UniqueId => text(out, Some(&uuid::Uuid::new_v4().to_string())),
            Operator::LocalReplyBody => text(out, Some(self.local_reply.as_deref().unwrap_or_default())),
            Operator::GrpcStatus(style) => self.grpc_status(*style, out),
            Operator::GrpcStatusNumber => self.grpc_status(GrpcStatusStyle::Number, out),
            Operator::AccessLogType => text(out, Some("DownstreamEnd")),
            Operator::Metadata { of: MetadataOf::Cluster, path } => {
                let metadata = self.cluster.as_ref().and_then(|cluster| cluster.config.ir.metadata.clone());
                json_at(metadata.as_deref(), path, out)
            }
            Operator::Metadata { of: MetadataOf::Endpoint, path } => {
                let metadata = self.host.as_ref().and_then(|host| host.endpoint.borrow().metadata.clone());
                json_at(metadata.as_deref(), path, out)
            }
            Operator::Metadata { of: MetadataOf::Request, path } => {
                noted(self.metadata.as_deref(), path, out)
            }
            Operator::Metadata { of: MetadataOf::FilterState, path } => self.filter_state(path, out),
            // Nothing here makes these: no virtual clusters.
            _ => false,
        }
    }
}

impl RequestContext {
    /// What filters have written down under a key; behind that may stand how it is shown.
    fn filter_state(&self, path: &[Box<str>], out: &mut String) -> bool {
        let Some((key, style)) = path.split_first() else { return false };
        let camel = match style.first().map(|style| &**style) {
            None | Some("TYPED") => true,
            Some("PLAIN") => false,
            Some(_) => return false,
        };
        let shadow = self.filters.iter().find_map(|state| match state {
            FilterState::Shadow(shadow) if *shadow.name == **key => Some(shadow),
            _ => None,
        });
        text(out, shadow.map(|shadow| shadow.decision.json(camel)).as_deref())
    }

    fn address(&self, of: AddressOf, part: AddressPart, out: &mut String) -> bool {
        let which = match of {
            AddressOf::UpstreamLocal => {
                return address(self.upstream.as_ref().and_then(|facts| facts.local.get()), part, out);
            }
            AddressOf::UpstreamHost => self.host.as_ref().map(|host| &host.address),
            AddressOf::UpstreamRemote => self.upstream.as_ref().and_then(|facts| facts.remote.get()),
            other => downstream_address(&self.connection.info, &self.client, other),
        };
        host_address(which, part, out)
    }

    fn path(&self, query: bool, of: PathOf, out: &mut String) -> bool {
        let original = self.head.headers.get("x-envoy-original-path").and_then(|path| path.to_str().ok());
        // CONNECT has none.
        let own = (self.head.method != Method::CONNECT && !self.unread).then(|| self.path.as_str());
        let path = match of {
            PathOf::Original => original,
            PathOf::Request => own,
            PathOf::OriginalOrRequest => original.filter(|path| !path.is_empty()).or(own),
        };
        let path = path.filter(|path| !path.is_empty());
        text(out, path.map(|path| if query { path } else { path.split('?').next().unwrap_or(path) }))
    }

    fn request_header(&self, name: &FormatHeader, out: &mut String) -> bool {
        if self.unread {
            return false;
        }
        match name {
            FormatHeader::Method => text(out, Some(self.head.method.as_str())),
            FormatHeader::Scheme => {
                let scheme = if self.secure { "https" } else { "http" };
                text(out, self.has_scheme.then_some(scheme))
            }
            FormatHeader::Authority => {
                let there = !self.authority.is_empty() || self.head.headers.contains_key("host");
                text(out, self.authority.to_str().ok().filter(|_| there))
            }
            FormatHeader::Path => {
                // CONNECT has none.
                text(out, (self.head.method != Method::CONNECT).then(|| self.path.as_str()))
            }
            FormatHeader::Status => false,
            FormatHeader::Named(_) => named(Some(&self.head.headers), name, out),
        }
    }

    fn response_header(&self, name: &FormatHeader, out: &mut String) -> bool {
        match name {
            FormatHeader::Status => {
                // An interim answer is none.
                let told = self.status.filter(|status| {
                    !status.is_informational() || *status == StatusCode::SWITCHING_PROTOCOLS
                });
                self.answering.or(told).is_some_and(|status| text(out, Some(status.as_str())))
            }
            _ => named(self.response_headers.as_ref(), name, out),
        }
    }

    fn grpc_status(&self, style: GrpcStatusStyle, out: &mut String) -> bool {
        // Who did not ask by gRPC has none, whatever the service says.
        if !local_reply::is_grpc(&self.head) {
            return false;
        }
        let find = |headers: Option<&HeaderMap>| -> Option<usize> {
            headers?.get("grpc-status")?.to_str().ok()?.parse().ok()
        };
        let in_headers = || find(self.response_headers.as_ref());
        // Without one a gRPC client makes it of the answer's status.
        let meant = || Some(local_reply::grpc_status(self.status?) as usize);
        let told = find(self.response_trailers.as_deref()).or_else(in_headers);
        let Some(status) = told.or_else(meant) else {
            return false;
        };
        match (style, GRPC_STATUSES.get(status)) {
            (GrpcStatusStyle::Camel, Some((camel, _))) => text(out, Some(camel)),
            (GrpcStatusStyle::Snake, Some((_, snake))) => text(out, Some(snake)),
            _ => number(out, status as u64),
        }
    }
}

/// Statuses by number: <https://grpc.github.io/grpc/core/md_doc_statuscodes.html>
const GRPC_STATUSES: [(&str, &str); 17] = [
    ("OK", "OK"),
    ("Canceled", "CANCELLED"),
    ("Unknown", "UNKNOWN"),
    ("InvalidArgument", "INVALID_ARGUMENT"),
    ("DeadlineExceeded", "DEADLINE_EXCEEDED"),
    ("NotFound", "NOT_FOUND"),
    ("AlreadyExists", "ALREADY_EXISTS"),
    ("PermissionDenied", "PERMISSION_DENIED"),
    ("ResourceExhausted", "RESOURCE_EXHAUSTED"),
    ("FailedPrecondition", "FAILED_PRECONDITION"),
    ("Aborted", "ABORTED"),
    ("OutOfRange", "OUT_OF_RANGE"),
    ("Unimplemented", "UNIMPLEMENTED"),
    ("Internal", "INTERNAL"),
    ("Unavailable", "UNAVAILABLE"),
    ("DataLoss", "DATA_LOSS"),
    ("Unauthenticated", "UNAUTHENTICATED"),
];

fn protocol(version: Version) -> &'static str {
    match version {
        Version::HTTP_09 | Version::HTTP_10 => "HTTP/1.0",
        Version::HTTP_2 => "HTTP/2",
        Version::HTTP_3 => "HTTP/3",
        _ => "HTTP/1.1",
    }
}
