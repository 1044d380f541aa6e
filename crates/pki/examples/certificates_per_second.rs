//! How many P-256 certificates the authority issues in a second: requests read and checked, certificates signed, on one thread.
//! Measure processor time (`time`) where other programs run beside it.
use std::time::{Duration, Instant};

use lateen_pki::{CertificateAuthority, KeyKind, SigningRequest, SpiffeId, WorkloadKey};

const ROUNDS: u32 = 3000;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let authority = CertificateAuthority::generate("cluster.local")?;
    let id = SpiffeId::new("cluster.local", "default", "web")?;
    let request = WorkloadKey::generate(KeyKind::P256)?.request()?;
    let begun = Instant::now();
    for _ in 0..ROUNDS {
        let request = SigningRequest::from_pem(&request)?;
        authority.issue_workload(&request, &id, Duration::from_secs(3600))?;
    }
    let took = begun.elapsed().as_secs_f64();
    println!("{ROUNDS} certificates in {took:.2} s: {:.0} a second", f64::from(ROUNDS) / took);
    Ok(())
}
