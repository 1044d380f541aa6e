//! `lateen-samples`: one program, one subcommand for each demo application.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;
use axum::Router;
use clap::{Parser, Subcommand};
use lateen_samples::boutique::{catalog, frontend, recommendation};
use lateen_samples::{customers, echo, echo_streams, ext_authz, hello, httpbin, load, serve, web_frontend};
use tokio::io::AsyncReadExt;
use tokio::net::TcpListener;

#[derive(Parser)]
#[command(
    name = "lateen-samples",
    version,
    about = "The course's demo applications",
    args_override_self = true
)]
struct Cli {
    #[command(subcommand)]
    app: App,
    /// How long to go on serving after SIGTERM, in milliseconds, so that callers learn of the end before the socket closes
    #[arg(long, global = true, env = "SHUTDOWN_DELAY_MS", default_value_t = 2000)]
    shutdown_delay_ms: u64,
}

#[derive(Subcommand)]
enum App {
    /// Answers "Hello World" to everything
    HelloWorld {
        #[arg(long, env = "PORT", default_value_t = 3000)]
        port: u16,
    },
    /// A list of customers as JSON; from version 2 on with their cities
    Customers {
        #[arg(long, env = "PORT", default_value_t = 3000)]
        port: u16,
        /// The image's tag: 1.0.0 has names only, 2.0.0 adds cities
        #[arg(long, default_value = "1.0.0")]
        tag: String,
    },
    /// An HTML page with the customers found at CUSTOMER_SERVICE_URL
    WebFrontend {
        #[arg(long, env = "PORT", default_value_t = 8080)]
        port: u16,
        #[arg(
            long,
            env = "CUSTOMER_SERVICE_URL",
            default_value = "http://customers.default.svc.cluster.local"
        )]
        customer_service_url: String,
    },
    /// HTTP request and response service
    #[command(args_override_self = true)]
    Httpbin {
        #[arg(long, env = "PORT", default_value_t = 80)]
        port: u16,
        /// Print header values as strings (python's httpbin) or arrays (go-httpbin)
        #[arg(long, value_enum, default_value_t = httpbin::Style::Python)]
        style: httpbin::Style,
    },
    /// Describes each request it gets as JSON, echoes gRPC and WebSocket messages, and optionally TCP bytes
    Echo {
        #[arg(long, env = "PORT", default_value_t = 8080)]
        port: u16,
        /// Echo raw bytes on this port as well
        #[arg(long)]
        tcp_port: Option<u16>,
        /// Serve on this port as well, as a port of a Service has one protocol
        #[arg(long)]
        second_port: Option<u16>,
        /// On this port greet with the instance's name, then echo 64-bit numbers and say goodbye at the end
        #[arg(long)]
        numbers_port: Option<u16>,
        /// Serve at this Unix socket, too, which everyone may connect to
        #[arg(long)]
        socket: Option<PathBuf>,
    },
    /// An external authorizer: lets pass what has the header `x-ext-authz: allow`
    ExtAuthz {
        /// For HTTP
        #[arg(long, default_value_t = 8000)]
        http: u16,
        /// For gRPC
        #[arg(long, default_value_t = 9000)]
        grpc: u16,
        /// Service account that passes without the header, over gRPC
        #[arg(long = "allow_service_account", default_value = "a")]
        allow_service_account: String,
    },
    /// Sends a steady mixed load to `echo`; at the end prints what was lost as JSON
    Load {
        /// What to send, as JSON: {"seconds": 10, "flows": [{"kind": "http1", "to": "echo:80", "rate": 20}]}. Kinds: http1,
        /// http1New, http2, grpc, grpcStream, websocket, numbers. Without seconds it ends at SIGTERM or the end of the input
        #[arg(long)]
        spec: String,
    },
    /// Online Boutique: the shop's pages
    Frontend {
        #[arg(long, env = "PORT", default_value_t = 8080)]
        port: u16,
        /// The image's tag: before v0.10 the layout was another
        #[arg(long, default_value = "latest")]
        tag: String,
        #[arg(long, env = "PRODUCT_CATALOG_SERVICE_ADDR", default_value = "productcatalogservice:3550")]
        catalog: String,
        #[arg(long, env = "RECOMMENDATION_SERVICE_ADDR", default_value = "recommendationservice:8080")]
        recommendation: String,
    },
    /// Online Boutique: the products, over gRPC
    Productcatalogservice {
        #[arg(long, env = "PORT", default_value_t = 3550)]
        port: u16,
        /// How much longer every answer takes, such as 6s
        #[arg(long, env = "EXTRA_LATENCY", default_value = "0s", value_parser = catalog::parse_latency)]
        extra_latency: Duration,
    },
    /// Online Boutique: other products one might like, over gRPC
    Recommendationservice {
        #[arg(long, env = "PORT", default_value_t = 8080)]
        port: u16,
        #[arg(long, env = "PRODUCT_CATALOG_SERVICE_ADDR", default_value = "productcatalogservice:3550")]
        catalog: String,
    },
    /// Does nothing until it is told to stop
    Sleep,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let cli = Cli::parse();
    let delay = Duration::from_millis(cli.shutdown_delay_ms);
    match cli.app {
        App::HelloWorld { port } => serve_on(port, hello::app(), delay).await,
        App::Customers { port, tag } => serve_on(port, customers::app(&tag), delay).await,
        App::WebFrontend { port, customer_service_url } => {
            serve_on(port, web_frontend::app(customer_service_url.parse()?), delay).await
        }
        App::Httpbin { port, style } => serve_on(port, httpbin::app(style), delay).await,
        App::Echo { port, tcp_port, second_port, numbers_port, socket } => {
            let who = echo::Instance::from_env();
            let ending = serve::Ending::after(serve::terminated(), delay);
            if let Some(tcp) = tcp_port {
                tokio::spawn(echo::serve_tcp(bind(tcp).await?));
            }
            if let Some(numbers) = numbers_port {
                let listener = bind(numbers).await?;
                tokio::spawn(echo_streams::serve_numbers(listener, who.instance.clone(), ending.clone()));
            }
            if let Some(path) = socket {
                let listener = serve::bind_socket(&path)
                    .with_context(|| format!("cannot listen at {}; give another --socket", path.display()))?;
                tokio::spawn(serve::relay(listener, port));
            }
            let app = echo::app(who, ending);
            match second_port {
                None => serve_on(port, app, delay).await,
                Some(second) => {
                    tokio::try_join!(serve_on(port, app.clone(), delay), serve_on(second, app, delay))
                        .map(drop)
                }
            }
        }
        App::ExtAuthz { http, grpc, allow_service_account } => {
            let over_grpc = serve_on(grpc, ext_authz::grpc_app(&allow_service_account), delay);
            tokio::try_join!(serve_on(http, ext_authz::http_app(), delay), over_grpc).map(drop)
        }
        App::Load { spec } => {
            let spec = serde_json::from_str(&spec).context("--spec")?;
            let report = load::run(spec, told_to_stop()).await;
            println!("{}", serde_json::to_string(&report)?);
            Ok(())
        }
        App::Frontend { port, tag, catalog, recommendation } => {
            let pod = echo::Instance::from_env().instance;
            let app = frontend::app(&tag, &pod, &frontend::Addresses { catalog, recommendation })?;
            serve_on(port, app, delay).await
        }
        App::Productcatalogservice { port, extra_latency } => {
            serve_on(port, catalog::app(extra_latency), delay).await
        }
        App::Recommendationservice { port, catalog } => {
            serve_on(port, recommendation::app(&catalog)?, delay).await
        }
        App::Sleep => {
            serve::terminated().await;
            Ok(())
        }
    }
}

