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
    use proptest::prelude::*;

    use super::*;

    /// The same without a regex: component by component.
    fn fits(template: &str, path: &str) -> bool {
        let allowed = |text: &str| text.bytes().all(is_component);
        let (mut parts, mut components) = (template.split('/').skip(1), path.split('/'));
        if components.next() != Some("") {
            return false;
        }
        loop {
            match (parts.next(), components.next()) {
                (None, None) => return true,
                (Some("**"), Some(rest)) => return allowed(rest) && components.all(allowed),
                (Some("*"), Some(component)) if !component.is_empty() && allowed(component) => {}
                (Some(part), Some(component)) if part != "*" && part == component => {}
                _ => return false,
            }
        }
    }

    proptest! {
        #[test]
        fn templates_match_component_by_component(
            template in "/((a|b\\.|\\*|)/){0,3}(a|b\\.|\\*|\\*\\*|)",
            path in "/((a|b\\.|bX|\u{e9}|\\?|)/){0,4}(a|b\\.|bX|)",
            any in "\\PC{0,20}",
        ) {
            let parsed = PathTemplate::parse(&template).expect("a template");
            prop_assert_eq!(parsed.is_match(&path), fits(&template, &path), "{} {}", template, path);
            prop_assert_eq!(parsed.is_match(&any), fits(&template, &any));
            // Text of any kind is a template or refused, and what is a template of plain text matches itself.
            let of_any = PathTemplate::parse(&any);
            if let Ok(parsed) = of_any && !any.contains('*') {
                prop_assert!(parsed.is_match(&any), "{}", any);
            }
        }
    }

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
