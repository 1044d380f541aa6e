//! How the application of a machine is, which the control plane is told by the agent: there is no kubelet that asks.
//! As Istio's agent does it (`pkg/istio-agent/health`), by `readinessProbe` of the proxy config, which is `probe` of the WorkloadGroup.

use std::sync::Arc;
use std::time::Duration;

use lateen_xds::client::Health;
use serde::Deserialize;
use tokio::sync::watch;
use tokio::time::MissedTickBehavior;
use tracing::{debug, info};

use crate::health::Status;
use crate::probes::Prober;

/// Longest message that is told of a failure.
const MESSAGE: usize = 1024;

/// How the application's health is found out.
#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Readiness {
    #[serde(flatten)]
    probe: Prober,
    #[serde(default)]
    initial_delay_seconds: u64,
    /// 0 is 10.
    #[serde(default)]
    period_seconds: u64,
    /// 0 is 1.
    #[serde(default)]
    success_threshold: u32,
    /// 0 is 1.
    #[serde(default)]
    failure_threshold: u32,
}

/// Decides when the control plane is told: when so many answers in a row say the other thing than what it was told last.
#[derive(Debug)]
struct Judge {
    /// Good answers in a row until the application is well, and bad ones until it is not.
    thresholds: [u32; 2],
    runs: [u32; 2],
    told: Option<bool>,
}

impl Judge {
    fn new(readiness: &Readiness) -> Self {
        let thresholds = [readiness.success_threshold.max(1), readiness.failure_threshold.max(1)];
        Self { thresholds, runs: [0; 2], told: None }
    }

    /// What is to be told after this answer.
    fn count(&mut self, answer: Result<(), String>) -> Option<Health> {
        let well = answer.is_ok();
        let which = usize::from(!well);
        self.runs[1 - which] = 0;
        self.runs[which] = self.runs[which].saturating_add(1);
        if self.told == Some(well) || self.runs[which] < self.thresholds[which] {
            return None;
        }
        self.told = Some(well);
        Some(match answer {
            Ok(()) => Health::Healthy,
            Err(problem) => Health::Unhealthy(problem.chars().take(MESSAGE).collect()),
        })
    }
}

/// Asks the application, when the proxy before it is ready, until the task ends.
pub(crate) async fn run(readiness: Readiness, status: Arc<Status>, told: watch::Sender<Option<Health>>) {
    tokio::time::sleep(Duration::from_secs(readiness.initial_delay_seconds)).await;
    let period = if readiness.period_seconds == 0 { 10 } else { readiness.period_seconds };
    let mut ticks = tokio::time::interval(Duration::from_secs(period));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
    let mut judge = Judge::new(&readiness);
    loop {
        ticks.tick().await;
        let answer = if status.proxy.ready().await {
            readiness.probe.check(status.mark).await
        } else {
            Err("the proxy is not ready".to_owned())
        };
        debug!(?answer, "the application was asked for its health");
        if let Some(health) = judge.count(answer) {
            info!(?health, "the application's health has changed");
            told.send_replace(Some(health));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_changes_are_told_and_only_after_enough_answers() {
        let readiness =
            serde_json::json!({"exec": {"command": ["true"]}, "successThreshold": 2, "failureThreshold": 3});
        let mut judge = Judge::new(&serde_json::from_value(readiness).unwrap());
        let mut told = |answers: &str| -> Vec<Option<&str>> {
            let of = |answer: char| if answer == '+' { Ok(()) } else { Err("bad".to_owned()) };
            let told = answers.chars().map(|answer| judge.count(of(answer)));
            told.map(|health| {
                health.map(|health| match health {
                    Health::Healthy => "well",
                    Health::Unhealthy(why) => {
                        assert_eq!(why, "bad");
                        "ill"
                    }
                })
            })
            .collect()
        };
        assert_eq!(told("+-++"), [None, None, None, Some("well")]);
        assert_eq!(told("+--+--"), [None; 6]);
        assert_eq!(told("--+"), [Some("ill"), None, None]);
        assert_eq!(told("-++"), [None, None, Some("well")]);
        let mut new =
            Judge::new(&serde_json::from_value(serde_json::json!({"tcpSocket": {"port": 1}})).unwrap());
        assert!(new.count(Err("bad".into())).is_some(), "an application that is ill from the start");
    }
}
