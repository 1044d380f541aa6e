//! Header operations.
use lateen_api::networking::virtual_service::Headers;
use lateen_xds::pb::envoy::config::core::v3 as core;
use lateen_xds::pb::envoy::config::core::v3::header_value_option::HeaderAppendAction;

/// Which message the operations are about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    /// The request.
    Request,
    /// The response.
    Response,
}

/// Operations in Envoy's form.
#[derive(Debug, Default)]
pub(crate) struct HeaderChanges {
    pub(crate) add: Vec<core::HeaderValueOption>,
    pub(crate) remove: Vec<String>,
    /// A new authority: Envoy has a field for it and refuses it among headers.
    pub(crate) authority: Option<String>,
}

pub(crate) fn header_changes(headers: &Headers, side: Side) -> HeaderChanges {
    let operations = match side {
        Side::Request => &headers.request,
        Side::Response => &headers.response,
    };
    let mut changes = HeaderChanges::default();
    let Some(operations) = operations else { return changes };
    let set = operations.set.iter().map(|pair| (pair, HeaderAppendAction::OverwriteIfExistsOrAdd));
    let add = operations.add.iter().map(|pair| (pair, HeaderAppendAction::AppendIfExistsOrAdd));
    for ((name, value), action) in set.chain(add) {
        if is_authority(name) {
            if side == Side::Request {
                changes.authority = Some(value.clone());
            }
        } else if !name.starts_with(':') {
            changes.add.push(core::HeaderValueOption {
                header: Some(core::HeaderValue {
                    key: name.clone(),
                    value: value.clone(),
                    ..Default::default()
                }),
                append_action: action as i32,
                ..Default::default()
            });
        }
    }
    changes.remove = operations
        .remove
        .iter()
        .filter(|name| !name.starts_with(':') && !is_authority(name))
        .cloned()
        .collect();
    changes
}

pub(crate) fn is_authority(name: &str) -> bool {
    name.eq_ignore_ascii_case("host") || name.eq_ignore_ascii_case(":authority")
}
