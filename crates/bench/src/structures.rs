//! Files with structure that lossless coding should find: a checkpoint whose matrices are as other tools leave them.

use std::collections::HashMap;
use std::path::Path;

use half::{bf16, f16};
use rayon::prelude::*;
use safetensors::tensor::TensorView;
use serde::Serialize;
use waterfill_checkpoint::{Checkpoint, CheckpointError, Element, pack};
use waterfill_codec::Minifloat;
use waterfill_model::TensorRole;

/// Size of a packed file with structure.
#[derive(Debug, Clone, Serialize)]
pub struct StructureBench {
    /// How its matrices were treated.
    pub name: &'static str,
    /// Bits of the whole packed file for each element.
    pub bits: f64,
}

/// What is done to the rows of a matrix of linear layers; other tensors stay as they are.
type Treat = fn(&mut [f32], usize);

const TREATED: [(&str, Treat); 10] = [
    ("as it is", |_, _| {}),
    ("MXFP4: E2M1 with a power of two for 32", |w, cols| microscaled(w, cols, Minifloat::E2M1, 2)),
    ("MXFP8: E4M3 with a power of two for 32", |w, cols| microscaled(w, cols, Minifloat::E4M3, 8)),
    ("smaller half of the file's weights zero", |w, _| pruned(w)),
    ("two of four weights zero", |w, cols| two_of_four(w, cols)),
    ("INT4, f16 scales for 128", |w, cols| integers(w, cols, 128, 7.0)),
    ("INT4, f16 scales for 48", |w, cols| integers(w, cols, 48, 7.0)),
    ("INT8, f16 scales by row", |w, cols| integers(w, cols, cols, 127.0)),
    ("FP8 E4M3, f32 scales for 128 x 128", |w, cols| blocks(w, cols)),
    ("Q4_1: 16 levels, f16 scale and offset for 32", |w, cols| affine(w, cols)),
];

/// A tensor of the checkpoint.
struct Tensor {
    name: String,
    shape: Vec<usize>,
    /// Columns, where it is a matrix of a linear layer.
    cols: Option<usize>,
    values: Vec<f32>,
}

/// Packs the checkpoint of `dir` after each treatment, with bf16 elements; then plain in wider elements, and with every tensor twice.
///
/// # Errors
/// Checkpoints that cannot be read, and a full disk.
pub fn structures(checkpoint: &Checkpoint, scratch: &Path) -> waterfill_checkpoint::Result<Vec<StructureBench>> {
    let tensors = checkpoint.tensors().map(|info| {
        let linear = TensorRole::parse(&info.name).is_some_and(TensorRole::is_of_linear_layer);
        let cols = info.shape.last().copied().filter(|_| linear && info.shape.len() == 2 && info.shape[0] > 1);
        let values = checkpoint.read_f32(&info.name, &info.shape)?;
        Ok(Tensor { name: info.name.clone(), shape: info.shape.clone(), cols, values })
    });
    let tensors = tensors.collect::<waterfill_checkpoint::Result<Vec<Tensor>>>()?;
    let pack = |name: &'static str, element: Element, twice: bool, bytes: &(dyn Fn(usize) -> Vec<u8> + Sync)| {
        let all: Vec<Vec<u8>> = (0..tensors.len()).into_par_iter().map(bytes).collect();
        let names = |copy: &'static str| tensors.iter().map(move |t| (format!("{}{copy}", t.name), &t.shape));
        let mut views = HashMap::new();
        for copy in if twice { &["", ".copy"][..] } else { &[""] } {
            for ((name, shape), bytes) in names(copy).zip(&all) {
                views.insert(name, TensorView::new(element, shape.clone(), bytes).expect("bytes of the shape"));
            }
        }
        let (plain, packed) = (scratch.join("structure"), scratch.join("structure.wfp"));
        safetensors::serialize_to_file(views, None, &plain)
            .map_err(|e| CheckpointError::io(&plain)(std::io::Error::other(e)))?;
        let summary = pack::pack(&plain, &packed, &|_| {})?;
        for path in [&plain, &packed] {
            std::fs::remove_file(path).map_err(CheckpointError::io(path))?;
        }
        let elements = summary.elements as f64 / if twice { 2.0 } else { 1.0 };
        Ok(StructureBench { name, bits: summary.packed as f64 * 8.0 / elements })
    };
    let mut all = Vec::new();
    for (name, treat) in TREATED {
        all.push(pack(name, Element::BF16, false, &|n| {
            let mut values = tensors[n].values.clone();
            if let Some(cols) = tensors[n].cols {
                treat(&mut values, cols);
            }
            values.iter().flat_map(|&v| bf16::from_f32(v).to_le_bytes()).collect()
        })?);
    }
    all.push(pack("bf16 values in f32", Element::F32, false, &|n| {
        tensors[n].values.iter().flat_map(|&v| bf16::from_f32(v).to_f32().to_le_bytes()).collect()
    })?);
    // Of a bf16 checkpoint f16 has more bits than there are: they are made up.
    let finer = |i: usize, v: f32| f16::from_f32(v * (1.0 + (i * 37 % 101) as f32 / 101.0 / 128.0)).to_f32();
    all.push(pack("f16 values in f32", Element::F32, false, &|n| {
        tensors[n].values.iter().enumerate().flat_map(|(i, &v)| finer(i, v).to_le_bytes()).collect()
    })?);
    let plain = |n: usize| tensors[n].values.iter().flat_map(|&v| bf16::from_f32(v).to_le_bytes()).collect();
    all.push(pack("every tensor twice, bits for one", Element::BF16, true, &plain)?);
    Ok(all)
}

