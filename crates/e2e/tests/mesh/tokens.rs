//! RequestAuthentication on traffic (S6): whose tokens pass, what policies and routes make of them, and keys that are fetched
//! from a provider that changes them and goes away, by the control plane or by proxies.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::TcpListener;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Result, ensure};
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use lateen_e2e::web::Ask;
use lateen_e2e::{Mesh, eventually};
use serde_json::{Value, json};

use crate::{OnMesh, echo};

pub(crate) const TRIALS: &[OnMesh] = &[
    ("tokens_decide", tokens_decide),
    ("keys_are_followed", keys_are_followed),
    ("proxies_fetch_keys", proxies_fetch_keys),
];

const SOON: Duration = Duration::from_secs(60);
const ISSUER: &str = "https://auth.example.com";
/// When tokens expire: 2100.
const END: u64 = 4_102_444_800;

/// A key of the identity provider.
struct Issuer {
    key: EcdsaKeyPair,
    id: &'static str,
}

impl Issuer {
    fn new(id: &'static str) -> Result<Self> {
        Ok(Self { key: EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING)?, id })
    }

    fn keys(&self) -> String {
        let (x, y) = self.key.public_key().as_ref()[1..].split_at(32);
        let encode = |bytes| URL_SAFE_NO_PAD.encode(bytes);
        json!({ "keys": [{ "kty": "EC", "crv": "P-256", "alg": "ES256", "kid": self.id, "x": encode(x), "y": encode(y) }] }).to_string()
    }

    /// A token of alice with these claims, too.
    fn token(&self, more: &Value) -> Result<String> {
        let mut claims = json!({ "iss": ISSUER, "sub": "alice", "aud": "shop", "exp": END });
        for (name, value) in more.as_object().into_iter().flatten() {
            claims[name] = value.clone();
        }
        let header = json!({ "alg": "ES256", "kid": self.id });
        let encode = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let signed = format!("{}.{}", encode(&header), encode(&claims));
        let signature = self.key.sign(&SystemRandom::new(), signed.as_bytes())?;
        Ok(format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature)))
    }
}

/// Body and status of a request from the client pod.
fn ask(mesh: &Mesh, token: Option<&str>, url: &str) -> Result<String> {
    let header = token.map(|token| format!("-H 'authorization: Bearer {token}' ")).unwrap_or_default();
    echo::ask(mesh, &format!("{header}{url}"))
}

fn becomes(mesh: &Mesh, token: Option<&str>, url: &str, wanted: &str) -> Result<()> {
    eventually(&format!("{url} with {token:?} answers {wanted}"), SOON, || {
        let said = ask(mesh, token, url)?;
        ensure!(said.ends_with(wanted), "{said}");
        Ok(())
    })
}

fn apply(mesh: &Mesh, kind: &str, namespace: &str, name: &str, spec: &Value) -> Result<()> {
    let object = json!({
        "apiVersion": "security.istio.io/v1", "kind": kind, "metadata": { "name": name, "namespace": namespace }, "spec": spec,
    });
    mesh.apply(&object.to_string()).map(drop)
}

fn away(mesh: &Mesh) -> Result<()> {
    mesh.kubectl(&["delete", "requestauthentication,authorizationpolicy", "--all", "-A"])?;
    mesh.kubectl(&["delete", "pod", "client", "--grace-period=1"])?;
    mesh.kubectl(&["delete", "deploy,svc,dr,vs,gw", "--all", "-n", "default", "--wait=false"]).map(drop)
}

const GET: &str = "http://httpbin:8000/headers";

