//! What was kept for a restart, read when the control plane starts, often while the API server does too.
use std::time::Duration;

/// Pause before the API server is asked again.
pub(crate) const PAUSE: Duration = Duration::from_secs(1);
/// How often it is asked.
const TRIES: u32 = 30;
/// How long an answer may take.
const ANSWER: Duration = Duration::from_secs(5);

/// Asks until there is an answer, also one that there will be none: what is kept must not be given up, and written over, because the
/// API server was away for a moment.
///
/// # Errors
/// What the API server says, or what it was the last time that it did not answer.
pub(crate) async fn answered<T, F>(pause: Duration, ask: impl Fn() -> F) -> Result<T, kube::Error>
where
    F: Future<Output = Result<T, kube::Error>>,
{
    let mut tries = 1;
    loop {
        let answer = tokio::time::timeout(ANSWER, ask()).await;
        let refused = |status: &kube::core::Status| (400..500).contains(&status.code) && status.code != 429;
        match answer {
            Ok(Ok(found)) => return Ok(found),
            Ok(Err(kube::Error::Api(status))) if refused(&status) => return Err(kube::Error::Api(status)),
            Ok(Err(error)) if tries >= TRIES => return Err(error),
            Ok(Err(error)) => tracing::debug!("the Kubernetes API does not answer: {error}; asking again"),
            Err(_) if tries >= TRIES => {
                let silent = std::io::Error::new(std::io::ErrorKind::TimedOut, "no answer in time");
                return Err(kube::Error::Service(Box::new(silent)));
            }
            Err(_) => tracing::debug!("the Kubernetes API does not answer in time; asking again"),
        }
        tries += 1;
        tokio::time::sleep(pause).await;
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    fn status(code: u16) -> kube::Error {
        kube::Error::Api(Box::new(kube::core::Status { code, ..Default::default() }))
    }

    #[tokio::test]
    async fn only_what_is_no_answer_is_asked_again() {
        let asked = Cell::new(0);
        let run = async |good_after: u32, code: u16| {
            asked.set(0);
            answered(Duration::from_millis(1), || async {
                asked.set(asked.get() + 1);
                if asked.get() > good_after { Ok(7) } else { Err(status(code)) }
            })
            .await
            .is_ok()
        };
        assert!(run(0, 500).await && asked.get() == 1);
        assert!(run(3, 503).await && asked.get() == 4);
        assert!(run(2, 429).await && asked.get() == 3);
        assert!(!run(9, 403).await && asked.get() == 1, "it will be the same again");
        assert!(!run(u32::MAX, 500).await && asked.get() == TRIES, "not for ever");
    }
}
