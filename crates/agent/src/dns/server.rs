//! Queries in, answers out.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use hickory_proto::op::{Edns, Message, OpCode, ResponseCode};
use hickory_proto::rr::rdata::{A, AAAA, CNAME};
use hickory_proto::rr::{Name, RData, Record, RecordType};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::Semaphore;
use tokio::time::timeout;

use super::names::Current;
use super::table::Table;
use super::upstream::{Upstreams, read_message, write_message};

/// Queries that wait for the pod's resolvers; further ones fail at once, while the mesh's own names are always answered.
const MOST_FORWARDED: usize = 512;
/// Open TCP connections; further ones wait to be accepted.
const MOST_CONNECTIONS: usize = 128;
/// How long a TCP connection may be silent.
const IDLE: Duration = Duration::from_secs(10);
/// Seconds an answer holds: few, so that clients soon learn of changes (Istio's).
const TTL: u32 = 30;
/// The UDP payload we take.
const UDP_PAYLOAD: u16 = 1232;
/// The UDP payload of clients that say nothing, and the least one.
const LEAST_PAYLOAD: u16 = 512;

/// Bytes of a message's header (RFC 1035, 4.1.1).
const HEADER: usize = 12;
/// In its third byte: the message is an answer.
const IS_ANSWER: u8 = 0x80;
/// In its third byte: what an answer takes over from its query, the kind of query and "recursion desired".
const KEPT_FLAGS: u8 = 0x79;

/// What to do with a message.
#[derive(Debug, PartialEq, Eq)]
enum Reply {
    /// It is no query.
    Nothing,
    /// Send this.
    Answer(Vec<u8>),
    /// The name is not the mesh's; `failure` is to be sent when nobody knows it.
    Forward { failure: Vec<u8> },
}

/// What queries are answered from.
pub(super) struct Server {
    names: Current,
    upstreams: Upstreams,
    forwarded: Semaphore,
}

impl Server {
    pub(super) fn new(names: Current, upstreams: Upstreams) -> Self {
        Self { names, upstreams, forwarded: Semaphore::new(MOST_FORWARDED) }
    }

    fn reply(&self, query: &[u8], over_tcp: bool) -> Reply {
        let table = self.names.borrow().clone();
        reply(table.as_deref(), query, over_tcp)
    }

    async fn forward(&self, query: &[u8], over_tcp: bool, failure: Vec<u8>) -> Vec<u8> {
        let Ok(_permit) = self.forwarded.try_acquire() else { return failure };
        self.upstreams.ask(query, over_tcp).await.unwrap_or(failure)
    }
}

pub(super) async fn serve_udp(server: Arc<Server>, socket: UdpSocket) {
    let socket = Arc::new(socket);
    let mut buffer = vec![0; usize::from(u16::MAX)];
    loop {
        // Errors here are about earlier answers that could not be delivered.
        let Ok((length, client)) = socket.recv_from(&mut buffer).await else { continue };
        let query = &buffer[..length];
        match server.reply(query, false) {
            Reply::Nothing => {}
            // A client asks again if an answer gets lost.
            Reply::Answer(answer) => drop(socket.send_to(&answer, client).await),
            Reply::Forward { failure } => {
                if server.forwarded.available_permits() == 0 {
                    drop(socket.send_to(&failure, client).await);
                    continue;
                }
                let (server, socket, query) = (Arc::clone(&server), Arc::clone(&socket), query.to_vec());
                tokio::spawn(async move {
                    let answer = server.forward(&query, false, failure).await;
                    drop(socket.send_to(&answer, client).await);
                });
            }
        }
    }
}

pub(super) async fn serve_tcp(server: Arc<Server>, listener: TcpListener) {
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
            drop(serve_connection(&server, stream).await);
            drop(permit);
        });
    }
}

async fn serve_connection(server: &Server, mut stream: TcpStream) -> io::Result<()> {
    while let Ok(query) = timeout(IDLE, read_message(&mut stream)).await {
        let query = query?;
        let answer = match server.reply(&query, true) {
            Reply::Nothing => return Ok(()),
            Reply::Answer(answer) => answer,
            Reply::Forward { failure } => server.forward(&query, true, failure).await,
        };
        timeout(IDLE, write_message(&mut stream, &answer)).await??;
    }
    Ok(())
}

