//! Static tables against backward-adaptive models, on the levels of a compressed checkpoint: the same levels
//! and classes, coded for real in each slice, and decoded one after the other in plain code.

use std::path::Path;
use std::time::Instant;

use serde::Serialize;
use waterfill_checkpoint::{Checkpoint, Storage};
use waterfill_codec::entropy::adaptive_rans::{Decoder, Encoder};
use waterfill_codec::entropy::models::IntModel;
use waterfill_codec::entropy::tables::CLASSES;
use waterfill_codec::syntax::sample::{SampleDecoder, SampleEncoder, code_level};
use waterfill_codec::syntax::slice::SlicePlan;
use waterfill_codec::{CodedTensor, Predictor, TensorPlan, TileMode, TilePlan};

/// One way of coding.
#[derive(Debug, Clone, Serialize)]
pub struct Coding {
    /// Its name.
    pub name: &'static str,
    /// Bits of a level, states and all.
    pub bits_per_level: f64,
    /// Levels decoded a second on one core, plain code.
    pub levels_per_second: f64,
}

/// Figures of the entropy coder.
#[derive(Debug, Clone, Serialize)]
pub struct EntropyBench {
    /// Levels coded.
    pub levels: usize,
    /// Static first.
    pub codings: Vec<Coding>,
}

/// Levels of a slice with their classes.
struct Slice {
    levels: Vec<i32>,
    classes: Vec<usize>,
}

/// Codes the levels of every tile of `checkpoint` that is neither predicted nor transformed in three
/// ways: static Gaussian tables by class; adaptive binary models, one set for all levels; and one set for each class.
///
/// # Errors
/// Checkpoints that cannot be read.
pub fn bench_entropy(checkpoint: &Path) -> waterfill_checkpoint::Result<EntropyBench> {
    let checkpoint = Checkpoint::open(checkpoint)?;
    let mut slices = Vec::new();
    for info in checkpoint.tensors().filter(|t| t.storage == Storage::Coded) {
        let bytes = checkpoint.read_raw(&info.name)?;
        let failed = |source| waterfill_checkpoint::CheckpointError::Codec {
            path: checkpoint.dir().to_path_buf(),
            tensor: info.name.clone(),
            source: Box::new(source),
        };
        let tensor = CodedTensor::parse(&bytes).map_err(failed)?;
        for n in 0..tensor.slices() {
            let decoded = tensor.decode_planes(n).map_err(failed)?;
            slices.push(levels_of(&tensor, n, decoded.tiles, &decoded.plane));
        }
    }
    let levels = slices.iter().map(|s| s.levels.len()).sum();
    let one = vec![0; CLASSES];
    let each: Vec<usize> = (0..CLASSES).collect();
    let codings = vec![
        time("static tables by class", levels, &slices, encode_static, decode_static),
        time("adaptive, one set", levels, &slices, |s| encode_adaptive(s, &one), |s, b| decode_adaptive(s, b, &one)),
        time("adaptive by class", levels, &slices, |s| encode_adaptive(s, &each), |s, b| decode_adaptive(s, b, &each)),
    ];
    Ok(EntropyBench { levels, codings })
}

fn levels_of(tensor: &CodedTensor, n: usize, tiles: Vec<TilePlan>, plane: &[i32]) -> Slice {
    let rows = tensor.slice_rows(n);
    let plan: &TensorPlan = tensor.plan();
    let whole = TensorPlan { tiles: Vec::new(), ..plan.clone() };
    let slice = SlicePlan { plan: &whole, tools: tensor.header().tools, rows: rows.clone(), tiles };
    let plain = |t: &TilePlan| {
        t.format.level_range().is_some()
            && t.mode == TileMode::Coded
            && t.predictor == Predictor::None
            && t.transform.is_identity()
            && t.coarse == 0
    };
    let mut found = Slice { levels: Vec::new(), classes: Vec::new() };
    for (rows, cols) in slice.blocks() {
        for col in cols {
            for row in rows.clone() {
                let tile = slice.tile_at(row, col);
                if plain(tile) {
                    found.levels.push(plane[(row - slice.rows.start) * plan.cols + col]);
                    found.classes.push(plan.level_class(tile, row, col));
                }
            }
        }
    }
    found
}

fn time(
    name: &'static str,
    levels: usize,
    slices: &[Slice],
    encode: impl Fn(&Slice) -> Vec<Vec<u8>>,
    decode: impl Fn(&Slice, &[Vec<u8>]),
) -> Coding {
    let coded: Vec<Vec<Vec<u8>>> = slices.iter().map(&encode).collect();
    let bytes: usize = coded.iter().flatten().map(Vec::len).sum();
    let mut seconds: Vec<f64> = (0..5)
        .map(|_| {
            let start = Instant::now();
            slices.iter().zip(&coded).for_each(|(s, b)| decode(s, b));
            start.elapsed().as_secs_f64()
        })
        .collect();
    seconds.sort_by(f64::total_cmp);
    Coding {
        name,
        bits_per_level: bytes as f64 * 8.0 / levels as f64,
        levels_per_second: levels as f64 / seconds[seconds.len() / 2],
    }
}

/// States of the static coder; with 64 their bytes would weigh on small slices.
const LANES: usize = 8;

fn encode_static(slice: &Slice) -> Vec<Vec<u8>> {
    let mut encoder = SampleEncoder::default();
    for (n, (&level, &class)) in slice.levels.iter().zip(&slice.classes).enumerate() {
        code_level(&mut encoder, n % LANES, class, level);
    }
    vec![encoder.lanes.finish(LANES), encoder.bits.finish(), encoder.escapes.finish()]
}

fn decode_static(slice: &Slice, bytes: &[Vec<u8>]) {
    let mut decoder = SampleDecoder::new(&bytes[0], LANES, &bytes[1], &bytes[2]);
    let wrong = slice.levels.iter().zip(&slice.classes).enumerate();
    let wrong = wrong.filter(|(n, (level, class))| code_level(&mut decoder, n % LANES, **class, 0) != **level).count();
    assert!(wrong == 0 && decoder.finish(), "levels are read back");
}

fn encode_adaptive(slice: &Slice, sets: &[usize]) -> Vec<Vec<u8>> {
    let mut encoder = Encoder::default();
    let mut models = vec![IntModel::default(); CLASSES];
    for (&level, &class) in slice.levels.iter().zip(&slice.classes) {
        models[sets[class]].code(&mut encoder, level);
    }
    vec![encoder.finish()]
}

fn decode_adaptive(slice: &Slice, bytes: &[Vec<u8>], sets: &[usize]) {
    let mut decoder = Decoder::new(&bytes[0]);
    let mut models = vec![IntModel::default(); CLASSES];
    let pairs = slice.levels.iter().zip(&slice.classes);
    let wrong = pairs.filter(|(level, class)| models[sets[**class]].code(&mut decoder, 0) != **level).count();
    assert!(wrong == 0 && decoder.finish(), "levels are read back");
}
