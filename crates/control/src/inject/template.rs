//! Rendering the templates and putting the result into the pod.
use json_patch::Patch;
use lateen_api::mesh::ProxyConfig;
use minijinja::value::Serde;
use minijinja::{Environment, Error, ErrorKind, State, context};
use serde_json::{Map, Value, json};

use super::InjectorConfig;
use super::merge::merge;
use super::pod::{INIT_CONTAINER, PROXY_CONTAINER, STATUS_ANNOTATION, annotation, list, names};
use super::probes;
use super::workload::Workload;

/// Annotation that names the templates to use.
const TEMPLATES: &str = "inject.istio.io/templates";
/// Annotation with settings of the proxy, over those of the mesh.
const PROXY_CONFIG: &str = "proxy.istio.io/config";
/// Image of a container that is to be filled in.
const AUTO: &str = "auto";

/// Why a pod could not be given a proxy.
#[derive(Debug, thiserror::Error)]
pub(crate) enum InjectError {
    #[error("annotation {annotation} is not valid: {reason}")]
    Annotation { annotation: &'static str, reason: String },
    #[error("template {name:?} of ConfigMap istio-sidecar-injector: {reason}")]
    Template { name: String, reason: String },
    #[error(
        "the pod has a container {0:?} without an image to use; name the template that fills it in by annotation {TEMPLATES}"
    )]
    NoImage(String),
}

/// What a pod is rendered with besides its own fields.
pub(crate) struct InjectContext<'a> {
    pub(crate) namespace: &'a str,
    pub(crate) revision: &'a str,
    /// Mesh configuration as written.
    pub(crate) mesh: &'a Value,
}

/// The functions and filters templates may use besides Jinja's.
pub(super) fn add_functions(templates: &mut Environment<'static>) {
    templates.add_function("annotation", |state: &State<'_, '_>, name: String, default: minijinja::Value| {
        let annotations = state.lookup("annotations").unwrap_or_default();
        match annotations.get_item(&minijinja::Value::from(name)) {
            Ok(value) if !value.is_undefined() => value,
            _ => default,
        }
    });
    templates.add_filter("named_list", named_list);
}

/// A list of named objects from JSON text: a list as it is, or an object of them by name. Empty text is an empty list.
fn named_list(text: String) -> Result<minijinja::Value, Error> {
    if text.is_empty() {
        return Ok(minijinja::Value::from(Vec::<String>::new()));
    }
    let invalid = |reason: String| Error::new(ErrorKind::InvalidOperation, format!("{text}: {reason}"));
    let list = match serde_json::from_str(&text).map_err(|error| invalid(error.to_string()))? {
        Value::Array(list) => list,
        Value::Object(by_name) => {
            let named = |(name, object): (String, Value)| match object {
                Value::Object(mut fields) => {
                    fields.insert("name".to_owned(), Value::String(name));
                    Ok(Value::Object(fields))
                }
                _ => Err(invalid(format!("expected an object under {name:?}"))),
            };
            by_name.into_iter().map(named).collect::<Result<_, _>>()?
        }
        _ => return Err(invalid("expected a JSON list, or an object by name".to_owned())),
    };
    Ok(minijinja::Value::from(Serde(list)))
}

/// The patch that adds a proxy to a pod.
pub(crate) fn inject(
    pod: &Value,
    config: &InjectorConfig,
    given: &InjectContext<'_>,
) -> Result<Patch, InjectError> {
    let proxy_config = proxy_config(pod, given.mesh)?;
    let template_names: Vec<String> = match annotation(pod, TEMPLATES) {
        Some(names) => names.split(',').map(|name| name.trim().to_owned()).collect(),
        None => config.default_templates.clone(),
    };
    let mut result = pod.clone();
    let mut injected = json!({ "spec": {} });
    for name in &template_names {
        let fragment = render(name, pod, config, given, &proxy_config)?;
        merge(&mut result, &fragment);
        merge(&mut injected, &fragment);
    }
    keep_what_the_pod_says(pod, &mut result)?;
    probes::rewrite(pod, &mut result);
    let hold = proxy_config["holdApplicationUntilProxyStarts"] == Value::Bool(true);
    move_container(&mut result, "containers", PROXY_CONTAINER, if hold { Place::First } else { Place::Last });
    move_container(&mut result, "initContainers", INIT_CONTAINER, Place::Last);
    let annotations = entry(entry(&mut result, "metadata"), "annotations");
    for (name, value) in &config.injected_annotations {
        annotations[name] = json!(value);
    }
    annotations[STATUS_ANNOTATION] = json!(status(&injected, given.revision).to_string());
    Ok(json_patch::diff(pod, &result))
}

