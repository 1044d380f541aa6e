//! Ports for programs that can't tell which they chose.

use std::net::TcpListener;
use std::sync::atomic::{AtomicU16, Ordering};

/// Below the range from which the kernel gives ports to connections and to listeners without a wish, above the mesh's own:
/// nothing that chooses by chance takes one of these between now and its use.
const FIRST: u16 = 17_000;
const COUNT: u16 = 15_000;

static NEXT: AtomicU16 = AtomicU16::new(0);

/// A port nobody uses and no other test of this process gets. Processes begin at different places.
pub(crate) fn free_port() -> u16 {
    let start = (std::process::id().wrapping_mul(997) % u32::from(COUNT)) as u16;
    loop {
        let step = NEXT.fetch_add(1, Ordering::Relaxed);
        let port = FIRST + (u32::from(start) + u32::from(step)).rem_euclid(u32::from(COUNT)) as u16;
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}
