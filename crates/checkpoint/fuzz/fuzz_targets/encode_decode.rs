//! Anything that can be encoded is decoded: patterns to the same bits, plans to what the encoder's
//! digest says.
#![no_main]

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use waterfill_codec::{
    BitShiftTrellis, CodedTensor, Dtype, Elements, Format, Kernel, Minifloat, Palette, Parameters, Predictor, TILE,
    TensorPlan, TileMode, TilePlan, Transform, encode_lossless, encode_tensor,
};

#[derive(Arbitrary, Debug)]
struct Input {
    dtype: u8,
    rows: u8,
    cols: u8,
    side: u8,
    step: i8,
    sigma: i8,
    scales: [i8; 4],
    tiles: Vec<Tile>,
    neighbours: Option<[i8; 8]>,
    filter: Option<[i8; 2]>,
    centroids: [i8; 3],
    linear: [i8; 3],
    dictionary: Vec<i8>,
    state_bits: u8,
    /// Elements are put on it.
    lattice: Option<Lattice>,
    rests: Option<Rests>,
    bytes: Vec<u8>,
}

#[derive(Arbitrary, Debug)]
struct Lattice {
    group: [u8; 2],
    book: u8,
    levels: u8,
    via: u8,
    affine: bool,
    scales: Vec<(u16, i16)>,
    exceptions: Vec<(u16, u32)>,
}

/// Low bits that are zero, in all rows and in some, and elements that are.
#[derive(Arbitrary, Debug)]
struct Rests {
    cut: u8,
    row_cut: u8,
    zeros: u8,
    signed: bool,
}

#[derive(Arbitrary, Debug)]
struct Tile {
    format: u8,
    step: i8,
    sigma: i8,
    mode: u8,
    predictor: (u8, u8, i8),
    coarse: u8,
    transform: (u8, u8, u8),
}

