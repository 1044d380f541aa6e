//! `load`: a steady mixed load that counts what is lost: requests over HTTP/1.1, HTTP/2 and gRPC, and long-lived gRPC,
//! WebSocket and TCP streams with numbered messages. The other side is `echo`.
//!
//! A request is lost when it gets no answer or another than 200 (and `grpc-status` 0). A stream is broken when it ends
//! without its server having said so, when a number is missing or out of order, or when an answer takes too long.

mod report;
mod requests;
mod spec;
mod streams;

use std::time::{Duration, Instant};

use tokio::sync::watch;
use tokio::task::JoinSet;

pub use report::{Failure, FlowReport, Report};
pub use spec::{Flow, Kind, Spec};

use report::Recorder;

/// An answer that takes longer is lost.
const ANSWER_LIMIT: Duration = Duration::from_secs(10);
/// Before a stream that could not be opened or broke is opened again.
const REOPEN_PAUSE: Duration = Duration::from_millis(50);

/// Runs the flows until the time of the spec is over or `stop` says so, and waits for the answers still due.
pub async fn run(spec: Spec, stop: impl Future<Output = ()>) -> Report {
    let start = Instant::now();
    let (tell, stopped) = watch::channel(false);
    let mut tasks = JoinSet::new();
    let recorders: Vec<_> = spec.flows.iter().map(|flow| Recorder::new(start, flow.name())).collect();
    for (flow, recorder) in spec.flows.into_iter().zip(&recorders) {
        let count = if flow.kind.is_stream() { flow.streams.max(1) } else { 1 };
        for _ in 0..count {
            let (flow, recorder, stopped) = (flow.clone(), recorder.clone(), stopped.clone());
            tasks.spawn(async move {
                match flow.kind {
                    Kind::Http1 | Kind::Http1New | Kind::Http2 | Kind::Grpc => {
                        requests::run(&flow, &recorder, stopped).await;
                    }
                    Kind::GrpcStream | Kind::Websocket | Kind::Numbers => {
                        streams::run(&flow, &recorder, stopped).await;
                    }
                }
            });
        }
    }
    let time = async {
        match spec.seconds {
            Some(seconds) => tokio::time::sleep(Duration::from_secs_f64(seconds)).await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        () = time => {}
        () = stop => {}
    }
    tell.send_replace(true);
    while tasks.join_next().await.is_some() {}
    Report::collect(start.elapsed(), recorders)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::serve::Ending;
    use crate::{echo, serve};
    use tokio::net::TcpListener;
    use tokio::sync::oneshot;

    fn flows(http: &str, numbers: &str) -> Vec<Flow> {
        let flow =
            |kind, to: &str| Flow { kind, to: to.to_owned(), host: None, path: None, rate: 50.0, streams: 2 };
        vec![
            flow(Kind::Http1, http),
            flow(Kind::Http1New, http),
            flow(Kind::Http2, http),
            flow(Kind::Grpc, http),
            flow(Kind::GrpcStream, http),
            flow(Kind::Websocket, http),
            flow(Kind::Numbers, numbers),
        ]
    }

    async fn listen() -> (TcpListener, String) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        (listener, address)
    }

    #[tokio::test]
    async fn a_well_server_loses_nothing_not_even_when_it_ends() {
        let ((http, http_address), (tcp, tcp_address)) = (listen().await, listen().await);
        let (end, ended) = oneshot::channel::<()>();
        let ending = Ending::after(async { drop(ended.await) }, Duration::ZERO);
        let who = echo::Instance { instance: "pod-1".into(), version: String::new() };
        let app = echo::app(who, ending.clone());
        tokio::spawn(serve::serve(http, app, std::future::pending(), Duration::ZERO));
        tokio::spawn(crate::echo_streams::serve_numbers(tcp, "pod-1".into(), ending));
        let (stop, stopped) = oneshot::channel::<()>();
        let spec = Spec { seconds: None, flows: flows(&http_address, &tcp_address) };
        let load = tokio::spawn(run(spec, async { drop(stopped.await) }));
        tokio::time::sleep(Duration::from_millis(400)).await;
        // Streams end with a goodbye, which is no loss; new ones are ended at once.
        end.send(()).unwrap();
        tokio::time::sleep(Duration::from_millis(200)).await;
        stop.send(()).unwrap();
        let report = load.await.unwrap();
        assert_eq!(report.failures, [], "{report:?}");
        for flow in &report.flows {
            assert!(flow.answered > 5, "{report:?}");
            assert!(flow.opened == 0 || flow.ended >= 2, "{report:?}");
        }
    }

    #[tokio::test]
    async fn what_is_lost_is_told_with_its_instance() {
        let ((http, http_address), (tcp, tcp_address)) = (listen().await, listen().await);
        let app =
            echo::app(echo::Instance { instance: "pod-1".into(), version: String::new() }, Ending::never());
        // On a runtime of its own, which ends all of a sudden with its connections.
        let (end, ended) = oneshot::channel::<()>();
        let (http, tcp) = (http.into_std().unwrap(), tcp.into_std().unwrap());
        let server = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let (http, tcp) = (TcpListener::from_std(http).unwrap(), TcpListener::from_std(tcp).unwrap());
                tokio::spawn(serve::serve(http, app, std::future::pending(), Duration::ZERO));
                tokio::spawn(crate::echo_streams::serve_numbers(tcp, "pod-1".into(), Ending::never()));
                drop(ended.await);
            });
            runtime.shutdown_background();
        });
        let (stop, stopped) = oneshot::channel::<()>();
        let spec = Spec { seconds: None, flows: flows(&http_address, &tcp_address) };
        let load = tokio::spawn(run(spec, async { drop(stopped.await) }));
        tokio::time::sleep(Duration::from_millis(300)).await;
        end.send(()).unwrap();
        server.join().unwrap();
        tokio::time::sleep(Duration::from_millis(200)).await;
        stop.send(()).unwrap();
        let report = load.await.unwrap();
        for flow in &report.flows {
            assert!(flow.failed > 0, "{report:?}");
            let mut told = report.failures.iter().filter(|failure| failure.flow == flow.name);
            if flow.opened > 0 {
                assert!(told.any(|failure| failure.instance.as_deref() == Some("pod-1")), "{report:?}");
            }
        }
    }
}
