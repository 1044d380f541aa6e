//! Access logs, their formats and filters.
#![allow(deprecated)]

use lateen_xds::pb::envoy::config::accesslog::v3 as proto;
use lateen_xds::pb::envoy::config::core::v3 as core;
use lateen_xds::pb::envoy::extensions::access_loggers::file::v3 as file;
use lateen_xds::pb::envoy::extensions::access_loggers::stream::v3 as stream;
use lateen_xds::pb::google::protobuf::Struct;
use proto::access_log_filter::FilterSpecifier;

use super::matchers::{header_matcher, header_value};
use super::values::{Converted, data_source, enumeration, fraction, required, struct_value, typed};
use crate::error::At;
use crate::format_parse::DEFAULT_TEXT_FORMAT;
use crate::support::fields;
use crate::{
    AccessLog, BodyFormat, BodyText, Comparison, Fraction, JsonFormat, LogFilter, LogFormat, LogSink,
    TextFormat,
};

pub(super) fn access_logs(
    at: &At<'_>,
    field: &str,
    logs: Vec<proto::AccessLog>,
) -> Converted<Vec<AccessLog>> {
    let convert = |(index, log)| access_log(&at.index(field, index), log);
    logs.into_iter().enumerate().map(convert).collect()
}

fn access_log(at: &At<'_>, log: proto::AccessLog) -> Converted<AccessLog> {
    fields!(at, log => proto::AccessLog {
        used { filter, config_type }
        inert { name = "the type of typed_config decides" }
        rejected {}
    });
    let proto::access_log::ConfigType::TypedConfig(any) = required(at, "typed_config", config_type)?;
    let at_config = at.field("typed_config");
    let (sink, format) = match lateen_xds::any::message_name(&any.type_url) {
        "envoy.extensions.access_loggers.file.v3.FileAccessLog" => file_log(&at_config, typed(at, &any)?)?,
        "envoy.extensions.access_loggers.stream.v3.StdoutAccessLog" => {
            let config: stream::StdoutAccessLog = typed(at, &any)?;
            fields!(&at_config, config => stream::StdoutAccessLog {
                used { access_log_format }
                inert {}
                rejected {}
            });
            let format = access_log_format.map(|format| {
                let stream::stdout_access_log::AccessLogFormat::LogFormat(format) = format;
                format
            });
            (LogSink::Stdout, stream_format(&at_config, format)?)
        }
        "envoy.extensions.access_loggers.stream.v3.StderrAccessLog" => {
            let config: stream::StderrAccessLog = typed(at, &any)?;
            fields!(&at_config, config => stream::StderrAccessLog {
                used { access_log_format }
                inert {}
                rejected {}
            });
            let format = access_log_format.map(|format| {
                let stream::stderr_access_log::AccessLogFormat::LogFormat(format) = format;
                format
            });
            (LogSink::Stderr, stream_format(&at_config, format)?)
        }
        other => {
            let reason = format!("{other:?} is not supported; file, stdout and stderr access logs are");
            return Err(at_config.error(reason));
        }
    };
    let filter = filter.map(|filter| log_filter(&at.field("filter"), filter)).transpose()?;
    Ok(AccessLog { sink, format, filter })
}

fn stream_format(at: &At<'_>, format: Option<core::SubstitutionFormatString>) -> Converted<LogFormat> {
    match format {
        None => text(at, DEFAULT_TEXT_FORMAT, false).map(LogFormat::Text),
        Some(format) => log_format(&at.field("log_format"), format),
    }
}

fn file_log(at: &At<'_>, config: file::FileAccessLog) -> Converted<(LogSink, LogFormat)> {
    use file::file_access_log::AccessLogFormat;
    fields!(at, config => file::FileAccessLog {
        used { path, access_log_format }
        inert {}
        rejected {}
    });
    let sink = match path.as_str() {
        "" => return Err(at.error_in("path", "must not be empty")),
        "/dev/stdout" => LogSink::Stdout,
        "/dev/stderr" => LogSink::Stderr,
        path => LogSink::File(path.into()),
    };
    let json_format = |field, fields| {
        Ok(LogFormat::Json { format: json(&at.field(field), fields, false)?, omit_empty_values: false })
    };
    let format = match access_log_format {
        None => LogFormat::Text(text(at, DEFAULT_TEXT_FORMAT, false)?),
        Some(AccessLogFormat::Format(format)) => LogFormat::Text(text(&at.field("format"), &format, false)?),
        Some(AccessLogFormat::JsonFormat(fields)) => json_format("json_format", fields)?,
        Some(AccessLogFormat::TypedJsonFormat(fields)) => json_format("typed_json_format", fields)?,
        Some(AccessLogFormat::LogFormat(format)) => log_format(&at.field("log_format"), format)?,
    };
    Ok((sink, format))
}

fn text(at: &At<'_>, format: &str, omit_empty_values: bool) -> Converted<TextFormat> {
    TextFormat::parse(format, omit_empty_values).map_err(|error| at.error(error.to_string()))
}

fn json(at: &At<'_>, format: Struct, omit_empty_values: bool) -> Converted<JsonFormat> {
    JsonFormat::parse(&struct_value(format), omit_empty_values).map_err(|error| at.error(error.to_string()))
}

fn log_format(at: &At<'_>, format: core::SubstitutionFormatString) -> Converted<LogFormat> {
    let (body, omit_empty_values) = substitution(at, format).map(|(body, omit, _)| (body, omit))?;
    Ok(match body {
        BodyText::Text(format) => LogFormat::Text(format),
        BodyText::Json(format) => LogFormat::Json { format, omit_empty_values },
    })
}

