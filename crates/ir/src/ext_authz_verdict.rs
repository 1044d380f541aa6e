//! What an external authorizer's answer means for the request.

use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::uri::PathAndQuery;
use http::{Method, StatusCode};
use lateen_xds::pb::envoy::config::core::v3 as core;
use lateen_xds::pb::envoy::service::auth::v3 as auth;
use serde_json::{Map, Value as Json};

use crate::convert::struct_value;
use crate::ext_authz::{AuthzService, ExtAuthz, HttpAuthz};
use crate::{HeaderKey, HeaderMutationKind, HeaderMutationVerdict};

const HEADERS_TO_REMOVE: HeaderName = HeaderName::from_static("x-envoy-auth-headers-to-remove");

/// What becomes of the request.
#[derive(Clone, Debug, PartialEq)]
pub enum AuthzVerdict {
    /// It passes, changed.
    Allowed(Box<AuthzChanges>),
    /// It does not.
    Denied(Box<AuthzDenial>),
    /// The authorizer could not say; its own words for that, if it has any.
    Failed(Option<Box<AuthzDenial>>),
    /// It has something that can't be a header, or may not be changed.
    Invalid {
        /// It was to refuse the request.
        denial: bool,
    },
}

/// What changes in a request that passes.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct AuthzChanges {
    /// Headers of the request, in order.
    pub request: Vec<HeaderChange>,
    /// Headers that the request loses.
    pub remove: Vec<HeaderName>,
    /// Headers of the answer to it, in order.
    pub response: Vec<HeaderChange>,
    /// Query parameters it gets, in place of those of the same name.
    pub query_set: Vec<(String, String)>,
    /// Query parameters it loses.
    pub query_remove: Vec<String>,
    /// What is noted of it.
    pub metadata: Map<String, Json>,
    /// Whether its route may be another now.
    pub reroutes: bool,
}

/// How a header changes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeaderChange {
    /// Which; pseudo headers only of requests.
    pub key: HeaderKey,
    /// Its value.
    pub value: HeaderValue,
    /// How that goes with what is there.
    pub action: ChangeAction,
}

/// See [`HeaderChange`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChangeAction {
    /// In its place.
    Set,
    /// Beside it.
    Add,
    /// Behind it, with a comma between; where there is nothing, not at all.
    Join,
    /// Only where there is nothing.
    AddIfAbsent,
    /// Only where there is something, in its place.
    SetIfPresent,
}

/// A refusal in the authorizer's words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuthzDenial {
    /// `None`: it does not say.
    pub status: Option<StatusCode>,
    /// Headers of the answer.
    pub headers: Vec<(HeaderName, HeaderValue)>,
    /// Text of the answer.
    pub body: String,
    /// What is noted of the request.
    pub metadata: Map<String, Json>,
}

/// A header that can't be one, or that answers may not change.
struct Unsayable;

/// Of a request's header only the old flag counts, in Envoy as well.
fn request_action(option: &core::HeaderValueOption) -> ChangeAction {
    #[allow(deprecated)]
    let append = option.append.as_ref().is_some_and(|append| append.value);
    if append { ChangeAction::Join } else { ChangeAction::Set }
}

fn response_action(option: &core::HeaderValueOption) -> ChangeAction {
    use core::header_value_option::HeaderAppendAction;
    #[allow(deprecated)]
    if let Some(append) = &option.append {
        return if append.value { ChangeAction::Add } else { ChangeAction::Set };
    }
    match HeaderAppendAction::try_from(option.append_action) {
        Ok(HeaderAppendAction::AppendIfExistsOrAdd) => ChangeAction::Add,
        Ok(HeaderAppendAction::AddIfAbsent) => ChangeAction::AddIfAbsent,
        Ok(HeaderAppendAction::OverwriteIfExists) => ChangeAction::SetIfPresent,
        Ok(HeaderAppendAction::OverwriteIfExistsOrAdd) | Err(_) => ChangeAction::Set,
    }
}

