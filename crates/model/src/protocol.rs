//! Protocols of service ports.
//! <https://istio.io/latest/docs/ops/configuration/traffic-management/protocol-selection/>

/// The protocol of a service port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Protocol {
    /// HTTP/1.1.
    Http,
    /// HTTP/2 without TLS.
    Http2,
    /// gRPC.
    Grpc,
    /// gRPC-Web.
    GrpcWeb,
    /// HTTP in TLS, not terminated by the mesh.
    Https,
    /// TLS, routed by SNI at most.
    Tls,
    /// Bytes.
    Tcp,
    /// MongoDB, carried as TCP.
    Mongo,
    /// Redis, carried as TCP.
    Redis,
    /// MySQL, carried as TCP.
    Mysql,
    /// UDP, not handled by the mesh.
    Udp,
    /// Not declared: found out from the first bytes.
    Unsupported,
}

impl Protocol {
    /// The protocol of this name, as Istio writes it in Gateways and port names; any case.
    pub fn parse(name: &str) -> Self {
        match name.to_ascii_lowercase().as_str() {
            "http" | "http_proxy" => Self::Http,
            "http2" => Self::Http2,
            "grpc" => Self::Grpc,
            "grpc-web" | "grpc_web" => Self::GrpcWeb,
            "https" => Self::Https,
            "tls" => Self::Tls,
            "tcp" => Self::Tcp,
            "mongo" => Self::Mongo,
            "redis" => Self::Redis,
            "mysql" => Self::Mysql,
            "udp" => Self::Udp,
            _ => Self::Unsupported,
        }
    }

    /// The protocol of a Kubernetes service port: UDP as Kubernetes says, then `appProtocol`, then the name up to its
    /// first hyphen, then the well-known ports of server-first protocols, which detection would hang on.
    pub fn of_port(port: u16, name: &str, app_protocol: Option<&str>, transport: &str) -> Self {
        if transport == "UDP" {
            return Self::Udp;
        }
        if let Some(app) = app_protocol {
            let found = match app {
                "kubernetes.io/h2c" => Self::Http2,
                "kubernetes.io/ws" => Self::Http,
                "kubernetes.io/wss" => Self::Https,
                other => Self::parse(other),
            };
            if found != Self::Unsupported {
                return found;
            }
        }
        let prefix =
            if name.starts_with("grpc-web") { "grpc-web" } else { name.split('-').next().unwrap_or(name) };
        match Self::parse(prefix) {
            Self::Unsupported if matches!(port, 25 | 53 | 3306 | 27017) => Self::Tcp,
            found => found,
        }
    }

    /// Whether it is HTTP the mesh can read.
    pub fn is_http(self) -> bool {
        matches!(self, Self::Http | Self::Http2 | Self::Grpc | Self::GrpcWeb)
    }

    /// Whether upstream connections speak HTTP/2.
    pub fn is_http2(self) -> bool {
        matches!(self, Self::Http2 | Self::Grpc | Self::GrpcWeb)
    }

    /// Whether the protocol is found out from the first bytes.
    pub fn is_sniffed(self) -> bool {
        self == Self::Unsupported
    }

    /// Whether connections are TLS that the mesh does not terminate.
    pub fn is_tls(self) -> bool {
        matches!(self, Self::Https | Self::Tls)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_follow_istios_selection_rules() {
        for (port, name, app, transport, expected) in [
            (80, "", None, "TCP", Protocol::Unsupported),
            (80, "http", None, "TCP", Protocol::Http),
            (80, "http-web", None, "TCP", Protocol::Http),
            (80, "HTTP-web", None, "TCP", Protocol::Http),
            (80, "httpweb", None, "TCP", Protocol::Unsupported),
            (80, "web", Some("http"), "TCP", Protocol::Http),
            (80, "tcp-web", Some("grpc"), "TCP", Protocol::Grpc),
            (80, "web", Some("kubernetes.io/h2c"), "TCP", Protocol::Http2),
            (80, "grpc-web-x", None, "TCP", Protocol::GrpcWeb),
            (80, "grpc-x", None, "TCP", Protocol::Grpc),
            (443, "https", None, "TCP", Protocol::Https),
            (3306, "db", None, "TCP", Protocol::Tcp),
            (3306, "http", None, "TCP", Protocol::Http),
            (53, "dns", None, "UDP", Protocol::Udp),
        ] {
            assert_eq!(Protocol::of_port(port, name, app, transport), expected, "{port} {name} {app:?}");
        }
    }
}
