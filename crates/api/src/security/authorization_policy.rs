//! AuthorizationPolicy: which requests and connections workloads let pass.
//! <https://istio.io/latest/docs/reference/config/security/authorization-policy/>
use serde::{Deserialize, Serialize};

use super::target_reference::{PolicyTargetReference, Targeted};
use super::{GROUP, VERSIONS};
use crate::networking::WorkloadSelector;
use crate::object::Kind;

/// Annotation that has a policy counted only.
pub const DRY_RUN: &str = "istio.io/dry-run";

message! {
    /// The spec of an AuthorizationPolicy.
    pub struct AuthorizationPolicySpec {
        /// Workloads of its namespace it is for; none is all of them, and in the root namespace all of the mesh.
        selector: Option<WorkloadSelector>,
        /// A resource it is for, in place of workloads.
        target_ref: Option<PolicyTargetReference>,
        /// Resources it is for, in place of workloads.
        target_refs: Vec<PolicyTargetReference>,
        /// What is matched: one of them. None matches nothing.
        rules: Vec<Rule>,
        /// What becomes of what is matched.
        action: Action,
        /// Who decides, with `CUSTOM`.
        provider: Option<ExtensionProvider>,
    }
}

impl Kind for AuthorizationPolicySpec {
    const GROUP: &'static str = GROUP;
    const VERSIONS: &'static [&'static str] = VERSIONS;
    const KIND: &'static str = "AuthorizationPolicy";
    const PLURAL: &'static str = "authorizationpolicies";
    const SHORT_NAMES: &'static [&'static str] = &["ap"];
    const COLUMNS: &'static [(&'static str, &'static str, &'static str)] =
        &[("Action", "The operation to take.", ".spec.action")];
}

message! {
    /// Who decides.
    pub struct ExtensionProvider {
        /// Name of a provider of mesh config.
        name: String,
    }
}

/// What becomes of what is matched.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    Serialize,
    Deserialize,
    schemars::JsonSchema,
)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Action {
    /// It passes, and nothing else does.
    #[default]
    Allow,
    /// It does not pass.
    Deny,
    /// It is noted.
    Audit,
    /// A provider decides.
    Custom,
}

message! {
    /// A rule: all three parts must hold, an empty part always does.
    pub struct Rule {
        /// Who: one of them.
        from: Vec<From>,
        /// What: one of them.
        to: Vec<To>,
        /// Conditions: all of them.
        when: Vec<Condition>,
    }
}

message! {
    /// Where a request comes from.
    pub struct From {
        /// The source.
        source: Option<Source>,
    }
}

message! {
    /// A source: all fields must hold, of each one value.
    pub struct Source {
        /// `TRUST-DOMAIN/ns/NAMESPACE/sa/ACCOUNT`; as all values, `*` is any, `a*` a prefix, `*a` a suffix.
        principals: Vec<String>,
        /// None of these.
        not_principals: Vec<String>,
        /// `ISSUER/SUBJECT` of a token.
        request_principals: Vec<String>,
        /// None of these.
        not_request_principals: Vec<String>,
        /// Namespaces of callers known by mutual TLS.
        namespaces: Vec<String>,
        /// None of these.
        not_namespaces: Vec<String>,
        /// Service accounts, `NAMESPACE/ACCOUNT` or one of the policy's namespace.
        service_accounts: Vec<String>,
        /// None of these.
        not_service_accounts: Vec<String>,
        /// Addresses of the connection's peer, single or CIDR.
        ip_blocks: Vec<String>,
        /// None of these.
        not_ip_blocks: Vec<String>,
        /// Addresses of the client, by `X-Forwarded-For` or the PROXY protocol.
        remote_ip_blocks: Vec<String>,
        /// None of these.
        not_remote_ip_blocks: Vec<String>,
    }
}

message! {
    /// What is asked for.
    pub struct To {
        /// The operation.
        operation: Option<Operation>,
    }
}

message! {
    /// An operation: all fields must hold, of each one value.
    pub struct Operation {
        /// Hosts, case ignored.
        hosts: Vec<String>,
        /// None of these.
        not_hosts: Vec<String>,
        /// The workload's ports.
        ports: Vec<String>,
        /// None of these.
        not_ports: Vec<String>,
        /// Methods.
        methods: Vec<String>,
        /// None of these.
        not_methods: Vec<String>,
        /// Paths without query; `{*}` and `{**}` make a template.
        paths: Vec<String>,
        /// None of these.
        not_paths: Vec<String>,
    }
}

message! {
    /// A condition on an attribute.
    pub struct Condition {
        /// The attribute, for example `request.headers[x-token]`.
        key!: String,
        /// One of these.
        values: Vec<String>,
        /// None of these.
        not_values: Vec<String>,
    }
}

impl Targeted for AuthorizationPolicySpec {
    fn selector(&self) -> Option<&WorkloadSelector> {
        self.selector.as_ref()
    }

    fn references(&self) -> (Option<&PolicyTargetReference>, &[PolicyTargetReference]) {
        (self.target_ref.as_ref(), &self.target_refs)
    }
}
