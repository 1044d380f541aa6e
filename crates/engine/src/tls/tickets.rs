//! Session tickets with the lifetime a context asks for.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rustls::server::ProducesTickets;

/// Tickets of rustls with the time of their making inside.
#[derive(Debug)]
pub(super) struct Tickets {
    inner: Arc<dyn ProducesTickets>,
    lifetime: Duration,
}

impl Tickets {
    pub(super) fn new(lifetime: Duration) -> Result<Arc<Self>, String> {
        let inner = rustls::crypto::aws_lc_rs::Ticketer::new().map_err(|error| error.to_string())?;
        Ok(Arc::new(Self { inner, lifetime }))
    }
}

fn now() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs()
}

impl ProducesTickets for Tickets {
    fn enabled(&self) -> bool {
        true
    }

    fn lifetime(&self) -> u32 {
        u32::try_from(self.lifetime.as_secs()).unwrap_or(u32::MAX)
    }

    fn encrypt(&self, plain: &[u8]) -> Option<Vec<u8>> {
        self.inner.encrypt(&[&now().to_be_bytes(), plain].concat())
    }

    fn decrypt(&self, cipher: &[u8]) -> Option<Vec<u8>> {
        let plain = self.inner.decrypt(cipher)?;
        let (made, rest) = plain.split_first_chunk::<8>()?;
        let age = now().checked_sub(u64::from_be_bytes(*made))?;
        (age <= self.lifetime.as_secs()).then(|| rest.to_vec())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ticket_opens_with_its_own_maker_only() {
        let tickets = Tickets::new(Duration::from_secs(60)).unwrap();
        let ticket = tickets.encrypt(b"session").unwrap();
        assert_eq!(tickets.decrypt(&ticket).as_deref(), Some(&b"session"[..]));
        assert_eq!(Tickets::new(Duration::from_secs(60)).unwrap().decrypt(&ticket), None);
    }
}
