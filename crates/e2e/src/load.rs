//! A steady load in the background while a trial changes things.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use anyhow::{Result, anyhow};

use crate::web::{Ask, Reply, client};

/// A running load: requests at a fixed rate (open loop), each in its own task, over kept connections.
pub struct Load {
    stop: Arc<AtomicBool>,
    sent: Arc<AtomicUsize>,
    thread: JoinHandle<Result<LoadReport>>,
}

/// What a load saw.
#[derive(Debug, Default)]
pub struct LoadReport {
    /// Requests sent.
    pub sent: usize,
    /// What failed: no reply, or another status than 200; the first 20 with their time since start.
    pub failures: Vec<String>,
    /// How many failed.
    pub failed: usize,
    /// Bodies by the name `classify` gave them, in order of arrival with their time since start.
    pub seen: Vec<(Duration, String)>,
}

impl LoadReport {
    /// An error unless every request got its 200.
    ///
    /// # Errors
    /// With the first failures.
    pub fn lossless(&self) -> Result<()> {
        if self.failed == 0 && self.sent > 0 {
            return Ok(());
        }
        Err(anyhow!("{} of {} requests failed:\n{}", self.failed, self.sent, self.failures.join("\n")))
    }
}

impl Load {
    /// Starts `rate` requests a second of `ask`; `classify` names a reply.
    pub fn start(ask: Ask, rate: u32, classify: fn(&Reply) -> String) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let sent = Arc::<AtomicUsize>::default();
        let count = sent.clone();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            Ok(runtime.block_on(run(ask, rate, classify, &stopped, &count)))
        });
        Self { stop, sent, thread }
    }

    /// Requests begun so far.
    pub fn sent(&self) -> usize {
        self.sent.load(Ordering::Relaxed)
    }

    /// Stops, waits for the replies still due and reports.
    ///
    /// # Errors
    /// When the load could not run.
    pub fn stop(self) -> Result<LoadReport> {
        self.stop.store(true, Ordering::SeqCst);
        self.thread.join().map_err(|_| anyhow!("the load panicked"))?
    }
}

async fn run(
    ask: Ask,
    rate: u32,
    classify: fn(&Reply) -> String,
    stop: &AtomicBool,
    count: &AtomicUsize,
) -> LoadReport {
    let start = Instant::now();
    let report = Arc::new(Mutex::new(LoadReport::default()));
    let client = client(false);
    let mut tick = tokio::time::interval(Duration::from_secs(1) / rate);
    let mut due = tokio::task::JoinSet::new();
    while !stop.load(Ordering::SeqCst) {
        tick.tick().await;
        count.fetch_add(1, Ordering::Relaxed);
        while due.try_join_next().is_some() {}
        let (ask, client, report) = (ask.clone(), client.clone(), report.clone());
        due.spawn(async move {
            let sent = start.elapsed();
            let reply = tokio::time::timeout(Duration::from_secs(10), ask.send_with(&client)).await;
            let failure = match reply {
                Err(_) => Some("no reply in 10 s".to_owned()),
                Ok(Err(e)) => Some(format!("{e:#}")),
                Ok(Ok(r)) if r.status != 200 => Some(format!("{} {:?} {}", r.status, r.headers, r.body)),
                Ok(Ok(r)) => {
                    if let Ok(mut report) = report.lock() {
                        report.sent += 1;
                        report.seen.push((sent, classify(&r)));
                    }
                    None
                }
            };
            if let (Some(failure), Ok(mut report)) = (failure, report.lock()) {
                report.sent += 1;
                report.failed += 1;
                if report.failures.len() < 20 {
                    report.failures.push(format!("{:.3} s: {failure}", sent.as_secs_f64()));
                }
            }
        });
    }
    while due.join_next().await.is_some() {}
    drop(client);
    Arc::try_unwrap(report).map(|m| m.into_inner().unwrap_or_default()).unwrap_or_default()
}
