//! The query strings of the streaming subresources.

use crate::{ExecRequest, PodError};

/// The query of `exec` and `attach`.
#[derive(Debug, Clone, Default)]
pub struct ExecQuery {
    /// Name of the container, or empty for the default one.
    pub container: String,
    /// What to run; `command` is empty for `attach`.
    pub request: ExecRequest,
    /// The client wants standard output.
    pub stdout: bool,
    /// The client wants standard error as a stream of its own (never with a terminal).
    pub stderr: bool,
}

impl ExecQuery {
    /// Reads `command=…&command=…&container=…&stdin=…&stdout=…&stderr=…&tty=…` (unknown names are ignored, as Kubernetes does).
    ///
    /// # Errors
    /// [`PodError::BadRequest`] when a boolean isn't one or when no stream at all is asked for.
    pub fn parse(query: &str) -> Result<Self, PodError> {
        let mut parsed = Self::default();
        for (name, value) in pairs(query) {
            match name.as_str() {
                "container" => parsed.container = value,
                "command" => parsed.request.command.push(value),
                "stdin" => parsed.request.stdin = boolean(&name, &value)?,
                "stdout" => parsed.stdout = boolean(&name, &value)?,
                "stderr" => parsed.stderr = boolean(&name, &value)?,
                "tty" => parsed.request.tty = boolean(&name, &value)?,
                _ => {}
            }
        }
        // A terminal has one output stream (Kubernetes' validation of PodExecOptions).
        parsed.stderr &= !parsed.request.tty;
        if !(parsed.request.stdin || parsed.stdout || parsed.stderr) {
            return Err(PodError::BadRequest(
                "you must specify at least 1 of stdin, stdout, stderr".to_owned(),
            ));
        }
        Ok(parsed)
    }
}

/// Reads the `ports` of a WebSocket port-forward: repeated, comma separated, or both.
///
/// # Errors
/// [`PodError::BadRequest`] when there is no port or one isn't a number from 1 to 65535.
pub fn parse_ports(query: &str) -> Result<Vec<u16>, PodError> {
    let mut ports = Vec::new();
    for (_, value) in pairs(query).into_iter().filter(|(name, _)| name == "ports") {
        for text in value.split(',') {
            match text.parse::<u16>() {
                Ok(port) if port > 0 => ports.push(port),
                _ => {
                    return Err(PodError::BadRequest(format!(
                        "query parameter ports: {text:?} is not a port number from 1 to 65535"
                    )));
                }
            }
        }
    }
    if ports.is_empty() {
        return Err(PodError::BadRequest(
            "query parameter ports is required to forward over WebSocket".to_owned(),
        ));
    }
    Ok(ports)
}

/// Booleans as Go's `strconv.ParseBool` takes them; a name without value is true.
fn boolean(name: &str, value: &str) -> Result<bool, PodError> {
    match value {
        "" | "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(false),
        _ => Err(PodError::BadRequest(format!("query parameter {name}: {value:?} is not true or false"))),
    }
}

fn pairs(query: &str) -> Vec<(String, String)> {
    query
        .split('&')
        .filter(|pair| !pair.is_empty())
        .map(|pair| {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            (percent_decode(name), percent_decode(value))
        })
        .collect()
}

/// Decodes `application/x-www-form-urlencoded`; a percent sign that starts no escape stays as it is.
fn percent_decode(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut decoded = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let hex = |offset: usize| bytes.get(at + offset).and_then(|byte| (*byte as char).to_digit(16));
        match (bytes[at], hex(1), hex(2)) {
            (b'%', Some(high), Some(low)) => {
                decoded.push((high * 16 + low) as u8);
                at += 3;
            }
            (b'+', ..) => {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exec_queries() {
        let parsed = ExecQuery::parse(
            "command=sh&command=-c&command=echo+%22a%26b%22&container=app&stdin=true&stdout=1&stderr=true",
        )
        .unwrap();
        assert_eq!(parsed.request.command, ["sh", "-c", "echo \"a&b\""]);
        assert_eq!(parsed.container, "app");
        assert!(parsed.request.stdin && parsed.stdout && parsed.stderr && !parsed.request.tty);

        let terminal = ExecQuery::parse("command=sh&stdout=true&stderr=true&tty=true").unwrap();
        assert!(terminal.request.tty && !terminal.stderr, "a terminal has one output stream");

        let cases = [("command=ls", "at least 1 of"), ("command=ls&stdout=maybe", "stdout: \"maybe\"")];
        for (query, message) in cases {
            let error = ExecQuery::parse(query).unwrap_err();
            assert!(
                matches!(&error, PodError::BadRequest(text) if text.contains(message)),
                "{query}: {error}"
            );
        }
    }

    #[test]
    fn port_queries() {
        assert_eq!(parse_ports("ports=80,8080&ports=9090").unwrap(), [80, 8080, 9090]);
        for bad in ["", "ports=", "ports=0", "ports=65536", "ports=http"] {
            assert!(parse_ports(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn percent_signs() {
        for (text, expected) in [("a%20b+c", "a b c"), ("100%", "100%"), ("%zz", "%zz"), ("%C3%A9", "é")] {
            assert_eq!(percent_decode(text), expected);
        }
    }
}
