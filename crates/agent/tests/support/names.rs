//! A DNS server that says of names what a test wants.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, Mutex};

use hickory_proto::op::{Message, ResponseCode};
use hickory_proto::rr::rdata::{A, AAAA};
use hickory_proto::rr::{RData, Record, RecordType};
use tokio::net::UdpSocket;

/// What it says of a name.
#[derive(Clone)]
#[allow(dead_code, reason = "each test uses a part")]
pub(crate) enum Says {
    /// These addresses, for so many seconds.
    Addresses(Vec<Ipv4Addr>, u32),
    /// Addresses of both families, for so many seconds.
    Families(Vec<Ipv4Addr>, Vec<Ipv6Addr>, u32),
    NoSuchName,
    NoAddress,
    Failure,
    Refuses,
    Nothing,
}

impl Says {
    /// One address, for so many seconds.
    pub(crate) fn address(address: Ipv4Addr, seconds: u32) -> Self {
        Self::Addresses(vec![address], seconds)
    }
}

/// The server; names it was told nothing of are none.
#[derive(Clone)]
pub(crate) struct Names {
    says: Arc<Mutex<BTreeMap<&'static str, Says>>>,
    pub(crate) address: SocketAddr,
}

impl Names {
    pub(crate) async fn start() -> Self {
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let names = Self { says: Arc::default(), address: socket.local_addr().unwrap() };
        let serving = names.clone();
        tokio::spawn(async move {
            let mut buffer = [0; 2048];
            loop {
                let Ok((length, from)) = socket.recv_from(&mut buffer).await else { continue };
                if let Some(answer) = serving.answer(&buffer[..length]) {
                    let _ = socket.send_to(&answer, from).await;
                }
            }
        });
        names
    }

    pub(crate) fn set(&self, name: &'static str, says: Says) {
        self.says.lock().unwrap().insert(name, says);
    }

    fn answer(&self, bytes: &[u8]) -> Option<Vec<u8>> {
        let query = Message::from_vec(bytes).ok()?;
        let question = query.queries.first()?.clone();
        let mut response = Message::response(query.metadata.id, query.metadata.op_code);
        response.metadata.recursion_available = true;
        response.metadata.recursion_desired = query.metadata.recursion_desired;
        response.queries = query.queries;
        let name = question.name().to_utf8().trim_end_matches('.').to_ascii_lowercase();
        match self.says.lock().unwrap().get(&*name).cloned().unwrap_or(Says::NoSuchName) {
            Says::Addresses(addresses, ttl) if question.query_type() == RecordType::A => {
                let record = |address| Record::from_rdata(question.name().clone(), ttl, RData::A(A(address)));
                response.answers.extend(addresses.into_iter().map(record));
            }
            Says::Families(v4, v6, ttl) => {
                let data: Vec<RData> = match question.query_type() {
                    RecordType::A => v4.into_iter().map(|address| RData::A(A(address))).collect(),
                    RecordType::AAAA => v6.into_iter().map(|address| RData::AAAA(AAAA(address))).collect(),
                    _ => Vec::new(),
                };
                let record = |data| Record::from_rdata(question.name().clone(), ttl, data);
                response.answers.extend(data.into_iter().map(record));
            }
            Says::Addresses(..) | Says::NoAddress => {}
            Says::NoSuchName => response.metadata.response_code = ResponseCode::NXDomain,
            Says::Failure => response.metadata.response_code = ResponseCode::ServFail,
            Says::Refuses => response.metadata.response_code = ResponseCode::Refused,
            Says::Nothing => return None,
        }
        response.to_vec().ok()
    }
}
