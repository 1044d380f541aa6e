//! The real `kubectl` against the server.

mod support;

use bytes::Bytes;
use futures::stream::BoxStream;
use lateen_podstreams::{
    BoxFuture, ContainerRef, Duplex, ExecRequest, ExecSession, LogOptions, Output as ExecOutput, PodBackend,
    PodError,
};
use serde_json::{Value, json};
use support::Cluster;

const DEPLOYMENT: &str = "
apiVersion: apps/v1
kind: Deployment
metadata:
  name: web
  labels: {app: web}
spec:
  replicas: 2
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      containers:
      - name: main
        image: web:1
        ports: [{containerPort: 80}]
      - name: helper
        image: helper:1
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec:
  selector: {app: web}
  ports: [{name: http, port: 80}]
";

#[test]
fn apply_creates_changes_and_leaves_alone() {
    let cluster = Cluster::start();
    let first = cluster.ok_with(&["apply", "-f", "-"], DEPLOYMENT);
    assert_eq!(first, "deployment.apps/web created\nservice/web created\n");
    let again = cluster.ok_with(&["apply", "-f", "-"], DEPLOYMENT);
    assert_eq!(again, "deployment.apps/web unchanged\nservice/web unchanged\n");
    let changed = DEPLOYMENT.replace("web:1", "web:2");
    let third = cluster.ok_with(&["apply", "-f", "-"], &changed);
    assert_eq!(third, "deployment.apps/web configured\nservice/web unchanged\n");
    let images =
        cluster.ok(&["get", "deploy", "web", "-o", "jsonpath={.spec.template.spec.containers[*].image}"]);
    assert_eq!(images, "web:2 helper:1");
    assert_eq!(cluster.ok(&["get", "deploy", "web", "-o", "jsonpath={.metadata.generation}"]), "2");
    // Taking a container out of the manifest takes it out of the object: strategic merge by OpenAPI.
    let smaller = changed.replace("      - name: helper\n        image: helper:1\n", "");
    cluster.ok_with(&["apply", "-f", "-"], &smaller);
    let names =
        cluster.ok(&["get", "deploy", "web", "-o", "jsonpath={.spec.template.spec.containers[*].name}"]);
    assert_eq!(names, "main");
    let diff = cluster.run_with(&["diff", "-f", "-"], &smaller);
    assert!(diff.ok, "{}{}", diff.stdout, diff.stderr);
}

#[test]
fn get_prints_tables_yaml_and_wide() {
    let cluster = Cluster::start();
    cluster.ok_with(&["apply", "-f", "-"], DEPLOYMENT);
    let table = cluster.ok(&["get", "deployments"]);
    assert!(
        table.starts_with(
            "NAME   READY   UP-TO-DATE   AVAILABLE   AGE\nweb    0/2     0            0           "
        ),
        "{table}"
    );
    let wide = cluster.ok(&["get", "deploy", "-o", "wide"]);
    assert!(
        wide.contains("CONTAINERS") && wide.contains("main,helper") && wide.contains("app=web"),
        "{wide}"
    );
    let service = cluster.ok(&["get", "svc", "web", "--no-headers"]);
    assert!(service.contains("ClusterIP   10.96.") && service.contains("80/TCP"), "{service}");
    let all = cluster.ok(&["get", "all"]);
    assert!(all.contains("deployment.apps/web") && all.contains("service/kubernetes"), "{all}");
    let yaml = cluster.ok(&["get", "deploy", "web", "-o", "yaml"]);
    assert!(yaml.contains("maxSurge: 25%") && !yaml.contains("managedFields"), "{yaml}");
    let json: Value = serde_json::from_str(&cluster.ok(&["get", "deploy", "-o", "json"])).unwrap();
    assert_eq!(json["items"][0]["kind"], "Deployment");
    assert!(cluster.ok(&["get", "ns"]).contains("kube-system"));
    let missing = cluster.fails_with(&["get", "deploy", "nope"], "");
    assert_eq!(missing, "Error from server (NotFound): deployments.apps \"nope\" not found\n");
    let unknown = cluster.fails_with(&["get", "widgets"], "");
    assert_eq!(unknown, "error: the server doesn't have a resource type \"widgets\"\n");
}

