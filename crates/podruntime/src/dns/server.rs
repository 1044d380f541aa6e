//! The DNS server: UDP and TCP on one address.

use std::{net::Ipv4Addr, sync::Arc, time::Duration};

use hickory_proto::{
    op::{Edns, Message, OpCode, Query, ResponseCode},
    rr::{Name, RecordType},
};
use parking_lot::RwLock;
use tokio::{
    net::{TcpListener, TcpStream, UdpSocket},
    sync::Semaphore,
    task::JoinSet,
    time::timeout,
};

use super::{
    Upstreams,
    forward::{read_message, write_message},
    zone::{Answer, Zone},
};
use crate::{Network, RuntimeError, cluster_index::ClusterIndex};

/// Queries in progress; further ones wait in the sockets' buffers.
const MOST_QUERIES: usize = 512;
/// Open TCP connections.
const MOST_CONNECTIONS: usize = 128;
/// How long a TCP connection may be silent.
const IDLE: Duration = Duration::from_secs(10);
/// Aliases are followed this often.
const MOST_ALIASES: usize = 8;
/// The UDP payload we take, and the most we send (the DNS flag day's recommendation).
const UDP_PAYLOAD: u16 = 1232;

/// What queries are answered from.
pub(crate) struct DnsServer {
    pub(crate) network: Network,
    pub(crate) index: Arc<RwLock<Arc<ClusterIndex>>>,
    pub(crate) upstreams: Upstreams,
}

/// Binds both sockets and serves them in tasks of `tasks`.
pub(crate) async fn serve(
    server: Arc<DnsServer>,
    address: (Ipv4Addr, u16),
    tasks: &mut JoinSet<()>,
) -> Result<(), RuntimeError> {
    let what = || format!("listening for DNS on {}:{}", address.0, address.1);
    let udp = UdpSocket::bind(address).await.map_err(RuntimeError::system(what()))?;
    let tcp = TcpListener::bind(address).await.map_err(RuntimeError::system(what()))?;
    tasks.spawn(serve_udp(Arc::clone(&server), udp));
    tasks.spawn(serve_tcp(server, tcp));
    Ok(())
}

async fn serve_udp(server: Arc<DnsServer>, socket: UdpSocket) {
    let socket = Arc::new(socket);
    let permits = Arc::new(Semaphore::new(MOST_QUERIES));
    let mut buffer = vec![0; usize::from(u16::MAX)];
    loop {
        // Errors here are about earlier answers that could not be delivered.
        let Ok((length, client)) = socket.recv_from(&mut buffer).await else { continue };
        let Ok(permit) = Arc::clone(&permits).acquire_owned().await else { return };
        let query = buffer[..length].to_vec();
        let (server, socket) = (Arc::clone(&server), Arc::clone(&socket));
        tokio::spawn(async move {
            if let Some(answer) = server.answer(&query, false).await {
                // The client asks again if it gets lost.
                let _ = socket.send_to(&answer, client).await;
            }
            drop(permit);
        });
    }
}

