//! Requests for certificates, which a signer answers.
use std::time::Duration;

use http::Request;
use k8s_openapi::api::core::v1::ServiceAccount;
use kube::{
    Api, Client, Config,
    api::{ListParams, Patch, PatchParams, PostParams},
    config::{KubeConfigOptions, Kubeconfig},
};
use lateen_apiserver::TokenRequest;
use serde_json::{Value, json};

use crate::{object, start};

/// A request of a new key for a signer, and its object's body.
fn signing_request(name: &str, spec: Value) -> Value {
    use base64::{Engine as _, engine::general_purpose::STANDARD};
    let key = rcgen::KeyPair::generate().unwrap();
    let csr = rcgen::CertificateParams::default().serialize_request(&key).unwrap().pem().unwrap();
    let mut body = json!({"apiVersion": "certificates.k8s.io/v1", "kind": "CertificateSigningRequest",
        "metadata": {"name": name},
        "spec": {"request": STANDARD.encode(csr), "signerName": "signers.example.com/mesh", "usages": ["client auth"],
            "username": "somebody-else", "groups": ["system:masters"]}});
    for (field, value) in spec.as_object().unwrap() {
        body["spec"][field] = value.clone();
    }
    body
}

#[tokio::test]
async fn certificate_requests_are_signed_in_and_decided_once() {
    use base64::{Engine as _, engine::general_purpose::STANDARD};
    use k8s_openapi::api::certificates::v1::CertificateSigningRequest;
    let (server, client) = start().await;
    let account: ServiceAccount = object(json!({"metadata": {"name": "approver"}}));
    let accounts: Api<ServiceAccount> = Api::default_namespaced(client.clone());
    accounts.create(&PostParams::default(), &account).await.unwrap();
    let token = server
        .mint_token(&TokenRequest {
            namespace: "default".into(),
            service_account: "approver".into(),
            audiences: Vec::new(),
            expiration: Duration::from_secs(3600),
            pod: None,
        })
        .unwrap();
    let kubeconfig = Kubeconfig::from_yaml(&server.kubeconfig(&server.url()).unwrap()).unwrap();
    let mut config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await.unwrap();
    config.auth_info = kube::config::AuthInfo { token: Some(token.into()), ..Default::default() };
    let approver = Client::try_from(config).unwrap();
    let send = async |client: &Client, method: &str, path: &str, body: &Value| {
        let path = format!("/apis/certificates.k8s.io/v1/certificatesigningrequests{path}");
        let request = Request::builder().method(method).uri(path).header(
            "content-type",
            match method {
                "PATCH" => "application/merge-patch+json",
                _ => "application/json",
            },
        );
        client.request::<Value>(request.body(body.to_string().into_bytes()).unwrap()).await
    };
    let refused = |answer: Result<Value, kube::Error>| match answer {
        Err(kube::Error::Api(status)) => format!("{} {}", status.code, status.message),
        other => panic!("{other:?}"),
    };

    // Bad requests, by their field.
    for (spec, why) in [
        (json!({"request": STANDARD.encode("garbage")}), "spec.request: Invalid value"),
        (json!({"signerName": "kubernetes.io/legacy-unknown"}), "the legacy signerName is not allowed"),
        (json!({"signerName": "mesh"}), "fully qualified domain and path"),
        (json!({"usages": []}), "spec.usages: Required value"),
        (json!({"usages": ["flying"]}), "spec.usages[0]: Unsupported value: \"flying\""),
        (json!({"usages": ["client auth", "client auth"]}), "spec.usages[1]: Duplicate value"),
        (json!({"expirationSeconds": 599}), "less than 600 seconds"),
    ] {
        let message = refused(send(&client, "POST", "", &signing_request("bad", spec)).await);
        assert!(message.starts_with("422 ") && message.contains(why), "{message}");
    }

    // Who asks is who is authenticated, whatever the object says; who approves needs a right to the signer as well.
    let rbac = |kind: &str, rest: Value| {
        let metadata = json!({"generateName": "approver-"});
        let mut body =
            json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": kind, "metadata": metadata});
        body.as_object_mut().unwrap().extend(rest.as_object().unwrap().clone());
        body
    };
    let post = async |path: &str, body: Value| {
        let uri = format!("/apis/rbac.authorization.k8s.io/v1/{path}");
        let request = Request::post(uri).header("content-type", "application/json");
        client.request::<Value>(request.body(body.to_string().into_bytes()).unwrap()).await.unwrap()
    };
    let grant = async |rules: Value| {
        let role = post("clusterroles", rbac("ClusterRole", json!({"rules": rules}))).await;
        let role = json!({"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": role["metadata"]["name"]});
        let subject = json!({"kind": "ServiceAccount", "name": "approver", "namespace": "default"});
        post(
            "clusterrolebindings",
            rbac("ClusterRoleBinding", json!({"roleRef": role, "subjects": [subject]})),
        )
        .await;
    };
    grant(json!([{"apiGroups": ["certificates.k8s.io"], "verbs": ["create", "patch"],
        "resources": ["certificatesigningrequests", "certificatesigningrequests/approval"]}]))
    .await;
    let created = send(&approver, "POST", "", &signing_request("one", json!({}))).await.unwrap();
    assert_eq!(created["spec"]["username"], "system:serviceaccount:default:approver");
    assert!(!created["spec"]["groups"].as_array().unwrap().contains(&json!("system:masters")), "{created}");
    let decide = |kinds: &[&str]| {
        let conditions: Vec<_> =
            kinds.iter().map(|kind| json!({"type": kind, "status": "True", "reason": "test"})).collect();
        json!({"spec": {"usages": ["cert sign"]}, "status": {"conditions": conditions, "certificate": "QQ=="}})
    };
    let message = refused(send(&approver, "PATCH", "/one/approval", &decide(&["Approved"])).await);
    assert!(
        message.contains("403") && message.contains("not permitted to approve requests with signerName"),
        "{message}"
    );
    grant(json!([{"apiGroups": ["certificates.k8s.io"], "resources": ["signers"],
        "resourceNames": ["signers.example.com/*"], "verbs": ["approve"]}]))
    .await;
    let message = refused(send(&approver, "PATCH", "/one/approval", &decide(&["Approved", "Denied"])).await);
    assert!(message.contains("mutually exclusive"), "{message}");
    let message = refused(send(&approver, "PATCH", "/one/approval", &decide(&["Approved", "Failed"])).await);
    assert!(message.contains("may not add a condition of type \"Failed\""), "{message}");
    let approved = send(&approver, "PATCH", "/one/approval", &decide(&["Approved"])).await.unwrap();
    assert_eq!(approved["spec"], created["spec"], "only conditions change");
    assert!(approved["status"]["certificate"].is_null(), "{approved}");
    assert!(approved["status"]["conditions"][0]["lastTransitionTime"].is_string(), "{approved}");
    let message = refused(send(&approver, "PATCH", "/one/approval", &decide(&[])).await);
    assert!(message.contains("may not remove a condition of type \"Approved\""), "{message}");

    // The signer's part: the certificate, once; the decision is not its own.
    let key = rcgen::KeyPair::generate().unwrap();
    let certificate = rcgen::CertificateParams::default().self_signed(&key).unwrap().pem();
    let sign = |text: &str| json!({"status": {"conditions": [], "certificate": STANDARD.encode(text)}});
    let message = refused(send(&client, "PATCH", "/one/status", &sign("garbage")).await);
    assert!(message.contains("status.certificate: Invalid value"), "{message}");
    let signed = send(&client, "PATCH", "/one/status", &sign(&certificate)).await.unwrap();
    assert_eq!(signed["status"]["certificate"], json!(STANDARD.encode(&certificate)));
    assert_eq!(signed["status"]["conditions"][0]["type"], "Approved");
    let message = refused(send(&client, "PATCH", "/one/status", &sign(&certificate.repeat(2))).await);
    assert!(message.contains("may not modify existing certificate content"), "{message}");
    // The object itself has nothing that may change but its metadata.
    let changed =
        json!({"metadata": {"labels": {"a": "b"}}, "spec": {"usages": ["cert sign"]}, "status": null});
    let changed = send(&client, "PATCH", "/one", &changed).await.unwrap();
    assert_eq!((&changed["spec"], &changed["status"]), (&created["spec"], &signed["status"]));
    assert_eq!(changed["metadata"]["labels"]["a"], "b");

    let requests: Api<CertificateSigningRequest> = Api::all(client);
    let denied: CertificateSigningRequest = object(signing_request("two", json!({})));
    requests.create(&PostParams::default(), &denied).await.unwrap();
    let deny = Patch::Merge(decide(&["Denied"]));
    requests.patch_approval("two", &PatchParams::default(), &deny).await.unwrap();
    let listed = requests
        .list(&ListParams::default().fields("spec.signerName=signers.example.com/mesh"))
        .await
        .unwrap();
    assert_eq!(listed.items.len(), 2);
}
