//! The daemon's log.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::Path;
use std::time::Duration;

use super::LifecycleError;
use super::state::{State, file_error};

/// How often a followed log is looked at.
const POLL: Duration = Duration::from_millis(100);

/// Writes the daemon's log to `out`: the last `tail` lines (all when `None`), and with `follow` what comes until the
/// daemon ends. Logs of pods are `kubectl logs`' business.
///
/// # Errors
/// [`LifecycleError::NotRunning`] when there is no log, [`LifecycleError::File`] when it can't be read or `out` can't be
/// written.
pub async fn logs(
    state: &Path,
    tail: Option<usize>,
    follow: bool,
    out: &mut (dyn Write + Send),
) -> Result<(), LifecycleError> {
    let state = State::new(state);
    let path = state.log();
    let mut file =
        File::open(&path).map_err(|_| LifecycleError::NotRunning { state: state.dir().to_owned() })?;
    let mut text = Vec::new();
    file.read_to_end(&mut text).map_err(file_error(&path))?;
    out.write_all(last_lines(&text, tail)).map_err(file_error(&path))?;
    if !follow {
        return Ok(());
    }
    loop {
        // Asked before reading: what is written before its end is read after it.
        let alive = state.running().is_some();
        text.clear();
        file.read_to_end(&mut text).map_err(file_error(&path))?;
        out.write_all(&text).and_then(|()| out.flush()).map_err(file_error(&path))?;
        if !alive {
            return Ok(());
        }
        tokio::time::sleep(POLL).await;
    }
}

fn last_lines(text: &[u8], tail: Option<usize>) -> &[u8] {
    let Some(tail) = tail else { return text };
    let body = text.strip_suffix(b"\n").unwrap_or(text);
    let ends = body.iter().enumerate().rev().filter(|(_, byte)| **byte == b'\n').map(|(at, _)| at + 1);
    let start = if tail == 0 { text.len() } else { ends.take(tail).nth(tail - 1).unwrap_or(0) };
    &text[start..]
}

/// The last line that isn't empty.
pub(crate) fn last_line(path: &Path) -> Option<String> {
    let lines = BufReader::new(File::open(path).ok()?).lines();
    lines.map_while(Result::ok).filter(|line| !line.trim().is_empty()).last()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tails() {
        let text = b"one\ntwo\nthree\n";
        let cases: [(Option<usize>, &[u8]); 5] = [
            (None, text),
            (Some(0), b""),
            (Some(1), b"three\n"),
            (Some(2), b"two\nthree\n"),
            (Some(9), text),
        ];
        for (tail, expected) in cases {
            assert_eq!(last_lines(text, tail), expected, "{tail:?}");
        }
        assert_eq!(last_lines(b"open", Some(1)), b"open");
    }

    #[tokio::test]
    async fn following_ends_with_the_daemon() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("daemon.log"), "one\ntwo\n").unwrap();
        let mut out = Vec::new();
        logs(dir.path(), Some(1), true, &mut out).await.unwrap();
        assert_eq!(out, b"two\n");
        let missing = logs(&dir.path().join("none"), None, false, &mut out).await;
        assert!(matches!(missing, Err(LifecycleError::NotRunning { .. })));
    }
}
