//! What `lateen why` says of requests is what becomes of them: answers, and the rule named in the access log (D8, S7); what
//! policies for Gateways do (S6, S7), and `x authz check`.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use lateen_e2e::web::Ask;
use lateen_e2e::{Mesh, eventually};
use serde_json::{Value, json};

use crate::OnMesh;

pub(crate) const TRIALS: &[OnMesh] =
    &[("why_says_what_happens", why_says_what_happens), ("policies_of_gateways", policies_of_gateways)];

const SOON: Duration = Duration::from_secs(40);

/// A request of the client's, and what is special about it.
struct Case {
    method: &'static str,
    url: &'static str,
    headers: &'static [&'static str],
}

const fn get(url: &'static str) -> Case {
    Case { method: "GET", url, headers: &[] }
}

impl Case {
    /// What curl gets: the status, 0 where the connection breaks.
    fn sent(&self, mesh: &Mesh, client: &str) -> Result<u16> {
        let headers: String = self.headers.iter().map(|header| format!("-H '{header}' ")).collect();
        let curl = format!(
            "curl -s -o /dev/null --path-as-is -m 8 -w '%{{http_code}}' -X {} {headers}{} || true",
            self.method, self.url
        );
        let said = mesh.kubectl(&["exec", client, "-c", "client", "--", "sh", "-c", &curl])?;
        said.trim().parse().with_context(|| format!("{}: {said:?}", self.url))
    }

    /// What `why` says.
    fn asked(&self, mesh: &Mesh, client: &str) -> Result<Value> {
        let mut args = vec!["why", "--from", client, "--to", self.url, "-X", self.method, "-o", "json"];
        self.headers.iter().for_each(|header| args.extend(["-H", header]));
        Ok(serde_json::from_str(&mesh.lateen(&args)?)?)
    }

    /// They agree.
    fn agrees(&self, mesh: &Mesh, client: &str) -> Result<Value> {
        let what = format!("{client}: {} {} {:?}", self.method, self.url, self.headers);
        let mut told = Value::Null;
        eventually(&format!("{what}: why says what happens"), SOON, || {
            let status = self.sent(mesh, client)?;
            let story = self.asked(mesh, client)?;
            let answer = &story["answer"];
            let passes = answer["passes"].as_str().unwrap_or_default();
            let said = answer["status"].as_u64();
            let agree = match passes {
                // The application's own answer is not foretold, nor is a status that is the application's.
                "yes" => said
                    .map_or(status != 0 && status != 403 && status != 503, |said| said == u64::from(status)),
                "no" => said.unwrap_or(0) == u64::from(status),
                _ => false,
            };
            ensure!(agree, "{status}, and: {answer:#}");
            told = story;
            Ok(())
        })?;
        Ok(told)
    }

