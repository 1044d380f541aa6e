//! What the mesh trusts, on machines: no ConfigMap is mounted there, so the control plane is asked, and its answer kept in the files that
//! pods have.

use std::path::Path;
use std::time::Duration;

use lateen_pki::{Federation, Roots};
use lateen_xds::trust_service::{self, TrustBundle, TrustRequest};
use tonic::Code;
use tracing::{debug, info, warn};

use super::kept;
use crate::config::Discovery;
use crate::dial;
use crate::error::AgentError;

/// Shortest and longest pause before the control plane is asked again.
const FIRST_BACK_OFF: Duration = Duration::from_millis(500);
const LAST_BACK_OFF: Duration = Duration::from_secs(15);

/// Why nothing is told.
enum Untold {
    /// This control plane knows no such service, as Istio's.
    Never,
    /// Not now.
    Yet(AgentError),
}

/// Follows what the control plane says, into the folder of the file with its roots, for as long as the task runs.
pub(crate) async fn follow(discovery: Discovery, mark: Option<u32>) {
    let Some(folder) = discovery.root_cert.as_deref().and_then(Path::parent) else { return };
    let mut pause = FIRST_BACK_OFF;
    loop {
        let mut told = false;
        match listen(&discovery, mark, folder, &mut told).await {
            Untold::Never => {
                return info!(
                    "the control plane does not tell machines what it trusts; who changes its root writes it here, too"
                );
            }
            Untold::Yet(problem) => debug!(%problem, "not told what the mesh trusts; trying again"),
        }
        pause = if told { FIRST_BACK_OFF } else { (pause * 2).min(LAST_BACK_OFF) };
        tokio::time::sleep(pause.mul_f64(0.5 + fastrand::f64() / 2.0)).await;
    }
}

/// One stream, until it ends.
async fn listen(discovery: &Discovery, mark: Option<u32>, folder: &Path, told: &mut bool) -> Untold {
    let failed =
        |reason: String| Untold::Yet(AgentError::ControlPlane { address: discovery.address.clone(), reason });
    let refused = |status: tonic::Status| match status.code() {
        Code::Unimplemented => Untold::Never,
        code => failed(format!("trust: {code}: {}", status.message())),
    };
    let mut request = tonic::Request::new(TrustRequest {});
    if let Err(error) = dial::prove(discovery, request.metadata_mut()) {
        return Untold::Yet(error);
    }
    let channel = match dial::channel(discovery, mark).await {
        Ok(channel) => channel,
        Err(error) => return Untold::Yet(error),
    };
    let mut bundles = match trust_service::follow(channel, request).await {
        Ok(bundles) => bundles,
        Err(status) => return refused(status),
    };
    loop {
        match bundles.message().await {
            Ok(Some(bundle)) => {
                *told = true;
                if let Err(problem) = keep(folder, &bundle) {
                    warn!(problem, folder = %folder.display(), "what the mesh trusts cannot be kept; what there was stays");
                }
            }
            Ok(None) => return failed("trust: the stream has ended".to_owned()),
            Err(status) => return refused(status),
        }
    }
}

/// Writes what was told, where it is something else than what stands there. What is no root changes nothing.
fn keep(folder: &Path, bundle: &TrustBundle) -> Result<(), String> {
    Roots::from_pem(&bundle.roots).map_err(|error| format!("the roots: {error}"))?;
    if !bundle.domains.is_empty() {
        Federation::from_json(&bundle.domains).map_err(|error| format!("the trust domains: {error}"))?;
    }
    for (name, text) in [(Federation::FILE, &bundle.domains), (kept::ROOTS, &bundle.roots)] {
        let there = std::fs::read_to_string(folder.join(name)).unwrap_or_default();
        if there == *text {
            continue;
        }
        let done = if text.is_empty() {
            std::fs::remove_file(folder.join(name))
        } else {
            kept::put(folder, name, text, 0o644)
        };
        done.map_err(|error| format!("{name}: {error}"))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use lateen_pki::{CertificateAuthority, DomainRoots};

    #[test]
    fn files_are_as_they_were_told() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path();
        let [own, other] = [(), ()].map(|()| CertificateAuthority::generate("cluster.local").unwrap());
        let read = |name: &str| std::fs::read_to_string(folder.join(name)).ok();
        let told = |roots: &str, domains: &str| {
            keep(folder, &TrustBundle { roots: roots.to_owned(), domains: domains.to_owned() })
        };
        let other = DomainRoots { own: false, roots: other.root_pem().to_owned() };
        let domains = Federation([("other.example".to_owned(), other)].into()).to_json();
        told(own.root_pem(), &domains).unwrap();
        assert_eq!(read(kept::ROOTS).as_deref(), Some(own.root_pem()));
        assert_eq!(read(Federation::FILE), Some(domains.clone()));
        for (roots, domains, why) in
            [("", "", "the roots"), ("no", "", "the roots"), (own.root_pem(), "no", "domains")]
        {
            assert!(told(roots, domains).unwrap_err().contains(why), "{roots}, {domains}");
        }
        assert_eq!(read(Federation::FILE), Some(domains), "what there was stays");
        told(own.root_pem(), "").unwrap();
        told(own.root_pem(), "").unwrap();
        assert_eq!((read(kept::ROOTS).as_deref(), read(Federation::FILE)), (Some(own.root_pem()), None));
    }
}
