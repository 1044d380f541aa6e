//! TLS by chance: what listeners show and ask for, what clients show, and how clusters speak to services behind TLS.

use std::sync::{Arc, LazyLock};

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt as _;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::client::TlsStream;

use super::random::{Dice, string_match};
use crate::tls::{Client, connector, ending};
use crate::tls_pki::{Pair, Pki};

const SOCKETS: &str = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3";

/// Made anew for each run; configurations name them.
static PKI: LazyLock<Pki> = LazyLock::new(Pki::new);

/// Who shows what.
fn pairs() -> [(&'static str, &'static Pair); 6] {
    [
        ("a", &PKI.server_a),
        ("wild", &PKI.server_wild),
        ("client", &PKI.client),
        ("stranger", &PKI.client_stranger),
        ("other", &PKI.client_other),
        ("expired", &PKI.client_expired),
    ]
}

fn pair(name: &str) -> &'static Pair {
    pairs().into_iter().find(|(known, _)| *known == name).expect("one of them").1
}

/// Puts certificates and keys where a configuration names them.
pub(super) fn fill(mut config: String) -> String {
    if !config.contains("PEM:") {
        return config;
    }
    let mut put = |name: String, pem: &str| {
        config = config.replace(&json!(format!("PEM:{name}")).to_string(), &json!(pem).to_string());
    };
    for (name, pair) in pairs() {
        put(format!("{name} hash"), &pair.hash);
        put(format!("{name} key hash"), &pair.key_hash);
        put(format!("{name} chain"), &pair.chain);
        put(format!("{name} key"), &pair.key);
    }
    put("authority".to_owned(), &PKI.authority.pem());
    put("nobody".to_owned(), &PKI.nobody.pem());
    config
}

fn shown(name: &str) -> Value {
    json!({
        "certificate_chain": { "inline_string": format!("PEM:{name} chain") },
        "private_key": { "inline_string": format!("PEM:{name} key") },
    })
}

/// Whom to believe, and of them whom to take.
fn validation(dice: &mut Dice, names: &[(&str, &str)]) -> Value {
    let authority = dice.one(&["PEM:authority", "PEM:authority", "PEM:authority", "PEM:nobody"]);
    let mut context = json!({ "trusted_ca": { "inline_string": authority } });
    dice.sometimes(2, &mut context, "match_typed_subject_alt_names", |dice| {
        let matchers = dice.some(2, |dice| {
            let (kind, name) = dice.one(names);
            let how = dice.one(&["exact", "prefix", "contains", "suffix"]);
            json!({ "san_type": kind, "matcher": { how: name } })
        });
        json!(matchers)
    });
    context
}

fn params(dice: &mut Dice) -> Value {
    dice.one(&[
        // Both: without a word clusters speak no more than 1.2.
        json!({ "tls_minimum_protocol_version": "TLSv1_3", "tls_maximum_protocol_version": "TLSv1_3" }),
        json!({ "tls_maximum_protocol_version": "TLSv1_2" }),
        json!({ "tls_maximum_protocol_version": "TLSv1_2", "cipher_suites": ["ECDHE-ECDSA-AES256-GCM-SHA384", "ECDHE-ECDSA-CHACHA20-POLY1305"] }),
        json!({ "ecdh_curves": ["P-256"] }),
        json!({ "tls_minimum_protocol_version": "TLSv1_2", "tls_maximum_protocol_version": "TLSv1_3" }),
    ])
}

/// A listener that shows `a` and looks at what its clients show like this.
pub(super) fn looking(validation: Value) -> Value {
    json!({ "name": "envoy.transport_sockets.tls", "typed_config": {
        "@type": format!("{SOCKETS}.DownstreamTlsContext"),
        "common_tls_context": { "tls_certificates": [shown("a")], "validation_context": validation },
    } })
}

