//! `why`: would a request pass, on which way, and what decides; out of the proxies' configuration.

mod advice;
mod cluster;
mod network;
mod proxy;
mod story;
#[cfg(test)]
mod tests;
mod text;

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use anyhow::Result;
use clap::Args;
use lateen_ir::{Hello, Question};

use self::cluster::Mesh;
pub use self::network::Beyond;
pub use self::proxy::Proxy;
pub use self::story::{Answer, Hop, Passes, Place, Start, Story, request, tell};
use crate::args::Output;
use crate::cluster::ClusterArgs;
use crate::error::Failure;
use crate::output;

/// Any port of a client's.
const CLIENT_PORT: u16 = 40_000;
/// A client outside of the cluster (RFC 5737).
const OUTSIDE: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));

/// `why`.
#[derive(Debug, Args)]
pub struct WhyArgs {
    /// Who asks: POD[.NAMESPACE], KIND/NAME[.NAMESPACE], ingress, or gateway/NAME[.NAMESPACE] for somebody outside
    #[arg(long, value_name = "WHO")]
    pub from: String,
    /// For what: a URL, or HOST[:PORT][/PATH]; tcp://HOST:PORT is bytes
    #[arg(long, value_name = "WHAT")]
    pub to: String,
    /// Method
    #[arg(short = 'X', long, default_value = "GET")]
    pub method: String,
    /// Path with query, where the URL has none
    #[arg(long)]
    pub path: Option<String>,
    /// A header, `NAME: VALUE`; may be given again
    #[arg(short = 'H', long = "header", value_name = "HEADER")]
    pub headers: Vec<String>,
    /// A claim of a token that is taken for good, `NAME=VALUE`; may be given again. iss is needed; JSON is understood
    #[arg(long = "jwt-claim", value_name = "CLAIM")]
    pub claims: Vec<String>,
    /// Address of somebody outside who asks at a gateway
    #[arg(long, value_name = "IP")]
    pub client_ip: Option<IpAddr>,
    /// How to print it
    #[arg(short, long, value_enum, default_value_t = Output::Short)]
    pub output: Output,
}

/// What a request is for.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Target {
    scheme: Scheme,
    host: String,
    /// As it was given.
    port: Option<u16>,
    path: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Scheme {
    Http,
    Https,
    Tcp,
}

impl Target {
    fn parse(text: &str) -> Result<Self, String> {
        let (scheme, rest) = match text.split_once("://") {
            None => (Scheme::Http, text),
            Some(("http", rest)) => (Scheme::Http, rest),
            Some(("https", rest)) => (Scheme::Https, rest),
            Some(("tcp", rest)) => (Scheme::Tcp, rest),
            Some((other, _)) => {
                return Err(format!("--to: {other}:// is none of http://, https:// and tcp://"));
            }
        };
        let (authority, path) = match rest.find('/') {
            Some(at) => (&rest[..at], Some(rest[at..].to_owned())),
            None => (rest, None),
        };
        let bracket = authority.rfind(']').map_or(0, |end| end + 1);
        let (host, port) = match authority[bracket..].rfind(':') {
            Some(at) => (&authority[..bracket + at], Some(&authority[bracket + at + 1..])),
            None => (authority, None),
        };
        let port = match port.map(str::parse) {
            None => None,
            Some(Ok(port)) if port != 0 => Some(port),
            Some(_) => return Err(format!("--to {text:?}: that is not a port")),
        };
        let host = host.trim_matches(['[', ']']).to_owned();
        if host.is_empty() {
            return Err(format!("--to {text:?}: it has no host"));
        }
        if scheme == Scheme::Tcp && port.is_none() {
            return Err(format!("--to {text:?}: bytes go to a port, as in tcp://{host}:9000"));
        }
        Ok(Self { scheme, host, port, path })
    }

    fn port(&self) -> u16 {
        self.port.unwrap_or(if self.scheme == Scheme::Https { 443 } else { 80 })
    }

    fn authority(&self) -> String {
        self.port.map_or_else(|| self.host.clone(), |port| format!("{}:{port}", self.host))
    }
}

/// Runs the command.
///
/// # Errors
/// What could not be found or read, with what to try next.
pub async fn run(cluster: &ClusterArgs, args: &WhyArgs) -> Result<()> {
    let wrong = |reason: String| Failure::new(format!("{reason}."), "lateen why --help");
    let target = Target::parse(&args.to).map_err(wrong)?;
    let path = target.path.clone().or_else(|| args.path.clone()).unwrap_or_else(|| "/".to_owned());
    let asked =
        request(&args.method, &target.authority(), &path, &args.headers, &args.claims).map_err(wrong)?;
    let hello = (target.scheme == Scheme::Https).then(|| Hello {
        server_name: target.host.to_ascii_lowercase(),
        protocols: vec!["h2".to_owned(), "http/1.1".to_owned()],
        certificate: None,
    });
    let mesh = Mesh::look(cluster).await?;
    let begun = mesh.begin(cluster, &args.from, &target).await?;
    let what = match target.scheme {
        Scheme::Tcp => format!("tcp://{}", target.authority()),
        Scheme::Http => format!("{} http://{}{}", asked.method, asked.authority, asked.path),
        Scheme::Https => format!("{} https://{}{}", asked.method, asked.authority, asked.path),
    };
    let source = match (begun.source, args.client_ip) {
        (None, given) => given.unwrap_or(OUTSIDE),
        (Some(own), None) => own,
        (Some(_), Some(_)) => {
            let reason = "--client-ip is for requests from outside (--from ingress)".to_owned();
            return Err(wrong(reason).into());
        }
    };
    let start = Start {
        question: format!("{what} from {}", begun.name),
        proxy: begun.proxy,
        entry: begun.entry,
        asked: Question {
            destination: begun.destination,
            source: SocketAddr::new(source, CLIENT_PORT),
            tls: hello,
            request: (target.scheme != Scheme::Tcp).then_some(asked),
        },
    };
    let hosts = start.proxy.as_ref().map(|(_, proxy)| proxy.hosts()).unwrap_or_default();
    let mut story = tell(start, async |address, cluster: &str| mesh.at(address, cluster).await).await?;
    if begun.unknown {
        story.answer.of_unknown(&target.host, &hosts);
    }
    story.answer.next.extend(begun.hints);
    match args.output {
        Output::Short => output::text(&text::print(&story)),
        structured => output::print(&story, structured),
    }
}
