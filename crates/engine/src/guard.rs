//! What is looked at in a client's bytes before the parser gets them: what hyper cannot tell of a message once it has parsed it
//! ([`smuggling`](crate::smuggling)), and frames that cost more than they say ([`floods`](crate::floods)).

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering::Relaxed};

use crate::floods::Floods;
use crate::smuggling::Smuggling;

/// What a client did that no well-meaning client does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Offence {
    /// A request with `content-length` and `transfer-encoding`: two hops may disagree where it ends.
    LengthAndCoding = 1,
    /// A request with several `content-length`.
    Lengths,
    /// A request target with `#`: two hops may disagree what is asked for.
    Fragment,
    /// Frames that carry nothing and end nothing.
    EmptyFrames,
    PriorityFrames,
    WindowUpdates,
}

impl Offence {
    const ALL: [Self; 6] = [
        Self::LengthAndCoding,
        Self::Lengths,
        Self::Fragment,
        Self::EmptyFrames,
        Self::PriorityFrames,
        Self::WindowUpdates,
    ];

    /// Envoy's response code details.
    pub(crate) fn details(self) -> &'static str {
        match self {
            Self::LengthAndCoding => "http1.content_length_and_chunked_not_allowed",
            Self::Lengths => "http1.codec_error",
            Self::Fragment => "path_normalization_failed",
            Self::EmptyFrames => "http2.inbound_empty_frames_flood",
            Self::PriorityFrames | Self::WindowUpdates => "codec_error",
        }
    }
}

/// The offence of a connection, if any. Atomic only because sockets must be `Send` for hyper's upgrades.
#[derive(Clone, Debug, Default)]
pub(crate) struct Verdict(Arc<AtomicU8>);

impl Verdict {
    pub(crate) fn set(&self, offence: Offence) {
        self.0.store(offence as u8, Relaxed);
    }

    pub(crate) fn get(&self) -> Option<Offence> {
        let code = self.0.load(Relaxed);
        Offence::ALL.into_iter().find(|offence| *offence as u8 == code)
    }
}

/// See the module. Boxed, as a stream that is not a client's has none.
#[derive(Debug, Default)]
pub(crate) enum Guard {
    #[default]
    Nothing,
    Http1(Box<Smuggling>),
    Http2(Box<Floods>),
}

impl Guard {
    /// Looks at bytes that were received. May make them unreadable, so that the parser refuses them; an error ends the connection.
    #[inline]
    pub(crate) fn received(&mut self, bytes: &mut [u8]) -> io::Result<()> {
        match self {
            Self::Nothing => Ok(()),
            Self::Http1(smuggling) => {
                smuggling.received(bytes);
                Ok(())
            }
            Self::Http2(floods) => floods.received(bytes),
        }
    }

    /// Looks at bytes that were sent.
    #[inline]
    pub(crate) fn sent(&mut self, bytes: &[u8]) {
        if let Self::Http2(floods) = self {
            floods.sent(bytes);
        }
    }
}
