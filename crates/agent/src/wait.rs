//! Waiting for the proxy of the same pod, which is what a container's `postStart` hook does to hold back the containers after it.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use crate::error::AgentError;

/// How long one question may take.
const QUESTION: Duration = Duration::from_millis(500);

/// Returns once `/healthz/ready` at `address` answers 200; asks every `period`.
///
/// # Errors
/// When it has not within `limit`; what it said last is in the error.
#[expect(clippy::disallowed_methods, reason = "another process tells of no event: it is asked again")]
pub fn until_ready(address: SocketAddr, limit: Duration, period: Duration) -> Result<(), AgentError> {
    let begun = Instant::now();
    loop {
        let Err(said) = ask(address) else { return Ok(()) };
        let left = limit.saturating_sub(begun.elapsed());
        if left.is_zero() {
            return Err(AgentError::NotReady { address, limit, said });
        }
        std::thread::sleep(period.min(left));
    }
}

/// Whether the proxy is ready; else what it said.
fn ask(address: SocketAddr) -> Result<(), String> {
    let asked = || -> std::io::Result<String> {
        let mut stream = TcpStream::connect_timeout(&address, QUESTION)?;
        stream.set_read_timeout(Some(QUESTION))?;
        let request = format!("GET /healthz/ready HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes())?;
        let mut line = String::new();
        BufReader::new(stream).read_line(&mut line)?;
        Ok(line)
    };
    match asked() {
        Ok(line) if line.split(' ').nth(1) == Some("200") => Ok(()),
        Ok(line) => Err(line.trim().to_owned()),
        Err(error) => Err(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    /// Answers one question after another with these statuses.
    fn answering(statuses: &'static [&'static str]) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("an address");
        std::thread::spawn(move || {
            for status in statuses {
                let Ok((mut stream, _)) = listener.accept() else { return };
                // The request is read, lest closing resets the connection.
                let _read = std::io::Read::read(&mut stream, &mut [0; 1024]);
                let answer = format!("HTTP/1.1 {status}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
                let _written = stream.write_all(answer.as_bytes());
            }
        });
        address
    }

    #[test]
    fn the_proxy_is_waited_for() {
        let address = answering(&["503 Service Unavailable", "503 Service Unavailable", "200 OK"]);
        until_ready(address, Duration::from_secs(20), Duration::from_millis(1)).expect("ready at last");
    }

    #[test]
    fn but_not_for_ever() {
        let address = answering(&["503 Service Unavailable"]);
        let error = until_ready(address, Duration::ZERO, Duration::from_millis(1)).expect_err("not ready");
        assert!(error.to_string().contains("503"), "{error}");
    }
}