fuzz_target!(|input: Input| {
    let dtype = Dtype::ALL[usize::from(input.dtype) % 7];
    let cols = usize::from(input.cols % 100);
    let cols = if dtype == Dtype::Nibble { cols / 2 * 2 } else { cols };
    let rows = usize::from(input.rows % 100);
    let mut bytes: Vec<u8> = (0..rows * cols * dtype.bits() / 8).map(|i| (i >> 2) as u8).collect();
    bytes.iter_mut().zip(&input.bytes).for_each(|(b, &x)| *b = x);
    if dtype.is_weight() && input.rows & 128 == 128 {
        // As a decoded quantized checkpoint has them, but for bytes at the end.
        let (group, kept) =
            (16 + usize::from(input.step.unsigned_abs()) % 50, bytes.len() - bytes.len().min(input.bytes.len() % 9));
        let scale = |i: usize| 0.01 + f32::from(input.bytes.get(i / group).copied().unwrap_or(7)) / 999.0;
        let value =
            |i: usize, b: u8| (f32::from(b % 16) - 7.0) * scale(i) + if input.side & 1 == 1 { -0.3 } else { 0.0 };
        let found = (0..rows * cols).flat_map(|i| {
            let pattern = dtype.pattern_of(value(i, bytes[i]));
            pattern.to_le_bytes()[..dtype.bytes()].to_vec()
        });
        let found: Vec<u8> = found.collect();
        bytes[..kept].copy_from_slice(&found[..kept]);
    }
    if dtype.is_weight() && cols > 0 {
        structure(&input, dtype, cols, &mut bytes);
    }
    let elements = Elements { dtype, rows, cols, period: usize::from(input.side % 9) };
    let coded = encode_lossless(&elements, &bytes).unwrap();
    assert_eq!(CodedTensor::parse(&coded).unwrap().decode().unwrap().0, bytes);
    if !dtype.is_weight() {
        return;
    }
    let weight = |b: &[u8]| dtype.value_of(b.iter().rev().fold(0, |v, &x| v << 8 | u32::from(x)));
    let weights: Vec<f32> = bytes.chunks_exact(dtype.bytes()).map(weight).collect();
    let mut plan = TensorPlan::uniform(dtype, rows, cols, TilePlan::default());
    plan.tile = [TILE, 8, 32, 64][usize::from(input.side) % 4];
    (plan.step_base, plan.sigma_base) = (input.step.into(), input.sigma.into());
    let vector = |n: usize, s: i8| (0..n).map(|i| if s == 0 { 0 } else { (i as i8 & 7).wrapping_mul(s % 8) }).collect();
    plan.row_scale = vector(if input.scales[0] == 0 { 0 } else { rows }, input.scales[0]);
    plan.col_scale = vector(if input.scales[1] == 0 { 0 } else { cols }, input.scales[1]);
    plan.row_sigma = vector(if input.scales[2] == 0 { 0 } else { rows }, input.scales[2]);
    plan.col_sigma = vector(if input.scales[3] == 0 { 0 } else { cols }, input.scales[3]);
    let small = |v: i8| v.clamp(-127, 127);
    plan.parameters.neighbours = input.neighbours.map(|n| n.map(small));
    plan.parameters.filter = input.filter.map(|f| f.map(small));
    plan.parameters.centroids = input.centroids.map(small);
    plan.parameters.linear = input.linear.map(small);
    if !input.dictionary.is_empty() && cols > 0 {
        let entry = |c: usize| small(input.dictionary[c % input.dictionary.len()]);
        plan.parameters.dictionary = vec![(0..cols).map(entry).collect()];
    }
    let count = rows.div_ceil(plan.tile) * cols.div_ceil(plan.tile);
    plan.tiles = (0..count)
        .map(|n| input.tiles.get(n % input.tiles.len().max(1)).map_or(TilePlan::default(), plan_of))
        .collect();
    for n in 0..count {
        let (r, c) = plan.tile_range(n);
        let full = r.len() == TILE && c.len() == TILE && plan.tile == TILE;
        let slice_start = r.start / plan.slice_rows() * plan.slice_rows();
        let tile = &mut plan.tiles[n];
        if !full {
            tile.transform = Transform::default();
            tile.mode = if tile.mode == TileMode::BitPlanes { TileMode::Coded } else { tile.mode };
            tile.predictor =
                if matches!(tile.predictor, Predictor::RankOne(..)) { Predictor::Left } else { tile.predictor };
        }
        match tile.predictor {
            Predictor::Row(d) if usize::from(d) > r.start - slice_start || d == 0 => tile.predictor = Predictor::Top,
            Predictor::Dictionary(_) if plan.parameters.dictionary.is_empty() => tile.predictor = Predictor::None,
            _ => {}
        }
    }
    let codes = BitShiftTrellis::new(input.state_bits.into()).filter(|_| plan.tile == TILE);
    if codes.is_some() {
        plan.parameters = Parameters { bit_shift: codes, ..Parameters::default() };
        for (n, tile) in plan.tiles.iter_mut().enumerate().filter(|(_, t)| t.format.level_range().is_some()) {
            let TilePlan { format, step, sigma, .. } = *tile;
            let mode = TileMode::BitShift(1 + (n as u8 ^ input.side) % 8);
            *tile = TilePlan { format, step, sigma, mode, ..TilePlan::default() };
        }
    }
    // Scales out of range and weights that are not finite are refused.
    if let Ok(coded) = encode_tensor(&plan, &weights) {
        CodedTensor::parse(&coded).unwrap().decode().unwrap();
    }
});

