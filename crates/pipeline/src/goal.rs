//! The goal of one allocation.

use serde::Serialize;

/// The goal of one allocation.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Goal {
    /// Minimise J = loss + lambda * bits at this lambda, nats per bit.
    Lambda(f64),
    /// A file of this many bytes.
    Bytes(u64),
    /// This many bytes in a runtime's memory, or up to half a percent less.
    Resident(u64),
    /// Baseline codes of this many bits.
    Width(u32),
}

impl Goal {
    /// In words.
    pub fn label(self) -> String {
        match self {
            Self::Lambda(lambda) => format!("allocate at lambda {lambda:.1e}"),
            Self::Bytes(bytes) => format!("allocate for {bytes} bytes"),
            Self::Resident(bytes) => format!("allocate {bytes} bytes of memory"),
            Self::Width(bits) => format!("baseline of {bits} bits"),
        }
    }
}
