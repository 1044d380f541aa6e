//! Step 10: a request's end. Runs once for every request, whatever became of it.

use std::time::Duration;

use http::{StatusCode, Version};

use crate::context::RequestContext;
use crate::failure::{CLIENT_GONE, Flags};
use crate::guard::Offence;
use crate::{log_filter, render};

/// A stream that lived less was reset prematurely: Envoy's `overload.premature_reset_min_stream_lifetime_seconds` (1), which whole
/// seconds have to exceed.
const PREMATURE: Duration = Duration::from_secs(2);

/// Counts and logs.
pub(crate) fn finish(context: &mut RequestContext) {
    if context.connection.stalled.get() && !context.complete {
        context.flags.insert(Flags::STREAM_IDLE_TIMEOUT);
        context.details = "stream_idle_timeout".into();
    }
    if !context.complete && context.connection.verdict.get().is_some() {
        context.flags.insert(Flags::DOWNSTREAM_PROTOCOL_ERROR);
        context.details = context.connection.verdict.get().map_or("", Offence::details).into();
    }
    if let Some(details) = context.connection.reset.get().filter(|_| !context.complete) {
        context.flags.insert(Flags::DOWNSTREAM_REMOTE_RESET);
        context.details = details.into();
    }
    if !context.complete && context.flags.untroubled() {
        context.flags.insert(Flags::DOWNSTREAM_TERMINATION);
        if context.status.is_none() || context.details.is_empty() || context.details == "via_upstream" {
            context.details = CLIENT_GONE.into();
        }
    }
    let connection = context.connection.clone();
    let stats = &connection.stats;
    stats.downstream_rq_active.dec();
    // Whichever side breaks a stream off: Envoy counts them all here, and its own ones as sent, too.
    let unfinished = context.body.as_ref().is_some_and(|body| !body.ended());
    if !context.complete || unfinished {
        stats.downstream_rq_rx_reset.inc();
    }
    // An interim answer was counted when it was made.
    let interim =
        |status: &StatusCode| status.is_informational() && *status != StatusCode::SWITCHING_PROTOCOLS;
    if let Some(status) = context.status.filter(|status| !interim(status)) {
        stats.downstream_rq_completed.inc();
        match status.as_u16() / 100 {
            1 => stats.downstream_rq_1xx.inc(),
            2 => stats.downstream_rq_2xx.inc(),
            3 => stats.downstream_rq_3xx.inc(),
            4 => stats.downstream_rq_4xx.inc(),
            _ => stats.downstream_rq_5xx.inc(),
        }
    }
    let premature = !context.complete && context.status.is_none() && context.started.elapsed() < PREMATURE;
    if context.version == Version::HTTP_2 && connection.resets.too_many(premature) {
        stats.downstream_rq_too_many_premature_resets.inc();
        connection.cut.ask();
    }
    stats.downstream_rq_time.record(context.started.elapsed().as_millis() as u64);
    connection.active.set(connection.active.get() - 1);
    if connection.active.get() == 0 {
        connection.quiet_since.set(std::time::Instant::now());
        connection.heard.set(false);
        connection.end_if_left();
    }
    if connection.config.logs {
        log(context);
    }
}

/// Logs a request that goes on at another place (internal redirect), which counts as one of its own.
pub(crate) fn log_redirect(context: &RequestContext) {
    context.connection.stats.downstream_rq_total.inc();
    if context.connection.config.logs {
        log(context);
    }
}

fn log(context: &RequestContext) {
    let hcm = &context.connection.config.hcm;
    let upstream = hcm.router().map(|router| &router.upstream_log[..]).unwrap_or_default();
    let upstream = upstream.iter().filter(|_| context.attempts > 0);
    for log in hcm.access_log.iter().chain(upstream) {
        if log.filter.as_ref().is_none_or(|filter| log_filter::passes(filter, context)) {
            context.connection.worker.log_line(&log.sink, |line| render::line(&log.format, context, line));
        }
    }
}
