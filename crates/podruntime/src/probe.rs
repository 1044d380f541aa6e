//! Probes: when to ask, what the answers mean (pure), and asking.

use std::{
    net::{Ipv4Addr, SocketAddr},
    time::Duration,
};

use bytes::Bytes;
use http_body_util::Empty;
use hyper_util::rt::TokioIo;
use k8s_openapi::{
    api::core::v1::{Container, HTTPGetAction, Probe},
    apimachinery::pkg::util::intstr::IntOrString,
};
use tokio::{net::TcpStream, time::timeout};

use crate::{RuntimeError, container_run::ExecSpec, grpc_health};

/// While a container has not become ready, it is asked this often at first, so that a start takes no longer than it must.
const EAGER: Duration = Duration::from_millis(100);

/// Which question a probe answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Kind {
    Startup,
    Readiness,
    Liveness,
}

impl Kind {
    /// As it appears in events.
    pub(crate) fn title(self) -> &'static str {
        match self {
            Self::Startup => "Startup",
            Self::Readiness => "Readiness",
            Self::Liveness => "Liveness",
        }
    }
}

/// A probe's numbers with Kubernetes' defaults filled in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Timing {
    pub(crate) initial_delay: Duration,
    pub(crate) period: Duration,
    pub(crate) timeout: Duration,
    success_threshold: u32,
    failure_threshold: u32,
}

impl Timing {
    pub(crate) fn of(probe: &Probe) -> Self {
        let number = |value: Option<i32>, default: u32| {
            value.and_then(|value| u32::try_from(value).ok()).filter(|value| *value > 0).unwrap_or(default)
        };
        let seconds = |value, default| Duration::from_secs(u64::from(number(value, default)));
        Self {
            initial_delay: seconds(probe.initial_delay_seconds, 0),
            period: seconds(probe.period_seconds, 10),
            timeout: seconds(probe.timeout_seconds, 1),
            success_threshold: number(probe.success_threshold, 1),
            failure_threshold: number(probe.failure_threshold, 3),
        }
    }
}

/// The state of one probe of one running container.
#[derive(Debug, Clone)]
pub(crate) struct ProbeState {
    kind: Kind,
    timing: Timing,
    result: Option<bool>,
    successes: u32,
    failures: u32,
    /// Time since the last attempt that counted as a regular one.
    since_regular: Duration,
    eager_pause: Duration,
}

/// What follows from an attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Verdict {
    /// The probe's result changed to this.
    pub(crate) changed: Option<bool>,
    /// The attempt was a regular one that failed: worth an event.
    pub(crate) unhealthy: bool,
    /// The next attempt.
    pub(crate) pause: Duration,
}

impl ProbeState {
    pub(crate) fn new(kind: Kind, timing: Timing) -> Self {
        // The first attempt is a regular one.
        Self {
            kind,
            timing,
            result: None,
            successes: 0,
            failures: 0,
            since_regular: timing.period,
            eager_pause: EAGER,
        }
    }

    /// Takes an attempt's outcome into account.
    ///
    /// Between two regular attempts (one per period) there are eager ones as long as the answer has never been yes. They
    /// can only succeed: failures count by the specified period.
    pub(crate) fn observe(&mut self, success: bool) -> Verdict {
        let regular = self.since_regular >= self.timing.period;
        if regular {
            self.since_regular = Duration::ZERO;
        }
        let before = self.result;
        if success {
            self.successes += 1;
            self.failures = 0;
            if self.successes >= self.timing.success_threshold {
                self.result = Some(true);
            }
        } else if regular {
            self.failures += 1;
            self.successes = 0;
            if self.failures >= self.timing.failure_threshold {
                self.result = Some(false);
            }
        } else {
            self.successes = 0;
        }
        let changed = if self.result == before { None } else { self.result };
        Verdict { changed, unhealthy: regular && !success, pause: self.pause() }
    }

    fn pause(&mut self) -> Duration {
        let left = self.timing.period.saturating_sub(self.since_regular);
        let eager = self.kind != Kind::Liveness && self.result != Some(true);
        let pause = if eager { self.eager_pause.min(left) } else { left };
        if eager {
            // Slowly less eager: 100 ms, 150 ms, … up to the period.
            self.eager_pause = self.eager_pause.mul_f32(1.5);
        }
        self.since_regular += pause;
        pause
    }
}

