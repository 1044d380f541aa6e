//! A body on its way in: a client's request or an endpoint's answer, over either version of HTTP.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use h2::RecvStream;
use http::{HeaderMap, header};
use http_body::{Body, Frame, SizeHint};

use crate::http2::Duplex;

/// See the module.
pub(crate) enum Incoming {
    /// There is none.
    Empty,
    Http1(hyper::body::Incoming),
    Http2(Http2Body),
    /// In the place of an answer's: over HTTP/2 the endpoint has agreed to a CONNECT.
    Agreed(Box<Duplex>),
}

/// The other side's stream broke.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StreamError {
    #[error(transparent)]
    Http1(#[from] hyper::Error),
    #[error(transparent)]
    Http2(#[from] h2::Error),
}

impl From<hyper::body::Incoming> for Incoming {
    fn from(body: hyper::body::Incoming) -> Self {
        Self::Http1(body)
    }
}

/// A body that comes over HTTP/2.
pub(crate) struct Http2Body {
    stream: RecvStream,
    /// Bytes that are to come yet, where that was said.
    left: Option<u64>,
    data_ended: bool,
}

impl Http2Body {
    /// The body that follows a head with these headers.
    pub(crate) fn new(stream: RecvStream, headers: &HeaderMap) -> Self {
        let length =
            headers.get(header::CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse().ok());
        Self { stream, left: length, data_ended: false }
    }

    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, h2::Error>>> {
        if !self.data_ended {
            match ready!(self.stream.poll_data(cx)) {
                Some(Ok(data)) => {
                    // The next piece is asked for when this one has been passed on, so that its room is free now.
                    let _ = self.stream.flow_control().release_capacity(data.len());
                    self.left = self.left.map(|left| left.saturating_sub(data.len() as u64));
                    return Poll::Ready(Some(Ok(Frame::data(data))));
                }
                Some(Err(error)) => return Poll::Ready(Some(Err(error))),
                None => self.data_ended = true,
            }
        }
        let trailers = ready!(self.stream.poll_trailers(cx)).transpose();
        Poll::Ready(trailers.map(|trailers| trailers.map(Frame::trailers)))
    }
}

impl Incoming {
    /// What an agreed CONNECT leads to.
    pub(crate) fn into_duplex(self) -> Option<Box<Duplex>> {
        if let Self::Agreed(stream) = self { Some(stream) } else { None }
    }
}

impl Body for Incoming {
    type Data = Bytes;
    type Error = StreamError;

    #[inline]
    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, StreamError>>> {
        match self.get_mut() {
            Self::Empty | Self::Agreed(_) => Poll::Ready(None),
            Self::Http1(body) => Pin::new(body).poll_frame(cx).map_err(StreamError::from),
            Self::Http2(body) => body.poll_frame(cx).map_err(StreamError::from),
        }
    }

    #[inline]
    fn is_end_stream(&self) -> bool {
        match self {
            Self::Empty | Self::Agreed(_) => true,
            Self::Http1(body) => body.is_end_stream(),
            Self::Http2(body) => body.stream.is_end_stream(),
        }
    }

    #[inline]
    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Empty | Self::Agreed(_) => SizeHint::with_exact(0),
            Self::Http1(body) => body.size_hint(),
            Self::Http2(body) => body.left.map_or_else(SizeHint::default, SizeHint::with_exact),
        }
    }
}