/// Puts weights on the input's lattice, and then cuts them, where it says so.
fn structure(input: &Input, dtype: Dtype, cols: usize, bytes: &mut [u8]) {
    let width = dtype.bytes();
    let pattern = |b: &[u8]| b.iter().rev().fold(0, |v, &x| v << 8 | u32::from(x));
    let mut patterns: Vec<u32> = bytes.chunks_exact(width).map(pattern).collect();
    if let Some(lattice) = &input.lattice {
        let side = lattice.group.map(|side| usize::from(side) % 64 + 1);
        let via = [Dtype::Bf16, Dtype::F16, Dtype::F32][usize::from(lattice.via) % 3];
        for (i, pattern) in patterns.iter_mut().enumerate() {
            let group = i / cols / side[0] * cols.div_ceil(side[1]) + i % cols / side[1];
            // Groups beyond the input's have scales of their own too.
            let (scale, offset) = match lattice.scales.len() {
                0 => (group as u16 * 77, 0),
                n => lattice.scales[group % n],
            };
            let byte = input.bytes.get(i).map_or((i * 7919 >> 3) as u8, |&b| b);
            let value = match lattice.book % 4 {
                0 => Minifloat::E4M3.decode(byte),
                1 => Minifloat::E5M2.decode(byte),
                _ => f32::from(byte % lattice.levels.max(1)) - f32::from(lattice.levels / 2),
            };
            let scale = Dtype::Bf16.value_of(0x3c00 + u32::from(scale % 512));
            // Minus zero is no offset: it leaves zeros their signs.
            let offset = if lattice.affine { f32::from(offset) / 4096.0 } else { -0.0 };
            let value = value * scale + offset;
            *pattern = dtype.pattern_of(via.value_of(via.pattern_of(value)));
        }
        for &(place, odd) in &lattice.exceptions {
            if let Some(pattern) = patterns.get_mut(usize::from(place)) {
                *pattern = odd;
            }
        }
    }
    if let Some(rests) = &input.rests {
        let sign = 1 << (dtype.bits() - 1);
        for (i, pattern) in patterns.iter_mut().enumerate() {
            let own = if i / cols % 2 == 1 { rests.row_cut % 24 } else { 0 };
            *pattern &= u32::MAX << (rests.cut % 24).max(own);
            if (i * 7919 >> 4) as u8 & 127 < rests.zeros {
                *pattern &= if rests.signed { sign } else { 0 };
            }
        }
    }
    bytes.chunks_exact_mut(width).zip(patterns).for_each(|(b, p)| b.copy_from_slice(&p.to_le_bytes()[..width]));
}

fn plan_of(tile: &Tile) -> TilePlan {
    let format = Format::ALL[usize::from(tile.format) % 8];
    let mut plan =
        TilePlan { format, step: tile.step.into(), sigma: tile.sigma.max(-127).into(), ..TilePlan::default() };
    if format.level_range().is_none() {
        return plan;
    }
    let (predictor, argument, value) = tile.predictor;
    let value = value.max(-127);
    plan.predictor = match predictor % 10 {
        0 => Predictor::None,
        1 => Predictor::Left,
        2 => Predictor::Top,
        3 => Predictor::RowMean,
        4 => Predictor::ColMean,
        5 => Predictor::Linear,
        6 => Predictor::Row(argument.into()),
        7 => Predictor::Dictionary(0),
        8 => Predictor::Constant(value.into()),
        _ => Predictor::RankOne([value; TILE], [argument as i8 >> 1; TILE]),
    };
    plan.mode = match tile.mode % 4 {
        0 => TileMode::Coded,
        1 => TileMode::Skip,
        2 => {
            let len = tile.mode / 4 % 7 + 2;
            let mut palette = Palette { len, values: [0; 8] };
            (0..usize::from(len)).for_each(|i| palette.values[i] = i16::from(value) / 8 + i as i16);
            TileMode::Palette(palette)
        }
        _ => TileMode::BitPlanes,
    };
    if matches!(plan.mode, TileMode::Coded | TileMode::BitPlanes) {
        plan.coarse = tile.coarse % 32;
        let (down, along, side) = tile.transform;
        plan.transform = Transform {
            down: Kernel::COMMON[usize::from(down) % 4],
            along: Kernel::COMMON[usize::from(along) % 4],
            side: 4 << (side % 3),
        };
        if plan.transform.is_identity() {
            plan.transform.side = 16;
        }
    }
    plan
}
