//! Path normalisation before routing, so that policies and routes see what the service will see.
//! <https://www.envoyproxy.io/docs/envoy/v1.40.0/api-v3/extensions/filters/network/http_connection_manager/v3/http_connection_manager.proto>

use http::uri::PathAndQuery;

use crate::{EscapedSlashes, HttpConnectionManager};

/// The path cannot be normalised: 400.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PathProblem;

/// A changed path.
#[derive(Debug, PartialEq, Eq)]
pub struct ChangedPath {
    /// What it is now.
    pub path: PathAndQuery,
    /// The client is to ask again with this path.
    pub redirect: bool,
}

/// A request's path as the connection manager wants it. `Ok(None)`: nothing to change, the usual case, in which nothing is copied.
///
/// # Errors
/// It has none that could be served.
pub fn normalise_path(
    path: &PathAndQuery,
    hcm: &HttpConnectionManager,
) -> Result<Option<ChangedPath>, PathProblem> {
    normalise(path, hcm.normalize_path, hcm.merge_slashes, hcm.escaped_slashes)
}

fn normalise(
    path: &PathAndQuery,
    normalize_path: bool,
    merges: bool,
    escaped_slashes: EscapedSlashes,
) -> Result<Option<ChangedPath>, PathProblem> {
    let original = path.path();
    let escaped = escaped_slashes != EscapedSlashes::Keep && has_escaped_slash(original);
    let dotted = normalize_path && needs_dots_removed(original);
    let doubled = merges && original.contains("//");
    if !escaped && !dotted && !doubled {
        return Ok(None);
    }
    let mut text = original.to_owned();
    let mut redirect = false;
    if escaped {
        match escaped_slashes {
            EscapedSlashes::Keep => {}
            EscapedSlashes::Reject => return Err(PathProblem),
            EscapedSlashes::UnescapeAndForward => text = unescape_slashes(&text),
            EscapedSlashes::UnescapeAndRedirect => {
                text = unescape_slashes(&text);
                redirect = true;
            }
        }
    }
    if normalize_path && needs_dots_removed(&text) {
        text = remove_dots(&text)?;
    }
    if merges {
        text = merge_slashes(&text);
    }
    if let Some(query) = path.query() {
        text.push('?');
        text.push_str(query);
    }
    let path = PathAndQuery::try_from(text).map_err(|_| PathProblem)?;
    Ok(Some(ChangedPath { path, redirect }))
}

/// Joins what stands between slashes. A path of slashes only ends as two: it keeps its first and its last one, as in Envoy.
fn merge_slashes(path: &str) -> String {
    let mut text = String::with_capacity(path.len());
    if path.starts_with('/') {
        text.push('/');
    }
    for (position, part) in path.split('/').filter(|part| !part.is_empty()).enumerate() {
        if position > 0 {
            text.push('/');
        }
        text.push_str(part);
    }
    if path.len() > 1 && path.ends_with('/') {
        text.push('/');
    }
    text
}

/// A path with its escaped slashes undone, query and all.
pub fn path_with_slashes(path: &PathAndQuery) -> Option<PathAndQuery> {
    let query = path.query().map(|query| format!("?{query}")).unwrap_or_default();
    PathAndQuery::try_from(unescape_slashes(path.path()) + &query).ok()
}

fn has_escaped_slash(path: &str) -> bool {
    path.contains('%') && ["%2F", "%2f", "%5C", "%5c"].iter().any(|escape| path.contains(escape))
}

fn unescape_slashes(path: &str) -> String {
    path.replace("%2F", "/").replace("%2f", "/").replace("%5C", "\\").replace("%5c", "\\")
}

/// A cheap test: something that `remove_dots` might change.
fn needs_dots_removed(path: &str) -> bool {
    path.contains("/.") || path.contains('%') || path.contains('\\') || path.contains("./")
}

/// RFC 3986, section 6.2.2: decodes escapes of unreserved characters, removes dot segments. Backslashes become slashes, as in Envoy's URL parser.
fn remove_dots(path: &str) -> Result<String, PathProblem> {
    let decoded = decode_unreserved(&path.replace('\\', "/"))?;
    let mut segments: Vec<&str> = Vec::new();
    let mut parts = decoded.strip_prefix('/').ok_or(PathProblem)?.split('/').peekable();
    while let Some(part) = parts.next() {
        let last = parts.peek().is_none();
        // A parameter does not make another name of them: some servers cut it off and go up (`/a/..;x/b`).
        let name = part.split_once(';').map_or(part, |(name, _)| name);
        match name {
            "." | ".." => {
                if name == ".." {
                    // Above the root stays the root.
                    segments.pop();
                }
                if last {
                    segments.push("");
                }
            }
            _ => segments.push(part),
        }
    }
    Ok(format!("/{}", segments.join("/")))
}