/// A listener's side.
pub(super) fn listener(dice: &mut Dice) -> Value {
    let mut common = json!({ "tls_certificates": [shown("a")] });
    let c = &mut common;
    dice.sometimes(3, c, "tls_certificates", |_| json!([shown("a"), shown("wild")]));
    dice.sometimes(2, c, "alpn_protocols", |dice| {
        json!(dice.one(&[&["h2", "http/1.1"][..], &["http/1.1"], &["h2"], &["istio"]]))
    });
    dice.sometimes(3, c, "tls_params", params);
    let names = [
        ("URI", "spiffe://td/ns/a/sa/client"),
        ("URI", "spiffe://td/ns/a/sa/"),
        ("DNS", "client.example"),
        ("DNS", ".example"),
    ];
    dice.sometimes(2, c, "validation_context", |dice| {
        if dice.once_in(10) {
            return json!({ "trust_chain_verification": "ACCEPT_UNTRUSTED" });
        }
        let mut context = validation(dice, &names);
        dice.sometimes(8, &mut context, "verify_certificate_hash", |_| json!(["PEM:client hash"]));
        dice.sometimes(8, &mut context, "verify_certificate_spki", |_| json!(["PEM:stranger key hash"]));
        dice.sometimes(6, &mut context, "allow_expired_certificate", |_| json!(true));
        dice.sometimes(6, &mut context, "trust_chain_verification", |_| json!("ACCEPT_UNTRUSTED"));
        context
    });
    let mut socket =
        json!({ "@type": format!("{SOCKETS}.DownstreamTlsContext"), "common_tls_context": common });
    dice.sometimes(2, &mut socket, "require_client_certificate", |dice| json!(dice.0.bool()));
    dice.sometimes(5, &mut socket, "full_scan_certs_on_sni_mismatch", |_| json!(true));
    dice.sometimes(5, &mut socket, "prefer_client_ciphers", |_| json!(true));
    json!({ "name": "envoy.transport_sockets.tls", "typed_config": socket })
}

/// A cluster's side; whether it says itself which name it asks for.
pub(super) fn cluster(dice: &mut Dice, http2: bool) -> Value {
    let mut common = json!({});
    let c = &mut common;
    dice.sometimes(3, c, "tls_certificates", |dice| json!([shown(dice.one(&["client", "stranger"]))]));
    dice.sometimes(3, c, "tls_params", params);
    let protocols: &[&[&str]] =
        if http2 { &[&["h2"], &["h2", "http/1.1"]] } else { &[&["http/1.1"], &["istio", "http/1.1"]] };
    dice.sometimes(2, c, "alpn_protocols", |dice| json!(dice.one(protocols)));
    let names = [
        ("URI", "spiffe://td/ns/a/sa/server"),
        ("URI", "spiffe://other/"),
        ("DNS", "a.example"),
        ("DNS", "b.example"),
    ];
    dice.sometimes(2, c, "validation_context", |dice| validation(dice, &names));
    // Envoy's sessions are resumed without a look at the certificate, whatever name it is to have this time.
    let mut socket = json!({
        "@type": format!("{SOCKETS}.UpstreamTlsContext"), "common_tls_context": common, "max_session_keys": 0,
    });
    dice.sometimes(5, &mut socket, "auto_host_sni", |_| json!(true));
    if !socket["common_tls_context"]["validation_context"].is_null() {
        dice.sometimes(6, &mut socket, "auto_sni_san_validation", |_| json!(true));
    }
    dice.sometimes(2, &mut socket, "sni", |dice| json!(dice.one(&["a.example", "other.test"])));
    json!({ "name": "envoy.transport_sockets.tls", "typed_config": socket })
}

/// What a policy says of who shows what.
pub(super) fn principal(dice: &mut Dice) -> Value {
    let name = match dice.0.u8(..3) {
        0 => json!({ "exact": "spiffe://td/ns/a/sa/client" }),
        1 => json!({ "prefix": "spiffe://td/" }),
        _ => string_match(dice),
    };
    if dice.once_in(4) {
        return json!({ "authenticated": {} });
    }
    json!({ "authenticated": { "principal_name": name } })
}

/// A client's side.
#[derive(Clone, Debug)]
pub(super) struct Hello {
    name: Option<&'static str>,
    protocols: Vec<&'static str>,
    certificate: Option<&'static str>,
    /// TLS 1.2 and no other.
    old: bool,
}

impl Hello {
    /// Of TLS 1.3 to `a.example`, with this certificate.
    pub(super) fn showing(certificate: Option<&'static str>) -> Self {
        Self { name: Some("a.example"), protocols: Vec::new(), certificate, old: false }
    }

