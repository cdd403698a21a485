//! Packed files against what general compressors make of the same file.

use std::path::Path;

use serde::Serialize;
use waterfill_checkpoint::{Checkpoint, Element, pack};

use crate::structures::{StructureBench, structures};

/// Sizes in bytes of a file packed in several ways.
#[derive(Debug, Clone, Serialize)]
pub struct PackBench {
    /// The file itself.
    pub original: u64,
    /// Packed by `waterfill pack`.
    pub packed: u64,
    /// Packed by zstd -19.
    pub zstd19: u64,
    /// The first bytes of all elements of a tensor, then the second, and so on, packed by zstd -19.
    pub byte_split_zstd19: u64,
    /// Entropy of all exponents, and of signs and fractions (bf16, f16) or their 24 bits (f32): what a
    /// coder without context reaches with tables that cost nothing.
    pub entropy: f64,
    /// Elements of the file.
    pub elements: u64,
    /// The same file with structure in its matrices.
    pub structures: Vec<StructureBench>,
}

/// Packs `dir/model.safetensors` in every way.
///
/// # Errors
/// Checkpoints that cannot be read or are in several shards.
pub fn bench_pack(dir: &Path) -> waterfill_checkpoint::Result<PackBench> {
    let checkpoint = Checkpoint::open(dir)?;
    let file = dir.join("model.safetensors");
    let bytes = std::fs::read(&file).map_err(waterfill_checkpoint::CheckpointError::io(&file))?;
    let scratch = tempfile::tempdir().map_err(waterfill_checkpoint::CheckpointError::io("temporary folder"))?;
    let summary = pack::pack(&file, &scratch.path().join("packed"), &|_| {})?;
    let mut split = Vec::with_capacity(bytes.len());
    let mut counts = Counts::default();
    for info in checkpoint.tensors() {
        let raw = checkpoint.read_raw(&info.name)?;
        let width = (raw.len() as u64 / info.weights().max(1)).max(1) as usize;
        (0..width).for_each(|k| split.extend(raw.iter().skip(k).step_by(width)));
        counts.add(info.element, &raw);
    }
    let zstd = |bytes: &[u8]| zstd::bulk::compress(bytes, 19).expect("memory").len() as u64;
    let header = bytes.len() as u64 - split.len() as u64;
    Ok(PackBench {
        original: bytes.len() as u64,
        packed: summary.packed,
        zstd19: zstd(&bytes),
        byte_split_zstd19: header + zstd(&split),
        entropy: counts.bits() / 8.0,
        elements: summary.elements,
        structures: structures(&checkpoint, scratch.path())?,
    })
}

/// Counts of exponents, and of signs with fractions where they are short.
struct Counts {
    exponents: Vec<u64>,
    rests: Vec<u64>,
    raw_bits: f64,
}

impl Default for Counts {
    fn default() -> Self {
        Self { exponents: vec![0; 256], rests: vec![0; 1 << 11], raw_bits: 0.0 }
    }
}

impl Counts {
    fn add(&mut self, element: Element, raw: &[u8]) {
        let (width, fraction) = match element {
            Element::BF16 => (2, 7),
            Element::F16 => (2, 10),
            Element::F32 => (4, 23),
            _ => {
                self.raw_bits += raw.len() as f64 * 8.0;
                return;
            }
        };
        for element in raw.chunks_exact(width) {
            let pattern = element.iter().rev().fold(0u32, |v, &b| v << 8 | u32::from(b));
            let sign = pattern >> (8 * width - 1);
            self.exponents[(pattern >> fraction & if fraction == 10 { 31 } else { 255 }) as usize] += 1;
            match fraction {
                23 => self.raw_bits += 24.0,
                _ => self.rests[(sign << fraction | pattern & ((1 << fraction) - 1)) as usize] += 1,
            }
        }
    }

    fn bits(&self) -> f64 {
        let entropy = |counts: &[u64]| {
            let total = counts.iter().sum::<u64>() as f64;
            counts.iter().filter(|&&n| n > 0).map(|&n| n as f64 * (total / n as f64).log2()).sum::<f64>()
        };
        entropy(&self.exponents) + entropy(&self.rests) + self.raw_bits
    }
}