fn tokens_decide(mesh: &Mesh) -> Result<()> {
    echo::up(mesh)?;
    let (issuer, stranger) = (Issuer::new("mine")?, Issuer::new("mine")?);
    let good = issuer.token(&json!({ "groups": ["users"], "org": { "team": "red" } }))?;
    let admin = issuer.token(&json!({ "groups": ["users", "admins"] }))?;
    let expired = issuer.token(&json!({ "exp": 1_000 }))?;
    let forged = stranger.token(&json!({}))?;
    let of_another = issuer.token(&json!({ "iss": "https://evil.example.com" }))?;
    let rule = |more: Value| {
        let mut rule = json!({ "issuer": ISSUER, "jwks": issuer.keys() });
        for (name, value) in more.as_object().into_iter().flatten() {
            rule[name] = value.clone();
        }
        json!({ "jwtRules": [rule] })
    };
    let outputs = json!({ "outputClaimToHeaders": [{ "header": "x-sub", "claim": "sub" }], "outputPayloadToHeader": "x-payload" });
    apply(mesh, "RequestAuthentication", "default", "jwt-auth", &rule(outputs))?;

    becomes(mesh, Some(&expired), GET, "Jwt is expired 401")?;
    becomes(mesh, Some(&forged), GET, "Jwt verification fails 401")?;
    becomes(mesh, Some(&of_another), GET, "Jwt issuer is not configured 401")?;
    becomes(mesh, Some("x.y.z"), GET, "Jwt header is an invalid Base64url encoded 401")?;
    becomes(mesh, None, GET, " 200")?;
    let said = ask(mesh, Some(&good), GET)?;
    let lower = said.to_ascii_lowercase();
    ensure!(said.ends_with(" 200") && lower.contains("alice") && lower.contains("x-payload"), "{said}");
    ensure!(!lower.contains("bearer"), "the token is not for the application: {said}");

    // The course's: only with a token; then by claims.
    let selector = json!({ "matchLabels": { "app": "httpbin" } });
    let policy = |rules: Value| json!({ "selector": selector, "action": "ALLOW", "rules": rules });
    let from = json!([{ "from": [{ "source": { "requestPrincipals": [format!("{ISSUER}/alice")] } }] }]);
    apply(mesh, "AuthorizationPolicy", "default", "by-token", &policy(from))?;
    becomes(mesh, None, GET, "RBAC: access denied 403")?;
    becomes(mesh, Some(&good), GET, " 200")?;
    becomes(mesh, Some(&expired), GET, "Jwt is expired 401")?;
    becomes(mesh, Some(&issuer.token(&json!({ "sub": "bob" }))?), GET, "RBAC: access denied 403")?;
    for (key, token) in [("request.auth.claims[groups]", &admin), ("request.auth.claims[org][team]", &good)] {
        let values = json!(["admins", "red"]);
        let when = json!([{ "when": [{ "key": key, "values": values }] }]);
        apply(mesh, "AuthorizationPolicy", "default", "by-token", &policy(when))?;
        let other = if token == &good { &admin } else { &good };
        becomes(mesh, Some(other), GET, "RBAC: access denied 403")?;
        becomes(mesh, Some(token), GET, " 200")?;
    }
    let deny = json!({ "selector": selector, "action": "DENY", "rules": [{ "from": [{ "source": { "notRequestPrincipals": ["*"] } }] }] });
    apply(mesh, "AuthorizationPolicy", "default", "by-token", &deny)?;
    becomes(mesh, None, GET, "RBAC: access denied 403")?;
    becomes(mesh, Some(&admin), GET, " 200")?;

    at_the_gateway(mesh, &issuer, &rule(json!({})))?;
    away(mesh)
}

