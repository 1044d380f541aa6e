//! Requests over HTTP/2, and a service that speaks it.

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, Response};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpListener;

use super::asked::{Asked, Framing};
use crate::wire::{Duplex, comparable};

type Body = BoxBody<Bytes, std::convert::Infallible>;

fn body(text: impl Into<Bytes>, trailers: bool) -> Body {
    let whole = Full::new(text.into());
    if !trailers {
        return whole.boxed();
    }
    let trailer =
        HeaderMap::from_iter([(http::HeaderName::from_static("x-sum"), HeaderValue::from_static("7"))]);
    whole.with_trailers(async { Some(Ok(trailer)) }).boxed()
}

fn lines(headers: &HeaderMap) -> String {
    let line = |(name, value): (&http::HeaderName, &HeaderValue)| {
        comparable(&format!("{name}: {}", String::from_utf8_lossy(value.as_bytes())))
    };
    let mut lines: Vec<String> = headers.iter().map(line).collect();
    lines.sort_unstable();
    lines.join("\n")
}

/// What is seen of an answer; what HTTP/2 can't say is not asked.
pub(super) async fn ask(asked: &Asked, stream: impl Duplex + 'static) -> String {
    let scheme = if asked.tls.is_some() { "https" } else { "http" };
    let mut request =
        Request::builder().method(asked.method).uri(format!("{scheme}://{}{}", asked.host, asked.target));
    for line in &asked.lines {
        let (name, value) = line.split_once(':').unwrap();
        request = request.header(name, value.trim());
    }
    let trailers = asked.framing == Framing::Trailers && asked.body.is_some();
    let Ok(request) = request.body(body(asked.body.unwrap_or_default(), trailers)) else {
        return "NOT ASKED\n".to_owned();
    };
    let Ok((mut sender, driver)) = http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await else {
        return "END\n".to_owned();
    };
    let driver = tokio::spawn(async move { drop(driver.await) });
    let answered = tokio::time::timeout(crate::proxies::LIMIT, sender.send_request(request)).await;
    let text = match answered {
        Err(_) => "silent\n".to_owned(),
        Ok(Err(_)) => "END\n".to_owned(),
        Ok(Ok(answer)) => {
            let (head, rest) = answer.into_parts();
            let rest = match rest.collect().await {
                Err(_) => "CUT".to_owned(),
                Ok(rest) => {
                    let trailers = rest.trailers().map(lines).unwrap_or_default();
                    format!("{}\ntrailers {trailers}", String::from_utf8_lossy(&rest.to_bytes()))
                }
            };
            format!("HTTP/2 {}\n{}\n\n{rest}\n", head.status, lines(&head.headers))
        }
    };
    drop(sender);
    let _ = driver.await;
    text
}

/// Serves until the test ends.
pub(super) fn serve(listener: TcpListener) {
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let service = hyper::service::service_fn(answer);
            let serving = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
            tokio::spawn(serving.serve_connection(TokioIo::new(stream), service));
        }
    });
}

/// As `service` answers to an `act`, in so far as HTTP/2 can.
async fn answer(request: Request<Incoming>) -> Result<Response<Body>, std::io::Error> {
    let (head, sent) = request.into_parts();
    let sent = sent.collect().await.map_err(std::io::Error::other)?;
    let trailers =
        sent.trailers().map(|trailers| format!("\ntrailer {}", lines(trailers))).unwrap_or_default();
    let sent = String::from_utf8_lossy(&sent.to_bytes()).into_owned() + &trailers;
    let bare = head.method == http::Method::HEAD;
    let body =
        |text: &str, trailers: bool| if bare { body("", false) } else { body(text.to_owned(), trailers) };
    let act = head.headers.get("act").and_then(|act| act.to_str().ok()).unwrap_or_default();
    if act.ends_with("close") {
        return Err(std::io::Error::other("as asked"));
    }
    if let Some(status) = act.strip_prefix("grpc-") {
        let answer =
            Response::builder().header("content-type", "application/grpc").header("grpc-status", status);
        return Ok(answer.body(body("", false)).unwrap());
    }
    if let Ok(status) = act.parse::<u16>() {
        let text = if matches!(status, 204 | 304) { "" } else { "so" };
        return Ok(Response::builder().status(status).body(body(text, false)).unwrap());
    }
    if act == "trailers" {
        return Ok(Response::new(body("ok", true)));
    }
    // That there is no body may be said or not.
    let shown: Vec<String> = lines(&head.headers)
        .lines()
        .filter(|line| *line != "content-length: 0")
        .map(|line| format!("> {line}"))
        .collect();
    let text = format!("> {} {}\n{}\n{sent}", head.method, head.uri, shown.join("\n"));
    Ok(Response::new(body(&text, false)))
}
