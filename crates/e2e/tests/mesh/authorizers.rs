//! Who may do what, decided elsewhere and in spite of tricks: the course's access-control lab, external authorizers (S8), paths and
//! headers that are written otherwise (S11).

use crate::OnMesh;
use crate::echo::{self, SOON, ask, becomes, policy};
use anyhow::{Result, ensure};
use lateen_e2e::{Mesh, eventually, web::Ask};

pub(crate) const TRIALS: &[OnMesh] = &[
    ("access_control_lab", access_control_lab),
    ("others_decide", others_decide),
    ("paths_written_otherwise", paths_written_otherwise),
];

const DENIED: &str = "RBAC: access denied";

/// Part 1 of the lab, sidecar mode, command by command.
fn access_control_lab(mesh: &Mesh) -> Result<()> {
    let lab = |script: &str| mesh.lab("access-control", script);
    lab("kubectl apply -f gateway.yaml")?;
    lab("kubectl apply -f web-frontend.yaml")?;
    lab("kubectl apply -f customers.yaml")?;
    lab("kubectl wait --for=condition=Available deploy --all --timeout=60s")?;
    // `minikube tunnel` gives the load balancer its address; here it has one.
    let curl = format!("curl -s -H \"Host: customers.default.svc.cluster.local\" http://{}", mesh.gateway()?);
    let shows = |what: &str, script: &str| {
        eventually(&format!("{script} shows {what}"), SOON, || {
            let said = lab(&format!("{script} || true"))?;
            ensure!(said.contains(what), "{said}");
            Ok(())
        })
    };
    shows("Customers", &curl)?;
    lab("kubectl apply -f deny-all.yaml")?;
    shows(DENIED, &curl)?;
    lab("kubectl run curl --image=curlimages/curl:latest --command -- /bin/sh -c \"sleep infinity\"")?;
    lab("kubectl wait --for=condition=Ready pod/curl --timeout=60s")?;
    let inside = "kubectl exec -it curl -- curl -s customers";
    shows(DENIED, inside)?;
    lab("kubectl apply -f allow-ingress-frontend.yaml")?;
    lab("kubectl apply -f allow-web-frontend-customers.yaml")?;
    shows("Customers", &curl)?;
    eventually("the page has its customers", SOON, || {
        let page = Ask::get(format!("http://{}/", mesh.gateway()?)).send()?;
        ensure!(page.status == 200 && page.body.contains("<td"), "{page:?}");
        Ok(())
    })?;
    shows(DENIED, inside)?;
    shows(DENIED, "kubectl exec -it curl -- curl -s web-frontend")?;
    lab("kubectl delete authorizationpolicy --all
         kubectl delete gateway gateway
         kubectl delete virtualservice web-frontend customers
         kubectl delete deploy web-frontend customers-v1
         kubectl delete service web-frontend customers
         kubectl delete serviceaccount web-frontend customers-v1
         kubectl delete pod curl --grace-period=1")
    .map(drop)
}

fn echo(mesh: &Mesh) -> Result<()> {
    echo::up(mesh)?;
    becomes(mesh, "http://httpbin:8000/get", " 200")
}

/// Mesh config as it is, and more for as long as this lives.
pub(crate) struct MeshConfig<'a> {
    mesh: &'a Mesh,
    before: String,
}

impl<'a> MeshConfig<'a> {
    pub(crate) fn of(mesh: &'a Mesh) -> Result<Self> {
        let show = ["get", "configmap", "istio", "-n", "istio-system", "-o", "jsonpath={.data.mesh}"];
        Ok(Self { mesh, before: mesh.kubectl(&show)? })
    }

    /// As it was.
    pub(crate) fn before(&self) -> &str {
        &self.before
    }

    pub(crate) fn set(&self, text: &str) -> Result<()> {
        let patch = serde_json::json!({ "data": { "mesh": text } }).to_string();
        self.mesh
            .kubectl(&["patch", "configmap", "istio", "-n", "istio-system", "--type=merge", "-p", &patch])
            .map(drop)
    }

    pub(crate) fn add(&self, text: &str) -> Result<()> {
        self.set(&format!("{}\n{text}", self.before))
    }
}

impl Drop for MeshConfig<'_> {
    fn drop(&mut self) {
        // A trial that has failed leaves no mesh behind.
        let _ = self.set(&self.before.clone());
    }
}

const PROVIDERS: &str = "extensionProviders:
- name: by-grpc
  envoyExtAuthzGrpc: { service: ext-authz.default.svc.cluster.local, port: 9000 }
- name: by-http
  envoyExtAuthzHttp:
    service: ext-authz.default.svc.cluster.local
    port: 8000
    includeRequestHeadersInCheck: [x-ext-authz]
    headersToUpstreamOnAllow: [x-ext-authz-check-result]
    headersToDownstreamOnDeny: [x-ext-authz-check-result]
- name: nobody
  envoyExtAuthzHttp: { service: refused.default.svc.cluster.local, port: 80, statusOnError: '503' }
- name: nobody-open
  envoyExtAuthzHttp: { service: refused.default.svc.cluster.local, port: 80, failOpen: true }
";

