//! A request's way through one proxy, as the engine's steps have it: listener, filter chain, transport, filters, route.

use std::net::SocketAddr;
use std::time::{SystemTime, UNIX_EPOCH};

use http::header::{HeaderName, HeaderValue};

use super::routing::{levels, main_cluster, no_route, rewrite, route_seen, shares, tcp_shares};
use super::{Asked, Check, CheckResult, Hello, Outcome, Passage, ProxyView, Question, policies, words};
use crate::{
    Abort, AccessView, Action, ConnectionView, Decision, DownstreamTransport, DynamicMetadata, FilterChain,
    FilterLevels, FilterRouteConfig, HostAddress, HttpConnectionManager, HttpFilter, HttpFilterKind,
    JwtAuthn, JwtCache, JwtCase, JwtKeyring, JwtRequest, Listener, ListenerFilterKind, NetworkFilter,
    PeerView, RbacFilter, RequestView, RequireTls, RouteConfiguration, RouteSource, TerminalFilter,
    VirtualHost, listener_addresses, normalise_path,
};

const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");

/// What is known on the way.
struct Way<'a> {
    question: &'a Question,
    passage: Passage,
    uris: Vec<String>,
    /// The connection is TLS that ends here.
    secure: bool,
    client: HostAddress,
    metadata: DynamicMetadata,
}

/// A step that ends the way.
type Step = Result<(), Outcome>;

impl ProxyView {
    /// The way of a connection that comes in at the listener of this name, redirected there; `None`: at its destination itself.
    pub fn passage(&self, entry: Option<&str>, question: &Question) -> Passage {
        let accepts = match entry {
            Some(name) => self.listeners.iter().find(|listener| &*listener.name == name),
            None => self.listener_at(question.destination),
        };
        let Some(accepts) = accepts else {
            let place = entry.map_or_else(|| question.destination.to_string(), str::to_owned);
            return Passage::closed(format!("the proxy has no listener {place}"));
        };
        let handed_on =
            (entry.is_some() && accepts.use_original_dst).then(|| self.listener_at(question.destination));
        let listener = handed_on.flatten().unwrap_or(accepts);
        let mut way = Way {
            question,
            passage: Passage::closed(""),
            uris: Vec::new(),
            secure: false,
            client: question.source.into(),
            metadata: DynamicMetadata::default(),
        };
        way.passage.listener = Some(listener.name.to_string());
        let outcome = match chain(listener, accepts, question) {
            None => Outcome::Closed {
                details: String::new(),
                reason: match question.tls {
                    None => "no filter chain takes plain text here".to_owned(),
                    Some(_) => "no filter chain takes such TLS here".to_owned(),
                },
            },
            Some(chain) => {
                let name = if chain.name.is_empty() {
                    words::chain(&chain.matching)
                } else {
                    chain.name.to_string()
                };
                way.passage.chain = Some(name);
                match way.connection(chain) {
                    Err(outcome) => outcome,
                    Ok(()) => self.terminal(chain, &mut way),
                }
            }
        };
        way.passage.outcome = outcome;
        way.passage
    }

    fn listener_at(&self, destination: SocketAddr) -> Option<&Listener> {
        listener_addresses(destination).find_map(|address| {
            self.listeners.iter().find(|listener| listener.socket_addresses().any(|own| own == address))
        })
    }

    fn terminal(&self, chain: &FilterChain, way: &mut Way<'_>) -> Outcome {
        match &chain.terminal {
            Some(TerminalFilter::Http(manager)) => match way.question.request.clone() {
                Some(asked) => way.http(self, manager, asked).unwrap_or_else(|outcome| outcome),
                None => Outcome::Closed {
                    details: String::new(),
                    reason: "the port is HTTP, and these bytes are not".to_owned(),
                },
            },
            Some(TerminalFilter::Tcp(tcp)) => {
                way.passage.request = way.question.request.clone();
                Outcome::Forwarded { clusters: tcp_shares(tcp) }
            }
            Some(TerminalFilter::DirectResponse(_) | TerminalFilter::Echo) => Outcome::Closed {
                details: String::new(),
                reason: "the proxy answers with bytes of its own".to_owned(),
            },
            None => {
                Outcome::Closed { details: String::new(), reason: "the filter chain is empty".to_owned() }
            }
        }
    }
}

