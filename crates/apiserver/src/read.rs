//! Get, list and watch.

use std::{pin::pin, sync::Arc, time::Duration};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD as BASE64URL};
use bytes::Bytes;
use http::{HeaderValue, Response, StatusCode, header};
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use serde_json::{Value, json};
use tokio::sync::mpsc;

use crate::{
    call::Call,
    convert,
    resources::{ResourceDef, meta},
    response::{self, Body, BoxError, Form},
    selector::{FieldSelector, LabelSelector, selectable_fields},
    state::Api,
    status::ApiError,
    store::{Change, ChangeKind, ObjectKey},
    table,
};

/// How often a quiet watch gets a bookmark.
const BOOKMARK_EVERY: Duration = Duration::from_secs(60);
/// Changes taken from the store at a time.
const BATCH: usize = 64;
/// Encoded events waiting for the client; a client slower than that falls behind in the store's window, not in memory.
const QUEUE: usize = 16;

/// What a list or watch is narrowed to.
struct Filter {
    labels: LabelSelector,
    fields: FieldSelector,
    namespace: Option<String>,
}

impl Filter {
    fn of(call: &Call) -> Result<Self, ApiError> {
        let labels = LabelSelector::parse(call.query.get("labelSelector").unwrap_or_default())
            .map_err(ApiError::bad_request)?;
        let mut text = call.query.get("fieldSelector").unwrap_or_default().to_owned();
        if !call.name.is_empty() {
            let separator = if text.is_empty() { "" } else { "," };
            text = format!("{text}{separator}metadata.name={}", call.name);
        }
        let fields = FieldSelector::parse(&text).map_err(ApiError::bad_request)?;
        let known = selectable_fields(&call.def.group, &call.def.plural);
        for field in fields.fields() {
            if !known.contains(&field) && !matches!(field, "metadata.name" | "metadata.namespace") {
                return Err(ApiError::bad_request(format!("field label not supported: {field}")));
            }
        }
        let namespace = (!call.all_namespaces).then(|| call.namespace.clone());
        Ok(Self { labels, fields, namespace })
    }

    fn keeps(&self, def: &ResourceDef, object: &Value) -> bool {
        if self.namespace.as_deref().is_some_and(|namespace| namespace != meta(object, "namespace")) {
            return false;
        }
        if !self.labels.matches(&object["metadata"]["labels"]) {
            return false;
        }
        if def.group == "events.k8s.io" {
            return self.fields.matches(&convert::to_served(def, &Arc::new(object.clone())));
        }
        self.fields.matches(object)
    }
}

/// GET on an object.
pub(crate) fn get(api: &Api, call: &Call) -> Result<Response<Body>, ApiError> {
    let form = call.form()?;
    let stored = api
        .stored(&call.def, &call.namespace, &call.name)
        .ok_or_else(|| ApiError::not_found(&call.def, &call.name))?;
    let object = convert::to_served(&call.def, &stored);
    Ok(one(call, form, StatusCode::OK, &object))
}

/// A single object in the form asked for.
pub(crate) fn one(call: &Call, form: Form, code: StatusCode, object: &Arc<Value>) -> Response<Body> {
    match form {
        Form::Table => {
            let policy = call.query.get("includeObject").unwrap_or("Metadata");
            let table = table::table(&call.def, std::slice::from_ref(object), policy, &list_meta(object));
            response::json(code, &table)
        }
        Form::Metadata => response::json(code, &partial(object, "PartialObjectMetadata")),
        Form::Json | Form::Yaml => response::encode(code, form, object),
    }
}

fn list_meta(object: &Value) -> Value {
    json!({"resourceVersion": meta(object, "resourceVersion")})
}

fn partial(object: &Value, kind: &str) -> Value {
    json!({"kind": kind, "apiVersion": "meta.k8s.io/v1", "metadata": object["metadata"]})
}

