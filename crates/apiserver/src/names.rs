//! Names and label syntax (`apimachinery/pkg/util/validation`).

use serde_json::Value;

use crate::{decode::join, resources::ResourceDef, status::FieldError};

const DNS_LABEL: &str = "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?')";
const DNS_SUBDOMAIN: &str = "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')";
const DNS_1035: &str = "a DNS-1035 label must consist of lower case alphanumeric characters or '-', start with an alphabetic character, and end with an alphanumeric character (e.g. 'my-name',  or 'abc-123', regex used for validation is '[a-z]([-a-z0-9]*[a-z0-9])?')";
const LABEL_VALUE: &str = "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyValue',  or 'my_value',  or '12345', regex used for validation is '(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')";
const QUALIFIED: &str = "name part must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')";
/// Annotations together, in bytes.
const ANNOTATIONS_LIMIT: usize = 256 << 10;

fn lower_alnum(c: char) -> bool {
    c.is_ascii_lowercase() || c.is_ascii_digit()
}

/// Lower case letters, digits and inner dashes, at most 63.
pub(crate) fn is_dns_label(name: &str) -> bool {
    name.len() <= 63 && label_shape(name)
}

fn label_shape(name: &str) -> bool {
    name.chars().all(|c| lower_alnum(c) || c == '-')
        && name.starts_with(lower_alnum)
        && name.ends_with(lower_alnum)
}

/// Labels joined by dots, at most 253.
pub(crate) fn is_dns_subdomain(name: &str) -> bool {
    name.len() <= 253 && name.split('.').all(label_shape)
}

/// What is wrong with `name` as a DNS label, in Kubernetes' words.
pub(crate) fn dns_label_problem(name: &str) -> Option<&'static str> {
    if name.len() > 63 {
        return Some("must be no more than 63 characters");
    }
    (!is_dns_label(name)).then_some(DNS_LABEL)
}

/// The rule a kind's names follow, and what is wrong with `name` by it.
pub(crate) fn name_problem(def: &ResourceDef, name: &str) -> Option<&'static str> {
    let (limit, limit_text, fits, text): (usize, _, bool, _) = match (def.group.as_str(), def.plural.as_str())
    {
        ("rbac.authorization.k8s.io", _) => {
            // Path segments.
            return (name == "." || name == ".." || name.contains(['/', '%']))
                .then_some("may not contain '/' or '%'");
        }
        ("", "services") => (
            63,
            "must be no more than 63 characters",
            label_shape(name) && name.starts_with(|c: char| c.is_ascii_lowercase()),
            DNS_1035,
        ),
        ("", "namespaces") => (63, "must be no more than 63 characters", label_shape(name), DNS_LABEL),
        _ => (253, "must be no more than 253 characters", is_dns_subdomain(name), DNS_SUBDOMAIN),
    };
    if name.len() > limit { Some(limit_text) } else { (!fits).then_some(text) }
}

/// `prefix/name`, as label and annotation keys are.
pub(crate) fn qualified_name_problem(key: &str) -> Option<&'static str> {
    let (prefix, name) = match key.split_once('/') {
        Some((prefix, name)) => (Some(prefix), name),
        None => (None, key),
    };
    if prefix.is_some_and(|p| p.is_empty() || !is_dns_subdomain(p)) {
        return Some("prefix part must be a lowercase RFC 1123 subdomain");
    }
    if name.len() > 63 {
        return Some("name part must be no more than 63 characters");
    }
    (name.is_empty() || !label_shaped(name)).then_some(QUALIFIED)
}

/// What is wrong with a label's value.
pub(crate) fn label_value_problem(value: &str) -> Option<&'static str> {
    if value.len() > 63 {
        return Some("must be no more than 63 characters");
    }
    (!value.is_empty() && !label_shaped(value)).then_some(LABEL_VALUE)
}

fn label_shaped(text: &str) -> bool {
    text.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
        && text.starts_with(|c: char| c.is_ascii_alphanumeric())
        && text.ends_with(|c: char| c.is_ascii_alphanumeric())
}

/// Checks a `labels` map at `path`.
pub(crate) fn check_labels(labels: &Value, path: &str, errors: &mut Vec<FieldError>) {
    for (key, value) in labels.as_object().into_iter().flatten() {
        if let Some(problem) = qualified_name_problem(key) {
            errors.push(FieldError::invalid(path, &Value::from(key.as_str()), problem));
        }
        if let Some(problem) = label_value_problem(value.as_str().unwrap_or_default()) {
            errors.push(FieldError::invalid(join(path, key), value, problem));
        }
    }
}

/// Checks what all objects have in common.
pub(crate) fn check_metadata(def: &ResourceDef, metadata: &Value, errors: &mut Vec<FieldError>) {
    let name = metadata["name"].as_str().unwrap_or_default();
    if name.is_empty() {
        errors.push(FieldError::required_because("metadata.name", "name or generateName is required"));
    } else if let Some(problem) = name_problem(def, name) {
        errors.push(FieldError::invalid("metadata.name", &metadata["name"], problem));
    }
    check_labels(&metadata["labels"], "metadata.labels", errors);
    let mut size = 0;
    for (key, value) in metadata["annotations"].as_object().into_iter().flatten() {
        size += key.len() + value.as_str().map_or(0, str::len);
        if let Some(problem) = qualified_name_problem(&key.to_lowercase()) {
            errors.push(FieldError::invalid("metadata.annotations", &Value::from(key.as_str()), problem));
        }
    }
    if size > ANNOTATIONS_LIMIT {
        errors.push(FieldError {
            reason: "FieldValueTooLong",
            field: "metadata.annotations".to_owned(),
            message: "Too long: may not be more than 262144 bytes".to_owned(),
        });
    }
    for (index, finalizer) in metadata["finalizers"].as_array().into_iter().flatten().enumerate() {
        if let Some(problem) = qualified_name_problem(finalizer.as_str().unwrap_or_default()) {
            errors.push(FieldError::invalid(format!("metadata.finalizers[{index}]"), finalizer, problem));
        }
    }
    for (index, owner) in metadata["ownerReferences"].as_array().into_iter().flatten().enumerate() {
        for field in ["apiVersion", "kind", "name", "uid"] {
            if owner[field].as_str().unwrap_or_default().is_empty() {
                errors.push(FieldError::required(format!("metadata.ownerReferences[{index}].{field}")));
            }
        }
    }
}
