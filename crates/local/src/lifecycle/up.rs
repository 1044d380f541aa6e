//! Starting everything, as much of it at the same time as the parts allow.

use std::net::Ipv4Addr;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Namespace, Service};
use kube::api::{Patch, PatchParams};
use kube::runtime::wait::await_condition;
use kube::{Api, Client};
use lateen_manifests::Options;
use serde_json::{Value, json};
use tokio::time::Instant;

use super::apply::{Existing, apply, available, unready_pods, webhook_ready};
use super::preflight::executable;
use super::state::{DaemonConfig, State};
use super::status::{GATEWAY, MESH_NAMESPACE, address, connect, gateway};
use super::{LifecycleError, Progress, UpOptions, UpSummary, daemon, http, preflight, sample};

/// How long a cluster that runs already may take to answer.
const ANSWER_PATIENCE: Duration = Duration::from_secs(10);
/// How often it is asked.
const ANSWER_POLL: Duration = Duration::from_millis(50);

type Tell<'a> = &'a mut (dyn FnMut(Progress) + Send);

/// Starts the daemon, the mesh and the demo, and waits until the gateway answers. Cleans up after a crash first.
///
/// # Errors
/// [`LifecycleError`]. A failed preflight has started nothing; after any other failure the cluster keeps running as far
/// as it got, for a look at it.
pub async fn up(
    options: &UpOptions,
    progress: &mut (dyn FnMut(Progress) + Send),
) -> Result<UpSummary, LifecycleError> {
    let begun = Instant::now();
    let deadline = begun + options.timeout;
    let state = State::new(&options.state);
    if let Some(client) = running_cluster(&state).await? {
        // Without a gateway, an earlier `up` was stopped half-way: this one goes on where that ended.
        if let Some(gateway) = gateway(&client).await.unwrap_or_default() {
            return Ok(summary(options, &state, Some(gateway), begun.elapsed(), true));
        }
        return install(options, &state, &client, begun, deadline, progress).await;
    }
    preflight(options)?;
    let executable = executable(options).map_err(|problem| LifecycleError::Preflight(vec![problem]))?;
    let config = DaemonConfig::new(options, executable);

    let step = Step::begin("start the API server", progress);
    daemon::start(&state, &config, options.timeout).await?;
    let client = connect(&state).await?;
    step.done("API server is up", progress);
    install(options, &state, &client, begun, deadline, progress).await
}

/// Puts the mesh and the demo into a cluster, and waits until the gateway answers. What is there already is brought up to date.
async fn install(
    options: &UpOptions,
    state: &State,
    client: &Client,
    begun: Instant,
    deadline: Instant,
    progress: Tell<'_>,
) -> Result<UpSummary, LifecycleError> {
    let mesh =
        Options { engine: options.engine, egress_gateway: options.egress_gateway, ..Options::default() };
    let step = Step::begin("install the mesh", progress);
    let objects = lateen_manifests::render(&mesh);
    let webhooks = names_of(&objects, "MutatingWebhookConfiguration");
    apply(client, objects, Existing::Update, deadline).await?;
    step.done("mesh is installed", progress);

    // The gateway comes up beside the control plane and the demo.
    let gateway_ready = tokio::spawn({
        let client = client.clone();
        async move { available(&client, MESH_NAMESPACE, GATEWAY, deadline).await }
    });
    let step = Step::begin("wait for the control plane", progress);
    available(client, MESH_NAMESPACE, &mesh.istiod(), deadline).await?;
    for webhook in &webhooks {
        webhook_ready(client, webhook, MESH_NAMESPACE, deadline).await?;
    }
    step.done("control plane is ready", progress);

    if options.sample {
        deploy_sample(client, deadline, progress).await?;
    }
    let step = Step::begin("wait for the ingress gateway", progress);
    gateway_ready.await.map_err(|error| LifecycleError::Cleanup(error.to_string()))??;
    let gateway = gateway_address(client, deadline).await?;
    if options.sample {
        http::wait_for_ok(gateway, 80, deadline).await?;
    }
    step.done(
        if options.sample { "the gateway answers with the demo" } else { "the gateway is ready" },
        progress,
    );
    Ok(summary(options, state, Some(gateway), begun.elapsed(), false))
}

