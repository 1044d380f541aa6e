//! Templates of paths, Envoy's `extensions.path.match.uri_template.v3`.

use crate::FullRegex;

/// What a path component consists of (RFC 3986's `pchar`, as Envoy lists it).
const COMPONENT: &str = r"a-zA-Z0-9\-._~%!$&'()+,;:@=";

/// A path with `*` for one component and, at its end, `**` for any number of them.
#[derive(Clone, Debug)]
pub struct PathTemplate {
    pattern: FullRegex,
    text: Box<str>,
}

impl std::fmt::Display for PathTemplate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.text)
    }
}

impl PathTemplate {
    /// Reads a template.
    ///
    /// # Errors
    /// What is wrong with it. Variables (`{name}`) and globs within a component are refused.
    pub fn parse(template: &str) -> Result<Self, String> {
        let Some(rest) = template.strip_prefix('/') else {
            return Err(format!("{template:?} must begin with \"/\""));
        };
        let mut pattern = String::new();
        let mut ended = false;
        for component in rest.split('/') {
            if ended {
                return Err(format!("{template:?}: \"**\" must be the last component"));
            }
            pattern.push('/');
            match component {
                "*" => pattern.push_str(&format!("[{COMPONENT}]+")),
                "**" => {
                    pattern.push_str(&format!("[{COMPONENT}/]*"));
                    ended = true;
                }
                text if text.bytes().all(is_component) => pattern.push_str(&regex::escape(text)),
                text => return Err(format!("{template:?}: {text:?} is neither text nor \"*\" nor \"**\"")),
            }
        }
        let pattern = FullRegex::new(&pattern).map_err(|error| error.to_string())?;
        Ok(Self { pattern, text: template.into() })
    }

    /// Whether a path without query matches.
    pub fn is_match(&self, path: &str) -> bool {
        self.pattern.is_match(path.as_bytes())
    }
}

fn is_component(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-._~%!$&'()+,;:@=".contains(&byte)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn templates_match_as_in_envoy() {
        let table = [
            ("/a/*/c", "/a/b/c", true),
            ("/a/*/c", "/a/b/b/c", false),
            ("/a/*/c", "/a//c", false),
            ("/a/**", "/a/", true),
            ("/a/**", "/a", false),
            ("/a/**", "/a/b/c", true),
            ("/**", "/", true),
            ("/a.b", "/aXb", false),
            ("/a", "/a/", false),
            ("/a/*", "/a/\u{e9}", false),
        ];
        for (template, path, expected) in table {
            assert_eq!(PathTemplate::parse(template).unwrap().is_match(path), expected, "{template} {path}");
        }
        for bad in ["a", "/a/**/b", "/{x}", "/a*b", "/***"] {
            assert!(PathTemplate::parse(bad).is_err(), "{bad}");
        }
    }
}
