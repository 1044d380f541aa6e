//! Interim answers (1xx): `100 Continue` for a client that expects one, made here or, with `proxy_100_continue`, by the endpoint.
//!
//! hyper's server of HTTP/1 writes no interim answer but a bare `100 Continue`, and that only when the body is first read. So it is not
//! told that the client expects one ([`smuggling`](crate::smuggling) hides it), and interim answers are put into the connection's
//! byte stream between hyper's own messages: when it has nothing left to write, [`Stream`](crate::stream::Stream) asks for them.
//! Over HTTP/2 the stream's task sends them ([`http2`](crate::http2)).

use std::sync::atomic::{AtomicBool, AtomicU16, AtomicU32, Ordering::Relaxed};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::task::{Poll, Waker};

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, HeaderValue, Response, StatusCode, header};

use crate::context::RequestContext;
use crate::http_request::told_id;
use crate::ingress::X_REQUEST_ID;

/// The first byte of an expectation of `100-continue` that hyper is not to see.
pub(crate) const HIDDEN: u8 = b'1' | 0x80;

/// Interim answers that are passed on: those that Envoy passes on.
const PASSED_ON: [u16; 4] = [100, 102, 103, 104];

/// Bytes of interim answers that may wait for a client; more are left out.
const MOST: usize = 64 * 1024;

/// Interim answers on their way to the client of an HTTP/1 connection or of an HTTP/2 stream. Locked only when there are any; shared
/// with the socket, which must be `Send` for hyper's upgrades, and with hyper's callback.
#[derive(Clone, Debug, Default)]
pub(crate) struct Interim(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    waiting: AtomicBool,
    answers: Mutex<Answers>,
    /// The task that sends them: the connection's or the stream's. Tasks that are spawned keep their wakers.
    task: OnceLock<Waker>,
    /// What came from an endpoint for the request; 0: nothing.
    came: AtomicU16,
    /// The number of the connection's request.
    request: AtomicU32,
    /// Names are written in proper case (HTTP/1).
    proper_case: bool,
    /// The request's id, where clients are told it in every answer.
    id: Mutex<Option<HeaderValue>>,
}

/// What an endpoint has said before its answer where that is not passed on: as in Envoy it counts, and ends retries, all the same.
/// Atomic only because sockets must be `Send` for hyper's upgrades.
#[derive(Clone, Debug, Default)]
pub(crate) struct Said(Arc<AtomicU16>);

impl Said {
    /// Notes the first that counts.
    pub(crate) fn note(&self, status: u16) {
        if PASSED_ON.contains(&status) && self.0.load(Relaxed) == 0 {
            self.0.store(status, Relaxed);
        }
    }

    /// Looks at what an endpoint sends over HTTP/1. It says nothing else before its answer, so that the first line comes first.
    #[inline]
    pub(crate) fn look_at(&self, bytes: &[u8]) {
        if let Some([b'1', tens, ones, b' ' | b'\r', ..]) = bytes.strip_prefix(b"HTTP/1.1 ")
            && tens.is_ascii_digit()
            && ones.is_ascii_digit()
        {
            self.note(100 + u16::from(tens - b'0') * 10 + u16::from(ones - b'0'));
        }
    }

    pub(crate) fn status(&self) -> Option<StatusCode> {
        StatusCode::from_u16(self.0.load(Relaxed)).ok()
    }

    /// For a connection's next request.
    pub(crate) fn clear(&self) {
        self.0.store(0, Relaxed);
    }
}

/// What waits to be sent.
#[derive(Debug, Default)]
struct Answers {
    list: Vec<Response<()>>,
    /// About how many bytes they are.
    bytes: usize,
}

impl Interim {
    /// Of an HTTP/1 connection. `proper_case`: whether names are written in it.
    pub(crate) fn of_http1(proper_case: bool) -> Self {
        Self(Arc::new(Shared { proper_case, ..Shared::default() }))
    }

    /// Has an interim answer sent as soon as what is before it is out.
    pub(crate) fn send(&self, status: StatusCode, headers: &HeaderMap) {
        let mut answers = self.0.answers.lock().unwrap_or_else(PoisonError::into_inner);
        if answers.bytes > MOST {
            return;
        }
        answers.bytes += headers.iter().map(|(name, value)| name.as_str().len() + value.len()).sum::<usize>();
        let mut answer = Response::new(());
        *answer.status_mut() = status;
        *answer.headers_mut() = headers.clone();
        answers.list.push(answer);
        self.0.waiting.store(true, Relaxed);
        self.wake();
    }

