//! Checking decoded values against a tensor's digest.

use crate::error::{CodecError, Result};
use crate::syntax::header::truncate;

/// Running digest of decoded bytes, with the one that the tensor declares.
pub struct TensorDigest {
    hasher: blake3::Hasher,
    expected: [u8; 16],
}

impl TensorDigest {
    pub(super) fn new(expected: [u8; 16]) -> Self {
        Self { hasher: blake3::Hasher::new(), expected }
    }

    /// Adds bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        self.hasher.update(bytes);
    }

    /// Compares.
    ///
    /// # Errors
    /// When they differ.
    pub fn check(self) -> Result<()> {
        if truncate(&self.hasher) == self.expected { Ok(()) } else { Err(CodecError::Digest) }
    }
}