/// The filter chain for a connection.
fn chain<'a>(listener: &'a Listener, accepts: &Listener, question: &Question) -> Option<&'a FilterChain> {
    let port = question.destination.port();
    let inspects = |kind| listener.runs(kind, port) || accepts.runs(kind, port);
    let hello = question.tls.as_ref().filter(|_| inspects(ListenerFilterKind::TlsInspector));
    let mut protocols: Vec<&str> = Vec::new();
    match hello {
        Some(hello) => protocols.extend(hello.protocols.iter().map(String::as_str)),
        None if question.tls.is_none()
            && question.request.is_some()
            && inspects(ListenerFilterKind::HttpInspector) =>
        {
            protocols.push("http/1.1");
        }
        None => {}
    }
    let found = listener.chain_index.find(&ConnectionView {
        destination: question.destination,
        source: question.source,
        direct_source: question.source,
        server_name: hello.map(|hello| hello.server_name.as_str()).unwrap_or_default(),
        transport_protocol: if hello.is_some() { "tls" } else { "raw_buffer" },
        application_protocols: &protocols,
    });
    let found = found.and_then(|position| listener.filter_chains.get(position));
    found.or(listener.default_filter_chain.as_ref()).map(|chain| &**chain)
}

impl Way<'_> {
    /// TLS, and what network filters say.
    fn connection(&mut self, chain: &FilterChain) -> Step {
        let closed =
            |reason: &str| Err(Outcome::Closed { details: String::new(), reason: reason.to_owned() });
        match (&chain.transport, &self.question.tls) {
            (DownstreamTransport::Plaintext, _) => {}
            (DownstreamTransport::Tls(_), None) => {
                return closed("the server wants TLS, and the client speaks plain text");
            }
            (DownstreamTransport::Tls(tls), Some(Hello { certificate, .. })) => {
                self.secure = true;
                self.passage.transport = if certificate.is_some() { "mutual TLS" } else { "TLS" };
                match certificate {
                    None if tls.require_client_certificate || tls.common.wants_certificate() => {
                        return closed("the server wants a certificate, and the client has none");
                    }
                    Some(uris) if !tls.common.expects(uris) => {
                        let expected = tls.common.expected_names().join(" or ");
                        return closed(&format!(
                            "the client is {}, and the server takes {expected}",
                            uris.join(", ")
                        ));
                    }
                    Some(uris) => self.uris = uris.clone(),
                    None => {}
                }
            }
        }
        for filter in &chain.filters {
            match filter {
                NetworkFilter::Rbac(filter) => {
                    if let Some(denial) = self.rbac(filter, filter, None, "envoy.filters.network.rbac") {
                        return Err(Outcome::Closed {
                            details: denial,
                            reason: "policies refuse the connection".to_owned(),
                        });
                    }
                }
                NetworkFilter::ExtAuthz(filter) => {
                    let matcher = filter.enabled_metadata.as_ref();
                    if matcher.is_none_or(|one| one.is_match(Some(&self.metadata))) {
                        self.ask(&filter.service.cluster);
                    }
                }
                NetworkFilter::SniDynamicForwardProxy(_) => {}
            }
        }
        Ok(())
    }

    /// Policies; the detail of a denial.
    fn rbac(
        &mut self,
        filter: &std::sync::Arc<RbacFilter>,
        rules: &std::sync::Arc<RbacFilter>,
        request: Option<&RequestView<'_>>,
        name: &'static str,
    ) -> Option<String> {
        let question = self.question;
        let request = request.map(|request| RequestView { metadata: Some(&self.metadata), ..*request });
        let view = AccessView {
            request,
            destination: Some(question.destination),
            source: Some(question.source.ip()),
            direct_source: Some(question.source.ip()),
            client: self.client.ip(),
            server_name: question.tls.as_ref().map(|hello| hello.server_name.as_str()).unwrap_or_default(),
            peer: self.secure.then_some(PeerView { uris: &self.uris, dns: &[], subject: "" }),
        };
        let judged = |shadow: bool, of: &Option<crate::Rbac>| {
            let of = of.as_ref()?;
            let verdict = of.judge(&view);
            let (allowed, policy) = (verdict.allowed, verdict.position);
            let decision = Decision { filter: filter.clone(), rules: rules.clone(), shadow, allowed, policy };
            Some((policies::check(of, &view, shadow), decision, (!allowed).then(|| verdict.denial())))
        };
        let shadow = judged(true, &rules.shadow_rules);
        let enforced = judged(false, &rules.rules);
        if let Some((mut check, decision, _)) = shadow {
            if filter.shadow_stat_prefix.starts_with("istio_ext_authz") {
                check.by = "CUSTOM policies".to_owned();
                check.reason = match check.decided_by {
                    Some(_) => "a rule has an authorizer decide".to_owned(),
                    None => "no rule has an authorizer decide".to_owned(),
                };
            }
            self.passage.checks.push(check);
            self.metadata.decide(name, decision);
        }
        let (check, decision, denial) = enforced?;
        self.passage.checks.push(check);
        self.metadata.decide(name, decision);
        denial
    }

    fn ask(&mut self, cluster: &str) {
        self.passage.checks.push(Check {
            by: "authorizer".to_owned(),
            result: CheckResult::Depends,
            decided_by: Some(cluster.to_owned()),
            reason: "it is asked; configuration does not tell what it says".to_owned(),
            rules: Vec::new(),
        });
    }

    fn http(
        &mut self,
        proxy: &ProxyView,
        hcm: &HttpConnectionManager,
        mut asked: Asked,
    ) -> Result<Outcome, Outcome> {
        self.normalise(hcm, &mut asked)?;
        let missing = || answered(404, "NR", "route_not_found", "no route configuration has come");
        let inline;
        let routes = match &hcm.routes {
            RouteSource::Rds { name, .. } => proxy.routes.get(name).ok_or_else(missing)?,
            RouteSource::Inline(routes) => {
                inline = routes.clone();
                &*inline
            }
        };
        let host = routes.table.virtual_host(&asked.authority).map(|host| &**host);
        if let Some(host) = host
            && host.require_tls == RequireTls::All
            && !self.is_https(&asked)
        {
            let reason = "plain text is sent on to HTTPS";
            self.passage.route = Some(no_route(routes, host));
            return Ok(answered(301, "-", "direct_response", reason));
        }
        let found = host.and_then(|host| {
            let view = view(&asked, self.is_https(&asked), &self.metadata);
            let position = host.routes.iter().position(|route| route.matching.is_match(&view, 0))?;
            Some((host, position))
        });
        self.passage.route = host.map(|host| match found {
            Some((host, position)) => route_seen(routes, host, position),
            None => no_route(routes, host),
        });
        self.filters(hcm, routes, found, &mut asked)?;
        let Some((host, position)) = found else {
            let known = host.map_or_else(
                || format!("no virtual host of {} has the host {:?}", routes.name, asked.authority),
                |host| format!("none of the routes of {} matches", host.name),
            );
            return Ok(answered(404, "NR", "route_not_found", &known));
        };
        let route = &host.routes[position];
        Ok(match &route.action {
            Action::Forward(forward) => {
                let clusters = shares(forward, &asked);
                if clusters.is_empty() {
                    let status = forward.cluster_not_found_status.as_u16();
                    return Ok(answered(status, "NC", "cluster_not_found", "no header names the cluster"));
                }
                rewrite(routes, host, position, forward, &mut asked);
                self.passage.request = Some(asked);
                Outcome::Forwarded { clusters }
            }
            Action::Redirect(redirect) => {
                let view = view(&asked, self.is_https(&asked), &self.metadata);
                let reason = format!("sent on to {}", redirect.location(&route.matching.path, &view));
                answered(redirect.status.as_u16(), "-", "direct_response", &reason)
            }
            Action::DirectResponse(direct) => {
                answered(direct.status.as_u16(), "-", "direct_response", "the route answers by itself")
            }
            Action::NonForwarding => answered(404, "NR", "route_not_found", "the route is for filters only"),
        })
    }

    fn is_https(&self, asked: &Asked) -> bool {
        asked.headers.get(X_FORWARDED_PROTO).map_or(self.secure, |scheme| scheme == "https")
    }

    /// What the connection manager does before routing.
    fn normalise(&mut self, hcm: &HttpConnectionManager, asked: &mut Asked) -> Step {
        let refused = |_| answered(400, "-", "path_normalization_failed", "the path cannot be normalised");
        if let Some(changed) = normalise_path(&asked.path, hcm).map_err(refused)? {
            if changed.redirect {
                let reason = format!("sent on to {}", changed.path);
                return Err(answered(307, "-", "path_normalization_failed", &reason));
            }
            asked.path = changed.path;
        }
        if let Some(authority) = hcm.stripped_authority(&asked.authority, self.question.destination.port()) {
            asked.authority = authority;
        }
        self.client = hcm.client_address(&asked.headers, &self.question.source.into());
        let scheme = HeaderValue::from_static(if self.secure { "https" } else { "http" });
        if hcm.use_remote_address {
            if !hcm.skip_xff_append {
                let before = asked.headers.get(X_FORWARDED_FOR).and_then(|value| value.to_str().ok());
                let list = before.map(|before| format!("{before},")).unwrap_or_default();
                if let Ok(value) = HeaderValue::try_from(format!("{list}{}", self.question.source.ip())) {
                    asked.headers.insert(X_FORWARDED_FOR, value);
                }
            }
            if hcm.xff_num_trusted_hops == 0 {
                asked.headers.insert(X_FORWARDED_PROTO, scheme);
                return Ok(());
            }
        }
        asked.headers.entry(X_FORWARDED_PROTO).or_insert(scheme);
        Ok(())
    }

    fn filters(
        &mut self,
        hcm: &HttpConnectionManager,
        routes: &RouteConfiguration,
        found: Option<(&VirtualHost, usize)>,
        asked: &mut Asked,
    ) -> Step {
        for filter in &hcm.http_filters {
            let levels = found.and_then(|(host, position)| levels(filter, routes, host, position));
            let enabled = levels.and_then(FilterLevels::enabled);
            if !enabled.unwrap_or(!filter.disabled) {
                continue;
            }
            let config = levels.and_then(|levels| levels.configs().next());
            let cluster =
                found.and_then(|(host, position)| main_cluster(&host.routes[position].action, asked));
            self.filter(filter, config, cluster.as_deref(), found.is_some(), asked)?;
        }
        Ok(())
    }

    fn filter(
        &mut self,
        filter: &HttpFilter,
        of_route: Option<&FilterRouteConfig>,
        cluster: Option<&str>,
        routed: bool,
        asked: &mut Asked,
    ) -> Step {
        let https = self.is_https(asked);
        match (&filter.kind, of_route) {
            (HttpFilterKind::Fault(own), of_route) => {
                let fault = match of_route {
                    Some(FilterRouteConfig::Fault(fault)) => fault,
                    _ => own,
                };
                if fault.concerns(&view(asked, https, &self.metadata), cluster) {
                    return self.fault(fault, asked);
                }
            }
            (HttpFilterKind::Jwt(jwt), of_route) => {
                let of_route = match of_route {
                    Some(FilterRouteConfig::Jwt(config)) => Some(&**config),
                    _ => None,
                };
                jwt.clean(&mut asked.headers);
                let requirement = jwt.requirement(of_route, &view(asked, https, &self.metadata));
                let requirement = requirement
                    .map_err(|reason| answered(403, "-", "jwt_authn_access_denied", &reason))?
                    .cloned();
                if let Some(requirement) = requirement {
                    return self.tokens(jwt, &requirement, asked);
                }
            }
            (HttpFilterKind::Rbac(own), of_route) => {
                let rules = match of_route {
                    Some(FilterRouteConfig::Rbac(rules)) => rules,
                    _ => own,
                };
                let metadata = DynamicMetadata::default();
                let request = view(asked, https, &metadata);
                if let Some(denial) = self.rbac(own, rules, Some(&request), "envoy.filters.http.rbac") {
                    return Err(answered(403, "-", &denial, "RBAC: access denied"));
                }
            }
            (HttpFilterKind::ExtAuthz(authz), of_route) => {
                let off = matches!(of_route, Some(FilterRouteConfig::ExtAuthz(config)) if config.disabled);
                if routed && !off && authz.is_enabled(0, Some(&self.metadata)) {
                    self.ask(authz.service.cluster());
                }
            }
            // What these do does not keep a request from passing.
            (
                HttpFilterKind::Cors | HttpFilterKind::DynamicForwardProxy(_) | HttpFilterKind::Router(_),
                _,
            ) => {}
        }
        Ok(())
    }

    fn fault(&mut self, fault: &crate::Fault, asked: &Asked) -> Step {
        let mut check = |reason: String, result| {
            let by = "fault".to_owned();
            self.passage.checks.push(Check { by, result, decided_by: None, reason, rules: Vec::new() });
        };
        let percent =
            |share: crate::Fraction| f64::from(share.numerator) * 100.0 / f64::from(share.denominator);
        if let (Some(after), Some(delay)) = (fault.delay_of(&asked.headers, 0), fault.delay) {
            let share = percent(delay.percentage);
            check(format!("{share} % of such requests are delayed by {after:?}"), CheckResult::Noted);
        }
        let (Some(abort), Some(configured)) = (fault.abort_of(&asked.headers, 0), &fault.abort) else {
            return Ok(());
        };
        let status = match abort {
            Abort::Http(status) => status,
            Abort::Grpc(_) => 200,
        };
        let share = percent(configured.percentage);
        let reason = format!("{share} % of such requests are answered with {status} on purpose");
        // The last number that could be drawn.
        let always =
            fault.abort_of(&asked.headers, u64::from(configured.percentage.denominator) - 1).is_some();
        check(reason.clone(), if always { CheckResult::Refused } else { CheckResult::Depends });
        if always { Err(answered(status, "FI", "fault_filter_abort", &reason)) } else { Ok(()) }
    }

    fn tokens(&mut self, jwt: &JwtAuthn, requirement: &crate::JwtRequirement, asked: &mut Asked) -> Step {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        let claims = asked.claims.take();
        let request = JwtRequest { headers: &mut asked.headers, path: &mut asked.path };
        let verdict = match claims {
            Some(claims) => {
                let (verdict, stays) = jwt.suppose(requirement, request, &claims, now);
                asked.claims = stays.then_some(claims);
                verdict
            }
            None => {
                let keys = JwtKeyring::default();
                let mut cache = JwtCache::new(jwt);
                jwt.judge(JwtCase { requirement, request, now, cache: &mut cache, keys: &keys })
            }
        };
        let issuers: Vec<&str> = jwt.providers.iter().map(|provider| &*provider.issuer).collect();
        let noted = !verdict.metadata.is_empty();
        self.metadata.add("envoy.filters.http.jwt_authn", verdict.metadata);
        let (result, reason) = match &verdict.result {
            Ok(()) if noted => (CheckResult::Passes, "the token is good".to_owned()),
            Ok(()) => (CheckResult::Passes, "there is no token, and none is needed here".to_owned()),
            // Which keys it has nobody else knows.
            Err(crate::JwtError::FetchFailed) => (
                CheckResult::Depends,
                "the proxy fetches the keys itself; suppose a token's claims to go on".to_owned(),
            ),
            Err(error) => (
                CheckResult::Refused,
                format!("{}; tokens of {} are taken", error.text(), issuers.join(", ")),
            ),
        };
        let by = "tokens".to_owned();
        self.passage.checks.push(Check { by, result, decided_by: None, reason, rules: Vec::new() });
        verdict.result.map_err(|error| {
            let status = if error == crate::JwtError::AudienceNotAllowed { 403 } else { 401 };
            let details = format!("jwt_authn_access_denied{{{}}}", error.text().replace(' ', "_"));
            answered(status, "-", &details, error.text())
        })
    }
}

fn view<'a>(asked: &'a Asked, https: bool, metadata: &'a DynamicMetadata) -> RequestView<'a> {
    RequestView {
        method: &asked.method,
        scheme: if https { "https" } else { "http" },
        authority: &asked.authority,
        path: if asked.method == "CONNECT" { "" } else { asked.path.as_str() },
        headers: &asked.headers,
        metadata: Some(metadata),
    }
}

fn answered(status: u16, flags: &'static str, details: &str, reason: &str) -> Outcome {
    Outcome::Answered { status, flags, details: details.to_owned(), reason: reason.to_owned() }
}
