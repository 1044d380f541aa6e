//! Logs in the form of Istio's proxy container, `TIME<tab>level<tab>scope<tab>message`, with a level that can be changed while running.

use std::fmt;
use std::sync::Arc;

use tracing::{Event, Subscriber};
use tracing_subscriber::filter::Targets;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::{FormatTime, SystemTime};
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Layer, reload};

use crate::config::SetLogLevel;

/// Installs the process's logger, on standard output. `level` is Envoy's or Rust's word (`warning`, `info`, …) or a list of
/// `target=level`.
///
/// # Errors
/// When `level` is none of these.
pub fn init(level: &str) -> Result<SetLogLevel, String> {
    let (filter, handle) = reload::Layer::new(parse(level)?);
    let lines = tracing_subscriber::fmt::layer()
        .event_format(IstioLines)
        .with_ansi(false)
        .with_writer(std::io::stdout);
    // A second logger in one process is refused; the first one stays, which is what a caller wants.
    let _ = tracing_subscriber::registry().with(lines.with_filter(filter)).try_init();
    Ok(SetLogLevel(Arc::new(move |level| handle.reload(parse(level)?).map_err(|error| error.to_string()))))
}

fn parse(level: &str) -> Result<Targets, String> {
    let level = match level {
        "warning" => "warn",
        "critical" => "error",
        other => other,
    };
    level
        .parse()
        .map_err(|_| format!("{level:?} is not a log level; use trace, debug, info, warning, error or off"))
}

struct IstioLines;

impl<S, N> FormatEvent<S, N> for IstioLines
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut line: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        SystemTime.format_time(&mut line)?;
        let scope = event.metadata().target().trim_start_matches("lateen_");
        let level = event.metadata().level().as_str().to_ascii_lowercase();
        write!(line, "\t{level}\t{scope}\t")?;
        context.field_format().format_fields(line.by_ref(), event)?;
        writeln!(line)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn envoys_and_rusts_words_are_levels_and_others_are_not() {
        for level in ["warning", "info", "critical", "off", "lateen_engine=debug,info"] {
            assert!(parse(level).is_ok(), "{level}");
        }
        assert!(parse("loud=louder").unwrap_err().contains("log level"));
    }
}
