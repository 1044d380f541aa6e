//! Lists of certificates that were taken back (RFC 5280, 5).

use lateen_ir as ir;
use rustls::{CertificateError, Error};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, CertificateRevocationListDer, UnixTime};
use webpki::{CertRevocationList, OwnedCertRevocationList};
use x509_parser::prelude::{FromDer, X509Certificate};
use x509_parser::revocation_list::CertificateRevocationList;

/// Lists of one validation context.
#[derive(Default)]
pub(super) struct Lists {
    /// As webpki takes them.
    parsed: Vec<CertRevocationList<'static>>,
    /// The same, for certificates that webpki is not asked about.
    der: Vec<CertificateRevocationListDer<'static>>,
}

impl Lists {
    /// Those of a PEM text; there may be none in it.
    pub(super) fn read(pem: &ir::Pem) -> Result<Self, String> {
        let mut lists = Self::default();
        for list in CertificateRevocationListDer::pem_slice_iter(&pem.bytes) {
            let list = list.map_err(|error| error.to_string())?;
            let parsed = OwnedCertRevocationList::from_der(&list).map_err(|error| error.to_string())?;
            lists.parsed.push(parsed.into());
            lists.der.push(list);
        }
        Ok(lists)
    }

    pub(super) fn add(&mut self, others: Self) {
        self.parsed.extend(others.parsed);
        self.der.extend(others.der);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.parsed.is_empty()
    }

    pub(super) fn parsed(&self) -> Vec<&CertRevocationList<'static>> {
        self.parsed.iter().collect()
    }

    /// Looks for one certificate in its issuer's list. Where there are lists at all, that one must be there and in force.
    pub(super) fn check(
        &self,
        certificate: &X509Certificate<'_>,
        issuer: &X509Certificate<'_>,
        now: UnixTime,
    ) -> Result<(), Error> {
        if self.is_empty() {
            return Ok(());
        }
        let now = i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
        let mut known = false;
        for list in self.of(issuer) {
            if list.next_update().is_none_or(|next| now >= next.timestamp()) {
                continue;
            }
            if has(&list, certificate) {
                return Err(CertificateError::Revoked.into());
            }
            known = true;
        }
        if known { Ok(()) } else { Err(CertificateError::UnknownRevocationStatus.into()) }
    }
    /// Whether an authority takes itself back, and with it everybody below.
    pub(super) fn takes_itself_back(&self, authority: &CertificateDer<'_>) -> bool {
        let parsed = X509Certificate::from_der(authority);
        parsed.is_ok_and(|(_, authority)| self.of(&authority).any(|list| has(&list, &authority)))
    }

    /// The lists that this issuer signed.
    fn of<'a>(
        &'a self,
        issuer: &'a X509Certificate<'a>,
    ) -> impl Iterator<Item = CertificateRevocationList<'a>> {
        let parsed = self.der.iter().filter_map(|list| CertificateRevocationList::from_der(list).ok());
        parsed.map(|(_, list)| list).filter(|list| {
            list.issuer().as_raw() == issuer.subject().as_raw()
                && list.verify_signature(issuer.public_key()).is_ok()
        })
    }
}

fn has(list: &CertificateRevocationList<'_>, certificate: &X509Certificate<'_>) -> bool {
    list.iter_revoked_certificates().any(|one| one.raw_serial() == certificate.raw_serial())
}
