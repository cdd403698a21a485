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
    /// At most this many bytes in memory and of the file, as near to one of the two as above.
    Within { resident: u64, file: u64 },
    /// Baseline codes of this many bits.
    Width(u32),
}

impl Goal {
    /// The bytes of a format that is held as it is stored; 0 where no size is wanted.
    pub fn least_bytes(self) -> u64 {
        match self {
            Self::Bytes(bytes) | Self::Resident(bytes) => bytes,
            Self::Within { resident, file } => resident.min(file),
            Self::Lambda(_) | Self::Width(_) => 0,
        }
    }

    /// In words.
    pub fn label(self) -> String {
        match self {
            Self::Lambda(lambda) => format!("allocate at lambda {lambda:.1e}"),
            Self::Bytes(bytes) => format!("allocate for {bytes} bytes"),
            Self::Resident(bytes) => format!("allocate {bytes} bytes of memory"),
            Self::Within { resident, file } => format!("allocate {resident} bytes of memory, {file} of the file"),
            Self::Width(bits) => format!("baseline of {bits} bits"),
        }
    }
}
