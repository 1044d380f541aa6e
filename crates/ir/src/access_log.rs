//! Access logs: where, in which format, and which requests.

use std::sync::Arc;

use crate::common::Fraction;
use crate::format::{JsonFormat, TextFormat};
use crate::matcher::HeaderMatcher;

/// One access log of a listener, connection manager, router or TCP proxy.
#[derive(Clone, Debug)]
pub struct AccessLog {
    /// Where lines go.
    pub sink: LogSink,
    /// How a line looks.
    pub format: LogFormat,
    /// Which requests are logged; `None`: all.
    pub filter: Option<LogFilter>,
}

/// Where log lines go.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum LogSink {
    /// Standard output (also the file `/dev/stdout`).
    Stdout,
    /// Standard error (also the file `/dev/stderr`).
    Stderr,
    /// A file that lines are appended to.
    File(Arc<str>),
}

/// How a line looks.
#[derive(Clone, Debug)]
pub enum LogFormat {
    /// Text; a line break is added by the format itself, as with Envoy.
    Text(TextFormat),
    /// One JSON object and a line break.
    Json {
        /// The object.
        format: JsonFormat,
        /// Absent values are left out instead of `null`.
        omit_empty_values: bool,
    },
}

/// How two numbers compare.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Comparison {
    /// Equal.
    Equal,
    /// Greater or equal.
    AtLeast,
    /// Less or equal.
    AtMost,
    /// Different.
    NotEqual,
}

/// Which requests are logged.
#[derive(Clone, Debug)]
pub enum LogFilter {
    /// By response code (0 when there is none).
    StatusCode(Comparison, u32),
    /// By duration in milliseconds.
    DurationMillis(Comparison, u64),
    /// Not health checks by Envoy's health check filter. Lateen has no such filter: always true.
    NotHealthCheck,
    /// A share of the requests.
    Sampled(Fraction),
    /// All of them match.
    All(Vec<LogFilter>),
    /// One of them matches.
    Any(Vec<LogFilter>),
    /// By request header.
    Header(Box<HeaderMatcher>),
    /// One of these short response flags is set; an empty list means any flag.
    ResponseFlags(Vec<Box<str>>),
    /// By gRPC status.
    GrpcStatus {
        /// Status numbers.
        statuses: Vec<u8>,
        /// True: log the others.
        exclude: bool,
    },
}
