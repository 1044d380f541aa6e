//! Gateways.
use serde_json::{Value, json};

use super::check;

#[test]
fn gateways() {
    let port = |protocol: &str| json!({"number": 80, "name": "p", "protocol": protocol});
    let server = |server: Value| json!({ "servers": [server] });
    check(
        "Gateway",
        [
            (json!({}), "spec.servers: gateway must have at least one server"),
            (
                server(json!({"port": port("HTTP")})),
                "spec.servers[0].hosts: server config must contain at least one host",
            ),
            (
                server(json!({"port": port("FTP"), "hosts": ["*"]})),
                "spec.servers[0].port.protocol: invalid protocol \"FTP\", supported protocols are HTTP, HTTP2, GRPC, GRPC-WEB, MONGO, REDIS, MYSQL, TCP",
            ),
            (
                server(
                    json!({"port": {"number": 80, "name": "p", "protocol": "HTTP", "targetPort": 1}, "hosts": ["*"]}),
                ),
                "spec.servers[0].port.targetPort: targetPort has no impact on Gateways",
            ),
            (
                server(json!({"port": port("HTTPS"), "hosts": ["*"]})),
                "spec.servers[0]: server must have TLS settings for HTTPS/TLS protocols",
            ),
            (
                server(
                    json!({"port": port("TCP"), "hosts": ["*"], "tls": {"mode": "SIMPLE", "credentialName": "c"}}),
                ),
                "spec.servers[0].tls: server cannot have TLS settings for non HTTPS/TLS ports",
            ),
            (
                json!({"servers": [{"port": port("HTTP"), "hosts": ["*"]}, {"port": port("HTTP"), "hosts": ["*"]}]}),
                "spec.servers[1].port.name: port names in servers must be unique: duplicate name p",
            ),
        ],
    );
}
