//! Reasons why a tensor cannot be used.

use std::ops::Range;

use waterfill_codec::Dtype;

use crate::types::{Element, Storage};

/// A tensor that is missing, damaged, or not of the expected form. Messages continue the tensor's name.
#[derive(Debug, thiserror::Error)]
pub enum TensorError {
    /// There is no tensor of this name.
    #[error("not in the checkpoint")]
    Missing,
    /// The tensor has another shape.
    #[error("shape {found:?}, expected {expected:?}")]
    Shape {
        /// Its shape.
        found: Vec<usize>,
        /// The shape needed.
        expected: Vec<usize>,
    },
    /// The tensor is no matrix.
    #[error("shape {shape:?}, expected a matrix")]
    NotAMatrix {
        /// Its shape.
        shape: Vec<usize>,
    },
    /// The matrix is too large for packed tiles.
    #[error("has more tiles than 32 bits count")]
    TooManyTiles,
    /// The matrix has fewer rows.
    #[error("rows {rows:?} are asked for, there are {available}")]
    Rows {
        /// Rows asked for.
        rows: Range<usize>,
        /// Rows of the matrix.
        available: usize,
    },
    /// Elements are of a type that values cannot be read from.
    #[error("dtype {found:?}, expected BF16, F16 or F32")]
    ElementType {
        /// Element type in the shard.
        found: Element,
    },
    /// Values cannot be decoded to this type.
    #[error("cannot be decoded to {dtype:?}, expected Bf16, F16 or F32")]
    OutputType {
        /// Type asked for.
        dtype: Dtype,
    },
    /// A buffer has another size than the decoded tensor.
    #[error("a buffer of {found} bytes, expected {expected}")]
    BufferSize {
        /// Bytes of the buffer.
        found: usize,
        /// Bytes of the decoded tensor.
        expected: usize,
    },
    /// Values to refine do not fit the tensor.
    #[error("{found} bytes of {layers} layers, expected {expected} of 1 or more")]
    LayerBuffer {
        /// Bytes given.
        found: usize,
        /// Quality layers that they are said to be of.
        layers: usize,
        /// Bytes of the decoded tensor.
        expected: usize,
    },
    /// A value does not fit the type asked for.
    #[error("value {value} is beyond the range of {dtype:?}")]
    OutOfRange {
        /// The value.
        value: f32,
        /// Type asked for.
        dtype: Dtype,
    },
    /// A value is not finite.
    #[error("element {element} is {value}, expected a finite number")]
    NotFinite {
        /// Index of the element, row-major.
        element: usize,
        /// Its value.
        value: f32,
    },
    /// A plain tensor differs from the one that was written.
    #[error("damaged: check {found}, the shard's mark says {expected}")]
    Check {
        /// Check of the bytes.
        found: String,
        /// Check in the mark.
        expected: String,
    },
    /// A stored piece differs from the one that was written.
    #[error("damaged: its check is {found:016x}, the bytes give {computed:016x}")]
    StoredCheck {
        /// Check in the file.
        found: u64,
        /// Check of the bytes.
        computed: u64,
    },
    /// A writer was given two tensors of one name.
    #[error("is given twice")]
    Duplicate,
    /// A writer was given a tensor with a name that the format uses itself.
    #[error("has the name of the safetensors header's metadata")]
    ReservedName,
    /// A writer was given plain bytes that begin as a coded tensor, or the reverse.
    #[error("is read as {found:?}, {expected:?} was written")]
    Storage {
        /// As the reader takes it.
        found: Storage,
        /// As it was given.
        expected: Storage,
    },
    /// A written tensor has other bytes than were given.
    #[error("has other bytes than were written; the disk or the memory may be faulty")]
    Written,
    /// The tensor is no coded tensor.
    #[error("does not begin as a coded tensor does")]
    NotCoded,
    /// A refinement has another shape than its base.
    #[error("refines a coded matrix of {found:?}, the base has {expected:?}")]
    RefinementShape {
        /// Shape of the refinement.
        found: [usize; 2],
        /// Shape of the base.
        expected: Vec<usize>,
    },
    /// A refinement has no base.
    #[error("is not in the base")]
    NotInBase,
    /// A writer was given another number of bytes than announced.
    #[error("{found} bytes, {announced} were announced")]
    Announced {
        /// Bytes given.
        found: u64,
        /// Bytes announced.
        announced: u64,
    },
    /// A coded tensor decodes to another number of bytes.
    #[error("{found} bytes in the coded tensor, the head says {expected}")]
    DecodedSize {
        /// Bytes that the coded tensor decodes to.
        found: u64,
        /// Bytes in the head.
        expected: u64,
    },
    /// A restored tensor has another size than the safetensors header says.
    #[error("{found} bytes, its header says {expected}")]
    RestoredSize {
        /// Bytes restored.
        found: u64,
        /// Bytes in the header.
        expected: u64,
    },
    /// A delta needs a tensor that the base does not have.
    #[error("has no counterpart in the base")]
    NoCounterpart,
    /// A delta changes a tensor whose elements are no weights.
    #[error("is of no type of weights, expected BF16, F16 or F32")]
    NotWeights,
    /// Factors of a low-rank change do not fit the tensor.
    #[error("has factors of another size than its header says")]
    FactorsSize,
    /// What was just written does not decode to what it was made from: a fault of the coder.
    #[error("does not come back as it was; please report it")]
    NotRestored,
    /// A coder that the caller passed in failed.
    #[error("{error}")]
    Coder {
        /// The coder's error.
        error: Box<dyn std::error::Error + Send + Sync>,
    },
}
