//! Reasons why a file cannot be used.

use std::path::PathBuf;

use crate::types::{Element, MARK_KEY, QUANT_METHOD};

/// A file that does not have the expected form. Messages continue the file's path.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// Fewer bytes than any such file has.
    #[error("{size} bytes are too few for a {kind}")]
    TooShort {
        /// Bytes of the file.
        size: u64,
        /// The kind of file expected.
        kind: &'static str,
    },
    /// The length of the safetensors header does not fit the file.
    #[error("truncated or not safetensors: header of {length} bytes in a file of {size}")]
    HeaderLength {
        /// Length that the file declares.
        length: u64,
        /// Bytes of the file.
        size: u64,
    },
    /// The safetensors header is longer than the safetensors library reads.
    #[error("header of {length} bytes, at most {most} are read")]
    HeaderLimit {
        /// Length that the file declares.
        length: u64,
        /// Longest that is read.
        most: u64,
    },
    /// The safetensors header is not well-formed.
    #[error("malformed safetensors header: {error}")]
    Header {
        /// The parser's error.
        error: serde_json::Error,
    },
    /// The safetensors header is not UTF-8.
    #[error("the safetensors header is no UTF-8")]
    HeaderNotUtf8,
    /// The file has another size than its header describes.
    #[error("{found} bytes, its header describes {expected}{}", incomplete(*.found, *.expected))]
    Size {
        /// Bytes of the file.
        found: u64,
        /// Bytes that the header describes.
        expected: u64,
    },
    /// A JSON file is not well-formed.
    #[error("{error}")]
    Json {
        /// The parser's error.
        error: serde_json::Error,
    },
    /// A configuration lacks a field.
    #[error("lacks {field}")]
    MissingField {
        /// The field.
        field: &'static str,
    },
    /// The safetensors library could not write the file.
    #[error("cannot be written: {error}")]
    Write {
        /// The library's error.
        error: safetensors::SafeTensorError,
    },
    /// A file would be overwritten.
    #[error("exists already; choose another name or remove it")]
    Exists,
    /// A file name is not UTF-8.
    #[error("{name:?} is no UTF-8")]
    NameNotUtf8 {
        /// The name.
        name: std::ffi::OsString,
    },
    /// A name would lead out of the directory.
    #[error("file name {name:?} leaves the directory")]
    LeavesDirectory {
        /// The name.
        name: String,
    },
    /// A name has a character that separates parts of paths elsewhere, or ends them.
    #[error("file name {name:?} has a backslash or a zero byte, expected parts separated by /")]
    NameCharacter {
        /// The name.
        name: String,
    },
    /// A name is that of a file and of a folder.
    #[error("file name {inside:?} lies in {file:?}, which is a file too")]
    FileAndFolder {
        /// The file.
        file: String,
        /// The name of which it would be a folder.
        inside: String,
    },
    /// The file has other bytes than were written.
    #[error("has other bytes than were written; the disk or the memory may be faulty")]
    Written,
    /// The file has no tensor of this name.
    #[error("has no tensor {tensor}")]
    MissingTensor {
        /// Name of the tensor.
        tensor: String,
    },
    /// A tensor has another element type.
    #[error("{tensor} is {found:?}, expected {expected:?}")]
    ElementType {
        /// Name of the tensor.
        tensor: String,
        /// Its element type.
        found: Element,
        /// The element type needed.
        expected: Element,
    },
    /// The directory has no shards.
    #[error("no model.safetensors and no model.safetensors.index.json in this directory")]
    NoShards,
    /// The directory has no safetensors files.
    #[error("has no safetensors files")]
    NoSafetensors,
    /// The index names a shard that is not there.
    #[error("names shard {shard}, which is not in {}", .dir.display())]
    MissingShard {
        /// Name of the shard.
        shard: String,
        /// The directory.
        dir: PathBuf,
    },
    /// A tensor is in two shards.
    #[error("tensor {tensor} is in another shard too")]
    DuplicateTensor {
        /// Name of the tensor.
        tensor: String,
    },
    /// A directory has another number of tensors than was written.
    #[error("has {found} tensors, {expected} were written")]
    TensorCount {
        /// Tensors in the directory.
        found: usize,
        /// Tensors written.
        expected: usize,
    },
    /// A directory has another number of quality layers than was written.
    #[error("has {found} quality layers, {expected} were written")]
    LayerCount {
        /// Layers in the directory, the base counted.
        found: usize,
        /// Layers written.
        expected: usize,
    },
    /// The shard has no mark.
    #[error("has no metadata key {MARK_KEY}{}", if *.configured { ", which config.json (waterfill) asks for" } else { "" })]
    MissingMark {
        /// True if `config.json` says that the shards are compressed.
        configured: bool,
    },
    /// A shard is compressed, which `config.json` does not say.
    #[error("does not name the quantisation method {QUANT_METHOD}, but {shard} is compressed")]
    MissingMethod {
        /// Name of the shard.
        shard: String,
    },
    /// The mark has no version.
    #[error("metadata key {MARK_KEY} has no version")]
    MarkVersion,
    /// The mark is not well-formed.
    #[error("metadata key {MARK_KEY}: {error}")]
    Mark {
        /// The parser's error.
        error: serde_json::Error,
    },
    /// A shard was written without a mark to seal.
    #[error("has no mark to be sealed")]
    Unsealed,
    /// The file is of another version.
    #[error("{kind} version {found}, this build reads {expected}")]
    Version {
        /// The kind of version or file.
        kind: &'static str,
        /// Version of the file.
        found: String,
        /// Version that this build reads.
        expected: String,
    },
    /// The safetensors header differs from the one that was written.
    #[error("damaged: the safetensors header's digest is {}, its mark says {expected}", .found.as_deref().unwrap_or("not where it was written"))]
    HeaderDigest {
        /// Digest of the header, where it can be computed.
        found: Option<String>,
        /// Digest in the mark.
        expected: String,
    },
    /// The mark has checks for another number of plain tensors.
    #[error("{tensors} plain tensors, its mark has checks of {checks}")]
    PlainChecks {
        /// Plain tensors of the shard.
        tensors: usize,
        /// Checks in the mark.
        checks: usize,
    },
    /// A coded tensor's first bytes are damaged.
    #[error("tensor {tensor} is damaged: it does not begin as a coded tensor does")]
    DamagedStart {
        /// Name of the tensor.
        tensor: String,
    },
    /// A file next to the shards differs from the one that was written.
    #[error("damaged or edited: check {found}, {} says {expected}", .shard.display())]
    Check {
        /// Check of the file.
        found: String,
        /// Check in the shard's mark.
        expected: String,
        /// The shard.
        shard: PathBuf,
    },
    /// Two files are the same quality layer.
    #[error("is layer {number}, and so is {}", .other.display())]
    DuplicateLayer {
        /// Number of the layer.
        number: usize,
        /// The other file.
        other: PathBuf,
    },
    /// A quality layer before this one is missing.
    #[error("cannot be used without {missing}, which is not there")]
    MissingLayer {
        /// Name of the missing file.
        missing: String,
    },
    /// No quality layer was asked for.
    #[error("no layer at all is asked for; the base is the first")]
    NoLayers,
    /// Fewer bytes were asked for than the base layer takes.
    #[error("{bytes} bytes are asked for, the base layer takes {base}")]
    BelowBase {
        /// Bytes asked for.
        bytes: u64,
        /// Bytes of the base layer.
        base: u64,
    },
    /// The quality layer refines other shards.
    #[error("refines another checkpoint, expected layer {number} of {of} of the shards next to it")]
    OtherCheckpoint {
        /// Number that its name says.
        number: usize,
        /// Number of layers that its name says.
        of: usize,
    },
    /// The quality layer's mark differs from its name.
    #[error("says that it is layer {found} of {found_of}, expected layer {number} of {of} of the shards next to it")]
    LayerNumber {
        /// Number in its mark.
        found: usize,
        /// Number of layers in its mark.
        found_of: usize,
        /// Number that its name says.
        number: usize,
        /// Number of layers that its name says.
        of: usize,
    },
    /// The file is named as a quality layer and is none.
    #[error("is no refinement layer, expected layer {number} of {of} of the shards next to it")]
    NotALayer {
        /// Number that its name says.
        number: usize,
        /// Number of layers that its name says.
        of: usize,
    },
    /// The file begins as no such file does.
    #[error("not a {kind}: the first four bytes are {found:02x?}, expected {:?}", String::from_utf8_lossy(.expected))]
    Magic {
        /// The kind of file expected.
        kind: &'static str,
        /// Its first bytes.
        found: [u8; 4],
        /// The first bytes needed.
        expected: [u8; 4],
    },
    /// The length of a container's head does not fit the file.
    #[error("truncated or damaged: a head of {length} bytes in a file of {size}")]
    HeadLength {
        /// Length that the file declares.
        length: u64,
        /// Bytes of the file.
        size: u64,
    },
    /// The head of a container does not match its check.
    #[error("the head is damaged: its check is {found:016x}, the bytes give {computed:016x}")]
    HeadCheck {
        /// Check in the file.
        found: u64,
        /// Check of the bytes.
        computed: u64,
    },
    /// A number in the head of a container is beyond its limit.
    #[error("head: {found} {field}, expected at most {most}")]
    HeadLimit {
        /// The field.
        field: &'static str,
        /// Its value.
        found: u64,
        /// Largest value allowed.
        most: u64,
    },
    /// The head of a container ends before its records do.
    #[error("head: ends before record {record} of {records}")]
    HeadEnds {
        /// First record that is missing.
        record: usize,
        /// Records announced.
        records: u64,
    },
    /// The head of a container is not well-formed.
    #[error("head: {error}")]
    HeadJson {
        /// The parser's error.
        error: serde_json::Error,
    },
    /// The head of a container does not describe its blobs.
    #[error("the head does not describe the file")]
    HeadMismatch,
    /// A file in the base differs from the one the delta was made with.
    #[error("{}, the delta is from a base with {}: another base", digest(.found.as_deref()), short(.expected))]
    OtherBase {
        /// Digest of the file; none where it is missing.
        found: Option<String>,
        /// Digest that the delta has.
        expected: String,
    },
    /// A restored file does not match its digest.
    #[error("the restored file does not match its digest: it or the file that it is restored from is damaged")]
    Restored,
}

fn incomplete(found: u64, expected: u64) -> &'static str {
    if found < expected { ": the file is incomplete; if it was downloaded, download it again" } else { "" }
}

fn digest(found: Option<&str>) -> String {
    found.map_or("is not there".to_string(), |digest| format!("has digest {}", short(digest)))
}

fn short(digest: &str) -> &str {
    digest.get(..16).unwrap_or_default()
}
