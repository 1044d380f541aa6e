//! The workload's certificate in files, for machines: their token ends, and from then on they prove who they are by the certificate
//! they have. The names are those of Istio's agent (`OUTPUT_CERTS`, `PROV_CERT`).

use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use lateen_pki::WorkloadCertificate;
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use x509_parser::prelude::{FromDer as _, X509Certificate};

const CHAIN: &str = "cert-chain.pem";
const KEY: &str = "key.pem";
/// Name of the file with the roots.
pub(crate) const ROOTS: &str = "root-cert.pem";

/// A certificate and its key.
pub(crate) struct Kept {
    pub(crate) chain: Vec<CertificateDer<'static>>,
    pub(crate) key: PrivateKeyDer<'static>,
}

/// What is in a folder, if it can be used and is not over.
pub(crate) fn read(folder: &Path) -> Option<Kept> {
    let chain = std::fs::read(folder.join(CHAIN)).ok()?;
    let chain: Vec<_> = CertificateDer::pem_slice_iter(&chain).collect::<Result<_, _>>().ok()?;
    let key = PrivateKeyDer::from_pem_file(folder.join(KEY)).ok()?;
    let (_, leaf) = X509Certificate::from_der(chain.first()?).ok()?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let end = u64::try_from(leaf.validity().not_after.timestamp()).unwrap_or_default();
    (end > now).then_some(Kept { chain, key })
}

/// Puts a certificate into a folder, each file in one step. The key is for our own user only. `roots`: whether what it trusts goes there too.
///
/// # Errors
/// When a file cannot be written.
pub(crate) fn write(folder: &Path, certificate: &WorkloadCertificate, roots: bool) -> io::Result<()> {
    std::fs::create_dir_all(folder)?;
    put(folder, KEY, &certificate.key, 0o600)?;
    put(folder, CHAIN, &certificate.chain, 0o644)?;
    if roots { put(folder, ROOTS, &certificate.roots, 0o644) } else { Ok(()) }
}

/// Writes one file in one step.
pub(super) fn put(folder: &Path, name: &str, text: &str, mode: u32) -> io::Result<()> {
    let new = folder.join(format!(".{name}.new"));
    match std::fs::remove_file(&new) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = std::fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(&new)?;
    file.write_all(text.as_bytes())?;
    std::fs::rename(&new, folder.join(name))
}

#[cfg(test)]
mod tests {
    use super::*;
    use lateen_pki::{CertificateAuthority, KeyKind, SigningRequest, SpiffeId, WorkloadKey};
    use std::os::unix::fs::PermissionsExt as _;
    use std::time::Duration;

    #[test]
    fn a_certificate_is_kept_until_it_ends() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path().join("certs");
        assert!(read(&folder).is_none());
        let authority = CertificateAuthority::generate("cluster.local").unwrap();
        let id = SpiffeId::new("cluster.local", "vms", "vm").unwrap();
        let issue = |life| {
            let key = WorkloadKey::generate(KeyKind::P256).unwrap();
            let request = SigningRequest::from_pem(&key.request().unwrap()).unwrap();
            let answer = authority.issue_workload(&request, &id, life).unwrap();
            WorkloadCertificate::new(&key, answer).unwrap()
        };
        write(&folder, &issue(Duration::from_secs(60)), true).unwrap();
        assert_eq!(read(&folder).unwrap().chain.len(), 1);
        let mode = std::fs::metadata(folder.join(KEY)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let short = issue(Duration::from_secs(1));
        write(&folder, &short, false).unwrap();
        std::thread::park_timeout(Duration::from_millis(1100));
        while short.not_after > SystemTime::now() {
            std::thread::park_timeout(Duration::from_millis(50));
        }
        assert!(read(&folder).is_none(), "it is over");
    }
}