    /// They agree, and the access log of the proxy that decides has the words that `why` has.
    fn is_logged(&self, mesh: &Mesh, client: &str) -> Result<()> {
        let story = self.agrees(mesh, client)?;
        let answer = &story["answer"];
        let (details, pod) = (text(&answer["details"]), text(&answer["decidedAt"]));
        ensure!(!details.is_empty() && !pod.is_empty(), "{}: {answer:#}", self.url);
        let (name, namespace) = pod.rsplit_once('.').context("no namespace")?;
        eventually(&format!("{}: {details} is in the log of {pod}", self.url), SOON, || {
            self.sent(mesh, client)?;
            let log = mesh.kubectl(&["logs", name, "-n", namespace, "-c", "istio-proxy", "--tail=40"])?;
            ensure!(log.contains(&details), "{log}");
            Ok(())
        })
    }
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

fn apply(mesh: &Mesh, kind: &str, namespace: &str, name: &str, spec: &Value) -> Result<()> {
    let group =
        if ["AuthorizationPolicy", "PeerAuthentication"].contains(&kind) { "security" } else { "networking" };
    let object = json!({
        "apiVersion": format!("{group}.istio.io/v1"), "kind": kind,
        "metadata": { "name": name, "namespace": namespace }, "spec": spec,
    });
    mesh.apply(&object.to_string()).map(drop)
}

fn httpbin() -> Value {
    json!({ "matchLabels": { "app": "httpbin" } })
}

fn why_says_what_happens(mesh: &Mesh) -> Result<()> {
    mesh.apply_fixture("echo.yaml")?;
    // A client without a proxy.
    let bare = "apiVersion: v1\nkind: Pod\nmetadata: { name: bare, labels: { sidecar.istio.io/inject: 'false' } }\nspec: { containers: [{ name: client, image: curlimages/curl }] }";
    mesh.apply(bare)?;
    mesh.kubectl(&["wait", "--for=condition=Available", "deploy", "--all", "--timeout=60s"])?;
    mesh.kubectl(&["wait", "--for=condition=Ready", "pod/client", "pod/bare", "--timeout=60s"])?;
    let story = get("http://httpbin:8000/get").agrees(mesh, "client")?;
    ensure!(
        story["answer"]["passes"] == "yes" && story["hops"].as_array().is_some_and(|hops| hops.len() == 2),
        "{story:#}"
    );
    ensure!(story["hops"][1]["transport"] == "mutual TLS", "{story:#}");
    ensure!(
        story["hops"][1]["caller"][0].as_str().is_some_and(|uri| uri.starts_with("spiffe://")),
        "{story:#}"
    );
    routes(mesh)?;
    policies(mesh)?;
    plain_text(mesh)?;
    checks(mesh)?;
    suggestions(mesh)?;

    mesh.kubectl(&["delete", "authorizationpolicy,virtualservice", "--all", "-n", "default"])?;
    mesh.kubectl(&["delete", "pod", "client", "bare", "--grace-period=1"])?;
    mesh.kubectl(&["delete", "deploy,svc,dr", "--all", "-n", "default", "--wait=false"]).map(drop)
}

/// Routes, of which one is a fault, one leads nowhere and one answers by itself.
fn routes(mesh: &Mesh) -> Result<()> {
    apply(
        mesh,
        "VirtualService",
        "default",
        "httpbin",
        &json!({ "hosts": ["httpbin"], "http": [
        { "match": [{ "uri": { "prefix": "/teapot" } }], "fault": { "abort": { "httpStatus": 418, "percentage": { "value": 100 } } },
          "route": [{ "destination": { "host": "httpbin" } }] },
        { "match": [{ "uri": { "prefix": "/direct" } }], "directResponse": { "status": 204 } },
        { "match": [{ "uri": { "prefix": "/old" } }], "redirect": { "uri": "/new" } },
        { "match": [{ "uri": { "prefix": "/nobody" } }], "route": [{ "destination": { "host": "nobody" } }] },
        { "match": [{ "uri": { "prefix": "/read" } }], "rewrite": { "uri": "/get" }, "route": [{ "destination": { "host": "httpbin" } }] },
        { "match": [{ "headers": { "x-user": { "exact": "alice" } } }], "route": [{ "destination": { "host": "httpbin" } }] },
        { "match": [{ "uri": { "prefix": "/get" } }], "route": [{ "destination": { "host": "httpbin" } }] },
        { "match": [{ "uri": { "prefix": "/headers" } }], "route": [{ "destination": { "host": "httpbin" } }] },
    ] }),
    )?;
    // The first that tells that the routes have come.
    get("http://httpbin:8000/direct").agrees(mesh, "client")?;
    let routed = get("http://httpbin:8000/get").agrees(mesh, "client")?;
    ensure!(routed["hops"][0]["virtualService"] == "httpbin.default", "{routed:#}");
    for case in [
        get("http://httpbin:8000/teapot"),
        get("http://httpbin:8000/nobody"),
        get("http://httpbin:8000/no-such-route"),
    ] {
        case.is_logged(mesh, "client")?;
    }
    get("http://httpbin:8000/old").agrees(mesh, "client")?;
    let unknown =
        Case { method: "GET", url: "http://httpbin:8000/no-such-route", headers: &["x-user: alice"] };
    unknown.agrees(mesh, "client").map(drop)
}

/// The rule that decides is the one in the log.
fn policies(mesh: &Mesh) -> Result<()> {
    let rule = json!({ "when": [{ "key": "request.headers[x-user]", "values": ["mallory"] }] });
    apply(
        mesh,
        "AuthorizationPolicy",
        "default",
        "no-mallory",
        &json!({ "selector": httpbin(), "action": "DENY", "rules": [rule] }),
    )?;
    let rule = json!({ "from": [{ "source": { "namespaces": ["default"] } }], "to": [{ "operation": { "methods": ["GET"], "paths": ["/get*"] } }] });
    apply(
        mesh,
        "AuthorizationPolicy",
        "default",
        "read",
        &json!({ "selector": httpbin(), "action": "ALLOW", "rules": [rule] }),
    )?;
    let mallory = Case { method: "GET", url: "http://httpbin:8000/get", headers: &["x-user: mallory"] };
    eventually("the policies are there", SOON, || {
        ensure!(
            mallory.sent(mesh, "client")? == 403
                && get("http://httpbin:8000/headers").sent(mesh, "client")? == 403,
            "not yet"
        );
        Ok(())
    })?;
    mallory.is_logged(mesh, "client")?;
    let story = mallory.agrees(mesh, "client")?;
    ensure!(story["answer"]["decidedBy"] == "ns[default]-policy[no-mallory]-rule[0]", "{story:#}");
    get("http://httpbin:8000/headers").is_logged(mesh, "client")?;
    Case { method: "POST", url: "http://httpbin:8000/get", headers: &[] }.is_logged(mesh, "client")?;
    for (url, client) in [
        ("http://httpbin:8000/get", "client"),
        // Rewritten before the policy sees it.
        ("http://httpbin:8000/read", "client"),
        ("http://httpbin:8000/get/../headers", "client"),
        // Plain text has no namespace.
        ("http://httpbin:8000/get", "bare"),
        ("http://echo/", "bare"),
        ("http://echo/", "client"),
    ] {
        get(url).agrees(mesh, client)?;
    }
    Ok(())
}

/// Plain text where mutual TLS is wanted.
fn plain_text(mesh: &Mesh) -> Result<()> {
    apply(mesh, "PeerAuthentication", "default", "default", &json!({ "mtls": { "mode": "STRICT" } }))?;
    eventually("plain text is refused", SOON, || {
        ensure!(get("http://echo/").sent(mesh, "bare")? == 0, "not yet");
        Ok(())
    })?;
    get("http://echo/").agrees(mesh, "bare")?;
    get("http://echo/").agrees(mesh, "client")?;
    mesh.kubectl(&["delete", "peerauthentication", "--all", "-n", "default"]).map(drop)
}

/// `x authz check` shows the policies, as istioctl does.
fn checks(mesh: &Mesh) -> Result<()> {
    let said = mesh.lab("", "istioctl x authz check deploy/httpbin")?;
    let rows: Vec<Vec<&str>> = said.lines().map(|line| line.split_whitespace().collect()).collect();
    ensure!(rows[0] == ["ACTION", "AuthorizationPolicy", "RULES"], "{said}");
    for row in [["DENY", "no-mallory.default", "1"], ["ALLOW", "read.default", "1"]] {
        ensure!(rows.iter().any(|one| *one == row), "{said}");
    }
    let json: Value =
        serde_json::from_str(&mesh.lateen(&["x", "authz", "check", "deploy/httpbin", "-o", "json"])?)?;
    ensure!(
        json.as_array().is_some_and(|all| all.iter().any(|one| one["policy"] == "read.default")),
        "{json:#}"
    );
    let echo = mesh.lateen(&["x", "authz", "check", "deploy/echo-v1"])?;
    ensure!(!echo.contains("read.default"), "it is for httpbin alone: {echo}");
    Ok(())
}

/// What does not exist gets a reason and a suggestion.
fn suggestions(mesh: &Mesh) -> Result<()> {
    let say = |args: &[&str]| mesh.lateen(&[&["why", "--from", "client"], args].concat());
    let nobody = say(&["--to", "http://nobody/"])?;
    ensure!(nobody.contains("503") && nobody.contains("lateen pc endpoints"), "{nobody}");
    let unknown = say(&["--to", "http://no-such-host.example/"])?;
    ensure!(
        unknown.contains("it depends") && unknown.contains("no Service and no ServiceEntry"),
        "{unknown}"
    );
    let mistyped = say(&["--to", "http://htpbin:8000/"])?;
    ensure!(mistyped.contains("httpbin, if that was meant"), "{mistyped}");
    let method = say(&["--to", "http://httpbin:8000/get", "-X", "DELETE"])?;
    ensure!(method.contains("read.default rule 0 does not match: method is DELETE, not GET"), "{method}");
    let tcp = say(&["--to", "tcp://echo:9000"])?;
    ensure!(tcp.contains("it passes"), "{tcp}");
    let wrong = mesh.lab("", "lateen why --from no-such-pod --to http://httpbin 2>&1 || true")?;
    ensure!(wrong.contains("There is no pod no-such-pod") && wrong.contains("try:"), "{wrong}");
    Ok(())
}

/// A Gateway's policies are for the pods that carry its name, live.
fn policies_of_gateways(mesh: &Mesh) -> Result<()> {
    mesh.apply_fixture("echo.yaml")?;
    mesh.kubectl(&["wait", "--for=condition=Available", "deploy", "--all", "--timeout=60s"])?;
    apply(
        mesh,
        "Gateway",
        "default",
        "front",
        &json!({ "selector": { "istio": "ingressgateway" }, "servers": [
        { "port": { "number": 80, "name": "http", "protocol": "HTTP" }, "hosts": ["echo.example"] },
    ] }),
    )?;
    apply(
        mesh,
        "VirtualService",
        "default",
        "front",
        &json!({ "hosts": ["echo.example"], "gateways": ["front"], "http": [
        { "route": [{ "destination": { "host": "echo", "port": { "number": 80 } } }] },
    ] }),
    )?;
    let gateway = format!("http://{}/", mesh.gateway()?);
    let becomes = |wanted: u16| {
        eventually(&format!("the gateway answers {wanted}"), SOON, || {
            let status = Ask::get(&gateway).header("host", "echo.example").send()?.status;
            ensure!(status == wanted, "{status}");
            let args = ["why", "--from", "ingress", "--to", "http://echo.example/", "-o", "json"];
            let story: Value = serde_json::from_str(&mesh.lateen(&args)?)?;
            let passes = story["answer"]["passes"] == "yes";
            ensure!(passes == (wanted == 200), "{status}, and: {:#}", story["answer"]);
            Ok(())
        })
    };
    becomes(200)?;
    let pod = mesh.pod("istio-system", "istio=ingressgateway")?;
    let label = |value: &str| {
        let label = format!("gateway.networking.k8s.io/gateway-name{value}");
        mesh.kubectl(&["label", "pod", &pod, "-n", "istio-system", "--overwrite", &label])
    };
    let target = json!({ "group": "gateway.networking.k8s.io", "kind": "Gateway", "name": "front-door" });
    apply(
        mesh,
        "AuthorizationPolicy",
        "istio-system",
        "closed",
        &json!({ "targetRefs": [target], "action": "DENY", "rules": [{}] }),
    )?;
    becomes(200)?;
    label("=back-door")?;
    becomes(200)?;
    label("=front-door")?;
    becomes(403)?;
    let check = mesh.lateen(&["x", "authz", "check", &format!("{pod}.istio-system")])?;
    ensure!(check.contains("closed.istio-system"), "{check}");
    // A policy of another namespace is for other Gateways.
    mesh.kubectl(&["delete", "authorizationpolicy", "closed", "-n", "istio-system"])?;
    apply(
        mesh,
        "AuthorizationPolicy",
        "default",
        "closed",
        &json!({ "targetRefs": [target], "action": "DENY", "rules": [{}] }),
    )?;
    becomes(200)?;
    label("-")?;
    let refused = mesh.lab("", r#"kubectl apply -f - 2>&1 <<'END' || true
{ "apiVersion": "security.istio.io/v1", "kind": "AuthorizationPolicy", "metadata": { "name": "wrong", "namespace": "default" },
  "spec": { "selector": { "matchLabels": { "a": "b" } }, "targetRefs": [{ "kind": "Pod", "name": "a" }] } }
END"#)?;
    ensure!(refused.contains("only one of targetRefs or workloadSelector can be set"), "{refused}");
    ensure!(refused.contains("targetRef must be to one of"), "{refused}");
    mesh.kubectl(&["delete", "authorizationpolicy,virtualservice,gateway", "--all", "-n", "default"])?;
    mesh.kubectl(&["delete", "pod", "client", "--grace-period=1"])?;
    mesh.kubectl(&["delete", "deploy,svc,dr", "--all", "-n", "default", "--wait=false"]).map(drop)
}
