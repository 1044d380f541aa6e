//! Finds HTTP/2 clients that send frames without purpose, by Envoy's measures, and counts what passes. The codec bounds memory by
//! itself; this bounds work (CVE-2019-9511 to 9518).
//! <https://www.envoyproxy.io/docs/envoy/v1.40.0/api-v3/config/core/v3/protocol.proto#config-core-v3-http2protocoloptions>

use std::io;

use lateen_ir::Http2Floods;

use crate::guard::{Offence, Verdict};
use crate::stats::slots::ByteCounter;

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const PRIORITY: u8 = 2;
const RST_STREAM: u8 = 3;
const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;
const CONTINUATION: u8 = 9;

const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;
const PADDED: u8 = 8;

/// Window updates that any connection may send, besides those that data calls for.
const FREE_WINDOW_UPDATES: u64 = 5;

/// Bytes a client begins with (RFC 9113, section 3.4).
const PREFACE: u64 = 24;

/// The head of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Frame {
    kind: u8,
    flags: u8,
    /// Payload without padding.
    length: u32,
}

/// Finds the heads of frames in a stream of bytes.
#[derive(Debug, Default)]
struct Frames {
    head: [u8; 10],
    have: usize,
    /// Bytes until the next head.
    skip: u64,
}

impl Frames {
    fn pass(&mut self, mut bytes: &[u8], mut each: impl FnMut(Frame)) {
        while !bytes.is_empty() {
            if self.skip > 0 {
                let here = self.skip.min(bytes.len() as u64);
                self.skip -= here;
                bytes = &bytes[here as usize..];
                continue;
            }
            self.head[self.have] = bytes[0];
            self.have += 1;
            bytes = &bytes[1..];
            let [a, b, c, kind, flags, ..] = self.head;
            let length = u32::from_be_bytes([0, a, b, c]);
            // The first byte of a padded payload tells how much padding there is.
            let padded =
                self.have >= 9 && flags & PADDED != 0 && matches!(kind, DATA | HEADERS) && length > 0;
            if self.have == 9 + usize::from(padded) && self.have >= 9 {
                let padding = if padded { 1 + u32::from(self.head[9]) } else { 0 };
                self.skip = u64::from(length) - u64::from(padded);
                self.have = 0;
                each(Frame { kind, flags, length: length.saturating_sub(padding) });
            }
        }
    }
}

/// Counters of the codec that every connection of a worker shares.
#[derive(Clone, Debug, Default)]
pub(crate) struct FrameCounters {
    pub(crate) rx_reset: ByteCounter,
    pub(crate) tx_reset: ByteCounter,
    pub(crate) goaway_sent: ByteCounter,
}

/// Follows the frames of one downstream connection.
#[derive(Debug)]
pub(crate) struct Floods {
    inbound: Frames,
    outbound: Frames,
    limits: Http2Floods,
    streams: u64,
    empty: u32,
    priorities: u64,
    window_updates: u64,
    data_sent: u64,
    counters: FrameCounters,
    verdict: Verdict,
}

impl Floods {
    pub(crate) fn new(limits: Http2Floods, counters: FrameCounters, verdict: Verdict) -> Self {
        Self {
            inbound: Frames { skip: PREFACE, ..Frames::default() },
            outbound: Frames::default(),
            limits,
            streams: 0,
            empty: 0,
            priorities: 0,
            window_updates: 0,
            data_sent: 0,
            counters,
            verdict,
        }
    }

    /// Fails when the client has gone too far.
    pub(crate) fn received(&mut self, bytes: &[u8]) -> io::Result<()> {
        let mut inbound = std::mem::take(&mut self.inbound);
        let mut offence = None;
        inbound.pass(bytes, |frame| offence = offence.or(self.judge(frame)));
        self.inbound = inbound;
        match offence {
            None => Ok(()),
            Some(offence) => {
                self.verdict.set(offence);
                Err(io::Error::new(
                    io::ErrorKind::InvalidData,
                    "the client floods the connection with frames",
                ))
            }
        }
    }

    fn judge(&mut self, frame: Frame) -> Option<Offence> {
        match frame.kind {
            DATA | HEADERS | CONTINUATION => {
                if frame.kind != DATA && frame.flags & END_HEADERS != 0 {
                    self.streams += 1;
                }
                let ends = frame.kind != CONTINUATION && frame.flags & END_STREAM != 0;
                self.empty = if frame.length == 0 && !ends { self.empty + 1 } else { 0 };
                (self.empty > self.limits.empty_frames).then_some(Offence::EmptyFrames)
            }
            PRIORITY => {
                self.priorities += 1;
                let most = u64::from(self.limits.priority_frames_per_stream).saturating_mul(1 + self.streams);
                (self.priorities > most).then_some(Offence::PriorityFrames)
            }
            WINDOW_UPDATE => {
                self.window_updates += 1;
                let per_data = u64::from(self.limits.window_updates_per_data_frame);
                let most = FREE_WINDOW_UPDATES + 2 * (self.streams + per_data.saturating_mul(self.data_sent));
                (self.window_updates > most).then_some(Offence::WindowUpdates)
            }
            RST_STREAM => {
                self.counters.rx_reset.add(1);
                None
            }
            _ => None,
        }
    }

