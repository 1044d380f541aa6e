//! The bootstrap.
#![allow(deprecated)]

use lateen_xds::pb::envoy::config::bootstrap::v3 as proto;
use lateen_xds::pb::envoy::config::core::v3 as core;
use proto::bootstrap::{DynamicResources as DynamicMessage, StaticResources};

use super::config_source::{STREAM_NOT_SUPPORTED, Source, api_version, config_source};
use super::matchers::{header_name, header_value};
use super::values::{Converted, bind_config, nonempty, optional, required, socket_address};
use crate::error::At;
use crate::support::fields;
use crate::{Ads, Bootstrap, Cluster, ConfigSource, DynamicResources, Listener};

pub(super) fn bootstrap(at: &At<'_>, message: proto::Bootstrap) -> Converted<Bootstrap> {
    fields!(at, message => proto::Bootstrap {
        used { node, static_resources, dynamic_resources, cluster_manager, admin }
        inert {
            flags_path = "there are no flag files",
            deferred_stat_options = "stats are made when they are first needed anyway",
            stats_config = "stat tags follow Istio's conventions",
            stats_flush_interval = "stats are read when they are scraped",
            stats_flush = "stats are read when they are scraped",
            stats_eviction = "series expire by themselves",
            watchdog = "the orchestrator's probes watch the process",
            watchdogs = "the orchestrator's probes watch the process",
            layered_runtime = "there is no runtime; defaults count",
            overload_manager = "there is no overload manager",
            enable_dispatcher_stats = "there are no dispatchers",
            stats_server_version_override = "the version is the program's",
            application_log_config = "the log's format is the program's",
            grpc_async_client_manager_config = "gRPC clients are not pooled",
            memory_allocator_manager = "the allocator returns memory by itself",
            enable_worker_cpu_affinity = "workers are placed by the system",
            default_socket_interface = "there is one socket interface",
            fatal_actions = "a crash is reported by the orchestrator",
            perf_tracing_file_path = "there is no such tracing",
            inline_headers = "every header is fast",
        }
        rejected {
            node_context_params = "xdstp names",
            hds_config = "health discovery",
            stats_sinks = "pushing stats; scrape /stats/prometheus",
            tracing = "tracing",
            header_prefix = "another prefix than x-envoy",
            use_tcp_for_dns_lookups = "DNS over TCP",
            dns_resolution_config = "other DNS servers than the system's",
            typed_dns_resolver_config = "DNS resolvers by extension",
            bootstrap_extensions = "extensions",
            config_sources = "xdstp authorities",
            default_config_source = "xdstp authorities",
            certificate_provider_instances = "certificate providers",
            default_regex_engine = "regex engines by extension",
            xds_delegate_extension = "extensions",
            xds_config_tracker_extension = "extensions",
            listener_manager = "extensions",
        }
    });
    let (listeners, clusters) = match static_resources {
        None => (Vec::new(), Vec::new()),
        Some(resources) => self::static_resources(&at.field("static_resources"), resources)?,
    };
    let dynamic = dynamic_resources
        .map(|resources| self::dynamic(&at.field("dynamic_resources"), resources))
        .transpose()?;
    if let Some(ads) = dynamic.as_ref().and_then(|dynamic| dynamic.ads.as_ref())
        && !clusters.iter().any(|cluster| cluster.name == ads.cluster)
    {
        let reason = format!("{:?} is not a static cluster", ads.cluster);
        return Err(at.field("dynamic_resources").error_in("ads_config", reason));
    }
    Ok(Bootstrap {
        node: node.unwrap_or_default(),
        listeners,
        clusters,
        dynamic,
        admin: admin.map(|admin| self::admin(&at.field("admin"), admin)).transpose()?.flatten(),
        upstream_bind: cluster_manager
            .map(|manager| self::cluster_manager(&at.field("cluster_manager"), manager))
            .transpose()?
            .flatten(),
    })
}

fn static_resources(at: &At<'_>, message: StaticResources) -> Converted<(Vec<Listener>, Vec<Cluster>)> {
    fields!(at, message => StaticResources {
        used { listeners, clusters, secrets }
        inert {}
        rejected {}
    });
    let listeners = listeners
        .into_iter()
        .enumerate()
        .map(|(index, listener)| super::listener::listener(&at.index("listeners", index), listener))
        .collect::<Converted<Vec<_>>>()?;
    let clusters = clusters
        .into_iter()
        .enumerate()
        .map(|(index, cluster)| super::cluster::cluster(&at.index("clusters", index), cluster))
        .collect::<Converted<Vec<_>>>()?;
    // The engine gets them one by one; here it counts that they can be used.
    for (index, secret) in secrets.into_iter().enumerate() {
        super::tls::secret(&at.index("secrets", index), secret)?;
    }
    Ok((listeners, clusters))
}

