//! From a request to its answer: authentication, limits, and which part of the server handles a path.

use std::{convert::Infallible, sync::Arc};

use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use hyper::body::Incoming;
use serde_json::{Value, json};

use crate::{
    authn::User,
    builtin::REVIEWS,
    call::Call,
    certificates,
    delete::{self, Options},
    discovery, impersonation, openapi, proxy,
    rbac::{self, Attributes},
    read,
    response::{self, Body},
    reviews,
    route::{self, Query, ResourcePath},
    scale,
    state::Api,
    status::ApiError,
    subresources, write,
};

/// Largest body taken, in bytes (as kube-apiserver).
const BODY_LIMIT: usize = 3 << 20;

/// Answers a request; `certificate_user` is the verified client certificate's.
pub(crate) async fn handle(
    api: Arc<Api>,
    certificate_user: Option<User>,
    request: Request<Incoming>,
) -> Result<Response<Body>, Infallible> {
    let method = request.method().clone();
    let path = request.uri().path().to_owned();
    let answer = answer(&api, certificate_user, request).await;
    let response = answer.unwrap_or_else(|error| response::error(&error));
    tracing::debug!(%method, path, status = response.status().as_u16(), "answered");
    Ok(response)
}

async fn answer(
    api: &Arc<Api>,
    certificate_user: Option<User>,
    request: Request<Incoming>,
) -> Result<Response<Body>, ApiError> {
    let path = request.uri().path().to_owned();
    if let Some(response) = public(api, &path) {
        return Ok(response);
    }
    let sender = authenticate(api, certificate_user, request.headers())?;
    let user = impersonation::acting_as(api, sender, request.headers())?;
    let target = route::parse(&path);
    rbac::authorize(api, &user, &attributes(&request, target.as_ref()))?;
    let accept = request.headers().get(header::ACCEPT).and_then(|v| v.to_str().ok()).unwrap_or_default();
    if request.method() == Method::GET {
        if path == "/" {
            return Ok(response::json(
                StatusCode::OK,
                &json!({"paths": ["/api", "/apis", "/healthz", "/livez", "/openapi/v3", "/readyz", "/version"]}),
            ));
        }
        if path == "/openapi/v2" {
            return Ok(openapi::empty_v2(accept));
        }
        if path == "/openapi/v3" || path.starts_with("/openapi/v3/") {
            return openapi::answer(api, &path);
        }
        if let Some(answer) = discovery::answer(api, &path, accept) {
            return answer;
        }
    }
    resource(api, user, target.ok_or_else(ApiError::no_such_path)?, request).await
}

/// What a request asks to do: <https://kubernetes.io/docs/reference/access-authn-authz/authorization/#determine-the-request-verb>
fn attributes(request: &Request<Incoming>, target: Option<&ResourcePath>) -> Attributes {
    let Some(target) = target else {
        let path = Some(request.uri().path().to_owned());
        return Attributes { verb: request.method().as_str().to_lowercase(), path, ..Attributes::default() };
    };
    let query = Query::parse(request.uri().query().unwrap_or_default());
    let named = target.name.is_some();
    let verb = match *request.method() {
        Method::GET | Method::HEAD if target.watch || (!named && query.flag("watch")) => "watch",
        Method::GET | Method::HEAD if named => "get",
        Method::GET | Method::HEAD => "list",
        Method::POST => "create",
        Method::PUT => "update",
        Method::PATCH => "patch",
        Method::DELETE if named => "delete",
        Method::DELETE => "deletecollection",
        _ => "",
    };
    // Whoever may see one object may also list and watch that one. What is created has no name yet, and others may be deleted with it.
    let selected = || {
        let selector = query.text("fieldSelector").filter(|_| matches!(verb, "list" | "watch"))?;
        selector.strip_prefix("metadata.name=").map(str::to_owned)
    };
    let name = target.name.clone().or_else(selected).unwrap_or_default();
    let itself = target.group.is_empty() && target.resource == "namespaces";
    Attributes {
        verb: verb.to_owned(),
        group: target.group.clone(),
        resource: target.resource.clone(),
        subresource: target.subresource.clone().unwrap_or_default(),
        // A namespace is in itself.
        namespace: if itself { name.clone() } else { target.namespace.clone().unwrap_or_default() },
        name,
        path: None,
    }
}

/// Paths anybody may read.
fn public(api: &Api, path: &str) -> Option<Response<Body>> {
    let issuer = &api.authenticator.issuer;
    match path {
        "/version" | "/version/" => Some(response::json(StatusCode::OK, &discovery::version())),
        "/.well-known/openid-configuration" => {
            let value = json!({
                "issuer": issuer, "jwks_uri": format!("{issuer}/openid/v1/jwks"), "response_types_supported": ["id_token"],
                "subject_types_supported": ["public"], "id_token_signing_alg_values_supported": ["ES256"],
            });
            Some(response::json(StatusCode::OK, &value))
        }
        "/openid/v1/jwks" => {
            let value = json!({"keys": [api.authenticator.pki.tokens.jwk()]});
            Some(response::typed(StatusCode::OK, "application/jwk-set+json", value.to_string()))
        }
        _ => {
            let health = ["/healthz", "/livez", "/readyz"];
            let is_health = health
                .iter()
                .any(|h| path.strip_prefix(h).is_some_and(|rest| rest.is_empty() || rest.starts_with('/')));
            is_health.then(|| response::text(StatusCode::OK, "ok"))
        }
    }
}

