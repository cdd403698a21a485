//! Decoding a whole checkpoint to a dense Hugging Face directory that other software loads.

use std::path::Path;

use rayon::prelude::*;
use waterfill_checkpoint::writer::{Data, Entry, write_checkpoint, write_directory};
use waterfill_checkpoint::{Checkpoint, CheckpointError, Element, TensorInfo, element_of};
use waterfill_codec::Dtype;
use waterfill_store::Progress;

use crate::error::{EncodeError, Result};

/// Writes `source` with every tensor decoded to `out`, which must not exist. Floating-point
/// tensors become `dtype` when one is given, else keep their own; others are copied.
///
/// # Errors
/// Damaged tensors, a directory that exists, files that cannot be written. Nothing is left at
/// `out` then.
pub fn write_dense(source: &Checkpoint, out: &Path, dtype: Option<Dtype>, progress: &dyn Progress) -> Result<()> {
    if out.exists() {
        return Err(EncodeError::Exists { path: out.to_path_buf() });
    }
    let parent = match out.parent() {
        Some(parent) if parent != Path::new("") => parent,
        _ => Path::new("."),
    };
    std::fs::create_dir_all(parent).map_err(CheckpointError::io(parent))?;
    let work =
        tempfile::Builder::new().prefix(".unfinished-").tempdir_in(parent).map_err(CheckpointError::io(parent))?;
    let tensors: Vec<&TensorInfo> = source.tensors().collect();
    progress.start("decode", tensors.len() as u64);
    let entries = tensors
        .par_iter()
        .enumerate()
        .map(|(i, info)| {
            let (bytes, element) = match info.element {
                // A byte tensor that is not coded is data of its own.
                Element::U8 if info.storage == waterfill_checkpoint::Storage::Coded => convert(source, info, dtype)?,
                Element::BF16 | Element::F16 | Element::F32 => convert(source, info, dtype)?,
                other => (source.read_raw(&info.name)?, other),
            };
            let data = Data::keep(work.path().join(i.to_string()), &bytes)?;
            progress.advance(1);
            let plain = Some(element);
            Ok(Entry { name: info.name.clone(), shape: info.shape.clone(), plain, data, bytes: bytes.len() as u64 })
        })
        .collect::<Result<Vec<Entry>>>()?;
    write_directory(out, |dense| Ok(write_checkpoint(source.dir(), dense, &entries, false)?))
}

fn convert(source: &Checkpoint, info: &TensorInfo, dtype: Option<Dtype>) -> Result<(Vec<u8>, Element)> {
    let values = source.read(&info.name)?;
    let wanted = dtype.unwrap_or(values.dtype);
    if wanted == values.dtype {
        return Ok((values.bytes, element_of(wanted)));
    }
    let width = wanted.bytes();
    let mut bytes = Vec::with_capacity(values.bytes.len() / values.dtype.bytes() * width);
    for value in values.to_f32() {
        bytes.extend_from_slice(&wanted.pattern_of(value).to_le_bytes()[..width]);
    }
    Ok((bytes, element_of(wanted)))
}