/// A step for the person who waits.
struct Step(Instant);

impl Step {
    fn begin(what: &str, progress: Tell<'_>) -> Self {
        progress(Progress::Begun(what.to_owned()));
        Self(Instant::now())
    }

    fn done(self, what: &str, progress: Tell<'_>) {
        progress(Progress::Done(what.to_owned(), self.0.elapsed()));
    }
}

/// A client of the cluster that runs already. One that is just starting is waited for; one that is just dying is none.
async fn running_cluster(state: &State) -> Result<Option<Client>, LifecycleError> {
    let give_up = Instant::now() + ANSWER_PATIENCE;
    while state.running().is_some() {
        if let Ok(client) = connect(state).await
            && gateway(&client).await.is_ok()
        {
            return Ok(Some(client));
        }
        if Instant::now() > give_up {
            return Err(LifecycleError::Timeout {
                waiting_for: format!("an answer of the cluster running from {}", state.dir().display()),
                after: ANSWER_PATIENCE,
                hint: "see `lateen logs`, or stop it with `lateen down`".to_owned(),
            });
        }
        tokio::time::sleep(ANSWER_POLL).await;
    }
    Ok(None)
}

async fn deploy_sample(client: &Client, deadline: Instant, progress: Tell<'_>) -> Result<(), LifecycleError> {
    let step = Step::begin("deploy the demo", progress);
    let refused =
        |object: &str, problem: String| LifecycleError::Apply { object: object.to_owned(), problem };
    let injected = json!({"metadata": {"labels": {"istio-injection": "enabled"}}});
    Api::<Namespace>::all(client.clone())
        .patch(sample::NAMESPACE, &PatchParams::default(), &Patch::Merge(injected))
        .await
        .map_err(|error| refused("Namespace default", error.to_string()))?;
    let objects = sample::objects().map_err(|problem| refused("the demo", problem))?;
    apply(client, objects, Existing::Keep, deadline).await?;
    for deployment in sample::DEPLOYMENTS {
        available(client, sample::NAMESPACE, deployment, deadline).await?;
    }
    step.done("demo is ready", progress);
    Ok(())
}

async fn gateway_address(client: &Client, deadline: Instant) -> Result<Ipv4Addr, LifecycleError> {
    let services = Api::<Service>::namespaced(client.clone(), MESH_NAMESPACE);
    let has_address = |service: Option<&Service>| service.and_then(address).is_some();
    let wait = tokio::time::timeout_at(deadline, await_condition(services, GATEWAY, has_address)).await;
    match wait.ok().and_then(Result::ok).flatten().as_ref().and_then(address) {
        Some(address) => Ok(address),
        None => Err(LifecycleError::Timeout {
            waiting_for: "the address of the ingress gateway".to_owned(),
            after: Duration::ZERO,
            hint: unready_pods(client, MESH_NAMESPACE).await,
        }),
    }
}

fn names_of(objects: &[Value], kind: &str) -> Vec<String> {
    let of_kind = objects.iter().filter(|object| object["kind"] == kind);
    of_kind.filter_map(|object| object["metadata"]["name"].as_str()).map(str::to_owned).collect()
}

fn summary(
    options: &UpOptions,
    state: &State,
    gateway: Option<Ipv4Addr>,
    took: Duration,
    already_running: bool,
) -> UpSummary {
    let mut try_next = Vec::new();
    let mut suggest = |command: String, about: &str| try_next.push((command, about.to_owned()));
    if let Some(gateway) = gateway.filter(|_| options.sample) {
        suggest(format!("curl http://{gateway}/"), "customers v1, through gateway and sidecars");
    }
    suggest("kubectl get pods -A".to_owned(), "what runs; 2/2 are an application and its proxy");
    suggest("lateen proxy-status".to_owned(), "which proxies have which configuration");
    UpSummary {
        already_running,
        gateway,
        kubeconfig: state.kubeconfig(),
        took,
        sample: options.sample,
        try_next,
    }
}