fn authenticate(api: &Api, certificate_user: Option<User>, headers: &HeaderMap) -> Result<User, ApiError> {
    let bearer = headers
        .get(header::AUTHORIZATION)
        .and_then(|value| value.to_str().ok())
        .and_then(|value| value.strip_prefix("Bearer ").or_else(|| value.strip_prefix("bearer ")))
        .map(str::to_owned)
        .or_else(|| websocket_bearer(headers));
    if let Some(user) = certificate_user {
        return Ok(user);
    }
    let token = bearer.ok_or_else(ApiError::unauthorized)?;
    api.authenticator.bearer(&api.store, token.trim()).ok_or_else(ApiError::unauthorized)
}

/// Browsers can't set headers on WebSockets; Kubernetes takes the token as a subprotocol.
fn websocket_bearer(headers: &HeaderMap) -> Option<String> {
    use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
    let protocols = headers.get(header::SEC_WEBSOCKET_PROTOCOL)?.to_str().ok()?;
    let encoded = protocols
        .split(',')
        .find_map(|one| one.trim().strip_prefix("base64url.bearer.authorization.k8s.io."))?;
    String::from_utf8(URL_SAFE_NO_PAD.decode(encoded).ok()?).ok()
}

async fn read_body(api: &Api, body: Incoming) -> Result<Bytes, ApiError> {
    let read = tokio::time::timeout(api.request_limit, Limited::new(body, BODY_LIMIT).collect()).await;
    match read.map_err(|_| ApiError::out_of_time())? {
        Ok(collected) => Ok(collected.to_bytes()),
        Err(error) if error.downcast_ref::<LengthLimitError>().is_some() => Err(ApiError::too_large()),
        Err(error) => Err(ApiError::bad_request(format!("error reading the request body: {error}"))),
    }
}

async fn resource(
    api: &Arc<Api>,
    user: User,
    target: ResourcePath,
    request: Request<Incoming>,
) -> Result<Response<Body>, ApiError> {
    let review = REVIEWS.iter().find(|review| {
        review.group == target.group && review.version == target.version && review.plural == target.resource
    });
    if let Some(review) = review {
        if request.method() != Method::POST {
            return Err(ApiError::method_not_allowed());
        }
        let content_type = request.headers().get(header::CONTENT_TYPE).and_then(|v| v.to_str().ok());
        let content_type = content_type.unwrap_or_default().split(';').next().unwrap_or_default().to_owned();
        let body = read_body(api, request.into_body()).await?;
        return reviews::answer(api, &user, review, &body, &content_type);
    }
    let def = api
        .registry
        .find(&target.group, &target.version, &target.resource)
        .ok_or_else(|| ApiError::no_such_version(&target.group, &target.version))?;
    let named = target.name.is_some();
    if def.namespaced != target.namespace.is_some()
        && (named || !def.namespaced || request.method() == Method::POST)
    {
        return Err(ApiError::no_such_path());
    }
    let mut call = Call {
        user,
        all_namespaces: target.namespace.is_none(),
        namespace: target.namespace.clone().unwrap_or_default(),
        name: target.name.clone().unwrap_or_default(),
        subresource: target.subresource.clone().unwrap_or_default(),
        query: Query::parse(request.uri().query().unwrap_or_default()),
        headers: request.headers().clone(),
        body: Bytes::new(),
        def,
    };
    let method = request.method().clone();
    match (call.def.kind.as_str(), call.subresource.as_str()) {
        ("Pod", "exec" | "attach" | "portforward") => {
            crate::admission::validate(api, &call, crate::admission::Operation::Connect, None, None).await?;
            return subresources::stream(api, &call, request).await;
        }
        ("Pod" | "Service", "proxy") => return proxy::pass(api, &call, &target.rest, request).await,
        _ => {}
    }
    call.body = read_body(api, request.into_body()).await?;
    let answer = async {
        if named {
            on_object(api, call, &method, target.watch).await
        } else {
            on_collection(api, call, &method, target.watch).await
        }
    };
    // Dropping a request at its deadline is safe: nothing waits between the start of a commit and its end.
    tokio::time::timeout(api.request_limit, answer).await.unwrap_or_else(|_| Err(ApiError::out_of_time()))
}

async fn on_collection(
    api: &Arc<Api>,
    call: Call,
    method: &Method,
    watch: bool,
) -> Result<Response<Body>, ApiError> {
    match *method {
        Method::GET if watch || call.query.flag("watch") => read::watch(api, call),
        Method::GET => read::list(api, &call),
        Method::POST => {
            let written = write::create(api, &call).await?;
            written_response(&call, written)
        }
        Method::DELETE => delete_collection(api, &call).await,
        _ => Err(ApiError::method_not_allowed()),
    }
}

