//! Decoding a whole tensor on all threads.

use rayon::prelude::*;
use waterfill_codec::{CodedTensor, Dtype};

use crate::control::{Control, Parts};
use crate::error::{Result, TensorError};
use crate::open::Checkpoint;
use crate::types::Storage;

/// Elements of a plain tensor that one task converts.
const PART: usize = 1 << 18;

impl Checkpoint {
    /// Bytes that [`Checkpoint::decode`] of a tensor as `dtype` gives.
    ///
    /// # Errors
    /// Unknown names.
    pub fn decoded_bytes(&self, name: &str, dtype: Dtype) -> Result<usize> {
        Ok(self.tensor(name)?.weights() as usize * dtype.bytes())
    }

    /// Decodes a tensor into `out`: row-major little-endian elements of `dtype` (bf16, f16 or f32), rounded to
    /// nearest even where it has fewer bits. In its own type a tensor passes through no other buffer. After an error
    /// `out` must not be used.
    ///
    /// # Errors
    /// As [`Checkpoint::read`], a buffer of another size, values beyond the range of f16, cancelled work.
    pub fn decode(&self, name: &str, dtype: Dtype, out: &mut [u8], control: Control) -> Result<()> {
        let info = self.tensor(name)?;
        if !dtype.is_weight() {
            return Err(self.wrong(info, TensorError::OutputType { dtype }));
        }
        let expected = self.decoded_bytes(name, dtype)?;
        if out.len() != expected {
            return Err(self.wrong(info, TensorError::BufferSize { found: out.len(), expected }));
        }
        let failed = self.codec_error(info);
        let beyond = |value| self.wrong(info, TensorError::OutOfRange { value, dtype });
        if info.storage == Storage::Plain {
            let own = self.dtype(name)?;
            let bytes = self.read_raw(name)?;
            let parts = Parts::new(control, out.len().div_ceil(PART * dtype.bytes()));
            let pairs = out.par_chunks_mut(PART * dtype.bytes()).zip(bytes.par_chunks(PART * own.bytes()));
            return pairs.try_for_each(|(out, from)| {
                parts.go_on()?;
                convert(own, from, dtype, out).map_err(beyond)?;
                parts.done();
                Ok(())
            });
        }
        if info.quality_layers() > 1 {
            let layered = self.layered(info)?;
            let chain = layered.chain()?;
            let own = chain[0].header().dtype;
            let mut kept = if own == dtype { Vec::new() } else { chain[0].buffer().map_err(failed)? };
            let values = if own == dtype { &mut *out } else { &mut kept };
            layered.decode_into(&chain, values, &Parts::new(control, chain.iter().map(CodedTensor::slices).sum()))?;
            return if own == dtype { Ok(()) } else { convert(own, &kept, dtype, out).map_err(beyond) };
        }
        let bytes = self.read_raw(name)?;
        let coded = CodedTensor::parse(&bytes).map_err(failed)?;
        let own = coded.header().dtype;
        let parts = Parts::new(control, coded.slices());
        let wide = coded.header().slice_rows * coded.header().cols * dtype.bytes();
        // Slices side by side, their digest in order: as many at a time as there are threads.
        let mut digest = coded.digest();
        for (group, out) in out.chunks_mut(wide.max(1) * rayon::current_num_threads()).enumerate() {
            let first = group * rayon::current_num_threads();
            let slices = out.par_chunks_mut(wide.max(1)).enumerate().map(|(i, out)| {
                parts.go_on()?;
                let n = first + i;
                let mut kept = Vec::new();
                match own == dtype {
                    true => drop(coded.decode_slice(n, out).map_err(failed)?),
                    false => {
                        kept.resize(coded.bytes(coded.slice_rows(n).len()), 0);
                        coded.decode_slice(n, &mut kept).map_err(failed)?;
                        convert(own, &kept, dtype, out).map_err(beyond)?;
                    }
                }
                parts.done();
                Ok(kept)
            });
            let decoded = slices.collect::<Result<Vec<Vec<u8>>>>()?;
            match own == dtype {
                true => digest.update(out),
                false => decoded.iter().for_each(|bytes| digest.update(bytes)),
            }
        }
        digest.check().map_err(failed)
    }
}

/// Little-endian elements in another type; `Err` is a value beyond its range.
fn convert(own: Dtype, from: &[u8], dtype: Dtype, out: &mut [u8]) -> std::result::Result<(), f32> {
    if own == dtype {
        out.copy_from_slice(from);
        return Ok(());
    }
    for (from, out) in from.chunks_exact(own.bytes()).zip(out.chunks_exact_mut(dtype.bytes())) {
        let value = own.value_of(from.iter().rev().fold(0, |v, &b| v << 8 | u32::from(b)));
        let pattern = dtype.pattern_of(value);
        if value.is_finite() && !dtype.value_of(pattern).is_finite() {
            return Err(value);
        }
        out.copy_from_slice(&pattern.to_le_bytes()[..dtype.bytes()]);
    }
    Ok(())
}