/// Tokens at the gateway, and routes by their claims.
fn at_the_gateway(mesh: &Mesh, issuer: &Issuer, rule: &Value) -> Result<()> {
    mesh.kubectl(&["delete", "requestauthentication,authorizationpolicy", "--all", "-n", "default"])?;
    let mut spec = rule.clone();
    spec["selector"] = json!({ "matchLabels": { "istio": "ingressgateway" } });
    apply(mesh, "RequestAuthentication", "istio-system", "at-gateway", &spec)?;
    mesh.apply(
        r#"
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: { name: tokens, namespace: default }
spec:
  selector: { istio: ingressgateway }
  servers: [{ port: { number: 80, name: http, protocol: HTTP }, hosts: ["tokens.example.com"] }]
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: { name: tokens, namespace: default }
spec:
  hosts: ["tokens.example.com"]
  gateways: [tokens]
  http:
    - match: [{ headers: { "@request.auth.claims.groups": { exact: admins } } }]
      directResponse: { status: 221 }
    - match: [{ headers: { "@request.auth.claims[org][team]": { prefix: re } } }]
      directResponse: { status: 222 }
    - match: [{ withoutHeaders: { "@request.auth.claims.sub": { regex: ".+" } } }]
      directResponse: { status: 223 }
    - directResponse: { status: 224 }
"#,
    )?;
    let gateway = mesh.gateway()?;
    for (token, status) in [
        (None, 223),
        (Some(issuer.token(&json!({ "groups": ["users", "admins"] }))?), 221),
        (Some(issuer.token(&json!({ "groups": "admins" }))?), 221),
        (Some(issuer.token(&json!({ "org": { "team": "red" } }))?), 222),
        (Some(issuer.token(&json!({ "groups": ["users"] }))?), 224),
        (Some(issuer.token(&json!({ "exp": 5, "groups": ["admins"] }))?), 401),
    ] {
        eventually("the gateway routes by claims", SOON, || {
            let mut ask = Ask::get(format!("http://{gateway}/")).header("host", "tokens.example.com");
            if let Some(token) = &token {
                ask = ask.header("authorization", &format!("Bearer {token}"));
            }
            let reply = ask.send()?;
            ensure!(reply.status == status, "expected {status}: {reply:?}");
            let challenge = reply.headers.get("www-authenticate");
            ensure!(challenge.is_some() == (status == 401), "{reply:?}");
            Ok(())
        })?;
    }
    by_target(mesh, issuer, rule, &gateway)
}

/// The same rule, which says by the name of a Gateway of the Gateway API where it is in force.
fn by_target(mesh: &Mesh, issuer: &Issuer, rule: &Value, gateway: &str) -> Result<()> {
    mesh.kubectl(&["delete", "requestauthentication", "at-gateway", "-n", "istio-system"])?;
    let expired = issuer.token(&json!({ "exp": 5 }))?;
    let becomes = |status: u16| {
        eventually(&format!("the gateway answers {status}"), SOON, || {
            let ask = Ask::get(format!("http://{gateway}/")).header("host", "tokens.example.com");
            let reply = ask.header("authorization", &format!("Bearer {expired}")).send()?;
            ensure!(reply.status == status, "{reply:?}");
            Ok(())
        })
    };
    becomes(223)?;
    let pod = mesh.pod("istio-system", "istio=ingressgateway")?;
    let label = |value: &str| {
        let label = format!("gateway.networking.k8s.io/gateway-name{value}");
        mesh.kubectl(&["label", "pod", &pod, "-n", "istio-system", "--overwrite", &label])
    };
    let mut spec = rule.clone();
    spec["targetRefs"] =
        json!([{ "group": "gateway.networking.k8s.io", "kind": "Gateway", "name": "front-door" }]);
    apply(mesh, "RequestAuthentication", "istio-system", "by-target", &spec)?;
    label("=back-door")?;
    becomes(223)?;
    label("=front-door")?;
    becomes(401)?;
    // One of another namespace is for other Gateways.
    mesh.kubectl(&["delete", "requestauthentication", "by-target", "-n", "istio-system"])?;
    apply(mesh, "RequestAuthentication", "default", "by-target", &spec)?;
    becomes(223)?;
    label("-").map(drop)
}

/// Serves keys on the host until told to stop.
struct Provider {
    port: u16,
    /// None: it is away.
    keys: Arc<Mutex<Option<String>>>,
}