fn others_decide(mesh: &Mesh) -> Result<()> {
    let config = MeshConfig::of(mesh)?;
    mesh.lab("", &format!("kubectl apply -f {}", crate_sample("ext-authz/ext-authz.yaml")))?;
    echo(mesh)?;
    let selector = "selector: { matchLabels: { app: httpbin } }";
    let custom = |provider: &str| {
        let rule = "to: [{ operation: { paths: ['/headers'] } }]";
        policy(
            mesh,
            "ask",
            &format!(
                "{{ {selector}, action: CUSTOM, provider: {{ name: {provider} }}, rules: [{{ {rule} }}] }}"
            ),
        )
    };
    // A provider that there is not yet: nothing passes.
    custom("by-grpc")?;
    becomes(mesh, "http://httpbin:8000/get", &format!("{DENIED} 403"))?;
    config.add(PROVIDERS)?;
    becomes(mesh, "http://httpbin:8000/get", " 200")?;
    let words = "denied by ext_authz for not found header `x-ext-authz: allow` in the request 403";
    for provider in ["by-grpc", "by-http"] {
        custom(provider)?;
        becomes(mesh, "http://httpbin:8000/headers", words)?;
        let denied = ask(mesh, "-i -H 'x-ext-authz: deny' http://httpbin:8000/headers")?;
        ensure!(denied.contains("x-ext-authz-check-result: denied"), "{denied}");
        let allowed = ask(mesh, "-H 'x-ext-authz: allow' http://httpbin:8000/headers")?;
        ensure!(
            allowed.ends_with(" 200")
                && allowed
                    .to_lowercase()
                    .replace(' ', "")
                    .contains("\"x-ext-authz-check-result\":\"allowed\""),
            "{provider}: {allowed}"
        );
        becomes(mesh, "http://httpbin:8000/get", " 200")?;
    }
    eventually("the log says who refused", SOON, || {
        let log = mesh.kubectl(&["logs", "-l", "app=httpbin", "-c", "istio-proxy", "--tail=50"])?;
        ensure!(log.contains(" 403 UAEX ext_authz_denied"), "{log}");
        Ok(())
    })?;
    // What an authorizer allows, a policy may still refuse.
    policy(
        mesh,
        "refuse",
        &format!(
            "{{ {selector}, action: DENY, rules: [{{ to: [{{ operation: {{ methods: [GET] }} }}] }}] }}"
        ),
    )?;
    becomes(mesh, "-H 'x-ext-authz: allow' http://httpbin:8000/headers", &format!("{DENIED} 403"))?;
    mesh.kubectl(&["delete", "authorizationpolicy", "refuse", "-n", "default"])?;
    custom("nobody")?;
    becomes(mesh, "-H 'x-ext-authz: allow' http://httpbin:8000/headers", " 503")?;
    custom("nobody-open")?;
    becomes(mesh, "http://httpbin:8000/headers", " 200")?;
    // Connections: the caller's account decides, which is not the sample's.
    let tcp = "selector: { matchLabels: { app: echo } }, action: CUSTOM, provider: { name: by-grpc }, rules: [{ to: [{ operation: { ports: ['9000'] } }] }]";
    policy(mesh, "ask-tcp", &format!("{{ {tcp} }}"))?;
    let talk = || {
        let say = "bash -c 'exec 3<>/dev/tcp/echo/9000; echo hello >&3; timeout 3 head -n1 <&3' || true";
        echo::run(mesh, say)
    };
    eventually("the connection ends", SOON, || {
        let said = talk()?;
        ensure!(!said.contains("hello"), "{said}");
        Ok(())
    })?;
    mesh.kubectl(&["delete", "authorizationpolicy", "ask-tcp", "-n", "default"])?;
    eventually("the connection passes", SOON, || {
        let said = talk()?;
        ensure!(said.contains("hello"), "{said}");
        Ok(())
    })?;
    drop(config);
    echo::down(mesh, "authorizationpolicy")
}

fn crate_sample(path: &str) -> String {
    lateen_e2e::mesh::repository().join("samples").join(path).display().to_string()
}

/// Ways to write `/admin/x`, and by which normalisation a policy about `/admin*` sees through them: from none to all.
const TRICKS: [(&str, usize); 12] = [
    ("/admin/x", 0),
    ("/./admin/x", 1),
    ("/a/../admin/x", 1),
    ("/%61dmin/x", 1),
    ("/admin%2e", 0),
    ("/a/..%5cadmin/x", 3),
    ("/a\\..\\admin/x", 1),
    ("//admin/x", 2),
    ("///admin//x", 2),
    ("/a/..%2fadmin/x", 3),
    ("/a/..%2Fadmin/x", 3),
    ("/%2fadmin/x", 3),
];

fn paths_written_otherwise(mesh: &Mesh) -> Result<()> {
    let config = MeshConfig::of(mesh)?;
    echo(mesh)?;
    let selector = "selector: { matchLabels: { app: echo } }";
    let rule = "to: [{ operation: { paths: ['/admin*'] } }]";
    policy(mesh, "no-admin", &format!("{{ {selector}, action: DENY, rules: [{{ {rule} }}] }}"))?;
    becomes(mesh, "http://echo/admin", &format!("{DENIED} 403"))?;
    let degrees = ["NONE", "BASE", "MERGE_SLASHES", "DECODE_AND_MERGE_SLASHES"];
    for (degree, name) in degrees.into_iter().enumerate() {
        config.add(&format!("pathNormalization: {{ normalization: {name} }}"))?;
        for (path, seen_from) in TRICKS {
            let refused = degree >= seen_from;
            let wanted = if refused { " 403" } else { " 200" };
            becomes(mesh, &format!("'http://echo{path}'"), wanted)
                .map_err(|error| error.context(format!("{path} with {name}")))?;
        }
    }
    drop(config);
    echo::down(mesh, "authorizationpolicy")
}