fn requested_version(call: &Call) -> Result<Option<u64>, ApiError> {
    match call.query.text("resourceVersion") {
        None => Ok(None),
        Some(text) => text.parse().map(Some).map_err(|_| {
            ApiError::bad_request(format!("Invalid value: {text:?}: resourceVersion must be a number"))
        }),
    }
}

fn from_the_future(api: &Api, wanted: u64) -> Result<(), ApiError> {
    let current = api.store.version();
    if wanted <= current {
        return Ok(());
    }
    let mut error = ApiError::new(
        StatusCode::GATEWAY_TIMEOUT,
        "Timeout",
        format!("Timeout: Too large resource version: {wanted}, current: {current}"),
    );
    error.details = Some(Box::new(
        json!({"causes": [{"reason": "ResourceVersionTooLarge", "message": "Too large resource version"}]}),
    ));
    error.retry_after = Some(1);
    Err(error)
}

/// GET on a collection.
pub(crate) fn list(api: &Api, call: &Call) -> Result<Response<Body>, ApiError> {
    let form = call.form()?;
    let (objects, metadata) = collect(api, call)?;
    let def = &call.def;
    let value = match form {
        Form::Table => {
            table::table(def, &objects, call.query.get("includeObject").unwrap_or("Metadata"), &metadata)
        }
        Form::Metadata => json!({
            "kind": "PartialObjectMetadataList",
            "apiVersion": "meta.k8s.io/v1",
            "metadata": metadata,
            "items": objects.iter().map(|o| partial(o, "PartialObjectMetadata")).collect::<Vec<_>>(),
        }),
        Form::Json => {
            return Ok(response::typed(
                StatusCode::OK,
                "application/json",
                list_json(def, &metadata, &objects),
            ));
        }
        Form::Yaml => {
            let items: Vec<Value> = objects.iter().map(|o| Value::clone(o)).collect();
            json!({"kind": def.list_kind, "apiVersion": def.api_version(), "metadata": metadata, "items": items})
        }
    };
    Ok(response::encode(StatusCode::OK, form, &value))
}

/// Writes a list without copying its objects.
fn list_json(def: &ResourceDef, metadata: &Value, objects: &[Arc<Value>]) -> String {
    let mut text = format!(
        "{{\"kind\":{},\"apiVersion\":{},\"metadata\":{metadata},\"items\":[",
        json!(def.list_kind),
        json!(def.api_version())
    );
    for (index, object) in objects.iter().enumerate() {
        if index > 0 {
            text.push(',');
        }
        text.push_str(&object.to_string());
    }
    text.push_str("]}");
    text
}

/// The objects of a list request, in the version asked for, and the list's metadata.
pub(crate) fn collect(api: &Api, call: &Call) -> Result<(Vec<Arc<Value>>, Value), ApiError> {
    let filter = Filter::of(call)?;
    if let Some(version) = requested_version(call)? {
        from_the_future(api, version)?;
    }
    let limit = call.query.text("limit").and_then(|limit| limit.parse().ok()).filter(|limit| *limit > 0);
    let def = &call.def;
    let (namespace, keep) = (filter.namespace.as_deref(), |object: &Value| filter.keeps(def, object));
    let snapshot = match call.query.text("continue").map(read_continue).transpose()? {
        None => api.store.list(&def.storage, namespace, None, limit, keep),
        Some((after, version)) => api
            .store
            .list_at(version, &def.storage, namespace, Some(&after), limit, keep)
            .map_err(|_| ApiError::expired(TOKEN_TOO_OLD))?,
    };
    let mut metadata = json!({"resourceVersion": snapshot.version.to_string()});
    if snapshot.more > 0
        && let Some(last) = snapshot.objects.last()
    {
        let token = json!({"v": "meta.k8s.io/v1", "rv": snapshot.version,
            "ns": meta(last, "namespace"), "name": meta(last, "name")});
        metadata["continue"] = json!(BASE64URL.encode(token.to_string()));
        metadata["remainingItemCount"] = json!(snapshot.more);
    }
    Ok((snapshot.objects.iter().map(|object| convert::to_served(def, object)).collect(), metadata))
}