/// What is asked.
#[derive(Debug, Clone)]
pub(crate) enum Question {
    /// The command of an exec probe, to be run inside the container.
    Exec(ExecSpec),
    Http {
        address: SocketAddr,
        request: HttpQuestion,
    },
    Tcp(SocketAddr),
    Grpc {
        address: SocketAddr,
        service: String,
    },
}

/// An HTTP GET.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct HttpQuestion {
    path: String,
    headers: Vec<(String, String)>,
}

/// The number of a port given by number or by the name of a port of the container.
pub(crate) fn port(port: &IntOrString, container: &Container) -> Result<u16, RuntimeError> {
    let number = match port {
        IntOrString::Int(number) => Some(*number),
        IntOrString::String(name) => name.parse().ok().or_else(|| {
            let ports = container.ports.iter().flatten();
            ports.filter(|port| port.name.as_ref() == Some(name)).map(|port| port.container_port).next()
        }),
    };
    number.and_then(|number| u16::try_from(number).ok()).filter(|number| *number > 0).ok_or_else(|| {
        RuntimeError::Pod(format!(
            "container {} has no port {port:?}, which its probe or hook names",
            container.name
        ))
    })
}

/// The question of an `httpGet`.
pub(crate) fn http_question(
    action: &HTTPGetAction,
    container: &Container,
    pod_ip: Ipv4Addr,
) -> Result<Question, RuntimeError> {
    if action.scheme.as_deref().is_some_and(|scheme| scheme.eq_ignore_ascii_case("https")) {
        // As a TCP probe would: the handshake's certificate isn't looked at by the kubelet either.
        return Ok(Question::Tcp(SocketAddr::from((pod_ip, port(&action.port, container)?))));
    }
    let host = action.host.as_deref().and_then(|host| host.parse().ok()).unwrap_or(pod_ip);
    let headers =
        action.http_headers.iter().flatten().map(|header| (header.name.clone(), header.value.clone()));
    let path = action.path.clone().unwrap_or_default();
    let path = if path.starts_with('/') { path } else { format!("/{path}") };
    Ok(Question::Http {
        address: SocketAddr::from((host, port(&action.port, container)?)),
        request: HttpQuestion { path, headers: headers.collect() },
    })
}

/// The question of a probe.
///
/// # Errors
/// [`RuntimeError::Pod`] when the probe asks nothing or names no port.
pub(crate) fn question(
    probe: &Probe,
    container: &Container,
    pod_ip: Ipv4Addr,
    exec: impl FnOnce(Vec<String>) -> ExecSpec,
) -> Result<Question, RuntimeError> {
    if let Some(action) = &probe.exec {
        return Ok(Question::Exec(exec(action.command.clone().unwrap_or_default())));
    }
    if let Some(action) = &probe.http_get {
        return http_question(action, container, pod_ip);
    }
    if let Some(action) = &probe.tcp_socket {
        let host = action.host.as_deref().and_then(|host| host.parse().ok()).unwrap_or(pod_ip);
        return Ok(Question::Tcp(SocketAddr::from((host, port(&action.port, container)?))));
    }
    if let Some(action) = &probe.grpc {
        let port = port(&IntOrString::Int(action.port), container)?;
        let service = action.service.clone().unwrap_or_default();
        return Ok(Question::Grpc { address: SocketAddr::from((pod_ip, port)), service });
    }
    Err(RuntimeError::Pod(format!("a probe of container {} has no action", container.name)))
}

/// Asks once; `Err` is why the answer is no.
pub(crate) async fn ask(
    question: &Question,
    patience: Duration,
    executable: &std::path::Path,
) -> Result<(), String> {
    let attempt = async {
        match question {
            Question::Exec(spec) => match crate::container::exec_to_end(executable, spec).await {
                Ok((0, _)) => Ok(()),
                Ok((_, output)) => Err(output.trim().to_owned()),
                Err(error) => Err(error.to_string()),
            },
            Question::Tcp(address) => connect(*address).await.map(drop),
            Question::Http { address, request } => http_get(*address, request).await,
            Question::Grpc { address, service } => {
                grpc_health::check(connect(*address).await?, *address, service).await
            }
        }
    };
    match timeout(patience, attempt).await {
        Ok(answer) => answer,
        Err(_) => Err(format!("no answer within {}s", patience.as_secs())),
    }
}

