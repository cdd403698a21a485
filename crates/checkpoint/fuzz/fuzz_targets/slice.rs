//! Slices of any bytes under headers and side information of real tensors of every kind.
#![no_main]

use std::sync::OnceLock;

use libfuzzer_sys::fuzz_target;
use waterfill_codec::syntax::header::Header;
use waterfill_codec::syntax::tools::Tools;
use waterfill_codec::{
    BitShiftTrellis, CodedTensor, Dtype, Elements, Format, Kernel, Minifloat, Predictor, TensorPlan, TileMode,
    TilePlan, Transform, encode_lossless, encode_tensor,
};

/// Coded tensors whose slices are replaced.
fn bases() -> &'static Vec<Vec<u8>> {
    static ALL: OnceLock<Vec<Vec<u8>>> = OnceLock::new();
    ALL.get_or_init(|| {
        let weights: Vec<f32> = (0..48 * 80).map(|i| ((i * 7919 % 241) as f32 - 120.0) / 16.0).collect();
        let mut all = Vec::new();
        for dtype in [Dtype::Bf16, Dtype::F16, Dtype::F32] {
            let weights: Vec<f32> = weights.iter().map(|&w| dtype.value_of(dtype.pattern_of(w))).collect();
            for format in Format::ALL {
                let tile = TilePlan { format, ..TilePlan::default() };
                let mut plan = TensorPlan::uniform(dtype, 48, 80, tile);
                plan.sigma_base = 8;
                all.push(encode_tensor(&plan, &weights).unwrap());
                let mut codes = plan.clone();
                codes.parameters.bit_shift = BitShiftTrellis::new(12);
                for (n, tile) in codes.tiles.iter_mut().enumerate().filter(|(_, t)| t.format.level_range().is_some()) {
                    tile.mode = TileMode::BitShift(1 + n as u8 % 8);
                }
                all.push(encode_tensor(&codes, &weights).unwrap());
                // Every tool that a tile of integers can have.
                if format.level_range().is_some() {
                    plan.row_scale = (0..48).map(|i| (i % 5) as i8 - 2).collect();
                    plan.parameters.neighbours = Some([-3, -1, 0, 1, 2, 4, 6, 8]);
                    plan.parameters.centroids = [2, 1, 0];
                    plan.parameters.linear = [20, 30, 5];
                    plan.parameters.filter = Some([8, -8]);
                    plan.parameters.dictionary = vec![(0..80).map(|i| (i % 9) as i8).collect()];
                    for (n, tile) in plan.tiles.iter_mut().enumerate() {
                        tile.step = n as i16 % 4;
                        tile.sigma = n as i16 % 3 - 1;
                        tile.coarse = (n % 5) as u8;
                        tile.predictor = [Predictor::None, Predictor::Left, Predictor::Top, Predictor::Linear][n % 4];
                        tile.transform = Transform { down: Kernel::COMMON[n % 4], along: Kernel::Dct, side: 16 };
                        tile.mode = if n % 6 == 5 { TileMode::Skip } else { TileMode::Coded };
                    }
                    all.push(encode_tensor(&plan, &weights).unwrap());
                }
            }
        }
        for dtype in Dtype::ALL {
            let elements = Elements { dtype, rows: 20, cols: 66, period: 3 };
            let bytes: Vec<u8> = (0..20 * 66 * dtype.bits() / 8).map(|i| (i * i >> 4) as u8).collect();
            all.push(encode_lossless(&elements, &bytes).unwrap());
        }
        // Elements on lattices, and with zeros.
        for dtype in [Dtype::Bf16, Dtype::F16, Dtype::F32] {
            let elements = Elements { dtype, rows: 40, cols: 64, period: 1 };
            let values: [fn(usize) -> f32; 3] = [
                |i| ((i * i >> 3) % 15) as f32 * (0.01 + (i / 32 % 7) as f32 / 999.0) - 0.07,
                |i| (((i * i >> 3) % 15) as f32 - 7.0) * (0.01 + (i / 64) as f32 / 999.0),
                |i| if i * i % 7 < 3 { 0.0 } else { (i as f32).sin() },
            ];
            for value in values {
                let element = |i| dtype.pattern_of(value(i)).to_le_bytes()[..dtype.bytes()].to_vec();
                all.push(encode_lossless(&elements, &(0..40 * 64).flat_map(element).collect::<Vec<u8>>()).unwrap());
            }
        }
        all.extend(structured(&weights));
        all
    })
}

