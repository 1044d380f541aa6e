//! Redirects for the client to follow.

use http::StatusCode;
use lateen_xds::pb::envoy::config::route::v3 as proto;

use super::matchers::regex_rewrite;
use super::values::{Converted, enumeration, port};
use crate::error::At;
use crate::support::fields;
use crate::{PathRedirect, Redirect};

pub(super) fn redirect(at: &At<'_>, message: proto::RedirectAction) -> Converted<Redirect> {
    use proto::redirect_action::{PathRewriteSpecifier, RedirectResponseCode, SchemeRewriteSpecifier};
    fields!(at, message => proto::RedirectAction {
        used {
            host_redirect, port_redirect, response_code, strip_query, scheme_rewrite_specifier, path_rewrite_specifier,
        }
        inert {}
        rejected {}
        variants { path_rewrite = "paths by format" }
    });
    let scheme: Option<Box<str>> = match scheme_rewrite_specifier {
        Some(SchemeRewriteSpecifier::HttpsRedirect(true)) => Some("https".into()),
        Some(SchemeRewriteSpecifier::SchemeRedirect(scheme)) => Some(scheme.to_ascii_lowercase().into()),
        Some(SchemeRewriteSpecifier::HttpsRedirect(false)) | None => None,
    };
    let path = match path_rewrite_specifier {
        None => PathRedirect::Keep,
        Some(PathRewriteSpecifier::PathRedirect(path)) if path.is_empty() => PathRedirect::Keep,
        Some(PathRewriteSpecifier::PathRedirect(path)) => PathRedirect::Path(path.into()),
        Some(PathRewriteSpecifier::PrefixRewrite(prefix)) => PathRedirect::Prefix(prefix.into()),
        Some(PathRewriteSpecifier::RegexRewrite(rewrite)) => {
            PathRedirect::Regex(regex_rewrite(&at.field("regex_rewrite"), rewrite)?)
        }
        Some(PathRewriteSpecifier::PathRewrite(_)) => {
            return Err(at.error_in("path_rewrite", "not supported: paths by format"));
        }
    };
    Ok(Redirect {
        scheme,
        host: (!host_redirect.is_empty()).then(|| host_redirect.into()),
        port: (port_redirect != 0).then(|| port(at, "port_redirect", port_redirect)).transpose()?,
        path,
        status: match enumeration(at, "response_code", response_code)? {
            RedirectResponseCode::MovedPermanently => StatusCode::MOVED_PERMANENTLY,
            RedirectResponseCode::Found => StatusCode::FOUND,
            RedirectResponseCode::SeeOther => StatusCode::SEE_OTHER,
            RedirectResponseCode::TemporaryRedirect => StatusCode::TEMPORARY_REDIRECT,
            RedirectResponseCode::PermanentRedirect => StatusCode::PERMANENT_REDIRECT,
        },
        strip_query,
        keep_port: false,
    })
}
