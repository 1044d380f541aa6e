//! `pods/NAME/proxy` and `services/NAME/proxy`: plain HTTP passed on to a pod.

use std::sync::Arc;

use http::{HeaderMap, HeaderName, Request, Response, StatusCode, header};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use lateen_podstreams::Duplex;

use crate::{
    ServiceTarget,
    call::Call,
    dial,
    response::{Body, BoxError},
    state::Api,
    status::ApiError,
};

/// Headers that belong to one connection (RFC 9110 §7.6.1), and the client's credentials.
const NOT_PASSED: &[HeaderName] = &[
    header::CONNECTION,
    header::PROXY_AUTHENTICATE,
    header::PROXY_AUTHORIZATION,
    header::TE,
    header::TRAILER,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
    header::HOST,
    header::AUTHORIZATION,
];

/// Passes a request on; `rest` is the path behind `proxy`.
pub(crate) async fn pass(
    api: &Arc<Api>,
    call: &Call,
    rest: &str,
    request: Request<Incoming>,
) -> Result<Response<Body>, ApiError> {
    let query = request.uri().query().map(|query| format!("?{query}")).unwrap_or_default();
    if rest.is_empty() {
        // Relative links of the page need the slash.
        let location = format!("{}/{query}", request.uri().path());
        let mut response = crate::response::text(StatusCode::MOVED_PERMANENTLY, "");
        if let Ok(location) = location.parse() {
            response.headers_mut().insert(header::LOCATION, location);
        }
        return Ok(response);
    }
    let (stream, host) = connect(api, call).await?;
    let failed = |why: String| ApiError::unavailable(format!("error trying to reach service: {why}"));
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .map_err(|e| failed(e.to_string()))?;
    tokio::spawn(async move {
        // The exchange's own result tells what went wrong.
        let _ = connection.await;
    });
    let (parts, body) = request.into_parts();
    let mut passed = Request::builder().method(parts.method).uri(format!("{rest}{query}"));
    if let Some(headers) = passed.headers_mut() {
        copy(&parts.headers, headers);
        if let Ok(host) = host.parse() {
            headers.insert(header::HOST, host);
        }
    }
    let passed = passed.body(body).map_err(|e| ApiError::bad_request(e.to_string()))?;
    let (parts, body) = sender.send_request(passed).await.map_err(|e| failed(e.to_string()))?.into_parts();
    let mut response = Response::new(body.map_err(BoxError::from).boxed_unsync());
    *response.status_mut() = parts.status;
    copy(&parts.headers, response.headers_mut());
    Ok(response)
}

fn copy(from: &HeaderMap, to: &mut HeaderMap) {
    for (name, value) in from.iter().filter(|(name, _)| !NOT_PASSED.contains(name)) {
        to.append(name, value.clone());
    }
}

async fn connect(api: &Api, call: &Call) -> Result<(Box<dyn Duplex>, String), ApiError> {
    let (scheme, name, port) = dial::split_proxy_name(&call.name);
    if !matches!(scheme, "http" | "") {
        return Err(ApiError::bad_request(format!("proxying by {scheme:?} is not supported: use http")));
    }
    let unreachable =
        |e: std::io::Error| ApiError::unavailable(format!("error trying to reach service: {e}"));
    if call.def.is("", "services") {
        let target =
            ServiceTarget { namespace: call.namespace.clone(), name: name.to_owned(), port: port.to_owned() };
        if api.stored(&call.def, &call.namespace, name).is_none() {
            return Err(ApiError::not_found(&call.def, name));
        }
        let host = format!("{name}.{}.svc", call.namespace);
        let stream = dial::service(api, target).await.map_err(|e| match e.kind() {
            std::io::ErrorKind::NotFound => ApiError::unavailable(e.to_string()),
            _ => unreachable(e),
        })?;
        return Ok((stream, host));
    }
    let pod =
        api.stored(&call.def, &call.namespace, name).ok_or_else(|| ApiError::not_found(&call.def, name))?;
    let number = dial::pod_port(&pod, port)
        .ok_or_else(|| ApiError::bad_request(format!("pod {name:?} has no port {port:?}")))?;
    let address = pod["status"]["podIP"].as_str().unwrap_or("localhost").to_owned();
    Ok((dial::pod(api, &pod, number).await.map_err(unreachable)?, format!("{address}:{number}")))
}
