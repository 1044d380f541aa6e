//! The HTTP/2 conformance suite against both proxies, in its strict form (146 cases).

use std::path::PathBuf;
use std::process::Stdio;

use crate::proxies::Pair;

/// Cases of the suite.
const ALL: u32 = 146;

/// Where `scripts/install-tools.sh h2spec` puts it.
fn program() -> PathBuf {
    let tools = std::env::var_os("LATEEN_TOOLS").unwrap_or_else(|| "/var/cache/lateen/tools".into());
    PathBuf::from(tools).join("h2spec-2.2.1").join("h2spec")
}

/// Runs the suite; gives how many cases passed, and what it said about the others.
async fn run(port: u16) -> (u32, String) {
    let output = tokio::process::Command::new(program())
        .args(["--strict", "--host", "127.0.0.1", "--timeout", "1", "--port", &port.to_string()])
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output()
        .await
        .unwrap_or_else(|error| {
            panic!("{}: {error}; scripts/install-tools.sh h2spec builds it", program().display())
        });
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    // The last line: `146 tests, 145 passed, 0 skipped, 1 failed`.
    let mut summary =
        said.lines().rev().find(|line| line.contains(" passed")).unwrap_or_default().split(", ");
    let number = |part: Option<&str>| part.and_then(|part| part.split(' ').next()?.parse::<u32>().ok());
    assert_eq!(number(summary.next()), Some(ALL), "{said}");
    let passed = number(summary.next()).unwrap_or_default();
    let failures = said.split_once("Failures:").map_or("", |(_, failures)| failures).to_owned();
    (passed, failures)
}

/// Ours passes every case. Envoy's score depends on which of several permitted reactions the suite happens to see first, so it is
/// told, not judged.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn http2_conforms() {
    let pair = Pair::start().await;
    let [envoy, lateen] = pair.addresses("http2-only").map(|address| address.port());
    let ((envoys, _), (ours, failures)) = tokio::join!(run(envoy), run(lateen));
    println!("h2spec, strict: Lateen {ours}/{ALL}, Envoy {envoys}/{ALL}");
    assert_eq!(ours, ALL, "{failures}");
}