/// What to do with a message. Names of the mesh have addresses, perhaps none of the family asked for, and never "do not exist":
/// clients ask for both families at once, and take that word of one for both. Without a table nothing can be said yet.
fn reply(table: Option<&Table>, bytes: &[u8], over_tcp: bool) -> Reply {
    let Some(header) = bytes.first_chunk::<HEADER>().filter(|header| header[2] & IS_ANSWER == 0) else {
        return Reply::Nothing;
    };
    let Ok(query) = Message::from_vec(bytes) else { return Reply::Answer(malformed(*header)) };
    let mut response = Message::response(query.metadata.id, query.metadata.op_code);
    response.metadata.recursion_desired = query.metadata.recursion_desired;
    response.metadata.recursion_available = true;
    response.queries.clone_from(&query.queries);
    let mut room = LEAST_PAYLOAD;
    if let Some(edns) = &query.edns {
        let mut ours = Edns::new();
        ours.set_max_payload(UDP_PAYLOAD);
        response.set_edns(ours);
        room = edns.max_payload().max(LEAST_PAYLOAD);
    }
    let room = usize::from(if over_tcp { u16::MAX } else { room });
    let fail = |mut response: Message, code| {
        response.metadata.response_code = code;
        encode(&response, room)
    };
    let (Some(table), [question]) = (table, query.queries.as_slice()) else {
        let code = if query.queries.len() > 1 { ResponseCode::FormErr } else { ResponseCode::ServFail };
        return fail(response, code).map_or(Reply::Nothing, Reply::Answer);
    };
    let found = match query.metadata.op_code {
        OpCode::Query => answers(table, question.name(), question.query_type()),
        _ => None,
    };
    match found {
        Some(answers) => {
            response.metadata.authoritative = true;
            response.answers = answers;
            encode(&response, room).map_or(Reply::Nothing, Reply::Answer)
        }
        None => fail(response, ResponseCode::ServFail)
            .map_or(Reply::Nothing, |failure| Reply::Forward { failure }),
    }
}

/// The answer to a query that makes no sense: its header, saying so.
fn malformed([id, low, flags, ..]: [u8; HEADER]) -> Vec<u8> {
    let mut answer = vec![0; HEADER];
    let form_err = u16::from(ResponseCode::FormErr).to_be_bytes()[1];
    answer[..4].copy_from_slice(&[id, low, flags & KEPT_FLAGS | IS_ANSWER, form_err]);
    answer
}

