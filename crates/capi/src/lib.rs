//! The decoder for C. Every function returns a [`WfStatus`]; [`wf_last_error`] on the same thread has the message of
//! a failure. No panic crosses the border: it becomes [`WfStatus::Panic`].
//!
//! Unsafe code is confined to this file. Its invariant: a pointer from a caller is null, which is an error, or valid
//! for what the function's documentation says. A handle comes from this library and is used until it is freed, and
//! while it is freed by no other thread.

#![allow(unsafe_code)]

use std::cell::RefCell;
use std::ffi::{CStr, CString, c_char, c_void};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};

use waterfill_checkpoint::packed::{PackedFormat, PackedTensor};
use waterfill_checkpoint::{Checkpoint, CheckpointError, Control, QualityPrefix, Storage};
use waterfill_codec::Dtype;

/// Outcome of a call.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WfStatus {
    /// Success.
    Ok = 0,
    /// A file cannot be read.
    Io = 1,
    /// A file is not of the expected form.
    File = 2,
    /// A tensor is missing, or of another type or shape.
    Tensor = 3,
    /// A coded tensor is damaged or of another version.
    Damaged = 4,
    /// The callback cancelled the work.
    Cancelled = 5,
    /// A null pointer, text that is not UTF-8, an index beyond the end, or a buffer of another size.
    Argument = 6,
    /// A fault of this library.
    Panic = 7,
}

/// Element type of decoded tensors.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WfDtype {
    /// bfloat16.
    Bf16 = 0,
    /// IEEE half precision.
    F16 = 1,
    /// IEEE single precision.
    F32 = 2,
}

/// Number format of packed tiles.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WfFormat {
    /// Levels -8 to 7, the lower half of a byte first: 128 bytes a tile.
    Int4 = 0,
    /// Levels -127 to 127: 256 bytes.
    Int8 = 1,
    /// FP8 E4M3: 256 bytes.
    E4m3 = 2,
    /// FP8 E5M2: 256 bytes.
    E5m2 = 3,
    /// Elements of the tensor's type, without scales: 512 bytes, or 1024 of F32.
    Plain = 4,
    /// Levels -2 to 1, element i in bits 2 (i mod 4) and up of byte i / 4: 64 bytes.
    Int2 = 5,
    /// Levels -4 to 3: the lower two bits as of Int2, then 32 bytes of signs, that of element i in bit i mod 8 of byte i / 8:
    /// 96 bytes.
    Int3 = 6,
    /// Levels -16 to 15: the lower four bits as of Int4, then signs as of Int3: 160 bytes.
    Int5 = 7,
    /// Levels -32 to 31: the lower four bits as of Int4, then the upper two as of Int2: 192 bytes.
    Int6 = 8,
    /// Levels -64 to 63: the lower six bits as of Int6, then signs as of Int3: 224 bytes.
    Int7 = 9,
    /// Codes of 1 bit of a trellis: 32 bytes.
    Trellis1 = 10,
    /// Codes of 2 bits of a trellis: 64 bytes.
    Trellis2 = 11,
    /// Codes of 3 bits of a trellis: 96 bytes.
    Trellis3 = 12,
    /// Codes of 4 bits of a trellis: 128 bytes.
    Trellis4 = 13,
    /// Codes of 5 bits of a trellis: 160 bytes.
    Trellis5 = 14,
    /// Codes of 6 bits of a trellis: 192 bytes.
    Trellis6 = 15,
    /// Codes of 7 bits of a trellis: 224 bytes.
    Trellis7 = 16,
    /// Codes of 8 bits of a trellis: 256 bytes.
    Trellis8 = 17,
}

/// An open checkpoint.
pub struct WfCheckpoint {
    checkpoint: Checkpoint,
    names: Vec<CString>,
}

/// A matrix in packed tiles.
pub struct WfPacked(PackedTensor);

