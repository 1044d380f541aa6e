//! What a user reads when something fails: one sentence, and the command to try next.

use std::fmt;

/// An error with advice.
#[derive(Debug)]
pub struct Failure {
    message: String,
    next: String,
}

impl Failure {
    /// What happened, and the command (or step) that helps.
    pub fn new(message: impl Into<String>, next: impl Into<String>) -> Self {
        Self { message: message.into(), next: next.into() }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}\n  try: {}", self.message, self.next)
    }
}

impl std::error::Error for Failure {}