fn key(name: &str) -> Result<HeaderKey, Unsayable> {
    Ok(match name.to_ascii_lowercase().as_str() {
        ":path" => HeaderKey::Path,
        ":method" => HeaderKey::Method,
        ":scheme" => HeaderKey::Scheme,
        ":authority" | "host" => HeaderKey::Authority,
        name => HeaderKey::Named(HeaderName::from_bytes(name.as_bytes()).map_err(|_| Unsayable)?),
    })
}

fn change(
    option: &core::HeaderValueOption,
    action: fn(&core::HeaderValueOption) -> ChangeAction,
) -> Result<HeaderChange, Unsayable> {
    let header = option.header.as_ref().ok_or(Unsayable)?;
    let key = key(&header.key)?;
    let value = HeaderValue::from_str(&header.value).map_err(|_| Unsayable)?;
    let is_sayable = match &key {
        HeaderKey::Path => PathAndQuery::try_from(value.as_bytes()).is_ok(),
        HeaderKey::Method => Method::from_bytes(value.as_bytes()).is_ok(),
        _ => true,
    };
    if is_sayable { Ok(HeaderChange { key, value, action: action(option) }) } else { Err(Unsayable) }
}

/// What can be said; `Err`: something can't, and nothing may be left out.
fn sayable<T>(all: impl Iterator<Item = Result<T, Unsayable>>, validate: bool) -> Result<Vec<T>, Unsayable> {
    if validate { all.collect() } else { Ok(all.filter_map(Result::ok).collect()) }
}

impl ExtAuthz {
    /// Whether an answer may do this to a header of the request.
    fn permits(&self, kind: HeaderMutationKind, name: &str, value: &str) -> Result<bool, Unsayable> {
        let Some(rules) = &self.mutation_rules else { return Ok(true) };
        match rules.judge(kind, &name.to_ascii_lowercase(), value) {
            HeaderMutationVerdict::Made => Ok(true),
            HeaderMutationVerdict::LeftOut => Ok(false),
            HeaderMutationVerdict::Fails => Err(Unsayable),
        }
    }

    /// Names that a request can lose.
    fn removable(&self, names: &[String]) -> Result<Vec<HeaderName>, Unsayable> {
        let mut removable = Vec::new();
        for name in names {
            let fixed = name.starts_with(':') || name.eq_ignore_ascii_case("host");
            if self.permits(HeaderMutationKind::Remove, name, "")? && !fixed {
                removable.extend(HeaderName::from_bytes(name.as_bytes()));
            }
        }
        Ok(removable)
    }

    /// What the answer of a gRPC authorizer means.
    pub fn grpc_verdict(&self, answer: auth::CheckResponse) -> AuthzVerdict {
        use auth::check_response::HttpResponse;
        let denial = matches!(answer.http_response, Some(HttpResponse::DeniedResponse(_)))
            && answer.status.as_ref().is_some_and(|status| status.code != 0);
        self.of_grpc(answer).unwrap_or(AuthzVerdict::Invalid { denial })
    }