/// A tensor of a checkpoint; pointers hold until the checkpoint is closed.
#[repr(C)]
pub struct WfTensorInfo {
    /// Name, UTF-8 with a zero at its end.
    pub name: *const c_char,
    /// Its dimensions.
    pub shape: *const usize,
    /// Number of dimensions.
    pub dims: usize,
    /// Weights.
    pub weights: u64,
    /// Bytes in the file.
    pub bytes: u64,
    /// True for a coded tensor.
    pub coded: bool,
}

/// A packed matrix; pointers hold until it is freed.
#[repr(C)]
pub struct WfPackedInfo {
    /// Rows (output features).
    pub rows: usize,
    /// Columns (input features).
    pub cols: usize,
    /// Type of the decoded tensor, and of plain tiles.
    pub dtype: WfDtype,
    /// Scale of each row in quarter octaves, or null for zeros.
    pub row_scales: *const i8,
    /// Scale of each column in quarter octaves, or null for zeros.
    pub col_scales: *const i8,
    /// Number of buckets.
    pub buckets: usize,
    /// Bytes in memory.
    pub resident_bytes: usize,
    /// Bits of a state of the trellis that codes belong to, or 0 without any.
    pub trellis_state_bits: u32,
    /// Rows of tiles after which columns start from state 0 again.
    pub trellis_restart: usize,
}

/// Tiles of one format; pointers hold until the matrix is freed. The weight in row r and column c of a tile that is not plain
/// is its code times wf_scale(scale + 2 (tile + row + column)) with the scales of its tile, row and column.
///
/// Codes of a trellis lie as integers of as many bits do (of one bit as the signs of Int3), without sign. Every column of the
/// matrix has a state, 0 before each `trellis_restart`-th row of tiles and after tiles of other formats; a code of b bits makes
/// it (state << b | code) mod 2^`trellis_state_bits`, and wf_trellis_level of that stands for the code in the product above. As
/// tiles have at least as many bits a column as a state, the state before a tile follows from the tile above it.
#[repr(C)]
pub struct WfBucket {
    /// Their format.
    pub format: WfFormat,
    /// Number of tiles.
    pub tiles: usize,
    /// Tiles of this bucket before each row of tiles of the matrix, and of all: (rows + 15) / 16 + 1 entries.
    pub row_starts: *const u32,
    /// Whether each tile of the matrix is in this bucket, a bit each from the lowest on: column of tiles c of a row of tiles in
    /// bit c mod 8 of its byte c / 8. A row of tiles has ((cols + 15) / 16 + 7) / 8 bytes.
    pub occupied: *const u8,
    /// Scale of each tile in quarter octaves, or null for plain tiles.
    pub scales: *const i8,
    /// Scale of the bucket in eighths of an octave.
    pub scale: i32,
    /// Tile after tile, 16 rows of 16; the first is aligned to 128 bytes.
    pub data: *const u8,
    /// Bytes of `data`.
    pub bytes: usize,
}

/// Called with the parts done and all parts, from any thread; a result other than zero cancels the work.
pub type WfProgress = Option<extern "C" fn(done: usize, all: usize, user: *mut c_void) -> i32>;

thread_local! {
    static LAST: RefCell<CString> = RefCell::default();
}

/// A status and its message.
struct Failure(WfStatus, String);

impl From<CheckpointError> for Failure {
    fn from(error: CheckpointError) -> Self {
        let status = match &error {
            CheckpointError::Io { .. } => WfStatus::Io,
            CheckpointError::File { .. } | CheckpointError::ReadBack { .. } => WfStatus::File,
            CheckpointError::Tensor { .. } => WfStatus::Tensor,
            CheckpointError::Codec { .. } => WfStatus::Damaged,
            CheckpointError::Cancelled => WfStatus::Cancelled,
        };
        Self(status, error.to_string())
    }
}

fn argument(reason: &str) -> Failure {
    Failure(WfStatus::Argument, reason.into())
}

