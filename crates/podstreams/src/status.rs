//! How a command ended, as clients read it from the status channel.

use serde_json::{Value, json};

/// The `metav1.Status` for an exit code; `None` when the code was lost (the runtime went away).
pub(crate) fn exit_status(code: Option<i32>) -> Value {
    match code {
        Some(0) => json!({"metadata": {}, "status": "Success"}),
        Some(code) => json!({
            "metadata": {}, "status": "Failure",
            "message": format!("command terminated with non-zero exit code: {code}"),
            "reason": "NonZeroExitCode",
            "details": {"causes": [{"reason": "ExitCode", "message": code.to_string()}]},
        }),
        None => json!({
            "metadata": {}, "status": "Failure", "code": 500, "reason": "InternalError",
            "message": "the container's runtime went away before the command ended",
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exit_codes_are_causes() {
        assert_eq!(exit_status(Some(0))["status"], "Success");
        let failed = exit_status(Some(7));
        assert_eq!(failed["reason"], "NonZeroExitCode");
        assert_eq!(failed["details"]["causes"][0], json!({"reason": "ExitCode", "message": "7"}));
        assert_eq!(exit_status(None)["reason"], "InternalError");
    }
}