/// The records of a name of the mesh, the addresses in any order; none when it is not the mesh's, or not asked for its addresses.
fn answers(table: &Table, name: &Name, kind: RecordType) -> Option<Vec<Record>> {
    let text = name.to_lowercase().to_ascii();
    let found = table.find(text.trim_end_matches('.'))?;
    let mut addresses: Vec<RData> = match kind {
        RecordType::A => found.addresses.v4.iter().map(|address| RData::A(A(*address))).collect(),
        RecordType::AAAA => found.addresses.v6.iter().map(|address| RData::AAAA(AAAA(*address))).collect(),
        _ => return None,
    };
    fastrand::shuffle(&mut addresses);
    let alias_of = found.alias_of.and_then(|target| Name::from_ascii(format!("{target}.")).ok());
    let owner = alias_of.as_ref().unwrap_or(name);
    let records = addresses.into_iter().map(|data| Record::from_rdata(owner.clone(), TTL, data));
    let mut records: Vec<Record> = records.collect();
    if let Some(target) = alias_of.filter(|_| !records.is_empty()) {
        records.insert(0, Record::from_rdata(name.clone(), TTL, RData::CNAME(CNAME(target))));
    }
    Some(records)
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
    use crate::dns::table::tests::table;
    use hickory_proto::op::Query;
    use proptest::prelude::*;
    use std::collections::BTreeSet;
    use std::net::SocketAddr;
    use tokio::sync::watch;
    use tokio::task::JoinSet;

    fn query(name: &str, kind: RecordType) -> Vec<u8> {
        let mut query = Message::query();
        query.metadata.recursion_desired = true;
        query.add_query(Query::query(Name::from_ascii(name).unwrap(), kind));
        query.to_vec().unwrap()
    }

    fn answer(name: &str, kind: RecordType) -> Message {
        match reply(Some(&table()), &query(name, kind), false) {
            Reply::Answer(answer) => Message::from_vec(&answer).unwrap(),
            other => panic!("{name}: {other:?}"),
        }
    }

    fn data(message: &Message) -> Vec<(String, u32, String)> {
        let record = |record: &Record| (record.name.to_ascii(), record.ttl, record.data.to_string());
        message.answers.iter().map(record).collect()
    }

    #[test]
    fn addresses_by_family() {
        let found = answer("Web.other.svc.cluster.local.", RecordType::A);
        assert_eq!(data(&found), [("Web.other.svc.cluster.local.".into(), 30, "10.96.0.8".into())]);
        assert!(found.metadata.authoritative && found.metadata.recursion_desired);
        let six = answer("web.other.svc.cluster.local.", RecordType::AAAA);
        assert_eq!(data(&six)[0].2, "fd00::8");
        let no_data = answer("web.shop.svc.cluster.local.", RecordType::AAAA);
        assert_eq!((no_data.metadata.response_code, no_data.answers.len()), (ResponseCode::NoError, 0));
        let other = reply(Some(&table()), &query("web.shop.svc.cluster.local.", RecordType::TXT), false);
        assert!(matches!(other, Reply::Forward { .. }));
    }

    #[test]
    fn aliases_come_with_what_they_stand_for() {
        let found = answer("api.example.com.shop.svc.cluster.local.", RecordType::A);
        let expected = [
            ("api.example.com.shop.svc.cluster.local.".to_owned(), 30, "api.example.com.".to_owned()),
            ("api.example.com.".to_owned(), 30, "240.240.0.1".to_owned()),
        ];
        assert_eq!(data(&found), expected);
        let no_data = answer("api.example.com.shop.svc.cluster.local.", RecordType::AAAA);
        assert_eq!((no_data.metadata.response_code, no_data.answers.len()), (ResponseCode::NoError, 0));
        let wild = answer("a.wild.example.com.shop.svc.cluster.local.", RecordType::A);
        assert_eq!(data(&wild)[0].2, "*.wild.example.com.");
        assert_eq!(data(&wild)[1].0, "*.wild.example.com.");
    }

    #[test]
    fn pods_take_turns() {
        let firsts = (0..200).map(|_| data(&answer("db.", RecordType::A))[0].2.clone());
        assert_eq!(firsts.collect::<BTreeSet<_>>().len(), 3);
    }

    #[test]
    fn nothing_is_known_before_the_first_table() {
        let bytes = query("web.", RecordType::A);
        let Reply::Answer(answer) = reply(None, &bytes, false) else { panic!("no answer") };
        let answer = Message::from_vec(&answer).unwrap();
        assert_eq!(answer.metadata.response_code, ResponseCode::ServFail);
        assert_eq!(Some(answer.metadata.id), Message::from_vec(&bytes).ok().map(|query| query.metadata.id));
    }

    #[test]
    fn malformed_queries_are_told_so() {
        let mut bytes = query("web.", RecordType::A);
        bytes.truncate(14);
        let Reply::Answer(answer) = reply(Some(&table()), &bytes, false) else { panic!("no answer") };
        let answer = Message::from_vec(&answer).unwrap();
        assert_eq!(answer.metadata.response_code, ResponseCode::FormErr);
        assert!(answer.metadata.recursion_desired);
        bytes[2] |= IS_ANSWER;
        assert_eq!(
            reply(Some(&table()), &bytes, false),
            Reply::Nothing,
            "servers that answer each other never end"
        );
        assert_eq!(reply(Some(&table()), &bytes[..11], false), Reply::Nothing);
    }

    #[test]
    fn too_much_for_udp() {
        let addresses = (0..60).map(|n| RData::A(A::new(10, 0, 0, n)));
        let mut response = Message::response(7, OpCode::Query);
        response.answers =
            addresses.map(|data| Record::from_rdata(Name::from_ascii("a.").unwrap(), TTL, data)).collect();
        let short = encode(&response, usize::from(LEAST_PAYLOAD)).unwrap();
        assert!(short.len() <= usize::from(LEAST_PAYLOAD));
        assert!(Message::from_vec(&short).unwrap().metadata.truncation);
    }

    proptest! {
        #[test]
        fn any_bytes_are_answered_within_bounds_or_not_at_all(
            mut bytes in prop::collection::vec(any::<u8>(), 0..200), as_query: bool, over_tcp: bool,
        ) {
            if as_query && bytes.len() > 12 {
                // A query's header, so that more gets past it.
                bytes[2..12].copy_from_slice(&[1, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
            }
            let room = if over_tcp { usize::from(u16::MAX) } else { bytes.len().max(usize::from(u16::MAX)) };
            match reply(Some(&table()), &bytes, over_tcp) {
                Reply::Nothing => {}
                Reply::Answer(answer) | Reply::Forward { failure: answer } => {
                    prop_assert!(answer.len() <= room);
                    prop_assert_eq!(&answer[..2], &bytes[..2]);
                    // A message that is an answer, so that two servers never talk to each other.
                    prop_assert!(answer[2] & 0x80 != 0);
                }
            }
        }

        #[test]
        fn answers_fit_what_clients_take(payload in prop::option::of(any::<u16>())) {
            let mut query = Message::query();
            query.add_query(Query::query(Name::from_ascii("many.example.com.").unwrap(), RecordType::A));
            if let Some(payload) = payload {
                let mut edns = Edns::new();
                edns.set_max_payload(payload);
                query.set_edns(edns);
            }
            let room = usize::from(payload.unwrap_or_default().max(LEAST_PAYLOAD));
            let Reply::Answer(answer) = reply(Some(&many()), &query.to_vec().unwrap(), false) else { panic!("no answer") };
            prop_assert!(answer.len() <= room);
            let truncated = Message::from_vec(&answer).unwrap().metadata.truncation;
            let Reply::Answer(whole) = reply(Some(&many()), &query.to_vec().unwrap(), true) else { panic!("no answer") };
            prop_assert_eq!(truncated, room < whole.len());
        }
    }

    /// A name with more addresses than most clients take over UDP.
    fn many() -> Table {
        use lateen_xds::name_table::{NameInfo, NameTable};
        let ips = (0..100).map(|n| format!("10.0.0.{n}")).collect();
        let info = NameInfo { ips, registry: "External".to_owned(), ..NameInfo::default() };
        let table = NameTable { table: [("many.example.com".to_owned(), info)].into() };
        Table::new(&table, &crate::dns::table::Domain::new("shop", "shop.svc.cluster.local", &[]))
    }

    /// A port over UDP and TCP: somebody else may have it over one of them.
    async fn both_ways() -> (UdpSocket, TcpListener, SocketAddr) {
        loop {
            let udp = UdpSocket::bind("127.0.0.1:0").await.unwrap();
            let address = udp.local_addr().unwrap();
            if let Ok(tcp) = TcpListener::bind(address).await {
                return (udp, tcp, address);
            }
        }
    }

    /// A server with a table whose resolvers are these.
    async fn started(resolvers: Vec<SocketAddr>, tasks: &mut JoinSet<()>) -> SocketAddr {
        let current = watch::Sender::new(Some(Arc::new(table()))).subscribe();
        let server = Arc::new(Server::new(current, Upstreams::new(resolvers, None)));
        let (udp, tcp, address) = both_ways().await;
        tasks.spawn(serve_udp(Arc::clone(&server), udp));
        tasks.spawn(serve_tcp(server, tcp));
        address
    }

    async fn ask_udp(server: SocketAddr, query: &[u8]) -> Message {
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        socket.connect(server).await.unwrap();
        socket.send(query).await.unwrap();
        let mut buffer = vec![0; 65_535];
        let length = timeout(Duration::from_secs(20), socket.recv(&mut buffer)).await.unwrap().unwrap();
        Message::from_vec(&buffer[..length]).unwrap()
    }

    async fn ask_tcp(server: SocketAddr, query: &[u8]) -> Message {
        let mut stream = TcpStream::connect(server).await.unwrap();
        write_message(&mut stream, query).await.unwrap();
        Message::from_vec(&read_message(&mut stream).await.unwrap()).unwrap()
    }

    /// A resolver that truncates over UDP, knows everything over TCP, and that `missing.` does not exist.
    async fn resolver(tasks: &mut JoinSet<()>) -> SocketAddr {
        fn told(bytes: &[u8], over_tcp: bool) -> Vec<u8> {
            let query = Message::from_vec(bytes).unwrap();
            let mut response = Message::response(query.metadata.id, OpCode::Query);
            let name = query.queries[0].name().clone();
            response.queries.clone_from(&query.queries);
            if name.to_ascii() == "missing." {
                response.metadata.response_code = ResponseCode::NXDomain;
            } else if over_tcp {
                response.answers.push(Record::from_rdata(name, 5, RData::A(A::new(1, 2, 3, 4))));
            } else {
                response.metadata.truncation = true;
            }
            response.to_vec().unwrap()
        }
        let (udp, tcp, address) = both_ways().await;
        tasks.spawn(async move {
            let mut buffer = vec![0; 65_535];
            while let Ok((length, client)) = udp.recv_from(&mut buffer).await {
                // An answer to somebody else's question first.
                udp.send_to(&[0, 0, 0x80], client).await.unwrap();
                udp.send_to(&told(&buffer[..length], false), client).await.unwrap();
            }
        });
        tasks.spawn(async move {
            while let Ok((mut stream, _)) = tcp.accept().await {
                let query = read_message(&mut stream).await.unwrap();
                write_message(&mut stream, &told(&query, true)).await.unwrap();
            }
        });
        address
    }

    #[tokio::test]
    async fn other_names_are_asked_of_the_pods_resolvers() {
        let mut tasks = JoinSet::new();
        // Nobody is at the first one.
        let nobody = UdpSocket::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
        let resolvers = vec![nobody, resolver(&mut tasks).await];
        let server = started(resolvers, &mut tasks).await;
        let missing = ask_udp(server, &query("missing.", RecordType::A)).await;
        assert_eq!(missing.metadata.response_code, ResponseCode::NXDomain);
        let long = query("long.", RecordType::A);
        assert!(ask_udp(server, &long).await.metadata.truncation);
        assert_eq!(data(&ask_tcp(server, &long).await)[0].2, "1.2.3.4");
        let own = query("web.", RecordType::A);
        assert_eq!(data(&ask_udp(server, &own).await)[0].2, "10.96.0.7");
        assert_eq!(data(&ask_tcp(server, &own).await)[0].2, "10.96.0.7");
    }

    #[tokio::test]
    async fn dead_resolvers_fail_only_their_names() {
        let mut tasks = JoinSet::new();
        let nobody = UdpSocket::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
        let server = started(vec![nobody], &mut tasks).await;
        let failed = ask_udp(server, &query("example.org.", RecordType::A)).await;
        assert_eq!(failed.metadata.response_code, ResponseCode::ServFail);
        let failed = ask_tcp(server, &query("example.org.", RecordType::A)).await;
        assert_eq!(failed.metadata.response_code, ResponseCode::ServFail);
        assert_eq!(ask_udp(server, &query("web.", RecordType::A)).await.answers.len(), 1);
    }

    /// A resolver that never answers holds so many queries and no more; the mesh's own names go on being answered.
    #[tokio::test]
    async fn a_silent_resolver_holds_only_so_many_queries() {
        let mut tasks = JoinSet::new();
        let silent = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let server = started(vec![silent.local_addr().unwrap()], &mut tasks).await;
        let client = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        client.connect(server).await.unwrap();
        let mut buffer = vec![0; 65_535];
        let refused = async {
            loop {
                client.send(&query("example.org.", RecordType::A)).await.unwrap();
                if let Ok(length) = client.try_recv(&mut buffer) {
                    break Message::from_vec(&buffer[..length]).unwrap();
                }
                tokio::task::yield_now().await;
            }
        };
        let refused = timeout(Duration::from_secs(4), refused).await.unwrap();
        assert_eq!(refused.metadata.response_code, ResponseCode::ServFail);
        assert_eq!(ask_udp(server, &query("web.", RecordType::A)).await.answers.len(), 1);
    }
}
