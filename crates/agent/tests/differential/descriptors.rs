//! How many connections a process may have, where it is begun with few.

use std::process::Stdio;
use std::time::{Duration, Instant};

use serde_json::json;
use tokio::process::Command;

use crate::proxies::{PROXY, address};

/// The soft and the hard limit of a process's open files.
fn limits(process: u32) -> Option<(u64, u64)> {
    let text = std::fs::read_to_string(format!("/proc/{process}/limits")).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("Max open files"))?;
    let mut numbers = line.split_whitespace().map_while(|word| word.parse().ok());
    Some((numbers.next()?, numbers.next()?))
}

#[tokio::test]
async fn a_process_takes_as_many_descriptors_as_it_may_have() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("bootstrap.json");
    std::fs::write(&file, json!({ "admin": { "address": address(0) } }).to_string()).unwrap();
    let envoy = std::env::var_os("LATEEN_ENVOY_PATH").expect("LATEEN_ENVOY_PATH names Envoy's program");
    for program in [envoy, PROXY.into()] {
        let mut command = Command::new("sh");
        command.args(["-c", "ulimit -Sn 200; ulimit -Hn 1000; exec \"$@\"", "sh"]).arg(&program);
        command.args(["--concurrency", "1", "--disable-hot-restart", "-c"]).arg(&file);
        command.stdout(Stdio::null()).stderr(Stdio::null()).kill_on_drop(true);
        let child = command.spawn().unwrap();
        let (process, began) = (child.id().unwrap(), Instant::now());
        while limits(process) != Some((1000, 1000)) {
            assert!(began.elapsed() < Duration::from_secs(20), "{program:?}: {:?}", limits(process));
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}