/// Runs `f`, keeps its message, lets no panic out.
fn guard(f: impl FnOnce() -> Result<(), Failure>) -> WfStatus {
    let (status, message) = match catch_unwind(AssertUnwindSafe(f)) {
        Ok(Ok(())) => (WfStatus::Ok, String::new()),
        Ok(Err(Failure(status, message))) => (status, message),
        Err(_) => (WfStatus::Panic, "a fault of the library; please report it".into()),
    };
    LAST.with_borrow_mut(|last| *last = CString::new(message.replace('\0', " ")).unwrap_or_default());
    status
}

/// # Safety
/// `pointer` is null or valid for reads.
unsafe fn reference<'a, T>(pointer: *const T, what: &str) -> Result<&'a T, Failure> {
    // SAFETY: as the caller promises.
    unsafe { pointer.as_ref() }.ok_or_else(|| argument(&format!("{what} is null")))
}

/// # Safety
/// `out` is null or valid for a write.
unsafe fn put<T>(out: *mut T, value: T) -> Result<(), Failure> {
    if out.is_null() {
        return Err(argument("out is null"));
    }
    // SAFETY: not null, and valid as the caller promises.
    unsafe { out.write(value) };
    Ok(())
}

/// # Safety
/// `text` is null or ends with a zero.
unsafe fn text<'a>(text: *const c_char, what: &str) -> Result<&'a str, Failure> {
    if text.is_null() {
        return Err(argument(&format!("{what} is null")));
    }
    // SAFETY: not null, and ends with a zero as the caller promises.
    unsafe { CStr::from_ptr(text) }.to_str().map_err(|_| argument(&format!("{what} is not UTF-8")))
}

fn opened(checkpoint: Checkpoint) -> Box<WfCheckpoint> {
    let names = checkpoint.tensors().map(|t| CString::new(t.name.replace('\0', " ")).unwrap_or_default()).collect();
    Box::new(WfCheckpoint { checkpoint, names })
}

/// One of [`WfDtype`]'s numbers: C callers may pass any.
fn dtype_of(dtype: u32) -> Result<Dtype, Failure> {
    [Dtype::Bf16, Dtype::F16, Dtype::F32]
        .get(dtype as usize)
        .copied()
        .ok_or_else(|| argument(&format!("dtype {dtype}, expected 0 to 2")))
}

/// Decodes with a callback as progress and end.
fn followed<T>(
    progress: WfProgress,
    user: *mut c_void,
    f: impl FnOnce(Control) -> waterfill_checkpoint::Result<T>,
) -> Result<T, Failure> {
    let stop = AtomicBool::new(false);
    // The header says that the callback runs on several threads: sharing the pointer is up to the caller.
    let user = user as usize;
    let told = |done: usize, all: usize| {
        if let Some(callback) = progress
            && callback(done, all, user as *mut c_void) != 0
        {
            stop.store(true, Ordering::Relaxed);
        }
    };
    let done = f(Control { progress: Some(&told), cancelled: Some(&stop) })?;
    match stop.load(Ordering::Relaxed) {
        true => Err(CheckpointError::Cancelled.into()),
        false => Ok(done),
    }
}

/// Message of the last call on this thread, empty after success. Valid until the next call.
#[unsafe(no_mangle)]
pub extern "C" fn wf_last_error() -> *const c_char {
    LAST.with_borrow(|last| last.as_ptr())
}

/// Opens a directory or one safetensors file.
///
/// # Safety
/// `path` ends with a zero; `out` takes the handle, to be closed with [`wf_close`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wf_open(path: *const c_char, out: *mut *mut WfCheckpoint) -> WfStatus {
    guard(|| {
        // SAFETY: as this function's caller promises.
        let checkpoint = Checkpoint::open(unsafe { text(path, "path") }?)?;
        // SAFETY: likewise.
        unsafe { put(out, Box::into_raw(opened(checkpoint))) }
    })
}