impl Provider {
    fn start(keys: String) -> Result<Self> {
        let listener = TcpListener::bind("0.0.0.0:0")?;
        let port = listener.local_addr()?.port();
        let keys = Arc::new(Mutex::new(Some(keys)));
        let current = keys.clone();
        // Ends with the process; a connection at a time is enough.
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let keys = current.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clone();
                let Some(keys) = keys else { continue };
                let lines = BufReader::new(&stream).lines().map_while(Result::ok);
                lines.take_while(|line| !line.is_empty()).for_each(drop);
                let _gone =
                    write!(&stream, "HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{keys}", keys.len());
            }
        });
        Ok(Self { port, keys })
    }

    fn set(&self, keys: Option<String>) {
        *self.keys.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = keys;
    }
}

const REFRESH: &str = "PILOT_JWT_PUB_KEY_REFRESH_INTERVAL";

/// Starts the control plane with this variable (`NAME=VALUE`, or `NAME-` without it).
fn restarted(mesh: &Mesh, variable: &str) -> Result<()> {
    mesh.kubectl(&["set", "env", "deploy/istiod", "-n", "istio-system", variable])?;
    mesh.kubectl(&["rollout", "status", "deploy/istiod", "-n", "istio-system", "--timeout=90s"]).map(drop)
}

fn keys_are_followed(mesh: &Mesh) -> Result<()> {
    echo::up(mesh)?;
    restarted(mesh, &format!("{REFRESH}=1s"))?;
    let (first, second) = (Issuer::new("first")?, Issuer::new("second")?);
    let (old, new) = (first.token(&json!({}))?, second.token(&json!({}))?);
    let provider = Provider::start(first.keys())?;
    // The course's, with keys from the node.
    let uri = format!("http://10.244.0.1:{}/.well-known/jwks.json", provider.port);
    apply(
        mesh,
        "RequestAuthentication",
        "default",
        "jwt-auth",
        &json!({ "jwtRules": [{ "issuer": ISSUER, "jwksUri": uri }] }),
    )?;
    becomes(mesh, Some(&new), GET, "Jwks doesn't have key to match kid or alg from Jwt 401")?;
    becomes(mesh, Some(&old), GET, " 200")?;

    provider.set(Some(second.keys()));
    becomes(mesh, Some(&new), GET, " 200")?;
    becomes(mesh, Some(&old), GET, "Jwks doesn't have key to match kid or alg from Jwt 401")?;

    provider.set(None);
    eventually("the status says that the provider is away", SOON, || {
        let status =
            mesh.kubectl(&["get", "requestauthentication", "jwt-auth", "-n", "default", "-o", "json"])?;
        ensure!(status.contains("the last keys that came are used"), "{status}");
        Ok(())
    })?;
    ensure!(ask(mesh, Some(&new), GET)?.ends_with(" 200"), "keys outlive their provider");

    // Over a restart, too: a proxy that is new has them from a control plane that never fetched them.
    restarted(mesh, &format!("{REFRESH}=2s"))?;
    mesh.restart("default", "deploy/httpbin")?;
    becomes(mesh, Some(&new), GET, " 200")?;
    becomes(mesh, Some(&old), GET, "Jwks doesn't have key to match kid or alg from Jwt 401")?;
    provider.set(Some(first.keys()));
    becomes(mesh, Some(&old), GET, " 200")?;
    becomes(mesh, Some(&new), GET, "Jwks doesn't have key to match kid or alg from Jwt 401")?;

    // One that never answers: tokens are refused, all else passes.
    let rules = json!({ "jwtRules": [{ "issuer": ISSUER, "jwksUri": "http://10.244.0.1:9/keys" }] });
    apply(mesh, "RequestAuthentication", "default", "jwt-auth", &rules)?;
    becomes(mesh, Some(&new), GET, "Jwks doesn't have key to match kid or alg from Jwt 401")?;
    becomes(mesh, None, GET, " 200")?;
    restarted(mesh, &format!("{REFRESH}-"))?;
    away(mesh)
}