/// Lossless elements of 48 rows that were something else before, in ways that lattices and rests have beside the plain
/// ones.
fn structured(weights: &[f32]) -> Vec<Vec<u8>> {
    let round = |dtype: Dtype, v: f32| dtype.value_of(dtype.pattern_of(v));
    let scale = |group: usize| round(Dtype::F16, (1 + group * 37 % 50) as f32 / 1000.0);
    let mut all = Vec::new();
    for dtype in [Dtype::Bf16, Dtype::F16, Dtype::F32] {
        let mut add = |tool: Tools, element: &dyn Fn(usize, f32) -> f32| {
            let patterns = weights.iter().enumerate().map(|(i, &w)| dtype.pattern_of(element(i, w)));
            let bytes: Vec<u8> = patterns.flat_map(|p| p.to_le_bytes()[..dtype.bytes()].to_vec()).collect();
            let coded = encode_lossless(&Elements { dtype, rows: 48, cols: 80, period: 1 }, &bytes).unwrap();
            assert!(CodedTensor::parse(&coded).unwrap().header().tools.has(tool));
            all.push(coded);
        };
        let by_row = |i: usize, w: f32| (w * 2.0).round().clamp(-7.0, 7.0) * scale(i / 20);
        // A few elements off the lattice, not-a-numbers and infinities among them.
        add(Tools::LATTICE, &|i, w| match i % 997 {
            5 => [f32::NAN, f32::NEG_INFINITY, -0.0, 12345.0][i / 997 % 4],
            _ => by_row(i, w),
        });
        // Products that were rounded to bf16 first.
        add(Tools::LATTICE, &|i, w| round(Dtype::Bf16, by_row(i, w)));
        // Every block has the largest code, by which its scale is found.
        add(Tools::LATTICE, &|i, w| {
            let code = if i % 16 == 0 { 448.0 } else { Minifloat::E4M3.decode(Minifloat::E4M3.encode(w * w * 7.0)) };
            code * scale(i / 80 / 16 * 5 + i % 80 / 16)
        });
        let narrow = if dtype == Dtype::F16 { Dtype::Bf16 } else { Dtype::F16 };
        add(Tools::RESTS, &|i, w| if i / 80 % 2 == 0 { 0.0 } else { round(narrow, w.abs().sqrt()) });
        // Minus zeros: as many as zeros, and few.
        add(Tools::RESTS, &|i, w| if w < 2.0 { [0.0, -0.0][i % 2] } else { w.sqrt() });
        add(Tools::RESTS, &|i, w| if w < 2.0 { [0.0, -0.0][usize::from(i % 99 == 0)] } else { w.sqrt() });
    }
    all
}

/// The slices of the bases as inputs, where `WATERFILL_SEEDS` names a folder for them.
fn write_seeds() {
    let Ok(dir) = std::env::var("WATERFILL_SEEDS") else { return };
    for (n, base) in bases().iter().enumerate() {
        let header = Header::parse(base).unwrap();
        let start = Header::bytes(header.slices.len()) + header.side_bytes;
        let slice = &base[start..start + header.slices[0].0 as usize];
        std::fs::write(format!("{dir}/base-{n}"), [&[n as u8], slice].concat()).unwrap();
    }
}

fuzz_target!(init: write_seeds(), |input: &[u8]| {
    let Some((&base, slice)) = input.split_first() else { return };
    let base = &bases()[usize::from(base) % bases().len()];
    let mut header = Header::parse(base).unwrap();
    let start = Header::bytes(header.slices.len());
    let side = &base[start..start + header.side_bytes];
    header.slices[0].0 = slice.len() as u32;
    let rest: usize = header.slices[1..].iter().map(|s| s.0 as usize).sum();
    let bytes = [&header.write(side), side, slice, &base[base.len() - rest..]].concat();
    let tensor = CodedTensor::parse(&bytes).unwrap();
    let mut out = vec![0; tensor.bytes(tensor.slice_rows(0).len())];
    let _ = tensor.decode_slice(0, &mut out);
    let _ = tensor.decode_planes(0);
});
