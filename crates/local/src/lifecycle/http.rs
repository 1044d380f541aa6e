//! One HTTP request to the gateway, to see that traffic flows.

use std::net::Ipv4Addr;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::time::Instant;

use super::LifecycleError;

/// Between two requests; the gateway says by itself when it serves, but not that its routes have arrived.
const INTERVAL: Duration = Duration::from_millis(20);
/// How long one request may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// Asks for `/` until the answer is 200.
///
/// # Errors
/// [`LifecycleError::Timeout`] with the last answer.
pub(crate) async fn wait_for_ok(
    address: Ipv4Addr,
    port: u16,
    deadline: Instant,
) -> Result<(), LifecycleError> {
    let begun = Instant::now();
    loop {
        let answer = tokio::time::timeout(PATIENCE, status(address, port)).await;
        let seen = match answer {
            Ok(Ok(200)) => return Ok(()),
            Ok(Ok(status)) => format!("its last answer was {status}"),
            Ok(Err(error)) => format!("the last request failed: {error}"),
            Err(_) => "the last request was not answered".to_owned(),
        };
        if Instant::now() >= deadline {
            return Err(LifecycleError::Timeout {
                waiting_for: format!("the first answer 200 of http://{address}:{port}/"),
                after: begun.elapsed(),
                hint: format!("{seen}; see `lateen proxy-status` and `lateen logs ingressgateway`"),
            });
        }
        tokio::time::sleep(INTERVAL).await;
    }
}

async fn status(address: Ipv4Addr, port: u16) -> std::io::Result<u16> {
    let mut connection = TcpStream::connect((address, port)).await?;
    let request =
        format!("GET / HTTP/1.1\r\nHost: {address}\r\nUser-Agent: lateen-up\r\nConnection: close\r\n\r\n");
    connection.write_all(request.as_bytes()).await?;
    let mut line = String::new();
    BufReader::new(connection).read_line(&mut line).await?;
    let code = line.split(' ').nth(1).and_then(|code| code.parse().ok());
    code.ok_or_else(|| std::io::Error::other(format!("this is no HTTP answer: {line:?}")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::AsyncReadExt;

    #[tokio::test]
    async fn waits_until_the_answer_is_200() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let server = tokio::spawn(async move {
            for status in ["503 Service Unavailable", "404 Not Found", "200 OK"] {
                let (mut connection, _) = listener.accept().await.unwrap();
                let mut request = [0; 512];
                let _ = connection.read(&mut request).await.unwrap();
                let answer = format!("HTTP/1.1 {status}\r\ncontent-length: 0\r\n\r\n");
                connection.write_all(answer.as_bytes()).await.unwrap();
            }
        });
        wait_for_ok(Ipv4Addr::LOCALHOST, port, Instant::now() + Duration::from_secs(20)).await.unwrap();
        server.await.unwrap();
        let error = wait_for_ok(Ipv4Addr::LOCALHOST, port, Instant::now()).await.unwrap_err().to_string();
        assert!(error.contains("refused"), "{error}");
    }
}
