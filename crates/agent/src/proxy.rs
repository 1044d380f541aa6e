//! The engine behind the agent, whichever it is: what health, metrics and the end of the pod need of it.

use lateen_engine::EngineHandle;
use tracing::warn;

use crate::envoy::Envoy;

/// The proxy that carries the traffic.
pub(crate) enum Proxy {
    Lateen(EngineHandle),
    Envoy(Envoy),
}

impl Proxy {
    /// True when it serves with a configuration.
    pub(crate) async fn ready(&self) -> bool {
        match self {
            Self::Lateen(engine) => engine.ready(),
            Self::Envoy(envoy) => envoy.ready().await,
        }
    }

    /// Its metrics in Prometheus' text format.
    pub(crate) async fn prometheus(&self) -> Result<String, String> {
        match self {
            Self::Lateen(engine) => engine.prometheus().await.map_err(|error| error.to_string()),
            Self::Envoy(envoy) => match envoy.prometheus().await {
                Ok(text) => Ok(String::from_utf8_lossy(&text).into_owned()),
                Err(error) => Err(format!("Envoy's admin service: {error}")),
            },
        }
    }

    /// Tells callers to go elsewhere; returns when no connection is left.
    pub(crate) async fn drain(&self) {
        match self {
            Self::Lateen(engine) => {
                if let Err(error) = engine.drain().await {
                    warn!(%error, "cannot drain");
                }
            }
            Self::Envoy(envoy) => envoy.drain().await,
        }
    }

    /// Ends it at once.
    pub(crate) async fn shutdown(&self) {
        match self {
            Self::Lateen(engine) => engine.shutdown().await,
            Self::Envoy(envoy) => envoy.shutdown().await,
        }
    }
}