    /// What is to be written now over HTTP/1. [`Interim::written`] follows.
    pub(crate) fn take(&self) -> Option<Bytes> {
        if !self.0.waiting.load(Relaxed) {
            return None;
        }
        let answers = std::mem::take(&mut *self.0.answers.lock().unwrap_or_else(PoisonError::into_inner));
        let mut bytes = BytesMut::new();
        answers.list.iter().for_each(|answer| write(answer, self.0.proper_case, &mut bytes));
        Some(bytes.freeze())
    }

    /// Everything that was taken is out.
    pub(crate) fn written(&self) {
        let answers = self.0.answers.lock().unwrap_or_else(PoisonError::into_inner);
        self.0.waiting.store(!answers.list.is_empty(), Relaxed);
        self.wake();
    }

    /// What is to be sent now over HTTP/2. Whoever takes it sends it before anything else.
    pub(crate) fn take_answers(&self) -> Vec<Response<()>> {
        if !self.0.waiting.swap(false, Relaxed) {
            return Vec::new();
        }
        std::mem::take(&mut *self.0.answers.lock().unwrap_or_else(PoisonError::into_inner)).list
    }

    /// Waits until nothing waits: a final answer must not overtake an interim one.
    pub(crate) async fn sent(&self) {
        std::future::poll_fn(|_| if self.0.waiting.load(Relaxed) { Poll::Pending } else { Poll::Ready(()) })
            .await
    }

    /// Who passes the first thing on that endpoints say before their answer to a request. More is not, as with Envoy.
    pub(crate) fn listener(&self) -> impl Fn(StatusCode, &HeaderMap) + Send + Sync + 'static {
        let (client, number) = (self.clone(), self.0.request.load(Relaxed));
        let id = self.0.id.lock().unwrap_or_else(PoisonError::into_inner).clone();
        move |status, headers| {
            // An attempt that was given up may still be told something when another's answer is under way.
            let late = client.0.request.load(Relaxed) != number;
            if late || !PASSED_ON.contains(&status.as_u16()) || client.came().is_some() {
                return;
            }
            client.0.came.store(status.as_u16(), Relaxed);
            let mut headers = headers.clone();
            for name in [header::CONNECTION, header::TRANSFER_ENCODING, header::UPGRADE] {
                headers.remove(name);
            }
            if let Some(id) = &id {
                headers.insert(X_REQUEST_ID, id.clone());
            }
            client.send(status, &headers);
        }
    }

    /// What came from an endpoint.
    pub(crate) fn came(&self) -> Option<StatusCode> {
        StatusCode::from_u16(self.0.came.load(Relaxed)).ok()
    }

    /// The request has its answer: nothing goes before it any more.
    pub(crate) fn end_request(&self) {
        self.0.came.store(0, Relaxed);
        self.0.request.fetch_add(1, Relaxed);
    }

    /// Whose task is to be woken by what is to be sent: the one that serves the request, too.
    pub(crate) fn wake_with(&self, task: &Waker) {
        // Set before, it is the same; this is asked on every poll.
        self.0.task.get_or_init(|| task.clone());
    }

    fn wake(&self) {
        self.0.task.get().into_iter().for_each(Waker::wake_by_ref);
    }
}

/// An interim answer as HTTP/1 has it.
fn write(answer: &Response<()>, proper_case: bool, bytes: &mut BytesMut) {
    bytes.extend_from_slice(b"HTTP/1.1 ");
    bytes.extend_from_slice(answer.status().as_str().as_bytes());
    bytes.extend_from_slice(b" ");
    // Envoy's words, which has none for the others.
    let reason = match answer.status().as_u16() {
        100 => "Continue",
        _ => "Unknown",
    };
    bytes.extend_from_slice(reason.as_bytes());
    bytes.extend_from_slice(b"\r\n");
    for (name, value) in answer.headers() {
        let mut begins = true;
        bytes.extend(name.as_str().bytes().map(|byte| {
            let written = if begins && proper_case { byte.to_ascii_uppercase() } else { byte };
            begins = !byte.is_ascii_alphanumeric();
            written
        }));
        bytes.extend_from_slice(b": ");
        bytes.extend_from_slice(value.as_bytes());
        bytes.extend_from_slice(b"\r\n");
    }
    bytes.extend_from_slice(b"\r\n");
}

/// Where a request's client is told something before its answer.
pub(crate) fn of(context: &RequestContext) -> Option<&Interim> {
    context.interim.as_ref().or(context.connection.interim.as_ref())
}

