//! From a path to what it names.

/// A path under `/api/v1` or `/apis/GROUP/VERSION`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct ResourcePath {
    pub(crate) group: String,
    pub(crate) version: String,
    pub(crate) resource: String,
    /// `None` when the path has no namespace (cluster-scoped, or all namespaces).
    pub(crate) namespace: Option<String>,
    pub(crate) name: Option<String>,
    pub(crate) subresource: Option<String>,
    /// What follows the subresource (of `proxy`), with its leading slash; empty when nothing does.
    pub(crate) rest: String,
    /// The deprecated `/watch/` prefix was used.
    pub(crate) watch: bool,
}

/// Reads a resource path; `None` for everything else (discovery included).
pub(crate) fn parse(path: &str) -> Option<ResourcePath> {
    let rest = path.strip_prefix('/')?;
    let mut segments = rest.splitn(3, '/');
    let (group, version, rest) = match segments.next()? {
        "api" => ("", segments.next()?, segments.next()?),
        "apis" => {
            let group = segments.next()?;
            let (version, rest) = segments.next()?.split_once('/')?;
            (group, version, rest)
        }
        _ => return None,
    };
    let (watch, rest) = match rest.strip_prefix("watch/") {
        Some(rest) => (true, rest),
        None => (false, rest),
    };
    let mut parsed = ResourcePath {
        group: group.to_owned(),
        version: version.to_owned(),
        watch,
        ..ResourcePath::default()
    };
    let mut rest = rest;
    let mut next = || {
        let (segment, tail) = rest.split_once('/').unwrap_or((rest, ""));
        let found = decode(segment);
        let had_slash = segment.len() < rest.len();
        rest = tail;
        (found, had_slash)
    };
    let (first, _) = next();
    if first.is_empty() {
        return None;
    }
    if first == "namespaces" && group.is_empty() {
        let (name, _) = next();
        let (third, slash) = next();
        // The namespace itself and its subresources.
        if third.is_empty() || third == "status" || third == "finalize" {
            parsed.resource = first;
            parsed.name = (!name.is_empty()).then_some(name);
            parsed.subresource = (!third.is_empty()).then_some(third);
            return Some(parsed);
        }
        parsed.namespace = Some(name);
        parsed.resource = third;
        let _ = slash;
    } else if first == "namespaces" {
        let (name, _) = next();
        parsed.namespace = Some(name);
        parsed.resource = next().0;
    } else {
        parsed.resource = first;
    }
    let (name, _) = next();
    parsed.name = (!name.is_empty()).then_some(name);
    let (subresource, slash) = next();
    parsed.subresource = (!subresource.is_empty()).then_some(subresource);
    if slash {
        parsed.rest = format!("/{rest}");
    }
    (!parsed.resource.is_empty()).then_some(parsed)
}

/// Decodes percent signs in a path segment.
pub(crate) fn decode(text: &str) -> String {
    decode_with(text, false)
}

fn decode_with(text: &str, plus_is_space: bool) -> String {
    let bytes = text.as_bytes();
    let mut decoded = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let hex = |offset: usize| bytes.get(at + offset).and_then(|b| (*b as char).to_digit(16));
        match (bytes[at], hex(1), hex(2)) {
            (b'%', Some(high), Some(low)) => {
                decoded.push(u8::try_from(high * 16 + low).unwrap_or(b'?'));
                at += 3;
            }
            (b'+', ..) if plus_is_space => {
                decoded.push(b' ');
                at += 1;
            }
            (byte, ..) => {
                decoded.push(byte);
                at += 1;
            }
        }
    }
    String::from_utf8_lossy(&decoded).into_owned()
}

/// A query string's parameters.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Query(Vec<(String, String)>);

impl Query {
    pub(crate) fn parse(text: &str) -> Self {
        let pairs = text.split('&').filter(|pair| !pair.is_empty()).map(|pair| {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            (decode_with(name, true), decode_with(value, true))
        });
        Self(pairs.collect())
    }

    /// The first value of a parameter.
    pub(crate) fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    /// A non-empty value.
    pub(crate) fn text(&self, name: &str) -> Option<&str> {
        self.get(name).filter(|value| !value.is_empty())
    }

    /// Go's `strconv.ParseBool`, false when absent or unreadable.
    pub(crate) fn flag(&self, name: &str) -> bool {
        matches!(self.get(name), Some("1" | "t" | "T" | "true" | "TRUE" | "True"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths() {
        let cases = [
            ("/api/v1/pods", ("", "pods", None, None, None, "")),
            ("/api/v1/namespaces", ("", "namespaces", None, None, None, "")),
            ("/api/v1/namespaces/a", ("", "namespaces", None, Some("a"), None, "")),
            ("/api/v1/namespaces/a/status", ("", "namespaces", None, Some("a"), Some("status"), "")),
            ("/api/v1/namespaces/a/pods", ("", "pods", Some("a"), None, None, "")),
            ("/api/v1/namespaces/a/pods/p/log", ("", "pods", Some("a"), Some("p"), Some("log"), "")),
            (
                "/api/v1/namespaces/a/pods/http:p:80/proxy/x/y",
                ("", "pods", Some("a"), Some("http:p:80"), Some("proxy"), "/x/y"),
            ),
            ("/api/v1/namespaces/a/pods/p/proxy/", ("", "pods", Some("a"), Some("p"), Some("proxy"), "/")),
            ("/apis/apps/v1/deployments", ("apps", "deployments", None, None, None, "")),
            (
                "/apis/apps/v1/namespaces/a/deployments/d/scale",
                ("apps", "deployments", Some("a"), Some("d"), Some("scale"), ""),
            ),
            (
                "/apis/rbac.authorization.k8s.io/v1/clusterroles/system%3Anode",
                ("rbac.authorization.k8s.io", "clusterroles", None, Some("system:node"), None, ""),
            ),
        ];
        for (path, (group, resource, namespace, name, subresource, rest)) in cases {
            let parsed = parse(path).expect(path);
            let found = (
                parsed.group.as_str(),
                parsed.resource.as_str(),
                parsed.namespace.as_deref(),
                parsed.name.as_deref(),
                parsed.subresource.as_deref(),
                parsed.rest.as_str(),
            );
            assert_eq!(found, (group, resource, namespace, name, subresource, rest), "{path}");
        }
        for path in ["/", "/api", "/api/v1", "/apis", "/apis/apps", "/apis/apps/v1", "/version", "/api/v1/"] {
            assert_eq!(parse(path), None, "{path}");
        }
    }

    #[test]
    fn queries() {
        let query = Query::parse("labelSelector=a%3Db+c&watch=1&empty=");
        assert_eq!(query.get("labelSelector"), Some("a=b c"));
        assert!(query.flag("watch") && !query.flag("empty") && !query.flag("none"));
        assert_eq!(query.text("empty"), None);
    }
}
