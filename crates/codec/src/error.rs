//! Errors of the codec: why a coded tensor cannot be read, or a plan cannot be written.

use crate::format::Dtype;

/// Result of a codec operation.
pub type Result<T> = std::result::Result<T, CodecError>;

/// A coded tensor that cannot be read, or a plan that cannot be written.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CodecError {
    /// The bytes end before the syntax does.
    #[error("{what}: needs {needed} bytes, {available} are left")]
    Truncated {
        /// The syntax element being read.
        what: &'static str,
        /// Bytes that it needs.
        needed: u64,
        /// Bytes that are left.
        available: u64,
    },
    /// The first four bytes are not `WFT1`.
    #[error("not a coded tensor of version 1: the first four bytes are {found:02x?}, expected \"WFT1\"")]
    Magic {
        /// The bytes found.
        found: [u8; 4],
    },
    /// The tensor uses a tool that is reserved for later versions.
    #[error("the tensor uses {tool} (tools {bits:#010x}), which this version does not decode")]
    UnsupportedTool {
        /// The tool that the lowest reserved bit stands for.
        tool: &'static str,
        /// The header's `tools` field.
        bits: u32,
    },
    /// A refinement layer was expected, the tensor is none.
    #[error("expected a refinement layer, the tensor decodes alone")]
    NotARefinement,
    /// A refinement is used without the layer that it refines.
    #[error("the tensor is a refinement layer: it is coded and decoded with the layer that it refines")]
    MissingBase,
    /// A refinement is of a tensor of another type or shape.
    #[error("a refinement layer of another tensor: it refines {found}, expected {expected}")]
    OtherBase {
        /// Type and shape that the refinement has.
        found: TensorType,
        /// Type and shape of the layer before it.
        expected: TensorType,
    },
    /// A field has a value outside its limits.
    #[error("{field} is {found}, expected {expected}")]
    Field {
        /// Name of the field as in the specification.
        field: &'static str,
        /// The value found.
        found: i64,
        /// Values that the specification allows.
        expected: &'static str,
    },
    /// A stored check does not match the bytes it covers.
    #[error("{part} is damaged: its check is {found:016x}, the bytes give {computed:016x}")]
    Check {
        /// The part that the check covers.
        part: Part,
        /// Stored check.
        found: u64,
        /// Check of the bytes.
        computed: u64,
    },
    /// The entropy decoder did not end where the encoder did.
    #[error("{part}: the entropy-coded data is not consistent")]
    Entropy {
        /// The part that was decoded.
        part: Part,
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
    /// A buffer or a plan has another length than the tensor needs.
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

/// A part of a coded tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// The header with its slice table.
    Header,
    /// The side information.
    SideInfo,
    /// A slice, from 0 on.
    Slice(usize),
    /// A stream of differences from a base tensor.
    Difference,
}

impl std::fmt::Display for Part {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        match self {
            Self::Header => f.write_str("header"),
            Self::SideInfo => f.write_str("side information"),
            Self::Slice(n) => write!(f, "slice {n}"),
            Self::Difference => f.write_str("difference"),
        }
    }
}

/// Element type and shape of a matrix.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TensorType {
    /// Element type.
    pub dtype: Dtype,
    /// Rows.
    pub rows: usize,
    /// Columns.
    pub cols: usize,
}

impl std::fmt::Display for TensorType {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        write!(f, "{:?} of {}x{}", self.dtype, self.rows, self.cols)
    }
}

/// Compares the length of a buffer with the one needed.
pub(crate) fn check_length(what: &'static str, found: usize, expected: usize) -> Result<()> {
    if found == expected { Ok(()) } else { Err(CodecError::Shape { what, found, expected }) }
}