/// Where endpoints' interim answers go to, if they are passed on.
pub(crate) fn passed_on(context: &RequestContext) -> Option<&Interim> {
    of(context).filter(|_| context.connection.config.hcm.proxy_100_continue)
}

/// Has what endpoints say before their answer tell the request's id, where answers do.
pub(crate) fn tell_id(context: &RequestContext) {
    if let Some(interim) = passed_on(context) {
        let id = told_id(context).cloned();
        *interim.0.id.lock().unwrap_or_else(PoisonError::into_inner) = id;
    }
}

/// Counts an interim answer and notes it as what the client was told last.
pub(crate) fn charge_downstream(context: &mut RequestContext, status: StatusCode) {
    context.connection.stats.downstream_rq_completed.inc();
    context.connection.stats.downstream_rq_1xx.inc();
    context.status = Some(status);
}

/// Whether a client waits for `100 Continue`.
pub(crate) fn expects_continue(headers: &HeaderMap) -> bool {
    let expects = |value: &HeaderValue| value.as_bytes().eq_ignore_ascii_case(b"100-continue");
    headers.get(header::EXPECT).is_some_and(expects)
}

/// Undoes what hid from hyper what the client expects.
pub(crate) fn show_expectation(context: &mut RequestContext) {
    if context.connection.interim.is_some() {
        let headers = context.head.headers.iter_mut();
        headers.filter(|(name, _)| *name == header::EXPECT).for_each(|(_, value)| show(value));
    }
}

/// Answers a client that expects `100 Continue`, unless the endpoint is to do so.
pub(crate) async fn meet_expectation(context: &mut RequestContext) {
    let passes_on = context.connection.config.hcm.proxy_100_continue;
    if passes_on || !expects_continue(&context.head.headers) {
        return;
    }
    context.head.headers.remove(header::EXPECT);
    if let Some(interim) = of(context).cloned() {
        charge_downstream(context, StatusCode::CONTINUE);
        interim.send(StatusCode::CONTINUE, &HeaderMap::new());
        interim.sent().await;
    }
}

/// Undoes what was done to a value that hyper was not to see.
fn show(value: &mut HeaderValue) {
    if value.as_bytes().first() == Some(&HIDDEN) {
        let mut shown = value.as_bytes().to_vec();
        shown[0] = b'1';
        if let Ok(shown) = HeaderValue::from_bytes(&shown) {
            *value = shown;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interim_answers_wait_until_they_are_taken_and_written() {
        let interim = Interim::default();
        assert!(interim.take().is_none());
        let hints = HeaderMap::from_iter([(header::LINK, HeaderValue::from_static("</a>"))]);
        interim.send(StatusCode::EARLY_HINTS, &hints);
        interim.send(StatusCode::CONTINUE, &HeaderMap::new());
        let taken = interim.take().unwrap();
        assert_eq!(&taken[..], b"HTTP/1.1 103 Unknown\r\nlink: </a>\r\n\r\nHTTP/1.1 100 Continue\r\n\r\n");
        interim.send(StatusCode::CONTINUE, &HeaderMap::new());
        interim.written();
        assert_eq!(interim.take().unwrap().len(), 25);
        interim.written();
        assert!(interim.take().is_none());
    }

    #[test]
    fn what_an_endpoint_says_before_its_answer_is_seen() {
        let said = |reads: &[&str]| {
            let said = Said::default();
            reads.iter().for_each(|read| said.look_at(read.as_bytes()));
            said.status().map(|status| status.as_u16())
        };
        assert_eq!(said(&["HTTP/1.1 100 Continue\r\n\r\n", "HTTP/1.1 200 OK\r\n"]), Some(100));
        assert_eq!(said(&["HTTP/1.1 103\r\n\r\n", "HTTP/1.1 100 Continue\r\n\r\n"]), Some(103), "the first");
        assert_eq!(said(&["HTTP/1.1 101 Switching Protocols\r\n\r\n"]), None);
        assert_eq!(said(&["HTTP/1.1 200 OK\r\n\r\n", "HTTP/1.1 1"]), None);
    }

    #[test]
    fn a_client_that_is_never_written_to_holds_little() {
        let interim = Interim::default();
        let large = HeaderMap::from_iter([(header::LINK, HeaderValue::from_bytes(&[b'x'; 1024]).unwrap())]);
        (0..1000).for_each(|_| interim.send(StatusCode::EARLY_HINTS, &large));
        assert!(interim.take().unwrap().len() <= MOST + 2048);
    }
}
