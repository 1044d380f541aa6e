//! What a health check asks gRPC's health service, and what its answer means.
//! <https://github.com/grpc/grpc/blob/master/doc/health-checking.md>

use std::sync::Arc;
use std::time::Duration;

use prost::Message;

use crate::HealthVerdict;

/// Where the health service is.
pub const GRPC_HEALTH_PATH: &str = "/grpc.health.v1.Health/Check";

/// Length of the prefix of a message: a flag and four bytes of length.
const PREFIX: usize = 5;

/// Envoy's `GrpcHealthCheck`.
#[derive(Clone, Debug, Default)]
pub struct GrpcProbe {
    /// Which of the server's services is asked about; empty: the server.
    pub service: Box<str>,
    /// `:authority`; `None`: the cluster's name.
    pub authority: Option<Arc<str>>,
}

/// `grpc.health.v1.HealthCheckRequest`.
#[derive(Clone, PartialEq, Message)]
struct Question {
    #[prost(string, tag = "1")]
    service: String,
}

/// `grpc.health.v1.HealthCheckResponse`.
#[derive(Clone, PartialEq, Message)]
struct Reply {
    #[prost(int32, tag = "1")]
    status: i32,
}

impl GrpcProbe {
    /// `ServingStatus.SERVING`.
    pub const SERVING: i32 = 1;

    /// The body of the request: one message with its prefix.
    pub fn request(&self) -> Vec<u8> {
        let message = Question { service: self.service.to_string() }.encode_to_vec();
        let length = u32::try_from(message.len()).unwrap_or(u32::MAX);
        let mut body = vec![0];
        body.extend(length.to_be_bytes());
        body.extend(message);
        body
    }

    /// What an answer of status 200 says: its body and the `grpc-status` of its trailers.
    pub fn judge(body: &[u8], status: Option<&[u8]>) -> HealthVerdict {
        let serves = status == Some(b"0") && Self::serving_status(body) == Some(Self::SERVING);
        if serves {
            HealthVerdict::Passed
        } else {
            HealthVerdict::Failed { retriable: false, leaving: false }
        }
    }

    /// The `ServingStatus` in the one message of an answer, which is not compressed; `None`: there is no such message.
    pub fn serving_status(body: &[u8]) -> Option<i32> {
        let (prefix, message) = body.split_at_checked(PREFIX)?;
        let [0, length @ ..] = prefix else { return None };
        let length = u32::from_be_bytes(length.try_into().ok()?);
        let is_whole = message.len() == usize::try_from(length).ok()?;
        is_whole.then(|| Reply::decode(message).ok())?.map(|reply| reply.status)
    }
}

/// `grpc-timeout`: at most eight digits, milliseconds unless they are too many.
pub fn grpc_timeout_text(timeout: Duration) -> String {
    const MOST: u128 = 99_999_999;
    let mut time = timeout.as_millis();
    for (unit, next) in [("m", 1000), ("S", 60), ("M", 60)] {
        if time <= MOST {
            return format!("{time}{unit}");
        }
        time /= next;
    }
    format!("{}H", time.min(MOST))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_name_the_service() {
        let probe = |service: &str| GrpcProbe { service: service.into(), authority: None }.request();
        assert_eq!(probe(""), [0, 0, 0, 0, 0]);
        assert_eq!(probe("ab"), [0, 0, 0, 0, 4, 0x0a, 2, b'a', b'b']);
    }

    #[test]
    fn timeouts_have_eight_digits() {
        for (seconds, text) in
            [(1, "1000m"), (99_999, "99999000m"), (100_000, "100000S"), (u64::MAX, "99999999H")]
        {
            assert_eq!(grpc_timeout_text(Duration::from_secs(seconds)), text);
        }
    }

    #[test]
    fn only_one_whole_message_that_says_serving_is_well() {
        let failed = HealthVerdict::Failed { retriable: false, leaving: false };
        let serving = [0, 0, 0, 0, 2, 8, 1];
        assert_eq!(GrpcProbe::judge(&serving, Some(b"0")), HealthVerdict::Passed);
        assert_eq!(GrpcProbe::judge(&serving, Some(b"5")), failed);
        assert_eq!(GrpcProbe::judge(&serving, None), failed);
        assert_eq!(GrpcProbe::judge(&[0, 0, 0, 0, 2, 8, 2], Some(b"0")), failed);
        assert_eq!(GrpcProbe::judge(&serving.repeat(2), Some(b"0")), failed);
        assert_eq!(GrpcProbe::serving_status(&[0, 0, 0, 0, 2, 8, 2]), Some(2));
        assert_eq!(
            GrpcProbe::serving_status(&[0, 0, 0, 0, 0]),
            Some(0),
            "unknown, as a message without a field says"
        );
    }

    proptest::proptest! {
        /// No bytes make it panic, and only whole messages are read.
        #[test]
        fn any_bytes_are_judged(body in proptest::collection::vec(0_u8.., 0..40), cut in 1_usize..7) {
            GrpcProbe::judge(&body, Some(b"0"));
            let serving = [0, 0, 0, 0, 2, 8, 1];
            let failed = HealthVerdict::Failed { retriable: false, leaving: false };
            proptest::prop_assert_eq!(GrpcProbe::judge(&serving[..serving.len() - cut], Some(b"0")), failed);
        }
    }
}