/// A format for a local reply's body; the content type follows the kind of format unless it is given.
pub(super) fn body_format(at: &At<'_>, format: core::SubstitutionFormatString) -> Converted<BodyFormat> {
    let (body, _, content_type) = substitution(at, format)?;
    let content_type = match (content_type.as_str(), &body) {
        ("", BodyText::Text(_)) => "text/plain",
        ("", BodyText::Json(_)) => "application/json",
        (given, _) => given,
    };
    Ok(BodyFormat { content_type: header_value(at, "content_type", content_type)?, body })
}

fn substitution(at: &At<'_>, format: core::SubstitutionFormatString) -> Converted<(BodyText, bool, String)> {
    use core::substitution_format_string::Format;
    fields!(at, format => core::SubstitutionFormatString {
        used { omit_empty_values, content_type, format }
        inert { json_format_options = "keys are always sorted" }
        rejected { formatters = "formatters by extension" }
    });
    let body = match required(at, "format", format)? {
        Format::TextFormat(format) => {
            BodyText::Text(text(&at.field("text_format"), &format, omit_empty_values)?)
        }
        Format::TextFormatSource(source) => {
            let at = at.field("text_format_source");
            let format = String::from_utf8(data_source(&at, source)?);
            let format = format.map_err(|_| at.error("is not valid UTF-8"))?;
            BodyText::Text(text(&at, &format, omit_empty_values)?)
        }
        Format::JsonFormat(format) => {
            BodyText::Json(json(&at.field("json_format"), format, omit_empty_values)?)
        }
    };
    Ok((body, omit_empty_values, content_type))
}

pub(super) fn log_filter(at: &At<'_>, filter: proto::AccessLogFilter) -> Converted<LogFilter> {
    let all = |field: &'static str, filters: Vec<proto::AccessLogFilter>| {
        if filters.len() < 2 {
            return Err(at.field(field).error_in("filters", "must have at least two entries"));
        }
        let filters = filters.into_iter().enumerate();
        filters.map(|(index, filter)| log_filter(&at.field(field).index("filters", index), filter)).collect()
    };
    let unsupported = |field: &str, what: &str| Err(at.error_in(field, format!("not supported: {what}")));
    Ok(match required(at, "filter_specifier", filter.filter_specifier)? {
        FilterSpecifier::StatusCodeFilter(filter) => {
            let at = at.field("status_code_filter");
            let (comparison, value) = comparison(&at, filter.comparison)?;
            LogFilter::StatusCode(comparison, value)
        }
        FilterSpecifier::DurationFilter(filter) => {
            let at = at.field("duration_filter");
            let (comparison, value) = comparison(&at, filter.comparison)?;
            LogFilter::DurationMillis(comparison, value.into())
        }
        FilterSpecifier::NotHealthCheckFilter(_) => LogFilter::NotHealthCheck,
        FilterSpecifier::RuntimeFilter(filter) => {
            LogFilter::Sampled(sampled(&at.field("runtime_filter"), filter)?)
        }
        FilterSpecifier::AndFilter(filter) => LogFilter::All(all("and_filter", filter.filters)?),
        FilterSpecifier::OrFilter(filter) => LogFilter::Any(all("or_filter", filter.filters)?),
        FilterSpecifier::HeaderFilter(filter) => {
            let at = at.field("header_filter");
            let header = required(&at, "header", filter.header)?;
            LogFilter::Header(Box::new(header_matcher(&at.field("header"), header)?))
        }
        FilterSpecifier::ResponseFlagFilter(filter) => {
            LogFilter::ResponseFlags(filter.flags.into_iter().map(Into::into).collect())
        }
        FilterSpecifier::GrpcStatusFilter(filter) => {
            let at = at.field("grpc_status_filter");
            let statuses = filter.statuses.into_iter().map(|status| {
                u8::try_from(status).map_err(|_| at.error_in("statuses", format!("unknown value {status}")))
            });
            LogFilter::GrpcStatus { statuses: statuses.collect::<Converted<_>>()?, exclude: filter.exclude }
        }
        FilterSpecifier::TraceableFilter(_) => return unsupported("traceable_filter", "tracing"),
        FilterSpecifier::ExtensionFilter(_) => {
            return unsupported("extension_filter", "filters by extension");
        }
        FilterSpecifier::MetadataFilter(_) => return unsupported("metadata_filter", "dynamic metadata"),
        FilterSpecifier::LogTypeFilter(_) => return unsupported("log_type_filter", "filters by log type"),
    })
}

fn comparison(at: &At<'_>, comparison: Option<proto::ComparisonFilter>) -> Converted<(Comparison, u32)> {
    use proto::comparison_filter::Op;
    let message = required(at, "comparison", comparison)?;
    let at = at.field("comparison");
    fields!(&at, message => proto::ComparisonFilter {
        used { op, value }
        inert {}
        rejected {}
    });
    let comparison = match enumeration(&at, "op", op)? {
        Op::Eq => Comparison::Equal,
        Op::Ge => Comparison::AtLeast,
        Op::Le => Comparison::AtMost,
        Op::Ne => Comparison::NotEqual,
    };
    // Without a runtime the default is the value; the key names what could override it.
    Ok((comparison, value.map_or(0, |value| value.default_value)))
}

fn sampled(at: &At<'_>, filter: proto::RuntimeFilter) -> Converted<Fraction> {
    fields!(at, filter => proto::RuntimeFilter {
        used { percent_sampled }
        inert {
            runtime_key = "there is no runtime; percent_sampled counts",
            use_independent_randomness = "every choice is independent",
        }
        rejected {}
    });
    match percent_sampled {
        None => Ok(Fraction { numerator: 0, denominator: 100 }),
        Some(percent) => fraction(&at.field("percent_sampled"), percent),
    }
}
