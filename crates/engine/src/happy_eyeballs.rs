//! Step 9 for hosts with several addresses: they are tried in turn, a new one while others are still waiting (RFC 8305, as Envoy does
//! it). Each attempt is a whole connection, with its handshake; the first that is there wins and the others are dropped.

use std::net::SocketAddr;
use std::time::Duration;

use futures::StreamExt as _;
use futures::stream::FuturesUnordered;

use crate::failure::Reset;

/// How long an attempt is alone before the next begins. Envoy's; RFC 8305, section 8 asks for 100 ms to 2 s.
const ATTEMPT_DELAY: Duration = Duration::from_millis(300);

/// The addresses in the order they are tried in: families alternate, beginning with that of the first address
/// (RFC 8305, section 4).
pub(crate) fn order(first: SocketAddr, others: &[SocketAddr]) -> Vec<SocketAddr> {
    let all = || std::iter::once(first).chain(others.iter().copied());
    let mut same = all().filter(|address| address.is_ipv4() == first.is_ipv4());
    let mut other = all().filter(|address| address.is_ipv4() != first.is_ipv4());
    let mut ordered = Vec::with_capacity(1 + others.len());
    loop {
        let before = ordered.len();
        ordered.extend(same.next());
        ordered.extend(other.next());
        if ordered.len() == before {
            return ordered;
        }
    }
}

/// The first connection that comes to be; else how the last attempt failed. A failed attempt lets the next begin at once.
/// `addresses` must not be empty; `limit` is for all of them together.
pub(crate) async fn race<T, F: Future<Output = Result<T, Reset>>>(
    addresses: &[SocketAddr],
    limit: Duration,
    mut attempt: impl FnMut(SocketAddr) -> F,
) -> Result<T, Reset> {
    let mut left = addresses.iter().copied();
    let mut running: FuturesUnordered<F> = left.next().map(&mut attempt).into_iter().collect();
    let all = async {
        let mut last = Reset::ConnectTimeout;
        loop {
            tokio::select! {
                biased;
                outcome = running.next() => match outcome {
                    Some(Ok(connected)) => return Ok(connected),
                    Some(Err(reset)) => {
                        last = reset;
                        running.extend(left.next().map(&mut attempt));
                    }
                    None => return Err(last),
                },
                () = tokio::time::sleep(ATTEMPT_DELAY), if left.len() > 0 => {
                    running.extend(left.next().map(&mut attempt));
                }
            }
        }
    };
    tokio::time::timeout(limit, all).await.unwrap_or(Err(Reset::ConnectTimeout))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;
    use std::time::Instant;

    fn addresses(list: &[&str]) -> Vec<SocketAddr> {
        list.iter().map(|address| address.parse().unwrap()).collect()
    }

    #[test]
    fn families_alternate() {
        let all = addresses(&["1.1.1.1:1", "1.1.1.2:1", "1.1.1.3:1", "[::1]:1", "[::2]:1"]);
        let wanted = addresses(&["1.1.1.1:1", "[::1]:1", "1.1.1.2:1", "[::2]:1", "1.1.1.3:1"]);
        assert_eq!(order(all[0], &all[1..]), wanted);
        let all = addresses(&["[::1]:1", "1.1.1.1:1", "1.1.1.2:1"]);
        assert_eq!(order(all[0], &all[1..]), all);
        let all = addresses(&["1.1.1.1:1", "1.1.1.2:1"]);
        assert_eq!(order(all[0], &all[1..]), all);
    }

    /// What becomes of an attempt.
    #[derive(Clone, Copy)]
    enum Fate {
        Works,
        Fails,
        Waits,
    }

    /// The outcome, how many attempts there were, and how long it took.
    async fn run(fates: &[Fate], limit: Duration) -> (Result<usize, Reset>, usize, Duration) {
        let (began, starts) = (Instant::now(), Cell::new(0));
        let list: Vec<SocketAddr> = (0..fates.len()).map(|n| ([127, 0, 0, 1], n as u16).into()).collect();
        let attempt = |address: SocketAddr| {
            let number = usize::from(address.port());
            starts.set(starts.get() + 1);
            let fate = fates[number];
            async move {
                match fate {
                    Fate::Works => Ok(number),
                    Fate::Fails => Err(Reset::ConnectFailure(number.to_string().into())),
                    Fate::Waits => std::future::pending().await,
                }
            }
        };
        let result = race(&list, limit, attempt).await;
        (result, starts.get(), began.elapsed())
    }

    #[tokio::test]
    async fn a_slow_attempt_is_joined_by_the_next_and_a_failed_one_replaced() {
        use Fate::{Fails, Waits, Works};
        let failed = |which: &str| Err(Reset::ConnectFailure(which.to_owned().into()));
        let cases: [(&[Fate], _, usize, u64); 6] = [
            (&[Works, Works], Ok(0), 1, 0),
            (&[Fails, Works], Ok(1), 2, 0),
            (&[Fails, Fails], failed("1"), 2, 0),
            (&[Waits, Works], Ok(1), 2, 300),
            (&[Waits, Fails, Works], Ok(2), 3, 300),
            (&[Waits, Waits], Err(Reset::ConnectTimeout), 2, 700),
        ];
        for (fates, expected, attempts, at_least) in cases {
            let limit = Duration::from_millis(if at_least == 700 { 700 } else { 20_000 });
            let (result, begun, took) = run(fates, limit).await;
            assert_eq!((result, begun), (expected, attempts), "{at_least}");
            assert!(took >= Duration::from_millis(at_least), "{took:?} is less than {at_least} ms");
        }
    }
}
