//! gRPC's status codes by name.
//! <https://grpc.github.io/grpc/core/md_doc_statuscodes.html>

/// Names by code.
const NAMES: [&str; 17] = [
    "OK",
    "CANCELLED",
    "UNKNOWN",
    "INVALID_ARGUMENT",
    "DEADLINE_EXCEEDED",
    "NOT_FOUND",
    "ALREADY_EXISTS",
    "PERMISSION_DENIED",
    "RESOURCE_EXHAUSTED",
    "FAILED_PRECONDITION",
    "ABORTED",
    "OUT_OF_RANGE",
    "UNIMPLEMENTED",
    "INTERNAL",
    "UNAVAILABLE",
    "DATA_LOSS",
    "UNAUTHENTICATED",
];

/// The code of a status, for example 14 for `UNAVAILABLE`.
pub fn status_code(name: &str) -> Option<u32> {
    NAMES.iter().position(|known| *known == name).and_then(|code| u32::try_from(code).ok())
}