/// What is not an escape stays as it is.
fn decode_unreserved(path: &str) -> Result<String, PathProblem> {
    let mut out = String::with_capacity(path.len());
    let mut rest = path;
    while let Some(position) = rest.find('%') {
        out.push_str(&rest[..position]);
        let escape =
            rest.get(position + 1..position + 3).and_then(|digits| u8::from_str_radix(digits, 16).ok());
        match escape {
            Some(0) => return Err(PathProblem),
            Some(byte) if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) => {
                out.push(char::from(byte));
                rest = &rest[position + 3..];
            }
            _ => {
                out.push('%');
                rest = &rest[position + 1..];
            }
        }
    }
    out.push_str(rest);
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dot_segments_and_escapes() {
        for (path, expected) in [
            ("/a/./b", "/a/b"),
            ("/a/../b", "/b"),
            ("/../../a", "/a"),
            ("/a/..", "/"),
            ("/a/b/.", "/a/b/"),
            ("/%61dmin/%2e%2e/x", "/x"),
            ("/a%2fb", "/a%2fb"),
            ("/a%zz%", "/a%zz%"),
            ("/a\\b", "/a/b"),
            ("/.hidden", "/.hidden"),
            ("/a/..;/b", "/b"),
            // Envoy 1.40 reads parameters before it decodes, and passes on `/a/..;/b`; the same path has one meaning here.
            ("/a/%2e%2e;/b", "/b"),
            ("/a/.;x=1/b", "/a/b"),
            ("/a/..;", "/"),
            ("/a;x/b", "/a;x/b"),
        ] {
            assert_eq!(remove_dots(path).as_deref(), Ok(expected), "{path}");
        }
        assert_eq!(remove_dots("/%00"), Err(PathProblem));
        for (path, expected) in
            [("/a//b", "/a/b"), ("//a///b//", "/a/b/"), ("/", "/"), ("//", "//"), ("///", "//")]
        {
            assert_eq!(merge_slashes(path), expected, "{path}");
        }
    }

    #[test]
    fn each_option_does_its_part() {
        use EscapedSlashes::{Keep, Reject, UnescapeAndForward, UnescapeAndRedirect};
        let (plain, dots, merge) = ((false, false), (true, false), (false, true));
        let all = (true, true);
        let moved = |path: &'static str, redirect| Ok(Some((path, redirect)));
        for (path, (normalize_path, merge_slashes), escaped_slashes, expected) in [
            ("/a/../b//c%2fd", plain, Keep, Ok(None)),
            ("/a/../b", dots, Keep, moved("/b", false)),
            ("/a\\b", dots, Keep, moved("/a/b", false)),
            ("/%61", dots, Keep, moved("/a", false)),
            ("/a./b", dots, Keep, moved("/a./b", false)),
            ("/a/b", dots, Keep, Ok(None)),
            ("/a//b", dots, Keep, Ok(None)),
            ("/a/./b?x=/../y", dots, Keep, moved("/a/b?x=/../y", false)),
            ("/a//b?x=//y", merge, Keep, moved("/a/b?x=//y", false)),
            ("/a/../b", merge, Keep, Ok(None)),
            ("/a//../b", all, Keep, moved("/a/b", false)),
            ("/a%2f../b", dots, Keep, moved("/a%2f../b", false)),
            ("/a%2Fb", plain, UnescapeAndForward, moved("/a/b", false)),
            ("/a%5Cb", plain, UnescapeAndForward, moved("/a\\b", false)),
            ("/a%5c..%5cb", dots, UnescapeAndForward, moved("/b", false)),
            ("/a%2f%2fb", all, UnescapeAndForward, moved("/a/b", false)),
            ("/a%2fb?c%2fd", plain, UnescapeAndRedirect, moved("/a/b?c%2fd", true)),
            ("/a%2f../b", dots, UnescapeAndRedirect, moved("/b", true)),
            ("/a%2fb", plain, Reject, Err(PathProblem)),
            ("/a%5cb", all, Reject, Err(PathProblem)),
            ("/a%20b", plain, Reject, Ok(None)),
            ("/a/b?c%2fd", plain, Reject, Ok(None)),
        ] {
            let asked = PathAndQuery::try_from(path).unwrap();
            let found = normalise(&asked, normalize_path, merge_slashes, escaped_slashes);
            let found =
                found.map(|changed| changed.map(|changed| (changed.path.to_string(), changed.redirect)));
            let expected =
                expected.map(|changed| changed.map(|(path, redirect)| (path.to_owned(), redirect)));
            assert_eq!(found, expected, "{path} {normalize_path} {merge_slashes} {escaped_slashes:?}");
        }
    }
}