    /// The same of TLS 1.2.
    pub(super) fn old(self) -> Self {
        Self { old: true, ..self }
    }

    pub(super) fn random(dice: &mut Dice, http2: bool) -> Self {
        let protocols: &[&[&'static str]] = if http2 {
            &[&["h2"], &["h2", "http/1.1"]]
        } else {
            &[&[], &["http/1.1"], &["x", "http/1.1"], &["x"]]
        };
        let names = [Some("a.example"), Some("a.example"), Some("x.wild.example"), Some("b.test"), None];
        let shown =
            [None, None, Some("client"), Some("client"), Some("stranger"), Some("other"), Some("expired")];
        Self {
            name: dice.one(&names),
            protocols: dice.one(protocols).to_vec(),
            certificate: dice.one(&shown),
            old: dice.once_in(4),
        }
    }

    /// With one thing less.
    pub(super) fn smaller(&self) -> Vec<Self> {
        let less = [
            Self { name: None, ..self.clone() },
            Self { protocols: Vec::new(), ..self.clone() },
            Self { certificate: None, ..self.clone() },
            Self { old: false, ..self.clone() },
        ];
        let tells = |less: &Self| format!("{less:?}") != format!("{self:?}");
        less.into_iter().filter(tells).collect()
    }

    fn end(error: &std::io::Error) -> String {
        // rustls has no way to send the one, and says the other to clients of TLS 1.2, too, which does not know it.
        let alert = ending(error).replace("BadCertificateHashValue", "CertificateUnknown");
        format!("no handshake: {}\n", alert.replace("CertificateRequired", "HandshakeFailure"))
    }

    /// Shakes hands, and tells what was agreed on.
    ///
    /// # Errors
    /// How it ended.
    pub(super) async fn shake(&self, stream: TcpStream) -> Result<(TlsStream<TcpStream>, String), String> {
        let client = Client {
            sni: self.name,
            versions: if self.old { vec![&rustls::version::TLS12] } else { Vec::new() },
            alpn: self.protocols.clone(),
            certificate: self.certificate.map(|name| pair(name).clone()),
        };
        let name = self.name.map_or_else(
            || ServerName::IpAddress(std::net::Ipv4Addr::LOCALHOST.into()),
            |name| ServerName::try_from(name).unwrap(),
        );
        let stream = connector(&client).connect(name, stream).await.map_err(|error| Self::end(&error))?;
        let state = stream.get_ref().1;
        let leaf = state.peer_certificates().and_then(<[_]>::first);
        let shown = pairs().into_iter().find(|(_, pair)| leaf == Some(&certificate(pair)));
        let agreed = format!(
            "{:?} {:?} {:?} {:?}\n",
            state.protocol_version().unwrap(),
            state.negotiated_cipher_suite().unwrap().suite(),
            state.alpn_protocol().map(String::from_utf8_lossy),
            shown.map(|(name, _)| name),
        );
        Ok((stream, agreed))
    }
}

fn certificate(pair: &Pair) -> CertificateDer<'static> {
    CertificateDer::from_pem_slice(pair.chain.as_bytes()).unwrap()
}

/// Takes TLS off what comes, and passes it on to the service at the same address.
pub(super) fn serve(listener: TcpListener, protocol: &'static str, behind: u16) {
    let key = PrivateKeyDer::from_pem_slice(PKI.server_a.key.as_bytes()).unwrap();
    let mut config = rustls::ServerConfig::builder()
        .with_no_client_auth()
        .with_single_cert(vec![certificate(&PKI.server_a)], key)
        .unwrap();
    config.alpn_protocols = vec![protocol.as_bytes().to_vec()];
    let acceptor = TlsAcceptor::from(Arc::new(config));
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                let address = stream.local_addr().unwrap().ip();
                let Ok(mut inside) = acceptor.accept(stream).await else { return };
                let mut service = TcpStream::connect((address, behind)).await.unwrap();
                let _ = tokio::io::copy_bidirectional(&mut inside, &mut service).await;
                let _ = inside.shutdown().await;
            });
        }
    });
}
