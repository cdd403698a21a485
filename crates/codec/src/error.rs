//! What can be wrong with a coded tensor.

/// Result of a codec operation.
pub type Result<T> = std::result::Result<T, CodecError>;

/// A coded tensor that cannot be read, or a plan that cannot be written.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CodecError {
    /// The bytes end before the syntax does.
    #[error("{what}: needs {needed} bytes, {available} are left")]
    Truncated {
        /// The part being read.
        what: &'static str,
        /// Bytes it needs.
        needed: u64,
        /// Bytes there are.
        available: u64,
    },
    /// The first four bytes are not `WFT1`.
    #[error("not a coded tensor of version 1: the first four bytes are {found:02x?}, expected \"WFT1\"")]
    Magic {
        /// The bytes found.
        found: [u8; 4],
    },
    /// A tensor uses a tool that is reserved for later versions.
    #[error("the tensor uses {tool} (tools {bits:#010x}), which this version does not decode")]
    Later {
        /// What the lowest reserved bit stands for.
        tool: &'static str,
        /// The header's field.
        bits: u32,
    },
    /// A refinement without the layer before, or with another tensor.
    #[error("a refinement layer of another tensor: {reason}")]
    Layer {
        /// What was found and what was expected.
        reason: String,
    },
    /// A field has a value outside its limits.
    #[error("{field} is {found}, expected {expected}")]
    Field {
        /// Name of the field as in the specification.
        field: &'static str,
        /// The value found.
        found: i64,
        /// What the specification allows.
        expected: &'static str,
    },
    /// A stored check does not match the bytes it covers.
    #[error("{part} is damaged: its check is {found:016x}, the bytes give {computed:016x}")]
    Check {
        /// The part covered by the check, such as `header` or `slice 3`.
        part: String,
        /// Stored value.
        found: u64,
        /// Value computed from the bytes.
        computed: u64,
    },
    /// The entropy decoder did not end where the encoder did.
    #[error("{part}: the entropy-coded data is not consistent")]
    Entropy {
        /// Slice or side information.
        part: String,
    },
    /// The decoded tensor differs from the one that was encoded.
    #[error("decoded values do not match the tensor digest")]
    Digest,
    /// There is no memory for the decoded tensor.
    #[error("no memory for a tensor that says it decodes to {bytes} bytes")]
    Memory {
        /// Bytes of the decoded tensor.
        bytes: usize,
    },
    /// A buffer or a plan has another shape than the tensor.
    #[error("{what} has {found} entries, expected {expected}")]
    Shape {
        /// The buffer or vector.
        what: &'static str,
        /// Its length.
        found: usize,
        /// The length needed.
        expected: usize,
    },
    /// A weight that no format can carry.
    #[error("weight at row {row}, column {col} is {value}, expected a finite number")]
    NotFinite {
        /// Row of the weight.
        row: usize,
        /// Column of the weight.
        col: usize,
        /// Its value.
        value: String,
    },
}