/// Opens the first `layers` quality layers of a directory, or what fits into the first `bytes` of all its shards; 0
/// means no limit, and at most one of the two may be given.
///
/// # Safety
/// As [`wf_open`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wf_open_prefix(
    path: *const c_char,
    layers: usize,
    bytes: u64,
    out: *mut *mut WfCheckpoint,
) -> WfStatus {
    guard(|| {
        let prefix = match (layers, bytes) {
            (0, 0) => QualityPrefix::All,
            (layers, 0) => QualityPrefix::Layers(layers),
            (0, bytes) => QualityPrefix::Bytes(bytes),
            _ => return Err(argument("layers and bytes are both given")),
        };
        // SAFETY: as this function's caller promises.
        let checkpoint = Checkpoint::open_prefix(unsafe { text(path, "path") }?, prefix)?;
        // SAFETY: likewise.
        unsafe { put(out, Box::into_raw(opened(checkpoint))) }
    })
}

/// Quality layers that are open: 1 for a checkpoint without refinements.
///
/// # Safety
/// `checkpoint` is null or open.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wf_layers(checkpoint: *const WfCheckpoint) -> usize {
    // SAFETY: as the caller promises.
    unsafe { checkpoint.as_ref() }.map_or(0, |c| c.checkpoint.quality_layers())
}

/// Refines a tensor in place: `data` holds what its first `layers` quality layers decode to, in its own type, and
/// receives what all open layers decode to. After an error it must not be used.
///
/// # Safety
/// `checkpoint` is open, `name` ends with a zero, `data` has `bytes` bytes that nobody else uses meanwhile.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wf_refine(
    checkpoint: *const WfCheckpoint,
    name: *const c_char,
    layers: usize,
    data: *mut u8,
    bytes: usize,
    progress: WfProgress,
    user: *mut c_void,
) -> WfStatus {
    guard(|| {
        // SAFETY: as this function's caller promises.
        let (this, name) = unsafe { (reference(checkpoint, "checkpoint")?, text(name, "name")?) };
        if data.is_null() {
            return Err(argument("data is null"));
        }
        // SAFETY: not null, and as long as this function's caller promises.
        let values = unsafe { std::slice::from_raw_parts_mut(data, bytes) };
        followed(progress, user, |control| this.checkpoint.refine(name, layers, values, control))
    })
}

/// Opens the bytes of one safetensors file, which are copied.
///
/// # Safety
/// `data` has `length` bytes; `out` takes the handle, to be closed with [`wf_close`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wf_open_bytes(data: *const u8, length: usize, out: *mut *mut WfCheckpoint) -> WfStatus {
    guard(|| {
        if data.is_null() {
            return Err(argument("data is null"));
        }
        // SAFETY: not null, and as long as this function's caller promises.
        let bytes = unsafe { std::slice::from_raw_parts(data, length) };
        let checkpoint = Checkpoint::of_bytes("bytes in memory", bytes.into())?;
        // SAFETY: as this function's caller promises.
        unsafe { put(out, Box::into_raw(opened(checkpoint))) }
    })
}

/// Closes a checkpoint; null is left alone.
///
/// # Safety
/// `checkpoint` comes from this library and is not used again.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wf_close(checkpoint: *mut WfCheckpoint) {
    if !checkpoint.is_null() {
        // SAFETY: made by Box::into_raw, and given back once as the caller promises.
        drop(unsafe { Box::from_raw(checkpoint) });
    }
}

/// Number of tensors.
///
/// # Safety
/// `checkpoint` is null or open.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wf_tensor_count(checkpoint: *const WfCheckpoint) -> usize {
    // SAFETY: as the caller promises.
    unsafe { checkpoint.as_ref() }.map_or(0, |c| c.names.len())
}

