//! Certificates that are signed as they were asked for, by authorities other than the mesh's: what a signer in the cluster makes of a
//! request that somebody approved, and whether what came back is what may be handed on.
use std::time::Duration;

use rcgen::{CertificateParams, ExtendedKeyUsagePurpose, IsCa, KeyUsagePurpose, PublicKeyData as _};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::authority::{certificate_params, pem};
use crate::roots::is_signed_by;
use crate::{CaError, CertificateAuthority, Roots, SigningRequest, SpiffeId};

/// Usages by the names of the Kubernetes API that a signed certificate may have.
const USAGES: [(&str, KeyUsagePurpose); 2] = [
    ("digital signature", KeyUsagePurpose::DigitalSignature),
    ("key encipherment", KeyUsagePurpose::KeyEncipherment),
];
const EXTENDED_USAGES: [(&str, ExtendedKeyUsagePurpose); 2] = [
    ("server auth", ExtendedKeyUsagePurpose::ServerAuth),
    ("client auth", ExtendedKeyUsagePurpose::ClientAuth),
];

/// Why a certificate was not made, or must not be handed on.
#[derive(Debug, thiserror::Error)]
pub enum RequestedError {
    /// A usage that no workload needs.
    #[error("the usage {0:?} is none of: digital signature, key encipherment, server auth, client auth")]
    Usage(String),
    /// The authority failed.
    #[error("{0}")]
    Authority(#[from] CaError),
    /// The signer's certificate is not what was asked for.
    #[error("the signer's certificate {0}")]
    Issued(String),
}

impl CertificateAuthority {
    /// A certificate for whatever names a request has, with these usages (by their names in the Kubernetes API). PEM: the leaf
    /// and what leads to the root, without the root. Whether the sender may have the names somebody else has judged.
    ///
    /// # Errors
    /// [`RequestedError`] when a usage is not for workloads, or it cannot be signed.
    pub fn issue_requested(
        &self,
        request: &SigningRequest,
        usages: &[String],
        lifetime: Duration,
    ) -> Result<String, RequestedError> {
        let mut params: CertificateParams = certificate_params("", Vec::new(), lifetime)?;
        params.not_after = self.limited(lifetime).into();
        params.subject_alt_names.clone_from(&request.names);
        for usage in usages {
            let plain = USAGES.iter().find(|(name, _)| name == usage);
            let extended = EXTENDED_USAGES.iter().find(|(name, _)| name == usage);
            params.key_usages.extend(plain.map(|(_, purpose)| *purpose));
            params.extended_key_usages.extend(extended.map(|(_, purpose)| purpose.clone()));
            if plain.is_none() && extended.is_none() {
                return Err(RequestedError::Usage(usage.clone()));
            }
        }
        params.is_ca = IsCa::ExplicitNoCa;
        params.use_authority_key_identifier_extension = true;
        self.sign_with_chain(&params, request).map_err(RequestedError::from)
    }
}

/// What is answered to a workload for which another authority has signed `issued` (PEM, the leaf first): the parts of the chain,
/// and the root last. The root is the one of `roots` it leads to; without `roots`, the last of the chain, if that is one.
///
/// # Errors
/// [`RequestedError::Issued`] when it is of another key or identity, signs others, or leads to no root.
pub fn check_issued(
    issued: &str,
    request: &SigningRequest,
    id: &SpiffeId,
    roots: Option<&Roots>,
) -> Result<Vec<String>, RequestedError> {
    let wrong = |what: &str| RequestedError::Issued(what.to_owned());
    let mut chain: Vec<CertificateDer<'static>> = CertificateDer::pem_slice_iter(issued.as_bytes())
        .collect::<Result<_, _>>()
        .map_err(|_| wrong("is not in PEM"))?;
    let leaf = chain.first().ok_or_else(|| wrong("is not in PEM"))?.clone();
    let (_, parsed) = X509Certificate::from_der(&leaf).map_err(|_| wrong("does not parse"))?;
    if parsed.public_key().subject_public_key.data.as_ref() != request.key.der_bytes() {
        return Err(wrong("is of another key than the request"));
    }
    if parsed.is_ca() {
        return Err(wrong("is one of an authority, which a workload must not have"));
    }
    if !parsed.validity().is_valid() {
        return Err(wrong("is not valid now; compare the clocks"));
    }
    match SpiffeId::of_certificate(&leaf) {
        Ok(issued) if issued == *id => {}
        Ok(issued) => return Err(RequestedError::Issued(format!("is of {issued}, not of {id}"))),
        Err(error) => {
            let why = format!("has not the name {id} ({error}): the signer must keep the request's names");
            return Err(RequestedError::Issued(why));
        }
    }
    let ends_in_root = chain.len() > 1 && chain.last().is_some_and(|last| is_signed_by(last, last));
    let own_root = if ends_in_root { chain.pop() } else { None };
    let intermediates: String = chain.iter().map(|certificate| pem(certificate)).collect();
    let root = match roots {
        Some(roots) => roots.issuer_of(&intermediates).map(|root| roots.led_by(root).to_pem()).ok_or_else(|| {
            wrong("leads to none of the roots that are known of the signer; see caCertificates of the mesh config")
        })?,
        None => {
            let root = own_root.map(|root| pem(&root)).ok_or_else(|| {
                wrong("comes without its root: give the root in caCertificates of the mesh config, for this signer")
            })?;
            let known = Roots::from_pem(&root).map_err(|error| RequestedError::Issued(error.to_string()))?;
            known.issuer_of(&intermediates).ok_or_else(|| wrong("does not lead to the root it comes with"))?;
            root
        }
    };
    Ok(chain.iter().map(|certificate| pem(certificate)).chain([root]).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{KeyKind, WorkloadKey};

    const LIFE: Duration = Duration::from_secs(3600);

    fn id(account: &str) -> SpiffeId {
        SpiffeId::new("cluster.local", "shop", account).unwrap()
    }

    fn request(account: &str) -> (WorkloadKey, SigningRequest) {
        let key = WorkloadKey::generate(KeyKind::P256).unwrap();
        let request = SigningRequest::from_pem(&key.request_as(&id(account)).unwrap()).unwrap();
        (key, request)
    }

    fn usages() -> Vec<String> {
        USAGES
            .map(|(name, _)| name)
            .into_iter()
            .chain(EXTENDED_USAGES.map(|(name, _)| name))
            .map(str::to_owned)
            .collect()
    }

    #[test]
    fn what_a_signer_makes_is_handed_on_with_its_root() {
        let signer = CertificateAuthority::generate("signer").unwrap();
        let (key, request) = request("web");
        request.asks_for_no_more_than(&id("web")).unwrap();
        let issued = signer.issue_requested(&request, &usages(), LIFE).unwrap();
        let answer = check_issued(&issued, &request, &id("web"), Some(signer.roots())).unwrap();
        assert_eq!(answer, [issued.clone(), signer.root_pem().to_owned()]);
        crate::WorkloadCertificate::new(&key, answer.clone()).unwrap();
        let with_root = format!("{issued}{}", signer.root_pem());
        for roots in [None, Some(signer.roots())] {
            assert_eq!(check_issued(&with_root, &request, &id("web"), roots).unwrap(), answer);
        }
    }

    #[test]
    fn what_is_not_the_callers_is_not_handed_on() {
        let [signer, other] = ["signer", "other"].map(|name| CertificateAuthority::generate(name).unwrap());
        let ((_, web), (_, admin)) = (request("web"), request("admin"));
        let issue = |request: &SigningRequest| signer.issue_requested(request, &usages(), LIFE).unwrap();
        let why = |issued: &str, request: &SigningRequest, roots: Option<&Roots>| {
            check_issued(issued, request, &id("web"), roots).unwrap_err().to_string()
        };
        let roots = Some(signer.roots());
        assert!(why(&issue(&admin), &web, roots).contains("another key"));
        assert!(why(&issue(&admin), &admin, roots).contains("sa/admin, not of spiffe"));
        assert!(why(&issue(&web), &web, Some(other.roots())).contains("none of the roots"));
        assert!(why(&issue(&web), &web, None).contains("without its root"));
        assert!(why(&format!("{}{}", issue(&web), other.root_pem()), &web, None).contains("does not lead"));
        assert!(why("garbage", &web, roots).contains("not in PEM"));
        let nameless =
            SigningRequest::from_pem(&WorkloadKey::generate(KeyKind::P256).unwrap().request().unwrap())
                .unwrap();
        assert!(why(&issue(&nameless), &nameless, roots).contains("must keep the request's names"));
        let refused = signer.issue_requested(&web, &["cert sign".to_owned()], LIFE).unwrap_err();
        assert!(refused.to_string().contains("cert sign"), "{refused}");
    }

    /// A certificate that the signer makes otherwise than it should.
    fn made(
        signer: &CertificateAuthority,
        request: &SigningRequest,
        change: fn(&mut CertificateParams),
    ) -> String {
        let mut params = certificate_params("", Vec::new(), LIFE).unwrap();
        params.subject_alt_names.clone_from(&request.names);
        change(&mut params);
        signer.sign_with_chain(&params, request).unwrap()
    }

    #[test]
    fn authorities_and_certificates_of_other_times_are_not_handed_on() {
        let signer = CertificateAuthority::generate("signer").unwrap();
        let (_, request) = request("web");
        let check = |issued: &str| check_issued(issued, &request, &id("web"), Some(signer.roots()));
        check(&made(&signer, &request, |_| {})).unwrap();
        let authority = made(&signer, &request, |params| {
            params.is_ca = IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        });
        assert!(check(&authority).unwrap_err().to_string().contains("one of an authority"));
        let over = made(&signer, &request, |params| {
            params.not_before = (std::time::SystemTime::now() - 2 * LIFE).into();
            params.not_after = (std::time::SystemTime::now() - LIFE).into();
        });
        assert!(check(&over).unwrap_err().to_string().contains("not valid now"));
        let early = made(&signer, &request, |params| {
            params.not_before = (std::time::SystemTime::now() + LIFE).into();
            params.not_after = (std::time::SystemTime::now() + 2 * LIFE).into();
        });
        assert!(check(&early).unwrap_err().to_string().contains("not valid now"));
        // What comes last without being a root is no root.
        let twice = made(&signer, &request, |_| {}).repeat(2);
        let refused = check_issued(&twice, &request, &id("web"), None).unwrap_err().to_string();
        assert!(refused.contains("without its root"), "{refused}");
    }

    #[test]
    fn a_signer_gives_the_usages_that_were_asked_for_and_no_more() {
        let signer = CertificateAuthority::generate("signer").unwrap();
        let (_, request) = request("web");
        let ends = std::time::SystemTime::now() + 40 * 365 * 24 * LIFE;
        for (asked, expected) in [
            (vec!["digital signature", "client auth"], (true, false, true, false)),
            (vec!["key encipherment", "server auth"], (false, true, false, true)),
        ] {
            let asked: Vec<String> = asked.into_iter().map(str::to_owned).collect();
            let issued = signer.issue_requested(&request, &asked, 40 * 365 * 24 * LIFE).unwrap();
            let der = CertificateDer::from_pem_slice(issued.as_bytes()).unwrap();
            let (_, leaf) = X509Certificate::from_der(&der).unwrap();
            let plain = *leaf.key_usage().unwrap().unwrap().value;
            let extended = leaf.extended_key_usage().unwrap().unwrap().value;
            let found = (
                plain.digital_signature(),
                plain.key_encipherment(),
                extended.client_auth,
                extended.server_auth,
            );
            assert_eq!(found, expected);
            assert_eq!(leaf.basic_constraints().unwrap().map(|found| found.value.ca), Some(false));
            assert_eq!(leaf.subject().to_string(), "");
            let issuer_key = x509_parser::oid_registry::OID_X509_EXT_AUTHORITY_KEY_IDENTIFIER;
            assert!(leaf.get_extension_unique(&issuer_key).unwrap().is_some());
            let signer_ends = signer.not_after().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
            assert!(std::time::UNIX_EPOCH + Duration::from_secs(signer_ends) < ends);
            let leaf_ends = u64::try_from(leaf.validity().not_after.timestamp()).unwrap();
            assert!(leaf_ends <= signer_ends, "it outlives its signer");
        }
    }
}
