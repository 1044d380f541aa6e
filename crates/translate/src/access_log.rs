//! Access logs.
use lateen_xds::Any;
use lateen_xds::pb::envoy::config::accesslog::v3 as log;
use lateen_xds::pb::envoy::config::core::v3 as core;
use lateen_xds::pb::envoy::extensions::access_loggers::file::v3 as file;
use prost::{Message, Name};

use crate::ordered;
use crate::settings::{AccessLogFormat, AccessLogSettings, Settings};
use crate::wire;

/// The log of a connection manager or TCP proxy.
pub(crate) fn traffic_log(settings: &Settings) -> Vec<log::AccessLog> {
    settings.access_log.iter().map(|log| access_log(log, None)).collect()
}

/// The log of a listener: only connections that match no filter chain, which no filter can log.
pub(crate) fn listener_log(settings: &Settings) -> Vec<log::AccessLog> {
    let unmatched = log::access_log_filter::FilterSpecifier::ResponseFlagFilter(log::ResponseFlagFilter {
        flags: vec!["NR".to_owned()],
    });
    let filter = log::AccessLogFilter { filter_specifier: Some(unmatched) };
    settings.access_log.iter().map(|log| access_log(log, Some(filter.clone()))).collect()
}

fn access_log(settings: &AccessLogSettings, filter: Option<log::AccessLogFilter>) -> log::AccessLog {
    log::AccessLog {
        name: "envoy.access_loggers.file".to_owned(),
        filter,
        config_type: Some(log::access_log::ConfigType::TypedConfig(file_log(settings))),
    }
}

fn file_log(settings: &AccessLogSettings) -> Any {
    match &settings.format {
        AccessLogFormat::Text(format) => {
            let format = core::SubstitutionFormatString {
                format: Some(core::substitution_format_string::Format::TextFormatSource(core::DataSource {
                    specifier: Some(core::data_source::Specifier::InlineString(format.clone())),
                    ..Default::default()
                })),
                ..Default::default()
            };
            wire::any(&file::FileAccessLog {
                path: settings.path.clone(),
                access_log_format: Some(file::file_access_log::AccessLogFormat::LogFormat(format)),
            })
        }
        AccessLogFormat::Json(fields) => {
            let fields = fields
                .iter()
                .map(|(name, value)| (name.clone(), ordered::Value::text(value.as_str())))
                .collect();
            let message = ordered::JsonFileAccessLog {
                path: settings.path.clone(),
                log_format: Some(ordered::JsonFormatString { json_format: Some(ordered::Struct { fields }) }),
            };
            Any { type_url: file::FileAccessLog::type_url(), value: message.encode_to_vec() }
        }
    }
}