#[test]
fn labels_annotations_scale_and_patches() {
    let cluster = Cluster::start();
    cluster.ok_with(&["apply", "-f", "-"], DEPLOYMENT);
    cluster.ok(&["label", "deploy", "web", "tier=front"]);
    cluster.ok(&["annotate", "deploy", "web", "note=hello"]);
    assert_eq!(
        cluster.ok(&["get", "deploy", "-l", "tier in (front)", "-o", "name"]),
        "deployment.apps/web\n"
    );
    assert_eq!(cluster.ok(&["get", "deploy", "-l", "tier!=front", "-o", "name"]), "");
    cluster.ok(&["label", "deploy", "web", "tier-"]);
    cluster.ok(&["label", "ns", "default", "istio-injection=enabled"]);
    assert!(cluster.ok(&["get", "ns", "-L", "istio-injection"]).contains("enabled"));
    assert_eq!(cluster.ok(&["scale", "deploy", "web", "--replicas=5"]), "deployment.apps/web scaled\n");
    let patches = [
        ("strategic", r#"{"spec":{"template":{"spec":{"containers":[{"name":"main","image":"web:9"}]}}}}"#),
        ("merge", r#"{"metadata":{"labels":{"a":"b"}}}"#),
        ("json", r#"[{"op":"replace","path":"/spec/replicas","value":7}]"#),
    ];
    for (kind, patch) in patches {
        cluster.ok(&["patch", "deploy", "web", "--type", kind, "-p", patch]);
    }
    let object: Value = serde_json::from_str(&cluster.ok(&["get", "deploy", "web", "-o", "json"])).unwrap();
    assert_eq!(object["spec"]["replicas"], 7);
    assert_eq!(object["spec"]["template"]["spec"]["containers"][0]["image"], "web:9");
    assert_eq!(object["spec"]["template"]["spec"]["containers"].as_array().unwrap().len(), 2);
    assert_eq!(object["metadata"]["labels"], json!({"app": "web", "a": "b"}));
    cluster.ok(&["set", "image", "deploy/web", "main=web:10"]);
    cluster.ok(&["set", "env", "deploy/web", "-c", "main", "X=1"]);
    cluster.ok(&["rollout", "restart", "deploy/web"]);
    let mut edited = object.clone();
    edited["metadata"]["resourceVersion"] = json!("1");
    let stale = cluster.fails_with(&["replace", "-f", "-"], &edited.to_string());
    assert!(stale.contains("the object has been modified"), "{stale}");
    edited["metadata"].as_object_mut().unwrap().remove("resourceVersion");
    edited["spec"]["replicas"] = json!(1);
    cluster.ok_with(&["replace", "-f", "-"], &edited.to_string());
    assert_eq!(cluster.ok(&["get", "deploy", "web", "-o", "jsonpath={.spec.replicas}"]), "1");
}

#[test]
fn delete_waits_and_describe_explains() {
    let cluster = Cluster::start();
    cluster.ok_with(&["apply", "-f", "-"], DEPLOYMENT);
    let description = cluster.ok(&["describe", "deploy", "web"]);
    assert!(
        description.contains("RollingUpdateStrategy:  25% max unavailable, 25% max surge"),
        "{description}"
    );
    assert!(cluster.ok(&["describe", "svc", "web"]).contains("TargetPort:"));
    assert!(
        cluster.ok(&["describe", "ns", "default"]).contains("Status:  Active")
            || cluster.ok(&["describe", "ns", "default"]).contains("Active")
    );
    assert_eq!(cluster.ok(&["delete", "deploy", "web", "--wait"]), "deployment.apps \"web\" deleted\n");
    cluster.ok(&["create", "ns", "temporary"]);
    cluster.ok(&["create", "configmap", "a", "-n", "temporary", "--from-literal=x=y"]);
    cluster.ok(&["delete", "ns", "temporary", "--wait"]);
    cluster.fails_with(&["get", "ns", "temporary"], "");
    let gone = cluster.fails_with(&["create", "configmap", "a", "-n", "temporary", "--from-literal=x=y"], "");
    assert_eq!(gone, "error: failed to create configmap: namespaces \"temporary\" not found\n");
    let pod = cluster.ok(&[
        "run",
        "curl",
        "--image=curlimages/curl",
        "--restart=Never",
        "--command",
        "--",
        "sleep",
        "1",
    ]);
    assert_eq!(pod, "pod/curl created\n");
    let pods = cluster.ok(&["get", "pods"]);
    assert!(pods.contains("curl   0/1     Pending   0"), "{pods}");
    assert!(cluster.ok(&["describe", "pod", "curl"]).contains("kube-api-access-"));
    cluster.ok(&["delete", "pod", "curl"]);
}

#[test]
fn explain_resources_and_identity() {
    let cluster = Cluster::start();
    let explained = cluster.ok(&["explain", "deployment.spec.strategy"]);
    assert!(explained.contains("GROUP:      apps") && explained.contains("rollingUpdate"), "{explained}");
    let recursive = cluster.ok(&["explain", "pods.spec.containers", "--recursive"]);
    assert!(recursive.contains("livenessProbe"), "{recursive}");
    let resources = cluster.ok(&["api-resources"]);
    let words = |line: &str| line.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
    for line in [
        "deployments deploy apps/v1 true Deployment",
        "endpointslices discovery.k8s.io/v1 true EndpointSlice",
    ] {
        assert!(resources.lines().any(|shown| words(shown) == words(line)), "{line}: {resources}");
    }
    assert!(cluster.ok(&["api-versions"]).contains("apps/v1\n"));
    assert!(cluster.ok(&["version"]).contains("Server Version: v1.32"));
    let who = cluster.ok(&["auth", "whoami"]);
    assert!(who.contains("kubernetes-admin") && who.contains("system:masters"), "{who}");
    assert_eq!(cluster.ok(&["auth", "can-i", "create", "pods"]), "yes\n");
    cluster.ok(&["create", "serviceaccount", "robot"]);
    let token = cluster.ok(&["create", "token", "robot"]);
    let robot = cluster.ok(&["auth", "whoami", "--token", token.trim(), "-o", "json"]);
    assert!(robot.contains("kubernetes-admin"), "a client certificate goes before a token");
    assert_eq!(token.trim().split('.').count(), 3);
    assert_eq!(cluster.ok(&["get", "--raw", "/readyz"]), "ok");
}

#[test]
fn wait_watch_and_rollout_follow_changes() {
    let cluster = Cluster::start();
    cluster.ok_with(&["apply", "-f", "-"], DEPLOYMENT);
    let waiting = cluster
        .command(&["wait", "--for=condition=Available", "deploy/web", "--timeout=20s"])
        .spawn()
        .unwrap();
    let rollout = cluster.command(&["rollout", "status", "deploy/web", "--timeout=20s"]).spawn().unwrap();
    let watching = cluster.command(&["get", "deploy", "-w", "--request-timeout=4s"]).spawn().unwrap();
    let status = json!({"status": {"observedGeneration": 1, "replicas": 2, "readyReplicas": 2, "updatedReplicas": 2, "availableReplicas": 2,
        "conditions": [{"type": "Available", "status": "True"}]}});
    cluster.ok(&[
        "patch",
        "deploy",
        "web",
        "--subresource=status",
        "--type=merge",
        "-p",
        &status.to_string(),
    ]);
    let waited = waiting.wait_with_output().unwrap();
    assert_eq!(String::from_utf8_lossy(&waited.stdout), "deployment.apps/web condition met\n");
    let rolled = rollout.wait_with_output().unwrap();
    let text = String::from_utf8_lossy(&rolled.stdout).into_owned();
    assert!(text.contains("successfully rolled out"), "{text}");
    let watched = watching.wait_with_output().unwrap();
    let text = String::from_utf8_lossy(&watched.stdout).into_owned();
    assert!(text.contains("NAME   READY") && text.contains("2/2"), "{text}");
    assert_eq!(text.matches("NAME").count(), 1, "headers come once: {text}");
}

const WIDGETS: &str = "
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: widgets.example.com}
spec:
  group: example.com
  scope: Namespaced
  names: {plural: widgets, singular: widget, kind: Widget, shortNames: [wd], categories: [all]}
  versions:
  - name: v1
    served: true
    storage: true
    subresources: {status: {}}
    additionalPrinterColumns:
    - {name: Size, type: integer, jsonPath: .spec.size}
    - {name: Hosts, type: string, jsonPath: .spec.hosts}
    schema:
      openAPIV3Schema:
        type: object
        properties:
          spec:
            type: object
            required: [size]
            properties:
              size: {type: integer, minimum: 1, description: How big it is.}
              mode: {type: string, enum: [A, B], default: A}
              hosts: {type: array, items: {type: string}}
          status: {type: object, x-kubernetes-preserve-unknown-fields: true}
";

fn widget(spec: &str) -> String {
    format!("apiVersion: example.com/v1\nkind: Widget\nmetadata: {{name: one}}\nspec: {spec}\n")
}

#[test]
fn custom_resources() {
    let cluster = Cluster::start();
    cluster.ok_with(&["apply", "-f", "-"], WIDGETS);
    cluster.ok(&["wait", "--for=condition=Established", "crd/widgets.example.com", "--timeout=5s"]);
    assert_eq!(
        cluster.ok_with(&["apply", "-f", "-"], &widget("{size: 3, hosts: [a, b]}")),
        "widget.example.com/one created\n"
    );
    assert_eq!(
        cluster.ok_with(&["apply", "-f", "-"], &widget("{size: 3, hosts: [a, b]}")),
        "widget.example.com/one unchanged\n"
    );
    let table = cluster.ok(&["get", "wd"]);
    assert_eq!(table, "NAME   SIZE   HOSTS\none    3      [\"a\",\"b\"]\n");
    assert_eq!(cluster.ok(&["get", "wd", "one", "-o", "jsonpath={.spec.mode}"]), "A");
    assert!(cluster.ok(&["explain", "widget.spec.size"]).contains("How big it is."));
    let invalid = cluster.fails_with(&["apply", "-f", "-"], &widget("{size: 0, mode: C}"));
    assert!(invalid.contains("spec.size in body should be greater than or equal to 1"), "{invalid}");
    assert!(
        invalid.contains("spec.mode: Unsupported value: \"C\": supported values: \"A\", \"B\""),
        "{invalid}"
    );
    let unknown = cluster.fails_with(&["apply", "-f", "-"], &widget("{size: 3, colour: red}"));
    assert!(unknown.contains("strict decoding error: unknown field \"spec.colour\""), "{unknown}");
    cluster.ok_with(&["apply", "--server-side", "-f", "-"], &widget("{size: 3, mode: A}"));
    cluster.ok(&["delete", "crd", "widgets.example.com"]);
    cluster.fails_with(&["get", "widgets"], "");
}

#[test]
fn server_side_apply_and_conflicts() {
    let cluster = Cluster::start();
    let config = |value: &str| {
        format!("apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: c}}\ndata: {{a: '{value}'}}\n")
    };
    assert_eq!(
        cluster.ok_with(&["apply", "--server-side", "-f", "-"], &config("1")),
        "configmap/c serverside-applied\n"
    );
    cluster.ok(&["patch", "cm", "c", "--field-manager=editor", "-p", r#"{"data":{"a":"2"}}"#]);
    let conflict = cluster.fails_with(&["apply", "--server-side", "-f", "-"], &config("3"));
    assert!(conflict.contains("conflict with \"editor\"") && conflict.contains(".data.a"), "{conflict}");
    cluster.ok_with(&["apply", "--server-side", "--force-conflicts", "-f", "-"], &config("3"));
    assert_eq!(cluster.ok(&["get", "cm", "c", "-o", "jsonpath={.data.a}"]), "3");
    cluster.ok_with(&["apply", "--server-side", "-f", "-"], DEPLOYMENT);
    cluster.ok_with(&["apply", "--server-side", "-f", "-"], DEPLOYMENT);
}

#[test]
fn bad_manifests_are_refused_as_kubernetes_does() {
    let cluster = Cluster::start();
    let cases = [
        (
            DEPLOYMENT.replace("replicas: 2", "replicass: 2"),
            "strict decoding error: unknown field \"spec.replicass\"",
        ),
        (
            DEPLOYMENT.replace("replicas: 2", "replicas: two"),
            "cannot unmarshal string into Go struct field DeploymentSpec.spec.replicas of type int32",
        ),
        (
            DEPLOYMENT.replace("matchLabels: {app: web}", "matchLabels: {app: other}"),
            "`selector` does not match template `labels`",
        ),
        (
            DEPLOYMENT.replace("  name: web\n", "  name: Web_1\n"),
            "a lowercase RFC 1123 subdomain must consist of",
        ),
        (
            DEPLOYMENT.replace("image: web:1", "imagePullPolicy: Always"),
            "spec.template.spec.containers[0].image: Required value",
        ),
        (
            DEPLOYMENT.replace("kind: Deployment", "kind: Deploymint"),
            "no matches for kind \"Deploymint\" in version \"apps/v1\"",
        ),
        ("apiVersion: v1\nkind: ConfigMap\n metadata: x".to_owned(), "error converting YAML to JSON"),
    ];
    for (manifest, complaint) in cases {
        let error = cluster.fails_with(&["apply", "-f", "-"], &manifest);
        assert!(error.contains(complaint), "{complaint}: {error}");
    }
    let warned = cluster.run_with(
        &["apply", "--validate=warn", "-f", "-"],
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: x}\ndatum: {}\n",
    );
    assert!(warned.ok && warned.stderr.contains("Warning: unknown field \"datum\""), "{}", warned.stderr);
    let dry = cluster.ok_with(&["apply", "--dry-run=server", "-f", "-"], DEPLOYMENT);
    assert!(dry.contains("created (server dry run)"), "{dry}");
    cluster.fails_with(&["get", "deploy", "web"], "");
}

/// Runs nothing: `exec` echoes its command, logs say where they are from, ports answer one HTTP request.
struct Echo;

impl PodBackend for Echo {
    fn exec(
        &self,
        _target: ContainerRef,
        request: ExecRequest,
    ) -> BoxFuture<'_, Result<ExecSession, PodError>> {
        Box::pin(async move {
            let (stdin, _) = tokio::sync::mpsc::channel(1);
            let (resize, _) = tokio::sync::mpsc::channel(1);
            let (sender, output) = tokio::sync::mpsc::channel(1);
            let (exit_sender, exit) = tokio::sync::oneshot::channel();
            sender.send(ExecOutput::Stdout(Bytes::from(request.command.join(" ")))).await.unwrap();
            exit_sender.send(0).unwrap();
            Ok(ExecSession { stdin, output, resize, exit })
        })
    }

    fn logs(
        &self,
        target: ContainerRef,
        options: LogOptions,
    ) -> BoxFuture<'_, Result<BoxStream<'static, Result<Bytes, PodError>>, PodError>> {
        Box::pin(async move {
            let line = format!(
                "{}/{}/{} {:?}\n",
                target.namespace, target.pod, target.container, options.tail_lines
            );
            Ok(Box::pin(futures::stream::iter([Ok(Bytes::from(line))])) as BoxStream<'static, _>)
        })
    }

    fn dial(
        &self,
        _namespace: &str,
        _pod: &str,
        port: u16,
    ) -> BoxFuture<'_, Result<Box<dyn Duplex>, PodError>> {
        Box::pin(async move {
            use tokio::io::{AsyncReadExt, AsyncWriteExt};
            let (near, mut far) = tokio::io::duplex(4096);
            tokio::spawn(async move {
                let mut request = vec![0; 4096];
                let length = far.read(&mut request).await.unwrap();
                let path = String::from_utf8_lossy(&request[..length]).split(' ').nth(1).unwrap().to_owned();
                let body = format!("{path} on {port}");
                let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len());
                far.write_all(answer.as_bytes()).await.unwrap();
            });
            Ok(Box::new(near) as Box<dyn Duplex>)
        })
    }
}

#[test]
fn logs_exec_and_proxy_reach_the_runtime() {
    let cluster = Cluster::start();
    cluster.ok(&["run", "web", "--image=web", "--port=8080"]);
    let nobody = cluster.fails_with(&["logs", "web"], "");
    assert!(nobody.contains("no pod runtime is attached"), "{nobody}");
    cluster.server.as_ref().unwrap().set_pod_backend(std::sync::Arc::new(Echo));
    assert_eq!(cluster.ok(&["logs", "web", "--tail=3"]), "default/web/web Some(3)\n");
    assert!(
        cluster
            .fails_with(&["logs", "web", "-c", "nope"], "")
            .contains("container nope is not valid for pod web")
    );
    assert_eq!(cluster.ok(&["exec", "web", "--", "echo", "hi"]), "echo hi");
    assert_eq!(
        cluster.ok(&["get", "--raw", "/api/v1/namespaces/default/pods/web/proxy/a/b?c=d"]),
        "/a/b?c=d on 8080"
    );
    assert_eq!(
        cluster.ok(&["get", "--raw", "/api/v1/namespaces/default/pods/http:web:81/proxy/"]),
        "/ on 81"
    );
}

#[test]
fn what_nothing_acts_on_is_said() {
    let cluster = Cluster::start();
    cluster.ok_with(&["apply", "-f", "-"], DEPLOYMENT);
    let output = cluster.run_with(&["create", "cronjob", "c", "--image=x", "--schedule=* * * * *"], "");
    assert!(
        output.ok && output.stderr.contains("Warning: CronJob objects are only stored"),
        "{}",
        output.stderr
    );
    let ruled = WIDGETS.replace(
        "required: [size]",
        "required: [size]\n            x-kubernetes-validations: [{rule: 'true'}]",
    );
    for (crd, warned) in [(WIDGETS, false), (&ruled, true)] {
        cluster.run_with(&["delete", "crd", "widgets.example.com", "--ignore-not-found"], "");
        let output = cluster.run_with(&["create", "-f", "-"], crd);
        let said = output.stderr.contains("x-kubernetes-validations are not evaluated");
        assert!(output.ok && said == warned, "{}", output.stderr);
    }
    let output = cluster.run_with(&["create", "deploy", "d", "--image=x"], "");
    assert!(output.ok && output.stderr.is_empty(), "{}", output.stderr);
    let refused = cluster.fails_with(&["autoscale", "deploy", "web", "--max=3"], "");
    assert!(refused.contains("no autoscaler") && refused.contains("kubectl scale"), "{refused}");
    cluster.ok(&["run", "web", "--image=web"]);
    let refused = cluster.fails_with(&["debug", "web", "--image=busybox", "--profile=general"], "");
    assert!(refused.contains("use `kubectl exec -it POD"), "{refused}");
    let refused = cluster.fails_with(&["top", "pods"], "");
    assert!(refused.contains("Metrics API not available"), "{refused}");
}

#[test]
fn a_jobs_pods_are_its_own() {
    let cluster = Cluster::start();
    cluster.ok(&["create", "job", "once", "--image=x", "--", "true"]);
    let job: Value = serde_json::from_str(&cluster.ok(&["get", "job", "once", "-o", "json"])).unwrap();
    let uid = &job["metadata"]["uid"];
    let labels = &job["spec"]["template"]["metadata"]["labels"];
    assert_eq!(job["spec"]["selector"]["matchLabels"], json!({"batch.kubernetes.io/controller-uid": uid}));
    assert_eq!((&labels["job-name"], &labels["controller-uid"]), (&json!("once"), uid));
    // Without a selector, this takes any pod there is.
    cluster.ok(&["run", "stranger", "--image=x"]);
    let none = cluster.fails_with(&["logs", "job/once", "--pod-running-timeout=1s"], "");
    assert!(!none.contains("stranger"), "{none}");
    let wrong = cluster.fails_with(
        &["create", "-f", "-"],
        "apiVersion: batch/v1\nkind: Job\nmetadata: {name: j}\nspec: {template: {spec: {containers: [{name: a, image: x}]}}}\n",
    );
    assert!(wrong.contains("spec.template.spec.restartPolicy: Required value: valid values"), "{wrong}");
}
