//! RequestAuthentication: whose tokens workloads accept.
//! <https://istio.io/latest/docs/reference/config/security/request_authentication/>
use super::target_reference::{PolicyTargetReference, Targeted};
use super::{GROUP, VERSIONS};
use crate::networking::WorkloadSelector;
use crate::object::Kind;

message! {
    /// The spec of a RequestAuthentication.
    pub struct RequestAuthenticationSpec {
        /// Workloads of its namespace it is for; none is all of them, and in the root namespace all of the mesh.
        selector: Option<WorkloadSelector>,
        /// A resource it is for, in place of workloads.
        target_ref: Option<PolicyTargetReference>,
        /// Resources it is for, in place of workloads.
        target_refs: Vec<PolicyTargetReference>,
        /// Issuers of tokens. Requests without a token pass, those with one that nobody here issued do not.
        jwt_rules: Vec<JwtRule>,
    }
}

impl Kind for RequestAuthenticationSpec {
    const GROUP: &'static str = GROUP;
    const VERSIONS: &'static [&'static str] = VERSIONS;
    const KIND: &'static str = "RequestAuthentication";
    const PLURAL: &'static str = "requestauthentications";
    const SHORT_NAMES: &'static [&'static str] = &["ra"];
    const COLUMNS: &'static [(&'static str, &'static str, &'static str)] = &[];
}

message! {
    /// An issuer of tokens.
    pub struct JwtRule {
        /// `iss` of its tokens.
        issuer: String,
        /// For whom tokens must be; none: for anybody.
        audiences: Vec<String>,
        /// Where its keys are; without it and without `jwks` they are found by OpenID discovery at the issuer.
        jwks_uri: String,
        /// Its keys.
        jwks: String,
        /// Headers with tokens. Without any place, `Authorization: Bearer …` and the parameter `access_token`.
        from_headers: Vec<JwtHeader>,
        /// Query parameters with tokens.
        from_params: Vec<String>,
        /// Cookies with tokens.
        from_cookies: Vec<String>,
        /// Header for the payload of a good token, in Base64.
        output_payload_to_header: String,
        /// Headers for claims of a good token.
        output_claim_to_headers: Vec<ClaimToHeader>,
        /// Good tokens stay in the request.
        forward_original_token: bool,
        /// How long fetching the keys may take. Default 5s.
        timeout: Option<String>,
        /// Claims whose text is a list of words, besides `scope` and `permission`.
        space_delimited_claims: Vec<String>,
    }
}

message! {
    /// A header with a token.
    pub struct JwtHeader {
        /// Name.
        name!: String,
        /// What stands before the token, with its space.
        prefix: String,
    }
}

message! {
    /// A header for a claim.
    pub struct ClaimToHeader {
        /// Name.
        header!: String,
        /// The claim; dots lead into objects.
        claim!: String,
    }
}

impl Targeted for RequestAuthenticationSpec {
    fn selector(&self) -> Option<&WorkloadSelector> {
        self.selector.as_ref()
    }

    fn references(&self) -> (Option<&PolicyTargetReference>, &[PolicyTargetReference]) {
        (self.target_ref.as_ref(), &self.target_refs)
    }
}
