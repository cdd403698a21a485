//! Errors of the template engine in words.

use std::fmt;

use minijinja::{Error, ErrorKind};

/// Marks errors that the template itself raised.
#[derive(Debug)]
pub(super) struct Raised;

impl fmt::Display for Raised {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("raised by the template")
    }
}

impl std::error::Error for Raised {}

/// Whether the template itself raised an error.
pub(super) fn is_raised(error: &Error) -> bool {
    let mut causes = std::iter::successors(std::error::Error::source(error), |cause| cause.source());
    causes.any(|cause| cause.is::<Raised>())
}

/// Line of an error as the beginning of a message; empty if it has none.
pub(super) fn place(error: &Error) -> String {
    error.line().map_or(String::new(), |line| format!("line {line}: "))
}

/// Place and reason of an error of the engine.
pub(super) fn described(error: &Error) -> String {
    match (error.kind(), error.detail()) {
        (ErrorKind::InvalidOperation, Some(detail)) => format!("{}{detail}", place(error)),
        (kind, Some(detail)) => format!("{}{kind}: {detail}", place(error)),
        (kind, None) => format!("{}{kind}", place(error)),
    }
}
