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
    use std::cell::RefCell;
    use tokio::time::Instant;

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

    /// What becomes of attempts: after so many milliseconds, well or not.
    async fn run(outcomes: &[(u64, bool)], limit: u64) -> (Result<usize, Reset>, Vec<u64>, u64) {
        let (began, starts) = (Instant::now(), RefCell::new(Vec::new()));
        let list: Vec<SocketAddr> = (0..outcomes.len()).map(|n| ([127, 0, 0, 1], n as u16).into()).collect();
        let attempt = |address: SocketAddr| {
            let number = usize::from(address.port());
            starts.borrow_mut().push(began.elapsed().as_millis() as u64);
            let (pause, works) = outcomes[number];
            async move {
                tokio::time::sleep(Duration::from_millis(pause)).await;
                if works { Ok(number) } else { Err(Reset::ConnectFailure(number.to_string().into())) }
            }
        };
        let result = race(&list, Duration::from_millis(limit), attempt).await;
        (result, starts.take(), began.elapsed().as_millis() as u64)
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_attempt_is_joined_by_the_next_and_a_failed_one_replaced() {
        assert_eq!(run(&[(100, true), (0, true)], 5000).await, (Ok(0), vec![0], 100));
        assert_eq!(run(&[(9000, true), (100, true), (0, true)], 5000).await, (Ok(1), vec![0, 300], 400));
        assert_eq!(run(&[(450, true), (200, true)], 5000).await, (Ok(0), vec![0, 300], 450));
        assert_eq!(run(&[(10, false), (0, true)], 5000).await, (Ok(1), vec![0, 10], 10));
        let failed = |which: &str| Err(Reset::ConnectFailure(which.to_owned().into()));
        assert_eq!(run(&[(10, false), (20, false)], 5000).await, (failed("1"), vec![0, 10], 30));
        assert_eq!(run(&[(700, false), (100, false)], 5000).await, (failed("0"), vec![0, 300], 700));
        let late = (Err(Reset::ConnectTimeout), vec![0, 300, 600], 1000);
        assert_eq!(run(&[(9000, true), (9000, true), (9000, true)], 1000).await, late);
    }
}
