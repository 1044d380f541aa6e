//! Rewritten paths and redirect locations.

use crate::route::{PathMatcher, PathRedirect, PathRewrite, Redirect, RegexRewrite};
use crate::route_table::{RequestView, path_only};

impl RegexRewrite {
    /// Replaces every match.
    pub fn apply(&self, text: &str) -> String {
        self.pattern.replace_all(text, &*self.replacement).into_owned()
    }
}

impl PathRewrite {
    /// The new `:path`, query included, or `None` when it stays. [`PathRewrite::Path`] needs the request's values: `render` renders its format.
    pub fn apply(
        &self,
        matcher: &PathMatcher,
        path_and_query: &str,
        render: impl FnOnce(&crate::TextFormat) -> String,
    ) -> Option<String> {
        let path = path_only(path_and_query);
        let query = &path_and_query[path.len()..];
        match self {
            Self::None => None,
            Self::Prefix(prefix) => Some(replace_prefix(matcher, path_and_query, prefix)),
            Self::Regex(rewrite) => Some(rewrite.apply(path) + query),
            Self::Path(format) => Some(render(format) + query),
        }
    }
}

/// The matched part of the path replaced; the rest and the query stay.
fn replace_prefix(matcher: &PathMatcher, path_and_query: &str, prefix: &str) -> String {
    let matched = matcher.matched_length(path_only(path_and_query));
    format!("{prefix}{}", path_and_query.get(matched..).unwrap_or_default())
}

impl PathRedirect {
    /// The request's path and query with the prefix or the matches of a regex replaced; `None`: it is not about parts of the path.
    pub fn rewritten(&self, matcher: &PathMatcher, path_and_query: &str) -> Option<String> {
        let path = path_only(path_and_query);
        let new = match self {
            Self::Keep | Self::Path(_) => return None,
            Self::Prefix(prefix) => replace_prefix(matcher, path, prefix),
            Self::Regex(rewrite) => rewrite.apply(path),
        };
        Some(new + &path_and_query[path.len()..])
    }
}

impl Redirect {
    /// The `location` for a request. Source: Envoy's `RedirectAction`.
    pub fn location(&self, matcher: &PathMatcher, request: &RequestView<'_>) -> String {
        let scheme = self.scheme.as_deref().unwrap_or(request.scheme);
        let host = match &self.host {
            Some(host) => host,
            None => self.request_host(request, scheme),
        };
        let port = self.port.map(|port| format!(":{port}")).unwrap_or_default();
        let path = path_only(request.path);
        let query = &request.path[path.len()..];
        let keeps_query = |new: String| if self.strip_query { new } else { new + query };
        let path = match &self.path {
            PathRedirect::Keep => keeps_query(path.to_owned()),
            // A query of its own replaces the request's, and is never dropped.
            PathRedirect::Path(new) if new.contains('?') => new.to_string(),
            PathRedirect::Path(new) => keeps_query(new.to_string()),
            PathRedirect::Prefix(prefix) => keeps_query(replace_prefix(matcher, path, prefix)),
            PathRedirect::Regex(rewrite) => keeps_query(rewrite.apply(path)),
        };
        format!("{scheme}://{host}{port}{path}")
    }

    /// The request's host; its port goes when there is a new one, or when it was the default of a scheme that changes.
    fn request_host<'a>(&self, request: &RequestView<'a>, scheme: &str) -> &'a str {
        let authority = request.authority;
        let end = match authority.strip_prefix('[') {
            Some(_) => authority.rfind("]:").map(|end| end + 1),
            None => authority.rfind(':'),
        };
        let Some(end) = end else { return authority };
        // By what is said of the connection; a URL of the request's own may have another scheme.
        let forwarded = request.headers.get("x-forwarded-proto").and_then(|scheme| scheme.to_str().ok());
        let forwarded = forwarded.unwrap_or(request.scheme);
        let default = match forwarded {
            "https" => Some(":443"),
            "http" => Some(":80"),
            _ => None,
        };
        let changes = scheme != forwarded && Some(&authority[end..]) == default;
        if self.port.is_some() || (changes && !self.keep_port) { &authority[..end] } else { authority }
    }
}

#[cfg(test)]
mod tests {
    use http::{HeaderMap, StatusCode};

    use super::*;

    fn prefix(value: &str) -> PathMatcher {
        PathMatcher::Prefix { value: value.into(), case_sensitive: true }
    }

    #[test]
    fn prefix_rewrites_keep_the_rest_and_the_query() {
        let exact = PathMatcher::Exact { value: "/a".into(), case_sensitive: true };
        let regex = PathMatcher::Regex(crate::FullRegex::new("/a.*").unwrap());
        // The first three are from the documentation of `prefix_rewrite`.
        let table = [
            (prefix("/prefix"), "/", "/prefix/etc", "//etc"),
            (prefix("/prefix/"), "/", "/prefix/etc?x=1", "/etc?x=1"),
            (prefix("/prefix"), "/", "/prefix", "/"),
            (exact, "/new", "/a?q", "/new?q"),
            (regex, "/new", "/abc?q", "/new?q"),
        ];
        for (matcher, new, path, expected) in table {
            let rewrite = PathRewrite::Prefix(new.into());
            assert_eq!(
                rewrite.apply(&matcher, path, |_| unreachable!()).as_deref(),
                Some(expected),
                "{path}"
            );
        }
        assert_eq!(PathRewrite::None.apply(&prefix("/"), "/a", |_| unreachable!()), None);
    }

    #[test]
    fn locations_are_envoys() {
        let keep = Redirect {
            scheme: None,
            host: None,
            port: None,
            path: PathRedirect::Keep,
            status: StatusCode::MOVED_PERMANENTLY,
            strip_query: false,
            keep_port: false,
        };
        let https = Redirect { scheme: Some("https".into()), ..keep.clone() };
        let table = [
            (https.clone(), "a.com", "/x?y", "https://a.com/x?y"),
            (https.clone(), "a.com:80", "/x", "https://a.com/x"),
            (https.clone(), "a.com:8080", "/x", "https://a.com:8080/x"),
            (https.clone(), "[::1]:80", "/x", "https://[::1]/x"),
            (https, "[::1]", "/x", "https://[::1]/x"),
            (keep.clone(), "a.com:80", "/x", "http://a.com:80/x"),
            (Redirect { port: Some(81), ..keep.clone() }, "a.com:80", "/x", "http://a.com:81/x"),
            (Redirect { host: Some("b.com".into()), ..keep.clone() }, "a.com:80", "/x", "http://b.com/x"),
            (Redirect { strip_query: true, ..keep.clone() }, "a", "/x?y", "http://a/x"),
            (Redirect { path: PathRedirect::Path("/n".into()), ..keep.clone() }, "a", "/x?y", "http://a/n?y"),
            (
                Redirect { path: PathRedirect::Path("/n?z".into()), ..keep.clone() },
                "a",
                "/x?y",
                "http://a/n?z",
            ),
            (Redirect { path: PathRedirect::Prefix("/n".into()), ..keep }, "a", "/x/1?y", "http://a/n/1?y"),
        ];
        let headers = HeaderMap::new();
        for (redirect, authority, path, expected) in table {
            let request = RequestView {
                method: "GET",
                scheme: "http",
                authority,
                path,
                headers: &headers,
                metadata: None,
            };
            assert_eq!(redirect.location(&prefix("/x"), &request), expected);
        }
    }
}