fn dynamic(at: &At<'_>, message: DynamicMessage) -> Converted<DynamicResources> {
    fields!(at, message => DynamicMessage {
        used { lds_config, cds_config, ads_config }
        inert {}
        rejected {
            lds_resources_locator = "xdstp names",
            cds_resources_locator = "xdstp names",
        }
    });
    let mut wait = None;
    let mut source = |field: &'static str, message: Option<core::ConfigSource>| {
        let Some(message) = message else { return Ok(None) };
        let (source, initial) = config_source(&at.field(field), message)?;
        wait = initial;
        Ok(Some(match source {
            Source::Ads => ConfigSource::Ads,
            Source::Path(path) => ConfigSource::Path(path),
            Source::Stream(_) => return Err(at.error_in(field, STREAM_NOT_SUPPORTED)),
        }))
    };
    let listeners = source("lds_config", lds_config)?;
    let clusters = source("cds_config", cds_config)?;
    let ads = ads_config.map(|config| self::ads(&at.field("ads_config"), config)).transpose()?;
    let wanted = [&listeners, &clusters].into_iter().any(|source| *source == Some(ConfigSource::Ads));
    if wanted && ads.is_none() {
        return Err(at.error_in("ads_config", "is required, because lds_config or cds_config uses ads"));
    }
    let ads = ads.map(|ads| Ads { initial_fetch_timeout: wait, ..ads });
    Ok(DynamicResources { ads, listeners, clusters })
}

fn ads(at: &At<'_>, config: core::ApiConfigSource) -> Converted<Ads> {
    use core::api_config_source::ApiType;
    use core::grpc_service::TargetSpecifier;
    fields!(at, config => core::ApiConfigSource {
        used { api_type, transport_api_version, grpc_services }
        inert {
            set_node_on_first_message_only = "the node is always sent once for each stream",
            refresh_delay = "for REST only",
            request_timeout = "for REST only",
        }
        rejected {
            cluster_names = "use grpc_services",
            rate_limit_settings = "a limit on requests",
            config_validators = "validators by extension",
        }
    });
    api_version(at, "transport_api_version", transport_api_version)?;
    let delta = match ApiType::try_from(api_type) {
        Ok(ApiType::DeltaGrpc) => true,
        Ok(ApiType::Grpc) => false,
        _ => return Err(at.error_in("api_type", "must be GRPC or DELTA_GRPC")),
    };
    let [service] = <[core::GrpcService; 1]>::try_from(grpc_services)
        .map_err(|_| at.error_in("grpc_services", "must have exactly one entry"))?;
    let at = at.index("grpc_services", 0);
    fields!(&at, service => core::GrpcService {
        used { initial_metadata, target_specifier }
        inert { timeout = "a stream has no time-out" }
        rejected { retry_policy = "a retry policy; the stream is opened again with back-off" }
        variants { google_grpc = "Google's gRPC client; use envoy_grpc" }
    });
    let grpc = match required(&at, "envoy_grpc", target_specifier)? {
        TargetSpecifier::EnvoyGrpc(grpc) => grpc,
        TargetSpecifier::GoogleGrpc(_) => {
            return Err(at.error_in("google_grpc", "not supported: use envoy_grpc"));
        }
    };
    let mut metadata = Vec::new();
    for (index, header) in initial_metadata.into_iter().enumerate() {
        let at = at.index("initial_metadata", index);
        metadata.push((header_name(&at, "key", &header.key)?, header_value(&at, "value", &header.value)?));
    }
    let at = at.field("envoy_grpc");
    fields!(&at, grpc => core::grpc_service::EnvoyGrpc {
        used { cluster_name, authority }
        inert {
            max_receive_message_length = "the limit is 256 MiB",
            skip_envoy_headers = "no x-envoy headers are added to xDS requests",
        }
        rejected { retry_policy = "a retry policy; the stream is opened again with back-off" }
    });
    Ok(Ads {
        delta,
        cluster: nonempty(&at, "cluster_name", cluster_name)?,
        authority: optional(authority),
        initial_metadata: metadata,
        initial_fetch_timeout: None,
    })
}

fn admin(at: &At<'_>, message: proto::Admin) -> Converted<Option<std::net::SocketAddr>> {
    fields!(at, message => proto::Admin {
        used { address }
        inert {
            profile_path = "there is no profiler to write it",
            ignore_global_conn_limit = "there is no global connection limit",
            access_log_path = "admin requests are not logged; Envoy's demos set /dev/null",
        }
        rejected {
            access_log = "a log of admin requests",
            socket_options = "options for the admin socket",
            allow_paths = "a list of allowed paths",
        }
    });
    address.map(|address| socket_address(&at.field("address"), Some(address))).transpose()
}

fn cluster_manager(at: &At<'_>, message: proto::ClusterManager) -> Converted<Option<crate::BindConfig>> {
    fields!(at, message => proto::ClusterManager {
        used { upstream_bind_config }
        inert {
            local_cluster_name = "it is for zone aware routing, which clusters refuse",
            enable_deferred_cluster_creation = "what a worker does not use costs it nothing anyway",
        }
        rejected {
            outlier_detection = "a log of ejections",
            load_stats_config = "load reports",
        }
    });
    upstream_bind_config.map(|bind| bind_config(&at.field("upstream_bind_config"), bind)).transpose()
}
