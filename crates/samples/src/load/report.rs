//! What a load saw.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

/// Failures told of one flow; more are counted only.
const MOST_TOLD: usize = 50;

/// The outcome of a load.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    /// How long it ran.
    pub seconds: f64,
    /// By flow, in the order of the spec.
    pub flows: Vec<FlowReport>,
    /// What was lost, at most 50 of each flow.
    pub failures: Vec<Failure>,
}

/// Numbers of one flow.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct FlowReport {
    /// Kind and destination.
    pub name: String,
    /// Requests and messages answered as they should be.
    pub answered: u64,
    /// Requests lost and streams broken or not opened.
    pub failed: u64,
    /// Streams opened.
    pub opened: u64,
    /// Streams that their server ended, saying so.
    pub ended: u64,
    /// The slowest answer.
    pub slowest_ms: u64,
}

/// One loss.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Failure {
    /// Name of the flow.
    pub flow: String,
    /// When, in seconds since the load began.
    pub at: f64,
    /// When the request was sent or the stream was opened.
    pub began: f64,
    /// How it failed.
    pub what: String,
    /// Who served the stream, if that is known.
    pub instance: Option<String>,
}

#[derive(Clone)]
pub(super) struct Recorder {
    start: Instant,
    state: Arc<Mutex<(FlowReport, Vec<Failure>)>>,
}

impl Recorder {
    pub(super) fn new(start: Instant, name: String) -> Self {
        let report = FlowReport { name, ..FlowReport::default() };
        Self { start, state: Arc::new(Mutex::new((report, Vec::new()))) }
    }

    fn with(&self, change: impl FnOnce(&mut FlowReport, &mut Vec<Failure>)) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let (report, failures) = &mut *state;
        change(report, failures);
    }

    pub(super) fn answered(&self, since: Instant) {
        let took = u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.with(|report, _| {
            report.answered += 1;
            report.slowest_ms = report.slowest_ms.max(took);
        });
    }

    pub(super) fn opened(&self) {
        self.with(|report, _| report.opened += 1);
    }

    pub(super) fn ended(&self) {
        self.with(|report, _| report.ended += 1);
    }

    pub(super) fn failed(&self, began: Instant, what: String, instance: Option<String>) {
        let at = self.start.elapsed().as_secs_f64();
        let began = began.duration_since(self.start).as_secs_f64();
        self.with(|report, failures| {
            report.failed += 1;
            if failures.len() < MOST_TOLD {
                failures.push(Failure { flow: report.name.clone(), at, began, what, instance });
            }
        });
    }
}

impl Report {
    pub(super) fn collect(took: Duration, recorders: Vec<Recorder>) -> Self {
        let mut all = Self { seconds: took.as_secs_f64(), ..Self::default() };
        for recorder in recorders {
            recorder.with(|report, failures| {
                all.flows.push(report.clone());
                all.failures.append(failures);
            });
        }
        all.failures.sort_by(|a, b| a.at.total_cmp(&b.at));
        all
    }
}
