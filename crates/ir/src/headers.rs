//! Header mutations of routes, and the formats inside them.

use http::HeaderName;

use crate::format::TextFormat;

/// Envoy's `HeaderValueOption.HeaderAppendAction`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum AppendAction {
    /// Adds another value.
    AppendIfExistsOrAdd,
    /// Adds only when there is none.
    AddIfAbsent,
    /// Replaces all values, adds when there is none.
    OverwriteIfExistsOrAdd,
    /// Replaces all values; does nothing when there is none.
    OverwriteIfExists,
}

/// Which header a mutation writes. Envoy allows `host` and `:authority`, `:path`, `:method`, `:scheme` to be overwritten only by
/// rewrites, not by header mutations, so only ordinary names are here.
#[derive(Clone, Debug)]
pub struct HeaderToAdd {
    /// Name of the header.
    pub name: HeaderName,
    /// Value, with `%…%` operators.
    pub value: TextFormat,
    /// How to combine with what is there.
    pub action: AppendAction,
    /// Adds the header even when the rendered value is empty.
    pub keep_empty_value: bool,
}

/// Changes to one header map. Envoy removes first and then adds, at each level (weighted cluster, route, virtual host, table).
#[derive(Clone, Debug, Default)]
pub struct HeaderMutations {
    /// Names to remove.
    pub remove: Box<[HeaderName]>,
    /// Values to add.
    pub add: Box<[HeaderToAdd]>,
}

impl HeaderMutations {
    /// True when nothing changes.
    pub fn is_empty(&self) -> bool {
        self.remove.is_empty() && self.add.is_empty()
    }
}