async fn serve_tcp(server: Arc<DnsServer>, listener: TcpListener) {
    let permits = Arc::new(Semaphore::new(MOST_CONNECTIONS));
    loop {
        let Ok(permit) = Arc::clone(&permits).acquire_owned().await else { return };
        let Ok((stream, _)) = listener.accept().await else {
            // Out of descriptors; wait instead of spinning.
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        let server = Arc::clone(&server);
        tokio::spawn(async move {
            // A broken connection concerns only its client.
            let _ = serve_connection(&server, stream).await;
            drop(permit);
        });
    }
}

async fn serve_connection(server: &DnsServer, mut stream: TcpStream) -> std::io::Result<()> {
    while let Ok(query) = timeout(IDLE, read_message(&mut stream)).await {
        if let Some(answer) = server.answer(&query?, true).await {
            write_message(&mut stream, &answer).await?;
        }
    }
    Ok(())
}

impl DnsServer {
    /// The answer to a message; `None` for what is no query at all.
    async fn answer(&self, bytes: &[u8], over_tcp: bool) -> Option<Vec<u8>> {
        let query = Message::from_vec(bytes).ok()?;
        let mut response = Message::response(query.metadata.id, query.metadata.op_code);
        response.metadata.recursion_desired = query.metadata.recursion_desired;
        response.metadata.recursion_available = true;
        response.queries = query.queries.clone();
        match query.queries.as_slice() {
            [question] if query.metadata.op_code == OpCode::Query => {
                if let Some(forwarded) = self.resolve(question, bytes, over_tcp, &mut response).await {
                    return Some(forwarded);
                }
            }
            [_] => response.metadata.response_code = ResponseCode::NotImp,
            _ => response.metadata.response_code = ResponseCode::FormErr,
        }
        let room = match &query.edns {
            Some(edns) => {
                let mut ours = Edns::new();
                ours.set_max_payload(UDP_PAYLOAD);
                response.set_edns(ours);
                edns.max_payload().clamp(512, UDP_PAYLOAD)
            }
            None => 512,
        };
        encode(&response, if over_tcp { usize::from(u16::MAX) } else { usize::from(room) })
    }

    /// Fills in the response, or returns another resolver's answer as it came.
    async fn resolve(
        &self,
        question: &Query,
        bytes: &[u8],
        over_tcp: bool,
        response: &mut Message,
    ) -> Option<Vec<u8>> {
        let kind = question.query_type();
        let mut name = question.name().clone();
        for _ in 0..MOST_ALIASES {
            let index = Arc::clone(&self.index.read());
            let zone = Zone { network: &self.network, index: &index };
            match zone.lookup(&name, kind) {
                Answer::Found { answers, additionals } => {
                    response.metadata.authoritative = true;
                    response
                        .authorities
                        .extend(answers.is_empty().then(|| zone.start_of_authority()).flatten());
                    response.answers.extend(answers);
                    response.additionals.extend(additionals);
                    return None;
                }
                Answer::Missing => {
                    response.metadata.authoritative = true;
                    response.metadata.response_code = ResponseCode::NXDomain;
                    response.authorities.extend(zone.start_of_authority());
                    return None;
                }
                Answer::Alias { alias, target } => {
                    response.metadata.authoritative = true;
                    response.answers.push(*alias);
                    name = target;
                }
                Answer::NotOurs if response.answers.is_empty() => {
                    let forwarded = self.upstreams.ask(bytes, over_tcp).await;
                    if forwarded.is_none() {
                        response.metadata.response_code = ResponseCode::ServFail;
                    }
                    return forwarded;
                }
                Answer::NotOurs => {
                    self.append_foreign(name, kind, over_tcp, response).await;
                    return None;
                }
            }
        }
        response.metadata.response_code = ResponseCode::ServFail;
        None
    }

    /// Adds another resolver's records for the target of an alias.
    async fn append_foreign(&self, name: Name, kind: RecordType, over_tcp: bool, response: &mut Message) {
        let mut query = Message::query();
        query.metadata.recursion_desired = true;
        query.add_query(Query::query(name, kind));
        let answer = match query.to_vec() {
            Ok(bytes) => self.upstreams.ask(&bytes, over_tcp).await,
            Err(_) => None,
        };
        match answer.and_then(|bytes| Message::from_vec(&bytes).ok()) {
            Some(answer) => {
                response.metadata.response_code = answer.metadata.response_code;
                response.answers.extend(answer.answers);
            }
            None => response.metadata.response_code = ResponseCode::ServFail,
        }
    }
}

/// The message in at most `room` bytes: what doesn't fit is left out and the client told to ask over TCP.
fn encode(response: &Message, room: usize) -> Option<Vec<u8>> {
    let bytes = response.to_vec().ok()?;
    if bytes.len() <= room {
        return Some(bytes);
    }
    let mut short = response.truncate();
    short.metadata.truncation = true;
    short.to_vec().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster_index::tests::{index, service};
    use serde_json::json;

    async fn server(index: ClusterIndex) -> (DnsServer, Name) {
        let server = DnsServer {
            network: Network::default(),
            index: Arc::new(RwLock::new(Arc::new(index))),
            upstreams: Upstreams::default(),
        };
        (server, Name::from_ascii("web.default.svc.cluster.local.").unwrap())
    }

    async fn ask(server: &DnsServer, name: Name, kind: RecordType) -> Message {
        let mut query = Message::query();
        query.add_query(Query::query(name, kind));
        let answer = server.answer(&query.to_vec().unwrap(), false).await.unwrap();
        let answer = Message::from_vec(&answer).unwrap();
        assert_eq!(answer.metadata.id, query.metadata.id);
        answer
    }

    #[tokio::test]
    async fn found_without_records_and_missing() {
        let (server, web) = server(index(&[service("web", "10.96.0.7", json!([]))], &[])).await;
        let found = ask(&server, web.clone(), RecordType::A).await;
        assert_eq!((found.metadata.response_code, found.answers.len()), (ResponseCode::NoError, 1));
        let no_data = ask(&server, web, RecordType::AAAA).await;
        assert_eq!(no_data.metadata.response_code, ResponseCode::NoError);
        assert_eq!((no_data.answers.len(), no_data.authorities.len()), (0, 1));
        let missing = Name::from_ascii("no.default.svc.cluster.local.").unwrap();
        let missing = ask(&server, missing, RecordType::A).await;
        assert_eq!((missing.metadata.response_code, missing.authorities.len()), (ResponseCode::NXDomain, 1));
    }

    #[tokio::test]
    async fn without_resolvers_foreign_names_fail_at_once() {
        let mut outside = service("web", "", json!([]));
        outside["spec"] = json!({ "type": "ExternalName", "externalName": "example.com" });
        let (server, web) = server(index(&[outside], &[])).await;
        let foreign = ask(&server, Name::from_ascii("example.com.").unwrap(), RecordType::A).await;
        assert_eq!(foreign.metadata.response_code, ResponseCode::ServFail);
        let alias = ask(&server, web, RecordType::A).await;
        assert_eq!((alias.metadata.response_code, alias.answers.len()), (ResponseCode::ServFail, 1));
    }

    #[tokio::test]
    async fn too_long_for_udp() {
        let endpoints: Vec<_> = (1..=60).map(|n| json!({ "addresses": [format!("10.244.0.{n}")] })).collect();
        let slice = crate::cluster_index::tests::slice("web", json!(endpoints), json!([]));
        let (server, web) = server(index(&[service("web", "None", json!([]))], &[slice])).await;
        let mut query = Message::query();
        query.add_query(Query::query(web, RecordType::A));
        let bytes = query.to_vec().unwrap();
        let udp = Message::from_vec(&server.answer(&bytes, false).await.unwrap()).unwrap();
        assert!(udp.metadata.truncation);
        let tcp = Message::from_vec(&server.answer(&bytes, true).await.unwrap()).unwrap();
        assert_eq!(tcp.answers.len(), 60);
    }
}
