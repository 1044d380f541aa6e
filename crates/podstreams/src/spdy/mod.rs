//! The server's side of SPDY/3.1 as Kubernetes clients speak it.
//!
//! Framing and header compression follow the SPDY/3.1 draft. Flow control does not exist in Kubernetes' dialect: both of
//! its ends are `moby/spdystream`, which neither sends nor heeds WINDOW_UPDATE, so a server that waited for a window
//! would stall after 64 KiB. Back-pressure is the connection's own: every queue here is bounded, and a reader that falls
//! behind stops the connection from being read.

mod frame;
mod headers;
mod session;

pub(crate) use session::{Session, Stream, StreamReader, StreamReset, StreamWriter};
