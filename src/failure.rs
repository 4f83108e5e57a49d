//! Errors a user can act on: what failed, what to do next, and the exit status it means.

use std::fmt;

/// Exit statuses besides CMD's own (README, "Use").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    Usage,
    Runtime,
    /// This kernel, or these privileges, allow no tracing.
    CannotTrace,
}

impl Exit {
    /// With `-- CMD` a status of CMD's own must not be mistaken for ours: `env` says 125 then.
    pub fn code(self, with_command: bool) -> u8 {
        match (self, with_command) {
            (Exit::Usage, _) => 2,
            (_, true) => 125,
            (Exit::Runtime, false) => 4,
            // EX_NOPERM of sysexits.h, and what automake takes for "skipped".
            (Exit::CannotTrace, false) => 77,
        }
    }
}

/// An error at the root of a chain that knows its exit status and a way out.
#[derive(Debug)]
pub struct Failure {
    pub exit: Exit,
    pub message: String,
    pub hint: Option<String>,
}

impl Failure {
    pub fn new(exit: Exit, message: impl Into<String>, hint: impl Into<String>) -> Failure {
        Failure { exit, message: message.into(), hint: Some(hint.into()) }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Failure {}