/// Groups of `group` columns of each row; the last of a row may be shorter.
fn groups(weights: &mut [f32], cols: usize, group: usize) -> impl Iterator<Item = &mut [f32]> {
    weights.chunks_mut(cols).flat_map(move |row| row.chunks_mut(group))
}

fn largest(weights: &[f32]) -> f32 {
    weights.iter().fold(0.0, |m, w| m.max(w.abs()))
}

fn integers(weights: &mut [f32], cols: usize, group: usize, most: f32) {
    for part in groups(weights, cols, group) {
        let scale = f16::from_f32(largest(part) / most).to_f32();
        if scale > 0.0 {
            part.iter_mut().for_each(|w| *w = (*w / scale).round().clamp(-most - 1.0, most) * scale);
        }
    }
}

fn affine(weights: &mut [f32], cols: usize) {
    for part in groups(weights, cols, 32) {
        let (low, high) = part.iter().fold((f32::MAX, f32::MIN), |(l, h), &w| (l.min(w), h.max(w)));
        let [scale, offset] = [(high - low) / 15.0, low].map(|v| f16::from_f32(v).to_f32());
        if scale > 0.0 {
            part.iter_mut().for_each(|w| *w = ((*w - low) / scale).round().clamp(0.0, 15.0) * scale + offset);
        }
    }
}

fn microscaled(weights: &mut [f32], cols: usize, float: Minifloat, largest_exponent: i32) {
    for part in groups(weights, cols, 32) {
        let scale = (largest(part).log2().floor() - largest_exponent as f32).exp2();
        if scale > 0.0 {
            part.iter_mut().for_each(|w| *w = float.decode(float.encode(*w / scale)) * scale);
        }
    }
}

fn blocks(weights: &mut [f32], cols: usize) {
    let (rows, e4m3) = (weights.len() / cols, Minifloat::E4M3);
    for (top, left) in (0..rows).step_by(128).flat_map(|top| (0..cols).step_by(128).map(move |left| (top, left))) {
        let places = || {
            let row = move |row: usize| (left..cols.min(left + 128)).map(move |col| row * cols + col);
            (top..rows.min(top + 128)).flat_map(row)
        };
        let scale = places().map(|i| weights[i].abs()).fold(0.0, f32::max) / e4m3.max();
        if scale > 0.0 {
            places().for_each(|i| weights[i] = e4m3.decode(e4m3.encode(weights[i] / scale)) * scale);
        }
    }
}

fn pruned(weights: &mut [f32]) {
    let mut sizes: Vec<f32> = weights.iter().map(|w| w.abs()).collect();
    // So many of the matrices are half of a file whose embedding is a seventh.
    let place = sizes.len() * 7 / 12;
    let least = *sizes.select_nth_unstable_by(place, f32::total_cmp).1;
    weights.iter_mut().filter(|w| w.abs() < least).for_each(|w| *w = 0.0);
}

fn two_of_four(weights: &mut [f32], cols: usize) {
    for four in groups(weights, cols, 4) {
        let mut sizes: Vec<f32> = four.iter().map(|w| w.abs()).collect();
        sizes.sort_unstable_by(|a, b| b.total_cmp(a));
        let least = sizes[sizes.len() / 2 - usize::from(sizes.len() > 1)];
        four.iter_mut().filter(|w| w.abs() < least).for_each(|w| *w = 0.0);
    }
}
