//! Which numbers there are, by what they are about. Field names are Envoy's stat names.

use super::slots::{ByteCounter, Counter, Gauge, Histogram, HistogramReading, StatusCounters};

/// A copy of one block's numbers, in the order of its name tables.
#[derive(Clone, Debug, Default)]
pub(crate) struct BlockReading {
    pub(crate) counters: Vec<u64>,
    pub(crate) gauges: Vec<u64>,
    pub(crate) histograms: Vec<Option<Box<HistogramReading>>>,
    /// Responses by status code, where the block counts them.
    pub(crate) statuses: Vec<(u16, u64)>,
}

/// The names of a block's numbers.
#[derive(Debug)]
pub(crate) struct BlockNames {
    pub(crate) counters: &'static [&'static str],
    pub(crate) gauges: &'static [&'static str],
    pub(crate) histograms: &'static [&'static str],
}

macro_rules! stat_block {
    (
        $(#[$doc:meta])* $block:ident
        counters { $($counter:ident)* } bytes { $($bytes:ident)* } gauges { $($gauge:ident)* } histograms { $($histogram:ident)* }
    ) => {
        $(#[$doc])*
        #[derive(Debug, Default)]
        pub(crate) struct $block {
            $(pub(crate) $counter: Counter,)*
            $(pub(crate) $bytes: ByteCounter,)*
            $(pub(crate) $gauge: Gauge,)*
            $(pub(crate) $histogram: Histogram,)*
            pub(crate) statuses: StatusCounters,
        }

        impl $block {
            pub(crate) const NAMES: BlockNames = BlockNames {
                counters: &[$(stringify!($counter),)* $(stringify!($bytes)),*],
                gauges: &[$(stringify!($gauge)),*],
                histograms: &[$(stringify!($histogram)),*],
            };

            pub(crate) fn read(&self) -> BlockReading {
                BlockReading {
                    counters: vec![$(self.$counter.get(),)* $(self.$bytes.get()),*],
                    gauges: vec![$(self.$gauge.get()),*],
                    histograms: vec![$(self.$histogram.read()),*],
                    statuses: self.statuses.read(),
                }
            }

            pub(crate) fn reset_counters(&self) {
                $(self.$counter.reset();)*
                $(self.$bytes.reset();)*
                self.statuses.reset();
            }
        }
    };
}

stat_block! {
    /// `cluster.NAME.*`
    /// <https://www.envoyproxy.io/docs/envoy/v1.40.0/configuration/upstream/cluster_manager/cluster_stats>
    ClusterStats
    counters {
        assignment_stale assignment_timeout_received bind_errors
        lb_healthy_panic lb_subsets_fallback lb_subsets_fallback_panic lb_subsets_selected
        original_dst_host_invalid
        retry_or_shadow_abandoned
        upstream_cx_close_notify upstream_cx_connect_attempts_exceeded upstream_cx_connect_fail upstream_cx_connect_timeout
        upstream_cx_connect_with_0_rtt upstream_cx_destroy upstream_cx_destroy_local upstream_cx_destroy_local_with_active_rq
        upstream_cx_destroy_remote upstream_cx_destroy_remote_with_active_rq upstream_cx_destroy_with_active_rq
        upstream_cx_http1_total upstream_cx_http2_total upstream_cx_http3_total upstream_cx_idle_timeout upstream_cx_max_duration_reached
        upstream_cx_max_requests upstream_cx_none_healthy upstream_cx_overflow upstream_cx_pool_overflow
        upstream_cx_protocol_error upstream_cx_total
        upstream_flow_control_backed_up_total
        upstream_internal_redirect_failed_total upstream_internal_redirect_succeeded_total
        upstream_rq_active_overflow upstream_rq_cancelled upstream_rq_completed upstream_rq_maintenance_mode upstream_rq_max_duration_reached
        upstream_rq_pending_failure_eject upstream_rq_pending_overflow upstream_rq_pending_total upstream_rq_per_try_timeout
        upstream_rq_per_try_idle_timeout
        upstream_rq_retry upstream_rq_retry_backoff_exponential upstream_rq_retry_backoff_ratelimited
        upstream_rq_retry_limit_exceeded upstream_rq_retry_overflow upstream_rq_retry_success
        upstream_rq_rx_reset upstream_rq_timeout upstream_rq_total upstream_rq_tx_reset
    }
    bytes { upstream_cx_rx_bytes_total upstream_cx_tx_bytes_total }
    gauges {
        upstream_cx_active upstream_rq_active upstream_rq_pending_active
    }
    histograms { upstream_cx_connect_ms upstream_cx_length_ms upstream_rq_time }
}

stat_block! {
    /// `vhost.NAME.route.PREFIX.*`, of routes that count for themselves.
    /// <https://www.envoyproxy.io/docs/envoy/v1.40.0/configuration/http/http_filters/router_filter#route-statistics>
    RouteStats
    counters {
        upstream_rq_completed upstream_rq_retry upstream_rq_retry_limit_exceeded upstream_rq_retry_overflow upstream_rq_retry_success
        upstream_rq_timeout upstream_rq_total
    }
    bytes { }
    gauges { }
    histograms { upstream_rq_time }
}

stat_block! {
    /// `listener.ADDRESS.*`
    /// <https://www.envoyproxy.io/docs/envoy/v1.40.0/configuration/listeners/stats>
    ListenerStats
    counters {
        downstream_cx_destroy downstream_cx_overflow downstream_cx_overload_reject downstream_cx_total
        downstream_cx_transport_socket_connect_timeout downstream_global_cx_overflow downstream_listener_filter_error
        downstream_listener_filter_remote_close downstream_pre_cx_timeout no_filter_chain_match
    }
    bytes { }
    gauges { downstream_cx_active downstream_pre_cx_active }
    histograms { downstream_cx_length_ms }
}

stat_block! {
    /// `http.PREFIX.*`
    /// <https://www.envoyproxy.io/docs/envoy/v1.40.0/configuration/http/http_conn_man/stats>
    HttpStats
    counters {
        downstream_cx_delayed_close_timeout downstream_cx_destroy downstream_cx_destroy_active_rq downstream_cx_destroy_local
        downstream_cx_destroy_local_active_rq downstream_cx_destroy_remote downstream_cx_destroy_remote_active_rq
        downstream_cx_drain_close downstream_cx_http1_total downstream_cx_http2_total downstream_cx_http3_total
        downstream_cx_idle_timeout downstream_cx_max_duration_reached downstream_cx_max_requests_reached
        downstream_cx_overload_disable_keepalive downstream_cx_protocol_error downstream_cx_ssl_total
        downstream_cx_total downstream_cx_upgrades_total downstream_flow_control_paused_reading_total
        downstream_flow_control_resumed_reading_total
        downstream_rq_1xx downstream_rq_2xx downstream_rq_3xx downstream_rq_4xx downstream_rq_5xx downstream_rq_completed
        downstream_rq_failed_path_normalization downstream_rq_header_timeout downstream_rq_http1_total downstream_rq_http2_total
        downstream_rq_http3_total downstream_rq_idle_timeout downstream_rq_max_duration_reached downstream_rq_non_relative_path
        downstream_rq_overload_close downstream_rq_redirected_with_normalized_path downstream_rq_rejected_via_ip_detection
        downstream_rq_response_before_rq_complete downstream_rq_rx_reset downstream_rq_timeout downstream_rq_too_large
        downstream_rq_too_many_premature_resets downstream_rq_total downstream_rq_tx_reset downstream_rq_ws_on_non_ws_route
        no_cluster no_route passthrough_internal_redirect_bad_location passthrough_internal_redirect_no_route
        passthrough_internal_redirect_predicate passthrough_internal_redirect_too_many_redirects
        passthrough_internal_redirect_unsafe_scheme rq_direct_response rq_redirect
        rq_reset_after_downstream_response_started rq_total rs_too_large
    }
    bytes { downstream_cx_rx_bytes_total downstream_cx_tx_bytes_total }
    gauges {
        downstream_cx_active downstream_cx_http1_active downstream_cx_http2_active downstream_cx_http3_active downstream_cx_rx_bytes_buffered
        downstream_cx_ssl_active downstream_cx_tx_bytes_buffered downstream_cx_upgrades_active downstream_rq_active
    }
    histograms { downstream_cx_length_ms downstream_rq_time }
}

stat_block! {
    /// `http1.*`
    Http1CodecStats
    counters { dropped_headers_with_underscores requests_rejected_with_underscores_in_headers }
    bytes { }
    gauges { }
    histograms { }
}

stat_block! {
    /// `http2.*`, of clients' connections.
    /// <https://www.envoyproxy.io/docs/envoy/v1.40.0/configuration/http/http_conn_man/stats#http-2-codec-statistics>
    Http2CodecStats
    counters {
        dropped_headers_with_underscores header_list_size_too_large header_overflow inbound_empty_frames_flood
        inbound_priority_frames_flood
        inbound_window_update_frames_flood requests_rejected_with_underscores_in_headers tx_flush_timeout
    }
    bytes { goaway_sent rx_reset tx_reset }
    gauges { }
    histograms { }
}

stat_block! {
    /// `tcp.PREFIX.*`
    /// <https://www.envoyproxy.io/docs/envoy/v1.40.0/configuration/listeners/network_filters/tcp_proxy_filter>
    TcpStats
    counters {
        downstream_cx_no_route downstream_cx_total
        downstream_flow_control_paused_reading_total downstream_flow_control_resumed_reading_total idle_timeout
        max_downstream_connection_duration upstream_flush_total
    }
    bytes { downstream_cx_rx_bytes_total downstream_cx_tx_bytes_total }
    gauges { downstream_cx_rx_bytes_buffered downstream_cx_tx_bytes_buffered upstream_flush_active }
    histograms { }
}

stat_block! {
    /// `http.PREFIX.fault.*`
    /// <https://www.envoyproxy.io/docs/envoy/v1.40.0/configuration/http/http_filters/fault_filter#statistics>
    FaultStats
    counters { aborts_injected delays_injected faults_overflow response_rl_injected }
    bytes { }
    gauges { active_faults }
    histograms { }
}

stat_block! {
    /// `http.PREFIX.fault.CLIENT.*`
    FaultClientStats
    counters { aborts_injected delays_injected }
    bytes { }
    gauges { }
    histograms { }
}

stat_block! {
    /// `http.PREFIX.rbac.*`, and `PREFIXrbac.*` of the network filter.
    /// <https://www.envoyproxy.io/docs/envoy/v1.40.0/configuration/http/http_filters/rbac_filter#statistics>
    RbacStats
    counters { }
    bytes { allowed denied }
    gauges { }
    histograms { }
}

stat_block! {
    /// The same of shadow rules.
    RbacShadowStats
    counters { }
    bytes { shadow_allowed shadow_denied }
    gauges { }
    histograms { }
}

stat_block! {
    /// `http.PREFIX.jwt_authn.*`
    /// <https://www.envoyproxy.io/docs/envoy/v1.40.0/configuration/http/http_filters/jwt_authn_filter#statistics>
    JwtStats
    counters { cors_preflight_bypassed jwks_fetch_failed jwks_fetch_success jwt_cache_hit jwt_cache_miss }
    bytes { allowed denied }
    gauges { }
    histograms { }
}

stat_block! {
    /// `http.PREFIX.ext_authz.*`
    /// <https://www.envoyproxy.io/docs/envoy/v1.40.0/configuration/http/http_filters/ext_authz_filter#statistics>
    ExtAuthzStats
    counters {
        denied disabled error failure_mode_allowed filter_state_name_collision ignored_dynamic_metadata invalid ok
        omitted_response_headers request_header_limits_reached response_header_limits_reached shadow_denied shadow_error
    }
    bytes { }
    gauges { }
    histograms { }
}

stat_block! {
    /// `cluster.NAME.ext_authz.*`, of the clusters that requests were for.
    ClusterExtAuthzStats
    counters { denied error failure_mode_allowed invalid ok }
    bytes { }
    gauges { }
    histograms { }
}

stat_block! {
    /// `ext_authz.PREFIX.*` of the network filter.
    /// <https://www.envoyproxy.io/docs/envoy/v1.40.0/configuration/listeners/network_filters/ext_authz_filter#statistics>
    NetworkExtAuthzStats
    counters { cx_closed denied disabled error failure_mode_allowed ok total }
    bytes { }
    gauges { active }
    histograms { }
}

stat_block! {
    /// `http.PREFIX.cors.*`
    /// <https://www.envoyproxy.io/docs/envoy/v1.40.0/configuration/http/http_filters/cors_filter#statistics>
    CorsStats
    counters { origin_invalid origin_valid }
    bytes { }
    gauges { }
    histograms { }
}