/// Tensor `index` in the order of names.
///
/// # Safety
/// `checkpoint` is open; `out` receives the description.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wf_tensor_info(
    checkpoint: *const WfCheckpoint,
    index: usize,
    out: *mut WfTensorInfo,
) -> WfStatus {
    guard(|| {
        // SAFETY: as this function's caller promises.
        let this = unsafe { reference(checkpoint, "checkpoint") }?;
        let count = this.names.len();
        let tensor = this.checkpoint.tensors().nth(index);
        let tensor = tensor.ok_or_else(|| argument(&format!("tensor {index} of {count}")))?;
        let info = WfTensorInfo {
            name: this.names[index].as_ptr(),
            shape: tensor.shape.as_ptr(),
            dims: tensor.shape.len(),
            weights: tensor.weights(),
            bytes: tensor.bytes,
            coded: tensor.storage == Storage::Coded,
        };
        // SAFETY: as this function's caller promises.
        unsafe { put(out, info) }
    })
}

/// Bytes of a tensor decoded by [`wf_decode`] to a [`WfDtype`].
///
/// # Safety
/// `checkpoint` is open, `name` ends with a zero, `out` receives the number.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wf_decoded_bytes(
    checkpoint: *const WfCheckpoint,
    name: *const c_char,
    dtype: u32,
    out: *mut usize,
) -> WfStatus {
    guard(|| {
        // SAFETY: as this function's caller promises.
        let (this, name) = unsafe { (reference(checkpoint, "checkpoint")?, text(name, "name")?) };
        let bytes = this.checkpoint.decoded_bytes(name, dtype_of(dtype)?)?;
        // SAFETY: likewise.
        unsafe { put(out, bytes) }
    })
}

/// Decodes a tensor to row-major little-endian elements of a [`WfDtype`].
///
/// # Safety
/// `checkpoint` is open, `name` ends with a zero, `out` has `length` bytes that nothing else uses meanwhile;
/// `progress` is null or takes calls from any thread with `user`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wf_decode(
    checkpoint: *const WfCheckpoint,
    name: *const c_char,
    dtype: u32,
    out: *mut u8,
    length: usize,
    progress: WfProgress,
    user: *mut c_void,
) -> WfStatus {
    guard(|| {
        // SAFETY: as this function's caller promises.
        let (this, name) = unsafe { (reference(checkpoint, "checkpoint")?, text(name, "name")?) };
        let dtype = dtype_of(dtype)?;
        let expected = this.checkpoint.decoded_bytes(name, dtype)?;
        if out.is_null() || length != expected {
            return Err(argument(&format!("{name}: a buffer of {length} bytes, expected {expected}")));
        }
        // SAFETY: not null, and the caller's alone for as many bytes.
        let out = unsafe { std::slice::from_raw_parts_mut(out, length) };
        followed(progress, user, |control| this.checkpoint.decode(name, dtype, out, control))
    })
}

/// Decodes a matrix to tiles to multiply with.
///
/// # Safety
/// As [`wf_decode`]; `out` receives the handle, to be freed with [`wf_packed_free`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wf_decode_packed(
    checkpoint: *const WfCheckpoint,
    name: *const c_char,
    out: *mut *mut WfPacked,
    progress: WfProgress,
    user: *mut c_void,
) -> WfStatus {
    guard(|| {
        // SAFETY: as this function's caller promises.
        let (this, name) = unsafe { (reference(checkpoint, "checkpoint")?, text(name, "name")?) };
        let packed = followed(progress, user, |control| this.checkpoint.decode_packed(name, control))?;
        // SAFETY: likewise.
        unsafe { put(out, Box::into_raw(Box::new(WfPacked(packed)))) }
    })
}