    fn of_grpc(&self, answer: auth::CheckResponse) -> Result<AuthzVerdict, Unsayable> {
        use auth::check_response::HttpResponse;
        let auth::CheckResponse { status, http_response, dynamic_metadata } = answer;
        let allowed = status.is_none_or(|status| status.code == 0);
        let mut metadata = dynamic_metadata.map(struct_value);
        #[allow(deprecated)]
        if let Some(HttpResponse::OkResponse(auth::OkHttpResponse { dynamic_metadata: Some(own), .. })) =
            &http_response
        {
            metadata = Some(struct_value(own.clone()));
        }
        let metadata = match metadata {
            Some(Json::Object(members)) => members,
            _ => Map::new(),
        };
        match http_response {
            Some(HttpResponse::OkResponse(ok)) if allowed => self.changes(ok, metadata),
            _ if allowed => {
                Ok(AuthzVerdict::Allowed(Box::new(AuthzChanges { metadata, ..AuthzChanges::default() })))
            }
            Some(HttpResponse::ErrorResponse(error)) => {
                let denial = self.denial(error, metadata)?;
                Ok(AuthzVerdict::Failed(Some(Box::new(denial))))
            }
            Some(HttpResponse::DeniedResponse(denied)) => {
                let mut denial = self.denial(denied, metadata)?;
                denial.status = denial.status.or(Some(StatusCode::FORBIDDEN));
                Ok(AuthzVerdict::Denied(Box::new(denial)))
            }
            Some(HttpResponse::OkResponse(_)) | None => Ok(AuthzVerdict::Denied(Box::new(AuthzDenial {
                status: Some(StatusCode::FORBIDDEN),
                headers: Vec::new(),
                body: String::new(),
                metadata,
            }))),
        }
    }

    fn changes(
        &self,
        ok: auth::OkHttpResponse,
        metadata: Map<String, Json>,
    ) -> Result<AuthzVerdict, Unsayable> {
        use ChangeAction::{Add, AddIfAbsent, Join, Set, SetIfPresent};
        let validate = self.validate_mutations;
        let changes = |list: &[core::HeaderValueOption], action, order: &[ChangeAction]| {
            let mut all = sayable(list.iter().map(|option| change(option, action)), validate)?;
            all.sort_by_key(|change| order.iter().position(|action| *action == change.action));
            Ok(all)
        };
        let is_encoded =
            |text: &str| text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.~".contains(&byte));
        let mut query_set = Vec::new();
        for parameter in ok.query_parameters_to_set {
            let core::QueryParameter { key, value } = parameter;
            if validate && !(is_encoded(&key) && is_encoded(&value)) {
                return Err(Unsayable);
            }
            query_set.push((key, value));
        }
        let order = [Add, Set, AddIfAbsent, SetIfPresent];
        let mut response = changes(&ok.response_headers_to_add, response_action, &order)?;
        response.retain(|change| matches!(change.key, HeaderKey::Named(_)));
        let mut permitted = Vec::with_capacity(ok.headers.len());
        for option in &ok.headers {
            let kind = match request_action(option) {
                Join => HeaderMutationKind::Append,
                _ => HeaderMutationKind::Set,
            };
            let header = option.header.clone().unwrap_or_default();
            if self.permits(kind, &header.key, &header.value)? {
                permitted.push(option.clone());
            }
        }
        let request = changes(&permitted, request_action, &[Set, Join])?;
        let reroutes = !(ok.headers.is_empty()
            && ok.headers_to_remove.is_empty()
            && query_set.is_empty()
            && ok.query_parameters_to_remove.is_empty());
        Ok(AuthzVerdict::Allowed(Box::new(AuthzChanges {
            request,
            remove: self.removable(&ok.headers_to_remove)?,
            response,
            query_set,
            query_remove: ok.query_parameters_to_remove,
            metadata,
            reroutes,
        })))
    }

    fn denial(
        &self,
        denied: auth::DeniedHttpResponse,
        metadata: Map<String, Json>,
    ) -> Result<AuthzDenial, Unsayable> {
        let named = |option: &core::HeaderValueOption| match change(option, request_action)? {
            HeaderChange { key: HeaderKey::Named(name), value, .. } => Ok((name, value)),
            _ => Err(Unsayable),
        };
        // Nothing is there yet to append to.
        let headers = denied.headers.iter().filter(|option| request_action(option) == ChangeAction::Set);
        Ok(AuthzDenial {
            status: denied
                .status
                .and_then(|status| u16::try_from(status.code).ok())
                .filter(|status| *status > 0)
                .and_then(|status| StatusCode::from_u16(status).ok()),
            // What is only written down is not looked at.
            headers: sayable(headers.map(named), self.validate_mutations && !self.shadow)?,
            body: denied.body,
            metadata,
        })
    }
}

