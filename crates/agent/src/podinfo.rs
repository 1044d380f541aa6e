//! The pod's labels and annotations, from the files the downward API writes.

use std::collections::BTreeMap;
use std::path::Path;

use crate::error::AgentError;

/// What the downward API tells.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct PodInfo {
    /// Labels of the pod.
    pub labels: BTreeMap<String, String>,
    /// Annotations of the pod.
    pub annotations: BTreeMap<String, String>,
}

impl PodInfo {
    /// Reads `labels` and `annotations` in `folder`. A file that does not exist is empty.
    ///
    /// # Errors
    /// When a file exists and can't be read.
    pub(crate) fn read(folder: &Path) -> Result<Self, AgentError> {
        let read = |name| {
            let path = folder.join(name);
            match std::fs::read_to_string(&path) {
                Ok(text) => Ok(parse(&text)),
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(BTreeMap::new()),
                Err(error) => Err(AgentError::file("read", path, error)),
            }
        };
        Ok(Self { labels: read("labels")?, annotations: read("annotations")? })
    }
}

/// One `key="value"` a line, the value quoted as a Go string.
/// <https://kubernetes.io/docs/concepts/workloads/pods/downward-api/>
fn parse(text: &str) -> BTreeMap<String, String> {
    text.lines()
        .filter_map(|line| line.split_once('='))
        .map(|(key, quoted)| (key.to_owned(), unquote(quoted)))
        .collect()
}

/// Go's quoting is JSON's, but for `\x41`-like and `\a`-like escapes of what JSON writes as `\u`; such a value is taken as it stands.
fn unquote(quoted: &str) -> String {
    serde_json::from_str(quoted).unwrap_or_else(|_| quoted.trim_matches('"').to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_of_the_downward_api() {
        let parsed = parse("app=\"web\"\nversion=\"v1\"\nnote=\"a \\\"b\\\"=c\\n\"\n");
        assert_eq!(parsed["app"], "web");
        assert_eq!(parsed["note"], "a \"b\"=c\n");
        assert_eq!(parsed.len(), 3);
    }

    #[test]
    fn a_missing_folder_means_no_labels() {
        assert_eq!(PodInfo::read(Path::new("/nonexistent")).unwrap(), PodInfo::default());
    }
}
