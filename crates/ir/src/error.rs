//! The conversion error and the field path it names.

use std::fmt;

/// Why a configuration resource cannot be used, with the path of the field inside the resource.
///
/// The text is what the management server sees in a NACK, so it says what is wrong and where.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{path}: {reason}")]
pub struct ConvertError {
    /// Path from the resource's root, for example `filter_chains[0].filters[1].typed_config.stat_prefix`.
    pub path: String,
    /// What is wrong with the value there, or what to use instead.
    pub reason: String,
}

/// A place inside a resource. Lives on the stack of the conversion; text is made only for an error.
#[derive(Clone, Copy, Debug)]
pub(crate) struct At<'a> {
    parent: Option<&'a At<'a>>,
    segment: Segment<'a>,
}

#[derive(Clone, Copy, Debug)]
enum Segment<'a> {
    Root,
    Field(&'a str),
    Index(&'a str, usize),
    Key(&'a str, &'a str),
}

impl At<'_> {
    /// The resource itself.
    pub(crate) const ROOT: At<'static> = At { parent: None, segment: Segment::Root };

    /// A field of the message here.
    pub(crate) fn field<'a>(&'a self, name: &'a str) -> At<'a> {
        At { parent: Some(self), segment: Segment::Field(name) }
    }

    /// An element of a repeated field.
    pub(crate) fn index<'a>(&'a self, name: &'a str, index: usize) -> At<'a> {
        At { parent: Some(self), segment: Segment::Index(name, index) }
    }

    /// An entry of a map field.
    pub(crate) fn key<'a>(&'a self, name: &'a str, key: &'a str) -> At<'a> {
        At { parent: Some(self), segment: Segment::Key(name, key) }
    }

    /// An error about the value here.
    pub(crate) fn error(&self, reason: impl Into<String>) -> ConvertError {
        let path = self.to_string();
        ConvertError {
            path: if path.is_empty() { "(resource)".to_owned() } else { path },
            reason: reason.into(),
        }
    }

    /// An error about a field of the message here.
    pub(crate) fn error_in(&self, field: &str, reason: impl Into<String>) -> ConvertError {
        self.field(field).error(reason)
    }
}

impl fmt::Display for At<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(parent) = self.parent {
            parent.fmt(f)?;
            if !matches!(parent.segment, Segment::Root) {
                f.write_str(".")?;
            }
        }
        match self.segment {
            Segment::Root => Ok(()),
            Segment::Field(name) => f.write_str(name),
            Segment::Index(name, index) => write!(f, "{name}[{index}]"),
            Segment::Key(name, key) => write!(f, "{name}[{key:?}]"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_read_like_envoys() {
        let root = At::ROOT;
        let chain = root.index("filter_chains", 0);
        let filter = chain.index("filters", 1);
        let config = filter.field("typed_config");
        assert_eq!(config.error("no").to_string(), "filter_chains[0].filters[1].typed_config: no");
        assert_eq!(root.error("no").path, "(resource)");
        assert_eq!(
            root.key("typed_per_filter_config", "a.b").to_string(),
            "typed_per_filter_config[\"a.b\"]"
        );
    }
}