/// An object's field, made an empty object where it is none.
fn entry<'a>(object: &'a mut Value, field: &str) -> &'a mut Value {
    if !object[field].is_object() {
        object[field] = Value::Object(Map::new());
    }
    &mut object[field]
}

/// `defaultConfig` of the mesh, overlaid with the pod's annotation.
fn proxy_config(pod: &Value, mesh: &Value) -> Result<Value, InjectError> {
    let mut config = match &mesh["defaultConfig"] {
        Value::Object(_) => mesh["defaultConfig"].clone(),
        _ => json!({}),
    };
    if let Some(text) = annotation(pod, PROXY_CONFIG) {
        let invalid = |reason: String| InjectError::Annotation { annotation: PROXY_CONFIG, reason };
        let overlay: Value = serde_saphyr::from_str(text).map_err(|error| invalid(error.to_string()))?;
        if !overlay.is_object() {
            return Err(invalid("expected the fields of a ProxyConfig".to_owned()));
        }
        merge(&mut config, &overlay);
        // What does not fit the type would fail inside the proxy, where nobody sees it.
        serde_json::from_value::<ProxyConfig>(config.clone()).map_err(|error| invalid(error.to_string()))?;
    }
    Ok(config)
}

fn render(
    name: &str,
    pod: &Value,
    config: &InjectorConfig,
    given: &InjectContext<'_>,
    proxy_config: &Value,
) -> Result<Value, InjectError> {
    let failed = |reason: String| InjectError::Template { name: name.to_owned(), reason };
    let own: Vec<&Value> = list(pod, "containers").filter(|one| one["name"] != PROXY_CONTAINER).collect();
    let app_containers: Vec<String> =
        own.iter().filter_map(|one| one["name"].as_str()).map(str::to_owned).collect();
    let app_ports: Vec<&Value> = own.iter().filter_map(|one| one["ports"].as_array()).flatten().collect();
    let none = json!({});
    let annotations =
        pod["metadata"]["annotations"].as_object().map_or(&none, |_| &pod["metadata"]["annotations"]);
    let template = config.templates.get_template(name).map_err(|error| failed(error.to_string()))?;
    let text = template
        .render(context! {
            pod => Serde(pod),
            annotations => Serde(annotations),
            namespace => given.namespace,
            workload => Serde(Workload::of(pod, given.namespace)),
            mesh => Serde(given.mesh),
            proxy_config => Serde(proxy_config),
            values => Serde(&config.values),
            revision => given.revision,
            app_containers => app_containers,
            app_ports => Serde(app_ports),
        })
        .map_err(|error| failed(format!("{error:#}")))?;
    serde_saphyr::from_str(&text).map_err(|error| failed(format!("the result is not YAML: {error}")))
}

/// A container the pod already has under an injected one's name customises it: the pod's fields win. `image: auto` is the
/// place-holder for the template's image.
fn keep_what_the_pod_says(pod: &Value, result: &mut Value) -> Result<(), InjectError> {
    for field in ["containers", "initContainers"] {
        let Some(merged) = result["spec"][field].as_array_mut() else { continue };
        for own in list(pod, field) {
            let Some(target) = merged.iter_mut().find(|one| one["name"] == own["name"]) else { continue };
            let mut own = own.clone();
            if own["image"] == AUTO
                && let Some(fields) = own.as_object_mut()
            {
                fields.shift_remove("image");
            }
            merge(target, &own);
            if target["image"] == AUTO {
                return Err(InjectError::NoImage(own["name"].as_str().unwrap_or_default().to_owned()));
            }
        }
    }
    Ok(())
}

#[derive(Clone, Copy)]
enum Place {
    First,
    Last,
}

fn move_container(pod: &mut Value, field: &str, name: &str, place: Place) {
    let Some(containers) = pod["spec"][field].as_array_mut() else { return };
    let Some(at) = containers.iter().position(|one| one["name"] == name) else { return };
    let container = containers.remove(at);
    match place {
        Place::First => containers.insert(0, container),
        Place::Last => containers.push(container),
    }
}

/// What was injected, as the status annotation tells it.
fn status(injected: &Value, revision: &str) -> Value {
    let or_null = |names: Vec<String>| if names.is_empty() { Value::Null } else { json!(names) };
    json!({
        "initContainers": or_null(names(injected, "initContainers")),
        "containers": or_null(names(injected, "containers")),
        "volumes": or_null(names(injected, "volumes")),
        "imagePullSecrets": or_null(names(injected, "imagePullSecrets")),
        "revision": revision,
    })
}