/// Kubernetes' words for a page of a list whose moment is no longer known.
const TOKEN_TOO_OLD: &str = "The provided continue parameter is too old to display a consistent list result. You can start a new list \
     without the continue parameter.";

/// After which object a list goes on, and of which version it is.
fn read_continue(token: &str) -> Result<(ObjectKey, u64), ApiError> {
    let invalid = || ApiError::bad_request("continue key is not valid");
    let bytes = BASE64URL.decode(token).map_err(|_| invalid())?;
    let value: Value = serde_json::from_slice(&bytes).map_err(|_| invalid())?;
    let text = |field: &str| value[field].as_str().map(str::to_owned).ok_or_else(invalid);
    Ok((ObjectKey::new(text("ns")?, text("name")?), value["rv"].as_u64().ok_or_else(invalid)?))
}

/// GET with `watch=true`: a stream of events.
pub(crate) fn watch(api: &Arc<Api>, call: Call) -> Result<Response<Body>, ApiError> {
    let form = call.form()?;
    let filter = Filter::of(&call)?;
    let requested = requested_version(&call)?;
    let initial_events = call.query.flag("sendInitialEvents");
    let bookmarks = call.query.flag("allowWatchBookmarks");
    if let Some(version) = requested {
        from_the_future(api, version)?;
    }
    let (sender, receiver) = mpsc::channel(QUEUE);
    let watcher = Watcher { api: Arc::clone(api), call, filter, form, bookmarks, sender, first: true };
    let timeout =
        watcher.call.timeout().unwrap_or_else(|| Duration::from_secs(1800 + fastrand::u64(0..1800)));
    let start = match requested {
        Some(version) if version > 0 && !initial_events => Start::After(version),
        _ if call_wants_no_initial(&watcher.call) => Start::After(api.store.version()),
        _ => Start::WithState { mark_end: initial_events },
    };
    let stop = api.stop.clone();
    tokio::spawn(async move {
        // Ends by the client (its receiver goes), the time limit, or the server's.
        tokio::select! {
            () = watcher.run(start) => {}
            () = tokio::time::sleep(timeout) => {}
            () = stop.cancelled() => {}
        }
    });
    let frames =
        futures::StreamExt::map(tokio_stream::wrappers::ReceiverStream::new(receiver), |chunk: Bytes| {
            Ok::<_, BoxError>(Frame::data(chunk))
        });
    let mut response = Response::new(StreamBody::new(frames).boxed_unsync());
    let media_type =
        if form == Form::Table { "application/json;as=Table;v=v1;g=meta.k8s.io" } else { "application/json" };
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(media_type));
    Ok(response)
}

/// `sendInitialEvents=false` without a version: from now on.
fn call_wants_no_initial(call: &Call) -> bool {
    call.query.get("sendInitialEvents").is_some()
        && !call.query.flag("sendInitialEvents")
        && call.query.text("resourceVersion").is_none()
}

enum Start {
    /// Changes after a version.
    After(u64),
    /// The current objects as additions first; then, if asked for, a bookmark that says so.
    WithState { mark_end: bool },
}

struct Watcher {
    api: Arc<Api>,
    call: Call,
    filter: Filter,
    form: Form,
    bookmarks: bool,
    sender: mpsc::Sender<Bytes>,
    /// The next table carries the columns.
    first: bool,
}

/// The client is gone.
struct Closed;

impl Watcher {
    async fn run(mut self, start: Start) {
        // Either way the stream just ends.
        let _ = self.events(start).await;
    }

