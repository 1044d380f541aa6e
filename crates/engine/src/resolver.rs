//! Names asked of DNS servers directly, so that answers say how long they hold (the C library does not tell).

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Duration;

use hickory_resolver::TokioResolver;
use hickory_resolver::config::{ConnectionConfig, NameServerConfig, ResolverConfig, ResolverOpts};
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::net::{DnsError, NetError};
use hickory_resolver::proto::op::ResponseCode;
use hickory_resolver::proto::rr::{RData, RecordType};
use hickory_resolver::system_conf::read_system_conf;
use lateen_ir::{DnsFamily, DnsResolver};

/// What a name stands for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Answer {
    /// In the order of the answer; empty when the name does not exist or has no address.
    pub(crate) addresses: Vec<IpAddr>,
    /// How long it holds: the shortest of its records.
    pub(crate) ttl: Duration,
    /// There is no such name, as against one without an address.
    pub(crate) missing: bool,
}

/// Why a look-up failed, in the words of Envoy's resolver without their spaces.
pub(crate) fn failure(error: &NetError) -> &'static str {
    match error {
        NetError::Dns(DnsError::ResponseCode(code)) => match code {
            ResponseCode::FormErr => "cares_failure:DNS_server_claims_query_was_misformatted",
            ResponseCode::NotImp => "cares_failure:DNS_server_does_not_implement_requested_operation",
            ResponseCode::Refused => "cares_failure:DNS_server_refused_query",
            _ => "cares_failure:DNS_server_returned_general_failure",
        },
        NetError::Timeout => "cares_failure:Timeout_while_contacting_DNS_servers",
        NetError::Proto(_) | NetError::Message(_) => "cares_failure:Misformatted_domain_name",
        _ => "cares_failure:Could_not_contact_DNS_servers",
    }
}

/// Asks the servers of one configuration.
#[derive(Clone)]
pub(crate) struct Resolver(Result<TokioResolver, Arc<NetError>>);

/// The resolvers in use, by configuration: most clusters share one. Of one runtime.
#[derive(Default)]
pub(crate) struct Resolvers(HashMap<Option<Arc<DnsResolver>>, Resolver>);

impl Resolvers {
    /// The resolver of a configuration; none is the system's (`/etc/resolv.conf`, `/etc/hosts`), as it is now.
    pub(crate) fn of(&mut self, config: Option<&Arc<DnsResolver>>) -> Resolver {
        let make = || Resolver(build(config.map(|config| &**config)).map_err(Arc::new));
        self.0.entry(config.cloned()).or_insert_with(make).clone()
    }
}

fn build(config: Option<&DnsResolver>) -> Result<TokioResolver, NetError> {
    // Without a server in resolv.conf the own machine is asked (resolv.conf(5)).
    let (mut servers, mut options) = read_system_conf().unwrap_or_else(|error| {
        tracing::debug!(%error, "no usable /etc/resolv.conf; DNS is asked of 127.0.0.1");
        let own = NameServerConfig::udp_and_tcp(IpAddr::V4(Ipv4Addr::LOCALHOST));
        (ResolverConfig::from_name_servers(vec![own]), ResolverOpts::default())
    });
    // Names are asked for as often as configuration says.
    options.cache_size = 0;
    if let Some(config) = config {
        apply(config, &mut servers, &mut options);
    }
    let mut builder = TokioResolver::builder_with_config(servers, TokioRuntimeProvider::default());
    *builder.options_mut() = options;
    builder.build()
}

fn apply(config: &DnsResolver, servers: &mut ResolverConfig, options: &mut ResolverOpts) {
    let (domain, search, known) = servers.clone().into_parts();
    let mut named = known;
    if !config.servers.is_empty() {
        named = config
            .servers
            .iter()
            .map(|server| {
                let connections = [ConnectionConfig::udp(), ConnectionConfig::tcp()].map(|mut connection| {
                    connection.port = server.port();
                    connection
                });
                NameServerConfig::new(server.ip(), true, connections.into())
            })
            .collect();
    }
    if config.tcp {
        for server in &mut named {
            server.connections.retain(|connection| {
                connection.protocol.to_protocol() == hickory_resolver::net::xfer::Protocol::Tcp
            });
        }
    }
    *servers = match config.no_search {
        true => ResolverConfig::from_parts(None, Vec::new(), named),
        false => ResolverConfig::from_parts(domain, search, named),
    };
    if let Some(timeout) = config.timeout {
        options.timeout = timeout;
    }
    if let Some(tries) = config.tries {
        options.attempts = tries as usize;
    }
}

impl Resolver {
    /// The addresses of a name in the families asked for. That there are none is an answer too.
    ///
    /// # Errors
    /// When no server answers, or only to say that it cannot.
    pub(crate) async fn look_up(&self, name: &str, family: DnsFamily) -> Result<Answer, Arc<NetError>> {
        if let Ok(address) = name.parse::<IpAddr>() {
            return Ok(Answer { addresses: vec![address], ttl: Duration::MAX, missing: false });
        }
        let (v4, v6) = (|| self.records(name, RecordType::A), || self.records(name, RecordType::AAAA));
        match family {
            DnsFamily::V4Only => v4().await,
            DnsFamily::V6Only => v6().await,
            DnsFamily::V4Preferred => either(v4().await, v6).await,
            DnsFamily::Auto => either(v6().await, v4).await,
            // In the order in which c-ares asks, and is usually answered.
            DnsFamily::All => match tokio::join!(v4(), v6()) {
                (Ok(mut first), Ok(second)) => {
                    first.ttl = match (first.addresses.is_empty(), second.addresses.is_empty()) {
                        (true, false) => second.ttl,
                        (false, true) => first.ttl,
                        _ => first.ttl.min(second.ttl),
                    };
                    first.addresses.extend(second.addresses);
                    Ok(first)
                }
                (Ok(answer), Err(error)) | (Err(error), Ok(answer)) => {
                    if answer.addresses.is_empty() {
                        Err(error)
                    } else {
                        Ok(answer)
                    }
                }
                (Err(error), Err(_)) => Err(error),
            },
        }
    }

    async fn records(&self, name: &str, kind: RecordType) -> Result<Answer, Arc<NetError>> {
        let resolver = self.0.as_ref().map_err(Arc::clone)?;
        let lookup = match resolver.lookup(name, kind).await {
            Ok(lookup) => lookup,
            Err(error) if error.is_no_records_found() => {
                return Ok(Answer { missing: error.is_nx_domain(), ..Answer::default() });
            }
            Err(error) => return Err(Arc::new(error)),
        };
        let mut answer = Answer { addresses: Vec::new(), ttl: Duration::MAX, missing: false };
        for record in lookup.answers() {
            match &record.data {
                RData::A(address) if kind == RecordType::A => answer.addresses.push(IpAddr::V4(address.0)),
                RData::AAAA(address) if kind == RecordType::AAAA => {
                    answer.addresses.push(IpAddr::V6(address.0));
                }
                _ => {}
            }
            answer.ttl = answer.ttl.min(Duration::from_secs(u64::from(record.ttl)));
        }
        Ok(answer)
    }
}

/// The first answer, or where it has no address the other one.
async fn either<F: Future<Output = Result<Answer, Arc<NetError>>>>(
    first: Result<Answer, Arc<NetError>>,
    other: impl FnOnce() -> F,
) -> Result<Answer, Arc<NetError>> {
    match first {
        Ok(answer) if !answer.addresses.is_empty() => Ok(answer),
        _ => other().await,
    }
}
