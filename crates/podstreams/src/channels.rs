//! Kubernetes' channels over WebSocket: every message starts with the number of the channel it belongs to.
//!
//! Source: `k8s.io/apimachinery/pkg/util/remotecommand/constants.go` and `…/httpstream/wsstream`.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::{BufMut, Bytes, BytesMut};
use futures::{Sink, SinkExt};
use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::{Error, Message};

/// Standard input of the command.
pub(crate) const STDIN: u8 = 0;
/// Standard output.
pub(crate) const STDOUT: u8 = 1;
/// Standard error.
pub(crate) const STDERR: u8 = 2;
/// How the command ended, a `metav1.Status`.
pub(crate) const STATUS: u8 = 3;
/// Terminal sizes, JSON.
pub(crate) const RESIZE: u8 = 4;
/// Version 5 only: the payload names a channel the client has closed.
pub(crate) const CLOSE: u8 = 255;

/// How a channel's bytes become a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Framing {
    /// Binary messages, the first byte is the channel.
    V4,
    /// As V4, and [`CLOSE`] exists.
    V5,
    /// Text messages: the channel as a digit, then base64.
    Base64,
}

impl Framing {
    pub(crate) fn for_exec(protocol: &str) -> Option<Self> {
        match protocol {
            "v5.channel.k8s.io" => Some(Self::V5),
            other => Self::for_port_forward(other),
        }
    }

    pub(crate) fn for_port_forward(protocol: &str) -> Option<Self> {
        match protocol {
            "v4.channel.k8s.io" => Some(Self::V4),
            "v4.base64.channel.k8s.io" => Some(Self::Base64),
            _ => None,
        }
    }

    /// The message that carries `data` on `channel` (which is below 10 for base64).
    pub(crate) fn encode(self, channel: u8, data: &[u8]) -> Message {
        match self {
            Self::V4 | Self::V5 => {
                let mut frame = BytesMut::with_capacity(data.len() + 1);
                frame.put_u8(channel);
                frame.put_slice(data);
                Message::Binary(frame.freeze())
            }
            Self::Base64 => Message::text(format!("{}{}", char::from(b'0' + channel), STANDARD.encode(data))),
        }
    }

    /// Channel and data of a message; `None` for those that carry none (pings, malformed ones).
    pub(crate) fn decode(self, message: Message) -> Option<(u8, Bytes)> {
        match (self, message) {
            (Self::V4 | Self::V5, Message::Binary(mut frame)) if !frame.is_empty() => {
                let data = frame.split_off(1);
                Some((frame[0], data))
            }
            (Self::Base64, Message::Text(text)) => {
                let channel = text.as_bytes().first().filter(|digit| digit.is_ascii_digit())? - b'0';
                let data = STANDARD.decode(text.as_bytes().get(1..)?).ok()?;
                Some((channel, data.into()))
            }
            _ => None,
        }
    }
}

/// Closes with code 1000: clients of Kubernetes take a close without a code for an error.
pub(crate) async fn close<W>(to_client: &mut W) -> Result<(), Error>
where
    W: Sink<Message, Error = Error> + Unpin,
{
    let frame = CloseFrame { code: CloseCode::Normal, reason: "".into() };
    to_client.send(Message::Close(Some(frame))).await?;
    to_client.close().await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_round_trip() {
        for framing in [Framing::V4, Framing::V5, Framing::Base64] {
            for data in [&b""[..], b"hello", &[0, 255, 10]] {
                let decoded = framing.decode(framing.encode(STATUS, data)).unwrap();
                assert_eq!(decoded, (STATUS, Bytes::copy_from_slice(data)), "{framing:?}");
            }
        }
        assert_eq!(Framing::Base64.encode(STDOUT, b"hi"), Message::text("1aGk="));
    }

    #[test]
    fn malformed_messages_are_nothing() {
        assert_eq!(Framing::V4.decode(Message::Binary(Bytes::new())), None);
        assert_eq!(Framing::V4.decode(Message::text("1aGk=")), None);
        for text in ["", "x", "1***"] {
            assert_eq!(Framing::Base64.decode(Message::text(text)), None, "{text}");
        }
    }

    #[test]
    fn closing_channels_exists_in_version_5_of_exec_only() {
        assert_eq!(Framing::for_exec("v5.channel.k8s.io"), Some(Framing::V5));
        assert_eq!(Framing::for_port_forward("v5.channel.k8s.io"), None);
    }
}