async fn on_object(
    api: &Arc<Api>,
    call: Call,
    method: &Method,
    watch: bool,
) -> Result<Response<Body>, ApiError> {
    if !write::plausible_name(&call.name) {
        return Err(ApiError::not_found(&call.def, &call.name));
    }
    let main_or_status = match call.subresource.as_str() {
        "" => true,
        "status" => call.def.has_status,
        "approval" => call.def.kind == "CertificateSigningRequest",
        _ => false,
    };
    if !main_or_status {
        return other_subresource(api, call, method).await;
    }
    if call.subresource == "approval" && (*method == Method::PUT || *method == Method::PATCH) {
        certificates::may_decide(api, &call)?;
    }
    match *method {
        Method::GET if watch || call.query.flag("watch") => read::watch(api, call),
        Method::GET => read::get(api, &call),
        Method::PUT => {
            let exists = api.stored(&call.def, &call.namespace, &call.name).is_some();
            if !exists {
                return Err(ApiError::not_found(&call.def, &call.name));
            }
            let written = write::update(api, &call).await?;
            written_response(&call, written)
        }
        Method::PATCH => {
            let applies = call.content_type() == "application/apply-patch+yaml";
            if applies
                && call.subresource.is_empty()
                && api.stored(&call.def, &call.namespace, &call.name).is_none()
            {
                may_create(api, &call)?;
            }
            let written = write::patch(api, &call).await?;
            written_response(&call, written)
        }
        Method::DELETE if call.subresource.is_empty() => {
            let options = Options::of(&call)?;
            let (deleted, warnings) = delete::delete(api, &call, &options).await?;
            let (code, body) = deleted.body(&call.def);
            let mut response = response::json(code, &body);
            response::warn(&mut response, &warnings);
            Ok(response)
        }
        _ => Err(ApiError::method_not_allowed()),
    }
}

/// What is applied and not there is made, which is another verb.
fn may_create(api: &Api, call: &Call) -> Result<(), ApiError> {
    let asked = Attributes {
        verb: "create".to_owned(),
        group: call.def.group.clone(),
        resource: call.def.plural.clone(),
        namespace: call.namespace.clone(),
        name: call.name.clone(),
        ..Attributes::default()
    };
    rbac::authorize(api, &call.user, &asked)
}

async fn other_subresource(api: &Arc<Api>, call: Call, method: &Method) -> Result<Response<Body>, ApiError> {
    match (call.def.kind.as_str(), call.subresource.as_str(), method) {
        (_, "scale", &Method::GET) => {
            let paths = call.def.scale.clone().ok_or_else(ApiError::no_such_path)?;
            let stored = api
                .stored(&call.def, &call.namespace, &call.name)
                .ok_or_else(|| ApiError::not_found(&call.def, &call.name))?;
            Ok(response::json(StatusCode::OK, &scale::of(&call.def, &paths, &stored)))
        }
        (_, "scale", &Method::PUT | &Method::PATCH) => {
            let scale = write::change_scale(api, &call, method == Method::PATCH).await?;
            Ok(response::json(StatusCode::OK, &scale))
        }
        ("Pod", "log", &Method::GET) => subresources::log(api, &call).await,
        ("Pod", "binding", &Method::POST) => subresources::bind(api, &call).await,
        ("Pod", "eviction", &Method::POST) => subresources::evict(api, &call).await,
        ("ServiceAccount", "token", &Method::POST) => reviews::token_request(api, &call),
        ("Pod", "ephemeralcontainers", _) => Err(ApiError::no_ephemeral_containers()),
        // The garbage collector finishes namespaces by itself.
        ("Namespace", "finalize", &Method::PUT) => read::get(api, &call),
        _ => Err(ApiError::no_such_path()),
    }
}

fn written_response(call: &Call, written: write::Written) -> Result<Response<Body>, ApiError> {
    let code = if written.created { StatusCode::CREATED } else { StatusCode::OK };
    let mut response = read::one(call, call.form()?, code, &written.object);
    response::warn(&mut response, &written.warnings);
    Ok(response)
}

async fn delete_collection(api: &Arc<Api>, call: &Call) -> Result<Response<Body>, ApiError> {
    let options = Options::of(call)?;
    let (objects, metadata) = read::collect(api, call)?;
    let mut items = Vec::new();
    for object in objects {
        let one = Call {
            user: call.user.clone(),
            def: Arc::clone(&call.def),
            namespace: crate::resources::meta(&object, "namespace").to_owned(),
            all_namespaces: false,
            name: crate::resources::meta(&object, "name").to_owned(),
            subresource: String::new(),
            query: call.query.clone(),
            headers: call.headers.clone(),
            body: Bytes::new(),
        };
        match delete::delete(api, &one, &options).await {
            Ok(_) => items.push(Value::clone(&object)),
            Err(error) if error.reason == "NotFound" => {}
            Err(error) => return Err(error),
        }
    }
    let list = json!({"kind": call.def.list_kind, "apiVersion": call.def.api_version(), "metadata": metadata, "items": items});
    Ok(response::json(StatusCode::OK, &list))
}