    pub(crate) fn sent(&mut self, bytes: &[u8]) {
        let Self { outbound, counters, data_sent, .. } = self;
        outbound.pass(bytes, |frame| match frame.kind {
            DATA => *data_sent += 1,
            RST_STREAM => counters.tx_reset.add(1),
            GOAWAY => counters.goaway_sent.add(1),
            _ => {}
        });
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn frame(kind: u8, flags: u8, payload: &[u8]) -> Vec<u8> {
        let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
        [&length[1..], &[kind, flags, 0, 0, 0, 1], payload].concat()
    }

    /// The offence after these frames, fed in pieces of a size.
    fn after(frames: &[Vec<u8>], size: usize) -> Option<Offence> {
        let verdict = Verdict::default();
        let mut floods = Floods::new(Http2Floods::default(), FrameCounters::default(), verdict.clone());
        let bytes = [vec![b'P'; 24], frames.concat()].concat();
        for piece in bytes.chunks(size) {
            if floods.received(piece).is_err() {
                break;
            }
        }
        verdict.get()
    }

    #[test]
    fn each_flood_is_found_beyond_its_limit() {
        let (nothing, ping) = (frame(DATA, 0, b""), frame(6, 0, &[0; 8]));
        let padded = frame(DATA, PADDED, &[3, 0, 0, 0]);
        for size in [1, 4, 10_000] {
            assert_eq!(after(std::slice::from_ref(&nothing), size), None);
            assert_eq!(after(&[nothing.clone(), frame(DATA, 0, b"x"), nothing.clone()], size), None);
            assert_eq!(after(&[nothing.clone(), nothing.clone()], size), Some(Offence::EmptyFrames));
            assert_eq!(after(&[padded.clone(), padded.clone()], size), Some(Offence::EmptyFrames));
            assert_eq!(
                after(&[nothing.clone(), ping.clone(), nothing.clone()], size),
                Some(Offence::EmptyFrames)
            );
            assert_eq!(after(&vec![frame(PRIORITY, 0, &[0; 5]); 100], size), None);
            assert_eq!(after(&vec![frame(PRIORITY, 0, &[0; 5]); 101], size), Some(Offence::PriorityFrames));
            assert_eq!(after(&vec![frame(WINDOW_UPDATE, 0, &[0; 4]); 5], size), None);
            assert_eq!(after(&vec![frame(WINDOW_UPDATE, 0, &[0; 4]); 6], size), Some(Offence::WindowUpdates));
            assert_eq!(after(&vec![ping.clone(); 1000], size), None);
        }
    }

    #[test]
    fn streams_and_data_sent_allow_more() {
        let counters = FrameCounters::default();
        let mut floods = Floods::new(Http2Floods::default(), counters.clone(), Verdict::default());
        floods.received(&[b'P'; 24]).unwrap();
        floods.received(&frame(HEADERS, END_HEADERS, b"x")).unwrap();
        floods.sent(
            &[frame(DATA, 0, b"abc"), frame(RST_STREAM, 0, &[0; 4]), frame(GOAWAY, 0, &[0; 8])].concat(),
        );
        for _ in 0..5 + 2 * (1 + 10) {
            floods.received(&frame(WINDOW_UPDATE, 0, &[0; 4])).unwrap();
        }
        assert!(floods.received(&frame(WINDOW_UPDATE, 0, &[0; 4])).is_err());
        assert_eq!((counters.tx_reset.get(), counters.goaway_sent.get()), (1, 1));
    }

    proptest! {
        #[test]
        fn any_bytes_in_any_pieces_are_survived(bytes in proptest::collection::vec(any::<u8>(), 0..300), size in 1usize..40) {
            let all = [vec![0; 24], bytes].concat();
            let judge = |size: usize| {
                let verdict = Verdict::default();
                let mut floods = Floods::new(Http2Floods::default(), FrameCounters::default(), verdict.clone());
                let broke = all.chunks(size).any(|piece| floods.received(piece).is_err());
                (broke, verdict.get())
            };
            prop_assert_eq!(judge(size), judge(all.len()));
        }
    }
}