async fn connect(address: SocketAddr) -> Result<TcpStream, String> {
    TcpStream::connect(address).await.map_err(|error| format!("dial tcp {address}: {error}"))
}

async fn http_get(address: SocketAddr, question: &HttpQuestion) -> Result<(), String> {
    let url = format!("http://{address}{}", question.path);
    let failed = |error: &dyn std::fmt::Display| format!("Get \"{url}\": {error}");
    let stream = connect(address).await.map_err(|error| failed(&error))?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|error| failed(&error))?;
    let connection = tokio::spawn(connection);
    let mut request = http::Request::get(question.path.as_str())
        .header(http::header::USER_AGENT, "kube-probe/1.34")
        .header(http::header::ACCEPT, "*/*")
        .header(http::header::CONNECTION, "close");
    if !question.headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("host")) {
        request = request.header(http::header::HOST, address.to_string());
    }
    for (name, value) in &question.headers {
        request = request.header(name, value);
    }
    let request = request.body(Empty::<Bytes>::new()).map_err(|error| failed(&error))?;
    let response = sender.send_request(request).await.map_err(|error| failed(&error));
    connection.abort();
    let status = response?.status();
    // 2xx and 3xx are healthy (the kubelet's HTTP prober).
    if status.is_success() || status.is_redirection() {
        Ok(())
    } else {
        Err(format!("HTTP probe failed with statuscode: {}", status.as_u16()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn timing(spec: serde_json::Value) -> Timing {
        Timing::of(&serde_json::from_value(spec).unwrap())
    }

    #[test]
    fn readiness_is_eager_at_first_and_regular_later() {
        let timing = timing(json!({ "periodSeconds": 1, "failureThreshold": 2 }));
        let mut probe = ProbeState::new(Kind::Readiness, timing);
        let mut elapsed = Duration::ZERO;
        let mut unhealthy = 0;
        while elapsed < Duration::from_secs(3) {
            let verdict = probe.observe(false);
            unhealthy += u32::from(verdict.unhealthy);
            assert!(verdict.pause <= Duration::from_secs(1));
            elapsed += verdict.pause;
        }
        assert_eq!(unhealthy, 3, "one per period, whatever the eager attempts");
        let ready = probe.observe(true);
        assert_eq!(ready.changed, Some(true));

        let mut probe = ProbeState::new(Kind::Readiness, timing);
        assert_eq!(probe.observe(false).pause, EAGER);
        assert_eq!(probe.observe(true).changed, Some(true));
        let pause = probe.observe(true).pause;
        assert!(pause > Duration::from_millis(800), "{pause:?}");
    }

    #[test]
    fn thresholds() {
        let timing = timing(json!({ "periodSeconds": 5, "failureThreshold": 3, "successThreshold": 2 }));
        let mut probe = ProbeState::new(Kind::Liveness, timing);
        let outcomes = [
            (true, None),
            (true, Some(true)),
            (false, None),
            (false, None),
            (false, Some(false)),
            (true, None),
            (true, Some(true)),
        ];
        for (success, changed) in outcomes {
            let verdict = probe.observe(success);
            assert_eq!(verdict.changed, changed);
            assert_eq!(verdict.pause, Duration::from_secs(5), "liveness is never eager");
        }
    }

    #[test]
    fn questions() {
        let container: Container = serde_json::from_value(
            json!({ "name": "app", "ports": [{ "name": "web", "containerPort": 8080 }] }),
        )
        .unwrap();
        let ask = |probe: serde_json::Value| {
            let probe: Probe = serde_json::from_value(probe).unwrap();
            question(&probe, &container, Ipv4Addr::new(10, 244, 0, 5), |_| unreachable!())
        };
        let http = ask(json!({ "httpGet": { "path": "healthz", "port": "web" } })).unwrap();
        assert!(
            matches!(http, Question::Http { address, request } if address == "10.244.0.5:8080".parse().unwrap() && request.path == "/healthz")
        );
        let tcp = ask(json!({ "tcpSocket": { "port": 9 } })).unwrap();
        assert!(matches!(tcp, Question::Tcp(address) if address.port() == 9));
        assert!(ask(json!({ "tcpSocket": { "port": "none" } })).is_err());
        assert!(ask(json!({})).is_err());
    }
}
