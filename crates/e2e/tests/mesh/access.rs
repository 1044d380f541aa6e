//! AuthorizationPolicies on traffic (S7): who is refused, in which words, and what the access log says.

use crate::OnMesh;
use crate::echo::{self, SOON, ask, becomes, policy};
use anyhow::{Result, ensure};
use lateen_e2e::{Mesh, eventually};

pub(crate) const TRIALS: &[OnMesh] = &[("policies_decide", policies_decide)];

fn policies_decide(mesh: &Mesh) -> Result<()> {
    echo::up(mesh)?;
    let get = "http://httpbin:8000/get";
    becomes(mesh, get, " 200")?;

    // The course's, which refuses everything in the namespace.
    policy(mesh, "deny-all", "{}")?;
    becomes(mesh, get, "RBAC: access denied 403")?;
    becomes(mesh, "http://echo/", "RBAC: access denied 403")?;
    let denied = "rbac_access_denied_matched_policy[none]";
    eventually("the access log names the reason", SOON, || {
        let log = mesh.kubectl(&["logs", "-l", "app=httpbin", "-c", "istio-proxy", "--tail=20"])?;
        ensure!(log.contains(denied), "{log}");
        Ok(())
    })?;

    let rule = "to: [{ operation: { methods: [GET], paths: ['/get*', '/status/{*}'] } }]";
    let selector = "selector: { matchLabels: { app: httpbin } }";
    policy(mesh, "read", &format!("{{ {selector}, action: ALLOW, rules: [{{ {rule} }}] }}"))?;
    becomes(mesh, get, " 200")?;
    becomes(mesh, "http://httpbin:8000/status/204", " 204")?;
    becomes(mesh, "-X POST http://httpbin:8000/get", "RBAC: access denied 403")?;
    becomes(mesh, "http://httpbin:8000/headers", "RBAC: access denied 403")?;
    becomes(mesh, "http://echo/", "RBAC: access denied 403")?;

    // Denial goes before permission.
    let rule = "when: [{ key: 'request.headers[x-user]', values: [mallory] }]";
    policy(mesh, "no-mallory", &format!("{{ {selector}, action: DENY, rules: [{{ {rule} }}] }}"))?;
    becomes(mesh, &format!("-H 'x-user: mallory' {get}"), "RBAC: access denied 403")?;
    ensure!(ask(mesh, &format!("-H 'x-user: alice' {get}"))?.ends_with(" 200"), "others still pass");

    mesh.kubectl(&["delete", "authorizationpolicy", "--all", "-n", "default"])?;
    becomes(mesh, "http://httpbin:8000/headers", " 200")?;
    becomes(mesh, "http://echo/", " 200")?;
    echo::down(mesh, "")
}
