//! Pods' subresources that are not plain reads and writes: log, exec, attach, portforward, binding, eviction.

use std::sync::Arc;

use futures::StreamExt;
use http::{HeaderValue, Request, Response, StatusCode, header};
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Incoming;
use lateen_podstreams::{ContainerRef, LogOptions, PodBackend};
use serde_json::{Value, json};

use crate::{
    call::Call,
    delete::{self, Options},
    resources::meta,
    response::{self, Body, BoxError},
    selector::LabelSelector,
    state::{self, Api},
    status::ApiError,
    write,
};

fn backend(api: &Api) -> Result<Arc<dyn PodBackend>, ApiError> {
    api.pods
        .read()
        .clone()
        .ok_or_else(|| ApiError::unavailable("no pod runtime is attached to this API server"))
}

fn existing_pod(api: &Api, call: &Call) -> Result<Arc<Value>, ApiError> {
    api.stored(&call.def, &call.namespace, &call.name)
        .ok_or_else(|| ApiError::not_found(&call.def, &call.name))
}

/// Hands an exec, attach or portforward connection to the runtime.
pub(crate) async fn stream(
    api: &Api,
    call: &Call,
    request: Request<Incoming>,
) -> Result<Response<Body>, ApiError> {
    existing_pod(api, call)?;
    let backend = backend(api)?;
    let (namespace, name) = (call.namespace.as_str(), call.name.as_str());
    let response = match call.subresource.as_str() {
        "exec" => lateen_podstreams::serve_exec(request, backend, namespace, name).await,
        "attach" => lateen_podstreams::serve_attach(request, backend, namespace, name).await,
        _ => lateen_podstreams::serve_port_forward(request, backend, namespace, name).await,
    };
    Ok(response.map(|body| body.map_err(|never| match never {}).boxed_unsync()))
}

/// GET on `log`.
pub(crate) async fn log(api: &Api, call: &Call) -> Result<Response<Body>, ApiError> {
    let pod = existing_pod(api, call)?;
    let container = log_container(call, &pod)?;
    let number = |name: &str| -> Result<Option<u64>, ApiError> {
        let Some(text) = call.query.text(name) else { return Ok(None) };
        text.parse()
            .map(Some)
            .map_err(|_| ApiError::bad_request(format!("{name}: {text:?} is not a whole number")))
    };
    let since_time = match call.query.text("sinceTime") {
        None => None,
        Some(text) => {
            let time: jiff::Timestamp = text
                .parse()
                .map_err(|_| ApiError::bad_request(format!("sinceTime: {text:?} is not RFC 3339")))?;
            u64::try_from(jiff::Timestamp::now().as_second() - time.as_second()).ok()
        }
    };
    let options = LogOptions {
        follow: call.query.flag("follow"),
        previous: call.query.flag("previous"),
        timestamps: call.query.flag("timestamps"),
        tail_lines: number("tailLines")?.and_then(|n| usize::try_from(n).ok()),
        since_seconds: number("sinceSeconds")?.or(since_time),
        limit_bytes: number("limitBytes")?.and_then(|n| usize::try_from(n).ok()),
    };
    let target = ContainerRef { namespace: call.namespace.clone(), pod: call.name.clone(), container };
    let log = match backend(api)?.logs(target, options).await {
        Ok(log) => log,
        Err(error) => {
            let response = lateen_podstreams::error_response(&error);
            return Ok(response.map(|body| body.map_err(|never| match never {}).boxed_unsync()));
        }
    };
    let frames = log.map(|chunk| chunk.map(Frame::data).map_err(BoxError::from));
    let mut response = Response::new(StreamBody::new(frames).boxed_unsync());
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain"));
    Ok(response)
}

/// Which container's log is meant; several need a choice.
fn log_container(call: &Call, pod: &Value) -> Result<String, ApiError> {
    let spec = &pod["spec"];
    let of = |list: &str| -> Vec<String> {
        let items = spec[list].as_array().into_iter().flatten();
        items.filter_map(|c| c["name"].as_str().map(str::to_owned)).collect()
    };
    let (containers, init) = (of("containers"), of("initContainers"));
    let bad = |message: String| Err(ApiError::bad_request(message));
    let pod_name = meta(pod, "name");
    if let Some(wanted) = call.query.text("container") {
        let known =
            containers.iter().chain(&init).chain(&of("ephemeralContainers")).any(|name| name == wanted);
        return if known {
            Ok(wanted.to_owned())
        } else {
            bad(format!("container {wanted} is not valid for pod {pod_name}"))
        };
    }
    match containers.as_slice() {
        [only] if init.is_empty() => Ok(only.clone()),
        [only] => Ok(only.clone()),
        many => {
            let default = &pod["metadata"]["annotations"]["kubectl.kubernetes.io/default-container"];
            match default.as_str().filter(|name| many.iter().any(|one| one == name)) {
                Some(name) => Ok(name.to_owned()),
                None => bad(format!(
                    "a container name must be specified for pod {pod_name}, choose one of: [{}]",
                    many.join(" ")
                )),
            }
        }
    }
}

