//! The mesh as users see it: labs, the two engines side by side, loss under change, faults.
//!
//! One process, one trial after another, since the trials of an engine share its mesh. `cargo test -p lateen-e2e -- lab5`
//! runs the trials whose name contains `lab5`.

mod access;
mod agreement;
mod authorizers;
mod balancing;
mod boutique;
mod dns;
mod dual_stack;
mod echo;
mod egress_tls;
mod external;
mod faults;
mod labs;
mod lifecycle;
mod loss;
mod machines;
mod mixed;
mod mutual_tls;
mod networks;
mod outside;
mod pki;
mod ports;
mod resiliency;
mod rules;
mod services;
mod sidecar;
mod signers;
mod tls;
mod tokens;
mod trust_domains;
mod why;

use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Result, ensure};
use lateen_e2e::{Engine, Mesh, eventually};
use libtest_mimic::{Arguments, Failed, Trial};

/// How long proxies may take to find a control plane that has just been started.
const PROXIES_BACK: Duration = Duration::from_secs(30);

/// A trial on the mesh that is up: name and body.
type OnMesh = (&'static str, fn(&Mesh) -> Result<()>);
/// A trial that brings up its own.
type Alone = (&'static str, fn() -> Result<()>);

/// The mesh that is up now; a trial of the other engine takes it down first.
#[derive(Clone, Default)]
struct Shared(Arc<Mutex<Option<Mesh>>>);

impl Shared {
    fn with(&self, engine: Engine, trial: impl FnOnce(&Mesh) -> Result<()>) -> Result<()> {
        let mut slot = self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if slot.as_ref().is_some_and(|mesh| mesh.engine != engine) {
            *slot = None;
        }
        if slot.is_none() {
            let mesh = Mesh::up(engine, &["--no-sample", "--egress-gateway"])?;
            mesh.kubectl(&["label", "namespace", "default", "istio-injection=enabled", "--overwrite"])?;
            *slot = Some(mesh);
        }
        let outcome = slot.as_ref().map_or(Ok(()), |mesh| {
            trial(mesh).and_then(|()| everything_acknowledged(mesh)).inspect_err(|_| diagnose(mesh))
        });
        if outcome.is_err() {
            // What a failed trial leaves behind must not fail the next.
            *slot = None;
        }
        outcome
    }

    fn down(&self) {
        *self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = None;
    }
}

/// No proxy has ever refused a resource of the control plane that runs now.
fn everything_acknowledged(mesh: &Mesh) -> Result<()> {
    let ask = "kubectl exec -n istio-system deploy/istiod -- curl -s localhost:15014/metrics";
    // One that a trial has just started counts nothing before the first proxy is back.
    let metrics = eventually("the control plane serves proxies", PROXIES_BACK, || {
        let metrics = mesh.lab("", ask)?;
        ensure!(metrics.contains("pilot_xds_pushes"), "no pushes in {metrics}");
        Ok(metrics)
    })?;
    let rejects: Vec<_> =
        metrics.lines().filter(|line| line.starts_with("pilot_total_xds_rejects")).collect();
    ensure!(rejects.is_empty(), "{rejects:?}\n{}", mesh.lateen(&["proxy-status"])?);
    Ok(())
}

/// What a person would look at first when a trial has failed.
fn diagnose(mesh: &Mesh) {
    for command in [
        "kubectl get pods -A -o wide",
        "kubectl get vs,dr,gw,se,we,svc,endpointslices -A",
        "lateen proxy-status",
        "kubectl logs -n istio-system deploy/istiod --tail=30",
        "kubectl logs -n istio-system deploy/istio-ingressgateway --tail=30",
    ] {
        let said = mesh.lab("", &format!("{command} 2>&1 || true")).unwrap_or_else(|e| format!("{e:#}"));
        eprintln!("--- {command}\n{said}");
    }
}

fn main() {
    let mut arguments = Arguments::from_args();
    arguments.test_threads = Some(1);
    let shared = Shared::default();
    let replies = agreement::Replies::default();
    let ledger = mixed::Ledger::default();
    let mut trials = Vec::new();

    for (name, trial) in lifecycle::TRIALS {
        let shared = shared.clone();
        trials.push(Trial::test(format!("lifecycle::{name}"), move || {
            shared.down();
            trial().map_err(failed)
        }));
    }
    for engine in [Engine::Envoy, Engine::Lateen] {
        let modules = [
            ("labs", labs::TRIALS),
            ("access", access::TRIALS),
            ("authorizers", authorizers::TRIALS),
            ("balancing", balancing::TRIALS),
            ("boutique", boutique::TRIALS),
            ("dns", dns::TRIALS),
            ("dual_stack", dual_stack::TRIALS),
            ("loss", loss::TRIALS),
            ("resiliency", resiliency::TRIALS),
            ("rules", rules::TRIALS),
            ("services", services::TRIALS),
            ("sidecar", sidecar::TRIALS),
            ("ports", ports::TRIALS),
            ("trust_domains", trust_domains::TRIALS),
            ("signers", signers::TRIALS),
            ("faults", faults::TRIALS),
            ("external", external::TRIALS),
            ("tls", tls::TRIALS),
            ("tokens", tokens::TRIALS),
            ("egress_tls", egress_tls::TRIALS),
            ("mutual_tls", mutual_tls::TRIALS),
            ("networks", networks::TRIALS),
            ("machines", machines::TRIALS),
            ("why", why::TRIALS),
        ];
        for (module, list) in modules {
            for (name, trial) in list {
                let shared = shared.clone();
                trials.push(Trial::test(format!("{engine}::{module}::{name}"), move || {
                    shared.with(engine, *trial).map_err(failed)
                }));
            }
        }
        for (name, change) in mixed::CHANGES {
            let (shared, ledger) = (shared.clone(), ledger.clone());
            trials.push(Trial::test(format!("{engine}::mixed::{name}"), move || {
                shared.with(engine, |mesh| mixed::run(mesh, &ledger, name, *change)).map_err(failed)
            }));
        }
        let (shared, replies) = (shared.clone(), replies.clone());
        trials.push(Trial::test(format!("{engine}::agreement::record"), move || {
            shared.with(engine, |mesh| replies.put(engine, agreement::record(mesh)?)).map_err(failed)
        }));
    }
    trials.push(Trial::test("agreement::engines_agree", move || replies.compare().map_err(failed)));
    let down = shared.clone();
    trials.push(Trial::test("lifecycle::down_leaves_nothing", move || {
        down.down();
        lifecycle::nothing_left().map_err(failed)
    }));
    let conclusion = libtest_mimic::run(&arguments, trials);
    ledger.print();
    shared.down();
    conclusion.exit();
}

fn failed(error: anyhow::Error) -> Failed {
    format!("{error:#}").into()
}
