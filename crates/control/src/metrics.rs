//! The control plane's metrics, by Istio's names.
//!
//! Counters that Istio names without `_total` are registered as gauges, because the exposition format would append it and
//! dashboards would not find them.
use std::sync::Arc;

use lateen_model::World;
use lateen_translate::Proxy;
use lateen_xds::server::Event;
use lateen_xds::type_urls;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::Registry;

use crate::ca_metrics::CaMetrics;
use crate::process_metrics::ProcessMetrics;
use crate::registration::RegistrationMetrics;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct TypeLabel {
    r#type: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct VersionLabel {
    version: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct NodeLabel {
    node: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ResourceLabel {
    group: String,
    version: String,
    resource: String,
}

type Histograms = Family<TypeLabel, Histogram, fn() -> Histogram>;

/// Seconds. Istio's buckets begin at 0.1; ours show milliseconds.
fn seconds() -> Histogram {
    Histogram::new([0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 3.0, 5.0, 10.0, 30.0])
}

/// All metrics of one control plane.
pub(crate) struct Metrics {
    registry: Registry,
    connected: Family<VersionLabel, Gauge>,
    pushes: Family<TypeLabel, Gauge>,
    push_time: Histograms,
    convergence: Histogram,
    /// Rejections by proxy for each of the four main types; a proxy's series go when it disconnects.
    rejects: [(&'static str, Family<NodeLabel, Gauge>); 4],
    total_rejects: Family<TypeLabel, Counter>,
    refused: Counter,
    services: Gauge,
    virtual_services: Gauge,
    injections: [Counter; 4],
    validations: [Family<ResourceLabel, Gauge>; 2],
    /// The certificate authority's.
    pub(crate) authority: CaMetrics,
    /// Of machines that register themselves.
    pub(crate) registration: RegistrationMetrics,
}

/// How an injection request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Injection {
    /// The pod got a proxy.
    Success,
    /// The pod stays as it is.
    Skip,
    /// The request failed.
    Failure,
}

fn short(type_url: &str) -> String {
    match type_url {
        type_urls::CLUSTER => "cds".to_owned(),
        type_urls::ENDPOINT => "eds".to_owned(),
        type_urls::LISTENER => "lds".to_owned(),
        type_urls::ROUTE => "rds".to_owned(),
        type_urls::SECRET => "sds".to_owned(),
        type_urls::NAME_TABLE => "nds".to_owned(),
        type_urls::EXTENSION_CONFIG => "ecds".to_owned(),
        // Types are the client's words: they must not make series.
        _ => "other".to_owned(),
    }
}

impl Metrics {
    pub(crate) fn new(version: &str) -> Arc<Self> {
        let metrics = Self {
            registry: Registry::default(),
            connected: Family::default(),
            pushes: Family::default(),
            push_time: Family::new_with_constructor(seconds as fn() -> Histogram),
            convergence: seconds(),
            rejects: [type_urls::CLUSTER, type_urls::ENDPOINT, type_urls::LISTENER, type_urls::ROUTE]
                .map(|url| (url, Family::default())),
            total_rejects: Family::default(),
            refused: Counter::default(),
            services: Gauge::default(),
            virtual_services: Gauge::default(),
            injections: std::array::from_fn(|_| Counter::default()),
            validations: std::array::from_fn(|_| Family::default()),
            authority: CaMetrics::default(),
            registration: RegistrationMetrics::default(),
        };
        Arc::new(metrics.registered(version))
    }

    fn registered(mut self, version: &str) -> Self {
        let mut registry = Registry::default();
        registry.register(
            "pilot",
            "Version of the control plane",
            Info::new(vec![("version", version.to_owned())]),
        );
        registry.register(
            "pilot_xds",
            "Number of endpoints connected to this pilot using XDS",
            self.connected.clone(),
        );
        registry.register(
            "pilot_xds_pushes",
            "Pilot build and send pushes for lds, rds, cds and eds",
            self.pushes.clone(),
        );
        registry.register(
            "pilot_xds_push_time",
            "Seconds from sending a response to its acknowledgement",
            self.push_time.clone(),
        );
        registry.register(
            "pilot_proxy_convergence_time",
            "Seconds from a change to its acknowledgement by a proxy",
            self.convergence.clone(),
        );
        for (url, rejects) in &self.rejects {
            let kind = short(url);
            registry.register(
                format!("pilot_xds_{kind}_reject"),
                format!("Rejected {kind} configuration"),
                rejects.clone(),
            );
        }
        registry.register("pilot_total_xds_rejects", "Rejected responses", self.total_rejects.clone());
        registry.register(
            "pilot_xds_refused",
            "Streams refused or ended with an error",
            self.refused.clone(),
        );
        registry.register("pilot_services", "Services known to pilot", self.services.clone());
        registry.register(
            "pilot_virt_services",
            "Virtual services known to pilot",
            self.virtual_services.clone(),
        );
        for (name, counter) in ["requests", "success", "skip", "failure"].iter().zip(&self.injections) {
            registry.register(
                format!("sidecar_injection_{name}"),
                format!("Sidecar injection: {name}"),
                counter.clone(),
            );
        }
        for (name, family) in ["passed", "failed"].iter().zip(&self.validations) {
            registry.register(
                format!("galley_validation_{name}"),
                format!("Resource validation {name}"),
                family.clone(),
            );
        }
        self.authority.register(&mut registry);
        self.registration.register(&mut registry);
        registry.register_collector(Box::new(ProcessMetrics::new()));
        self.registry = registry;
        self
    }

    /// The exposition text.
    pub(crate) fn encode(&self) -> String {
        let mut text = String::new();
        // Writing to a String does not fail.
        let _written = encode(&mut text, &self.registry);
        text
    }

    pub(crate) fn world(&self, world: &World) {
        let count = |number: usize| i64::try_from(number).unwrap_or(i64::MAX);
        self.services.set(count(world.services().count()));
        self.virtual_services.set(count(world.virtual_services().count()));
    }

    pub(crate) fn connected(&self, proxy: &Proxy) {
        self.connected.get_or_create(&VersionLabel { version: proxy.version.clone() }).inc();
    }

    pub(crate) fn disconnected(&self, proxy: &Proxy) {
        self.connected.get_or_create(&VersionLabel { version: proxy.version.clone() }).dec();
        for (_, rejects) in &self.rejects {
            rejects.remove(&NodeLabel { node: proxy.id.clone() });
        }
    }

    pub(crate) fn xds(&self, event: &Event<'_>) {
        match event {
            Event::Pushed { type_url, .. } => {
                self.pushes.get_or_create(&TypeLabel { r#type: short(type_url) }).inc();
            }
            Event::Acked { type_url, round_trip, convergence } => {
                let label = TypeLabel { r#type: short(type_url) };
                self.push_time.get_or_create(&label).observe(round_trip.as_secs_f64());
                if let Some(convergence) = convergence {
                    self.convergence.observe(convergence.as_secs_f64());
                }
            }
            Event::Nacked { type_url, node, .. } => {
                self.total_rejects.get_or_create(&TypeLabel { r#type: short(type_url) }).inc();
                // Of `sidecar~IP~POD.NS~DOMAIN`, what names the proxy.
                let node = node.split('~').nth(2).unwrap_or(node).to_owned();
                if let Some((_, rejects)) = self.rejects.iter().find(|(url, _)| url == type_url) {
                    rejects.get_or_create(&NodeLabel { node }).inc();
                }
            }
            Event::Failed { .. } => {
                self.refused.inc();
            }
            Event::Health { .. } => {}
        }
    }

    pub(crate) fn injection(&self, outcome: Injection) {
        let [requests, success, skip, failure] = &self.injections;
        requests.inc();
        match outcome {
            Injection::Success => success.inc(),
            Injection::Skip => skip.inc(),
            Injection::Failure => failure.inc(),
        };
    }

    pub(crate) fn validation(&self, group: &str, version: &str, resource: &str, passed: bool) {
        let [ok, failed] = &self.validations;
        let family = if passed { ok } else { failed };
        let label = ResourceLabel { group: group.into(), version: version.into(), resource: resource.into() };
        family.get_or_create(&label).inc();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn dashboards_find_their_names() {
        let metrics = Metrics::new("1.2.3");
        let node = "sidecar~10.0.0.1~web-1.shop~shop.svc.cluster.local";
        metrics.xds(&Event::Pushed { type_url: type_urls::CLUSTER, resources: 1, removed: 0 });
        metrics.xds(&Event::Nacked { type_url: type_urls::CLUSTER, node, message: "no" });
        let convergence = Some(Duration::from_millis(4));
        metrics.xds(&Event::Acked {
            type_url: type_urls::ROUTE,
            round_trip: Duration::from_millis(2),
            convergence,
        });
        metrics.xds(&Event::Pushed { type_url: "anything/at.all", resources: 1, removed: 0 });
        metrics.injection(Injection::Success);
        metrics.validation("networking.istio.io", "v1", "gateways", true);
        let text = metrics.encode();
        for line in [
            "pilot_info{version=\"1.2.3\"} 1",
            "pilot_xds_pushes{type=\"cds\"} 1",
            "pilot_xds_pushes{type=\"other\"} 1",
            "pilot_xds_cds_reject{node=\"web-1.shop\"} 1",
            "pilot_total_xds_rejects_total{type=\"cds\"} 1",
            "pilot_proxy_convergence_time_bucket{le=\"0.005\"} 1",
            "pilot_xds_push_time_count{type=\"rds\"} 1",
            "sidecar_injection_success_total 1",
            "galley_validation_passed{group=\"networking.istio.io\",version=\"v1\",resource=\"gateways\"} 1",
            "process_resident_memory_bytes",
            "process_cpu_seconds_total",
        ] {
            assert!(text.contains(line), "{line} not in\n{text}");
        }
        let proxy = Proxy::parse(node, &serde_json::json!({ "ISTIO_VERSION": "1.0" })).unwrap();
        metrics.connected(&proxy);
        assert!(metrics.encode().contains("pilot_xds{version=\"1.0\"} 1"));
        metrics.disconnected(&proxy);
        assert!(!metrics.encode().contains("web-1.shop"), "a proxy's series go with it");
    }
}