/// POST on `binding`: assigns the pod to a node.
pub(crate) async fn bind(api: &Api, call: &Call) -> Result<Response<Body>, ApiError> {
    let (binding, _) = crate::decode::parse_body(&call.body, call.content_type())?;
    let node = binding["target"]["name"].as_str().unwrap_or_default();
    if node.is_empty() {
        return Err(ApiError::bad_request("target.name: Required value"));
    }
    write::rewrite(api, call, |old| {
        let current = old["spec"]["nodeName"].as_str().unwrap_or_default();
        if !current.is_empty() {
            let why = format!("pod {} is already assigned to node {current:?}", call.name);
            return Err(ApiError::conflict(&call.def, &call.name, &why));
        }
        let mut pod = old.clone();
        pod["spec"]["nodeName"] = json!(node);
        Ok(pod)
    })
    .await?;
    Ok(success(StatusCode::CREATED))
}

fn success(code: StatusCode) -> Response<Body> {
    response::json(
        code,
        &json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": code.as_u16()}),
    )
}

/// POST on `eviction`: deletes the pod unless a PodDisruptionBudget forbids it.
pub(crate) async fn evict(api: &Api, call: &Call) -> Result<Response<Body>, ApiError> {
    let pod = existing_pod(api, call)?;
    let options = Options::of(call)?;
    let covers = |budget: &Value, pod: &Value| {
        let selector = &budget["spec"]["selector"];
        LabelSelector::from_object(selector)
            .is_ok_and(|wanted| !selector.is_null() && wanted.matches(&pod["metadata"]["labels"]))
    };
    let namespace = Some(call.namespace.as_str());
    let budgets = api.store.list("poddisruptionbudgets.policy", namespace, None, None, |b| covers(b, &pod));
    for budget in budgets.objects {
        let covered = api.store.list("pods", namespace, None, None, |pod| covers(&budget, pod)).objects;
        if !allows_eviction(&budget["spec"], &pod, &covered) {
            let mut error = ApiError::new(
                StatusCode::TOO_MANY_REQUESTS,
                "TooManyRequests",
                "Cannot evict pod as it would violate the pod's disruption budget.",
            );
            error.details = Some(Box::new(json!({"causes": [{"reason": "DisruptionBudget",
                "message": format!("The disruption budget {} does not allow evictions now", meta(&budget, "name"))}]})));
            return Err(error);
        }
    }
    tracing::debug!(pod = call.name, at = state::now(), "evicting");
    delete::delete(api, call, &options).await?;
    Ok(success(StatusCode::CREATED))
}

/// Whether enough pods stay healthy without this one. All pods that are covered count as wanted; one that isn't healthy itself
/// may go while the budget holds.
fn allows_eviction(budget: &Value, pod: &Value, covered: &[Arc<Value>]) -> bool {
    let healthy = |pod: &Value| {
        let mut conditions = pod["status"]["conditions"].as_array().into_iter().flatten();
        let ready = conditions.any(|condition| condition["type"] == "Ready" && condition["status"] == "True");
        ready && meta(pod, "deletionTimestamp").is_empty()
    };
    // A percentage is of the covered pods, rounded up.
    let number = |value: &Value| -> Option<usize> {
        let Some(text) = value.as_str() else { return usize::try_from(value.as_u64()?).ok() };
        let percent: usize = text.strip_suffix('%')?.parse().ok()?;
        Some((covered.len() * percent).div_ceil(100))
    };
    let needed = match (number(&budget["minAvailable"]), number(&budget["maxUnavailable"])) {
        (Some(least), _) => least,
        (None, Some(most)) => covered.len().saturating_sub(most),
        (None, None) => covered.len(),
    };
    let well = covered.iter().filter(|pod| healthy(pod)).count();
    if healthy(pod) { well > needed } else { well >= needed }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn budgets_allow_what_leaves_enough() {
        let pod =
            |ready: &str| Arc::new(json!({"status": {"conditions": [{"type": "Ready", "status": ready}]}}));
        let (well, ill) = (pod("True"), pod("False"));
        let pods = |healthy: usize, all: usize| -> Vec<_> {
            (0..all).map(|n| Arc::clone(if n < healthy { &well } else { &ill })).collect()
        };
        let cases = [
            (json!({"minAvailable": 1}), &well, pods(2, 2), true),
            (json!({"minAvailable": 1}), &well, pods(1, 1), false),
            (json!({"minAvailable": "50%"}), &well, pods(2, 3), false),
            (json!({"minAvailable": "50%"}), &well, pods(3, 3), true),
            (json!({"maxUnavailable": 1}), &well, pods(3, 3), true),
            (json!({"maxUnavailable": 1}), &well, pods(2, 3), false),
            (json!({"maxUnavailable": 1}), &ill, pods(2, 3), true),
            (json!({"maxUnavailable": 0}), &ill, pods(2, 3), false),
            (json!({}), &well, pods(3, 3), false),
        ];
        for (budget, pod, covered, expected) in cases {
            assert_eq!(allows_eviction(&budget, pod, &covered), expected, "{budget} {covered:?}");
        }
    }
}