/// Describes a packed matrix.
///
/// # Safety
/// `packed` is a matrix that was not freed; `out` receives the description.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wf_packed_info(packed: *const WfPacked, out: *mut WfPackedInfo) -> WfStatus {
    guard(|| {
        // SAFETY: as this function's caller promises.
        let WfPacked(tensor) = unsafe { reference(packed, "packed") }?;
        let dtype = match tensor.dtype {
            Dtype::F16 => WfDtype::F16,
            Dtype::F32 => WfDtype::F32,
            _ => WfDtype::Bf16,
        };
        let info = WfPackedInfo {
            rows: tensor.rows,
            cols: tensor.cols,
            dtype,
            row_scales: pointer(&tensor.row_scales),
            col_scales: pointer(&tensor.col_scales),
            buckets: tensor.buckets.len(),
            resident_bytes: tensor.resident_bytes(),
            trellis_state_bits: tensor.trellis.map_or(0, |t| t.states.state_bits()),
            trellis_restart: tensor.trellis.map_or(0, |t| t.restart),
        };
        // SAFETY: as this function's caller promises.
        unsafe { put(out, info) }
    })
}

/// Bucket `index` of a packed matrix.
///
/// # Safety
/// As [`wf_packed_info`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wf_packed_bucket(packed: *const WfPacked, index: usize, out: *mut WfBucket) -> WfStatus {
    guard(|| {
        // SAFETY: as this function's caller promises.
        let WfPacked(tensor) = unsafe { reference(packed, "packed") }?;
        let count = tensor.buckets.len();
        let bucket = tensor.buckets.get(index).ok_or_else(|| argument(&format!("bucket {index} of {count}")))?;
        let format = match bucket.format {
            PackedFormat::Int2 => WfFormat::Int2,
            PackedFormat::Int3 => WfFormat::Int3,
            PackedFormat::Int4 => WfFormat::Int4,
            PackedFormat::Int5 => WfFormat::Int5,
            PackedFormat::Int6 => WfFormat::Int6,
            PackedFormat::Int7 => WfFormat::Int7,
            PackedFormat::Int8 => WfFormat::Int8,
            PackedFormat::Trellis(1) => WfFormat::Trellis1,
            PackedFormat::Trellis(2) => WfFormat::Trellis2,
            PackedFormat::Trellis(3) => WfFormat::Trellis3,
            PackedFormat::Trellis(4) => WfFormat::Trellis4,
            PackedFormat::Trellis(5) => WfFormat::Trellis5,
            PackedFormat::Trellis(6) => WfFormat::Trellis6,
            PackedFormat::Trellis(7) => WfFormat::Trellis7,
            PackedFormat::Trellis(_) => WfFormat::Trellis8,
            PackedFormat::E4m3 => WfFormat::E4m3,
            PackedFormat::E5m2 => WfFormat::E5m2,
            PackedFormat::Plain(_) => WfFormat::Plain,
        };
        let told = WfBucket {
            format,
            tiles: bucket.tiles(),
            row_starts: bucket.row_starts.as_ptr(),
            occupied: bucket.occupied.as_ptr(),
            scales: pointer(&bucket.scales),
            scale: bucket.scale,
            data: bucket.data.as_ptr(),
            bytes: bucket.data.len(),
        };
        // SAFETY: as this function's caller promises.
        unsafe { put(out, told) }
    })
}

/// Frees a packed matrix; null is left alone.
///
/// # Safety
/// `packed` comes from this library and is not used again.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wf_packed_free(packed: *mut WfPacked) {
    if !packed.is_null() {
        // SAFETY: made by Box::into_raw, and given back once as the caller promises.
        drop(unsafe { Box::from_raw(packed) });
    }
}

/// The factor 2^(k/8) of a scale of k eighths of an octave; a quarter octave of a row or column is two of them.
#[unsafe(no_mangle)]
pub extern "C" fn wf_scale(k: i32) -> f32 {
    waterfill_codec::scale::scale(k)
}

/// The level of a state of a trellis.
#[unsafe(no_mangle)]
pub extern "C" fn wf_trellis_level(state: u32) -> i32 {
    waterfill_codec::syntax::bit_shift::level(state)
}

fn pointer<T>(values: &[T]) -> *const T {
    if values.is_empty() { std::ptr::null() } else { values.as_ptr() }
}
