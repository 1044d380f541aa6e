//! Acting as somebody else (`kubectl --as`), for those who may.
//! <https://kubernetes.io/docs/reference/access-authn-authz/authentication/#user-impersonation>

use http::HeaderMap;

use crate::{
    authn::User,
    rbac::{self, Attributes},
    state::Api,
    status::ApiError,
};

/// The user a request is to be handled for: whom its headers name, or who sent it.
///
/// # Errors
/// 400 for headers that name groups but no user; 403 when the sender may not.
pub(crate) fn acting_as(api: &Api, sender: User, headers: &HeaderMap) -> Result<User, ApiError> {
    let texts = |name: &str| -> Vec<String> {
        headers.get_all(name).iter().filter_map(|value| value.to_str().ok()).map(str::to_owned).collect()
    };
    let (names, mut groups) = (texts("impersonate-user"), texts("impersonate-group"));
    let extra: Vec<(String, String)> = headers
        .iter()
        .filter_map(|(name, value)| {
            let key = name.as_str().strip_prefix("impersonate-extra-")?;
            Some((crate::route::decode(key), value.to_str().ok()?.to_owned()))
        })
        .collect();
    let uid = texts("impersonate-uid").pop().unwrap_or_default();
    let Some(name) = names.into_iter().next().filter(|name| !name.is_empty()) else {
        if groups.is_empty() && extra.is_empty() && uid.is_empty() {
            return Ok(sender);
        }
        return Err(ApiError::bad_request(
            "groups, uid and extra can be impersonated with a user only (Impersonate-User)",
        ));
    };
    let may = |group: &str, resource: &str, subresource: &str, namespace: &str, name: &str| {
        let [group, resource, subresource, namespace, name] =
            [group, resource, subresource, namespace, name].map(str::to_owned);
        let asked = Attributes {
            verb: "impersonate".into(),
            group,
            resource,
            subresource,
            namespace,
            name,
            path: None,
        };
        rbac::authorize(api, &sender, &asked)
    };
    let account = name.strip_prefix("system:serviceaccount:").and_then(|rest| rest.split_once(':'));
    match account {
        Some((namespace, account)) => may("", "serviceaccounts", "", namespace, account)?,
        None => may("", "users", "", "", &name)?,
    }
    groups.iter().try_for_each(|group| may("", "groups", "", "", group))?;
    let authentication = "authentication.k8s.io";
    extra.iter().try_for_each(|(key, value)| may(authentication, "userextras", key, "", value))?;
    if !uid.is_empty() {
        may(authentication, "uids", "", "", &uid)?;
    }
    if let (Some((namespace, _)), true) = (account, groups.is_empty()) {
        groups = vec!["system:serviceaccounts".to_owned(), format!("system:serviceaccounts:{namespace}")];
    }
    let everybody = ["system:authenticated", "system:unauthenticated"];
    if name != "system:anonymous" && !groups.iter().any(|group| everybody.contains(&group.as_str())) {
        groups.push(everybody[0].to_owned());
    }
    Ok(User { name, uid, groups, extra })
}