impl ExtAuthz {
    /// What the answer of an HTTP authorizer means: 200 allows, a 5xx says nothing, all else refuses.
    pub fn http_verdict(
        &self,
        service: &HttpAuthz,
        status: StatusCode,
        headers: HeaderMap,
        body: &[u8],
    ) -> AuthzVerdict {
        self.of_http(service, status, headers, body).unwrap_or(AuthzVerdict::Invalid { denial: false })
    }

    fn of_http(
        &self,
        service: &HttpAuthz,
        status: StatusCode,
        mut headers: HeaderMap,
        body: &[u8],
    ) -> Result<AuthzVerdict, Unsayable> {
        if status.is_server_error() {
            return Ok(AuthzVerdict::Failed(None));
        }
        let removed = headers.get_all(HEADERS_TO_REMOVE).iter().filter_map(|value| value.to_str().ok());
        let removed: Vec<String> = removed
            .flat_map(|names| names.split(','))
            .map(|name| name.trim().to_owned())
            .filter(|name| !name.is_empty())
            .collect();
        headers.remove(HEADERS_TO_REMOVE);
        if status == StatusCode::NO_CONTENT {
            headers.remove(header::CONTENT_LENGTH);
        }
        let noted = headers.iter().filter(|(name, _)| service.metadata_headers.matches(name.as_str()));
        let metadata = noted
            .map(|(name, value)| {
                (name.as_str().to_owned(), String::from_utf8_lossy(value.as_bytes()).into_owned().into())
            })
            .collect();
        if status != StatusCode::OK {
            let passes = |name: &HeaderName| match &service.client_headers {
                None => *name != header::HOST,
                Some(list) => {
                    let always = [header::WWW_AUTHENTICATE, header::LOCATION, header::CONTENT_LENGTH];
                    list.matches(name.as_str()) || always.contains(name)
                }
            };
            let passing = headers.iter().filter(|(name, _)| passes(name));
            return Ok(AuthzVerdict::Denied(Box::new(AuthzDenial {
                status: Some(status),
                headers: passing.map(|(name, value)| (name.clone(), value.clone())).collect(),
                body: String::from_utf8_lossy(body).into_owned(),
                metadata,
            })));
        }
        let change = |name: &HeaderName, value: &HeaderValue, action| HeaderChange {
            key: HeaderKey::Named(name.clone()),
            value: value.clone(),
            action,
        };
        let matching = |list: &crate::NameMatchers, action| {
            let found = headers.iter().filter(|(name, _)| list.matches(name.as_str()));
            found.map(|(name, value)| change(name, value, action)).collect::<Vec<_>>()
        };
        let mut wanted = matching(&service.upstream_headers, ChangeAction::Set);
        let reroutes = !wanted.is_empty() || !removed.is_empty();
        wanted.extend(matching(&service.upstream_headers_to_append, ChangeAction::Add));
        let mut request = Vec::with_capacity(wanted.len());
        for change in wanted {
            let HeaderKey::Named(name) = &change.key else { continue };
            let value = String::from_utf8_lossy(change.value.as_bytes());
            if self.permits(HeaderMutationKind::Set, name.as_str(), &value)? {
                request.push(change);
            }
        }
        Ok(AuthzVerdict::Allowed(Box::new(AuthzChanges {
            request,
            remove: self.removable(&removed)?,
            response: matching(&service.client_headers_on_success, ChangeAction::Add),
            metadata,
            reroutes,
            ..AuthzChanges::default()
        })))
    }
}

/// A decision that is not carried out: Envoy's message of this name, by the filter's name and `.shadow` in `%FILTER_STATE%`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShadowDecision {
    result: &'static str,
    status: StatusCode,
    headers: Vec<(String, String)>,
}