/// Resolves at SIGTERM, SIGINT or the end of a standard input that ever had something in it.
async fn told_to_stop() {
    let input = async {
        let mut stdin = tokio::io::stdin();
        let mut something = false;
        loop {
            match stdin.read(&mut [0; 64]).await {
                Ok(0) | Err(_) if something => return,
                // A container without standard input.
                Ok(0) | Err(_) => std::future::pending().await,
                Ok(_) => something = true,
            }
        }
    };
    tokio::select! {
        () = serve::terminated() => {}
        () = input => {}
    }
}

async fn serve_on(port: u16, app: Router, shutdown_delay: Duration) -> anyhow::Result<()> {
    let listener = bind(port).await?;
    println!("listening on {}", listener.local_addr()?);
    serve::serve(listener, app, serve::terminated(), shutdown_delay).await?;
    Ok(())
}

/// At all addresses of IPv4, or at the variable `LISTEN_ADDRESS` (`::` is all addresses of both families).
async fn bind(port: u16) -> anyhow::Result<TcpListener> {
    let ip = match std::env::var("LISTEN_ADDRESS") {
        Ok(text) => text.parse().with_context(|| format!("LISTEN_ADDRESS: {text:?} is not an IP address"))?,
        Err(_) => IpAddr::from([0, 0, 0, 0]),
    };
    let address = SocketAddr::from((ip, port));
    TcpListener::bind(address)
        .await
        .with_context(|| format!("cannot listen on {address}; choose another port with --port"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_containers_arguments_override_its_images() {
        let cli = Cli::try_parse_from([
            "lateen-samples",
            "httpbin",
            "--port",
            "8080",
            "--style",
            "go",
            "--port",
            "9",
        ]);
        let App::Httpbin { port, style } = cli.unwrap().app else { panic!("not httpbin") };
        assert_eq!((port, style), (9, httpbin::Style::Go));
    }
}