const FETCHED_BY: &str = "PILOT_JWT_ENABLE_REMOTE_JWKS";

/// A service of the mesh serves keys, and proxies ask it themselves; the control plane asks those outside.
fn proxies_fetch_keys(mesh: &Mesh) -> Result<()> {
    echo::up(mesh)?;
    restarted(mesh, &format!("{FETCHED_BY}=hybrid"))?;
    let (first, second) = (Issuer::new("first")?, Issuer::new("second")?);
    let (old, new) = (first.token(&json!({}))?, second.token(&json!({}))?);
    let serve = |keys: &str| {
        let service = json!({
            "apiVersion": "networking.istio.io/v1", "kind": "VirtualService", "metadata": { "name": "keys", "namespace": "default" },
            "spec": { "hosts": ["*"], "gateways": ["keys"], "http": [{
                "match": [{ "uri": { "exact": "/keys" } }], "directResponse": { "status": 200, "body": { "string": keys } },
            }] },
        });
        mesh.apply(&service.to_string())
    };
    mesh.apply(
        r#"
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: { name: keys, namespace: default }
spec:
  selector: { istio: ingressgateway }
  servers: [{ port: { number: 80, name: http, protocol: HTTP }, hosts: ["*"] }]
"#,
    )?;
    serve(&first.keys())?;
    let gateway = mesh.gateway()?;
    let served = |keys: &Issuer| {
        eventually("the keys are served", SOON, || {
            let reply = Ask::get(format!("http://{gateway}/keys")).send()?;
            ensure!(reply.body.contains(keys.id), "{reply:?}");
            Ok(())
        })
    };
    served(&first)?;
    // A policy that is another one makes proxies forget the keys, which they keep for five minutes.
    let policy = |seconds: u32, uri: &str| {
        let rule = json!({ "issuer": ISSUER, "jwksUri": uri, "timeout": format!("{seconds}s") });
        apply(mesh, "RequestAuthentication", "default", "jwt-auth", &json!({ "jwtRules": [rule] }))
    };
    let uri = "http://istio-ingressgateway.istio-system.svc.cluster.local/keys";
    policy(3, uri)?;
    becomes(mesh, Some(&old), GET, " 200")?;
    becomes(mesh, Some(&new), GET, "Jwks doesn't have key to match kid or alg from Jwt 401")?;
    serve(&second.keys())?;
    served(&second)?;
    ensure!(ask(mesh, Some(&old), GET)?.ends_with(" 200"), "keys are kept for a while");
    policy(4, uri)?;
    becomes(mesh, Some(&new), GET, " 200")?;
    becomes(mesh, Some(&old), GET, "Jwks doesn't have key to match kid or alg from Jwt 401")?;

    mesh.kubectl(&["delete", "virtualservice", "keys", "-n", "default"])?;
    policy(5, uri)?;
    becomes(mesh, Some(&new), GET, "Jwks remote fetch is failed 401")?;
    becomes(mesh, None, GET, " 200")?;

    // Nobody in the mesh: the control plane fetches them.
    let outside = Provider::start(first.keys())?;
    let uri = format!("http://10.244.0.1:{}/keys", outside.port);
    policy(6, &uri)?;
    becomes(mesh, Some(&old), GET, " 200")?;
    // It does not any more, and proxies do not know where to ask.
    restarted(mesh, &format!("{FETCHED_BY}=envoy"))?;
    becomes(mesh, Some(&old), GET, "Jwks remote fetch is failed 401")?;
    eventually("the status says what to do", SOON, || {
        let status =
            mesh.kubectl(&["get", "requestauthentication", "jwt-auth", "-n", "default", "-o", "json"])?;
        ensure!(status.contains("create a ServiceEntry"), "{status}");
        Ok(())
    })?;
    restarted(mesh, &format!("{FETCHED_BY}-"))?;
    becomes(mesh, Some(&old), GET, " 200")?;
    away(mesh)
}
