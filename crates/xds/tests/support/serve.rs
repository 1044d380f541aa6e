//! Serving in plain text.
use std::net::SocketAddr;

use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::service::TowerToHyperService;
use lateen_xds::server::{AdsServer, Source};
use tokio::net::TcpListener;

/// Serves at a port of its own until the test ends.
pub(crate) async fn serve<S: Source>(ads: AdsServer<S>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let service = TowerToHyperService::new(ads.clone());
            tokio::spawn(async move {
                let builder = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
                // Ends with an error when the client goes.
                let _ended = builder.serve_connection(TokioIo::new(stream), service).await;
            });
        }
    });
    address
}