impl ShadowDecision {
    /// The request passes.
    pub fn allowed() -> Self {
        Self { result: "OK", status: StatusCode::OK, headers: Vec::new() }
    }

    /// It would be refused so, by an answer of this service.
    pub fn denied(service: &AuthzService, status: StatusCode, denial: &[(HeaderName, HeaderValue)]) -> Self {
        let text = |value: &HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
        // An HTTP server's status is a header to Envoy.
        let of_status = matches!(service, AuthzService::Http(_))
            .then(|| (":status".to_owned(), status.as_str().to_owned()));
        let named = denial.iter().map(|(name, value)| (name.as_str().to_owned(), text(value)));
        Self { result: "DENIED", status, headers: of_status.into_iter().chain(named).collect() }
    }

    /// It would be refused although nobody has asked for that.
    pub fn denied_unasked(status: StatusCode) -> Self {
        Self { result: "DENIED", status, headers: Vec::new() }
    }

    /// The authorizer could not say.
    pub fn failed(status: StatusCode) -> Self {
        Self { result: "ERROR", status, headers: Vec::new() }
    }

    /// As JSON, with the names of fields as the message has them or in camel case.
    pub fn json(&self, camel: bool) -> String {
        let [result, status, headers] = if camel {
            ["checkResult", "statusCode", "responseHeaders"]
        } else {
            ["check_result", "status_code", "response_headers"]
        };
        let mut json = Map::new();
        json.insert(result.to_owned(), self.result.into());
        json.insert(status.to_owned(), self.status.as_u16().into());
        if !self.headers.is_empty() {
            let header = |(key, value): &(String, String)| serde_json::json!({ "key": key, "value": value });
            json.insert(headers.to_owned(), self.headers.iter().map(header).collect());
        }
        Json::Object(json).to_string()
    }
}

impl HeaderChange {
    /// Carries it out on headers; pseudo headers are none.
    pub fn apply(&self, headers: &mut HeaderMap) {
        let HeaderKey::Named(name) = &self.key else { return };
        let value = self.value.clone();
        match (self.action, headers.get(name)) {
            (ChangeAction::Set, _) | (ChangeAction::SetIfPresent, Some(_)) => {
                headers.insert(name, value);
            }
            (ChangeAction::Add, _) | (ChangeAction::AddIfAbsent, None) => {
                headers.append(name, value);
            }
            (ChangeAction::Join, Some(there)) => {
                let joined = [there.as_bytes(), b",", value.as_bytes()].concat();
                if let Ok(joined) = HeaderValue::from_bytes(&joined) {
                    headers.insert(name, joined);
                }
            }
            (ChangeAction::AddIfAbsent, Some(_))
            | (ChangeAction::SetIfPresent | ChangeAction::Join, None) => {}
        }
    }
}

impl AuthzChanges {
    /// The path with the query that the answer wants; `None`: as it is. Parameters are sorted then, as Envoy does.
    pub fn path(&self, path: &str) -> Option<String> {
        if self.query_set.is_empty() && self.query_remove.is_empty() {
            return None;
        }
        let (path, query) = path.split_once('?').unwrap_or((path, ""));
        let mut parameters: std::collections::BTreeMap<&str, Vec<&str>> = Default::default();
        for parameter in query.split('&').filter(|parameter| !parameter.is_empty()) {
            let (name, value) = parameter.split_once('=').unwrap_or((parameter, ""));
            parameters.entry(name).or_default().push(value);
        }
        for (name, value) in &self.query_set {
            parameters.insert(name, vec![value]);
        }
        for name in &self.query_remove {
            parameters.remove(&**name);
        }
        let pairs = parameters
            .iter()
            .flat_map(|(name, values)| values.iter().map(move |value| format!("{name}={value}")));
        let query = pairs.collect::<Vec<_>>().join("&");
        Some(if query.is_empty() { path.to_owned() } else { format!("{path}?{query}") })
    }
}