    async fn events(&mut self, start: Start) -> Result<(), Closed> {
        let storage = Arc::clone(&self.call.def.storage);
        let mut changed = self.api.store.subscribe(&storage);
        let mut reached = match start {
            Start::After(version) => version,
            Start::WithState { mark_end } => {
                let filter = &self.filter;
                let def = Arc::clone(&self.call.def);
                let snapshot =
                    self.api.store.list(&storage, filter.namespace.as_deref(), None, None, |object| {
                        filter.keeps(&def, object)
                    });
                for object in &snapshot.objects {
                    self.send("ADDED", object).await?;
                }
                if mark_end {
                    self.bookmark(snapshot.version, true).await?;
                }
                snapshot.version
            }
        };
        let mut bookmark_timer = pin!(tokio::time::sleep(BOOKMARK_EVERY));
        loop {
            changed.borrow_and_update();
            match self.api.store.changes_after(&storage, reached, BATCH) {
                Err(_) => return self.expired(reached).await,
                Ok((changes, up_to)) => {
                    for change in &changes {
                        self.change(change).await?;
                    }
                    reached = up_to;
                    if changes.len() == BATCH {
                        continue;
                    }
                }
            }
            tokio::select! {
                result = changed.changed() => if result.is_err() { return Ok(()) },
                () = self.sender.closed() => return Err(Closed),
                () = &mut bookmark_timer => {
                    bookmark_timer.as_mut().reset(tokio::time::Instant::now() + BOOKMARK_EVERY);
                    if self.bookmarks {
                        self.bookmark(reached, false).await?;
                    }
                }
            }
        }
    }

    async fn change(&mut self, change: &Change) -> Result<(), Closed> {
        let def = Arc::clone(&self.call.def);
        let fits = self.filter.keeps(&def, &change.object);
        let fitted = change.previous.as_ref().is_some_and(|previous| self.filter.keeps(&def, previous));
        let kind = match (change.kind, fitted, fits) {
            (ChangeKind::Deleted, true, _) => "DELETED",
            (ChangeKind::Added, _, true) => "ADDED",
            (ChangeKind::Modified, true, true) => "MODIFIED",
            (ChangeKind::Modified, false, true) => "ADDED",
            (ChangeKind::Modified, true, false) => "DELETED",
            _ => return Ok(()),
        };
        self.send(kind, &change.object).await
    }

    async fn send(&mut self, kind: &str, stored: &Arc<Value>) -> Result<(), Closed> {
        let object = convert::to_served(&self.call.def, stored);
        let text = match self.form {
            Form::Table => {
                let policy = self.call.query.get("includeObject").unwrap_or("Metadata");
                let mut table =
                    table::table(&self.call.def, std::slice::from_ref(&object), policy, &list_meta(&object));
                if !std::mem::take(&mut self.first) {
                    table["columnDefinitions"] = Value::Null;
                }
                table.to_string()
            }
            Form::Metadata => partial(&object, "PartialObjectMetadata").to_string(),
            Form::Json | Form::Yaml => object.to_string(),
        };
        self.write(format!("{{\"type\":\"{kind}\",\"object\":{text}}}\n")).await
    }

    async fn bookmark(&mut self, version: u64, end_of_initial: bool) -> Result<(), Closed> {
        let def = &self.call.def;
        let mut metadata = json!({"resourceVersion": version.to_string(), "creationTimestamp": null});
        if end_of_initial {
            metadata["annotations"] = json!({"k8s.io/initial-events-end": "true"});
        }
        let mut object = json!({"kind": def.kind, "apiVersion": def.api_version(), "metadata": metadata});
        if self.form == Form::Table {
            object = json!({"kind": "Table", "apiVersion": "meta.k8s.io/v1", "metadata": metadata,
                "columnDefinitions": null, "rows": []});
        }
        self.write(format!("{{\"type\":\"BOOKMARK\",\"object\":{object}}}\n")).await
    }

    async fn expired(&mut self, reached: u64) -> Result<(), Closed> {
        let error =
            ApiError::expired(format!("too old resource version: {reached} ({})", self.api.store.version()));
        self.write(format!("{{\"type\":\"ERROR\",\"object\":{}}}\n", error.body())).await
    }

    async fn write(&mut self, line: String) -> Result<(), Closed> {
        self.sender.send(Bytes::from(line)).await.map_err(|_| Closed)
    }
}
